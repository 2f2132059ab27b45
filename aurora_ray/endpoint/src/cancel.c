/*
 * A request to cancel what another session does comes as a connection of its own, and only that session's server knows what
 * it means. It comes first, or after a negotiation of encryption that came to nothing. Where sessions may be on several
 * servers, it goes to all of them, one after the other: for the others it means nothing, as its key is a secret. A server
 * that was handed the client's socket says what it has read there. The client's connection ends when all have been asked,
 * as it does when a server is asked alone. What is encrypted cannot be told from another session and reaches one server.
 *
 * Of the protocol we know what is the same in all its versions: a big-endian length, itself included, then a code. Those of
 * negotiations are messages of a length and a code alone, with the upper half of the code that a request has.
 */
#include "relay.h"
#include <arpa/inet.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#define HEAD_BYTES 8

/* Whether these bytes, the next that the client of `s` sent, are a request; it is then kept. */
bool cancel_found(const struct relay *relay, struct session *s, const uint8_t *bytes, size_t n)
{
    uint32_t length, code, wanted = relay->options.cancel_code;
    s->looked = true;
    if (!wanted || n < HEAD_BYTES || n > RELAY_CANCEL_BYTES_MAX)
        return false;
    memcpy(&length, bytes, sizeof length);
    memcpy(&code, bytes + sizeof length, sizeof code);
    length = ntohl(length);
    code = ntohl(code);
    if (length != n)
        return false;
    if (n == HEAD_BYTES)
        s->looked = code >> 16 != wanted >> 16;
    else if (code == wanted && !s->request)
        s->request = relay_keep(bytes, n);
    return s->request != NULL;
}

/* Asks the next target; when all have been asked, the client learns it by the end of its connection. */
void cancel_go_on(struct relay *relay, struct session *s, int64_t now_ms)
{
    for (;;) {
        side_close(&s->server, false);
        s->asked = false;
        if (s->ask == s->spare)
            s->ask++;
        if (s->ask >= relay->target_count)
            break;
        if (session_dial(relay, s, &relay->targets[s->ask++], now_ms))
            return;
    }
    session_close(relay, s, false);
}

/* Asks all targets but `spare`. */
void cancel_begin(struct relay *relay, struct session *s, uint32_t spare)
{
    relay_count(&relay->counters.cancels, 1);
    side_unwatch(relay, &s->client);
    session_leave_target(relay, s);
    session_move(relay, s, SESSION_CANCELLING);
    s->ask = 0;
    s->spare = spare;
    s->since_ms = relay_now_ms();
    cancel_go_on(relay, s, relay_now_ms());
}

/* The target can be sent the request, or has done with it. */
void cancel_event(struct relay *relay, struct side *side)
{
    struct session *s = side->session;
    const struct pending *request = s->request;
    bool goes = !s->asked && side_connected(side) &&
                send(side->fd, request->bytes, request->to, MSG_NOSIGNAL) == (ssize_t)request->to;
    s->asked = true;
    if (!goes || !side_watch(relay, side, EPOLLIN))
        cancel_go_on(relay, s, relay_now_ms());
}
