/* What each change of the local tree means to the log, and how absent pages become present. */
#include "aurora.h"
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static uint32_t page_bytes(void) { return ar_region->page_bytes; }
uint32_t ar_pages_of(uint64_t bytes) { return (uint32_t)((bytes + page_bytes() - 1) / page_bytes()); }
static uint32_t chunks_of(uint32_t pages) { return (pages + AR_EXTENT_PAGES - 1) / AR_EXTENT_PAGES; }

static int fail(int error)
{
    errno = error;
    return -1;
}

static bool has_component(const char *path, const char *name)
{
    size_t n = strlen(name);
    for (; path; path = strchr(path, '/') ? strchr(path, '/') + 1 : NULL)
        if (!strncmp(path, name, n) && (path[n] == '/' || !path[n]))
            return true;
    return false;
}

/*
 * Patterns, NUL-separated, each after a mark: '=' that path; '^' all below that path (which itself stays durable: the
 * directory exists after a restart, empty); '/' any component that equals it; '*' fnmatch of the last component.
 */
bool ar_is_volatile(const char *path)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    for (const char *p = ar_region->volatile_patterns; *p; p += strlen(p) + 1) {
        const char *pattern = p + 1;
        size_t n = strlen(pattern);
        if (*p == '=' ? !strcmp(path, pattern)
            : *p == '^' ? !strncmp(path, pattern, n) && path[n] == '/'
            : *p == '/' ? has_component(path, pattern)
                        : !fnmatch(pattern, name, 0))
            return true;
    }
    return false;
}

/* ---- presence */

/* Bytes [offset, offset + bytes) are local on return, unless an eviction takes them again. */
int ar_need(int fd, struct slot *slot, uint64_t offset, size_t bytes)
{
    uint64_t size = atomic_load_explicit(&slot->size, memory_order_acquire);
    if (!bytes || offset >= size)
        return 0;
    uint64_t end_byte = offset + bytes < size ? offset + bytes : size;
    uint32_t page = (uint32_t)(offset / page_bytes()), end = ar_pages_of(end_byte);
    while (page < end) {
        if (ar_present(slot, page)) {
            page++;
            continue;
        }
        uint32_t run = 1;
        while (page + run < end && !ar_present(slot, page + run))
            run++;
        atomic_fetch_add_explicit(&ar_region->counters.misses, 1, memory_order_relaxed);
        int error = ar_request(WANT_PAGES, slot, page, run, fd, true);
        if (error)
            return fail(error);
    }
    return 0;
}

void ar_prefetch(int fd, struct slot *slot, uint64_t offset, uint64_t bytes)
{
    uint64_t size = atomic_load(&slot->size);
    if (offset >= size)
        return;
    if (!bytes || bytes > size - offset)
        bytes = size - offset;
    uint32_t page = (uint32_t)(offset / page_bytes()), end = ar_pages_of(offset + bytes);
    while (page < end && ar_present(slot, page))
        page++;
    if (page < end)
        ar_request(WANT_PREFETCH, slot, page, end - page, fd, false);
}

/* ---- placement */

static bool extents_unknown(struct slot *slot, uint32_t chunk)
{
    struct chunk *c = ar_chunk(slot, chunk);
    return chunk < slot->mounted_extents && (!c || c->group == AR_UNKNOWN);
}

void ar_know_extents(struct slot *slot, uint32_t first, uint32_t end)
{
    for (uint32_t c = first; c < end && c < slot->mounted_extents; c++)
        if (extents_unknown(slot, c))
            ar_request(WANT_EXTENTS, slot, c - c % AR_LEAF_CHUNKS, AR_LEAF_CHUNKS, -1, true);
}

static uint32_t group_with_room(void)
{
    static uint32_t hint; /* where the last search ended: freed extents below it are found when it wraps */
    for (uint32_t i = 0; i < ar_region->ngroups; i++) {
        uint32_t g = (hint + i) % ar_region->ngroups;
        if (ar_region->group_free[g]) {
            hint = g;
            return g;
        }
    }
    return AR_NO_GROUP;
}

static bool place_chunk(struct slot *slot, uint32_t number)
{
    struct chunk *c = ar_chunk_make(slot, number);
    if (c->group != AR_NO_GROUP)
        return true;
    uint32_t group = group_with_room();
    if (group == AR_NO_GROUP)
        return false;
    ar_region->group_free[group]--;
    atomic_store_explicit(&c->group, group, memory_order_release);
    uint32_t body[2] = {group, 0};
    ar_append((struct record){.type = REC_EXTENT, .file_id = slot->file_id, .page = number}, body, sizeof body);
    return true;
}

/* Takes the lock with room in the ring for pages [first, end), each chunk placed in a protection group. */
static int lock_placed(struct slot *slot, uint32_t first, uint32_t end)
{
    uint32_t chunk_first = first / AR_EXTENT_PAGES, chunk_end = chunks_of(end);
    for (;;) {
        ar_know_extents(slot, chunk_first, chunk_end);
        ar_lock_with_space((size_t)(end - first) * AR_PAGE_RECORD_BYTES_MAX + 4096);
        if (atomic_load(&slot->dropped))
            return 0;
        bool ready = true;
        for (uint32_t c = chunk_first; ready && c < chunk_end; c++)
            ready = !extents_unknown(slot, c) && place_chunk(slot, c);
        if (ready)
            return 0;
        ar_unlock();
        int error = ar_request(WANT_GROUP, NULL, 0, 0, -1, true);
        if (error)
            return fail(error);
    }
}

/* ---- sizes */

static void append_size(int type, struct slot *slot, uint64_t size, uint32_t group)
{
    struct record head = {.type = (uint8_t)type, .flags = group ? REC_FLAG : 0, .file_id = slot->file_id, .group = group};
    atomic_store_explicit(&slot->last_lsn, ar_append(head, &size, sizeof size), memory_order_release);
}

/* Under the lock: the file has grown; what lies between is zeros, here and in the volume. */
static void grow(struct slot *slot, uint64_t size)
{
    uint64_t before = atomic_load(&slot->size);
    append_size(REC_SIZE, slot, size, 0);
    ar_set_present(slot, ar_pages_of(before), ar_pages_of(size));
    atomic_store_explicit(&slot->size, size, memory_order_release);
}

int ar_extend(int fd, struct slot *slot, uint64_t offset, uint64_t bytes)
{
    ar_lock_with_space(4096);
    int result = real_fallocate(fd, 0, (off_t)offset, (off_t)bytes);
    if (result < 0 && errno == EOPNOTSUPP && offset + bytes > slot->size)
        result = real_ftruncate(fd, (off_t)(offset + bytes));
    if (!result && offset + bytes > slot->size && !slot->dropped)
        grow(slot, offset + bytes);
    ar_unlock();
    return result;
}

/* Calls `copy` once for each protection group other than 0 that has extents of the file from chunk `first` on. */
void ar_for_other_groups(struct slot *slot, uint32_t first, void (*copy)(struct slot *, uint32_t, uint64_t),
                             uint64_t argument)
{
    uint8_t seen[AR_GROUPS_MAX / 8] = {0};
    uint32_t end = chunks_of(ar_pages_of(atomic_load(&slot->size)));
    for (uint32_t c = first; c < end; c++) {
        struct chunk *chunk = ar_chunk(slot, c);
        uint32_t g = chunk && ar_placed(chunk) ? chunk->group : 0;
        if (g == 0 || seen[g / 8] & 1 << g % 8)
            continue;
        seen[g / 8] |= (uint8_t)(1 << g % 8);
        copy(slot, g, argument);
    }
}

static void copy_truncate(struct slot *slot, uint32_t group, uint64_t size)
{
    append_size(REC_TRUNCATE, slot, size, group);
}

static void free_chunks(struct slot *slot, uint32_t first)
{
    uint32_t end = chunks_of(ar_pages_of(atomic_load(&slot->size)));
    for (uint32_t c = first; c < end; c++) {
        struct chunk *chunk = ar_chunk(slot, c);
        if (!chunk)
            continue;
        if (ar_placed(chunk))
            ar_region->group_free[chunk->group]++;
        atomic_store(&chunk->group, AR_NO_GROUP);
        uint64_t before = atomic_exchange(&chunk->present, 0);
        atomic_fetch_sub(&ar_region->present_pages, (uint64_t)__builtin_popcountll(before));
    }
}

static void shrink(struct slot *slot, uint64_t size)
{
    uint32_t pages = ar_pages_of(size);
    append_size(REC_TRUNCATE, slot, size, 0);
    ar_for_other_groups(slot, pages / AR_EXTENT_PAGES, copy_truncate, size);
    free_chunks(slot, chunks_of(pages));
    struct chunk *last = pages % AR_EXTENT_PAGES ? ar_chunk(slot, pages / AR_EXTENT_PAGES) : NULL;
    if (last) {
        uint64_t keep = (UINT64_C(1) << pages % AR_EXTENT_PAGES) - 1;
        uint64_t before = atomic_fetch_and(&last->present, keep);
        atomic_fetch_sub(&ar_region->present_pages, (uint64_t)__builtin_popcountll(before & ~keep));
    }
    atomic_store_explicit(&slot->size, size, memory_order_release);
    if (slot->mounted_extents > chunks_of(pages))
        slot->mounted_extents = chunks_of(pages);
}

int ar_truncate(int fd, struct slot *slot, uint64_t size)
{
    for (;;) {
        /* A page cut in the middle must be local: its tail is zeros from now on, whenever it would be fetched. */
        if (size % page_bytes() && ar_need(fd, slot, size, 1) < 0)
            return -1;
        ar_know_extents(slot, chunks_of(ar_pages_of(size)), slot->mounted_extents);
        ar_lock_with_space(4096 + (size_t)ar_region->ngroups * 40);
        if (!(size % page_bytes()) || size >= slot->size || ar_present(slot, (uint32_t)(size / page_bytes())))
            break;
        ar_unlock();
    }
    int result = real_ftruncate(fd, (off_t)size);
    if (!result && !slot->dropped) {
        if (size > slot->size)
            grow(slot, size);
        else if (size < slot->size)
            shrink(slot, size);
    }
    ar_unlock();
    return result;
}

/* ---- writing */

struct piece { /* one step of a write: some pages, with the bytes that were there before */
    uint32_t first, end;
    uint64_t size_before;
    uint64_t known; /* a bit a page of the piece: `old` is what the page was */
    uint8_t *old;   /* page_bytes() * AR_PIECE_PAGES */
};

static uint8_t *scratch(void)
{
    static __thread uint8_t *buffer; /* one a thread, kept: a write must not fail for want of memory half way */
    if (!buffer && !(buffer = malloc((size_t)AR_PAGE_BYTES_MAX * AR_PIECE_PAGES)))
        ar_die("out of memory");
    return buffer;
}

static void load_old(int fd, struct slot *slot, struct piece *p)
{
    size_t bytes = (size_t)(p->end - p->first) * page_bytes();
    bool any = false;
    p->known = 0;
    for (uint32_t page = p->first; page < p->end; page++) {
        bool beyond = (uint64_t)page * page_bytes() >= p->size_before, present = !beyond && ar_present(slot, page);
        any |= present;
        if (beyond || present)
            p->known |= UINT64_C(1) << (page - p->first);
    }
    ssize_t got = any ? real_pread(fd, p->old, bytes, (off_t)p->first * page_bytes()) : 0;
    if (got < 0)
        got = 0, p->known = 0;
    memset(p->old + got, 0, bytes - (size_t)got);
}

/* After the local write: one record a page, and the pages are present. */
static void log_piece(struct slot *slot, struct piece *p, const uint8_t *data, uint64_t offset, size_t bytes)
{
    uint64_t end = offset + bytes;
    uint8_t image[AR_PAGE_BYTES_MAX];
    if (end > p->size_before)
        grow(slot, end);
    for (uint32_t page = p->first; page < p->end && (uint64_t)page * page_bytes() < end; page++) {
        uint64_t start = (uint64_t)page * page_bytes();
        size_t from = offset > start ? offset - start : 0;
        size_t to = end - start < page_bytes() ? end - start : page_bytes();
        const uint8_t *old = p->old + (size_t)(page - p->first) * page_bytes();
        bool known = p->known >> (page - p->first) & 1;
        const uint8_t *now = data + (start + from - offset);
        if (from || to < page_bytes()) { /* only what was compared need be right in between, unless it goes out full */
            memcpy(image, old, page_bytes());
            memcpy(image + from, now, to - from);
            now = image;
        }
        ar_append_page(slot, ar_chunk(slot, page / AR_EXTENT_PAGES), page, now, known ? old : NULL, from, to);
    }
    ar_set_present(slot, p->first, ar_pages_of(end));
}

static bool edge_missing(struct slot *slot, uint64_t offset, uint64_t end, uint64_t *at)
{
    uint64_t edges[2] = {offset, end - 1}, size = atomic_load(&slot->size);
    bool partial[2] = {offset % page_bytes() != 0, end % page_bytes() != 0};
    if (offset / page_bytes() == (end - 1) / page_bytes())
        partial[0] = partial[1] = partial[0] || partial[1];
    for (int i = 0; i < 2; i++) {
        uint32_t page = (uint32_t)(edges[i] / page_bytes());
        if (partial[i] && (uint64_t)page * page_bytes() < size && !ar_present(slot, page)) {
            *at = (uint64_t)page * page_bytes();
            return true;
        }
    }
    return false;
}

static ssize_t write_piece(int fd, struct slot *slot, const uint8_t *data, size_t bytes, uint64_t offset)
{
    uint64_t end = offset + bytes, missing;
    struct piece p = {.first = (uint32_t)(offset / page_bytes()), .end = ar_pages_of(end), .old = scratch()};
    for (;;) {
        while (edge_missing(slot, offset, end, &missing))
            if (ar_need(fd, slot, missing, 1) < 0)
                return -1;
        if (lock_placed(slot, p.first, p.end) < 0)
            return -1;
        if (!edge_missing(slot, offset, end, &missing))
            break;
        ar_unlock();
    }
    p.size_before = atomic_load(&slot->size);
    bool logged = !atomic_load(&slot->dropped);
    if (logged)
        load_old(fd, slot, &p);
    ssize_t n = real_pwrite(fd, data, bytes, (off_t)offset);
    if (n > 0 && logged)
        log_piece(slot, &p, data, offset, (size_t)n);
    int error = errno;
    ar_unlock();
    errno = error;
    return n;
}

ssize_t ar_write_at(int fd, struct slot *slot, const void *data, size_t bytes, off_t offset)
{
    const size_t piece_max = (size_t)AR_PIECE_PAGES * page_bytes();
    size_t done = 0;
    if (offset < 0)
        return fail(EINVAL);
    if (((uint64_t)offset + bytes) / page_bytes() >= UINT32_MAX)
        return fail(EFBIG);
    while (done < bytes) {
        /* Pieces end where pages end: each page changes in one record. */
        size_t room = piece_max - ((uint64_t)offset + done) % page_bytes();
        size_t n = bytes - done < room ? bytes - done : room;
        ssize_t w = write_piece(fd, slot, (const uint8_t *)data + done, n, (uint64_t)offset + done);
        if (w <= 0)
            return done ? (ssize_t)done : w;
        done += (size_t)w;
        if ((size_t)w < n)
            break;
    }
    return (ssize_t)done;
}

/* A stdio stream has written from `offset` on behind our back: log what the local file holds now, as whole pages. */
void ar_capture(int fd, struct slot *slot, uint64_t offset)
{
    struct stat st;
    uint8_t image[AR_PAGE_BYTES_MAX];
    if (fstat(fd, &st) < 0)
        return;
    uint32_t end = ar_pages_of((uint64_t)st.st_size);
    for (uint32_t page = (uint32_t)(offset / page_bytes()); page < end; page++) {
        if (lock_placed(slot, page, page + 1) < 0)
            ar_die("no protection group for a file written through stdio");
        if (slot->dropped) {
            ar_unlock();
            return;
        }
        uint64_t upto = (uint64_t)(page + 1) * page_bytes();
        if (upto > (uint64_t)st.st_size)
            upto = (uint64_t)st.st_size;
        if (upto > slot->size)
            grow(slot, upto);
        ssize_t got = real_pread(fd, image, page_bytes(), (off_t)page * page_bytes());
        memset(image + (got > 0 ? got : 0), 0, page_bytes() - (size_t)(got > 0 ? got : 0));
        ar_append_page(slot, ar_chunk(slot, page / AR_EXTENT_PAGES), page, image, NULL, 0, page_bytes());
        ar_set_present(slot, page, page + 1);
        ar_unlock();
    }
}
