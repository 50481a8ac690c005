/* SPDX-License-Identifier: MIT */
/*
 * Instructions that the engine executes without a word, and not as they should be: RDMSR and WRMSR, which somebody may want to
 * answer; MOV to and from debug registers, which are ours (see ports.c); MOV to and from CR8, which it loses; MOV to CR0 and
 * CR4, where it takes bits that a processor refuses.
 *
 * A block that was translated just now is searched for their bytes. Where they could begin, a hook is set that stops in front;
 * if no instruction begins there, the hook is never called.
 */
#include "softcpu.h"

#define FROM_CR 0x20
#define FROM_DR 0x21
#define TO_CR 0x22
#define TO_DR 0x23
#define WRMSR 0x30
#define RDMSR 0x32
#define REX_R 4
#define REX_B 1
#define CR4_DE (1u << 3)
#define DR6_ONES 0xffff0ff0u /* Intel SDM vol. 3, 17.2.3 and 17.2.4 */
#define DR7_ONES 0x400u
#define CR8_MASK 15
#define CR4_KNOWN 0x370fffu /* VME to UMIP, FSGSBASE, PCIDE, OSXSAVE, SMEP, SMAP (Intel SDM vol. 3, 2.5) */
#define CR0_NW (1u << 29)
#define CR0_CD (1u << 30)
#define LONGEST_BLOCK 4096

/* A block was translated that did not follow its predecessor before; it is executed next. */
void soft_on_edge(uc_engine *engine, void *block, void *previous, void *data)
{
    struct soft_cpu *s = data;
    (void)engine, (void)block, (void)previous;
    s->new_block = 1;
}

static void on_mark(uc_engine *engine, uint64_t address, uint32_t size, void *data)
{
    struct soft_cpu *s = data;
    (void)engine, (void)size;
    if (s->passing == address) {
        s->passing = ~0ull;
        return;
    }
    s->exit = SOFT_SENSITIVE;
    unicorn.emu_stop(s->engine);
}

static int mark(struct soft_cpu *s, uint64_t address)
{
    uc_hook hook;
    for (uint32_t i = 0; i < s->mark_count; i++)
        if (s->marks[i] == address)
            return 0;
    if (s->mark_count == SOFT_MARKS || unicorn.hook_add(s->engine, &hook, UC_HOOK_CODE, on_mark, s, address, address))
        return 0;
    s->marks[s->mark_count++] = address;
    return 1;
}

/* Return whether there are new marks in the block, so that it must be translated anew. */
int soft_mark_block(struct soft_cpu *s, uint64_t address, uint32_t size)
{
    uint8_t code[LONGEST_BLOCK];
    int found = 0;
    size = size < sizeof code ? size : sizeof code;
    struct cpu *c = soft_load_cpu(s);
    if (soft_read(s, address, code, size).vector >= 0)
        return 0;
    for (uint32_t i = 0; i + 1 < size; i++) {
        uint8_t op = code[i + 1], rex = i && (c->hflags & HF_CS64) && (code[i - 1] & 0xf0) == 0x40 ? code[i - 1] : 0;
        if (code[i] != 0x0f)
            continue;
        if (op == RDMSR || op == WRMSR || op == FROM_DR || op == TO_DR)
            found |= mark(s, address + i);
        if (op == TO_CR && (code[i + 2 < size ? i + 2 : i] & 0x18) == 0) /* CR0, CR4, CR8 */
            found |= mark(s, address + i);
        if (rex && ((op & ~2u) == FROM_CR || (op & ~2u) == FROM_DR))
            found |= mark(s, address + i - 1);
    }
    if (found) {
        s->stale_at = address;
        s->stale_size = size;
    }
    return found;
}

static int is_filtered(struct soft_cpu *s, uint32_t index)
{
    for (uint32_t i = 0; i < s->msr_filter_count; i++)
        if (s->msr_filter[i] == index)
            return 1;
    return 0;
}

/* The MSRs that the engine has; it reads others as 0, where a processor raises #GP. */
static int is_known(uint32_t index)
{
    static const struct {
        uint32_t first, last;
    } KNOWN[] = {
        {0x10, 0x10}, {0x1b, 0x1b}, {0x34, 0x34}, {0x3a, 0x3b}, {0x8b, 0x8b}, {0xfe, 0xfe}, {0x174, 0x176},
        {0x179, 0x17b}, {0x198, 0x198}, {0x1a0, 0x1a0}, {0x1d9, 0x1d9}, {0x200, 0x20f}, {0x250, 0x250}, {0x258, 0x259},
        {0x268, 0x26f}, {0x277, 0x277}, {0x2ff, 0x2ff}, {0x400, 0x427}, {0xc0000080, 0xc0000084},
        {0xc0000100, 0xc0000103}, {0xc0010117, 0xc0010117},
    };
    for (size_t i = 0; i < sizeof KNOWN / sizeof KNOWN[0]; i++)
        if (index >= KNOWN[i].first && index <= KNOWN[i].last)
            return 1;
    return 0;
}

static uint64_t msr_exit(struct soft_cpu *s, int write, uint32_t length)
{
    struct cpu *c = s->cpu;
    s->msr_index = c->regs[RCX];
    s->msr_fault = 0;
    s->msr_value = write ? (c->regs[RDX] << 32) | (uint32_t)c->regs[RAX] : 0;
    s->at = c->rip;
    s->length = length;
    s->is_write = write;
    s->pending = SOFT_MSR;
    return write ? KVM_EXIT_X86_WRMSR : KVM_EXIT_X86_RDMSR;
}

/* Whether a processor refuses the value (Intel SDM vol. 2, MOV - Move to/from Control Registers). */
static int is_refused(const struct cpu *c, uint32_t number, uint64_t value)
{
    if (number == 4)
        return (value & ~(uint64_t)CR4_KNOWN) || ((c->efer & EFER_LMA) && !(value & CR4_PAE));
    int paging = !!(value & CR0_PG);
    return value >> 32 || (paging && !(value & CR0_PE)) || ((value & CR0_NW) && !(value & CR0_CD)) ||
           (!paging && (c->hflags & HF_CS64)) || (paging && (c->efer & EFER_LME) && !(c->cr[4] & CR4_PAE));
}

/* Carry out MOV to or from a debug register, or CR8; 0 when it is #UD. */
static int move(struct soft_cpu *s, uint8_t op, uint8_t rex, uint8_t modrm)
{
    struct cpu *c = s->cpu;
    uint32_t number = (modrm >> 3 & 7) | (rex & REX_R ? 8 : 0);
    uint64_t *reg = &c->regs[(modrm & 7) | (rex & REX_B ? 8 : 0)];
    uint64_t mask = c->hflags & HF_CS64 ? ~0ull : 0xffffffff;
    if (op == FROM_CR || op == TO_CR) {
        if (op == TO_CR)
            s->cr8 = *reg & CR8_MASK;
        else
            *reg = s->cr8;
        return 1;
    }
    if (number > 7 || ((number == 4 || number == 5) && (c->cr[4] & CR4_DE)))
        return 0;
    number |= number == 4 || number == 5 ? 2 : 0; /* aliases of DR6 and DR7 without CR4.DE (17.2.2) */
    if (op == FROM_DR)
        *reg = s->guest_dr[number] & mask;
    else
        s->guest_dr[number] = (*reg & mask) | (number == 6 ? DR6_ONES : number == 7 ? DR7_ONES : 0);
    if (op == TO_DR)
        soft_watch_for_guest(s);
    return 1;
}

/* Do the instruction at RIP; 0 when the engine shall. `exit` is set when it has to be answered first. */
int soft_do_sensitive(struct soft_cpu *s, uint64_t *exit)
{
    struct cpu *c = soft_load_cpu(s);
    uint8_t code[4] = {0}, *at = code, rex = 0;
    uint64_t address = soft_linear_rip(c);
    *exit = 0;
    s->passing = address; /* until it turns out that it is ours to do */
    if (soft_read(s, address, code, sizeof code).vector >= 0)
        soft_read(s, address, code, 2); /* the last two bytes of mapped memory */
    if ((c->hflags & HF_CS64) && (*at & 0xf0) == 0x40)
        rex = *at++;
    if (at[0] != 0x0f || (c->hflags & HF_CPL))
        return 0; /* it has changed meanwhile, or it is #GP */
    uint32_t length = at - code + (at[1] >= WRMSR ? 2 : 3);
    if (at[1] == RDMSR || at[1] == WRMSR) {
        int known = is_known(c->regs[RCX]);
        if (known && !is_filtered(s, c->regs[RCX]))
            return 0;
        s->passing = ~0ull;
        if (!known && !s->msr_exits) {
            s->shut_down = !soft_deliver(s, GP, 1, 0, EVENT_FAULT);
            soft_store_cpu(s, 0);
            *exit = s->shut_down ? KVM_EXIT_SHUTDOWN : 0;
            return 1;
        }
        *exit = msr_exit(s, at[1] == WRMSR, length);
        return 1;
    }
    uint32_t number = (at[2] >> 3 & 7) | (rex & REX_R ? 8 : 0);
    if ((at[1] == FROM_CR || at[1] == TO_CR) && number != 8) {
        uint64_t value = c->regs[(at[2] & 7) | (rex & REX_B ? 8 : 0)] & (c->hflags & HF_CS64 ? ~0ull : 0xffffffff);
        if (at[1] == FROM_CR || (number != 0 && number != 4) || !is_refused(c, number, value))
            return 0;
        s->passing = ~0ull;
        s->shut_down = !soft_deliver(s, GP, 1, 0, EVENT_FAULT);
        soft_store_cpu(s, 0);
        *exit = s->shut_down ? KVM_EXIT_SHUTDOWN : 0;
        return 1;
    }
    if (at[1] < FROM_CR || at[1] > TO_DR)
        return 0;
    s->passing = ~0ull;
    if (move(s, at[1], rex, at[2]))
        c->rip += length;
    else
        s->shut_down = !soft_deliver(s, UD, 0, 0, EVENT_FAULT);
    soft_store_cpu(s, 0);
    *exit = s->shut_down ? KVM_EXIT_SHUTDOWN : 0;
    return 1;
}

/* The answer to an access to an MSR: its value, or #GP. */
int soft_finish_msr(struct soft_cpu *s)
{
    struct cpu *c = soft_load_cpu(s);
    s->pending = SOFT_DONE;
    if (s->msr_fault) {
        s->shut_down = !soft_deliver(s, GP, 1, 0, EVENT_FAULT);
    } else {
        if (!s->is_write) {
            c->regs[RAX] = (uint32_t)s->msr_value;
            c->regs[RDX] = s->msr_value >> 32;
        }
        c->rip = s->at + s->length;
    }
    soft_store_cpu(s, 0);
    return !s->shut_down;
}
