/* SPDX-License-Identifier: MIT */
/*
 * The vCPUs of a VM take turns on its engine, in the order in which they ask. A turn ends by an exit, by HLT, by PAUSE where
 * somebody waits, or when its slice is over and somebody waits: who waits first stops it then, so that there is no clock to
 * look at while nobody does. LOCK and XCHG need nothing more, code is translated once, and what one vCPU writes over it the
 * others see.
 */
#include "softcpu.h"

#include <time.h>

#define SLICE 1000000 /* ns */
#define SPIN 20000    /* ns: what it costs to wake a thread up on a core that sleeps */
#define SECOND 1000000000ll

static __thread struct soft_vm *here; /* whose engine this thread runs */

struct soft_vm *soft_here(void)
{
    return here;
}

/* The vCPU that is on this state, NULL when the engine is not one of ours. */
struct soft_cpu *soft_mine(const struct cpu *state)
{
    return here && here->state == state ? here->runner : NULL;
}

static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

static void queue(struct soft_cpu *s)
{
    struct soft_vm *vm = s->vm;
    s->next_waiting = NULL;
    if (vm->first)
        vm->behind_last->next_waiting = s;
    else
        vm->first = s;
    vm->behind_last = s;
}

/* Who is first from now on has to look at the slice of who runs. */
static void unqueue(struct soft_cpu *s)
{
    struct soft_vm *vm = s->vm;
    struct soft_cpu *before = NULL;
    for (struct soft_cpu *at = vm->first; at && at != s; at = at->next_waiting)
        before = at;
    *(before ? &before->next_waiting : &vm->first) = s->next_waiting;
    if (vm->behind_last == s)
        vm->behind_last = before;
    if (vm->first)
        pthread_cond_signal(&vm->first->turn);
}

static int is_kicked(struct soft_cpu *s)
{
    return __atomic_load_n(&s->kicked, __ATOMIC_SEQ_CST);
}

static int is_next(const struct soft_cpu *s)
{
    const struct soft_cpu *first = s->vm->first;
    return first == s || (first && first->next_waiting == s);
}

static int is_its_turn(struct soft_cpu *s)
{
    return __atomic_load_n(&s->vm->first, __ATOMIC_RELAXED) == s && !__atomic_load_n(&s->vm->runner, __ATOMIC_RELAXED);
}

/* Before it sleeps it looks for a while whether it has its turn, for those that PAUSE ends are short. */
static void spin(struct soft_cpu *s)
{
    struct soft_vm *vm = s->vm;
    int64_t end = now() + SPIN;
    pthread_mutex_unlock(&vm->mutex);
    while (!is_its_turn(s) && !__atomic_load_n(&vm->closed, __ATOMIC_RELAXED) && !is_kicked(s) && now() < end)
        __builtin_ia32_pause();
    pthread_mutex_lock(&vm->mutex);
}

static void wait_for_end(struct soft_cpu *s)
{
    struct soft_vm *vm = s->vm;
    if (vm->first != s || !vm->runner) {
        pthread_cond_wait(&s->turn, &vm->mutex);
        return;
    }
    struct timespec end = {vm->slice_end / SECOND, vm->slice_end % SECOND};
    if (now() < vm->slice_end) {
        pthread_cond_timedwait(&s->turn, &vm->mutex, &end);
        return;
    }
    vm->gives_way = 1;
    unicorn.emu_stop(vm->engine); /* it may come too early to be heard: soft_cpu_exec() looks too */
    vm->slice_end += SLICE;
}

/* The state goes to the engine. What the engine remembers of addresses is that of the vCPU that was on it last. */
static enum soft_turn begin(struct soft_cpu *s)
{
    struct soft_vm *vm = s->vm;
    vm->runner = s;
    vm->gives_way = 0;
    if (vm->cpu_count > 1)
        vm->slice_end = now() + SLICE;
    int is_stale = vm->last != s || s->is_set || vm->is_written;
    soft_forget_written(vm);
    *vm->state = s->saved;
    s->cpu = vm->state;
    s->is_set = 0;
    vm->last = s;
    here = vm;
    if (is_stale)
        unicorn.ctl(vm->engine, UC_CTL_FLUSH_TLB);
    return TAKEN;
}

static enum soft_turn wait_and_begin(struct soft_cpu *s, int heeds_kick)
{
    struct soft_vm *vm = s->vm;
    for (int may_spin = 1; vm->first != s || vm->runner;) {
        if (vm->closed || (heeds_kick && is_kicked(s))) {
            unqueue(s);
            return vm->closed ? CLOSED : KICKED;
        }
        if (may_spin && is_next(s)) {
            may_spin = 0;
            spin(s);
        } else {
            wait_for_end(s);
        }
    }
    unqueue(s);
    if (vm->closed)
        return CLOSED;
    s->engine_error = vm->remap ? soft_map(vm) : 0;
    return s->engine_error ? FAILED : begin(s);
}

/* Wait for the engine and take it; a kick ends the waiting of who heeds it. */
enum soft_turn soft_take_turn(struct soft_cpu *s, int heeds_kick)
{
    pthread_mutex_lock(&s->vm->mutex);
    queue(s);
    enum soft_turn turn = wait_and_begin(s, heeds_kick);
    pthread_mutex_unlock(&s->vm->mutex);
    return turn;
}

static void end(struct soft_cpu *s)
{
    struct soft_vm *vm = s->vm;
    s->saved = *vm->state;
    s->cpu = &s->saved;
    vm->runner = NULL;
    here = NULL;
    if (vm->first)
        pthread_cond_signal(&vm->first->turn);
    if (vm->closed || !vm->first)
        pthread_cond_broadcast(&vm->idle);
}

void soft_end_turn(struct soft_cpu *s)
{
    pthread_mutex_lock(&s->vm->mutex);
    end(s);
    pthread_mutex_unlock(&s->vm->mutex);
}

/*
 * Let the others have their turn. It is in the queue before the engine is free: else who comes next finds nobody waiting at
 * its PAUSE, and spins until its slice is over.
 */
enum soft_turn soft_give_way(struct soft_cpu *s)
{
    pthread_mutex_lock(&s->vm->mutex);
    queue(s);
    end(s);
    enum soft_turn turn = wait_and_begin(s, 1);
    pthread_mutex_unlock(&s->vm->mutex);
    return turn;
}

/* It has been kicked: wherever it is, it shall look. */
void soft_wake(struct soft_cpu *s)
{
    struct soft_vm *vm = s->vm;
    pthread_mutex_lock(&vm->mutex);
    if (vm->runner == s)
        unicorn.emu_stop(vm->engine);
    else
        pthread_cond_signal(&s->turn);
    pthread_mutex_unlock(&vm->mutex);
}
