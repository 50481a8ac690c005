/* SPDX-License-Identifier: MIT */
/*
 * IN and OUT. The simple forms are done here: the engine is left behind them, and the answer of IN goes into RAX when it is
 * there. INS and OUTS access memory too: they are executed exactly (access.c), and so is what is executed alone.
 */
#include "softcpu.h"

#include <string.h>

#define PORTS 0x10000

struct soft_instruction soft_decode(struct soft_cpu *s)
{
    uint8_t code[15] = {0}, at = 0;
    uint32_t size = soft_look(s, soft_linear_rip(s->cpu), code, sizeof code);
    while (at + 1u < size && (memchr("\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3", code[at], 11) ||
                              ((s->cpu->hflags & HF_CS64) && (code[at] & 0xf0) == 0x40)))
        at++;
    struct soft_instruction found = {code[at], 0, at + 1};
    if (found.opcode == 0x0f && at + 1u < size) {
        found.second = code[at + 1];
        found.length++;
    }
    return found;
}

/* Whether the I/O permission bitmap closes the port (Intel SDM vol. 1, 19.5.2). */
static int is_denied(struct soft_cpu *s, uint32_t port, uint32_t size)
{
    struct cpu *c = s->cpu;
    uint16_t base, bits;
    uint32_t type = c->tr.flags >> DESC_TYPE_SHIFT & 15;
    if (!(c->cr[0] & CR0_PE) || (!(c->eflags & FLAG_VM) && (c->hflags & HF_CPL) <= (c->eflags >> FLAG_IOPL_SHIFT & 3)))
        return 0;
    if ((type != 9 && type != 11) || c->tr.limit < 0x67 || soft_read(s, c->tr.base + 0x66, &base, 2).vector != NO_VECTOR)
        return 1;
    uint32_t at = base + port / 8;
    if (at + 1 > c->tr.limit || soft_read(s, c->tr.base + at, &bits, 2).vector != NO_VECTOR)
        return 1;
    return (bits >> (port & 7) & ((1u << size) - 1)) != 0;
}

/* What both have in common: it may be refused, and it may have to be executed exactly. */
static struct soft_instruction begin(struct soft_cpu *s, uint32_t port, uint32_t size, uintptr_t code)
{
    struct cpu *c = s->cpu;
    if (is_denied(s, port, size))
        unicorn.raise_exception_err_ra(c, GP, 0, code);
    if (s->phase == EXACT)
        return (struct soft_instruction){0, 0, 0};
    soft_cpu_restore_state(s->vm->engine_cpu, code, true);
    struct soft_instruction i = soft_decode(s);
    if ((i.opcode & 0xfc) == 0x6c || (c->hflags & HF_TF))
        soft_leave(s, AT_ACCESS);
    i.length += !(i.opcode & 8); /* E4 to E7 name the port in a byte */
    return i;
}

static void tell(struct soft_cpu *s, uint32_t port, uint32_t size, uint64_t value, uint64_t flags)
{
    s->access = (struct soft_access){port, value, size, 1};
    soft_leave_with(s, KVM_EXIT_IO | size << 8 | (uint64_t)(port % PORTS) << 16 | flags);
}

static void out(struct soft_cpu *s, uint32_t port, uint32_t size, uint32_t value, uintptr_t code)
{
    struct soft_instruction i = begin(s, port, size, code);
    value &= 0xffffffffu >> (32 - 8 * size);
    if (s->phase == EXACT) {
        soft_port_out(s, port, size, value);
        return;
    }
    soft_retire(s, i.length);
    tell(s, port, size, value, KVMPY_OUT | (uint64_t)value << 32);
}

static uint64_t in(struct soft_cpu *s, uint32_t port, uint32_t size, uintptr_t code)
{
    struct soft_instruction i = begin(s, port, size, code);
    if (s->phase == EXACT)
        return soft_port_in(s, port, size, code);
    soft_retire(s, i.length);
    s->pending = PENDING_IN;
    tell(s, port, size, ~0ull, 0);
    return 0;
}

void soft_finish_in(struct soft_cpu *s)
{
    uint32_t size = s->access.size;
    uint64_t mask = size == 4 ? ~0ull : (1ull << 8 * size) - 1; /* 32 bits clear the upper half */
    s->cpu->regs[RAX] = (s->cpu->regs[RAX] & ~mask) | (s->access.value & mask & 0xffffffff);
}

#define PORT_HELPERS(suffix, size) \
    void soft_helper_out##suffix(struct cpu *c, uint32_t port, uint32_t value) \
    { \
        struct soft_cpu *s = soft_mine(c); \
        if (s) \
            out(s, port, size, value, CALLED_FROM()); \
        else \
            theirs.helper_out##suffix(c, port, value); \
    } \
    uint64_t soft_helper_in##suffix(struct cpu *c, uint32_t port) \
    { \
        struct soft_cpu *s = soft_mine(c); \
        return s ? in(s, port, size, CALLED_FROM()) : theirs.helper_in##suffix(c, port); \
    }

PORT_HELPERS(b, 1)
PORT_HELPERS(w, 2)
PORT_HELPERS(l, 4)
