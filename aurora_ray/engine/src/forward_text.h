/* What is sent to the writer: a statement's text, its parameters, the session's settings. */
#ifndef FORWARD_TEXT_H
#define FORWARD_TEXT_H

#include "postgres.h"

#include "nodes/params.h"

#include "forward_link.h"

/* The one statement of `source` that begins there, as it is to be run: of a PREPARE, what it prepares. */
const char *text_of(const char *source, int location, int length);

/* With its parameters. In the present memory context. */
struct statement *statement_with(const char *text, ParamListInfo parameters);

/* Statements (of char *) after which a session at the writer has this session's settings, where it had those of the
 * list `sent`, which is replaced (of char *, in TopMemoryContext). `again`: whatever it has. */
List *settings_statements(List **sent, bool again);
#endif
