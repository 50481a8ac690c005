/* SPDX-License-Identifier: MIT */
/* System calls, whose transition the engine leaves to its user, and CPUID, which a table answers. */
#include "softcpu.h"

#define FLAT_CODE 0x809b00u
#define FLAT_DATA 0xc09300u

/* A flat segment of a system call (Intel SDM vol. 2, SYSCALL, SYSENTER). */
static void flat(struct segment *seg, uint32_t selector, uint32_t flags)
{
    *seg = (struct segment){selector & 0xfffc, 0, 0xffffffff, flags};
}

static void enter_ring0(struct soft_cpu *s, uint32_t code, uint32_t data, uint64_t target)
{
    struct cpu *c = s->cpu;
    int wide = !!(c->efer & EFER_LMA);
    flat(&c->segs[CS], code, FLAT_CODE | (wide ? DESC_L : DESC_DB));
    flat(&c->segs[SS], data, FLAT_DATA);
    c->rip = wide ? target : (uint32_t)target;
    uint32_t tf = c->hflags & HF_TF; /* of an instruction that is executed alone */
    c->hflags = soft_hflags(c) | tf;
}

void soft_helper_syscall(struct cpu *c, int length)
{
    struct soft_cpu *s = soft_mine(c);
    if (!s) {
        theirs.helper_syscall(c, length);
        return;
    }
    if (soft_do_instead(s)) {
        if (c->hflags & HF_TF)
            theirs.helper_single_step(c);
        return;
    }
    if (!(c->efer & EFER_SCE))
        unicorn.raise_exception_ra(c, UD, CALLED_FROM());
    uint64_t flags = soft_rflags(s), mask = c->sfmask, target = (uint32_t)c->star;
    if (c->efer & EFER_LMA) {
        c->regs[RCX] = c->rip + length;
        c->regs[R11] = flags & ~(uint64_t)FLAG_RF;
        target = c->hflags & HF_CS64 ? c->lstar : c->cstar;
    } else {
        c->regs[RCX] = (uint32_t)(c->rip + length);
        mask = FLAG_IF | FLAG_VM;
    }
    soft_set_rflags(s, flags & ~(mask | FLAG_RF));
    enter_ring0(s, c->star >> 32, (c->star >> 32) + 8, target);
}

void soft_helper_sysenter(struct cpu *c, int length)
{
    struct soft_cpu *s = soft_mine(c);
    if (!s) {
        theirs.helper_sysenter(c, length);
        return;
    }
    if (!(c->sysenter_cs & 0xfffc))
        unicorn.raise_exception_err_ra(c, GP, 0, CALLED_FROM());
    soft_set_rflags(s, soft_rflags(s) & ~(uint64_t)(FLAG_VM | FLAG_IF | FLAG_RF));
    c->regs[RSP] = c->efer & EFER_LMA ? c->sysenter_esp : (uint32_t)c->sysenter_esp;
    enter_ring0(s, c->sysenter_cs, c->sysenter_cs + 8, c->sysenter_eip);
}

struct soft_cpuid soft_cpuid_leaf(const struct soft_cpu *s, uint32_t function, uint32_t index)
{
    struct soft_cpuid found = {0};
    for (uint32_t i = 0; i < s->cpuid_count; i++)
        if (s->cpuid[i].function == function && (!s->cpuid[i].by_index || s->cpuid[i].index == index))
            found = s->cpuid[i];
    return found;
}

void soft_helper_cpuid(struct cpu *c)
{
    struct soft_cpu *s = soft_mine(c);
    if (!s) {
        theirs.helper_cpuid(c);
        return;
    }
    uint32_t function = c->regs[RAX];
    struct soft_cpuid found = soft_cpuid_leaf(s, function, c->regs[RCX]);
    if (function == 1) /* OSXSAVE is CR4's (Intel SDM vol. 2, CPUID) */
        found.ecx = (found.ecx & ~(1u << 27)) | (c->cr[4] & CR4_OSXSAVE ? 1u << 27 : 0);
    c->regs[RAX] = found.eax;
    c->regs[RBX] = found.ebx;
    c->regs[RCX] = found.ecx;
    c->regs[RDX] = found.edx;
}
