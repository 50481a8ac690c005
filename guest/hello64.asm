;; hello64: the same in 64-bit long mode.
;;
;; bits: 64
;; load: 0x100000
;; irqchip: none
;; summary: prints one line from 64-bit long mode and halts
;
; Long mode cannot run without paging. kvmpy starts this guest with page tables that map the first 4 GiB to themselves, in
; pages of 2 MiB. Addresses of data are best taken relative to RIP: the instruction stays short wherever the code lies.

.equ COM1, 0x3f8

start:
    lea rsi, [rip + message]
    mov edx, COM1
next:
    lodsb
    test al, al
    jz done
    out dx, al
    jmp next

done:
    hlt

message:
    .asciz "Hello from long mode\n"
