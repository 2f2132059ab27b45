/*
 * The fleet's own way to a server, which users can neither close nor use up: a background worker without a session, a
 * role or a database that says on a Unix socket (in the server's private directory) how the server is. It answers only
 * after it has held the locks that every transaction needs, so an answer means that transactions can go on; and it says
 * how far the WAL is, so that a recovery shows its progress.
 *
 * Its protocol: whoever connects gets one line, "lsn=N recovery=0|1", and the end of the stream. (engine/postgres/probe.py)
 *
 * And the other way round: ALTER SYSTEM on what the fleet has put onto the command line would have no effect, so it is
 * refused with the reason.
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xlog.h"
#include "access/xlogrecovery.h"
#include "nodes/parsenodes.h"
#include "storage/lwlock.h"
#include "utils/guc_tables.h"

#include <unistd.h>

#include "probe.h"
#include "workers.h"

#define SOCKET_VARIABLE "AURORA_PROBE_SOCKET"

PGDLLEXPORT void aurora_probe_main(Datum unused);

/* ---- the worker */

static void answer(int fd)
{
    char line[80];
    bool recovery = RecoveryInProgress();
    XLogRecPtr lsn;
    int n;

    /* Whoever holds one of these and does nothing holds up everybody. */
    LWLockAcquire(ProcArrayLock, LW_SHARED);
    LWLockRelease(ProcArrayLock);
    LWLockAcquire(XidGenLock, LW_SHARED);
    LWLockRelease(XidGenLock);
    lsn = recovery ? GetXLogReplayRecPtr(NULL) : GetXLogInsertRecPtr();
    n = snprintf(line, sizeof line, "lsn=%llu recovery=%d\n", (unsigned long long) lsn, recovery);
    /* One small write into an empty buffer never waits; whoever has gone meanwhile does not matter (SIGPIPE is ignored).
     * Not send(): that one waits for the volume (intercept_commit.c). */
    if (write(fd, line, n) != n)
        elog(DEBUG1, "a probe went away");
}

void aurora_probe_main(Datum unused)
{
    int fd = worker_listen(SOCKET_VARIABLE);

    (void) unused;
    for (;;)
    {
        int peer;

        worker_wait(fd, -1);
        while ((peer = worker_accept(fd)) >= 0)
        {
            answer(peer);
            close(peer);
        }
    }
}

void probe_register(void)
{
    worker_register("aurora probe", "aurora_probe_main", SOCKET_VARIABLE, 0, BgWorkerStart_PostmasterStart);
}

/* ---- settings */

void refuse_forced_settings(const struct AlterSystemStmt *statement)
{
    const VariableSetStmt *set = statement->setstmt;
    const struct config_generic *known;

    if (set->kind != VAR_SET_VALUE)
        return; /* what is taken out does no harm */
    if (strcmp(set->name, "shared_preload_libraries") == 0)
        return; /* ours is put before the user's */
    if (strcmp(set->name, "wal_level") == 0 && set->args != NIL)
    {
        const A_Const *value = linitial(set->args);

        if (IsA(value, A_Const) && IsA(&value->val, String) && pg_strcasecmp(strVal(&value->val), "minimal") == 0)
            ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE),
                            errmsg("wal_level can be replica or logical: readers follow the log")));
    }
    known = find_option(set->name, false, true, DEBUG5);
    if (known != NULL && known->source == PGC_S_ARGV)
        ereport(ERROR, (errcode(ERRCODE_CANT_CHANGE_RUNTIME_PARAM),
                        errmsg("parameter \"%s\" is fixed in this cluster", set->name),
                        errdetail("The storage underneath rests on it, or the fleet gives it out (ports, sockets, logs).")));
}

/* ---- tablespaces */

/* Before PostgreSQL has made a directory there: what it leaves would make the next try fail in another way. */
void refuse_outside_tablespace(const struct CreateTableSpaceStmt *statement)
{
    if (statement->location != NULL && statement->location[0] != '\0')
        ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
                        errmsg("could not create symbolic link to \"%s\": tablespaces outside the volume are not "
                               "supported",
                               statement->location),
                        errdetail("What is written there would be on this machine only, and gone after a failover."),
                        errhint("The volume grows by itself. If a script needs the name: SET allow_in_place_tablespaces = "
                                "on; CREATE TABLESPACE %s LOCATION '';",
                                statement->tablespacename)));
}
