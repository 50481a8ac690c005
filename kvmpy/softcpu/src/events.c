/* SPDX-License-Identifier: MIT */
/* What the engine says has happened in the guest, and what the host wants to happen: both are delivered by deliver.c. */
#include "softcpu.h"

#define NMI_VECTOR 2

void soft_on_interrupt(uc_engine *engine, uint32_t vector, void *data)
{
    struct soft_cpu *s = data;
    (void)engine;
    if (vector == DB && s->port_stop) {
        soft_port_stopped(s);
        return;
    }
    if (s->probing) {
        s->probe_failed = 1;
        unicorn.emu_stop(s->engine);
        return;
    }
    struct cpu *c = soft_load_cpu(s);
    int software = *s->is_int;
    uint8_t last = 0;
    if (software) { /* INT3, INTO and INT1 have one byte, INT n two */
        soft_read(s, soft_linear_rip(c) - 1, &last, 1);
        s->at = c->rip - (last == 0xcc || last == 0xce || last == 0xf1 ? 1 : 2);
    }
    int has_error = !software && (vector == DF || (vector >= TS && vector <= PF) || vector == AC);
    s->shut_down = !soft_deliver(s, vector, has_error, *s->error_code, software ? EVENT_SOFTWARE : EVENT_FAULT);
    soft_store_cpu(s, 0);
    if (s->shut_down)
        unicorn.emu_stop(s->engine);
}

bool soft_on_invalid(uc_engine *engine, void *data)
{
    struct soft_cpu *s = data;
    uint8_t code[3] = {0};
    (void)engine;
    if (s->probing) {
        s->probe_failed = 1;
        unicorn.emu_stop(s->engine);
        return true;
    }
    struct cpu *c = soft_load_cpu(s);
    soft_read(s, soft_linear_rip(c), code, 3);
    if (code[0] == 0x0f && code[1] == 0x01 && (code[2] == 0xc1 || code[2] == 0xd9) && !(c->hflags & HF_CPL)) {
        s->at = c->rip;
        s->pending = SOFT_HYPERCALL;
        s->exit = KVM_EXIT_HYPERCALL;
        unicorn.emu_stop(s->engine);
        return true;
    }
    s->shut_down = !soft_deliver(s, UD, 0, 0, EVENT_FAULT);
    soft_store_cpu(s, 0);
    if (s->shut_down)
        unicorn.emu_stop(s->engine);
    return true;
}

/* Deliver what waits for the guest to take it; return an exit, or 0. */
uint64_t soft_deliver_waiting(struct soft_cpu *s)
{
    s->watching = 0;
    if (s->injected < 0 && !s->nmi_waiting && s->irq_waiting < 0 && !s->want_window)
        return 0;
    struct cpu *c = soft_load_cpu(s);
    int open = (c->eflags & FLAG_IF) && !(c->hflags & HF_INHIBIT_IRQ), vector = -1;
    enum soft_event kind = EVENT_INTERRUPT;
    if (s->injected >= 0) {
        vector = s->injected;
        kind = s->injected_is_fault ? EVENT_FAULT : EVENT_INTERRUPT;
    } else if (s->nmi_waiting) {
        vector = NMI_VECTOR;
        s->nmi_waiting = 0;
    } else if (s->irq_waiting >= 0 && open) {
        vector = s->irq_waiting;
        s->irq_waiting = -1;
    } else if (s->want_window && open) {
        return KVM_EXIT_IRQ_WINDOW_OPEN;
    }
    if (vector >= 0) {
        s->shut_down = !soft_deliver(s, vector, s->injected >= 0 && s->injected_has_error, s->injected_error, kind);
        s->injected = -1;
        soft_store_cpu(s, 0);
    }
    s->watching = s->irq_waiting >= 0 || s->want_window;
    return s->shut_down ? KVM_EXIT_SHUTDOWN : 0;
}
