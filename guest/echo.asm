;; echo: sends back what it receives, without interrupts.
;;
;; bits: 16
;; load: 0x7c00
;; irqchip: none
;; summary: sends back every byte it receives, and halts at Ctrl-D
;
; Polling: the guest asks the UART's line status register again and again. Bit 0 says that a byte has arrived, bit 5 that
; the next one may be sent. Every question is an exit, so this guest keeps a whole processor busy with waiting; what
; interrupts are for is shown by guest.bin.

.equ COM1, 0x3f8
.equ LINE_STATUS, COM1 + 5
.equ DATA_READY, 0x01
.equ TRANSMIT_EMPTY, 0x20
.equ CTRL_D, 4

wait_for_byte:
    mov dx, LINE_STATUS
    in al, dx
    test al, DATA_READY
    jz wait_for_byte

    mov dx, COM1
    in al, dx                           ; reading takes the byte out of the receive FIFO
    cmp al, CTRL_D
    je done
    mov bl, al

    mov dx, LINE_STATUS
wait_for_room:
    in al, dx
    test al, TRANSMIT_EMPTY
    jz wait_for_room

    mov dx, COM1
    mov al, bl
    out dx, al
    jmp wait_for_byte

done:
    hlt
