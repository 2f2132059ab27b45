/*
 * Keeps rows that sessions on readers still need: a background worker whose xmin is the oldest of the readers', as a WAL
 * sender's is that of its standby's feedback. It is told on a Unix socket in the server's private directory, each time
 * for so many milliseconds: then, or when this worker ends, nothing is held any more.
 *
 * Its protocol: whoever connects sends one line, "xmin=N lease_ms=N" (xmin 0: nothing), and the end of the stream; it
 * gets "held=N", the xmin that is held from now on. (engine/postgres/horizon.py)
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "utils/timestamp.h"

#include "horizon.h"
#include "workers.h"

#include <poll.h>
#include <unistd.h>

#define SOCKET_VARIABLE "AURORA_HORIZON_SOCKET"
#define LEASE_MS_MAX (60 * 1000)
#define ASK_MS 1000 /* for the line of somebody who has connected */

#if PG_VERSION_NUM >= 170000
#define oldest_xid() (TransamVariables->oldestXid)
#else
#define oldest_xid() (ShmemVariableCache->oldestXid)
#endif

PGDLLEXPORT void aurora_horizon_main(Datum unused);

static TimestampTz until; /* 0: nothing is held */

/* Not before the oldest transaction that can still be named, and not one that is still to come. */
static bool can_be_held(TransactionId xmin)
{
    TransactionId next = XidFromFullTransactionId(ReadNextFullTransactionId());
    TransactionId oldest;

    LWLockAcquire(XidGenLock, LW_SHARED);
    oldest = oldest_xid();
    LWLockRelease(XidGenLock);
    return TransactionIdIsNormal(xmin) && TransactionIdPrecedesOrEquals(xmin, next)
        && TransactionIdFollowsOrEquals(xmin, oldest);
}

static void hold(TransactionId xmin, long lease_ms)
{
    bool held = lease_ms > 0 && can_be_held(xmin);

    MyProc->xmin = held ? xmin : InvalidTransactionId; /* read without a lock, as a WAL sender's */
    until = held ? GetCurrentTimestamp() + Min(lease_ms, LEASE_MS_MAX) * INT64CONST(1000) : 0;
}

static void serve(int peer)
{
    char line[80];
    ssize_t n = -1;
    unsigned long xmin;
    long lease_ms;
    struct pollfd readable = {.fd = peer, .events = POLLIN};

    if (poll(&readable, 1, ASK_MS) == 1)
        n = read(peer, line, sizeof line - 1);
    if (n <= 0)
        return;
    line[n] = '\0';
    if (sscanf(line, "xmin=%lu lease_ms=%ld", &xmin, &lease_ms) != 2 || xmin > PG_UINT32_MAX)
        return;
    hold((TransactionId) xmin, lease_ms);
    n = snprintf(line, sizeof line, "held=%u\n", MyProc->xmin);
    if (write(peer, line, n) != n)
        elog(DEBUG1, "who told of a horizon went away");
}

/* What is held counts in all databases, as a WAL sender's does: this worker is in none. */
static void count_everywhere(void)
{
    LWLockAcquire(ProcArrayLock, LW_EXCLUSIVE);
    MyProc->statusFlags |= PROC_AFFECTS_ALL_HORIZONS;
    ProcGlobal->statusFlags[MyProc->pgxactoff] = MyProc->statusFlags;
    LWLockRelease(ProcArrayLock);
}

static long left_ms(void)
{
    if (until == 0)
        return -1;
    return Max(0, (long) ((until - GetCurrentTimestamp()) / 1000) + 1);
}

void aurora_horizon_main(Datum unused)
{
    int fd = worker_listen(SOCKET_VARIABLE);

    (void) unused;
    BackgroundWorkerInitializeConnection(NULL, NULL, 0);
    count_everywhere();
    for (;;)
    {
        int peer;

        worker_wait(fd, left_ms());
        while ((peer = worker_accept(fd)) >= 0)
        {
            serve(peer);
            close(peer);
        }
        if (until != 0 && GetCurrentTimestamp() >= until)
            hold(InvalidTransactionId, 0);
    }
}

void horizon_register(void)
{
    worker_register("aurora horizon", "aurora_horizon_main", SOCKET_VARIABLE, BGWORKER_BACKEND_DATABASE_CONNECTION,
                    BgWorkerStart_RecoveryFinished);
}
