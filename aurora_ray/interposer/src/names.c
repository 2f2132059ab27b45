/* What each change of a name means to the log: the local call and its record, together under the lock. */
#include "aurora.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

void ar_name_record(int type, uint64_t file_id, uint32_t mode, const char *first, const char *second)
{
    static char body[2 * 4096]; /* under the lock: one a process will do */
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

int ar_create(int dir_fd, const char *path, const char *local, int flags, mode_t mode, struct slot **slot)
{
    struct stat st;
    ar_lock_with_space(3 * 4096);
    int fd = -1;
    if (ar_has_room_for_file())
        fd = real_openat(dir_fd, path, flags | O_CREAT | O_EXCL, mode);
    else
        errno = ENOSPC;
    if (fd >= 0 && fstat(fd, &st) == 0) {
        *slot = ar_add(st.st_ino, ar_region->next_file_id++, 0, 0);
        ar_name_record(REC_CREATE, (*slot)->file_id, st.st_mode & 07777, local, NULL);
        (*slot)->last_lsn = ar_tail_lsn();
    }
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

/* The slot of the regular file at path, its placement known; NULL where there is none. */
static struct slot *slot_at(int dir_fd, const char *path, struct stat *st)
{
    if (fstatat(dir_fd, path, st, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISREG(st->st_mode))
        return NULL;
    struct slot *slot = ar_find(st->st_ino);
    if (slot && st->st_nlink == 1)
        ar_know_extents(slot, 0, slot->mounted_extents);
    return slot;
}

static void lock_for_names(void) { ar_lock_with_space(4 * 4096 + (size_t)ar_region->ngroups * 40); }

int ar_unlink(int dir_fd, const char *path, const char *local)
{
    struct stat st = {0}, now;
    struct slot *slot;
    for (;;) {
        slot = slot_at(dir_fd, path, &st);
        lock_for_names();
        if (!slot || (fstatat(dir_fd, path, &now, AT_SYMLINK_NOFOLLOW) == 0 && now.st_ino == st.st_ino))
            break;
        ar_unlock();
    }
    int result = real_unlinkat(dir_fd, path, 0);
    int error = errno;
    if (!result && (slot || S_ISLNK(st.st_mode))) {
        ar_name_record(REC_UNLINK, slot ? slot->file_id : 0, 0, local, NULL);
        if (slot && st.st_nlink == 1)
            drop(slot);
    }
    ar_unlock();
    errno = error;
    return result;
}

int ar_rename(int from_dir, const char *from, const char *from_local, int to_dir, const char *to, const char *to_local)
{
    struct stat from_st, to_st = {0}, now;
    if (fstatat(from_dir, from, &from_st, AT_SYMLINK_NOFOLLOW) < 0)
        return -1;
    struct slot *moved = S_ISREG(from_st.st_mode) ? ar_find(from_st.st_ino) : NULL;
    struct slot *replaced;
    for (;;) {
        replaced = slot_at(to_dir, to, &to_st);
        lock_for_names();
        if (!replaced || (fstatat(to_dir, to, &now, AT_SYMLINK_NOFOLLOW) == 0 && now.st_ino == to_st.st_ino))
            break;
        ar_unlock();
    }
    int result = real_renameat(from_dir, from, to_dir, to);
    int error = errno;
    if (!result && moved != replaced) {
        ar_name_record(REC_RENAME, moved ? moved->file_id : 0, 0, from_local, to_local);
        if (replaced && to_st.st_nlink == 1)
            drop(replaced);
    } else if (!result && !moved) {
        ar_name_record(REC_RENAME, 0, 0, from_local, to_local);
    }
    if (!result && moved)
        moved->last_lsn = ar_tail_lsn();
    ar_unlock();
    errno = error;
    return result;
}

int ar_link(const char *from, const char *from_local, const char *to, const char *to_local)
{
    struct stat st;
    ar_lock_with_space(4 * 4096);
    int result = real_link(from, to), error = errno;
    if (!result && stat(to, &st) == 0) {
        struct slot *slot = ar_find(st.st_ino);
        if (slot) {
            ar_name_record(REC_LINK, slot->file_id, 0, from_local, to_local);
            slot->last_lsn = ar_tail_lsn();
        }
    }
    ar_unlock();
    errno = error;
    return result;
}
