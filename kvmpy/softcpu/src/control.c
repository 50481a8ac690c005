/* SPDX-License-Identifier: MIT */
/*
 * Instructions that control the processor: RDMSR and WRMSR, which somebody may want to answer; MOV to and from control and
 * debug registers and to SS, where the engine takes what a processor refuses. The guest's debug registers and CR8 are not the
 * engine's.
 */
#include "softcpu.h"

#define CR4_DE (1u << 3)
#define DR6_ONES 0xffff0ff0u /* Intel SDM vol. 3, 17.2.3 and 17.2.4 */
#define DR7_ONES 0x400u
#define CR8_MASK 15
#define CR4_KNOWN 0x370fffu /* VME to UMIP, FSGSBASE, PCIDE, OSXSAVE, SMEP, SMAP (Intel SDM vol. 3, 2.5) */
#define CR0_NW (1u << 29)
#define CR0_CD (1u << 30)

/* MSRs */

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

static void msr_exit(struct soft_cpu *s, int is_write)
{
    struct cpu *c = s->cpu;
    s->msr = (struct soft_msr){
        .index = c->regs[RCX],
        .length = soft_decode(s).length,
        .is_write = is_write,
        .value = is_write ? (c->regs[RDX] << 32) | (uint32_t)c->regs[RAX] : 0,
    };
    s->pending = PENDING_MSR;
    soft_leave_with(s, is_write ? KVM_EXIT_X86_WRMSR : KVM_EXIT_X86_RDMSR);
}

/* RIP is in step: the instruction exits, faults, or is the engine's to do. */
static void before_msr(struct soft_cpu *s, int is_write, uintptr_t code)
{
    uint32_t index = s->cpu->regs[RCX];
    if (is_filtered(s, index) || (!is_known(index) && s->msr_exits))
        msr_exit(s, is_write);
    if (!is_known(index))
        unicorn.raise_exception_err_ra(s->cpu, GP, 0, code);
}

void soft_helper_rdmsr(struct cpu *c)
{
    struct soft_cpu *s = soft_mine(c);
    if (s)
        before_msr(s, 0, CALLED_FROM());
    theirs.helper_rdmsr(c);
}

void soft_helper_wrmsr(struct cpu *c)
{
    struct soft_cpu *s = soft_mine(c);
    if (s)
        before_msr(s, 1, CALLED_FROM());
    theirs.helper_wrmsr(c);
}

/* The answer to an access to an MSR: its value, or #GP. */
void soft_finish_msr(struct soft_cpu *s)
{
    struct cpu *c = s->cpu;
    if (s->msr.fault) {
        soft_raise(s, GP, 0);
        return;
    }
    if (!s->msr.is_write) {
        c->regs[RAX] = (uint32_t)s->msr.value;
        c->regs[RDX] = s->msr.value >> 32;
    }
    soft_retire(s, s->msr.length);
    if (c->eflags & FLAG_TF)
        soft_debug_trap(s, DR6_BS);
}

/* Control registers */

/* Whether a processor refuses the value (Intel SDM vol. 2, MOV - Move to/from Control Registers). */
static int is_refused(const struct cpu *c, int number, uint64_t value)
{
    if (number == 8)
        return value > CR8_MASK;
    if (number == 4)
        return (value & ~(uint64_t)CR4_KNOWN) || ((c->efer & EFER_LMA) && !(value & CR4_PAE));
    if (number != 0)
        return 0;
    int paging = !!(value & CR0_PG);
    return value >> 32 || (paging && !(value & CR0_PE)) || ((value & CR0_NW) && !(value & CR0_CD)) ||
           (!paging && (c->hflags & HF_CS64)) || (paging && (c->efer & EFER_LME) && !(c->cr[4] & CR4_PAE));
}

uint64_t soft_helper_read_crN(struct cpu *c, int number)
{
    struct soft_cpu *s = soft_mine(c);
    return s && number == 8 ? s->cr8 : theirs.helper_read_crN(c, number);
}

void soft_helper_write_crN(struct cpu *c, int number, uint64_t value)
{
    struct soft_cpu *s = soft_mine(c);
    if (s && is_refused(c, number, value))
        unicorn.raise_exception_err_ra(c, GP, 0, CALLED_FROM());
    if (s && number == 8)
        s->cr8 = value;
    else
        theirs.helper_write_crN(c, number, value);
}

/* Debug registers */

/* DR4 and DR5 are other names of DR6 and DR7 without CR4.DE (Intel SDM vol. 3, 17.2.2), and #UD with it. */
static int debug_register(struct cpu *c, int number, uintptr_t code)
{
    if (number != 4 && number != 5)
        return number;
    if (c->cr[4] & CR4_DE)
        unicorn.raise_exception_ra(c, UD, code);
    return number | 2;
}

uint64_t soft_helper_get_dr(struct cpu *c, int number)
{
    struct soft_cpu *s = soft_mine(c);
    return s ? s->guest_dr[debug_register(c, number, CALLED_FROM())] : theirs.helper_get_dr(c, number);
}

/* What the guest watches the engine is told between two runs: this one ends behind the instruction, which ends its block. */
void soft_helper_set_dr(struct cpu *c, int number, uint64_t value)
{
    struct soft_cpu *s = soft_mine(c);
    if (!s) {
        theirs.helper_set_dr(c, number, value);
        return;
    }
    number = debug_register(c, number, CALLED_FROM());
    if (number >= 6 && value >> 32)
        unicorn.raise_exception_err_ra(c, GP, 0, CALLED_FROM());
    s->guest_dr[number] = value | (number == 6 ? DR6_ONES : number == 7 ? DR7_ONES : 0);
    unicorn.emu_stop(s->vm->engine);
    s->debug_changed = 1;
}

/* Segments */

/* SS may be null in 64-bit code of rings 0 to 2, with their RPL (Intel SDM vol. 2, MOV); the engine takes any RPL. */
void soft_helper_load_seg(struct cpu *c, int number, int selector)
{
    struct soft_cpu *s = soft_mine(c);
    uint32_t cpl = c->hflags & HF_CPL, is_null = !(selector & 0xfffc);
    if (s && number == SS && is_null && (!(c->hflags & HF_CS64) || cpl == 3 || (selector & 3u) != cpl))
        unicorn.raise_exception_err_ra(c, GP, 0, CALLED_FROM());
    theirs.helper_load_seg(c, number, selector);
}
