/*
 * As much of MariaDB's interface for plugins as src/mariadb.c needs, in our own words. The public part is what every
 * plugin is compiled against, and a server refuses another version of it. What stands below "private" a server keeps to
 * itself, and no package of a distribution has its headers: of that, the plugin believes only what it has found to be so
 * in the server that loads it.
 */
#ifndef AURORA_MARIADB_ABI_H
#define AURORA_MARIADB_ABI_H

#include <stdbool.h>
#include <stddef.h>

struct server_thread; /* THD */

enum { INTERFACE_VERSION = 0x010f, AUDIT_VERSION = 0x0302 };
enum { KIND_TABLE = 4, KIND_AUDIT = 5 };
enum { LICENSE_GPL = 1, MATURITY_STABLE = 5 };
enum { CLASS_CONNECTION = 1, CONNECTION_DISCONNECT = 1 };
enum {
    VARIABLE_BOOL = 0x0001,
    VARIABLE_STRING = 0x0005,
    VARIABLE_TYPE = 0x007f,
    VARIABLE_OF_SESSION = 0x0100,
    VARIABLE_READ_ONLY = 0x0200,
    VARIABLE_NO_OPTION = 0x0800
};

struct variable {
    int flags;
    const char *name, *comment;
    void *check, *update;
};

struct global_string {
    struct variable head;
    char **value;
    char *by_default;
};

struct session_string {
    struct variable head;
    int offset;
    char *by_default;
    char **(*resolve)(struct server_thread *, int offset); /* without a thread: what new sessions get */
};

struct global_switch {
    struct variable head;
    char *value;
    char by_default;
};

struct plugin {
    int kind;
    void *info;
    const char *name, *author, *description;
    int license;
    int (*begin)(void *), (*end)(void *);
    unsigned version;
    void *status;
    struct variable **variables;
    const char *version_text;
    unsigned maturity;
};

struct audit {
    int version;
    void (*release)(struct server_thread *);
    void (*notify)(struct server_thread *, unsigned event_class, const void *event);
    unsigned long classes[1];
};

struct connection_event {
    unsigned what;
    int status;
    unsigned long id;
    struct text {
        const char *start;
        unsigned length;
    } user, priv_user, external_user, proxy_user, host, ip;
};

/* ---- private */

struct column { /* of a table in information_schema; the last one has no name */
    const void *type;
    unsigned length, is_unsigned;
    const void *labels;
    const char *name;
    size_t name_bytes;
    int nullable;
    const char *old_name;
    size_t old_name_bytes;
    int open;
};

struct schema_table { /* what the plugin's `begin` fills in; more follows */
    const char *name;
    struct column *columns;
    int (*reset)(void);
    int (*fill)(struct server_thread *, void *table_reference, void *condition);
};

struct time_parts {
    unsigned year, month, day, hour, minute, second;
    unsigned long microseconds;
    char negative;
    int kind;
};
#endif
