/* Executes programs of ring 3 on the processor that it runs on, one after the other: struct program on standard input,
   struct outcome on standard output (native.py has the same layout).

   A program is entered from a signal handler, by the frame that sigreturn(2) loads, and left by its first exception:
   the kernel's signal has the registers as they were then. A fault is a result; the process lives on. */
#define _GNU_SOURCE
#include <asm/ldt.h>
#include <asm/prctl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <ucontext.h>
#include <unistd.h>

enum { CODE = 0x100000, DATA = 0x110000, ROM = 0x111000, STACK = 0x120000, PAGE = 4096 };
enum { TIMEOUT = 256 };       /* the "vector" of a program that did not end */
enum { FXSAVE_AREA = 512, XSTATE_BV = 512, X87_AND_SSE = 3 };
/* Selectors: Linux' own for flat code and data (arch/x86/include/asm/segment.h), and three entries of an LDT. */
enum { FLAT_CODE64 = 0x33, FLAT_CODE32 = 0x23, FLAT_DATA = 0x2b, LDT_CODE = 0x07, LDT_DATA = 0x0f, LDT_STACK = 0x17 };

struct program {
    uint64_t bits, registers[16], flags;
    uint8_t fpu[FXSAVE_AREA], code[PAGE], data[PAGE], rom[PAGE], stack[PAGE];
};
struct outcome {
    uint64_t vector, error, cr2, registers[16], rip, flags;
    uint8_t fpu[FXSAVE_AREA], data[PAGE], stack[PAGE];
};

static struct program program;
static struct outcome outcome;
static ucontext_t outside; /* where main() raised the signal that enters */
static int entered;
static const int ORDER[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                              REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

static void load_segments(greg_t *registers)
{
    uint64_t code = program.bits == 64 ? FLAT_CODE64 : program.bits == 32 ? FLAT_CODE32 : LDT_CODE;
    uint64_t stack = program.bits == 16 ? LDT_STACK : FLAT_DATA;
    registers[REG_CSGSFS] = (registers[REG_CSGSFS] & 0x0000ffffffff0000) | code | stack << 48;
    uint32_t data = program.bits == 16 ? LDT_DATA : FLAT_DATA;
    __asm__ volatile("mov %0, %%ds; mov %0, %%es" ::"r"(data));
}

static void enter(ucontext_t *context)
{
    greg_t *registers = context->uc_mcontext.gregs;
    outside = *context;
    entered = 1;
    for (int i = 0; i < 16; i++)
        registers[ORDER[i]] = (greg_t)program.registers[i];
    registers[REG_RIP] = program.bits == 16 ? 0 : CODE;
    registers[REG_EFL] = (greg_t)program.flags;
    uint8_t *fpu = (uint8_t *)context->uc_mcontext.fpregs;
    memcpy(fpu, program.fpu, 416); /* up to the XMM registers' end; what follows is the kernel's */
    fpu[XSTATE_BV] |= X87_AND_SSE;
    load_segments(registers);
}

static void leave(int signal, ucontext_t *context)
{
    greg_t *registers = context->uc_mcontext.gregs;
    entered = 0;
    for (int i = 0; i < 16; i++)
        outcome.registers[i] = (uint64_t)registers[ORDER[i]];
    outcome.rip = (uint64_t)registers[REG_RIP];
    outcome.flags = (uint64_t)registers[REG_EFL];
    outcome.vector = signal == SIGVTALRM ? TIMEOUT : (uint64_t)registers[REG_TRAPNO];
    outcome.error = (uint64_t)registers[REG_ERR];
    outcome.cr2 = (uint64_t)registers[REG_CR2];
    memcpy(outcome.fpu, context->uc_mcontext.fpregs, FXSAVE_AREA);
    memcpy(registers, outside.uc_mcontext.gregs, sizeof outside.uc_mcontext.gregs);
}

static void on_signal(int signal, siginfo_t *info, void *context)
{
    (void)info;
    if (signal == SIGUSR1)
        enter(context);
    else if (entered)
        leave(signal, context);
    else if (signal != SIGVTALRM)
        _exit(3);
}

static void describe(int number, unsigned base, unsigned contents)
{
    struct user_desc segment = {
        .entry_number = (unsigned)number, .base_addr = base, .limit = 0xffff, .contents = contents, .useable = 1};
    if (syscall(SYS_modify_ldt, 1, &segment, sizeof segment))
        perror("modify_ldt"), _exit(2);
}

static void map(uintptr_t address, int protection)
{
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
    if (mmap((void *)address, PAGE, protection, flags, -1, 0) == MAP_FAILED)
        perror("mmap"), _exit(2);
}

static void catch_signals(void)
{
    stack_t stack = {.ss_sp = malloc(1 << 16), .ss_size = 1 << 16};
    sigaltstack(&stack, 0);
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    int signals[] = {SIGUSR1, SIGSEGV, SIGILL, SIGFPE, SIGTRAP, SIGBUS, SIGVTALRM};
    for (unsigned i = 0; i < sizeof signals / sizeof *signals; i++)
        sigaction(signals[i], &action, 0);
}

static void lay_out(void)
{
    memcpy((void *)CODE, program.code, PAGE);
    memcpy((void *)DATA, program.data, PAGE);
    memcpy((void *)STACK, program.stack, PAGE);
    mprotect((void *)ROM, PAGE, PROT_READ | PROT_WRITE);
    memcpy((void *)ROM, program.rom, PAGE);
    mprotect((void *)ROM, PAGE, PROT_READ);
}

int main(void)
{
    map(CODE, PROT_READ | PROT_WRITE | PROT_EXEC);
    map(DATA, PROT_READ | PROT_WRITE);
    map(ROM, PROT_READ);
    map(STACK, PROT_READ | PROT_WRITE);
    describe(0, CODE, MODIFY_LDT_CONTENTS_CODE);
    describe(1, DATA, MODIFY_LDT_CONTENTS_DATA);
    describe(2, STACK, MODIFY_LDT_CONTENTS_DATA);
    catch_signals();
    while (fread(&program, sizeof program, 1, stdin) == 1) {
        lay_out();
        memset(&outcome, 0, sizeof outcome);
        __asm__ volatile("pushq $0x202; popfq" ::: "cc"); /* NT and ID outlive sigreturn(2) */
        setitimer(ITIMER_VIRTUAL, &(struct itimerval){.it_value.tv_usec = 50000}, 0); /* of its own time */
        raise(SIGUSR1);
        setitimer(ITIMER_VIRTUAL, &(struct itimerval){0}, 0);
        memcpy(outcome.data, (void *)DATA, PAGE);
        memcpy(outcome.stack, (void *)STACK, PAGE);
        fwrite(&outcome, sizeof outcome, 1, stdout);
        fflush(stdout);
    }
    return 0;
}
