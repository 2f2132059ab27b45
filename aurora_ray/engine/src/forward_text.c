#include "postgres.h"

#if PG_VERSION_NUM >= 180000
#include "common/keywords.h"
#include "libpq/libpq-be.h"
#include "miscadmin.h"
#include "nodes/queryjumble.h"
#include "parser/scanner.h"
#include "utils/builtins.h"
#include "utils/guc_tables.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

#include "forward_text.h"

/* ---- a statement */

/* Keywords as tokens that tell which they are: the grammar's own codes are in no header. */
#define KEYWORD 20000

static int keyword(const char *word) { return KEYWORD + ScanKeywordLookup(word, &ScanKeywords); }

/* Behind the AS of "PREPARE name (types) AS statement"; anything else as it is. */
static const char *prepared(const char *text)
{
    core_yy_extra_type extra;
    core_YYSTYPE value;
    YYLTYPE at = 0;
    core_yyscan_t scanner;
    int token, depth = 0;
    const char *found = text;
    uint16 *tokens = palloc(ScanKeywords.num_keywords * sizeof *tokens);

    for (int i = 0; i < ScanKeywords.num_keywords; i++)
        tokens[i] = KEYWORD + i;
    scanner = scanner_init(text, &extra, &ScanKeywords, tokens);
    token = core_yylex(&value, &at, scanner);
    while (token == keyword("prepare") || (token != 0 && found == NULL))
    {
        found = NULL;
        token = core_yylex(&value, &at, scanner);
        depth += token == '(' ? 1 : token == ')' ? -1 : 0;
        if (depth == 0 && token == keyword("as"))
            found = text + at + strlen("as");
    }
    scanner_finish(scanner);
    pfree(tokens);
    return found != NULL ? found : text;
}

const char *text_of(const char *source, int location, int length)
{
    const char *start = CleanQuerytext(source, &location, &length);

    return prepared(pnstrdup(start, length));
}

/* ---- its parameters */

/* Types' texts are read the same whatever the settings of who reads, as when tables are dumped. */
static int unambiguous(void)
{
    static const char *const settings[][2] = {
        {"DateStyle", "ISO"},
        {"IntervalStyle", "postgres"},
        {"extra_float_digits", "3"},
        {"search_path", "pg_catalog"},
    };
    int level = NewGUCNestLevel();

    for (size_t i = 0; i < lengthof(settings); i++)
        (void) set_config_option(settings[i][0], settings[i][1], PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0,
                                 false);
    return level;
}

static char *value_text(const ParamExternData *value)
{
    Oid function;
    bool varies;

    if (value->isnull || !OidIsValid(value->ptype))
        return NULL;
    getTypeOutputInfo(value->ptype, &function, &varies);
    return OidOutputFunctionCall(function, value->value);
}

struct statement *statement_with(const char *text, ParamListInfo parameters)
{
    struct statement *made = palloc0(sizeof *made);
    int count = parameters != NULL ? parameters->numParams : 0, level;
    Oid *types = palloc0((count + 1) * sizeof *types);
    char **values = palloc0((count + 1) * sizeof *values);

    *made = (struct statement) {text, count, types, (const char *const *) values};
    if (count == 0)
        return made;
    level = unambiguous();
    for (int i = 0; i < count; i++)
    {
        ParamExternData room;
        const ParamExternData *value = parameters->paramFetch != NULL
                                         ? parameters->paramFetch(parameters, i + 1, false, &room)
                                         : &parameters->params[i];

        types[i] = value->ptype;
        values[i] = value_text(value);
    }
    AtEOXact_GUC(true, level);
    return made;
}

/* ---- settings */

/* What answers look like, and so how they are read here: the writer may have it otherwise by its configuration. */
static const char *const always[] = {"DateStyle",   "IntervalStyle", "TimeZone",    "extra_float_digits",
                                     "bytea_output", "lc_monetary",   "xmloption"};
/* These the writer's session has by itself (encodings are the connection's), or by each transaction's beginning. */
static const char *const never[] = {"client_encoding",        "role",
                                    "session_authorization",  "default_transaction_read_only",
                                    "transaction_isolation",  "transaction_read_only",
                                    "transaction_deferrable", "default_transaction_isolation"};

static bool among(const char *name, const char *const *names, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (strcmp(name, names[i]) == 0)
            return true;
    return false;
}

static bool goes_along(struct config_generic *setting)
{
    bool chosen = setting->source == PGC_S_CLIENT || setting->source == PGC_S_SESSION;

    if (setting->context != PGC_USERSET && setting->context != PGC_SUSET)
        return false;
    if (among(setting->name, never, lengthof(never)) || strncmp(setting->name, "apg_write_forward.", 18) == 0)
        return false;
    return (chosen || among(setting->name, always, lengthof(always))) && ConfigOptionIsVisible(setting);
}

static bool is_in(List *names, const char *name)
{
    ListCell *each;

    foreach (each, names)
        if (strcmp(lfirst(each), name) == 0)
            return true;
    return false;
}

static char *assigned(const char *name, const char *value)
{
    return psprintf("pg_catalog.set_config(%s, %s, false)", quote_literal_cstr(name), quote_literal_cstr(value));
}

/* Who the session acts as, where that is not who logged in: SET SESSION AUTHORIZATION, SET ROLE. */
static void add_roles(List **calls)
{
    const char *user = GetConfigOption("session_authorization", false, false);
    const char *role = GetConfigOption("role", false, false);

    if (strcmp(user, MyProcPort->user_name) != 0)
        *calls = lappend(*calls, assigned("session_authorization", user));
    if (strcmp(role, "none") != 0)
        *calls = lappend(*calls, assigned("role", role));
}

static List *calls_now(List **names)
{
    struct config_generic **settings;
    int count;
    List *calls = NIL;

    settings = get_guc_variables(&count);
    for (int i = 0; i < count; i++)
        if (goes_along(settings[i]))
        {
            char *value = GetConfigOptionByName(settings[i]->name, NULL, true);

            *names = lappend(*names, pstrdup(settings[i]->name));
            calls = lappend(calls, assigned(settings[i]->name, value != NULL ? value : ""));
        }
    pfree(settings);
    add_roles(&calls);
    return calls;
}

static char *joined(List *calls)
{
    StringInfoData text;
    ListCell *each;

    initStringInfo(&text);
    foreach (each, calls)
        appendStringInfo(&text, "%s%s", text.len == 0 ? "SELECT " : ", ", (char *) lfirst(each));
    return text.data;
}

static void replace(List **sent, List *with)
{
    MemoryContext before = MemoryContextSwitchTo(TopMemoryContext);
    ListCell *each;
    List *copy = NIL;

    foreach (each, with)
        copy = lappend(copy, pstrdup(lfirst(each)));
    list_free_deep(*sent);
    *sent = copy;
    MemoryContextSwitchTo(before);
}

/* The first of `sent` is the statement that was sent; the names of what it set follow. */
List *settings_statements(List **sent, bool again)
{
    List *names = NIL, *statements = NIL;
    char *set = joined(calls_now(&names));
    ListCell *each;

    if (!again && *sent != NIL && strcmp(linitial(*sent), set) == 0)
        return NIL;
    statements = lappend(statements, pstrdup("RESET SESSION AUTHORIZATION")); /* and with it, the role */
    for_each_from(each, *sent, 1)
        if (!is_in(names, lfirst(each)))
            statements = lappend(statements, psprintf("RESET %s", quote_identifier(lfirst(each))));
    statements = lappend(statements, set);
    replace(sent, lcons(set, names));
    return statements;
}
#endif
