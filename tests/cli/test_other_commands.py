"""info, asm, disasm, completion, and the help."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest
from console import DEADLINE, KVMPY, kvmpy, one_line
from peers import needs_kvm, require

import kvmpy as package
from kvmpy.accel.probe import PROBES
from kvmpy.accel.soft import SoftAccelerator
from kvmpy.cli import COMMANDS, info
from kvmpy.cli.arguments import size


def test_version() -> None:
    assert kvmpy("--version").stdout == f"kvmpy {package.__version__}\n".encode()
    assert f'version = "{package.__version__}"' in (Path(__file__).parents[2] / "pyproject.toml").read_text()


def test_help_lists_every_command() -> None:
    done = kvmpy("--help")
    assert done.returncode == 0
    for name in COMMANDS:
        assert f"\n  {name} ".encode() in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help_with_examples(name: str) -> None:
    done = kvmpy(name, "--help")
    assert done.returncode == 0
    assert b"examples:" in done.stdout
    assert f"kvmpy {name}".encode() in done.stdout


def test_help_survives_a_closed_pipe() -> None:
    command = f"{' '.join(KVMPY)} --help | true"
    done = subprocess.run(["sh", "-c", command], capture_output=True, timeout=DEADLINE)
    assert done.stderr == b""


@needs_kvm
def test_info_shows_every_feature_with_its_meaning() -> None:
    shown = kvmpy("info").stdout.decode()
    for name, (meaning, _) in PROBES.items():
        assert any(name in line and meaning in line for line in shown.splitlines())
    assert "/dev/kvm, API 12" in shown
    int3 = next(line for line in shown.splitlines() if " int3 " in line)
    assert int3.split()[1] == "yes"  # the second column is the software CPU's, which takes INT3 everywhere


@needs_kvm
def test_info_as_json() -> None:
    report = json.loads(kvmpy("info", "--json").stdout)
    assert report["api_version"] == 12
    assert report["capabilities"]["KVM_CAP_USER_MEMORY"] == 1
    assert set(report["features"]) == {"kvm", "soft"}
    assert all(set(found) == set(PROBES) for found in report["features"].values())
    assert report["missing"] == {}


def test_info_of_the_software_cpu_needs_no_kvm() -> None:
    report = json.loads(kvmpy("info", "--accel", "soft", "--json").stdout)
    assert (list(report["features"]), report["capabilities"], report["api_version"]) == (["soft"], {}, None)


def test_asm_writes_an_image_and_a_sidecar(tmp_path: Path) -> None:
    source = tmp_path / "x.asm"
    source.write_text("start: mov al, 5  ; five\nout 0xf4, al\n")
    done = kvmpy("asm", str(source), "-o", str(tmp_path / "x.bin"), "--sidecar", "--symbols")
    assert done.returncode == 0
    assert (tmp_path / "x.bin").read_bytes() == bytes.fromhex("b005 e6f4")
    sidecar = json.loads((tmp_path / "x.json").read_text())
    assert (sidecar["mode"], sidecar["load"], sidecar["size"], sidecar["symbols"]) == (
        "real",
        0x7C00,
        4,
        {"start": 0x7C00},
    )
    assert b"start" in done.stdout


def test_asm_lists_addresses_bytes_and_source() -> None:
    done = kvmpy("asm", "-", "--listing", input=b"mov al, 65\nout 0xe9, al\nhlt\n")
    assert [line.split(None, 2) for line in done.stdout.decode().splitlines()] == [
        ["00007c00", "b041", "mov al, 65"],
        ["00007c02", "e6e9", "out 0xe9, al"],
        ["00007c04", "f4", "hlt"],
    ]


def test_asm_reads_no_more_than_a_source_may_have() -> None:
    done = kvmpy("asm", "/dev/zero")
    assert done.returncode == 66
    assert "4194304 is the most" in one_line(done.stderr)


def test_asm_names_file_line_and_text() -> None:
    done = kvmpy("asm", "-", input=b"nop\nmov al, bx\n")
    assert done.returncode == 66
    assert done.stderr.decode().startswith("kvmpy: -: line 2, column 1: ")
    assert "mov al, bx" in done.stderr.decode()


@pytest.mark.parametrize("name", ["no-such-file.asm", "/", "/dev/null/x"])
def test_asm_of_unreadable_sources(name: str) -> None:
    done = kvmpy("asm", name)
    assert done.returncode == 66
    assert done.stderr.count(b"\n") == 1


def test_disasm_reads_back_what_asm_wrote(tmp_path: Path) -> None:
    source = tmp_path / "x.asm"
    source.write_text("start: jmp later\n.byte 1, 2\nlater: xor ax, ax\n.code32\nxor eax, eax\n")
    kvmpy("asm", str(source), "-o", str(tmp_path / "x.bin"), "--sidecar")
    shown = kvmpy("disasm", str(tmp_path / "x.bin")).stdout.decode()
    assert "start:" in shown
    assert "later:" in shown
    assert ".byte 0x01, 0x02" in shown
    assert "xor ax, ax" in shown
    assert "xor eax, eax" in shown


def test_disasm_options(tmp_path: Path) -> None:
    path = tmp_path / "raw.img"
    path.write_bytes(bytes.fromhex("90 90 48ffc0 f4"))
    done = kvmpy("disasm", str(path), "--bits", "64", "--origin", "0x1000", "--start", "0x1002", "--count", "1")
    assert done.stdout.split() == [b"00001002", b"48ffc0", b"inc", b"rax"]


@pytest.mark.calls("ndisasm")
def test_disasm_agrees_with_ndisasm() -> None:
    """nasm's disassembler, as a second opinion on the bundled hello.bin: the same instruction boundaries."""
    from kvmpy.boot.image import bundled_guests

    theirs = subprocess.run(
        ["ndisasm", "-b", "16", "-o", "0x7c00", bundled_guests()["hello.bin"]],
        capture_output=True,
        text=True,
        check=True,
    )
    ours = [
        line.split()[:2] for line in kvmpy("disasm", "hello.bin").stdout.decode().splitlines() if line.startswith("  ")
    ]
    code = [line for line in ours if not line[1].startswith("48656c6c")][:9]
    assert [
        [a.lower(), raw.lower()] for a, raw in (line.split()[:2] for line in theirs.stdout.splitlines()[:9])
    ] == code


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_valid(shell: str, tmp_path: Path) -> None:
    done = kvmpy("completion", shell)
    assert done.returncode == 0
    for name in COMMANDS:
        assert name.encode() in done.stdout
    require(shell)
    script = tmp_path / "script"
    script.write_bytes(done.stdout)
    assert subprocess.run([shell, "-n", str(script)], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["bo"], {"boot"}),
        (["boot", "--me"], {"--memory"}),
        (["boot", "--mode", ""], {"real", "protected", "long"}),
        (["boot", "--accel", "s"], {"soft"}),
        (["boot", "hello"], {"hello.bin", "hello32.bin", "hello64.bin"}),
        (["boot", "guest.b"], {"guest.bin"}),
        (["disasm", "--bits", ""], {"16", "32", "64"}),
        (["demo", "tr"], {"trap"}),
        (["run", "--as", ""], {"vm", "container", "process"}),
        (["container", "r"], {"run"}),
        (["container", "run", "--ov"], {"--overlay"}),
        (["completion", "z"], {"zsh"}),
        (["boot", "image.b"], {"image.bin"}),
        (["container", "run", "fold"], {"folder"}),
    ],
)
def test_bash_completes(words: list[str], wanted: set[str], tmp_path: Path) -> None:
    """What a shell offers, asked the way it asks: the words, and which one is being typed."""
    (tmp_path / "image.bin").touch()
    (tmp_path / "folder").mkdir()
    script = kvmpy("completion", "bash").stdout.decode()
    line = shlex.join(["kvmpy", *words[:-1]]) + f" {words[-1]}"
    typed = " ".join(shlex.quote(word) for word in ["kvmpy", *words])
    ask = (
        f"COMP_WORDS=({typed}); COMP_CWORD={len(words)}; COMP_LINE={shlex.quote(line)}; COMP_POINT={len(line)}\n"
        f'_shtab_kvmpy kvmpy {shlex.quote(words[-1])} {shlex.quote(["kvmpy", *words][-2])}; echo "${{COMPREPLY[@]}}"'
    )
    command = ["bash", "--norc", "-c", f"{script}\n{ask}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, cwd=tmp_path)
    assert set(done.stdout.split()) == wanted


@pytest.mark.root("hiding /dev/kvm")
def test_info_without_kvm_says_why_and_what_it_would_add() -> None:
    hide = Path(__file__).parents[2] / "tools" / "without_kvm.sh"
    done = subprocess.run([hide, *KVMPY, "info"], capture_output=True, timeout=DEADLINE, text=True)
    assert done.returncode == 0
    assert "KVM: no. open /dev/kvm: ENOENT" in done.stdout
    assert "with KVM there would be:" in done.stdout
    assert "AVX" in done.stdout
    assert "capabilities" not in done.stdout


@pytest.mark.parametrize("command", [[], ["container", "run"], *[[name] for name in COMMANDS]])
def test_help_is_readable_at_80_columns(command: list[str]) -> None:
    done = kvmpy(*command, "--help", env=os.environ | {"COLUMNS": "80"})
    assert [line for line in done.stdout.decode().splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_is_found_both_ways(name: str) -> None:
    one, other = kvmpy("help", name), kvmpy(name, "--help")
    assert (one.returncode, one.stdout) == (0, other.stdout)


@pytest.mark.parametrize("option", ["-V", "--version", "version"])
def test_the_version(option: str) -> None:
    done = kvmpy(option)
    assert (done.returncode, done.stdout.decode()) == (0, f"kvmpy {package.__version__}\n")


@pytest.mark.parametrize(
    ("typed", "said"),
    [("bot", "did you mean 'boot'?"), ("demos", "did you mean 'demo'?"), ("COMPARE", "did you mean 'compare'?"),
     ("frobnicate", "there are boot, run, container, compare, demo, info, asm, disasm, completion")],
)  # fmt: skip
def test_a_command_that_is_none(typed: str, said: str) -> None:
    for arguments in ([typed], ["help", typed]):
        done = kvmpy(*arguments)
        assert (done.returncode, done.stderr.decode()) == (2, f"kvmpy: no command {typed!r}; {said}\n")


@pytest.mark.parametrize(
    ("text", "value"),
    [("64M", 64 << 20), ("64MB", 64 << 20), ("64MiB", 64 << 20), ("64mib", 64 << 20), ("1G", 1 << 30), ("4k", 4096),
     ("0x10K", 16 << 10), ("65536", 65536), ("0x1b", 27), ("1TiB", 1 << 40)],
)  # fmt: skip
def test_sizes(text: str, value: int) -> None:
    assert size(text) == value


def test_what_kvm_would_add_is_what_the_software_cpu_lacks() -> None:
    """Data watchpoints were once promised, which it has."""
    promised = info.KVM_ADDS[-1]
    assert "segment limits" in promised
    with SoftAccelerator() as soft:
        for name in PROBES:
            assert not getattr(soft.features, name) or name.replace("_", " ") not in promised
