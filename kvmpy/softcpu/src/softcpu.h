/* SPDX-License-Identifier: MIT */
#ifndef KVMPY_SOFTCPU_H
#define KVMPY_SOFTCPU_H

#include <pthread.h>

#include "cpu.h"
#include "packed.h"
#include "unicorn_api.h"

/* Memory of the guest, as this process has it. */
struct soft_region {
    uint64_t gpa, size;
    uint8_t *host;
    int readonly;
};

struct soft_cpuid {
    uint32_t function, index, by_index; /* by_index: the leaf has subleaves, chosen by ECX */
    uint32_t eax, ebx, ecx, edx;
};

#define SOFT_REGIONS 32
#define SOFT_CPUID 128
#define SOFT_PIECES 16
#define SOFT_BREAKPOINTS 4
#define SOFT_MARKS 512
#define SOFT_MSR_FILTER 16
#define SOFT_SENSITIVE 0x200000000ull /* in `exit`: an instruction that the engine would not do as it should */
#define SOFT_ACCESS 0x100000000ull /* in `exit`: an access to no memory; what it is must be found out */

/* What an access that has exited still needs before the next instruction. */
enum soft_pending { SOFT_DONE, SOFT_OUT, SOFT_IN, SOFT_INS, SOFT_MMIO, SOFT_ROM, SOFT_MSR, SOFT_HYPERCALL };

/* A piece of an MMIO access that was seen, and for a read what it was answered. */
struct soft_piece {
    uint64_t gpa, value;
    uint32_t size;
    int is_write;
};

/* Bytes of memory whose writing, or also whose reading, ends the instruction with a debug exit. */
struct soft_watch {
    uint64_t gpa;
    uint32_t size, reads;
};

struct soft_cpu {
    uc_engine *engine;
    uc_context *context;
    uc_context *before_probe; /* what a probe is put back to; hooks save over `context` while it runs */
    struct cpu *cpu; /* inside `context`, valid after load_cpu() */
    int32_t *error_code, *is_int, *old_exception;

    struct soft_region regions[SOFT_REGIONS];
    uint32_t region_count;
    struct soft_cpuid cpuid[SOFT_CPUID];
    uint32_t cpuid_count;

    pthread_mutex_t *lock; /* held by the thread that enters, except in the guest; NULL for none */
    int attention;         /* soft_enter() shall not enter but return KVMPY_ATTENTION */
    int kicked;
    int flush; /* memory changed behind the engine's back */
    uint64_t entries, exits;
    struct kvmpy_exit recent[KVMPY_RECENT];

    /* The exit that the hooks found, and what it left to do */
    uint64_t exit;
    int stopped; /* a hook asked for a stop at a boundary between instructions */
    int pending;
    uint64_t answer;
    uint32_t io_size;
    uint8_t io_data[8];
    struct soft_piece pieces[SOFT_PIECES];
    uint32_t piece_count, piece; /* the one that the current exit is about */
    uint64_t mmio_gpa, mmio_value;
    uint32_t mmio_size;
    struct soft_piece rest;    /* of an access that goes on in another page; `gpa` is the number of the first */
    int probing, probe_failed; /* the instruction runs only to see what it accesses */
    int finishing;            /* it runs for good, its reads are answered */
    int exits_again;          /* what the last exit left to do ended in another */
    int has_input;            /* INS runs again with what its port answered */
    uint64_t rom_gpa;
    uint32_t rom_size;
    uint64_t at;       /* RIP of the instruction that accesses */
    uint64_t rax, rsi; /* before it */
    uint32_t length;   /* its bytes */
    int is_write;
    int is_rep, is_string, denied, port_stop;
    uint64_t counter_mask; /* of (R)CX, by address size */
    uint32_t msr_index, msr_fault, msr_filter[SOFT_MSR_FILTER], msr_filter_count;
    uint64_t msr_value;
    int msr_exits; /* accesses to MSRs that there are not exit too, instead of #GP */

    /* Instructions that are stopped at: see sensitive.c */
    uint64_t marks[SOFT_MARKS], passing;
    uint32_t mark_count;
    int new_block; /* the next block was translated just now */
    uint64_t stale_at;
    uint32_t stale_size; /* code to be translated anew */
    uint64_t guest_dr[8], cr8;
    uint64_t failed_at; /* where execution could not go on */
    int engine_error;

    /* Events that wait for the next entry */
    int nmi_waiting, nmi_masked, irq_waiting, want_window, shut_down;
    int raised, raised_has_error; /* the exception that was raised last, before those of its delivery; -1 for none */
    uint32_t raised_error;
    int injected, injected_is_fault, injected_has_error; /* vector, -1 for none */
    uint32_t injected_error;
    int watching;            /* stop between blocks, to see whether an interrupt can be delivered */
    int first_block, single; /* of a run: its first block; it executes one instruction */
    int not_begun;           /* it ended before the first instruction, to be begun again */

    /* The host's debugging; the guest's debug registers are not the engine's */
    uint64_t breakpoints[SOFT_BREAKPOINTS];
    uint32_t breakpoint_count;
    uc_hook breakpoint_hooks[SOFT_BREAKPOINTS];
    struct soft_watch watches[SOFT_BREAKPOINTS];
    uint32_t watch_count, watch_hits;
    uc_hook watch_hook;
    int is_watched;
    struct soft_watch guest_watches[SOFT_BREAKPOINTS]; /* what the guest's own debug registers watch; size 0 for none */
    uint32_t guest_breaks, guest_hits;
    int guest_watching;
    uint64_t debug_pc;
    uint32_t debug_dr6;
    int heeding;      /* breakpoints count though instructions are executed one by one */
    uint64_t leaving; /* the breakpoint that the CPU stands on */

    struct window {
        struct soft_cpu *s;
        uint64_t gpa;
    } windows[SOFT_REGIONS + 1]; /* the gaps between the regions */
    uint32_t window_count;
};

/* What Python calls */

int soft_load_unicorn(const char *path);
unsigned soft_unicorn_version(void);
const char *soft_strerror(int error);
struct soft_cpu *soft_open(int *error);
void soft_close(struct soft_cpu *s);
int soft_add_region(struct soft_cpu *s, uint64_t gpa, uint64_t size, void *host, int readonly);
int soft_map_rest(struct soft_cpu *s);
uint64_t soft_enter(struct soft_cpu *s);
uint64_t soft_step(struct soft_cpu *s);
uint64_t soft_complete(struct soft_cpu *s);
void soft_answer(struct soft_cpu *s, uint64_t value);
void soft_keep_answer(struct soft_cpu *s);
void soft_kick(struct soft_cpu *s);
void soft_forget_kick(struct soft_cpu *s);
struct cpu *soft_load_cpu(struct soft_cpu *s);
void soft_store_cpu(struct soft_cpu *s, int flush);
uint64_t soft_rflags(struct soft_cpu *s);
void soft_set_rflags(struct soft_cpu *s, uint64_t flags);
void soft_settle_rflags(struct soft_cpu *s);
int soft_set_breakpoints(struct soft_cpu *s, const uint64_t *addresses, uint32_t count);
int soft_set_watches(struct soft_cpu *s, const struct soft_watch *watches, uint32_t count);
int soft_translate(struct soft_cpu *s, uint64_t linear, uint64_t *gpa);
int soft_reg_read(struct soft_cpu *s, int regid, void *value);
int soft_reg_write(struct soft_cpu *s, int regid, const void *value);

#define NOWHERE (~0ull)
#define DR6_FIXED 0xffff0ff0u /* Intel SDM vol. 3, 17.2.3 */
#define DR6_BS (1u << 14)

/* engine.c */

uint64_t soft_get(struct soft_cpu *s, int regid);
void soft_set(struct soft_cpu *s, int regid, uint64_t value);
uint64_t soft_linear_rip(const struct cpu *c);

/* debug.c */

void soft_watch_for_guest(struct soft_cpu *s);
int soft_break_for_guest(struct soft_cpu *s);
void soft_trap_for_guest(struct soft_cpu *s);

/* run.c */

int soft_run_one(struct soft_cpu *s);
uint64_t soft_exit_of(struct soft_cpu *s, int error, int counted);
void soft_on_block(uc_engine *engine, uint64_t address, uint32_t size, void *data);

/* ports.c */

void soft_arm_port_stop(struct soft_cpu *s, uint64_t port);
uint32_t soft_on_in(uc_engine *engine, uint32_t port, int size, void *data);
void soft_on_out(uc_engine *engine, uint32_t port, int size, uint32_t value, void *data);
void soft_port_stopped(struct soft_cpu *s);
void soft_finish_in(struct soft_cpu *s);

/* mmio.c */

uint64_t soft_mmio_exit(struct soft_cpu *s);
uint64_t soft_finish_mmio(struct soft_cpu *s);
bool soft_on_write_to_rom(uc_engine *engine, int type, uint64_t address, int size, int64_t value, void *data);
uint64_t soft_finish_rom(struct soft_cpu *s);

/* events.c */

void soft_on_interrupt(uc_engine *engine, uint32_t vector, void *data);
bool soft_on_invalid(uc_engine *engine, void *data);
uint64_t soft_deliver_waiting(struct soft_cpu *s);

/* calls.c */

void soft_on_syscall(uc_engine *engine, void *data);
void soft_on_sysenter(uc_engine *engine, void *data);
int soft_on_cpuid(uc_engine *engine, void *data);

/* sensitive.c */

void soft_on_edge(uc_engine *engine, void *block, void *previous, void *data);
int soft_mark_block(struct soft_cpu *s, uint64_t address, uint32_t size);
int soft_do_sensitive(struct soft_cpu *s, uint64_t *exit);
int soft_finish_msr(struct soft_cpu *s);

/* deliver.c */

/* A fault that comes up while an event is delivered. */
struct fault {
    int vector; /* -1: none */
    uint32_t error;
};
enum soft_event { EVENT_FAULT, EVENT_INTERRUPT, EVENT_SOFTWARE };

/* Deliver an event through the interrupt table; 0 when the processor shuts down. `cpu` is loaded and stored by the caller. */
int soft_deliver(struct soft_cpu *s, int vector, int has_error, uint32_t error, enum soft_event kind);
uint32_t soft_hflags(const struct cpu *c);
uint8_t *soft_host(struct soft_cpu *s, uint64_t gpa, uint64_t size, int write);
enum soft_access { SOFT_LOOK, SOFT_READ, SOFT_WRITE }; /* the host looks, the guest reads or writes */
struct fault soft_walk(struct soft_cpu *s, uint64_t linear, enum soft_access access, int user, uint64_t *gpa);
struct fault soft_read(struct soft_cpu *s, uint64_t linear, void *data, uint32_t size);

#endif
