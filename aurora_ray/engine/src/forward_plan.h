/* How a statement that runs at the writer looks to the executor here, and what planned statements may do. */
#ifndef FORWARD_PLAN_H
#define FORWARD_PLAN_H

#include "postgres.h"

#include "nodes/parsenodes.h"
#include "nodes/plannodes.h"
#include "tcop/dest.h"

/* What cannot be seen of a plan any more. */
enum {
    MAY_WRITE = 1,  /* it calls functions that may */
    SETS = 2,       /* it calls set_config() */
    CALLS_USERS = 4 /* it calls functions that users made, which may read */
};

int marks_of(Query *query);
void plan_mark(PlannedStmt *plan, int marks); /* notes it in the plan */
int plan_marks(const PlannedStmt *plan);
bool plan_changes(const PlannedStmt *plan); /* tables: also SELECT FOR UPDATE, which locks rows */

/* In the place of that plan: has the writer run `text`, and yields what it answers. In the present memory context. */
PlannedStmt *plan_forwarded(const PlannedStmt *plan, const char *text, bool read_only);

/* Has the writer run a statement that is none for the executor (DO, CALL); its rows are of `rows`, NULL if none. */
void forward_utility(const char *text, ParamListInfo parameters, bool read_only, TupleDesc rows, DestReceiver *to);
#endif
