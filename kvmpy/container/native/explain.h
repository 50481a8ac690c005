/* Why a program cannot be executed: execve(2) gives a number, which for the commonest mistakes says the wrong thing ("no
   such file", of a file that is there). By then nobody listens but the reader of the program's standard error. */
#ifndef KVMPY_EXPLAIN_H
#define KVMPY_EXPLAIN_H

#include "tape.h"

enum { SYS_pread64 = 17, SYS_execve = 59, SYS_openat = 257, SYS_faccessat = 269 };
enum { ENOENT = 2, E2BIG = 7, ENOEXEC = 8, EACCES = 13, ENOTDIR = 20, ETXTBSY = 26, ELOOP = 40, ELIBBAD = 80 };
enum { O_NONBLOCK = 04000 };
enum { EI_CLASS = 4, EI_DATA = 5, ELFDATA2MSB = 2, PT_INTERP = 3, EM_386 = 3, EM_X86_64 = 62 }; /* <elf.h> */
enum { INTERPRETERS = 5 }; /* one above the other; more are ELOOP (fs/exec.c) */
enum { NOT_EXECUTABLE = 126, NOT_FOUND = 127 }; /* the shell's exit codes */
#define AT_FDCWD (-100L)

#define LINE 1024
#define HEAD 4096 /* a file's beginning: in an ELF file the program headers, in a script the first line */
#define NAME 256  /* as much of a first line as the kernel reads (BINPRM_BUF_SIZE) */

struct line {
    unsigned length;
    char text[LINE];
};

/* Append a text, without what would end the line. */
static void say(struct line *line, const char *text) {
    for (; *text && line->length < LINE - 1; text++)
        line->text[line->length++] = (unsigned char)*text < ' ' || *text == 127 ? '?' : *text;
}

static void say_number(struct line *line, unsigned number) {
    char digits[11];
    int at = sizeof digits - 1;
    digits[at] = 0;
    do
        digits[--at] = '0' + number % 10;
    while (number /= 10);
    say(line, digits + at);
}

/* Whether a path leads to something: 0, or the error number. */
static int look(const char *path) {
    return (int)-system_call(SYS_faccessat, AT_FDCWD, (u64)path, 0, 0, 0, 0);
}

static unsigned field(const unsigned char *data, unsigned size) {
    unsigned value = 0;
    while (size--)
        value = value << 8 | data[size];
    return value;
}

static int is_script(const unsigned char *head, long size) {
    return size >= 2 && head[0] == '#' && head[1] == '!';
}

static int is_elf(const unsigned char *head, long size) {
    return size >= 64 && field(head, 4) == 0x464c457f;
}

/* For which processor an ELF file is, e_machine; it says itself which of its bytes comes first. */
static unsigned machine_of(const unsigned char *head) {
    return head[EI_DATA] == ELFDATA2MSB ? (unsigned)head[18] << 8 | head[19] : field(head + 18, 2);
}

static int is_foreign(const unsigned char *head) {
    unsigned machine = machine_of(head);
    return machine != EM_X86_64 && machine != EM_386;
}

/* Read the beginning of a file; return how much of it there is, at most HEAD. */
static long read_head(const char *path, unsigned char *head) {
    long size, fd = system_call(SYS_openat, AT_FDCWD, (u64)path, O_NONBLOCK | O_CLOEXEC, 0, 0, 0);
    if (fd < 0)
        return 0;
    size = system_call(SYS_pread64, fd, (u64)head, HEAD, 0, 0, 0);
    system_call(SYS_close, fd, 0, 0, 0, 0, 0);
    return size < 0 ? 0 : size;
}

static int is_blank(unsigned char c) {
    return c == ' ' || c == '\t';
}

/* The interpreter that a script's first line names (execve(2)); return whether there is one. As the kernel does: of a line
   that is longer than what it reads the name must have an end. */
static int copy_interpreter(char *name, const unsigned char *head, long size) {
    long at = 2, length = 0;
    while (at < size && is_blank(head[at]))
        at++;
    for (; at < size && at < NAME && head[at] && head[at] != '\n' && !is_blank(head[at]); at++)
        name[length++] = (char)head[at];
    name[length] = 0;
    return length && at < NAME;
}

/* An ELF file's loader, PT_INTERP (elf(5)); return whether there is one. */
static int copy_loader(char *name, const unsigned char *head, long size) {
    int wide = head[EI_CLASS] == 2;
    u64 at = field(head + (wide ? 32 : 28), 4);
    unsigned step = field(head + (wide ? 54 : 42), 2), count = field(head + (wide ? 56 : 44), 2);
    for (; count && at + 56 <= (u64)size; count--, at += step) {
        u64 text = field(head + at + (wide ? 8 : 4), 4);
        unsigned length = 0;
        if (field(head + at, 4) != PT_INTERP)
            continue;
        while (length < NAME - 1 && text + length < (u64)size && head[text + length])
            name[length] = (char)head[text + length], length++;
        name[length] = 0;
        return length > 0;
    }
    return 0;
}

/* Find who executes a file. Return what it is called, or 0. */
static const char *find_interpreter(char *name, const unsigned char *head, long size) {
    if (is_script(head, size))
        return copy_interpreter(name, head, size) ? "interpreter " : 0;
    return is_elf(head, size) && !is_foreign(head) && copy_loader(name, head, size) ? "loader " : 0;
}

/* Say of which kind a file is that the kernel cannot execute. */
static void say_format(struct line *line, const unsigned char *head, long size) {
    char name[NAME];
    if (size == 0)
        say(line, " is empty");
    else if (is_elf(head, size) && is_foreign(head)) {
        unsigned machine = machine_of(head);
        say(line, " is a program for another processor: ELF machine "), say_number(line, machine);
        say(line, machine == 183 ? ", aarch64" : machine == 40 ? ", arm" : machine == 243 ? ", riscv" : "");
    } else if (is_script(head, size))
        copy_interpreter(name, head, size),
            say(line, *name ? " has a first line that is longer than the kernel reads (255 bytes)"
                            : " has a first line that names no interpreter");
    else
        say(line, is_elf(head, size) ? " is damaged, or no program" : " is neither an ELF file nor a script with #!");
}

/* Take a carriage return off the end of a name; return whether there was one. */
static int cut_carriage_return(char *name) {
    while (name[1])
        name++;
    if (*name != '\r')
        return 0;
    *name = 0;
    return 1;
}

/* Say that a file is not there, or is no file; `depth` is 1 for the program's own interpreter. */
static void say_missing(struct line *line, const char *role, int depth, int error) {
    if (error == ENOTDIR)
        say(line, " is no file: a part of its path is no directory");
    else
        say(line, " is not in the container");
    if (depth == 1 && error == ENOENT)
        say(line, *role == 'l' ? "; add it and the libraries, or use a static program" : "; add it");
}

/* Follow a file to who interprets it, and on, as execve(2) does, to the first that cannot be executed; say why. */
static void say_who_is_wrong(struct line *line, const char *path) {
    unsigned char head[HEAD];
    char name[NAME];
    long size = read_head(path, head);
    const char *role = find_interpreter(name, head, size);
    if (role && *role == 'i' && look(name) && cut_carriage_return(name)) {
        say(line, "its first line, #!"), say(line, name);
        say(line, ", ends in a carriage return (CRLF); save it with Unix line ends");
        return;
    }
    say(line, role ? "its " : "it");
    for (int depth = 1; role && depth <= INTERPRETERS; depth++) {
        int error = look(name);
        say(line, depth > 1 ? " needs the " : ""), say(line, role), say(line, name), say(line, depth > 1 ? ", which" : "");
        if (error) {
            say_missing(line, role, depth, error);
            return;
        }
        size = read_head(name, head);
        role = find_interpreter(name, head, size);
    }
    say_format(line, head, size);
}

/* Tell in one line why executing a path failed; return the exit code for it. */
static int explain(const char *path, int error) {
    struct line line;
    int missing = look(path);
    line.length = 0;
    say(&line, "exec "), say(&line, path), say(&line, ": ");
    switch (missing ? missing : error) {
    case ENOENT:
    case ENOTDIR:
    case ENOEXEC:
    case ELIBBAD:
    case EIO:
        if (missing)
            say(&line, missing == ENOENT ? "no such file or directory" : "a part of its path is no directory");
        else
            say_who_is_wrong(&line, path);
        break;
    case E2BIG: say(&line, "its arguments and environment are too long"); break;
    case EACCES: say(&line, "permission denied: it, or its interpreter, is not executable, or lies on a noexec mount"); break;
    case ETXTBSY: say(&line, "it is open for writing"); break;
    case ELOOP: say(&line, "too many interpreters, or symbolic links"); break;
    default: say(&line, "error "), say_number(&line, error);
    }
    line.text[line.length++] = '\n';
    system_call(SYS_write, 2, (u64)line.text, line.length, 0, 0, 0);
    return error == ENOENT ? NOT_FOUND : NOT_EXECUTABLE;
}

/* The tape ended at its last execve: of the places where the program could be, tell of the first where it is. */
static int explain_execution(long last, int error) {
    const struct call *calls = THE_TAPE->calls;
    for (long at = 0; at <= last; at++)
        if (calls[at].number == SYS_execve && !look((const char *)calls[at].args[0])) {
            const u64 *a = calls[at].args;
            return explain((const char *)a[0], (int)-system_call(SYS_execve, a[0], a[1], a[2], 0, 0, 0));
        }
    return explain((const char *)calls[last].args[0], error);
}

#endif
