/*
 * Which descriptors are files of the volume. What the library itself opened it knows; any other one (inherited, received
 * over a socket, made by a raw system call) is looked at when it is first used.
 */
#include "intercept.h"
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct tracked ar_fds[FD_MAX];
bool ar_active;
int ar_region_fd = -1;
static int fds_end; /* nothing is known from here on */

/* ---- whose memory this is: a child of vfork works in its parent's, and must not change what that knows */

static _Atomic int *own_mark; /* the kernel clears it in a forked child */
static pid_t own_pid;

bool ar_is_borrowed(void)
{
    if (own_mark && atomic_exchange(own_mark, 1))
        return getpid() != own_pid;
    own_pid = getpid();
    return false;
}

static void know(int fd, struct tracked what)
{
    if (ar_is_borrowed())
        return;
    ar_fds[fd] = what;
    if (fd >= fds_end)
        fds_end = fd + 1;
    /* The libc reads and writes the standard streams by itself, without a call that is seen here. */
    struct slot *slot = fd <= STDERR_FILENO && what.slot > 0 ? ar_slot_of(fd) : NULL;
    if (slot && ar_keep_present(fd, slot) == 0 && fd != STDIN_FILENO)
        ar_restart_streams(fd);
}

static void track(int fd, struct slot *slot, int how)
{
    uint8_t flags = (how & (O_SYNC | O_DSYNC) ? FD_DURABLE_WRITES : 0) | (how & O_APPEND ? FD_APPEND : 0);
    know(fd, slot ? (struct tracked){(int32_t)ar_slot_index(slot) + 1, flags, slot->generation}
                  : (struct tracked){FD_FOREIGN, flags, 0});
}

/* The log needs to read what is written over, and waits for durability itself: the same number, opened as that needs. */
static void open_again(int fd, int flags)
{
    char link[64];
    int plain = flags & (O_APPEND | O_NONBLOCK | O_NOATIME | O_CLOEXEC);
    int again = real_openat(AT_FDCWD, ar_proc_link(fd, link), plain | O_CLOEXEC | O_RDWR);
    if (again >= 0) {
        off_t at = real_lseek(fd, 0, SEEK_CUR);
        real_lseek(again, at < 0 ? 0 : at, SEEK_SET);
        real_dup3(again, fd, flags & O_CLOEXEC);
        real_close(again);
    }
}

struct slot *ar_look_at(int fd)
{
    int error = errno, how;
    struct statx st;
    struct slot *slot = NULL;
    if (ar_look(fd, "", AT_EMPTY_PATH, &st) == 0 && (how = real_fcntl(fd, F_GETFL)) >= 0) {
        slot = how & O_PATH ? NULL : ar_file_of(fd, &st, (how & O_ACCMODE) != O_RDONLY);
        if (slot && (how & O_ACCMODE) == O_WRONLY)
            open_again(fd, how | (real_fcntl(fd, F_GETFD) & FD_CLOEXEC ? O_CLOEXEC : 0));
        track(fd, slot, how);
    }
    errno = error;
    return slot;
}

/* The number is about to be closed, or to stand for something else. */
void ar_forget(int fd)
{
    if (!ar_active || fd < 0 || fd >= FD_MAX || ar_is_borrowed())
        return;
    int error = errno;
    if (ar_fds[fd].flags & FD_STREAM)
        ar_capture_streams(fd);
    errno = error;
    ar_fds[fd] = (struct tracked){FD_UNKNOWN, 0, 0};
}

/* A file has become the volume's: descriptors that were found not to be are looked at again. */
void ar_forget_foreign(void)
{
    for (int fd = 0; fd < fds_end; fd++)
        if (ar_fds[fd].slot == FD_FOREIGN)
            ar_fds[fd].slot = FD_UNKNOWN;
}

int ar_track_copy(int from, int to)
{
    if (!ar_active || to < 0 || from == to)
        return to;
    if (to >= FD_MAX) {
        if (!ar_slot_of(from))
            return to;
        real_close(to);
        errno = EMFILE;
        return -1;
    }
    struct slot *slot = ar_slot_of(from);
    struct tracked what = slot ? ar_fds[from] : (struct tracked){FD_FOREIGN, 0, 0};
    what.flags &= (uint8_t)~FD_STREAM;
    know(to, what);
    return to;
}

/* ---- what was opened */

/* A descriptor that has just been opened with `flags`. Returns it, or -1 with errno, closed. */
int ar_adopt(int fd, int flags)
{
    struct statx st;
    if (!ar_active || fd < 0 || ar_look(fd, "", AT_EMPTY_PATH, &st) < 0)
        return fd;
    int how = flags & O_ACCMODE;
    struct slot *slot = ar_file_of(fd, &st, how != O_RDONLY);
    if (fd >= FD_MAX) {
        if (!slot)
            return fd;
        real_close(fd);
        errno = EMFILE;
        return -1;
    }
    if (slot && (how == O_WRONLY || (how != O_RDONLY && flags & (O_SYNC | O_DSYNC | O_DIRECT))))
        open_again(fd, flags);
    track(fd, slot, flags);
    return fd;
}

/* ---- the library's own descriptors, which must survive whoever closes all that he does not know */

bool ar_is_private(int fd)
{
    return ar_active && fd >= 0 && (fd == ar_bell_fd || fd == ar_life_fd || fd == ar_region_fd);
}

static bool move_one(int *own, int fd, const char *name)
{
    char number[16];
    if (*own != fd)
        return true;
    int to = real_fcntl(fd, F_DUPFD, 512);
    if (to < 0)
        return false;
    *own = to;
    snprintf(number, sizeof number, "%d", to);
    return setenv(name, number, 1) == 0;
}

/* Somebody wants this number for himself. False: there is no other one. */
bool ar_move_private(int fd)
{
    if (!ar_is_private(fd))
        return true;
    if (ar_is_borrowed())
        return false;
    return move_one(&ar_bell_fd, fd, "AURORA_BELL_FD") && move_one(&ar_life_fd, fd, "AURORA_LIFE_FD") &&
           move_one(&ar_region_fd, fd, "AURORA_REGION_FD");
}

/* What was inherited as a standard stream is looked at now: the libc may use it without a call that is seen here. */
void ar_begin_descriptors(int region_fd)
{
    ar_region_fd = region_fd;
    void *page = real_mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page != MAP_FAILED && madvise(page, 4096, MADV_WIPEONFORK) == 0)
        own_mark = page;
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        ar_slot_of(fd);
}
