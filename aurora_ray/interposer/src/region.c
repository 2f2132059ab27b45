/* Attaching, locking, waiting, and the tables of files and chunks. */
#include "aurora.h"
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

struct region *ar_region;
int ar_bell_fd = -1;
int ar_life_fd = -1;

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

/* Sleeps while *word == seen, until a wake whose mask has a bit of `mask`, for AR_WAIT_MS at most. Callers loop. */
void ar_wait(_Atomic uint32_t *word, uint32_t seen, _Atomic uint32_t *waiters, uint32_t mask)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += AR_WAIT_MS * 1000000L;
    until.tv_sec += until.tv_nsec / 1000000000L;
    until.tv_nsec %= 1000000000L;
    if (waiters)
        atomic_fetch_add(waiters, 1);
    long r = syscall(SYS_futex, word, FUTEX_WAIT_BITSET, seen, &until, NULL, mask);
    if (waiters)
        atomic_fetch_sub(waiters, 1);
    ar_check_state();
    if (r < 0 && errno == ETIMEDOUT)
        check_driver_lives();
}

void ar_wake(_Atomic uint32_t *word, uint32_t mask)
{
    syscall(SYS_futex, word, FUTEX_WAKE_BITSET, INT32_MAX, NULL, NULL, mask);
}

void ar_ring_bell(void)
{
    if (atomic_exchange(&ar_region->bell_rung, 1))
        return;
    uint64_t one = 1;
    atomic_fetch_add_explicit(&ar_region->counters.bells, 1, memory_order_relaxed);
    (void)!write(ar_bell_fd, &one, sizeof one);
}

/* ---- files */

struct slot *ar_slot(uint32_t index) { return &slots[index]; }
uint32_t ar_slot_index(const struct slot *slot) { return (uint32_t)(slot - slots); }

static _Atomic uint32_t *bucket_of(uint64_t ino)
{
    return &buckets[(ino * UINT64_C(0x9e3779b97f4a7c15) >> 32) % ar_region->nbuckets];
}

struct slot *ar_find(uint64_t ino)
{
    uint32_t i = atomic_load_explicit(bucket_of(ino), memory_order_acquire);
    for (; i; i = atomic_load_explicit(&slots[i - 1].next, memory_order_acquire))
        if (slots[i - 1].ino == ino)
            return &slots[i - 1];
    return NULL;
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

static uint32_t node_new(void)
{
    uint32_t index = ar_region->nodes_free;
    if (index)
        ar_region->nodes_free = nodes[index].links[0];
    else if (ar_region->nodes_used + 1 < ar_region->nnodes)
        index = ++ar_region->nodes_used;
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

/*
 * Registers a file under the lock. The kernel gives an inode number again only when nobody has the old file open, so a
 * dropped slot with the same number is free to be used again; a slot never leaves its chain, which is why ar_find
 * needs no lock.
 */
struct slot *ar_add(uint64_t ino, uint64_t file_id, uint64_t size, uint32_t mounted_extents)
{
    struct slot *s = ar_find(ino);
    if (s) {
        uint64_t tree = atomic_exchange(&s->tree, 0);
        if (tree)
            node_free((uint32_t)(tree >> 32), (uint32_t)tree);
        s->drop_lsn = 0;
    } else {
        if (ar_region->slots_used >= ar_region->nslots)
            ar_die("the table of files is full: this mount was sized for fewer files");
        s = &slots[ar_region->slots_used++];
        s->ino = ino;
        _Atomic uint32_t *bucket = bucket_of(ino);
        atomic_store(&s->next, atomic_load(bucket));
        atomic_store_explicit(bucket, ar_slot_index(s) + 1, memory_order_release);
    }
    s->file_id = file_id;
    s->mounted_extents = mounted_extents;
    atomic_store(&s->last_lsn, 0);
    atomic_store(&s->size, size);
    atomic_store(&s->dropped, 0);
    atomic_store(&s->pinned, 0);
    atomic_store(&s->ordered, 0);
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
        if (!index)
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
    if (!atomic_load_explicit(&c->used, memory_order_relaxed))
        atomic_store_explicit(&c->used, 1, memory_order_relaxed);
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
    atomic_fetch_add_explicit(&ar_region->present_pages, added, memory_order_relaxed);
}

/* ---- asking the driver */

static struct request *claim_request(void)
{
    for (int i = 0; i < AR_REQUESTS; i++) {
        struct request *r = &ar_region->requests[i];
        uint32_t free = REQUEST_FREE;
        if (atomic_compare_exchange_strong(&r->state, &free, REQUEST_FILLING))
            return r;
    }
    return NULL;
}

/* Returns 0, or the errno with which the driver refused. A prefetch that finds no room is simply not made. */
int ar_request(uint32_t want, const struct slot *slot, uint32_t first, uint32_t count, int fd, bool wait)
{
    struct request *r;
    while (!(r = claim_request())) {
        if (!wait)
            return 0;
        _Atomic uint32_t never = 0;
        ar_wait(&never, 0, NULL, AR_ANYBODY);
    }
    r->want = want;
    r->slot = slot ? ar_slot_index(slot) : UINT32_MAX;
    r->first = first;
    r->count = count;
    r->pid = getpid();
    r->fd = fd;
    r->error = 0;
    atomic_store(&r->state, REQUEST_POSTED);
    ar_ring_bell();
    if (!wait)
        return 0;
    uint32_t state;
    while ((state = atomic_load(&r->state)) != REQUEST_DONE)
        ar_wait(&r->state, state, NULL, AR_ANYBODY);
    int error = r->error;
    atomic_store(&r->state, REQUEST_FREE);
    return error;
}
