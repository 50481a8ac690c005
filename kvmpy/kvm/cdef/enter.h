/* The C part of the binding: see src/enter.c. */
#define KVMPY_RING_PENDING ...
#define KVMPY_MANY ...
#define KVMPY_OUT ...
#define KVMPY_ERROR ...

struct kvmpy_vcpu {
    int fd;
    struct kvm_run *run;
    struct kvm_coalesced_mmio_ring *ring;
    uint64_t entries;
    ...;
};
struct kvmpy_write { uint64_t address; uint32_t size; uint32_t is_port; uint32_t count; uint8_t data[2048]; };

int64_t kvmpy_ioctl(int fd, unsigned long request, void *argument);
int64_t kvmpy_ioctl_value(int fd, unsigned long request, unsigned long argument);
uint64_t kvmpy_enter(struct kvmpy_vcpu *vcpu, uint64_t answer);
uint64_t kvmpy_complete(struct kvmpy_vcpu *vcpu, uint64_t answer);
int kvmpy_pending(struct kvmpy_vcpu *vcpu);
void kvmpy_kick(struct kvmpy_vcpu *vcpu);
int kvmpy_install_kick_handler(void);
int kvmpy_drain(struct kvm_coalesced_mmio_ring *ring, uint32_t capacity, struct kvmpy_write *write);
