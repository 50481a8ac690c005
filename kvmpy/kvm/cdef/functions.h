/* What Python calls of src/: read by cffi, and by the C part itself. */
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
