/*
 * Which path and which descriptor is a file of the mount. Text decides nothing: a path is followed by the kernel to the
 * directory that it leads to, and that directory says where it lies. So it does not matter through which symbolic links,
 * renamed directories or /proc entries somebody comes.
 */
#include "intercept.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

char ar_mount_path[PATH_MAX];
dev_t ar_device; /* of the mount's files */

#define LINKS_MAX 40 /* as in the kernel */

const char *ar_proc_link(int fd, char out[64])
{
    snprintf(out, 64, "/proc/self/fd/%d", fd);
    return out;
}

/* Where an open descriptor's file lies, relative to the mount (the mount itself: ""); NULL: elsewhere, or removed. */
const char *ar_path_of(int fd, char out[PATH_MAX])
{
    char link[64];
    size_t length = strlen(ar_mount_path);
    ssize_t n = readlink(ar_proc_link(fd, link), out, PATH_MAX - 1);
    if (n <= 0)
        return NULL;
    out[n] = 0;
    if (strncmp(out, ar_mount_path, length) || (out[length] && out[length] != '/'))
        return NULL;
    return out[length] ? out + length + 1 : out + length;
}

static bool is_durable(const char *local) { return local && *local && !ar_is_volatile(local); }

/* ---- places */

/* Cuts `path` into the directory, which is opened, and the name. */
static bool enter(int dir, const char *path, struct place *at)
{
    size_t n = strlen(path), end = n;
    if (!n || n >= sizeof at->text) {
        errno = n ? ENAMETOOLONG : ENOENT;
        return false;
    }
    memmove(at->text, path, n + 1);
    while (end > 1 && at->text[end - 1] == '/')
        end--;
    size_t start = end;
    while (start && at->text[start - 1] != '/')
        start--;
    at->name = at->text + start;
    char parent[PATH_MAX] = "."; /* empty before the slash: the root */
    if (start) {
        memcpy(parent, path, start);
        parent[start] = 0;
    }
    at->dir = real_openat(dir, parent, O_PATH | O_DIRECTORY | O_CLOEXEC);
    return at->dir >= 0;
}

void ar_leave(struct place *at)
{
    int error = errno;
    if (at->dir >= 0)
        real_close(at->dir);
    at->dir = -1;
    errno = error;
}

/* The place that `path` names; `follow`: where the symbolic links lead if its last part is one. To be left if true. */
static bool place_of(int dir, const char *path, bool follow, struct place *at)
{
    if (!enter(dir, path, at))
        return false;
    for (int links = 0; follow; links++) {
        char target[PATH_MAX];
        ssize_t n = readlinkat(at->dir, at->name, target, sizeof target - 1);
        if (n <= 0)
            return true;
        target[n] = 0;
        int from = at->dir;
        bool entered = links < LINKS_MAX && enter(from, target, at);
        int error = entered ? 0 : links < LINKS_MAX ? errno : ELOOP;
        real_close(from);
        if (!entered) {
            errno = error;
            return false;
        }
    }
    return true;
}

/* The same of `path` itself, wherever that lies. */
bool ar_place(int dir, const char *path, struct place *at) { return place_of(dir, path, false, at); }

/* Relative to the mount; NULL if it is not below it. Right for as long as the lock is held, which renames need. */
const char *ar_local_path(const struct place *at, char out[PATH_MAX])
{
    const char *local = ar_path_of(at->dir, out);
    size_t n = local ? strlen(local) : 0, length = strlen(at->name), room = PATH_MAX - 2;
    while (length && at->name[length - 1] == '/')
        length--;
    if (!local || !length || (size_t)(local - out) + n + length > room || !strncmp(at->name, "..", length + 1))
        return NULL;
    if (length == 1 && at->name[0] == '.')
        return NULL;
    char *end = out + (local - out) + n;
    *end++ = '/';
    local += n == 0; /* the mount itself is named without a slash at its end */
    memcpy(end, at->name, length);
    end[length] = 0;
    return local;
}

/* True if changes at `path` are logged: `at` must be left then. False: it is for the kernel alone to say what is wrong. */
bool ar_durable_place(int dir, const char *path, bool follow, struct place *at)
{
    char out[PATH_MAX];
    if (!ar_active || !path || !place_of(dir, path, follow, at))
        return false;
    if (is_durable(ar_local_path(at, out)))
        return true;
    ar_leave(at);
    return false;
}

/* ---- files */

#define LOOKED_AT (STATX_TYPE | STATX_MODE | STATX_NLINK | STATX_INO | STATX_SIZE | STATX_BTIME)

int ar_look(int dir, const char *name, int flags, struct statx *st)
{
    return real_statx(dir, name, AT_NO_AUTOMOUNT | flags, LOOKED_AT, st);
}

uint64_t ar_born(const struct statx *st)
{
    if (!(st->stx_mask & STATX_BTIME))
        return 0;
    return (uint64_t)st->stx_btime.tv_sec * UINT64_C(1000000000) + st->stx_btime.tv_nsec;
}

/*
 * Whether the file that was looked at is the slot's. The kernel gives inode numbers again, to files of other people too:
 * a slot whose file is gone must not be found by them. Who cannot tell when files were made cannot open a removed one.
 */
bool ar_same_file(struct slot *slot, const struct statx *st)
{
    uint64_t born = ar_born(st), known = atomic_load(&slot->born);
    if (atomic_load(&slot->dropped))
        return born && known == born && !st->stx_nlink;
    if (!known)
        atomic_store(&slot->born, born);
    return !known || known == born;
}

bool ar_on_device(const struct statx *st)
{
    return S_ISREG(st->stx_mode) && makedev(st->stx_dev_major, st->stx_dev_minor) == ar_device;
}

/*
 * The slot of an open file, NULL if it is none of the volume's. A file that lies where changes are logged and that the
 * log does not know was made past this library; whoever opens it for writing (`import`) has it logged first.
 */
struct slot *ar_file_of(int fd, const struct statx *st, bool import)
{
    char out[PATH_MAX];
    if (!ar_on_device(st))
        return NULL;
    struct slot *slot = ar_find(st->stx_ino);
    if (slot && ar_same_file(slot, st))
        return slot;
    const char *local = st->stx_nlink ? ar_path_of(fd, out) : NULL;
    if (!is_durable(local))
        return NULL;
    if (import)
        return ar_import(fd, local);
    ar_lock(); /* it may be in the middle of being made */
    slot = ar_find(st->stx_ino);
    ar_unlock();
    return slot && ar_same_file(slot, st) ? slot : NULL;
}
