/* SPDX-License-Identifier: MIT */
/*
 * What kvmpy calls of libunicorn 2.1.4, and what of its inside is ours: looked up in the library of the Python package when
 * the first software CPU is made, so that the build needs no headers of it and kvmpy runs without it. Numbers are those of
 * its unicorn.h and x86.h; its inside is QEMU 5.0's. docs/engine.md tells what rests on what.
 */
#ifndef KVMPY_UNICORN_H
#define KVMPY_UNICORN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cpu.h"

typedef struct uc_struct uc_engine;
typedef size_t uc_hook;
struct soft_translator;
struct soft_block;

enum { UC_ARCH_X86 = 4, UC_MODE_64 = 8 };
enum { UC_PROT_ALL = 7 };
enum {
    UC_HOOK_INTR = 1 << 0,
    UC_HOOK_CODE = 1 << 2,
    UC_HOOK_MEM_READ = 1 << 10,
    UC_HOOK_MEM_WRITE = 1 << 11,
    UC_HOOK_INSN_INVALID = 1 << 14,
};
enum { UC_X86_REG_EFLAGS = 25, UC_X86_REG_RIP = 41 };
enum { UC_CPU_X86_BROADWELL = 20 };
enum { UC_MEM_READ = 16, UC_MEM_WRITE = 17 };

/* uc_ctl(): type, number of arguments << 26, direction << 30 */
#define UC_CTL_WRITE(type, count) ((type) | ((count) << 26) | (1u << 30))
#define UC_CTL_EXITS_ENABLED UC_CTL_WRITE(4, 1)
#define UC_CTL_CPU_MODEL UC_CTL_WRITE(7, 1)
#define UC_CTL_FLUSH_TB UC_CTL_WRITE(10, 0)
#define UC_CTL_FLUSH_TLB UC_CTL_WRITE(11, 0)
#define UC_CTL_TCG_BUFFER_SIZE UC_CTL_WRITE(13, 1)

/* Result, name, arguments: functions of the interface, with uc_ before the name. */
#define UNICORN_INTERFACE(F) \
    F(unsigned, version, (unsigned *major, unsigned *minor)) \
    F(int, open, (int arch, int mode, uc_engine **engine)) \
    F(int, close, (uc_engine *engine)) \
    F(const char *, strerror, (int error)) \
    F(int, ctl, (uc_engine *engine, int control, ...)) \
    F(int, reg_read, (uc_engine *engine, int regid, void *value)) \
    F(int, reg_write, (uc_engine *engine, int regid, const void *value)) \
    F(int, mem_map_ptr, (uc_engine *engine, uint64_t gpa, size_t size, uint32_t permissions, void *host)) \
    F(int, mmio_map, (uc_engine *engine, uint64_t gpa, size_t size, void *read, void *read_data, void *write, void *write_data)) \
    F(int, emu_start, (uc_engine *engine, uint64_t begin, uint64_t until, uint64_t timeout, size_t count)) \
    F(int, emu_stop, (uc_engine *engine)) \
    F(int, hook_add, (uc_engine *engine, uc_hook *hook, int type, void *callback, void *data, uint64_t begin, uint64_t end, ...)) \
    F(int, hook_del, (uc_engine *engine, uc_hook hook))

/* Functions of its inside, with _x86_64 behind the name. `code` is an address in translated code, which is put back to the
   instruction that it belongs to: RIP and the flags are not kept in step else. `ram` is an offset in the engine's memory. */
#define UNICORN_INSIDE(F) \
    F(void, cpu_loop_exit, (void *cpu)) \
    F(void, cpu_loop_exit_restore, (void *cpu, uintptr_t code)) \
    F(void, raise_exception_err_ra, (struct cpu *c, int vector, int error, uintptr_t code)) \
    F(void, raise_exception_ra, (struct cpu *c, int vector, uintptr_t code)) \
    F(void, tlb_reset_dirty, (void *cpu, uint64_t host, uint64_t size)) \
    F(void *, qemu_map_ram_ptr, (uc_engine *engine, void *block, uint64_t ram)) \
    F(uint64_t, qemu_ram_addr_from_host, (uc_engine *engine, void *host)) \
    F(void, tb_invalidate_phys_range, (uc_engine *engine, uint64_t ram, uint64_t end)) \
    F(void, tcg_gen_callN, (void *tcg, void *helper, void *result, int count, void **arguments)) \
    F(void, update_fp_status, (struct cpu *c)) \
    F(void, update_mxcsr_status, (struct cpu *c))

/* Functions of its inside that ours take the place of, soft_ before the name and _x86_64 behind theirs. A helper is what
   translated code calls for an instruction; `length` is that of the instruction, where it is told. */
#define UNICORN_REPLACED(F) \
    F(int, cpu_exec, (uc_engine *engine, void *cpu)) \
    F(void, translator_loop, (const struct soft_translator *functions, struct soft_block *block, void *cpu, void *translated, int most)) \
    F(uint32_t, cpu_ldub_code, (struct cpu *c, uint64_t linear)) \
    F(void, tcg_gen_qemu_ld_i64, (void *tcg, uintptr_t value, uintptr_t address, uintptr_t mmu, uint32_t kind)) \
    F(void, tcg_gen_qemu_st_i64, (void *tcg, uintptr_t value, uintptr_t address, uintptr_t mmu, uint32_t kind)) \
    F(const void *, helper_lookup_tb_ptr, (struct cpu *c)) \
    F(void, helper_single_step, (struct cpu *c)) \
    F(void, helper_stgi, (struct cpu *c)) \
    F(void, helper_cmpxchg8b, (struct cpu *c, uint64_t address)) \
    F(void, helper_cmpxchg8b_unlocked, (struct cpu *c, uint64_t address)) \
    F(void, helper_cmpxchg16b, (struct cpu *c, uint64_t address)) \
    F(void, helper_cmpxchg16b_unlocked, (struct cpu *c, uint64_t address)) \
    F(void, helper_fcomi_ST0_FT0, (struct cpu *c)) \
    F(void, helper_fucomi_ST0_FT0, (struct cpu *c)) \
    F(bool, x86_cpu_exec_interrupt, (void *cpu, int request)) \
    F(bool, cpu_restore_state, (void *cpu, uintptr_t code, bool will_exit)) \
    F(bool, x86_cpu_tlb_fill, (void *cpu, uint64_t linear, int size, int access, int mmu, bool probe, uintptr_t code)) \
    F(void, tlb_set_page_with_attrs, (void *cpu, uint64_t linear, uint64_t gpa, uint32_t attributes, int rights, int mmu, uint64_t size)) \
    F(void, tlb_set_dirty, (void *cpu, uint64_t linear)) \
    F(void, tlb_protect_code, (uc_engine *engine, uint64_t ram)) \
    F(void, tlb_unprotect_code, (uc_engine *engine, uint64_t ram)) \
    F(void, helper_outb, (struct cpu *c, uint32_t port, uint32_t value)) \
    F(void, helper_outw, (struct cpu *c, uint32_t port, uint32_t value)) \
    F(void, helper_outl, (struct cpu *c, uint32_t port, uint32_t value)) \
    F(uint64_t, helper_inb, (struct cpu *c, uint32_t port)) \
    F(uint64_t, helper_inw, (struct cpu *c, uint32_t port)) \
    F(uint64_t, helper_inl, (struct cpu *c, uint32_t port)) \
    F(void, helper_cpuid, (struct cpu *c)) \
    F(void, helper_rdmsr, (struct cpu *c)) \
    F(void, helper_wrmsr, (struct cpu *c)) \
    F(uint64_t, helper_read_crN, (struct cpu *c, int number)) \
    F(void, helper_write_crN, (struct cpu *c, int number, uint64_t value)) \
    F(uint64_t, helper_get_dr, (struct cpu *c, int number)) \
    F(void, helper_set_dr, (struct cpu *c, int number, uint64_t value)) \
    F(uint64_t, helper_read_eflags, (struct cpu *c)) \
    F(void, helper_rdtsc, (struct cpu *c)) \
    F(void, helper_rdtscp, (struct cpu *c)) \
    F(void, helper_ldmxcsr, (struct cpu *c, uint32_t value)) \
    F(void, helper_ltr, (struct cpu *c, int selector)) \
    F(void, helper_ljmp_protected, (struct cpu *c, int selector, uint64_t target, uint64_t next)) \
    F(void, helper_lcall_protected, (struct cpu *c, int selector, uint64_t target, int shift, uint64_t next)) \
    F(void, helper_lret_protected, (struct cpu *c, int shift, int added)) \
    F(void, helper_load_seg, (struct cpu *c, int number, int selector)) \
    F(void, helper_hlt, (struct cpu *c, int length)) \
    F(void, helper_pause, (struct cpu *c, int length)) \
    F(void, helper_syscall, (struct cpu *c, int length)) \
    F(void, helper_sysenter, (struct cpu *c, int length)) \
    F(void, helper_iret_real, (struct cpu *c, int shift)) \
    F(void, helper_iret_protected, (struct cpu *c, int shift, int next)) \
    F(void, helper_raise_interrupt, (struct cpu *c, int vector, int length))

#define POINTER(result, name, arguments) result(*name) arguments;
#define PROTOTYPE(result, name, arguments) result soft_##name arguments;

struct unicorn {
    UNICORN_INTERFACE(POINTER)
    UNICORN_INSIDE(POINTER)
};
struct unicorn_replaced {
    UNICORN_REPLACED(POINTER)
};
UNICORN_REPLACED(PROTOTYPE)

extern struct unicorn unicorn;
extern struct unicorn_replaced theirs; /* for engines that are not ours */

/* In a function that translated code calls: where it was called from. */
#define CALLED_FROM() ((uintptr_t)__builtin_return_address(0) - 1)

/* What of its structures is known by its place: of uc_struct, CPUState (cpu.h of QEMU 5.0) and what lies around CPUX86State. */
enum {
    UC_TCG = 0x300,             /* TCGContext *tcg_ctx */
    TCG_STATE = 0x98f0,         /* in it: where it has what stands for the state in translated code */
    UC_CPU = 0x1b8,             /* CPUState *cpu */
    UC_NO_EXIT_REQUEST = 0x7f2, /* whether emu_stop() is heard between blocks only */
    CPU_INTERRUPT_REQUEST = 28,
    CPU_CLASS = 33200,          /* a pointer to its CPUClass, whose functions are its own */
    CLASS_UNALIGNED = 0x18,     /* do_unaligned_access, which it does not have */
    CPU_MEM_IO_PC = 33144, /* in a device callback: the address in translated code, 0 for an access of the engine's own */
    CPU_STATE_SIZE = 35408, /* CPUX86State lies behind */
    STATE_TLB = -64,        /* from CPUX86State: struct tlb[MMU_MODES] */
};
enum { MMU_MODES = 3, CPU_INTERRUPT_HARD = 2 };
#define TLB_NOTDIRTY (1u << 10)
#define TLB_INVALID (1u << 11) /* never found: it is filled in before each access */
enum { MMU_DATA_STORE = 1 };

struct tlb_entry {
    uint64_t addr_read, addr_write, addr_code, paddr, addend, unused[3];
};
struct tlb {
    uint64_t mask; /* number of entries - 1, times their size */
    struct tlb_entry *entries;
};

#endif
