#include "postgres.h"

#if PG_VERSION_NUM >= 180000
#include "libpq/libpq.h"
#include "libpq/pqformat.h"
#include "libpq/protocol.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "tcop/tcopprot.h"
#include "utils/memutils.h"

#include "forward_copy.h"
#include "forward_libpq.h"
#include "forward_link.h"
#include "forward_wire.h"

bool can_copy(const CopyStmt *copy)
{
    return copy->filename == NULL && !copy->is_program && whereToSendOutput == DestRemote;
}

/* Passes on that data may come, in the same form. */
static void invite(PGresult *ready)
{
    StringInfoData message;
    int columns = PQnfields(ready);

    pq_beginmessage(&message, PqMsg_CopyInResponse);
    pq_sendbyte(&message, PQbinaryTuples(ready));
    pq_sendint16(&message, columns);
    for (int i = 0; i < columns; i++)
        pq_sendint16(&message, PQfformat(ready, i));
    pq_endmessage(&message);
    pq_flush();
}

pg_noreturn static void raise_gone(void)
{
    ereport(ERROR, (errcode(ERRCODE_CONNECTION_FAILURE),
                    errmsg("unexpected EOF on client connection with an open transaction")));
}

static int next_message(StringInfo message)
{
    int kind;

    HOLD_CANCEL_INTERRUPTS(); /* in the middle of a message nobody would know where the next one begins */
    pq_startmsgread();
    kind = pq_getbyte();
    if (kind == EOF)
        raise_gone();
    if (kind != PqMsg_CopyData && kind != PqMsg_CopyDone && kind != PqMsg_CopyFail && kind != PqMsg_Flush
        && kind != PqMsg_Sync)
        ereport(ERROR, (errcode(ERRCODE_PROTOCOL_VIOLATION),
                        errmsg("unexpected message type 0x%02X during COPY from stdin", kind)));
    if (pq_getmessage(message, kind == PqMsg_CopyData ? PQ_LARGE_MESSAGE_LIMIT : PQ_SMALL_MESSAGE_LIMIT) != 0)
        raise_gone();
    RESUME_CANCEL_INTERRUPTS();
    CHECK_FOR_INTERRUPTS();
    return kind;
}

static bool more(StringInfo data, char **complaint)
{
    for (;;)
        switch (next_message(data))
        {
            case PqMsg_CopyData:
                return true;
            case PqMsg_CopyDone:
                return false;
            case PqMsg_CopyFail:
                *complaint = pstrdup(pq_getmsgstring(data));
                return false;
            default: /* as clients of the extended protocol send them */
                break;
        }
}

void copy_to_writer(const char *text, QueryCompletion *done)
{
    static const struct copy_source client = {invite, more};
    uint64 rows;

    if (pg_get_client_encoding() != GetDatabaseEncoding())
        ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
                        errmsg("COPY: not forwarded to the writer unless client_encoding is the database's, %s",
                               GetDatabaseEncodingName())));
    rows = link_copy(text, &client);
    if (done != NULL)
        SetQueryCompletion(done, CMDTAG_COPY, rows);
}
#endif
