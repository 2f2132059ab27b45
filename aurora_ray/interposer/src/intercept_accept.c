/*
 * Sessions that the endpoint hands over. On one of its listening sockets (AURORA_HAND_OVER, a Unix socket in a directory
 * that only the engine's account and root can enter) a server gets no clients, but from the endpoint, over a connection
 * for each, the client's own socket. `accept` gives that to the server, with the client's address, as if it had come
 * here by itself: the server neither knows nor needs to.
 *
 * The connection over which it came is the session's witness. It goes with the client's socket: a process that closes that
 * closes its copy of the witness, and the programs that the session starts do not get it. So it ends when the session
 * does, be that a process that the server has forked, or a thread that closes the socket; and the endpoint, at its other
 * end, lets go of its copy of the client's socket.
 *
 *   endpoint -> server   one byte, and with it the descriptor (SCM_RIGHTS)
 *   server -> endpoint   one byte: it is taken
 *   server -> endpoint   what the client sent, if that is a request to cancel another session's work (its code is
 *                        AURORA_CANCEL_CODE): that session may be with another server
 *
 * The endpoint may have thought better of it meanwhile (the server was stopped for a while, another one is the writer
 * now): then it has shut its end for reading, the byte cannot be sent, and the descriptor is dropped. The kernel does both
 * under one lock, so that a client is never at two servers.
 *
 * A server that takes whoever comes by a Unix socket for one of its own machine cannot be told of that socket. It is told
 * to listen at one more address of TCP (AURORA_HAND_OVER_FOR), and the library gives it the Unix socket in that one's
 * place. It may tell sessions by the address that they are connected from: where a client came by one of this machine
 * (127.0.0.0/8), that is the one (AURORA_KEEPS_ADDRESS), as when the endpoint connects for it.
 */
#include "intercept.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

#define MESSAGE_MS 100 /* the endpoint sends it together with its connect */

static int witness_of[FD_MAX]; /* by the client's socket, plus 1; 0: none. Whoever has that descriptor has its place here */
static int first_read = -1;    /* the client whose first message is looked at: a server of processes has one at a time */

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
    if (client >= 0 && client < FD_MAX && address_of(client, &address, &n) &&
        real_fcntl(witness, F_SETFD, FD_CLOEXEC) == 0 &&
        real_send(witness, "t", 1, MSG_NOSIGNAL | MSG_DONTWAIT) == 1) {
        witness_of[client] = witness + 1;
        if (getenv("AURORA_CANCEL_CODE"))
            first_read = client;
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

/* As `accept`. Neither flag is looked at: what is taken is closed on exec, and does not block. */
AR_EXPORT int accept4(int listener, __SOCKADDR_ARG address, socklen_t *restrict bytes, int flags)
{
    ar_resolve_libc();
    if (!is_hand_over(listener))
        return real_accept4(listener, address.__sockaddr__, bytes, flags);
    int witness = real_accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    return witness < 0 ? -1 : take(witness, address.__sockaddr__, bytes);
}

static bool stands_for_hand_over(const struct sockaddr *address, socklen_t n)
{
    const char *at = getenv("AURORA_HAND_OVER_FOR");
    struct sockaddr_in in;
    struct in_addr wanted;
    if (!at || n < sizeof in || address->sa_family != AF_INET || inet_pton(AF_INET, at, &wanted) != 1)
        return false;
    memcpy(&in, address, sizeof in);
    return in.sin_addr.s_addr == wanted.s_addr;
}

/* The server's descriptor is the Unix socket from now on. */
AR_EXPORT int bind(int fd, __CONST_SOCKADDR_ARG address, socklen_t bytes)
{
    struct sockaddr_un own = {.sun_family = AF_UNIX};
    const char *path = getenv("AURORA_HAND_OVER");
    ar_resolve_libc();
    if (!path || strlen(path) >= sizeof own.sun_path || !stands_for_hand_over(address.__sockaddr__, bytes))
        return real_bind(fd, address.__sockaddr__, bytes);
    memcpy(own.sun_path, path, strlen(path));
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0)
        return -1;
    int done = real_bind(listener, (const struct sockaddr *)&own, sizeof own) == 0 ? real_dup3(listener, fd, O_CLOEXEC) : -1;
    int error = errno;
    real_close(listener);
    errno = error;
    return done < 0 ? -1 : 0;
}

AR_EXPORT int getpeername(int fd, __SOCKADDR_ARG address, socklen_t *restrict bytes)
{
    struct sockaddr_in own, peer;
    socklen_t n = sizeof own, m = sizeof peer;
    ar_resolve_libc();
    if (fd >= 0 && fd < FD_MAX && witness_of[fd] && getenv("AURORA_KEEPS_ADDRESS") &&
        getsockname(fd, (struct sockaddr *)&own, &n) == 0 && own.sin_family == AF_INET &&
        ntohl(own.sin_addr.s_addr) >> 24 == IN_LOOPBACKNET &&
        real_getpeername(fd, (struct sockaddr *)&peer, &m) == 0) {
        own.sin_port = peer.sin_port;
        give_address(&own, sizeof own, address.__sockaddr__, bytes);
        return 0;
    }
    return real_getpeername(fd, address.__sockaddr__, bytes);
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
            (void)!real_send(witness_of[first_read] - 1, bytes, n, MSG_NOSIGNAL | MSG_DONTWAIT);
        goes_on = n == sizeof head && ntohl(head[1]) >> 16 == wanted >> 16;
    }
    if (!goes_on)
        first_read = -1;
}

AR_EXPORT ssize_t recv(int fd, void *to, size_t n, int flags)
{
    ar_resolve_libc();
    ssize_t got = real_recv(fd, to, n, flags);
    if (got > 0 && ar_names_logs())
        ar_session_asked(fd, to, (size_t)got);
    if (got > 0 && fd == first_read) {
        int error = errno;
        look_at_first(to, (size_t)got);
        errno = error;
    }
    return got;
}

/* `fd` is about to be closed. */
void ar_session_given(int fd)
{
    int witness = fd >= 0 && fd < FD_MAX ? witness_of[fd] : 0;
    if (!witness || ar_is_borrowed())
        return;
    witness_of[fd] = 0; /* before somebody else gets the number */
    if (first_read == fd)
        first_read = -1;
    real_close(witness - 1);
}
