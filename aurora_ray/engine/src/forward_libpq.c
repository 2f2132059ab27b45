#include "postgres.h"

#if PG_VERSION_NUM >= 180000
#define FORWARD_LIBPQ_ITSELF
#include "forward_libpq.h"

#include "miscadmin.h"

#include <dlfcn.h>

#define LEAST_VERSION 180000 /* takes SCRAM's keys instead of a password */

struct libpq libpq;

/* Where wheels have it: beside the server's modules, or one directory above them. */
static const char *const places[] = {"libpq.so.5", "../libpq.so.5"};

static void *opened(void)
{
    void *library = NULL;

    for (size_t i = 0; i < lengthof(places) && library == NULL; i++)
    {
        char *path = psprintf("%s/%s", pkglib_path, places[i]);

        library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
        pfree(path);
    }
    return library;
}

void libpq_load(void)
{
    static bool loaded;
    const char *missing = NULL;
    void *library;

    if (loaded)
        return;
    library = opened();
    if (library == NULL)
        ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
                        errmsg("writes are not forwarded: this PostgreSQL has no libpq beside it")));
#define FIND(name) \
    libpq.name##_ = (__typeof__(libpq.name##_)) dlsym(library, #name); \
    if (libpq.name##_ == NULL) \
        missing = #name;
    LIBPQ_FUNCTIONS(FIND)
#undef FIND
    if (missing != NULL || libpq.PQlibVersion_() < LEAST_VERSION)
    {
        dlclose(library);
        ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
                        errmsg("writes are not forwarded: the libpq beside this PostgreSQL is too old")));
    }
    loaded = true;
}
#endif
