; 4. Interrupts and exceptions.
;
; Each vector gets a stub of 16 bytes, alike but for its number, so the kernel writes them itself: push an error code where
; the processor does not, push the vector, jump to `interrupt`. On the stack lie then, from RSP up: the 15 registers that
; `interrupt` saves, the vector, the error code, and the processor's own frame: RIP, CS, RFLAGS, RSP, SS.

.equ FRAME_VECTOR, 120
.equ FRAME_ERROR, 128
.equ FRAME_RIP, 136
.equ FRAME_CS, 144
.equ FRAME_RFLAGS, 152
.equ FRAME_RSP, 160
.equ FRAME_RAX, 112
.equ FRAME_RSI, 72
.equ FRAME_RDI, 64

.equ STUB_COUNT, 48                     ; 32 exceptions and 16 interrupt lines
.equ TIMER_VECTOR, 32
.equ SERIAL_VECTOR, 36
.equ SYSTEM_CALL_VECTOR, 0x80
.equ BREAKPOINT, 3
.equ INVALID_OPCODE, 6
.equ PAGE_FAULT, 14
.equ ERROR_CODE_VECTORS, 0x227d00       ; 8, 10 to 14, 17 and 21 push one (Intel SDM vol. 3, table 6-1)
.equ PANIC_CODE, 1

.equ PIC1, 0x20
.equ PIC2, 0xa0
.equ END_OF_INTERRUPT, 0x20
.equ PIT_CHANNEL0, 0x40
.equ PIT_MODE, 0x43
.equ PIT_DIVISOR, 11932                 ; 1193182 Hz / 100

set_up_interrupts:
    mov edi, STUBS
    xor ecx, ecx
next_stub:
    call write_stub
    inc ecx
    cmp ecx, STUB_COUNT
    jb next_stub
    mov ecx, SYSTEM_CALL_VECTOR
    call write_stub
    mov eax, IDT                        ; DPL 3: ring 3 may use these gates, for INT 0x80 and for INT3
    or byte ptr [rax + SYSTEM_CALL_VECTOR * 16 + 5], 0x60
    or byte ptr [rax + BREAKPOINT * 16 + 5], 0x60
    lidt [rip + idt_register]

    lea rax, [rip + tss]                ; the TSS descriptor holds the address in pieces
    lea rdi, [rip + tss_descriptor]
    mov [rdi + 2], ax
    shr rax, 16
    mov [rdi + 4], al
    mov [rdi + 7], ah
    mov eax, TSS
    ltr ax

    ; Both PICs: vectors from 32 on, as 8 to 15 are exceptions (Intel 8259A, initialization command words).
    mov al, 0x11
    out PIC1, al
    out PIC2, al
    mov al, TIMER_VECTOR
    out PIC1 + 1, al
    mov al, TIMER_VECTOR + 8
    out PIC2 + 1, al
    mov al, 4
    out PIC1 + 1, al
    mov al, 2
    out PIC2 + 1, al
    mov al, 1
    out PIC1 + 1, al
    out PIC2 + 1, al
    mov al, 0xee                        ; open: line 0, the timer, and line 4, COM1
    out PIC1 + 1, al
    mov al, 0xff
    out PIC2 + 1, al
    ret

write_stub:                             ; ECX: vector, RDI: where; leaves RDI behind it
    ; The gate: offset, selector, type 0xe (interrupt gate), present.
    mov eax, ecx
    shl eax, 4
    lea rbx, [rax + IDT]
    mov rax, rdi
    mov [rbx], ax
    mov word ptr [rbx + 2], CODE64
    mov word ptr [rbx + 4], 0x8e00
    shr rax, 16
    mov [rbx + 6], ax
    ; The stub: push 0 (6a 00) or two NOPs, push vector (6a nn), jmp interrupt (e9 and the distance).
    mov word ptr [rdi], 0x006a
    cmp ecx, 32
    jae has_no_error_code
    mov eax, ERROR_CODE_VECTORS
    bt eax, ecx
    jnc has_no_error_code
    mov word ptr [rdi], 0x9090
has_no_error_code:
    mov byte ptr [rdi + 2], 0x6a
    mov [rdi + 3], cl
    mov byte ptr [rdi + 4], 0xe9
    lea rax, [rip + interrupt]
    sub rax, rdi
    sub rax, 9
    mov [rdi + 5], eax
    add rdi, 16
    ret

set_up_timer:
    mov al, 0x34                        ; channel 0, low and high byte, rate generator
    out PIT_MODE, al
    mov al, PIT_DIVISOR & 0xff
    out PIT_CHANNEL0, al
    mov al, PIT_DIVISOR >> 8
    out PIT_CHANNEL0, al
    mov edx, UART_INTERRUPTS
    mov al, 1                           ; COM1 interrupts when a byte has arrived
    out dx, al
    ret

interrupt:
    push rax
    push rbx
    push rcx
    push rdx
    push rbp
    push rsi
    push rdi
    push r8
    push r9
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
    cld
    movzx eax, byte ptr [rsp + FRAME_VECTOR]    ; a byte: PUSH has extended the sign of 0x80
    cmp eax, TIMER_VECTOR
    je timer_interrupt
    cmp eax, SERIAL_VECTOR
    je serial_interrupt
    cmp eax, SYSTEM_CALL_VECTOR
    je system_call
    cmp eax, 32
    jb exception
return:
    pop r15
    pop r14
    pop r13
    pop r12
    pop r11
    pop r10
    pop r9
    pop r8
    pop rdi
    pop rsi
    pop rbp
    pop rdx
    pop rcx
    pop rbx
    pop rax
    add rsp, 16                         ; vector and error code
    iretq

timer_interrupt:
    inc qword ptr [rip + ticks]
    mov al, END_OF_INTERRUPT
    out PIC1, al
    test byte ptr [rsp + FRAME_CS], 3
    jz return                           ; the kernel itself is not preempted
    jmp switch_task

serial_interrupt:                       ; take what has arrived, as long as there is room for it
    mov ecx, [rip + input_head]
    lea ebx, [rcx + 1]
    and ebx, INPUT_SIZE - 1
    cmp ebx, [rip + input_tail]
    je serial_full
    mov edx, UART_STATUS
    in al, dx
    test al, 1
    jz serial_done
    mov edx, UART_DATA
    in al, dx
    lea rdi, [rip + input_buffer]
    mov [rdi + rcx], al
    mov [rip + input_head], ebx
    jmp serial_interrupt
serial_full:                            ; the rest waits in the UART, which may interrupt again when a byte was read
    mov byte ptr [rip + input_stopped], 1
    mov edx, UART_INTERRUPTS
    xor eax, eax
    out dx, al
serial_done:
    mov al, END_OF_INTERRUPT
    out PIC1, al
    jmp return

; In ring 3 an exception ends the task; unless it is #UD at the bytes CD 80: some hosts do not know INT n in ring 3, and a
; system call arrives like this. In ring 0 it goes on at `recover`, where that is set, or it is the end.
exception:
    mov ebx, eax
    test byte ptr [rsp + FRAME_CS], 3
    jz kernel_exception
    cmp eax, INVALID_OPCODE
    jne kill
    mov rsi, [rsp + FRAME_RIP]
    lea rax, [rip + user_start]
    cmp rsi, rax
    jb kill
    lea rax, [rip + user_end - 2]
    cmp rsi, rax
    ja kill
    cmp word ptr [rsi], 0x80cd
    jne kill
    add qword ptr [rsp + FRAME_RIP], 2
    jmp system_call
kill:
    mov rbp, rsp
    lea rsi, [rip + killed_message]
    call print
    mov rdi, [rip + current]
    mov al, [rdi + TASK_NAME]
    call put_char
    lea rsi, [rip + by_message]
    call print
    call print_exception
    mov rdi, [rip + current]
    mov byte ptr [rdi + TASK_STATE], KILLED
    jmp switch_task

kernel_exception:
    mov rax, [rip + recover]
    test rax, rax
    jz panic
    mov [rsp + FRAME_RIP], rax
    mov qword ptr [rip + recover], 0
    jmp return

panic:
    mov rbp, rsp
    lea rsi, [rip + panic_message]
    call print
    call print_exception
    mov eax, PANIC_CODE
    jmp power_off_with_code

print_exception:                        ; EBX: vector, RBP: the frame
    cmp ebx, 32
    jae exception_number
    lea rsi, [rip + exception_names]
    lea rsi, [rsi + rbx*4]
    call print
exception_number:
    lea rsi, [rip + at_message]
    call print
    mov rax, [rbp + FRAME_RIP]
    call print_hex
    lea rsi, [rip + error_message]
    call print
    mov rax, [rbp + FRAME_ERROR]
    call print_hex
    cmp ebx, PAGE_FAULT
    jne exception_end
    lea rsi, [rip + address_message]
    call print
    mov rax, cr2
    call print_hex
exception_end:
    jmp print_newline

killed_message:
    .asciz "task "
by_message:
    .asciz " killed by "
at_message:
    .asciz " at "
error_message:
    .asciz ", error code "
address_message:
    .asciz ", address "
panic_message:
    .asciz "kernel panic: "
exception_names:                        ; four bytes each
    .ascii "#DE\0#DB\0NMI\0#BP\0#OF\0#BR\0#UD\0#NM\0#DF\0#9\0\0#TS\0#NP\0#SS\0#GP\0#PF\0#15\0"
    .ascii "#MF\0#AC\0#MC\0#XM\0#VE\0#CP\0#22\0#23\0#24\0#25\0#26\0#27\0#HV\0#VC\0#SX\0#31\0"
