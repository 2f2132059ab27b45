/*
 * From a mount without a writer to one that writes its volume, while the engine's processes run. Called by Python through
 * ctypes, as driver.c is.
 *
 *   MODE_PRIVATE   Redo goes nowhere: what the processes change stays here. Each page that they change is *owed*: the
 *                  volume does not have it as it is here.
 *   the exchange   The driver holds the lock. The region's LSNs, file ids and extents' places become those of the volume
 *                  as of an LSN, and every page that is not owed becomes absent: it comes as of that LSN.
 *   MODE_SETTLING  Redo goes to the volume. The next record of an owed page is the whole page, since a difference would
 *                  be one to bytes that the volume does not have; the driver logs the others so, a few at a time. A
 *                  write that changes the guarded part of a file waits until no page is owed.
 *   MODE_VOLUME    No page is owed, nothing is remembered of all that.
 */
#include "aurora.h"
#include <errno.h>
#include <string.h>
#include <unistd.h>

static uint64_t bits_from(uint32_t bit, uint32_t n)
{
    return (n == AR_EXTENT_PAGES ? ~UINT64_C(0) : (UINT64_C(1) << n) - 1) << bit;
}

/* Under the lock: pages [first, end) are no longer what the volume has, unless all that is changed goes there. */
void ar_owe(struct slot *slot, uint32_t first, uint32_t end)
{
    if (atomic_load_explicit(&ar_region->mode, memory_order_relaxed) != MODE_PRIVATE)
        return;
    while (first < end) {
        uint32_t bit = first % AR_EXTENT_PAGES, n = AR_EXTENT_PAGES - bit;
        if (n > end - first)
            n = end - first;
        struct chunk *c = ar_chunk(slot, first / AR_EXTENT_PAGES);
        if (c)
            atomic_fetch_or(&c->owed, bits_from(bit, n) & atomic_load(&c->present));
        first += n;
    }
}

/* Whether the write changes what is guarded. What cannot be read is taken for changed. */
static bool changes_guarded(int fd, const uint8_t *data, size_t bytes, uint64_t offset)
{
    uint8_t old[64];
    uint64_t from = ar_region->guarded_from, end = ar_region->guarded_end;
    if (from < offset)
        from = offset;
    if (end > offset + bytes)
        end = offset + bytes;
    if (from >= end)
        return false;
    if (real_pread(fd, old, end - from, (off_t)from) != (ssize_t)(end - from))
        return true;
    return memcmp(old, data + (from - offset), end - from) != 0;
}

static bool settling(void)
{
    return atomic_load_explicit(&ar_region->mode, memory_order_acquire) == MODE_SETTLING;
}

static void sleep_a_while(void)
{
    _Atomic uint32_t never = 0;
    ar_wait(&never, 0, NULL, AR_ANYBODY);
}

/*
 * For whoever would change what is guarded, before he holds what others need: a server writes its control file under a lock
 * without which no WAL segment is made.
 */
void ar_sleep_until_settled(void)
{
    while (settling())
        sleep_a_while();
}

/* Without the lock. The guarded page is present, and only its own engine changes it. The driver is told to hurry. */
void ar_wait_settled(int fd, const struct slot *slot, const uint8_t *data, size_t bytes, uint64_t offset)
{
    while (settling() && atomic_load(&ar_region->guarded) == ar_slot_index(slot) + 1 &&
           changes_guarded(fd, data, bytes, offset)) {
        atomic_store(&ar_region->settle_wanted, 1);
        sleep_a_while();
    }
}

/* ---- the driver's side */

#define EVER (UINT64_C(1) << 62) /* more log than any mount sees */

AR_EXPORT void ar_set_private(struct region *r)
{
    atomic_store(&r->mode, MODE_PRIVATE);
    atomic_store_explicit(&r->durable, EVER, memory_order_release);
}

/* Takes the lock for all that follows. 0, EBUSY or EIO. */
AR_EXPORT int ar_hold(struct region *r)
{
    ar_attach(r);
    int error = ar_lock_for_driver();
    if (!error)
        ar_reserve(0);
    return error;
}

AR_EXPORT void ar_release(struct region *r)
{
    ar_attach(r);
    ar_unlock();
}

AR_EXPORT int ar_path_is_volatile(struct region *r, const char *path)
{
    ar_attach(r);
    return ar_is_volatile(path);
}

/*
 * Held: the log goes on at `lsn`, with ids from `next_file_id` on, and what was logged before is forgotten. A process that
 * remembers an LSN of that time waits for nothing by it, see position_of. No protection group has room until it is told.
 */
AR_EXPORT void ar_rebase(struct region *r, uint64_t lsn, uint64_t next_file_id)
{
    ar_attach(r);
    uint64_t tail = atomic_load(&r->tail);
    atomic_store(&r->head, tail);
    r->base_lsn = lsn - tail;
    r->next_file_id = next_file_id;
    atomic_store(&r->wanted, tail);
    atomic_store(&r->ordered, tail);
    atomic_store(&r->mode, MODE_SETTLING);
    r->exchanged = 1;
    atomic_store_explicit(&r->durable, tail, memory_order_release);
    for (uint32_t g = 0; g < r->ngroups; g++)
        r->group_free[g] = 0;
    ar_forget_dropped();
    ar_reserve(r->ring_bytes);
}

/* Held, before ar_rebase: nobody is told any more what happens to the file. */
AR_EXPORT void ar_discard(struct region *r, uint32_t index)
{
    ar_attach(r);
    if (!atomic_load(&ar_slot(index)->dropped))
        ar_dropped(ar_slot(index));
}

/* What of a chunk stays: `owed` less what was last changed at or before `floor`, as far as the volume has such pages. */
static uint64_t stays(const struct chunk *c, uint32_t number, uint64_t floor, uint32_t volume_pages)
{
    if (c->last_lsn > floor)
        return c->owed;
    uint64_t first = (uint64_t)number * AR_EXTENT_PAGES;
    if (first + AR_EXTENT_PAGES <= volume_pages)
        return 0;
    return volume_pages <= first ? c->owed : c->owed & ~bits_from(0, (uint32_t)(volume_pages - first));
}

/* Of a chunk whose pages are the volume's, those that need not come from there. */
static uint64_t are_same(const struct chunk *c, uint32_t number, uint32_t same)
{
    uint64_t first = (uint64_t)number * AR_EXTENT_PAGES;
    if (same <= first)
        return 0;
    return same - first >= AR_EXTENT_PAGES ? c->owed : c->owed & bits_from(0, (uint32_t)(same - first));
}

struct adopted {
    uint64_t file_id, size; /* of the volume's file */
    uint64_t lsn;           /* as of which the volume is read from now on */
    uint64_t floor;         /* what was last changed up to here, by LSNs of before, the volume has */
    uint32_t extents;
    uint32_t same; /* if it is not ours: so many of its first pages, where they are owed, are as the volume has them */
    int32_t ours;  /* 1: what is owed stays; 0: all is as the volume has it */
};

/*
 * Held, after ar_rebase: the file of this slot is the volume's file from now on, whose extents lie in `groups`. Its size
 * stays what it is here if it is ours. Returns how many pages are owed.
 */
AR_EXPORT uint64_t ar_become(struct region *r, uint32_t index, const struct adopted *a, const uint32_t *groups)
{
    ar_attach(r);
    struct slot *s = ar_slot(index);
    uint64_t pages = ar_pages_of(atomic_load(&s->size)), owed = 0;
    uint32_t volume_pages = ar_pages_of(a->size);
    if (pages < volume_pages)
        pages = volume_pages;
    if (pages < (uint64_t)a->extents * AR_EXTENT_PAGES)
        pages = (uint64_t)a->extents * AR_EXTENT_PAGES;
    for (uint32_t n = 0; (uint64_t)n * AR_EXTENT_PAGES < pages; n++) {
        struct chunk *c = ar_chunk(s, n);
        if (!c)
            continue;
        uint64_t keep = (a->ours ? stays(c, n, a->floor, volume_pages) : are_same(c, n, a->same)) & c->present;
        ar_count_absent(s, atomic_exchange_explicit(&c->present, keep, memory_order_acq_rel) & ~keep);
        atomic_store(&c->owed, a->ours ? keep : 0);
        atomic_store(&c->evicted_at, a->lsn);
        atomic_store(&c->last_lsn, 0);
        atomic_store_explicit(&c->group, n < a->extents ? groups[n] : AR_NO_GROUP, memory_order_release);
        owed += (uint64_t)__builtin_popcountll(c->owed);
    }
    s->file_id = a->file_id;
    s->mounted_extents = a->extents;
    atomic_store(&s->last_lsn, 0);
    atomic_store(&s->ordered, 0);
    if (!a->ours)
        atomic_store_explicit(&s->size, a->size, memory_order_release);
    atomic_fetch_add_explicit(&s->evictions, 1, memory_order_acq_rel);
    return owed;
}

/* Held: the volume's file, which is `size` long there, becomes as long as it is here. */
AR_EXPORT void ar_log_length(struct region *r, uint32_t index, uint64_t size)
{
    ar_attach(r);
    struct slot *s = ar_slot(index);
    uint64_t ours = atomic_load(&s->size);
    if (ours > size) {
        ar_log_size(s, ours);
    } else if (ours < size) {
        atomic_store(&s->size, size);
        ar_shrink(s, ours);
    }
}

/* Held: a change of a name; `second` may be NULL. */
AR_EXPORT void ar_log_name_change(struct region *r, int type, uint64_t file_id, uint32_t mode, const char *first,
                                  const char *second)
{
    ar_attach(r);
    ar_log_name(type, file_id, mode, first, second);
}

/* Held: the volume's file is gone; its extents lie in these groups. */
AR_EXPORT void ar_log_drop(struct region *r, uint64_t file_id, const uint32_t *groups, uint32_t n)
{
    ar_attach(r);
    for (uint32_t i = 0; i < n; i++)
        ar_append((struct record){.type = REC_DROP, .flags = REC_FLAG, .file_id = file_id, .group = groups[i]}, NULL, 0);
    ar_append((struct record){.type = REC_DROP, .file_id = file_id}, NULL, 0);
}

/* Held: a file of the volume that was not here; its slot. */
AR_EXPORT uint32_t ar_mount_held(struct region *r, uint64_t ino, uint64_t file_id, uint64_t size, uint32_t extents)
{
    ar_attach(r);
    return ar_slot_index(ar_add(ino, file_id, size, extents));
}

AR_EXPORT uint64_t ar_new_file_id(struct region *r) { return r->next_file_id++; }

/*
 * Held: the first page of the file is `image` in the volume, whatever is here. From now on each of its records is a whole
 * page, and writes that change these bytes wait in MODE_SETTLING. 0 or an errno.
 */
AR_EXPORT int ar_guard(struct region *r, uint32_t index, uint32_t from, uint32_t end, const uint8_t *image)
{
    ar_attach(r);
    struct slot *s = ar_slot(index);
    struct chunk *c = ar_chunk(s, 0);
    size_t space = r->page_bytes + 4096;
    if (!c || c->group == AR_UNKNOWN || !ar_has_space(space))
        return EIO;
    ar_reserve(space);
    if (!ar_place_chunk(s, 0))
        return ENOSPC;
    ar_append_page(s, c, 0, image, NULL, 0, r->page_bytes);
    r->guarded_from = from;
    r->guarded_end = end - from > 64 ? from + 64 : end;
    atomic_store(&r->guarded, index + 1);
    ar_reserve(r->ring_bytes / 2); /* for what is told after it; the ring was empty */
    return 0;
}

/* ---- what is owed */

static int log_page(int fd, struct slot *s, struct chunk *c, uint32_t page)
{
    static uint8_t image[AR_PAGE_BYTES_MAX];
    uint64_t at = (uint64_t)page * ar_region->page_bytes, size = atomic_load(&s->size), bytes = ar_region->page_bytes;
    if (at >= size)
        return 0;
    if (bytes > size - at)
        bytes = size - at;
    for (uint64_t done = 0; done < bytes;) {
        ssize_t n = real_pread(fd, image + done, bytes - done, (off_t)(at + done));
        if (n <= 0 && !(n < 0 && errno == EINTR))
            return EIO;
        done += n > 0 ? (uint64_t)n : 0;
    }
    memset(image + bytes, 0, ar_region->page_bytes - bytes);
    ar_append_page(s, c, page, image, NULL, 0, ar_region->page_bytes);
    return 0;
}

/*
 * Held: logs what is owed of a chunk, as whole pages. Returns 0; EBUSY: the ring is full, ask again later; ENOSPC: no
 * protection group has room; EIO.
 */
AR_EXPORT int ar_log_owed(struct region *r, uint32_t index, uint32_t number, int fd)
{
    ar_attach(r);
    struct slot *s = ar_slot(index);
    struct chunk *c = ar_chunk(s, number);
    if (!c || !c->owed || atomic_load(&s->dropped))
        return 0;
    size_t space = (size_t)__builtin_popcountll(c->owed) * (r->page_bytes + 64) + 4096;
    if (!ar_has_space(space))
        return EBUSY;
    ar_reserve(space);
    if (c->group == AR_UNKNOWN)
        return EIO;
    if (!ar_place_chunk(s, number))
        return ENOSPC;
    int error = 0;
    for (uint32_t i = 0; i < AR_EXTENT_PAGES && !error; i++)
        if (c->owed >> i & 1)
            error = log_page(fd, s, c, number * AR_EXTENT_PAGES + i);
    if (!error)
        atomic_store(&c->owed, 0); /* of pages behind the file's end, too */
    return error;
}

/* The next chunk with pages that are owed, from *slot, *chunk on. 0: there is none. Without the lock: none is added. */
AR_EXPORT int ar_next_owed(struct region *r, uint32_t *slot, uint32_t *chunk)
{
    ar_attach(r);
    for (; *slot < r->slots_used; ++*slot, *chunk = 0) {
        struct slot *s = ar_slot(*slot);
        uint32_t pages = ar_pages_of(atomic_load(&s->size));
        if (atomic_load(&s->dropped))
            continue;
        for (; (uint64_t)*chunk * AR_EXTENT_PAGES < pages; ++*chunk) {
            struct chunk *c = ar_chunk(s, *chunk);
            if (c && atomic_load(&c->owed))
                return 1;
        }
    }
    return 0;
}

/* No page is owed any more, and what waited for that goes on. */
AR_EXPORT void ar_settled(struct region *r) { atomic_store(&r->mode, MODE_VOLUME); }
