/* What Python calls of src/: read by cffi, and by the C part itself. */
enum soft_library { SOFT_LOADED, SOFT_NOT_LOADED, SOFT_OTHER_BUILD };
enum soft_library soft_load_unicorn(const char *path);
const char *soft_strerror(int error);

struct soft_vm *soft_open_vm(void);
void soft_close_vm(struct soft_vm *vm);
void soft_free_vm(struct soft_vm *vm);
int soft_add_region(struct soft_vm *vm, uint64_t gpa, uint64_t size, void *host, int readonly);
void soft_memory_changed(struct soft_vm *vm, uint64_t gpa, uint64_t size);

struct soft_cpu *soft_open(struct soft_vm *vm, int *error);
void soft_free(struct soft_cpu *s);
uint64_t soft_enter(struct soft_cpu *s);
uint64_t soft_step(struct soft_cpu *s);
uint64_t soft_complete(struct soft_cpu *s);
void soft_answer(struct soft_cpu *s, uint64_t value);
void soft_keep_answer(struct soft_cpu *s);
void soft_kick(struct soft_cpu *s);
void soft_forget_kick(struct soft_cpu *s);

void soft_state_set(struct soft_cpu *s);
uint64_t soft_rflags(struct soft_cpu *s);
void soft_set_rflags(struct soft_cpu *s, uint64_t flags);
void soft_set_fpu_control(struct soft_cpu *s, uint32_t control, uint32_t mxcsr);
int soft_translate(struct soft_cpu *s, uint64_t linear, uint64_t *gpa);

void soft_set_breakpoints(struct soft_cpu *s, const uint64_t *addresses, uint32_t count);
void soft_set_watches(struct soft_cpu *s, const struct soft_watch *watches, uint32_t count);
