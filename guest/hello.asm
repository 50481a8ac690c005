;; hello: the smallest guest. Sixteen-bit real mode, as every x86 processor wakes up.
;;
;; bits: 16
;; load: 0x7c00
;; irqchip: none
;; summary: prints one line from real mode and halts
;
; The program talks to COM1, a 16550A UART at port 0x3f8. A byte written to its first register is sent; nothing else has
; to be set up when the other end is a program and not a wire. Each OUT leaves the guest: the processor stops running it,
; KVM hands the port, the size and the value to kvmpy, and kvmpy's UART prints it.

.equ COM1, 0x3f8

start:
    mov si, message                     ; DS is 0, so the offset is the address
    mov dx, COM1
next:
    mov al, [si]
    inc si
    test al, al                         ; the text ends with a zero byte
    jz done
    out dx, al
    jmp next

done:
    hlt                                 ; interrupts are off: nothing can wake the guest, so this ends it

message:
    .asciz "Hello from real mode\n"
