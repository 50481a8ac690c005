"""The other model of virtualization: containers, made of namespaces, mounts and cgroups.

A configuration becomes a plan, an ordered list of typed operations (`plan.py`); each operation stands for system calls,
written down as a *tape* (`tape.py`); and a *stage* of a few lines of C plays the tape between clone and execve
(`native/stage.c`), so that no Python ever runs inside a container.

Everything that `create` needs imports C modules only: an interpreter with its usual modules starts in 25 ms, without
them in 5, and a container manager starts one for every verb.
"""
