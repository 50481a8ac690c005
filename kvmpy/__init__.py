"""kvmpy: a laboratory for virtualization in Python."""
