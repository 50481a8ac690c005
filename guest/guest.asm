;; guest: a minimal kernel in one flat file, from the first real-mode instruction to a monitor on the serial console.
;;
;; bits: 16
;; load: 0x10000
;; summary: a minimal kernel: real, protected and long mode, two tasks in ring 3, a monitor
;; include: kernel
;
; Read the parts under kernel/ in the order of their names; that is the order in which they run:
;
;   1-real.asm        the serial port, and the way into protected mode
;   2-protected.asm   page tables, and the way into long mode
;   3-long.asm        interrupts, the timer, the tasks, the monitor: what the kernel does in turn
;   4-interrupts.asm  the gates, exceptions, the timer's and the serial port's interrupts
;   5-tasks.asm       tasks in ring 3: switching, system calls, killing
;   6-monitor.asm     the commands
;   7-console.asm     printing and reading
;   8-data.asm        descriptor tables and variables
;   9-user.asm        the tasks themselves, in pages that ring 3 may use
;
; The kernel uses integer instructions only and never INT n: some hosts' KVM emulates ring 0, and knows no more.
;
; Memory:                                  0x25000  interrupt stubs
;   0x10000  this file                     0x26000  the kernel's own stack ends at 0x30000
;   0x20000  PML4, PDPT, PD, PT            0x30000  kernel stacks of the tasks, 4 KiB each
;   0x24000  IDT                           0x38000  user stacks of the tasks, 4 KiB each

.equ BASE, 0x10000
.equ COM1, 0x3f8
.equ PML4, 0x20000
.equ PDPT, 0x21000
.equ PD, 0x22000
.equ PT, 0x23000
.equ IDT, 0x24000
.equ STUBS, 0x25000
.equ KERNEL_STACK, 0x30000
.equ TASK_KERNEL_STACKS, 0x30000
.equ TASK_USER_STACKS, 0x38000
.equ TASK_STACK_SIZE, 0x1000
.equ TASK_LIMIT, 4

.equ CODE32, 0x08
.equ DATA, 0x10
.equ CODE64, 0x18
.equ USER_DATA, 0x23
.equ USER_CODE, 0x2b
.equ TSS, 0x30
.equ CODE16, 0x40
.equ DATA16, 0x48

; A loader like QEMU's -kernel looks for this header in the first 8 KiB (Multiboot 0.6.96, 3.1). Bit 16 of the flags says
; that the addresses are given here, as a flat file has no others.
.equ MULTIBOOT_MAGIC, 0x1badb002
.equ MULTIBOOT_FLAGS, 0x10000

first_instruction:
    jmp real_mode

.balign 4
multiboot_header:
    .long MULTIBOOT_MAGIC
    .long MULTIBOOT_FLAGS
    .long 0xe4514ffe                    ; the three add up to zero
    .long multiboot_header
    .long first_instruction             ; load address
    .long image_end                     ; end of what is loaded
    .long 0                             ; no bss
    .long multiboot_entry

; A multiboot loader enters in 32-bit protected mode. To run the same code everywhere we climb down first: load 16-bit
; segments with real mode's limits, clear CR0.PE, and reload CS by a far jump (Intel SDM vol. 3, 9.9.2).
.code32
multiboot_entry:
    cli
    lgdt [gdt_register]
    jmp CODE16:multiboot_16
.equ multiboot_16, climb_down - BASE

.code16
climb_down:
    mov ax, DATA16
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov eax, cr0
    and al, 0xfe
    mov cr0, eax
    xor esi, esi                        ; no command line
    jmp 0x1000:real_mode_16
.equ real_mode_16, real_mode - BASE
