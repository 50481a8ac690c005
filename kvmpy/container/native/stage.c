/* The last stage before the container's own program. It is all that ever runs inside a container for kvmpy: these few
   lines in a sealed memory file, so that /proc/self/exe leads to nothing of the host's (CVE-2019-5736). The tape follows
   the code in the same file, in a segment of its own (tape.py fills it in). */
#include "explain.h"
#include "tape.h"

__attribute__((section(".tape"), used)) static struct tape placeholder;

__attribute__((force_align_arg_pointer)) void _start(void) {
    int error;
    long at = run_tape(&error);
    if ((u64)at < THE_TAPE->count && THE_TAPE->calls[at].number == SYS_execve)
        system_call(SYS_exit_group, explain_execution(at, error), 0, 0, 0, 0, 0);
    report((int)at, error);
    system_call(SYS_exit_group, 255, 0, 0, 0, 0, 0);
}
