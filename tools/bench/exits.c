/* Microseconds per port-I/O exit: a guest that writes to port 0xe9 for ever, and the shortest loop that serves it. */
#include "peer.h"

static volatile uint64_t sum;

static void serve(uint8_t value)
{
    sum += value;
}

int main(int argc, char **argv)
{
    static const uint8_t code[] = {0xe6, 0xe9, 0xeb, 0xfc}; /* again: out 0xe9, al; jmp again */
    long count = argc > 1 ? atol(argv[1]) : 20000;
    struct guest g = {.kvm = check(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm")};
    ask_host(&g);
    set_up(&g, code, sizeof code);
    double start = now();
    for (long i = 0; i < count; i++) {
        check(ioctl(g.vcpu, KVM_RUN, 0), "KVM_RUN");
        if (g.run->exit_reason != KVM_EXIT_IO || g.run->io.port != 0xe9)
            errx(1, "exit %u", g.run->exit_reason);
        serve(*((uint8_t *)g.run + g.run->io.data_offset));
    }
    printf("%.6f\n", (now() - start) / count * 1e6);
    tear_down(&g);
    return 0;
}
