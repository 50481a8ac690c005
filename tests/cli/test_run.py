"""`kvmpy run --as vm|container|process`: the same options, stop reasons and exit codes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest
from console import DEADLINE, KVMPY, kvmpy, one_line

from kvmpy.container.simple import Wish, configuration

BUSYBOX = shutil.which("busybox")
needs_container = pytest.mark.skipif(
    os.geteuid() != 0 or not BUSYBOX, reason="needs root, and busybox for a root directory"
)
MODELS = ["vm", pytest.param("container", marks=needs_container), "process"]
PROGRAMS = [pytest.param("container", marks=needs_container), "process"]
# A guest that does what `cat; exit 3` does: reads COM1, sends it back, and ends at Ctrl-D or "e" with code 3.
CAT = """
again:
    mov dx, 0x3fd
wait:
    in al, dx
    test al, 1
    jz wait
    mov dx, 0x3f8
    in al, dx
    cmp al, 4
    je done
    out dx, al
    jmp again
done:
    mov al, 3
    out 0xf4, al
    hlt
"""


@pytest.fixture
def thing(tmp_path: Path, image: Callable[..., str]):  # type: ignore[no-untyped-def]
    """Return a function that gives the command line of something that prints, waits or ends, under each model."""
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    if BUSYBOX:
        shutil.copy(BUSYBOX, root / "bin/sh")
        (root / "bin/tail").symlink_to("sh")

    def make(model: str, script: str, guest: str, *options: str) -> list[str]:
        command = ["run", "--as", model, *options]
        if model == "vm":
            return [*command, "--accel", "soft", image(guest)]
        return [*command, *(["sh", "--", "-c"] if model == "process" else [str(root), "--", "sh", "-c"]), script]

    return make


Thing = Callable[..., list[str]]
EXIT_7 = "mov al, 7\nout 0xf4, al\nhlt"
FOREVER = "jmp ."
HELLO = "mov dx, 0x3f8\nmov al, 'h'\nout dx, al\nmov al, 'i'\nout dx, al\nmov al, 10\nout dx, al\nhlt"


@pytest.mark.parametrize("model", MODELS)
def test_the_exit_code_is_the_programs_own(model: str, thing: Thing) -> None:
    done = kvmpy(*thing(model, "exit 7", EXIT_7))
    assert (done.returncode, done.stdout, done.stderr) == (7, b"", b"")


@pytest.mark.parametrize("model", MODELS)
def test_output_is_passed_on(model: str, thing: Thing) -> None:
    done = kvmpy(*thing(model, "echo hi", HELLO))
    assert (done.stdout, done.returncode) == (b"hi\n", 0)


@pytest.mark.parametrize("model", MODELS)
def test_input_is_passed_on_and_none_is_the_end_of_it(model: str, thing: Thing) -> None:
    text = b"three\nlines\nof text\n"
    script = "while read line; do echo $line; done; exit 3"
    assert (lambda d: (d.stdout, d.returncode))(kvmpy(*thing(model, script, CAT), input=text)) == (text, 3)
    nothing = kvmpy(*thing(model, script, CAT, "--console", "none"), input=text)
    assert (nothing.stdout, nothing.returncode) == (b"", 3)


@pytest.mark.parametrize("model", MODELS)
def test_a_time_limit_ends_it(model: str, thing: Thing) -> None:
    start = time.monotonic()
    done = kvmpy(*thing(model, "while :; do :; done", FOREVER, "--timeout", "0.3"))
    assert done.returncode == 124
    assert "timeout" in one_line(done.stderr)
    assert 0.3 <= time.monotonic() - start < DEADLINE / 2


@pytest.mark.parametrize("model", MODELS)
def test_json_has_the_same_fields(model: str, thing: Thing) -> None:
    done = kvmpy(*thing(model, "echo hi; exit 5", HELLO.replace("hlt", "mov al, 5\nout 0xf4, al"), "--json"))
    report = json.loads(done.stdout)
    wanted = {"model": model, "stop": "exit", "code": 5, "exit_code": 5, "output": "hi\n", "output_truncated": False}
    assert {name: report[name] for name in wanted} == wanted
    assert 0 < report["seconds"] < DEADLINE
    assert done.returncode == 5


@pytest.mark.parametrize("model", MODELS)
def test_json_of_one_that_was_ended(model: str, thing: Thing) -> None:
    done = kvmpy(*thing(model, "while :; do :; done", FOREVER, "--json", "--timeout", "0.3"))
    report = json.loads(done.stdout)
    assert (report["stop"], report["code"], report["exit_code"]) == ("timeout", None, 124)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it(model: str, number: signal.Signals, code: int, thing: Thing, tmp_path: Path) -> None:
    """tail(1) catches none. A shell does; as process 1 it cannot end itself by it, and busybox' may wait for itself."""
    (tmp_path / "root/hi").write_text("hi\n")
    command = [*KVMPY, *thing(model, "exec tail -f hi", HELLO.replace("hlt", FOREVER))]
    null = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=null, cwd=tmp_path / "root") as process:
        assert process.stdout
        try:
            assert process.stdout.read(3) == b"hi\n"
            process.send_signal(number)
            assert process.wait(DEADLINE) == code
        finally:
            process.kill()


@pytest.mark.parametrize("model", PROGRAMS)
def test_one_that_dies_of_a_signal(model: str, thing: Thing) -> None:
    done = kvmpy(*thing(model, "kill -KILL $$; sh -c 'kill -KILL $PPID'", "", "--json"))
    if model == "process":
        report = json.loads(done.stdout)
        assert (report["stop"], report["exit_code"], done.returncode) == ("killed", 137, 137)
    else:  # the first process of a pid namespace cannot kill itself (pid_namespaces(7))
        assert done.returncode == 0


@pytest.mark.parametrize("model", PROGRAMS)
def test_a_program_that_is_not_there(model: str, thing: Thing) -> None:
    command = thing(model, "", "")
    done = kvmpy(*(["run", "--as", "process", "no-such"] if model == "process" else [*command[:4], "--", "no-such"]))
    assert done.returncode == 127
    assert ("no such file" if model == "process" else "not found") in one_line(done.stderr)


def test_a_program_that_cannot_be_executed(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("no program")
    done = kvmpy("run", "--as", "process", str(tmp_path / "data"))
    assert done.returncode == 126
    assert "permission denied" in one_line(done.stderr)


def test_a_guest_that_is_not_there() -> None:
    done = kvmpy("run", "--as", "vm", "no-such.bin")
    assert done.returncode == 66
    one_line(done.stderr)


def test_memory_means_what_the_help_says(thing: Thing) -> None:
    """setrlimit(2): RLIMIT_AS, in bytes; bash's and dash's ulimit -v tells it in KiB. A VM's monitor tells its RAM."""
    assert kvmpy("run", "--as", "process", "--memory", "512M", "sh", "--", "-c", "ulimit -v").stdout == b"524288\n"
    done = kvmpy("run", "--as", "vm", "--accel", "soft", "--memory", "16M", "guest.bin", input=b"mem\nhalt\n")
    assert b"memory   16384 KiB" in done.stdout


@needs_container
def test_a_containers_memory_is_its_control_groups(thing: Thing) -> None:
    command = thing("container", "x=aaaaaaaa; while :; do x=$x$x; done", "", "--memory", "32M", "--json")
    report = json.loads(kvmpy(*command).stdout)
    assert (report["stop"], report["exit_code"]) == ("killed", 137)


def test_cpus_of_a_process_are_where_it_may_run() -> None:
    done = kvmpy("run", "--as", "process", "--cpus", "1", "sh", "--", "-c", "grep Cpus_allowed_list /proc/self/status")
    first = min(os.sched_getaffinity(0))
    assert done.stdout.split() == [b"Cpus_allowed_list:", str(first).encode()]


@needs_container
def test_an_oci_bundle_with_and_without_another_command(thing: Thing, tmp_path: Path) -> None:
    subprocess.run(["kvmpy-oci", "spec"], cwd=tmp_path, check=False, executable=runtime())
    config = json.loads((tmp_path / "config.json").read_text())
    config["root"] = {"path": "root"}
    config["process"] |= {"terminal": False, "args": ["/bin/sh", "-c", "echo from the bundle"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "rootfs").mkdir(exist_ok=True)
    assert kvmpy("run", "--as", "container", str(tmp_path)).stdout == b"from the bundle\n"
    other = kvmpy("run", "--as", "container", str(tmp_path), "--", "/bin/sh", "-c", "exit 9")
    assert other.returncode == 9


def runtime() -> str:
    from kvmpy.container.command_line import NAME
    from kvmpy.container.launch import NATIVE

    return f"{NATIVE}/{NAME}"


@pytest.mark.parametrize("model", PROGRAMS)
def test_a_terminal_of_its_own(model: str, thing: Thing) -> None:
    """busybox's and dash's `[ -t 1 ]` asks isatty(3); the size is that of the terminal outside."""
    command = [*KVMPY[1:], *thing(model, "[ -t 0 ] && [ -t 1 ] && read x && echo got $x", "", "--console", "tty")]
    child = pexpect.spawn(KVMPY[0], command, dimensions=(30, 70), timeout=DEADLINE)
    child.sendline("word")
    child.expect("got word")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


@pytest.mark.parametrize(
    ("arguments", "code", "what"),
    [
        (["hello.bin"], 2, "--as"),
        (["--as", "jail", "x"], 2, "invalid choice"),
        (["--as", "vm", "hello.bin", "--", "x"], 2, "--append"),
        (["--as", "vm", "--cpus", "0.5", "hello.bin"], 2, "whole"),
        (["--as", "process", "--memory", "-1", "true"], 2, "no size"),
        (["--as", "container", "/no/such"], 125, "no such"),
    ],
)
def test_wrong_usage(arguments: list[str], code: int, what: str) -> None:
    done = kvmpy("run", *arguments)
    assert done.returncode == code
    assert what in done.stderr.decode()
    assert b"Traceback" not in done.stderr


def test_json_to_a_closed_pipe() -> None:
    command = [*KVMPY, "run", "--as", "process", "--json", "true"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, timeout=DEADLINE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (74, b"")


@needs_container
@pytest.mark.usefixtures("thing")  # for its root directory
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("kind", ["createRuntime", "poststart", "poststop"])
def test_a_signal_while_a_container_is_made_or_removed_leaves_nothing(
    kind: str, number: signal.Signals, tmp_path: Path
) -> None:
    """A hook outside the container sends it, whose parent is the runtime."""
    (tmp_path / "root/hi").touch()
    program = ["tail", *([] if kind == "poststop" else ["-f"]), "hi"]
    config = configuration(Wish(str(tmp_path / "root"), program))
    hook = f"echo $PPID > {tmp_path}/pid; kill -{int(number)} $PPID"
    config["hooks"] = {kind: [{"path": "/bin/sh", "args": ["sh", "-c", hook]}]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = kvmpy("run", "--as", "container", str(tmp_path))
    pid = int((tmp_path / "pid").read_text())
    assert done.returncode in ((130, -number) if kind == "poststop" else (128 + number,)), done.stderr
    assert not Path(f"/run/kvmpy-oci/run-{pid}").exists()
    assert not list(Path("/sys/fs/cgroup").glob(f"*/run-{pid}"))
