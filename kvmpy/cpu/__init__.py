"""What an x86 processor is: its state, modes, tables and identification. Pure Python, no I/O."""
