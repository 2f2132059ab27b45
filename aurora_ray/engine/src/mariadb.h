/* The parts of the plugin for MariaDB. */
#ifndef AURORA_MARIADB_H
#define AURORA_MARIADB_H

#include "mariadb_abi.h"

#define ROWS_BYTES_MAX (64 * 1024)

struct row {
    char *instance, *server_id, *host_id, *session_id;
    double cpu, lag_ms, updated_s;
};

/* mariadb.c */
bool rows_read(char *content); /* of ROWS_BYTES_MAX; false: there are none */
bool rows_next(char **rest, struct row *row); /* false: there is none any more */
bool shows_hosts(struct server_thread *thread); /* whether a session is told hosts as identifiers */

/* mariadb_table.c */
extern int table_version;
int table_begin(void *schema_table);
#endif
