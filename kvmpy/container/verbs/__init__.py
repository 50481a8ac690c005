"""The verbs of the runtime, one file each: what it does as a function, and how runc's command line calls it.

A file has OPTIONS, a table of what it takes (see command_line.py), and `main(call)`, which returns the exit code.
"""
