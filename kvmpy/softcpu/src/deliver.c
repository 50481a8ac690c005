/* SPDX-License-Identifier: MIT */
/*
 * Event delivery: Intel SDM vol. 3, 6.12 to 6.15, 7.2, 7.7 and 20.3. Unicorn says that an exception happened; what a
 * processor does then, from the gate to the frame on the new stack, is here.
 */
#include "softcpu.h"

#include <string.h>

static const struct fault NONE = {NO_VECTOR, 0};

static struct fault fault(int vector, uint32_t error)
{
    return (struct fault){vector, error};
}

/* Descriptors */

static void load_segment(struct segment *seg, uint32_t selector, uint64_t descriptor)
{
    uint32_t limit = (descriptor & 0xffff) | (descriptor >> 32 & 0xf0000);
    seg->selector = selector;
    seg->base = (descriptor >> 16 & 0xffffff) | (descriptor >> 56 << 24);
    seg->limit = descriptor >> 55 & 1 ? limit << 12 | 0xfff : limit;
    seg->flags = descriptor >> 32 & 0xf0ff00;
}

static struct fault descriptor_of(struct soft_cpu *s, uint32_t selector, int vector, uint64_t *descriptor)
{
    struct segment *table = selector & 4 ? &s->cpu->ldt : &s->cpu->gdt;
    if ((selector | 7) > table->limit)
        return fault(vector, selector & 0xfffc);
    return soft_read(s, table->base + (selector & 0xfff8), descriptor, 8);
}

/* The descriptor of a selector, without a trace; 0 when there is none. */
int soft_descriptor(struct soft_cpu *s, uint32_t selector, uint64_t *descriptor)
{
    struct segment *table = selector & 4 ? &s->cpu->ldt : &s->cpu->gdt;
    uint8_t *bytes = (uint8_t *)descriptor;
    return (selector & 0xfffc) && (selector | 7) <= table->limit && soft_look(s, table->base + (selector & 0xfff8), bytes, 8) == 8;
}

/* What translated code depends on, from the state that decides it (QEMU keeps it in step; so must who changes the state). */
uint32_t soft_hflags(const struct cpu *c)
{
    uint32_t h = c->hflags & ~(HF_CPL | HF_INHIBIT_IRQ | HF_CS32 | HF_SS32 | HF_ADDSEG | HF_PE | HF_TF | HF_CR0 | HF_IOPL |
                               HF_LMA | HF_CS64 | HF_RF | HF_VM | HF_AC | HF_OSFXSR | HF_SMAP);
    h |= c->segs[SS].flags >> DESC_DPL_SHIFT & HF_CPL;
    h |= c->cr[0] & CR0_PE ? HF_PE : 0;
    h |= (uint32_t)c->cr[0] << 8 & HF_CR0;
    h |= c->eflags & (HF_TF | HF_IOPL | HF_RF | HF_VM | HF_AC);
    h |= c->cr[4] & CR4_OSFXSR ? HF_OSFXSR : 0;
    h |= c->cr[4] & CR4_SMAP ? HF_SMAP : 0;
    h |= c->efer & EFER_LMA ? HF_LMA : 0;
    if ((h & HF_LMA) && (c->segs[CS].flags & DESC_L))
        return h | HF_CS32 | HF_SS32 | HF_CS64;
    h |= c->segs[CS].flags & DESC_DB ? HF_CS32 : 0;
    h |= c->segs[SS].flags & DESC_DB ? HF_SS32 : 0;
    if (!(h & HF_PE) || (h & HF_VM) || !(h & HF_CS32) || (c->segs[DS].base | c->segs[ES].base | c->segs[SS].base))
        h |= HF_ADDSEG;
    return h;
}

/* Frames */

struct frame {
    uint64_t words[12];
    uint32_t count;
};

static void push(struct frame *f, uint64_t word)
{
    f->words[f->count++] = word;
}

/* Write the frame below `top`, first word highest, each `width` bytes, with the stack pointer masked. */
static struct fault write_frame(struct soft_cpu *s, const struct frame *f, uint64_t base, uint64_t top, uint64_t mask, uint32_t width)
{
    for (uint32_t i = 0; i < f->count; i++) {
        uint64_t word = f->words[i];
        top = (top - width) & mask;
        struct fault e = soft_write(s, base + top, &word, width);
        if (e.vector != NO_VECTOR)
            return e;
    }
    return NONE;
}

static void set_pointer(uint64_t *reg, uint64_t value, uint64_t mask)
{
    *reg = mask == 0xffff ? (*reg & ~0xffffull) | (value & 0xffff) : value & mask;
}

static struct fault deliver_real(struct soft_cpu *s, int vector, uint64_t flags)
{
    struct cpu *c = s->cpu;
    uint16_t gate[2];
    struct frame f = {{flags & 0xffff, c->segs[CS].selector, c->rip & 0xffff}, 3};
    if (vector * 4u + 3 > c->idt.limit)
        return fault(GP, 0);
    struct fault e = soft_read(s, c->idt.base + vector * 4u, gate, 4);
    if (e.vector == NO_VECTOR)
        e = write_frame(s, &f, c->segs[SS].base, c->regs[RSP], 0xffff, 2);
    if (e.vector != NO_VECTOR)
        return e;
    set_pointer(&c->regs[RSP], c->regs[RSP] - 6, 0xffff);
    c->rip = gate[0];
    c->segs[CS].selector = gate[1];
    c->segs[CS].base = (uint64_t)gate[1] << 4;
    c->eflags &= ~(uint64_t)(FLAG_TF | FLAG_IF | FLAG_RF | FLAG_AC);
    return NONE;
}

struct gate {
    uint32_t selector, type, ist;
    uint64_t offset;
};

static struct fault read_gate(struct soft_cpu *s, int vector, enum soft_kind kind, struct gate *gate)
{
    struct cpu *c = s->cpu;
    int long_mode = !!(c->efer & EFER_LMA);
    uint32_t width = long_mode ? 16 : 8, error = vector * 8u + 2; /* IDT set (Intel SDM vol. 3, 6.13) */
    uint64_t raw[2] = {0, 0};
    error |= kind == EVENT_SOFTWARE ? 0 : 1;
    if (vector * width + width - 1 > c->idt.limit)
        return fault(GP, error);
    struct fault e = soft_read(s, c->idt.base + vector * width, raw, width);
    if (e.vector != NO_VECTOR)
        return e;
    gate->type = raw[0] >> 40 & 0x1f;
    gate->selector = raw[0] >> 16 & 0xffff;
    gate->offset = (raw[0] & 0xffff) | (raw[0] >> 32 & 0xffff0000);
    gate->ist = long_mode ? raw[0] >> 32 & 7 : 0;
    if (long_mode)
        gate->offset |= raw[1] << 32;
    int known = gate->type == 14 || gate->type == 15 || (!long_mode && (gate->type == 6 || gate->type == 7));
    if (!known || (kind == EVENT_SOFTWARE && (raw[0] >> 45 & 3) < (c->hflags & HF_CPL)))
        return fault(GP, error);
    if (!(raw[0] >> 47 & 1))
        return fault(NP, error);
    if (!(gate->type & 8))
        gate->offset &= 0xffff;
    return NONE;
}

static struct fault deliver_long(struct soft_cpu *s, const struct gate *gate, uint32_t ring, int has_error, uint32_t error, uint64_t flags)
{
    struct cpu *c = s->cpu;
    uint32_t cpl = c->hflags & HF_CPL;
    uint64_t top = c->regs[RSP];
    struct fault e = NONE;
    if (gate->ist || ring < cpl) { /* the 64-bit TSS: RSP0 at 4, IST1 at 36 (Intel SDM vol. 3, figure 7-11) */
        uint32_t at = gate->ist ? 36 + 8 * (gate->ist - 1) : 4 + 8 * ring;
        if (at + 7 > c->tr.limit)
            return fault(TS, c->tr.selector & 0xfffc);
        e = soft_read(s, c->tr.base + at, &top, 8);
    }
    struct frame f = {{c->segs[SS].selector, c->regs[RSP], flags, c->segs[CS].selector, c->rip}, 5};
    if (has_error)
        push(&f, error);
    top &= ~15ull;
    if (e.vector == NO_VECTOR)
        e = write_frame(s, &f, 0, top, ~0ull, 8);
    if (e.vector != NO_VECTOR)
        return e;
    c->regs[RSP] = top - 8 * f.count;
    if (ring < cpl) {
        c->segs[SS].selector = ring; /* a null selector with the new RPL (Intel SDM vol. 3, 6.14.2) */
        c->segs[SS].base = c->segs[SS].limit = 0;
        c->segs[SS].flags = ring << DESC_DPL_SHIFT;
    }
    return NONE;
}

/* The stack of a more privileged ring, from a 16-bit or 32-bit TSS (Intel SDM vol. 3, 7.2.1 and 7.6). */
static struct fault inner_stack(struct soft_cpu *s, uint32_t ring, struct segment *ss, uint64_t *top)
{
    struct cpu *c = s->cpu;
    int wide = c->tr.flags >> DESC_TYPE_SHIFT & 8;
    uint32_t at = wide ? 4 + 8 * ring : 2 + 4 * ring, width = wide ? 4 : 2;
    uint64_t descriptor = 0;
    uint16_t selector = 0;
    *top = 0;
    if (at + width + 1 > c->tr.limit)
        return fault(TS, c->tr.selector & 0xfffc);
    struct fault e = soft_read(s, c->tr.base + at, top, width);
    if (e.vector == NO_VECTOR)
        e = soft_read(s, c->tr.base + at + width, &selector, 2);
    if (e.vector == NO_VECTOR && !(selector & 0xfffc))
        e = fault(TS, 0);
    if (e.vector == NO_VECTOR)
        e = descriptor_of(s, selector, TS, &descriptor);
    if (e.vector != NO_VECTOR)
        return e;
    load_segment(ss, selector, descriptor);
    uint32_t type = ss->flags >> DESC_TYPE_SHIFT & 15;
    if ((selector & 3) != ring || (ss->flags >> DESC_DPL_SHIFT & 3) != ring || !(ss->flags & DESC_S) || (type & 8) || !(type & 2))
        return fault(TS, selector & 0xfffc);
    return ss->flags & DESC_P ? NONE : fault(SS_FAULT, selector & 0xfffc);
}

static struct fault deliver_protected(struct soft_cpu *s, const struct gate *gate, uint32_t ring, int has_error, uint32_t error, uint64_t flags)
{
    struct cpu *c = s->cpu;
    int vm86 = !!(flags & FLAG_VM), switches = vm86 || ring < (c->hflags & HF_CPL);
    uint32_t width = gate->type & 8 ? 4 : 2;
    uint64_t top = c->regs[RSP];
    struct segment ss = c->segs[SS];
    struct frame f = {{0}, 0};
    if (switches) {
        struct fault e = inner_stack(s, ring, &ss, &top);
        if (e.vector != NO_VECTOR)
            return e;
        if (vm86) /* Intel SDM vol. 3, figure 20-4 */
            for (int i = 0; i < 4; i++)
                push(&f, c->segs[(int[]){GS, FS, DS, ES}[i]].selector);
        push(&f, c->segs[SS].selector);
        push(&f, c->regs[RSP]);
    }
    push(&f, flags);
    push(&f, c->segs[CS].selector);
    push(&f, c->rip);
    if (has_error)
        push(&f, error);
    uint64_t mask = ss.flags & DESC_DB ? 0xffffffff : 0xffff;
    struct fault e = write_frame(s, &f, ss.base, top, mask, width);
    if (e.vector != NO_VECTOR)
        return e;
    c->segs[SS] = ss;
    set_pointer(&c->regs[RSP], top - width * f.count, switches && mask == 0xffffffff ? 0xffffffff : mask);
    if (vm86)
        for (int i = 0; i < 4; i++)
            memset(&c->segs[(int[]){GS, FS, DS, ES}[i]], 0, sizeof(struct segment));
    return NONE;
}

static struct fault deliver_once(struct soft_cpu *s, int vector, int has_error, uint32_t error, enum soft_kind kind, uint64_t flags)
{
    struct cpu *c = s->cpu;
    struct gate gate;
    uint64_t code;
    if (!(c->cr[0] & CR0_PE))
        return deliver_real(s, vector, flags);
    uint32_t cpl = c->hflags & HF_CPL, external = kind == EVENT_SOFTWARE ? 0 : 1;
    if ((flags & FLAG_VM) && kind == EVENT_SOFTWARE && vector != BP && vector != OF && (flags >> FLAG_IOPL_SHIFT & 3) < 3)
        return fault(GP, 0); /* INT n in virtual-8086 mode with IOPL below 3 (Intel SDM vol. 3, 20.2.7) */
    struct fault e = read_gate(s, vector, kind, &gate);
    if (e.vector != NO_VECTOR)
        return e;
    if (!(gate.selector & 0xfffc))
        return fault(GP, external);
    e = descriptor_of(s, gate.selector, GP, &code);
    if (e.vector != NO_VECTOR)
        return e;
    uint32_t half = code >> 32, dpl = half >> DESC_DPL_SHIFT & 3;
    if (!(half & DESC_S) || !(half & DESC_CODE) || dpl > cpl || ((c->efer & EFER_LMA) && (half & (DESC_L | DESC_DB)) != DESC_L))
        return fault(GP, (gate.selector & 0xfffc) | external);
    if (!(half & DESC_P))
        return fault(NP, (gate.selector & 0xfffc) | external);
    uint32_t ring = half & DESC_CONFORMING ? cpl : dpl;
    if ((flags & FLAG_VM) && ring)
        return fault(GP, gate.selector & 0xfffc);
    if (c->efer & EFER_LMA)
        e = deliver_long(s, &gate, ring, has_error, error, flags);
    else
        e = deliver_protected(s, &gate, ring, has_error, error, flags);
    if (e.vector != NO_VECTOR)
        return e;
    load_segment(&c->segs[CS], (gate.selector & ~3u) | ring, code);
    c->rip = gate.offset;
    c->segs[SS].flags = (c->segs[SS].flags & ~(3u << DESC_DPL_SHIFT)) | ring << DESC_DPL_SHIFT;
    c->eflags &= ~(uint64_t)(FLAG_TF | FLAG_NT | FLAG_RF | FLAG_VM | (gate.type & 1 ? 0 : FLAG_IF));
    return NONE;
}

static int is_contributory(int vector)
{
    return vector == DE || (vector >= TS && vector <= GP);
}

/* Two faults in a row: what table 6-5 of the Intel SDM, vol. 3, makes of them. */
static int is_double_fault(int first, int second)
{
    return (is_contributory(first) && is_contributory(second)) || (first == PF && (second == PF || is_contributory(second)));
}

static int has_error_code(int vector)
{
    return vector == DF || (vector >= TS && vector <= PF) || vector == AC;
}

static void note_raised(struct soft_cpu *s, int vector, int has_error, uint32_t error)
{
    if (s->shut_down) /* the engine, which does not know of it, meets the fault again */
        return;
    s->raised = (struct soft_event){vector, 1, has_error && (s->cpu->cr[0] & CR0_PE), error};
}

/*
 * Deliver an event through the interrupt table; 0 when the processor shuts down. `at` is the RIP of the instruction, to which
 * that of INT n goes back when its own delivery faults.
 */
int soft_deliver(struct soft_cpu *s, int vector, int has_error, uint32_t error, enum soft_kind kind, uint64_t at)
{
    struct cpu *c = s->cpu;
    c->old_exception = -1; /* else the engine takes the next one for a double fault, and its end for ours */
    struct cpu before = *c;
    uint64_t flags = soft_rflags(s);
    int first = kind == EVENT_FAULT ? vector : -1;
    note_raised(s, first, has_error, error);
    if (first >= 0 && vector != DB && vector != BP && vector != OF)
        flags |= FLAG_RF; /* so that the instruction, run again, does not meet its breakpoint (Intel SDM vol. 3, 17.3.1.1) */
    has_error = has_error && (c->cr[0] & CR0_PE);
    for (;;) {
        struct fault e = deliver_once(s, vector, has_error, error, kind, flags);
        if (e.vector == NO_VECTOR)
            break;
        uint64_t cr2 = c->cr[2];
        if (kind == EVENT_SOFTWARE) /* the fault is that of INT n: RIP points at it */
            before.rip = at;
        *c = before;
        c->cr[2] = cr2;
        if (first == DF)
            return 0;
        if (first >= 0 && is_double_fault(first, e.vector))
            e = fault(DF, 0);
        if (first < 0) /* INT n or an interrupt: its own delivery raised the first */
            note_raised(s, e.vector, has_error_code(e.vector), e.error);
        vector = first = e.vector;
        error = e.error;
        has_error = has_error_code(vector) && (c->cr[0] & CR0_PE);
        kind = EVENT_FAULT;
    }
    c->hflags = soft_hflags(c);
    return 1;
}
