/*
 * Write forwarding: on a server that follows the writer, what a session writes runs at the writer, in a transaction
 * beside the one that the session is in here (forward_link.c), and reads here wait as the session asks
 * (apg_write_forward.consistency_mode, forward_reads.c).
 *
 * A statement is judged where the executor starts it, whatever protocol it came by. From the first one that writes
 * until the end of the transaction, all run at the writer, whole and by their text, with the parameters beside: so
 * functions run where their writes can, and reads see what was written. A transaction at REPEATABLE READ runs there
 * from its beginning, as its one snapshot has to be the writer's, unless it is declared read-only.
 *
 * What is not a client's own statement (in functions, EXPLAIN ANALYZE, cursors) runs here; if it would write, it is
 * refused. So is every command that is not named below.
 *
 * The level says from which moment on a read here sees what has happened at the writer:
 *
 *   off        nothing is forwarded
 *   eventual   no moment
 *   session    this session's last commit there (the default)
 *   global     the beginning of the read
 */
#include "postgres.h"

#include "forward.h"

#if PG_VERSION_NUM >= 180000
#include "access/parallel.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "commands/defrem.h"
#include "commands/explain.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "optimizer/planner.h"
#include "tcop/pquery.h"
#include "tcop/utility.h"
#include "utils/guc_tables.h"
#include "utils/portal.h"

#include "forward_link.h"
#include "forward_copy.h"
#include "forward_plan.h"
#include "forward_reads.h"
#include "forward_text.h"

#define LEVEL_NAME "apg_write_forward.consistency_mode"

static const struct config_enum_entry levels[] = {
    {"off", LEVEL_OFF, false},
    {"eventual", LEVEL_EVENTUAL, false},
    {"session", LEVEL_SESSION, false},
    {"global", LEVEL_GLOBAL, false},
    {NULL, 0, false},
};

static planner_hook_type next_planner;
static ExecutorStart_hook_type next_start;
static ExecutorRun_hook_type next_run;
static ExecutorFinish_hook_type next_finish;
static ProcessUtility_hook_type next_utility;

static int level = LEVEL_SESSION;
static int nesting; /* 0: what comes is a client's own statement */
static enum access { UNSAID, READ_ONLY, READ_WRITE } access_said, access_chained;
static bool waited_first;   /* this transaction's one snapshot was taken when what it has to see was here */

/* ---- whether anything is forwarded */

/* Else nothing of this file matters, nor is anything kept count of. */
static bool may_be_on(void) { return RecoveryInProgress() || link_in_transaction(); }

static bool is_on(void)
{
    return link_in_transaction() || (level != LEVEL_OFF && RecoveryInProgress() && link_address() != NULL);
}

/* XactReadOnly does not tell: here it is always set. */
static bool is_read_only(void) { return access_said == READ_ONLY || (access_said == UNSAID && DefaultXactReadOnly); }

pg_noreturn static void refuse(const char *what)
{
    ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED), errmsg("%s: not forwarded to the writer", what),
                    errhint("Connect to the writer for it: `aurora global status` has a writer_dsn that finds it.")));
}

/* ---- the setting */

static bool check_level(int *wanted, void **extra, GucSource source)
{
    (void) extra;
    if (*wanted == LEVEL_OFF || (source != PGC_S_SESSION && source != PGC_S_CLIENT) || InitializingParallelWorker)
        return true;
    if (!IsUnderPostmaster || !RecoveryInProgress() || link_address() != NULL)
        return true;
    GUC_check_errcode(ERRCODE_FEATURE_NOT_SUPPORTED);
    GUC_check_errmsg("writes are not forwarded here: apg_write_forward.consistency_mode can only be off");
    GUC_check_errhint("`aurora global forwarding` turns it on for the regions of a global cluster.");
    return false;
}

/* Where nothing is forwarded, it is off unless somebody has said otherwise. */
static const char *show_level(void)
{
    const struct config_generic *known = find_option(LEVEL_NAME, false, true, DEBUG5);
    bool chosen = known == NULL || known->source != PGC_S_DEFAULT;

    return levels[chosen || link_address() != NULL ? level : LEVEL_OFF].name;
}

/* ---- statements for the executor */

static bool is_clients(const QueryDesc *query)
{
    return nesting == 0 && ActivePortal != NULL && list_member_ptr(ActivePortal->stmts, query->plannedstmt);
}

static bool belongs_to_writer(const PlannedStmt *plan, int marks)
{
    if (link_in_transaction())
        return true;
    if (IsolationUsesXactSnapshot())
        return !waited_first;
    return !is_read_only() && (plan_changes(plan) || (marks & MAY_WRITE) != 0);
}

static void judge(QueryDesc *query)
{
    PlannedStmt *plan = query->plannedstmt;
    int marks = plan_marks(plan);
    bool reads = plan->permInfos != NIL || (marks & CALLS_USERS) != 0;

    if (is_read_only() && plan_changes(plan) && !link_in_transaction())
        return; /* PostgreSQL refuses it */
    if (!belongs_to_writer(plan, marks))
    {
        if (reads)
            read_here(query, level);
        return;
    }
    if ((marks & SETS) != 0)
    {
        if (reads || plan_changes(plan))
            refuse("set_config() in a statement that reads or writes tables");
        return; /* settings are this session's, and the writer's is given them */
    }
    if (list_length(ActivePortal->stmts) != 1)
        refuse("a statement of which rules make several");
    query->plannedstmt = plan_forwarded(plan, text_of(query->sourceText, plan->stmt_location, plan->stmt_len),
                                        is_read_only());
}

static void refuse_if_it_writes(const PlannedStmt *plan)
{
    if (plan_changes(plan) && !is_read_only() && RecoveryInProgress() && is_on())
        refuse("what a function that is not declared VOLATILE, EXPLAIN ANALYZE or a cursor writes");
}

static void start(QueryDesc *query, int flags)
{
    if (may_be_on() && !(flags & EXEC_FLAG_EXPLAIN_ONLY))
    {
        if (!is_clients(query))
            refuse_if_it_writes(query->plannedstmt);
        else if (is_on())
            judge(query);
    }
    if (next_start)
        next_start(query, flags);
    else
        standard_ExecutorStart(query, flags);
}

static PlannedStmt *plan(Query *query, const char *text, int options, ParamListInfo parameters)
{
    planner_hook_type make = next_planner ? next_planner : standard_planner;
    PlannedStmt *made = NULL;
    int marks;

    if (!may_be_on())
        return make(query, text, options, parameters);
    marks = marks_of(query);
    nesting++;
    PG_TRY();
    {
        made = make(query, text, options, parameters);
    }
    PG_FINALLY();
    {
        nesting--;
    }
    PG_END_TRY();
    plan_mark(made, marks);
    return made;
}

static void run(QueryDesc *query, ScanDirection direction, uint64 count)
{
    ExecutorRun_hook_type go = next_run ? next_run : standard_ExecutorRun;

    if (!may_be_on())
    {
        go(query, direction, count);
        return;
    }
    nesting++;
    PG_TRY();
    {
        go(query, direction, count);
    }
    PG_FINALLY();
    {
        nesting--;
    }
    PG_END_TRY();
}

static void finish(QueryDesc *query)
{
    ExecutorFinish_hook_type go = next_finish ? next_finish : standard_ExecutorFinish;

    if (!may_be_on())
    {
        go(query);
        return;
    }
    nesting++;
    PG_TRY();
    {
        go(query);
    }
    PG_FINALLY();
    {
        nesting--;
    }
    PG_END_TRY();
}

/* ---- other statements */

/* Notes what a transaction is declared to be; the options without "read write", which PostgreSQL refuses here. */
static List *note_access(List *options)
{
    List *kept = NIL;
    ListCell *each;

    foreach (each, options)
    {
        DefElem *option = lfirst_node(DefElem, each);

        if (strcmp(option->defname, "transaction_read_only") == 0)
            access_said = intVal(&castNode(A_Const, option->arg)->val) ? READ_ONLY : READ_WRITE;
        if (strcmp(option->defname, "transaction_read_only") != 0 || access_said == READ_ONLY)
            kept = lappend(kept, option);
    }
    return kept;
}

/* What begins or describes a transaction, as it can be run here; NULL: nothing is left of it. */
static PlannedStmt *without_read_write(PlannedStmt *statement)
{
    PlannedStmt *copy = copyObject(statement);

    if (IsA(copy->utilityStmt, TransactionStmt))
    {
        TransactionStmt *begins = (TransactionStmt *) copy->utilityStmt;

        begins->options = note_access(begins->options);
        return copy;
    }
    else
    {
        VariableSetStmt *describes = (VariableSetStmt *) copy->utilityStmt;

        describes->args = note_access(describes->args);
        return describes->args != NIL ? copy : NULL;
    }
}

static bool describes_transaction(const Node *parsed)
{
    const VariableSetStmt *set = (const VariableSetStmt *) parsed;
    const TransactionStmt *of = (const TransactionStmt *) parsed;

    if (IsA(parsed, TransactionStmt))
        return of->kind == TRANS_STMT_BEGIN || of->kind == TRANS_STMT_START;
    return IsA(parsed, VariableSetStmt) && set->kind == VAR_SET_MULTI && strcmp(set->name, "TRANSACTION") == 0;
}

static bool explains_by_running(const ExplainStmt *explain)
{
    ListCell *each;
    bool runs = false;

    foreach (each, explain->options)
        if (strcmp(lfirst_node(DefElem, each)->defname, "analyze") == 0)
            runs = defGetBoolean(lfirst_node(DefElem, each));
    return runs;
}

enum course { HERE, READS_HERE, AT_WRITER, COPIED_TO_WRITER, REFUSED };

static enum course course_of(const Node *parsed)
{
    switch (nodeTag(parsed))
    {
        case T_TransactionStmt:
            switch (((const TransactionStmt *) parsed)->kind)
            {
                case TRANS_STMT_PREPARE:
                case TRANS_STMT_COMMIT_PREPARED:
                case TRANS_STMT_ROLLBACK_PREPARED:
                    return REFUSED;
                default:
                    return HERE;
            }
        case T_VariableSetStmt:
        case T_VariableShowStmt:
        case T_DiscardStmt:
        case T_PrepareStmt:
        case T_ExecuteStmt:
        case T_DeallocateStmt:
        case T_FetchStmt:
        case T_ClosePortalStmt:
        case T_CheckPointStmt:
        case T_LoadStmt:
        case T_UnlistenStmt:
            return HERE;
        case T_ExplainStmt:
            if (!explains_by_running((const ExplainStmt *) parsed))
                return HERE;
            return link_in_transaction() ? REFUSED : READS_HERE;
        case T_DeclareCursorStmt:
            return link_in_transaction() ? REFUSED : READS_HERE;
        case T_CopyStmt:
            if (((const CopyStmt *) parsed)->is_from)
                return can_copy((const CopyStmt *) parsed) ? COPIED_TO_WRITER : REFUSED;
            return link_in_transaction() ? REFUSED : READS_HERE;
        case T_DoStmt:
        case T_CallStmt:
        case T_ConstraintsSetStmt:
        case T_NotifyStmt:
            return AT_WRITER;
        default:
            return REFUSED;
    }
}

static void run_utility(PlannedStmt *statement, const char *text, bool keep, ProcessUtilityContext context,
                        ParamListInfo parameters, QueryEnvironment *environment, DestReceiver *to,
                        QueryCompletion *done)
{
    ProcessUtility_hook_type go = next_utility ? next_utility : standard_ProcessUtility;
    /* What EXECUTE runs is the client's own. */
    int deeper = IsA(statement->utilityStmt, ExecuteStmt) ? 0 : 1;

    if (!may_be_on())
    {
        go(statement, text, keep, context, parameters, environment, to, done);
        return;
    }
    nesting += deeper;
    PG_TRY();
    {
        go(statement, text, keep, context, parameters, environment, to, done);
    }
    PG_FINALLY();
    {
        nesting -= deeper;
    }
    PG_END_TRY();
}

static void utility(PlannedStmt *statement, const char *text, bool keep, ProcessUtilityContext context,
                    ParamListInfo parameters, QueryEnvironment *environment, DestReceiver *to, QueryCompletion *done)
{
    Node *parsed = statement->utilityStmt;
    bool judged = nesting == 0 && is_on(), describes = judged && describes_transaction(parsed);
    enum course course = judged ? course_of(parsed) : HERE;

    if (course == REFUSED && !is_read_only())
        refuse(CreateCommandName(parsed));
    if (course == AT_WRITER && (!is_read_only() || link_in_transaction()))
    {
        TupleDesc rows = UtilityReturnsTuples(parsed) ? UtilityTupleDescriptor(parsed) : NULL;
        const char *own = text_of(text, statement->stmt_location, statement->stmt_len);

        forward_utility(own, parameters, is_read_only(), rows, to);
        return;
    }
    if (course == COPIED_TO_WRITER && !is_read_only())
    {
        copy_to_writer(text_of(text, statement->stmt_location, statement->stmt_len), done);
        return;
    }
    if (course == READS_HERE)
        read_here(NULL, level);
    if (IsA(parsed, DiscardStmt) && ((DiscardStmt *) parsed)->target == DISCARD_ALL && nesting == 0)
        link_discard();
    if (IsA(parsed, TransactionStmt) && ((TransactionStmt *) parsed)->chain)
        access_chained = access_said;
    if (describes)
        statement = without_read_write(statement);
    if (statement != NULL)
        run_utility(statement, text, keep, context, parameters, environment, to, done);
    if (describes && IsolationUsesXactSnapshot() && is_read_only())
        waited_first = read_here_all(level);
}

static void on_transaction(XactEvent event, void *unused)
{
    (void) unused;
    if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT && event != XACT_EVENT_PREPARE)
        return;
    access_said = access_chained;
    access_chained = UNSAID;
    waited_first = false;
}

/* ---- */

void forward_register(void)
{
    DefineCustomEnumVariable(LEVEL_NAME,
                             "From when on reads see what has happened at the writer, if writes are forwarded.", NULL,
                             &level, LEVEL_SESSION, levels, PGC_USERSET, GUC_NOT_IN_SAMPLE, check_level, NULL,
                             show_level);
    link_register();
    RegisterXactCallback(on_transaction, NULL);
    next_planner = planner_hook;
    planner_hook = plan;
    next_start = ExecutorStart_hook;
    ExecutorStart_hook = start;
    next_run = ExecutorRun_hook;
    ExecutorRun_hook = run;
    next_finish = ExecutorFinish_hook;
    ExecutorFinish_hook = finish;
    next_utility = ProcessUtility_hook;
    ProcessUtility_hook = utility;
}
#else
#include "utils/guc.h"

/* A login leaves nothing behind by which another server could be convinced before PostgreSQL 18. */
static bool check_level(char **wanted, void **extra, GucSource source)
{
    (void) extra;
    (void) source;
    if (strcmp(*wanted, "off") == 0)
        return true;
    GUC_check_errcode(ERRCODE_FEATURE_NOT_SUPPORTED);
    GUC_check_errmsg("writes are not forwarded before PostgreSQL 18: consistency_mode can only be off");
    GUC_check_errhint("Connect to the writer: `aurora global status` has a writer_dsn that finds it.");
    return false;
}

void forward_register(void)
{
    static char *level;

    DefineCustomStringVariable("apg_write_forward.consistency_mode", "Writes are not forwarded here.", NULL, &level,
                               "off", PGC_USERSET, GUC_NOT_IN_SAMPLE, check_level, NULL, NULL);
}
#endif
