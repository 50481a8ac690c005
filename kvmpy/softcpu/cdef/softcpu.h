/* The software CPU: see src/softcpu.h. */
#define KVMPY_RECENT ...
#define KVMPY_ERROR ...

typedef struct { ...; } pthread_mutex_t;

struct segment { uint32_t selector; uint64_t base; uint32_t limit; uint32_t flags; };
struct cpu {
    uint64_t regs[16];
    uint64_t rip;
    struct segment segs[6], ldt, tr, gdt, idt;
    uint64_t cr[9];
    uint64_t efer;
    uint32_t hflags;
    uint32_t fpu_top;
    uint16_t fpu_status;
    uint16_t fpu_control;
    uint8_t fpu_empty[8];
    uint8_t fpu[8][16];
    uint32_t mxcsr;
    uint8_t xmm[32][64];
    uint32_t sysenter_cs;
    uint64_t sysenter_esp, sysenter_eip, star, lstar, cstar, sfmask, kernel_gs_base, tsc_aux, pat;
    ...;
};
struct soft_cpuid { uint32_t function, index, by_index; uint32_t eax, ebx, ecx, edx; };

struct kvmpy_exit { uint64_t code, gpa, value; ...; };
struct soft_watch { uint64_t gpa; uint32_t size, reads; };
struct soft_access { uint64_t address, value; uint32_t size; ...; };
struct soft_msr { uint32_t index; int fault; uint64_t value; ...; };
struct soft_event { int vector, is_fault, has_error; uint32_t error; };
struct soft_vm { ...; };
struct soft_cpu {
    struct cpu saved;
    struct soft_cpuid cpuid[...];
    uint32_t cpuid_count;
    pthread_mutex_t *lock;
    int attention;
    uint64_t entries, exits;
    struct kvmpy_exit recent[...];
    int pending;
    struct soft_access access;
    struct soft_msr msr;
    uint64_t hypercall_result;
    uint32_t msr_filter[...], msr_filter_count;
    int msr_exits;
    uint64_t guest_dr[8], cr8, apic_base;
    uint64_t debug_pc, failed_at;
    uint32_t debug_dr6;
    int engine_error;
    struct soft_event injected, raised;
    int nmi_waiting, nmi_blocked, irq_waiting, want_window, shut_down;
    ...;
};
