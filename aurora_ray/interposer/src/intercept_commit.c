/*
 * Commits that do not wait in their flush. By default fdatasync waits for the volume, like fsync. An engine's module that
 * makes its commits wait elsewhere (engine/src/commit.c) calls ar_defer_commits: from then on fdatasync only orders, in
 * this process and in those it forks; and what must not be seen before it is durable waits where it would be seen:
 *   - a file that was ordered so is read, by whoever, only when all of it is durable;
 *   - a process of which the module says so sends nothing before that;
 *   - a command is run (an archiver's) only when all that was ordered before is durable.
 *
 * A server without such a module names its logs (AURORA_ORDERED_FILES: what their paths in the mount begin with, colons
 * between). A sync of one only orders, whoever calls it and in whatever order, and nothing is sent through any socket of
 * the process before all that was ordered by then is durable: neither the word of a commit, nor what another session
 * reads of it. So it does not matter of how many logs a commit is made, or which of them the server does without. Two
 * things go at once: what a server says before it has heard anything of its client, its greeting, by which one sees that
 * it lives; and what tells of no commit (intercept_told.c).
 */
#include "commit_hooks.h"
#include "intercept.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static struct ar_commit_hooks hooks; /* empty: fdatasync waits */

AR_EXPORT void ar_defer_commits(const struct ar_commit_hooks *of_module) { hooks = *of_module; }

/* Returns when all that fdatasync ordered by now, in any process, is durable. */
AR_EXPORT void ar_wait_for_ordered(void)
{
    if (ar_active)
        ar_wait_ordered();
}

static const char *ordered_files; /* NULL: there are none */

void ar_begin_commits(void)
{
    const char *named = getenv("AURORA_ORDERED_FILES");
    ordered_files = ar_active && named && *named ? named : NULL;
}

bool ar_names_logs(void) { return ordered_files != NULL; }

/* Looked at anew for each sync: a log is replaced by renaming another one. */
static bool is_ordered_file(int fd)
{
    char out[PATH_MAX];
    const char *path = ordered_files ? ar_path_of(fd, out) : NULL;
    for (const char *each = ordered_files; path && each; each = strchr(each, ':')) {
        each += *each == ':';
        if (strncmp(path, each, strcspn(each, ":")) == 0)
            return true;
    }
    return false;
}

/* The first packet of MySQL's protocol that a server sends: numbered 0, of version 10, or an error instead of it. It comes
 * alone: of a long answer, numbers of packets begin again at 0, and a part of it may begin with any bytes. */
static bool is_greeting(const unsigned char *data, size_t n)
{
    return n > 4 && (data[0] | (size_t)data[1] << 8 | (size_t)data[2] << 16) + 4 == n && data[3] == 0 &&
           (data[4] == 10 || data[4] == 0xff);
}

/* Before these bytes leave through `fd`, which is no file of the mount. */
void ar_before_leaving(int fd)
{
    struct stat st;
    if (ordered_files && fstat(fd, &st) == 0 && S_ISSOCK(st.st_mode))
        ar_wait_ordered();
}

static void before_sending(int fd, const void *data, size_t n)
{
    if (!ordered_files)
        return;
    if (is_greeting(data, n))
        ar_session_begins(fd);
    else if (!ar_may_tell_now(fd, data, n))
        ar_wait_ordered();
}

/* After a write to a file of the mount. Not to a log: a server holds a lock then, which all commits need. */
void ar_after_write(const struct slot *slot)
{
    if (hooks.writes_behind && !atomic_load_explicit(&slot->ordered, memory_order_relaxed) && hooks.writes_behind())
        ar_stay_near();
}

/* A file of the module's logs, or the directory that they are in (`logs` ends with a slash then). */
static bool is_log(int fd)
{
    char out[PATH_MAX];
    const char *path = hooks.logs ? ar_path_of(fd, out) : NULL;
    size_t n = path ? strlen(hooks.logs) : 0;
    return path && (strncmp(path, hooks.logs, n) == 0 || (strlen(path) == n - 1 && strncmp(path, hooks.logs, n - 1) == 0));
}

static bool orders_only(int fd) { return (hooks.orders_only && hooks.orders_only()) || is_log(fd); }

/* What a sync of `fd`, a file with that slot, is: true if it is done. */
bool ar_order_only(int fd, struct slot *slot, bool data_only)
{
    if (!(data_only && hooks.before_sleep) && !orders_only(fd) && !is_ordered_file(fd))
        return false;
    atomic_store_explicit(&slot->ordered, 1, memory_order_relaxed);
    ar_order(atomic_load_explicit(&slot->last_lsn, memory_order_acquire));
    return true;
}

/* The same of a directory's sync. */
bool ar_order_names_only(int fd)
{
    if (!orders_only(fd))
        return false;
    ar_order(ar_tail_lsn());
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
    if (ar_active && hooks.checkpoints && hooks.checkpoints())
        ar_sleep_until_settled();
    errno = error;
    return got;
}

AR_EXPORT ssize_t send(int fd, const void *data, size_t n, int flags)
{
    if (hooks.send_waits && hooks.send_waits())
        ar_wait_for_ordered();
    before_sending(fd, data, n);
    return real_send(fd, data, n, flags);
}

AR_EXPORT ssize_t sendto(int fd, const void *data, size_t n, int flags, const struct sockaddr *to, socklen_t bytes)
{
    ar_before_leaving(fd);
    return real_sendto(fd, data, n, flags, to, bytes);
}

AR_EXPORT ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    ar_before_leaving(fd);
    return real_sendmsg(fd, message, flags);
}

AR_EXPORT int system(const char *command)
{
    if (hooks.before_sleep)
        ar_wait_for_ordered();
    ar_capture_streams(-1);
    ar_own_environment();
    return real_system(command);
}
