/* SPDX-License-Identifier: MIT */
/* The host's breakpoints and watchpoints. */
#include "softcpu.h"

#include <string.h>

void soft_on_breakpoint(uc_engine *engine, uint64_t address, uint32_t size, void *data)
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

int soft_set_breakpoints(struct soft_cpu *s, const uint64_t *addresses, uint32_t count)
{
    for (uint32_t i = 0; i < s->breakpoint_count; i++)
        unicorn.hook_del(s->engine, s->breakpoint_hooks[i]);
    s->breakpoint_count = 0;
    for (uint32_t i = 0; i < count; i++) {
        int error = unicorn.hook_add(s->engine, &s->breakpoint_hooks[i], UC_HOOK_CODE, soft_on_breakpoint, s, addresses[i], addresses[i]);
        if (error)
            return error;
        s->breakpoints[s->breakpoint_count++] = addresses[i];
    }
    return unicorn.ctl(s->engine, UC_CTL_FLUSH_TB); /* what was translated before has no hooks in it */
}

static int touches(const struct soft_watch *w, uint64_t gpa, uint32_t size, int type)
{
    return gpa < w->gpa + w->size && w->gpa < gpa + size && (w->reads || type == UC_MEM_WRITE);
}

static void on_watch(uc_engine *engine, int type, uint64_t gpa, int size, int64_t value, void *data)
{
    struct soft_cpu *s = data;
    (void)engine, (void)value;
    if (s->probing)
        return;
    for (uint32_t i = 0; i < s->watch_count; i++)
        s->watch_hits |= touches(&s->watches[i], gpa, size, type) << i;
    for (uint32_t i = 0; i < SOFT_BREAKPOINTS; i++)
        s->guest_hits |= touches(&s->guest_watches[i], gpa, size, type) << i;
}

/* Memory is hooked only while somebody watches: it makes every access slow. */
static int hook_memory(struct soft_cpu *s)
{
    int wanted = s->watch_count || s->guest_watching;
    if (wanted == s->is_watched)
        return 0;
    s->is_watched = wanted;
    int error = 0;
    if (wanted)
        error = unicorn.hook_add(s->engine, &s->watch_hook, UC_HOOK_MEM_READ | UC_HOOK_MEM_WRITE, on_watch, s, (uint64_t)1, (uint64_t)0);
    else
        error = unicorn.hook_del(s->engine, s->watch_hook);
    return error ? error : unicorn.ctl(s->engine, UC_CTL_FLUSH_TB);
}

int soft_set_watches(struct soft_cpu *s, const struct soft_watch *watches, uint32_t count)
{
    s->watch_count = count;
    memcpy(s->watches, watches, count * sizeof *watches);
    return hook_memory(s);
}

/*
 * The guest's own breakpoints, from its DR0 to DR3 and DR7 (Intel SDM vol. 3, 17.2): data is watched, and instructions are
 * compared, one by one. Where the data lies is found when the registers are written. I/O breakpoints are not there.
 */
void soft_watch_for_guest(struct soft_cpu *s)
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
        if (enabled && kind && soft_walk(s, s->guest_dr[i], SOFT_LOOK, 0, &w->gpa).vector < 0)
            *w = (struct soft_watch){w->gpa, SIZES[dr7 >> (18 + 4 * i) & 3], kind == 3};
        s->guest_breaks |= (enabled && !kind) << i;
        s->guest_watching |= enabled;
    }
    hook_memory(s);
}

static int debug_exception(struct soft_cpu *s, uint32_t hits)
{
    s->guest_dr[6] = (s->guest_dr[6] & ~15ull) | hits;
    s->shut_down = !soft_deliver(s, DB, 0, 0, EVENT_FAULT);
    soft_store_cpu(s, 0);
    return 1;
}

/* The fault in front of an instruction that the guest has a breakpoint on; 1 when it was raised. */
int soft_break_for_guest(struct soft_cpu *s)
{
    struct cpu *c = soft_load_cpu(s);
    uint32_t hits = 0;
    for (int i = 0; i < SOFT_BREAKPOINTS; i++)
        hits |= ((s->guest_breaks >> i & 1) && s->guest_dr[i] == soft_linear_rip(c)) << i;
    return hits && !(c->eflags & FLAG_RF) ? debug_exception(s, hits) : 0;
}

/* The trap behind an instruction that touched data which the guest watches. */
void soft_trap_for_guest(struct soft_cpu *s)
{
    uint32_t hits = s->guest_hits;
    s->guest_hits = 0;
    if (hits) {
        soft_load_cpu(s);
        debug_exception(s, hits);
    }
}
