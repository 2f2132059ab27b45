/*
 * The libc functions as the engine sees them. Each looks whether the call concerns the mount; if not, it is the libc's
 * own. What is tracked: descriptors of ar_durable_path files (a slot each) and of directories under the mount.
 */
#include "intercept.h"
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define DEFINE(result, name, parameters) result(*real_##name) parameters;
LIBC_CALLS(DEFINE)
#undef DEFINE

struct tracked ar_fds[FD_MAX];
static char mount_path[PATH_MAX], working_directory[PATH_MAX];
static size_t mount_length;
bool ar_active;

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
    atomic_fetch_add(&ar_region->attached, 1);
    ar_active = true;
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
    if (!ar_active || !path)
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
const char *ar_durable_path(int dir, const char *path, char out[PATH_MAX])
{
    const char *local = under_mount(dir, path, out);
    return local && *local && !ar_is_volatile(local) ? local : NULL;
}

/* ---- descriptors */

struct slot *ar_slot_of(int fd)
{
    if (!ar_active || fd < 0 || fd >= FD_MAX || ar_fds[fd].slot <= 0)
        return NULL;
    return ar_slot_if((uint32_t)ar_fds[fd].slot - 1, ar_fds[fd].generation);
}

void ar_track(int fd, int32_t slot, uint8_t flags)
{
    if (ar_active && fd >= 0 && fd < FD_MAX)
        ar_fds[fd] = (struct tracked){slot, flags, slot > 0 ? ar_slot((uint32_t)slot - 1)->generation : 0};
}

int ar_track_copy(int from, int to)
{
    if (ar_active && to >= 0 && to < FD_MAX)
        ar_fds[to] = from >= 0 && from < FD_MAX ? ar_fds[from] : (struct tracked){0};
    return to;
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
    struct slot *slot = S_ISREG(st.st_mode) ? ar_find_opened(st.st_ino) : NULL;
    uint8_t how = (flags & (O_SYNC | O_DSYNC) ? FD_DURABLE_WRITES : 0) | (flags & O_APPEND ? FD_APPEND : 0);
    ar_track(fd, S_ISDIR(st.st_mode) ? -1 : slot ? (int32_t)ar_slot_index(slot) + 1 : 0, how);
    if (slot && flags & O_TRUNC && ar_truncate(fd, slot, 0) < 0) {
        real_close(fd);
        return -1;
    }
    return fd;
}

int ar_open(int dir, const char *path, int flags, mode_t mode)
{
    char out[PATH_MAX];
    const char *local = flags & O_PATH || (flags & O_TMPFILE) == O_TMPFILE ? NULL : ar_durable_path(dir, path, out);
    if (!local) {
        int fd = real_openat(dir, path, flags, mode);
        const char *seen = fd >= 0 && ar_active ? under_mount(dir, path, out) : NULL;
        /* Directories are tracked for their fsync: volatile ones, and the mount itself. */
        ar_track(fd, seen && (!*seen || flags & O_DIRECTORY) ? -1 : 0, 0);
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
    return ar_open(AT_FDCWD, path, flags, mode);
}
AR_EXPORT int open64(const char *path, int flags, ...)
{
    MODE_OF(flags)
    ar_resolve_libc();
    return ar_open(AT_FDCWD, path, flags, mode);
}
AR_EXPORT int openat(int dir, const char *path, int flags, ...)
{
    MODE_OF(flags)
    return ar_open(dir, path, flags, mode);
}
AR_EXPORT int openat64(int dir, const char *path, int flags, ...)
{
    MODE_OF(flags)
    return ar_open(dir, path, flags, mode);
}
AR_EXPORT int __open_2(const char *path, int flags) { return ar_open(AT_FDCWD, path, flags, 0); }
AR_EXPORT int __open64_2(const char *path, int flags) { return ar_open(AT_FDCWD, path, flags, 0); }
AR_EXPORT int __openat_2(int dir, const char *path, int flags) { return ar_open(dir, path, flags, 0); }
AR_EXPORT int __openat64_2(int dir, const char *path, int flags) { return ar_open(dir, path, flags, 0); }
AR_EXPORT int creat(const char *path, mode_t mode)
{
    return ar_open(AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, mode);
}
AR_EXPORT int creat64(const char *path, mode_t mode)
{
    return ar_open(AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, mode);
}

AR_EXPORT int close(int fd)
{
    ar_resolve_libc();
    if (ar_active && (fd == ar_bell_fd || fd == ar_life_fd)) {
        errno = EBADF; /* somebody closes all descriptors he does not know; ours must stay */
        return -1;
    }
    ar_track(fd, 0, 0);
    return real_close(fd);
}
AR_EXPORT int dup(int fd) { return ar_track_copy(fd, real_dup(fd)); }
AR_EXPORT int dup2(int from, int to) { return ar_track_copy(from, real_dup2(from, to)); }
AR_EXPORT int dup3(int from, int to, int flags) { return ar_track_copy(from, real_dup3(from, to, flags)); }

static int fcntl_any(int fd, int command, void *argument)
{
    int result = real_fcntl(fd, command, argument);
    return command == F_DUPFD || command == F_DUPFD_CLOEXEC ? ar_track_copy(fd, result) : result;
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

/* ---- the working directory, which relative paths start from */

static int moved(int result)
{
    if (!result && ar_active && !getcwd(working_directory, sizeof working_directory))
        working_directory[0] = 0;
    return result;
}
AR_EXPORT int chdir(const char *path) { return moved(real_chdir(path)); }
AR_EXPORT int fchdir(int fd) { return moved(real_fchdir(fd)); }
