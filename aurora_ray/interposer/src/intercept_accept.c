/*
 * Sessions that the endpoint hands over. On one of its listening sockets (AURORA_HAND_OVER, a Unix socket in a directory
 * that only the engine's account and root can enter) a server gets no clients, but from the endpoint, over a connection
 * for each, the client's own socket. `accept` gives that to the server, with the client's address, as if it had come
 * here by itself: the server neither knows nor needs to.
 *
 * The connection over which it came is the session's witness. The process that the server forks for the session inherits
 * it, the server's own copy goes with its copy of the client's socket, and the programs that the session starts do not get
 * it. So it ends when that process ends, and the endpoint, at its other end, lets go of its copy of the client's socket.
 *
 *   endpoint -> server   one byte, and with it the descriptor (SCM_RIGHTS)
 *   server -> endpoint   one byte: it is taken
 *   server -> endpoint   what the client sent, if that is a request to cancel another session's work (its code is
 *                        AURORA_CANCEL_CODE): that session may be with another server
 *
 * The endpoint may have thought better of it meanwhile (the server was stopped for a while, another one is the writer
 * now): then it has shut its end for reading, the byte cannot be sent, and the descriptor is dropped. The kernel does both
 * under one lock, so that a client is never at two servers.
 */
#include "intercept.h"
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

#define MESSAGE_MS 100 /* the endpoint sends it together with its connect */

/* Of the session that the server has accepted and not yet given to a process of its own. */
static int passing_client = -1, passing_witness = -1;

static bool is_hand_over(int listener)
{
    const char *wanted = getenv("AURORA_HAND_OVER");
    struct sockaddr_un own;
    socklen_t n = sizeof own;
    if (!wanted)
        return false;
    memset(&own, 0, sizeof own);
    return getsockname(listener, (struct sockaddr *)&own, &n) == 0 && own.sun_family == AF_UNIX &&
           strncmp(own.sun_path, wanted, sizeof own.sun_path) == 0;
}

/* The directory's mode says it already; this holds if somebody changes that. */
static bool may_hand_over(int witness)
{
    struct ucred peer;
    socklen_t n = sizeof peer;
    return getsockopt(witness, SOL_SOCKET, SO_PEERCRED, &peer, &n) == 0 && (peer.uid == 0 || peer.uid == geteuid());
}

/* The descriptor in the message, -1 if there is none. */
static int receive(int witness)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr aligned;
    } control;
    char byte;
    struct iovec text = {.iov_base = &byte, .iov_len = 1};
    struct msghdr message = {
        .msg_iov = &text, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    struct pollfd waits = {.fd = witness, .events = POLLIN};
    int fd = -1;
    if (poll(&waits, 1, MESSAGE_MS) != 1 || recvmsg(witness, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) != 1)
        return -1;
    struct cmsghdr *part = CMSG_FIRSTHDR(&message);
    if (part && part->cmsg_level == SOL_SOCKET && part->cmsg_type == SCM_RIGHTS && part->cmsg_len == CMSG_LEN(sizeof fd))
        memcpy(&fd, CMSG_DATA(part), sizeof fd);
    return fd;
}

/* Nothing but a client of the network: a Unix socket would be one that pg_hba.conf calls local. */
static bool address_of(int fd, struct sockaddr_storage *address, socklen_t *bytes)
{
    *bytes = sizeof *address;
    return getpeername(fd, (struct sockaddr *)address, bytes) == 0 &&
           (address->ss_family == AF_INET || address->ss_family == AF_INET6);
}

static void give_address(const void *address, socklen_t n, struct sockaddr *to, socklen_t *room)
{
    if (!to || !room)
        return;
    memcpy(to, address, n < *room ? n : *room);
    *room = n;
}

/* A client that has hung up already: a server waits a while after an accept that failed, and all others with it. */
static int nobody(struct sockaddr *to, socklen_t *room)
{
    static const struct sockaddr_un nowhere = {.sun_family = AF_UNIX};
    int both[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, both) < 0)
        return -1;
    real_close(both[0]);
    give_address(&nowhere, sizeof nowhere.sun_family, to, room);
    return both[1];
}

static int take(int witness, struct sockaddr *to, socklen_t *room)
{
    struct sockaddr_storage address;
    socklen_t n;
    int client = may_hand_over(witness) ? receive(witness) : -1;
    if (client >= 0 && address_of(client, &address, &n) && real_fcntl(witness, F_SETFD, FD_CLOEXEC) == 0 &&
        real_send(witness, "t", 1, MSG_NOSIGNAL | MSG_DONTWAIT) == 1) {
        passing_client = client;
        passing_witness = witness;
        give_address(&address, n, to, room);
        return client;
    }
    if (client >= 0)
        real_close(client);
    real_close(witness);
    return nobody(to, room);
}

AR_EXPORT int accept(int listener, __SOCKADDR_ARG address, socklen_t *restrict bytes)
{
    ar_resolve_libc();
    if (!is_hand_over(listener))
        return real_accept(listener, address.__sockaddr__, bytes);
    int witness = real_accept(listener, NULL, NULL);
    return witness < 0 ? -1 : take(witness, address.__sockaddr__, bytes);
}

/*
 * The first messages of the session, which its process reads: a length, itself included, and a code, both big-endian. One
 * of these alone negotiates encryption, and has the upper half of the code that requests have.
 */
static void look_at_first(const void *bytes, size_t n)
{
    uint32_t head[2], wanted;
    const char *code = getenv("AURORA_CANCEL_CODE");
    bool goes_on = false;
    if (code && n >= sizeof head) {
        memcpy(head, bytes, sizeof head);
        wanted = (uint32_t)strtoul(code, NULL, 10);
        if (ntohl(head[0]) == n && ntohl(head[1]) == wanted)
            (void)!real_send(passing_witness, bytes, n, MSG_NOSIGNAL | MSG_DONTWAIT);
        goes_on = n == sizeof head && ntohl(head[1]) >> 16 == wanted >> 16;
    }
    if (!goes_on)
        passing_client = -1;
}

AR_EXPORT ssize_t recv(int fd, void *to, size_t n, int flags)
{
    ar_resolve_libc();
    ssize_t got = real_recv(fd, to, n, flags);
    if (got > 0 && ar_names_logs())
        ar_session_asked(fd, to, (size_t)got);
    if (got > 0 && fd == passing_client) {
        int error = errno;
        look_at_first(to, (size_t)got);
        errno = error;
    }
    return got;
}

/* `fd` is about to be closed. */
void ar_session_given(int fd)
{
    if (fd < 0 || fd != passing_client)
        return;
    passing_client = -1;
    real_close(passing_witness);
}
