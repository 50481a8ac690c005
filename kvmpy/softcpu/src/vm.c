/* SPDX-License-Identifier: MIT */
/* A VM: its engine, its memory, and its vCPUs. */
#define _GNU_SOURCE
#include "softcpu.h"

#include <stdlib.h>
#include <string.h>

#define TCG_BUFFER (64u << 20) /* of translated code; else each VM takes 1 GiB of addresses */
#define PHYSICAL_LIMIT (1ull << 48)
#define PAGE_SHIFT 12

struct soft_vm *soft_open_vm(void)
{
    struct soft_vm *vm = calloc(1, sizeof *vm);
    if (!vm)
        return NULL;
    pthread_mutex_init(&vm->mutex, NULL);
    pthread_cond_init(&vm->idle, NULL);
    vm->references = 1;
    vm->remap = 1;
    return vm;
}

static void release(struct soft_vm *vm)
{
    pthread_mutex_lock(&vm->mutex);
    int left = --vm->references;
    pthread_mutex_unlock(&vm->mutex);
    if (left)
        return;
    for (uint32_t i = 0; i < vm->region_count; i++)
        free(vm->regions[i].code);
    pthread_cond_destroy(&vm->idle);
    pthread_mutex_destroy(&vm->mutex);
    free(vm);
}

/* Nobody enters any more; returns when nobody is in. */
void soft_close_vm(struct soft_vm *vm)
{
    pthread_mutex_lock(&vm->mutex);
    vm->closed = 1;
    for (struct soft_cpu *s = vm->cpus; s; s = s->next)
        pthread_cond_signal(&s->turn);
    if (vm->runner)
        unicorn.emu_stop(vm->engine);
    while (vm->runner)
        pthread_cond_wait(&vm->idle, &vm->mutex);
    if (vm->engine)
        unicorn.close(vm->engine);
    vm->engine = NULL;
    pthread_mutex_unlock(&vm->mutex);
}

void soft_free_vm(struct soft_vm *vm)
{
    release(vm);
}

/* Memory */

struct soft_region *soft_region_of(struct soft_vm *vm, uint64_t gpa, uint64_t size)
{
    for (uint32_t i = 0; i < vm->region_count; i++) {
        struct soft_region *r = &vm->regions[i];
        if (r->host && gpa - r->gpa < r->size && size <= r->size - (gpa - r->gpa))
            return r;
    }
    return NULL;
}

struct soft_region *soft_region_at(struct soft_vm *vm, const uint8_t *host)
{
    for (uint32_t i = 0; i < vm->region_count; i++) {
        struct soft_region *r = &vm->regions[i];
        if (r->host && host >= r->host && host < r->host + r->size)
            return r;
    }
    return NULL;
}

/* Add memory; the engine is told before the next vCPU runs. 0 when there is no room. */
int soft_add_region(struct soft_vm *vm, uint64_t gpa, uint64_t size, void *host, int readonly)
{
    uint8_t *code = calloc(1, (size >> PAGE_SHIFT) / 8 + 1);
    pthread_mutex_lock(&vm->mutex);
    uint32_t kept = 0; /* the gaps are made anew */
    for (uint32_t i = 0; i < vm->region_count; i++)
        if (vm->regions[i].host)
            vm->regions[kept++] = vm->regions[i];
    vm->region_count = kept;
    int fits = code && kept < SOFT_REGIONS / 2; /* each region has a gap behind it */
    if (fits)
        vm->regions[vm->region_count++] = (struct soft_region){vm, gpa, size, host, readonly, code};
    else
        free(code);
    vm->remap = 1;
    pthread_mutex_unlock(&vm->mutex);
    return fits;
}

static int map_memory(struct soft_vm *vm, struct soft_region *r)
{
    memset(r->code, 0, (r->size >> PAGE_SHIFT) / 8 + 1);
    return unicorn.mem_map_ptr(vm->engine, r->gpa, r->size, UC_PROT_ALL, r->host); /* read-only memory too: see access.c */
}

/* Where there is no memory, every access becomes an exit. */
static int map_gaps(struct soft_vm *vm)
{
    uint32_t memories = vm->region_count;
    for (uint64_t at = 0; at < PHYSICAL_LIMIT;) {
        uint64_t next = PHYSICAL_LIMIT, behind = PHYSICAL_LIMIT;
        for (uint32_t i = 0; i < memories; i++)
            if (vm->regions[i].gpa >= at && vm->regions[i].gpa < next) {
                next = vm->regions[i].gpa;
                behind = next + vm->regions[i].size;
            }
        if (next > at) {
            struct soft_region *gap = &vm->regions[vm->region_count++];
            *gap = (struct soft_region){.vm = vm, .gpa = at, .size = next - at};
            int error = unicorn.mmio_map(vm->engine, at, next - at, soft_on_device_read, gap, soft_on_device_write, gap);
            if (error)
                return error;
        }
        at = behind;
    }
    return 0;
}

static int add_hooks(struct soft_vm *vm)
{
    uc_hook hook;
    int error = unicorn.hook_add(vm->engine, &hook, UC_HOOK_INTR, soft_on_interrupt, vm, (uint64_t)1, (uint64_t)0);
    if (!error)
        error = unicorn.hook_add(vm->engine, &hook, UC_HOOK_INSN_INVALID, soft_on_invalid, vm, (uint64_t)1, (uint64_t)0);
    for (struct soft_cpu *s = vm->cpus; s; s = s->next)
        soft_reset_debugging(s);
    return error;
}

/* Where the engine has its CPU, once it is asked for a register. */
static void find_state(struct soft_vm *vm)
{
    uint64_t rip = 0;
    unicorn.reg_read(vm->engine, UC_X86_REG_RIP, &rip);
    vm->engine_cpu = *(uint8_t **)((char *)vm->engine + UC_CPU);
    vm->state = (struct cpu *)(vm->engine_cpu + CPU_STATE_SIZE);
    *((uint8_t *)vm->engine + UC_NO_EXIT_REQUEST) = 1;
    soft_mend(vm);
    vm->state->hflags2 |= HF2_GIF;
    vm->reset = *vm->state;
}

/* Make an engine that knows the memory of now. The state of vCPUs is not on it: no turn is taken. */
int soft_map(struct soft_vm *vm)
{
    if (vm->engine)
        unicorn.close(vm->engine);
    vm->engine = NULL;
    vm->last = NULL;
    int error = unicorn.open(UC_ARCH_X86, UC_MODE_64, &vm->engine);
    if (!error)
        error = unicorn.ctl(vm->engine, UC_CTL_CPU_MODEL, UC_CPU_X86_BROADWELL);
    if (!error)
        error = unicorn.ctl(vm->engine, UC_CTL_TCG_BUFFER_SIZE, TCG_BUFFER);
    if (!error)
        error = unicorn.ctl(vm->engine, UC_CTL_EXITS_ENABLED, 1);
    if (!error)
        find_state(vm);
    for (uint32_t i = 0; i < vm->region_count && !error; i++)
        error = map_memory(vm, &vm->regions[i]);
    if (!error)
        error = map_gaps(vm);
    if (!error)
        error = add_hooks(vm);
    vm->remap = error != 0;
    return error;
}

/* vCPUs */

struct soft_cpu *soft_open(struct soft_vm *vm, int *error)
{
    struct soft_cpu *s = aligned_alloc(64, (sizeof *s + 63) & ~(size_t)63);
    *error = s ? 0 : -1;
    if (!s)
        return NULL;
    memset(s, 0, sizeof *s);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&s->turn, &monotonic);
    pthread_condattr_destroy(&monotonic);
    s->vm = vm;
    s->cpu = &s->saved;
    s->injected.vector = s->raised.vector = s->irq_waiting = NO_VECTOR;
    s->leaving = s->reported = NOWHERE;
    s->guest_dr[6] = DR6_FIXED;
    s->guest_dr[7] = 0x400;
    pthread_mutex_lock(&vm->mutex);
    if (!vm->engine) /* else another vCPU may be on it */
        *error = soft_map(vm);
    s->saved = vm->reset;
    s->next = vm->cpus;
    vm->cpus = s;
    vm->cpu_count++;
    vm->references++;
    pthread_mutex_unlock(&vm->mutex);
    if (*error) {
        soft_free(s);
        return NULL;
    }
    return s;
}

void soft_free(struct soft_cpu *s)
{
    struct soft_vm *vm = s->vm;
    pthread_mutex_lock(&vm->mutex);
    for (struct soft_cpu **at = &vm->cpus; *at; at = &(*at)->next)
        if (*at == s) {
            *at = s->next;
            break;
        }
    if (vm->last == s)
        vm->last = NULL;
    vm->cpu_count--;
    pthread_mutex_unlock(&vm->mutex);
    release(vm);
    pthread_cond_destroy(&s->turn);
    free(s);
}
