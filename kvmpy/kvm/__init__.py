"""The binding to /dev/kvm: one class per file descriptor. It knows ioctls, and nothing else of kvmpy."""
