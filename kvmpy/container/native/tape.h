/* A tape is a program whose instructions are system calls. Python writes it (tape.py) at the address where it will be
   mapped, so every pointer in it is final; what runs it knows nothing of containers, and needs no C library. */
#ifndef KVMPY_TAPE_H
#define KVMPY_TAPE_H

typedef unsigned long u64;

#define TAPE_ADDRESS 0x10000000UL

/* Instructions that are no system calls. */
#define CHECK 2000 /* (*(u64 *)args[0] & args[1]) == args[2], or the errno args[3] */
#define FORK 2001  /* clone3(args[0], args[1]); the parent tells the child's pid and is done, the child goes on */

/* What is told on the report descriptor besides {index of the call that failed, its errno}. */
#define READY (-1)
#define FORKED (-2)
#define ASK (-3)

struct call {
    short number;
    short keep_as;                   /* the descriptor number that the result moves to; 0: it is no descriptor */
    unsigned char errno1, errno2;    /* errors that are none: go on at on_error */
    unsigned char nonzero, reserved; /* whether the result 0 is an error, as the end of a file is */
    int on_error, on_success;        /* where to go on; 0: at the next call */
    u64 args[6];
};

struct tape {
    u64 count;
    struct call *calls;
    u64 report; /* a descriptor */
};

#define THE_TAPE ((struct tape *)TAPE_ADDRESS)

enum { SYS_write = 1, SYS_close = 3, SYS_dup3 = 292, SYS_clone3 = 435, SYS_exit_group = 231 };
enum { EIO = 5, O_CLOEXEC = 02000000 };

static long system_call(long number, u64 a, u64 b, u64 c, u64 d, u64 e, u64 f) {
    register u64 r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

static void report(int what, int value) {
    int message[2] = {what, value};
    system_call(SYS_write, THE_TAPE->report, (u64)message, sizeof message, 0, 0, 0);
}

static long make_call(const struct call *call) {
    const u64 *a = call->args;
    if (call->number == CHECK)
        return (*(u64 *)a[0] & a[1]) == a[2] ? 1 : -(long)a[3];
    if (call->number == FORK) {
        long pid = system_call(SYS_clone3, a[0], a[1], 0, 0, 0, 0);
        if (pid > 0) {
            report(FORKED, (int)pid);
            system_call(SYS_exit_group, 0, 0, 0, 0, 0, 0);
        }
        return pid;
    }
    return system_call(call->number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

/* Run the tape to its end, or to the first call that fails; return that call's index and set *error. */
static long run_tape(int *error) {
    const struct call *calls = THE_TAPE->calls;
    u64 at = 0;
    while (at < THE_TAPE->count) {
        const struct call *call = calls + at;
        long result = make_call(call);
        if (result == 0 && call->nonzero)
            result = -EIO;
        if (result < 0) {
            *error = (int)-result;
            if (*error != call->errno1 && *error != call->errno2)
                return at;
            at = call->on_error ? (u64)call->on_error : at + 1;
            continue;
        }
        if (call->keep_as && result != call->keep_as) {
            long moved = system_call(SYS_dup3, result, call->keep_as, O_CLOEXEC, 0, 0, 0);
            system_call(SYS_close, result, 0, 0, 0, 0, 0);
            if (moved < 0) {
                *error = (int)-moved;
                return at;
            }
        }
        at = call->on_success ? (u64)call->on_success : at + 1;
    }
    *error = 0;
    return at;
}

#endif
