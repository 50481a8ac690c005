; 1. Real mode: 16-bit segments of 64 KiB, an address is 16 times the segment plus the offset.
;
; CS is 0x1000, so offsets count from BASE. The loader may have left the address of a command line in SI.

.equ UART_DATA, COM1
.equ UART_INTERRUPTS, COM1 + 1
.equ UART_FIFO, COM1 + 2
.equ UART_LINE, COM1 + 3
.equ UART_MODEM, COM1 + 4
.equ UART_STATUS, COM1 + 5

real_mode:
    cli
    cld
    mov ax, cs
    mov ds, ax
    mov es, ax
    xor ax, ax
    mov ss, ax
    mov sp, 0x7c00

    movzx esi, si                       ; the command line's linear address, 0 for none
    test si, si
    jz no_command_line
    add esi, BASE
no_command_line:
    mov edi, command_line_offset
    mov [di], esi

    call set_up_uart
    mov si, real_message_offset
    call print16

    ; Into protected mode: a GDT, CR0.PE, and a far jump that loads CS with a descriptor (Intel SDM vol. 3, 9.9.1).
    mov di, gdt_register_offset
    lgdt [di]
    mov eax, cr0
    or al, 1
    mov cr0, eax
    jmp dword CODE32:protected_mode

.equ command_line_offset, command_line - BASE
.equ real_message_offset, real_message - BASE
.equ gdt_register_offset, gdt_register - BASE

set_up_uart:
    mov dx, UART_INTERRUPTS
    xor al, al
    out dx, al
    mov dx, UART_LINE
    mov al, 0x80                        ; DLAB: the first two registers are the divisor now
    out dx, al
    mov dx, UART_DATA
    mov al, 1                           ; 115200 baud
    out dx, al
    mov dx, UART_INTERRUPTS
    xor al, al
    out dx, al
    mov dx, UART_LINE
    mov al, 3                           ; 8 bits, no parity, one stop bit
    out dx, al
    mov dx, UART_FIFO
    mov al, 7                           ; FIFOs on and empty
    out dx, al
    mov dx, UART_MODEM
    mov al, 0x0b                        ; DTR, RTS, and OUT2, which lets the interrupt through on a PC
    out dx, al
    ret

print16:                                ; SI: offset of a text that ends with 0
    lodsb
    test al, al
    jz print16_done
    mov ah, al
    mov dx, UART_STATUS
print16_wait:
    in al, dx
    test al, 0x20                       ; room for a byte?
    jz print16_wait
    mov dx, UART_DATA
    mov al, ah
    out dx, al
    jmp print16
print16_done:
    ret

real_message:
    .asciz "\nkvmpy guest kernel\n[real]      16-bit code, 64 KiB segments\n"
