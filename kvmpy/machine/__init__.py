"""The box: bus, interrupt lines, vCPU threads, the run loop, stop reasons."""
