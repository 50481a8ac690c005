"""Who executes the guest. Every accelerator gives the same Vm, Vcpu and Exits."""
