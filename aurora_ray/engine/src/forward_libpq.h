/*
 * libpq as a server's backend may use it: the one that the server's own installation has beside it, found when it is
 * first needed. A server does not have it in memory by itself, and the module shall load where there is none.
 *
 * Whoever includes this calls libpq's functions by their names.
 */
#ifndef FORWARD_LIBPQ_H
#define FORWARD_LIBPQ_H

#include "libpq-fe.h"

#define LIBPQ_FUNCTIONS(X) \
    X(PQcancelCreate) X(PQcancelFinish) X(PQcancelPoll) X(PQcancelSocket) X(PQcancelStart) \
    X(PQclear) X(PQcmdStatus) X(PQcmdTuples) X(PQconnectPoll) X(PQconnectStartParams) X(PQconsumeInput) \
    X(PQbinaryTuples) X(PQenterPipelineMode) X(PQerrorMessage) X(PQexitPipelineMode) X(PQfformat) X(PQfinish) \
    X(PQflush) X(PQftype) X(PQgetResult) X(PQgetisnull) X(PQgetvalue) X(PQisBusy) X(PQlibVersion) X(PQnfields) \
    X(PQntuples) X(PQpipelineSync) X(PQputCopyData) X(PQputCopyEnd) X(PQresultErrorField) X(PQresultStatus) X(PQsendQuery) \
    X(PQsendQueryParams) X(PQsetChunkedRowsMode) X(PQsetNoticeReceiver) X(PQsetnonblocking) X(PQsocket) X(PQstatus)

struct libpq {
#define FIELD(name) __typeof__(name) *name##_;
    LIBPQ_FUNCTIONS(FIELD)
#undef FIELD
};

extern struct libpq libpq; /* empty before libpq_load() */

void libpq_load(void); /* raises an ERROR where there is none that will do */

#ifndef FORWARD_LIBPQ_ITSELF
#define PQbinaryTuples libpq.PQbinaryTuples_
#define PQcancelCreate libpq.PQcancelCreate_
#define PQcancelFinish libpq.PQcancelFinish_
#define PQcancelPoll libpq.PQcancelPoll_
#define PQcancelSocket libpq.PQcancelSocket_
#define PQcancelStart libpq.PQcancelStart_
#define PQclear libpq.PQclear_
#define PQcmdStatus libpq.PQcmdStatus_
#define PQcmdTuples libpq.PQcmdTuples_
#define PQconnectPoll libpq.PQconnectPoll_
#define PQconnectStartParams libpq.PQconnectStartParams_
#define PQconsumeInput libpq.PQconsumeInput_
#define PQenterPipelineMode libpq.PQenterPipelineMode_
#define PQerrorMessage libpq.PQerrorMessage_
#define PQexitPipelineMode libpq.PQexitPipelineMode_
#define PQfformat libpq.PQfformat_
#define PQfinish libpq.PQfinish_
#define PQflush libpq.PQflush_
#define PQftype libpq.PQftype_
#define PQgetResult libpq.PQgetResult_
#define PQgetisnull libpq.PQgetisnull_
#define PQgetvalue libpq.PQgetvalue_
#define PQisBusy libpq.PQisBusy_
#define PQnfields libpq.PQnfields_
#define PQntuples libpq.PQntuples_
#define PQpipelineSync libpq.PQpipelineSync_
#define PQputCopyData libpq.PQputCopyData_
#define PQputCopyEnd libpq.PQputCopyEnd_
#define PQresultErrorField libpq.PQresultErrorField_
#define PQresultStatus libpq.PQresultStatus_
#define PQsendQuery libpq.PQsendQuery_
#define PQsendQueryParams libpq.PQsendQueryParams_
#define PQsetChunkedRowsMode libpq.PQsetChunkedRowsMode_
#define PQsetNoticeReceiver libpq.PQsetNoticeReceiver_
#define PQsetnonblocking libpq.PQsetnonblocking_
#define PQsocket libpq.PQsocket_
#define PQstatus libpq.PQstatus_
#endif
#endif
