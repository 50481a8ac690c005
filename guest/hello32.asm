;; hello32: the same in 32-bit protected mode.
;;
;; bits: 32
;; load: 0x100000
;; irqchip: none
;; summary: prints one line from 32-bit protected mode and halts
;
; kvmpy starts this guest with flat segments: CS, DS and the others begin at 0 and are 4 GiB long, so an address in the
; program is an address in memory. The program lies above 1 MiB, where real mode could not even reach it.

.equ COM1, 0x3f8

start:
    mov esi, message
    mov dx, COM1
next:
    lodsb                               ; AL = [DS:ESI], ESI = ESI + 1
    test al, al
    jz done
    out dx, al
    jmp next

done:
    hlt

message:
    .asciz "Hello from protected mode\n"
