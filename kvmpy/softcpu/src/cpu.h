/* SPDX-License-Identifier: MIT */
/*
 * The processor's state as the engine holds it: CPUX86State of QEMU 5.0 up to end_reset_fields, on which Unicorn 2.1.4 rests.
 */
#ifndef KVMPY_SOFTCPU_CPU_H
#define KVMPY_SOFTCPU_CPU_H

#include <stddef.h>
#include <stdint.h>

enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R11 = 11 };
enum { ES, CS, SS, DS, FS, GS };

struct segment {
    uint32_t selector;
    uint64_t base;
    uint32_t limit;
    uint32_t flags; /* the descriptor's upper half: type 8-11, S 12, DPL 13-14, P 15, AVL 20, L 21, D/B 22, G 23 */
};

struct cpu {
    union {
        struct {
            uint64_t regs[16];
            uint64_t rip;
            uint64_t eflags; /* while the engine runs without the arithmetic flags and DF: see soft_rflags() */
            uint64_t cc_dst, cc_src, cc_src2;
            uint32_t cc_op;
            int32_t df;
            uint32_t hflags, hflags2;
            struct segment segs[6], ldt, tr, gdt, idt;
            uint64_t cr[9];
            int32_t a20_mask;
            uint64_t bounds[8], bndcs[2], bndcfgs;
            uint64_t efer;
        };
        struct {
            uint8_t before_fpu[604];
            uint32_t fpu_top;
            uint16_t fpu_status, fpu_control; /* TOP is not in the status */
            uint8_t fpu_empty[8], unused_fpu[4], fpu[8][16]; /* physical registers, of 80 bits */
        };
        struct {
            uint8_t before_sse[816];
            uint32_t mxcsr, unused_sse;
            uint8_t xmm[32][64];
        };
        struct {
            uint8_t before_msrs[4800];
            uint32_t sysenter_cs;
            uint64_t sysenter_esp, sysenter_eip, star, vm_hsave, lstar, cstar, sfmask, kernel_gs_base;
            uint64_t tsc, tsc_adjust, tsc_deadline, tsc_aux, xcr0;
        };
        struct {
            uint8_t before_pat[5280];
            uint64_t pat;
        };
        struct {
            uint8_t before_event[5384];
            int32_t error_code, is_int; /* of the exception that the engine tells; from INT n */
        };
        struct {
            uint8_t before_old[5496];
            int32_t old_exception; /* to be -1, or the next one is taken for a double fault */
        };
        uint8_t whole[5568];
    };
};

_Static_assert(offsetof(struct cpu, fpu) == 624 && offsetof(struct cpu, xmm) == 824, "the registers of the FPU");
_Static_assert(offsetof(struct cpu, star) == 4824 && offsetof(struct cpu, xcr0) == 4904, "MSRs");
_Static_assert(sizeof(struct cpu) == 5568, "the whole");

#define DESC_TYPE_SHIFT 8
#define DESC_S (1u << 12)
#define DESC_DPL_SHIFT 13
#define DESC_P (1u << 15)
#define DESC_L (1u << 21)
#define DESC_DB (1u << 22)
#define DESC_CODE (1u << 11)
#define DESC_CONFORMING (1u << 10)

/* hflags of QEMU's target/i386/cpu.h: what of the state decides how code is translated */
#define HF_CPL 3u
#define HF_INHIBIT_IRQ (1u << 3)
#define HF_CS32 (1u << 4)
#define HF_SS32 (1u << 5)
#define HF_ADDSEG (1u << 6)
#define HF_PE (1u << 7)
#define HF_TF (1u << 8)
#define HF_CR0 (0xeu << 8) /* MP, EM, TS */
#define HF_IOPL (3u << 12)
#define HF_LMA (1u << 14)
#define HF_CS64 (1u << 15)
#define HF_RF (1u << 16)
#define HF_VM (1u << 17)
#define HF_AC (1u << 18)
#define HF_OSFXSR (1u << 22)
#define HF_SMAP (1u << 23)
#define HF2_GIF 1u

#define CR0_PE 1u
#define CR0_WP (1u << 16)
#define CR0_PG (1u << 31)
#define CR4_TSD (1u << 2)
#define CR4_DE (1u << 3)
#define CR4_PSE (1u << 4)
#define CR4_PAE (1u << 5)
#define CR4_OSFXSR (1u << 9)
#define CR4_OSXSAVE (1u << 18)
#define CR4_SMAP (1u << 21)
#define EFER_SCE 1u
#define EFER_LME (1u << 8)
#define EFER_LMA (1u << 10)
#define EFER_NXE (1u << 11)

enum {
    MSR_TSC = 0x10,
    MSR_APIC_BASE = 0x1b,
    MSR_SYSENTER_ESP = 0x175,
    MSR_SYSENTER_EIP = 0x176,
    MSR_PAT = 0x277,
};
#define MSR_EFER 0xc0000080u
#define MSR_LSTAR 0xc0000082u
#define MSR_CSTAR 0xc0000083u
#define MSR_FS_BASE 0xc0000100u
#define MSR_GS_BASE 0xc0000101u
#define MSR_KERNEL_GS_BASE 0xc0000102u

#define FLAG_CF (1u << 0)
#define FLAG_PF (1u << 2)
#define FLAG_ZF (1u << 6)
#define FLAG_TF (1u << 8)
#define FLAG_IF (1u << 9)
#define FLAG_DF (1u << 10)
#define FLAG_IOPL_SHIFT 12
#define FLAG_NT (1u << 14)
#define FLAG_RF (1u << 16)
#define FLAG_VM (1u << 17)
#define FLAG_AC (1u << 18)
#define FLAGS_ARITHMETIC 0x8d5u

#define DE 0
#define DB 1
#define BP 3
#define OF 4
#define UD 6
#define DF 8
#define TS 10
#define NP 11
#define SS_FAULT 12
#define GP 13
#define PF 14
#define AC 17

#endif
