/*
 * What a server of MySQL's protocol may tell at once, though something that was ordered is not durable yet: that a
 * statement inside an open transaction is done. It tells of no commit of its own. It may show what another session has
 * committed and what is not durable yet: that counts when the transaction commits, whose answer waits for all of it, and
 * of one that does not, nothing that it read does. Whoever waited at each statement would wait for the commits of others.
 *
 * That there was none is known by what the client sent and by the answer: one statement that reads or changes rows (these
 * cannot commit, whatever functions and triggers they call), after which the session says that it is in a transaction; or
 * one that begins a transaction in a session that was in none. A prepared statement is known by the text that it was
 * prepared from. What is not understood waits: other statements, several in one message, stored procedures, answers in
 * several parts, errors, whatever comes under TLS or compressed.
 */
#include "intercept.h"
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { HEAD = 4, STATUS_IN_TRANSACTION = 1 };
enum {
    COMMAND_QUERY = 0x03,
    COMMAND_CHANGE_USER = 0x11,
    COMMAND_PREPARE = 0x16,
    COMMAND_EXECUTE = 0x17,
    COMMAND_RESET = 0x1f
};
enum { OTHER, ROWS, BEGINS }; /* kinds of statement */
enum { PREPARED_MAX = 256 };  /* of a session that are remembered, by their numbers */

struct session {
    uint8_t kind, preparing; /* of what was asked last; of what is being prepared */
    bool asks_to_prepare, in_transaction;
    uint32_t announced; /* length of what comes next, where a message's head came by itself */
    uint8_t prepared[PREPARED_MAX];
};

static struct session *sessions[FD_MAX]; /* by descriptor; made with the first greeting there, and used again */

static uint32_t number_at(const unsigned char *at, int bytes)
{
    uint32_t number = 0;
    for (int i = bytes - 1; i >= 0; i--)
        number = number << 8 | at[i];
    return number;
}

static bool starts(const char *text, size_t n, const char *word)
{
    size_t length = strlen(word);
    return n >= length && strncasecmp(text, word, length) == 0 && (n == length || text[length] == ' ');
}

static uint8_t kind_of(const char *text, size_t n)
{
    static const char *const of_rows[] = {"SELECT", "INSERT", "UPDATE", "DELETE", "REPLACE"};

    if (memchr(text, ';', n))
        return OTHER;
    for (size_t i = 0; i < sizeof of_rows / sizeof *of_rows; i++)
        if (starts(text, n, of_rows[i]))
            return ROWS;
    return starts(text, n, "BEGIN") || starts(text, n, "START TRANSACTION") ? BEGINS : OTHER;
}

/* A client has been greeted: whatever was known of its descriptor was another session's. */
void ar_session_begins(int fd)
{
    if (fd < 0 || fd >= FD_MAX || (!sessions[fd] && !(sessions[fd] = malloc(sizeof *sessions[fd]))))
        return;
    memset(sessions[fd], 0, sizeof *sessions[fd]);
}

/* A whole message. */
static void understand(struct session *s, const unsigned char *data, size_t n)
{
    const char *text = (const char *)data + 1;
    switch (data[0]) {
    case COMMAND_QUERY:
        s->kind = kind_of(text, n - 1);
        break;
    case COMMAND_PREPARE:
        s->asks_to_prepare = true;
        s->preparing = kind_of(text, n - 1);
        break;
    case COMMAND_EXECUTE:
        if (n >= 5 && number_at(data + 1, 4) < PREPARED_MAX)
            s->kind = s->prepared[number_at(data + 1, 4)];
        break;
    case COMMAND_CHANGE_USER:
    case COMMAND_RESET:
        memset(s->prepared, OTHER, sizeof s->prepared);
        break;
    }
}

/* A client said this. */
void ar_session_asked(int fd, const unsigned char *data, size_t n)
{
    struct session *s = fd >= 0 && fd < FD_MAX ? sessions[fd] : NULL;
    if (!s)
        return;
    uint32_t announced = s->announced;
    s->kind = OTHER;
    s->asks_to_prepare = false;
    s->announced = 0;
    if (n == HEAD && !announced) {
        s->announced = data[3] == 0 ? number_at(data, 3) : 0;
        return;
    }
    if (!announced && n > HEAD && number_at(data, 3) + HEAD == n && data[3] == 0)
        data += HEAD, n -= HEAD;
    else if (!announced || announced != n)
        return;
    understand(s, data, n);
}

/* Length-encoded numbers of an answer, one byte or three. Returns where the next thing stands; 0: it is something else. */
static size_t skip_number(const unsigned char *data, size_t n, size_t at)
{
    if (at == 0 || at >= n)
        return 0;
    return data[at] < 251 ? at + 1 : data[at] == 252 ? at + 3 : data[at] == 253 ? at + 4 : 0;
}

/* What the last packet of an answer says of the session; -1: it is not understood. */
static int status_of(const unsigned char *data, size_t n)
{
    if (n >= HEAD + 7 && number_at(data, 3) + HEAD == n && data[3] == 1 && data[HEAD] == 0) { /* done, and nothing else */
        size_t at = skip_number(data, n, skip_number(data, n, HEAD + 1));
        return at && at + 2 <= n ? (int)number_at(data + at, 2) : -1;
    }
    const unsigned char *end = data + n; /* rows, and their end, of which there are two forms */
    if (n > HEAD + 5 && number_at(end - HEAD - 5, 3) == 5 && end[-5] == 0xfe && data[3] == 1)
        return (int)number_at(end - 2, 2);
    if (n > HEAD + 7 && number_at(end - HEAD - 7, 3) == 7 && end[-7] == 0xfe && data[3] == 1 && !end[-6] && !end[-5])
        return (int)number_at(end - 4, 2);
    return -1;
}

/* Whether these bytes may go to a client at once: the whole answer to what it asked last. */
bool ar_may_tell_now(int fd, const unsigned char *data, size_t n)
{
    struct session *s = fd >= 0 && fd < FD_MAX ? sessions[fd] : NULL;
    if (!s)
        return false;
    if (s->asks_to_prepare) {
        s->asks_to_prepare = false;
        if (n < HEAD + 5 || data[3] != 1 || data[HEAD] != 0)
            memset(s->prepared, OTHER, sizeof s->prepared);
        else if (number_at(data + HEAD + 1, 4) < PREPARED_MAX)
            s->prepared[number_at(data + HEAD + 1, 4)] = s->preparing;
        return false;
    }
    int status = status_of(data, n);
    bool was_in = s->in_transaction, known = s->kind == ROWS || (s->kind == BEGINS && !was_in);
    s->kind = OTHER; /* one answer only */
    s->in_transaction = status < 0 || status & STATUS_IN_TRANSACTION;
    return known && status >= 0 && s->in_transaction;
}
