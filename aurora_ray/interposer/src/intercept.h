/* What the files of the interposed functions share: which descriptors are ours, and which paths. */
#ifndef INTERCEPT_H
#define INTERCEPT_H
#include "aurora.h"
#include <errno.h>
#include <limits.h>

#define FD_MAX (1 << 20) /* descriptors from here on cannot be of the mount's files */
enum { FD_DURABLE_WRITES = 1, FD_APPEND = 2, FD_STREAM = 4 };
enum { FD_UNKNOWN = 0, FD_FOREIGN = -1 };
struct tracked {
    int32_t slot; /* slot + 1 of the file; FD_FOREIGN; or FD_UNKNOWN: to be looked at when it is used */
    uint8_t flags;
    uint32_t generation; /* of the slot: another file may have it later */
};
extern struct tracked ar_fds[FD_MAX];
extern bool ar_active; /* this process works on a mount */

/* places.c */
extern char ar_mount_path[PATH_MAX];
extern dev_t ar_device;
const char *ar_proc_link(int fd, char out[64]);

bool ar_place(int dir, const char *path, struct place *at);
void ar_leave(struct place *at);
bool ar_durable_place(int dir, const char *path, bool follow, struct place *at);
bool ar_on_device(const struct statx *st);
struct slot *ar_file_of(int fd, const struct statx *st, bool import);

/* descriptors.c */
struct slot *ar_look_at(int fd);
bool ar_is_borrowed(void);
void ar_forget(int fd);
void ar_forget_foreign(void);
int ar_adopt(int fd, int flags);
int ar_track_copy(int from, int to);
bool ar_is_private(int fd);
bool ar_move_private(int fd);
void ar_begin_descriptors(int region_fd);
extern int ar_region_fd;

/* The file of a descriptor, NULL if it is none of the volume's. errno stays. */
static inline struct slot *ar_slot_of(int fd)
{
    if (!ar_active || fd < 0 || fd >= FD_MAX)
        return NULL;
    int32_t known = ar_fds[fd].slot;
    if (known > 0)
        return ar_slot_if((uint32_t)known - 1, ar_fds[fd].generation);
    return known == FD_FOREIGN ? NULL : ar_look_at(fd);
}

/* intercept_open.c */
int ar_open(int dir, const char *path, int flags, mode_t mode);
bool ar_would_be_ours(int dir, const char *path, int flags);

/* intercept_data.c */
ssize_t ar_read(int fd, void *to, size_t n);
ssize_t ar_pread(int fd, void *to, size_t n, off_t at);
ssize_t ar_write(int fd, const void *from, size_t n);
ssize_t ar_pwrite(int fd, const void *from, size_t n, off_t at);
int ar_keep_present(int fd, struct slot *slot);

/* intercept_stdio.c */
int ar_capture_streams(int fd); /* -1: what a stream wrote could not be read back, so it is not in the log */
void ar_restart_streams(int fd);

/* intercept_exec.c */
void ar_own_environment(void);

/* intercept_accept.c */
void ar_session_given(int fd);

/* intercept_commit.c */
bool ar_order_only(int fd, struct slot *slot, bool data_only);
void ar_wait_if_ordered(struct slot *slot);
void ar_begin_commits(void);
void ar_before_leaving(int fd);
void ar_after_write(const struct slot *slot);
bool ar_order_names_only(int fd);
bool ar_names_logs(void);

/* intercept_told.c */
void ar_session_begins(int fd);
void ar_session_asked(int fd, const unsigned char *data, size_t n);
bool ar_may_tell_now(int fd, const unsigned char *data, size_t n);
#endif
