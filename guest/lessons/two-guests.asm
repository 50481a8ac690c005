;; two-guests: a guest that takes all the memory it was promised, and looks for what is not its own.
;;
;; bits: 64
;; load: 0x8000
;; irqchip: none
;; summary: fills its memory, searches it for another guest's mark, looks beyond its end
;
; Ports of 32 bits, answered by the host:
;   0x510  reads how many bytes of memory there are
;   0x514  reads the mark to look for
;   0x518  is told how many pages of 4 KiB the guest filled and read back
;   0x51c  is told how often the mark was found, after every search; reads 0 as long as another is wanted
;   0x520  is told what lies behind the end of memory

.equ SIZE, 0x510
.equ MARK, 0x514
.equ FILLED, 0x518
.equ FOUND, 0x51c
.equ BEYOND, 0x520
.equ FIRST, 0x200000                    ; the guest itself lies below
.equ PAGE, 0x1000

start:
    mov edx, SIZE
    in eax, dx
    mov r8d, eax
    mov edx, MARK
    in eax, dx
    mov r9d, eax

    mov edi, FIRST                      ; into each page its own address
fill:
    mov [rdi], rdi
    add rdi, PAGE
    cmp rdi, r8
    jb fill
    xor ecx, ecx
    mov edi, FIRST
count:
    cmp [rdi], rdi
    jne differs
    inc ecx
differs:
    add rdi, PAGE
    cmp rdi, r8
    jb count
    mov eax, ecx
    mov edx, FILLED
    out dx, eax

search:
    xor ecx, ecx
    mov edi, FIRST
look:
    cmp [rdi + 8], r9d
    jne next
    inc ecx
next:
    add rdi, PAGE
    cmp rdi, r8
    jb look
    mov eax, ecx
    mov edx, FOUND
    out dx, eax
    in eax, dx
    test eax, eax
    jz search

    mov eax, [r8]                       ; behind the end
    mov edx, BEYOND
    out dx, eax
    hlt
