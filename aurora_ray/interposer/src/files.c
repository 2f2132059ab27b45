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
    uint32_t page = (uint32_t)(offset / page_bytes());
    if (slot == &ar_lost)
        return fail(EIO);
    for (;;) {
        /* Looked at again each time: others may cut the file meanwhile, and what is behind its end never comes. */
        uint64_t size = atomic_load_explicit(&slot->size, memory_order_acquire);
        if (!bytes || offset >= size)
            return 0;
        uint32_t end = ar_pages_of(bytes < size - offset ? offset + bytes : size);
        while (page < end && ar_present(slot, page))
            page++;
        if (page >= end)
            return 0;
        uint32_t run = 1;
        while (page + run < end && !ar_present(slot, page + run))
            run++;
        atomic_fetch_add_explicit(&ar_region->counters.misses, 1, memory_order_relaxed);
        int error = ar_request(WANT_PAGES, slot, page, run, fd, true);
        if (error)
            return fail(error);
    }
}

void ar_prefetch(int fd, struct slot *slot, uint64_t offset, uint64_t bytes)
{
    uint64_t size = atomic_load(&slot->size);
    if (offset >= size || slot == &ar_lost)
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

/* Under the lock, with space. False: no protection group has room. */
bool ar_place_chunk(struct slot *slot, uint32_t number)
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
int ar_lock_placed(struct slot *slot, uint32_t first, uint32_t end)
{
    uint32_t chunk_first = first / AR_EXTENT_PAGES, chunk_end = chunks_of(end);
    for (;;) {
        ar_know_extents(slot, chunk_first, chunk_end);
        ar_lock_with_space((size_t)(end - first) * AR_PAGE_RECORD_BYTES_MAX + 4096);
        if (atomic_load(&slot->dropped))
            return 0;
        bool ready = true;
        for (uint32_t c = chunk_first; ready && c < chunk_end; c++)
            ready = !extents_unknown(slot, c) && ar_place_chunk(slot, c);
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

/* The file's newest record concerns pages [first, end): until it is durable, the volume may answer for them as before. */
static void note_change(struct slot *slot, uint32_t first, uint32_t end)
{
    uint64_t lsn = atomic_load(&slot->last_lsn);
    for (uint32_t c = first / AR_EXTENT_PAGES; c < chunks_of(end); c++) {
        struct chunk *chunk = ar_chunk(slot, c);
        if (chunk)
            atomic_store_explicit(&chunk->last_lsn, lsn, memory_order_release);
    }
}

void ar_log_size(struct slot *slot, uint64_t size) { append_size(REC_SIZE, slot, size, 0); }

/* Under the lock: the file has grown; what lies between is zeros, here and in the volume. */
void ar_grow(struct slot *slot, uint64_t size)
{
    uint64_t before = atomic_load(&slot->size);
    append_size(REC_SIZE, slot, size, 0);
    ar_set_present(slot, ar_pages_of(before), ar_pages_of(size));
    note_change(slot, ar_pages_of(before), ar_pages_of(size));
    ar_owe(slot, ar_pages_of(before), ar_pages_of(size));
    atomic_store_explicit(&slot->size, size, memory_order_release);
}

int ar_extend(int fd, struct slot *slot, uint64_t offset, uint64_t bytes)
{
    ar_lock_with_space(4096);
    int result = real_fallocate(fd, 0, (off_t)offset, (off_t)bytes);
    if (result < 0 && errno == EOPNOTSUPP && offset + bytes > slot->size)
        result = real_ftruncate(fd, (off_t)(offset + bytes));
    if (!result && offset + bytes > slot->size && !slot->dropped)
        ar_grow(slot, offset + bytes);
    ar_unlock();
    return result;
}

/* Calls `copy` once for each protection group other than 0 that has extents of the file from chunk `first` on. */
void ar_for_other_groups(struct slot *slot, uint32_t first, void (*copy)(struct slot *, uint32_t, uint64_t),
                             uint64_t argument)
{
    uint8_t seen[AR_GROUPS_MAX / 8] = {0};
    bool all = false; /* where an extent lies that was never asked for, nobody knows: any group may have it */
    uint32_t end = chunks_of(ar_pages_of(atomic_load(&slot->size)));
    for (uint32_t c = first; c < end; c++) {
        struct chunk *chunk = ar_chunk(slot, c);
        uint32_t g = chunk && ar_placed(chunk) ? chunk->group : 0;
        all |= extents_unknown(slot, c);
        if (g == 0 || seen[g / 8] & 1 << g % 8)
            continue;
        seen[g / 8] |= (uint8_t)(1 << g % 8);
        copy(slot, g, argument);
    }
    for (uint32_t g = 1; all && g < ar_region->ngroups; g++)
        if (!(seen[g / 8] & 1 << g % 8))
            copy(slot, g, argument);
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
        atomic_store(&chunk->owed, 0);
        ar_count_absent(slot, atomic_exchange(&chunk->present, 0));
    }
}

/*
 * The first chunk that a cut to `size` changes. It holds the page that is cut in two, if one is, or else the first page
 * that goes: rounded down, since the rest of that chunk's pages stay and its group must hear of the cut all the same.
 */
static uint32_t first_cut(uint64_t size) { return (uint32_t)(size / page_bytes() / AR_EXTENT_PAGES); }

static bool cut_is_known(struct slot *slot, uint64_t size)
{
    for (uint32_t c = first_cut(size); c < slot->mounted_extents; c++)
        if (extents_unknown(slot, c))
            return false;
    return true;
}

/* Under the lock, with space, and the file's placement known: it is shorter now. */
void ar_shrink(struct slot *slot, uint64_t size)
{
    uint32_t pages = ar_pages_of(size), pages_before = ar_pages_of(atomic_load(&slot->size));
    append_size(REC_TRUNCATE, slot, size, 0);
    ar_for_other_groups(slot, first_cut(size), copy_truncate, size);
    note_change(slot, (uint32_t)(size / page_bytes()), pages_before);
    free_chunks(slot, chunks_of(pages));
    struct chunk *last = pages % AR_EXTENT_PAGES ? ar_chunk(slot, pages / AR_EXTENT_PAGES) : NULL;
    if (last) {
        uint64_t keep = (UINT64_C(1) << pages % AR_EXTENT_PAGES) - 1;
        ar_count_absent(slot, atomic_fetch_and(&last->present, keep) & ~keep);
        atomic_fetch_and(&last->owed, keep);
    }
    if (size % page_bytes())
        ar_owe(slot, pages - 1, pages);
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
        ar_know_extents(slot, first_cut(size), slot->mounted_extents);
        ar_lock_with_space(4096 + (size_t)ar_region->ngroups * 40);
        bool whole = !(size % page_bytes()) || size >= slot->size || ar_present(slot, (uint32_t)(size / page_bytes()));
        if (slot->dropped || (whole && cut_is_known(slot, size)))
            break;
        ar_unlock();
    }
    int result = real_ftruncate(fd, (off_t)size);
    if (!result && !slot->dropped) {
        if (size > slot->size)
            ar_grow(slot, size);
        else if (size < slot->size)
            ar_shrink(slot, size);
    }
    ar_unlock();
    return result;
}
