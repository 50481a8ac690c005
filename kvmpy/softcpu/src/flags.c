/* SPDX-License-Identifier: MIT */
/* RFLAGS, which the engine computes only when somebody asks for it: from the last result, and which kind it was (cc_op). */
#include "softcpu.h"

/* Kinds of QEMU 5.0 (CCOp in its cpu.h); those with four sizes begin with that of a byte. */
enum { CC_DYNAMIC, CC_EFLAGS, CC_SUB = 14, CC_ADOX = 47, CC_ADCOX, CC_CLEAR, CC_POPCNT, CC_UNKNOWN = 0xffff };
/* Conditions, in the order of their opcodes, without the lowest bit, which negates (Intel SDM vol. 1, table B-1). */
enum { O, B, Z, BE, S, P, L, LE };

/*
 * Outside of a run `eflags` has all flags, for the engine takes them from there when it begins, and puts them there when it
 * ends (QEMU's cpu_exec_enter, cpu_exec_exit). While it runs the arithmetic ones and DF lie in cc_op, cc_src and df.
 */
uint64_t soft_rflags(struct soft_cpu *s)
{
    if (s->phase == OUTSIDE)
        return s->cpu->eflags | 2;
    uint32_t flags = 0;
    unicorn.reg_read(s->vm->engine, UC_X86_REG_EFLAGS, &flags);
    return flags;
}

void soft_set_rflags(struct soft_cpu *s, uint64_t flags)
{
    struct cpu *c = s->cpu;
    c->eflags = flags | 2;
    if (s->phase == OUTSIDE)
        return;
    c->cc_op = CC_EFLAGS;
    c->cc_src = flags & FLAGS_ARITHMETIC;
    c->df = flags & FLAG_DF ? -1 : 1;
    c->eflags &= ~(uint64_t)(FLAGS_ARITHMETIC | FLAG_DF);
}

/* Whether the engine computes all flags for this condition, and goes on with CC_EFLAGS (QEMU's gen_prepare_cc). */
static int computes_flags(uint32_t kind, uint32_t condition)
{
    switch (condition) {
    case O:
        return kind < CC_ADOX;
    case B:
        return 0;
    case Z:
    case S:
        return kind == CC_DYNAMIC;
    case P:
        return 1;
    default:
        return kind < CC_SUB || kind >= CC_SUB + 4;
    }
}

/*
 * Put RIP and the flags in step with the instruction that a place in translated code belongs to. The engine knows the kind of
 * the result in front of it; but SETcc may have computed the flags before its store meets a device or a fault.
 */
bool soft_cpu_restore_state(void *cpu, uintptr_t code, bool will_exit)
{
    struct soft_vm *vm = soft_here();
    if (!vm || vm->engine_cpu != cpu)
        return theirs.cpu_restore_state(cpu, code, will_exit);
    struct cpu *c = vm->state;
    uint32_t kind = c->cc_op;
    c->cc_op = CC_UNKNOWN;
    bool found = theirs.cpu_restore_state(cpu, code, will_exit);
    int is_dynamic = c->cc_op == CC_UNKNOWN;
    if (is_dynamic)
        c->cc_op = kind;
    if (!found)
        return false;
    if (will_exit && vm->runner->kept_at == c->rip && soft_keeps_flags(vm->runner)) {
        soft_set_rflags(vm->runner, vm->runner->kept_flags);
        return true;
    }
    struct soft_instruction i = soft_decode(vm->runner);
    if ((i.second & 0xf0) == 0x90 && computes_flags(is_dynamic ? CC_DYNAMIC : c->cc_op, i.second >> 1 & 7))
        c->cc_op = CC_EFLAGS;
    return true;
}

/* PUSHF: VM and RF are 0 in what it stores (Intel SDM vol. 2, PUSHF). */
uint64_t soft_helper_read_eflags(struct cpu *c)
{
    uint64_t flags = theirs.helper_read_eflags(c);
    return soft_mine(c) ? flags & ~(uint64_t)(FLAG_RF | FLAG_VM) : flags;
}
