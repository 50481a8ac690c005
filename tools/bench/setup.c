/* Microseconds until a VM with 16 MiB and a vCPU is ready to run: the ioctls that kvmpy makes, in C. */
#include "peer.h"

int main(int argc, char **argv)
{
    static const uint8_t code[] = {0xf4};
    int rounds = argc > 1 ? atoi(argv[1]) : 20;
    struct guest g = {.kvm = check(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm")};
    ask_host(&g);
    for (int i = 0; i < rounds; i++) {
        double start = now();
        set_up(&g, code, sizeof code);
        printf("%.3f\n", (now() - start) * 1e6);
        tear_down(&g);
    }
    return 0;
}
