/* kvmpy-oci: plays the tape that create left for a verb (shortcuts.py), or starts Python for it. Callers run a runtime
   three or four times for each container, and an interpreter takes 5 ms to start.

   Only `start ID` and `delete [--force] ID` with known global options are played; everything else, and every surprise, is
   Python's. */
#include "tape.h"

enum { SYS_read = 0, SYS_open = 2, SYS_fstat = 5, SYS_mmap = 9, SYS_execve = 59, SYS_readlink = 89,
       SYS_geteuid = 107 };
enum { O_RDONLY = 0, PROT_READ = 1, PROT_WRITE = 2, MAP_PRIVATE = 2, MAP_FIXED_NOREPLACE = 0x100000 };
enum { LONGEST_PATH = 4096 };

#ifndef PYTHON
#define PYTHON "/usr/bin/python3"
#endif

static int same(const char *a, const char *b) {
    while (*a && *a == *b)
        a++, b++;
    return *a == *b;
}

static u64 length(const char *text) {
    u64 n = 0;
    while (text[n])
        n++;
    return n;
}

/* Append to a path; one that is too long comes out as none. */
static void append(char *path, const char *text) {
    u64 at = length(path);
    if (at + length(text) >= LONGEST_PATH) {
        path[0] = 0;
        return;
    }
    while ((path[at++] = *text++))
        ;
}

/* Cut the last name off a path. */
static void up(char *path) {
    u64 at = length(path);
    while (at && path[--at] != '/')
        ;
    path[at] = 0;
}

static const char *last_name(const char *path) {
    const char *name = path;
    for (; *path; path++)
        if (*path == '/')
            name = path + 1;
    return name;
}

static int has(const char *text, char wanted) {
    for (; *text; text++)
        if (*text == wanted)
            return 1;
    return 0;
}

/* Find the root, verb and name of a call that a tape may do; 0 when there is anything else in it. */
static int understand(char **arguments, const char **root, const char **verb, const char **name) {
    int force = 0;
    *verb = *name = 0;
    for (; *arguments; arguments++) {
        const char *a = *arguments;
        if (same(a, "--root") || same(a, "--log") || same(a, "--log-format")) {
            if (*verb || !arguments[1])
                return 0;
            arguments++;
            if (same(a, "--root"))
                *root = *arguments;
        } else if (same(a, "--force") || same(a, "-f")) {
            force = 1;
        } else if (a[0] == '-' || a[0] == '.' || !a[0] || has(a, '/')) {
            return 0;
        } else if (!*verb) {
            *verb = a;
        } else if (!*name) {
            *name = a;
        } else {
            return 0;
        }
    }
    if (!*name)
        return 0;
    return same(*verb, "delete") || (same(*verb, "start") && !force);
}

static long open_tape(const char *root, const char *verb, const char *name) {
    static char path[LONGEST_PATH];
    path[0] = 0;
    append(path, root);
    append(path, "/");
    append(path, name);
    append(path, "/");
    append(path, verb);
    append(path, ".tape");
    return path[0] == '/' ? system_call(SYS_open, (u64)path, O_RDONLY | O_CLOEXEC, 0, 0, 0, 0) : -1;
}

/* Do the verb by its tape; say whether it is done. */
static int play(char **arguments) {
    const char *root = "/run/kvmpy-oci", *verb, *name;
    u64 status[18];
    int error;
    if (system_call(SYS_geteuid, 0, 0, 0, 0, 0, 0) != 0 || !understand(arguments, &root, &verb, &name))
        return 0;
    long fd = open_tape(root, verb, name);
    if (fd < 0 || system_call(SYS_fstat, fd, (u64)status, 0, 0, 0, 0) < 0)
        return 0;
    u64 size = status[6], owner = status[3] >> 32, mode = status[3] & 07777; /* st_size, st_uid, st_mode of struct stat */
    if (owner != 0 || mode & 022) /* system calls of somebody else's choice */
        return 0;
    if (system_call(SYS_mmap, TAPE_ADDRESS, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED_NOREPLACE, fd, 0) !=
        (long)TAPE_ADDRESS)
        return 0;
    system_call(SYS_close, fd, 0, 0, 0, 0, 0);
    return run_tape(&error) == (long)THE_TAPE->count;
}

/* Whether a file is compiled for PYTHON: its first word says so (importlib.util.MAGIC_NUMBER). */
static int compiled(const char *path) {
    unsigned magic = 0;
    long fd = system_call(SYS_open, (u64)path, O_RDONLY | O_CLOEXEC, 0, 0, 0, 0);
    if (fd < 0)
        return 0;
    system_call(SYS_read, fd, (u64)&magic, sizeof magic, 0, 0, 0);
    system_call(SYS_close, fd, 0, 0, 0, 0, 0);
    return magic == MAGIC;
}

/* Start Python with what lies beside this program: the one that the program was compiled for, or else that of the
   environment it is installed in, with the source. */
static void start_python(long count, char **arguments, char **environment) {
    static char program[LONGEST_PATH], main[LONGEST_PATH], python[LONGEST_PATH], *with[1024];
    long size = system_call(SYS_readlink, (u64) "/proc/self/exe", (u64)program, LONGEST_PATH - 1, 0, 0, 0);
    if (size <= 0 || count + 4 > 1024)
        return;
    program[size] = 0;
    up(program); /* …/kvmpy/container/native */
    append(main, program);
    append(program, "/main");
    up(main);
    append(python, main);
    append(main, "/main.py");
    up(python);
    up(python); /* …/lib/pythonX.Y/site-packages, or a checkout */
    int installed = same(last_name(python), "site-packages");
    up(python);
    up(python);
    up(python);
    append(python, "/bin/python3");
    with[1] = "-I";
    with[2] = "-S";
    for (long n = 1; n < count; n++)
        with[3 + n] = arguments[n];
    with[0] = PYTHON;
    with[3] = compiled(program) ? program : main;
    system_call(SYS_execve, (u64)PYTHON, (u64)with, (u64)environment, 0, 0, 0);
    with[0] = python;
    with[3] = main;
    if (installed)
        system_call(SYS_execve, (u64)python, (u64)with, (u64)environment, 0, 0, 0);
}

__attribute__((used)) static void start(u64 *stack) {
    static const char complaint[] = "kvmpy-oci: " PYTHON " cannot be started; install kvmpy again\n";
    long count = (long)stack[0];
    char **arguments = (char **)(stack + 1), **environment = arguments + count + 1;
    if (play(arguments + 1))
        system_call(SYS_exit_group, 0, 0, 0, 0, 0, 0);
    start_python(count, arguments, environment);
    system_call(SYS_write, 2, (u64)complaint, sizeof complaint - 1, 0, 0, 0);
    system_call(SYS_exit_group, 1, 0, 0, 0, 0, 0);
}

/* The kernel leaves the number of arguments, the arguments and the environment on the stack (execve(2), System V ABI). */
__asm__(".globl _start\n_start:\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall start\n");
