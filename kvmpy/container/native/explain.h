/* Why a program cannot be executed: execve(2) gives a number, which for the commonest mistakes says the wrong thing ("no
   such file", of a file that is there). By then nobody listens but the reader of the program's standard error. */
#ifndef KVMPY_EXPLAIN_H
#define KVMPY_EXPLAIN_H

#include "tape.h"

enum { SYS_pread64 = 17, SYS_execve = 59, SYS_openat = 257, SYS_faccessat = 269 };
enum { ENOENT = 2, E2BIG = 7, ENOEXEC = 8, EACCES = 13, ENOTDIR = 20, ETXTBSY = 26, ELOOP = 40 };
enum { O_NONBLOCK = 04000, PT_INTERP = 3, EM_386 = 3, EM_X86_64 = 62 };
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

static int is_there(const char *path) {
    return system_call(SYS_faccessat, AT_FDCWD, (u64)path, 0, 0, 0, 0) == 0;
}

static unsigned field(const unsigned char *data, unsigned size) {
    unsigned value = 0;
    while (size--)
        value = value << 8 | data[size];
    return value;
}

static int is_elf(const unsigned char *head, long size) {
    return size >= 64 && field(head, 4) == 0x464c457f;
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

/* Copy up to a blank or the end of the line; return whether there is anything. */
static int copy_word(char *to, const unsigned char *from, long size) {
    int length = 0;
    while (length < NAME - 1 && length < size && from[length] && from[length] != '\n' && from[length] != ' ' &&
           from[length] != '\t') {
        to[length] = from[length];
        length++;
    }
    to[length] = 0;
    return length;
}

/* Find who executes a file: the interpreter that a script's first line names (execve(2)), or an ELF file's loader,
   PT_INTERP (elf(5)). Return what it is called, or 0. */
static const char *find_interpreter(const unsigned char *head, long size, char *name) {
    if (size > 2 && head[0] == '#' && head[1] == '!') {
        long at = 2;
        while (at < size && (head[at] == ' ' || head[at] == '\t'))
            at++;
        return copy_word(name, head + at, size - at) ? "interpreter" : 0;
    }
    if (is_elf(head, size)) {
        int wide = head[4] == 2;
        u64 at = field(head + (wide ? 32 : 28), 4);
        unsigned step = field(head + (wide ? 54 : 42), 2), count = field(head + (wide ? 56 : 44), 2);
        for (; count && at + 56 <= (u64)size; count--, at += step) {
            u64 text = field(head + at + (wide ? 8 : 4), 4);
            if (field(head + at, 4) == PT_INTERP && text < (u64)size)
                return copy_word(name, head + text, size - (long)text) ? "loader" : 0;
        }
    }
    return 0;
}

/* Say what a file that is there lacks. */
static void say_what_is_missing(struct line *line, const char *path, unsigned char *head) {
    char name[NAME], above[NAME];
    const char *what = find_interpreter(head, read_head(path, head), name);
    if (what && is_there(name)) { /* the interpreter of a script is there: then its own loader is not */
        const char *its = find_interpreter(head, read_head(name, head), above);
        if (its) {
            say(line, "its interpreter "), say(line, name), say(line, " needs the ");
            say(line, its), say(line, " "), say(line, above), say(line, ", which is not in the container");
            return;
        }
    }
    if (!what) {
        say(line, "no such file or directory");
        return;
    }
    long length = 0;
    while (name[length])
        length++;
    if (name[length - 1] == '\r') {
        name[length - 1] = 0;
        say(line, "its first line, #!"), say(line, name);
        say(line, ", ends in a carriage return (CRLF); save it with Unix line ends");
        return;
    }
    say(line, "its "), say(line, what), say(line, " "), say(line, name), say(line, " is not in the container");
    say(line, *what == 'l' ? "; add it and the libraries, or use a static program" : "; add it");
}

/* Say of which kind a file is that the kernel cannot execute. */
static void say_format(struct line *line, const char *path, unsigned char *head) {
    long size = read_head(path, head);
    unsigned machine = size >= 64 ? field(head + 18, 2) : 0;
    if (size == 0)
        say(line, "it is empty");
    else if (is_elf(head, size) && machine != EM_X86_64 && machine != EM_386)
        say(line, "it is a program for another processor: ELF machine "), say_number(line, machine),
            say(line, machine == 183 ? ", aarch64" : machine == 40 ? ", arm" : machine == 243 ? ", riscv" : "");
    else if (head[0] == '#' && head[1] == '!')
        say(line, "its first line names no interpreter");
    else
        say(line, is_elf(head, size) ? "it is damaged, or no program" : "it is neither an ELF file nor a script with #!");
}

/* Tell in one line why executing a path failed; return the exit code for it. */
static int explain(const char *path, int error) {
    struct line line;
    unsigned char head[HEAD];
    line.length = 0;
    say(&line, "exec "), say(&line, path), say(&line, ": ");
    switch (error) {
    case ENOENT: say_what_is_missing(&line, path, head); break;
    case ENOEXEC: say_format(&line, path, head); break;
    case E2BIG: say(&line, "its arguments and environment are too long"); break;
    case EACCES: say(&line, "permission denied: it, or its interpreter, is not executable, or lies on a noexec mount"); break;
    case ETXTBSY: say(&line, "it is open for writing"); break;
    case ELOOP: say(&line, "too many interpreters, or symbolic links"); break;
    case ENOTDIR: say(&line, "a part of its path is no directory"); break;
    default: say(&line, "error "), say_number(&line, error);
    }
    line.text[line.length++] = '\n';
    system_call(SYS_write, 2, (u64)line.text, line.length, 0, 0, 0);
    return error == ENOENT || error == ENOTDIR ? NOT_FOUND : NOT_EXECUTABLE;
}

/* The tape ended at its last execve: of the places where the program could be, tell of the first where it is. */
static int explain_execution(long last, int error) {
    const struct call *calls = THE_TAPE->calls;
    for (long at = 0; at <= last; at++)
        if (calls[at].number == SYS_execve && is_there((const char *)calls[at].args[0])) {
            const u64 *a = calls[at].args;
            return explain((const char *)a[0], (int)-system_call(SYS_execve, a[0], a[1], a[2], 0, 0, 0));
        }
    return explain((const char *)calls[last].args[0], error);
}

#endif
