/*
 * Commits that do not wait in their flush. By default fdatasync waits for the volume, like fsync. An engine's module that
 * makes its commits wait elsewhere (engine/src/commit.c) calls ar_defer_commits: from then on fdatasync only orders, in
 * this process and in those it forks; and what must not be seen before it is durable waits where it would be seen:
 *   - a file that was ordered so is read, by whoever, only when all of it is durable;
 *   - a process that asks for it sends nothing to its peer before that.
 */
#include "intercept.h"
#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>

static bool (*before_sleep)(void); /* not NULL: fdatasync only orders */
static bool sends_wait;

/* `hook` is called each time this process is about to sleep in epoll_wait; true: it shall not, nothing came. */
AR_EXPORT void ar_defer_commits(bool (*hook)(void)) { before_sleep = hook; }

/* Returns when all that fdatasync ordered by now, in any process, is durable. */
AR_EXPORT void ar_wait_for_ordered(void)
{
    if (ar_active)
        ar_wait_ordered();
}

/* From now on this process's sends wait as if each called ar_wait_for_ordered. */
AR_EXPORT void ar_gate_sends(void) { sends_wait = true; }

/* What fdatasync is for `slot`: true if it is done. */
bool ar_order_only(struct slot *slot)
{
    if (!before_sleep)
        return false;
    atomic_store_explicit(&slot->ordered, 1, memory_order_relaxed);
    ar_order(atomic_load_explicit(&slot->last_lsn, memory_order_acquire));
    return true;
}

AR_EXPORT int epoll_wait(int fd, struct epoll_event *events, int n, int timeout_ms)
{
    if (before_sleep && timeout_ms != 0 && before_sleep())
        return 0;
    return real_epoll_wait(fd, events, n, timeout_ms);
}

AR_EXPORT ssize_t send(int fd, const void *data, size_t n, int flags)
{
    if (sends_wait)
        ar_wait_for_ordered();
    return real_send(fd, data, n, flags);
}
