/* Interposed: opening, closing and copying descriptors. */
#include "intercept.h"
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

/* ---- opening */

#define TRIES_MAX 1000 /* names that come and go between two looks */
#define OWN_FLAGS (O_CREAT | O_EXCL | O_TRUNC | O_SYNC | O_DSYNC | O_DIRECT | O_NOFOLLOW | O_ACCMODE)

/* Opens once more what `seen`, an O_PATH descriptor of one of our files, stands for. */
static int open_seen(int seen, int flags)
{
    char link[64];
    bool cut = flags & O_TRUNC;
    int rights = (flags & O_ACCMODE) == O_RDONLY && !cut ? O_RDONLY : O_RDWR;
    int fd = real_openat(AT_FDCWD, ar_proc_link(seen, link), (flags & ~OWN_FLAGS) | rights);
    if (fd < 0 && errno == EACCES && (flags & O_ACCMODE) == O_WRONLY)
        fd = real_openat(AT_FDCWD, link, (flags & ~OWN_FLAGS) | O_WRONLY);
    fd = ar_adopt(fd, (flags & ~(O_ACCMODE | O_DIRECT)) | (rights == O_RDONLY ? O_RDONLY : O_RDWR));
    struct slot *slot = ar_slot_of(fd);
    if (slot && cut && ar_truncate(fd, slot, 0) < 0) {
        int error = errno;
        close(fd);
        errno = error;
        return -1;
    }
    return fd;
}

/* What stands there already is the volume's, or will be once it is written to. */
static bool seen_is_ours(int seen)
{
    struct statx st;
    char out[PATH_MAX];
    if (ar_look(seen, "", AT_EMPTY_PATH, &st) < 0 || !ar_on_device(&st))
        return false;
    struct slot *slot = ar_find(st.stx_ino);
    if (slot && ar_same_file(slot, &st))
        return true;
    const char *local = ar_path_of(seen, out);
    return local && *local && !ar_is_volatile(local);
}

static int look_up(int dir, const char *path, int flags)
{
    return real_openat(dir, path, O_PATH | O_CLOEXEC | (flags & (O_NOFOLLOW | O_DIRECTORY)));
}

static bool follows(int flags) { return !(flags & (O_EXCL | O_NOFOLLOW)); }

/* Nothing stands there: makes it. -1 with EEXIST: somebody else did in the meantime. */
static int open_new(int dir, const char *path, int flags, mode_t mode)
{
    struct place at;
    if (!ar_durable_place(dir, path, follows(flags), &at))
        return ar_adopt(real_openat(dir, path, flags, mode), flags);
    int rights = (flags & O_ACCMODE) == O_WRONLY ? O_RDWR : flags & O_ACCMODE;
    int fd = ar_create(&at, (flags & ~OWN_FLAGS) | rights, mode);
    ar_leave(&at);
    return ar_adopt(fd, (flags & ~(O_ACCMODE | O_DIRECT)) | rights);
}

int ar_open(int dir, const char *path, int flags, mode_t mode)
{
    if (!ar_active || flags & O_PATH || (flags & O_TMPFILE) == O_TMPFILE || !(flags & (O_CREAT | O_TRUNC))) {
        int fd = real_openat(dir, path, flags, mode);
        return flags & O_PATH || (flags & O_TMPFILE) == O_TMPFILE ? fd : ar_adopt(fd, flags);
    }
    int fd = -1;
    for (int tries = 0; tries < TRIES_MAX; tries++) {
        int seen = look_up(dir, path, flags);
        if (seen < 0 && (errno != ENOENT || !(flags & O_CREAT)))
            return real_openat(dir, path, flags & ~O_CREAT, mode); /* the kernel knows what is wrong */
        if (seen >= 0) {
            bool exclusive = flags & O_CREAT && flags & O_EXCL, ours = !exclusive && seen_is_ours(seen);
            fd = ours ? open_seen(seen, flags) : -1;
            int error = exclusive ? EEXIST : errno;
            real_close(seen);
            errno = error;
            return ours || exclusive ? fd : ar_adopt(real_openat(dir, path, flags, mode), flags);
        }
        fd = open_new(dir, path, flags, mode);
        if (fd >= 0 || errno != EEXIST || flags & O_EXCL)
            return fd;
    }
    return fd;
}

/* Whether ar_open would open, or make, a file of the volume. */
bool ar_would_be_ours(int dir, const char *path, int flags)
{
    struct place at;
    if (!ar_active)
        return false;
    int seen = look_up(dir, path, flags);
    if (seen >= 0) {
        bool ours = seen_is_ours(seen);
        real_close(seen);
        return ours;
    }
    if (!(flags & O_CREAT) || !ar_durable_place(dir, path, follows(flags), &at))
        return false;
    ar_leave(&at);
    return true;
}

#define MODE_OF(last)                                                                                                  \
    mode_t mode = 0;                                                                                                   \
    if (last & (O_CREAT | __O_TMPFILE)) {                                                                              \
        va_list a;                                                                                                     \
        va_start(a, last);                                                                                             \
        mode = va_arg(a, mode_t);                                                                                      \
        va_end(a);                                                                                                     \
    }                                                                                                                  \
    ar_resolve_libc();
AR_EXPORT int open(const char *path, int flags, ...)
{
    MODE_OF(flags)
    return ar_open(AT_FDCWD, path, flags, mode);
}
AR_EXPORT int open64(const char *path, int flags, ...)
{
    MODE_OF(flags)
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

/* ---- temporary names, which the libc would open by itself */

/* The X's of a template, or NULL with errno. */
static char *template_of(char *path, int suffix)
{
    size_t n = strlen(path);
    if (suffix < 0 || n < (size_t)suffix + 6 || strncmp(path + n - (size_t)suffix - 6, "XXXXXX", 6)) {
        errno = EINVAL;
        return NULL;
    }
    return path + n - (size_t)suffix - 6;
}

static void fill_in(char x[6])
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    unsigned char bytes[6] = {0};
    (void)!getrandom(bytes, sizeof bytes, 0);
    for (int i = 0; i < 6; i++)
        x[i] = letters[bytes[i] % (sizeof letters - 1)];
}

static int mkostemps_any(char *path, int suffix, int flags)
{
    ar_resolve_libc();
    char *x = template_of(path, suffix);
    int fd = -1;
    for (int tries = 0; x && tries < TRIES_MAX; tries++) {
        fill_in(x);
        fd = ar_open(AT_FDCWD, path, (flags & ~O_ACCMODE) | O_RDWR | O_CREAT | O_EXCL, 0600);
        if (fd >= 0 || errno != EEXIST)
            break;
    }
    return fd;
}
AR_EXPORT int mkstemp(char *path) { return mkostemps_any(path, 0, 0); }
AR_EXPORT int mkstemp64(char *path) { return mkostemps_any(path, 0, 0); }
AR_EXPORT int mkstemps(char *path, int suffix) { return mkostemps_any(path, suffix, 0); }
AR_EXPORT int mkstemps64(char *path, int suffix) { return mkostemps_any(path, suffix, 0); }
AR_EXPORT int mkostemp(char *path, int flags) { return mkostemps_any(path, 0, flags); }
AR_EXPORT int mkostemp64(char *path, int flags) { return mkostemps_any(path, 0, flags); }
AR_EXPORT int mkostemps(char *path, int suffix, int flags) { return mkostemps_any(path, suffix, flags); }
AR_EXPORT int mkostemps64(char *path, int suffix, int flags) { return mkostemps_any(path, suffix, flags); }
AR_EXPORT char *mkdtemp(char *path)
{
    char *x = template_of(path, 0);
    for (int tries = 0; x && tries < TRIES_MAX; tries++) {
        fill_in(x);
        if (mkdir(path, 0700) == 0)
            return path;
        if (errno != EEXIST)
            break;
    }
    return NULL;
}

/* ---- closing and copying */

static int refuse(int error)
{
    errno = error;
    return -1;
}

AR_EXPORT int close(int fd)
{
    ar_resolve_libc();
    if (ar_is_private(fd))
        return refuse(EBADF); /* somebody closes all descriptors he does not know; ours must stay */
    ar_forget(fd);
    ar_session_given(fd);
    return real_close(fd);
}

/* A part of a range without descriptors of the library. */
static int close_part(unsigned first, unsigned last, int flags)
{
    if (!(flags & CLOSE_RANGE_CLOEXEC))
        for (unsigned fd = first; fd <= last && fd < FD_MAX; fd++)
            if (ar_fds[fd].slot)
                ar_forget((int)fd);
    return real_close_range(first, last, flags);
}
AR_EXPORT int close_range(unsigned first, unsigned last, int flags)
{
    ar_resolve_libc();
    if (!ar_active || first > last)
        return real_close_range(first, last, flags);
    for (unsigned at = first; at <= last && at < FD_MAX; at++)
        if (ar_is_private((int)at)) {
            if (at > first && close_part(first, at - 1, flags) < 0)
                return -1;
            if (at == UINT_MAX)
                return 0;
            first = at + 1;
        }
    return first <= last ? close_part(first, last, flags) : 0;
}
AR_EXPORT void closefrom(int low) { close_range(low < 0 ? 0 : (unsigned)low, UINT_MAX, 0); }

AR_EXPORT int dup(int fd) { return ar_track_copy(fd, real_dup(fd)); }
AR_EXPORT int dup2(int from, int to)
{
    ar_resolve_libc();
    if (!ar_move_private(to))
        return refuse(EBADF);
    if (from != to)
        ar_forget(to);
    return ar_track_copy(from, real_dup2(from, to));
}
AR_EXPORT int dup3(int from, int to, int flags)
{
    if (!ar_move_private(to))
        return refuse(EBADF);
    if (from != to)
        ar_forget(to);
    return ar_track_copy(from, real_dup3(from, to, flags));
}

static int fcntl_any(int fd, int command, void *argument)
{
    if (ar_is_private(fd) && command == F_SETFD)
        return 0;
    int result = real_fcntl(fd, command, argument);
    if (command == F_DUPFD || command == F_DUPFD_CLOEXEC)
        return ar_track_copy(fd, result);
    struct slot *slot = command == F_SETFL && result == 0 ? ar_slot_of(fd) : NULL;
    for (int other = 0; slot && other < FD_MAX; other++) /* copies of a descriptor share its flags */
        if (ar_fds[other].slot == ar_fds[fd].slot) {
            int how = real_fcntl(other, F_GETFL);
            ar_fds[other].flags = (uint8_t)((ar_fds[other].flags & ~FD_APPEND) | (how & O_APPEND ? FD_APPEND : 0));
        }
    return result;
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
