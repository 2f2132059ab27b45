/*
 * Interposed: what the kernel would do with a file's content by itself. It does not know which pages are absent, and
 * nobody would hear what it writes, so bytes go through memory, holes do not exist, and clones are refused.
 */
#include "intercept.h"
#include <fcntl.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define PIECE 65536

static int refuse(int error)
{
    errno = error;
    return -1;
}

/* ---- copies */

/* What was read and could not be written is not lost: the position goes back. */
static ssize_t copy_piece(int in, off_t *in_at, int out, off_t *out_at, void *buffer, size_t n)
{
    ssize_t got = in_at ? ar_pread(in, buffer, n, *in_at) : ar_read(in, buffer, n);
    if (got <= 0)
        return got;
    ssize_t put = out_at ? ar_pwrite(out, buffer, (size_t)got, *out_at) : ar_write(out, buffer, (size_t)got);
    int error = errno;
    ssize_t done = put < 0 ? 0 : put;
    if (in_at)
        *in_at += done;
    else if (done < got)
        real_lseek(in, done - got, SEEK_CUR);
    if (out_at)
        *out_at += done;
    errno = error;
    return put;
}

static ssize_t copy_through(int in, off_t *in_at, int out, off_t *out_at, size_t n)
{
    void *buffer = malloc(PIECE); /* not on the stack, nor a thread's: there are threads with little of either */
    size_t done = 0;
    ssize_t moved = 1;
    if (!buffer)
        return refuse(ENOMEM);
    while (done < n && moved > 0) {
        size_t want = n - done < PIECE ? n - done : PIECE;
        moved = copy_piece(in, in_at, out, out_at, buffer, want);
        done += moved > 0 ? (size_t)moved : 0;
        if ((size_t)moved < want)
            break;
    }
    int error = errno;
    free(buffer);
    errno = error;
    return done ? (ssize_t)done : moved;
}

AR_EXPORT ssize_t copy_file_range(int in, off_t *in_at, int out, off_t *out_at, size_t n, unsigned flags)
{
    if (!ar_slot_of(in) && !ar_slot_of(out))
        return real_copy_file_range(in, in_at, out, out_at, n, flags);
    return copy_through(in, in_at, out, out_at, n);
}
static ssize_t sendfile_any(int out, int in, off_t *at, size_t n)
{
    return ar_slot_of(in) || ar_slot_of(out) ? copy_through(in, at, out, NULL, n) : real_sendfile(out, in, at, n);
}
AR_EXPORT ssize_t sendfile(int out, int in, off_t *at, size_t n) { return sendfile_any(out, in, at, n); }
AR_EXPORT ssize_t sendfile64(int out, int in, off_t *at, size_t n) { return sendfile_any(out, in, at, n); }

/* One side is a pipe. As much as one read gives, so that nothing that is taken out of a pipe has to go back. */
AR_EXPORT ssize_t splice(int in, off_t *in_at, int out, off_t *out_at, size_t n, unsigned flags)
{
    if (!ar_slot_of(in) && !ar_slot_of(out))
        return real_splice(in, in_at, out, out_at, n, flags);
    return copy_through(in, in_at, out, out_at, n < PIECE ? n : PIECE);
}

/* ---- positions and holes */

static off_t lseek_any(int fd, off_t at, int whence)
{
    struct slot *slot = whence == SEEK_DATA || whence == SEEK_HOLE ? ar_slot_of(fd) : NULL;
    if (!slot)
        return real_lseek(fd, at, whence);
    off_t size = (off_t)atomic_load(&slot->size);
    if (at < 0 || at >= size)
        return refuse(ENXIO);
    return real_lseek(fd, whence == SEEK_DATA ? at : size, SEEK_SET);
}
AR_EXPORT off_t lseek(int fd, off_t at, int whence)
{
    ar_resolve_libc();
    return lseek_any(fd, at, whence);
}
AR_EXPORT off_t lseek64(int fd, off_t at, int whence)
{
    ar_resolve_libc();
    return lseek_any(fd, at, whence);
}

/* ---- ioctl */

/* What neither reads content nor changes it. */
static bool is_harmless(unsigned long request)
{
    static const unsigned long harmless[] = {FIONREAD,      FIONBIO,           FIOASYNC,        FIOCLEX, FIONCLEX,
                                             FIGETBSZ,      FS_IOC_GETFLAGS,   FS_IOC_GETVERSION, TCGETS,  TIOCGWINSZ,
                                             FS_IOC_FSGETXATTR};
    for (size_t i = 0; i < sizeof harmless / sizeof *harmless; i++)
        if (harmless[i] == request)
            return true;
    return false;
}

/* Whether the argument names one of our files. */
static bool names_ours(unsigned long request, void *argument)
{
    if (request == FICLONE)
        return ar_slot_of((int)(intptr_t)argument);
    if (request == FICLONERANGE)
        return ar_slot_of((int)((struct file_clone_range *)argument)->src_fd);
    if (request != FIDEDUPERANGE)
        return false;
    struct file_dedupe_range *range = argument;
    for (int i = 0; i < range->dest_count; i++)
        if (ar_slot_of((int)range->info[i].dest_fd))
            return true;
    return false;
}

AR_EXPORT int ioctl(int fd, unsigned long request, ...)
{
    va_list a;
    va_start(a, request);
    void *argument = va_arg(a, void *);
    va_end(a);
    ar_resolve_libc();
    if (ar_active && ((ar_slot_of(fd) && !is_harmless(request)) || names_ours(request, argument)))
        return refuse(EOPNOTSUPP);
    return real_ioctl(fd, request, argument);
}
