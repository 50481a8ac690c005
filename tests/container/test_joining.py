"""Joining a container is the most dangerous thing that a runtime does: who is inside looks on (CVE-2016-9962)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from console import DEADLINE
from container.attacker import ROUNDS, SLOW, seen_while
from container.oci import Bundle, Runtime

from kvmpy.container import Container, Wish
from kvmpy.container import operations as ops
from kvmpy.container.kernel import Struct
from kvmpy.container.launch import Launch
from kvmpy.container.process import children
from kvmpy.container.tape import ASK, FORKED, READY, Descriptors, Tape
from kvmpy.errors import ContainerError


def look_on(bundle: Bundle, runtime: Runtime, out: Path) -> str:
    """Start a container whose program is the attacker; return its name."""
    bundle.process["args"] = ["snoop"]
    name = runtime.new_name()
    with out.open("w") as file:
        command = [*runtime.command, "--root", str(runtime.root), "create", "-b", str(bundle.save()), name]
        subprocess.run(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, check=True, timeout=DEADLINE)
    runtime.ok("start", name)
    return name


def exec_often(runtime: Runtime, name: str) -> None:
    for _ in range(ROUNDS):
        runtime.ok("exec", name, SLOW)


@pytest.mark.parametrize("kind", ["plain", "new privileges", "identity", "ptrace"])
def test_an_exec_cannot_be_looked_into(
    kind: str, attacked: Path, bundle: Bundle, runtime: Runtime, tmp_path: Path
) -> None:
    """With default capabilities; where a program may gain some; as kvmpy's own containers are; with CAP_SYS_PTRACE."""
    if kind == "new privileges":
        bundle.process["noNewPrivileges"] = False
    if kind in ("identity", "ptrace") and os.geteuid() == 0:
        bundle.linux["namespaces"].append({"type": "user"})
        whole = [{"containerID": 0, "hostID": 0, "size": 1 << 31}]
        bundle.linux |= {"uidMappings": whole, "gidMappings": whole}
    if kind == "ptrace":
        for names in bundle.process["capabilities"].values():
            names.append("CAP_SYS_PTRACE")
    out = tmp_path / "out"
    name = look_on(bundle, runtime, out)
    try:
        assert seen_while(attacked, out, lambda: exec_often(runtime, name)) == []
    finally:
        runtime.ok("delete", "--force", name)


def test_the_api_s_exec_cannot_be_looked_into(attacked: Path, tmp_path: Path) -> None:
    out = attacked / "out"
    with Container.from_wish(Wish(str(attacked), ["sh", "-c", "exec snoop > /out"])) as box:
        out.touch()
        box.start()

        def act() -> None:
            for _ in range(ROUNDS):
                assert box.exec([SLOW]).code == 0

        assert seen_while(attacked, out, act) == []


@pytest.mark.root("containers in each other's namespaces")
def test_a_pod_s_next_container_cannot_be_looked_into(
    attacked: Path, bundle: Bundle, runtime: Runtime, tmp_path: Path
) -> None:
    """The first has SYS_PTRACE in the user namespace that both share; the second's root was the host's for a moment."""
    whole = [{"containerID": 0, "hostID": 0, "size": 1 << 31}]
    bundle.linux |= {"uidMappings": whole, "gidMappings": whole}
    bundle.linux["namespaces"].append({"type": "user"})
    for names in bundle.process["capabilities"].values():
        names.append("CAP_SYS_PTRACE")
    out = tmp_path / "out"
    first = look_on(bundle, runtime, out)
    pid = runtime.state(first)["pid"]
    for entry in bundle.linux["namespaces"]:
        if entry["type"] in ("pid", "user"):
            entry["path"] = f"/proc/{pid}/ns/{entry['type']}"
    for field in ("uidMappings", "gidMappings"):
        del bundle.linux[field]
    bundle.process["args"] = [SLOW]
    bundle.process["cwd"] = "/new/directory"

    def act() -> None:
        for _ in range(ROUNDS):
            assert runtime.run(bundle).returncode == 0

    try:
        assert seen_while(attacked, out, act) == []
    finally:
        runtime.ok("delete", "--force", first)


@pytest.mark.root("control groups")
def test_every_tape_that_enters_a_container_is_not_dumpable_first(bundle: Bundle, runtime: Runtime) -> None:
    """It is the first call of all: nothing was opened before."""
    from kvmpy.container.state import Store
    from kvmpy.container.verbs.create import Extras, prepare

    plan = prepare(Store(str(runtime.root)), "x", str(bundle.save()), Extras()).plan
    tape = Tape(plan.fds)
    tape.write(plan.operations)
    assert str(tape.calls[0]) == "prctl(PR_SET_DUMPABLE, 0)"


# What is said on the report socket


class Says(ops.Operation):
    """Say something on the report socket, as an attacker would who could."""

    what: int
    value: int

    def describe(self) -> str:
        return "say something"

    def write(self, tape: Tape) -> None:
        tape.call("write", tape.fds.report, Struct("<ii", what=self.what, value=self.value), 8)
        tape.call("read", tape.fds.report, bytes(8), 8, nonzero=True)


@contextlib.contextmanager
def bystander() -> Iterator[int]:
    """A process of the host's that is not this one's child; it must survive."""
    with subprocess.Popen(["sh", "-c", "sleep 1000 & echo $!"], stdout=subprocess.PIPE, text=True) as shell:
        assert shell.stdout
        pid = int(shell.stdout.readline())
    yield pid
    os.kill(pid, 0)
    os.kill(pid, signal.SIGKILL)


FORGED = {
    "a process of the host's, before": (lambda pid: [Says(FORKED, pid), ops.Fork([], 0), ops.TellReady()], "names"),
    "a process of the host's, after": (lambda pid: [ops.Fork([], 0), Says(FORKED, pid), ops.TellReady()], "names"),
    "nobody": (lambda pid: [Says(FORKED, 0), ops.Fork([], 0)], "names 0, which it has not started"),
    "everybody": (lambda pid: [Says(FORKED, -1), ops.Fork([], 0)], "names -1, which it has not started"),
    "the first process": (lambda pid: [Says(FORKED, 1), ops.Fork([], 0)], "names 1, which it has not started"),
    "a question that is none": (lambda pid: [Says(ASK, 0)], "asks a question, 0, that is not on its tape"),
    "a question behind the end": (lambda pid: [Says(ASK, 9999)], "asks a question, 9999"),
    "a failure behind the end": (lambda pid: [Says(9999, 13)], "failed at a call, 9999, that is not on its tape"),
    "a failure before the beginning": (lambda pid: [Says(-7, 13)], "failed at a call, -7"),
}


@pytest.mark.parametrize("kind", FORGED)
def test_what_the_stage_says_is_not_believed(kind: str) -> None:
    make, message = FORGED[kind]
    with bystander() as pid:
        with pytest.raises(ContainerError, match=message), Launch(make(pid), Descriptors()) as launch:
            launch.start({})
        os.kill(pid, 0)  # it is there


def test_nobody_else_speaks_for_the_stage() -> None:
    """A process that got hold of the socket, as by pidfd_getfd(2): here a second fork of the stage's."""
    plan = [ops.Fork([], 0), ops.Fork([], 0), Says(READY, 0)]
    before = set(children())
    with pytest.raises(ContainerError, match=r"process \d+ spoke|names \d+"), Launch(plan, Descriptors()) as launch:
        launch.start({})
    for child in set(children()) - before:  # it hears that the socket is closed, and ends
        os.waitpid(child, 0)
