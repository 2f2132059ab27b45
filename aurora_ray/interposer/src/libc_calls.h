/*
 * The table of the libc functions that are interposed: result, name, parameters, arguments. From it come the pointers
 * to the libc's own functions (real_open, ...), their resolution, and the list that the symbol check reads.
 */
#ifndef LIBC_CALLS_H
#define LIBC_CALLS_H
#include <aio.h>
#include <dirent.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>

#define AR_SPAWN_PARAMETERS                                                                                            \
    (pid_t * pid, const char *path, const posix_spawn_file_actions_t *actions, const posix_spawnattr_t *attributes,    \
     char *const arguments[], char *const environment[])
#define LIBC_CALLS(X)                                                                                                  \
    X(int, open, (const char *path, int flags, ...))                                                                   \
    X(int, open64, (const char *path, int flags, ...))                                                                 \
    X(int, openat, (int dir, const char *path, int flags, ...))                                                        \
    X(int, openat64, (int dir, const char *path, int flags, ...))                                                      \
    X(int, __open_2, (const char *path, int flags))                                                                    \
    X(int, __open64_2, (const char *path, int flags))                                                                  \
    X(int, __openat_2, (int dir, const char *path, int flags))                                                         \
    X(int, __openat64_2, (int dir, const char *path, int flags))                                                       \
    X(int, creat, (const char *path, mode_t mode))                                                                     \
    X(int, creat64, (const char *path, mode_t mode))                                                                   \
    X(int, close, (int fd))                                                                                            \
    X(int, dup, (int fd))                                                                                              \
    X(int, dup2, (int from, int to))                                                                                   \
    X(int, dup3, (int from, int to, int flags))                                                                        \
    X(int, fcntl, (int fd, int command, ...))                                                                          \
    X(int, fcntl64, (int fd, int command, ...))                                                                        \
    X(ssize_t, read, (int fd, void *to, size_t n))                                                                     \
    X(ssize_t, __read_chk, (int fd, void *to, size_t n, size_t room))                                                  \
    X(ssize_t, readv, (int fd, const struct iovec *v, int n))                                                          \
    X(ssize_t, pread, (int fd, void *to, size_t n, off_t at))                                                          \
    X(ssize_t, pread64, (int fd, void *to, size_t n, off_t at))                                                        \
    X(ssize_t, __pread_chk, (int fd, void *to, size_t n, off_t at, size_t room))                                       \
    X(ssize_t, __pread64_chk, (int fd, void *to, size_t n, off_t at, size_t room))                                     \
    X(ssize_t, preadv, (int fd, const struct iovec *v, int n, off_t at))                                               \
    X(ssize_t, preadv64, (int fd, const struct iovec *v, int n, off_t at))                                             \
    X(ssize_t, preadv2, (int fd, const struct iovec *v, int n, off_t at, int flags))                                   \
    X(ssize_t, preadv64v2, (int fd, const struct iovec *v, int n, off_t at, int flags))                                \
    X(ssize_t, write, (int fd, const void *from, size_t n))                                                            \
    X(ssize_t, writev, (int fd, const struct iovec *v, int n))                                                         \
    X(ssize_t, pwrite, (int fd, const void *from, size_t n, off_t at))                                                 \
    X(ssize_t, pwrite64, (int fd, const void *from, size_t n, off_t at))                                               \
    X(ssize_t, pwritev, (int fd, const struct iovec *v, int n, off_t at))                                              \
    X(ssize_t, pwritev64, (int fd, const struct iovec *v, int n, off_t at))                                            \
    X(ssize_t, pwritev2, (int fd, const struct iovec *v, int n, off_t at, int flags))                                  \
    X(ssize_t, pwritev64v2, (int fd, const struct iovec *v, int n, off_t at, int flags))                               \
    X(ssize_t, copy_file_range, (int in, off_t *in_at, int out, off_t *out_at, size_t n, unsigned flags))              \
    X(ssize_t, sendfile, (int out, int in, off_t *at, size_t n))                                                       \
    X(ssize_t, sendfile64, (int out, int in, off_t *at, size_t n))                                                     \
    X(void *, mmap, (void *hint, size_t n, int protection, int flags, int fd, off_t at))                               \
    X(void *, mmap64, (void *hint, size_t n, int protection, int flags, int fd, off_t at))                             \
    X(int, fsync, (int fd))                                                                                            \
    X(int, fdatasync, (int fd))                                                                                        \
    X(int, syncfs, (int fd))                                                                                           \
    X(void, sync, (void))                                                                                              \
    X(int, sync_file_range, (int fd, off_t at, off_t n, unsigned flags))                                               \
    X(int, ftruncate, (int fd, off_t size))                                                                            \
    X(int, ftruncate64, (int fd, off_t size))                                                                          \
    X(int, truncate, (const char *path, off_t size))                                                                   \
    X(int, truncate64, (const char *path, off_t size))                                                                 \
    X(int, posix_fallocate, (int fd, off_t at, off_t n))                                                               \
    X(int, posix_fallocate64, (int fd, off_t at, off_t n))                                                             \
    X(int, fallocate, (int fd, int mode, off_t at, off_t n))                                                           \
    X(int, fallocate64, (int fd, int mode, off_t at, off_t n))                                                         \
    X(int, posix_fadvise, (int fd, off_t at, off_t n, int advice))                                                     \
    X(int, posix_fadvise64, (int fd, off_t at, off_t n, int advice))                                                   \
    X(int, unlink, (const char *path))                                                                                 \
    X(int, unlinkat, (int dir, const char *path, int flags))                                                           \
    X(int, remove, (const char *path))                                                                                 \
    X(int, rename, (const char *from, const char *to))                                                                 \
    X(int, renameat, (int from_dir, const char *from, int to_dir, const char *to))                                     \
    X(int, renameat2, (int from_dir, const char *from, int to_dir, const char *to, unsigned flags))                    \
    X(int, link, (const char *from, const char *to))                                                                   \
    X(int, linkat, (int from_dir, const char *from, int to_dir, const char *to, int flags))                            \
    X(int, symlink, (const char *target, const char *path))                                                            \
    X(int, symlinkat, (const char *target, int dir, const char *path))                                                 \
    X(int, mkdir, (const char *path, mode_t mode))                                                                     \
    X(int, mkdirat, (int dir, const char *path, mode_t mode))                                                          \
    X(int, rmdir, (const char *path))                                                                                  \
    X(int, chmod, (const char *path, mode_t mode))                                                                     \
    X(int, fchmodat, (int dir, const char *path, mode_t mode, int flags))                                              \
    X(int, fchmod, (int fd, mode_t mode))                                                                              \
    X(FILE *, fopen, (const char *path, const char *mode))                                                             \
    X(FILE *, fopen64, (const char *path, const char *mode))                                                           \
    X(FILE *, fdopen, (int fd, const char *mode))                                                                      \
    X(FILE *, freopen, (const char *path, const char *mode, FILE *stream))                                             \
    X(FILE *, freopen64, (const char *path, const char *mode, FILE *stream))                                           \
    X(int, epoll_wait, (int fd, struct epoll_event *events, int n, int timeout_ms))                                    \
    X(int, accept, (int listener, struct sockaddr * address, socklen_t *bytes))                                        \
    X(int, accept4, (int listener, struct sockaddr * address, socklen_t *bytes, int flags))                            \
    X(int, bind, (int fd, const struct sockaddr *address, socklen_t bytes))                                            \
    X(int, getpeername, (int fd, struct sockaddr *address, socklen_t *bytes))                                          \
    X(ssize_t, recv, (int fd, void *to, size_t n, int flags))                                                          \
    X(ssize_t, send, (int fd, const void *data, size_t n, int flags))                                                  \
    X(ssize_t, sendto, (int fd, const void *data, size_t n, int flags, const struct sockaddr *to, socklen_t bytes))    \
    X(ssize_t, sendmsg, (int fd, const struct msghdr *message, int flags))                                             \
    X(int, system, (const char *command))                                                                              \
    X(int, fflush, (FILE * stream))                                                                                    \
    X(int, mkstemp, (char *path))                                                                                      \
    X(int, mkstemp64, (char *path))                                                                                    \
    X(int, mkstemps, (char *path, int suffix))                                                                         \
    X(int, mkstemps64, (char *path, int suffix))                                                                       \
    X(int, mkostemp, (char *path, int flags))                                                                          \
    X(int, mkostemp64, (char *path, int flags))                                                                        \
    X(int, mkostemps, (char *path, int suffix, int flags))                                                             \
    X(int, mkostemps64, (char *path, int suffix, int flags))                                                           \
    X(char *, mkdtemp, (char *path))                                                                                   \
    X(int, close_range, (unsigned first, unsigned last, int flags))                                                    \
    X(void, closefrom, (int low))                                                                                      \
    X(int, mknod, (const char *path, mode_t mode, dev_t device))                                                       \
    X(int, mknodat, (int dir, const char *path, mode_t mode, dev_t device))                                            \
    X(off_t, lseek, (int fd, off_t at, int whence))                                                                    \
    X(off_t, lseek64, (int fd, off_t at, int whence))                                                                  \
    X(ssize_t, splice, (int in, off_t *in_at, int out, off_t *out_at, size_t n, unsigned flags))                       \
    X(int, ioctl, (int fd, unsigned long request, ...))                                                                \
    X(int, fseek, (FILE * stream, long at, int whence))                                                                \
    X(int, fseeko, (FILE * stream, off_t at, int whence))                                                              \
    X(int, fseeko64, (FILE * stream, off_t at, int whence))                                                            \
    X(int, fsetpos, (FILE * stream, const fpos_t *at))                                                                 \
    X(int, fsetpos64, (FILE * stream, const fpos64_t *at))                                                             \
    X(void, rewind, (FILE * stream))                                                                                   \
    X(int, fflush_unlocked, (FILE * stream))                                                                           \
    X(int, closedir, (DIR * directory))                                                                                \
    X(int, vdprintf, (int fd, const char *format, va_list arguments))                                                  \
    X(int, dprintf, (int fd, const char *format, ...))                                                                 \
    X(int, __dprintf_chk, (int fd, int flag, const char *format, ...))                                                 \
    X(int, __vdprintf_chk, (int fd, int flag, const char *format, va_list arguments))                                  \
    X(void, _exit, (int code))                                                                                         \
    X(void, _Exit, (int code))                                                                                         \
    X(int, execve, (const char *path, char *const arguments[], char *const environment[]))                             \
    X(int, execv, (const char *path, char *const arguments[]))                                                         \
    X(int, execvp, (const char *path, char *const arguments[]))                                                        \
    X(int, execvpe, (const char *path, char *const arguments[], char *const environment[]))                            \
    X(int, execl, (const char *path, const char *first, ...))                                                          \
    X(int, execlp, (const char *path, const char *first, ...))                                                         \
    X(int, execle, (const char *path, const char *first, ...))                                                         \
    X(int, fexecve, (int fd, char *const arguments[], char *const environment[]))                                      \
    X(int, execveat, (int dir, const char *path, char *const arguments[], char *const environment[], int flags))       \
    X(int, posix_spawn, AR_SPAWN_PARAMETERS)                                                                           \
    X(int, posix_spawnp, AR_SPAWN_PARAMETERS)                                                                          \
    X(FILE *, popen, (const char *command, const char *mode))                                                          \
    X(long, syscall, (long number, ...))                                                                               \
    X(int, aio_read, (struct aiocb * request))                                                                         \
    X(int, aio_read64, (struct aiocb64 * request))                                                                     \
    X(int, aio_write, (struct aiocb * request))                                                                        \
    X(int, aio_write64, (struct aiocb64 * request))                                                                    \
    X(int, lio_listio, (int mode, struct aiocb *const list[], int n, struct sigevent *event))                          \
    X(int, lio_listio64, (int mode, struct aiocb64 *const list[], int n, struct sigevent *event))                      \
    X(int, io_setup, (int n, void *context))                                                                           \
    X(int, io_queue_init, (int n, void *context))                                                                      \
    X(int, io_uring_setup, (unsigned n, void *parameters))                                                             \
    X(int, io_uring_queue_init, (unsigned n, void *ring, unsigned flags))                                              \
    X(int, io_uring_queue_init_params, (unsigned n, void *ring, void *parameters))                                     \
    X(int, io_uring_queue_init_mem, (unsigned n, void *ring, void *parameters, void *memory, size_t bytes))            \
    X(int, setxattr, (const char *path, const char *name, const void *value, size_t bytes, int flags))                 \
    X(int, fsetxattr, (int fd, const char *name, const void *value, size_t bytes, int flags))                          \
    X(int, stat, (const char *path, struct stat *st))                                                                  \
    X(int, lstat, (const char *path, struct stat *st))                                                                 \
    X(int, fstat, (int fd, struct stat *st))                                                                           \
    X(int, fstatat, (int dir, const char *path, struct stat *st, int flags))                                           \
    X(int, stat64, (const char *path, struct stat64 *st))                                                              \
    X(int, lstat64, (const char *path, struct stat64 *st))                                                             \
    X(int, fstat64, (int fd, struct stat64 *st))                                                                       \
    X(int, fstatat64, (int dir, const char *path, struct stat64 *st, int flags))                                       \
    X(int, statx, (int dir, const char *path, int flags, unsigned mask, struct statx *st))                             \
    X(int, lchmod, (const char *path, mode_t mode))                                                                    \
    X(int, fclose, (FILE * stream))

#define DECLARE(result, name, parameters) extern result(*real_##name) parameters;
LIBC_CALLS(DECLARE)
#undef DECLARE
void ar_resolve_libc(void);
#endif
