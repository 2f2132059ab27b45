/*
 * The relay: one listening port, and behind it the targets that Python names. Bytes are carried here and not in Python
 * because an engine answers a small query in less time than Python takes to pass on one message.
 *
 *   relay.c       the thread and its loop, accepting, orders and counters: what Python calls through ctypes
 *   session.c     one accepted connection: waiting for a target, connecting, ending
 *   carry.c       carrying its bytes both ways
 *   hand_over.c   giving its socket to a server on this machine instead: then no byte passes here
 *   cancel.c      a request to cancel what another session does, which must find that session's server
 *
 * Rules that everything keeps:
 *   - One thread owns all sockets and sessions. Python leaves an order under the lock, rings the bell and waits until the
 *     thread has carried it out; counters are atomics that anyone may read.
 *   - No socket ever blocks. Bytes go from one socket to the other through a buffer that all share; only what the
 *     receiver does not take at once is kept with the session, and the sender is not read again before that is gone.
 *     So a session holds RELAY_CHUNK_BYTES each way at most, and nearly always nothing.
 *   - A session belongs to the target it was connected to. When an order no longer lists that target, in the same
 *     incarnation, the session is reset: nobody stays connected to a writer that was demoted.
 *   - A socket that others have copies of is never watched: closing ours would not end that. It is ended for all who have
 *     it by disconnecting it.
 *   - Sessions are freed, orders obeyed and clocks looked at only after all events of one look have been handled, so
 *     that no event is taken for one of a later state.
 *   - Events are level-triggered, so a byte that was not read now is reported again. A side that waits for nothing is
 *     watched edge-triggered for errors alone: level-triggered, a hang-up would be reported without end.
 */
#ifndef AURORA_RELAY_H
#define AURORA_RELAY_H

#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/un.h>

#define RELAY_CHUNK_BYTES 65536
#define RELAY_TARGETS_MAX 64 /* bits of session.tried */
#define RELAY_EVENTS 128
#define RELAY_ACCEPTS 64      /* in one go, so that sessions get their turn */
#define RELAY_RETRY_MS 50     /* between rounds of attempts to connect */
#define RELAY_CONNECT_MS 2000 /* one attempt */
#define RELAY_PAUSE_MS 100    /* without accepting, when file descriptors or memory run out */
#define RELAY_FILES_OF_OTHERS 512 /* descriptors that this process has for other things than sessions */
#define RELAY_CANCEL_BYTES_MAX 512
#define RELAY_REFUSAL_BYTES_MAX 128
#define RELAY_REFUSED_READ_BYTES 4096
#define RELAY_NEVER INT64_MAX

struct target {
    struct sockaddr_storage address;
    socklen_t address_bytes;
    uint32_t sessions; /* connecting and open */
    uint64_t incarnation;
    bool fallback; /* for new sessions only when no other target takes them */
    struct sockaddr_un hand_over; /* where it takes sockets; without a path: it takes none */
};

struct pending {
    uint32_t from, to; /* those before `from` went meanwhile */
    uint8_t bytes[];
};

struct side {
    struct session *session;
    struct side *peer; /* the other side of the session */
    int fd;
    uint32_t events; /* what epoll watches it for; 0: it is not watched */
    bool eof;  /* it sends no more, and all it sent was read */
    bool shut; /* we send it no more */
    struct pending *pending; /* what it did not take yet; NULL: nothing */
};

/* OFFERED: the target was sent the client's socket and has not taken it yet. HANDED: it has. `server` is the witness. */
enum { SESSION_HELD, SESSION_CONNECTING, SESSION_OFFERED, SESSION_CANCELLING, SESSION_OPEN, SESSION_HANDED, SESSION_CLOSED };

struct session {
    struct session *next, *previous; /* in the list of those that wait, of the open ones, or of the closed ones */
    struct side client, server;
    int state;
    uint32_t target;    /* unless held or cancelling */
    bool looked;        /* at its first messages: it is no request to cancel */
    bool copied;        /* others have, or may still have, the client's socket */
    bool asked;         /* cancelling: this target was sent the request */
    uint32_t ask, spare; /* cancelling: the target after this one; the one that knows already */
    struct pending *request; /* cancelling: what to send */
    uint64_t tried;     /* targets that did not take it in this round, a bit each */
    int64_t due_ms;     /* of the next attempt, or the end of this one */
    int64_t since_ms;   /* the client waits */
};

struct list {
    struct session *first;
    uint32_t count;
};

struct counters { /* in the order in which Python reads them */
    _Atomic uint64_t open, held;
    _Atomic uint64_t accepted, refused, expired, cut, connect_failures;
    _Atomic uint64_t bytes_up, bytes_down, messages;
    _Atomic uint64_t handed, cancels;
};

struct relay_options {
    uint32_t held_max, sessions_max;
    uint64_t hold_ms;
    uint32_t cancel_code, keeps_address, refusal_bytes;
    uint8_t refusal[RELAY_REFUSAL_BYTES_MAX];
};

struct relay {
    int listen_fd, epoll_fd, bell_fd;
    struct relay_options options; /* as Python gave them */
    _Atomic uint64_t hold_ms;     /* how long clients wait; of the options until it is changed */
    pthread_t thread;

    /* shared with Python, under the lock */
    pthread_mutex_t lock;
    pthread_cond_t obeyed;
    struct target ordered[RELAY_TARGETS_MAX];
    uint32_t ordered_count;
    uint64_t generation, orders, orders_obeyed;
    bool unless_used, in_use; /* the order is void if there are sessions; it was */
    _Atomic bool stop;
    struct counters counters;

    /* the thread's own */
    struct target targets[RELAY_TARGETS_MAX];
    uint32_t target_count;
    uint32_t turn;       /* of the round robin */
    struct list waiting; /* held or connecting */
    struct list open;
    struct list closed;
    int64_t due_ms;          /* when the next one of those that wait wants to be looked at */
    int64_t accept_again_ms; /* RELAY_NEVER: it accepts */
    uint8_t chunk[RELAY_CHUNK_BYTES];
};

/* relay.c */
int64_t relay_now_ms(void);
void relay_count_sessions(int change);
void relay_count(_Atomic uint64_t *counter, uint64_t n);
struct pending *relay_keep(const uint8_t *bytes, size_t n);

/* session.c */
struct session *session_new(struct relay *relay, int fd, int64_t now_ms);
void session_connect(struct relay *relay, struct session *session, int64_t now_ms);
void session_event(struct relay *relay, struct side *side, uint32_t events);
void session_look(struct relay *relay, struct session *session, int64_t now_ms);
void session_retarget(struct relay *relay, struct session *session, const uint32_t *moved);
void session_close(struct relay *relay, struct session *session, bool reset);
void sessions_free_closed(struct relay *relay);
void session_leave_target(struct relay *relay, struct session *session);
void session_move(struct relay *relay, struct session *session, int state);
void session_not_taken(struct relay *relay, struct session *session);
void session_wait(struct relay *relay, struct session *session, int64_t due_ms);
bool session_dial(struct relay *relay, struct session *session, const struct target *target, int64_t now_ms);
bool side_watch(struct relay *relay, struct side *side, uint32_t events);
void side_unwatch(struct relay *relay, struct side *side);
void side_close(struct side *side, bool reset);
bool side_connected(const struct side *side);

/* carry.c */
void carry_event(struct relay *relay, struct side *side, uint32_t events);

/* hand_over.c */
bool hand_over_offer(struct relay *relay, struct session *session, const struct target *target, int64_t now_ms);
void hand_over_event(struct relay *relay, struct session *session);
bool hand_over_withdraw(struct relay *relay, struct session *session);
void hand_over_disconnect(int fd);

/* cancel.c */
bool cancel_found(const struct relay *relay, struct session *session, const uint8_t *bytes, size_t n);
void cancel_begin(struct relay *relay, struct session *session, uint32_t spare);
void cancel_go_on(struct relay *relay, struct session *session, int64_t now_ms);
void cancel_event(struct relay *relay, struct side *side);
#endif
