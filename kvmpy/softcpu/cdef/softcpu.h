/* The software CPU: see src/softcpu.h. */
#define KVMPY_RECENT ...

typedef struct { ...; } pthread_mutex_t;

struct segment { uint32_t selector; uint64_t base; uint32_t limit; uint32_t flags; };
struct cpu {
    uint64_t regs[16];
    uint64_t rip;
    struct segment segs[6], ldt, tr, gdt, idt;
    uint64_t cr[9];
    uint64_t efer;
    uint32_t hflags;
    ...;
};
struct uc_x86_msr { uint32_t index; uint64_t value; };
struct soft_cpuid { uint32_t function, index, by_index; uint32_t eax, ebx, ecx, edx; };

struct kvmpy_exit { uint64_t code, gpa, value; ...; };
struct soft_watch { uint64_t gpa; uint32_t size, reads; };
struct soft_cpu {
    struct cpu *cpu;
    struct soft_cpuid cpuid[...];
    uint32_t cpuid_count;
    pthread_mutex_t *lock;
    int attention, flush;
    uint64_t entries, exits;
    struct kvmpy_exit recent[...];
    int pending;
    uint32_t io_size;
    uint8_t io_data[8];
    uint64_t answer, mmio_gpa, mmio_value, at, debug_pc, failed_at;
    uint32_t mmio_size, debug_dr6;
    int engine_error;
    uint32_t msr_index, msr_fault, msr_filter[...], msr_filter_count;
    int msr_exits;
    uint64_t msr_value, guest_dr[8], cr8;
    int nmi_waiting, irq_waiting, want_window, shut_down;
    int raised, raised_has_error;
    uint32_t raised_error;
    int injected, injected_is_fault, injected_has_error;
    uint32_t injected_error;
    ...;
};

int soft_load_unicorn(const char *path);
unsigned soft_unicorn_version(void);
const char *soft_strerror(int error);
struct soft_cpu *soft_open(int *error);
void soft_close(struct soft_cpu *s);
int soft_add_region(struct soft_cpu *s, uint64_t gpa, uint64_t size, void *host, int readonly);
int soft_map_rest(struct soft_cpu *s);
uint64_t soft_enter(struct soft_cpu *s);
uint64_t soft_step(struct soft_cpu *s);
uint64_t soft_complete(struct soft_cpu *s);
void soft_answer(struct soft_cpu *s, uint64_t value);
void soft_keep_answer(struct soft_cpu *s);
void soft_kick(struct soft_cpu *s);
void soft_forget_kick(struct soft_cpu *s);
struct cpu *soft_load_cpu(struct soft_cpu *s);
void soft_store_cpu(struct soft_cpu *s, int flush);
uint64_t soft_rflags(struct soft_cpu *s);
void soft_set_rflags(struct soft_cpu *s, uint64_t flags);
int soft_set_breakpoints(struct soft_cpu *s, const uint64_t *addresses, uint32_t count);
void soft_watch_for_guest(struct soft_cpu *s);
int soft_set_watches(struct soft_cpu *s, const struct soft_watch *watches, uint32_t count);
int soft_translate(struct soft_cpu *s, uint64_t linear, uint64_t *gpa);
int soft_reg_read(struct soft_cpu *s, int regid, void *value);
int soft_reg_write(struct soft_cpu *s, int regid, const void *value);
