/* SPDX-License-Identifier: MIT */
/*
 * The processor's state as the engine holds it: the head of CPUX86State of QEMU 5.0, on which Unicorn 2.1.4 rests. A saved
 * context is a raw copy of it, and holds what Unicorn's registers cannot set: segment caches, hflags, EFER. Where it lies in
 * a context is found by fingerprint when a CPU is made, and checked.
 */
#ifndef KVMPY_SOFTCPU_CPU_H
#define KVMPY_SOFTCPU_CPU_H

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
    uint64_t regs[16];
    uint64_t rip;
    uint64_t eflags; /* without the arithmetic flags and DF, which are lazy: see set_rflags() */
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
#define HF_IOBPT (1u << 24) /* port accesses are followed by a look at DR7 */
#define HF2_GIF 1u
#define CC_OP_EFLAGS 1

#define CR0_PE 1u
#define CR0_WP (1u << 16)
#define CR0_PG (1u << 31)
#define CR4_PSE (1u << 4)
#define CR4_PAE (1u << 5)
#define CR4_OSFXSR (1u << 9)
#define CR4_SMAP (1u << 21)
#define EFER_SCE 1u
#define EFER_LME (1u << 8)
#define EFER_LMA (1u << 10)
#define EFER_NXE (1u << 11)

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
