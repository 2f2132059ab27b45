#include "postgres.h"

#if PG_VERSION_NUM >= 180000
#include "access/xact.h"
#include "access/xlog.h"
#include "access/xlog_internal.h"
#include "access/xlogrecovery.h"
#include "miscadmin.h"
#include "storage/latch.h"
#include "tcop/pquery.h"
#include "utils/portal.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "forward_link.h"
#include "forward_reads.h"

#define REPLAYED_S 30

static XLogRecPtr seen; /* was replayed when the present snapshot was taken, or before */
static uint32 wait_replay;

/* The end of the last record; what is told for a page's very beginning lies behind its header. */
static XLogRecPtr end_of_record(XLogRecPtr lsn)
{
    uint32 in_segment = lsn % wal_segment_size, in_page = lsn % XLOG_BLCKSZ;

    if (in_segment == SizeOfXLogLongPHD)
        return lsn - SizeOfXLogLongPHD;
    return in_page == SizeOfXLogShortPHD ? lsn - SizeOfXLogShortPHD : lsn;
}

static void wait_replayed(XLogRecPtr wanted)
{
    TimestampTz ends = GetCurrentTimestamp() + REPLAYED_S * USECS_PER_SEC;
    long pause_ms = 1;

    if (wait_replay == 0)
        wait_replay = WaitEventExtensionNew("AuroraWriteForwardConsistencyPoint");
    while (RecoveryInProgress() && GetXLogReplayRecPtr(NULL) < wanted)
    {
        if (GetCurrentTimestamp() >= ends)
            ereport(ERROR, (errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
                            errmsg("this server has not seen what is asked for within %d s", REPLAYED_S),
                            errdetail("It lags, and apg_write_forward.consistency_mode has reads wait."),
                            errhint("Run the transaction again, or read with eventual consistency.")));
        (void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, pause_ms, wait_replay);
        ResetLatch(MyLatch);
        CHECK_FOR_INTERRUPTS();
        pause_ms = Min(pause_ms + 1, 10);
    }
}

/* Waits until this server has what the level asks for; whether a snapshot from before may be too old. */
static bool wait_for_level(enum level level)
{
    XLogRecPtr wanted = InvalidXLogRecPtr;

    if (level == LEVEL_GLOBAL)
        wanted = end_of_record(link_writers_end());
    if (level >= LEVEL_SESSION)
        wanted = Max(wanted, link_written());
    if (wanted <= seen)
        return false;
    wait_replayed(wanted);
    seen = wanted;
    return true;
}

static void take_new_snapshot(QueryDesc *query)
{
    Snapshot old = ActiveSnapshotSet() ? GetActiveSnapshot() : NULL;
    bool of_portal = old != NULL && ActivePortal != NULL && ActivePortal->portalSnapshot == old;
    bool of_query = old != NULL && query != NULL && query->snapshot == old;

    if (old == NULL)
        return;
    if (of_query)
        UnregisterSnapshot(old);
    PopActiveSnapshot();
    PushActiveSnapshot(GetTransactionSnapshot());
    if (of_query)
        query->snapshot = RegisterSnapshot(GetActiveSnapshot());
    if (of_portal)
        ActivePortal->portalSnapshot = GetActiveSnapshot();
}

void read_here(QueryDesc *query, enum level level)
{
    if (!IsolationUsesXactSnapshot() && wait_for_level(level))
        take_new_snapshot(query);
}

bool read_here_all(enum level level)
{
    if (FirstSnapshotSet)
        return false;
    (void) wait_for_level(level);
    return true;
}
#endif
