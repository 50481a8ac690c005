/* SPDX-License-Identifier: MIT */
/*
 * The software CPU: Unicorn executes, and what its hooks find becomes the exits that KVM would give.
 *
 * Exits are exact. A port access ends with a look at an I/O breakpoint (DR7 with CR4.DE), which QEMU's translation does
 * behind the access: the hook of the access arms it, so the engine stops right there and not at the end of the block. An
 * access to no memory is aborted, run alone to learn its pieces, and run again when they are answered. A kick is a flag that
 * the hook of every block reads; uc_emu_stop() from another thread would run instructions twice.
 */
#define _GNU_SOURCE
#include "softcpu.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#define TCG_BUFFER (16u << 20) /* else every CPU takes 1 GiB of addresses */
#define PHYSICAL_LIMIT (1ull << 48)
#define NOWHERE (~0ull)
#define PORT_BREAKPOINT (0x400 | 2u << 28 | 1u << 7) /* DR3: any access to a port of one byte (Intel SDM vol. 3, 17.2.4) */
#define MSR_STAR 0xc0000081
#define MSR_LSTAR 0xc0000082
#define MSR_CSTAR 0xc0000083
#define MSR_FMASK 0xc0000084
#define MSR_SYSENTER_CS 0x174
#define MSR_SYSENTER_ESP 0x175
#define MSR_SYSENTER_EIP 0x176
#define NMI_VECTOR 2
#define DR6_FIXED 0xffff0ff0u /* Intel SDM vol. 3, 17.2.3 */
#define DR6_BS (1u << 14)

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

static uint64_t get(struct soft_cpu *s, int regid)
{
    uint64_t value = 0;
    unicorn.reg_read(s->engine, regid, &value);
    return value;
}

static void set(struct soft_cpu *s, int regid, uint64_t value)
{
    unicorn.reg_write(s->engine, regid, &value);
}

static uint64_t msr(struct soft_cpu *s, uint32_t index)
{
    struct uc_x86_msr value = {index, 0};
    unicorn.reg_read(s->engine, UC_X86_REG_MSR, &value);
    return value.value;
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

/* The arithmetic flags and DF lie apart from the rest; CC_OP_EFLAGS says that they are not to be computed. */
void soft_set_rflags(struct soft_cpu *s, uint64_t flags)
{
    struct cpu *c = s->cpu;
    c->cc_op = CC_OP_EFLAGS;
    c->cc_src = flags & FLAGS_ARITHMETIC;
    c->df = flags & FLAG_DF ? -1 : 1;
    c->eflags = (flags & ~(uint64_t)(FLAGS_ARITHMETIC | FLAG_DF)) | 2;
}

int soft_translate(struct soft_cpu *s, uint64_t linear, uint64_t *gpa)
{
    soft_load_cpu(s);
    return soft_walk(s, linear, 0, 0, gpa).vector < 0;
}

/* Memory */

static void access(struct soft_cpu *s);
static void note_rest(struct soft_cpu *s, uint64_t gpa);

/* What the engine asks for, put together from the answers to what the instruction reads; the rest does not matter. */
static uint64_t on_mmio_read(uc_engine *engine, uint64_t offset, unsigned size, void *data)
{
    struct window *w = data;
    struct soft_cpu *s = w->s;
    uint64_t value = ~0ull;
    uint8_t *bytes = (uint8_t *)&value;
    (void)engine;
    for (uint32_t i = 0; i < s->piece_count && s->finishing; i++) {
        struct soft_piece *p = &s->pieces[i];
        for (uint32_t j = 0; j < size; j++) {
            uint64_t at = w->gpa + offset + j - p->gpa;
            if (!p->is_write && at < p->size)
                bytes[j] = p->value >> 8 * at;
        }
    }
    note_rest(s, w->gpa + offset);
    access(s);
    return value;
}

static void on_mmio_write(uc_engine *engine, uint64_t offset, unsigned size, uint64_t value, void *data)
{
    struct window *w = data;
    (void)engine, (void)size, (void)value;
    note_rest(w->s, w->gpa + offset);
    access(w->s);
}

int soft_add_region(struct soft_cpu *s, uint64_t gpa, uint64_t size, void *host, int readonly)
{
    if (s->region_count == SOFT_REGIONS)
        return -1;
    int error = unicorn.mem_map_ptr(s->engine, gpa, size, readonly ? UC_PROT_READ | UC_PROT_EXEC : UC_PROT_ALL, host);
    if (!error)
        s->regions[s->region_count++] = (struct soft_region){gpa, size, host, readonly};
    return error;
}

/* Where there is no memory, every access becomes an exit. */
int soft_map_rest(struct soft_cpu *s)
{
    uint64_t at = 0;
    while (at < PHYSICAL_LIMIT) {
        uint64_t next = PHYSICAL_LIMIT, behind = PHYSICAL_LIMIT;
        for (uint32_t i = 0; i < s->region_count; i++)
            if (s->regions[i].gpa >= at && s->regions[i].gpa < next) {
                next = s->regions[i].gpa;
                behind = next + s->regions[i].size;
            }
        if (next > at) {
            struct window *w = &s->windows[s->window_count++];
            *w = (struct window){s, at};
            int error = unicorn.mmio_map(s->engine, at, next - at, on_mmio_read, w, on_mmio_write, w);
            if (error)
                return error;
        }
        at = behind;
    }
    return 0;
}

/* The instruction at RIP */

uint64_t soft_linear_rip(const struct cpu *c)
{
    uint64_t linear = c->segs[CS].base + c->rip;
    return c->hflags & HF_CS64 ? linear : (uint32_t)linear;
}

struct instruction {
    uint8_t opcode;
    int is_rep, address_size; /* in bytes */
};

/* Prefixes and opcode of a port access: IN, OUT, INS, OUTS (Intel SDM vol. 2, 2.1.1). */
static struct instruction decode(struct soft_cpu *s)
{
    struct cpu *c = s->cpu;
    struct instruction found = {0, 0, c->hflags & HF_CS64 ? 8 : c->hflags & HF_CS32 ? 4 : 2};
    uint64_t at = soft_linear_rip(c);
    uint8_t byte = 0;
    for (int i = 0; i < 15; i++, at++) {
        if (soft_read(s, at, &byte, 1).vector >= 0)
            break;
        if (byte == 0xf2 || byte == 0xf3)
            found.is_rep = 1;
        else if (byte == 0x67)
            found.address_size = found.address_size == 4 ? 2 : 4;
        else if (byte != 0x66 && byte != 0x2e && byte != 0x36 && byte != 0x3e && byte != 0x26 && byte != 0x64 && byte != 0x65 &&
                 !((c->hflags & HF_CS64) && (byte & 0xf0) == 0x40))
            break;
    }
    found.opcode = byte;
    return found;
}

static void note_instruction(struct soft_cpu *s)
{
    struct cpu *c = soft_load_cpu(s);
    struct instruction i = decode(s);
    s->at = c->rip;
    s->rax = c->regs[RAX];
    s->rsi = c->regs[RSI];
    s->is_string = (i.opcode & 0xfc) == 0x6c;
    s->is_rep = s->is_string && i.is_rep;
    s->counter_mask = i.address_size == 8 ? ~0ull : i.address_size == 4 ? 0xffffffff : 0xffff;
}

/* Whether the I/O permission bitmap closes the port (Intel SDM vol. 1, 19.5.2). */
static int is_denied(struct soft_cpu *s, uint32_t port, uint32_t size)
{
    struct cpu *c = s->cpu;
    uint16_t base, bits;
    uint32_t type = c->tr.flags >> DESC_TYPE_SHIFT & 15;
    if (!(c->cr[0] & CR0_PE) || (!(c->eflags & FLAG_VM) && (c->hflags & HF_CPL) <= (c->eflags >> FLAG_IOPL_SHIFT & 3)))
        return 0;
    if ((type != 9 && type != 11) || c->tr.limit < 0x67 || soft_read(s, c->tr.base + 0x66, &base, 2).vector >= 0)
        return 1;
    uint32_t at = base + port / 8;
    if (at + 1 > c->tr.limit || soft_read(s, c->tr.base + at, &bits, 2).vector >= 0)
        return 1;
    return (bits >> (port & 7) & ((1u << size) - 1)) != 0;
}

/* Hooks */

static void stop(struct soft_cpu *s)
{
    s->stopped = 1;
    unicorn.emu_stop(s->engine);
}

static void arm_port_stop(struct soft_cpu *s, uint64_t port)
{
    s->port_stop = port != NOWHERE;
    set(s, UC_X86_REG_DR0 + 3, port);
}

static void port_exit(struct soft_cpu *s, uint32_t port, uint32_t size, uint64_t flags)
{
    s->io_size = size;
    s->exit = KVM_EXIT_IO | size << 8 | (uint64_t)(port & 0xffff) << 16 | flags;
}

static void on_out(uc_engine *engine, uint32_t port, int size, uint32_t value, void *data)
{
    struct soft_cpu *s = data;
    (void)engine;
    if (s->exit || s->stopped)
        return;
    note_instruction(s);
    s->denied = is_denied(s, port, size);
    s->pending = SOFT_OUT;
    value &= 0xffffffffu >> (32 - 8 * size);
    memcpy(s->io_data, &value, 4);
    port_exit(s, port, size, KVMPY_OUT | (uint64_t)value << 32);
    arm_port_stop(s, port);
}

static uint32_t on_in(uc_engine *engine, uint32_t port, int size, void *data)
{
    struct soft_cpu *s = data;
    uint64_t gpa;
    (void)engine;
    if (s->exit || s->stopped)
        return 0;
    if (s->pending == SOFT_INS) { /* it runs again, and this time goes through */
        uint32_t value;
        memcpy(&value, s->io_data, 4);
        s->pending = SOFT_DONE;
        return value;
    }
    note_instruction(s);
    s->denied = is_denied(s, port, size);
    memset(s->io_data, 0xff, sizeof s->io_data);
    if (s->is_string && !s->denied) {
        uint64_t target = s->cpu->segs[ES].base + (s->cpu->regs[RDI] & s->counter_mask);
        if (soft_walk(s, target, 1, s->cpu->hflags & HF_CPL ? 1 : 0, &gpa).vector >= 0)
            return 0; /* the store will fault, and nothing was read then */
        s->pending = SOFT_INS;
        port_exit(s, port, size, 0);
        unicorn.emu_stop(s->engine); /* which aborts the store, and the instruction with it */
        return 0;
    }
    s->pending = SOFT_IN;
    port_exit(s, port, size, 0);
    arm_port_stop(s, port);
    return 0;
}

/* The I/O breakpoint behind a port access: RIP is behind the instruction. */
static void port_stopped(struct soft_cpu *s)
{
    struct cpu *c;
    arm_port_stop(s, NOWHERE);
    if (!s->denied && !s->is_rep) {
        unicorn.emu_stop(s->engine);
        return;
    }
    c = soft_load_cpu(s);
    if (s->denied) {
        c->rip = s->at;
        c->regs[RAX] = s->rax;
        c->regs[RSI] = s->rsi;
        s->exit = 0;
        s->pending = SOFT_DONE;
        s->shut_down = !soft_deliver(s, GP, 1, 0, EVENT_FAULT);
    } else { /* QEMU looks before it counts, and takes the loop for done */
        uint64_t left = (c->regs[RCX] - 1) & s->counter_mask;
        c->regs[RCX] = s->counter_mask == 0xffff ? (c->regs[RCX] & ~0xffffull) | left : left;
        if (left)
            c->rip = s->at;
    }
    soft_store_cpu(s, 0);
    if (!s->denied || s->shut_down)
        unicorn.emu_stop(s->engine);
}

static void on_interrupt(uc_engine *engine, uint32_t vector, void *data)
{
    struct soft_cpu *s = data;
    (void)engine;
    if (vector == DB && s->port_stop) {
        port_stopped(s);
        return;
    }
    if (s->probing) {
        s->probe_failed = 1;
        unicorn.emu_stop(s->engine);
        return;
    }
    struct cpu *c = soft_load_cpu(s);
    int software = *s->is_int;
    uint8_t last = 0;
    if (software) { /* INT3, INTO and INT1 have one byte, INT n two */
        soft_read(s, soft_linear_rip(c) - 1, &last, 1);
        s->at = c->rip - (last == 0xcc || last == 0xce || last == 0xf1 ? 1 : 2);
    }
    int has_error = !software && (vector == DF || (vector >= TS && vector <= PF) || vector == AC);
    s->shut_down = !soft_deliver(s, vector, has_error, *s->error_code, software ? EVENT_SOFTWARE : EVENT_FAULT);
    soft_store_cpu(s, 0);
    if (s->shut_down)
        unicorn.emu_stop(s->engine);
}

static bool on_invalid(uc_engine *engine, void *data)
{
    struct soft_cpu *s = data;
    uint8_t code[3] = {0};
    (void)engine;
    if (s->probing) {
        s->probe_failed = 1;
        unicorn.emu_stop(s->engine);
        return true;
    }
    struct cpu *c = soft_load_cpu(s);
    soft_read(s, soft_linear_rip(c), code, 3);
    if (code[0] == 0x0f && code[1] == 0x01 && (code[2] == 0xc1 || code[2] == 0xd9) && !(c->hflags & HF_CPL)) {
        s->at = c->rip;
        s->pending = SOFT_HYPERCALL;
        s->exit = KVM_EXIT_HYPERCALL;
        unicorn.emu_stop(s->engine);
        return true;
    }
    s->shut_down = !soft_deliver(s, UD, 0, 0, EVENT_FAULT);
    soft_store_cpu(s, 0);
    if (s->shut_down)
        unicorn.emu_stop(s->engine);
    return true;
}

/* A flat segment of a system call (Intel SDM vol. 2, SYSCALL, SYSENTER). */
static void flat(struct segment *seg, uint32_t selector, uint32_t flags)
{
    *seg = (struct segment){selector & 0xfffc, 0, 0xffffffff, flags};
}

#define FLAT_CODE 0x809b00u
#define FLAT_DATA 0xc09300u

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

static void on_syscall(uc_engine *engine, void *data)
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

static void on_sysenter(uc_engine *engine, void *data)
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

static int on_cpuid(uc_engine *engine, void *data)
{
    struct soft_cpu *s = data;
    uint32_t function = get(s, UC_X86_REG_RAX), index = get(s, UC_X86_REG_RCX);
    struct soft_cpuid none = {0}, *found = &none;
    (void)engine;
    for (uint32_t i = 0; i < s->cpuid_count; i++)
        if (s->cpuid[i].function == function && (!s->cpuid[i].by_index || s->cpuid[i].index == index))
            found = &s->cpuid[i];
    set(s, UC_X86_REG_RAX, found->eax);
    set(s, UC_X86_REG_RBX, found->ebx);
    set(s, UC_X86_REG_RCX, found->ecx);
    set(s, UC_X86_REG_RDX, found->edx);
    return 1;
}

/* Between two blocks: the place to obey a kick, or to see whether an interrupt can be delivered. */
static void on_block(uc_engine *engine, uint64_t address, uint32_t size, void *data)
{
    struct soft_cpu *s = data;
    (void)engine;
    if (s->new_block || s->first_block) { /* of the first block the engine does not say that it is new */
        s->new_block = 0;
        if (soft_mark_block(s, address, size)) {
            stop(s);
            return;
        }
    }
    if (__atomic_load_n(&s->kicked, __ATOMIC_RELAXED) && !s->single)
        stop(s);
    else if (s->watching && !s->first_block)
        stop(s);
    s->first_block = 0;
}

static void on_breakpoint(uc_engine *engine, uint64_t address, uint32_t size, void *data)
{
    struct soft_cpu *s = data;
    (void)engine, (void)size;
    if (s->leaving == address || (s->single && !s->heeding)) {
        s->leaving = NOWHERE;
        return;
    }
    s->debug_pc = address;
    s->debug_dr6 = DR6_FIXED;
    for (uint32_t i = 0; i < s->breakpoint_count; i++)
        s->debug_dr6 |= s->breakpoints[i] == address ? 1u << i : 0;
    s->exit = KVM_EXIT_DEBUG;
    unicorn.emu_stop(s->engine);
}

/* A write to read-only memory exits like one to no memory, and changes nothing. */
static bool on_write_to_rom(uc_engine *engine, int type, uint64_t address, int size, int64_t value, void *data)
{
    struct soft_cpu *s = data;
    (void)engine, (void)type;
    soft_load_cpu(s);
    if (soft_walk(s, address, 1, 0, &s->rom_gpa).vector >= 0)
        s->rom_gpa = address;
    s->rom_size = size;
    s->mmio_gpa = s->rom_gpa;
    s->mmio_size = size;
    s->mmio_value = size == 8 ? (uint64_t)value : (uint64_t)value & ((1ull << 8 * size) - 1);
    s->pending = SOFT_ROM;
    s->exit = KVM_EXIT_MMIO | size << 8 | KVMPY_OUT;
    return false;
}

/* Running */

static void go(struct soft_cpu *s)
{
    if (s->stale_size) {
        unicorn.ctl(s->engine, UC_CTL_REMOVE_CACHE, s->stale_at, s->stale_at + s->stale_size);
        s->stale_size = 0;
    }
    s->exit = 0;
    s->stopped = 0;
    s->first_block = 1;
}

/* Execute until something happens, and return Unicorn's error. */
static int run_on(struct soft_cpu *s)
{
    go(s);
    return unicorn.emu_start(s->engine, get(s, UC_X86_REG_RIP), 0, 0, 0);
}

/* Execute one instruction. Code that was translated to run on does not count instructions: it must go. */
static int run_one(struct soft_cpu *s)
{
    uint64_t at = soft_linear_rip(soft_load_cpu(s));
    unicorn.ctl(s->engine, UC_CTL_REMOVE_CACHE, at, at + 1);
    go(s);
    s->single = 1;
    int error = unicorn.emu_start(s->engine, s->cpu->rip, 0, 0, 1);
    s->single = 0;
    return error;
}

static uint64_t mmio_exit(struct soft_cpu *s);
static uint64_t sensitive_exit(struct soft_cpu *s);

/* Turn the end of a run into an exit; 0 when the guest can go on. */
static uint64_t exit_of(struct soft_cpu *s, int error, int counted)
{
    if (s->shut_down)
        return KVM_EXIT_SHUTDOWN;
    if (s->exit == SOFT_ACCESS)
        return mmio_exit(s);
    if (s->exit == SOFT_SENSITIVE)
        return sensitive_exit(s);
    if (s->exit)
        return s->exit;
    if (s->stopped || (counted && !error))
        return 0;
    if (!error)
        return KVM_EXIT_HLT;
    s->engine_error = error;
    s->failed_at = get(s, UC_X86_REG_RIP);
    return KVM_EXIT_INTERNAL_ERROR;
}

static uint64_t sensitive_exit(struct soft_cpu *s)
{
    uint64_t exit;
    return soft_do_sensitive(s, &exit) ? exit : exit_of(s, run_one(s), 1);
}

/*
 * Accesses to no memory. The first aborts the instruction. It is then run alone, with answers that do not matter, to see
 * all that it reads; the state is put back; each read exits; and when all are answered it runs for good, and what it writes
 * exits behind it, as KVM does. What an instruction accesses is seen by hooks on memory, which are there only meanwhile: the
 * engine itself asks for aligned pieces of 4 bytes or 1, whatever the instruction does.
 */
static void access(struct soft_cpu *s)
{
    if (s->exit || s->stopped || s->probing || s->finishing)
        return;
    s->exit = SOFT_ACCESS;
    unicorn.emu_stop(s->engine);
}

static void note_piece(struct soft_cpu *s, uint64_t gpa, uint32_t size, int is_write, uint64_t value)
{
    uint64_t mask = size == 8 ? ~0ull : (1ull << 8 * size) - 1;
    if (!soft_host(s, gpa, size, 0) && s->piece_count < SOFT_PIECES && (s->probing || is_write))
        s->pieces[s->piece_count++] = (struct soft_piece){gpa, value & mask, size, is_write};
}

/* The engine asks a device for a piece in another page than the access began in: there is the rest. */
static void note_rest(struct soft_cpu *s, uint64_t gpa)
{
    if (s->rest.size && gpa >> 12 != s->rest.gpa) {
        note_piece(s, gpa & ~0xfffull, s->rest.size, s->rest.is_write, s->rest.value);
        s->rest.size = 0;
    }
}

/* The hook gives the physical address of the first byte. Where an access goes on in another page, note_rest() learns. */
static void on_access(uc_engine *engine, int type, uint64_t gpa, int size, int64_t value, void *data)
{
    struct soft_cpu *s = data;
    uint32_t in_page = 0x1000 - (gpa & 0xfff), first = in_page < (uint32_t)size ? in_page : (uint32_t)size;
    (void)engine;
    note_piece(s, gpa, first, type == UC_MEM_WRITE, (uint64_t)value);
    s->rest = (struct soft_piece){gpa >> 12, first < 8 ? (uint64_t)value >> 8 * first : 0, size - first, type == UC_MEM_WRITE};
}

static int run_one_watched(struct soft_cpu *s)
{
    uc_hook hook;
    s->rest.size = 0;
    unicorn.hook_add(s->engine, &hook, UC_HOOK_MEM_READ | UC_HOOK_MEM_WRITE, on_access, s, 1, 0);
    int error = run_one(s);
    unicorn.hook_del(s->engine, hook);
    return error;
}

static uint64_t exit_of_piece(struct soft_cpu *s, uint32_t number)
{
    struct soft_piece *p = &s->pieces[number];
    s->piece = number;
    s->mmio_gpa = p->gpa;
    s->mmio_size = p->size;
    s->mmio_value = p->value;
    s->pending = SOFT_MMIO;
    s->answer = ~0ull;
    return KVM_EXIT_MMIO | p->size << 8 | (p->is_write ? KVMPY_OUT : 0);
}

static void keep_pieces(struct soft_cpu *s, int writes)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < s->piece_count; i++)
        if (s->pieces[i].is_write == writes)
            s->pieces[kept++] = s->pieces[i];
    s->piece_count = kept;
}

/* Run the instruction for good; the reads are answered. */
static uint64_t finish_access(struct soft_cpu *s)
{
    s->pending = SOFT_DONE;
    s->finishing = 1;
    int error = run_one_watched(s);
    s->finishing = 0;
    keep_pieces(s, 1);
    uint64_t exit = exit_of(s, error, 1);
    if (exit || !s->piece_count)
        return exit;
    return exit_of_piece(s, 0);
}

static uint64_t mmio_exit(struct soft_cpu *s)
{
    s->probing = 1;
    s->probe_failed = 0;
    s->piece_count = 0;
    run_one_watched(s); /* which saved the state that is put back */
    s->probing = 0;
    unicorn.context_restore(s->engine, s->context);
    keep_pieces(s, 0);
    return s->piece_count && !s->probe_failed ? exit_of_piece(s, 0) : finish_access(s);
}

/* The access to ROM, carried out with what was there put back behind it. */
static uint64_t finish_rom(struct soft_cpu *s)
{
    uint8_t before[16], *host = soft_host(s, s->rom_gpa, s->rom_size, 0);
    uint64_t page = s->rom_gpa & ~0xfffull;
    s->pending = SOFT_DONE;
    if (!host)
        return 0;
    memcpy(before, host, s->rom_size);
    unicorn.mem_protect(s->engine, page, 0x1000, UC_PROT_ALL);
    int error = run_one(s);
    memcpy(host, before, s->rom_size);
    unicorn.mem_protect(s->engine, page, 0x1000, UC_PROT_READ | UC_PROT_EXEC);
    return exit_of(s, error, 1);
}

static void finish_in(struct soft_cpu *s)
{
    uint64_t value = 0, mask = s->io_size == 4 ? ~0ull : (1ull << 8 * s->io_size) - 1; /* 32 bits clear the upper half */
    memcpy(&value, s->io_data, s->io_size);
    set(s, UC_X86_REG_RAX, (get(s, UC_X86_REG_RAX) & ~mask) | value);
    s->pending = SOFT_DONE;
}

static uint64_t finish_mmio(struct soft_cpu *s)
{
    struct soft_piece *p = &s->pieces[s->piece];
    if (!p->is_write)
        p->value = s->answer;
    if (s->piece + 1 < s->piece_count)
        return exit_of_piece(s, s->piece + 1);
    if (!p->is_write)
        return finish_access(s);
    s->piece_count = 0;
    s->pending = SOFT_DONE;
    return 0;
}

/* Do what the last exit left to do; return an exit that comes of it, or 0. */
static uint64_t finish_pending(struct soft_cpu *s)
{
    switch (s->pending) {
    case SOFT_IN:
        finish_in(s);
        return 0;
    case SOFT_INS:
        return exit_of(s, run_one(s), 1);
    case SOFT_MMIO:
        return finish_mmio(s);
    case SOFT_ROM:
        return finish_rom(s);
    case SOFT_MSR:
        return soft_finish_msr(s) ? 0 : KVM_EXIT_SHUTDOWN;
    case SOFT_HYPERCALL:
        set(s, UC_X86_REG_RAX, s->answer);
        set(s, UC_X86_REG_RIP, s->at + 3);
        break;
    }
    s->pending = SOFT_DONE;
    s->piece_count = 0;
    return 0;
}

/* Deliver what waits for the guest to take it; return an exit, or 0. */
static uint64_t deliver_waiting(struct soft_cpu *s)
{
    s->watching = 0;
    if (s->injected < 0 && !s->nmi_waiting && s->irq_waiting < 0 && !s->want_window)
        return 0;
    struct cpu *c = soft_load_cpu(s);
    int open = (c->eflags & FLAG_IF) && !(c->hflags & HF_INHIBIT_IRQ), vector = -1;
    enum soft_event kind = EVENT_INTERRUPT;
    if (s->injected >= 0) {
        vector = s->injected;
        kind = s->injected_is_fault ? EVENT_FAULT : EVENT_INTERRUPT;
    } else if (s->nmi_waiting) {
        vector = NMI_VECTOR;
        s->nmi_waiting = 0;
    } else if (s->irq_waiting >= 0 && open) {
        vector = s->irq_waiting;
        s->irq_waiting = -1;
    } else if (s->want_window && open) {
        return KVM_EXIT_IRQ_WINDOW_OPEN;
    }
    if (vector >= 0) {
        s->shut_down = !soft_deliver(s, vector, s->injected >= 0 && s->injected_has_error, s->injected_error, kind);
        s->injected = -1;
        soft_store_cpu(s, 0);
    }
    s->watching = s->irq_waiting >= 0 || s->want_window;
    return s->shut_down ? KVM_EXIT_SHUTDOWN : 0;
}

static void flush(struct soft_cpu *s)
{
    s->flush = 0;
    unicorn.ctl(s->engine, UC_CTL_FLUSH_TB);
    unicorn.ctl(s->engine, UC_CTL_FLUSH_TLB);
}

static uint64_t before_guest(struct soft_cpu *s)
{
    uint64_t exit = finish_pending(s);
    if (!exit && s->shut_down)
        exit = KVM_EXIT_SHUTDOWN;
    if (!exit && __atomic_exchange_n(&s->kicked, 0, __ATOMIC_SEQ_CST))
        exit = KVM_EXIT_INTR;
    if (!exit && __atomic_exchange_n(&s->flush, 0, __ATOMIC_SEQ_CST))
        flush(s);
    return exit ? exit : deliver_waiting(s);
}

/* One instruction, and the exit it causes; 0 when it just went by. */
static uint64_t one_instruction(struct soft_cpu *s)
{
    uint8_t opcode = 0;
    soft_read(s, soft_linear_rip(soft_load_cpu(s)), &opcode, 1);
    uint64_t exit = exit_of(s, run_one(s), 1);
    return !exit && opcode == 0xf4 ? KVM_EXIT_HLT : exit;
}

static uint64_t debug_exit(struct soft_cpu *s, uint32_t dr6)
{
    s->debug_pc = soft_linear_rip(soft_load_cpu(s));
    s->debug_dr6 = DR6_FIXED | dr6;
    return KVM_EXIT_DEBUG;
}

/* Only between instructions can it be told whether data was touched: a stop in the middle would run them twice. */
static uint64_t run_watching(struct soft_cpu *s)
{
    s->watch_hits = 0;
    s->heeding = 1;
    uint64_t exit = one_instruction(s);
    s->heeding = 0;
    return !exit && s->watch_hits ? debug_exit(s, s->watch_hits << s->breakpoint_count) : exit;
}

static uint64_t run(struct soft_cpu *s)
{
    uint64_t exit;
    s->leaving = NOWHERE;
    if (s->breakpoint_count && s->entries > 1) /* the instruction it stands on is executed, not stopped at again */
        s->leaving = soft_linear_rip(soft_load_cpu(s));
    do {
        exit = before_guest(s);
        if (!exit)
            exit = s->watch_count ? run_watching(s) : exit_of(s, run_on(s), 0);
    } while (!exit);
    return exit;
}

static uint64_t entered(struct soft_cpu *s, uint64_t (*what)(struct soft_cpu *))
{
    pthread_mutex_t *lock = s->lock;
    if (s->attention)
        return KVMPY_ATTENTION;
    if (lock)
        pthread_mutex_unlock(lock);
    __atomic_store_n(&s->entries, s->entries + 1, __ATOMIC_RELAXED);
    uint64_t exit = what(s);
    s->recent[s->exits++ % KVMPY_RECENT] = exit;
    if (lock)
        pthread_mutex_lock(lock);
    return exit;
}

uint64_t soft_enter(struct soft_cpu *s)
{
    return entered(s, run);
}

/* One instruction, with the exit it causes, or KVM_EXIT_DEBUG behind it. */
static uint64_t step(struct soft_cpu *s)
{
    uint64_t exit = before_guest(s);
    if (exit)
        return exit;
    s->leaving = NOWHERE;
    exit = one_instruction(s);
    return exit ? exit : debug_exit(s, DR6_BS);
}

uint64_t soft_step(struct soft_cpu *s)
{
    return entered(s, step);
}

/* Finish the instruction that exited, without going on; 0, or an exit that comes of it. */
uint64_t soft_complete(struct soft_cpu *s)
{
    return finish_pending(s);
}

void soft_answer(struct soft_cpu *s, uint64_t value)
{
    s->answer = value;
    memcpy(s->io_data, &value, sizeof s->io_data);
}

void soft_kick(struct soft_cpu *s)
{
    __atomic_store_n(&s->kicked, 1, __ATOMIC_SEQ_CST);
}

void soft_forget_kick(struct soft_cpu *s)
{
    __atomic_store_n(&s->kicked, 0, __ATOMIC_SEQ_CST);
}

int soft_set_breakpoints(struct soft_cpu *s, const uint64_t *addresses, uint32_t count)
{
    for (uint32_t i = 0; i < s->breakpoint_count; i++)
        unicorn.hook_del(s->engine, s->breakpoint_hooks[i]);
    s->breakpoint_count = 0;
    for (uint32_t i = 0; i < count; i++) {
        int error = unicorn.hook_add(s->engine, &s->breakpoint_hooks[i], UC_HOOK_CODE, on_breakpoint, s, addresses[i], addresses[i]);
        if (error)
            return error;
        s->breakpoints[s->breakpoint_count++] = addresses[i];
    }
    return unicorn.ctl(s->engine, UC_CTL_FLUSH_TB); /* what was translated before has no hooks in it */
}

static void on_watch(uc_engine *engine, int type, uint64_t gpa, int size, int64_t value, void *data)
{
    struct soft_cpu *s = data;
    (void)engine, (void)value;
    for (uint32_t i = 0; i < s->watch_count && !s->probing; i++) {
        struct soft_watch *w = &s->watches[i];
        if (gpa < w->gpa + w->size && w->gpa < gpa + size && (w->reads || type == UC_MEM_WRITE))
            s->watch_hits |= 1u << i;
    }
}

int soft_set_watches(struct soft_cpu *s, const struct soft_watch *watches, uint32_t count)
{
    if (s->watch_count)
        unicorn.hook_del(s->engine, s->watch_hook);
    s->watch_count = count;
    memcpy(s->watches, watches, count * sizeof *watches);
    int error = 0;
    if (count)
        error = unicorn.hook_add(s->engine, &s->watch_hook, UC_HOOK_MEM_READ | UC_HOOK_MEM_WRITE, on_watch, s, (uint64_t)1, (uint64_t)0);
    return error ? error : unicorn.ctl(s->engine, UC_CTL_FLUSH_TB);
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
    set(s, UC_X86_REG_RAX, rax);
    set(s, UC_X86_REG_RIP, MARK_RIP);
    for (int i = 0; i < 4; i++)
        set(s, UC_X86_REG_DR0 + i, MARK_DR + i);
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
        {UC_HOOK_INTR, 0, on_interrupt},       {UC_HOOK_INSN_INVALID, 0, on_invalid},
        {UC_HOOK_INSN, UC_X86_INS_IN, on_in},  {UC_HOOK_INSN, UC_X86_INS_OUT, on_out},
        {UC_HOOK_BLOCK, 0, on_block},          {UC_HOOK_INSN, UC_X86_INS_SYSCALL, on_syscall},
        {UC_HOOK_INSN, UC_X86_INS_SYSENTER, on_sysenter}, {UC_HOOK_INSN, UC_X86_INS_CPUID, on_cpuid},
        {UC_HOOK_MEM_WRITE_PROT, 0, on_write_to_rom}, {UC_HOOK_EDGE_GENERATED, 0, soft_on_edge},
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
    if (!*error && !find_state(s))
        *error = -1;
    if (!*error)
        *error = add_hooks(s);
    if (*error) {
        soft_close(s);
        return NULL;
    }
    s->injected = s->irq_waiting = -1;
    s->leaving = s->passing = NOWHERE;
    s->guest_dr[6] = DR6_FIXED;
    s->guest_dr[7] = 0x400;
    set(s, UC_X86_REG_DR0 + 7, PORT_BREAKPOINT);
    arm_port_stop(s, NOWHERE);
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
    if (s->engine)
        unicorn.close(s->engine);
    free(s);
}
