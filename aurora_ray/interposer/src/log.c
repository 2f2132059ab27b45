/* The ring: redo records in log order. A record's LSN is the base plus the ring position of its end. */
#include "aurora.h"
#include <string.h>

static uint8_t *ring(void) { return (uint8_t *)ar_region + ar_region->ring_offset; }

static void ring_put(uint64_t position, const void *data, size_t bytes)
{
    size_t at = position & (ar_region->ring_bytes - 1), room = ar_region->ring_bytes - at;
    if (!bytes) return; /* data may be NULL then, which memcpy does not take */
    if (bytes <= room) {
        memcpy(ring() + at, data, bytes);
        return;
    }
    memcpy(ring() + at, data, room);
    memcpy(ring(), (const uint8_t *)data + room, bytes - room);
}

static uint64_t tail(void) { return atomic_load_explicit(&ar_region->tail, memory_order_relaxed); }

AR_EXPORT uint64_t ar_tail_lsn(void)
{
    return ar_region ? ar_region->base_lsn + atomic_load_explicit(&ar_region->tail, memory_order_acquire) : 0;
}

static uint64_t reserved; /* under the lock: up to where this process may append before it lets go */

/* Takes the lock with room for `bytes` of records: this is the LSN allocation limit that holds producers back. */
void ar_lock_with_space(size_t bytes)
{
    for (;;) {
        ar_lock();
        uint64_t head = atomic_load_explicit(&ar_region->head, memory_order_acquire);
        if (ar_region->ring_bytes - (tail() - head) >= bytes) {
            reserved = tail() + bytes;
            return;
        }
        uint32_t turn = atomic_load(&ar_region->space_turn);
        ar_unlock();
        atomic_fetch_add_explicit(&ar_region->counters.space_waits, 1, memory_order_relaxed);
        ar_ring_bell();
        if (atomic_load(&ar_region->head) == head)
            ar_wait(&ar_region->space_turn, turn, &ar_region->space_waiters, AR_ANYBODY);
    }
}

bool ar_has_space(size_t bytes)
{
    return ar_region->ring_bytes - (tail() - atomic_load_explicit(&ar_region->head, memory_order_acquire)) >= bytes;
}

/* Under the lock, by who need not wait for space: see ar_has_space. */
void ar_reserve(size_t bytes) { reserved = tail() + bytes; }

static void finish(uint64_t position)
{
    struct region *r = ar_region;
    atomic_store_explicit(&r->tail, position, memory_order_release);
    if (position - atomic_load_explicit(&r->head, memory_order_relaxed) >= r->bell_bytes)
        ar_ring_bell();
}

static const uint8_t zeros[8];

/* Under the lock, with space. Fills in length and LSN; returns the LSN. */
uint64_t ar_append(struct record head, const void *body, size_t body_bytes)
{
    struct region *r = ar_region;
    uint64_t start = tail();
    size_t plain = sizeof head + body_bytes, length = (plain + 7) & ~(size_t)7;
    if (start + length > reserved)
        ar_die("more is logged at once than room was kept for");
    head.length = (uint32_t)length;
    head.lsn = r->base_lsn + start + length;
    ring_put(start, &head, sizeof head);
    ring_put(start + sizeof head, body, body_bytes);
    ring_put(start + plain, zeros, length - plain);
    atomic_fetch_add_explicit(&r->counters.records, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&r->counters.record_bytes, length, memory_order_relaxed);
    finish(start + length);
    return head.lsn;
}

/* ---- page differences */

struct range {
    uint16_t offset, length;
};
#define GAP 16 /* equal bytes worth sending to save a range */
#define RANGES_MAX (AR_PAGE_BYTES_MAX / (GAP + 8))

/* The first 8-byte word in [at, end) where the images differ (or are equal, for `equal`), as a byte offset. */
static size_t seek(const uint8_t *a, const uint8_t *b, size_t at, size_t end, bool equal)
{
    for (; at + 8 <= end; at += 8) {
        uint64_t x, y;
        memcpy(&x, a + at, 8);
        memcpy(&y, b + at, 8);
        if ((x == y) == equal)
            return at;
    }
    while (at < end && (a[at] == b[at]) != equal)
        at++;
    return at;
}

static size_t differences(const uint8_t *image, const uint8_t *old, size_t from, size_t to, struct range *out,
                          size_t *bytes)
{
    size_t n = 0;
    *bytes = 0;
    for (size_t at = seek(image, old, from, to, false); at < to;) {
        size_t end = at, next = at;
        do {
            end = seek(image, old, next, to, true);
            next = seek(image, old, end, to, false);
        } while (next < to && next - end < GAP);
        while (end > at && image[end - 1] == old[end - 1])
            end--;
        while (at < end && image[at] == old[at])
            at++;
        out[n++] = (struct range){(uint16_t)at, (uint16_t)(end - at)};
        *bytes += end - at;
        at = next;
    }
    return n;
}

static void note(struct slot *slot, struct chunk *chunk, uint64_t lsn)
{
    atomic_store_explicit(&chunk->last_lsn, lsn, memory_order_release);
    atomic_store_explicit(&slot->last_lsn, lsn, memory_order_release);
}

static void append_full(struct slot *slot, struct chunk *chunk, struct record head, const uint8_t *image)
{
    static uint8_t body[4 + AR_PAGE_BYTES_MAX]; /* under the lock: one a process will do */
    uint32_t bytes = ar_region->page_bytes;
    while (bytes && !image[bytes - 1])
        bytes--;
    memcpy(body, &bytes, 4);
    memcpy(body + 4, image, bytes);
    head.flags = REC_FLAG;
    atomic_fetch_add_explicit(&ar_region->counters.page_full, 1, memory_order_relaxed);
    note(slot, chunk, ar_append(head, body, 4 + bytes));
}

/*
 * Under the lock, with space: bytes [from, to) of the page changed from `old` to `image` (both whole pages); or, with
 * old == NULL, the page is now `image`, whatever it was.
 */
void ar_append_page(struct slot *slot, struct chunk *chunk, uint32_t page, const uint8_t *image, const uint8_t *old,
                    size_t from, size_t to)
{
    static struct { /* the same */
        struct range ranges[RANGES_MAX + 1];
        uint8_t data[AR_PAGE_BYTES_MAX];
    } body;
    struct record head = {.type = REC_PAGE, .file_id = slot->file_id, .group = chunk->group, .page = page};
    uint64_t bit = UINT64_C(1) << page % AR_EXTENT_PAGES;
    bool is_private = atomic_load_explicit(&ar_region->mode, memory_order_relaxed) == MODE_PRIVATE;
    bool owed = !is_private && atomic_load_explicit(&chunk->owed, memory_order_relaxed) & bit;
    if (owed)
        atomic_fetch_and(&chunk->owed, ~bit);
    if (owed || atomic_load_explicit(&ar_region->guarded, memory_order_relaxed) == ar_slot_index(slot) + 1)
        old = NULL; /* a difference would be one to what the volume does not have */
    size_t bytes = 0, n = old ? differences(image, old, from, to, body.ranges, &bytes) : 0;
    if (is_private) /* also where it stays as it was: whoever is told so later knows that all of the page was written */
        atomic_fetch_or(&chunk->owed, bit);
    if (!old || n * sizeof(struct range) + bytes > ar_region->page_bytes * 3 / 4) {
        append_full(slot, chunk, head, image);
        return;
    }
    if (!n) {
        atomic_fetch_add_explicit(&ar_region->counters.page_same, 1, memory_order_relaxed);
        return;
    }
    uint8_t *out = (uint8_t *)&body.ranges[n];
    for (size_t i = 0; i < n; i++) {
        memcpy(out, image + body.ranges[i].offset, body.ranges[i].length);
        out += body.ranges[i].length;
    }
    head.count = (uint16_t)n;
    atomic_fetch_add_explicit(&ar_region->counters.page_delta, 1, memory_order_relaxed);
    note(slot, chunk, ar_append(head, &body, n * sizeof(struct range) + bytes));
}

/* ---- durability */

static void raise_to(_Atomic uint64_t *what, uint64_t value)
{
    uint64_t seen = atomic_load(what);
    while (seen < value && !atomic_compare_exchange_weak(what, &seen, value))
        ;
}

/*
 * The ring position of an LSN. What somebody remembers of a time before the exchange (exchange.c) is no place in the
 * ring any more, and was durable then as far as it ever was: that is position 0. By differences, since the base may be
 * less than nothing.
 */
static uint64_t position_of(uint64_t lsn)
{
    uint64_t position = lsn - ar_region->base_lsn;
    return lsn && position <= atomic_load_explicit(&ar_region->tail, memory_order_acquire) ? position : 0;
}

/* Remembers that everything up to lsn was promised to be ordered; who must have it durable calls ar_wait_ordered. */
void ar_order(uint64_t lsn)
{
    raise_to(&ar_region->ordered, position_of(lsn));
}

/* Which wakes concern a waiter for `position`: of the flushes that were taken already, or of the next one. */
static uint32_t wake_mask(uint64_t position)
{
    uint32_t taken = atomic_load_explicit(&ar_region->taken, memory_order_acquire); /* before the look at head */
    bool on_its_way = position <= atomic_load_explicit(&ar_region->head, memory_order_acquire);
    return UINT32_C(1) << ((taken + !on_its_way) % 32);
}

static void sleep_until_durable(uint64_t position)
{
    struct region *r = ar_region;
    for (;;) {
        uint32_t turn = atomic_load(&r->durable_turn);
        if (atomic_load(&r->durable) >= position)
            return;
        ar_wait(&r->durable_turn, turn, &r->durable_waiters, wake_mask(position));
    }
}

static bool is_durable(uint64_t position)
{
    atomic_fetch_add_explicit(&ar_region->counters.syncs, 1, memory_order_relaxed);
    if (atomic_load_explicit(&ar_region->durable, memory_order_acquire) >= position)
        return true;
    atomic_fetch_add_explicit(&ar_region->counters.sync_waits, 1, memory_order_relaxed);
    return false;
}

/* Returns when the volume is durable up to lsn; ends the process when that can no longer come true. */
void ar_wait_durable(uint64_t lsn)
{
    struct region *r = ar_region;
    uint64_t position = position_of(lsn);
    if (is_durable(position))
        return;
    if (atomic_load(&r->wanted) < position) {
        raise_to(&r->wanted, position);
        ar_ring_bell();
    }
    sleep_until_durable(position);
}

/*
 * For a process that writes much for which nobody waits, as a checkpoint does: returns when little of the log is not
 * durable. A commit waits behind all that was logged before it, so a full ring would be half a second of every commit.
 */
void ar_stay_near(void)
{
    struct region *r = ar_region;
    uint64_t position = atomic_load_explicit(&r->tail, memory_order_acquire);
    if (position <= AR_BEHIND_BYTES || atomic_load(&r->durable) >= position - AR_BEHIND_BYTES)
        return;
    ar_ring_bell();
    sleep_until_durable(position - AR_BEHIND_BYTES);
}

/*
 * Returns when all that was ordered by now is durable. It does not ring the bell unless it is the arrival for which the
 * driver waits: with many commits a second, a flush for each would keep the machine from doing them.
 */
void ar_wait_ordered(void)
{
    struct region *r = ar_region;
    uint64_t position = atomic_load_explicit(&r->ordered, memory_order_acquire);
    if (is_durable(position))
        return;
    if (atomic_fetch_add(&r->arrivals, 1) + 1 >= atomic_load(&r->bell_at))
        ar_ring_bell();
    sleep_until_durable(position);
}
