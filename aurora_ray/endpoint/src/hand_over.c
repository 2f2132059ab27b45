/*
 * Giving a client's socket to a server on this machine: its library has `accept` return it (interposer/src/
 * intercept_accept.c, which says what is sent). From then on no byte passes here, and nothing here is awakened by the
 * session until it ends.
 *
 * We keep a copy of the socket, to cut the session whatever its server does, and the connection over which the socket went:
 * its other end is the server's process for the session alone, so that ends when the session does.
 *
 * An offer that the server has not taken can be withdrawn, and the client goes elsewhere without noticing. It is not taken
 * later: whoever shuts this end of the connection for reading keeps the server from saying so, and then it must not.
 */
#include "relay.h"
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

static bool send_socket(int to, int fd)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr aligned;
    } control;
    memset(&control, 0, sizeof control);
    struct iovec text = {.iov_base = "s", .iov_len = 1};
    struct msghdr message = {
        .msg_iov = &text, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    struct cmsghdr *part = CMSG_FIRSTHDR(&message);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(part), &fd, sizeof fd);
    return sendmsg(to, &message, MSG_NOSIGNAL) == 1;
}

/* Offers the client's socket to a target. False, with errno: it does not take any now; EAGAIN: it is too slow. */
bool hand_over_offer(struct relay *relay, struct session *s, const struct target *t, int64_t now_ms)
{
    session_move(relay, s, SESSION_OFFERED);
    side_unwatch(relay, &s->client);
    s->server.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (s->server.fd < 0 || connect(s->server.fd, (const struct sockaddr *)&t->hand_over, sizeof t->hand_over) < 0)
        return false;
    if (!side_watch(relay, &s->server, EPOLLIN) || !send_socket(s->server.fd, s->client.fd))
        return false;
    s->copied = true;
    session_wait(relay, s, now_ms + RELAY_CONNECT_MS);
    return true;
}

static void taken(struct relay *relay, struct session *s)
{
    relay_count(&relay->counters.handed, 1);
    session_move(relay, s, SESSION_HANDED);
}

static void offered_event(struct relay *relay, struct session *s)
{
    char byte;
    ssize_t n = recv(s->server.fd, &byte, 1, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n == 1) {
        taken(relay, s);
    } else {
        session_not_taken(relay, s);
        session_connect(relay, s, relay_now_ms());
    }
}

/* The server has taken it; it says that this is a request to cancel; it is done with it. */
void hand_over_event(struct relay *relay, struct session *s)
{
    uint8_t bytes[RELAY_CANCEL_BYTES_MAX];
    if (s->state == SESSION_OFFERED) {
        offered_event(relay, s);
        return;
    }
    ssize_t n = recv(s->server.fd, bytes, sizeof bytes, MSG_DONTWAIT);
    if (n > 0)
        (void)cancel_found(relay, s, bytes, (size_t)n);
    else if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    else if (s->request)
        cancel_begin(relay, s, s->target);
    else
        session_close(relay, s, false);
}

/* True: the server has not taken the offer, and will not. False: it has. */
bool hand_over_withdraw(struct relay *relay, struct session *s)
{
    char byte;
    (void)shutdown(s->server.fd, SHUT_RD);
    if (recv(s->server.fd, &byte, 1, MSG_DONTWAIT) != 1)
        return true;
    taken(relay, s);
    return false;
}

/*
 * Ends a connection for all who have copies of its socket, whatever they do: the peer gets an RST, and what was under way
 * in either direction is dropped. (RFC 9293's ABORT, by Linux's connect to no address.)
 */
void hand_over_disconnect(int fd)
{
    static const struct sockaddr nowhere = {.sa_family = AF_UNSPEC};
    if (connect(fd, &nowhere, sizeof nowhere) < 0)
        (void)shutdown(fd, SHUT_RDWR);
}
