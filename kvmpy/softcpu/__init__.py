"""The software CPU's binding: Unicorn as the engine, and in C around it what must be quick. Begin with src/run.c."""
