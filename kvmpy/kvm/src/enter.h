/* SPDX-License-Identifier: MIT */
#ifndef KVMPY_ENTER_H
#define KVMPY_ENTER_H

#include <pthread.h>
#include <stdint.h>
#include <linux/kvm.h>

/*
 * An exit packed into one integer, so that one call tells Python all it needs for the common ones:
 *   bits  0-7   the reason, in KVM's numbering (KVM_EXIT_*)
 *   bits  8-11  width of a port or MMIO access in bytes
 *   bit  12     the guest writes
 *   bit  13     a string instruction: several items lie in the data area
 *   bit  14     coalesced writes wait in the ring and came before this exit
 *   bits 16-31  the port
 *   bits 32-63  the value written to the port, or errno
 */
#define KVMPY_OUT (1u << 12)
#define KVMPY_MANY (1u << 13)
#define KVMPY_RING_PENDING (1u << 14)
#define KVMPY_ATTENTION 0xfeu /* not entered: the vCPU has other things to do first */
#define KVMPY_ERROR 0xffu
#define KVMPY_RECENT 32u

struct kvmpy_vcpu {
    int fd;
    struct kvm_run *run;
    struct kvm_coalesced_mmio_ring *ring; /* NULL when the kernel has none */
    pthread_mutex_t *lock;                /* held by the thread that enters, except in the guest; NULL for none */
    void *answer_at;                      /* where the pending read wants its answer */
    uint32_t answer_size;
    int pending;                          /* an access that the next entry completes */
    int thread;                           /* kernel id of the thread that entered last */
    int attention;                        /* kvmpy_enter() shall not enter but return KVMPY_ATTENTION */
    int kicked;                           /* a kick is under way */
    int may_wait;                         /* the next EAGAIN may be the end of waiting for INIT and SIPI */
    uint64_t entries;                     /* how often KVM_RUN was called */
    uint64_t exits;                       /* how many exits were packed; the last ones are in `recent` */
    uint64_t recent[KVMPY_RECENT];        /* a ring: exit n is at n % KVMPY_RECENT */
};

/* Writes to one address that followed each other in the ring. */
struct kvmpy_write {
    uint64_t address;
    uint32_t size;
    uint32_t is_port;
    uint32_t count;
    uint8_t data[2048];
};

int64_t kvmpy_ioctl(int fd, unsigned long request, void *argument);
int64_t kvmpy_ioctl_value(int fd, unsigned long request, unsigned long argument);
uint64_t kvmpy_enter(struct kvmpy_vcpu *vcpu);
uint64_t kvmpy_complete(struct kvmpy_vcpu *vcpu);
void kvmpy_answer(struct kvmpy_vcpu *vcpu, uint64_t value);
int kvmpy_pending(struct kvmpy_vcpu *vcpu);
void kvmpy_kick(struct kvmpy_vcpu *vcpu);
void kvmpy_forget_kick(struct kvmpy_vcpu *vcpu);
uint64_t kvmpy_kick_signals(void);
int kvmpy_lock_within(pthread_mutex_t *mutex, int64_t nanoseconds);
int kvmpy_install_kick_handler(void);
int kvmpy_drain(struct kvm_coalesced_mmio_ring *ring, uint32_t capacity, struct kvmpy_write *write);

#endif
