; 3. Long mode: what the kernel does, in turn.

.code64
long_mode:
    mov ax, DATA
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov esp, KERNEL_STACK
    lea rsi, [rip + long_message]
    call print

    call set_up_interrupts
    lea rsi, [rip + interrupts_message]
    call print

    call set_up_timer
    sti
first_tick:
    hlt                                 ; sleep until an interrupt comes
    cmp dword ptr [rip + ticks], 0
    je first_tick
    lea rsi, [rip + timer_message]
    call print

    lea rsi, [rip + tasks_message]
    call print
    lea rax, [rip + ping_task]
    mov dil, 'A'
    call create_task
    lea rax, [rip + pong_task]
    mov dil, 'B'
    call create_task
    lea rax, [rip + bad_task]
    mov dil, 'C'
    call create_task
    call run_tasks

    lea rsi, [rip + monitor_message]
    call print
    jmp monitor

long_message:
    .asciz "[long]      64-bit code, 4-level paging, page 0 not mapped\n"
interrupts_message:
    .asciz "[idt]       gates for exceptions, interrupts and system calls\n"
timer_message:
    .asciz "[timer]     the PIT ticks 100 times a second\n"
tasks_message:
    .asciz "[tasks]     two tasks in ring 3 wait for each other; only preemption lets them go on\n"
monitor_message:
    .asciz "[monitor]   type 'help'\n"
