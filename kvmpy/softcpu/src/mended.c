/* SPDX-License-Identifier: MIT */
/*
 * Instructions that the engine gets wrong, mended as they are translated. Which they are, and how each is mended, is told by
 * their bytes: some the engine is shown as others, some are done here, some get a check that it does not make.
 */
#include "softcpu.h"

#include <string.h>

#define MOST_INSTRUCTIONS 64 /* of a block */
#define PREFIX_LIMIT 14
#define ALIGNED_16 (4u << 4) /* of an access's kind: QEMU's MO_ALIGN_16 */

enum {
    P_66 = 1,
    P_REP = 2,
    P_REPNE = 4,
    P_LOCK = 8,
    P_REX = 16,
    P_REX_W = 32,
    P_67 = 64,
};
enum { MAP_ONE, MAP_0F, MAP_0F38, MAP_0F3A };

/* An instruction up to its ModRM byte (Intel SDM vol. 2, 2.1). */
struct code {
    uint32_t prefixes, at_66; /* P_, and where the last 66 lies */
    uint32_t map;
    int is_64;
    uint8_t opcode, modrm, rex;
    uint32_t length; /* with the ModRM byte */
};

static int has_memory(const struct code *i)
{
    return i->modrm < 0xc0;
}

static uint32_t reg_of(const struct code *i)
{
    return i->modrm >> 3 & 7;
}

static uint32_t prefix(uint8_t byte)
{
    switch (byte) {
    case 0x66:
        return P_66;
    case 0x67:
        return P_67;
    case 0xf0:
        return P_LOCK;
    case 0xf2:
        return P_REPNE;
    case 0xf3:
        return P_REP;
    default:
        return 0;
    }
}

static struct code decode(const uint8_t *bytes, int is_64)
{
    struct code i = {.is_64 = is_64};
    uint32_t at = 0;
    for (; at < PREFIX_LIMIT; at++) {
        uint8_t byte = bytes[at];
        if (byte == 0x66)
            i.at_66 = at;
        if (is_64 && (byte & 0xf0) == 0x40)
            i.rex = byte;
        else if (memchr("\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3", byte, 11))
            i.rex = 0; /* it counts only in front of the opcode */
        else
            break;
        i.prefixes |= i.rex ? 0 : prefix(byte);
    }
    if (i.rex)
        i.prefixes |= P_REX | (i.rex & 8 ? P_REX_W : 0);
    i.opcode = bytes[at++];
    if (i.opcode == 0x0f) {
        i.map = bytes[at] == 0x38 ? MAP_0F38 : bytes[at] == 0x3a ? MAP_0F3A : MAP_0F;
        at += i.map != MAP_0F;
        i.opcode = bytes[at++];
    }
    i.modrm = bytes[at++];
    i.length = at;
    return i;
}

/* Whether LOCK may stand before it: it reads and writes one operand in memory (Intel SDM vol. 2, LOCK). */
static int is_lockable(const struct code *i)
{
    uint32_t reg = reg_of(i);
    if (!has_memory(i))
        return 0;
    if (i->map == MAP_0F)
        switch (i->opcode) {
        case 0xab: case 0xb3: case 0xbb: case 0xb0: case 0xb1: case 0xc0: case 0xc1:
            return 1;
        case 0xba:
            return reg >= 5;
        case 0xc7:
            return reg == 1;
        default:
            return 0;
        }
    if (i->map != MAP_ONE)
        return 0;
    if (i->opcode < 0x38)
        return (i->opcode & 7) < 2;
    switch (i->opcode) {
    case 0x80: case 0x81: case 0x82: case 0x83:
        return reg != 7;
    case 0x86: case 0x87:
        return 1;
    case 0xf6: case 0xf7:
        return reg == 2 || reg == 3;
    case 0xfe: case 0xff:
        return reg < 2;
    default:
        return 0;
    }
}

/* There is no AVX: VEX, which LES and LDS of a register would be, is no instruction (Intel SDM vol. 2, 2.3). */
static int is_vex(const struct code *i, int is_64)
{
    return i->map == MAP_ONE && (i->opcode == 0xc4 || i->opcode == 0xc5) && (is_64 || !has_memory(i));
}

/* Whether it has an operand of 16 bytes in memory that has to be aligned (Intel SDM vol. 2, and vol. 1, 10.4.1.1). */
static int is_aligned(const struct code *i)
{
    int none = !(i->prefixes & (P_66 | P_REP | P_REPNE)), packed = i->prefixes & P_66 && !(i->prefixes & (P_REP | P_REPNE));
    uint8_t op = i->opcode;
    if (!has_memory(i) || i->map == MAP_ONE)
        return 0;
    if (i->map == MAP_0F38)
        return packed && (op <= 0x0b || op == 0x10 || op == 0x14 || op == 0x15 || op == 0x17 || (op >= 0x1c && op <= 0x1e) ||
                          (op >= 0x28 && op <= 0x2b) || (op >= 0x37 && op <= 0x41) || (op >= 0xdb && op <= 0xdf));
    if (i->map == MAP_0F3A)
        return packed && (op == 0x08 || op == 0x09 || (op >= 0x0c && op <= 0x0f) || (op >= 0x40 && op <= 0x44) || op == 0xdf);
    switch (op) {
    case 0x12: case 0x16:
        return !!(i->prefixes & P_REP);
    case 0x14: case 0x15: case 0x28: case 0x29: case 0x2b: case 0xc2: case 0xc6:
    case 0x51: case 0x54: case 0x55: case 0x56: case 0x57: case 0x58: case 0x59: case 0x5c: case 0x5d: case 0x5e: case 0x5f:
        return none || packed;
    case 0x52: case 0x53:
        return none;
    case 0x5a:
        return packed;
    case 0x5b:
        return !(i->prefixes & P_REPNE);
    case 0x70:
        return !none;
    case 0x7c: case 0x7d: case 0xd0:
        return packed || i->prefixes & P_REPNE;
    case 0xe6:
        return packed || i->prefixes & P_REPNE;
    case 0x6e: case 0x7e: case 0xc4: case 0xd6:
        return 0;
    default:
        return packed && ((op >= 0x60 && op <= 0x7f) || op >= 0xd1);
    }
}

/* A near branch in 64-bit code, where 66 means nothing (Intel SDM vol. 2, CALL, JMP, RET, Jcc, on Intel's processors). */
static int is_near_branch(const struct code *i)
{
    uint32_t reg = reg_of(i);
    if (i->map == MAP_0F)
        return (i->opcode & 0xf0) == 0x80;
    return i->map == MAP_ONE && (i->opcode == 0xc2 || i->opcode == 0xc3 || i->opcode == 0xe8 || i->opcode == 0xe9 ||
                                 (i->opcode == 0xff && (reg == 2 || reg == 4)));
}

/* POPCNT, CRC32, whose size the engine takes from 66 alone. */
static int is_sized_by_66(const struct code *i)
{
    return (i->map == MAP_0F && i->opcode == 0xb8 && i->prefixes & P_REP) ||
           (i->map == MAP_0F38 && i->opcode == 0xf1 && i->prefixes & P_REPNE);
}

/* CMPPS and the like: of the predicate a processor without AVX looks at three bits, the engine raises #UD. */
static int has_predicate(const struct code *i)
{
    return i->map == MAP_0F && i->opcode == 0xc2;
}

/* How many bytes there are between the ModRM byte and what follows its operand (Intel SDM vol. 2, tables 2-1 and 2-2). */
static uint32_t operand_length(const struct code *i, const uint8_t *bytes, int is_16)
{
    uint32_t mod = i->modrm >> 6, rm = i->modrm & 7, wide = is_16 ? 2 : 4;
    if (mod == 3)
        return 0;
    uint32_t sib = !is_16 && rm == 4, base = sib ? bytes[i->length] & 7 : rm;
    if (mod == 0)
        return sib + (base == (is_16 ? 6 : 5) ? wide : 0);
    return sib + (mod == 1 ? 1 : wide);
}

/* LOOPE, LOOPNE: the engine loses the flags where the count runs out. */
static int is_loop(const struct code *i)
{
    return i->map == MAP_ONE && (i->opcode & 0xfe) == 0xe0;
}

/* What writes flags in front of its result, whose store may fault: the flags are kept. */
static int is_flags_before_store(const struct code *i)
{
    uint32_t reg = reg_of(i);
    if (!has_memory(i))
        return 0;
    if (i->map == MAP_0F)
        return i->opcode == 0xa4 || i->opcode == 0xa5 || i->opcode == 0xac || i->opcode == 0xad;
    if (i->map != MAP_ONE)
        return 0;
    switch (i->opcode) {
    case 0x10: case 0x11: case 0x18: case 0x19: case 0xc0: case 0xc1: case 0xd0: case 0xd1: case 0xd2: case 0xd3:
        return 1;
    case 0x80: case 0x81: case 0x82: case 0x83:
        return reg == 2 || reg == 3;
    case 0xf6: case 0xf7:
        return reg == 3;
    default:
        return 0;
    }
}

static int keeps_flags(const struct code *i)
{
    return is_loop(i) || is_flags_before_store(i);
}

/* REPE and REPNE, CMPS and SCAS: with a count of 0 the engine loses flags that are pending, as none are in front of a block. */
static int wants_a_block(const struct code *i)
{
    return i->map == MAP_ONE && i->prefixes & (P_REP | P_REPNE) && memchr("\xa6\xa7\xae\xaf", i->opcode, 4);
}

/* What is done here, in place of SYSCALL, as which it is shown. */

static uint32_t rm_of(const struct code *i)
{
    return (i->modrm & 7) | (i->rex & 1) << 3;
}

static int is_lahf(const struct code *i)
{
    return i->map == MAP_ONE && (i->opcode & 0xfe) == 0x9e && i->prefixes & P_REX;
}

static int is_cmpxchg32(const struct code *i)
{
    return i->map == MAP_0F && i->opcode == 0xb1 && !has_memory(i) && !(i->prefixes & (P_66 | P_REX_W));
}

/* SMSW of a register, where its operand is not of 16 bits. */
static int is_smsw(const struct code *i, uint32_t hflags)
{
    int is_32 = (hflags & HF_CS64) || (hflags & HF_CS32);
    return i->map == MAP_0F && i->opcode == 0x01 && !has_memory(i) && reg_of(i) == 4 &&
           (i->prefixes & P_REX_W || is_32 == !(i->prefixes & P_66));
}

static int is_ours(const struct code *i, uint32_t hflags)
{
    return is_lahf(i) || (is_cmpxchg32(i) && hflags & HF_CS64) || is_smsw(i, hflags);
}

static void do_lahf(struct soft_cpu *s, const struct code *i)
{
    uint64_t *rax = &s->cpu->regs[RAX], flags = soft_rflags(s), mask = FLAGS_ARITHMETIC & 0xff;
    if (i->opcode == 0x9f)
        *rax = (*rax & ~0xff00ull) | (flags & mask) << 8 | 0x200;
    else
        soft_set_rflags(s, (flags & ~mask) | (*rax >> 8 & mask));
}

/* The destination is written whole only where the comparison holds. Flags as of CMP (Intel SDM vol. 2, CMPXCHG). */
static void do_cmpxchg32(struct soft_cpu *s, const struct code *i)
{
    uint64_t *regs = s->cpu->regs, *to = &regs[rm_of(i)];
    uint32_t a = regs[RAX], b = *to, difference = a - b;
    uint64_t flags = soft_rflags(s) & ~(uint64_t)FLAGS_ARITHMETIC;
    flags |= (a < b) | (!__builtin_parity(difference & 0xff)) << 2 | ((a ^ b ^ difference) & 0x10) | (!difference) << 6 |
             (difference >> 31) << 7 | (((a ^ b) & (a ^ difference)) >> 31) << 11;
    if (!difference)
        *to = (uint32_t)regs[reg_of(i) | (i->rex & 4) << 1];
    else
        regs[RAX] = b;
    soft_set_rflags(s, flags);
}

static void do_smsw(struct soft_cpu *s, const struct code *i)
{
    s->cpu->regs[rm_of(i)] = i->prefixes & P_REX_W ? s->cpu->cr[0] : (uint32_t)s->cpu->cr[0];
}

/* The instruction at RIP, if it is shown as SYSCALL; 0 when it is one. */
int soft_do_instead(struct soft_cpu *s)
{
    uint8_t bytes[16] = {0};
    soft_look(s, soft_linear_rip(s->cpu), bytes, 15);
    struct code i = decode(bytes, !!(s->cpu->hflags & HF_CS64));
    if (!is_ours(&i, s->cpu->hflags))
        return 0;
    if (is_lahf(&i)) {
        do_lahf(s, &i);
        i.length--; /* it has no ModRM byte */
    } else if (is_cmpxchg32(&i)) {
        do_cmpxchg32(s, &i);
    } else {
        do_smsw(s, &i);
    }
    soft_retire(s, i.length);
    return 1;
}

/* Whether the instruction at RIP does. */
int soft_keeps_flags(struct soft_cpu *s)
{
    uint8_t bytes[16] = {0};
    soft_look(s, soft_linear_rip(s->cpu), bytes, 15);
    struct code i = decode(bytes, !!(s->cpu->hflags & HF_CS64));
    return keeps_flags(&i);
}

/* Translation */

static void show(struct soft_mended *m, const void *bytes, uint32_t at, uint32_t count)
{
    m->shown_at += at;
    m->shown_count = count;
    memcpy(m->shown, bytes, count);
}

static void show_predicate(struct soft_mended *m, const struct code *i, const uint8_t *bytes, int is_16)
{
    uint32_t at = i->length + operand_length(i, bytes, is_16 != (!i->is_64 && i->prefixes & P_67));
    uint8_t predicate = bytes[at] & 7;
    show(m, &predicate, at, 1);
}

static void mend(struct soft_vm *vm, uint64_t pc)
{
    struct soft_mended *m = &vm->mended;
    uint32_t hflags = vm->state->hflags;
    int is_64 = !!(hflags & HF_CS64);
    uint8_t bytes[16] = {0};
    soft_look(vm->runner, pc, bytes, 15);
    struct code i = decode(bytes, is_64);
    *m = (struct soft_mended){.translate = m->translate, .shown_at = pc};
    if (is_vex(&i, is_64) || (i.prefixes & P_LOCK && !is_lockable(&i)))
        show(m, "\x0f\x0b", 0, 2); /* UD2 */
    else if (is_ours(&i, hflags))
        show(m, "\x0f\x05", 0, 2); /* SYSCALL */
    else if (i.prefixes & P_66 && is_64 && is_near_branch(&i))
        show(m, "\x3e", i.at_66, 1);
    else if (i.prefixes & P_66 && is_sized_by_66(&i) && (i.prefixes & P_REX_W || !(hflags & (HF_CS64 | HF_CS32))))
        show(m, i.prefixes & P_REP ? "\xf3" : "\xf2", i.at_66, 1);
    else if (has_predicate(&i))
        show_predicate(m, &i, bytes, !(hflags & (HF_CS64 | HF_CS32)));
    m->is_aligned = is_aligned(&i);
    m->keeps_flags = keeps_flags(&i);
    m->begins_block = m->keeps_flags || wants_a_block(&i);
}

/* What the engine knows of a block while it translates it, and the functions that do (QEMU's translator.h). */
struct soft_block {
    void *translated;
    uint64_t first, next; /* linear addresses */
    int is_ended, count, most;
};
struct soft_translator {
    void (*init)(void), (*start)(void), (*start_instruction)(void), (*check)(void);
    void (*translate)(struct soft_block *block, void *cpu);
    void (*stop)(void), (*sync)(void);
};
enum { ENDED_BEFORE = 1 }; /* QEMU's DISAS_TOO_MANY: the block ends here, and goes on with another */

/* Make a call of helper_stgi(), of which no instruction of ours makes use. */
static void call_in_front(struct soft_vm *vm)
{
    char *tcg = *(char **)((char *)vm->engine + UC_TCG);
    void *state = tcg + *(uintptr_t *)(tcg + TCG_STATE);
    unicorn.tcg_gen_callN(tcg, soft_helper_stgi, NULL, 1, &state);
}

/* In front of an instruction that keeps the flags: they are computed, and are those of a fault in it. */
void soft_helper_stgi(struct cpu *c)
{
    struct soft_cpu *s = soft_mine(c);
    if (!s) {
        theirs.helper_stgi(c);
        return;
    }
    s->kept_at = NOWHERE;
    soft_cpu_restore_state(s->vm->engine_cpu, CALLED_FROM(), true);
    s->kept_flags = soft_rflags(s);
    s->kept_at = c->rip;
    soft_set_rflags(s, s->kept_flags);
}

static void translate_instruction(struct soft_block *block, void *cpu)
{
    struct soft_vm *vm = soft_here();
    mend(vm, block->next);
    if (vm->mended.begins_block && block->next != block->first) {
        block->is_ended = ENDED_BEFORE;
        return;
    }
    if (vm->mended.keeps_flags)
        call_in_front(vm);
    vm->mended.translate(block, cpu);
}

/*
 * A block is translated. Some instructions of the engine's lose a temporary variable or two of the block's 512, which nobody
 * counts: 512 times FADD, as many as a block may have, write behind them. (All that can be encoded were tried: the most is 2.3.)
 */
void soft_translator_loop(const struct soft_translator *functions, struct soft_block *block, void *cpu, void *translated, int most)
{
    struct soft_vm *vm = soft_here();
    if (!vm || vm->engine_cpu != cpu) {
        theirs.translator_loop(functions, block, cpu, translated, most);
        return;
    }
    struct soft_translator ours = *functions;
    vm->mended.translate = ours.translate;
    ours.translate = translate_instruction;
    theirs.translator_loop(&ours, block, cpu, translated, most > MOST_INSTRUCTIONS ? MOST_INSTRUCTIONS : most);
    vm->mended.shown_count = 0;
}

/* The engine reads a byte of code. */
uint32_t soft_cpu_ldub_code(struct cpu *c, uint64_t linear)
{
    struct soft_cpu *s = soft_mine(c);
    uint32_t byte = theirs.cpu_ldub_code(c, linear);
    if (!s || linear - s->vm->mended.shown_at >= s->vm->mended.shown_count)
        return byte;
    return s->vm->mended.shown[linear - s->vm->mended.shown_at];
}

/* It makes code for an access of 8 bytes; of 16 this is the first half. */
static uint32_t aligned(uint32_t kind)
{
    struct soft_vm *vm = soft_here();
    if (!vm || !vm->mended.is_aligned)
        return kind;
    vm->mended.is_aligned = 0;
    return kind | ALIGNED_16;
}

void soft_tcg_gen_qemu_ld_i64(void *tcg, uintptr_t value, uintptr_t address, uintptr_t mmu, uint32_t kind)
{
    theirs.tcg_gen_qemu_ld_i64(tcg, value, address, mmu, aligned(kind));
}

void soft_tcg_gen_qemu_st_i64(void *tcg, uintptr_t value, uintptr_t address, uintptr_t mmu, uint32_t kind)
{
    theirs.tcg_gen_qemu_st_i64(tcg, value, address, mmu, aligned(kind));
}

/* An operand is not aligned: what QEMU's CPUClass.do_unaligned_access is called for. */
static void on_misaligned(void *cpu, uint64_t linear, int access, int mmu, uintptr_t code)
{
    (void)linear, (void)access, (void)mmu;
    unicorn.raise_exception_err_ra((struct cpu *)((char *)cpu + CPU_STATE_SIZE), GP, 0, code);
}

void soft_mend(struct soft_vm *vm)
{
    *(void **)(*(char **)(vm->engine_cpu + CPU_CLASS) + CLASS_UNALIGNED) = on_misaligned;
}

/* Branches */

/* RIP has become one that cannot be: the instruction that did it faults, and its stack pointer is as before. */
static void check_target(struct soft_cpu *s, uintptr_t code)
{
    struct cpu *c = s->cpu;
    uint8_t bytes[16] = {0};
    soft_cpu_restore_state(s->vm->engine_cpu, code, true);
    soft_look(s, c->rip, bytes, 15);
    struct code i = decode(bytes, 1);
    if (i.map == MAP_ONE && (i.opcode & 0xfe) == 0xc2)
        c->regs[RSP] -= 8 + (i.opcode == 0xc2 ? bytes[i.length - 1] | bytes[i.length] << 8 : 0);
    else if (i.map == MAP_ONE && i.opcode == 0xff && reg_of(&i) == 2)
        c->regs[RSP] += 8;
    unicorn.raise_exception_err_ra(c, GP, 0, 0);
}

/* A branch looks for the block where it goes. */
const void *soft_helper_lookup_tb_ptr(struct cpu *c)
{
    struct soft_cpu *s;
    if (!soft_is_canonical(c->rip) && (s = soft_mine(c)))
        check_target(s, CALLED_FROM());
    return theirs.helper_lookup_tb_ptr(c);
}

/* The trap behind an instruction, which may have been one. */
void soft_helper_single_step(struct cpu *c)
{
    struct soft_cpu *s;
    if (!soft_is_canonical(c->rip) && (s = soft_mine(c)))
        check_target(s, CALLED_FROM());
    theirs.helper_single_step(c);
}

/* Flags of instructions that the engine loses */

#define IN_STEP(s, c) \
    if (s) \
    soft_cpu_restore_state((s)->vm->engine_cpu, CALLED_FROM(), true)

#define COMPARE_HELPER(name) \
    void soft_helper_##name(struct cpu *c, uint64_t address) \
    { \
        struct soft_cpu *s = soft_mine(c); \
        IN_STEP(s, c); \
        theirs.helper_##name(c, address); \
    }
COMPARE_HELPER(cmpxchg8b)
COMPARE_HELPER(cmpxchg8b_unlocked)
COMPARE_HELPER(cmpxchg16b)
COMPARE_HELPER(cmpxchg16b_unlocked)

/* FCOMI, FUCOMI: OF, SF and AF are cleared (Intel SDM vol. 2, FCOMI). */
#define FCOMI_HELPER(name) \
    void soft_helper_##name(struct cpu *c) \
    { \
        theirs.helper_##name(c); \
        if (soft_mine(c)) \
            c->cc_src &= FLAG_CF | FLAG_PF | FLAG_ZF; \
    }
FCOMI_HELPER(fcomi_ST0_FT0)
FCOMI_HELPER(fucomi_ST0_FT0)
