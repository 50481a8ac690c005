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

void *aligned_alloc(size_t alignment, size_t size);
void free(void *memory);
