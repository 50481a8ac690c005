/* SPDX-License-Identifier: MIT */
/*
 * The software CPU: one engine for each VM, on which its vCPUs take turns. docs/engine.md draws how a run goes.
 */
#ifndef KVMPY_SOFTCPU_H
#define KVMPY_SOFTCPU_H

#include <pthread.h>

#include "cpu.h"
#include "packed.h"
#include "unicorn.h"

enum {
    SOFT_REGIONS = 256,
    SOFT_CPUID = 128,
    SOFT_ACCESSES = 256, /* of one instruction: XSAVE has 80, and each may lie in two pages */
    SOFT_BREAKPOINTS = 4,
    SOFT_MSR_FILTER = 16,
    SOFT_TOO_MANY_ACCESSES = -1, /* of an instruction: an engine_error of our own */
    SOFT_NO_PROGRESS = -2,       /* the engine ends again and again in front of one, and does not say why */
};
#define NOWHERE (~0ull)
#define NO_VECTOR (-1)

/* A piece of the guest's physical addresses; all of them together are everything there is. */
struct soft_region {
    struct soft_vm *vm;
    uint64_t gpa, size;
    uint8_t *host; /* NULL: no memory, what devices may answer */
    int readonly;
    uint8_t *code; /* of memory a bit for each page: there is translated code in it */
};

/* How the instruction that is translated is mended (mended.c). */
struct soft_mended {
    void (*translate)(struct soft_block *block, void *cpu); /* the engine's function, for each instruction */
    uint64_t shown_at;    /* from this linear address on the engine sees: */
    uint32_t shown_count; /* so many bytes */
    char shown[2];
    int is_aligned;   /* its next access of 8 bytes is half of one of 16, which has to be aligned */
    int keeps_flags;  /* they are computed in front of it */
    int begins_block; /* a block has to begin with it */
};

struct soft_vm {
    uc_engine *engine;
    uint8_t *engine_cpu; /* the engine's CPUState */
    struct cpu *state;   /* and its CPUX86State */
    struct cpu reset;    /* what it is when it was made */
    struct soft_region regions[SOFT_REGIONS];
    uint32_t region_count;
    int references; /* of Python, and of vCPUs */

    /* Turns (turns.c); all below is under this mutex, but that the runner's own thread may look */
    pthread_mutex_t mutex;
    pthread_cond_t idle;
    struct soft_cpu *cpus, *runner, *last; /* of all the first; who is on the engine; who was last */
    struct soft_cpu *first, *behind_last;  /* those who wait, in their order */
    int cpu_count, closed, remap;          /* remap: memory was added, the engine does not know it */
    int gives_way;                         /* the runner was asked to let the next one */
    int64_t slice_end;                     /* of the runner, in ns */
    struct soft_mended mended;
    uint64_t filled, filled_linear;        /* the entry that the TLB got last: its physical page, the address asked for */

    /* What the host wrote since the last turn (translation.c) */
    struct {
        uint64_t gpa, size;
    } written[64];
    uint32_t written_count;
    int all_written, is_written;
};

/* Where a vCPU is. */
enum soft_phase {
    OUTSIDE, /* not on the engine, or the engine does not run */
    FREE,    /* it executes until something ends that */
    STEP,    /* one instruction, of which nothing is known */
    EXACT,   /* one instruction that accesses devices or ports: it gets the answers that are there (access.c) */
};

/* What ended a run of the engine. */
enum soft_end {
    NOTHING,   /* nothing of ours: a kick, or another vCPU's turn */
    BOUNDARY,  /* it is between two instructions, where the host has something to do */
    AT_ACCESS, /* in front of an instruction that accesses a device or a port: it is to be executed exactly */
    NO_ANSWER, /* in front of it again, with one more read that has no answer */
    BY_EXIT,   /* an exit */
};

/* What an exit left to do before the next instruction. */
enum soft_pending {
    DONE,
    PENDING_IN,    /* the answer goes into RAX; RIP is behind the instruction */
    PENDING_READ,  /* the answer is the next read of the instruction at RIP, which is then executed exactly */
    PENDING_WRITE, /* the instruction is complete; there may be more of its writes to tell */
    PENDING_MSR,
    PENDING_HYPERCALL,
};

/* An access to a device or a port. */
struct soft_access {
    uint64_t address, value;
    uint32_t size, is_port;
};

/* What an instruction accesses of devices and ports while it is executed exactly (access.c). */
struct soft_exact {
    struct soft_access reads[SOFT_ACCESSES]; /* in their order; those before `answered` have a value */
    uint32_t answered, next;
    struct soft_access writes[SOFT_ACCESSES];
    uint32_t write_count, told;
    struct soft_access now[2], rest; /* what the engine is about to read, in its one or two pages; what is in the second */
    struct soft_undo {
        uint8_t *host, before[8];
        uint32_t size;
    } undo[SOFT_ACCESSES]; /* what stores to read-only memory have changed */
    uint32_t undo_count;
    int rest_is_write;
    int tries, is_trial; /* INS stores first to see whether it can: what is about to come, what is under way */
    int is_hooked, overflow, faults;
    uc_hook hook;
};

/* An access to an MSR that somebody has to answer. */
struct soft_msr {
    uint32_t index, length; /* of the instruction at RIP */
    int is_write, fault;
    uint64_t value;
};

/* An event to be delivered, or that was. */
struct soft_event {
    int vector, is_fault, has_error;
    uint32_t error;
};

struct soft_cpuid {
    uint32_t function, index, by_index; /* by_index: the leaf has subleaves, chosen by ECX */
    uint32_t eax, ebx, ecx, edx;
};

/* Bytes of memory whose writing, or also whose reading, ends the instruction with a debug exit. */
struct soft_watch {
    uint64_t gpa;
    uint32_t size, reads;
};

struct soft_cpu {
    struct soft_vm *vm;
    struct cpu saved; /* its state while it is not on the engine */
    struct cpu *cpu;  /* its state: `saved`, or the engine's own */
    struct soft_cpu *next, *next_waiting;
    pthread_cond_t turn;
    int is_set; /* the host has set its state: what the engine remembers of addresses does not hold */

    pthread_mutex_t *lock; /* held by the thread that enters, except in the guest; NULL for none */
    int attention;         /* soft_enter() shall not enter but return KVMPY_ATTENTION */
    int kicked;
    uint64_t entries, exits;
    struct kvmpy_exit recent[KVMPY_RECENT];

    enum soft_phase phase;
    enum soft_end ended;
    uint64_t exit; /* of BY_EXIT, packed */
    int pending;   /* enum soft_pending, and what belongs to it: */
    struct soft_access access; /* that the last exit is about; its value is the answer */
    struct soft_exact exact;
    struct soft_msr msr;
    uint64_t hypercall_result;
    int exits_again; /* what an exit left to do has ended in another */

    /* What of the processor the engine does not have */
    uint64_t guest_dr[8], cr8, apic_base, tsc_offset;
    struct soft_cpuid cpuid[SOFT_CPUID];
    uint32_t cpuid_count;
    uint32_t msr_filter[SOFT_MSR_FILTER], msr_filter_count;
    int msr_exits; /* accesses to MSRs that there are not exit too, instead of #GP */

    /* Events; vector NO_VECTOR for none */
    struct soft_event injected; /* to be delivered first */
    struct soft_event raised;   /* the exception that was raised last, before those of its delivery */
    int nmi_waiting, nmi_blocked, irq_waiting, want_window, shut_down;
    int awaits_if;  /* the run ends where an interrupt can be delivered */
    uint64_t began_at; /* RIP where the run began */
    int traps;      /* RFLAGS.TF was set in front of the instruction that is executed alone */
    uint64_t kept_flags, kept_at; /* RFLAGS in front of an instruction that keeps them, and its RIP */
    int int_length; /* of the INT n that the engine is about to tell */

    /* The host's debugging; the guest's debug registers are not the engine's */
    uint64_t breakpoints[SOFT_BREAKPOINTS];
    uint32_t breakpoint_count, breakpoint_hook_count;
    uc_hook breakpoint_hooks[SOFT_BREAKPOINTS];
    struct soft_watch watches[SOFT_BREAKPOINTS];
    uint32_t watch_count, watch_hits;
    uc_hook watch_hook;
    int is_watched;
    struct soft_watch guest_watches[SOFT_BREAKPOINTS]; /* what the guest's own debug registers watch; size 0 for none */
    uint32_t guest_breaks, guest_hits;
    int guest_watching;
    int debug_changed; /* the engine is to be told */
    uint64_t debug_pc;
    uint32_t debug_dr6;
    uint64_t reported; /* the breakpoint that it stands on and that was told */
    uint64_t leaving;  /* the one that the run begins with */

    int engine_error;
    uint64_t failed_at; /* where execution could not go on */
};

#include "functions.h"

#define DR6_FIXED 0xffff0ff0u /* Intel SDM vol. 3, 17.2.3 */
#define DR6_BS (1u << 14)

/* vm.c */

int soft_map(struct soft_vm *vm);
struct soft_cpu *soft_mine(const struct cpu *state);
struct soft_region *soft_region_of(struct soft_vm *vm, uint64_t gpa, uint64_t size);
struct soft_region *soft_region_at(struct soft_vm *vm, const uint8_t *host);

/* turns.c */

enum soft_turn { TAKEN, KICKED, CLOSED, FAILED };
enum soft_turn soft_take_turn(struct soft_cpu *s, int heeds_kick);
void soft_end_turn(struct soft_cpu *s);
enum soft_turn soft_give_way(struct soft_cpu *s);
void soft_wake(struct soft_cpu *s);
struct soft_vm *soft_here(void);

/* run.c */

void soft_end_run(struct soft_cpu *s, enum soft_end why);
void soft_leave(struct soft_cpu *s, enum soft_end why) __attribute__((noreturn));
void soft_leave_before(struct soft_cpu *s, enum soft_end why, uintptr_t code) __attribute__((noreturn));
void soft_leave_with(struct soft_cpu *s, uint64_t exit) __attribute__((noreturn));
void soft_retire(struct soft_cpu *s, uint32_t length);
uint64_t soft_run_one(struct soft_cpu *s, enum soft_phase phase);
uint64_t soft_linear_rip(const struct cpu *c);

/* translation.c */

void soft_forget_all(struct soft_vm *vm);
void soft_forget_written(struct soft_vm *vm);
void soft_forget_code(struct soft_vm *vm, uint64_t gpa, uint64_t size);

/* mended.c */

void soft_mend(struct soft_vm *vm);
int soft_do_instead(struct soft_cpu *s);
int soft_keeps_flags(struct soft_cpu *s);

/* access.c */

uint64_t soft_execute_exactly(struct soft_cpu *s);
uint64_t soft_finish_access(struct soft_cpu *s);
uint64_t soft_port_in(struct soft_cpu *s, uint32_t port, uint32_t size, uintptr_t code);
void soft_port_out(struct soft_cpu *s, uint32_t port, uint32_t size, uint64_t value);
void soft_unhook(struct soft_cpu *s);
uint64_t soft_on_device_read(uc_engine *engine, uint64_t offset, unsigned size, void *data);
void soft_on_device_write(uc_engine *engine, uint64_t offset, unsigned size, uint64_t value, void *data);
void soft_on_rom_store(struct soft_cpu *s, uint64_t gpa, uintptr_t code);

/* ports.c */

/* An instruction as far as its prefixes and opcode tell (Intel SDM vol. 2, 2.1.1). */
struct soft_instruction {
    uint8_t opcode, second; /* second: behind 0F */
    uint32_t length;        /* of both and the prefixes */
};
struct soft_instruction soft_decode(struct soft_cpu *s);
void soft_finish_in(struct soft_cpu *s);

/* events.c */

void soft_on_interrupt(uc_engine *engine, uint32_t vector, void *data);
bool soft_on_invalid(uc_engine *engine, void *data);
uint64_t soft_deliver_waiting(struct soft_cpu *s);
void soft_raise(struct soft_cpu *s, int vector, uint32_t error);
void soft_debug_trap(struct soft_cpu *s, uint32_t dr6);

/* control.c */

void soft_finish_msr(struct soft_cpu *s);
int soft_is_canonical(uint64_t address);

/* calls.c */

struct soft_cpuid soft_cpuid_leaf(const struct soft_cpu *s, uint32_t function, uint32_t index);

/* debug.c */

void soft_apply_debugging(struct soft_cpu *s);
void soft_reset_debugging(struct soft_cpu *s);
int soft_break_for_guest(struct soft_cpu *s);
void soft_trap_for_guest(struct soft_cpu *s);

/* paging.c */

/* A fault that comes up while memory is accessed or an event is delivered. */
struct fault {
    int vector; /* NO_VECTOR for none */
    uint32_t error;
};
enum soft_rights { SOFT_LOOK, SOFT_READ, SOFT_WRITE }; /* the host looks, the guest reads or writes */
uint8_t *soft_host(struct soft_cpu *s, uint64_t gpa, uint64_t size, int write);
struct fault soft_walk(struct soft_cpu *s, uint64_t linear, enum soft_rights access, int user, uint64_t *gpa);
struct fault soft_read(struct soft_cpu *s, uint64_t linear, void *data, uint32_t size);
struct fault soft_write(struct soft_cpu *s, uint64_t linear, const void *data, uint32_t size);
uint32_t soft_look(struct soft_cpu *s, uint64_t linear, uint8_t *data, uint32_t size);

/* deliver.c */

enum soft_kind { EVENT_FAULT, EVENT_INTERRUPT, EVENT_SOFTWARE };
int soft_deliver(struct soft_cpu *s, int vector, int has_error, uint32_t error, enum soft_kind kind, uint64_t at);
uint32_t soft_hflags(const struct cpu *c);
int soft_descriptor(struct soft_cpu *s, uint32_t selector, uint64_t *descriptor);

#endif
