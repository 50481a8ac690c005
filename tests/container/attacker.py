"""An attacker in a container: a program that looks for the stage on its way in, for as long as the test makes it.

With what it could take from there it would speak to the runtime, which is root, and reach the host's files.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from console import DEADLINE

ROUNDS = 15
# Looks at every process that is not its own, again and again. Whoever may read /proc/PID/exe may do all the rest
# (PTRACE_MODE_READ_FSCREDS); PTRACE_SEIZE (0x4206) and /proc/PID/root are tried, too. Ends when /stop is there.
SNOOP = r"""
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <unistd.h>

static void look(int pid) {
    char path[64], seen[256];
    snprintf(path, sizeof path, "/proc/%d/exe", pid);
    long n = readlink(path, seen, sizeof seen - 1);
    if (n > 0 && (seen[n] = 0, strstr(seen, "stage"))) {
        printf("exe of %d: %s\n", pid, seen);
        snprintf(path, sizeof path, "/proc/%d/root/etc/hostname", pid);
        int fd = open(path, O_RDONLY);
        printf("root: %s\n", fd >= 0 ? "open" : "shut");
        printf("seized: %s\n", ptrace(0x4206, pid, 0, 0) == 0 ? "yes" : "no");
    }
}

int main(int argc, char **argv) {
    if (argc && strcmp(argv[0], "/l0") == 0)  // called as the slow program
        return 0;
    alarm(60);  // what it holds is let go then
    setvbuf(stdout, 0, _IOLBF, 0);
    puts("looking");
    while (access("/stop", F_OK)) {
        DIR *proc = opendir("/proc");
        for (struct dirent *entry; proc && (entry = readdir(proc));)
            if (atoi(entry->d_name) > 0 && atoi(entry->d_name) != getpid())
                look(atoi(entry->d_name));
        if (proc)
            closedir(proc);
    }
    puts("done");
}
"""


SLOW = "/l0"  # a program whose name takes long to resolve: that widens the window
# A walk that has to be begun again (RCU, then with locks) goes on counting the links of the first: 40 are the limit of
# both together (fs/namei.c, total_link_count).
LINKS, DEPTH = 19, 18


def arm(rootfs: Path, folder: Path) -> None:
    """Put the attacker into a root directory, and the slow program."""
    source = folder / "snoop.c"
    source.write_text(SNOOP)
    subprocess.run(["gcc", "-O2", "-static", "-o", rootfs / "bin/snoop", source], check=True)
    below = "/".join(["/deep", *["d" * 200] * DEPTH])
    (rootfs / below[1:]).mkdir(parents=True)
    for number in range(LINKS):
        following = f"l{number + 1}" if number < LINKS - 1 else "bin/snoop"
        (rootfs / f"l{number}").symlink_to(f"{below}/{'../' * (DEPTH + 1)}{following}")


def seen_while(rootfs: Path, out: Path, act: Callable[[], None]) -> list[str]:
    """Act while the attacker looks, and let it end; return what it saw."""
    with Deadline():
        while "looking" not in out.read_text():
            os.sched_yield()
        try:
            act()
        finally:
            (rootfs / "stop").touch()
        while "done" not in out.read_text():
            os.sched_yield()
    (rootfs / "stop").unlink()
    return out.read_text().split("\n")[1:-2]


class Deadline:
    """The block takes at most so long, whatever the attacker does."""

    def __enter__(self) -> None:
        signal.signal(signal.SIGALRM, self._over)
        signal.alarm(int(DEADLINE))

    def _over(self, *_: object) -> None:
        raise TimeoutError

    def __exit__(self, *_: object) -> None:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
