"""Which devices a version 2 group may use: a BPF program that the kernel asks (cgroup-v2.rst, Device controller)."""

from __future__ import annotations

import ctypes
import os
import struct

from kvmpy.errors import ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.container.host import Json

SYS_BPF = 321
PROG_LOAD, PROG_ATTACH, PROG_QUERY = 5, 8, 16
CGROUP_DEVICE_PROGRAM, CGROUP_DEVICE, ALLOW_MULTI = 15, 6, 2
# struct bpf_cgroup_dev_ctx: access_type (the access above, the type below 16 bits), major, minor
TYPES = {"b": 1, "c": 2}
ACCESS = {"m": 1, "r": 2, "w": 4}
EVERY_ACCESS = 7
# Instructions (<linux/bpf.h>): code, registers (source above, destination below 4 bits), offset, number
INSTRUCTION = "<BBhi"
LOAD, COPY, SET, AND, SHIFT, IF_NOT, IF, EXIT = 0x61, 0xBF, 0xB7, 0x57, 0x77, 0x55, 0x15, 0x95
RESULT, CONTEXT, TYPE, ASKED, MAJOR, MINOR = 0, 1, 2, 3, 4, 5
SCRATCH = CONTEXT


def program(rules: list[Json]) -> bytes:
    """Return the program of rules as in linux.resources.devices: the last one that fits decides; without one, allow."""
    code = [
        _instruction(LOAD, TYPE, CONTEXT, 0),
        _instruction(COPY, ASKED, TYPE),
        _instruction(AND, TYPE, number=0xFFFF),
        _instruction(SHIFT, ASKED, number=16),
        _instruction(LOAD, MAJOR, CONTEXT, 4),
        _instruction(LOAD, MINOR, CONTEXT, 8),
    ]
    for rule in [*reversed(rules), {"allow": True}]:
        block = _block(rule)
        code += block
        if len(block) == 2:
            break  # it fits everything; the kernel refuses a program with code that is never reached
    return b"".join(code)


def _block(rule: Json) -> list[bytes]:
    """Return the instructions of one rule; where it does not fit, they jump behind themselves."""
    allow = bool(rule.get("allow"))
    access = sum(ACCESS[letter] for letter in set(rule.get("access") or "rwm") if letter in ACCESS)
    kind = rule.get("type", "a")
    tests: list[tuple[int, int, int]] = []  # (jump if so, register, number)
    if kind in TYPES:
        tests.append((IF_NOT, TYPE, TYPES[kind]))
    tests += [
        (IF_NOT, register, rule[field])
        for register, field in ((MAJOR, "major"), (MINOR, "minor"))
        if rule.get(field, -1) >= 0
    ]
    masked = access != EVERY_ACCESS
    length = len(tests) + (3 if masked else 0) + 2
    code = []
    for at, (jump, register, number) in enumerate(tests, 1):
        code.append(_instruction(jump, register, offset=length - at, number=number))
    if masked:  # allowed must be all that is asked for; refused is what asks for any of it
        code.append(_instruction(COPY, SCRATCH, ASKED))
        code.append(_instruction(AND, SCRATCH, number=EVERY_ACCESS & ~access if allow else access))
        code.append(_instruction(IF_NOT if allow else IF, SCRATCH, offset=2, number=0))
    return [*code, _instruction(SET, RESULT, number=int(allow)), _instruction(EXIT)]


def _instruction(code: int, destination: int = 0, source: int = 0, offset: int = 0, number: int = 0) -> bytes:
    return struct.pack(INSTRUCTION, code, source << 4 | destination, offset, number)


def attach(directory: str, rules: list[Json], where: str) -> None:
    """Let rules hold for a group; ContainerError when the kernel refuses them, or there are some already."""
    group = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _count(group):
            raise ContainerError(f"{where}: the rules of a version 2 group cannot be changed; make the container anew")
        code = program(rules)
        instructions, licence = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
        load = struct.pack(
            "<IIQQIIQII", CGROUP_DEVICE_PROGRAM, len(code) // 8, ctypes.addressof(instructions),
            ctypes.addressof(licence), 0, 0, 0, 0, 0,
        )  # fmt: skip
        loaded = _bpf(PROG_LOAD, load, where)
        try:
            _bpf(PROG_ATTACH, struct.pack("<IIII", group, loaded, CGROUP_DEVICE, ALLOW_MULTI), where)
        finally:
            os.close(loaded)
    finally:
        os.close(group)


def _count(group: int) -> int:
    """Return how many programs a group has itself."""
    query = ctypes.create_string_buffer(struct.pack("<IIIIQI4x", group, CGROUP_DEVICE, 0, 0, 0, 0), 32)
    if ctypes.CDLL(None).syscall(SYS_BPF, PROG_QUERY, query, 32) < 0:
        return 0
    return int(struct.unpack_from("<I", query.raw, 24)[0])


def _bpf(command: int, attributes: bytes, where: str) -> int:
    library = ctypes.CDLL(None, use_errno=True)
    result = int(library.syscall(SYS_BPF, command, ctypes.create_string_buffer(attributes), len(attributes)))
    if result < 0:
        why = os.strerror(ctypes.get_errno()).lower()
        raise ContainerError(f"{where}: the kernel refuses to filter devices by BPF: {why}")
    return result
