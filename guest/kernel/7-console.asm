; 7. The console: printing, and reading a line with echo.

.equ INPUT_SIZE, 256
.equ LINE_SIZE, 80
.equ NEWLINE, 10
.equ RETURN, 13
.equ BACKSPACE, 8
.equ DELETE, 127
.equ CTRL_C, 3
.equ CTRL_D, 4

print:                                  ; RSI: a text that ends with 0
    lodsb
    test al, al
    jz print_end
    call put_char
    jmp print
print_end:
    ret

print_newline:
    mov al, NEWLINE
put_char:                               ; AL; keeps all registers but RAX and RDX
    mov ah, al
    mov edx, UART_STATUS
wait_for_room:
    in al, dx
    test al, 0x20
    jz wait_for_room
    mov edx, UART_DATA
    mov al, ah
    out dx, al
    ret

print_decimal:                          ; RAX
    lea rdi, [rip + number_end]
    mov ecx, 10
next_decimal:
    xor edx, edx
    div rcx
    add dl, '0'
    dec rdi
    mov [rdi], dl
    test rax, rax
    jnz next_decimal
    mov rsi, rdi
    jmp print

print_hex:                              ; RAX, with 0x and without leading zeros
    lea rdi, [rip + number_end]
next_hex:
    mov edx, eax
    and edx, 0xf
    lea rcx, [rip + hex_digits]
    mov dl, [rcx + rdx]
    dec rdi
    mov [rdi], dl
    shr rax, 4
    jnz next_hex
    sub rdi, 2
    mov word ptr [rdi], 0x7830          ; "0x"
    mov rsi, rdi
    jmp print

print_digit:                            ; the low four bits of EAX
    and eax, 0xf
    lea rcx, [rip + hex_digits]
    mov al, [rcx + rax]
    jmp put_char

read_char:                              ; AL: the next byte; sleeps until there is one
    cli
    mov ecx, [rip + input_tail]
    cmp ecx, [rip + input_head]
    jne char_waits
    sti                                 ; takes effect after the next instruction, so no interrupt is missed
    hlt
    jmp read_char
char_waits:
    lea rdx, [rip + input_buffer]
    mov al, [rdx + rcx]
    inc ecx
    and ecx, INPUT_SIZE - 1
    mov [rip + input_tail], ecx
    cmp byte ptr [rip + input_stopped], 0
    je char_read
    mov byte ptr [rip + input_stopped], 0
    mov ah, al
    mov edx, UART_INTERRUPTS
    mov al, 1
    out dx, al
    mov al, ah
char_read:
    sti
    ret

read_line:                              ; into `line`, ended with 0
    lea rbx, [rip + line]
    xor ebp, ebp                        ; how many characters there are
next_char:
    call read_char
    cmp al, RETURN
    je line_complete
    cmp al, NEWLINE
    je line_complete
    cmp al, BACKSPACE
    je rub_out
    cmp al, DELETE
    je rub_out
    cmp al, CTRL_C
    je drop_line
    cmp al, CTRL_D
    je end_of_input
    cmp al, ' '
    jb next_char
    cmp ebp, LINE_SIZE - 1
    jae next_char
    mov [rbx + rbp], al
    inc ebp
    call put_char
    jmp next_char
rub_out:
    test ebp, ebp
    jz next_char
    dec ebp
    lea rsi, [rip + rub_out_text]
    call print
    jmp next_char
drop_line:
    lea rsi, [rip + drop_text]
    call print
    xor ebp, ebp
    jmp line_ends
end_of_input:
    test ebp, ebp
    jnz next_char
    call print_newline
    jmp power_off
line_complete:
    call print_newline
line_ends:
    mov byte ptr [rbx + rbp], 0
    ret

hex_digits:
    .ascii "0123456789abcdef"
rub_out_text:
    .asciz "\b \b"
drop_text:
    .asciz "^C\n"
