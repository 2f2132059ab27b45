/*
 * Interposed: calls of the kernel by number, for programs that make them through the libc, and kinds of input and output
 * that no library can follow. Those are refused; whoever uses them has another way for kernels without them.
 */
#include "intercept.h"
#include <aio.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#include <unistd.h>

static long refuse(int error)
{
    errno = error;
    return -1;
}

static long open2(int dir, const char *path, const struct open_how *how)
{
    if (how->resolve) /* nothing is made or cut under rules that only the kernel knows; what is opened is looked at */
        return how->flags & (O_CREAT | O_TRUNC) ? refuse(ENOSYS)
                                                : real_syscall(SYS_openat2, dir, path, how, sizeof *how, 0, 0);
    return ar_open(dir, path, (int)how->flags, (mode_t)how->mode);
}

#define TEXT(i) ((const char *)a[i])
#define DATA(i) ((void *)a[i])
#define NUMBER(i) ((int)a[i])

static bool about_names(long number, const long *a, long *result)
{
    switch (number) {
    case SYS_rename:
        return *result = rename(TEXT(0), TEXT(1)), true;
    case SYS_renameat:
        return *result = renameat(NUMBER(0), TEXT(1), NUMBER(2), TEXT(3)), true;
    case SYS_renameat2:
        return *result = renameat2(NUMBER(0), TEXT(1), NUMBER(2), TEXT(3), (unsigned)a[4]), true;
    case SYS_link:
        return *result = link(TEXT(0), TEXT(1)), true;
    case SYS_linkat:
        return *result = linkat(NUMBER(0), TEXT(1), NUMBER(2), TEXT(3), NUMBER(4)), true;
    case SYS_symlink:
        return *result = symlink(TEXT(0), TEXT(1)), true;
    case SYS_symlinkat:
        return *result = symlinkat(TEXT(0), NUMBER(1), TEXT(2)), true;
    case SYS_unlink:
        return *result = unlink(TEXT(0)), true;
    case SYS_unlinkat:
        return *result = unlinkat(NUMBER(0), TEXT(1), NUMBER(2)), true;
    case SYS_mkdir:
        return *result = mkdir(TEXT(0), (mode_t)a[1]), true;
    case SYS_mkdirat:
        return *result = mkdirat(NUMBER(0), TEXT(1), (mode_t)a[2]), true;
    case SYS_rmdir:
        return *result = rmdir(TEXT(0)), true;
    case SYS_chmod:
        return *result = chmod(TEXT(0), (mode_t)a[1]), true;
    case SYS_fchmod:
        return *result = fchmod(NUMBER(0), (mode_t)a[1]), true;
    case SYS_fchmodat:
        return *result = fchmodat(NUMBER(0), TEXT(1), (mode_t)a[2], 0), true;
    case SYS_truncate:
        return *result = truncate(TEXT(0), a[1]), true;
    default:
        return false;
    }
}

static bool about_descriptors(long number, const long *a, long *result)
{
    switch (number) {
    case SYS_open:
        return *result = ar_open(AT_FDCWD, TEXT(0), NUMBER(1), (mode_t)a[2]), true;
    case SYS_openat:
        return *result = ar_open(NUMBER(0), TEXT(1), NUMBER(2), (mode_t)a[3]), true;
    case SYS_openat2:
        return *result = open2(NUMBER(0), TEXT(1), DATA(2)), true;
    case SYS_creat:
        return *result = creat(TEXT(0), (mode_t)a[1]), true;
    case SYS_close:
        return *result = close(NUMBER(0)), true;
    case SYS_close_range:
        return *result = close_range((unsigned)a[0], (unsigned)a[1], NUMBER(2)), true;
    case SYS_dup:
        return *result = dup(NUMBER(0)), true;
    case SYS_dup2:
        return *result = dup2(NUMBER(0), NUMBER(1)), true;
    case SYS_dup3:
        return *result = dup3(NUMBER(0), NUMBER(1), NUMBER(2)), true;
    case SYS_fcntl:
        return *result = fcntl(NUMBER(0), NUMBER(1), DATA(2)), true;
    case SYS_ioctl:
        return *result = ioctl(NUMBER(0), (unsigned long)a[1], DATA(2)), true;
    case SYS_execve:
        return *result = execve(TEXT(0), DATA(1), DATA(2)), true;
    case SYS_execveat:
        return *result = execveat(NUMBER(0), TEXT(1), DATA(2), DATA(3), NUMBER(4)), true;
    default:
        return false;
    }
}

static bool about_content(long number, const long *a, long *result)
{
    switch (number) {
    case SYS_read:
        return *result = read(NUMBER(0), DATA(1), (size_t)a[2]), true;
    case SYS_write:
        return *result = write(NUMBER(0), DATA(1), (size_t)a[2]), true;
    case SYS_readv:
        return *result = readv(NUMBER(0), DATA(1), NUMBER(2)), true;
    case SYS_writev:
        return *result = writev(NUMBER(0), DATA(1), NUMBER(2)), true;
    case SYS_pread64:
        return *result = pread(NUMBER(0), DATA(1), (size_t)a[2], a[3]), true;
    case SYS_pwrite64:
        return *result = pwrite(NUMBER(0), DATA(1), (size_t)a[2], a[3]), true;
    case SYS_lseek:
        return *result = lseek(NUMBER(0), a[1], NUMBER(2)), true;
    case SYS_ftruncate:
        return *result = ftruncate(NUMBER(0), a[1]), true;
    case SYS_fallocate:
        return *result = fallocate(NUMBER(0), NUMBER(1), a[2], a[3]), true;
    case SYS_fsync:
        return *result = fsync(NUMBER(0)), true;
    case SYS_fdatasync:
        return *result = fdatasync(NUMBER(0)), true;
    case SYS_copy_file_range:
        return *result = copy_file_range(NUMBER(0), DATA(1), NUMBER(2), DATA(3), (size_t)a[4], (unsigned)a[5]), true;
    case SYS_sendfile:
        return *result = sendfile(NUMBER(0), NUMBER(1), DATA(2), (size_t)a[3]), true;
    case SYS_splice:
        return *result = splice(NUMBER(0), DATA(1), NUMBER(2), DATA(3), (size_t)a[4], (unsigned)a[5]), true;
    case SYS_mmap:
        return *result = (long)mmap(DATA(0), (size_t)a[1], NUMBER(2), NUMBER(3), NUMBER(4), a[5]), true;
    case SYS_io_uring_setup:
    case SYS_io_setup:
        return *result = refuse(ENOSYS), true;
    default:
        return false;
    }
}

AR_EXPORT long syscall(long number, ...)
{
    long a[6], result;
    va_list list;
    va_start(list, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(list, long);
    va_end(list);
    ar_resolve_libc();
    if (ar_active && (about_content(number, a, &result) || about_descriptors(number, a, &result) ||
                      about_names(number, a, &result)))
        return result;
    return real_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

/* ---- asynchronous input and output */

#define REFUSE_OURS(name, fd)                                                                                          \
    if (ar_slot_of(fd))                                                                                                \
        return (int)refuse(ENOSYS);                                                                                    \
    return real_##name(request);
AR_EXPORT int aio_read(struct aiocb *request) { REFUSE_OURS(aio_read, request->aio_fildes) }
AR_EXPORT int aio_read64(struct aiocb64 *request) { REFUSE_OURS(aio_read64, request->aio_fildes) }
AR_EXPORT int aio_write(struct aiocb *request) { REFUSE_OURS(aio_write, request->aio_fildes) }
AR_EXPORT int aio_write64(struct aiocb64 *request) { REFUSE_OURS(aio_write64, request->aio_fildes) }

static bool any_ours(struct aiocb *const list[], int n)
{
    for (int i = 0; i < n; i++)
        if (list[i] && ar_slot_of(list[i]->aio_fildes))
            return true;
    return false;
}
AR_EXPORT int lio_listio(int mode, struct aiocb *const list[], int n, struct sigevent *event)
{
    return any_ours(list, n) ? (int)refuse(ENOSYS) : real_lio_listio(mode, list, n, event);
}
AR_EXPORT int lio_listio64(int mode, struct aiocb64 *const list[], int n, struct sigevent *event)
{
    return any_ours((struct aiocb *const *)list, n) ? (int)refuse(ENOSYS) : real_lio_listio64(mode, list, n, event);
}

/* libaio and liburing call the kernel past the libc, so what begins there is refused here: no context, no ring. They
 * return errors as the kernel does. A library that was loaded later for its user alone is not found, and is refused too. */
#define REFUSE_BEGINNING(name, parameters, arguments)                                                                  \
    AR_EXPORT int name parameters                                                                                      \
    {                                                                                                                  \
        ar_resolve_libc();                                                                                             \
        return ar_active || !real_##name ? -ENOSYS : real_##name arguments;                                            \
    }
REFUSE_BEGINNING(io_setup, (int n, void *context), (n, context))
REFUSE_BEGINNING(io_queue_init, (int n, void *context), (n, context))
REFUSE_BEGINNING(io_uring_setup, (unsigned n, void *parameters), (n, parameters))
REFUSE_BEGINNING(io_uring_queue_init, (unsigned n, void *ring, unsigned flags), (n, ring, flags))
REFUSE_BEGINNING(io_uring_queue_init_params, (unsigned n, void *ring, void *parameters), (n, ring, parameters))
REFUSE_BEGINNING(io_uring_queue_init_mem, (unsigned n, void *ring, void *parameters, void *memory, size_t bytes),
                 (n, ring, parameters, memory, bytes))
