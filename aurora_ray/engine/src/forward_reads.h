/* When reads on a server that follows may begin, and with which snapshot. */
#ifndef FORWARD_READS_H
#define FORWARD_READS_H

#include "postgres.h"

#include "executor/execdesc.h"

enum level { LEVEL_OFF, LEVEL_EVENTUAL, LEVEL_SESSION, LEVEL_GLOBAL };

/* At READ COMMITTED, where each statement has a snapshot of its own: waits until what the level asks for is here, and
 * has the statement see it. `query`: what the executor is about to start, if it is that. Raises an ERROR after
 * a time. */
void read_here(QueryDesc *query, enum level level);

/* When a transaction that has one snapshot and will not write begins: the same, if nothing has looked at anything yet;
 * whether that is so. */
bool read_here_all(enum level level);
#endif
