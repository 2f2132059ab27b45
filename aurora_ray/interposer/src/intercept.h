/* What the files of the interposed functions share: which descriptors are ours, and which paths. */
#ifndef INTERCEPT_H
#define INTERCEPT_H
#include "aurora.h"
#include <limits.h>

#define FD_MAX 65536
enum { FD_DURABLE_WRITES = 1, FD_APPEND = 2 };
struct tracked {
    int32_t slot; /* 0: not ours; slot + 1: a file; -1: a directory under the mount */
    uint8_t flags;
    uint32_t generation; /* of the slot: another file may have it later */
};
extern struct tracked ar_fds[FD_MAX];
extern bool ar_active; /* this process works on a mount */

struct slot *ar_slot_of(int fd);
void ar_track(int fd, int32_t slot, uint8_t flags);
int ar_track_copy(int from, int to);
const char *ar_durable_path(int dir, const char *path, char out[PATH_MAX]);
int ar_open(int dir, const char *path, int flags, mode_t mode);
ssize_t ar_write(int fd, const void *from, size_t n);
int ar_capture_streams(int fd); /* -1: what a stream wrote could not be read back, so it is not in the log */
bool ar_order_only(struct slot *slot);
void ar_wait_if_ordered(struct slot *slot);
#endif
