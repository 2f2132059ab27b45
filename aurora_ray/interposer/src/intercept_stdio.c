/*
 * Interposed: streams. The libc writes by itself; what it wrote is logged when the stream is flushed, synced or closed.
 */
#include "intercept.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct stream {
    FILE *file;
    int fd;
    uint64_t logged; /* all below has been captured */
    bool anywhere;   /* opened for update: any part may have changed */
    struct stream *next;
};
static struct stream *streams;
static pthread_mutex_t streams_lock = PTHREAD_MUTEX_INITIALIZER;

static int capture(struct stream *s)
{
    struct slot *slot = ar_slot_of(s->fd);
    if (!slot)
        return 0;
    if (ar_capture(s->fd, slot, s->anywhere ? 0 : s->logged) < 0)
        return -1; /* it stays to be logged */
    s->logged = atomic_load(&slot->size);
    return 0;
}

static int capture_file(FILE *file)
{
    int result = 0;
    if (!ar_active || !streams)
        return 0;
    pthread_mutex_lock(&streams_lock);
    for (struct stream *s = streams; s; s = s->next)
        if ((!file || s->file == file) && capture(s) < 0)
            result = -1;
    pthread_mutex_unlock(&streams_lock);
    return result;
}

/* fd -1: all of them. An fsync of a stream's descriptor covers what fflush has handed to the kernel before. */
int ar_capture_streams(int fd)
{
    int result = 0;
    if (!ar_active || !streams)
        return 0;
    pthread_mutex_lock(&streams_lock);
    for (struct stream *s = streams; s; s = s->next)
        if ((fd < 0 || s->fd == fd) && capture(s) < 0)
            result = -1;
    pthread_mutex_unlock(&streams_lock);
    return result;
}

static FILE *watch_stream(FILE *file, int fd, const char *mode)
{
    struct stream *s = file && ar_slot_of(fd) && strpbrk(mode, "wa+") ? malloc(sizeof *s) : NULL;
    if (s) {
        *s = (struct stream){.file = file, .fd = fd, .anywhere = strchr(mode, '+') != NULL, .next = streams};
        s->logged = mode[0] == 'a' ? atomic_load(&ar_slot_of(fd)->size) : 0;
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
    if (!ar_durable_path(AT_FDCWD, path, out))
        return real_fopen(path, mode);
    int fd = ar_open(AT_FDCWD, path, flags_of(mode), 0666);
    if (fd < 0)
        return NULL;
    struct slot *slot = ar_slot_of(fd);
    /* The libc will read by itself too, so all of the file must be here; the engines use stdio for small files. */
    if (slot)
        atomic_store(&slot->pinned, 1);
    if (slot)
        ar_wait_if_ordered(slot);
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
    struct slot *slot = ar_slot_of(fd);
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
    if (ar_durable_path(AT_FDCWD, path, out)) {
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
    return capture_file(stream) < 0 ? EOF : result;
}

AR_EXPORT int fclose(FILE *stream)
{
    ar_resolve_libc();
    struct stream *gone = NULL;
    int fd = -1;
    if (ar_active) {
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
    int captured = gone ? capture(gone) : 0, error = errno;
    free(gone);
    if (fd >= 0)
        ar_track(fd, 0, 0);
    if (real_fclose(stream))
        return EOF;
    errno = captured ? error : errno;
    return flushed || captured ? EOF : 0;
}

__attribute__((destructor)) static void end(void)
{
    if (ar_active && streams) {
        real_fflush(NULL);
        ar_capture_streams(-1);
    }
}
