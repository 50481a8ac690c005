/* SPDX-License-Identifier: MIT */
/* The guest's memory as its processor sees it: page tables (Intel SDM vol. 3, 4.3 to 4.8) and what lies behind them. */
#include "softcpu.h"

#include <string.h>

static const struct fault NONE = {NO_VECTOR, 0};

uint8_t *soft_host(struct soft_cpu *s, uint64_t gpa, uint64_t size, int write)
{
    struct soft_region *r = soft_region_of(s->vm, gpa, size);
    return !r || (write && r->readonly) ? NULL : r->host + (gpa - r->gpa);
}

/* A table entry; where there is no memory it reads as ones, as a bus does. */
static uint64_t entry_at(struct soft_cpu *s, uint64_t gpa, uint32_t size)
{
    uint64_t value = 0;
    uint8_t *host = soft_host(s, gpa, size, 0);
    if (!host)
        return size == 8 ? ~0ull : 0xffffffffull;
    memcpy(&value, host, size);
    return value;
}

static void mark(struct soft_cpu *s, uint64_t gpa, uint64_t entry, int dirty)
{
    uint8_t *host = soft_host(s, gpa, 1, 1);
    if (host)
        *host = (uint8_t)(entry | 0x20 | (dirty ? 0x40 : 0)); /* A and D (Intel SDM vol. 3, 4.8) */
}

/* The bits of a present entry that must be zero (Intel SDM vol. 3, 4.3 to 4.5). */
static uint64_t reserved_bits(const struct cpu *c, int shift, int large)
{
    const uint64_t bits_62_52 = 0x7ff0000000000000ull, no_execute = 1ull << 63, pdpte = 0x1e6;
    int long_mode = !!(c->efer & EFER_LMA);
    if (!(c->cr[4] & CR4_PAE))
        return large ? 1u << 21 : 0;
    if (!long_mode && shift == 30)
        return bits_62_52 | no_execute | pdpte;
    return (c->efer & EFER_NXE ? 0 : no_execute) | (long_mode ? 0 : bits_62_52) | (shift == 39 ? 0x80 : 0) |
           (large ? ((1ull << shift) - 1) & ~0x1fffull : 0);
}

static struct fault page_fault(struct soft_cpu *s, uint64_t linear, enum soft_rights access, uint32_t error)
{
    if (access != SOFT_LOOK)
        s->cpu->cr[2] = linear;
    return (struct fault){PF, error | (access == SOFT_WRITE ? 2 : 0)};
}

/* Translate a linear address as the processor does (Intel SDM vol. 3, 4.3 to 4.7); a look leaves no trace. */
struct fault soft_walk(struct soft_cpu *s, uint64_t linear, enum soft_rights access, int user, uint64_t *gpa)
{
    struct cpu *c = s->cpu;
    uint32_t error = user ? 4 : 0;
    int long_mode = !!(c->efer & EFER_LMA), pae = !!(c->cr[4] & CR4_PAE), write = access == SOFT_WRITE;
    uint32_t width = pae ? 8 : 4, bits = pae ? 9 : 10;
    int shift = long_mode ? 39 : pae ? 30 : 22;
    uint64_t table = c->cr[3] & (long_mode ? 0xffffffffff000ull : pae ? 0xffffffe0ull : 0xfffff000ull);
    int may_write = 1, may_user = 1;

    if (!(c->cr[0] & CR0_PG)) {
        *gpa = (uint32_t)linear;
        return NONE;
    }
    if (long_mode && !soft_is_canonical(linear))
        return (struct fault){GP, 0};
    for (;;) {
        int pointers = pae && !long_mode && shift == 30; /* the four PDPTEs of PAE have no rights */
        uint64_t index = linear >> shift & (pointers ? 3 : (1u << bits) - 1);
        uint64_t at = table + index * width, entry = entry_at(s, at, width);
        if (!(entry & 1))
            return page_fault(s, linear, access, error);
        int large = (entry & 0x80) && (shift == 21 || (shift == 30 && long_mode) || (shift == 22 && (c->cr[4] & CR4_PSE)));
        if (entry & reserved_bits(c, shift, large))
            return page_fault(s, linear, access, error | 9);
        if (!pointers) {
            may_write &= !!(entry & 2);
            may_user &= !!(entry & 4);
        }
        uint64_t target = entry & (pae ? 0xffffffffff000ull : 0xfffff000ull);
        if (shift == 12 || large) {
            if ((user && !may_user) || (write && !may_write && (user || (c->cr[0] & CR0_WP))))
                return page_fault(s, linear, access, error | 1);
            if (access != SOFT_LOOK)
                mark(s, at, entry, write);
            uint64_t offset = (1ull << shift) - 1;
            *gpa = (target & ~offset) | (linear & offset);
            if (!pae && large)
                *gpa |= (entry & 0x1fe000) << 19; /* address bits 39:32 (table 4-4) */
            return NONE;
        }
        if (!pointers && access != SOFT_LOOK)
            mark(s, at, entry, entry & 0x40);
        table = target;
        shift -= (int)bits;
    }
}

static uint64_t address_mask(const struct cpu *c)
{
    return c->efer & EFER_LMA ? ~0ull : 0xffffffffull;
}

/* The page that a linear address is in, and how many of `size` bytes. */
static struct fault piece(struct soft_cpu *s, uint64_t linear, uint32_t size, enum soft_rights access, uint64_t *gpa, uint32_t *part)
{
    uint32_t in_page = 0x1000 - (linear & 0xfff);
    *part = in_page < size ? in_page : size;
    return soft_walk(s, linear & address_mask(s->cpu), access, 0, gpa);
}

/* Read with the rights of ring 0; where there is no memory, ones. */
struct fault soft_read(struct soft_cpu *s, uint64_t linear, void *data, uint32_t size)
{
    uint32_t part;
    for (uint8_t *to = data; size; linear += part, to += part, size -= part) {
        uint64_t gpa;
        struct fault f = piece(s, linear, size, SOFT_READ, &gpa, &part);
        if (f.vector != NO_VECTOR)
            return f;
        uint8_t *host = soft_host(s, gpa, part, 0);
        if (host)
            memcpy(to, host, part);
        else
            memset(to, 0xff, part);
    }
    return NONE;
}

/* Write with the rights of ring 0; where there is no memory, nothing happens. */
struct fault soft_write(struct soft_cpu *s, uint64_t linear, const void *data, uint32_t size)
{
    uint32_t part;
    for (const uint8_t *from = data; size; linear += part, from += part, size -= part) {
        uint64_t gpa;
        struct fault f = piece(s, linear, size, SOFT_WRITE, &gpa, &part);
        if (f.vector != NO_VECTOR)
            return f;
        uint8_t *host = soft_host(s, gpa, part, 1);
        if (host) {
            memcpy(host, from, part);
            soft_forget_code(s->vm, gpa, part);
        }
    }
    return NONE;
}

/* Read what can be, without a trace; return how many bytes that were. */
uint32_t soft_look(struct soft_cpu *s, uint64_t linear, uint8_t *data, uint32_t size)
{
    uint32_t done = 0, part;
    for (; done < size; done += part) {
        uint64_t gpa;
        struct fault f = piece(s, linear + done, size - done, SOFT_LOOK, &gpa, &part);
        uint8_t *host = f.vector == NO_VECTOR ? soft_host(s, gpa, part, 0) : NULL;
        if (!host)
            break;
        memcpy(data + done, host, part);
    }
    return done;
}
