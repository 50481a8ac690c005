;; interrupts: waits for a device, and is called by it.
;;
;; bits: 16
;; load: 0x7c00
;; irqchip: python
;; summary: rings a bell, sleeps, and prints when its interrupt comes
;
; The bell is a device at port 0x500: a write starts it, and when it rings it raises IRQ 5. A read stops its ringing. The
; interrupt controller, a pair of 8259A, turns a line into a vector: what it adds to the line's number is set by ICW2.

.equ BELL, 0x500
.equ BELL_VECTOR, 0x25                  ; 0x20 + IRQ 5
.equ PIC1, 0x20
.equ PIC2, 0xa0
.equ END_OF_INTERRUPT, 0x20
.equ CONSOLE, 0xe9
.equ EXIT, 0xf4

start:
    cli
    mov word ptr [BELL_VECTOR * 4], ring   ; the vector table: offset, then segment
    mov word ptr [BELL_VECTOR * 4 + 2], 0

    mov al, 0x11                        ; ICW1: edges, a second controller, ICW4 follows (8259A data sheet)
    out PIC1, al
    out PIC2, al
    mov al, 0x20                        ; ICW2: the first vector
    out PIC1 + 1, al
    mov al, 0x28
    out PIC2 + 1, al
    mov al, 4                           ; ICW3: the second hangs on input 2
    out PIC1 + 1, al
    mov al, 2
    out PIC2 + 1, al
    mov al, 1                           ; ICW4: 8086
    out PIC1 + 1, al
    out PIC2 + 1, al
    mov al, 0xdf                        ; all lines are masked but IRQ 5
    out PIC1 + 1, al
    mov al, 0xff
    out PIC2 + 1, al

    mov dx, BELL
    out dx, al                          ; start it
    sti
    hlt                                 ; nothing runs until the line rises
    mov al, 0
    out EXIT, al                        ; here the handler has returned
    hlt

ring:
    push ax
    push dx
    mov dx, BELL
    in al, dx                           ; what the bell says; the line falls
    out CONSOLE, al
    mov al, END_OF_INTERRUPT
    out PIC1, al
    mov dx, BELL
    mov al, 1
    out dx, al                          ; tell the bell that it was heard
    pop dx
    pop ax
    iret
