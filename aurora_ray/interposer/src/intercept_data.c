/* Interposed: reading, writing, making durable, sizing. */
#include "intercept.h"
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* ---- reading */

/* Repeats `call` until no eviction came between the look at the presence bits and the end of the call. */
#define READ_PRESENT(fd, slot, at, n, call)                                                                            \
    for (;;) {                                                                                                         \
        uint32_t evictions = atomic_load_explicit(&(slot)->evictions, memory_order_acquire);                           \
        if (ar_need(fd, slot, (uint64_t)(at), n) < 0)                                                                  \
            return -1;                                                                                                 \
        ssize_t got = call;                                                                                            \
        atomic_thread_fence(memory_order_acquire);                                                                     \
        if (atomic_load_explicit(&(slot)->evictions, memory_order_acquire) == evictions && ar_slot_of(fd) == (slot))   \
            return got;                                                                                                \
        if (!((slot) = ar_slot_of(fd)))                                                                                \
            return call;                                                                                               \
    }

ssize_t ar_pread(int fd, void *to, size_t n, off_t at)
{
    struct slot *slot = ar_slot_of(fd);
    if (!slot || at < 0)
        return real_pread(fd, to, n, at);
    ar_wait_if_ordered(slot);
    READ_PRESENT(fd, slot, at, n, real_pread(fd, to, n, at))
}

static size_t total(const struct iovec *v, int n)
{
    size_t sum = 0;
    for (int i = 0; i < n; i++)
        sum += v[i].iov_len;
    return sum;
}

static ssize_t preadv_any(int fd, const struct iovec *v, int n, off_t at)
{
    struct slot *slot = ar_slot_of(fd);
    if (!slot || at < 0)
        return real_preadv(fd, v, n, at);
    ar_wait_if_ordered(slot);
    READ_PRESENT(fd, slot, at, total(v, n), real_preadv(fd, v, n, at))
}

static ssize_t advance(int fd, off_t at, ssize_t n)
{
    if (n > 0)
        real_lseek(fd, at + n, SEEK_SET);
    return n;
}

ssize_t ar_read(int fd, void *to, size_t n)
{
    if (!ar_slot_of(fd))
        return real_read(fd, to, n);
    off_t at = real_lseek(fd, 0, SEEK_CUR);
    return advance(fd, at, ar_pread(fd, to, n, at));
}

AR_EXPORT ssize_t read(int fd, void *to, size_t n)
{
    ar_resolve_libc();
    return ar_read(fd, to, n);
}
AR_EXPORT ssize_t __read_chk(int fd, void *to, size_t n, size_t room)
{
    return ar_slot_of(fd) && n <= room ? ar_read(fd, to, n) : real___read_chk(fd, to, n, room);
}
AR_EXPORT ssize_t readv(int fd, const struct iovec *v, int n)
{
    if (!ar_slot_of(fd))
        return real_readv(fd, v, n);
    off_t at = real_lseek(fd, 0, SEEK_CUR);
    return advance(fd, at, preadv_any(fd, v, n, at));
}
AR_EXPORT ssize_t pread(int fd, void *to, size_t n, off_t at) { return ar_pread(fd, to, n, at); }
AR_EXPORT ssize_t pread64(int fd, void *to, size_t n, off_t at) { return ar_pread(fd, to, n, at); }
AR_EXPORT ssize_t __pread_chk(int fd, void *to, size_t n, off_t at, size_t room)
{
    return ar_slot_of(fd) && n <= room ? ar_pread(fd, to, n, at) : real___pread_chk(fd, to, n, at, room);
}
AR_EXPORT ssize_t __pread64_chk(int fd, void *to, size_t n, off_t at, size_t room)
{
    return ar_slot_of(fd) && n <= room ? ar_pread(fd, to, n, at) : real___pread64_chk(fd, to, n, at, room);
}
AR_EXPORT ssize_t preadv(int fd, const struct iovec *v, int n, off_t at) { return preadv_any(fd, v, n, at); }
AR_EXPORT ssize_t preadv64(int fd, const struct iovec *v, int n, off_t at) { return preadv_any(fd, v, n, at); }

AR_EXPORT ssize_t preadv2(int fd, const struct iovec *v, int n, off_t at, int flags)
{
    if (!ar_slot_of(fd))
        return real_preadv2(fd, v, n, at, flags);
    return at == -1 ? readv(fd, v, n) : preadv_any(fd, v, n, at);
}
AR_EXPORT ssize_t preadv64v2(int fd, const struct iovec *v, int n, off_t at, int flags)
{
    return preadv2(fd, v, n, at, flags);
}

/*
 * All of the file is here on return and stays: somebody reads it past this library. Returns 0, or -1 with errno.
 */
int ar_keep_present(int fd, struct slot *slot)
{
    ar_wait_if_ordered(slot);
    atomic_store(&slot->pinned, 1);
    return ar_need(fd, slot, 0, atomic_load(&slot->size));
}

/* A mapping that the kernel lets nobody make writable later (mprotect): it is of a descriptor that cannot write. */
static void *map_readable(void *hint, size_t n, int protection, int flags, int fd, off_t at)
{
    char link[64];
    int only_reads = real_openat(AT_FDCWD, ar_proc_link(fd, link), O_RDONLY | O_CLOEXEC);
    if (only_reads < 0)
        return MAP_FAILED;
    void *p = real_mmap(hint, n, protection, flags, only_reads, at);
    int error = errno;
    real_close(only_reads);
    errno = error;
    return p;
}

static void *mmap_any(void *hint, size_t n, int protection, int flags, int fd, off_t at)
{
    struct slot *slot = flags & MAP_ANONYMOUS ? NULL : ar_slot_of(fd);
    bool shared = (flags & MAP_TYPE) != MAP_PRIVATE;
    if (!slot)
        return real_mmap(hint, n, protection, flags, fd, at);
    if (shared && protection & PROT_WRITE) {
        errno = ENODEV; /* stores through a mapping cannot be seen, so they could not be logged */
        return MAP_FAILED;
    }
    ar_wait_if_ordered(slot);
    atomic_store(&slot->pinned, 1);
    if (ar_need(fd, slot, (uint64_t)at, n) < 0)
        return MAP_FAILED;
    return shared ? map_readable(hint, n, protection, flags, fd, at) : real_mmap(hint, n, protection, flags, fd, at);
}
AR_EXPORT void *mmap(void *hint, size_t n, int protection, int flags, int fd, off_t at)
{
    ar_resolve_libc();
    return mmap_any(hint, n, protection, flags, fd, at);
}
AR_EXPORT void *mmap64(void *hint, size_t n, int protection, int flags, int fd, off_t at)
{
    ar_resolve_libc();
    return mmap_any(hint, n, protection, flags, fd, at);
}

/* ---- writing */

static void after_write(int fd, struct slot *slot, ssize_t n)
{
    if (n > 0 && ar_fds[fd].flags & FD_DURABLE_WRITES)
        ar_wait_durable(atomic_load(&slot->last_lsn));
    ar_after_write(slot);
}

/* At the file's end, whatever others append at the same time; the descriptor's position is there afterwards. */
static ssize_t append(int fd, struct slot *slot, const void *from, size_t n, bool moves)
{
    off_t end = 0;
    ssize_t done = ar_write_end(fd, slot, from, n, &end);
    if (done > 0 && moves)
        real_lseek(fd, end, SEEK_SET);
    after_write(fd, slot, done);
    return done;
}

ssize_t ar_pwrite(int fd, const void *from, size_t n, off_t at)
{
    struct slot *slot = ar_slot_of(fd);
    if (!slot)
        return real_pwrite(fd, from, n, at);
    if (at >= 0 && ar_fds[fd].flags & FD_APPEND)
        return append(fd, slot, from, n, false);
    ssize_t done = ar_write_at(fd, slot, from, n, at);
    after_write(fd, slot, done);
    return done;
}

ssize_t ar_write(int fd, const void *from, size_t n)
{
    struct slot *slot = ar_slot_of(fd);
    if (!slot) {
        ar_before_leaving(fd);
        return real_write(fd, from, n);
    }
    if (ar_fds[fd].flags & FD_APPEND)
        return append(fd, slot, from, n, true);
    off_t at = real_lseek(fd, 0, SEEK_CUR);
    return advance(fd, at, ar_pwrite(fd, from, n, at));
}

enum spot { AT_POSITION, AT_OFFSET, AT_END };

static ssize_t write_placed(int fd, const void *from, size_t n, off_t at, enum spot spot)
{
    if (spot == AT_END)
        return append(fd, ar_slot_of(fd), from, n, at == -1);
    return spot == AT_OFFSET ? ar_pwrite(fd, from, n, at) : ar_write(fd, from, n);
}

/* Vectors are gathered: a write is compared and logged as one run of bytes. */
static ssize_t gathered(int fd, const struct iovec *v, int n, off_t at, enum spot spot)
{
    size_t bytes = total(v, n), done = 0;
    if (n == 1)
        return write_placed(fd, v->iov_base, bytes, at, spot);
    char *all = malloc(bytes ? bytes : 1);
    if (!all) {
        errno = ENOMEM;
        return -1;
    }
    for (int i = 0; i < n; i++) {
        memcpy(all + done, v[i].iov_base, v[i].iov_len);
        done += v[i].iov_len;
    }
    ssize_t result = write_placed(fd, all, bytes, at, spot);
    int error = errno;
    free(all);
    errno = error;
    return result;
}

static ssize_t pwritev_any(int fd, const struct iovec *v, int n, off_t at)
{
    return ar_slot_of(fd) && n > 0 ? gathered(fd, v, n, at, AT_OFFSET) : real_pwritev(fd, v, n, at);
}

AR_EXPORT ssize_t write(int fd, const void *from, size_t n)
{
    ar_resolve_libc();
    return ar_write(fd, from, n);
}
AR_EXPORT ssize_t writev(int fd, const struct iovec *v, int n)
{
    if (ar_slot_of(fd) && n > 0)
        return gathered(fd, v, n, 0, AT_POSITION);
    ar_before_leaving(fd);
    return real_writev(fd, v, n);
}
AR_EXPORT ssize_t pwrite(int fd, const void *from, size_t n, off_t at) { return ar_pwrite(fd, from, n, at); }
AR_EXPORT ssize_t pwrite64(int fd, const void *from, size_t n, off_t at) { return ar_pwrite(fd, from, n, at); }
AR_EXPORT ssize_t pwritev(int fd, const struct iovec *v, int n, off_t at) { return pwritev_any(fd, v, n, at); }
AR_EXPORT ssize_t pwritev64(int fd, const struct iovec *v, int n, off_t at) { return pwritev_any(fd, v, n, at); }

/* Of the flags, RWF_SYNC and RWF_DSYNC ask for durability; the others are hints. */
AR_EXPORT ssize_t pwritev2(int fd, const struct iovec *v, int n, off_t at, int flags)
{
    struct slot *slot = ar_slot_of(fd);
    if (!slot || n <= 0)
        return real_pwritev2(fd, v, n, at, flags);
    enum spot spot = flags & RWF_APPEND ? AT_END : at == -1 ? AT_POSITION : AT_OFFSET;
    ssize_t done = gathered(fd, v, n, at, spot);
    if (done > 0 && flags & (RWF_SYNC | RWF_DSYNC))
        ar_wait_durable(atomic_load(&slot->last_lsn));
    return done;
}
AR_EXPORT ssize_t pwritev64v2(int fd, const struct iovec *v, int n, off_t at, int flags)
{
    return pwritev2(fd, v, n, at, flags);
}

/* ---- durability */

/* A directory's fsync asks that the names in it last: they are in the log. */
static bool wait_for_fd(int fd)
{
    char out[PATH_MAX];
    struct stat st;
    struct slot *slot = ar_slot_of(fd);
    if (!slot && (!ar_active || real_fstat(fd, &st) < 0 || !S_ISDIR(st.st_mode) || !ar_path_of(fd, out)))
        return false;
    if (slot || !ar_order_names_only(fd))
        ar_wait_durable(slot ? atomic_load_explicit(&slot->last_lsn, memory_order_acquire) : ar_tail_lsn());
    return true;
}

AR_EXPORT int fsync(int fd)
{
    if (ar_capture_streams(fd) < 0)
        return -1;
    struct slot *slot = ar_slot_of(fd);
    if (slot && ar_order_only(fd, slot, false))
        return 0;
    return wait_for_fd(fd) ? 0 : real_fsync(fd);
}
AR_EXPORT int fdatasync(int fd)
{
    if (ar_capture_streams(fd) < 0)
        return -1;
    struct slot *slot = ar_slot_of(fd);
    if (slot && ar_order_only(fd, slot, true))
        return 0;
    return wait_for_fd(fd) ? 0 : real_fdatasync(fd);
}
AR_EXPORT int syncfs(int fd)
{
    if (ar_capture_streams(-1) < 0)
        return -1;
    if (ar_active)
        ar_wait_durable(ar_tail_lsn());
    return ar_slot_of(fd) || wait_for_fd(fd) ? 0 : real_syncfs(fd);
}
AR_EXPORT void sync(void)
{
    ar_capture_streams(-1);
    if (ar_active)
        ar_wait_durable(ar_tail_lsn());
    real_sync();
}
AR_EXPORT int sync_file_range(int fd, off_t at, off_t n, unsigned flags)
{
    return ar_slot_of(fd) ? 0 : real_sync_file_range(fd, at, n, flags);
}

/* ---- sizes */

static int ftruncate_any(int fd, off_t size)
{
    struct slot *slot = ar_slot_of(fd);
    return slot && size >= 0 ? ar_truncate(fd, slot, (uint64_t)size) : real_ftruncate(fd, size);
}
static int truncate_any(const char *path, off_t size)
{
    if (!ar_would_be_ours(AT_FDCWD, path, 0))
        return real_truncate(path, size);
    int fd = ar_open(AT_FDCWD, path, O_RDWR, 0);
    if (fd < 0)
        return -1;
    int result = ftruncate_any(fd, size), error = errno;
    close(fd);
    errno = error;
    return result;
}
static int fallocate_any(int fd, int mode, off_t at, off_t n)
{
    struct slot *slot = ar_slot_of(fd);
    if (!slot)
        return real_fallocate(fd, mode, at, n);
    if (mode) {
        errno = EOPNOTSUPP;
        return -1;
    }
    return ar_extend(fd, slot, (uint64_t)at, (uint64_t)n);
}
static int posix_fallocate_any(int fd, off_t at, off_t n)
{
    if (!ar_slot_of(fd))
        return real_posix_fallocate(fd, at, n);
    return fallocate_any(fd, 0, at, n) < 0 ? errno : 0;
}
AR_EXPORT int ftruncate(int fd, off_t size) { return ftruncate_any(fd, size); }
AR_EXPORT int ftruncate64(int fd, off_t size) { return ftruncate_any(fd, size); }
AR_EXPORT int truncate(const char *path, off_t size) { return truncate_any(path, size); }
AR_EXPORT int truncate64(const char *path, off_t size) { return truncate_any(path, size); }
AR_EXPORT int fallocate(int fd, int mode, off_t at, off_t n) { return fallocate_any(fd, mode, at, n); }
AR_EXPORT int fallocate64(int fd, int mode, off_t at, off_t n) { return fallocate_any(fd, mode, at, n); }
AR_EXPORT int posix_fallocate(int fd, off_t at, off_t n) { return posix_fallocate_any(fd, at, n); }
AR_EXPORT int posix_fallocate64(int fd, off_t at, off_t n) { return posix_fallocate_any(fd, at, n); }

static int fadvise_any(int fd, off_t at, off_t n, int advice)
{
    struct slot *slot = ar_slot_of(fd);
    if (slot && advice == POSIX_FADV_WILLNEED)
        ar_prefetch(fd, slot, (uint64_t)at, (uint64_t)n);
    return slot ? 0 : real_posix_fadvise(fd, at, n, advice);
}
AR_EXPORT int posix_fadvise(int fd, off_t at, off_t n, int advice) { return fadvise_any(fd, at, n, advice); }
AR_EXPORT int posix_fadvise64(int fd, off_t at, off_t n, int advice) { return fadvise_any(fd, at, n, advice); }
