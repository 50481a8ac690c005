/* SPDX-License-Identifier: MIT */
/*
 * Structs that older kernel headers lack, as Linux 6.11 has them: the binding needs their layout to be built at all.
 * Their ioctls stay absent there (`binding.has`), so nobody gets to use them.
 */
#ifndef KVMPY_NEWER_H
#define KVMPY_NEWER_H

#include <linux/kvm.h>

#ifndef KVM_SET_USER_MEMORY_REGION2
struct kvm_userspace_memory_region2 {
    __u32 slot, flags;
    __u64 guest_phys_addr, memory_size, userspace_addr, guest_memfd_offset;
    __u32 guest_memfd, pad1;
    __u64 pad2[14];
};
#endif
#ifndef KVM_CREATE_GUEST_MEMFD
struct kvm_create_guest_memfd { __u64 size, flags, reserved[6]; };
#endif
#ifndef KVM_SET_MEMORY_ATTRIBUTES
struct kvm_memory_attributes { __u64 address, size, attributes, flags; };
#endif
#ifndef KVM_PRE_FAULT_MEMORY
struct kvm_pre_fault_memory { __u64 gpa, size, flags, padding[5]; };
#endif

#endif
