"""The same things done as a process, in a container and in a virtual machine: run, measured, compared."""
