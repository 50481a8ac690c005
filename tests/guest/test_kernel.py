"""guest.bin: its stages and its monitor, on kvmpy and on QEMU, which must print the same."""

from __future__ import annotations

import re

import pytest
from console import KVMPY, Console, kvmpy
from peers import needs_kvm, require

from kvmpy.boot.image import bundled_guests

QEMU = "qemu-system-x86_64"
PROMPT = "\n> "
# A row of `ps`. How many slices a task got depends on how fast the host is, and on what else it does.
TIME_SLICES = re.compile(r"^([A-Z] (?:ready|waiting|running|exited|killed)) \d+ (\d+)$", re.MULTILINE)
# Commands whose output depends on the guest alone, and on the memory size.
SESSION = ["help", "mem", "ps", "peek 0x10000", "peek 0", "trap 0", "trap 3", "trap 6", "trap 13", "trap 14", "trap 1",
           "nonsense", "peek", "trap x"]  # fmt: skip


def run_session(*command: str) -> str:
    with Console(*command) as console:
        console.read_until("\n> ")
        shown = ""
        for line in SESSION:
            console.send(line + "\n")
            shown += console.read_until(PROMPT).decode()
        console.send("halt\n")
        rest, errors, code = console.finish()
        assert code == 0, errors
        return TIME_SLICES.sub(r"\1 N \2", shown + rest.decode())


def boot_output(*command: str) -> str:
    with Console(*command) as console:
        shown = console.read_until(PROMPT)
        console.send("halt\n")
        console.finish()
        return shown.decode()


@pytest.fixture(scope="module")
def qemu_command() -> tuple[str, ...]:
    require(QEMU)
    options = ["-accel", "tcg", "-m", "64", "-display", "none", "-serial", "stdio", "-monitor", "none", "-no-reboot"]
    return (QEMU, "-kernel", bundled_guests()["guest.bin"], *options)


BOOT = (*KVMPY, "boot", "guest.bin", "--memory", "64M", "--timeout", "25")
WAYS = {
    "kvm": ("--accel", "kvm"),
    "kvm, chips in Python": ("--accel", "kvm", "--irqchip", "python"),
    "soft": ("--accel", "soft"),
}
ways = pytest.mark.parametrize("way", [pytest.param(w, marks=needs_kvm if "kvm" in w else ()) for w in WAYS])
on_each_accelerator = pytest.mark.usefixtures("each_accelerator")


@ways
def test_it_boots_as_it_does_in_qemu(qemu_command: tuple[str, ...], way: str) -> None:
    assert boot_output(*BOOT, *WAYS[way]) == boot_output(*qemu_command)


@ways
def test_its_monitor_answers_as_it_does_in_qemu(qemu_command: tuple[str, ...], way: str) -> None:
    shown = run_session(*BOOT, *WAYS[way])
    assert shown == run_session(*qemu_command)
    assert "\nA exited N 4\nB exited N 4\nC killed N 1\n" in shown


@on_each_accelerator
def test_every_stage_is_passed_in_order() -> None:
    shown = boot_output(*BOOT)
    stages = [
        "[real]",
        "[protected]",
        "[long]",
        "[idt]",
        "[timer]",
        "[tasks]",
        "A: ping",
        "B: pong",
        "C: ",
        "[monitor]",
    ]
    places = [shown.index(stage) for stage in stages]
    assert places == sorted(places)
    assert shown.count("A: ping") == shown.count("B: pong") == 3


@on_each_accelerator
def test_the_bad_task_is_killed_for_writing_to_a_supervisor_page() -> None:
    killed = next(line for line in boot_output(*BOOT).splitlines() if "task C killed" in line)
    assert "#PF" in killed
    assert "error code 0x7" in killed  # present, write, user (Intel SDM vol. 3, 4.7)


@on_each_accelerator
@pytest.mark.parametrize(
    ("trap", "mnemonic", "error"),
    [(0, "#DE", "0x0"), (3, "#BP", "0x0"), (6, "#UD", "0x0"), (13, "#GP", "0x0"), (14, "#PF", "0x4")],
)
def test_traps_have_their_names_and_error_codes(trap: int, mnemonic: str, error: str) -> None:
    done = kvmpy("boot", "guest.bin", "--append", f"trap {trap}", "--timeout", "25")
    assert f"task T killed by {mnemonic} at".encode() in done.stdout
    assert f"error code {error}".encode() in done.stdout.rpartition(b"task T")[2]
    assert done.returncode == 0


@on_each_accelerator
@pytest.mark.parametrize(
    ("command", "code"), [("halt", 0), ("halt 0", 0), ("halt 7", 7), ("halt 0x2a", 42), ("panic", 1)]
)
def test_exit_codes(command: str, code: int) -> None:
    assert kvmpy("boot", "guest.bin", "--append", command, "--timeout", "25").returncode == code


@on_each_accelerator
def test_reboot_ends_the_machine() -> None:
    done = kvmpy("boot", "guest.bin", "--append", "reboot", "--timeout", "25", "--debug")
    assert done.returncode == 0
    assert b"reset" in done.stderr


@on_each_accelerator
def test_panic_names_the_exception() -> None:
    assert b"kernel panic: #UD" in kvmpy("boot", "guest.bin", "--append", "panic", "--timeout", "25").stdout


@on_each_accelerator
def test_ctrl_d_and_the_end_of_input_switch_it_off() -> None:
    done = kvmpy("boot", "guest.bin", "--timeout", "25", input=b"\x04")
    assert done.returncode == 0
    assert kvmpy("boot", "guest.bin", "--timeout", "25").returncode == 0


@on_each_accelerator
@pytest.mark.parametrize("megabytes", [8, 16, 17, 64, 3072])
def test_it_finds_its_memory(megabytes: int) -> None:
    done = kvmpy("boot", "guest.bin", "--memory", f"{megabytes}M", "--append", "mem", "--timeout", "25")
    assert f"memory   {megabytes * 1024} KiB".encode() in done.stdout


@on_each_accelerator
def test_lines_can_be_edited() -> None:
    done = kvmpy("boot", "guest.bin", "--timeout", "25", input=b"helx\x7fp\nbad\x03ticks\nhalt 5\n")
    assert b"this list" in done.stdout
    assert b"^C" in done.stdout
    assert b" ticks\n" in done.stdout
    assert done.returncode == 5


@on_each_accelerator
def test_a_line_that_is_too_long_does_no_harm() -> None:
    done = kvmpy("boot", "guest.bin", "--timeout", "25", input=b"x" * 5000 + b"\nhalt 3\n")
    assert b"no such command" in done.stdout
    assert done.returncode == 3


def test_cpuid_shows_the_software_cpu() -> None:
    done = kvmpy("boot", "guest.bin", "--accel", "soft", "--append", "cpuid", "--timeout", "25")
    assert b"vendor   GenuineIntel" in done.stdout


@needs_kvm
def test_cpuid_shows_the_vendor() -> None:
    done = kvmpy("boot", "guest.bin", "--append", "cpuid", "--timeout", "25")
    vendor = done.stdout.partition(b"vendor   ")[2][:12]
    with open("/proc/cpuinfo") as info:
        assert f"vendor_id\t: {vendor.decode()}\n" in info.read()


@ways
def test_a_thousand_keystrokes_are_not_lost(way: str) -> None:
    """Piped in at once, echoed by the monitor, which takes them one by one by interrupt."""
    lines = [f"nonsense{i:04}" for i in range(100)]
    text = "\n".join(lines) + "\nhalt 9\n"
    assert len(text) > 1000
    done = kvmpy("boot", "guest.bin", "--timeout", "25", *WAYS[way], input=text.encode())
    assert done.returncode == 9
    shown = done.stdout.decode()
    assert [line for line in lines if f"> {line}\n" not in shown] == []
