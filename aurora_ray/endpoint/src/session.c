/* One accepted connection: waiting for a target, connecting, carrying bytes both ways, closing. */
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
    return s->state == SESSION_OPEN ? &relay->open : &relay->waiting;
}

static void count_sessions(struct relay *relay)
{
    atomic_store_explicit(&relay->counters.open, relay->open.count, memory_order_relaxed);
    atomic_store_explicit(&relay->counters.held, relay->waiting.count, memory_order_relaxed);
}

static void set_state(struct relay *relay, struct session *s, int state)
{
    list_remove(list_of(relay, s), s);
    s->state = state;
    list_add(state == SESSION_CLOSED ? &relay->closed : list_of(relay, s), s);
    count_sessions(relay);
}

static bool watch(struct relay *relay, struct side *side, uint32_t events)
{
    if (side->events == events)
        return true;
    struct epoll_event e = {.events = events, .data.ptr = side};
    if (epoll_ctl(relay->epoll_fd, side->events ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, side->fd, &e) < 0)
        return false;
    side->events = events;
    return true;
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
    s->give_up_ms = now_ms + relay->hold_ms;
    list_add(&relay->waiting, s);
    count_sessions(relay);
    tune(fd);
    return s;
}

static void side_close(struct side *side, bool reset)
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

static void leave_target(struct relay *relay, struct session *s)
{
    if (s->state != SESSION_HELD)
        relay->targets[s->target].sessions--;
}

static void close_now(struct relay *relay, struct session *s, bool reset)
{
    side_close(&s->client, reset);
    side_close(&s->server, reset);
    set_state(relay, s, SESSION_CLOSED);
}

/* `reset`: unsent bytes are dropped and both peers get an RST. */
void session_close(struct relay *relay, struct session *s, bool reset)
{
    if (s->state == SESSION_CLOSED)
        return;
    leave_target(relay, s);
    close_now(relay, s, reset);
}

void sessions_free_closed(struct relay *relay)
{
    while (relay->closed.first) {
        struct session *s = relay->closed.first;
        list_remove(&relay->closed, s);
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
    set_state(relay, s, SESSION_OPEN);
    if (!watch(relay, &s->client, EPOLLIN) || !watch(relay, &s->server, EPOLLIN))
        session_close(relay, s, true);
}

/* Waits for a target, or for the next round. Who hangs up meanwhile has given up. */
static void hold(struct relay *relay, struct session *s, int64_t due_ms)
{
    s->due_ms = due_ms;
    if (due_ms < relay->due_ms)
        relay->due_ms = due_ms;
    if (s->give_up_ms < relay->due_ms)
        relay->due_ms = s->give_up_ms;
    if (!watch(relay, &s->client, EPOLLRDHUP))
        session_close(relay, s, true);
}

static void connect_failed(struct relay *relay, struct session *s)
{
    relay_count(&relay->counters.connect_failures, 1);
    side_close(&s->server, false);
    s->tried |= UINT64_C(1) << s->target;
    leave_target(relay, s);
    set_state(relay, s, SESSION_HELD);
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
        set_state(relay, s, SESSION_CONNECTING);
        s->server.fd = socket(t->address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (s->server.fd >= 0) {
            tune(s->server.fd);
            int result = connect(s->server.fd, (const struct sockaddr *)&t->address, t->address_bytes);
            if (result == 0) {
                opened(relay, s);
                return;
            }
            if (errno == EINPROGRESS && watch(relay, &s->server, EPOLLOUT) && watch(relay, &s->client, EPOLLET)) {
                int64_t end_ms = now_ms + RELAY_CONNECT_MS;
                s->due_ms = end_ms < s->give_up_ms ? end_ms : s->give_up_ms;
                if (s->due_ms < relay->due_ms)
                    relay->due_ms = s->due_ms;
                return;
            }
        }
        connect_failed(relay, s);
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
    int error = 0;
    socklen_t size = sizeof error;
    if (getsockopt(side->fd, SOL_SOCKET, SO_ERROR, &error, &size) == 0 && error == 0) {
        opened(relay, s);
        return;
    }
    connect_failed(relay, s);
    session_connect(relay, s, relay_now_ms());
}

/* Time has passed for a session that waits. */
void session_look(struct relay *relay, struct session *s, int64_t now_ms)
{
    if (now_ms >= s->give_up_ms) {
        relay_count(&relay->counters.expired, 1);
        session_close(relay, s, false);
    } else if (now_ms >= s->due_ms) {
        if (s->state == SESSION_CONNECTING)
            connect_failed(relay, s);
        session_connect(relay, s, now_ms);
    } else {
        int64_t due_ms = s->due_ms < s->give_up_ms ? s->due_ms : s->give_up_ms;
        if (due_ms < relay->due_ms)
            relay->due_ms = due_ms;
    }
}

/*
 * The table of targets is a new one: `moved` tells for each old index the new one, RELAY_TARGETS_MAX for none. Sessions
 * that wait begin a new round; relay.c has them connect once all have been counted again.
 */
void session_retarget(struct relay *relay, struct session *s, const uint32_t *moved)
{
    s->tried = 0;
    s->due_ms = s->state == SESSION_CONNECTING ? s->due_ms : 0;
    if (s->state == SESSION_HELD)
        return;
    s->target = moved[s->target];
    if (s->target != RELAY_TARGETS_MAX) {
        relay->targets[s->target].sessions++;
    } else if (s->state == SESSION_OPEN) {
        relay_count(&relay->counters.cut, 1);
        close_now(relay, s, true);
    } else {
        side_close(&s->server, true);
        s->due_ms = 0;
        set_state(relay, s, SESSION_HELD);
    }
}

/* ---- carrying bytes */

/* Passes the end of one direction on when all of it has been sent; the session ends with its second direction. */
static void pass_end(struct relay *relay, struct side *from)
{
    struct side *to = from->peer;
    if (from->eof && !to->pending && !to->shut) {
        (void)shutdown(to->fd, SHUT_WR);
        to->shut = true;
        if (from->shut)
            session_close(relay, to->session, false);
    }
}

static void rewatch(struct relay *relay, struct session *s)
{
    if (s->state != SESSION_OPEN)
        return;
    struct side *sides[2] = {&s->client, &s->server};
    for (int i = 0; i < 2; i++) {
        uint32_t events = 0;
        if (!sides[i]->eof && !sides[i]->peer->pending)
            events |= EPOLLIN;
        if (sides[i]->pending)
            events |= EPOLLOUT;
        if (!watch(relay, sides[i], events ? events : EPOLLET)) {
            session_close(relay, s, true);
            return;
        }
    }
}

/* How many of the bytes went, -1 if the connection is broken. */
static ssize_t send_some(const struct side *to, const uint8_t *bytes, size_t n)
{
    ssize_t sent = send(to->fd, bytes, n, MSG_NOSIGNAL);
    if (sent < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    return sent;
}

static void carry(struct relay *relay, struct side *from)
{
    struct session *s = from->session;
    struct side *to = from->peer;
    ssize_t n = recv(from->fd, relay->chunk, sizeof relay->chunk, 0);
    if (n < 0) {
        if (errno != EAGAIN && errno != EINTR)
            session_close(relay, s, true);
        return;
    }
    if (n == 0) {
        from->eof = true;
        pass_end(relay, from);
        rewatch(relay, s);
        return;
    }
    struct counters *c = &relay->counters;
    relay_count(from == &s->client ? &c->bytes_up : &c->bytes_down, (uint64_t)n);
    relay_count(&c->messages, 1);
    ssize_t sent = send_some(to, relay->chunk, (size_t)n);
    if (sent == n)
        return; /* nearly always */
    to->pending = sent < 0 ? NULL : relay_keep(relay->chunk + sent, (size_t)(n - sent));
    if (to->pending)
        rewatch(relay, s);
    else
        session_close(relay, s, true);
}

static void send_pending(struct relay *relay, struct side *to)
{
    struct pending *p = to->pending;
    ssize_t sent = send_some(to, p->bytes + p->from, p->to - p->from);
    if (sent < 0) {
        session_close(relay, to->session, true);
        return;
    }
    p->from += (uint32_t)sent;
    if (p->from < p->to)
        return;
    free(p);
    to->pending = NULL;
    pass_end(relay, to->peer);
    rewatch(relay, to->session);
}

static void open_event(struct relay *relay, struct side *side, uint32_t events)
{
    struct session *s = side->session;
    uint32_t watched = side->events;
    if (events & EPOLLERR && !(watched & EPOLLIN)) {
        session_close(relay, s, true); /* otherwise reading tells, after what came before the error */
        return;
    }
    if (events & EPOLLOUT && side->pending)
        send_pending(relay, side);
    if (s->state == SESSION_OPEN && watched & EPOLLIN && events & (EPOLLIN | EPOLLHUP | EPOLLERR))
        carry(relay, side);
}

void session_event(struct relay *relay, struct side *side, uint32_t events)
{
    struct session *s = side->session;
    if (s->state == SESSION_OPEN)
        open_event(relay, side, events);
    else if (s->state == SESSION_CONNECTING)
        connecting_event(relay, side);
    else if (s->state == SESSION_HELD && events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
        session_close(relay, s, false);
}
