/* SPDX-License-Identifier: MIT */
/* The hot path of the binding: enter the guest, pack the exit, wake a vCPU from another thread. */
#define _GNU_SOURCE
#include "enter.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int64_t kvmpy_ioctl(int fd, unsigned long request, void *argument)
{
    int result = ioctl(fd, request, argument);
    return result < 0 ? -errno : result;
}

int64_t kvmpy_ioctl_value(int fd, unsigned long request, unsigned long argument)
{
    int result = ioctl(fd, request, argument);
    return result < 0 ? -errno : result;
}

/* Return 0 when the mutex was taken within so many nanoseconds. */
int kvmpy_lock_within(pthread_mutex_t *mutex, int64_t nanoseconds)
{
    struct timespec end;
    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += (end.tv_nsec + nanoseconds) / 1000000000;
    end.tv_nsec = (end.tv_nsec + nanoseconds) % 1000000000;
    return pthread_mutex_timedlock(mutex, &end);
}

static uint64_t signals; /* kick signals that were taken, by all threads together */

/* The kick signal only has to interrupt KVM_RUN; the handler runs no Python. */
static void count(int signo)
{
    (void)signo;
    __atomic_fetch_add(&signals, 1, __ATOMIC_RELAXED);
}

uint64_t kvmpy_kick_signals(void)
{
    return __atomic_load_n(&signals, __ATOMIC_RELAXED);
}

int kvmpy_install_kick_handler(void)
{
    struct sigaction action = {.sa_handler = count}; /* no SA_RESTART: KVM_RUN must return EINTR */
    return sigaction(SIGRTMIN, &action, NULL) < 0 ? -errno : 0;
}

/*
 * immediate_exit covers the window before KVM_RUN sleeps, the signal a guest that is already running
 * (Documentation/virt/kvm/api.rst, 5). A thread that has left the guest meanwhile takes the signal for nothing. While a
 * kick is under way no other is sent: real-time signals queue.
 */
void kvmpy_kick(struct kvmpy_vcpu *vcpu)
{
    if (!vcpu->run || __atomic_exchange_n(&vcpu->kicked, 1, __ATOMIC_SEQ_CST))
        return;
    __atomic_store_n(&vcpu->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
    int thread = __atomic_load_n(&vcpu->thread, __ATOMIC_SEQ_CST);
    if (thread)
        syscall(SYS_tgkill, getpid(), thread, SIGRTMIN);
}

/* In this order: a kick that falls between the two finds `kicked` set, and the caller is out of the guest anyway. */
void kvmpy_forget_kick(struct kvmpy_vcpu *vcpu)
{
    if (vcpu->run)
        __atomic_store_n(&vcpu->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
    __atomic_store_n(&vcpu->kicked, 0, __ATOMIC_SEQ_CST);
}

static struct kvmpy_exit *exit_before(struct kvmpy_vcpu *vcpu)
{
    return &vcpu->recent[(vcpu->exits - 1) % KVMPY_RECENT];
}

/* Keep the answer of the last exit, if it was a read. Behind it lies more of the run page: eight bytes can be loaded. */
void kvmpy_keep_answer(struct kvmpy_vcpu *vcpu)
{
    if (!vcpu->run || !vcpu->answer_at)
        return;
    uint64_t value, unused_bits = 64 - 8 * vcpu->answer_size;
    memcpy(&value, vcpu->answer_at, sizeof value);
    exit_before(vcpu)->value = value << unused_bits >> unused_bits;
}

/*
 * Once set, `thread` stays: a kick between two entries then costs that thread one EINTR at most, and no entry a fence.
 * The TLS model spares each entry a call of __tls_get_addr().
 */
static int run(struct kvmpy_vcpu *vcpu)
{
    static __thread int thread __attribute__((tls_model("initial-exec")));
    if (!vcpu->run)
        return EBADF;
    if (!thread)
        thread = syscall(SYS_gettid);
    if (vcpu->thread != thread)
        __atomic_store_n(&vcpu->thread, thread, __ATOMIC_SEQ_CST);
    kvmpy_keep_answer(vcpu);
    vcpu->pending = 0;
    vcpu->answer_at = NULL;
    __atomic_store_n(&vcpu->entries, vcpu->entries + 1, __ATOMIC_RELAXED);
    return ioctl(vcpu->fd, KVM_RUN, 0) < 0 ? errno : 0;
}

/* A read is all ones until it is answered, as on a bus where nobody drives the lines. */
static void expect_answer(struct kvmpy_vcpu *vcpu, void *data, uint32_t size)
{
    vcpu->answer_at = memset(data, 0xff, size);
    vcpu->answer_size = size;
}

void kvmpy_answer(struct kvmpy_vcpu *vcpu, uint64_t value)
{
    if (vcpu->answer_at)
        memcpy(vcpu->answer_at, &value, vcpu->answer_size); /* x86 is little-endian: the low bytes come first */
}

static uint64_t pack_io(struct kvmpy_vcpu *vcpu)
{
    struct kvm_run *run = vcpu->run;
    uint8_t *data = (uint8_t *)run + run->io.data_offset;
    uint64_t exit = KVM_EXIT_IO | run->io.size << 8 | (uint64_t)run->io.port << 16;
    vcpu->pending = 1;
    if (run->io.direction == KVM_EXIT_IO_OUT) {
        uint32_t unused_bits = 32 - 8 * run->io.size; /* a fixed-size load and a mask: cheaper here than memcpy() */
        exit |= KVMPY_OUT | (uint64_t)(*(uint32_t *)data << unused_bits >> unused_bits) << 32;
    }
    if (run->io.count != 1)
        return (uint32_t)exit | KVMPY_MANY;
    if (run->io.direction != KVM_EXIT_IO_OUT)
        expect_answer(vcpu, data, run->io.size);
    return exit;
}

static uint64_t pack_mmio(struct kvmpy_vcpu *vcpu)
{
    struct kvm_run *run = vcpu->run;
    vcpu->pending = 1;
    if (run->mmio.is_write)
        return KVM_EXIT_MMIO | run->mmio.len << 8 | KVMPY_OUT;
    expect_answer(vcpu, run->mmio.data, run->mmio.len);
    return KVM_EXIT_MMIO | run->mmio.len << 8;
}

/*
 * KVM_RUN answers EAGAIN when an application processor that waited for its INIT or SIPI has got it, and also when KVM
 * could not make its worker thread. Only a vCPU that may have waited is believed, and a second time only if it still does.
 */
static int woke_up(struct kvmpy_vcpu *vcpu)
{
    struct kvm_mp_state state;
    int may_have_waited = vcpu->may_wait;
    vcpu->may_wait = ioctl(vcpu->fd, KVM_GET_MP_STATE, &state) == 0 && state.mp_state == KVM_MP_STATE_UNINITIALIZED;
    return may_have_waited;
}

static uint64_t pack(struct kvmpy_vcpu *vcpu, int failed)
{
    struct kvm_run *run = vcpu->run;
    if (failed == EINTR || (failed == EAGAIN && woke_up(vcpu))) {
        kvmpy_forget_kick(vcpu);
        return KVM_EXIT_INTR;
    }
    if (failed)
        return KVMPY_ERROR | (uint64_t)failed << 32;
    if (run->exit_reason == KVM_EXIT_IO)
        return pack_io(vcpu);
    switch (run->exit_reason) {
    case KVM_EXIT_MMIO:
        return pack_mmio(vcpu);
    case KVM_EXIT_X86_RDMSR:
    case KVM_EXIT_X86_WRMSR:
    case KVM_EXIT_HYPERCALL:
        vcpu->pending = 1;
        break;
    }
    return run->exit_reason;
}

static uint64_t keep(struct kvmpy_vcpu *vcpu, uint64_t exit)
{
    struct kvmpy_exit *past = &vcpu->recent[vcpu->exits++ % KVMPY_RECENT];
    past->code = exit;
    if ((exit & 0xff) == KVM_EXIT_MMIO) {
        past->gpa = vcpu->run->mmio.phys_addr;
        past->value = 0;
        if (exit & KVMPY_OUT)
            memcpy(&past->value, vcpu->run->mmio.data, vcpu->run->mmio.len);
    }
    return exit;
}

/*
 * The lock is dropped here and not in Python: after an exit the branch predictors are cold, and a lock of Python's costs
 * 0.8 us. `recent` is kept here for the same reason.
 */
uint64_t kvmpy_enter(struct kvmpy_vcpu *vcpu)
{
    pthread_mutex_t *lock = vcpu->lock;
    if (vcpu->attention)
        return KVMPY_ATTENTION;
    if (lock)
        pthread_mutex_unlock(lock);
    uint64_t exit = pack(vcpu, run(vcpu));
    if (vcpu->run && vcpu->ring && __atomic_load_n(&vcpu->ring->last, __ATOMIC_ACQUIRE) != vcpu->ring->first)
        exit |= KVMPY_RING_PENDING;
    keep(vcpu, exit);
    if (lock)
        pthread_mutex_lock(lock);
    return exit;
}

/*
 * KVM finishes an instruction that exited only when the guest is entered again. Enter and leave at once, so that
 * the registers are those behind the instruction. A multi-part access may exit anew: the caller sees that exit.
 * A kick that came before or comes meanwhile is left for the next entry.
 */
uint64_t kvmpy_complete(struct kvmpy_vcpu *vcpu)
{
    if (!vcpu->run)
        return KVMPY_ERROR | (uint64_t)EBADF << 32;
    uint8_t *immediate_exit = &vcpu->run->immediate_exit;
    __atomic_store_n(immediate_exit, 1, __ATOMIC_SEQ_CST);
    int failed = run(vcpu);
    __atomic_store_n(immediate_exit, 0, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&vcpu->kicked, __ATOMIC_SEQ_CST))
        __atomic_store_n(immediate_exit, 1, __ATOMIC_SEQ_CST);
    return failed == EINTR ? KVM_EXIT_INTR : keep(vcpu, pack(vcpu, failed));
}

int kvmpy_pending(struct kvmpy_vcpu *vcpu)
{
    return vcpu->pending;
}

/*
 * Take the oldest coalesced write and those behind it that went to the same address. KVM fills the ring at `last`, user
 * space empties it at `first`. Returns how many entries were taken.
 */
int kvmpy_drain(struct kvm_coalesced_mmio_ring *ring, uint32_t capacity, struct kvmpy_write *write)
{
    uint32_t first = ring->first;
    uint32_t last = __atomic_load_n(&ring->last, __ATOMIC_ACQUIRE);
    uint32_t used = 0;
    write->count = 0;
    while (first != last && first < capacity) {
        struct kvm_coalesced_mmio *entry = &ring->coalesced_mmio[first];
        if (!write->count) {
            write->address = entry->phys_addr;
            write->size = entry->len;
            write->is_port = entry->pio;
        } else if (entry->phys_addr != write->address || entry->len != write->size || entry->pio != write->is_port) {
            break;
        }
        if (entry->len > sizeof entry->data || used + entry->len > sizeof write->data)
            break;
        memcpy(write->data + used, entry->data, entry->len);
        used += entry->len;
        write->count++;
        first = (first + 1) % capacity;
    }
    __atomic_store_n(&ring->first, first, __ATOMIC_RELEASE);
    return write->count;
}
