/* SPDX-License-Identifier: MIT */
/*
 * Accesses to no memory. The first aborts the instruction. It is then run alone, with answers that do not matter, to see
 * all that it reads; the state is put back; each read exits; and when all are answered it runs for good, and what it writes
 * exits behind it, as KVM does. What an instruction accesses is seen by hooks on memory, which are there only meanwhile: the
 * engine itself asks for aligned pieces of 4 bytes or 1, whatever the instruction does.
 */
#include "softcpu.h"

#include <string.h>

#define PHYSICAL_LIMIT (1ull << 48)

static void access_memory(struct soft_cpu *s)
{
    if (s->exit || s->stopped || s->probing || s->finishing)
        return;
    s->exit = SOFT_ACCESS;
    unicorn.emu_stop(s->engine);
}

/* INS stores twice: the engine tries the place first, and then it writes what the port has answered. */
static int is_tried(struct soft_cpu *s, uint64_t gpa, uint64_t value)
{
    for (uint32_t i = 0; i < s->piece_count && s->has_input; i++)
        if (s->pieces[i].gpa == gpa && s->pieces[i].is_write) {
            s->pieces[i].value = value;
            return 1;
        }
    return 0;
}

static void note_piece(struct soft_cpu *s, uint64_t gpa, uint32_t size, int is_write, uint64_t value)
{
    uint64_t mask = size == 8 ? ~0ull : (1ull << 8 * size) - 1;
    if (is_tried(s, gpa, value & mask))
        return;
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
    int error = soft_run_one(s);
    unicorn.hook_del(s->engine, hook);
    return error;
}

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
    access_memory(s);
    return value;
}

static void on_mmio_write(uc_engine *engine, uint64_t offset, unsigned size, uint64_t value, void *data)
{
    struct window *w = data;
    (void)engine, (void)size, (void)value;
    note_rest(w->s, w->gpa + offset);
    access_memory(w->s);
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
    uint64_t exit = soft_exit_of(s, error, 1);
    if (exit || !s->piece_count)
        return exit;
    return exit_of_piece(s, 0);
}

uint64_t soft_mmio_exit(struct soft_cpu *s)
{
    s->probing = 1;
    unicorn.context_save(s->engine, s->before_probe);
    s->probe_failed = 0;
    s->piece_count = 0;
    run_one_watched(s);
    s->probing = 0;
    unicorn.context_restore(s->engine, s->before_probe);
    keep_pieces(s, 0);
    return s->piece_count && !s->probe_failed ? exit_of_piece(s, 0) : finish_access(s);
}

uint64_t soft_finish_mmio(struct soft_cpu *s)
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

/* Read-only memory */

/* A write to read-only memory exits like one to no memory, and changes nothing. */
bool soft_on_write_to_rom(uc_engine *engine, int type, uint64_t address, int size, int64_t value, void *data)
{
    struct soft_cpu *s = data;
    (void)engine, (void)type;
    soft_load_cpu(s);
    if (soft_walk(s, address, SOFT_WRITE, 0, &s->rom_gpa).vector >= 0)
        s->rom_gpa = address;
    s->rom_size = size;
    s->mmio_gpa = s->rom_gpa;
    s->mmio_size = size;
    s->mmio_value = size == 8 ? (uint64_t)value : (uint64_t)value & ((1ull << 8 * size) - 1);
    s->pending = SOFT_ROM;
    s->exit = KVM_EXIT_MMIO | size << 8 | KVMPY_OUT;
    return false;
}

/* The access to ROM, carried out with what was there put back behind it. */
uint64_t soft_finish_rom(struct soft_cpu *s)
{
    uint8_t before[16], *host = soft_host(s, s->rom_gpa, s->rom_size, 0);
    uint64_t page = s->rom_gpa & ~0xfffull;
    s->pending = SOFT_DONE;
    if (!host)
        return 0;
    memcpy(before, host, s->rom_size);
    unicorn.mem_protect(s->engine, page, 0x1000, UC_PROT_ALL);
    int error = soft_run_one(s);
    s->has_input = 0;
    memcpy(host, before, s->rom_size);
    unicorn.mem_protect(s->engine, page, 0x1000, UC_PROT_READ | UC_PROT_EXEC);
    return soft_exit_of(s, error, 1);
}
