/*
 * A PostgreSQL module: commits wait for the volume where they wait for a synchronous standby, not in their WAL flush.
 *
 * PostgreSQL flushes its WAL under a lock, so one flush is on its way at a time. It needs that flush for two things:
 * order (the WAL comes before the pages it describes) and durability (a commit is told to nobody before it is safe).
 * The volume is one log, so order costs nothing: with this module loaded, fdatasync on a WAL segment only marks how far
 * the log is ordered (interposer/src/intercept_commit.c). Durability is waited for later, without a lock and for each
 * commit alone, at the place that PostgreSQL has for that: after the flush, and before the transaction is visible to
 * anybody, SyncRepWaitForLSN() puts the session to sleep until a standby has the commit. Here the volume is the standby:
 *
 *     COMMIT -> WAL record -> XLogFlush: ordered -> SyncRepWaitForLSN -> epoll_wait
 *                                                      interposer -> before_sleep() below: four of six have it
 *            -> visible, locks released -> the client is told
 *
 * What PostgreSQL promises stays as it is, so what weakens that place for a real standby is closed here:
 *   - a wait that is cancelled counts as a commit there: while a transaction commits, cancelling waits (hold_cancels);
 *   - synchronous_commit = local does not wait there: it is raised to on for the commit;
 *   - so is off, for what PostgreSQL makes durable under off as well: two-phase commits and changes of files;
 *   - WAL must not leave the server before it is durable: reads of WAL segments wait (interposer), and so does all
 *     that a WAL sender sends;
 *   - nobody must be told of an LSN as flushed before that: a subscriber's workers tell their publisher, which forgets
 *     the changes then. What they send waits as well.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/storage.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "replication/syncrep.h"
#include "replication/walsender.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "tcop/utility.h"
#include "utils/guc.h"
#include "utils/guc_hooks.h"

#include "../../interposer/src/commit_hooks.h"
#include "facts.h"
#include "forward.h"
#include "horizon.h"
#include "probe.h"

#include <dlfcn.h>
#include <signal.h>

PG_MODULE_MAGIC;

/* Of the interposer, which is in the process before this module. */
static void (*wait_for_ordered)(void);

/* The one synchronous standby. None can take that place: a name has at most 63 characters. */
#define STANDBY "\"the volume: a commit is visible when four of its six copies have it on disk\""

static ProcessUtility_hook_type next_check, next_utility;

static bool cancels_held;     /* SIGINT and SIGTERM are blocked by us ... */
static bool cancels_let;      /* ... but not while this process sleeps in the middle of it */
static bool raised;           /* synchronous_commit is ours for this commit; `before_raise` is the session's */
static int before_raise;
static bool must_be_durable;  /* this transaction did what PostgreSQL flushes even with synchronous_commit = off */

/* ---- the wait */

static void mask_cancels(int how)
{
    sigset_t cancels;

    sigemptyset(&cancels);
    sigaddset(&cancels, SIGINT);
    sigaddset(&cancels, SIGTERM);
    sigprocmask(how, &cancels, NULL);
}

/*
 * Called by the interposer before this process sleeps in epoll_wait. True: there is nothing left to sleep for. Early in a
 * commit a process may sleep for a lock (NOTIFY takes one): there it can still be cancelled without harm.
 */
static bool before_sleep(void)
{
    if (MyProc == NULL || MyProc->syncRepState != SYNC_REP_WAITING) {
        cancels_let = cancels_held && InterruptHoldoffCount == 0;
        if (cancels_let)
            mask_cancels(SIG_UNBLOCK);
        return false;
    }
    wait_for_ordered();
    LWLockAcquire(SyncRepLock, LW_EXCLUSIVE);
    if (!dlist_node_is_detached(&MyProc->syncRepLinks))
        dlist_delete_thoroughly(&MyProc->syncRepLinks);
    MyProc->syncRepState = SYNC_REP_WAIT_COMPLETE;
    LWLockRelease(SyncRepLock);
    return true;
}

static void after_sleep(void)
{
    if (cancels_let)
        mask_cancels(SIG_BLOCK);
    cancels_let = false;
}

/* Called by the interposer before this process sends. True: only what is durable may have been seen by who sends. */
static bool send_waits(void)
{
    return am_walsender || MyBackendType == B_BG_WORKER || MyBackendType == B_WAL_RECEIVER;
}

/*
 * Called by the interposer before it waits in an fsync. True: what a recovery makes durable, the copy of a whole segment
 * in which a new timeline begins among it, is told to nobody before the first commit behind it is.
 */
static bool orders_only(void) { return MyBackendType == B_STARTUP; }

/* Called by the interposer after a write. True: what checkpoints and the background writer write can wait. */
static bool writes_behind(void)
{
    return MyBackendType == B_CHECKPOINTER || MyBackendType == B_BG_WRITER;
}

/* Called by the interposer after this process slept: it has no lock then. */
static bool checkpoints(void) { return MyBackendType == B_CHECKPOINTER; }

/* ---- around a commit */

static void hold_cancels(void)
{
    if (cancels_held)
        return;
    mask_cancels(SIG_BLOCK);
    cancels_held = true;
}

static void release_cancels(void)
{
    if (!cancels_held)
        return;
    cancels_held = false;
    mask_cancels(SIG_UNBLOCK);
}

static void set_level(int level)
{
    synchronous_commit = level;
    assign_synchronous_commit(level, NULL);
}

static void raise_level(void)
{
    if (raised || synchronous_commit > SYNCHRONOUS_COMMIT_LOCAL_FLUSH)
        return;
    before_raise = synchronous_commit;
    raised = true;
    set_level(SYNCHRONOUS_COMMIT_REMOTE_FLUSH);
}

static void begin_commit(bool always_durable)
{
    hold_cancels();
    CHECK_FOR_INTERRUPTS(); /* what came before still cancels */
    if (always_durable || synchronous_commit == SYNCHRONOUS_COMMIT_LOCAL_FLUSH)
        raise_level();
}

static void end_commit(void)
{
    if (raised)
        set_level(before_raise);
    raised = must_be_durable = false;
    release_cancels();
}

static bool drops_files(void)
{
    RelFileLocator *files;

    return smgrGetPendingDeletes(true, &files) > 0; /* the list is in the transaction's memory */
}

static void on_transaction(XactEvent event, void *unused)
{
    (void)unused;
    switch (event)
    {
        case XACT_EVENT_PRE_COMMIT:
            if (TransactionIdIsValid(GetTopTransactionIdIfAny()))
                begin_commit(synchronous_commit == SYNCHRONOUS_COMMIT_OFF && (must_be_durable || drops_files()));
            break;
        case XACT_EVENT_PRE_PREPARE:
            begin_commit(true);
            break;
        case XACT_EVENT_COMMIT:
        case XACT_EVENT_ABORT:
        case XACT_EVENT_PREPARE:
            end_commit();
            break;
        default:
            break;
    }
}

/* ---- hooks */

static void check_settings(PlannedStmt *statement, const char *text, bool keep, ProcessUtilityContext context,
                           ParamListInfo parameters, QueryEnvironment *environment, DestReceiver *to,
                           QueryCompletion *done)
{
    ProcessUtility_hook_type run = next_check ? next_check : standard_ProcessUtility;

    if (IsA(statement->utilityStmt, AlterSystemStmt))
        refuse_forced_settings((AlterSystemStmt *) statement->utilityStmt);
    if (IsA(statement->utilityStmt, CreateTableSpaceStmt))
        refuse_outside_tablespace((CreateTableSpaceStmt *) statement->utilityStmt);
    run(statement, text, keep, context, parameters, environment, to, done);
}

static void run_utility(PlannedStmt *statement, const char *text, bool keep, ProcessUtilityContext context,
                        ParamListInfo parameters, QueryEnvironment *environment, DestReceiver *to,
                        QueryCompletion *done)
{
    ProcessUtility_hook_type run = next_utility ? next_utility : standard_ProcessUtility;
    Node *parsed = statement->utilityStmt;
    bool second_phase = false;

    if (IsA(parsed, TransactionStmt))
    {
        TransactionStmtKind kind = ((TransactionStmt *) parsed)->kind;

        second_phase = kind == TRANS_STMT_COMMIT_PREPARED || kind == TRANS_STMT_ROLLBACK_PREPARED;
    }
    else if (GetCommandLogLevel(parsed) == LOGSTMT_DDL)
        must_be_durable = true;
    if (!second_phase)
    {
        run(statement, text, keep, context, parameters, environment, to, done);
        return;
    }
    begin_commit(true);
    PG_TRY();
    {
        run(statement, text, keep, context, parameters, environment, to, done);
    }
    PG_FINALLY();
    {
        end_commit();
    }
    PG_END_TRY();
}

static void *of_interposer(const char *name)
{
    void *found = dlsym(RTLD_DEFAULT, name);

    if (found == NULL)
        ereport(FATAL, (errmsg("this module needs a data directory on a volume: the interposer has no %s", name)));
    return found;
}

/* Why PostgreSQL's place to wait is not ours; NULL if it is. */
static const char *place_is_taken(void)
{
    if (max_wal_senders == 0)
        return "max_wal_senders is 0";
    if (SyncRepStandbyNames != NULL && SyncRepStandbyNames[0] != '\0')
        return "synchronous_standby_names is set";
    return NULL;
}

PGDLLEXPORT void _PG_init(void);

void _PG_init(void)
{
    static const struct ar_commit_hooks hooks = {
        .before_sleep = before_sleep,
        .after_sleep = after_sleep,
        .send_waits = send_waits,
        .orders_only = orders_only,
        .logs = "pg_wal/",
        .writes_behind = writes_behind,
        .checkpoints = checkpoints,
    };
    void (*defer_commits)(const struct ar_commit_hooks *);
    const char *why = place_is_taken();

    if (!process_shared_preload_libraries_in_progress)
        ereport(ERROR, (errmsg("this module can only be loaded through shared_preload_libraries")));
    probe_register();
    horizon_register();
    facts_register();
    forward_register();
    next_check = ProcessUtility_hook;
    ProcessUtility_hook = check_settings;
    if (why != NULL) {
        ereport(LOG, (errmsg("commits wait for the volume in their WAL flush, because %s", why)));
        return;
    }
    defer_commits = (void (*)(const struct ar_commit_hooks *))of_interposer("ar_defer_commits");
    wait_for_ordered = (void (*)(void))of_interposer("ar_wait_for_ordered");
    SetConfigOption("synchronous_standby_names", STANDBY, PGC_POSTMASTER, PGC_S_OVERRIDE);
    /* Nobody holds a lock while he waits, so nobody has to sleep for others to join: the volume's driver groups. */
    SetConfigOption("commit_delay", "0", PGC_POSTMASTER, PGC_S_OVERRIDE);
    next_utility = ProcessUtility_hook;
    ProcessUtility_hook = run_utility;
    RegisterXactCallback(on_transaction, NULL);
    defer_commits(&hooks);
}
