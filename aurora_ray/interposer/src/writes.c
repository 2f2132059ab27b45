/*
 * What a write means to the log. The local file and the log change together, under the lock, page by page: when the
 * local file takes only part of a page, or cannot be read, the volume hears nothing of it.
 */
#include "aurora.h"
#include <errno.h>
#include <string.h>
#include <unistd.h>

/*
 * Used under the lock only, which one thread of all processes holds: so a process needs each of them once. They lie
 * neither on a stack nor in thread-local memory, since engines make their threads' stacks as small as they can.
 */
static uint8_t old_pages[(size_t)AR_PAGE_BYTES_MAX * AR_PIECE_PAGES];
static uint8_t one_page[AR_PAGE_BYTES_MAX];

struct piece { /* one step of a write: some pages, and what they were */
    uint32_t first, end;
    uint64_t size_before;
    uint64_t known; /* a bit a page of the piece: old_pages has what the page was */
};

static uint32_t page_bytes(void) { return ar_region->page_bytes; }

static int fail(int error)
{
    errno = error;
    return -1;
}

static bool read_fully(int fd, uint8_t *to, size_t bytes, uint64_t offset)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t n = real_pread(fd, to + done, bytes - done, (off_t)(offset + done));
        if (n <= 0 && !(n < 0 && errno == EINTR))
            return false; /* also where the local file ends too early: someone has changed it behind the log */
        done += n > 0 ? (size_t)n : 0;
    }
    return true;
}

static bool write_fully(int fd, const uint8_t *from, size_t bytes, uint64_t offset)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t n = real_pwrite(fd, from + done, bytes - done, (off_t)(offset + done));
        if (n <= 0 && !(n < 0 && errno == EINTR))
            return false;
        done += n > 0 ? (size_t)n : 0;
    }
    return true;
}

/* Loads what the piece's pages are. A page that cannot be read must not pass for one of zeros: -1 then, with EIO. */
static int load_old(int fd, struct slot *slot, struct piece *p)
{
    uint64_t start = (uint64_t)p->first * page_bytes();
    size_t held = 0;
    p->known = 0;
    for (uint32_t page = p->first; page < p->end; page++) {
        uint64_t at = (uint64_t)page * page_bytes(), end = at + page_bytes();
        bool beyond = at >= p->size_before, present = !beyond && ar_present(slot, page);
        if (present)
            held = (size_t)((end < p->size_before ? end : p->size_before) - start);
        if (beyond || present)
            p->known |= UINT64_C(1) << (page - p->first);
    }
    if (!read_fully(fd, old_pages, held, start))
        return fail(EIO);
    memset(old_pages + held, 0, (size_t)(p->end - p->first) * page_bytes() - held);
    return 0;
}

/* After the local write: one record a page, and the pages are present. */
static void log_piece(struct slot *slot, const struct piece *p, const uint8_t *data, uint64_t offset, size_t bytes)
{
    uint64_t end = offset + bytes;
    if (end > p->size_before)
        ar_grow(slot, end);
    for (uint32_t page = p->first; page < p->end && (uint64_t)page * page_bytes() < end; page++) {
        uint64_t start = (uint64_t)page * page_bytes();
        size_t from = offset > start ? offset - start : 0;
        size_t to = end - start < page_bytes() ? end - start : page_bytes();
        const uint8_t *old = old_pages + (size_t)(page - p->first) * page_bytes();
        bool known = p->known >> (page - p->first) & 1;
        const uint8_t *now = data + (start + from - offset);
        if (from || to < page_bytes()) { /* only what was compared need be right in between, unless it goes out full */
            if (!known)
                ar_die("part of a page was written whose rest nobody knows");
            memcpy(one_page, old, page_bytes());
            memcpy(one_page + from, now, to - from);
            now = one_page;
        }
        ar_append_page(slot, ar_chunk(slot, page / AR_EXTENT_PAGES), page, now, known ? old : NULL, from, to);
    }
    ar_set_present(slot, p->first, ar_pages_of(end));
}

/*
 * The local file took only the first `bytes` of the piece; its disk is full, perhaps. A page changes as a whole or not
 * at all, here and in the volume: what was taken of a page that was not taken up to its end is put back as it was.
 * Returns how many bytes stay written.
 */
static size_t take_back(int fd, const struct piece *p, uint64_t offset, size_t bytes)
{
    uint64_t end = offset + bytes, keep = end - end % page_bytes();
    if (keep < offset)
        keep = offset;
    uint64_t size = keep > offset && keep > p->size_before ? keep : p->size_before;
    uint32_t page = (uint32_t)(keep / page_bytes()) - p->first;
    uint64_t stop = end < p->size_before ? end : p->size_before;
    if (stop > keep && p->known >> page & 1 &&
        !write_fully(fd, old_pages + (keep - (uint64_t)p->first * page_bytes()), stop - keep, keep))
        ar_die("the local file has part of a page, and it cannot be put back as it was: is the disk full?");
    if (end > size && real_ftruncate(fd, (off_t)size) < 0)
        ar_die("the local file has part of a page behind its end, and it cannot be cut off");
    return (size_t)(keep - offset);
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

/* Pieces end where pages end: each page changes in one record. */
static size_t piece_at(uint64_t offset, size_t bytes)
{
    size_t room = (size_t)AR_PIECE_PAGES * page_bytes() - offset % page_bytes();
    return bytes < room ? bytes : room;
}

/* Takes the lock, with all that is needed for a write at *offset, or, with `at_end`, at what is then the file's end. */
static int lock_for_write(int fd, struct slot *slot, size_t bytes, uint64_t *offset, bool at_end, size_t *piece)
{
    for (;;) {
        uint64_t missing;
        if (at_end)
            *offset = atomic_load(&slot->size);
        *piece = piece_at(*offset, bytes);
        uint64_t end = *offset + *piece;
        if (end / page_bytes() >= UINT32_MAX)
            return fail(EFBIG);
        while (edge_missing(slot, *offset, end, &missing))
            if (ar_need(fd, slot, missing, 1) < 0)
                return -1;
        if (ar_lock_placed(slot, (uint32_t)(*offset / page_bytes()), ar_pages_of(end)) < 0)
            return -1;
        if (!edge_missing(slot, *offset, end, &missing) && !(at_end && *offset != atomic_load(&slot->size)))
            return 0;
        ar_unlock();
    }
}

/* Under the lock. Returns as pwrite does; what it returns is in the log. */
static ssize_t write_locked(int fd, struct slot *slot, const uint8_t *data, size_t bytes, uint64_t offset)
{
    struct piece p = {.first = (uint32_t)(offset / page_bytes()), .end = ar_pages_of(offset + bytes)};
    if (atomic_load(&slot->dropped))
        return real_pwrite(fd, data, bytes, (off_t)offset);
    p.size_before = atomic_load(&slot->size);
    if (load_old(fd, slot, &p) < 0)
        return -1;
    ssize_t n = real_pwrite(fd, data, bytes, (off_t)offset);
    if (n <= 0)
        return n;
    size_t kept = (size_t)n < bytes ? take_back(fd, &p, offset, (size_t)n) : bytes;
    if (!kept)
        return fail(ENOSPC);
    log_piece(slot, &p, data, offset, kept);
    return (ssize_t)kept;
}

/* Returns as pwrite does; with `at_end`, *offset is where the last piece went. Appends go on at the end as it then is. */
static ssize_t write_pieces(int fd, struct slot *slot, const uint8_t *data, size_t bytes, uint64_t *offset, bool at_end)
{
    size_t done = 0;
    while (done < bytes) {
        size_t piece;
        if (lock_for_write(fd, slot, bytes - done, offset, at_end, &piece) < 0)
            return done ? (ssize_t)done : -1;
        ssize_t n = write_locked(fd, slot, data + done, piece, *offset);
        int error = errno;
        ar_unlock();
        errno = error;
        if (n <= 0)
            return done ? (ssize_t)done : n;
        done += (size_t)n;
        *offset += (uint64_t)n;
        if ((size_t)n < piece)
            break;
    }
    return (ssize_t)done;
}

ssize_t ar_write_at(int fd, struct slot *slot, const void *data, size_t bytes, off_t offset)
{
    uint64_t at = (uint64_t)offset;
    ar_wait_settled(fd, slot, data, bytes, at);
    return offset < 0 ? fail(EINVAL) : write_pieces(fd, slot, data, bytes, &at, false);
}

/*
 * Appends where the file ends when the lock is held: of processes that append at once, none overwrites another's. *end
 * is then the end of what was written.
 */
ssize_t ar_write_end(int fd, struct slot *slot, const void *data, size_t bytes, off_t *end)
{
    uint64_t at = atomic_load(&slot->size);
    ssize_t n = write_pieces(fd, slot, data, bytes, &at, true);
    *end = (off_t)at;
    return n;
}

/* Under the lock. Returns 1, 0 behind the local file's end, or -1. */
static int capture_page(int fd, struct slot *slot, uint32_t page)
{
    struct stat st;
    uint64_t at = (uint64_t)page * page_bytes(), end = at + page_bytes();
    if (fstat(fd, &st) < 0)
        return -1;
    if (at >= (uint64_t)st.st_size)
        return 0;
    if (end > (uint64_t)st.st_size)
        end = (uint64_t)st.st_size;
    if (!read_fully(fd, one_page, (size_t)(end - at), at))
        return fail(EIO);
    memset(one_page + (end - at), 0, page_bytes() - (size_t)(end - at));
    if (end > slot->size)
        ar_grow(slot, end);
    ar_append_page(slot, ar_chunk(slot, page / AR_EXTENT_PAGES), page, one_page, NULL, 0, page_bytes());
    ar_set_present(slot, page, page + 1);
    return 1;
}

/* A stdio stream has written from `offset` on behind our back: log what the local file holds now, as whole pages. */
int ar_capture(int fd, struct slot *slot, uint64_t offset)
{
    int more = 1;
    for (uint32_t page = (uint32_t)(offset / page_bytes()); more > 0; page++) {
        if (ar_lock_placed(slot, page, page + 1) < 0)
            ar_die("no protection group for a file written through stdio");
        more = atomic_load(&slot->dropped) ? 0 : capture_page(fd, slot, page);
        int error = errno;
        ar_unlock();
        errno = error;
    }
    return more;
}
