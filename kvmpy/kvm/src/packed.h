/* SPDX-License-Identifier: MIT */
#ifndef KVMPY_PACKED_H
#define KVMPY_PACKED_H

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

/*
 * An exit that was: packed, the GPA of an MMIO access, and what was written to it or answered; for other exits `gpa` and
 * `value` are left from before. Aligned, for after an exit each line of the cache that is touched is a miss.
 */
struct kvmpy_exit {
    uint64_t code, gpa, value;
} __attribute__((aligned(32)));

#endif
