/* A session's connection to the writer, and its transaction there. */
#ifndef FORWARD_LINK_H
#define FORWARD_LINK_H

#include "postgres.h"

#include "access/xlogdefs.h"
#include "nodes/params.h"

struct pg_result; /* PGresult */

/* A statement for the writer. Texts of parameters are in the server's encoding; NULL is NULL. */
struct statement {
    const char *text;
    int parameters;
    const Oid *types;
    const char *const *values;
};

/* Rows of an answer, some at a time; of a statement without rows it is not called. */
typedef void (*take_rows)(struct pg_result *rows, void *to);

void link_register(void);

const char *link_address(void); /* "host port" of the writer's endpoint, as this server was told; NULL: none */

/* Whether this transaction goes on at the writer: it has begun there. It stays so if it was lost there, and then
 * whatever is run is refused until it is rolled back here. */
bool link_in_transaction(void);

/* Runs a statement in this transaction at the writer, which it begins there if needed, as deep in subtransactions as
 * it is here; how many rows it changed. Raises an ERROR, the writer's if it is of the statement. */
uint64 link_run(const struct statement *statement, bool read_only, take_rows take, void *to);

/* The end of the WAL that the writer has by now. Only outside of a transaction there. Raises an ERROR. */
XLogRecPtr link_writers_end(void);

struct copy_source; /* see forward_wire.h */
uint64 link_copy(const char *text, const struct copy_source *source); /* the same for COPY ... FROM STDIN */

void link_settings_changed(void); /* of the session there, perhaps, by what was run */
void link_discard(void); /* outside of a transaction: the session there ends, with all that it keeps */

/* Up to where what this session has had written must be replayed for it to read its own writes; 0: nothing was.
 * Raises an ERROR if that has to be asked and cannot. */
XLogRecPtr link_written(void);
#endif
