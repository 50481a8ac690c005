/* SPDX-License-Identifier: MIT */
/*
 * Port accesses. An access ends with a look at an I/O breakpoint (DR7 with CR4.DE), which QEMU's translation does behind it:
 * the hook of the access arms it, so the engine stops right there and not at the end of the block.
 */
#include "softcpu.h"

#include <string.h>

struct instruction {
    uint8_t opcode;
    int is_rep, address_size; /* in bytes */
};

/* Prefixes and opcode of a port access: IN, OUT, INS, OUTS (Intel SDM vol. 2, 2.1.1). */
static struct instruction decode(struct soft_cpu *s)
{
    struct cpu *c = s->cpu;
    struct instruction found = {0, 0, c->hflags & HF_CS64 ? 8 : c->hflags & HF_CS32 ? 4 : 2};
    uint64_t at = soft_linear_rip(c);
    uint8_t byte = 0;
    for (int i = 0; i < 15; i++, at++) {
        if (soft_read(s, at, &byte, 1).vector >= 0)
            break;
        if (byte == 0xf2 || byte == 0xf3)
            found.is_rep = 1;
        else if (byte == 0x67)
            found.address_size = found.address_size == 4 ? 2 : 4;
        else if (byte != 0x66 && byte != 0x2e && byte != 0x36 && byte != 0x3e && byte != 0x26 && byte != 0x64 && byte != 0x65 &&
                 !((c->hflags & HF_CS64) && (byte & 0xf0) == 0x40))
            break;
    }
    found.opcode = byte;
    return found;
}

static void note_instruction(struct soft_cpu *s)
{
    struct cpu *c = soft_load_cpu(s);
    struct instruction i = decode(s);
    s->at = c->rip;
    s->rax = c->regs[RAX];
    s->rsi = c->regs[RSI];
    s->is_string = (i.opcode & 0xfc) == 0x6c;
    s->is_rep = s->is_string && i.is_rep;
    s->counter_mask = i.address_size == 8 ? ~0ull : i.address_size == 4 ? 0xffffffff : 0xffff;
}

/* Whether the I/O permission bitmap closes the port (Intel SDM vol. 1, 19.5.2). */
static int is_denied(struct soft_cpu *s, uint32_t port, uint32_t size)
{
    struct cpu *c = s->cpu;
    uint16_t base, bits;
    uint32_t type = c->tr.flags >> DESC_TYPE_SHIFT & 15;
    if (!(c->cr[0] & CR0_PE) || (!(c->eflags & FLAG_VM) && (c->hflags & HF_CPL) <= (c->eflags >> FLAG_IOPL_SHIFT & 3)))
        return 0;
    if ((type != 9 && type != 11) || c->tr.limit < 0x67 || soft_read(s, c->tr.base + 0x66, &base, 2).vector >= 0)
        return 1;
    uint32_t at = base + port / 8;
    if (at + 1 > c->tr.limit || soft_read(s, c->tr.base + at, &bits, 2).vector >= 0)
        return 1;
    return (bits >> (port & 7) & ((1u << size) - 1)) != 0;
}

void soft_arm_port_stop(struct soft_cpu *s, uint64_t port)
{
    s->port_stop = port != NOWHERE;
    soft_set(s, UC_X86_REG_DR0 + 3, port);
}

static void port_exit(struct soft_cpu *s, uint32_t port, uint32_t size, uint64_t flags)
{
    s->io_size = size;
    s->exit = KVM_EXIT_IO | size << 8 | (uint64_t)(port & 0xffff) << 16 | flags;
}

void soft_on_out(uc_engine *engine, uint32_t port, int size, uint32_t value, void *data)
{
    struct soft_cpu *s = data;
    (void)engine;
    if (s->exit || s->stopped)
        return;
    note_instruction(s);
    s->denied = is_denied(s, port, size);
    s->pending = SOFT_OUT;
    value &= 0xffffffffu >> (32 - 8 * size);
    memcpy(s->io_data, &value, 4);
    port_exit(s, port, size, KVMPY_OUT | (uint64_t)value << 32);
    soft_arm_port_stop(s, port);
}

uint32_t soft_on_in(uc_engine *engine, uint32_t port, int size, void *data)
{
    struct soft_cpu *s = data;
    uint64_t gpa;
    (void)engine;
    if (s->exit || s->stopped)
        return 0;
    if (s->has_input) { /* it runs again, and this time goes through */
        uint32_t value;
        memcpy(&value, s->io_data, 4);
        return value;
    }
    note_instruction(s);
    s->denied = is_denied(s, port, size);
    memset(s->io_data, 0xff, sizeof s->io_data);
    if (s->is_string && !s->denied) {
        uint64_t target = s->cpu->segs[ES].base + (s->cpu->regs[RDI] & s->counter_mask);
        if (soft_walk(s, target, SOFT_WRITE, s->cpu->hflags & HF_CPL ? 1 : 0, &gpa).vector >= 0)
            return 0; /* the store will fault, and nothing was read then */
        s->pending = SOFT_INS;
        port_exit(s, port, size, 0);
        unicorn.emu_stop(s->engine); /* which aborts the store, and the instruction with it */
        return 0;
    }
    s->pending = SOFT_IN;
    port_exit(s, port, size, 0);
    soft_arm_port_stop(s, port);
    return 0;
}

/* The I/O breakpoint behind a port access: RIP is behind the instruction. */
void soft_port_stopped(struct soft_cpu *s)
{
    struct cpu *c;
    soft_arm_port_stop(s, NOWHERE);
    if (!s->denied && !s->is_rep) {
        unicorn.emu_stop(s->engine);
        return;
    }
    c = soft_load_cpu(s);
    if (s->denied) {
        c->rip = s->at;
        c->regs[RAX] = s->rax;
        c->regs[RSI] = s->rsi;
        s->exit = 0;
        s->pending = SOFT_DONE;
        s->shut_down = !soft_deliver(s, GP, 1, 0, EVENT_FAULT);
    } else { /* QEMU looks before it counts, and takes the loop for done */
        uint64_t left = (c->regs[RCX] - 1) & s->counter_mask;
        c->regs[RCX] = s->counter_mask == 0xffff ? (c->regs[RCX] & ~0xffffull) | left : left;
        if (left)
            c->rip = s->at;
    }
    soft_store_cpu(s, 0);
    if (!s->denied || s->shut_down)
        unicorn.emu_stop(s->engine);
}

void soft_finish_in(struct soft_cpu *s)
{
    uint64_t value = 0, mask = s->io_size == 4 ? ~0ull : (1ull << 8 * s->io_size) - 1; /* 32 bits clear the upper half */
    memcpy(&value, s->io_data, s->io_size);
    soft_set(s, UC_X86_REG_RAX, (soft_get(s, UC_X86_REG_RAX) & ~mask) | value);
    s->pending = SOFT_DONE;
}
