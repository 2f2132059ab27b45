/*
 * The libc functions as the engine sees them. Each looks whether the call concerns the mount; if not, it is the libc's
 * own. What is tracked: descriptors of durable files (a slot each) and of directories under the mount.
 */
#include "aurora.h"
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#define DEFINE(result, name, parameters) result(*real_##name) parameters;
LIBC_CALLS(DEFINE)
#undef DEFINE

#define FD_MAX 65536
enum { FD_DURABLE_WRITES = 1, FD_APPEND = 2 };
struct tracked {
    int32_t slot; /* 0: not ours; slot + 1: a file; -1: a directory under the mount */
    uint8_t flags;
};
static struct tracked fds[FD_MAX];
static char mount_path[PATH_MAX], working_directory[PATH_MAX];
static size_t mount_length;
static bool active;

static void resolve_all(void)
{
#define RESOLVE(result, name, parameters)                                                                              \
    {                                                                                                                  \
        void *address = dlsym(RTLD_NEXT, #name);                                                                       \
        memcpy(&real_##name, &address, sizeof address);                                                                \
    }
    LIBC_CALLS(RESOLVE)
#undef RESOLVE
    /* Not a tail call: dlsym finds RTLD_NEXT by its caller's return address. */
    __asm__ volatile("" ::: "memory");
}

void ar_resolve_libc(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, resolve_all);
}

static int environment_fd(const char *name)
{
    const char *value = getenv(name);
    return value ? atoi(value) : -1;
}

__attribute__((constructor)) static void begin(void)
{
    ar_resolve_libc();
    const char *mount = getenv("AURORA_MOUNT");
    int region_fd = environment_fd("AURORA_REGION_FD");
    struct stat st;
    if (!mount || region_fd < 0 || fstat(region_fd, &st) < 0)
        return;
    void *p = real_mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, region_fd, 0);
    if (p == MAP_FAILED || ((struct region *)p)->magic != AR_MAGIC)
        return;
    ar_bell_fd = environment_fd("AURORA_BELL_FD");
    ar_life_fd = environment_fd("AURORA_LIFE_FD");
    mount_length = strlen(mount);
    memcpy(mount_path, mount, mount_length + 1);
    if (!getcwd(working_directory, sizeof working_directory))
        working_directory[0] = 0;
    ar_attach(p);
    const char *driver = getenv("AURORA_DRIVER_PID");
    if (driver && getppid() == atoi(driver)) /* the engine's first process dies with the driver; its children follow */
        prctl(PR_SET_PDEATHSIG, SIGKILL);
    active = true;
    ar_check_state();
}

/* ---- paths */

/* Writes `path` seen from `base` into `out`, absolute, without ".", ".." and doubled slashes. */
static bool normalise(const char *base, const char *path, char out[PATH_MAX])
{
    size_t n = 0;
    const char *parts[2] = {path[0] == '/' ? "" : base, path};
    for (int i = 0; i < 2; i++)
        for (const char *p = parts[i]; *p;) {
            size_t length = strcspn(p, "/");
            if (length == 2 && p[0] == '.' && p[1] == '.') {
                while (n && out[--n] != '/')
                    ;
            } else if (length && !(length == 1 && p[0] == '.')) {
                if (n + length + 2 > PATH_MAX)
                    return false;
                out[n++] = '/';
                memcpy(out + n, p, length);
                n += length;
            }
            p += length + (p[length] == '/');
        }
    out[n] = 0;
    return true;
}

/* The path relative to the mount if it lies under it (the mount itself: ""), else NULL. */
static const char *under_mount(int dir, const char *path, char out[PATH_MAX])
{
    char base[PATH_MAX], link[64];
    if (!active || !path)
        return NULL;
    const char *from = working_directory;
    if (path[0] != '/' && dir != AT_FDCWD) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", dir);
        ssize_t n = readlink(link, base, sizeof base - 1);
        if (n <= 0)
            return NULL;
        base[n] = 0;
        from = base;
    }
    if (!normalise(from, path, out) || strncmp(out, mount_path, mount_length))
        return NULL;
    if (out[mount_length] == '/')
        return out + mount_length + 1;
    return out[mount_length] ? NULL : out + mount_length;
}

/* The same for paths whose changes are logged. */
static const char *durable(int dir, const char *path, char out[PATH_MAX])
{
    const char *local = under_mount(dir, path, out);
    return local && *local && !ar_is_volatile(local) ? local : NULL;
}

/* ---- descriptors */

static struct slot *slot_of(int fd)
{
    return active && fd >= 0 && fd < FD_MAX && fds[fd].slot > 0 ? ar_slot((uint32_t)fds[fd].slot - 1) : NULL;
}

static void track(int fd, int32_t slot, uint8_t flags)
{
    if (active && fd >= 0 && fd < FD_MAX)
        fds[fd] = (struct tracked){slot, flags};
}

static int track_copy(int from, int to)
{
    if (active && to >= 0 && to < FD_MAX)
        fds[to] = from >= 0 && from < FD_MAX ? fds[from] : (struct tracked){0};
    return to;
}

static void after_write(int fd, struct slot *slot, ssize_t n)
{
    if (n > 0 && fds[fd].flags & FD_DURABLE_WRITES)
        ar_wait_durable(atomic_load(&slot->last_lsn));
}

/* ---- opening */

static int open_existing(int dir, const char *path, int flags)
{
    int plain = flags & ~(O_CREAT | O_EXCL | O_TRUNC | O_SYNC | O_DSYNC | O_DIRECT);
    /* Differences need the old content: a descriptor for writing can also read here. */
    if ((flags & O_ACCMODE) == O_WRONLY) {
        int fd = real_openat(dir, path, (plain & ~O_ACCMODE) | O_RDWR);
        if (fd >= 0 || errno != EACCES)
            return fd;
    }
    return real_openat(dir, path, plain);
}

static int adopt(int fd, int flags)
{
    struct stat st;
    if (fd < 0 || fstat(fd, &st) < 0)
        return fd;
    if (fd >= FD_MAX) {
        real_close(fd);
        errno = EMFILE;
        return -1;
    }
    struct slot *slot = S_ISREG(st.st_mode) ? ar_find(st.st_ino) : NULL;
    uint8_t how = (flags & (O_SYNC | O_DSYNC) ? FD_DURABLE_WRITES : 0) | (flags & O_APPEND ? FD_APPEND : 0);
    track(fd, S_ISDIR(st.st_mode) ? -1 : slot ? (int32_t)ar_slot_index(slot) + 1 : 0, how);
    if (slot && flags & O_TRUNC && ar_truncate(fd, slot, 0) < 0) {
        real_close(fd);
        return -1;
    }
    return fd;
}

static int open_any(int dir, const char *path, int flags, mode_t mode)
{
    char out[PATH_MAX];
    const char *local = flags & O_PATH || (flags & O_TMPFILE) == O_TMPFILE ? NULL : durable(dir, path, out);
    if (!local) {
        int fd = real_openat(dir, path, flags, mode);
        bool directory = fd >= 0 && active && flags & O_DIRECTORY && under_mount(dir, path, out);
        track(fd, directory ? -1 : 0, 0);
        if (fd >= 0 && !directory && under_mount(dir, path, out) && !*under_mount(dir, path, out))
            track(fd, -1, 0);
        return fd;
    }
    for (;;) {
        if (!(flags & O_CREAT && flags & O_EXCL)) {
            int fd = open_existing(dir, path, flags);
            if (fd >= 0 || errno != ENOENT || !(flags & O_CREAT))
                return adopt(fd, flags);
        }
        struct slot *slot = NULL;
        int plain = (flags & ~(O_SYNC | O_DSYNC | O_DIRECT | O_ACCMODE | O_TRUNC)) |
                    ((flags & O_ACCMODE) == O_WRONLY ? O_RDWR : flags & O_ACCMODE);
        int fd = ar_create(dir, path, local, plain, mode, &slot);
        if (fd >= 0)
            return adopt(fd, flags & ~O_TRUNC);
        if (errno != EEXIST || flags & O_EXCL)
            return -1;
    }
}

#define MODE_OF(last)                                                                                                  \
    mode_t mode = 0;                                                                                                   \
    if (last & (O_CREAT | __O_TMPFILE)) {                                                                              \
        va_list a;                                                                                                     \
        va_start(a, last);                                                                                             \
        mode = va_arg(a, mode_t);                                                                                      \
        va_end(a);                                                                                                     \
    }
AR_EXPORT int open(const char *path, int flags, ...)
{
    MODE_OF(flags)
    ar_resolve_libc();
    return open_any(AT_FDCWD, path, flags, mode);
}
AR_EXPORT int open64(const char *path, int flags, ...)
{
    MODE_OF(flags)
    ar_resolve_libc();
    return open_any(AT_FDCWD, path, flags, mode);
}
AR_EXPORT int openat(int dir, const char *path, int flags, ...)
{
    MODE_OF(flags)
    return open_any(dir, path, flags, mode);
}
AR_EXPORT int openat64(int dir, const char *path, int flags, ...)
{
    MODE_OF(flags)
    return open_any(dir, path, flags, mode);
}
AR_EXPORT int __open_2(const char *path, int flags) { return open_any(AT_FDCWD, path, flags, 0); }
AR_EXPORT int __open64_2(const char *path, int flags) { return open_any(AT_FDCWD, path, flags, 0); }
AR_EXPORT int __openat_2(int dir, const char *path, int flags) { return open_any(dir, path, flags, 0); }
AR_EXPORT int __openat64_2(int dir, const char *path, int flags) { return open_any(dir, path, flags, 0); }
AR_EXPORT int creat(const char *path, mode_t mode)
{
    return open_any(AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, mode);
}
AR_EXPORT int creat64(const char *path, mode_t mode)
{
    return open_any(AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, mode);
}

AR_EXPORT int close(int fd)
{
    ar_resolve_libc();
    if (active && (fd == ar_bell_fd || fd == ar_life_fd)) {
        errno = EBADF; /* somebody closes all descriptors he does not know; ours must stay */
        return -1;
    }
    track(fd, 0, 0);
    return real_close(fd);
}
AR_EXPORT int dup(int fd) { return track_copy(fd, real_dup(fd)); }
AR_EXPORT int dup2(int from, int to) { return track_copy(from, real_dup2(from, to)); }
AR_EXPORT int dup3(int from, int to, int flags) { return track_copy(from, real_dup3(from, to, flags)); }

static int fcntl_any(int fd, int command, void *argument)
{
    int result = real_fcntl(fd, command, argument);
    return command == F_DUPFD || command == F_DUPFD_CLOEXEC ? track_copy(fd, result) : result;
}
#define FCNTL_ARGUMENT                                                                                                 \
    va_list a;                                                                                                         \
    va_start(a, command);                                                                                              \
    void *argument = va_arg(a, void *);                                                                                \
    va_end(a);                                                                                                         \
    ar_resolve_libc();
AR_EXPORT int fcntl(int fd, int command, ...)
{
    FCNTL_ARGUMENT
    return fcntl_any(fd, command, argument);
}
AR_EXPORT int fcntl64(int fd, int command, ...)
{
    FCNTL_ARGUMENT
    return fcntl_any(fd, command, argument);
}

/* ---- reading */

/* Repeats `call` until no eviction came between the look at the presence bits and the end of the call. */
#define READ_PRESENT(fd, slot, at, n, call)                                                                            \
    for (;;) {                                                                                                         \
        uint32_t evictions = atomic_load_explicit(&(slot)->evictions, memory_order_acquire);                           \
        if (ar_need(fd, slot, (uint64_t)(at), n) < 0)                                                                  \
            return -1;                                                                                                 \
        ssize_t got = call;                                                                                            \
        atomic_thread_fence(memory_order_acquire);                                                                     \
        if (atomic_load_explicit(&(slot)->evictions, memory_order_acquire) == evictions)                               \
            return got;                                                                                                \
    }

static ssize_t pread_any(int fd, void *to, size_t n, off_t at)
{
    struct slot *slot = slot_of(fd);
    if (!slot || at < 0)
        return real_pread(fd, to, n, at);
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
    struct slot *slot = slot_of(fd);
    if (!slot || at < 0)
        return real_preadv(fd, v, n, at);
    READ_PRESENT(fd, slot, at, total(v, n), real_preadv(fd, v, n, at))
}

static ssize_t advance(int fd, off_t at, ssize_t n)
{
    if (n > 0)
        lseek(fd, at + n, SEEK_SET);
    return n;
}

static ssize_t read_any(int fd, void *to, size_t n)
{
    if (!slot_of(fd))
        return real_read(fd, to, n);
    off_t at = lseek(fd, 0, SEEK_CUR);
    return advance(fd, at, pread_any(fd, to, n, at));
}

AR_EXPORT ssize_t read(int fd, void *to, size_t n)
{
    ar_resolve_libc();
    return read_any(fd, to, n);
}
AR_EXPORT ssize_t __read_chk(int fd, void *to, size_t n, size_t room)
{
    return slot_of(fd) && n <= room ? read_any(fd, to, n) : real___read_chk(fd, to, n, room);
}
AR_EXPORT ssize_t readv(int fd, const struct iovec *v, int n)
{
    if (!slot_of(fd))
        return real_readv(fd, v, n);
    off_t at = lseek(fd, 0, SEEK_CUR);
    return advance(fd, at, preadv_any(fd, v, n, at));
}
AR_EXPORT ssize_t pread(int fd, void *to, size_t n, off_t at) { return pread_any(fd, to, n, at); }
AR_EXPORT ssize_t pread64(int fd, void *to, size_t n, off_t at) { return pread_any(fd, to, n, at); }
AR_EXPORT ssize_t __pread_chk(int fd, void *to, size_t n, off_t at, size_t room)
{
    return slot_of(fd) && n <= room ? pread_any(fd, to, n, at) : real___pread_chk(fd, to, n, at, room);
}
AR_EXPORT ssize_t __pread64_chk(int fd, void *to, size_t n, off_t at, size_t room)
{
    return slot_of(fd) && n <= room ? pread_any(fd, to, n, at) : real___pread64_chk(fd, to, n, at, room);
}
AR_EXPORT ssize_t preadv(int fd, const struct iovec *v, int n, off_t at) { return preadv_any(fd, v, n, at); }
AR_EXPORT ssize_t preadv64(int fd, const struct iovec *v, int n, off_t at) { return preadv_any(fd, v, n, at); }

AR_EXPORT ssize_t preadv2(int fd, const struct iovec *v, int n, off_t at, int flags)
{
    if (!slot_of(fd))
        return real_preadv2(fd, v, n, at, flags);
    return at == -1 ? readv(fd, v, n) : preadv_any(fd, v, n, at);
}
AR_EXPORT ssize_t preadv64v2(int fd, const struct iovec *v, int n, off_t at, int flags)
{
    return preadv2(fd, v, n, at, flags);
}

static void *mmap_any(void *hint, size_t n, int protection, int flags, int fd, off_t at)
{
    struct slot *slot = flags & MAP_ANONYMOUS ? NULL : slot_of(fd);
    if (slot && (flags & MAP_TYPE) != MAP_PRIVATE && protection & PROT_WRITE) {
        errno = ENODEV; /* stores through a mapping cannot be seen, so they could not be logged */
        return MAP_FAILED;
    }
    if (slot) {
        atomic_store(&slot->pinned, 1);
        if (ar_need(fd, slot, (uint64_t)at, n) < 0)
            return MAP_FAILED;
    }
    return real_mmap(hint, n, protection, flags, fd, at);
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

static ssize_t pwrite_any(int fd, const void *from, size_t n, off_t at)
{
    struct slot *slot = slot_of(fd);
    if (!slot)
        return real_pwrite(fd, from, n, at);
    if (fds[fd].flags & FD_APPEND)
        at = (off_t)atomic_load(&slot->size);
    ssize_t done = ar_write_at(fd, slot, from, n, at);
    after_write(fd, slot, done);
    return done;
}

static ssize_t write_any(int fd, const void *from, size_t n)
{
    struct slot *slot = slot_of(fd);
    if (!slot)
        return real_write(fd, from, n);
    off_t at = fds[fd].flags & FD_APPEND ? (off_t)atomic_load(&slot->size) : lseek(fd, 0, SEEK_CUR);
    return advance(fd, at, pwrite_any(fd, from, n, at));
}

/* Vectors are gathered: a write is compared and logged as one run of bytes. */
static ssize_t gathered(int fd, const struct iovec *v, int n, off_t at, bool positioned)
{
    size_t bytes = total(v, n), done = 0;
    if (n == 1)
        return positioned ? pwrite_any(fd, v->iov_base, bytes, at) : write_any(fd, v->iov_base, bytes);
    char *all = malloc(bytes ? bytes : 1);
    if (!all) {
        errno = ENOMEM;
        return -1;
    }
    for (int i = 0; i < n; i++) {
        memcpy(all + done, v[i].iov_base, v[i].iov_len);
        done += v[i].iov_len;
    }
    ssize_t result = positioned ? pwrite_any(fd, all, bytes, at) : write_any(fd, all, bytes);
    int error = errno;
    free(all);
    errno = error;
    return result;
}

static ssize_t pwritev_any(int fd, const struct iovec *v, int n, off_t at)
{
    return slot_of(fd) && n > 0 ? gathered(fd, v, n, at, true) : real_pwritev(fd, v, n, at);
}

AR_EXPORT ssize_t write(int fd, const void *from, size_t n)
{
    ar_resolve_libc();
    return write_any(fd, from, n);
}
AR_EXPORT ssize_t writev(int fd, const struct iovec *v, int n)
{
    return slot_of(fd) && n > 0 ? gathered(fd, v, n, 0, false) : real_writev(fd, v, n);
}
AR_EXPORT ssize_t pwrite(int fd, const void *from, size_t n, off_t at) { return pwrite_any(fd, from, n, at); }
AR_EXPORT ssize_t pwrite64(int fd, const void *from, size_t n, off_t at) { return pwrite_any(fd, from, n, at); }
AR_EXPORT ssize_t pwritev(int fd, const struct iovec *v, int n, off_t at) { return pwritev_any(fd, v, n, at); }
AR_EXPORT ssize_t pwritev64(int fd, const struct iovec *v, int n, off_t at) { return pwritev_any(fd, v, n, at); }

/* Of the flags, RWF_SYNC and RWF_DSYNC ask for durability; the others are hints. */
AR_EXPORT ssize_t pwritev2(int fd, const struct iovec *v, int n, off_t at, int flags)
{
    struct slot *slot = slot_of(fd);
    if (!slot || n <= 0)
        return real_pwritev2(fd, v, n, at, flags);
    if (flags & RWF_APPEND)
        at = (off_t)atomic_load(&slot->size);
    ssize_t done = gathered(fd, v, n, at, at != -1);
    if (done > 0 && flags & (RWF_SYNC | RWF_DSYNC))
        ar_wait_durable(atomic_load(&slot->last_lsn));
    return done;
}
AR_EXPORT ssize_t pwritev64v2(int fd, const struct iovec *v, int n, off_t at, int flags)
{
    return pwritev2(fd, v, n, at, flags);
}

/* Copies inside the kernel would be invisible; these go through memory when either side is ours. */
static ssize_t copy_through(int in, off_t *in_at, int out, off_t *out_at, size_t n)
{
    static __thread char buffer[65536];
    size_t done = 0;
    while (done < n) {
        size_t want = n - done < sizeof buffer ? n - done : sizeof buffer;
        ssize_t got = in_at ? pread_any(in, buffer, want, *in_at) : read_any(in, buffer, want);
        if (got <= 0)
            return done ? (ssize_t)done : got;
        ssize_t put = out_at ? pwrite_any(out, buffer, (size_t)got, *out_at) : write_any(out, buffer, (size_t)got);
        if (put < 0)
            return done ? (ssize_t)done : put;
        if (in_at)
            *in_at += put;
        else if (put < got)
            lseek(in, put - got, SEEK_CUR);
        if (out_at)
            *out_at += put;
        done += (size_t)put;
        if (put < got)
            break;
    }
    return (ssize_t)done;
}

AR_EXPORT ssize_t copy_file_range(int in, off_t *in_at, int out, off_t *out_at, size_t n, unsigned flags)
{
    if (!slot_of(in) && !slot_of(out))
        return real_copy_file_range(in, in_at, out, out_at, n, flags);
    return copy_through(in, in_at, out, out_at, n);
}
AR_EXPORT ssize_t sendfile(int out, int in, off_t *at, size_t n)
{
    return slot_of(in) || slot_of(out) ? copy_through(in, at, out, NULL, n) : real_sendfile(out, in, at, n);
}
AR_EXPORT ssize_t sendfile64(int out, int in, off_t *at, size_t n)
{
    return slot_of(in) || slot_of(out) ? copy_through(in, at, out, NULL, n) : real_sendfile64(out, in, at, n);
}

/* ---- durability */

static bool wait_for_fd(int fd)
{
    if (!active || fd < 0 || fd >= FD_MAX || !fds[fd].slot)
        return false;
    struct slot *slot = slot_of(fd);
    ar_wait_durable(slot ? atomic_load_explicit(&slot->last_lsn, memory_order_acquire) : ar_tail_lsn());
    return true;
}

static void capture_streams(int fd);
AR_EXPORT int fsync(int fd)
{
    capture_streams(fd);
    return wait_for_fd(fd) ? 0 : real_fsync(fd);
}
AR_EXPORT int fdatasync(int fd)
{
    capture_streams(fd);
    return wait_for_fd(fd) ? 0 : real_fdatasync(fd);
}
AR_EXPORT int syncfs(int fd)
{
    capture_streams(-1);
    if (active)
        ar_wait_durable(ar_tail_lsn());
    return active && fd >= 0 && fd < FD_MAX && fds[fd].slot ? 0 : real_syncfs(fd);
}
AR_EXPORT void sync(void)
{
    capture_streams(-1);
    if (active)
        ar_wait_durable(ar_tail_lsn());
    real_sync();
}
AR_EXPORT int sync_file_range(int fd, off_t at, off_t n, unsigned flags)
{
    return slot_of(fd) ? 0 : real_sync_file_range(fd, at, n, flags);
}

/* ---- sizes */

static int ftruncate_any(int fd, off_t size)
{
    struct slot *slot = slot_of(fd);
    return slot && size >= 0 ? ar_truncate(fd, slot, (uint64_t)size) : real_ftruncate(fd, size);
}
static int truncate_any(const char *path, off_t size)
{
    char out[PATH_MAX];
    if (!durable(AT_FDCWD, path, out))
        return real_truncate(path, size);
    int fd = open_any(AT_FDCWD, path, O_RDWR, 0);
    if (fd < 0)
        return -1;
    int result = ftruncate_any(fd, size), error = errno;
    close(fd);
    errno = error;
    return result;
}
static int fallocate_any(int fd, int mode, off_t at, off_t n)
{
    struct slot *slot = slot_of(fd);
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
    if (!slot_of(fd))
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
    struct slot *slot = slot_of(fd);
    if (slot && advice == POSIX_FADV_WILLNEED)
        ar_prefetch(fd, slot, (uint64_t)at, (uint64_t)n);
    return slot ? 0 : real_posix_fadvise(fd, at, n, advice);
}
AR_EXPORT int posix_fadvise(int fd, off_t at, off_t n, int advice) { return fadvise_any(fd, at, n, advice); }
AR_EXPORT int posix_fadvise64(int fd, off_t at, off_t n, int advice) { return fadvise_any(fd, at, n, advice); }

/* ---- names */

/* A change of the tree that is one local call and one record. */
#define LOGGED(local, call, type, file_id, mode, first, second)                                                        \
    {                                                                                                                  \
        ar_lock_with_space(4 * 4096);                                                                                  \
        int result = call, error = errno;                                                                              \
        if (!result)                                                                                                   \
            ar_name_record(type, file_id, mode, first, second);                                                        \
        ar_unlock();                                                                                                   \
        errno = error;                                                                                                 \
        return result;                                                                                                 \
    }

static int unlink_any(int dir, const char *path)
{
    char out[PATH_MAX];
    const char *local = durable(dir, path, out);
    return local ? ar_unlink(dir, path, local) : real_unlinkat(dir, path, 0);
}
static int rmdir_any(int dir, const char *path)
{
    char out[PATH_MAX];
    const char *local = durable(dir, path, out);
    if (!local)
        return real_unlinkat(dir, path, AT_REMOVEDIR);
    LOGGED(local, real_unlinkat(dir, path, AT_REMOVEDIR), REC_RMDIR, 0, 0, local, NULL)
}
AR_EXPORT int unlink(const char *path) { return unlink_any(AT_FDCWD, path); }
AR_EXPORT int unlinkat(int dir, const char *path, int flags)
{
    return flags & AT_REMOVEDIR ? rmdir_any(dir, path) : unlink_any(dir, path);
}
AR_EXPORT int rmdir(const char *path) { return rmdir_any(AT_FDCWD, path); }
AR_EXPORT int remove(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0 && S_ISDIR(st.st_mode) ? rmdir_any(AT_FDCWD, path) : unlink_any(AT_FDCWD, path);
}

/* What was not logged so far becomes durable under its new name: its whole content goes into the log. */
static int rename_into(int from_dir, const char *from, int to_dir, const char *to)
{
    struct stat st;
    char buffer[65536];
    if (fstatat(from_dir, from, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return -1;
    if (!S_ISREG(st.st_mode)) {
        errno = EXDEV;
        return -1;
    }
    int in = real_openat(from_dir, from, O_RDONLY);
    int out = in < 0 ? -1 : open_any(to_dir, to, O_RDWR | O_CREAT | O_TRUNC, st.st_mode & 07777);
    ssize_t n = out < 0 ? -1 : 0;
    while (out >= 0 && (n = real_read(in, buffer, sizeof buffer)) > 0)
        if (write_any(out, buffer, (size_t)n) != n)
            break;
    int error = errno;
    if (in >= 0)
        real_close(in);
    if (out >= 0)
        close(out);
    errno = error;
    return n ? -1 : real_unlinkat(from_dir, from, 0);
}

static int rename_any(int from_dir, const char *from, int to_dir, const char *to)
{
    char from_out[PATH_MAX], to_out[PATH_MAX];
    const char *from_local = durable(from_dir, from, from_out), *to_local = durable(to_dir, to, to_out);
    if (from_local && to_local)
        return ar_rename(from_dir, from, from_local, to_dir, to, to_local);
    if (to_local)
        return rename_into(from_dir, from, to_dir, to);
    if (from_local) {
        errno = EXDEV; /* callers copy and unlink then */
        return -1;
    }
    return real_renameat(from_dir, from, to_dir, to);
}
AR_EXPORT int rename(const char *from, const char *to) { return rename_any(AT_FDCWD, from, AT_FDCWD, to); }
AR_EXPORT int renameat(int from_dir, const char *from, int to_dir, const char *to)
{
    return rename_any(from_dir, from, to_dir, to);
}
AR_EXPORT int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags)
{
    char a[PATH_MAX], b[PATH_MAX];
    if (!flags)
        return rename_any(from_dir, from, to_dir, to);
    if (durable(from_dir, from, a) || durable(to_dir, to, b)) {
        errno = EINVAL; /* as on file systems that do not know the flag */
        return -1;
    }
    return real_renameat2(from_dir, from, to_dir, to, flags);
}

AR_EXPORT int link(const char *from, const char *to)
{
    char a[PATH_MAX], b[PATH_MAX];
    const char *from_local = durable(AT_FDCWD, from, a), *to_local = durable(AT_FDCWD, to, b);
    if (!from_local != !to_local) {
        errno = EXDEV;
        return -1;
    }
    return from_local ? ar_link(from, from_local, to, to_local) : real_link(from, to);
}
AR_EXPORT int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags)
{
    char a[PATH_MAX], b[PATH_MAX];
    if (from_dir == AT_FDCWD && to_dir == AT_FDCWD && !flags)
        return link(from, to);
    if (durable(from_dir, from, a) || durable(to_dir, to, b)) {
        errno = EXDEV;
        return -1;
    }
    return real_linkat(from_dir, from, to_dir, to, flags);
}

AR_EXPORT int symlinkat(const char *target, int dir, const char *path)
{
    char out[PATH_MAX];
    const char *local = durable(dir, path, out);
    if (!local)
        return real_symlinkat(target, dir, path);
    LOGGED(local, real_symlinkat(target, dir, path), REC_SYMLINK, 0, 0, target, local)
}
AR_EXPORT int symlink(const char *target, const char *path) { return symlinkat(target, AT_FDCWD, path); }

AR_EXPORT int mkdirat(int dir, const char *path, mode_t mode)
{
    char out[PATH_MAX];
    const char *local = durable(dir, path, out);
    if (!local)
        return real_mkdirat(dir, path, mode);
    LOGGED(local, real_mkdirat(dir, path, mode), REC_MKDIR, 0, mode & 07777, local, NULL)
}
AR_EXPORT int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

AR_EXPORT int fchmodat(int dir, const char *path, mode_t mode, int flags)
{
    char out[PATH_MAX];
    const char *local = durable(dir, path, out);
    if (!local)
        return real_fchmodat(dir, path, mode, flags);
    LOGGED(local, real_fchmodat(dir, path, mode, flags), REC_CHMOD, 0, mode & 07777, local, NULL)
}
AR_EXPORT int chmod(const char *path, mode_t mode)
{
    char out[PATH_MAX];
    return durable(AT_FDCWD, path, out) ? fchmodat(AT_FDCWD, path, mode, 0) : real_chmod(path, mode);
}
AR_EXPORT int fchmod(int fd, mode_t mode)
{
    char link[64], path[PATH_MAX];
    if (!slot_of(fd))
        return real_fchmod(fd, mode);
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n <= 0)
        return real_fchmod(fd, mode);
    path[n] = 0;
    return chmod(path, mode);
}

static int moved(int result)
{
    if (!result && active && !getcwd(working_directory, sizeof working_directory))
        working_directory[0] = 0;
    return result;
}
AR_EXPORT int chdir(const char *path) { return moved(real_chdir(path)); }
AR_EXPORT int fchdir(int fd) { return moved(real_fchdir(fd)); }

/* ---- stdio: the libc writes by itself; what it wrote is logged when the stream is flushed, synced or closed */

struct stream {
    FILE *file;
    int fd;
    uint64_t logged; /* all below has been captured */
    bool anywhere;   /* opened for update: any part may have changed */
    struct stream *next;
};
static struct stream *streams;
static pthread_mutex_t streams_lock = PTHREAD_MUTEX_INITIALIZER;

static void capture(struct stream *s)
{
    struct slot *slot = slot_of(s->fd);
    if (!slot)
        return;
    ar_capture(s->fd, slot, s->anywhere ? 0 : s->logged);
    s->logged = atomic_load(&slot->size);
}

static void capture_file(FILE *file)
{
    if (!active || !streams)
        return;
    pthread_mutex_lock(&streams_lock);
    for (struct stream *s = streams; s; s = s->next)
        if (!file || s->file == file)
            capture(s);
    pthread_mutex_unlock(&streams_lock);
}

/* fd -1: all of them. An fsync of a stream's descriptor covers what fflush has handed to the kernel before. */
static void capture_streams(int fd)
{
    if (!active || !streams)
        return;
    pthread_mutex_lock(&streams_lock);
    for (struct stream *s = streams; s; s = s->next)
        if (fd < 0 || s->fd == fd)
            capture(s);
    pthread_mutex_unlock(&streams_lock);
}

static FILE *watch_stream(FILE *file, int fd, const char *mode)
{
    struct stream *s = file && slot_of(fd) && strpbrk(mode, "wa+") ? malloc(sizeof *s) : NULL;
    if (s) {
        *s = (struct stream){.file = file, .fd = fd, .anywhere = strchr(mode, '+') != NULL, .next = streams};
        s->logged = mode[0] == 'a' ? atomic_load(&slot_of(fd)->size) : 0;
        pthread_mutex_lock(&streams_lock);
        s->next = streams;
        streams = s;
        pthread_mutex_unlock(&streams_lock);
    }
    return file;
}

static int flags_of(const char *mode)
{
    int update = strchr(mode, '+') ? O_RDWR : mode[0] == 'r' ? O_RDONLY : O_WRONLY;
    int how = mode[0] == 'w' ? O_CREAT | O_TRUNC : mode[0] == 'a' ? O_CREAT | O_APPEND : 0;
    return update | how | (strchr(mode, 'x') ? O_EXCL : 0) | (strchr(mode, 'e') ? O_CLOEXEC : 0);
}

static FILE *fopen_any(const char *path, const char *mode)
{
    char out[PATH_MAX];
    if (!durable(AT_FDCWD, path, out))
        return real_fopen(path, mode);
    int fd = open_any(AT_FDCWD, path, flags_of(mode), 0666);
    if (fd < 0)
        return NULL;
    struct slot *slot = slot_of(fd);
    /* The libc will read by itself too, so all of the file must be here; the engines use stdio for small files. */
    if (slot)
        atomic_store(&slot->pinned, 1);
    FILE *file = slot && ar_need(fd, slot, 0, atomic_load(&slot->size)) < 0 ? NULL : real_fdopen(fd, mode);
    if (!file)
        close(fd);
    return watch_stream(file, fd, mode);
}
AR_EXPORT FILE *fopen(const char *path, const char *mode)
{
    ar_resolve_libc();
    return fopen_any(path, mode);
}
AR_EXPORT FILE *fopen64(const char *path, const char *mode)
{
    ar_resolve_libc();
    return fopen_any(path, mode);
}
AR_EXPORT FILE *fdopen(int fd, const char *mode)
{
    struct slot *slot = slot_of(fd);
    if (slot) {
        atomic_store(&slot->pinned, 1);
        if (ar_need(fd, slot, 0, atomic_load(&slot->size)) < 0)
            return NULL;
    }
    return watch_stream(real_fdopen(fd, mode), fd, mode);
}

static FILE *freopen_any(const char *path, const char *mode, FILE *stream)
{
    char out[PATH_MAX];
    if (durable(AT_FDCWD, path, out)) {
        errno = ENOTSUP; /* the engines reopen only their standard streams, onto logs, which are volatile */
        return NULL;
    }
    return real_freopen(path, mode, stream);
}
AR_EXPORT FILE *freopen(const char *path, const char *mode, FILE *stream) { return freopen_any(path, mode, stream); }
AR_EXPORT FILE *freopen64(const char *path, const char *mode, FILE *stream) { return freopen_any(path, mode, stream); }

AR_EXPORT int fflush(FILE *stream)
{
    ar_resolve_libc();
    int result = real_fflush(stream);
    capture_file(stream);
    return result;
}

AR_EXPORT int fclose(FILE *stream)
{
    ar_resolve_libc();
    struct stream *gone = NULL;
    int fd = -1;
    if (active) {
        fd = fileno(stream);
        pthread_mutex_lock(&streams_lock);
        for (struct stream **link = &streams; *link; link = &(*link)->next)
            if ((*link)->file == stream) {
                gone = *link;
                *link = gone->next;
                break;
            }
        pthread_mutex_unlock(&streams_lock);
    }
    int flushed = gone ? real_fflush(stream) : 0;
    if (gone)
        capture(gone);
    free(gone);
    if (fd >= 0)
        track(fd, 0, 0);
    return real_fclose(stream) || flushed ? EOF : 0;
}

__attribute__((destructor)) static void end(void)
{
    if (active && streams) {
        real_fflush(NULL);
        capture_streams(-1);
    }
}
