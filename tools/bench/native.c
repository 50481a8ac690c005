/* Nanoseconds per round of the loop that tools/bench/run.py also runs in a guest's ring 3. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
    unsigned long rounds = argc > 1 ? strtoul(argv[1], NULL, 0) : 500000000ul;
    unsigned long left = rounds, a = 1, b = 3;
    double start = now();
    __asm__ volatile("1: imul %2, %1\n add %0, %1\n dec %0\n jnz 1b" : "+r"(left), "+r"(a) : "r"(b) : "cc");
    printf("%.6f\n", (now() - start) / rounds * 1e9);
    return a == 0;
}
