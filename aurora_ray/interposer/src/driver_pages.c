/*
 * The consumer's side of the local files: which pages are absent, filling them, and making room again. Called by Python
 * through ctypes, as driver.c is.
 */
#include "aurora.h"
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

/* The first absent run in [first, end): its start in *start, its length returned (0: none). */
AR_EXPORT uint32_t ar_absent_run(struct region *region, uint32_t slot, uint32_t first, uint32_t end, uint32_t *start)
{
    ar_attach(region);
    struct slot *s = ar_slot(slot);
    uint64_t pages = (atomic_load(&s->size) + region->page_bytes - 1) / region->page_bytes;
    if (end > pages)
        end = (uint32_t)pages;
    while (first < end && ar_present(s, first))
        first++;
    *start = first;
    while (first < end && !ar_present(s, first))
        first++;
    return first - *start;
}

/*
 * A page that is absent. While it was on its way it may have been written, made durable and evicted again: what was read
 * before the eviction is older than that, and it must be read again.
 */
static bool may_fill(struct slot *s, uint32_t page, uint64_t lsn)
{
    struct chunk *c = ar_chunk(s, page / AR_EXTENT_PAGES);
    return !ar_present(s, page) && !(c && atomic_load(&c->evicted_at) > lsn);
}

/*
 * How many of `count` pages from `first` on one write can fill: absent, whole, and all with content; or, of pages of
 * zeros, all that are absent. A last page that the file's size cuts is a run of its own. 0: the first needs nothing.
 */
static uint32_t run_to_fill(struct slot *s, uint64_t size, uint32_t first, uint32_t count, const uint8_t *kinds,
                            uint64_t lsn)
{
    uint64_t whole = size / ar_region->page_bytes;
    uint32_t n = 0;
    while (n < count && first + n < whole && may_fill(s, first + n, lsn) && !kinds[n] == !kinds[0])
        n++;
    if (!n && (uint64_t)first * ar_region->page_bytes < size && may_fill(s, first, lsn))
        n = 1;
    return n;
}

/*
 * Puts fetched pages into the local file, as far as they are still absent: a page that was written in the meantime is
 * newer. kinds[i] is 0 for a page of zeros (nothing in `pages`), 1 for one that follows in `pages`; `lsn`: what they were
 * read as of. Returns 0 or an errno; EBUSY: ask again later.
 */
AR_EXPORT int ar_fill(struct region *region, uint32_t slot, int fd, uint32_t first, uint32_t count, const uint8_t *kinds,
                      const uint8_t *pages, uint64_t lsn)
{
    ar_attach(region);
    struct slot *s = ar_slot(slot);
    int error = ar_lock_for_driver();
    if (error)
        return error;
    uint64_t size = atomic_load(&s->size);
    for (uint32_t i = 0; i < count && !error;) {
        uint64_t at = (uint64_t)(first + i) * region->page_bytes;
        uint32_t run = run_to_fill(s, size, first + i, count - i, kinds + i, lsn);
        uint64_t n = (uint64_t)run * region->page_bytes;
        if (n > size - at)
            n = size - at;
        bool punched = run && !kinds[i] && region->exchanged;
        if (punched) /* pages that the exchange made absent still lie there */
            real_fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at, (off_t)n);
        ssize_t done = run && kinds[i] ? real_pwrite(fd, pages, n, (off_t)at) : (ssize_t)n;
        if (done != (ssize_t)n)
            error = done < 0 ? errno : ENOSPC;
        else
            ar_set_present(s, first + i, first + i + run);
        for (uint32_t end = i + (run ? run : 1); i < end; i++)
            pages += kinds[i] ? region->page_bytes : 0;
    }
    ar_unlock();
    return error;
}

/* ---- files that are gone, and may still be open */

/*
 * Files that were dropped at or after *lsn, oldest first, of which pages are absent: up to `max` slots in `out`. Moves *lsn
 * behind those that were looked at. Returns how many, or -1: ask again later.
 */
AR_EXPORT int ar_dropped_since(struct region *region, uint64_t *lsn, uint32_t *out, int max)
{
    ar_attach(region);
    int n = 0;
    if (ar_lock_for_driver())
        return -1;
    uint32_t from = 0;
    for (uint32_t i = region->newest_dropped; i && ar_slot(i - 1)->drop_lsn >= *lsn; i = ar_slot(i - 1)->older)
        from = i;
    for (; from && n < max; from = ar_slot(from - 1)->newer) {
        struct slot *s = ar_slot(from - 1);
        *lsn = s->drop_lsn + 1;
        if (!ar_all_present(s))
            out[n++] = from - 1;
    }
    ar_unlock();
    return n;
}

/* ---- eviction */

struct candidate {
    uint32_t slot, chunk;
};

/*
 * What the hand does as it passes: a chunk that was touched since gets warmer, another one colder; true if it was cold
 * already. A scan touches a chunk within one round, so it is cold two rounds later; one that is touched in every round
 * stays for as many without a touch as it is warm.
 */
static bool cold(struct chunk *c)
{
    uint32_t used = atomic_load(&c->used), heat = used >> 1;
    if (used & AR_TOUCHED)
        heat += heat < AR_HEAT_MAX;
    else if (!heat)
        return true;
    else
        heat--;
    atomic_store(&c->used, heat << 1); /* a touch at this moment is lost, and that is all */
    return false;
}

/*
 * The clock's hand: goes on from *slot, *chunk over the files, and collects chunks that are cold, hold pages and whose
 * newest record is durable.
 */
AR_EXPORT int ar_evictable(struct region *region, struct candidate *hand, uint64_t vdl, struct candidate *out, int max,
                           int steps)
{
    ar_attach(region);
    int n = 0;
    for (; n < max && steps > 0; steps--) {
        if (!region->slots_used)
            break;
        if (hand->slot >= region->slots_used)
            *hand = (struct candidate){0, 0};
        struct slot *s = ar_slot(hand->slot);
        uint64_t pages = atomic_load(&s->size) / region->page_bytes + 1;
        if (atomic_load(&s->dropped) || s->pinned || (uint64_t)hand->chunk * AR_EXTENT_PAGES >= pages) {
            *hand = (struct candidate){hand->slot + 1, 0};
            continue;
        }
        struct chunk *c = ar_chunk(s, hand->chunk);
        if (!c)
            hand->chunk += AR_LEAF_CHUNKS - hand->chunk % AR_LEAF_CHUNKS - 1;
        else if (c->present && cold(c) && c->last_lsn <= vdl && !c->owed && ar_placed(c))
            out[n++] = *hand;
        hand->chunk++;
    }
    return n;
}

/* Makes a clean chunk absent again and gives its space back. Returns the pages freed. */
AR_EXPORT int ar_evict(struct region *region, uint32_t slot, uint32_t chunk, uint64_t ino, int fd, uint64_t vdl)
{
    ar_attach(region);
    struct slot *s = ar_slot(slot);
    int freed = 0;
    if (ar_lock_for_driver())
        return 0;
    struct chunk *c = ar_chunk(s, chunk);
    if (s->ino == ino && c && !s->dropped && !s->pinned && c->last_lsn <= vdl && !c->owed && ar_placed(c)) {
        uint64_t bytes = (uint64_t)AR_EXTENT_PAGES * region->page_bytes;
        uint64_t before = atomic_exchange_explicit(&c->present, 0, memory_order_acq_rel);
        atomic_fetch_add_explicit(&s->evictions, 1, memory_order_acq_rel);
        atomic_store(&c->evicted_at, vdl);
        freed = __builtin_popcountll(before);
        real_fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(chunk * bytes), (off_t)bytes);
        atomic_fetch_sub(&region->present_pages, (uint64_t)freed);
        atomic_fetch_add(&region->counters.evicted_pages, (uint64_t)freed);
    }
    ar_unlock();
    return freed;
}
