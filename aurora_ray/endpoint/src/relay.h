/*
 * The relay: one listening port, and behind it the targets that Python names. Bytes are carried here and not in Python
 * because an engine answers a small query in less time than Python takes to pass on one message.
 *
 *   relay.c     the thread and its loop, accepting, orders and counters: what Python calls through ctypes
 *   session.c   one accepted connection: waiting for a target, connecting, carrying bytes both ways, closing
 *
 * Rules that everything keeps:
 *   - One thread owns all sockets and sessions. Python leaves an order under the lock, rings the bell and waits until the
 *     thread has carried it out; counters are atomics that anyone may read.
 *   - No socket ever blocks. Bytes go from one socket to the other through a buffer that all share; only what the
 *     receiver does not take at once is kept with the session, and the sender is not read again before that is gone.
 *     So a session holds RELAY_CHUNK_BYTES each way at most, and nearly always nothing.
 *   - A session belongs to the target it was connected to. When an order no longer lists that target, in the same
 *     incarnation, the session is reset: nobody stays connected to a writer that was demoted.
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

#define RELAY_CHUNK_BYTES 65536
#define RELAY_TARGETS_MAX 64 /* bits of session.tried */
#define RELAY_EVENTS 128
#define RELAY_ACCEPTS 64      /* in one go, so that sessions get their turn */
#define RELAY_RETRY_MS 50     /* between rounds of attempts to connect */
#define RELAY_CONNECT_MS 2000 /* one attempt */
#define RELAY_PAUSE_MS 100    /* without accepting, when file descriptors or memory run out */
#define RELAY_NEVER INT64_MAX

struct target {
    struct sockaddr_storage address;
    socklen_t address_bytes;
    uint32_t sessions; /* connecting and open */
    uint64_t incarnation;
    bool fallback; /* for new sessions only when no other target takes them */
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

enum { SESSION_HELD, SESSION_CONNECTING, SESSION_OPEN, SESSION_CLOSED };

struct session {
    struct session *next, *previous; /* in the list of those that wait, of the open ones, or of the closed ones */
    struct side client, server;
    int state;
    uint32_t target;    /* unless held */
    uint64_t tried;     /* targets that did not take it in this round, a bit each */
    int64_t due_ms;     /* of the next attempt, or the end of this one */
    int64_t give_up_ms; /* when the client has waited long enough */
};

struct list {
    struct session *first;
    uint32_t count;
};

struct counters { /* in the order in which Python reads them */
    _Atomic uint64_t open, held;
    _Atomic uint64_t accepted, refused, expired, cut, connect_failures;
    _Atomic uint64_t bytes_up, bytes_down, messages;
};

struct relay {
    int listen_fd, epoll_fd, bell_fd;
    uint32_t held_max, sessions_max;
    int64_t hold_ms;
    pthread_t thread;

    /* shared with Python, under the lock */
    pthread_mutex_t lock;
    pthread_cond_t obeyed;
    struct target ordered[RELAY_TARGETS_MAX];
    uint32_t ordered_count;
    uint64_t generation, orders, orders_obeyed;
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
#endif
