/* SPDX-License-Identifier: MIT */
/*
 * Breakpoints and watchpoints, of the host and of the guest. Who sets them writes them down; the engine is told before the
 * vCPU runs the next time, for another one may be on it now.
 */
#include "softcpu.h"

#include <string.h>

/* Breakpoints of the host */

static void on_breakpoint(uc_engine *engine, uint64_t address, uint32_t size, void *data)
{
    struct soft_cpu *s = ((struct soft_vm *)data)->runner;
    uint32_t hits = 0;
    (void)engine, (void)size;
    for (uint32_t i = 0; i < s->breakpoint_count; i++)
        hits |= (s->breakpoints[i] == address) << i;
    if (!hits || s->phase == EXACT)
        return;
    if (s->leaving == address) {
        s->leaving = NOWHERE;
        return;
    }
    s->debug_pc = s->reported = address;
    s->debug_dr6 = DR6_FIXED | hits;
    soft_leave_with(s, KVM_EXIT_DEBUG);
}

void soft_set_breakpoints(struct soft_cpu *s, const uint64_t *addresses, uint32_t count)
{
    memcpy(s->breakpoints, addresses, count * sizeof *addresses);
    s->breakpoint_count = count;
    s->debug_changed = 1;
}

static void hook_breakpoints(struct soft_cpu *s)
{
    for (uint32_t i = 0; i < s->breakpoint_hook_count; i++)
        unicorn.hook_del(s->vm->engine, s->breakpoint_hooks[i]);
    s->breakpoint_hook_count = s->breakpoint_count;
    for (uint32_t i = 0; i < s->breakpoint_count; i++) {
        uint64_t at = s->breakpoints[i];
        unicorn.hook_add(s->vm->engine, &s->breakpoint_hooks[i], UC_HOOK_CODE, on_breakpoint, s->vm, at, at);
    }
}

/* Watchpoints */

static int touches(const struct soft_watch *w, uint64_t gpa, uint32_t size, int type)
{
    return gpa < w->gpa + w->size && w->gpa < gpa + size && (w->reads || type == UC_MEM_WRITE);
}

static void on_watch(uc_engine *engine, int type, uint64_t gpa, int size, int64_t value, void *data)
{
    struct soft_cpu *s = ((struct soft_vm *)data)->runner;
    (void)engine, (void)value;
    for (uint32_t i = 0; i < s->watch_count; i++)
        s->watch_hits |= touches(&s->watches[i], gpa, size, type) << i;
    for (uint32_t i = 0; i < SOFT_BREAKPOINTS; i++)
        s->guest_hits |= touches(&s->guest_watches[i], gpa, size, type) << i;
}

void soft_set_watches(struct soft_cpu *s, const struct soft_watch *watches, uint32_t count)
{
    memcpy(s->watches, watches, count * sizeof *watches);
    s->watch_count = count;
    s->debug_changed = 1;
}

/* Memory is hooked only while somebody watches: it makes every access slow. */
static void hook_memory(struct soft_cpu *s)
{
    int wanted = s->watch_count || s->guest_watching;
    if (wanted && !s->is_watched)
        unicorn.hook_add(s->vm->engine, &s->watch_hook, UC_HOOK_MEM_READ | UC_HOOK_MEM_WRITE, on_watch, s->vm, (uint64_t)1, (uint64_t)0);
    else if (!wanted && s->is_watched)
        unicorn.hook_del(s->vm->engine, s->watch_hook);
    s->is_watched = wanted;
}

/*
 * The guest's own breakpoints, from its DR0 to DR3 and DR7 (Intel SDM vol. 3, 17.2): data is watched, and instructions are
 * compared, one by one. Where the data lies is found when the registers are written. I/O breakpoints are not there.
 */
static void watch_for_guest(struct soft_cpu *s)
{
    static const uint32_t SIZES[] = {1, 2, 8, 4};
    uint64_t dr7 = s->guest_dr[7];
    s->guest_watching = 0;
    s->guest_breaks = 0;
    for (int i = 0; i < SOFT_BREAKPOINTS; i++) {
        struct soft_watch *w = &s->guest_watches[i];
        uint32_t kind = dr7 >> (16 + 4 * i) & 3;
        int enabled = dr7 >> (2 * i) & 3 && kind != 2;
        *w = (struct soft_watch){0, 0, 0};
        if (enabled && kind && soft_walk(s, s->guest_dr[i], SOFT_LOOK, 0, &w->gpa).vector == NO_VECTOR)
            *w = (struct soft_watch){w->gpa, SIZES[dr7 >> (18 + 4 * i) & 3], kind == 3};
        s->guest_breaks |= (enabled && !kind) << i;
        s->guest_watching |= enabled;
    }
}

/* Tell the engine, on which the vCPU is. What was translated before has no hooks in it. */
void soft_apply_debugging(struct soft_cpu *s)
{
    int was_hooked = s->breakpoint_hook_count || s->is_watched;
    s->debug_changed = 0;
    watch_for_guest(s);
    hook_breakpoints(s);
    hook_memory(s);
    if (was_hooked || s->breakpoint_hook_count || s->is_watched)
        soft_forget_all(s->vm);
}

/* The engine is a new one. */
void soft_reset_debugging(struct soft_cpu *s)
{
    s->breakpoint_hook_count = s->is_watched = 0;
    s->debug_changed = 1;
}

/* The guest's own */

/* The fault in front of an instruction that the guest has a breakpoint on; 1 when it was raised. */
int soft_break_for_guest(struct soft_cpu *s)
{
    uint32_t hits = 0;
    for (int i = 0; i < SOFT_BREAKPOINTS; i++)
        hits |= ((s->guest_breaks >> i & 1) && s->guest_dr[i] == soft_linear_rip(s->cpu)) << i;
    if (!hits || (s->cpu->eflags & FLAG_RF))
        return 0;
    soft_debug_trap(s, hits);
    return 1;
}

/* The trap behind an instruction that touched data which the guest watches. */
void soft_trap_for_guest(struct soft_cpu *s)
{
    uint32_t hits = s->guest_hits;
    s->guest_hits = 0;
    if (hits)
        soft_debug_trap(s, hits);
}
