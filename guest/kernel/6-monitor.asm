; 6. The monitor: a line from the console, the command's name looked up in a table, one number as its argument.

.equ ACPI_PM1A_CONTROL, 0x604
.equ ACPI_SLEEP, 0x2000                 ; SLP_EN with SLP_TYP 0: soft-off, on PCs like QEMU's
.equ DEBUG_EXIT, 0xf4
.equ KEYBOARD_COMMAND, 0x64
.equ PULSE_RESET, 0xfe
.equ CMOS_INDEX, 0x70
.equ CMOS_DATA, 0x71
.equ PEEK_LINES, 4

monitor:
    mov esp, KERNEL_STACK
    mov rsi, [rip + command_line]       ; what the loader said is the first command
    test rsi, rsi
    jz prompt
    mov dword ptr [rip + command_line], 0
    lea rdi, [rip + line]
    mov ecx, LINE_SIZE - 1
copy_command:
    lodsb
    mov [rdi], al
    inc rdi
    test al, al
    jz command_copied
    dec ecx
    jnz copy_command
    mov [rdi], cl
command_copied:
    call execute
prompt:
    lea rsi, [rip + prompt_text]
    call print
    call read_line
    call execute
    jmp prompt

execute:                                ; the command in `line`
    lea rsi, [rip + line]
    call skip_spaces
    cmp byte ptr [rsi], 0
    je execute_done
    lea rbx, [rip + commands]
try_command:
    mov rdi, [rbx]
    test rdi, rdi
    jz unknown_command
    push rsi
    call match_word
    je command_found
    pop rsi
    add rbx, 16
    jmp try_command
command_found:
    add rsp, 8
    call read_number                    ; RAX: the number, CF clear when there is one
    jmp qword ptr [rbx + 8]
unknown_command:
    lea rsi, [rip + unknown_message]
    call print
execute_done:
    ret

match_word:                             ; RSI: input, RDI: a word; ZF set, and RSI behind it, when they are the same
    mov al, [rdi]
    test al, al
    jz word_ended
    cmp al, [rsi]
    jne match_done
    inc rsi
    inc rdi
    jmp match_word
word_ended:
    cmp byte ptr [rsi], 0
    je match_done
    cmp byte ptr [rsi], ' '
match_done:
    ret

skip_spaces:
    cmp byte ptr [rsi], ' '
    jne skip_done
    inc rsi
    jmp skip_spaces
skip_done:
    ret

read_number:                            ; RSI: text; RAX: decimal or 0x hexadecimal; CF set when there is none
    call skip_spaces
    xor eax, eax
    mov ecx, 10
    cmp byte ptr [rsi], 0
    je no_number
    cmp word ptr [rsi], 0x7830          ; "0x"
    jne read_digit
    add rsi, 2
    mov ecx, 16
read_digit:
    movzx edx, byte ptr [rsi]
    inc rsi
    cmp edx, '0'
    jb number_ends
    cmp edx, '9'
    jbe decimal_digit
    or edx, 0x20                        ; lower case
    sub edx, 'a' - 10
    cmp edx, 10
    jb no_number
    jmp digit_known
decimal_digit:
    sub edx, '0'
digit_known:
    cmp edx, ecx
    jae no_number
    imul rax, rcx
    add rax, rdx
    jmp read_digit
number_ends:
    cmp edx, ' '
    je number_complete
    test edx, edx
    jnz no_number
number_complete:
    clc
    ret
no_number:
    stc
    ret

help_command:
    lea rsi, [rip + help_text]
    jmp print

ticks_command:
    mov rax, [rip + ticks]
    call print_decimal
    lea rsi, [rip + ticks_text]
    jmp print

cpuid_command:
    xor eax, eax
    call cpuid_text
    mov [rdi], ebx
    mov [rdi + 4], edx
    mov [rdi + 8], ecx
    mov byte ptr [rdi + 12], 0
    lea rsi, [rip + vendor_text]
    call print
    lea rsi, [rip + scratch]
    call print
    call print_newline
    mov eax, 0x80000000
    cpuid
    cmp eax, 0x80000004
    jb cpuid_features
    mov r8d, 0x80000002                 ; the brand: 48 characters in three leaves
    lea rdi, [rip + scratch]
brand_leaf:
    mov eax, r8d
    cpuid
    mov [rdi], eax
    mov [rdi + 4], ebx
    mov [rdi + 8], ecx
    mov [rdi + 12], edx
    add rdi, 16
    inc r8d
    cmp r8d, 0x80000004
    jbe brand_leaf
    mov byte ptr [rdi], 0
    lea rsi, [rip + brand_text]
    call print
    lea rsi, [rip + scratch]
    call print
    call print_newline
cpuid_features:
    mov eax, 1
    cpuid
    mov r8d, ecx
    mov r9d, edx
    lea rsi, [rip + features_text]
    call print
    mov eax, r8d
    call print_hex
    mov al, ' '
    call put_char
    mov eax, r9d
    call print_hex
    bt r8d, 31                          ; the bit that hypervisors set for their guests
    jnc print_newline
    lea rsi, [rip + hypervisor_text]
    call print
    jmp print_newline

cpuid_text:                             ; EAX: leaf; RDI: the scratch buffer
    xor ecx, ecx
    cpuid
    lea rdi, [rip + scratch]
    ret

mem_command:                            ; what firmware writes into CMOS: KiB above 1 MiB, 64 KiB units above 16 MiB
    mov al, 0x34
    call read_cmos_word
    test eax, eax
    jz small_memory
    shl eax, 6
    add eax, 16 * 1024
    jmp memory_known
small_memory:
    mov al, 0x30
    call read_cmos_word
    add eax, 1024
memory_known:
    push rax
    lea rsi, [rip + memory_text]
    call print
    pop rax
    call print_decimal
    lea rsi, [rip + memory_map_text]
    call print
    lea rsi, [rip + kernel_text]
    call print
    mov eax, BASE
    call print_hex
    mov al, '-'
    call put_char
    lea rax, [rip + image_end - 1]
    call print_hex
    jmp print_newline

read_cmos_word:                         ; AL: index of the low byte; EAX: the word
    mov ecx, eax
    inc eax
    out CMOS_INDEX, al
    in al, CMOS_DATA
    mov ah, al
    mov edx, eax
    mov eax, ecx
    out CMOS_INDEX, al
    in al, CMOS_DATA
    mov dl, al
    movzx eax, dx
    ret

ps_command:
    lea rsi, [rip + ps_head]
    call print
    lea rbx, [rip + tasks]
    mov ebp, [rip + task_count]
ps_line:
    mov al, [rbx + TASK_NAME]
    call put_char
    mov al, ' '
    call put_char
    movzx eax, byte ptr [rbx + TASK_STATE]
    lea rsi, [rip + state_names]
    lea rsi, [rsi + rax*8]
    call print
    mov rax, [rbx + TASK_SLICES]
    call print_decimal
    mov al, ' '
    call put_char
    mov rax, [rbx + TASK_CALLS]
    call print_decimal
    call print_newline
    add rbx, TASK_SIZE
    dec ebp
    jnz ps_line
    ret

peek_command:
    jc needs_number
    mov r12, rax
    mov ebp, PEEK_LINES
peek_line:
    lea rax, [rip + peek_failed]
    mov [rip + recover], rax
    mov r14, [r12]                      ; may fault: then the kernel goes on at peek_failed
    mov r15, [r12 + 8]
    mov qword ptr [rip + recover], 0
    mov rax, r12
    call print_hex
    mov al, ':'
    call put_char
    mov rax, r14
    call print_bytes
    mov rax, r15
    call print_bytes
    call print_newline
    add r12, 16
    dec ebp
    jnz peek_line
    ret
peek_failed:
    lea rsi, [rip + not_mapped_text]
    call print
    mov rax, cr2
    call print_hex
    jmp print_newline

print_bytes:                            ; RAX: eight bytes, the lowest first
    mov r13, rax
    mov ebx, 8
print_byte:
    mov al, ' '
    call put_char
    mov eax, r13d
    shr eax, 4
    call print_digit
    mov eax, r13d
    call print_digit
    shr r13, 8
    dec ebx
    jnz print_byte
    ret

needs_number:
    lea rsi, [rip + needs_number_text]
    jmp print

; A task that does what the number says, to be killed for it.
trap_command:
    jc needs_number
    cmp rax, 14
    ja trap_unknown
    lea rdx, [rip + trap_tasks]
    movzx edx, word ptr [rdx + rax*2]
    test edx, edx
    jz trap_unknown
    lea rax, [rip + user_start]
    add rax, rdx
    mov dword ptr [rip + task_count], TASK_LIMIT - 1    ; the last entry is for this
    mov dil, 'T'
    call create_task
    jmp run_tasks
trap_unknown:
    lea rsi, [rip + trap_text]
    jmp print

panic_command:
    ud2

reboot_command:
    mov al, PULSE_RESET
    out KEYBOARD_COMMAND, al
    jmp stop_forever

halt_command:
    jnc power_off_with_code
power_off:
    mov edx, ACPI_PM1A_CONTROL
    mov eax, ACPI_SLEEP
    out dx, ax
stop_forever:
    cli
    hlt
    jmp stop_forever

power_off_with_code:                    ; AL: the exit code; a machine without the port goes on to switch itself off
    out DEBUG_EXIT, al
    jmp power_off

.balign 8
commands:
    .quad help_word
    .quad help_command
    .quad cpuid_word
    .quad cpuid_command
    .quad ticks_word
    .quad ticks_command
    .quad mem_word
    .quad mem_command
    .quad ps_word
    .quad ps_command
    .quad peek_word
    .quad peek_command
    .quad trap_word
    .quad trap_command
    .quad panic_word
    .quad panic_command
    .quad reboot_word
    .quad reboot_command
    .quad halt_word
    .quad halt_command
    .quad 0
help_word:
    .asciz "help"
cpuid_word:
    .asciz "cpuid"
ticks_word:
    .asciz "ticks"
mem_word:
    .asciz "mem"
ps_word:
    .asciz "ps"
peek_word:
    .asciz "peek"
trap_word:
    .asciz "trap"
panic_word:
    .asciz "panic"
reboot_word:
    .asciz "reboot"
halt_word:
    .asciz "halt"
prompt_text:
    .asciz "> "
unknown_message:
    .asciz "no such command; type 'help'\n"
needs_number_text:
    .asciz "this needs a number, like 32 or 0x20\n"
help_text:
    .ascii "help         this list\ncpuid        the processor\nticks        timer interrupts so far\n"
    .ascii "mem          memory\nps           the tasks\npeek ADDR    64 bytes of memory\n"
    .ascii "trap N       a task that raises exception N: 0, 3, 6, 13, 14\npanic        a fault in the kernel\n"
    .asciz "reboot       reset the machine\nhalt [CODE]  switch it off; Ctrl-D does it too\n"
ticks_text:
    .asciz " ticks\n"
vendor_text:
    .asciz "vendor   "
brand_text:
    .asciz "brand    "
features_text:
    .asciz "features "
hypervisor_text:
    .asciz " in a virtual machine"
memory_text:
    .asciz "memory   "
memory_map_text:
    .asciz " KiB\nmapped   0x1000-0x3fffffff to itself, ring 3 only where it needs to\n"
kernel_text:
    .asciz "kernel   "
not_mapped_text:
    .asciz "page fault at "
trap_text:
    .asciz "traps are 0 (#DE), 3 (#BP), 6 (#UD), 13 (#GP), 14 (#PF)\n"
ps_head:
    .asciz "task state slices calls\n"
state_names:                            ; eight bytes each
    .ascii "free   \0ready  \0exited \0killed \0"
