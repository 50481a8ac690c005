;; modes: from real mode to long mode in as few instructions as it takes.
;;
;; bits: 16
;; load: 0x7c00
;; irqchip: none
;; summary: climbs from real to protected to long mode and halts
;
; The page tables lie ready in the image: one entry in each of PML4, PDPT and PD, which maps the first 2 MiB to themselves.
; (The bundled kernel builds its own: guest/kernel/2-protected.asm.)

.equ CODE32, 0x08
.equ DATA, 0x10
.equ CODE64, 0x18
.equ EFER, 0xc0000080

start:
    cli
    lgdt [gdt_register]
    mov eax, cr0
    or al, 1                            ; CR0.PE (Intel SDM vol. 3, 9.9.1)
    mov cr0, eax                        ; protected from here on, but CS still means 16-bit code
    jmp CODE32:protected

.code32
protected:
    mov ax, DATA
    mov ds, ax
    mov ss, ax
    mov eax, cr4
    or eax, 0x20                        ; CR4.PAE (9.8.5)
    mov cr4, eax
    mov eax, pml4
    mov cr3, eax
    mov ecx, EFER
    rdmsr
    or eax, 0x100                       ; EFER.LME
    wrmsr
    mov eax, cr0
    or eax, 0x80000000                  ; CR0.PG: with LME set, the processor sets LMA
    mov cr0, eax                        ; long mode, but CS still means 32-bit code: compatibility mode
    jmp CODE64:long

.code64
long:
    mov rax, 0x1122334455667788
    hlt

.balign 8
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff            ; 32-bit code, flat
    .quad 0x00cf93000000ffff            ; data, flat
    .quad 0x00af9b000000ffff            ; 64-bit code
gdt_register:
    .word gdt_register - gdt - 1
    .long gdt

.balign 4096
pml4:
    .quad pdpt + 3                      ; present, writable
.balign 4096
pdpt:
    .quad pd + 3
.balign 4096
pd:
    .quad 0x83                          ; present, writable, a page of 2 MiB at 0
