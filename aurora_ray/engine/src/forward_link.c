/*
 * A session's transaction at the writer, beside the one that it is in here: begun by the first statement that is
 * forwarded, as deep in subtransactions, ended like it.
 *
 * A statement goes out in one unit with what has to precede it (BEGIN, settings, SAVEPOINT). Nothing is ever sent
 * twice. If the connection breaks before COMMIT was sent, the transaction is not kept; after that, until it is
 * answered, nobody here knows, and the session is told so.
 */
#include "postgres.h"

#if PG_VERSION_NUM >= 180000
#include "access/xact.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/pg_lsn.h"

#include "forward_libpq.h"
#include "forward_link.h"
#include "forward_text.h"
#include "forward_wire.h"

static bool midway;    /* in a unit: what comes next from the writer is not known */
static int depth;      /* of transactions there: 0, 1, and one more for each savepoint */
static bool lost;      /* the transaction that began there is gone, and the one here does not know it yet */
static List *sent;     /* see settings_statements */
static bool sent_anew; /* what was set there may have been rolled back */
static XLogRecPtr written;
static bool written_unknown; /* committed, and the connection broke before the writer said where */

/* What has to precede a statement, by kind. */
struct before {
    int begins, settings, savepoints;
};

static struct before send_before(bool read_only)
{
    static const char *const levels[] = {"READ UNCOMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"};
    const char *access = read_only ? "READ ONLY" : "READ WRITE";
    struct before sent_now = {.begins = depth == 0};
    int wanted = GetCurrentTransactionNestLevel();
    ListCell *each;

    if (depth == 0)
        wire_send_text(psprintf("BEGIN ISOLATION LEVEL %s %s", levels[XactIsoLevel], access));
    foreach (each, settings_statements(&sent, sent_anew))
    {
        wire_send_text(lfirst(each));
        sent_now.settings++;
        sent_anew = true; /* until it is known to have arrived */
    }
    for (int level = Max(depth, 1) + 1; level <= wanted; level++)
    {
        wire_send_text(psprintf("SAVEPOINT aurora_%d", level));
        sent_now.savepoints++;
    }
    return sent_now;
}

static int deeper_by(const struct before *before, int done)
{
    int savepoints = done - before->begins - before->settings;

    return (before->begins && done > 0) + Max(0, Min(savepoints, before->savepoints));
}

static uint64 run_unit(const struct statement *statement, bool read_only, take_rows take, void *to)
{
    struct answer answer;
    struct before before;

    midway = true;
    before = send_before(read_only);
    wire_send(statement);
    wire_end_unit();
    wire_read_earlier(1);
    wire_read_unit(&answer, before.begins + before.settings + before.savepoints, take, to);
    midway = false;
    depth += deeper_by(&before, answer.done);
    sent_anew = sent_anew && answer.done < before.begins + before.settings;
    wire_raise_failed(&answer);
    return strtoull(answer.tuples, NULL, 10);
}

/* ---- what forward.c asks for */

bool link_in_transaction(void) { return depth > 0 || lost; }

pg_noreturn static void raise_lost(void)
{
    ereport(ERROR, (errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
                    errmsg("the connection to the writer broke: nothing of this transaction is kept"),
                    errhint("Run the transaction again.")));
}

/* In a PG_CATCH: whatever is on its way is of no use any more. */
static void abandon(void)
{
    if (!midway)
        return;
    midway = false;
    lost = depth > 0;
    depth = 0;
    wire_leave();
}

static void be_connected(void)
{
    if (!wire_connect())
        return;
    list_free_deep(sent);
    sent = NIL;
    sent_anew = true;
}

uint64 link_run(const struct statement *statement, bool read_only, take_rows take, void *to)
{
    uint64 changed = 0;

    if (lost)
        raise_lost();
    if (depth == 0)
        be_connected();
    PG_TRY();
    {
        changed = run_unit(statement, read_only, take, to);
    }
    PG_CATCH();
    {
        abandon();
        PG_RE_THROW();
    }
    PG_END_TRY();
    return changed;
}

uint64 link_copy(const char *text, const struct copy_source *source)
{
    struct statement nothing = {.text = "SELECT"};
    struct answer answer;

    (void) link_run(&nothing, false, NULL, NULL); /* as deep in the transaction as it shall be in */
    PG_TRY();
    {
        midway = true;
        wire_copy(text, source, &answer);
        midway = false;
        wire_raise_failed(&answer);
    }
    PG_CATCH();
    {
        abandon();
        PG_RE_THROW();
    }
    PG_END_TRY();
    return strtoull(answer.tuples, NULL, 10);
}

static void take_lsn(struct pg_result *rows, void *to)
{
    *(XLogRecPtr *) to = DatumGetLSN(DirectFunctionCall1(pg_lsn_in, CStringGetDatum(PQgetvalue(rows, 0, 0))));
}

XLogRecPtr link_writers_end(void)
{
    XLogRecPtr end = InvalidXLogRecPtr;
    struct answer answer;

    Assert(depth == 0);
    be_connected();
    PG_TRY();
    {
        midway = true;
        wire_send_text("SELECT pg_catalog.pg_current_wal_insert_lsn()");
        wire_end_unit();
        wire_read_earlier(1);
        wire_read_unit(&answer, 0, take_lsn, &end);
        midway = false;
        wire_raise_failed(&answer);
    }
    PG_CATCH();
    {
        abandon();
        PG_RE_THROW();
    }
    PG_END_TRY();
    return end;
}

XLogRecPtr link_written(void)
{
    if (written_unknown)
    {
        written = Max(written, link_writers_end());
        written_unknown = false;
    }
    return written;
}

void link_settings_changed(void) { sent_anew = true; }

void link_discard(void)
{
    if (!link_in_transaction())
        wire_forget();
}

/* ---- with the transaction here */

static void send_commit(volatile bool *answered, struct answer *answer)
{
    XLogRecPtr end = InvalidXLogRecPtr;
    struct answer where;

    midway = true;
    wire_send_text("COMMIT");
    wire_end_unit();
    wire_send_text("SELECT pg_catalog.aurora_commit_lsn()");
    wire_end_unit();
    wire_read_earlier(2);
    wire_read_unit(answer, 0, NULL, NULL);
    *answered = true;
    written_unknown = answer->failed == NULL;
    wire_read_unit(&where, 0, take_lsn, &end);
    midway = false;
    PQclear(where.failed);
    if (end == InvalidXLogRecPtr)
        return;
    written = Max(written, end);
    written_unknown = false;
}

static void commit(void)
{
    MemoryContext here = CurrentMemoryContext;
    volatile bool answered = false;
    struct answer answer = {0};
    char *volatile why = NULL;

    if (!wire_is_open())
    {
        wire_forget();
        depth = 0;
        raise_lost(); /* COMMIT was not sent */
    }
    PG_TRY();
    {
        send_commit(&answered, &answer);
    }
    PG_CATCH();
    {
        ErrorData *error;

        MemoryContextSwitchTo(here);
        error = CopyErrorData();
        why = error->detail != NULL ? error->detail : error->message;
        FlushErrorState();
        wire_leave();
    }
    PG_END_TRY();
    depth = 0;
    midway = false;
    if (!answered)
        ereport(ERROR, (errcode(ERRCODE_TRANSACTION_RESOLUTION_UNKNOWN),
                        errmsg("the writer did not answer a COMMIT: whether the transaction is kept is not known"),
                        errdetail_internal("%s", why), errhint("Look before you run it again.")));
    wire_raise_failed(&answer);
    if (strcmp(answer.tag, "COMMIT") != 0)
        raise_lost();
}

static void on_transaction(XactEvent event, void *unused)
{
    (void) unused;
    switch (event)
    {
        case XACT_EVENT_PRE_COMMIT:
            if (lost)
                raise_lost();
            if (depth > 0)
                commit();
            break;
        case XACT_EVENT_ABORT:
            if (depth > 0)
                wire_post("ROLLBACK");
            depth = 0;
            lost = false;
            sent_anew = true;
            break;
        default:
            break;
    }
}

static void on_subtransaction(SubXactEvent event, SubTransactionId mine, SubTransactionId parent, void *unused)
{
    int level = GetCurrentTransactionNestLevel();

    (void) mine, (void) parent, (void) unused;
    if (depth < level || (event != SUBXACT_EVENT_PRE_COMMIT_SUB && event != SUBXACT_EVENT_ABORT_SUB))
        return;
    if (event == SUBXACT_EVENT_ABORT_SUB)
    {
        wire_post(psprintf("ROLLBACK TO SAVEPOINT aurora_%d", level));
        sent_anew = true;
    }
    wire_post(psprintf("RELEASE SAVEPOINT aurora_%d", level));
    lost = lost || !wire_is_there();
    depth = wire_is_there() ? level - 1 : 0;
}

void link_register(void)
{
    RegisterXactCallback(on_transaction, NULL);
    RegisterSubXactCallback(on_subtransaction, NULL);
}
#endif
