/* Interposed: everything that changes names, modes and directories. */
#include "intercept.h"
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Ends the use of places and descriptors with what the call has come to. */
static int left(struct place *at, int result)
{
    ar_leave(at);
    return result;
}
static int closed(int fd, int result)
{
    int error = errno;
    real_close(fd);
    errno = error;
    return result;
}

/* ---- names that go */

static int unlink_any(int dir, const char *path)
{
    struct place at;
    return ar_durable_place(dir, path, false, &at) ? left(&at, ar_unlink(&at)) : real_unlinkat(dir, path, 0);
}
static int rmdir_any(int dir, const char *path)
{
    struct place at;
    return ar_durable_place(dir, path, false, &at) ? left(&at, ar_rmdir(&at)) : real_unlinkat(dir, path, AT_REMOVEDIR);
}
AR_EXPORT int unlink(const char *path) { return unlink_any(AT_FDCWD, path); }
AR_EXPORT int unlinkat(int dir, const char *path, int flags)
{
    return flags & AT_REMOVEDIR ? rmdir_any(dir, path) : unlink_any(dir, path);
}
AR_EXPORT int rmdir(const char *path) { return rmdir_any(AT_FDCWD, path); }
AR_EXPORT int remove(const char *path)
{
    int result = unlink_any(AT_FDCWD, path);
    return result < 0 && errno == EISDIR ? rmdir_any(AT_FDCWD, path) : result;
}

/* ---- renames */

#define TRIES_MAX 100

/*
 * What the log does not know yet is logged with all its content, under the name that it has or, if changes there are not
 * logged, under one beside its new place that is only in the log. Returns false with errno if that cannot be.
 */
static bool bring_in(const struct place *from, const struct place *to, char hidden[PATH_MAX], bool *is_hidden)
{
    struct statx st;
    char out[PATH_MAX];
    const char *local = ar_local_path(from, out);
    *is_hidden = !local || !*local || ar_is_volatile(local);
    if (ar_look(from->dir, from->name, AT_SYMLINK_NOFOLLOW, &st) < 0)
        return false;
    if (!S_ISREG(st.stx_mode)) {
        errno = EXDEV; /* of a directory from elsewhere, all that is below; callers copy */
        return !*is_hidden;
    }
    if (!ar_on_device(&st)) {
        errno = EXDEV;
        return false;
    }
    if (*is_hidden) {
        struct place beside = *to;
        char name[64];
        snprintf(name, sizeof name, ".aurora-%llx-%x", (unsigned long long)st.stx_ino, (unsigned)getpid());
        beside.name = name;
        local = ar_local_path(&beside, hidden);
        if (!local)
            return false;
        memmove(hidden, local, strlen(local) + 1);
    }
    int fd = real_openat(from->dir, from->name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return false;
    struct slot *slot = ar_find(st.stx_ino);
    bool known = slot && ar_same_file(slot, &st), imported = !known && ar_import(fd, *is_hidden ? hidden : local);
    if (imported)
        ar_forget_foreign();
    closed(fd, 0);
    return known || imported;
}

static int rename_into(const struct place *from, const struct place *to, unsigned flags)
{
    char hidden[PATH_MAX];
    bool is_hidden;
    int result = -1;
    for (int tries = 0; tries < TRIES_MAX; tries++) {
        if (!bring_in(from, to, hidden, &is_hidden))
            return -1;
        result = ar_rename(from, to, flags, is_hidden ? hidden : NULL);
        if (!result || errno != EAGAIN)
            break;
    }
    return result;
}

/* A place that need not be the volume's. */
static bool any_place(int dir, const char *path, struct place *at, bool *durable)
{
    *durable = ar_durable_place(dir, path, false, at);
    return *durable || ar_place(dir, path, at);
}

static int rename_any(int from_dir, const char *from, int to_dir, const char *to, unsigned flags)
{
    struct place source, target;
    bool ours;
    if (!ar_durable_place(to_dir, to, false, &target)) {
        if (!ar_durable_place(from_dir, from, false, &source))
            return real_renameat2(from_dir, from, to_dir, to, flags);
        errno = EXDEV; /* callers copy and unlink then */
        return left(&source, -1);
    }
    if (flags & ~RENAME_NOREPLACE) {
        errno = EINVAL; /* as on file systems that do not know the flag */
        return left(&target, -1);
    }
    if (!any_place(from_dir, from, &source, &ours))
        return left(&target, -1);
    int result = ours ? ar_rename(&source, &target, flags, NULL) : -1;
    if (!ours || (result < 0 && errno == EAGAIN))
        result = rename_into(&source, &target, flags);
    ar_leave(&source);
    return left(&target, result);
}
AR_EXPORT int rename(const char *from, const char *to) { return rename_any(AT_FDCWD, from, AT_FDCWD, to, 0); }
AR_EXPORT int renameat(int from_dir, const char *from, int to_dir, const char *to)
{
    return rename_any(from_dir, from, to_dir, to, 0);
}
AR_EXPORT int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags)
{
    return rename_any(from_dir, from, to_dir, to, flags);
}

/* ---- more names of what there is */

static bool is_volumes(int fd, bool import)
{
    struct statx st;
    return ar_look(fd, "", AT_EMPTY_PATH, &st) == 0 && ar_file_of(fd, &st, import);
}

static int link_any(int from_dir, const char *from, int to_dir, const char *to, int flags)
{
    struct place target;
    int how = O_PATH | O_CLOEXEC | (flags & AT_SYMLINK_FOLLOW ? 0 : O_NOFOLLOW);
    if (!ar_active)
        return real_linkat(from_dir, from, to_dir, to, flags);
    bool itself = flags & AT_EMPTY_PATH && !*from;
    int seen = itself ? real_fcntl(from_dir, F_DUPFD_CLOEXEC, 0) : real_openat(from_dir, from, how);
    if (seen < 0)
        return -1;
    if (ar_durable_place(to_dir, to, false, &target)) {
        is_volumes(seen, true);
        int result = left(&target, ar_link(seen, &target));
        if (!result)
            ar_forget_foreign();
        return closed(seen, result);
    }
    if (is_volumes(seen, false)) {
        errno = EXDEV;
        return closed(seen, -1);
    }
    return closed(seen, real_linkat(from_dir, from, to_dir, to, flags));
}
AR_EXPORT int link(const char *from, const char *to) { return link_any(AT_FDCWD, from, AT_FDCWD, to, 0); }
AR_EXPORT int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags)
{
    return link_any(from_dir, from, to_dir, to, flags);
}

/* Whether a link at `local` (a path in the mount) with this target leads out of the mount, as far as text can tell. */
static bool leads_out(const char *target, const char *local)
{
    int depth = 0;
    for (const char *p = local; (p = strchr(p, '/')); p++)
        depth++;
    for (const char *p = target; *p && depth >= 0;) {
        size_t n = strcspn(p, "/");
        depth += n == 2 && !strncmp(p, "..", 2) ? -1 : n && !(n == 1 && *p == '.');
        p += n + (p[n] == '/');
    }
    return target[0] == '/' || depth < 0;
}

AR_EXPORT int symlinkat(const char *target, int dir, const char *path)
{
    struct place at;
    char out[PATH_MAX];
    if (!ar_durable_place(dir, path, false, &at))
        return real_symlinkat(target, dir, path);
    const char *local = ar_local_path(&at, out);
    if (local && leads_out(target, local)) {
        errno = EOPNOTSUPP; /* a tablespace elsewhere: what is written there would be in no volume */
        return left(&at, -1);
    }
    return left(&at, ar_symlink(target, &at));
}
AR_EXPORT int symlink(const char *target, const char *path) { return symlinkat(target, AT_FDCWD, path); }

/* ---- directories, special files */

AR_EXPORT int mkdirat(int dir, const char *path, mode_t mode)
{
    struct place at;
    return ar_durable_place(dir, path, false, &at) ? left(&at, ar_mkdir(&at, mode)) : real_mkdirat(dir, path, mode);
}
AR_EXPORT int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

AR_EXPORT int mknodat(int dir, const char *path, mode_t mode, dev_t device)
{
    if (mode & S_IFMT && !S_ISREG(mode))
        return real_mknodat(dir, path, mode, device); /* FIFOs and sockets are gone after a failover */
    int fd = ar_open(dir, path, O_WRONLY | O_CREAT | O_EXCL, mode & 07777);
    return fd < 0 ? -1 : close(fd);
}
AR_EXPORT int mknod(const char *path, mode_t mode, dev_t device) { return mknodat(AT_FDCWD, path, mode, device); }

/* ---- modes */

AR_EXPORT int fchmodat(int dir, const char *path, mode_t mode, int flags)
{
    char out[PATH_MAX];
    if (!ar_active)
        return real_fchmodat(dir, path, mode, flags);
    int fd = real_openat(dir, path, O_PATH | O_CLOEXEC | (flags & AT_SYMLINK_NOFOLLOW ? O_NOFOLLOW : 0));
    if (fd < 0)
        return -1;
    const char *local = ar_path_of(fd, out);
    return closed(fd, local && *local ? ar_chmod(fd, mode, NULL, NULL) : real_fchmodat(dir, path, mode, flags));
}
AR_EXPORT int lchmod(const char *path, mode_t mode) { return fchmodat(AT_FDCWD, path, mode, AT_SYMLINK_NOFOLLOW); }
AR_EXPORT int chmod(const char *path, mode_t mode) { return fchmodat(AT_FDCWD, path, mode, 0); }
AR_EXPORT int fchmod(int fd, mode_t mode)
{
    char out[PATH_MAX];
    const char *local = ar_active ? ar_path_of(fd, out) : NULL;
    return local && *local ? ar_chmod(fd, mode, NULL, NULL) : real_fchmod(fd, mode);
}

/* An access control list changes the mode as well, and is how programs copy modes. The lists themselves are not kept. */
struct attribute {
    int fd;
    const char *name;
    const void *value;
    size_t bytes;
    int flags;
};
static int set_attribute(void *argument)
{
    struct attribute *it = argument;
    char link[64];
    return real_setxattr(ar_proc_link(it->fd, link), it->name, it->value, it->bytes, it->flags);
}
static bool sets_mode(const char *name) { return ar_active && !strcmp(name, "system.posix_acl_access"); }

AR_EXPORT int fsetxattr(int fd, const char *name, const void *value, size_t bytes, int flags)
{
    char out[PATH_MAX];
    struct attribute it = {fd, name, value, bytes, flags};
    if (!sets_mode(name) || !ar_path_of(fd, out))
        return real_fsetxattr(fd, name, value, bytes, flags);
    return ar_chmod(fd, 0, set_attribute, &it);
}
AR_EXPORT int setxattr(const char *path, const char *name, const void *value, size_t bytes, int flags)
{
    int fd = sets_mode(name) ? real_openat(AT_FDCWD, path, O_PATH | O_CLOEXEC) : -1;
    if (fd < 0)
        return real_setxattr(path, name, value, bytes, flags);
    struct attribute it = {fd, name, value, bytes, flags};
    return closed(fd, ar_chmod(fd, 0, set_attribute, &it));
}
