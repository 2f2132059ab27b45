/*
 * A plugin for MariaDB: what drivers made for Amazon Aurora ask of a server, on an unmodified one.
 *
 *   @@aurora_version                          of the project
 *   @@aurora_server_id                        what this instance is known by, in all regions of a global cluster; in a
 *                                             session that came by an address of the cluster's own (127.0.x.y), what
 *                                             such drivers make that address from: x.y
 *   information_schema.replica_host_status    all instances, from a file that the instance's driver writes
 *   @@innodb_read_only                        ON in a reader. Its InnoDB does write, as it follows; to users it does not
 *
 * What it knows comes by its environment (engine/mariadb/told.py). The table needs structures of the server that no
 * package has headers for; it finds its way through them by what the server exports, and is not there where it does not
 * find all that it expects (mariadb_table.c).
 */
#include "mariadb.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

#define NAME_BYTES_MAX 128
static const char own_address[] = "127.0.", ordinary_address[] = "127.0.0.1";

static const char *of_environment(const char *name)
{
    const char *value = getenv(name);

    return value ? value : "";
}

/* ---- the file: lines of an instance's name in its fleet, SERVER_ID, host, SESSION_ID, CPU, lag in ms, Unix time, with
 * tabs between */

bool rows_read(char *content)
{
    int fd = open(of_environment("AURORA_REPLICAS_FILE"), O_RDONLY | O_CLOEXEC);
    ssize_t n = fd >= 0 ? read(fd, content, ROWS_BYTES_MAX - 1) : -1;

    if (fd >= 0)
        close(fd);
    content[n > 0 ? n : 0] = '\0';
    return n > 0;
}

bool rows_next(char **rest, struct row *row)
{
    char *line = strsep(rest, "\n"), *words[7] = {0};

    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (!line || !(words[i] = strsep(&line, "\t")))
            return false;
    *row = (struct row){words[0], words[1], words[2], words[3], atof(words[4]), atof(words[5]), atof(words[6])};
    return true;
}

/* ---- variables */

static char *version = "";
static struct global_string version_variable = {
    {VARIABLE_STRING | VARIABLE_READ_ONLY | VARIABLE_NO_OPTION, "version", "Version of aurora-ray", NULL, NULL}, &version, ""};
static struct session_string id_variable = {
    {VARIABLE_STRING | VARIABLE_OF_SESSION | VARIABLE_READ_ONLY | VARIABLE_NO_OPTION, "server_id", "Name of this instance",
     NULL, NULL}, -1, "", NULL};
static struct variable *variables[] = {&version_variable.head, &id_variable.head, NULL};

/* Of this instance. Sessions point to both, so what they point to stays as it is: the one is written once, and of the
 * other there is another one when its cluster joins a global cluster, or leaves it. */
static pthread_mutex_t own_lock = PTHREAD_MUTEX_INITIALIZER;
static char host_id[NAME_BYTES_MAX]; /* empty until it is known */
static char *server_id;
static struct timespec looked_at; /* when the file was written that these are from */

static void know(const struct row *own)
{
    size_t at = host_id[0] ? 0 : strnlen(own->host_id, sizeof host_id - 1);
    while (at-- > 0) /* who reads it sees all or nothing */
        __atomic_store_n(&host_id[at], own->host_id[at], __ATOMIC_RELEASE);
    char *name = strcmp(own->server_id, server_id) == 0 ? NULL : strdup(own->server_id);
    if (name)
        __atomic_store_n(&server_id, name, __ATOMIC_RELEASE);
}

static void find_own(void)
{
    struct stat file;
    pthread_mutex_lock(&own_lock);
    bool is_new = stat(of_environment("AURORA_REPLICAS_FILE"), &file) == 0 &&
                  (file.st_mtim.tv_sec != looked_at.tv_sec || file.st_mtim.tv_nsec != looked_at.tv_nsec);
    char *content = is_new ? malloc(ROWS_BYTES_MAX) : NULL, *rest = content;
    struct row row;
    if (content && rows_read(content)) {
        looked_at = file.st_mtim; /* what is newer than this is read the next time */
        while (rows_next(&rest, &row))
            if (strcmp(row.instance, of_environment("AURORA_INSTANCE")) == 0)
                know(&row);
    }
    free(content);
    pthread_mutex_unlock(&own_lock);
}

/* Whether a session came by an address of the cluster's own: the endpoint keeps that when it passes bytes on. */
static bool by_own_address(struct text ip)
{
    return ip.start && ip.length >= sizeof own_address && strncmp(ip.start, own_address, sizeof own_address - 1) == 0 &&
           (ip.length != sizeof ordinary_address - 1 || strncmp(ip.start, ordinary_address, ip.length) != 0);
}

static char **id_of(struct server_thread *thread) { return id_variable.resolve(thread, id_variable.offset); }

static void on_event(struct server_thread *thread, unsigned event_class, const void *what)
{
    const struct connection_event *event = what;

    if (event_class != CLASS_CONNECTION || event->what == CONNECTION_DISCONNECT)
        return;
    /* At once, though it may not be known yet just after a start: a driver asks for more in the same session later. */
    find_own();
    *id_of(thread) = by_own_address(event->ip) ? host_id : __atomic_load_n(&server_id, __ATOMIC_ACQUIRE);
}

bool shows_hosts(struct server_thread *thread)
{
    find_own();
    if (*id_of(thread) == host_id)
        return true;
    *id_of(thread) = __atomic_load_n(&server_id, __ATOMIC_ACQUIRE); /* as in the table */
    return false;
}

/* ---- @@innodb_read_only */

/* What a server is built with. */
extern struct plugin *mysql_mandatory_plugins[] __attribute__((weak));
extern struct plugin *mysql_optional_plugins[] __attribute__((weak));
static char yes = 1;

static bool is_named(const struct variable *variable, const char *name, const char *long_name)
{
    return variable->name && (strcmp(variable->name, name) == 0 || strcmp(variable->name, long_name) == 0);
}

/* The variable shows another switch from now on; InnoDB itself looks at its own. */
static void show_read_only(struct plugin **built_in)
{
    for (struct plugin **list = built_in; list && *list; list++)
        for (struct plugin *each = *list; each->info; each++)
            if (strcasecmp(each->name, "InnoDB") == 0 && each->variables)
                for (struct variable **one = each->variables; *one; one++)
                    if (((*one)->flags & (VARIABLE_TYPE | VARIABLE_OF_SESSION)) == VARIABLE_BOOL &&
                        is_named(*one, "read_only", "innodb_read_only"))
                        ((struct global_switch *)*one)->value = &yes;
}

static int begin(void *unused)
{
    (void)unused;
    version = (char *)of_environment("AURORA_VERSION");
    *id_of(NULL) = server_id = (char *)of_environment("AURORA_INSTANCE");
    if (*of_environment("AURORA_READER")) {
        show_read_only(mysql_mandatory_plugins);
        show_read_only(mysql_optional_plugins);
    }
    return 0;
}

/* ---- what a server looks for in a library of plugins */

static struct audit audit = {AUDIT_VERSION, NULL, on_event, {1UL << CLASS_CONNECTION}};
#define EXPORT __attribute__((visibility("default")))
EXPORT int _maria_plugin_interface_version_ = INTERFACE_VERSION;
EXPORT int _maria_sizeof_struct_st_plugin_ = sizeof(struct plugin);
EXPORT struct plugin _maria_plugin_declarations_[] = {
    {KIND_AUDIT, &audit, "aurora", "aurora-ray", "What drivers for Amazon Aurora ask for", LICENSE_GPL, begin, NULL, 0x0100,
     NULL, variables, "1.0", MATURITY_STABLE},
    {KIND_TABLE, &table_version, "REPLICA_HOST_STATUS", "aurora-ray", "The instances of this cluster", LICENSE_GPL,
     table_begin, NULL, 0x0100, NULL, NULL, "1.0", MATURITY_STABLE},
    {0},
};
