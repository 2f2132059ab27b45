/* How a process finds the region, and the libc's own functions. */
#include "intercept.h"
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define DEFINE(result, name, parameters) result(*real_##name) parameters;
LIBC_CALLS(DEFINE)
#undef DEFINE

static void resolve_all(void)
{
#define RESOLVE(result, name, parameters)                                                                              \
    {                                                                                                                  \
        void *address = dlsym(RTLD_NEXT, #name);                                                                       \
        memcpy(&real_##name, &address, sizeof address);                                                                \
    }
    LIBC_CALLS(RESOLVE)
#undef RESOLVE
    /* Not a tail call: dlsym finds RTLD_NEXT by its caller's return address. */
    __asm__ volatile("" ::: "memory");
}

void ar_resolve_libc(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, resolve_all);
}

static int environment_fd(const char *name)
{
    const char *value = getenv(name);
    return value ? atoi(value) : -1;
}

/* Overlays may give files another device than directories: whoever made the mount has looked at a file. */
static bool find_device(void)
{
    const char *value = getenv("AURORA_DEVICE");
    struct stat st;
    if (value)
        ar_device = (dev_t)strtoull(value, NULL, 10);
    else if (stat(ar_mount_path, &st) == 0)
        ar_device = st.st_dev;
    return ar_device != 0;
}

/*
 * A program that was started to work on a mount and cannot reach the region must end: it would read holes for pages, and
 * nobody would hear of what it writes.
 */
__attribute__((constructor)) static void begin(void)
{
    ar_resolve_libc();
    const char *mount = getenv("AURORA_MOUNT");
    int region_fd = environment_fd("AURORA_REGION_FD");
    struct stat st;
    if (!mount)
        return;
    if (region_fd < 0 || strlen(mount) >= sizeof ar_mount_path || fstat(region_fd, &st) < 0)
        ar_die("it was started without the volume's memory");
    void *p = real_mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, region_fd, 0);
    if (p == MAP_FAILED || ((struct region *)p)->magic != AR_MAGIC)
        ar_die("what it was started with is not the volume's memory");
    memcpy(ar_mount_path, mount, strlen(mount) + 1);
    ar_bell_fd = environment_fd("AURORA_BELL_FD");
    ar_life_fd = environment_fd("AURORA_LIFE_FD");
    ar_attach(p);
    if (!find_device())
        ar_die("the mount is not there");
    atomic_fetch_add(&ar_region->attached, 1);
    ar_active = true;
    ar_begin_commits();
    ar_check_state();
    ar_begin_descriptors(region_fd);
}
