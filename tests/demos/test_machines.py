"""The demos of virtual machines tell the truth, on each accelerator."""

from __future__ import annotations

import os

import pytest
from stories import Story, tell

from kvmpy.accel.base import Accelerator

MACHINES = ["trap", "modes", "paging", "interrupts", "device", "two-guests"]  # side-by-side needs a container too


@pytest.fixture
def story(request: pytest.FixtureRequest, accelerator: Accelerator) -> Story:
    """Show the demo that the test names, on each accelerator."""
    return tell(request.param, accelerator.name)


def of(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("story", [name], indirect=True)


@pytest.mark.parametrize("story", MACHINES, indirect=True)
def test_every_claim_holds_and_nothing_is_missing(story: Story) -> None:
    assert (story.fails, story.missing) == ([], [])
    assert len(story.holds) >= 3
    assert story.whys


@of("trap")
def test_trap_shows_what_the_manual_says(story: Story) -> None:
    assert story.saw[:2] == ["in al, 0x42: killed by SIGSEGV", "hlt: killed by SIGSEGV"]  # 11: #GP, by signal(7)
    kinds = [line.removeprefix("exit: ").partition("(")[0] for line in story.saw[2:]]
    assert kinds == ["IoIn", "IoOut", "Rdmsr", "IoOut", "Hlt"]


@of("modes")
def test_modes_are_left_by_the_instructions_that_the_manual_names(story: Story) -> None:
    """Intel SDM vol. 3, 9.9.1 and 9.8.5: MOV CR0 and a far jump, twice."""
    steps = [line.split(None, 2) for line in story.saw if "  0x" in line and not line.startswith("CR0")]
    last = {mode: text for mode, _, text in steps}
    assert last["real"] == last["protected-32"] == "mov cr0, eax"
    assert last["protected-16"].startswith("ljmp")
    assert last["compatibility-32"].startswith("ljmp")


@of("paging")
def test_paging_shows_both_error_codes(story: Story) -> None:
    """Intel SDM vol. 3, 4.7: bit 0 present, bit 1 write."""
    codes = [line.rpartition(" ")[2] for line in story.saw if "error code" in line and "CR2" in line]
    assert codes == ["0x0", "0x3"]
    assert "physical address 0xa00000" in story.saw


@of("interrupts")
def test_interrupts_shows_the_request_move_from_irr_to_isr(story: Story) -> None:
    """8259A data sheet: INTA clears IRR and sets ISR, EOI clears ISR. IRQ 5 is bit 5."""
    notes = [line.split("  ")[:2] for line in story.saw if "IRR" in line]
    assert [(a.rpartition(" ")[2], b.rpartition(" ")[2]) for a, b in notes] == [
        ("0x20", "0x00"),
        ("0x00", "0x20"),
        ("0x00", "0x00"),
    ]


@of("device")
def test_device_prints_the_product(story: Story) -> None:
    assert any(r"printed b'42\n'" in line for line in story.saw)


@of("side-by-side")
def test_side_by_side_shows_one_kernel_twice_and_another(story: Story) -> None:
    rows = [line.split(None, 1) for line in story.saw if line.startswith("    ")]
    kernels = [text for who, text in rows[:3]]
    host = f"{os.uname().sysname} {os.uname().release}"
    assert kernels[:2] == [host, host]
    assert kernels[2].startswith("kvmpy guest kernel")


@of("two-guests")
def test_two_guests_run_at_once(story: Story) -> None:
    """Each page of 30 MiB, counted by the guest itself."""
    assert f"{30 * 256} pages" in " ".join(story.saw)
    assert "memory   16384 KiB" in story.saw
