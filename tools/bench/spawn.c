/* Run a command; print its seconds and its peak resident KiB to standard error. */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
    struct rusage usage;
    int status, null = open("/dev/null", O_RDWR);
    if (argc < 2)
        errx(2, "usage: spawn COMMAND [ARGUMENT ...]");
    double start = now();
    pid_t child = fork();
    if (child == 0) {
        dup2(null, STDIN_FILENO);
        dup2(null, STDOUT_FILENO);
        execv(argv[1], argv + 1);
        _exit(127);
    }
    if (child < 0 || wait4(child, &status, 0, &usage) < 0)
        err(1, "%s", argv[1]);
    if (status)
        errx(1, "%s ended with status %#x", argv[1], status);
    fprintf(stderr, "%.6f %ld\n", now() - start, usage.ru_maxrss);
    return 0;
}
