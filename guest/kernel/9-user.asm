; 9. Ring 3. A and B share a word and wait for their turn without ever giving the processor away: only the timer, which
; takes it from them, lets them go on. C breaks the rules.

.equ ROUNDS, 3
.equ SYS_EXIT, 0
.equ SYS_WRITE, 1

.balign 4096
user_start:
    .space 16                           ; so that no task starts at offset 0, which means "none" in trap_tasks

ping_task:
    mov ebx, ROUNDS
ping_wait:
    cmp byte ptr [rip + turn], 0
    jne ping_wait
    lea rdi, [rip + ping_text]
    mov esi, 15
    call write
    mov byte ptr [rip + turn], 1
    dec ebx
    jnz ping_wait
    jmp exit

pong_task:
    mov ebx, ROUNDS
pong_wait:
    cmp byte ptr [rip + turn], 1
    jne pong_wait
    lea rdi, [rip + pong_text]
    mov esi, 15
    call write
    mov byte ptr [rip + turn], 0
    dec ebx
    jnz pong_wait
    mov byte ptr [rip + turn], 2
    jmp exit

bad_task:                               ; waits until the others are done, then writes into the kernel
    cmp byte ptr [rip + turn], 2
    jne bad_task
    lea rdi, [rip + bad_text]
    mov esi, 35
    call write
    lea rdi, [rip + ticks]
    mov byte ptr [rdi], 0
    jmp exit

write:
    mov eax, SYS_WRITE
    int 0x80
    ret

exit:
    mov eax, SYS_EXIT
    int 0x80

trap_0:
    xor ecx, ecx
    xor edx, edx
    div ecx
trap_3:
    int3
trap_6:
    ud2
trap_13:
    hlt                                 ; privileged
trap_14:
    xor eax, eax
    mov al, [rax]                       ; page 0 is not mapped

turn:
    .byte 0
ping_text:
    .ascii "A: ping, to B.\n"
pong_text:
    .ascii "B: pong, to A.\n"
bad_text:
    .ascii "C: I write into the kernel's pages\n"
.balign 4096
user_end:


trap_tasks:                             ; where the task for each vector starts, 0 for none
    .word trap_0 - user_start
    .word 0
    .word 0
    .word trap_3 - user_start
    .word 0
    .word 0
    .word trap_6 - user_start
    .word 0
    .word 0
    .word 0
    .word 0
    .word 0
    .word 0
    .word trap_13 - user_start
    .word trap_14 - user_start
image_end:
