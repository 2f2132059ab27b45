#include "postgres.h"

#if PG_VERSION_NUM >= 180000
#include "access/tupdesc.h"
#include "catalog/pg_language.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_proc.h"
#include "executor/executor.h"
#include "executor/tstoreReceiver.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/extensible.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "parser/parsetree.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"
#include "utils/tuplestore.h"

#include "forward_libpq.h"
#include "forward_link.h"
#include "forward_plan.h"
#include "forward_text.h"

/* ---- what a plan may do */

/* A function of users that is volatile may write, whatever it is; those of libraries do their writes by statements,
 * which are refused here where they run. */
static int of_users(Oid function)
{
    HeapTuple tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
    Form_pg_proc known;
    int marks = 0;

    if (!HeapTupleIsValid(tuple))
        return 0;
    known = (Form_pg_proc) GETSTRUCT(tuple);
    if (known->pronamespace != PG_CATALOG_NAMESPACE)
        marks = CALLS_USERS;
    if (marks != 0 && known->provolatile == PROVOLATILE_VOLATILE && known->prolang != ClanguageId
        && known->prolang != INTERNALlanguageId)
        marks |= MAY_WRITE;
    ReleaseSysCache(tuple);
    return marks;
}

static bool look_at_function(Oid function, void *marks)
{
    switch (function)
    {
        case F_NEXTVAL:
        case F_SETVAL_REGCLASS_INT8:
        case F_SETVAL_REGCLASS_INT8_BOOL:
        case F_CURRVAL:
        case F_LASTVAL:
        case F_PG_NOTIFY:
        case F_TXID_CURRENT:
        case F_PG_CURRENT_XACT_ID:
        case F_LO_CREATE:
        case F_LO_CREAT:
        case F_LO_FROM_BYTEA:
        case F_LO_PUT:
        case F_LO_UNLINK:
            *(int *) marks |= MAY_WRITE;
            break;
        case F_SET_CONFIG:
            *(int *) marks |= SETS;
            break;
        default:
            *(int *) marks |= function >= FirstGenbkiObjectId ? of_users(function) : 0;
    }
    return false;
}

static bool look(Node *node, void *marks)
{
    if (node == NULL)
        return false;
    (void) check_functions_in_node(node, look_at_function, marks);
    if (IsA(node, Query))
        return query_tree_walker((Query *) node, look, marks, 0);
    return expression_tree_walker(node, look, marks);
}

/* A plan has no place for notes of others. In the list of what makes it invalid, those of no cache are passed over. */
#define NO_CACHE (-1)

int marks_of(Query *query)
{
    int marks = 0;

    (void) query_tree_walker(query, look, &marks, 0);
    return marks;
}

void plan_mark(PlannedStmt *plan, int marks)
{
    PlanInvalItem *note;

    if (marks == 0)
        return;
    note = makeNode(PlanInvalItem);
    note->cacheId = NO_CACHE;
    note->hashValue = marks;
    plan->invalItems = lappend(plan->invalItems, note);
}

int plan_marks(const PlannedStmt *plan)
{
    ListCell *each;

    foreach (each, plan->invalItems)
        if (lfirst_node(PlanInvalItem, each)->cacheId == NO_CACHE)
            return lfirst_node(PlanInvalItem, each)->hashValue;
    return 0;
}

bool plan_changes(const PlannedStmt *plan)
{
    ListCell *each;

    foreach (each, plan->permInfos)
        if ((lfirst_node(RTEPermissionInfo, each)->requiredPerms & ~ACL_SELECT) != 0)
            return true;
    return plan->commandType != CMD_SELECT;
}

/* ---- rows */

struct rows {
    AttInMetadata *types;
    Tuplestorestate *store;
};

static void take(struct pg_result *answered, void *to)
{
    struct rows *rows = to;
    TupleDesc columns = rows->types->tupdesc;
    char **values = palloc(Max(columns->natts, 1) * sizeof *values);

    for (int i = 0; i < columns->natts; i++)
        if (PQnfields(answered) != columns->natts || PQftype(answered, i) != TupleDescAttr(columns, i)->atttypid)
            ereport(ERROR, (errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
                            errmsg("the writer answers with other columns than are known here"),
                            errhint("A table has changed: run it again when this server has seen that.")));
    for (int row = 0; row < PQntuples(answered); row++)
    {
        HeapTuple tuple;

        for (int i = 0; i < columns->natts; i++)
            values[i] = PQgetisnull(answered, row, i) ? NULL : PQgetvalue(answered, row, i);
        tuple = BuildTupleFromCStrings(rows->types, values);
        tuplestore_puttuple(rows->store, tuple);
        heap_freetuple(tuple);
    }
    pfree(values);
}

/* ---- a node of a plan */

static Node *make_state(CustomScan *plan);
static void begin(CustomScanState *node, EState *estate, int eflags);
static TupleTableSlot *next(CustomScanState *node);
static void end(CustomScanState *node);
static void again(CustomScanState *node);

static const CustomScanMethods plan_methods = {"aurora forward", make_state};
static const CustomExecMethods state_methods = {
    .CustomName = "aurora forward",
    .BeginCustomScan = begin,
    .ExecCustomScan = next,
    .EndCustomScan = end,
    .ReScanCustomScan = again,
};

struct forwarded {
    CustomScanState node;
    struct rows rows;
    bool answered;
};

static Node *make_state(CustomScan *plan)
{
    struct forwarded *made = (struct forwarded *) newNode(sizeof *made, T_CustomScanState);

    (void) plan;
    made->node.methods = &state_methods;
    made->node.slotOps = &TTSOpsMinimalTuple;
    return (Node *) made;
}

static void begin(CustomScanState *node, EState *estate, int eflags)
{
    struct forwarded *state = (struct forwarded *) node;

    (void) estate, (void) eflags;
    state->rows.types = TupleDescGetAttInMetadata(node->ss.ss_ScanTupleSlot->tts_tupleDescriptor);
}

static void run(struct forwarded *state)
{
    EState *estate = state->node.ss.ps.state;
    List *private = ((CustomScan *) state->node.ss.ps.plan)->custom_private;
    MemoryContext before = MemoryContextSwitchTo(estate->es_query_cxt);
    struct statement *statement = statement_with(strVal(linitial(private)), estate->es_param_list_info);
    uint64 changed;

    state->rows.store = tuplestore_begin_heap(false, false, work_mem);
    changed = link_run(statement, boolVal(lsecond(private)), take, &state->rows);
    if (estate->es_plannedstmt->commandType != CMD_SELECT)
        estate->es_processed = changed;
    state->answered = true;
    MemoryContextSwitchTo(before);
}

static TupleTableSlot *take_next(ScanState *node)
{
    struct forwarded *state = (struct forwarded *) node;

    if (!state->answered)
        run(state);
    (void) tuplestore_gettupleslot(state->rows.store, true, false, node->ss_ScanTupleSlot);
    return node->ss_ScanTupleSlot;
}

static bool is_still_right(ScanState *node, TupleTableSlot *slot)
{
    (void) node, (void) slot;
    return true;
}

static TupleTableSlot *next(CustomScanState *node) { return ExecScan(&node->ss, take_next, is_still_right); }

static void end(CustomScanState *node)
{
    struct forwarded *state = (struct forwarded *) node;

    if (state->rows.store != NULL)
        tuplestore_end(state->rows.store);
}

static void again(CustomScanState *node)
{
    struct forwarded *state = (struct forwarded *) node;

    if (state->rows.store != NULL)
        tuplestore_rescan(state->rows.store);
    ExecScanReScan(&node->ss);
}

/* The columns that the client sees, as the scan yields them and as they are passed on. */
static void add_columns(const PlannedStmt *plan, CustomScan *scan)
{
    List **yielded = &scan->custom_scan_tlist, **passed = &scan->scan.plan.targetlist;
    ListCell *each;

    foreach (each, plan->planTree->targetlist)
    {
        TargetEntry *of = lfirst_node(TargetEntry, each);
        Node *what = (Node *) of->expr;
        AttrNumber number = list_length(*yielded) + 1;
        Expr *column;

        if (of->resjunk)
            continue;
        column = (Expr *) makeNullConst(exprType(what), exprTypmod(what), exprCollation(what));
        *yielded = lappend(*yielded, makeTargetEntry(column, number, of->resname, false));
        column = (Expr *) makeVar(INDEX_VAR, number, exprType(what), exprTypmod(what), exprCollation(what), 0);
        *passed = lappend(*passed, makeTargetEntry(column, number, of->resname, false));
    }
}

PlannedStmt *plan_forwarded(const PlannedStmt *plan, const char *text, bool read_only)
{
    CustomScan *scan = makeNode(CustomScan);
    PlannedStmt *made = makeNode(PlannedStmt);

    scan->methods = &plan_methods;
    scan->custom_private = list_make2(makeString(pstrdup(text)), makeBoolean(read_only));
    if (plan->commandType == CMD_SELECT || plan->hasReturning)
        add_columns(plan, scan);
    made->commandType = plan->commandType;
    made->queryId = plan->queryId;
    made->hasReturning = plan->hasReturning;
    made->canSetTag = plan->canSetTag;
    made->planTree = &scan->scan.plan;
    made->stmt_location = plan->stmt_location;
    made->stmt_len = plan->stmt_len;
    return made;
}

/* ---- a statement that is none for the executor */

void forward_utility(const char *text, ParamListInfo parameters, bool read_only, TupleDesc rows, DestReceiver *to)
{
    struct rows taken;
    TupOutputState *output;
    TupleTableSlot *slot;

    if (rows == NULL)
    {
        (void) link_run(statement_with(text, parameters), read_only, NULL, NULL);
        link_settings_changed();
        return;
    }
    taken = (struct rows) {TupleDescGetAttInMetadata(rows), tuplestore_begin_heap(false, false, work_mem)};
    (void) link_run(statement_with(text, parameters), read_only, take, &taken);
    link_settings_changed();
    output = begin_tup_output_tupdesc(to, rows, &TTSOpsMinimalTuple);
    slot = output->slot;
    while (tuplestore_gettupleslot(taken.store, true, false, slot))
        (void) to->receiveSlot(slot, to);
    end_tup_output(output);
    tuplestore_end(taken.store);
}
#endif
