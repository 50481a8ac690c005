;; paging: reads and writes one address, and asks for help when it faults.
;;
;; bits: 64
;; load: 0x8000
;; irqchip: none
;; summary: touches an address that the host maps, unmaps and protects
;
; The handler of #PF writes to port 0x0e, which leaves the guest; then it drops the error code and returns to the
; instruction that faulted, which the processor runs again (Intel SDM vol. 3, 6.5: a fault is restarted).

.equ TARGET, 0x800000
.equ FAULT, 0x0e
.equ RESULT, 0x50
.equ CODE64, 0x18
.equ INTERRUPT_GATE, 0x8e00             ; present, ring 0 (6.14.1)
.equ PAGE_FAULT, 14

start:
    lidt [rip + idt_register]
    mov ebx, TARGET
    mov al, [rbx]
    out RESULT, al
    inc al
    mov [rbx], al
    out RESULT, al
    hlt

page_fault:
    push rax
    out FAULT, al
    pop rax
    add rsp, 8                          ; the error code
    iretq

.balign 16
idt:
    .fill 14 * 16, 1, 0
    .word page_fault                    ; the handler lies below 64 KiB: the upper parts are zero
    .word CODE64
    .word INTERRUPT_GATE
    .word 0
    .quad 0
idt_register:
    .word idt_register - idt - 1
    .quad idt
