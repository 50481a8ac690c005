"""How to watch a guest."""
