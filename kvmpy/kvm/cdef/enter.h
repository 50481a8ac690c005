/* The C part of the binding: see src/enter.c. */
#define KVMPY_RING_PENDING ...
#define KVMPY_MANY ...
#define KVMPY_OUT ...
#define KVMPY_ATTENTION ...
#define KVMPY_ERROR ...
#define KVMPY_RECENT ...

typedef struct { ...; } pthread_mutex_t;
int pthread_mutex_init(pthread_mutex_t *mutex, const void *attributes);
int pthread_mutex_lock(pthread_mutex_t *mutex);
int pthread_mutex_unlock(pthread_mutex_t *mutex);

struct kvmpy_exit { uint64_t code, gpa, value; ...; };
struct kvmpy_vcpu {
    int fd;
    struct kvm_run *run;
    struct kvm_coalesced_mmio_ring *ring;
    uint64_t entries;
    pthread_mutex_t *lock;
    int attention, may_wait;
    uint64_t exits;
    struct kvmpy_exit recent[];
    ...;
};
struct kvmpy_write { uint64_t address; uint32_t size; uint32_t is_port; uint32_t count; uint8_t data[2048]; };

int64_t kvmpy_ioctl(int fd, unsigned long request, void *argument);
int64_t kvmpy_ioctl_value(int fd, unsigned long request, unsigned long argument);
uint64_t kvmpy_enter(struct kvmpy_vcpu *vcpu);
uint64_t kvmpy_complete(struct kvmpy_vcpu *vcpu);
void kvmpy_answer(struct kvmpy_vcpu *vcpu, uint64_t value);
void kvmpy_keep_answer(struct kvmpy_vcpu *vcpu);
int kvmpy_pending(struct kvmpy_vcpu *vcpu);
void kvmpy_kick(struct kvmpy_vcpu *vcpu);
void kvmpy_forget_kick(struct kvmpy_vcpu *vcpu);
uint64_t kvmpy_kick_signals(void);
int kvmpy_lock_within(pthread_mutex_t *mutex, int64_t nanoseconds);
int kvmpy_install_kick_handler(void);
int kvmpy_drain(struct kvm_coalesced_mmio_ring *ring, uint32_t capacity, struct kvmpy_write *write);
