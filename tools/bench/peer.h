/* What the C peers of the benchmarks share: a VM with one vCPU and memory, made by the same ioctls as kvmpy makes. */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define MEMORY (16u << 20)
#define CODE 0x7c00

struct guest {
    int kvm, vm, vcpu, memfd;
    uint8_t *memory;
    struct kvm_run *run;
    size_t run_size;
    struct kvm_cpuid2 *cpuid;
};

static int check(int result, const char *what)
{
    if (result < 0)
        err(1, "%s", what);
    return result;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

/* What is asked once, whatever the number of VMs. */
static void ask_host(struct guest *g)
{
    g->cpuid = calloc(1, sizeof *g->cpuid + 128 * sizeof g->cpuid->entries[0]);
    g->cpuid->nent = 128;
    check(ioctl(g->kvm, KVM_GET_SUPPORTED_CPUID, g->cpuid), "KVM_GET_SUPPORTED_CPUID");
    g->run_size = check(ioctl(g->kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
}

static void set_up(struct guest *g, const void *code, size_t size)
{
    uint64_t identity_map = 0xfffbc000;
    struct kvm_enable_cap quirks = {.cap = KVM_CAP_DISABLE_QUIRKS2, .args = {KVM_X86_QUIRK_FIX_HYPERCALL_INSN}};
    struct kvm_sregs sregs;
    struct kvm_regs regs = {.rip = CODE, .rsp = CODE, .rflags = 2};

    g->vm = check(ioctl(g->kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
    check(ioctl(g->vm, KVM_SET_IDENTITY_MAP_ADDR, &identity_map), "KVM_SET_IDENTITY_MAP_ADDR");
    check(ioctl(g->vm, KVM_SET_TSS_ADDR, 0xfffbd000), "KVM_SET_TSS_ADDR");
    check(ioctl(g->vm, KVM_ENABLE_CAP, &quirks), "KVM_ENABLE_CAP");
    g->memfd = check(memfd_create("ram", MFD_CLOEXEC), "memfd_create");
    check(ftruncate(g->memfd, MEMORY), "ftruncate");
    g->memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED, g->memfd, 0);
    struct kvm_userspace_memory_region slot = {.memory_size = MEMORY, .userspace_addr = (uintptr_t)g->memory};
    check(ioctl(g->vm, KVM_SET_USER_MEMORY_REGION, &slot), "KVM_SET_USER_MEMORY_REGION");
    memcpy(g->memory + CODE, code, size);
    g->vcpu = check(ioctl(g->vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
    g->run = mmap(NULL, g->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, g->vcpu, 0);
    check(ioctl(g->vcpu, KVM_SET_CPUID2, g->cpuid), "KVM_SET_CPUID2");
    check(ioctl(g->vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
    sregs.cs.base = sregs.cs.selector = 0;
    check(ioctl(g->vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
    check(ioctl(g->vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
}

static void tear_down(struct guest *g)
{
    munmap(g->run, g->run_size);
    close(g->vcpu);
    close(g->vm);
    munmap(g->memory, MEMORY);
    close(g->memfd);
}
