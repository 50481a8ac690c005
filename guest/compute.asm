;; compute: ring-3 code runs at the processor's own speed.
;;
;; bits: 64
;; load: 0x100000
;; irqchip: none
;; summary: counts the primes below 100000 in ring 3
;
; Virtualization is not emulation: instructions that neither touch devices nor the processor's state run directly. This
; guest drops to ring 3, counts primes with the sieve of Eratosthenes, and comes back to ring 0 by an exception, because
; ring 3 may not print. There are 9592 primes below 100000.

.equ COM1, 0x3f8
.equ LIMIT, 100000
.equ SIEVE, 0x200000                    ; one byte for each number
.equ USER_STACK, 0x300000
.equ PML4, 0x1000                       ; the page tables that kvmpy made, in the order PML4, PDPT, PD
.equ PDPT, 0x2000
.equ PD, 0x3000
.equ USER, 4                            ; a page-table entry's bit: ring 3 may use it
.equ INVALID_OPCODE, 6

start:
    ; Open the first 4 MiB to ring 3, at every level of the walk (Intel SDM vol. 3, 4.6).
    mov edi, PML4
    or byte ptr [rdi], USER
    or byte ptr [rdi + PDPT - PML4], USER
    or byte ptr [rdi + PD - PML4], USER
    or byte ptr [rdi + PD - PML4 + 8], USER
    mov rax, cr3
    mov cr3, rax                        ; forget what the TLB remembers

    lgdt [rip + gdt_register]
    mov eax, 0x28
    ltr ax                              ; the TSS holds the stack for the way back to ring 0
    ; The gate for #UD, the only way back that we need.
    lea rax, [rip + back_in_ring_0]
    lea rdi, [rip + gate]
    mov [rdi], ax
    shr rax, 16
    mov [rdi + 6], ax
    lidt [rip + idt_register]

    ; IRETQ takes SS, RSP, RFLAGS, CS and RIP off the stack; the RPL of CS, 3, makes it a change of ring.
    push 0x1b
    mov eax, USER_STACK
    push rax
    push 2
    push 0x23
    lea rax, [rip + ring_3]
    push rax
    iretq

ring_3:
    mov rdi, SIEVE
    mov ecx, LIMIT
    xor eax, eax
clear:
    mov [rdi], al
    inc rdi
    dec ecx
    jnz clear

    mov rsi, SIEVE
    mov ebx, 2                          ; the number looked at
    xor r8d, r8d                        ; how many primes so far
candidate:
    cmp byte ptr [rsi + rbx], 0
    jne not_prime
    inc r8d
    lea rcx, [rbx + rbx]
multiple:
    cmp rcx, LIMIT
    jae not_prime
    mov byte ptr [rsi + rcx], 1
    add rcx, rbx
    jmp multiple
not_prime:
    inc ebx
    cmp ebx, LIMIT
    jb candidate

    ud2                                 ; done: the exception takes us to ring 0, R8 holds the answer

back_in_ring_0:
    mov eax, r8d
    lea rdi, [rip + digits_end]
    mov ecx, 10
digit:
    xor edx, edx
    div ecx                             ; EAX = quotient, EDX = the last digit
    add dl, '0'
    dec rdi
    mov [rdi], dl
    test eax, eax
    jnz digit

    lea rsi, [rip + message]
    call print
    mov rsi, rdi
    call print
    hlt

print:
    mov edx, COM1
print_next:
    lodsb
    test al, al
    jz print_done
    out dx, al
    jmp print_next
print_done:
    ret

message:
    .asciz "primes below 100000: "
digits:
    .space 10
digits_end:
    .asciz "\n"

.balign 8
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff            ; 0x08 32-bit code, as kvmpy had it
    .quad 0x00cf93000000ffff            ; 0x10 data
    .quad 0x00cff3000000ffff            ; 0x18 data of ring 3
    .quad 0x00affb000000ffff            ; 0x20 64-bit code of ring 3
    .word 0x67                          ; 0x28 the TSS: limit, base, type 9 (available 64-bit TSS), 16 bytes long
    .word tss - start
    .byte 0x10
    .byte 0x89
    .word 0
    .quad 0
    .quad 0x00af9b000000ffff            ; 0x38 64-bit code of ring 0
gdt_end:
gdt_register:
    .word gdt_end - gdt - 1
    .quad gdt

.balign 8
tss:
    .long 0
    .quad 0x80000                       ; RSP0
    .space 90
    .word 0x68                          ; no I/O permission bitmap: every port is closed to ring 3

.balign 8
idt:
    .space 96                           ; vectors 0 to 5 are not present
gate:
    .word 0                             ; offset 15:0, filled in above
    .word 0x38                          ; the code segment of the handler
    .byte 0
    .byte 0x8e                          ; present, DPL 0, interrupt gate
    .word 0                             ; offset 31:16
    .quad 0
idt_end:
idt_register:
    .word idt_end - idt - 1
    .quad idt
