/* SPDX-License-Identifier: MIT */
/* System calls, which Unicorn only announces, and CPUID, which the table answers. */
#include "softcpu.h"

#define MSR_STAR 0xc0000081
#define MSR_LSTAR 0xc0000082
#define MSR_CSTAR 0xc0000083
#define MSR_FMASK 0xc0000084
#define MSR_SYSENTER_CS 0x174
#define MSR_SYSENTER_ESP 0x175
#define MSR_SYSENTER_EIP 0x176

#define FLAT_CODE 0x809b00u
#define FLAT_DATA 0xc09300u

static uint64_t msr(struct soft_cpu *s, uint32_t index)
{
    struct uc_x86_msr value = {index, 0};
    unicorn.reg_read(s->engine, UC_X86_REG_MSR, &value);
    return value.value;
}

/* A flat segment of a system call (Intel SDM vol. 2, SYSCALL, SYSENTER). */
static void flat(struct segment *seg, uint32_t selector, uint32_t flags)
{
    *seg = (struct segment){selector & 0xfffc, 0, 0xffffffff, flags};
}

/* Unicorn calls the hook of a system call, adds the instruction's two bytes to RIP, and leaves the rest to us. */
static void go_to(struct soft_cpu *s, uint64_t target)
{
    s->cpu->rip = s->cpu->efer & EFER_LMA ? target - 2 : (uint32_t)(target - 2);
    soft_store_cpu(s, 0);
}

static void refuse(struct soft_cpu *s, int vector)
{
    s->shut_down = !soft_deliver(s, vector, vector == GP, 0, EVENT_FAULT);
    go_to(s, s->cpu->rip);
    if (s->shut_down)
        unicorn.emu_stop(s->engine);
}

void soft_on_syscall(uc_engine *engine, void *data)
{
    struct soft_cpu *s = data;
    struct cpu *c = soft_load_cpu(s);
    uint64_t flags = soft_rflags(s), star = msr(s, MSR_STAR), mask = msr(s, MSR_FMASK), target;
    int wide = !!(c->efer & EFER_LMA);
    (void)engine;
    if (!(c->efer & EFER_SCE)) {
        refuse(s, UD);
        return;
    }
    if (wide) {
        c->regs[RCX] = c->rip + 2;
        c->regs[R11] = flags & ~(uint64_t)FLAG_RF;
        target = msr(s, c->hflags & HF_CS64 ? MSR_LSTAR : MSR_CSTAR);
    } else {
        c->regs[RCX] = (uint32_t)(c->rip + 2);
        target = (uint32_t)star;
        mask = FLAG_IF | FLAG_VM;
    }
    soft_set_rflags(s, flags & ~(mask | FLAG_RF));
    flat(&c->segs[CS], star >> 32, FLAT_CODE | (wide ? DESC_L : DESC_DB));
    flat(&c->segs[SS], (star >> 32) + 8, FLAT_DATA);
    go_to(s, target);
}

void soft_on_sysenter(uc_engine *engine, void *data)
{
    struct soft_cpu *s = data;
    struct cpu *c = soft_load_cpu(s);
    uint64_t selector = msr(s, MSR_SYSENTER_CS);
    int wide = !!(c->efer & EFER_LMA);
    (void)engine;
    if (!(selector & 0xfffc)) {
        refuse(s, GP);
        return;
    }
    soft_set_rflags(s, soft_rflags(s) & ~(uint64_t)(FLAG_VM | FLAG_IF | FLAG_RF));
    flat(&c->segs[CS], selector, FLAT_CODE | (wide ? DESC_L : DESC_DB));
    flat(&c->segs[SS], selector + 8, FLAT_DATA);
    c->regs[RSP] = msr(s, MSR_SYSENTER_ESP);
    go_to(s, msr(s, MSR_SYSENTER_EIP));
}

int soft_on_cpuid(uc_engine *engine, void *data)
{
    struct soft_cpu *s = data;
    uint32_t function = soft_get(s, UC_X86_REG_RAX), index = soft_get(s, UC_X86_REG_RCX);
    struct soft_cpuid none = {0}, *found = &none;
    (void)engine;
    for (uint32_t i = 0; i < s->cpuid_count; i++)
        if (s->cpuid[i].function == function && (!s->cpuid[i].by_index || s->cpuid[i].index == index))
            found = &s->cpuid[i];
    soft_set(s, UC_X86_REG_RAX, found->eax);
    soft_set(s, UC_X86_REG_RBX, found->ebx);
    soft_set(s, UC_X86_REG_RCX, found->ecx);
    soft_set(s, UC_X86_REG_RDX, found->edx);
    return 1;
}
