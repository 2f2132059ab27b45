/* Attaching, locking, waiting, and the tables of files and chunks. */
#include "aurora.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

struct region *ar_region;
int ar_bell_fd = -1;
int ar_life_fd = -1;

struct slot ar_lost = {.size = INT64_MAX, .dropped = 1, .generation = 1};

static _Atomic uint32_t *buckets;
static struct slot *slots;
static union node *nodes;

void ar_attach(struct region *region)
{
    uint8_t *base = (uint8_t *)region;
    ar_region = region;
    buckets = (_Atomic uint32_t *)(base + region->buckets_offset);
    slots = (struct slot *)(base + region->slots_offset);
    nodes = (union node *)(base + region->nodes_offset);
}

_Noreturn void ar_die(const char *why)
{
    static const char prefix[] = "aurora-ray: engine process ends: ";
    (void)!write(2, prefix, sizeof prefix - 1);
    (void)!write(2, why, strlen(why));
    (void)!write(2, "\n", 1);
    _exit(70);
}

/* An engine process must not outlive its right to write. The driver itself only reports. */
void ar_check_state(void)
{
    if (ar_life_fd < 0)
        return;
    switch (atomic_load_explicit(&ar_region->state, memory_order_acquire)) {
    case STATE_RUNNING:
        return;
    case STATE_FENCED:
        ar_die("another writer has taken over this volume");
    case STATE_POISONED:
        ar_die("a process died while it changed the volume");
    default:
        ar_die("the volume is closed");
    }
}

static void check_driver_lives(void)
{
    if (ar_life_fd < 0)
        return;
    struct pollfd p = {.fd = ar_life_fd, .events = POLLIN};
    if (poll(&p, 1, 0) > 0 && (p.revents & (POLLHUP | POLLERR | POLLNVAL)))
        ar_die("the volume driver is gone");
}

void ar_lock(void)
{
    int e = pthread_mutex_lock(&ar_region->lock);
    if (e == EOWNERDEAD) {
        atomic_store(&ar_region->state, STATE_POISONED);
        pthread_mutex_consistent(&ar_region->lock);
    }
    if (ar_life_fd >= 0 && atomic_load_explicit(&ar_region->state, memory_order_relaxed) != STATE_RUNNING) {
        pthread_mutex_unlock(&ar_region->lock);
        ar_check_state();
    }
}

void ar_unlock(void) { pthread_mutex_unlock(&ar_region->lock); }

/*
 * Sleeps while *word == seen, until a wake whose mask has a bit of `mask`, for AR_WAIT_MS at most. Callers loop. As with
 * all that is done beside what a program asked for, errno stays: PostgreSQL takes some reads for failed that leave one.
 */
void ar_wait(_Atomic uint32_t *word, uint32_t seen, _Atomic uint32_t *waiters, uint32_t mask)
{
    int before = errno;
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += AR_WAIT_MS * 1000000L;
    until.tv_sec += until.tv_nsec / 1000000000L;
    until.tv_nsec %= 1000000000L;
    if (waiters)
        atomic_fetch_add(waiters, 1);
    long r = real_syscall(SYS_futex, word, FUTEX_WAIT_BITSET, seen, &until, NULL, mask);
    if (waiters)
        atomic_fetch_sub(waiters, 1);
    ar_check_state();
    if (r < 0 && errno == ETIMEDOUT)
        check_driver_lives();
    errno = before;
}

void ar_wake(_Atomic uint32_t *word, uint32_t mask)
{
    int before = errno;
    real_syscall(SYS_futex, word, FUTEX_WAKE_BITSET, INT32_MAX, NULL, NULL, mask);
    errno = before;
}

void ar_ring_bell(void)
{
    if (ar_bell_fd < 0 || atomic_exchange(&ar_region->bell_rung, 1))
        return; /* the driver itself needs no bell, or it has been rung */
    int before = errno;
    uint64_t one = 1;
    atomic_fetch_add_explicit(&ar_region->counters.bells, 1, memory_order_relaxed);
    (void)!write(ar_bell_fd, &one, sizeof one);
    errno = before;
}

/* ---- files */

struct slot *ar_slot(uint32_t index) { return &slots[index]; }
uint32_t ar_slot_index(const struct slot *slot) { return (uint32_t)(slot - slots); }

static _Atomic uint32_t *bucket_of(uint64_t ino)
{
    return &buckets[(ino * UINT64_C(0x9e3779b97f4a7c15) >> 32) % ar_region->nbuckets];
}

static struct slot *find_once(uint64_t ino)
{
    uint32_t i = atomic_load_explicit(bucket_of(ino), memory_order_acquire);
    for (; i; i = atomic_load_explicit(&slots[i - 1].next, memory_order_acquire))
        if (atomic_load_explicit(&slots[i - 1].ino, memory_order_relaxed) == ino)
            return &slots[i - 1];
    return NULL;
}

/* Without the lock. Who followed a slot into another chain looks again: a file that is there must never be missed. */
struct slot *ar_find(uint64_t ino)
{
    for (int tries = 0;; tries++) {
        uint32_t turn = atomic_load_explicit(&ar_region->chains_turn, memory_order_acquire);
        struct slot *found = find_once(ino);
        atomic_thread_fence(memory_order_acquire);
        if (found || (!(turn & 1) && atomic_load_explicit(&ar_region->chains_turn, memory_order_relaxed) == turn))
            return found;
        if (tries > 1000 && ar_life_fd < 0)
            return NULL; /* the driver: somebody died in between, and the region with him */
        if (tries > 1000)
            ar_check_state();
        sched_yield();
    }
}

/*
 * For who has just opened the file by a name. One that another process makes at this moment has a name before it has a
 * slot, or still the slot of a file that is gone: then the lock says when that is settled.
 */
struct slot *ar_find_opened(uint64_t ino)
{
    struct slot *s = ar_find(ino);
    if (s && !atomic_load_explicit(&s->dropped, memory_order_acquire))
        return s;
    ar_lock();
    s = ar_find(ino);
    ar_unlock();
    return s;
}

/* The slot of a file that had this generation, as a descriptor remembers it. NULL: the file is gone, and the local one is
 * all there is of it; &ar_lost: gone, and the local file has holes. */
struct slot *ar_slot_if(uint32_t index, uint32_t generation)
{
    struct slot *s = &slots[index];
    if (__builtin_expect(atomic_load_explicit(&s->generation, memory_order_acquire) == generation, 1))
        return s;
    return (int32_t)(generation - atomic_load(&s->lost_generation)) <= 0 ? &ar_lost : NULL;
}

/* ---- files that are gone: a queue, oldest first, of slots that new files may have */

/* Under the lock: what the cache holds has become so much less. Files that are gone do not count: see ar_dropped. */
void ar_count_absent(const struct slot *slot, uint64_t pages)
{
    if (!atomic_load(&slot->dropped))
        atomic_fetch_sub_explicit(&ar_region->present_pages, (uint64_t)__builtin_popcountll(pages), memory_order_relaxed);
}

/* Its pages are no longer what the cache could give back: a file that is gone takes room until it is closed. */
static void leave_cache(struct slot *slot)
{
    uint32_t pages = ar_pages_of(atomic_load(&slot->size));
    for (uint32_t page = 0; page < pages; page += AR_EXTENT_PAGES) {
        struct chunk *c = ar_chunk(slot, page / AR_EXTENT_PAGES);
        if (c)
            ar_count_absent(slot, atomic_load(&c->present));
    }
}

/* Under the lock: the file's last name is gone. */
void ar_dropped(struct slot *slot)
{
    leave_cache(slot);
    atomic_store(&slot->dropped, 1);
    uint32_t number = ar_slot_index(slot) + 1;
    slot->older = ar_region->newest_dropped;
    slot->newer = 0;
    *(slot->older ? &slots[slot->older - 1].newer : &ar_region->oldest_dropped) = number;
    ar_region->newest_dropped = number;
    ar_region->ndropped++;
}

static void leave_queue(struct slot *slot)
{
    *(slot->older ? &slots[slot->older - 1].newer : &ar_region->oldest_dropped) = slot->newer;
    *(slot->newer ? &slots[slot->newer - 1].older : &ar_region->newest_dropped) = slot->older;
    ar_region->ndropped--;
}

static void node_free(uint32_t index, uint32_t height)
{
    if (height > 1)
        for (int i = 0; i < AR_INNER_LINKS; i++)
            if (nodes[index].links[i])
                node_free(nodes[index].links[i], height - 1);
    nodes[index].links[0] = ar_region->nodes_free;
    ar_region->nodes_free = index;
}

bool ar_all_present(struct slot *slot)
{
    uint32_t pages = ar_pages_of(atomic_load(&slot->size));
    for (uint32_t page = 0; page < pages; page += AR_EXTENT_PAGES) {
        struct chunk *c = ar_chunk(slot, page / AR_EXTENT_PAGES);
        uint32_t n = pages - page < AR_EXTENT_PAGES ? pages - page : AR_EXTENT_PAGES;
        uint64_t all = n == AR_EXTENT_PAGES ? ~UINT64_C(0) : (UINT64_C(1) << n) - 1;
        if (!c || (atomic_load(&c->present) & all) != all)
            return false;
    }
    return true;
}

/*
 * Under the lock: nothing of the file that had this slot is known any more. Descriptors of it may still be open: by
 * their generation they find out, see ar_slot_if.
 */
static void forget(struct slot *slot)
{
    leave_cache(slot);
    if (!ar_all_present(slot))
        atomic_store(&slot->lost_generation, atomic_load(&slot->generation));
    atomic_fetch_add_explicit(&slot->generation, 1, memory_order_acq_rel);
    atomic_fetch_add_explicit(&slot->evictions, 1, memory_order_acq_rel);
    atomic_store(&slot->size, 0);
    uint64_t tree = atomic_exchange(&slot->tree, 0);
    if (tree)
        node_free((uint32_t)(tree >> 32), (uint32_t)tree);
}

/* Gives back the chunks of the file that is gone the longest and has any. */
static bool forget_one(void)
{
    uint32_t i = ar_region->oldest_dropped;
    while (i && !atomic_load(&slots[i - 1].tree))
        i = slots[i - 1].newer;
    if (i)
        forget(&slots[i - 1]);
    return i != 0;
}

/*
 * Under the lock: the volume that this mount was made of is not what is read from now on. Of files that are gone, those
 * that are here as a whole stay readable.
 */
void ar_forget_dropped(void)
{
    for (uint32_t i = 0; i < ar_region->slots_used; i++) {
        if (!atomic_load(&slots[i].dropped))
            continue;
        if (atomic_load(&slots[i].tree) && !ar_all_present(&slots[i]))
            forget(&slots[i]);
        slots[i].drop_lsn = 0;
        atomic_store(&slots[i].last_lsn, 0);
    }
}

static uint32_t node_new(void)
{
    uint32_t index = ar_region->nodes_free;
    if (index)
        ar_region->nodes_free = nodes[index].links[0];
    else if (ar_region->nodes_used + 1 < ar_region->nnodes)
        index = ++ar_region->nodes_used;
    else if (forget_one())
        return node_new();
    else
        ar_die("the table of chunks is full: this mount touches more data than it was sized for");
    memset(&nodes[index], 0, sizeof nodes[index]);
    return index;
}

/* The leaf of chunk `number`. It may be made for a chunk that is new while others in it lie somewhere already. */
static uint32_t leaf_new(const struct slot *slot, uint32_t number)
{
    uint32_t index = node_new(), first = number - number % AR_LEAF_CHUNKS;
    for (uint32_t i = 0; i < AR_LEAF_CHUNKS; i++)
        nodes[index].chunks[i].group = first + i < slot->mounted_extents ? AR_UNKNOWN : AR_NO_GROUP;
    return index;
}

static void join_chain(struct slot *slot, uint64_t ino)
{
    _Atomic uint32_t *bucket = bucket_of(ino);
    atomic_store(&slot->ino, ino);
    atomic_store(&slot->next, atomic_load(bucket));
    atomic_store_explicit(bucket, ar_slot_index(slot) + 1, memory_order_release);
}

static void leave_chain(struct slot *slot)
{
    _Atomic uint32_t *link = bucket_of(slot->ino);
    while (*link != ar_slot_index(slot) + 1)
        link = &slots[*link - 1].next;
    atomic_store_explicit(link, atomic_load(&slot->next), memory_order_release);
}

/*
 * A slot for a file with a number that no slot has. So many of the last that are gone keep theirs; before the table has
 * that many, or room is short, it grows. On a file system that gives numbers again, few are ever taken from the queue.
 */
static struct slot *slot_for_new(uint64_t ino)
{
    struct region *r = ar_region;
    bool full = r->slots_used >= r->nslots;
    if (!full && r->ndropped <= r->nslots / 8) {
        join_chain(&slots[r->slots_used], ino);
        return &slots[r->slots_used++];
    }
    if (!r->oldest_dropped)
        ar_die("the table of files is full, and nobody asked ar_has_room_for_file");
    struct slot *s = &slots[r->oldest_dropped - 1];
    atomic_fetch_add(&r->chains_turn, 1);
    leave_chain(s);
    join_chain(s, ino);
    atomic_fetch_add(&r->chains_turn, 1);
    return s;
}

/* Under the lock: whether ar_add can take one more file. */
bool ar_has_room_for_file(void) { return ar_region->slots_used < ar_region->nslots || ar_region->oldest_dropped; }

/*
 * Registers a file under the lock. The kernel gives an inode number again only when nobody has the old file open, so a
 * dropped slot with the same number is free to be used again at once.
 */
struct slot *ar_add(uint64_t ino, uint64_t file_id, uint64_t size, uint32_t mounted_extents)
{
    struct slot *s = ar_find(ino);
    if (!s)
        s = slot_for_new(ino);
    if (s->dropped)
        leave_queue(s);
    forget(s);
    s->drop_lsn = 0;
    s->file_id = file_id;
    s->mounted_extents = mounted_extents;
    atomic_store(&s->born, 0);
    atomic_store(&s->last_lsn, 0);
    atomic_store(&s->size, size);
    atomic_store(&s->pinned, 0);
    atomic_store(&s->ordered, 0);
    atomic_store_explicit(&s->dropped, 0, memory_order_release); /* last: see ar_find_opened */
    return s;
}

/* ---- chunks: a radix tree per file; only grows while the file lives, so lookups need no lock */

static uint64_t tree_capacity(uint32_t height)
{
    uint64_t c = height ? AR_LEAF_CHUNKS : 0;
    while (height-- > 1)
        c *= AR_INNER_LINKS;
    return c;
}

struct chunk *ar_chunk(struct slot *slot, uint32_t number)
{
    uint64_t tree = atomic_load_explicit(&slot->tree, memory_order_acquire);
    uint32_t index = (uint32_t)(tree >> 32), height = (uint32_t)tree;
    if (number >= tree_capacity(height))
        return NULL;
    for (; height > 1; height--) {
        index = atomic_load_explicit(&nodes[index].links[number / tree_capacity(height - 1)], memory_order_acquire);
        if (!index || index >= ar_region->nnodes) /* beyond: the file is gone, and others have its nodes now */
            return NULL;
        number %= tree_capacity(height - 1);
    }
    return &nodes[index].chunks[number];
}

/* Under the lock. */
struct chunk *ar_chunk_make(struct slot *slot, uint32_t number)
{
    uint64_t tree = atomic_load(&slot->tree);
    uint32_t root = (uint32_t)(tree >> 32), height = (uint32_t)tree;
    while (number >= tree_capacity(height)) {
        uint32_t above = height ? node_new() : leaf_new(slot, 0);
        if (height)
            nodes[above].links[0] = root;
        root = above;
        height++;
        atomic_store_explicit(&slot->tree, (uint64_t)root << 32 | height, memory_order_release);
    }
    uint32_t at = number;
    for (; height > 1; height--) {
        _Atomic uint32_t *link = &nodes[root].links[at / tree_capacity(height - 1)];
        if (!*link)
            atomic_store_explicit(link, height == 2 ? leaf_new(slot, number) : node_new(), memory_order_release);
        root = *link;
        at %= tree_capacity(height - 1);
    }
    return &nodes[root].chunks[at];
}

bool ar_present(struct slot *slot, uint32_t page)
{
    struct chunk *c = ar_chunk(slot, page / AR_EXTENT_PAGES);
    if (!c || !(atomic_load_explicit(&c->present, memory_order_acquire) >> (page % AR_EXTENT_PAGES) & 1))
        return false;
    if (!(atomic_load_explicit(&c->used, memory_order_relaxed) & AR_TOUCHED))
        atomic_fetch_or_explicit(&c->used, AR_TOUCHED, memory_order_relaxed);
    return true;
}

/* Under the lock: pages [first, end) are what the local file says. */
void ar_set_present(struct slot *slot, uint32_t first, uint32_t end)
{
    uint64_t added = 0;
    while (first < end) {
        uint32_t bit = first % AR_EXTENT_PAGES, n = AR_EXTENT_PAGES - bit;
        if (n > end - first)
            n = end - first;
        uint64_t mask = (n == 64 ? ~UINT64_C(0) : (UINT64_C(1) << n) - 1) << bit;
        struct chunk *c = ar_chunk_make(slot, first / AR_EXTENT_PAGES);
        uint64_t before = atomic_fetch_or_explicit(&c->present, mask, memory_order_release);
        added += (uint64_t)__builtin_popcountll(mask & ~before);
        first += n;
    }
    if (!atomic_load(&slot->dropped))
        atomic_fetch_add_explicit(&ar_region->present_pages, added, memory_order_relaxed);
}
