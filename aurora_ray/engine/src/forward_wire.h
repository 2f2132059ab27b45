/*
 * How statements and answers travel between a session and the writer. Statements go out in units: if one of a unit
 * fails, the writer skips the rest of it, so nothing runs outside of the transaction that it belongs to.
 */
#ifndef FORWARD_WIRE_H
#define FORWARD_WIRE_H

#include "postgres.h"

#include "lib/stringinfo.h"
#include "tcop/cmdtag.h"

#include "forward_link.h"

/* What a unit's answer came to. `done`: how many of its statements succeeded. The tag is the last one's. */
struct answer {
    struct pg_result *failed; /* to be cleared */
    int done;
    char tag[COMPLETION_TAG_BUFSIZE], tuples[32];
};

bool wire_is_there(void); /* a connection; it may have been closed by the other end */
bool wire_is_open(void);  /* the one that is there: nothing has been heard of its end */
bool wire_connect(void);  /* one to who is the writer now, for what begins; true: it is a new one. Raises an ERROR */

void wire_send(const struct statement *one); /* a statement of a unit. Raises an ERROR if the connection is broken */
void wire_send_text(const char *text);
void wire_end_unit(void);                                                       /* the same */
void wire_post(const char *text); /* a unit whose answer is of no interest. It may end the connection: raises nothing */

void wire_read_earlier(int but); /* the answers of all units before the last `but` */
/* Those of one unit; `take` gets the rows of its statements after the first `before`. Raises an ERROR. */
void wire_read_unit(struct answer *answer, int before, take_rows take, void *to);
void wire_raise_failed(struct answer *answer); /* the writer's error, if there is one */

/* COPY ... FROM STDIN, alone. `begin` is told of the writer's readiness; `more` fills in some data, and returns false
 * at the end, with a complaint instead if it shall fail. Raises an ERROR. */
struct copy_source {
    void (*begin)(struct pg_result *ready);
    bool (*more)(StringInfo data, char **complaint);
};
void wire_copy(const char *text, const struct copy_source *source, struct answer *answer);

void wire_forget(void); /* ends the connection, if there is one */
void wire_leave(void); /* gives up what is on its way, and the connection. Raises nothing */
#endif
