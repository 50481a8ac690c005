;; trap: three privileged instructions, each of which leaves the guest.
;;
;; bits: 64
;; load: 0x8000
;; irqchip: none
;; summary: reads a port and an MSR, adds one to what it gets, and halts
;
; IN needs the right to the port (IOPL, or the bitmap of the TSS; Intel SDM vol. 1, 19.5), RDMSR and HLT need ring 0. This
; guest is in ring 0: nothing faults. But the ports and the MSR are not the processor's to give, so each access exits, and
; what IN or RDMSR returns is what Python answers.

.equ QUESTION, 0x42
.equ ANSWER, 0x43
.equ MSR, 0x12345678

start:
    in al, QUESTION
    inc al
    out ANSWER, al

    mov ecx, MSR
    rdmsr                               ; EDX:EAX
    inc eax
    out ANSWER, eax

    hlt
