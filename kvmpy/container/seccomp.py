"""linux.seccomp becomes a program by libseccomp; it is kept under the runtime's root, by the profile's digest."""

from __future__ import annotations

from kvmpy.container.host import make_directories, read_file, replace_file, to_json
from kvmpy.errors import ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.container.host import Json

# <seccomp.h>; of those in TAKES_DATA the low 16 bits are an errno or a number for the tracer
ACTIONS = {
    "SCMP_ACT_KILL": 0x0,
    "SCMP_ACT_KILL_THREAD": 0x0,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x30000,
    "SCMP_ACT_ERRNO": 0x50000,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
    "SCMP_ACT_NOTIFY": 0x7FC00000,
}
TAKES_DATA = ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE")
EPERM = 1  # config-linux, Seccomp: errnoRet defaults to it
COMPARISONS = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}
# <linux/seccomp.h>
FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": 1,
    "SECCOMP_FILTER_FLAG_LOG": 2,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": 32,
}
NEW_LISTENER = 8
ARCHITECTURES = (
    "X86 X86_64 X32 ARM AARCH64 MIPS MIPS64 MIPS64N32 MIPSEL MIPSEL64 MIPSEL64N32 PPC PPC64 PPC64LE S390 S390X PARISC "
    "PARISC64 RISCV64 LOONGARCH64 M68K SH SHEB"
).split()


class Filter:
    """A filter ready to load: the program, seccomp(2)'s flags, whether another process is asked."""

    def __init__(self, program: bytes, flags: int, notify: bool) -> None:
        self.program = program
        self.flags = flags
        self.notify = notify


def load(root: str, profile: Json, where: str) -> Filter:
    """Return the filter of a profile, compiled now or earlier."""
    from _hashlib import openssl_sha256

    known = "|".join(FLAGS)
    flags = 0
    for number, name in enumerate(profile.get("flags", ())):
        if name not in FLAGS:
            raise ContainerError(f"{where}.flags[{number}]: {name!r} is not one of {known.replace('|', ', ')}")
        flags |= FLAGS[name]
    actions = {profile["defaultAction"], *(rule["action"] for rule in profile.get("syscalls", ()))}
    notify = "SCMP_ACT_NOTIFY" in actions
    if notify and "listenerPath" not in profile:
        raise ContainerError(f"{where}.listenerPath is missing; SCMP_ACT_NOTIFY needs it")
    digest = openssl_sha256(to_json([profile["defaultAction"], profile]).encode()).hexdigest()
    kept = f"{root}/.seccomp/{digest}"
    try:
        program = read_file(kept)
    except FileNotFoundError:
        program = compile_profile(profile, where)
        make_directories(f"{root}/.seccomp")
        replace_file(kept, program)
    return Filter(program, flags | (NEW_LISTENER if notify else 0), notify)


def _action(entry: Json, key: str, number: str, where: str) -> int:
    name = entry[key]
    if name not in ACTIONS:
        raise ContainerError(f"{where}.{key}: {name!r} is not one of {', '.join(ACTIONS)}")
    return ACTIONS[name] | (entry.get(number, EPERM) if name in TAKES_DATA else 0)


def compile_profile(profile: Json, where: str) -> bytes:
    """Return the program of a profile (libseccomp, seccomp_export_bpf(3)); a name that nobody knows is an error."""
    from kvmpy.container.libseccomp import Compiler

    default = _action(profile, "defaultAction", "defaultErrnoRet", where)
    with Compiler(default) as compiler:
        for number, name in enumerate(profile.get("architectures", ())):
            short = name.removeprefix("SCMP_ARCH_")
            if short not in ARCHITECTURES or short is name:
                raise ContainerError(f"{where}.architectures[{number}]: there is no architecture {name!r}")
            compiler.add_architecture(short.lower())
        for number, rule in enumerate(profile.get("syscalls", ())):
            here = f"{where}.syscalls[{number}]"
            action = _action(rule, "action", "errnoRet", here)
            conditions = [_condition(entry, f"{here}.args[{n}]") for n, entry in enumerate(rule.get("args", ()))]
            for name in rule["names"]:
                compiler.add_rule(action, name, conditions, here)
        return compiler.program()


def _condition(entry: Json, where: str) -> tuple[int, int, int, int]:
    if entry["op"] not in COMPARISONS:
        raise ContainerError(f"{where}.op: {entry['op']!r} is not one of {', '.join(COMPARISONS)}")
    return entry["index"], COMPARISONS[entry["op"]], entry["value"], entry.get("valueTwo", 0)
