/* Interposed: everything that changes names, modes and directories. */
#include "intercept.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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
    const char *local = ar_durable_path(dir, path, out);
    return local ? ar_unlink(dir, path, local) : real_unlinkat(dir, path, 0);
}
static int rmdir_any(int dir, const char *path)
{
    char out[PATH_MAX];
    const char *local = ar_durable_path(dir, path, out);
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

/* What was not logged so far becomes ar_durable_path under its new name: its whole content goes into the log. */
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
    int out = in < 0 ? -1 : ar_open(to_dir, to, O_RDWR | O_CREAT | O_TRUNC, st.st_mode & 07777);
    ssize_t n = out < 0 ? -1 : 0;
    while (out >= 0 && (n = real_read(in, buffer, sizeof buffer)) > 0)
        if (ar_write(out, buffer, (size_t)n) != n)
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
    const char *from_local = ar_durable_path(from_dir, from, from_out), *to_local = ar_durable_path(to_dir, to, to_out);
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
    if (ar_durable_path(from_dir, from, a) || ar_durable_path(to_dir, to, b)) {
        errno = EINVAL; /* as on file systems that do not know the flag */
        return -1;
    }
    return real_renameat2(from_dir, from, to_dir, to, flags);
}

AR_EXPORT int link(const char *from, const char *to)
{
    char a[PATH_MAX], b[PATH_MAX];
    const char *from_local = ar_durable_path(AT_FDCWD, from, a), *to_local = ar_durable_path(AT_FDCWD, to, b);
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
    if (ar_durable_path(from_dir, from, a) || ar_durable_path(to_dir, to, b)) {
        errno = EXDEV;
        return -1;
    }
    return real_linkat(from_dir, from, to_dir, to, flags);
}

AR_EXPORT int symlinkat(const char *target, int dir, const char *path)
{
    char out[PATH_MAX];
    const char *local = ar_durable_path(dir, path, out);
    if (!local)
        return real_symlinkat(target, dir, path);
    if (target[0] == '/') {
        errno = EPERM; /* a tablespace elsewhere: what is written there would be in no volume */
        return -1;
    }
    LOGGED(local, real_symlinkat(target, dir, path), REC_SYMLINK, 0, 0, target, local)
}
AR_EXPORT int symlink(const char *target, const char *path) { return symlinkat(target, AT_FDCWD, path); }

AR_EXPORT int mkdirat(int dir, const char *path, mode_t mode)
{
    char out[PATH_MAX];
    const char *local = ar_durable_path(dir, path, out);
    if (!local)
        return real_mkdirat(dir, path, mode);
    LOGGED(local, real_mkdirat(dir, path, mode), REC_MKDIR, 0, mode & 07777, local, NULL)
}
AR_EXPORT int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

AR_EXPORT int fchmodat(int dir, const char *path, mode_t mode, int flags)
{
    char out[PATH_MAX];
    const char *local = ar_durable_path(dir, path, out);
    if (!local)
        return real_fchmodat(dir, path, mode, flags);
    LOGGED(local, real_fchmodat(dir, path, mode, flags), REC_CHMOD, 0, mode & 07777, local, NULL)
}
AR_EXPORT int chmod(const char *path, mode_t mode)
{
    char out[PATH_MAX];
    return ar_durable_path(AT_FDCWD, path, out) ? fchmodat(AT_FDCWD, path, mode, 0) : real_chmod(path, mode);
}
AR_EXPORT int fchmod(int fd, mode_t mode)
{
    char link[64], path[PATH_MAX];
    if (!ar_slot_of(fd))
        return real_fchmod(fd, mode);
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n <= 0)
        return real_fchmod(fd, mode);
    path[n] = 0;
    return chmod(path, mode);
}
