/* What each change of a name means to the log: the local call and its record, together under the lock. */
#include "aurora.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

void ar_log_name(int type, uint64_t file_id, uint32_t mode, const char *first, const char *second)
{
    static char body[2 * PATH_MAX]; /* under the lock: one a process will do */
    size_t n = strlen(first);
    memcpy(body, first, n);
    if (second) {
        body[n++] = 0;
        memcpy(body + n, second, strlen(second));
        n += strlen(second);
    }
    struct record head = {.type = (uint8_t)type, .count = (uint16_t)n, .file_id = file_id, .page = mode};
    ar_append(head, body, n);
}

/* Only paths that are logged lead here; a directory may have been moved since its path was looked at. */
static const char *durable(const char *local) { return local && *local && !ar_is_volatile(local) ? local : NULL; }
static const char *durable_at(const struct place *at, char out[PATH_MAX]) { return durable(ar_local_path(at, out)); }

/* ---- making files */

static struct slot *add_file(const struct statx *st, const char *local)
{
    struct slot *slot = ar_add(st->stx_ino, ar_region->next_file_id++, 0, 0);
    atomic_store(&slot->born, ar_born(st));
    ar_log_name(REC_CREATE, slot->file_id, st->stx_mode & 07777, local, NULL);
    slot->last_lsn = ar_tail_lsn();
    return slot;
}

int ar_create(const struct place *at, int flags, mode_t mode)
{
    char out[PATH_MAX];
    struct statx st;
    ar_lock_with_space(3 * PATH_MAX);
    const char *local = durable_at(at, out);
    int fd = -1;
    if (ar_has_room_for_file())
        fd = real_openat(at->dir, at->name, flags | O_CREAT | O_EXCL | O_NOFOLLOW, mode);
    else
        errno = ENOSPC;
    if (fd >= 0 && local && ar_look(fd, "", AT_EMPTY_PATH, &st) == 0)
        add_file(&st, local);
    int error = errno;
    ar_unlock();
    errno = error;
    return fd;
}

static void copy_drop(struct slot *slot, uint32_t group, uint64_t unused)
{
    (void)unused;
    ar_append((struct record){.type = REC_DROP, .flags = REC_FLAG, .file_id = slot->file_id, .group = group}, NULL, 0);
}

/* Under the lock: the file's last name is gone. Open descriptors go on with the local file; the log hears no more. */
static void drop(struct slot *slot)
{
    slot->drop_lsn = ar_tail_lsn();
    ar_for_other_groups(slot, 0, copy_drop, 0);
    uint64_t lsn = ar_append((struct record){.type = REC_DROP, .file_id = slot->file_id}, NULL, 0);
    uint32_t end = (ar_pages_of(slot->size) + AR_EXTENT_PAGES - 1) / AR_EXTENT_PAGES;
    for (uint32_t c = 0; c < end; c++) {
        struct chunk *chunk = ar_chunk(slot, c);
        if (chunk && ar_placed(chunk))
            ar_region->group_free[chunk->group]++;
    }
    atomic_store_explicit(&slot->last_lsn, lsn, memory_order_release);
    ar_dropped(slot);
}

/* ---- what the log does not know */

/* What was told of it so far is taken back: it could not be read. The local file stays what it is. */
static void take_back(struct slot *slot, const char *local)
{
    int error = errno;
    ar_lock_with_space(4 * PATH_MAX + (size_t)ar_region->ngroups * 40);
    ar_log_name(REC_UNLINK, slot->file_id, 0, local, NULL);
    drop(slot);
    ar_unlock();
    errno = error;
}

/* A file becomes the volume's, as `local`, with all that it holds. NULL with errno: it cannot be read. */
struct slot *ar_import(int fd, const char *local)
{
    struct statx st;
    char link[64];
    struct slot *slot = NULL;
    bool made = false;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int in = real_openat(AT_FDCWD, link, O_RDONLY | O_CLOEXEC);
    if (in < 0)
        return NULL;
    ar_lock_with_space(3 * PATH_MAX);
    if (ar_look(in, "", AT_EMPTY_PATH, &st) == 0 && st.stx_nlink) {
        slot = ar_find(st.stx_ino);
        made = (!slot || !ar_same_file(slot, &st)) && ar_has_room_for_file();
        if (made)
            slot = add_file(&st, local);
        else if (slot && !ar_same_file(slot, &st))
            slot = NULL;
        if (!slot)
            errno = ENOSPC;
    }
    ar_unlock();
    if (made && ar_capture(in, slot, 0) < 0) {
        take_back(slot, local);
        slot = NULL;
    }
    int error = errno;
    real_close(in);
    errno = error;
    return slot;
}

/* ---- names under the lock */

struct named { /* what a name stands for, seen under the lock */
    struct statx st;
    bool there;
    struct slot *slot; /* of a regular file that the log knows */
};

static struct named look(const struct place *at)
{
    struct named found = {0};
    found.there = ar_look(at->dir, at->name, AT_SYMLINK_NOFOLLOW, &found.st) == 0;
    if (found.there && S_ISREG(found.st.stx_mode)) {
        struct slot *slot = ar_find(found.st.stx_ino);
        found.slot = slot && ar_same_file(slot, &found.st) ? slot : NULL;
    }
    return found;
}

static bool logged_kind(const struct named *it)
{
    return it->slot || S_ISDIR(it->st.stx_mode) || S_ISLNK(it->st.stx_mode);
}

static bool is_last_name(const struct named *it) { return it->slot && it->st.stx_nlink == 1; }

static bool placement_unknown(struct slot *slot)
{
    for (uint32_t c = 0; c < slot->mounted_extents; c++) {
        struct chunk *chunk = ar_chunk(slot, c);
        if (!chunk || chunk->group == AR_UNKNOWN)
            return true;
    }
    return false;
}

/*
 * Takes the lock. What the name stands for, and how many names that has, must be seen under it: both may have changed
 * since. A file that is dropped with this name has its placement known, for which the lock must not be held.
 */
static struct named lock_and_look(const struct place *at)
{
    for (;;) {
        ar_lock_with_space(4 * PATH_MAX + (size_t)ar_region->ngroups * 40);
        struct named found = look(at);
        if (!is_last_name(&found) || !placement_unknown(found.slot))
            return found;
        ar_unlock();
        ar_know_extents(found.slot, 0, found.slot->mounted_extents);
    }
}

static int unlock_with(int result)
{
    int error = errno;
    ar_unlock();
    errno = error;
    return result;
}

int ar_unlink(const struct place *at)
{
    char out[PATH_MAX];
    struct named gone = lock_and_look(at);
    const char *local = durable_at(at, out);
    int result = real_unlinkat(at->dir, at->name, 0);
    if (!result && local && gone.there && logged_kind(&gone)) {
        ar_log_name(REC_UNLINK, gone.slot ? gone.slot->file_id : 0, 0, local, NULL);
        if (is_last_name(&gone))
            drop(gone.slot);
    }
    return unlock_with(result);
}

int ar_rmdir(const struct place *at)
{
    char out[PATH_MAX];
    ar_lock_with_space(4 * PATH_MAX);
    const char *local = durable_at(at, out);
    int result = real_unlinkat(at->dir, at->name, AT_REMOVEDIR);
    if (!result && local)
        ar_log_name(REC_RMDIR, 0, 0, local, NULL);
    return unlock_with(result);
}

/*
 * Renames within the volume. `hidden`, if given, is the name that the log has for the file so far: it had none there that
 * is logged. A file that is replaced is dropped only if the log was told what takes its place.
 */
int ar_rename(const struct place *from, const struct place *to, unsigned flags, const char *hidden)
{
    char from_out[PATH_MAX], to_out[PATH_MAX];
    struct named replaced = lock_and_look(to), moved = look(from);
    const char *to_local = durable_at(to, to_out), *from_local = hidden ? hidden : durable_at(from, from_out);
    bool same = moved.there && replaced.there && moved.st.stx_ino == replaced.st.stx_ino;
    bool logged = moved.there && from_local && to_local && logged_kind(&moved);
    if (moved.there && !same && !logged && S_ISREG(moved.st.stx_mode)) {
        errno = EAGAIN; /* its content must be logged before its name replaces another one */
        return unlock_with(-1);
    }
    int result = real_renameat2(from->dir, from->name, to->dir, to->name, flags);
    if (!result && !same && logged)
        ar_log_name(REC_RENAME, moved.slot ? moved.slot->file_id : 0, 0, from_local, to_local);
    else if (!result && !same && to_local && replaced.there && logged_kind(&replaced)) /* by a socket, say */
        ar_log_name(REC_UNLINK, replaced.slot ? replaced.slot->file_id : 0, 0, to_local, NULL);
    if (!result && !same && is_last_name(&replaced))
        drop(replaced.slot);
    if (!result && moved.slot)
        moved.slot->last_lsn = ar_tail_lsn();
    return unlock_with(result);
}

/* ---- other names, directories, modes */

/* `seen`: the file, O_PATH will do. One that is not the volume's may have no other name: it becomes the volume's. */
int ar_link(int seen, const struct place *to)
{
    char link[64], from_out[PATH_MAX], to_out[PATH_MAX];
    struct statx st = {0};
    snprintf(link, sizeof link, "/proc/self/fd/%d", seen);
    ar_lock_with_space(4 * PATH_MAX);
    const char *to_local = durable_at(to, to_out), *from_local = durable(ar_path_of(seen, from_out));
    struct slot *slot = ar_look(seen, "", AT_EMPTY_PATH, &st) == 0 && S_ISREG(st.stx_mode) ? ar_find(st.stx_ino) : NULL;
    bool ours = slot && ar_same_file(slot, &st), nameless = !ours && S_ISREG(st.stx_mode) && !st.stx_nlink;
    int result = -1;
    if (!to_local || !(nameless || (ours && from_local)))
        errno = EXDEV;
    else
        result = real_linkat(AT_FDCWD, link, to->dir, to->name, AT_SYMLINK_FOLLOW);
    if (!result && ours) {
        ar_log_name(REC_LINK, slot->file_id, 0, from_local, to_local);
        slot->last_lsn = ar_tail_lsn();
    }
    result = unlock_with(result);
    if (!result && nameless)
        ar_import(seen, to_local);
    return result;
}

int ar_symlink(const char *target, const struct place *at)
{
    char out[PATH_MAX];
    ar_lock_with_space(4 * PATH_MAX);
    const char *local = durable_at(at, out);
    int result = real_symlinkat(target, at->dir, at->name);
    if (!result && local)
        ar_log_name(REC_SYMLINK, 0, 0, target, local);
    return unlock_with(result);
}

/* The mode that the log hears is the one that the file system gave: the umask, and inherited bits, count. */
int ar_mkdir(const struct place *at, mode_t mode)
{
    char out[PATH_MAX];
    struct statx st;
    ar_lock_with_space(4 * PATH_MAX);
    const char *local = durable_at(at, out);
    int result = real_mkdirat(at->dir, at->name, mode);
    if (!result && local && ar_look(at->dir, at->name, AT_SYMLINK_NOFOLLOW, &st) == 0)
        ar_log_name(REC_MKDIR, 0, st.stx_mode & 07777, local, NULL);
    return unlock_with(result);
}

/* `fd`: of the file or directory itself, O_PATH will do. `change` NULL: `mode` is given to it; else it changes the mode. */
int ar_chmod(int fd, mode_t mode, int (*change)(void *), void *argument)
{
    char link[64], out[PATH_MAX];
    struct statx st;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ar_lock_with_space(4 * PATH_MAX);
    const char *local = durable(ar_path_of(fd, out));
    int result = change ? change(argument) : real_fchmodat(AT_FDCWD, link, mode, 0);
    bool seen = !result && local && ar_look(fd, "", AT_EMPTY_PATH, &st) == 0;
    struct slot *slot = seen && S_ISREG(st.stx_mode) ? ar_find(st.stx_ino) : NULL;
    if (seen && (S_ISDIR(st.stx_mode) || (slot && ar_same_file(slot, &st) && st.stx_nlink)))
        ar_log_name(REC_CHMOD, 0, st.stx_mode & 07777, local, NULL);
    return unlock_with(result);
}
