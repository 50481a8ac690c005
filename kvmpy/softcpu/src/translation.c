/* SPDX-License-Identifier: MIT */
/*
 * Which pages have translated code, so that whoever writes there is noticed and nobody else is slowed down.
 *
 * A page's first block makes all its entries in the TLB "not dirty": stores go through the engine, which forgets the blocks
 * they touch. Unicorn decides by the entry of one linear address whether a store may be fast again, and by whether that may
 * be executed; a page that is mapped twice loses stores so, and one that is executed stays slow. Here it is decided by the
 * page: a bit says whether it has code. Entries of read-only memory are never valid for stores, and those of devices for
 * nothing: so these accesses are noticed too, with their linear address, before anything is stored, be it in another page.
 */
#include "softcpu.h"

#include <string.h>

#define PAGE_SIZE 4096ull
#define PAGE_MASK (~(PAGE_SIZE - 1))

static uint8_t bit_of(const struct soft_region *r, const uint8_t *host, uint8_t **byte)
{
    uint64_t page = (host - r->host) / PAGE_SIZE;
    *byte = &r->code[page / 8];
    return 1u << page % 8;
}

static int has_code(const struct soft_region *r, const uint8_t *host)
{
    uint8_t *byte, bit = bit_of(r, host, &byte);
    return __atomic_load_n(byte, __ATOMIC_RELAXED) & bit;
}

static struct tlb_entry *entry_of(struct soft_vm *vm, uint64_t linear, int mmu)
{
    struct tlb *tlb = (struct tlb *)((char *)vm->state + STATE_TLB) + mmu;
    return (struct tlb_entry *)((char *)tlb->entries + ((linear / PAGE_SIZE * sizeof(struct tlb_entry)) & tlb->mask));
}

static void invalidate(uint64_t *address)
{
    if (*address != NOWHERE)
        *address |= TLB_INVALID;
}

/* Make an entry of memory writable at once if its page has no code, and never if its page is read-only. */
static void settle(struct soft_vm *vm, uint64_t linear, int mmu)
{
    struct tlb_entry *entry = entry_of(vm, linear, mmu);
    uint64_t page = linear & PAGE_MASK;
    if ((entry->addr_write & ~(uint64_t)TLB_NOTDIRTY) != page)
        return;
    uint8_t *host = (uint8_t *)(page + entry->addend);
    struct soft_region *r = soft_region_at(vm, host);
    if (r && r->readonly)
        entry->addr_write |= TLB_INVALID;
    else if (r && !has_code(r, host))
        entry->addr_write = page;
}

static struct soft_vm *vm_of(const void *cpu)
{
    struct soft_vm *vm = soft_here();
    return vm && vm->engine_cpu == cpu ? vm : NULL;
}

/* An entry is filled in. */
void soft_tlb_set_page_with_attrs(void *cpu, uint64_t linear, uint64_t gpa, uint32_t attributes, int rights, int mmu, uint64_t size)
{
    struct soft_vm *vm = vm_of(cpu);
    theirs.tlb_set_page_with_attrs(cpu, linear, gpa, attributes, rights, mmu, size);
    if (!vm)
        return;
    vm->filled = gpa & PAGE_MASK;
    if (soft_region_of(vm, vm->filled, PAGE_SIZE)) {
        settle(vm, linear, mmu);
        return;
    }
    struct tlb_entry *entry = entry_of(vm, linear, mmu);
    invalidate(&entry->addr_read);
    invalidate(&entry->addr_write);
}

/* An entry is needed. */
bool soft_x86_cpu_tlb_fill(void *cpu, uint64_t linear, int size, int access, int mmu, bool probe, uintptr_t code)
{
    struct soft_vm *vm = vm_of(cpu);
    if (!theirs.x86_cpu_tlb_fill(cpu, linear, size, access, mmu, probe, code))
        return false;
    if (!vm)
        return true;
    vm->filled_linear = linear;
    if (access != MMU_DATA_STORE)
        return true;
    struct soft_region *r = soft_region_of(vm, vm->filled, 1);
    if (r && r->readonly)
        soft_on_rom_store(vm->runner, vm->filled | (linear & ~PAGE_MASK), code);
    return true;
}

/* A store went to a page that was not dirty; whatever it touched has been forgotten. */
void soft_tlb_set_dirty(void *cpu, uint64_t linear)
{
    struct soft_vm *vm = vm_of(cpu);
    if (!vm)
        theirs.tlb_set_dirty(cpu, linear);
    for (int mmu = 0; vm && mmu < MMU_MODES; mmu++)
        settle(vm, linear, mmu);
}

static struct soft_region *region_of_ram(uc_engine *engine, uint64_t ram, uint8_t **host)
{
    struct soft_vm *vm = soft_here();
    if (!vm || vm->engine != engine)
        return NULL;
    *host = unicorn.qemu_map_ram_ptr(engine, NULL, ram);
    return soft_region_at(vm, *host);
}

/* A page got its first block. */
void soft_tlb_protect_code(uc_engine *engine, uint64_t ram)
{
    uint8_t *host, *byte;
    struct soft_region *r = region_of_ram(engine, ram, &host);
    if (!r) {
        theirs.tlb_protect_code(engine, ram);
        return;
    }
    uint8_t bit = bit_of(r, host, &byte);
    __atomic_or_fetch(byte, bit, __ATOMIC_RELAXED);
    unicorn.tlb_reset_dirty(r->vm->engine_cpu, (uint64_t)host & PAGE_MASK, PAGE_SIZE);
}

/* A page lost its last block. */
void soft_tlb_unprotect_code(uc_engine *engine, uint64_t ram)
{
    uint8_t *host, *byte;
    struct soft_region *r = region_of_ram(engine, ram, &host);
    if (!r) {
        theirs.tlb_unprotect_code(engine, ram);
        return;
    }
    uint8_t bit = bit_of(r, host, &byte);
    __atomic_and_fetch(byte, ~bit, __ATOMIC_RELAXED);
}

/* The host writes */

static void note_written(struct soft_vm *vm, uint64_t gpa, uint64_t size)
{
    if (vm->written_count < sizeof vm->written / sizeof *vm->written) {
        vm->written[vm->written_count].gpa = gpa;
        vm->written[vm->written_count++].size = size;
    } else {
        vm->all_written = 1;
    }
}

/* What we write for the guest; the runner's own thread. */
void soft_forget_code(struct soft_vm *vm, uint64_t gpa, uint64_t size)
{
    struct soft_region *r = soft_region_of(vm, gpa, size);
    uint8_t *byte, *host = r->host + (gpa - r->gpa), bit = bit_of(r, host, &byte);
    if (!(*byte & bit))
        return;
    uint64_t ram = unicorn.qemu_ram_addr_from_host(vm->engine, host);
    unicorn.tb_invalidate_phys_range(vm->engine, ram, ram + size);
}

/* Of `size` bytes what is in pages with code is to be forgotten; size 0 means that anything may have been written. */
void soft_memory_changed(struct soft_vm *vm, uint64_t gpa, uint64_t size)
{
    pthread_mutex_lock(&vm->mutex);
    vm->is_written = 1; /* there may be page tables in it */
    vm->all_written |= !size;
    struct soft_region *r = size ? soft_region_of(vm, gpa, size) : NULL;
    for (uint64_t at = gpa; r && at < gpa + size && !vm->all_written;) {
        uint64_t page_end = (at & PAGE_MASK) + PAGE_SIZE, stop = page_end < gpa + size ? page_end : gpa + size;
        uint8_t *byte, *host = r->host + (at - r->gpa), bit = bit_of(r, host, &byte);
        if (__atomic_load_n(byte, __ATOMIC_RELAXED) & bit)
            note_written(vm, at, stop - at);
        at = stop;
    }
    pthread_mutex_unlock(&vm->mutex);
}

/* Forget all code. */
void soft_forget_all(struct soft_vm *vm)
{
    unicorn.ctl(vm->engine, UC_CTL_FLUSH_TB);
    for (uint32_t i = 0; i < vm->region_count; i++)
        if (vm->regions[i].host)
            memset(vm->regions[i].code, 0, vm->regions[i].size / PAGE_SIZE / 8 + 1);
}

/* Forget the code that the host wrote over; nobody runs. */
void soft_forget_written(struct soft_vm *vm)
{
    if (vm->all_written)
        soft_forget_all(vm);
    for (uint32_t i = 0; i < vm->written_count && !vm->all_written; i++) {
        struct soft_region *r = soft_region_of(vm, vm->written[i].gpa, vm->written[i].size);
        uint64_t ram = unicorn.qemu_ram_addr_from_host(vm->engine, r->host + (vm->written[i].gpa - r->gpa));
        unicorn.tb_invalidate_phys_range(vm->engine, ram, ram + vm->written[i].size);
    }
    vm->written_count = 0;
    vm->all_written = vm->is_written = 0;
}
