"""A container in sixty lines: python sixty_lines.py DIRECTORY PROGRAM [ARGUMENT...]. The directory may be empty."""

import ctypes
import os
import socket
import sys
import warnings  # noqa: F401 - os.execvp() wants it, where Python's library is out of sight

NAMESPACES = 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000 | 0x00020000  # <sched.h>
BIND, REC, PRIVATE, CAREFUL = 0x1000, 0x4000, 0x40000, 0xE  # <linux/mount.h>; CAREFUL: nosuid, nodev, noexec
PIVOT_ROOT, MOUNT_SETATTR = 155, 442  # <asm/unistd_64.h>
CAPBSET_DROP, NO_NEW_PRIVS = 24, 38  # <linux/prctl.h>
libc = ctypes.CDLL(None, use_errno=True)


def call(name, *arguments):
    if getattr(libc, name)(*(os.fsencode(a) if isinstance(a, str) else a for a in arguments)) < 0:
        raise OSError(ctypes.get_errno(), f"{name}{arguments}: {os.strerror(ctypes.get_errno())}")


def mount(source, target, kind, flags):
    os.makedirs(target, exist_ok=True)
    call("mount", source, target, kind, flags, None)


def borrow_programs(root):
    """Show the host's programs at the same places, read-only, with all that is mounted in them."""
    read_only = (ctypes.c_uint64 * 4)(1, 0, 0, 0)  # struct mount_attr: set RDONLY
    for path in ("usr", "bin", "sbin", "lib", "lib64"):
        if os.path.islink(f"/{path}"):
            os.symlink(os.readlink(f"/{path}"), f"{root}/{path}")
        elif os.path.isdir(f"/{path}"):
            mount(f"/{path}", f"{root}/{path}", None, BIND | REC)
            call("syscall", MOUNT_SETATTR, -100, f"{root}/{path}", 0x8000, read_only, 32)


def enter(root):
    """Leave the host: its mounts, its name, its rights."""
    mount("none", "/", None, REC | PRIVATE)  # what is mounted from here on, nobody else sees
    mount(root, root, None, BIND | REC)
    borrow_programs(root)
    mount("proc", f"{root}/proc", "proc", CAREFUL)
    os.chdir(root)
    call("syscall", PIVOT_ROOT, ".", ".")  # the old root lies on the new one now,
    call("umount2", ".", 2)  # and goes
    os.chdir("/")
    socket.sethostname("sixty-lines")
    for capability in range(41):
        libc.prctl(CAPBSET_DROP, capability, 0, 0, 0)
    libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0)


if __name__ == "__main__":
    ids = {"setgroups": "deny", "uid_map": f"0 {os.geteuid()} 1", "gid_map": f"0 {os.getegid()} 1"}
    call("unshare", NAMESPACES)
    [open(f"/proc/self/{name}", "w").write(text) for name, text in ids.items()]
    if (pid := os.fork()) == 0:  # the child is the first process of the new pid namespace
        enter(os.path.abspath(sys.argv[1]))
        os.execvp(sys.argv[2], sys.argv[2:])
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
