"""checkpoint and restore: callers ask for them, and must hear clearly that they are not to be had."""

from __future__ import annotations

from kvmpy.errors import ContainerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kvmpy.container.command_line import Call


OPTIONS = {
    **dict.fromkeys(
        ("--image-path", "--work-path", "--parent-path", "--bundle", "--pid-file", "--console-socket"), "PATH"
    ),
    **dict.fromkeys(
        ("--leave-running", "--tcp-established", "--ext-unix-sk", "--shell-job", "--file-locks", "--detach"), ""
    ),
    **dict.fromkeys(("--pre-dump", "--lazy-pages", "--no-pivot", "--no-subreaper", "--auto-dedup"), ""),
    **dict.fromkeys(("--manage-cgroups-mode", "--empty-ns", "--status-fd", "--page-server", "--lsm-profile"), "VALUE"),
}
SHORT = {"-b": "--bundle", "-d": "--detach"}
WORDS = ("ID",)
SUMMARY = "refused: kvmpy-oci cannot save running processes"


def main(call: Call) -> int:
    """Run the verb."""
    call.find()
    raise ContainerError("checkpoint and restore are not supported: kvmpy-oci does not use CRIU")
