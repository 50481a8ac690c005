"""What is plugged into the machine, one file per device. A device does not know what executes the guest."""
