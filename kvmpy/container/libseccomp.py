"""libseccomp by ctypes: it is needed once for each profile, and the two milliseconds of ctypes with it."""

from __future__ import annotations

import ctypes
import os
import struct

from kvmpy.errors import ContainerError

LIBRARY = "libseccomp.so.2"
UNKNOWN_CALL = -1  # __NR_SCMP_ERROR
# What came after libseccomp 2.5 (2020) and stands in today's profiles, by its number on x86-64.
NEWER_CALLS = {
    "cachestat": 451, "fchmodat2": 452, "map_shadow_stack": 453, "futex_wake": 454, "futex_wait": 455,
    "futex_requeue": 456, "statmount": 457, "listmount": 458, "lsm_get_self_attr": 459, "lsm_set_self_attr": 460,
    "lsm_list_modules": 461, "mseal": 462, "setxattrat": 463, "getxattrat": 464, "listxattrat": 465,
    "removexattrat": 466, "open_tree_attr": 467, "file_getattr": 468, "file_setattr": 469,
    "memfd_secret": 447, "process_mrelease": 448, "futex_waitv": 449, "set_mempolicy_home_node": 450,
    "uretprobe": 335, "uprobe": 336,
}  # fmt: skip
EEXIST = 17


# struct sock_filter, its codes, and struct seccomp_data (<linux/filter.h>, <linux/seccomp.h>)
FILTER = "<HBBI"
LOAD, EQUAL, AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
DATA_NR, DATA_ARCH = 0, 4
AUDIT_ARCH_X86_64, X32_BIT = 0xC000003E, 0x40000000
ACTION_MASK, ERRNO, ENOSYS = 0xFFFF0000, 0x50000, 38


class _Condition(ctypes.Structure):
    """struct scmp_arg_cmp of <seccomp.h>."""

    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


def available() -> bool:
    """Whether libseccomp is there."""
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        return False
    return True


class Compiler:
    """One filter on its way. Use as a context manager."""

    def __init__(self, default: int) -> None:
        try:
            self._library = ctypes.CDLL(LIBRARY)
        except OSError:
            raise ContainerError(f"linux.seccomp: {LIBRARY} is missing; install libseccomp2") from None
        self._library.seccomp_init.restype = ctypes.c_void_p
        self._default = default
        self._newer: dict[int, int] = {}
        self._context = ctypes.c_void_p(self._library.seccomp_init(ctypes.c_uint32(default)))
        if not self._context:
            raise ContainerError("linux.seccomp: libseccomp refuses the default action")

    def __enter__(self) -> Compiler:
        return self

    def __exit__(self, *_: object) -> None:
        self._library.seccomp_release(self._context)

    def add_architecture(self, name: str) -> None:
        """Let the filter hold for programs of another architecture too."""
        token = self._library.seccomp_arch_resolve_name(name.encode())
        if not token:
            raise ContainerError(f"linux.seccomp.architectures: this libseccomp does not know {name}")
        self._demand(self._library.seccomp_arch_add(self._context, token), f"architecture {name}", (EEXIST,))

    def add_rule(self, action: int, name: str, conditions: list[tuple[int, int, int, int]], where: str) -> None:
        """Answer a system call with an action where all conditions hold."""
        if action == self._default:
            return  # libseccomp refuses what says nothing
        number = self._library.seccomp_syscall_resolve_name(name.encode())
        if number == UNKNOWN_CALL:
            if name not in NEWER_CALLS or conditions:
                raise ContainerError(f"{where}.names: this libseccomp knows no system call {name!r}")
            self._newer.setdefault(NEWER_CALLS[name], action)
            return
        array = (_Condition * len(conditions))(*[_Condition(*condition) for condition in conditions])
        result = self._library.seccomp_rule_add_array(
            self._context, ctypes.c_uint32(action), number, len(conditions), array
        )
        self._demand(result, f"{where}: {name}")

    def program(self) -> bytes:
        """Return the filter as seccomp(2) takes it."""
        fd = os.memfd_create("filter", os.MFD_CLOEXEC)
        try:
            self._demand(self._library.seccomp_export_bpf(self._context, fd), "linux.seccomp")
            return self._before() + os.pread(fd, os.fstat(fd).st_size, 0)
        finally:
            os.close(fd)

    def _before(self) -> bytes:
        """Return the instructions that answer what libseccomp does not know; else the program goes on behind them.

        Calls that are newer than all that a profile can name fail with ENOSYS where its default is an error: so C
        libraries fall back on what they know, which EPERM would keep them from (runc does the same).
        """
        body = [struct.pack(FILTER, LOAD, 0, 0, DATA_NR)]
        for number, action in self._newer.items():
            body += [struct.pack(FILTER, EQUAL, 0, 1, number), struct.pack(FILTER, RETURN, 0, 0, action)]
        if self._default & ACTION_MASK == ERRNO:
            body.append(struct.pack(FILTER, AT_LEAST, 0, 2, max(NEWER_CALLS.values()) + 1))
            body.append(struct.pack(FILTER, AT_LEAST, 1, 0, X32_BIT))
            body.append(struct.pack(FILTER, RETURN, 0, 0, ERRNO | ENOSYS))
        native = struct.pack(FILTER, EQUAL, 0, len(body), AUDIT_ARCH_X86_64)
        return struct.pack(FILTER, LOAD, 0, 0, DATA_ARCH) + native + b"".join(body)

    def _demand(self, result: int, what: str, accept: tuple[int, ...] = ()) -> None:
        if result < 0 and -result not in accept:
            raise ContainerError(f"{what}: libseccomp: {os.strerror(-result).lower()}")
