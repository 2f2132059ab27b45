/* One accepted connection: waiting for a target, connecting, ending. */
#include "relay.h"
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

/* ---- lists, watching */

static void list_add(struct list *list, struct session *s)
{
    s->previous = NULL;
    s->next = list->first;
    if (s->next)
        s->next->previous = s;
    list->first = s;
    list->count++;
}

static void list_remove(struct list *list, struct session *s)
{
    if (s->previous)
        s->previous->next = s->next;
    else
        list->first = s->next;
    if (s->next)
        s->next->previous = s->previous;
    list->count--;
}

static struct list *list_of(struct relay *relay, const struct session *s)
{
    return s->state == SESSION_OPEN || s->state == SESSION_HANDED ? &relay->open : &relay->waiting;
}

static void count_sessions(struct relay *relay)
{
    atomic_store_explicit(&relay->counters.open, relay->open.count, memory_order_relaxed);
    atomic_store_explicit(&relay->counters.held, relay->waiting.count, memory_order_relaxed);
}

void session_move(struct relay *relay, struct session *s, int state)
{
    list_remove(list_of(relay, s), s);
    s->state = state;
    list_add(state == SESSION_CLOSED ? &relay->closed : list_of(relay, s), s);
    count_sessions(relay);
}

bool side_watch(struct relay *relay, struct side *side, uint32_t events)
{
    if (side->events == events)
        return true;
    struct epoll_event e = {.events = events, .data.ptr = side};
    if (epoll_ctl(relay->epoll_fd, side->events ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, side->fd, &e) < 0)
        return false;
    side->events = events;
    return true;
}

void side_unwatch(struct relay *relay, struct side *side)
{
    if (side->events)
        (void)epoll_ctl(relay->epoll_fd, EPOLL_CTL_DEL, side->fd, NULL);
    side->events = 0;
}

/* An interactive session's messages must not wait for more; a peer whose machine vanished is noticed in a minute. */
static void tune(int fd)
{
    static const struct {
        int level, name, value;
    } options[] = {{IPPROTO_TCP, TCP_NODELAY, 1},
                   {SOL_SOCKET, SO_KEEPALIVE, 1},
                   {IPPROTO_TCP, TCP_KEEPIDLE, 30},
                   {IPPROTO_TCP, TCP_KEEPINTVL, 10},
                   {IPPROTO_TCP, TCP_KEEPCNT, 3}};
    for (size_t i = 0; i < sizeof options / sizeof *options; i++)
        (void)setsockopt(fd, options[i].level, options[i].name, &options[i].value, sizeof options[i].value);
}

/* ---- the beginning and the end */

/* Takes `fd` over, whatever comes of it. NULL: there was no memory for it. */
struct session *session_new(struct relay *relay, int fd, int64_t now_ms)
{
    struct session *s = calloc(1, sizeof *s);
    if (!s) {
        close(fd);
        return NULL;
    }
    s->client.fd = fd;
    s->server.fd = -1;
    s->client.session = s->server.session = s;
    s->client.peer = &s->server;
    s->server.peer = &s->client;
    s->state = SESSION_HELD;
    s->due_ms = RELAY_NEVER;
    s->since_ms = now_ms;
    list_add(&relay->waiting, s);
    relay_count_sessions(1);
    count_sessions(relay);
    return s;
}

void side_close(struct side *side, bool reset)
{
    if (side->fd >= 0) {
        struct linger at_once = {.l_onoff = 1, .l_linger = 0};
        if (reset)
            (void)setsockopt(side->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
        close(side->fd); /* which also ends the watching */
    }
    side->fd = -1;
    side->events = 0;
    free(side->pending);
    side->pending = NULL;
}

void session_leave_target(struct relay *relay, struct session *s)
{
    if (s->state != SESSION_HELD && s->state != SESSION_CANCELLING)
        relay->targets[s->target].sessions--;
}

/* Counted before it is closed: who sees the end of a session finds it in the counters. */
static void close_now(struct relay *relay, struct session *s, bool reset)
{
    session_move(relay, s, SESSION_CLOSED);
    if (s->copied) { /* closing ours is not enough */
        side_unwatch(relay, &s->client);
        reset ? hand_over_disconnect(s->client.fd) : (void)shutdown(s->client.fd, SHUT_RDWR);
    }
    side_close(&s->client, reset);
    side_close(&s->server, reset);
}

/* `reset`: unsent bytes are dropped and both peers get an RST. */
void session_close(struct relay *relay, struct session *s, bool reset)
{
    if (s->state == SESSION_CLOSED)
        return;
    session_leave_target(relay, s);
    close_now(relay, s, reset);
}

void sessions_free_closed(struct relay *relay)
{
    while (relay->closed.first) {
        struct session *s = relay->closed.first;
        list_remove(&relay->closed, s);
        relay_count_sessions(-1);
        free(s->request);
        free(s);
    }
}

/* ---- connecting */

/* The target with the fewest sessions, in turn among equals; RELAY_TARGETS_MAX: none is left in this round. */
static uint32_t choose(struct relay *relay, uint64_t tried)
{
    uint32_t best = RELAY_TARGETS_MAX;
    for (int fallback = 0; fallback < 2 && best == RELAY_TARGETS_MAX; fallback++)
        for (uint32_t k = 0; k < relay->target_count; k++) {
            uint32_t i = (relay->turn + k) % relay->target_count;
            const struct target *t = &relay->targets[i];
            if (t->fallback != fallback || tried & UINT64_C(1) << i)
                continue;
            if (best == RELAY_TARGETS_MAX || t->sessions < relay->targets[best].sessions)
                best = i;
        }
    if (best != RELAY_TARGETS_MAX)
        relay->turn = best + 1;
    return best;
}

static void opened(struct relay *relay, struct session *s)
{
    session_move(relay, s, SESSION_OPEN);
    if (!side_watch(relay, &s->client, EPOLLIN) || !side_watch(relay, &s->server, EPOLLIN))
        session_close(relay, s, true);
}

/* When the client has waited long enough, as things are now. */
static int64_t give_up_ms(const struct relay *relay, const struct session *s)
{
    return s->since_ms + (int64_t)atomic_load_explicit(&relay->hold_ms, memory_order_relaxed);
}

/* It is looked at again when `due_ms` has come, or when it has waited long enough. */
void session_wait(struct relay *relay, struct session *s, int64_t due_ms)
{
    int64_t end_ms = give_up_ms(relay, s);
    s->due_ms = due_ms < end_ms ? due_ms : end_ms;
    if (s->due_ms < relay->due_ms)
        relay->due_ms = s->due_ms;
}

/* Waits for a target, or for the next round. Who hangs up meanwhile has given up. */
static void hold(struct relay *relay, struct session *s, int64_t due_ms)
{
    session_wait(relay, s, due_ms);
    if (!side_watch(relay, &s->client, EPOLLRDHUP))
        session_close(relay, s, true);
}

/* The target does not take it: the next one may. */
void session_not_taken(struct relay *relay, struct session *s)
{
    relay_count(&relay->counters.connect_failures, 1);
    side_close(&s->server, false);
    s->tried |= UINT64_C(1) << s->target;
    session_leave_target(relay, s);
    session_move(relay, s, SESSION_HELD);
}

/*
 * Connects to a target on this machine from the address by which the client came, if that is one of 127.0.0.0/8 as well:
 * the server tells by it whom it serves. Where it cannot be done, any address will do.
 */
static void keep_address(const struct session *s, const struct target *t)
{
    struct sockaddr_in came = {0}, to;
    socklen_t size = sizeof came;
    int later = 1; /* the port is chosen when it is connected, of all that no other connection to that target has */

    memcpy(&to, &t->address, sizeof to);
    if (getsockname(s->client.fd, (struct sockaddr *)&came, &size) < 0 || came.sin_family != AF_INET ||
        to.sin_family != AF_INET || ntohl(came.sin_addr.s_addr) >> 24 != IN_LOOPBACKNET ||
        ntohl(to.sin_addr.s_addr) >> 24 != IN_LOOPBACKNET)
        return;
    came.sin_port = 0;
    (void)setsockopt(s->server.fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &later, sizeof later);
    (void)bind(s->server.fd, (const struct sockaddr *)&came, sizeof came);
}

/* Begins to connect to a target by TCP. False: it cannot be had. */
bool session_dial(struct relay *relay, struct session *s, const struct target *t, int64_t now_ms)
{
    s->server.fd = socket(t->address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (s->server.fd < 0)
        return false;
    tune(s->server.fd);
    if (relay->options.keeps_address)
        keep_address(s, t);
    if (connect(s->server.fd, (const struct sockaddr *)&t->address, t->address_bytes) < 0 && errno != EINPROGRESS)
        return false;
    session_wait(relay, s, now_ms + RELAY_CONNECT_MS);
    return side_watch(relay, &s->server, EPOLLOUT);
}

bool side_connected(const struct side *side)
{
    int error = 0;
    socklen_t size = sizeof error;
    return getsockopt(side->fd, SOL_SOCKET, SO_ERROR, &error, &size) == 0 && error == 0;
}

static bool relay_to(struct relay *relay, struct session *s, const struct target *t, int64_t now_ms)
{
    session_move(relay, s, SESSION_CONNECTING);
    tune(s->client.fd);
    return session_dial(relay, s, t, now_ms) && side_watch(relay, &s->client, EPOLLET);
}

/* Connects a held session to the best target that takes it, or leaves it held. */
void session_connect(struct relay *relay, struct session *s, int64_t now_ms)
{
    for (;;) {
        uint32_t chosen = choose(relay, s->tried);
        if (chosen == RELAY_TARGETS_MAX)
            break;
        struct target *t = &relay->targets[chosen];
        s->target = chosen;
        t->sessions++;
        if (t->hand_over.sun_path[0] && hand_over_offer(relay, s, t, now_ms))
            return;
        /* A full queue is one that the engine does not look at; a socket that is not there is no reason to go without. */
        if (!t->hand_over.sun_path[0] || errno != EAGAIN) {
            side_close(&s->server, false);
            if (relay_to(relay, s, t, now_ms))
                return;
        }
        session_not_taken(relay, s);
    }
    s->tried = 0;
    hold(relay, s, relay->target_count ? now_ms + RELAY_RETRY_MS : RELAY_NEVER);
}

static void connecting_event(struct relay *relay, struct side *side)
{
    struct session *s = side->session;
    if (side == &s->client) { /* it is watched for errors alone */
        session_close(relay, s, true);
        return;
    }
    if (side_connected(side)) {
        opened(relay, s);
        return;
    }
    session_not_taken(relay, s);
    session_connect(relay, s, relay_now_ms());
}

void session_event(struct relay *relay, struct side *side, uint32_t events)
{
    struct session *s = side->session;
    switch (s->state) {
    case SESSION_OPEN:
        carry_event(relay, side, events);
        break;
    case SESSION_CONNECTING:
        connecting_event(relay, side);
        break;
    case SESSION_OFFERED:
    case SESSION_HANDED:
        hand_over_event(relay, s);
        break;
    case SESSION_CANCELLING:
        cancel_event(relay, side);
        break;
    case SESSION_HELD:
        if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
            session_close(relay, s, false);
        break;
    }
}

/* ---- time, and other targets */

static void try_on(struct relay *relay, struct session *s, int64_t now_ms)
{
    if (s->state == SESSION_CANCELLING) {
        cancel_go_on(relay, s, now_ms);
        return;
    }
    if (s->state != SESSION_HELD)
        session_not_taken(relay, s);
    session_connect(relay, s, now_ms);
}

/* Time has passed for a session that waits. */
void session_look(struct relay *relay, struct session *s, int64_t now_ms)
{
    if (now_ms < s->due_ms) {
        session_wait(relay, s, s->due_ms);
        return;
    }
    if (s->state == SESSION_OFFERED && !hand_over_withdraw(relay, s))
        return;
    if (now_ms >= give_up_ms(relay, s)) {
        relay_count(&relay->counters.expired, 1);
        session_close(relay, s, false);
    } else {
        try_on(relay, s, now_ms);
    }
}

/*
 * The table of targets is a new one: `moved` tells for each old index the new one, RELAY_TARGETS_MAX for none. Sessions
 * that wait begin a new round; relay.c has them connect once all have been counted again.
 */
void session_retarget(struct relay *relay, struct session *s, const uint32_t *moved)
{
    s->tried = 0;
    if (s->state == SESSION_CANCELLING) { /* what it was about has been cut, or was asked already */
        close_now(relay, s, false);
        return;
    }
    if (s->state == SESSION_HELD) {
        s->due_ms = 0;
        return;
    }
    s->target = moved[s->target];
    if (s->target != RELAY_TARGETS_MAX) {
        relay->targets[s->target].sessions++;
        return;
    }
    if (s->state == SESSION_CONNECTING || (s->state == SESSION_OFFERED && hand_over_withdraw(relay, s))) {
        side_close(&s->server, true);
        s->due_ms = 0;
        session_move(relay, s, SESSION_HELD);
    } else {
        relay_count(&relay->counters.cut, 1);
        close_now(relay, s, true);
    }
}
