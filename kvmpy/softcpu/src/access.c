/* SPDX-License-Identifier: MIT */
/*
 * Accesses to devices, which exit. Where an instruction meets one, the engine is left in front of it: nothing of it was done.
 * Then it is executed alone, and a hook sees each access whole, before the engine takes it to pieces. A read that has no
 * answer yet leaves once more, and exits; when the instruction is executed again it gets its answers in the same order. What
 * it writes is told behind it, as KVM does. So no value is guessed, and a fault is the guest's own.
 *
 * Ports are in it too, where an instruction has more than one access: INS and OUTS.
 */
#include "softcpu.h"

#include <string.h>

static uint64_t cut(uint64_t value, uint32_t size)
{
    return size >= 8 ? value : value & ((1ull << 8 * size) - 1);
}

static int is_device(struct soft_cpu *s, uint64_t gpa, int write)
{
    return !soft_host(s, gpa, 1, write);
}

static uintptr_t *mem_io_pc(struct soft_cpu *s)
{
    return (uintptr_t *)(s->vm->engine_cpu + CPU_MEM_IO_PC);
}

static int is_same(const struct soft_access *a, const struct soft_access *b)
{
    return a->address == b->address && a->size == b->size && a->is_port == b->is_port;
}

/* A read: its answer, or leave to get it. What other vCPUs have changed meanwhile makes another read of it. */
static struct soft_access answer_to(struct soft_cpu *s, struct soft_access read, uintptr_t code)
{
    struct soft_exact *e = &s->exact;
    if (e->next < e->answered && is_same(&e->reads[e->next], &read))
        return e->reads[e->next++];
    if (e->next == SOFT_ACCESSES) {
        e->overflow = 1;
        return read;
    }
    e->answered = e->next;
    e->reads[e->next] = read;
    soft_leave_before(s, NO_ANSWER, code);
}

/* Remember what is in read-only memory before it is written. */
static void keep_rom(struct soft_cpu *s, const struct soft_access *write)
{
    struct soft_exact *e = &s->exact;
    uint8_t *host = soft_host(s, write->address, write->size, 0);
    if (!host || e->undo_count == SOFT_ACCESSES)
        return;
    struct soft_undo *undo = &e->undo[e->undo_count++];
    *undo = (struct soft_undo){.host = host, .size = write->size};
    memcpy(undo->before, host, write->size);
}

static void restore_rom(struct soft_cpu *s)
{
    struct soft_exact *e = &s->exact;
    while (e->undo_count) {
        struct soft_undo *undo = &e->undo[--e->undo_count];
        memcpy(undo->host, undo->before, undo->size);
    }
}

static void note_write(struct soft_cpu *s, struct soft_access write)
{
    struct soft_exact *e = &s->exact;
    write.value = cut(write.value, write.size);
    if (!write.is_port)
        keep_rom(s, &write);
    if (e->write_count < SOFT_ACCESSES)
        e->writes[e->write_count++] = write;
    else
        e->overflow = 1;
}

/* Whether the second page of an access is not there: then the device in the first one is not asked. */
static int will_fault(struct soft_cpu *s)
{
    uint64_t gpa, next = (s->vm->filled_linear & ~0xfffull) + 0x1000;
    int user = (s->cpu->hflags & HF_CPL) == 3;
    return s->exact.rest.size && soft_walk(s, next, SOFT_LOOK, user, &gpa).vector != NO_VECTOR;
}

/* The engine begins an access: where its first byte is, in physical memory. The rest may be in another page. */
static void on_access(uc_engine *engine, int type, uint64_t gpa, int size, int64_t value, void *data)
{
    struct soft_cpu *s = ((struct soft_vm *)data)->runner;
    struct soft_exact *e = &s->exact;
    uint32_t in_page = 0x1000 - (gpa & 0xfff), first = in_page < (uint32_t)size ? in_page : (uint32_t)size;
    (void)engine;
    if (s->phase != EXACT)
        return;
    uintptr_t code = *mem_io_pc(s);
    *mem_io_pc(s) = 0;
    e->rest = (struct soft_access){gpa, first < 8 ? (uint64_t)value >> 8 * first : 0, size - first, 0};
    e->rest_is_write = type == UC_MEM_WRITE;
    e->now[0].size = e->now[1].size = 0;
    e->is_trial = e->rest_is_write && e->tries;
    if (e->is_trial) {
        e->tries = 0;
        if (is_device(s, gpa, 1))
            keep_rom(s, &(struct soft_access){gpa, 0, first, 0});
    } else if (e->rest_is_write && is_device(s, gpa, 1)) {
        note_write(s, (struct soft_access){gpa, value, first, 0});
    } else if (!e->rest_is_write && is_device(s, gpa, 0)) {
        struct soft_access read = {gpa, 0, first, 0};
        e->now[0] = will_fault(s) ? read : answer_to(s, read, code);
    }
}

/* The engine reaches the second page of an access: only here is its address known. It begins below its eighth byte. */
static void on_rest(struct soft_cpu *s, uint64_t gpa, int is_write)
{
    struct soft_exact *e = &s->exact;
    struct soft_access rest = e->rest;
    if (!rest.size || is_write != e->rest_is_write || (gpa & 0xfff) >= 8)
        return;
    rest.address = gpa & ~0xfffull;
    e->rest.size = 0;
    if (e->is_trial)
        keep_rom(s, &rest);
    else if (e->rest_is_write)
        note_write(s, rest);
    else
        e->now[1] = answer_to(s, rest, *mem_io_pc(s));
}

/* An access to a device in a run that knows nothing of it. One of the engine's own, for a page table, has no place in code. */
static int must_leave(struct soft_cpu *s)
{
    if (s->phase == EXACT)
        return 0;
    if (*mem_io_pc(s))
        soft_leave_before(s, AT_ACCESS, *mem_io_pc(s));
    return 1;
}

/* The engine reads an aligned piece of what it was about to; where nobody answers it is ones, as on a bus. */
uint64_t soft_on_device_read(uc_engine *engine, uint64_t offset, unsigned size, void *data)
{
    struct soft_region *gap = data;
    struct soft_cpu *s = gap->vm->runner;
    uint64_t value = ~0ull, gpa = gap->gpa + offset;
    uint8_t *bytes = (uint8_t *)&value;
    (void)engine;
    if (must_leave(s))
        return value;
    on_rest(s, gpa, 0);
    for (int i = 0; i < 2; i++)
        for (uint32_t j = 0; j < size; j++) {
            const struct soft_access *piece = &s->exact.now[i];
            if (gpa + j - piece->address < piece->size)
                bytes[j] = piece->value >> 8 * (gpa + j - piece->address);
        }
    return value;
}

void soft_on_device_write(uc_engine *engine, uint64_t offset, unsigned size, uint64_t value, void *data)
{
    struct soft_region *gap = data;
    (void)engine, (void)size, (void)value;
    if (!must_leave(gap->vm->runner))
        on_rest(gap->vm->runner, gap->gpa + offset, 1);
}

/*
 * A store is about to go to read-only memory: nothing of it is stored yet. In an exact run it is, and undone behind the
 * instruction, for the engine would drop what of it is in another page.
 */
void soft_on_rom_store(struct soft_cpu *s, uint64_t gpa, uintptr_t code)
{
    if (s->phase != EXACT)
        soft_leave_before(s, AT_ACCESS, code);
    on_rest(s, gpa, 1);
}

/* Ports of an instruction that is executed exactly */

uint64_t soft_port_in(struct soft_cpu *s, uint32_t port, uint32_t size, uintptr_t code)
{
    return answer_to(s, (struct soft_access){port, 0, size, 1}, code).value;
}

void soft_port_out(struct soft_cpu *s, uint32_t port, uint32_t size, uint64_t value)
{
    note_write(s, (struct soft_access){port, value, size, 1});
}

/* Exits */

static uint64_t tell(struct soft_cpu *s, const struct soft_access *access, int is_write)
{
    s->access = *access;
    if (!is_write)
        s->access.value = ~0ull;
    s->pending = is_write ? PENDING_WRITE : PENDING_READ;
    uint64_t exit = (access->is_port ? KVM_EXIT_IO : KVM_EXIT_MMIO) | access->size << 8 | (is_write ? KVMPY_OUT : 0);
    if (access->is_port)
        exit |= access->address << 16 | (is_write ? access->value << 32 : 0);
    return exit;
}

/*
 * The hook on memory lives for one instruction. The engine takes it from its list at the end of the run in which it was
 * deleted, and code that is translated while it is in the list is slow for ever: so it is deleted before that run ends.
 */
static int hook(struct soft_cpu *s)
{
    s->exact.is_hooked = 1;
    return unicorn.hook_add(s->vm->engine, &s->exact.hook, UC_HOOK_MEM_READ | UC_HOOK_MEM_WRITE, on_access, s->vm, (uint64_t)1,
                            (uint64_t)0);
}

void soft_unhook(struct soft_cpu *s)
{
    if (s->exact.is_hooked)
        unicorn.hook_del(s->vm->engine, s->exact.hook);
    s->exact.is_hooked = 0;
}

static int is_ins(struct soft_cpu *s)
{
    return (soft_decode(s).opcode & 0xfe) == 0x6c;
}

/* Execute the instruction at RIP with the answers that there are; return its exit, 0 when it has none. */
uint64_t soft_execute_exactly(struct soft_cpu *s)
{
    struct soft_exact *e = &s->exact;
    s->pending = DONE;
    s->watch_hits = s->guest_hits = 0;
    e->next = e->write_count = e->told = e->overflow = e->faults = 0;
    e->tries = is_ins(s);
    hook(s);
    uint64_t exit = soft_run_one(s, EXACT);
    soft_unhook(s);
    restore_rom(s);
    if (s->ended == NO_ANSWER)
        return tell(s, &e->reads[e->next], 0);
    if (!exit && e->overflow) {
        s->engine_error = SOFT_TOO_MANY_ACCESSES;
        s->failed_at = s->cpu->rip;
        return KVM_EXIT_INTERNAL_ERROR;
    }
    e->answered = 0;
    if (e->faults) /* it has done nothing */
        e->write_count = 0;
    return exit || !e->write_count ? exit : tell(s, &e->writes[0], 1);
}

uint64_t soft_finish_access(struct soft_cpu *s)
{
    struct soft_exact *e = &s->exact;
    if (s->pending == PENDING_READ) {
        e->reads[e->answered++].value = s->access.value;
        return soft_execute_exactly(s);
    }
    if (++e->told < e->write_count)
        return tell(s, &e->writes[e->told], 1);
    s->pending = DONE;
    return 0;
}
