;; device: lets a device multiply for it, and prints the product.
;;
;; bits: 16
;; load: 0x7c00
;; irqchip: none
;; summary: uses a multiplier at port 0x500
;
; The multiplier has three registers of 16 bits: two factors at offsets 0 and 2, their product at 4.

.equ MULTIPLIER, 0x500
.equ COM1, 0x3f8

start:
    mov dx, MULTIPLIER
    mov ax, 6
    out dx, ax
    mov dx, MULTIPLIER + 2
    mov ax, 7
    out dx, ax
    mov dx, MULTIPLIER + 4
    in ax, dx

    xor dx, dx
    mov bx, 10
    div bx                              ; AX: tens, DX: ones
    mov bl, dl
    mov dx, COM1
    add al, '0'
    out dx, al
    mov al, bl
    add al, '0'
    out dx, al
    mov al, 10
    out dx, al
    hlt
