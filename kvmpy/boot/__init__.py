"""How a guest gets into a machine."""
