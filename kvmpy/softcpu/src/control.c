/* SPDX-License-Identifier: MIT */
/*
 * Instructions that control the processor: RDMSR and WRMSR, which somebody may want to answer; and those where the engine
 * takes what a processor refuses. The guest's debug registers, CR8, the APIC's base and the time-stamp counter are ours.
 */
#include "softcpu.h"

#define DR6_ONES 0xffff0ff0u /* Intel SDM vol. 3, 17.2.3 and 17.2.4 */
#define DR7_ONES 0x400u
#define DR7_GD (1u << 13)
#define DR6_BD (1u << 13)
#define CR8_MASK 15
#define CR0_NW (1u << 29)
#define CR0_CD (1u << 30)
#define MXCSR_MASK 0xffffu
#define PHYSICAL_BITS 40 /* as CPUID says */
#define APIC_BASE_BITS (((1ull << PHYSICAL_BITS) - 1) & ~0xfffull)
#define APIC_BSP (1u << 8)
#define APIC_ENABLED (1u << 11)
#define EFER_BITS (EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE)

int soft_is_canonical(uint64_t address)
{
    return (uint64_t)((int64_t)(address << 16) >> 16) == address;
}

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

/* Of each byte of PAT: UC, WC, WT, WP, WB and UC- there are (Intel SDM vol. 3, table 11-10). */
static int is_pat(uint64_t value)
{
    for (int i = 0; i < 8; i++, value >>= 8)
        if ((value & 0xff) > 7 || (value & 0xff) == 2 || (value & 0xff) == 3)
            return 0;
    return 1;
}

/* Whether a processor takes this value (Intel SDM vol. 4, 2.1, and of EFER vol. 3, 4.1.2). */
static int is_valid_msr(const struct cpu *c, uint32_t index, uint64_t value)
{
    switch (index) {
    case MSR_EFER:
        return !(value & ~(uint64_t)EFER_BITS) && (!(c->cr[0] & CR0_PG) || !((value ^ c->efer) & EFER_LME));
    case MSR_APIC_BASE:
        return !(value & ~(APIC_BASE_BITS | APIC_BSP | APIC_ENABLED));
    case MSR_PAT:
        return is_pat(value);
    case MSR_SYSENTER_ESP:
    case MSR_SYSENTER_EIP:
    case MSR_LSTAR:
    case MSR_CSTAR:
    case MSR_FS_BASE:
    case MSR_GS_BASE:
    case MSR_KERNEL_GS_BASE:
        return soft_is_canonical(value);
    default:
        return 1;
    }
}

static uint64_t edx_eax(const struct cpu *c)
{
    return c->regs[RDX] << 32 | (uint32_t)c->regs[RAX];
}

static void set_edx_eax(struct cpu *c, uint64_t value)
{
    c->regs[RAX] = (uint32_t)value;
    c->regs[RDX] = value >> 32;
}

/* RIP is in step: the instruction exits, faults, or is to be done. */
static void before_msr(struct soft_cpu *s, int is_write, uintptr_t code)
{
    uint32_t index = s->cpu->regs[RCX];
    if (is_filtered(s, index) || (!is_known(index) && s->msr_exits))
        msr_exit(s, is_write);
    if (!is_known(index) || (is_write && !is_valid_msr(s->cpu, index, edx_eax(s->cpu))))
        unicorn.raise_exception_err_ra(s->cpu, GP, 0, code);
}

/* The time-stamp counter: the engine's, which is the host's, and what the guest has written to it. */
static uint64_t read_tsc(struct soft_cpu *s)
{
    struct cpu *c = s->cpu;
    uint64_t rax = c->regs[RAX], rdx = c->regs[RDX], cr4 = c->cr[4];
    c->cr[4] &= ~(uint64_t)CR4_TSD; /* for RDMSR it is not looked at */
    theirs.helper_rdtsc(c);
    uint64_t value = edx_eax(c) + s->tsc_offset;
    c->cr[4] = cr4;
    c->regs[RAX] = rax;
    c->regs[RDX] = rdx;
    return value;
}

static void check_rdtsc(struct cpu *c, uintptr_t code)
{
    if ((c->cr[4] & CR4_TSD) && (c->hflags & HF_CPL))
        unicorn.raise_exception_err_ra(c, GP, 0, code);
}

void soft_helper_rdtsc(struct cpu *c)
{
    struct soft_cpu *s = soft_mine(c);
    if (!s) {
        theirs.helper_rdtsc(c);
        return;
    }
    check_rdtsc(c, CALLED_FROM());
    set_edx_eax(c, read_tsc(s));
}

void soft_helper_rdtscp(struct cpu *c)
{
    struct soft_cpu *s = soft_mine(c);
    if (!s) {
        theirs.helper_rdtscp(c);
        return;
    }
    check_rdtsc(c, CALLED_FROM());
    set_edx_eax(c, read_tsc(s));
    c->regs[RCX] = (uint32_t)c->tsc_aux;
}

void soft_helper_rdmsr(struct cpu *c)
{
    struct soft_cpu *s = soft_mine(c);
    if (s)
        before_msr(s, 0, CALLED_FROM());
    if (s && (uint32_t)c->regs[RCX] == MSR_TSC)
        set_edx_eax(c, read_tsc(s));
    else if (s && (uint32_t)c->regs[RCX] == MSR_APIC_BASE)
        set_edx_eax(c, s->apic_base);
    else
        theirs.helper_rdmsr(c);
}

void soft_helper_wrmsr(struct cpu *c)
{
    struct soft_cpu *s = soft_mine(c);
    if (s)
        before_msr(s, 1, CALLED_FROM());
    if (s && (uint32_t)c->regs[RCX] == MSR_TSC)
        s->tsc_offset += edx_eax(c) - read_tsc(s);
    else if (s && (uint32_t)c->regs[RCX] == MSR_APIC_BASE)
        s->apic_base = edx_eax(c);
    else
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

/* The bits of CR4, and the features that they are there with (Intel SDM vol. 3, 2.5). */
static const struct {
    uint32_t bit, function, reg, feature; /* reg: 0 EBX, 1 ECX, 2 EDX; function 0: always there */
} CR4_BITS[] = {
    {0, 1, 2, 1}, {1, 1, 2, 1}, {2, 1, 2, 4}, {3, 1, 2, 2}, {4, 1, 2, 3}, {5, 1, 2, 6}, {6, 0, 0, 0}, {7, 1, 2, 13},
    {8, 0, 0, 0}, {9, 1, 2, 24}, {10, 1, 2, 25}, {11, 7, 1, 2}, {16, 7, 0, 0}, {17, 1, 1, 17}, {18, 1, 1, 26},
    {20, 7, 0, 7}, {21, 7, 0, 20},
};

static uint64_t cr4_bits(struct soft_cpu *s)
{
    uint64_t bits = 0;
    for (size_t i = 0; i < sizeof CR4_BITS / sizeof *CR4_BITS; i++) {
        struct soft_cpuid leaf = soft_cpuid_leaf(s, CR4_BITS[i].function, 0);
        uint32_t reg = CR4_BITS[i].reg == 0 ? leaf.ebx : CR4_BITS[i].reg == 1 ? leaf.ecx : leaf.edx;
        if (!CR4_BITS[i].function || reg >> CR4_BITS[i].feature & 1)
            bits |= 1ull << CR4_BITS[i].bit;
    }
    return bits;
}

/* Whether a processor refuses the value (Intel SDM vol. 2, MOV - Move to/from Control Registers). */
static int is_refused(struct soft_cpu *s, int number, uint64_t value)
{
    const struct cpu *c = s->cpu;
    switch (number) {
    case 8:
        return value > CR8_MASK;
    case 4:
        return (value & ~cr4_bits(s)) || ((c->efer & EFER_LMA) && !(value & CR4_PAE));
    case 3:
        return (c->efer & EFER_LMA) && value >> PHYSICAL_BITS;
    case 0:
        return value >> 32 || ((value & CR0_PG) && !(value & CR0_PE)) || ((value & CR0_NW) && !(value & CR0_CD)) ||
               (!(value & CR0_PG) && (c->hflags & HF_CS64)) ||
               ((value & CR0_PG) && (c->efer & EFER_LME) && !(c->cr[4] & CR4_PAE));
    default:
        return 0;
    }
}

uint64_t soft_helper_read_crN(struct cpu *c, int number)
{
    struct soft_cpu *s = soft_mine(c);
    return s && number == 8 ? s->cr8 : theirs.helper_read_crN(c, number);
}

/* A task priority that is lowered may let an interrupt through: the run ends behind the instruction. */
static void write_cr8(struct soft_cpu *s, uint64_t value, uintptr_t code)
{
    int is_lowered = value < s->cr8;
    s->cr8 = value;
    if (!is_lowered)
        return;
    soft_cpu_restore_state(s->vm->engine_cpu, code, true);
    soft_retire(s, soft_decode(s).length + 1);
    soft_leave_with(s, KVM_EXIT_SET_TPR);
}

void soft_helper_write_crN(struct cpu *c, int number, uint64_t value)
{
    struct soft_cpu *s = soft_mine(c);
    if (s && is_refused(s, number, value))
        unicorn.raise_exception_err_ra(c, GP, 0, CALLED_FROM());
    if (s && number == 8)
        write_cr8(s, value, CALLED_FROM());
    else
        theirs.helper_write_crN(c, number, value);
}

/* Debug registers */

/*
 * DR4 and DR5 are other names of DR6 and DR7 without CR4.DE (Intel SDM vol. 3, 17.2.2), and #UD with it. With DR7.GD every
 * access is #DB, in front of the instruction (17.2.4).
 */
static int debug_register(struct soft_cpu *s, int number, uintptr_t code)
{
    struct cpu *c = s->cpu;
    int is_alias = number == 4 || number == 5;
    if (is_alias && (c->cr[4] & CR4_DE))
        unicorn.raise_exception_ra(c, UD, code);
    if (s->guest_dr[7] & DR7_GD) {
        s->guest_dr[7] &= ~(uint64_t)DR7_GD;
        soft_cpu_restore_state(s->vm->engine_cpu, code, true);
        soft_debug_trap(s, DR6_BD);
        soft_leave(s, BOUNDARY);
    }
    return is_alias ? number | 2 : number;
}

uint64_t soft_helper_get_dr(struct cpu *c, int number)
{
    struct soft_cpu *s = soft_mine(c);
    return s ? s->guest_dr[debug_register(s, number, CALLED_FROM())] : theirs.helper_get_dr(c, number);
}

/* What the guest watches the engine is told between two runs: this one ends behind the instruction, which ends its block. */
void soft_helper_set_dr(struct cpu *c, int number, uint64_t value)
{
    struct soft_cpu *s = soft_mine(c);
    if (!s) {
        theirs.helper_set_dr(c, number, value);
        return;
    }
    number = debug_register(s, number, CALLED_FROM());
    if (number >= 6 && value >> 32)
        unicorn.raise_exception_err_ra(c, GP, 0, CALLED_FROM());
    s->guest_dr[number] = value | (number == 6 ? DR6_ONES : number == 7 ? DR7_ONES : 0);
    unicorn.emu_stop(s->vm->engine);
    s->debug_changed = 1;
}

/* The control word of SSE */

void soft_helper_ldmxcsr(struct cpu *c, uint32_t value)
{
    if (soft_mine(c) && (value & ~MXCSR_MASK))
        unicorn.raise_exception_err_ra(c, GP, 0, CALLED_FROM());
    theirs.helper_ldmxcsr(c, value);
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

void soft_helper_ltr(struct cpu *c, int selector)
{
    if (soft_mine(c) && !(selector & 0xfffc))
        unicorn.raise_exception_err_ra(c, GP, 0, CALLED_FROM());
    theirs.helper_ltr(c, selector);
}

/* Code is of 64 bits or of 32, not of both (Intel SDM vol. 3, 5.2.1); the engine takes it for the first. */
static void check_code(struct cpu *c, uint32_t selector, uintptr_t code)
{
    struct soft_cpu *s = soft_mine(c);
    uint64_t descriptor;
    if (s && (c->efer & EFER_LMA) && soft_descriptor(s, selector, &descriptor) &&
        (descriptor >> 32 & (DESC_S | DESC_CODE | DESC_L | DESC_DB)) == (DESC_S | DESC_CODE | DESC_L | DESC_DB))
        unicorn.raise_exception_err_ra(c, GP, selector & 0xfffc, code);
}

/* The selector that a far return takes from the stack, above an offset of this many bytes. */
static void check_return(struct cpu *c, uint32_t width, uintptr_t code)
{
    struct soft_cpu *s = soft_mine(c);
    uint16_t selector = 0;
    uint64_t top = c->hflags & HF_CS64 ? c->regs[RSP] : c->segs[SS].base + (c->hflags & HF_SS32 ? (uint32_t)c->regs[RSP] : (uint16_t)c->regs[RSP]);
    if (s && soft_look(s, top + width, (uint8_t *)&selector, sizeof selector) == sizeof selector)
        check_code(c, selector, code);
}

void soft_helper_ljmp_protected(struct cpu *c, int selector, uint64_t target, uint64_t next)
{
    check_code(c, selector, CALLED_FROM());
    theirs.helper_ljmp_protected(c, selector, target, next);
}

void soft_helper_lcall_protected(struct cpu *c, int selector, uint64_t target, int shift, uint64_t next)
{
    check_code(c, selector, CALLED_FROM());
    theirs.helper_lcall_protected(c, selector, target, shift, next);
}

void soft_helper_lret_protected(struct cpu *c, int shift, int added)
{
    check_return(c, 2u << shift, CALLED_FROM());
    theirs.helper_lret_protected(c, shift, added);
}

/* NMIs are blocked from the delivery of one to the next IRET, also one that faults (Intel SDM vol. 3, 6.7.1). */
static void unblock_nmi(const struct cpu *c)
{
    struct soft_cpu *s = soft_mine(c);
    if (!s || !s->nmi_blocked)
        return;
    s->nmi_blocked = 0;
    if (s->nmi_waiting)
        unicorn.emu_stop(s->vm->engine); /* heard behind it */
}

void soft_helper_iret_real(struct cpu *c, int shift)
{
    unblock_nmi(c);
    theirs.helper_iret_real(c, shift);
}

void soft_helper_iret_protected(struct cpu *c, int shift, int next)
{
    unblock_nmi(c);
    check_return(c, 2u << shift, CALLED_FROM());
    theirs.helper_iret_protected(c, shift, next);
}
