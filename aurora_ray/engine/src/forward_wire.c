/*
 * A session's connection to the writer. It logs in as the session's own user, with what that user's login left here: in
 * SCRAM a client proves that it has a key, by which a server can be convinced again without the password. Verifiers
 * are data of the cluster and so the same at the writer. So the session there is nobody else's than the user's,
 * whatever is run in it, and no other credential exists. The key never leaves this process; what travels is a proof.
 */
#include "postgres.h"

#if PG_VERSION_NUM >= 180000
#include "common/base64.h"
#include "libpq/libpq-be.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/pg_lsn.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "forward_libpq.h"
#include "forward_wire.h"

#include <fcntl.h>
#include <unistd.h>

#define ADDRESS_VARIABLE "AURORA_FORWARD_FILE"
#define ADDRESS_BYTES_MAX 300
#define CONNECT_S 10
#define IDLE_MS "300000" /* after which the writer closes a connection that nobody uses */
#define CANCEL_MS 2000
#define ROWS_AT_ONCE 256

static PGconn *connection;
static char connected_to[ADDRESS_BYTES_MAX]; /* what it was told then */
static int unread; /* units whose answers nobody has read */
static uint32 wait_connect, wait_answer;

/* ---- waiting */

static void wait_for(int socket, int events, long timeout_ms, uint32 what)
{
    int wake = WL_LATCH_SET | WL_EXIT_ON_PM_DEATH | events | (timeout_ms >= 0 ? WL_TIMEOUT : 0);

    if (WaitLatchOrSocket(MyLatch, wake, socket, timeout_ms, what) & WL_LATCH_SET)
    {
        ResetLatch(MyLatch);
        CHECK_FOR_INTERRUPTS();
    }
}

static long left_ms(TimestampTz ends) { return Max(0, (long) ((ends - GetCurrentTimestamp()) / 1000)); }

void wire_forget(void)
{
    if (connection == NULL)
        return;
    PQfinish(connection);
    ReleaseExternalFD();
    connection = NULL;
    unread = 0;
}

static void forget_at_exit(int code, Datum unused)
{
    (void) code;
    (void) unused;
    wire_forget();
}

/* Asks the writer for a moment to give up what it does for this session. */
void wire_leave(void)
{
    TimestampTz ends = GetCurrentTimestamp() + CANCEL_MS * INT64CONST(1000);
    PostgresPollingStatusType state = PGRES_POLLING_WRITING;
    PGcancelConn *asks;

    if (connection == NULL)
        return;
    HOLD_INTERRUPTS();
    asks = PQcancelCreate(connection);
    if (PQstatus(connection) == CONNECTION_OK && asks != NULL && PQcancelStart(asks))
        while (state != PGRES_POLLING_OK && state != PGRES_POLLING_FAILED && left_ms(ends) > 0)
        {
            wait_for(PQcancelSocket(asks), state == PGRES_POLLING_READING ? WL_SOCKET_READABLE : WL_SOCKET_WRITEABLE,
                     left_ms(ends), wait_answer);
            state = PQcancelPoll(asks);
        }
    PQcancelFinish(asks);
    wire_forget();
    RESUME_INTERRUPTS();
}

/* ---- connecting */

const char *link_address(void)
{
    static char told[ADDRESS_BYTES_MAX];
    const char *path = getenv(ADDRESS_VARIABLE);
    int fd = path != NULL ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    ssize_t n = fd >= 0 ? read(fd, told, sizeof told - 1) : -1;

    if (fd >= 0)
        close(fd);
    if (n <= 0)
        return NULL;
    told[n] = '\0';
    told[strcspn(told, "\n")] = '\0';
    return strchr(told, ' ') != NULL ? told : NULL;
}

/* 0: it has none. */
static int code_of(const PGresult *notice)
{
    const char *code = PQresultErrorField(notice, PG_DIAG_SQLSTATE);

    return code != NULL && strlen(code) == 5 ? MAKE_SQLSTATE(code[0], code[1], code[2], code[3], code[4]) : 0;
}

static void show_notice(void *unused, const PGresult *notice)
{
    const char *severity = PQresultErrorField(notice, PG_DIAG_SEVERITY_NONLOCALIZED);
    const char *message = PQresultErrorField(notice, PG_DIAG_MESSAGE_PRIMARY);
    const char *detail = PQresultErrorField(notice, PG_DIAG_MESSAGE_DETAIL);
    const char *hint = PQresultErrorField(notice, PG_DIAG_MESSAGE_HINT);
    bool warns = severity != NULL && strcmp(severity, "WARNING") == 0;
    bool informs = severity != NULL && strcmp(severity, "INFO") == 0;

    (void) unused;
    ereport(warns ? WARNING : informs ? INFO : NOTICE,
            (code_of(notice) != 0 ? errcode(code_of(notice)) : 0, errmsg_internal("%s", message != NULL ? message : ""),
             detail != NULL ? errdetail_internal("%s", detail) : 0, hint != NULL ? errhint("%s", hint) : 0));
}

static char *key_text(const uint8 *key)
{
    int room = pg_b64_enc_len(SCRAM_MAX_KEY_LEN) + 1;
    char *text = palloc0(room);

    if (pg_b64_encode(key, SCRAM_MAX_KEY_LEN, text, room) < 0)
        elog(ERROR, "a key could not be encoded");
    return text;
}

static PGconn *begin_connecting(char *host, const char *port)
{
    char timeout_s[12];
    const char *names[] = {"host", "port", "user", "dbname", "scram_client_key", "scram_server_key", "require_auth",
                           "target_session_attrs", "client_encoding", "connect_timeout", "gssencmode", "passfile",
                           "fallback_application_name", "keepalives_idle", "keepalives_interval", "keepalives_count",
                           "tcp_user_timeout", "options", NULL};
    const char *values[] = {host, port, MyProcPort->user_name, MyProcPort->database_name,
                            key_text(MyProcPort->scram_ClientKey), key_text(MyProcPort->scram_ServerKey),
                            "scram-sha-256", "primary", GetDatabaseEncodingName(), timeout_s, "disable", "/dev/null",
                            "aurora-ray", "10", "5", "3", "30000", "-c idle_session_timeout=" IDLE_MS, NULL};

    StaticAssertStmt(lengthof(names) == lengthof(values), "a value for each name");
    snprintf(timeout_s, sizeof timeout_s, "%d", CONNECT_S);
    return PQconnectStartParams(names, values, false);
}

static void finish_connecting(TimestampTz ends)
{
    PostgresPollingStatusType state = PGRES_POLLING_WRITING;

    if (connection == NULL)
        ereport(ERROR, (errcode(ERRCODE_OUT_OF_MEMORY), errmsg("out of memory")));
    while (PQstatus(connection) != CONNECTION_BAD && state != PGRES_POLLING_OK && state != PGRES_POLLING_FAILED)
    {
        if (left_ms(ends) == 0)
            ereport(ERROR, (errcode(ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION),
                            errmsg("the writer at %s did not answer within %d s: nothing was forwarded", connected_to,
                                   CONNECT_S),
                            errhint("Try again: the writer may be changing.")));
        wait_for(PQsocket(connection), state == PGRES_POLLING_READING ? WL_SOCKET_READABLE : WL_SOCKET_WRITEABLE,
                 left_ms(ends), wait_connect);
        state = PQconnectPoll(connection);
    }
    if (state != PGRES_POLLING_OK || PQsetnonblocking(connection, 1) != 0 || !PQenterPipelineMode(connection))
        ereport(ERROR, (errcode(ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION),
                        errmsg("the writer cannot be reached, and nothing was forwarded: %s",
                               pchomp(PQerrorMessage(connection))),
                        errhint("Try again: the writer may be changing.")));
    (void) PQsetNoticeReceiver(connection, show_notice, NULL);
}

static void connect_to(const char *address)
{
    static bool at_exit;
    char *host = pstrdup(address), *space = strchr(host, ' ');

    libpq_load();
    if (wait_connect == 0)
        wait_connect = WaitEventExtensionNew("AuroraWriteForwardConnect");
    if (wait_answer == 0)
        wait_answer = WaitEventExtensionNew("AuroraWriteForwardExecute");
    if (MyProcPort == NULL || !MyProcPort->has_scram_keys)
        ereport(ERROR, (errcode(ERRCODE_INVALID_AUTHORIZATION_SPECIFICATION),
                        errmsg("writes of this session cannot be forwarded: it did not log in by a password (SCRAM)"),
                        errdetail("The writer is shown the proof by which this session logged in; there is none.")));
    if (!AcquireExternalFD())
        ereport(ERROR, (errcode(ERRCODE_SQLCLIENT_UNABLE_TO_ESTABLISH_SQLCONNECTION),
                        errmsg("no file descriptor is free for a connection to the writer")));
    *space = '\0';
    strlcpy(connected_to, address, sizeof connected_to);
    connection = begin_connecting(host, space + 1);
    if (connection == NULL)
        ReleaseExternalFD();
    PG_TRY();
    {
        finish_connecting(GetCurrentTimestamp() + CONNECT_S * USECS_PER_SEC);
    }
    PG_CATCH();
    {
        wire_forget();
        PG_RE_THROW();
    }
    PG_END_TRY();
    if (!at_exit)
        on_proc_exit(forget_at_exit, 0);
    at_exit = true;
}

bool wire_is_open(void)
{
    for (int i = 0; i < 2; i++) /* the last words of the other end, and that it has closed */
        if (!PQconsumeInput(connection) || PQstatus(connection) != CONNECTION_OK)
            return false;
        else if (unread == 0)
            (void) PQisBusy(connection);
    return true;
}

/* For what begins now: to whom the fleet says is the writer, over a connection that is not known to be closed. */
bool wire_connect(void)
{
    const char *address = link_address();

    if (address == NULL)
        ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
                        errmsg("writes are not forwarded any more: that was turned off, or no writer is known"),
                        errhint("Connect to the writer: `aurora global status` has a writer_dsn that finds it.")));
    if (connection != NULL && (strcmp(connected_to, address) != 0 || !wire_is_open()))
        wire_forget();
    if (connection != NULL)
        return false;
    connect_to(address);
    return true;
}

bool wire_is_there(void) { return connection != NULL; }

/* ---- answers */

/* What else to wait for: that more of what goes out can go. */
static int unsent(void) { return PQflush(connection) == 1 ? WL_SOCKET_WRITEABLE : 0; }

static PGresult *next_result(void)
{
    while (PQisBusy(connection))
    {
        wait_for(PQsocket(connection), WL_SOCKET_READABLE | unsent(), -1, wait_answer);
        if (!PQconsumeInput(connection))
            break; /* what PQgetResult says then */
    }
    return PQgetResult(connection);
}

static char *field(const PGresult *failed, int which)
{
    char *value = PQresultErrorField(failed, which);

    return value != NULL ? pstrdup(value) : NULL;
}

/* An error of the writer as ours, which is cleared. */
static void raise_writers(PGresult *failed)
{
    static const int named[] = {PG_DIAG_SCHEMA_NAME, PG_DIAG_TABLE_NAME, PG_DIAG_COLUMN_NAME, PG_DIAG_DATATYPE_NAME,
                                PG_DIAG_CONSTRAINT_NAME};
    char *message = field(failed, PG_DIAG_MESSAGE_PRIMARY), *detail = field(failed, PG_DIAG_MESSAGE_DETAIL);
    char *hint = field(failed, PG_DIAG_MESSAGE_HINT), *where = field(failed, PG_DIAG_CONTEXT);
    int code = code_of(failed);

    if (!errstart(ERROR, TEXTDOMAIN))
        return;
    errcode(code != 0 ? code : ERRCODE_INTERNAL_ERROR);
    errmsg_internal("%s", message != NULL ? message : "the writer failed");
    if (detail != NULL)
        errdetail_internal("%s", detail);
    if (hint != NULL)
        errhint("%s", hint);
    errcontext("at the writer%s%s", where != NULL ? ": " : "", where != NULL ? where : "");
    for (size_t i = 0; i < lengthof(named); i++)
        if (field(failed, named[i]) != NULL)
            err_generic_string(named[i], field(failed, named[i]));
    PQclear(failed);
    errfinish(__FILE__, __LINE__, __func__);
}

pg_noreturn static void raise_broken(void)
{
    char *why = connection != NULL ? pchomp(PQerrorMessage(connection)) : pstrdup("");

    wire_forget();
    ereport(ERROR, (errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
                    errmsg("the connection to the writer broke: nothing of this transaction is kept"),
                    errdetail_internal("%s", why[0] != '\0' ? why : "It was closed."),
                    errhint("Run the transaction again.")));
}

/* Reads a unit's answers to their end. `take` gets the rows of the statements after the first `before`. */
void wire_read_unit(struct answer *answer, int before, take_rows take, void *to)
{
    *answer = (struct answer) {0};
    (void) PQsetChunkedRowsMode(connection, ROWS_AT_ONCE);
    for (;;)
    {
        PGresult *result = next_result();

        if (PQstatus(connection) != CONNECTION_OK)
        {
            PQclear(result);
            PQclear(answer->failed);
            raise_broken();
        }
        if (result == NULL)
        {
            answer->done += answer->failed == NULL;
            (void) PQsetChunkedRowsMode(connection, ROWS_AT_ONCE); /* of the unit's next statement */
            continue;
        }
        if (PQresultStatus(result) == PGRES_FATAL_ERROR && answer->failed == NULL)
        {
            answer->failed = result;
            continue;
        }
        if (PQresultStatus(result) == PGRES_PIPELINE_SYNC)
        {
            PQclear(result);
            unread--;
            return;
        }
        strlcpy(answer->tag, PQcmdStatus(result), sizeof answer->tag);
        strlcpy(answer->tuples, PQcmdTuples(result), sizeof answer->tuples);
        if (take != NULL && answer->done >= before && PQntuples(result) > 0)
            take(result, to);
        PQclear(result);
    }
}

/* Of units that came before the last `but`. They cannot fail in a transaction that goes on; if one has, that ended. */
void wire_read_earlier(int but)
{
    while (unread > but)
    {
        struct answer answer;

        wire_read_unit(&answer, 0, NULL, NULL);
        PQclear(answer.failed);
    }
}

void wire_raise_failed(struct answer *answer)
{
    if (answer->failed != NULL)
        raise_writers(answer->failed);
}

/* ---- units */

void wire_send(const struct statement *one)
{
    if (!PQsendQueryParams(connection, one->text, one->parameters, one->types, one->values, NULL, NULL, 0))
        raise_broken();
}

void wire_send_text(const char *text)
{
    struct statement one = {.text = text};

    wire_send(&one);
}

void wire_end_unit(void)
{
    if (!PQpipelineSync(connection))
        raise_broken();
    unread++;
}

/* A unit of one statement whose answer is read with the next unit's. Raises nothing. */
void wire_post(const char *text)
{
    if (connection == NULL)
        return;
    if (PQstatus(connection) == CONNECTION_OK && PQsendQueryParams(connection, text, 0, NULL, NULL, NULL, NULL, 0)
        && PQpipelineSync(connection))
        unread++;
    else
        wire_forget();
}
/* ---- COPY, which cannot be in a unit */

static void put_all(StringInfo data)
{
    int put;

    while ((put = PQputCopyData(connection, data->data, data->len)) == 0)
    {
        wait_for(PQsocket(connection), WL_SOCKET_READABLE | WL_SOCKET_WRITEABLE, -1, wait_answer);
        if (!PQconsumeInput(connection)) /* it may have to say something before it takes more */
            raise_broken();
    }
    if (put < 0)
        raise_broken();
}

/* Until the end of what the present statement is answered. */
static void read_rest(struct answer *answer)
{
    PGresult *result;

    while ((result = next_result()) != NULL)
    {
        if (PQstatus(connection) != CONNECTION_OK)
        {
            PQclear(result);
            raise_broken();
        }
        if (PQresultStatus(result) == PGRES_FATAL_ERROR && answer->failed == NULL)
        {
            answer->failed = result;
            continue;
        }
        strlcpy(answer->tuples, PQcmdTuples(result), sizeof answer->tuples);
        PQclear(result);
    }
}

static void put(const struct copy_source *source)
{
    StringInfoData data;
    char *complaint = NULL;
    int ended;

    initStringInfo(&data);
    while (source->more(&data, &complaint))
    {
        put_all(&data);
        resetStringInfo(&data);
    }
    while ((ended = PQputCopyEnd(connection, complaint)) == 0)
        wait_for(PQsocket(connection), WL_SOCKET_WRITEABLE, -1, wait_answer);
    if (ended < 0)
        raise_broken();
    pfree(data.data);
}

void wire_copy(const char *text, const struct copy_source *source, struct answer *answer)
{
    PGresult *ready;

    *answer = (struct answer) {0};
    wire_read_earlier(0);
    if (!PQexitPipelineMode(connection) || !PQsendQuery(connection, text))
        raise_broken();
    ready = next_result();
    if (PQresultStatus(ready) == PGRES_COPY_IN)
    {
        source->begin(ready);
        PQclear(ready);
        put(source);
    }
    else if (PQresultStatus(ready) == PGRES_FATAL_ERROR && PQstatus(connection) == CONNECTION_OK)
        answer->failed = ready;
    else
    {
        PQclear(ready);
        raise_broken();
    }
    read_rest(answer);
    if (!PQenterPipelineMode(connection))
        raise_broken();
}
#endif
