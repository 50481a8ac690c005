/* SPDX-License-Identifier: MIT */
/* The engine itself: libunicorn, the state of its processor, and how a CPU is made of it. */
#define _GNU_SOURCE
#include "softcpu.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#define TCG_BUFFER (16u << 20) /* else every CPU takes 1 GiB of addresses */
#define PORT_BREAKPOINT (0x400 | 2u << 28 | 1u << 7) /* DR3: any access to a port of one byte (Intel SDM vol. 3, 17.2.4) */

struct unicorn_api unicorn;

static const struct {
    const char *name;
    size_t offset;
} SYMBOLS[] = {
#define SYMBOL(name) {"uc_" #name, offsetof(struct unicorn_api, name)}
    SYMBOL(version), SYMBOL(open), SYMBOL(close), SYMBOL(strerror), SYMBOL(ctl), SYMBOL(reg_read), SYMBOL(reg_write),
    SYMBOL(mem_map_ptr), SYMBOL(mmio_map), SYMBOL(mem_unmap), SYMBOL(mem_protect), SYMBOL(emu_start), SYMBOL(emu_stop),
    SYMBOL(hook_add), SYMBOL(hook_del), SYMBOL(context_alloc), SYMBOL(context_free), SYMBOL(context_size),
    SYMBOL(context_save), SYMBOL(context_restore),
};

/* Look the library's functions up; 0 when it cannot be loaded or lacks one. */
int soft_load_unicorn(const char *path)
{
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library)
        return 0;
    for (size_t i = 0; i < sizeof SYMBOLS / sizeof SYMBOLS[0]; i++) {
        void *symbol = dlsym(library, SYMBOLS[i].name);
        if (!symbol)
            return 0;
        memcpy((char *)&unicorn + SYMBOLS[i].offset, &symbol, sizeof symbol);
    }
    return 1;
}

/* Major, minor, patch and extra number, a byte each. */
unsigned soft_unicorn_version(void)
{
    return unicorn.version(NULL, NULL);
}

const char *soft_strerror(int error)
{
    return unicorn.strerror(error);
}

/* State */

int soft_reg_read(struct soft_cpu *s, int regid, void *value)
{
    return unicorn.reg_read(s->engine, regid, value);
}

int soft_reg_write(struct soft_cpu *s, int regid, const void *value)
{
    return unicorn.reg_write(s->engine, regid, value);
}

uint64_t soft_get(struct soft_cpu *s, int regid)
{
    uint64_t value = 0;
    unicorn.reg_read(s->engine, regid, &value);
    return value;
}

void soft_set(struct soft_cpu *s, int regid, uint64_t value)
{
    unicorn.reg_write(s->engine, regid, &value);
}

struct cpu *soft_load_cpu(struct soft_cpu *s)
{
    unicorn.context_save(s->engine, s->context);
    return s->cpu;
}

/* Take the state in `cpu`; `flush` when it changes how addresses are translated. */
void soft_store_cpu(struct soft_cpu *s, int flush)
{
    s->cpu->hflags = soft_hflags(s->cpu);
    unicorn.context_restore(s->engine, s->context);
    if (flush)
        unicorn.ctl(s->engine, UC_CTL_FLUSH_TLB);
}

uint64_t soft_rflags(struct soft_cpu *s)
{
    uint32_t flags = 0;
    unicorn.reg_read(s->engine, UC_X86_REG_EFLAGS, &flags);
    return flags;
}

/*
 * While the engine runs, the arithmetic flags and DF lie apart from the rest; CC_OP_EFLAGS says that they are not to be
 * computed. When it begins to run it takes them from `eflags` (cpu_exec_enter): soft_settle_rflags() puts them there.
 */
void soft_set_rflags(struct soft_cpu *s, uint64_t flags)
{
    struct cpu *c = s->cpu;
    c->cc_op = CC_OP_EFLAGS;
    c->cc_src = flags & FLAGS_ARITHMETIC;
    c->df = flags & FLAG_DF ? -1 : 1;
    c->eflags = (flags & ~(uint64_t)(FLAGS_ARITHMETIC | FLAG_DF)) | 2;
}

void soft_settle_rflags(struct soft_cpu *s)
{
    uint32_t flags = soft_rflags(s);
    unicorn.reg_write(s->engine, UC_X86_REG_EFLAGS, &flags);
}

uint64_t soft_linear_rip(const struct cpu *c)
{
    uint64_t linear = c->segs[CS].base + c->rip;
    return c->hflags & HF_CS64 ? linear : (uint32_t)linear;
}

int soft_translate(struct soft_cpu *s, uint64_t linear, uint64_t *gpa)
{
    soft_load_cpu(s);
    return soft_walk(s, linear, SOFT_LOOK, 0, gpa).vector < 0;
}

/* Making one */

#define MARK_RAX 0x1122334455667788ull
#define MARK_RIP 0x00000abbccddee01ull
#define MARK_DR 0xd00d0000cafe0000ull

static uint8_t *find(uint8_t *at, uint8_t *end, const void *mark, size_t size)
{
    return memmem(at, end - at, mark, size);
}

/* Find the state inside a context by values that were set before, and check its neighbours. */
static int find_state(struct soft_cpu *s)
{
    uint64_t rax = MARK_RAX, dr[2] = {MARK_DR, MARK_DR + 1};
    uint8_t *context = (uint8_t *)s->context, *end = context + unicorn.context_size(s->engine);
    soft_set(s, UC_X86_REG_RAX, rax);
    soft_set(s, UC_X86_REG_RIP, MARK_RIP);
    for (int i = 0; i < 4; i++)
        soft_set(s, UC_X86_REG_DR0 + i, MARK_DR + i);
    unicorn.context_save(s->engine, s->context);
    uint8_t *state = find(context, end, &rax, sizeof rax), *debug = find(context, end, dr, sizeof dr);
    if (!state || !debug)
        return 0;
    s->cpu = (struct cpu *)state;
    s->error_code = (int32_t *)(debug - 16);
    s->is_int = (int32_t *)(debug - 12);
    s->old_exception = (int32_t *)(debug + 96);
    return s->cpu->rip == MARK_RIP && s->cpu->a20_mask == -1 && *s->old_exception == -1;
}

static int add_hooks(struct soft_cpu *s)
{
    static const struct {
        int type, instruction;
        void *callback;
    } HOOKS[] = {
        {UC_HOOK_INTR, 0, soft_on_interrupt},       {UC_HOOK_INSN_INVALID, 0, soft_on_invalid},
        {UC_HOOK_INSN, UC_X86_INS_IN, soft_on_in},  {UC_HOOK_INSN, UC_X86_INS_OUT, soft_on_out},
        {UC_HOOK_BLOCK, 0, soft_on_block},          {UC_HOOK_INSN, UC_X86_INS_SYSCALL, soft_on_syscall},
        {UC_HOOK_INSN, UC_X86_INS_SYSENTER, soft_on_sysenter}, {UC_HOOK_INSN, UC_X86_INS_CPUID, soft_on_cpuid},
        {UC_HOOK_MEM_WRITE_PROT, 0, soft_on_write_to_rom}, {UC_HOOK_EDGE_GENERATED, 0, soft_on_edge},
    };
    uc_hook hook;
    int error = 0;
    for (size_t i = 0; i < sizeof HOOKS / sizeof HOOKS[0] && !error; i++)
        error = unicorn.hook_add(s->engine, &hook, HOOKS[i].type, HOOKS[i].callback, s, (uint64_t)1, (uint64_t)0, HOOKS[i].instruction);
    return error;
}

struct soft_cpu *soft_open(int *error)
{
    struct soft_cpu *s = calloc(1, sizeof *s);
    *error = unicorn.open(UC_ARCH_X86, UC_MODE_64, &s->engine);
    if (!*error)
        *error = unicorn.ctl(s->engine, UC_CTL_CPU_MODEL, UC_CPU_X86_BROADWELL);
    if (!*error)
        *error = unicorn.ctl(s->engine, UC_CTL_TCG_BUFFER_SIZE, TCG_BUFFER);
    if (!*error)
        *error = unicorn.ctl(s->engine, UC_CTL_EXITS_ENABLED, 1);
    if (!*error)
        *error = unicorn.context_alloc(s->engine, &s->context);
    if (!*error)
        *error = unicorn.context_alloc(s->engine, &s->before_probe);
    if (!*error && !find_state(s))
        *error = -1;
    if (!*error)
        *error = add_hooks(s);
    if (*error) {
        soft_close(s);
        return NULL;
    }
    s->injected = s->irq_waiting = s->raised = -1;
    s->leaving = s->passing = NOWHERE;
    s->guest_dr[6] = DR6_FIXED;
    s->guest_dr[7] = 0x400;
    soft_set(s, UC_X86_REG_DR0 + 7, PORT_BREAKPOINT);
    soft_arm_port_stop(s, NOWHERE);
    soft_load_cpu(s);
    s->cpu->hflags2 |= HF2_GIF;
    soft_store_cpu(s, 1);
    return s;
}

void soft_close(struct soft_cpu *s)
{
    if (!s)
        return;
    if (s->context)
        unicorn.context_free(s->context);
    if (s->before_probe)
        unicorn.context_free(s->before_probe);
    if (s->engine)
        unicorn.close(s->engine);
    free(s);
}
