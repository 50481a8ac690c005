/* SPDX-License-Identifier: MIT */
#ifndef KVMPY_ENTER_H
#define KVMPY_ENTER_H

#include <pthread.h>
#include <stdint.h>
#include <linux/kvm.h>

#include "packed.h"

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
    struct kvmpy_exit recent[KVMPY_RECENT]; /* a ring: exit n is at n % KVMPY_RECENT */
};

/* Writes to one address that followed each other in the ring. */
struct kvmpy_write {
    uint64_t address;
    uint32_t size;
    uint32_t is_port;
    uint32_t count;
    uint8_t data[2048];
};

#include "functions.h"

#endif
