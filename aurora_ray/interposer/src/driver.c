/*
 * The consumer's side of the region, called by Python through ctypes. One thread of one process calls these; a process
 * may hold several regions, so each call names its own.
 */
#include "aurora.h"
#include "../../log/src/crc32c.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

struct region_options {
    uint64_t ring_bytes, base_lsn, next_file_id, bell_bytes;
    uint32_t page_bytes, nslots, nnodes, patterns_bytes;
    const char *patterns;
};

static uint64_t align(uint64_t n) { return (n + 4095) & ~UINT64_C(4095); }

static int init_lock(pthread_mutex_t *lock)
{
    pthread_mutexattr_t a;
    pthread_mutexattr_init(&a);
    pthread_mutexattr_setpshared(&a, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&a, PTHREAD_MUTEX_ROBUST);
    int e = pthread_mutex_init(lock, &a);
    pthread_mutexattr_destroy(&a);
    return e;
}

/* Returns the region's memfd, or -1 with errno; *out is its mapping here. */
AR_EXPORT int ar_region_create(const struct region_options *o, struct region **out)
{
    ar_resolve_libc();
    if (o->ring_bytes & (o->ring_bytes - 1) || o->page_bytes > AR_PAGE_BYTES_MAX || o->patterns_bytes > AR_PATTERN_BYTES) {
        errno = EINVAL;
        return -1;
    }
    struct region r = {.page_bytes = o->page_bytes, .nslots = o->nslots, .nnodes = o->nnodes, .ring_bytes = o->ring_bytes};
    r.nbuckets = o->nslots;
    r.buckets_offset = align(sizeof(struct region));
    r.slots_offset = r.buckets_offset + align((uint64_t)r.nbuckets * 4);
    r.nodes_offset = r.slots_offset + align((uint64_t)r.nslots * sizeof(struct slot));
    r.ring_offset = r.nodes_offset + align((uint64_t)r.nnodes * sizeof(union node));
    r.region_bytes = r.ring_offset + r.ring_bytes;
    int fd = memfd_create("aurora-region", MFD_CLOEXEC);
    if (fd < 0 || real_ftruncate(fd, (off_t)r.region_bytes) < 0)
        return -1;
    struct region *p = real_mmap(NULL, r.region_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (p == MAP_FAILED) {
        real_close(fd);
        return -1;
    }
    *p = r;
    p->base_lsn = o->base_lsn;
    p->next_file_id = o->next_file_id;
    p->bell_bytes = o->bell_bytes;
    memcpy(p->volatile_patterns, o->patterns, o->patterns_bytes);
    init_lock(&p->lock);
    p->magic = AR_MAGIC;
    *out = p;
    return fd;
}

AR_EXPORT int ar_region_destroy(struct region *region, int fd)
{
    munmap(region, region->region_bytes);
    return real_close(fd);
}

/*
 * The lock is held over local writes, and a disk may be slow, for seconds when much is written back: a holder that lives
 * is waited for as long as that takes, by asking again, so that the driver's event loop goes on meanwhile. One that a
 * signal has stopped may never go on: after LOCK_STOPPED_S the region is poisoned, and with it the mount is thrown away.
 * One that died makes itself known by the robust lock. A holder that hangs in any other way shows as an engine that
 * hangs, and whoever looks after the engine ends it.
 */
#define LOCK_TRY_MS 5
#define LOCK_STOPPED_S 5

static bool stopped_for_long(const struct region *r)
{
    static const struct region *region; /* of the holder that was found stopped, */
    static int holder;
    static time_t since; /* and since when: 0 is never */
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    int id = r->lock.__data.__owner;
    char state = id > 0 ? ar_process_state((uint32_t)id) : '?';
    if (state != 'T' && state != 't') {
        since = 0;
        return false;
    }
    if (!since || region != r || holder != id)
        region = r, holder = id, since = now.tv_sec;
    return now.tv_sec - since >= LOCK_STOPPED_S;
}

int ar_lock_for_driver(void)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += LOCK_TRY_MS * 1000000L;
    until.tv_sec += until.tv_nsec / 1000000000L;
    until.tv_nsec %= 1000000000L;
    int e = pthread_mutex_timedlock(&ar_region->lock, &until);
    if (!e)
        return 0;
    if (e == ETIMEDOUT && !stopped_for_long(ar_region))
        return EBUSY;
    atomic_store(&ar_region->state, STATE_POISONED);
    if (e != EOWNERDEAD)
        return EIO;
    pthread_mutex_consistent(&ar_region->lock);
    ar_unlock();
    return EIO;
}

/* Registers the files of a mounted tree; their slots go to `indexes`. One call, since there are thousands. */
AR_EXPORT void ar_mount_files(struct region *region, uint32_t n, const uint64_t *inos, const uint64_t *file_ids,
                              const uint64_t *sizes, const uint32_t *extents, uint32_t *indexes)
{
    ar_attach(region);
    ar_lock();
    for (uint32_t i = 0; i < n; i++)
        indexes[i] = ar_slot_index(ar_add(inos[i], file_ids[i], sizes[i], extents[i]));
    ar_unlock();
}

/* Tells where `n` extents of a mounted file lie, from chunk `first` on; what is known already stays. 0, EBUSY or EIO. */
AR_EXPORT int ar_tell_extents(struct region *region, uint32_t slot, uint32_t first, uint32_t n, const uint32_t *groups)
{
    ar_attach(region);
    int error = ar_lock_for_driver();
    if (error)
        return error;
    struct slot *s = ar_slot(slot);
    for (uint32_t i = 0; i < n; i++) {
        struct chunk *c = ar_chunk_make(s, first + i);
        if (c->group == AR_UNKNOWN)
            atomic_store_explicit(&c->group, groups[i], memory_order_release);
    }
    ar_unlock();
    return 0;
}

/* Without the lock: nobody places anything in a group before it counts. */
AR_EXPORT int ar_add_group(struct region *region, uint32_t group, uint32_t free_extents)
{
    if (group >= AR_GROUPS_MAX)
        return -1;
    region->group_free[group] = free_extents;
    if (group >= atomic_load(&region->ngroups))
        atomic_store_explicit(&region->ngroups, group + 1, memory_order_release);
    return 0;
}

AR_EXPORT uint64_t ar_free_extents(struct region *region)
{
    uint64_t n = 0;
    for (uint32_t g = 0; g < region->ngroups; g++)
        n += region->group_free[g];
    return n;
}

/* What all files say that they are long: not what they take in a group, which is whole extents. */
AR_EXPORT uint64_t ar_file_bytes(struct region *region)
{
    ar_attach(region);
    uint64_t n = 0;
    for (uint32_t i = 0; i < region->slots_used; i++) {
        const struct slot *s = ar_slot(i);
        if (atomic_load(&s->ino) && !atomic_load(&s->dropped))
            n += atomic_load(&s->size);
    }
    return n;
}

/* ---- the log */

struct poll {
    uint64_t head, tail, wanted, durable, present_pages;
    uint32_t state, requests, attached, settle_wanted;
};

AR_EXPORT void ar_peek(struct region *r, struct poll *out)
{
    out->head = atomic_load(&r->head);
    out->tail = atomic_load(&r->tail);
    out->wanted = atomic_load(&r->wanted);
    out->durable = atomic_load(&r->durable);
    out->present_pages = atomic_load(&r->present_pages);
    out->state = atomic_load(&r->state);
    out->attached = atomic_load(&r->attached);
    out->settle_wanted = atomic_load(&r->settle_wanted);
    out->requests = 0;
    for (int i = 0; i < AR_REQUESTS; i++)
        out->requests += ar_request_state(atomic_load_explicit(&r->requests[i].state, memory_order_relaxed)) ==
                         REQUEST_POSTED;
}

/* What there is to do. Clears the bell first, so that what comes after this look rings it again. */
AR_EXPORT void ar_poll(struct region *r, struct poll *out)
{
    atomic_store(&r->bell_rung, 0);
    ar_peek(r, out);
}

struct taken_batch {
    uint32_t group, records;
    uint64_t offset, bytes; /* in the caller's buffer */
};

struct take {
    /* in */
    uint8_t volume[16];
    uint64_t epoch, vdl, time_us, bytes_max;
    const uint64_t *group_tails; /* AR_GROUPS_MAX: flush_end of each group's last batch; the writer's, and only read here */
    uint8_t *buffer;
    uint64_t buffer_bytes;
    /* out */
    uint64_t flush_start, flush_end, arrivals;
    uint32_t nbatches, batches_max;
    struct taken_batch *batches;
};

static void ring_get(const struct region *r, uint64_t position, void *to, size_t bytes)
{
    const uint8_t *ring = (const uint8_t *)r + r->ring_offset;
    size_t at = position & (r->ring_bytes - 1), room = r->ring_bytes - at;
    if (bytes <= room) {
        memcpy(to, ring + at, bytes);
        return;
    }
    memcpy(to, ring + at, room);
    memcpy((uint8_t *)to + room, ring, bytes - room);
}

static size_t groups_bytes(uint32_t n) { return ((size_t)n * 4 + 7) & ~(size_t)7; }
static size_t front_bytes(uint32_t n) { return sizeof(struct batch) + groups_bytes(n); }

/* The place of each group's batch in the flush, plus one; 0: it has none yet. */
struct places {
    uint16_t of[AR_GROUPS_MAX];
};

/* Whether what the ring has at this position can be a record of the log: whoever put it there said what its end is. */
static bool is_record(const struct region *r, const struct record *head, uint64_t at, uint64_t to)
{
    return head->length >= sizeof *head && head->length % 8 == 0 && head->length <= to - at &&
           head->lsn == r->base_lsn + at + head->length && head->group < AR_GROUPS_MAX;
}

/*
 * How far this flush goes, and how much of it belongs to each group. Its batches must fit into the buffer with their
 * headers, each of which lists all groups of the flush. Returns `from` if not even one record fits or is one.
 */
static uint64_t measure(const struct region *r, struct take *t, uint64_t from, uint64_t to, struct places *places)
{
    uint64_t at = from;
    struct record head;
    while (at < to) {
        ring_get(r, at, &head, sizeof head);
        if (!is_record(r, &head, at, to))
            return from;
        uint64_t bytes = at + head.length - from;
        uint32_t n = t->nbatches + !places->of[head.group];
        if ((at > from && bytes > t->bytes_max) || n > t->batches_max || bytes + n * front_bytes(n) > t->buffer_bytes)
            break;
        if (!places->of[head.group]) {
            t->batches[t->nbatches] = (struct taken_batch){.group = head.group};
            places->of[head.group] = (uint16_t)++t->nbatches;
        }
        struct taken_batch *b = &t->batches[places->of[head.group] - 1];
        b->records++;
        b->bytes += head.length;
        at += head.length;
    }
    return at;
}

static void sort_batches(struct take *t)
{
    for (uint32_t i = 1; i < t->nbatches; i++)
        for (uint32_t k = i; k && t->batches[k - 1].group > t->batches[k].group; k--) {
            struct taken_batch swap = t->batches[k];
            t->batches[k] = t->batches[k - 1];
            t->batches[k - 1] = swap;
        }
}

static void put_header(struct take *t, struct taken_batch *b)
{
    uint8_t *p = t->buffer + b->offset;
    struct batch h = {.magic = AR_BATCH_MAGIC, .version = 1, .group = b->group, .epoch = t->epoch, .vdl = t->vdl,
                      .prev_lsn = t->group_tails[b->group], .flush_start = t->flush_start, .flush_end = t->flush_end,
                      .time_us = t->time_us, .record_count = b->records, .payload_bytes = (uint32_t)b->bytes,
                      .ngroups = t->nbatches};
    memcpy(h.volume, t->volume, 16);
    memcpy(p, &h, sizeof h);
    memset(p + sizeof h, 0, groups_bytes(t->nbatches));
    for (uint32_t i = 0; i < t->nbatches; i++)
        memcpy(p + sizeof h + i * 4, &t->batches[i].group, 4);
}

static void put_records(const struct region *r, struct take *t, uint64_t from, uint64_t to, const struct places *places)
{
    size_t front = front_bytes(t->nbatches);
    if (t->nbatches == 1) {
        ring_get(r, from, t->buffer + t->batches[0].offset + front, to - from);
        return;
    }
    uint64_t filled[t->nbatches];
    memset(filled, 0, sizeof filled);
    struct record head;
    for (uint64_t at = from; at < to; at += head.length) {
        ring_get(r, at, &head, sizeof head);
        uint32_t place = places->of[head.group] - 1;
        ring_get(r, at, t->buffer + t->batches[place].offset + front + filled[place], head.length);
        filled[place] += head.length;
    }
    for (uint32_t i = 0; i < t->nbatches; i++)
        if (filled[i] != t->batches[i].bytes)
            ar_die("a batch has not what was counted for it");
}

/* Gives the batches their places in the buffer; returns the bytes of all. */
static uint64_t lay_out(struct take *t, struct places *places)
{
    uint64_t offset = 0;
    sort_batches(t);
    for (uint32_t i = 0; i < t->nbatches; i++) {
        places->of[t->batches[i].group] = (uint16_t)(i + 1);
        t->batches[i].offset = offset;
        offset += front_bytes(t->nbatches) + t->batches[i].bytes;
    }
    return offset;
}

/*
 * Takes the next flush out of the ring as encoded batches. Returns 0; 1 when there is nothing; -1 when what comes next
 * is no record, or one that fits into no buffer: then nothing can ever be taken again.
 */
AR_EXPORT int ar_take(struct region *r, struct take *t)
{
    struct places places = {0};
    uint64_t arrivals = atomic_load(&r->arrivals); /* before the look at the tail: what they wait for is below it */
    uint64_t from = atomic_load(&r->head), tail = atomic_load_explicit(&r->tail, memory_order_acquire);
    t->nbatches = 0;
    if (from == tail)
        return 1;
    if (tail - from > r->ring_bytes)
        return -1; /* the other half of ar_lock_with_space: nothing is overwritten before it was taken */
    uint64_t to = measure(r, t, from, tail, &places), offset = lay_out(t, &places);
    if (to == from || offset > t->buffer_bytes || offset != to - from + t->nbatches * front_bytes(t->nbatches))
        return -1;
    t->flush_start = r->base_lsn + from;
    t->flush_end = r->base_lsn + to;
    if (to == tail)
        t->arrivals = arrivals; /* otherwise some wait for what is left: they count for the next */
    for (uint32_t i = 0; i < t->nbatches; i++)
        put_header(t, &t->batches[i]);
    put_records(r, t, from, to, &places);
    for (uint32_t i = 0; i < t->nbatches; i++) {
        struct taken_batch *b = &t->batches[i];
        b->bytes += front_bytes(t->nbatches);
        uint32_t crc = ar_crc32c(0, t->buffer + b->offset + 8, b->bytes - 8);
        memcpy(t->buffer + b->offset + 4, &crc, 4);
    }
    atomic_store_explicit(&r->head, to, memory_order_release);
    atomic_fetch_add_explicit(&r->taken, 1, memory_order_release); /* after head: see wake_mask */
    atomic_fetch_add(&r->space_turn, 1);
    if (atomic_load(&r->space_waiters))
        ar_wake(&r->space_turn, AR_ANYBODY);
    return 0;
}

AR_EXPORT void ar_publish(struct region *r, uint64_t vdl)
{
    uint64_t position = vdl - r->base_lsn;
    if (!vdl || position > atomic_load(&r->tail) || atomic_load(&r->mode) == MODE_PRIVATE)
        return; /* below the base, or nobody waits for anything */
    atomic_store_explicit(&r->durable, position, memory_order_release);
    atomic_fetch_add(&r->durable_turn, 1);
    if (atomic_load(&r->durable_waiters))
        ar_wake(&r->durable_turn, ~(UINT32_C(1) << ((atomic_load(&r->taken) + 1) % 32))); /* not who needs the next */
}

/* From now on the commit with this number rings the bell when it begins to wait. Returns how many have begun. */
AR_EXPORT uint64_t ar_bell_at(struct region *r, uint64_t arrival)
{
    atomic_store(&r->bell_at, arrival);
    return atomic_load(&r->arrivals);
}

/* Fenced, closed, poisoned: every waiter wakes and ends its process. */
AR_EXPORT void ar_set_state(struct region *r, uint32_t state)
{
    atomic_store(&r->state, state);
    atomic_fetch_add(&r->durable_turn, 1);
    atomic_fetch_add(&r->space_turn, 1);
    ar_wake(&r->durable_turn, AR_ANYBODY);
    ar_wake(&r->space_turn, AR_ANYBODY);
    for (int i = 0; i < AR_REQUESTS; i++)
        ar_wake(&r->requests[i].state, AR_ANYBODY);
}

/* ---- requests */

/* Copies up to `max` posted requests to `out` and their places to `index`; they are the caller's to answer. */
AR_EXPORT int ar_take_requests(struct region *r, struct request *out, uint32_t *index, int max)
{
    int n = 0;
    for (uint32_t i = 0; i < AR_REQUESTS && n < max; i++) {
        uint32_t word = atomic_load(&r->requests[i].state);
        if (ar_request_state(word) != REQUEST_POSTED)
            continue;
        atomic_store(&r->requests[i].state, ar_request_word(word, REQUEST_TAKEN)); /* nobody else changes it now */
        out[n] = r->requests[i];
        index[n++] = i;
    }
    return n;
}

AR_EXPORT void ar_reclaim(struct region *r) { ar_reclaim_requests(r); }

AR_EXPORT void ar_answer(struct region *r, uint32_t index, int error)
{
    struct request *q = &r->requests[index];
    q->error = error;
    uint32_t word = atomic_load(&q->state);
    if (ar_request_state(word) != REQUEST_TAKEN)
        ar_die("a request was answered that nobody had taken");
    atomic_store(&q->state, q->want == WANT_PREFETCH ? REQUEST_FREE : ar_request_word(word, REQUEST_DONE));
    ar_wake(&q->state, AR_ANYBODY);
}

struct slot_view {
    uint64_t ino, file_id, size, drop_lsn, last_lsn;
    uint32_t mounted_extents, dropped;
};

AR_EXPORT void ar_view_slot(struct region *region, uint32_t slot, struct slot_view *out)
{
    ar_attach(region);
    struct slot *s = ar_slot(slot);
    *out = (struct slot_view){s->ino, s->file_id, atomic_load(&s->size), s->drop_lsn,
                              atomic_load(&s->last_lsn), s->mounted_extents, s->dropped};
}

AR_EXPORT int64_t ar_find_slot(struct region *region, uint64_t ino)
{
    ar_attach(region);
    struct slot *s = ar_find(ino);
    return s ? (int64_t)ar_slot_index(s) : -1;
}

AR_EXPORT uint32_t ar_extent_group(struct region *region, uint32_t slot, uint32_t chunk)
{
    ar_attach(region);
    struct slot *s = ar_slot(slot);
    struct chunk *c = ar_chunk(s, chunk);
    return c ? atomic_load(&c->group) : chunk < s->mounted_extents ? AR_UNKNOWN : AR_NO_GROUP;
}

AR_EXPORT void ar_counters(const struct region *region, struct counters *out)
{
    memcpy(out, &region->counters, sizeof *out);
}
