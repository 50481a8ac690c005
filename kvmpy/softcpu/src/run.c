/* SPDX-License-Identifier: MIT */
/*
 * A vCPU runs: the engine executes, and what happens becomes the exits that KVM would give. docs/engine.md draws the states.
 */
#include "softcpu.h"

#include <string.h>

/* How a run ends. What the engine is asked to end it obeys between two blocks; to be obeyed at once it is left. */

void soft_end_run(struct soft_cpu *s, enum soft_end why)
{
    s->ended = why;
    unicorn.emu_stop(s->vm->engine);
}

/* Leave the engine; RIP and flags are in step. */
void soft_leave(struct soft_cpu *s, enum soft_end why)
{
    soft_end_run(s, why);
    unicorn.cpu_loop_exit(s->vm->engine_cpu);
    __builtin_unreachable();
}

/* Leave it in front of the instruction that this place in translated code belongs to; nothing of it has been done. */
void soft_leave_before(struct soft_cpu *s, enum soft_end why, uintptr_t code)
{
    soft_end_run(s, why);
    unicorn.cpu_loop_exit_restore(s->vm->engine_cpu, code);
    __builtin_unreachable();
}

void soft_leave_with(struct soft_cpu *s, uint64_t exit)
{
    s->exit = exit;
    soft_leave(s, BY_EXIT);
}

/* The instruction at RIP is done, by us: what the engine does behind each. */
void soft_retire(struct soft_cpu *s, uint32_t length)
{
    struct cpu *c = s->cpu;
    c->rip += length;
    if (!(c->hflags & HF_CS64))
        c->rip = (uint32_t)c->rip;
    c->hflags &= ~(HF_INHIBIT_IRQ | HF_RF);
    c->eflags &= ~(uint64_t)FLAG_RF;
}

/* The engine's main function: what was asked of it before it listened is asked again here, behind all that forgets it. */
int soft_cpu_exec(uc_engine *engine, void *cpu)
{
    struct soft_vm *vm = soft_here();
    if (!vm || vm->engine != engine)
        return theirs.cpu_exec(engine, cpu);
    struct soft_cpu *s = vm->runner;
    if (s->phase == FREE && (__atomic_load_n(&s->kicked, __ATOMIC_SEQ_CST) || vm->gives_way || vm->closed))
        unicorn.emu_stop(engine);
    int reason = theirs.cpu_exec(engine, cpu);
    if (s->ended)
        soft_unhook(s);
    return reason;
}

/*
 * Asked each time the engine's loop is reached, while an interrupt waits, for what sets IF goes there, and what ends a shadow;
 * and of an instruction that is executed alone, for behind MOV SS there is no trap (Intel SDM vol. 3, 6.8.3).
 */
bool soft_x86_cpu_exec_interrupt(void *cpu, int request)
{
    struct soft_vm *vm = soft_here();
    if (!vm || vm->engine_cpu != cpu)
        return theirs.x86_cpu_exec_interrupt(cpu, request);
    struct soft_cpu *s = vm->runner;
    int is_shadow = !!(s->cpu->hflags & HF_INHIBIT_IRQ);
    if (s->phase == FREE ? s->awaits_if && (s->cpu->eflags & FLAG_IF) && !is_shadow : is_shadow && s->cpu->rip != s->began_at)
        soft_end_run(s, BOUNDARY);
    return false;
}

/* HLT and PAUSE */

void soft_helper_hlt(struct cpu *c, int length)
{
    struct soft_cpu *s = soft_mine(c);
    if (!s) {
        theirs.helper_hlt(c, length);
        return;
    }
    soft_retire(s, length);
    soft_leave_with(s, KVM_EXIT_HLT);
}

void soft_helper_pause(struct cpu *c, int length)
{
    struct soft_cpu *s = soft_mine(c);
    if (!s) {
        theirs.helper_pause(c, length);
        return;
    }
    soft_retire(s, length);
    if (s->phase != FREE)
        soft_leave(s, BOUNDARY);
    if (__atomic_load_n(&s->vm->first, __ATOMIC_RELAXED)) {
        s->vm->gives_way = 1;
        soft_leave(s, BOUNDARY);
    }
    unicorn.cpu_loop_exit(s->vm->engine_cpu); /* no more is translated behind it */
}

/* Runs */

#define MOST_TRIES 10000 /* of one instruction: nobody kicks so fast */

static int start(struct soft_cpu *s, enum soft_phase phase)
{
    uint32_t *request = (uint32_t *)(s->vm->engine_cpu + CPU_INTERRUPT_REQUEST);
    *request = phase != FREE || s->awaits_if ? CPU_INTERRUPT_HARD : 0;
    s->began_at = s->cpu->rip;
    *(uintptr_t *)(s->vm->engine_cpu + CPU_MEM_IO_PC) = 0;
    s->ended = NOTHING;
    s->phase = phase;
    int error = unicorn.emu_start(s->vm->engine, s->cpu->rip, 0, 0, 0);
    s->phase = OUTSIDE;
    return error;
}

static uint64_t exit_of(struct soft_cpu *s, int error)
{
    if (s->shut_down)
        return KVM_EXIT_SHUTDOWN;
    switch (s->ended) {
    case BY_EXIT:
        return s->exit;
    case AT_ACCESS:
        s->exact.answered = 0;
        return soft_execute_exactly(s);
    case NO_ANSWER:
    case BOUNDARY:
        return 0;
    case NOTHING:
        break;
    }
    if (!error)
        return 0;
    s->engine_error = error;
    s->failed_at = s->cpu->rip;
    return KVM_EXIT_INTERNAL_ERROR;
}

static uint64_t run_free(struct soft_cpu *s)
{
    return exit_of(s, start(s, FREE));
}

/*
 * Execute the instruction at RIP, and return its exit if it has one. TF is set for the engine, in hflags, where the guest does
 * not see it: soft_on_interrupt() tells its trap from that of the guest's own.
 */
uint64_t soft_run_one(struct soft_cpu *s, enum soft_phase phase)
{
    int error, tries = 0;
    s->traps = !!(s->cpu->eflags & FLAG_TF);
    do { /* a kick can be heard in front of it */
        s->cpu->hflags |= HF_TF;
        error = ++tries > MOST_TRIES ? SOFT_NO_PROGRESS : start(s, phase);
        s->cpu->hflags = (s->cpu->hflags & ~HF_TF) | (s->cpu->eflags & HF_TF);
    } while (!s->ended && !error);
    return exit_of(s, error);
}

/* What the last exit left to do */

static uint64_t finish_pending(struct soft_cpu *s)
{
    switch (s->pending) {
    case PENDING_IN:
        soft_finish_in(s);
        break;
    case PENDING_READ:
    case PENDING_WRITE:
        return soft_finish_access(s);
    case PENDING_MSR:
        soft_finish_msr(s);
        break;
    case PENDING_HYPERCALL:
        s->cpu->regs[RAX] = s->hypercall_result;
        soft_retire(s, 3);
        break;
    }
    s->pending = DONE;
    return s->shut_down ? KVM_EXIT_SHUTDOWN : 0;
}

static int take_kick(struct soft_cpu *s)
{
    return __atomic_exchange_n(&s->kicked, 0, __ATOMIC_SEQ_CST);
}

static uint64_t before_guest(struct soft_cpu *s)
{
    /* A kick is heard behind the instruction that exited, unless that exits again and again. */
    if (s->exits_again && take_kick(s))
        return KVM_EXIT_INTR;
    uint64_t exit = finish_pending(s);
    s->exits_again = exit != 0;
    if (!exit && s->shut_down)
        exit = KVM_EXIT_SHUTDOWN;
    if (!exit && take_kick(s))
        exit = KVM_EXIT_INTR;
    if (!exit && s->vm->closed)
        exit = KVMPY_ERROR;
    if (!exit && s->debug_changed)
        soft_apply_debugging(s);
    return exit ? exit : soft_deliver_waiting(s);
}

uint64_t soft_linear_rip(const struct cpu *c)
{
    uint64_t linear = c->segs[CS].base + c->rip;
    return c->hflags & HF_CS64 ? linear : (uint32_t)linear;
}

static uint64_t debug_exit(struct soft_cpu *s, uint32_t dr6)
{
    s->debug_pc = s->reported = soft_linear_rip(s->cpu);
    s->debug_dr6 = DR6_FIXED | dr6;
    return KVM_EXIT_DEBUG;
}

/* Only between instructions can it be told whether data was touched. */
static uint64_t run_watching(struct soft_cpu *s)
{
    s->watch_hits = s->guest_hits = 0;
    if (s->guest_watching && soft_break_for_guest(s))
        return s->shut_down ? KVM_EXIT_SHUTDOWN : 0;
    uint64_t exit = soft_run_one(s, STEP);
    soft_trap_for_guest(s);
    return !exit && s->watch_hits ? debug_exit(s, s->watch_hits << s->breakpoint_count) : exit;
}

/* The exit of a vCPU that could not have its turn; 0 when it has it. */
static uint64_t without_turn(struct soft_cpu *s, enum soft_turn turn)
{
    switch (turn) {
    case TAKEN:
        return 0;
    case KICKED:
        take_kick(s);
        return KVM_EXIT_INTR;
    case FAILED:
        return KVM_EXIT_INTERNAL_ERROR;
    default:
        return KVMPY_ERROR;
    }
}

static uint64_t run(struct soft_cpu *s)
{
    uint64_t exit;
    s->leaving = s->reported;
    s->reported = NOWHERE;
    do {
        exit = before_guest(s);
        if (!exit)
            exit = s->watch_count || s->guest_watching ? run_watching(s) : run_free(s);
        s->leaving = NOWHERE;
        if (!exit && s->vm->gives_way)
            exit = without_turn(s, soft_give_way(s));
    } while (!exit);
    return exit;
}

static uint64_t step(struct soft_cpu *s)
{
    uint64_t exit = before_guest(s);
    if (exit)
        return exit;
    s->leaving = soft_linear_rip(s->cpu);
    exit = soft_run_one(s, STEP);
    s->leaving = NOWHERE;
    return exit ? exit : debug_exit(s, DR6_BS);
}

/* What Python calls */

static struct kvmpy_exit *exit_before(struct soft_cpu *s)
{
    return &s->recent[(s->exits - 1) % KVMPY_RECENT];
}

/* Keep the answer of the last exit, if it was a read. */
void soft_keep_answer(struct soft_cpu *s)
{
    if (s->pending != PENDING_IN && s->pending != PENDING_READ)
        return;
    uint64_t unused = s->access.size == 8 ? 0 : ~0ull << 8 * s->access.size;
    exit_before(s)->value = s->access.value & ~unused;
}

static uint64_t keep(struct soft_cpu *s, uint64_t exit)
{
    s->exits++;
    struct kvmpy_exit *past = exit_before(s);
    *past = (struct kvmpy_exit){.code = exit};
    if ((exit & 0xff) == KVM_EXIT_MMIO) {
        past->gpa = s->access.address;
        past->value = exit & KVMPY_OUT ? s->access.value : 0;
    }
    return exit;
}

static uint64_t in_turn(struct soft_cpu *s, uint64_t (*what)(struct soft_cpu *), int heeds_kick)
{
    uint64_t exit = without_turn(s, soft_take_turn(s, heeds_kick));
    if (exit)
        return exit;
    exit = what(s);
    if (s->cpu != &s->saved) /* else it has given way, and not got it back */
        soft_end_turn(s);
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
    uint64_t exit = keep(s, in_turn(s, what, 1));
    if (lock)
        pthread_mutex_lock(lock);
    return exit;
}

uint64_t soft_enter(struct soft_cpu *s)
{
    return entered(s, run);
}

/* One instruction, with the exit it causes, or KVM_EXIT_DEBUG behind it. */
uint64_t soft_step(struct soft_cpu *s)
{
    return entered(s, step);
}

/* Finish the instruction that exited, without going on; 0, or an exit that comes of it. */
uint64_t soft_complete(struct soft_cpu *s)
{
    soft_keep_answer(s);
    uint64_t exit = in_turn(s, finish_pending, 0);
    return exit ? keep(s, exit) : 0;
}

void soft_answer(struct soft_cpu *s, uint64_t value)
{
    s->access.value = value;
}

void soft_kick(struct soft_cpu *s)
{
    __atomic_store_n(&s->kicked, 1, __ATOMIC_SEQ_CST);
    soft_wake(s);
}

void soft_forget_kick(struct soft_cpu *s)
{
    __atomic_store_n(&s->kicked, 0, __ATOMIC_SEQ_CST);
}

/* State */

/* The host has set `saved`: the engine has to look at all of it anew. */
void soft_state_set(struct soft_cpu *s)
{
    s->saved.hflags = soft_hflags(&s->saved) | (s->saved.hflags & HF_INHIBIT_IRQ);
    s->is_set = s->debug_changed = 1;
    s->reported = NOWHERE;
}

/* Set the control words, on which the engine's arithmetic depends. */
void soft_set_fpu_control(struct soft_cpu *s, uint32_t control, uint32_t mxcsr)
{
    s->saved.fpu_control = control;
    s->saved.mxcsr = mxcsr;
    unicorn.update_fp_status(&s->saved);
    unicorn.update_mxcsr_status(&s->saved);
}

int soft_translate(struct soft_cpu *s, uint64_t linear, uint64_t *gpa)
{
    return soft_walk(s, linear, SOFT_LOOK, 0, gpa).vector == NO_VECTOR;
}
