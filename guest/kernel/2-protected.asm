; 2. Protected mode: 32-bit code in flat segments, and the page tables that long mode needs.

.equ PRESENT_WRITABLE, 3
.equ USER, 4
.equ LARGE, 0x80
.equ CR4_PAE, 0x20
.equ EFER, 0xc0000080
.equ EFER_LME, 0x100
.equ CR0_PG_WP, 0x80010000

.code32
protected_mode:
    mov ax, DATA
    mov ds, ax
    mov es, ax
    mov fs, ax
    mov gs, ax
    mov ss, ax
    mov esp, KERNEL_STACK
    mov esi, protected_message
    call print32

    ; Four tables: everything present and writable, and the upper levels open to ring 3; the last level decides.
    mov edi, PML4
    xor eax, eax
    mov ecx, 4096
    rep stosd
    mov edi, PML4
    mov dword ptr [edi], PDPT + PRESENT_WRITABLE + USER
    mov edi, PDPT
    mov dword ptr [edi], PD + PRESENT_WRITABLE + USER

    ; The first 2 MiB in pages of 4 KiB, mapped to themselves. Page 0 stays out, so that a null pointer faults.
    mov edi, PD
    mov dword ptr [edi], PT + PRESENT_WRITABLE + USER
    mov edi, PT + 8
    mov eax, 0x1000 + PRESENT_WRITABLE
small_page:
    mov [edi], eax
    add edi, 8
    add eax, 0x1000
    cmp eax, 0x200000
    jb small_page

    ; The rest of the first GiB in pages of 2 MiB.
    mov edi, PD + 8
    mov eax, 0x200000 + PRESENT_WRITABLE + LARGE
large_page:
    mov [edi], eax
    add edi, 8
    add eax, 0x200000
    cmp eax, 0x40000000
    jb large_page

    ; Ring 3 may use its own code and data, and its stacks.
    mov eax, user_start
    mov ecx, 1
    call open_to_user
    mov eax, TASK_USER_STACKS
    mov ecx, TASK_LIMIT
    call open_to_user

    ; Into long mode (Intel SDM vol. 3, 9.8.5): PAE, CR3, EFER.LME, then CR0.PG; CS.L decides on 64-bit code.
    mov eax, cr4
    or eax, CR4_PAE
    mov cr4, eax
    mov eax, PML4
    mov cr3, eax
    mov ecx, EFER
    rdmsr
    or eax, EFER_LME
    wrmsr
    mov eax, cr0
    or eax, CR0_PG_WP                   ; WP: read-only pages hold for ring 0 too
    mov cr0, eax
    jmp CODE64:long_mode

open_to_user:                           ; EAX: address of the first page, ECX: number of pages
    shr eax, 12
    lea edi, [eax*8 + PT]
open_next:
    or byte ptr [edi], USER
    add edi, 8
    dec ecx
    jnz open_next
    ret

print32:                                ; ESI: a text that ends with 0
    lodsb
    test al, al
    jz print32_done
    mov ah, al
    mov dx, UART_STATUS
print32_wait:
    in al, dx
    test al, 0x20
    jz print32_wait
    mov dx, UART_DATA
    mov al, ah
    out dx, al
    jmp print32
print32_done:
    ret

protected_message:
    .asciz "[protected] 32-bit code, flat segments, building page tables\n"
