/* COPY ... FROM STDIN at the writer, with what the client of this session sends. */
#ifndef FORWARD_COPY_H
#define FORWARD_COPY_H

#include "postgres.h"

#include "nodes/parsenodes.h"
#include "tcop/cmdtag.h"

bool can_copy(const CopyStmt *copy); /* not what lies in files: those of the writer's machine are not meant */
void copy_to_writer(const char *text, QueryCompletion *done); /* raises an ERROR, the writer's if it is of the data */
#endif
