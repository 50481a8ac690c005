; 8. Descriptor tables (Intel SDM vol. 3, 3.4.5 and 7.2) and variables.

.balign 8
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff            ; 0x08 32-bit code, flat
    .quad 0x00cf93000000ffff            ; 0x10 data, flat
    .quad 0x00af9b000000ffff            ; 0x18 64-bit code
    .quad 0x00cff3000000ffff            ; 0x20 data of ring 3
    .quad 0x00affb000000ffff            ; 0x28 64-bit code of ring 3
tss_descriptor:
    .quad 0x0000890000000067            ; 0x30 the TSS; its address is filled in
    .quad 0
    .quad 0x00009b010000ffff            ; 0x40 16-bit code at BASE, with real mode's limit
    .quad 0x000093010000ffff            ; 0x48 16-bit data at BASE
gdt_end:
gdt_register:
    .word gdt_end - gdt - 1
    .quad gdt

idt_register:
    .word SYSTEM_CALL_VECTOR * 16 + 15
    .quad IDT

.balign 8
tss:
    .long 0
    .quad 0                             ; RSP0: the running task's kernel stack
    .space 90
    .word 0x68                          ; no I/O permission bitmap: every port is closed to ring 3

.balign 8
ticks:
    .quad 0
recover:
    .quad 0                             ; where the kernel goes on after a fault of its own, 0: nowhere
command_line:
    .quad 0
current:
    .quad 0                             ; the running task
kernel_rsp:
    .quad 0
tasks:
    .space TASK_SIZE * TASK_LIMIT
task_count:
    .long 0
input_head:
    .long 0
input_tail:
    .long 0
input_stopped:
    .byte 0
input_buffer:
    .space INPUT_SIZE
line:
    .space LINE_SIZE
scratch:
    .space 64
number:
    .space 24
number_end:
    .byte 0
