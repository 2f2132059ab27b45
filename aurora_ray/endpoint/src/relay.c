/* The relay's thread and its loop, accepting, orders and counters: what Python calls through ctypes. */
#include "relay.h"
#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define RELAY_EXPORT __attribute__((visibility("default")))

int64_t relay_now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* One thread writes, so no locked instruction is needed; others only must never see half a number. */
void relay_count(_Atomic uint64_t *counter, uint64_t n)
{
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + n, memory_order_relaxed);
}

/* A copy of bytes that have to wait; NULL without memory. (Here, as gcc's analyzer loses it where it is stored.) */
struct pending *relay_keep(const uint8_t *bytes, size_t n)
{
    struct pending *p = malloc(sizeof *p + n);
    if (p) {
        p->from = 0;
        p->to = (uint32_t)n;
        memcpy(p->bytes, bytes, n);
    }
    return p;
}

/* ---- accepting */

static void listen_for(struct relay *relay, uint32_t events)
{
    struct epoll_event e = {.events = events, .data.ptr = &relay->listen_fd};
    (void)epoll_ctl(relay->epoll_fd, EPOLL_CTL_MOD, relay->listen_fd, &e);
}

/* Sessions of all relays of this process, and how many there may be: each has two descriptors. */
static _Atomic uint32_t all_sessions, all_sessions_max;

void relay_count_sessions(int change) { atomic_fetch_add(&all_sessions, (uint32_t)change); }

static void find_sessions_max(void)
{
    struct rlimit files;
    uint64_t room = getrlimit(RLIMIT_NOFILE, &files) == 0 ? files.rlim_cur : 1024;
    room = room > 2 * RELAY_FILES_OF_OTHERS ? room - RELAY_FILES_OF_OTHERS : room / 2;
    atomic_store(&all_sessions_max, room / 2 > UINT32_MAX ? UINT32_MAX : (uint32_t)(room / 2));
}

static bool is_full(const struct relay *relay)
{
    uint32_t waiting = relay->waiting.count;
    return waiting >= relay->options.held_max || waiting + relay->open.count >= relay->options.sessions_max ||
           atomic_load(&all_sessions) >= atomic_load(&all_sessions_max);
}

/* Tells the client why in its own protocol: one small write into an empty buffer. What it has sent must not be left unread,
 * as then the close would be a reset. */
static void refuse(struct relay *relay, int fd)
{
    uint8_t unread[RELAY_REFUSED_READ_BYTES];
    relay_count(&relay->counters.refused, 1);
    (void)!send(fd, relay->options.refusal, relay->options.refusal_bytes, MSG_NOSIGNAL);
    (void)shutdown(fd, SHUT_WR);
    (void)!recv(fd, unread, sizeof unread, MSG_DONTWAIT);
    close(fd);
}

/* An eventfd that is rung when somebody has come for whom there is no target; -1: nobody wants to know. */
static _Atomic int held_bell = -1;

static void ring_if_held(const struct relay *relay)
{
    uint64_t one = 1;
    int bell = atomic_load(&held_bell);
    if (bell >= 0 && relay->target_count == 0)
        (void)!write(bell, &one, sizeof one);
}

static void accept_some(struct relay *relay)
{
    int64_t now_ms = relay_now_ms();
    for (int i = 0; i < RELAY_ACCEPTS; i++) {
        int fd = accept4(relay->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
                listen_for(relay, 0); /* they stay in the kernel's queue */
                relay->accept_again_ms = now_ms + RELAY_PAUSE_MS;
            }
            if (errno == ECONNABORTED || errno == EINTR)
                continue;
            return;
        }
        if (is_full(relay)) {
            refuse(relay, fd);
            continue;
        }
        relay_count(&relay->counters.accepted, 1);
        struct session *s = session_new(relay, fd, now_ms);
        if (s)
            session_connect(relay, s, now_ms);
        ring_if_held(relay);
    }
}

/* ---- orders */

static bool same_target(const struct target *a, const struct target *b)
{
    return a->incarnation == b->incarnation && a->address_bytes == b->address_bytes &&
           memcmp(&a->address, &b->address, a->address_bytes) == 0;
}

static void retarget_all(struct relay *relay, struct list *list, const uint32_t *moved)
{
    for (struct session *s = list->first, *next; s; s = next) {
        next = s->next;
        session_retarget(relay, s, moved);
    }
}

static void look_at_waiting(struct relay *relay)
{
    int64_t now_ms = relay_now_ms();
    relay->due_ms = RELAY_NEVER;
    for (struct session *s = relay->waiting.first, *next; s; s = next) {
        next = s->next;
        session_look(relay, s, now_ms);
    }
}

static void obey(struct relay *relay)
{
    uint64_t rings;
    (void)!read(relay->bell_fd, &rings, sizeof rings);
    struct target old[RELAY_TARGETS_MAX];
    uint32_t moved[RELAY_TARGETS_MAX], old_count = relay->target_count;
    memcpy(old, relay->targets, old_count * sizeof *old);

    pthread_mutex_lock(&relay->lock);
    uint64_t order = relay->orders;
    relay->in_use = relay->unless_used && (relay->open.count || relay->waiting.count);
    if (!relay->in_use) {
        relay->target_count = relay->ordered_count;
        memcpy(relay->targets, relay->ordered, relay->ordered_count * sizeof *relay->ordered);
    }
    pthread_mutex_unlock(&relay->lock);

    if (order != relay->orders_obeyed && !relay->in_use) {
        for (uint32_t i = 0; i < old_count; i++) {
            moved[i] = RELAY_TARGETS_MAX;
            for (uint32_t k = 0; k < relay->target_count; k++)
                if (same_target(&old[i], &relay->targets[k]))
                    moved[i] = k;
        }
        retarget_all(relay, &relay->open, moved);
        retarget_all(relay, &relay->waiting, moved);
        look_at_waiting(relay);
    }
    pthread_mutex_lock(&relay->lock);
    relay->orders_obeyed = order;
    pthread_cond_broadcast(&relay->obeyed);
    pthread_mutex_unlock(&relay->lock);
}

/* ---- the loop */

static int wait_ms(const struct relay *relay)
{
    int64_t due_ms = relay->due_ms < relay->accept_again_ms ? relay->due_ms : relay->accept_again_ms;
    if (due_ms == RELAY_NEVER)
        return -1;
    int64_t left_ms = due_ms - relay_now_ms();
    return left_ms < 0 ? 0 : left_ms > INT32_MAX ? INT32_MAX : (int)left_ms;
}

static void tend(struct relay *relay)
{
    if (relay->due_ms != RELAY_NEVER && relay_now_ms() >= relay->due_ms)
        look_at_waiting(relay);
    if (relay->accept_again_ms != RELAY_NEVER && relay_now_ms() >= relay->accept_again_ms) {
        relay->accept_again_ms = RELAY_NEVER;
        listen_for(relay, EPOLLIN);
    }
}

static void *run(void *argument)
{
    struct relay *relay = argument;
    struct epoll_event events[RELAY_EVENTS];
    while (!atomic_load(&relay->stop)) {
        bool rung = false;
        int n = epoll_wait(relay->epoll_fd, events, RELAY_EVENTS, wait_ms(relay));
        for (int i = 0; i < n; i++) {
            void *source = events[i].data.ptr;
            if (source == &relay->bell_fd)
                rung = true;
            else if (source == &relay->listen_fd)
                accept_some(relay);
            else
                session_event(relay, source, events[i].events);
        }
        if (rung)
            obey(relay);
        tend(relay);
        sessions_free_closed(relay);
    }
    struct list *lists[2] = {&relay->open, &relay->waiting};
    for (int i = 0; i < 2; i++)
        while (lists[i]->first)
            session_close(relay, lists[i]->first, true);
    sessions_free_closed(relay);
    return NULL;
}

/* ---- what Python calls; errors are negative errno values */

static int start_thread(struct relay *relay)
{
    sigset_t all, before;
    sigfillset(&all); /* signals are for Python's threads */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&relay->thread, NULL, run, relay);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!error)
        (void)pthread_setname_np(relay->thread, "aurora-relay");
    return -error;
}

static int watch_own(struct relay *relay)
{
    relay->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    relay->bell_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event bell = {.events = EPOLLIN, .data.ptr = &relay->bell_fd};
    struct epoll_event listener = {.events = EPOLLIN, .data.ptr = &relay->listen_fd};
    if (relay->epoll_fd < 0 || relay->bell_fd < 0 ||
        epoll_ctl(relay->epoll_fd, EPOLL_CTL_ADD, relay->bell_fd, &bell) < 0 ||
        epoll_ctl(relay->epoll_fd, EPOLL_CTL_ADD, relay->listen_fd, &listener) < 0)
        return -errno;
    return 0;
}

static void dispose(struct relay *relay)
{
    const int fds[] = {relay->listen_fd, relay->epoll_fd, relay->bell_fd};
    for (size_t i = 0; i < sizeof fds / sizeof *fds; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    pthread_cond_destroy(&relay->obeyed);
    pthread_mutex_destroy(&relay->lock);
    free(relay);
}

/* Begins to accept on `listen_fd`, a non-blocking listening socket, and takes it over if that succeeds. */
RELAY_EXPORT int ar_relay_start(int listen_fd, const struct relay_options *options, struct relay **out)
{
    struct relay *relay = calloc(1, sizeof *relay);
    if (!relay)
        return -ENOMEM;
    relay->listen_fd = listen_fd;
    relay->options = *options;
    relay->hold_ms = options->hold_ms;
    find_sessions_max();
    relay->due_ms = relay->accept_again_ms = RELAY_NEVER;
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&relay->obeyed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_mutex_init(&relay->lock, NULL);
    int result = watch_own(relay);
    if (result == 0)
        result = start_thread(relay);
    if (result < 0) {
        relay->listen_fd = -1;
        dispose(relay);
        return result;
    }
    *out = relay;
    return 0;
}

struct target_order {
    char host[46]; /* numeric */
    uint16_t port;
    uint32_t fallback;
    uint64_t incarnation;
    char hand_over[108]; /* as in sockaddr_un; empty: it takes no sockets */
};

static bool parse(const struct target_order *order, struct target *target)
{
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(order->port)};
    struct sockaddr_in6 in6 = {.sin6_family = AF_INET6, .sin6_port = htons(order->port)};
    memset(target, 0, sizeof *target);
    target->incarnation = order->incarnation;
    target->fallback = order->fallback != 0;
    target->hand_over.sun_family = AF_UNIX;
    memcpy(target->hand_over.sun_path, order->hand_over, sizeof target->hand_over.sun_path);
    if (inet_pton(AF_INET, order->host, &in.sin_addr) == 1) {
        memcpy(&target->address, &in, sizeof in);
        target->address_bytes = sizeof in;
    } else if (inet_pton(AF_INET6, order->host, &in6.sin6_addr) == 1) {
        memcpy(&target->address, &in6, sizeof in6);
        target->address_bytes = sizeof in6;
    }
    return target->address_bytes != 0;
}

static int wait_obeyed(struct relay *relay, uint64_t order, uint32_t timeout_ms)
{
    struct timespec end;
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += timeout_ms / 1000;
    end.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
    end.tv_sec += end.tv_nsec / 1000000000;
    end.tv_nsec %= 1000000000;
    while (relay->orders_obeyed < order)
        if (pthread_cond_timedwait(&relay->obeyed, &relay->lock, &end) == ETIMEDOUT)
            return -ETIMEDOUT;
    return 0;
}

/*
 * From now on these are the targets; sessions of others have been reset when this returns. A generation below the last
 * one is refused with -ESTALE: it comes from someone who does not know yet that he was replaced. With `unless_used`,
 * nothing changes and the answer is -EBUSY if there is any session, or anybody waits for one.
 */
RELAY_EXPORT int ar_relay_set_targets(struct relay *relay, const struct target_order *orders, uint32_t count,
                                      uint64_t generation, uint32_t timeout_ms, uint32_t unless_used)
{
    struct target targets[RELAY_TARGETS_MAX];
    if (count > RELAY_TARGETS_MAX)
        return -E2BIG;
    for (uint32_t i = 0; i < count; i++)
        if (!parse(&orders[i], &targets[i]))
            return -EINVAL;
    pthread_mutex_lock(&relay->lock);
    int result = -ESTALE;
    if (generation >= relay->generation) {
        relay->generation = generation;
        memcpy(relay->ordered, targets, count * sizeof *targets);
        relay->ordered_count = count;
        relay->unless_used = unless_used != 0;
        uint64_t order = ++relay->orders, one = 1;
        (void)!write(relay->bell_fd, &one, sizeof one);
        result = wait_obeyed(relay, order, timeout_ms);
        if (result == 0 && relay->in_use)
            result = -EBUSY;
    }
    pthread_mutex_unlock(&relay->lock);
    return result;
}

/* Clients wait so long from now on, those too that wait already (a shorter time counts when they are next looked at). */
RELAY_EXPORT void ar_relay_set_hold(struct relay *relay, uint64_t hold_ms) { atomic_store(&relay->hold_ms, hold_ms); }

/* The counters, then the CPU time of the thread in nanoseconds. */
RELAY_EXPORT void ar_relay_stats(struct relay *relay, uint64_t *out)
{
    const _Atomic uint64_t *counters = (const _Atomic uint64_t *)&relay->counters;
    size_t n = sizeof relay->counters / sizeof *counters;
    for (size_t i = 0; i < n; i++)
        out[i] = atomic_load_explicit(&counters[i], memory_order_relaxed);
    clockid_t clock;
    struct timespec t = {0};
    if (pthread_getcpuclockid(relay->thread, &clock) == 0)
        (void)clock_gettime(clock, &t);
    out[n] = (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* Of all relays of this process; -1 ends it. */
RELAY_EXPORT void ar_relay_ring_when_held(int bell) { atomic_store(&held_bell, bell); }

/* Resets all sessions, stops listening, frees everything. */
RELAY_EXPORT void ar_relay_close(struct relay *relay)
{
    uint64_t one = 1;
    atomic_store(&relay->stop, true);
    (void)!write(relay->bell_fd, &one, sizeof one);
    pthread_join(relay->thread, NULL);
    dispose(relay);
}
