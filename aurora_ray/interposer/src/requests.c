/* Asking the driver, for pages above all, and giving back what the dead have asked for. */
#include "aurora.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

/* What /proc says of a process or thread: 'R', 'S', 'D', 'T' for a stopped one, ...; 0: it is gone, or a zombie. */
char ar_process_state(uint32_t id)
{
    char path[32] = "/proc/", digits[12], text[128];
    int before = errno;
    size_t at = 6, n = 0;
    do
        digits[n++] = (char)('0' + id % 10);
    while (id /= 10);
    while (n)
        path[at++] = digits[--n];
    memcpy(path + at, "/stat", 6);
    int fd = real_openat(AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : real_read(fd, text, sizeof text - 1);
    if (fd >= 0)
        real_close(fd);
    bool unknown = fd < 0 && errno != ENOENT; /* no descriptor to spare: believe that it lives */
    errno = before;
    if (got <= 0)
        return unknown ? '?' : 0;
    text[got] = 0;
    const char *name_end = strrchr(text, ')');
    char state = name_end && name_end + 2 < text + got ? name_end[2] : '?';
    return state == 'Z' || state == 'X' ? 0 : state;
}

/*
 * Frees what belongs to processes that died while they filled in a request or waited for its answer. The driver does it
 * every second or so, long before a process number comes again, and whoever finds no free request.
 */
void ar_reclaim_requests(struct region *region)
{
    for (int i = 0; i < AR_REQUESTS; i++) {
        _Atomic uint32_t *state = &region->requests[i].state;
        uint32_t word = atomic_load(state), kind = ar_request_state(word);
        if ((kind == REQUEST_FILLING || kind == REQUEST_DONE) && !ar_process_state(word >> AR_PID_SHIFT))
            atomic_compare_exchange_strong(state, &word, REQUEST_FREE);
    }
}

static struct request *claim_request(uint32_t pid)
{
    for (int i = 0; i < AR_REQUESTS; i++) {
        struct request *r = &ar_region->requests[i];
        uint32_t free = REQUEST_FREE;
        if (atomic_compare_exchange_strong(&r->state, &free, pid << AR_PID_SHIFT | REQUEST_FILLING))
            return r;
    }
    return NULL;
}

/* Returns 0, or the errno with which the driver refused. A prefetch that finds no room is simply not made. */
int ar_request(uint32_t want, const struct slot *slot, uint32_t first, uint32_t count, int fd, bool wait)
{
    struct request *r;
    uint32_t pid = (uint32_t)getpid();
    while (!(r = claim_request(pid))) {
        if (!wait)
            return 0;
        _Atomic uint32_t never = 0;
        ar_reclaim_requests(ar_region);
        ar_wait(&never, 0, NULL, AR_ANYBODY);
    }
    r->want = want;
    r->slot = slot ? ar_slot_index(slot) : UINT32_MAX;
    r->first = first;
    r->count = count;
    r->pid = (int32_t)pid;
    r->fd = fd;
    r->error = 0;
    atomic_store(&r->state, pid << AR_PID_SHIFT | REQUEST_POSTED);
    ar_ring_bell();
    if (!wait)
        return 0;
    uint32_t word;
    while (ar_request_state(word = atomic_load(&r->state)) != REQUEST_DONE)
        ar_wait(&r->state, word, NULL, AR_ANYBODY);
    int error = r->error;
    atomic_store(&r->state, REQUEST_FREE);
    return error == EBUSY ? 0 : error; /* the driver did not get the lock: callers look, and ask again */
}
