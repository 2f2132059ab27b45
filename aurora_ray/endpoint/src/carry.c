/* Carrying the bytes of a session both ways, through us. */
#include "relay.h"
#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>

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
        if (!side_watch(relay, sides[i], events ? events : EPOLLET)) {
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
    if (from == &s->client && !s->looked && cancel_found(relay, s, relay->chunk, (size_t)n)) {
        cancel_begin(relay, s, RELAY_TARGETS_MAX);
        return;
    }
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

void carry_event(struct relay *relay, struct side *side, uint32_t events)
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
