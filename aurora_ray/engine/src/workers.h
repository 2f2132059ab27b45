/* The module's background workers: how they are registered, and how each listens on a socket of its own. */
#ifndef WORKERS_H
#define WORKERS_H

#include "postgres.h"

#include "postmaster/bgworker.h"

/* In _PG_init. Does nothing unless the environment has `variable`, the socket at which `function` will listen. */
void worker_register(const char *name, const char *function, const char *variable, int flags, BgWorkerStartTime when);

int worker_listen(const char *variable);            /* in the worker; it does not end if the socket cannot be made */
void worker_wait(int fd, long timeout_ms);          /* for a connection, or at most so long (-1: for ever) */
int worker_accept(int fd);                          /* -1: there is none */
#endif
