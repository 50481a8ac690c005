/* SPDX-License-Identifier: MIT */
/*
 * The software CPU runs: Unicorn executes, and what its hooks find becomes the exits that KVM would give.
 *
 * A kick is a flag that the hook of every block reads; uc_emu_stop() from another thread would run instructions twice.
 */
#include "softcpu.h"

#include <string.h>

static void stop(struct soft_cpu *s)
{
    s->stopped = 1;
    unicorn.emu_stop(s->engine);
}

/* Between two blocks: the place to obey a kick, or to see whether an interrupt can be delivered. */
void soft_on_block(uc_engine *engine, uint64_t address, uint32_t size, void *data)
{
    struct soft_cpu *s = data;
    (void)engine;
    if (s->new_block || s->first_block) { /* of the first block the engine does not say that it is new */
        s->new_block = 0;
        if (soft_mark_block(s, address, size)) {
            s->not_begun = s->first_block;
            stop(s);
            return;
        }
    }
    if (__atomic_load_n(&s->kicked, __ATOMIC_RELAXED) && !s->single)
        stop(s);
    else if (s->watching && !s->first_block)
        stop(s);
    s->first_block = 0;
}

static void go(struct soft_cpu *s)
{
    if (s->stale_size) {
        unicorn.ctl(s->engine, UC_CTL_REMOVE_CACHE, s->stale_at, s->stale_at + s->stale_size);
        s->stale_size = 0;
    }
    s->exit = 0;
    s->stopped = 0;
    s->first_block = 1;
    s->not_begun = 0;
    soft_settle_rflags(s);
}

/* Execute until something happens, and return Unicorn's error. */
static int run_on(struct soft_cpu *s)
{
    go(s);
    return unicorn.emu_start(s->engine, soft_get(s, UC_X86_REG_RIP), 0, 0, 0);
}

/* Execute one instruction. Code that was translated to run on does not count instructions: it must go. */
int soft_run_one(struct soft_cpu *s)
{
    uint64_t at = soft_linear_rip(soft_load_cpu(s));
    unicorn.ctl(s->engine, UC_CTL_REMOVE_CACHE, at, at + 1);
    soft_store_cpu(s, 0); /* if the engine met a page fault there, it would take the guest's own for a second one: #DF */
    int error;
    s->single = 1;
    do { /* again, when its block turned out to have places to stop at (sensitive.c), and nothing was executed */
        go(s);
        error = unicorn.emu_start(s->engine, soft_get(s, UC_X86_REG_RIP), 0, 0, 1);
    } while (s->not_begun && !error);
    s->single = 0;
    return error;
}

static uint64_t sensitive_exit(struct soft_cpu *s)
{
    uint64_t exit;
    return soft_do_sensitive(s, &exit) ? exit : soft_exit_of(s, soft_run_one(s), 1);
}

/* Turn the end of a run into an exit; 0 when the guest can go on. */
uint64_t soft_exit_of(struct soft_cpu *s, int error, int counted)
{
    if (s->shut_down)
        return KVM_EXIT_SHUTDOWN;
    if (s->exit == SOFT_ACCESS)
        return soft_mmio_exit(s);
    if (s->exit == SOFT_SENSITIVE)
        return sensitive_exit(s);
    if (s->exit)
        return s->exit;
    if (s->stopped || (counted && !error))
        return 0;
    if (!error)
        return KVM_EXIT_HLT;
    s->engine_error = error;
    s->failed_at = soft_get(s, UC_X86_REG_RIP);
    return KVM_EXIT_INTERNAL_ERROR;
}

/* The port has answered: the instruction stores that, which exits once more where there is no memory. */
static uint64_t finish_ins(struct soft_cpu *s)
{
    s->has_input = 1;
    s->pending = SOFT_DONE;
    uint64_t exit = soft_exit_of(s, soft_run_one(s), 1);
    s->has_input = s->pending == SOFT_ROM; /* then it runs once more */
    return exit;
}

/* Do what the last exit left to do; return an exit that comes of it, or 0. */
static uint64_t finish_pending(struct soft_cpu *s)
{
    switch (s->pending) {
    case SOFT_IN:
        soft_finish_in(s);
        return 0;
    case SOFT_INS:
        return finish_ins(s);
    case SOFT_MMIO:
        return soft_finish_mmio(s);
    case SOFT_ROM:
        return soft_finish_rom(s);
    case SOFT_MSR:
        return soft_finish_msr(s) ? 0 : KVM_EXIT_SHUTDOWN;
    case SOFT_HYPERCALL:
        soft_set(s, UC_X86_REG_RAX, s->answer);
        soft_set(s, UC_X86_REG_RIP, s->at + 3);
        break;
    }
    s->pending = SOFT_DONE;
    s->piece_count = 0;
    return 0;
}

static void flush(struct soft_cpu *s)
{
    s->flush = 0;
    unicorn.ctl(s->engine, UC_CTL_FLUSH_TB);
    unicorn.ctl(s->engine, UC_CTL_FLUSH_TLB);
}

static uint64_t before_guest(struct soft_cpu *s)
{
    /* A kick is heard behind the instruction that exited, unless that exits again and again. */
    if (s->exits_again && __atomic_exchange_n(&s->kicked, 0, __ATOMIC_SEQ_CST))
        return KVM_EXIT_INTR;
    uint64_t exit = finish_pending(s);
    s->exits_again = exit != 0;
    if (!exit && s->shut_down)
        exit = KVM_EXIT_SHUTDOWN;
    if (!exit && __atomic_exchange_n(&s->kicked, 0, __ATOMIC_SEQ_CST))
        exit = KVM_EXIT_INTR;
    if (!exit && __atomic_exchange_n(&s->flush, 0, __ATOMIC_SEQ_CST))
        flush(s);
    return exit ? exit : soft_deliver_waiting(s);
}

/* One instruction, and the exit it causes; 0 when it just went by. */
static uint64_t one_instruction(struct soft_cpu *s)
{
    uint8_t opcode = 0;
    soft_read(s, soft_linear_rip(soft_load_cpu(s)), &opcode, 1);
    uint64_t exit = soft_exit_of(s, soft_run_one(s), 1);
    return !exit && opcode == 0xf4 ? KVM_EXIT_HLT : exit;
}

static uint64_t debug_exit(struct soft_cpu *s, uint32_t dr6)
{
    s->debug_pc = soft_linear_rip(soft_load_cpu(s));
    s->debug_dr6 = DR6_FIXED | dr6;
    return KVM_EXIT_DEBUG;
}

/* Only between instructions can it be told whether data was touched: a stop in the middle would run them twice. */
static uint64_t run_watching(struct soft_cpu *s)
{
    s->watch_hits = s->guest_hits = 0;
    if (s->guest_watching && soft_break_for_guest(s))
        return s->shut_down ? KVM_EXIT_SHUTDOWN : 0;
    s->heeding = 1;
    uint64_t exit = one_instruction(s);
    s->heeding = 0;
    soft_trap_for_guest(s);
    return !exit && s->watch_hits ? debug_exit(s, s->watch_hits << s->breakpoint_count) : exit;
}

static uint64_t run(struct soft_cpu *s)
{
    uint64_t exit;
    s->leaving = NOWHERE;
    if (s->breakpoint_count && s->entries > 1) /* the instruction it stands on is executed, not stopped at again */
        s->leaving = soft_linear_rip(soft_load_cpu(s));
    do {
        exit = before_guest(s);
        if (!exit)
            exit = s->watch_count || s->guest_watching ? run_watching(s) : soft_exit_of(s, run_on(s), 0);
    } while (!exit);
    return exit;
}

static struct kvmpy_exit *exit_before(struct soft_cpu *s)
{
    return &s->recent[(s->exits - 1) % KVMPY_RECENT];
}

/* Keep the answer of the last exit, if it was a read. */
void soft_keep_answer(struct soft_cpu *s)
{
    uint32_t size = s->pending == SOFT_IN || s->pending == SOFT_INS ? s->io_size : s->mmio_size;
    if (s->exits && (s->pending == SOFT_IN || s->pending == SOFT_INS))
        memcpy(&exit_before(s)->value, s->io_data, size);
    else if (s->exits && s->pending == SOFT_MMIO && !(exit_before(s)->code & KVMPY_OUT))
        memcpy(&exit_before(s)->value, &s->answer, size);
}

static uint64_t keep(struct soft_cpu *s, uint64_t exit)
{
    s->exits++;
    struct kvmpy_exit *past = exit_before(s);
    *past = (struct kvmpy_exit){.code = exit};
    if ((exit & 0xff) == KVM_EXIT_MMIO) {
        past->gpa = s->mmio_gpa;
        past->value = exit & KVMPY_OUT ? s->mmio_value : 0;
    }
    return exit;
}

static uint64_t entered(struct soft_cpu *s, uint64_t (*what)(struct soft_cpu *))
{
    pthread_mutex_t *lock = s->lock;
    if (s->attention)
        return KVMPY_ATTENTION;
    if (lock)
        pthread_mutex_unlock(lock);
    __atomic_store_n(&s->entries, s->entries + 1, __ATOMIC_RELAXED);
    soft_keep_answer(s);
    uint64_t exit = keep(s, what(s));
    if (lock)
        pthread_mutex_lock(lock);
    return exit;
}

uint64_t soft_enter(struct soft_cpu *s)
{
    return entered(s, run);
}

/* One instruction, with the exit it causes, or KVM_EXIT_DEBUG behind it. */
static uint64_t step(struct soft_cpu *s)
{
    uint64_t exit = before_guest(s);
    if (exit)
        return exit;
    s->leaving = NOWHERE;
    exit = one_instruction(s);
    return exit ? exit : debug_exit(s, DR6_BS);
}

uint64_t soft_step(struct soft_cpu *s)
{
    return entered(s, step);
}

/* Finish the instruction that exited, without going on; 0, or an exit that comes of it. */
uint64_t soft_complete(struct soft_cpu *s)
{
    soft_keep_answer(s);
    uint64_t exit = finish_pending(s);
    return exit ? keep(s, exit) : 0;
}

void soft_answer(struct soft_cpu *s, uint64_t value)
{
    s->answer = value;
    memcpy(s->io_data, &value, sizeof s->io_data);
}

void soft_kick(struct soft_cpu *s)
{
    __atomic_store_n(&s->kicked, 1, __ATOMIC_SEQ_CST);
}

void soft_forget_kick(struct soft_cpu *s)
{
    __atomic_store_n(&s->kicked, 0, __ATOMIC_SEQ_CST);
}
