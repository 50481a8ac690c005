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
