/*
 * Interposed: streams. The libc writes by itself; what it wrote is logged when the stream is flushed, synced or closed.
 */
#include "intercept.h"
#include <dirent.h>
#include <fcntl.h>
#include <stdarg.h>
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
/* Standard output and standard error are always there; what they write to may change at any time. */
static struct stream standard[2] = {{.fd = STDOUT_FILENO, .next = &standard[1]}, {.fd = STDERR_FILENO}};
static struct stream *streams = standard;
static pthread_mutex_t streams_lock = PTHREAD_MUTEX_INITIALIZER;

/* Where the stream writes next, once it has handed over what it had. */
static uint64_t next_write(const struct stream *s, const struct slot *slot)
{
    uint64_t size = atomic_load(&slot->size);
    off_t at = ar_fds[s->fd].flags & FD_APPEND ? (off_t)size : real_lseek(s->fd, 0, SEEK_CUR);
    return at < 0 || (uint64_t)at > size ? size : (uint64_t)at;
}

static int capture(struct stream *s)
{
    struct slot *slot = ar_slot_of(s->fd);
    if (!slot || !(ar_fds[s->fd].flags & FD_STREAM))
        return 0;
    if (ar_capture(s->fd, slot, s->anywhere ? 0 : s->logged) < 0)
        return -1; /* it stays to be logged */
    s->logged = next_write(s, slot);
    return 0;
}

static int capture_file(FILE *file)
{
    int result = 0;
    if (!ar_active)
        return 0;
    int fd = file ? fileno(file) : -1;
    pthread_mutex_lock(&streams_lock);
    for (struct stream *s = streams; s; s = s->next)
        if ((!file || s->file == file || (!s->file && s->fd == fd)) && capture(s) < 0)
            result = -1;
    pthread_mutex_unlock(&streams_lock);
    return result;
}

/* fd -1: all of them. An fsync of a stream's descriptor covers what fflush has handed to the kernel before. */
int ar_capture_streams(int fd)
{
    if (!ar_active || (fd >= 0 && (fd >= FD_MAX || !(ar_fds[fd].flags & FD_STREAM))))
        return 0;
    int result = 0;
    pthread_mutex_lock(&streams_lock);
    for (struct stream *s = streams; s; s = s->next)
        if ((fd < 0 || s->fd == fd) && capture(s) < 0)
            result = -1;
    pthread_mutex_unlock(&streams_lock);
    return result;
}

/* `fd` has become a file of the volume: what streams on it write from now on is to be captured. */
void ar_restart_streams(int fd)
{
    pthread_mutex_lock(&streams_lock);
    for (struct stream *s = streams; s; s = s->next)
        if (s->fd == fd) {
            ar_fds[fd].flags |= FD_STREAM;
            s->logged = next_write(s, ar_slot_of(fd));
        }
    pthread_mutex_unlock(&streams_lock);
}

static FILE *watch_stream(FILE *file, const char *mode)
{
    int fd = file ? fileno(file) : -1;
    struct slot *slot = ar_slot_of(fd);
    struct stream *s = slot && strpbrk(mode, "wa+") ? malloc(sizeof *s) : NULL;
    if (s) {
        *s = (struct stream){.file = file, .fd = fd, .anywhere = strchr(mode, '+') != NULL};
        ar_fds[fd].flags |= FD_STREAM | (mode[0] == 'a' ? FD_APPEND : 0);
        s->logged = next_write(s, slot);
        pthread_mutex_lock(&streams_lock);
        s->next = streams;
        streams = s;
        pthread_mutex_unlock(&streams_lock);
    }
    return file;
}

/* No longer watched; what it was, to be freed, or NULL. */
static struct stream *unwatch(FILE *file)
{
    struct stream *gone = NULL;
    pthread_mutex_lock(&streams_lock);
    for (struct stream **link = &streams; *link; link = &(*link)->next)
        if ((*link)->file == file) {
            gone = *link;
            *link = gone->next;
            break;
        }
    pthread_mutex_unlock(&streams_lock);
    return gone;
}

static int flags_of(const char *mode)
{
    int update = strchr(mode, '+') ? O_RDWR : mode[0] == 'r' ? O_RDONLY : O_WRONLY;
    int how = mode[0] == 'w' ? O_CREAT | O_TRUNC : mode[0] == 'a' ? O_CREAT | O_APPEND : 0;
    return update | how | (strchr(mode, 'x') ? O_EXCL : 0) | (strchr(mode, 'e') ? O_CLOEXEC : 0);
}

/* The libc will read by itself too, so all of the file must be here; who uses stdio has small files. */
static int prepare(int fd)
{
    struct slot *slot = ar_slot_of(fd);
    return slot ? ar_keep_present(fd, slot) : 0;
}

static FILE *fopen_any(const char *path, const char *mode)
{
    if (!ar_would_be_ours(AT_FDCWD, path, flags_of(mode)))
        return real_fopen(path, mode);
    int fd = ar_open(AT_FDCWD, path, flags_of(mode), 0666);
    if (fd < 0)
        return NULL;
    FILE *file = prepare(fd) < 0 ? NULL : real_fdopen(fd, mode);
    int error = errno;
    if (!file)
        close(fd);
    errno = error;
    return watch_stream(file, mode);
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
    ar_resolve_libc();
    return prepare(fd) < 0 ? NULL : watch_stream(real_fdopen(fd, mode), mode);
}

/* The libc opens by itself here: what it shall open is opened before, so that it is known and logged. */
static FILE *freopen_any(const char *path, const char *mode, FILE *stream)
{
    char link[64];
    ar_resolve_libc();
    int old = ar_active && stream ? fileno(stream) : -1, fd = -1;
    bool ours = path && ar_would_be_ours(AT_FDCWD, path, flags_of(mode));
    if (old >= 0) {
        real_fflush(stream);
        ar_forget(old);
        free(unwatch(stream));
    }
    if (ours && ((fd = ar_open(AT_FDCWD, path, flags_of(mode), 0666)) < 0 || prepare(fd) < 0))
        return NULL;
    FILE *file = real_freopen(ours ? ar_proc_link(fd, link) : path, ours && mode[0] == 'w' ? "r+" : mode, stream);
    if (fd >= 0)
        close(fd);
    return watch_stream(file, mode);
}
AR_EXPORT FILE *freopen(const char *path, const char *mode, FILE *stream) { return freopen_any(path, mode, stream); }
AR_EXPORT FILE *freopen64(const char *path, const char *mode, FILE *stream) { return freopen_any(path, mode, stream); }

/* ---- streams that are moved: what is written there lies before what was captured last */

static int sought(FILE *stream, int result)
{
    int fd = ar_active ? fileno(stream) : -1, error = errno;
    if (fd < 0 || fd >= FD_MAX || !(ar_fds[fd].flags & FD_STREAM))
        return result;
    off_t at = ftello(stream);
    pthread_mutex_lock(&streams_lock);
    for (struct stream *s = streams; s; s = s->next)
        if ((s->file == stream || (!s->file && s->fd == fd)) && at >= 0 && (uint64_t)at < s->logged)
            s->logged = (uint64_t)at;
    pthread_mutex_unlock(&streams_lock);
    errno = error;
    return result;
}
AR_EXPORT int fseek(FILE *stream, long at, int whence) { return sought(stream, real_fseek(stream, at, whence)); }
AR_EXPORT int fseeko(FILE *stream, off_t at, int whence) { return sought(stream, real_fseeko(stream, at, whence)); }
AR_EXPORT int fseeko64(FILE *stream, off_t at, int whence) { return sought(stream, real_fseeko(stream, at, whence)); }
AR_EXPORT int fsetpos(FILE *stream, const fpos_t *at) { return sought(stream, real_fsetpos(stream, at)); }
AR_EXPORT int fsetpos64(FILE *stream, const fpos64_t *at) { return sought(stream, real_fsetpos64(stream, at)); }
AR_EXPORT void rewind(FILE *stream)
{
    real_rewind(stream);
    sought(stream, 0);
}

AR_EXPORT int fflush(FILE *stream)
{
    ar_resolve_libc();
    int result = real_fflush(stream);
    return capture_file(stream) < 0 ? EOF : result;
}
AR_EXPORT int fflush_unlocked(FILE *stream) { return fflush(stream); }

AR_EXPORT int fclose(FILE *stream)
{
    ar_resolve_libc();
    int fd = ar_active ? fileno(stream) : -1, flushed = 0, captured = 0, error = 0;
    if (fd >= 0 && fd < FD_MAX && ar_fds[fd].flags & FD_STREAM) {
        flushed = real_fflush(stream);
        captured = ar_capture_streams(fd);
        error = errno;
    }
    if (ar_active)
        free(unwatch(stream));
    ar_forget(fd);
    if (real_fclose(stream))
        return EOF;
    errno = captured ? error : errno;
    return flushed || captured ? EOF : 0;
}

/* Descriptors that the libc closes by itself. */
AR_EXPORT int closedir(DIR *directory)
{
    ar_forget(ar_active ? dirfd(directory) : -1);
    return real_closedir(directory);
}

/* Formatted output to a descriptor. */
AR_EXPORT int vdprintf(int fd, const char *format, va_list arguments)
{
    char *text = NULL;
    if (!ar_slot_of(fd))
        return real_vdprintf(fd, format, arguments);
    int n = vasprintf(&text, format, arguments);
    if (n >= 0 && ar_write(fd, text, (size_t)n) < 0)
        n = -1;
    int error = errno;
    free(text);
    errno = error;
    return n;
}
#define PRINTED(last)                                                                                                  \
    va_list a;                                                                                                         \
    va_start(a, last);                                                                                                 \
    int n = vdprintf(fd, format, a);                                                                                   \
    va_end(a);                                                                                                         \
    return n;
AR_EXPORT int dprintf(int fd, const char *format, ...) { PRINTED(format) }
AR_EXPORT int __dprintf_chk(int fd, int flag, const char *format, ...)
{
    (void)flag;
    PRINTED(format)
}
AR_EXPORT int __vdprintf_chk(int fd, int flag, const char *format, va_list arguments)
{
    (void)flag;
    return vdprintf(fd, format, arguments);
}

/* ---- the end */

AR_EXPORT _Noreturn void _exit(int code)
{
    ar_resolve_libc();
    ar_capture_streams(-1);
    real__exit(code);
    __builtin_unreachable();
}
AR_EXPORT _Noreturn void _Exit(int code) { _exit(code); }

__attribute__((destructor)) static void end(void)
{
    if (ar_active) {
        real_fflush(NULL);
        ar_capture_streams(-1);
    }
}
