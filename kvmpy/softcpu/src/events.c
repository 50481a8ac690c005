/* SPDX-License-Identifier: MIT */
/* What the engine says has happened in the guest, and what the host wants to happen: both are delivered by deliver.c. */
#include "softcpu.h"

#define NMI_VECTOR 2

/* Deliver a fault at the instruction at RIP. */
void soft_raise(struct soft_cpu *s, int vector, uint32_t error)
{
    int has_error = vector == DF || (vector >= TS && vector <= PF) || vector == AC;
    s->exact.faults = 1;
    s->shut_down = !soft_deliver(s, vector, has_error, error, EVENT_FAULT, s->cpu->rip);
}

/* #DB: a trap behind an instruction, or the fault of a breakpoint in front of it; `dr6` says why. */
void soft_debug_trap(struct soft_cpu *s, uint32_t dr6)
{
    s->guest_dr[6] = (s->guest_dr[6] & ~15ull) | dr6;
    s->shut_down = !soft_deliver(s, DB, 0, 0, EVENT_FAULT, s->cpu->rip);
}

static void stop_if_alone(struct soft_cpu *s)
{
    if (s->phase != FREE || s->shut_down)
        soft_end_run(s, BOUNDARY);
}

/* The length of the INT n that is about to be told: then RIP is behind it. */
void soft_helper_raise_interrupt(struct cpu *c, int vector, int length)
{
    struct soft_cpu *s = soft_mine(c);
    if (s)
        s->int_length = length;
    theirs.helper_raise_interrupt(c, vector, length);
}

/* An exception. #DB is the trap behind an instruction: the guest's own if RFLAGS.TF was set in front of it. */
void soft_on_interrupt(uc_engine *engine, uint32_t vector, void *data)
{
    struct soft_cpu *s = ((struct soft_vm *)data)->runner;
    struct cpu *c = s->cpu;
    (void)engine;
    if (c->is_int)
        s->shut_down = !soft_deliver(s, vector, 0, 0, EVENT_SOFTWARE, c->rip - s->int_length);
    else if (vector != DB)
        soft_raise(s, vector, c->error_code);
    else if (s->phase == FREE || s->traps)
        soft_debug_trap(s, DR6_BS);
    stop_if_alone(s);
}

/* #UD, and what the engine takes for it: hypercalls, which exit, and INT1. */
bool soft_on_invalid(uc_engine *engine, void *data)
{
    struct soft_cpu *s = ((struct soft_vm *)data)->runner;
    struct cpu *c = s->cpu;
    uint8_t code[3] = {0};
    (void)engine;
    soft_look(s, soft_linear_rip(c), code, sizeof code);
    if (code[0] == 0x0f && code[1] == 0x01 && (code[2] == 0xc1 || code[2] == 0xd9) && !(c->hflags & HF_CPL)) {
        s->pending = PENDING_HYPERCALL;
        s->exit = KVM_EXIT_HYPERCALL;
        soft_end_run(s, BY_EXIT);
        return true;
    }
    if (code[0] == 0xf1) { /* its gate's DPL is not looked at (Intel SDM vol. 3, 6.12.1.2) */
        soft_retire(s, 1);
        s->shut_down = !soft_deliver(s, DB, 0, 0, EVENT_INTERRUPT, c->rip - 1);
    } else {
        soft_raise(s, UD, 0);
    }
    stop_if_alone(s);
    return true;
}

/* Choose what is delivered next, in the order of the manual (Intel SDM vol. 3, 6.9). */
static int take_event(struct soft_cpu *s, int is_open, struct soft_event *event)
{
    *event = (struct soft_event){NO_VECTOR, 0, 0, 0};
    if (s->injected.vector != NO_VECTOR) {
        *event = s->injected;
        s->injected.vector = NO_VECTOR;
    } else if (s->nmi_waiting && !s->nmi_blocked) {
        event->vector = NMI_VECTOR;
        s->nmi_waiting = 0;
        s->nmi_blocked = 1;
    } else if (s->irq_waiting != NO_VECTOR && is_open) {
        event->vector = s->irq_waiting;
        s->irq_waiting = NO_VECTOR;
    }
    return event->vector != NO_VECTOR;
}

/* Deliver what waits for the guest to take it; return an exit, or 0. */
uint64_t soft_deliver_waiting(struct soft_cpu *s)
{
    struct cpu *c = s->cpu;
    struct soft_event e;
    int is_open = (c->eflags & FLAG_IF) && !(c->hflags & HF_INHIBIT_IRQ);
    if (take_event(s, is_open, &e))
        s->shut_down = !soft_deliver(s, e.vector, e.has_error, e.error, e.is_fault ? EVENT_FAULT : EVENT_INTERRUPT, c->rip);
    else if (s->want_window && is_open)
        return KVM_EXIT_IRQ_WINDOW_OPEN;
    s->awaits_if = s->irq_waiting != NO_VECTOR || s->want_window;
    return s->shut_down ? KVM_EXIT_SHUTDOWN : 0;
}
