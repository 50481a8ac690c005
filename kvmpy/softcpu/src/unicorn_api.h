/* SPDX-License-Identifier: MIT */
/*
 * What kvmpy calls of libunicorn 2.1.4, looked up in the library of the Python package when the first software CPU is made:
 * so the build needs no headers of it, and kvmpy runs without it. Numbers are those of its unicorn.h and x86.h.
 */
#ifndef KVMPY_UNICORN_API_H
#define KVMPY_UNICORN_API_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct uc_struct uc_engine;
typedef struct uc_context uc_context;
typedef size_t uc_hook;

enum { UC_ARCH_X86 = 4, UC_MODE_64 = 8 };
enum { UC_ERR_OK = 0, UC_ERR_FETCH_UNMAPPED = 8, UC_ERR_INSN_INVALID = 10, UC_ERR_WRITE_PROT = 12, UC_ERR_EXCEPTION = 21 };
enum { UC_PROT_READ = 1, UC_PROT_WRITE = 2, UC_PROT_EXEC = 4, UC_PROT_ALL = 7 };
enum {
    UC_HOOK_INTR = 1 << 0,
    UC_HOOK_INSN = 1 << 1,
    UC_HOOK_CODE = 1 << 2,
    UC_HOOK_BLOCK = 1 << 3,
    UC_HOOK_MEM_WRITE_PROT = 1 << 8,
    UC_HOOK_MEM_READ = 1 << 10,
    UC_HOOK_MEM_WRITE = 1 << 11,
    UC_HOOK_INSN_INVALID = 1 << 14,
    UC_HOOK_EDGE_GENERATED = 1 << 15,
};
enum {
    UC_X86_REG_EFLAGS = 25,
    UC_X86_REG_RAX = 35,
    UC_X86_REG_RBX = 37,
    UC_X86_REG_RCX = 38,
    UC_X86_REG_RDX = 40,
    UC_X86_REG_RIP = 41,
    UC_X86_REG_DR0 = 66,
    UC_X86_REG_DR6 = 72,
    UC_X86_REG_DR7 = 73,
    UC_X86_REG_MSR = 248,
    UC_X86_REG_RFLAGS = 253,
};
enum { UC_X86_INS_CPUID = 113, UC_X86_INS_IN = 218, UC_X86_INS_OUT = 500, UC_X86_INS_SYSCALL = 699, UC_X86_INS_SYSENTER = 700 };

/* uc_ctl(): type, number of arguments << 26, direction << 30 */
#define UC_CTL_WRITE(type, count) ((type) | ((count) << 26) | (1u << 30))
#define UC_CTL_EXITS_ENABLED UC_CTL_WRITE(4, 1)
#define UC_CTL_CPU_MODEL UC_CTL_WRITE(7, 1)
#define UC_CTL_REMOVE_CACHE UC_CTL_WRITE(9, 2)
#define UC_CTL_FLUSH_TB UC_CTL_WRITE(10, 0)
#define UC_CTL_FLUSH_TLB UC_CTL_WRITE(11, 0)
#define UC_CTL_TCG_BUFFER_SIZE UC_CTL_WRITE(13, 1)
enum { UC_CPU_X86_BROADWELL = 20 };
enum { UC_MEM_READ = 16, UC_MEM_WRITE = 17 };

struct uc_x86_msr {
    uint32_t index;
    uint64_t value;
};

struct uc_tb {
    uint64_t pc;
    uint16_t instructions;
    uint16_t size;
};

struct unicorn_api {
    unsigned (*version)(unsigned *major, unsigned *minor);
    int (*open)(int arch, int mode, uc_engine **engine);
    int (*close)(uc_engine *engine);
    const char *(*strerror)(int error);
    int (*ctl)(uc_engine *engine, int control, ...);
    int (*reg_read)(uc_engine *engine, int regid, void *value);
    int (*reg_write)(uc_engine *engine, int regid, const void *value);
    int (*mem_map_ptr)(uc_engine *engine, uint64_t gpa, size_t size, uint32_t permissions, void *host);
    int (*mmio_map)(uc_engine *engine, uint64_t gpa, size_t size, void *read, void *read_data, void *write, void *write_data);
    int (*mem_unmap)(uc_engine *engine, uint64_t gpa, size_t size);
    int (*mem_protect)(uc_engine *engine, uint64_t gpa, size_t size, uint32_t permissions);
    int (*emu_start)(uc_engine *engine, uint64_t begin, uint64_t until, uint64_t timeout, size_t count);
    int (*emu_stop)(uc_engine *engine);
    int (*hook_add)(uc_engine *engine, uc_hook *hook, int type, void *callback, void *data, uint64_t begin, uint64_t end, ...);
    int (*hook_del)(uc_engine *engine, uc_hook hook);
    int (*context_alloc)(uc_engine *engine, uc_context **context);
    int (*context_free)(uc_context *context);
    size_t (*context_size)(uc_engine *engine);
    int (*context_save)(uc_engine *engine, uc_context *context);
    int (*context_restore)(uc_engine *engine, uc_context *context);
};

extern struct unicorn_api unicorn;

#endif
