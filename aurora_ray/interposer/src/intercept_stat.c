/* Interposed: looks at files. Sizes are right by themselves; how much is on the disk is nobody's business: see holes. */
#include "intercept.h"
#include <fcntl.h>
#include <unistd.h>

#define BLOCK 512

/* A file of which little is here would pass for one of holes: tar --sparse stores none of it. */
static int filled(int result, struct stat *st)
{
    if (result || !ar_active || !S_ISREG(st->st_mode) || st->st_dev != ar_device)
        return result;
    blkcnt_t blocks = (st->st_size + BLOCK - 1) / BLOCK;
    if (st->st_blocks < blocks && ar_find(st->st_ino))
        st->st_blocks = blocks;
    return 0;
}
static int filled64(int result, struct stat64 *st) { return filled(result, (struct stat *)st); }
_Static_assert(sizeof(struct stat) == sizeof(struct stat64), "the same on 64-bit machines");

AR_EXPORT int stat(const char *path, struct stat *st) { return ar_resolve_libc(), filled(real_stat(path, st), st); }
AR_EXPORT int lstat(const char *path, struct stat *st) { return ar_resolve_libc(), filled(real_lstat(path, st), st); }
AR_EXPORT int fstat(int fd, struct stat *st) { return ar_resolve_libc(), filled(real_fstat(fd, st), st); }
AR_EXPORT int fstatat(int dir, const char *path, struct stat *st, int flags)
{
    return ar_resolve_libc(), filled(real_fstatat(dir, path, st, flags), st);
}
AR_EXPORT int stat64(const char *path, struct stat64 *st)
{
    return ar_resolve_libc(), filled64(real_stat64(path, st), st);
}
AR_EXPORT int lstat64(const char *path, struct stat64 *st)
{
    return ar_resolve_libc(), filled64(real_lstat64(path, st), st);
}
AR_EXPORT int fstat64(int fd, struct stat64 *st) { return ar_resolve_libc(), filled64(real_fstat64(fd, st), st); }
AR_EXPORT int fstatat64(int dir, const char *path, struct stat64 *st, int flags)
{
    return ar_resolve_libc(), filled64(real_fstatat64(dir, path, st, flags), st);
}
AR_EXPORT int statx(int dir, const char *path, int flags, unsigned mask, struct statx *st)
{
    ar_resolve_libc();
    int result = real_statx(dir, path, flags, mask, st);
    if (result || !ar_active || !ar_on_device(st))
        return result;
    uint64_t blocks = (st->stx_size + BLOCK - 1) / BLOCK;
    if (st->stx_blocks < blocks && ar_find(st->stx_ino))
        st->stx_blocks = blocks;
    return 0;
}
