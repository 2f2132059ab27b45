/*
 * What sessions can ask of the fleet, as settings that nobody can set and that are made when they are shown. The functions
 * in pg_catalog (engine/postgres/functions.py) are written in SQL on top of them, so no database depends on where this
 * library lies, or on whether it is there at all.
 *
 *   aurora.version           of the project
 *   aurora.instance          the name of this instance
 *   aurora.replica_status    rows of all instances as JSON: the content of a file that the instance's driver writes
 *   aurora.commit_lsn        the end of this session's last commit that wrote anything
 *   rds.extensions           what drivers for Amazon Aurora look for
 */
#include "postgres.h"

#include "access/xlog.h"
#include "utils/guc.h"

#include "facts.h"

#include <fcntl.h>
#include <unistd.h>

#define FILE_VARIABLE "AURORA_REPLICAS_FILE"
#define REPLICAS_BYTES_MAX (64 * 1024)

static char *version, *instance, *replicas, *commit_lsn, *extensions;

static const char *of_environment(const char *name)
{
    const char *value = getenv(name);

    return value != NULL ? value : "";
}

static const char *show_version(void) { return of_environment("AURORA_VERSION"); }
static const char *show_instance(void) { return of_environment("AURORA_INSTANCE"); }

static const char *show_replicas(void)
{
    static char content[REPLICAS_BYTES_MAX];
    const char *path = getenv(FILE_VARIABLE);
    int fd = path != NULL ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    ssize_t n = fd >= 0 ? read(fd, content, sizeof content - 1) : -1;

    if (fd >= 0)
        close(fd);
    if (n <= 0)
        return "[]";
    content[n] = '\0';
    return content;
}

static const char *show_commit_lsn(void)
{
    static char text[32];

    if (XactLastCommitEnd == InvalidXLogRecPtr)
        return "";
    snprintf(text, sizeof text, "%X/%X", LSN_FORMAT_ARGS(XactLastCommitEnd));
    return text;
}

static void define(const char *name, const char *what, char **value, const char *fixed, GucShowHook show)
{
    int flags = GUC_NOT_IN_SAMPLE | GUC_DISALLOW_IN_FILE;

    DefineCustomStringVariable(name, what, NULL, value, fixed, PGC_INTERNAL, flags, NULL, NULL, show);
}

void facts_register(void)
{
    define("aurora.version", "Version of aurora-ray.", &version, "", show_version);
    define("aurora.instance", "Name of this instance.", &instance, "", show_instance);
    define("aurora.replica_status", "All instances of the cluster, as JSON.", &replicas, "", show_replicas);
    define("aurora.commit_lsn", "End of this session's last commit.", &commit_lsn, "", show_commit_lsn);
    define("rds.extensions", "Extensions that can be had here.", &extensions, "aurora_stat_utils", NULL);
}
