/* SPDX-License-Identifier: MIT */
/*
 * libunicorn is loaded, and some of its functions are replaced by ours: the library calls its own functions through slots of
 * its global offset table and finds helpers in a table of theirs, both filled in by relocations that name the function; these
 * places are written once more. That holds for the build that was looked at, which its build ID tells, and for no other.
 */
#define _GNU_SOURCE
#include "softcpu.h"

#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

/* unicorn-2.1.4-*-manylinux*_x86_64.whl, as PyPI has it. */
static const uint8_t BUILD_ID[20] = {0x44, 0x28, 0x5d, 0x3e, 0x80, 0x52, 0x71, 0x22, 0xe9, 0xe3,
                                     0x61, 0x92, 0x81, 0x89, 0x38, 0x59, 0x06, 0xec, 0x81, 0x3e};
#define SYMBOL_LIMIT 65536

struct unicorn unicorn;
struct unicorn_replaced theirs;

static const struct {
    const char *name;
    size_t offset; /* in struct unicorn */
} CALLED[] = {
#define INTERFACE_SYMBOL(result, name, arguments) {"uc_" #name, offsetof(struct unicorn, name)},
#define INSIDE_SYMBOL(result, name, arguments) {#name "_x86_64", offsetof(struct unicorn, name)},
    UNICORN_INTERFACE(INTERFACE_SYMBOL) UNICORN_INSIDE(INSIDE_SYMBOL)
};

static const struct {
    const char *name;
    void *ours;
    size_t offset; /* in struct unicorn_replaced */
} REPLACED[] = {
#define REPLACED_SYMBOL(result, name, arguments) {#name "_x86_64", soft_##name, offsetof(struct unicorn_replaced, name)},
    UNICORN_REPLACED(REPLACED_SYMBOL)
};

/* The library as an ELF object: what its dynamic section says. */
struct object {
    uintptr_t base;
    const ElfW(Rela) * relocations[2];
    size_t counts[2];
    const ElfW(Sym) * symbols;
};

static struct object object_of(const struct link_map *map)
{
    struct object o = {.base = map->l_addr};
    for (const ElfW(Dyn) *d = map->l_ld; d->d_tag; d++) {
        if (d->d_tag == DT_RELA || d->d_tag == DT_JMPREL)
            o.relocations[d->d_tag == DT_JMPREL] = (const void *)d->d_un.d_ptr;
        if (d->d_tag == DT_RELASZ || d->d_tag == DT_PLTRELSZ)
            o.counts[d->d_tag == DT_PLTRELSZ] = d->d_un.d_val / sizeof(ElfW(Rela));
        if (d->d_tag == DT_SYMTAB)
            o.symbols = (const void *)d->d_un.d_ptr;
    }
    return o;
}

static const ElfW(Phdr) *header(uintptr_t base, uint32_t type)
{
    const ElfW(Ehdr) *elf = (const void *)base;
    const ElfW(Phdr) *headers = (const void *)(base + elf->e_phoff);
    for (int i = 0; i < elf->e_phnum; i++)
        if (headers[i].p_type == type)
            return &headers[i];
    return NULL;
}

/* Whether it is the build that was looked at (gABI: a note is its sizes, its type, "GNU" and the ID). */
static int is_known_build(uintptr_t base)
{
    const ElfW(Phdr) *notes = header(base, PT_NOTE);
    if (!notes || notes->p_memsz < sizeof(ElfW(Nhdr)) + 4 + sizeof BUILD_ID)
        return 0;
    const ElfW(Nhdr) *note = (const void *)(base + notes->p_vaddr);
    return note->n_type == NT_GNU_BUILD_ID && note->n_descsz == sizeof BUILD_ID &&
           !memcmp((const uint8_t *)(note + 1) + 4, BUILD_ID, sizeof BUILD_ID);
}

/* Fill in `number` for each symbol that is replaced; 0 when one is not there. */
static int find_replaced(void *library, const struct object *o, uint8_t *number)
{
    for (size_t i = 0; i < sizeof REPLACED / sizeof *REPLACED; i++) {
        void *function = dlsym(library, REPLACED[i].name);
        const ElfW(Sym) *symbol = NULL;
        Dl_info info;
        if (!function || !dladdr1(function, &info, (void **)&symbol, RTLD_DL_SYMENT) || symbol - o->symbols >= SYMBOL_LIMIT)
            return 0;
        memcpy((char *)&theirs + REPLACED[i].offset, &function, sizeof function);
        number[symbol - o->symbols] = i + 1;
    }
    return 1;
}

/* Write our functions where theirs are named. What is read-only once it is relocated is made writable meanwhile. */
static int replace(void *library, const struct object *o)
{
    static uint8_t number[SYMBOL_LIMIT]; /* of a symbol, its place in REPLACED + 1 */
    const ElfW(Phdr) *relro = header(o->base, PT_GNU_RELRO);
    uintptr_t page = ~(uintptr_t)(sysconf(_SC_PAGESIZE) - 1);
    if (!relro || !find_replaced(library, o, number))
        return 0;
    uintptr_t begin = (o->base + relro->p_vaddr) & page, end = (o->base + relro->p_vaddr + relro->p_memsz) & page;
    if (mprotect((void *)begin, end - begin, PROT_READ | PROT_WRITE))
        return 0;
    for (int table = 0; table < 2; table++)
        for (size_t i = 0; i < o->counts[table]; i++) {
            const ElfW(Rela) *r = &o->relocations[table][i];
            uint32_t symbol = ELF64_R_SYM(r->r_info);
            if (symbol && symbol < SYMBOL_LIMIT && number[symbol])
                *(void **)(o->base + r->r_offset) = REPLACED[number[symbol] - 1].ours;
        }
    return !mprotect((void *)begin, end - begin, PROT_READ);
}

/* A copy of the library: another one than that whose engines somebody may have in use already. */
static void *load_copy(const char *path)
{
    struct stat status;
    char copy[64];
    void *library = NULL;
    int from = open(path, O_RDONLY | O_CLOEXEC), to = memfd_create("libunicorn", MFD_CLOEXEC);
    if (from >= 0 && to >= 0 && !fstat(from, &status)) {
        while (sendfile(to, from, NULL, status.st_size) > 0)
            ;
        snprintf(copy, sizeof copy, "/proc/self/fd/%d", to);
        library = dlopen(copy, RTLD_NOW | RTLD_LOCAL);
    }
    if (from >= 0)
        close(from);
    if (to >= 0)
        close(to);
    return library;
}

static void *load(const char *path)
{
    void *loaded = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);
    if (!loaded)
        return dlopen(path, RTLD_NOW | RTLD_LOCAL);
    dlclose(loaded);
    return load_copy(path);
}

enum soft_library soft_load_unicorn(const char *path)
{
    void *library = load(path);
    struct link_map *map;
    if (!library || dlinfo(library, RTLD_DI_LINKMAP, &map))
        return SOFT_NOT_LOADED;
    if (!is_known_build(map->l_addr))
        return SOFT_OTHER_BUILD;
    for (size_t i = 0; i < sizeof CALLED / sizeof *CALLED; i++) {
        void *symbol = dlsym(library, CALLED[i].name);
        if (!symbol)
            return SOFT_OTHER_BUILD;
        memcpy((char *)&unicorn + CALLED[i].offset, &symbol, sizeof symbol);
    }
    struct object o = object_of(map);
    return replace(library, &o) ? SOFT_LOADED : SOFT_OTHER_BUILD;
}

const char *soft_strerror(int error)
{
    return unicorn.strerror(error);
}
