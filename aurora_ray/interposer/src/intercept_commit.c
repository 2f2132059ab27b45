/*
 * Commits that do not wait in their flush. By default fdatasync waits for the volume, like fsync. An engine's module that
 * makes its commits wait elsewhere (engine/src/commit.c) calls ar_defer_commits: from then on fdatasync only orders, in
 * this process and in those it forks; and what must not be seen before it is durable waits where it would be seen:
 *   - a file that was ordered so is read, by whoever, only when all of it is durable;
 *   - a process of which the module says so sends nothing before that;
 *   - a command is run (an archiver's) only when all that was ordered before is durable.
 *
 * An engine with two logs, which promises a commit by a sync of one file after a sync of another, names the first one
 * (AURORA_ORDERED_FILE, its path in the mount): a sync of that only orders too. The volume has what was written before in
 * front of what was written after, so the second sync makes both durable in one wait.
 */
#include "commit_hooks.h"
#include "intercept.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

static struct ar_commit_hooks hooks; /* empty: fdatasync waits */

AR_EXPORT void ar_defer_commits(const struct ar_commit_hooks *of_module) { hooks = *of_module; }

/* Returns when all that fdatasync ordered by now, in any process, is durable. */
AR_EXPORT void ar_wait_for_ordered(void)
{
    if (ar_active)
        ar_wait_ordered();
}

/* Looked at anew for each sync: a log is replaced by renaming another one. */
static bool is_ordered_file(int fd)
{
    char out[PATH_MAX];
    const char *wanted = getenv("AURORA_ORDERED_FILE"), *path = wanted ? ar_path_of(fd, out) : NULL;
    return path && strcmp(path, wanted) == 0;
}

/* What a sync of `fd`, a file with that slot, is: true if it is done. */
bool ar_order_only(int fd, struct slot *slot, bool data_only)
{
    if (!(data_only && hooks.before_sleep) && !is_ordered_file(fd))
        return false;
    atomic_store_explicit(&slot->ordered, 1, memory_order_relaxed);
    ar_order(atomic_load_explicit(&slot->last_lsn, memory_order_acquire));
    return true;
}

/* Before somebody reads the file of `slot`, by whatever way. */
void ar_wait_if_ordered(struct slot *slot)
{
    if (atomic_load_explicit(&slot->ordered, memory_order_relaxed))
        ar_wait_durable(atomic_load_explicit(&slot->last_lsn, memory_order_acquire));
}

AR_EXPORT int epoll_wait(int fd, struct epoll_event *events, int n, int timeout_ms)
{
    if (!hooks.before_sleep || timeout_ms == 0)
        return real_epoll_wait(fd, events, n, timeout_ms);
    if (hooks.before_sleep())
        return 0;
    int got = real_epoll_wait(fd, events, n, timeout_ms), error = errno;
    hooks.after_sleep();
    errno = error;
    return got;
}

AR_EXPORT ssize_t send(int fd, const void *data, size_t n, int flags)
{
    if (hooks.send_waits && hooks.send_waits())
        ar_wait_for_ordered();
    return real_send(fd, data, n, flags);
}

AR_EXPORT int system(const char *command)
{
    if (hooks.before_sleep)
        ar_wait_for_ordered();
    ar_capture_streams(-1);
    ar_own_environment();
    return real_system(command);
}
