/*
 * information_schema.replica_host_status. A server calls `fill` with its own reference to a table, in which the table's
 * fields are to be found. Where, no header tells; but these fields are known by their classes, whose tables of functions
 * the server exports. So `fill` looks through what the reference points to, for something that belongs to this thread and
 * has just these five fields. Memory is looked at through /proc/self/mem, which gives an error where a pointer is none.
 * What is not found as expected is left alone: then the table is not there, or has no rows.
 */
#define _GNU_SOURCE
#include "mariadb.h"

#include <fcntl.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define WEAK __attribute__((weak))
extern char server_version[] WEAK;
extern void *system_charset_info WEAK;
extern char type_handler_varchar[] WEAK, type_handler_double[] WEAK, type_handler_datetime2[] WEAK;
/* By the names that C++ gives them. */
extern struct column open_tables_columns[] __asm__("_ZN4Show23open_tables_fields_infoE") WEAK;
extern uintptr_t varchar_class[] __asm__("_ZTV15Field_varstring") WEAK;
extern uintptr_t double_class[] __asm__("_ZTV12Field_double") WEAK;
extern uintptr_t datetime_class[] __asm__("_ZTV15Field_datetimef") WEAK;
extern uintptr_t unused_class[] __asm__("_ZTV12Field_string") WEAK; /* of a column that the statement does not ask for */
extern int store_text(void *field, const char *, size_t, void *charset)
    __asm__("_ZN15Field_varstring5storeEPKcmPK15charset_info_st") WEAK;
extern int store_double(void *field, double) __asm__("_ZN12Field_double5storeEd") WEAK;
extern int store_time(void *field, const struct time_parts *, unsigned digits)
    __asm__("_ZN14Field_datetime14store_time_decEPK13st_mysql_timej") WEAK;
extern bool store_record(struct server_thread *, void *table)
    __asm__("_Z25schema_table_store_recordP3THDP5TABLE") WEAK;
extern void thd_gmt_sec_to_TIME(struct server_thread *, struct time_parts *, long) WEAK;

enum { COLUMNS = 5, TO_CLASS = 2 /* words, from a class's table to where its objects point */, DIGITS = 6 };
enum { REFERENCE_WORDS = 512, TABLE_WORDS = 64 };

#define COLUMN(name, type, length) {type, length, 0, NULL, name, sizeof name - 1, 0, NULL, 0, 0}
static struct column columns[COLUMNS + 1] = {
    COLUMN("SERVER_ID", type_handler_varchar, 100),
    COLUMN("SESSION_ID", type_handler_varchar, 100),
    COLUMN("CPU", type_handler_double, 22),
    COLUMN("REPLICA_LAG_IN_MILLISECONDS", type_handler_double, 22),
    COLUMN("LAST_UPDATE_TIMESTAMP", type_handler_datetime2, DIGITS),
    {type_handler_varchar, 0, 0, NULL, NULL, 0, 0, NULL, 0, 0},
};
static int memory_fd = -1;

/* ---- finding the fields */

static bool look(uintptr_t at, uintptr_t *words, size_t n)
{
    return at >= 4096 && at % sizeof *words == 0 &&
           pread(memory_fd, words, n * sizeof *words, (off_t)at) == (ssize_t)(n * sizeof *words);
}

static bool is_of(uintptr_t field, const uintptr_t *class)
{
    uintptr_t word;

    return look(field, &word, 1) && word == (uintptr_t)(class + TO_CLASS);
}

static bool are_fields(uintptr_t at)
{
    const uintptr_t *classes[COLUMNS] = {varchar_class, varchar_class, double_class, double_class, datetime_class};
    uintptr_t fields[COLUMNS + 1];

    if (!look(at, fields, COLUMNS + 1) || fields[COLUMNS] != 0)
        return false;
    for (int i = 0; i < COLUMNS; i++)
        if (!is_of(fields[i], classes[i]) && !is_of(fields[i], unused_class))
            return false;
    return true;
}

/* The fields of what may be a table; NULL: it is none, or another thread's. */
static void **fields_of(uintptr_t table, uintptr_t thread)
{
    uintptr_t words[TABLE_WORDS];
    bool ours = false;

    if (!look(table, words, TABLE_WORDS))
        return NULL;
    for (int i = 0; i < TABLE_WORDS; i++)
        if (words[i] == thread)
            ours = true;
        else if (ours && are_fields(words[i]))
            return (void **)words[i];
    return NULL;
}

static void **find(uintptr_t reference, uintptr_t thread, void **table)
{
    uintptr_t word;
    void **fields;

    for (uintptr_t i = 0; i < REFERENCE_WORDS && look(reference + i * sizeof word, &word, 1); i++)
        if (word != thread && (fields = fields_of(word, thread))) {
            *table = (void *)word;
            return fields;
        }
    return NULL;
}

/* ---- filling it */

static void put_text(void *field, const char *text)
{
    if (is_of((uintptr_t)field, varchar_class))
        store_text(field, text, strlen(text), system_charset_info);
}

static void put_number(void *field, double number)
{
    if (is_of((uintptr_t)field, double_class))
        store_double(field, number);
}

static void put_time(void *field, struct server_thread *thread, double unix_s)
{
    struct time_parts when = {0};
    double whole, part = modf(unix_s, &whole);

    if (!is_of((uintptr_t)field, datetime_class))
        return;
    thd_gmt_sec_to_TIME(thread, &when, (long)whole);
    when.microseconds = (unsigned long)(part * 1e6);
    store_time(field, &when, DIGITS);
}

static bool put(struct server_thread *thread, void *table, void **fields, const struct row *row)
{
    put_text(fields[0], shows_hosts(thread) ? row->host_id : row->server_id);
    put_text(fields[1], row->session_id);
    put_number(fields[2], row->cpu);
    put_number(fields[3], row->lag_ms);
    put_time(fields[4], thread, row->updated_s);
    return !store_record(thread, table);
}

static int fill(struct server_thread *thread, void *reference, void *condition)
{
    char *content = malloc(ROWS_BYTES_MAX), *rest = content;
    void *table, **fields = find((uintptr_t)reference, (uintptr_t)thread, &table);
    struct row row;
    bool whole = true;

    (void)condition;
    if (fields && content && rows_read(content))
        while (whole && rows_next(&rest, &row))
            whole = put(thread, table, fields, &row);
    free(content);
    return !whole;
}

/* ---- beginning */

static bool is_called(const struct column *column, const char *name)
{
    return column->type == type_handler_varchar && column->name && column->name_bytes == strlen(name) &&
           memcmp(column->name, name, column->name_bytes) == 0;
}

/* Whether the server has all this, and describes its own tables as we do ours. */
static bool is_as_expected(void)
{
    return type_handler_double && type_handler_datetime2 && varchar_class && double_class && datetime_class && unused_class &&
           store_text && store_double && store_time && store_record && thd_gmt_sec_to_TIME && &system_charset_info &&
           open_tables_columns && is_called(&open_tables_columns[0], "Database") &&
           is_called(&open_tables_columns[1], "Table");
}

int table_begin(void *schema)
{
    struct schema_table *table = schema;

    if (!is_as_expected() || (memory_fd = open("/proc/self/mem", O_RDONLY | O_CLOEXEC)) < 0) {
        fprintf(stderr, "aurora: information_schema.replica_host_status cannot be had from this version of the server\n");
        return 1;
    }
    table->columns = columns;
    table->fill = fill;
    return 0;
}

int table_version; /* a server takes tables made for just its own */

__attribute__((constructor)) static void note_version(void)
{
    int major = 0, minor = 0, patch = 0;

    if (server_version && sscanf(server_version, "%d.%d.%d", &major, &minor, &patch) == 3)
        table_version = (major * 10000 + minor * 100 + patch) << 8;
}
