; 5. Tasks in ring 3. Each has a kernel stack of its own, on which its registers wait while another runs.

.equ TASK_RSP, 0                        ; where the kernel stack stands
.equ TASK_STACK, 8                      ; where it begins: what the TSS gives the processor on the way to ring 0
.equ TASK_SLICES, 16                    ; how often it got the processor
.equ TASK_CALLS, 24                     ; how many system calls it made
.equ TASK_STATE, 32
.equ TASK_NAME, 33
.equ TASK_SIZE, 40
.equ FREE, 0
.equ READY, 1
.equ EXITED, 2
.equ KILLED, 3
.equ TSS_RSP0, 4
.equ RFLAGS_IF, 0x202
.equ SYSTEM_CALLS, 3

create_task:                            ; RAX: where it starts, DIL: its name; takes the next entry of the table
    mov ecx, [rip + task_count]
    inc dword ptr [rip + task_count]
    imul edx, ecx, TASK_SIZE
    lea rbx, [rip + tasks]
    add rbx, rdx
    mov [rbx + TASK_NAME], dil
    mov byte ptr [rbx + TASK_STATE], READY
    mov qword ptr [rbx + TASK_SLICES], 0
    mov qword ptr [rbx + TASK_CALLS], 0

    inc ecx                             ; stacks grow down from the end
    shl ecx, 12
    lea rdx, [rcx + TASK_KERNEL_STACKS]
    mov [rbx + TASK_STACK], rdx
    lea rcx, [rcx + TASK_USER_STACKS]

    ; The frame that `return` will take off the stack: SS, RSP, RFLAGS, CS, RIP, error code, vector, 15 registers.
    mov qword ptr [rdx - 8], USER_DATA
    mov [rdx - 16], rcx
    mov qword ptr [rdx - 24], RFLAGS_IF
    mov qword ptr [rdx - 32], USER_CODE
    mov [rdx - 40], rax
    lea rdi, [rdx - 176]
    mov [rbx + TASK_RSP], rdi
    mov ecx, 17
    xor eax, eax
    rep stosq
    ret

run_tasks:                              ; returns when none is left that could run
    cli
    push rbx
    push rbp
    mov [rip + kernel_rsp], rsp
    lea rdi, [rip + tasks]
    jmp pick_task

switch_task:                            ; the running task's registers are on the stack
    mov rdi, [rip + current]
    mov [rdi + TASK_RSP], rsp
    call next_task
pick_task:
    mov ecx, [rip + task_count]         ; round robin: look at each task once, beginning with the next
look:
    cmp byte ptr [rdi + TASK_STATE], READY
    je resume
    call next_task
    dec ecx
    jnz look
    mov rsp, [rip + kernel_rsp]
    pop rbp
    pop rbx
    sti
    ret

resume:
    mov [rip + current], rdi
    inc qword ptr [rdi + TASK_SLICES]
    mov rax, [rdi + TASK_STACK]
    lea rdx, [rip + tss]
    mov [rdx + TSS_RSP0], rax
    mov rsp, [rdi + TASK_RSP]
    jmp return

next_task:                              ; RDI: a task; leaves the one behind it, or the first
    push rcx
    add rdi, TASK_SIZE
    mov ecx, [rip + task_count]
    imul ecx, ecx, TASK_SIZE
    lea rdx, [rip + tasks]
    add rcx, rdx
    cmp rdi, rcx
    jb next_task_found
    mov rdi, rdx
next_task_found:
    pop rcx
    ret

; System calls: the number in RAX, arguments in RDI and RSI, the answer in RAX.
;   0 exit()    1 write(text, length)    2 ticks()
system_call:
    mov rdi, [rip + current]
    inc qword ptr [rdi + TASK_CALLS]
    mov rax, [rsp + FRAME_RAX]
    cmp rax, SYSTEM_CALLS
    jae unknown_call
    test eax, eax
    jz exit_call
    cmp eax, 1
    je write_call
    mov rax, [rip + ticks]
    jmp answer
unknown_call:
    mov rax, -1
answer:
    mov [rsp + FRAME_RAX], rax
    jmp return

exit_call:
    mov byte ptr [rdi + TASK_STATE], EXITED
    jmp switch_task

write_call:                             ; never trust a pointer from ring 3: the text must lie within the user's pages
    mov rsi, [rsp + FRAME_RDI]
    mov rcx, [rsp + FRAME_RSI]
    lea rax, [rip + user_start]
    cmp rsi, rax
    jb unknown_call
    lea rax, [rip + user_end]
    cmp rsi, rax
    ja unknown_call
    sub rax, rsi
    cmp rcx, rax
    ja unknown_call
    mov r12, rcx
    mov r13, rcx
write_next:
    test r12, r12
    jz write_done
    lodsb
    call put_char
    dec r12
    jmp write_next
write_done:
    mov rax, r13
    jmp answer
