/*
 * Interposed: starting programs. They get the library, whatever their environment says. Some cannot: a static program, one
 * that runs with other rights. What such a program was told to read (its arguments, what it inherits) is brought in whole
 * before it starts, with all other files beside it, and stays; what it inherits for writing is given to it for reading
 * only, so that its writes fail where nobody would hear of them.
 */
#include "intercept.h"
#include <dirent.h>
#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <ftw.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>
#include <unistd.h>

extern char **environ;

/* ---- the environment */

enum { OWN = 6, WORD = PATH_MAX + 64 };
static const char *const names[OWN] = {"LD_PRELOAD",       "AURORA_MOUNT",   "AURORA_DEVICE",
                                       "AURORA_REGION_FD", "AURORA_BELL_FD", "AURORA_LIFE_FD"};

static const char *own_path(void)
{
    Dl_info info;
    return dladdr((void *)own_path, &info) ? info.dli_fname : "";
}

static const char *entry_of(char *const *environment, const char *name)
{
    size_t n = strlen(name);
    for (; environment && *environment; environment++)
        if (!strncmp(*environment, name, n) && (*environment)[n] == '=')
            return *environment + n + 1;
    return NULL;
}

static void own_entry(int i, char *const *environment, char out[WORD])
{
    const char *preload = entry_of(environment, names[0]), *ours = own_path();
    switch (i) {
    case 0:
        if (preload && strstr(preload, ours))
            snprintf(out, WORD, "%s=%s", names[0], preload);
        else
            snprintf(out, WORD, "%s=%s%s%s", names[0], ours, preload && *preload ? ":" : "", preload ? preload : "");
        break;
    case 1:
        snprintf(out, WORD, "%s=%s", names[1], ar_mount_path);
        break;
    case 2:
        snprintf(out, WORD, "%s=%llu", names[2], (unsigned long long)ar_device);
        break;
    default:
        snprintf(out, WORD, "%s=%d", names[i], i == 3 ? ar_region_fd : i == 4 ? ar_bell_fd : ar_life_fd);
    }
}

static bool is_own(const char *entry)
{
    for (int i = 0; i < OWN; i++) {
        size_t n = strlen(names[i]);
        if (!strncmp(entry, names[i], n) && entry[n] == '=')
            return true;
    }
    return false;
}

static size_t length_of(char *const *list)
{
    size_t n = 0;
    while (list && list[n])
        n++;
    return n;
}

/* `all` has room for the environment and OWN more. On the stack throughout: a child of vfork comes by here too. */
static void with_own(char *const *environment, char **all, char words[OWN][WORD])
{
    size_t n = 0;
    for (char *const *entry = environment; entry && *entry; entry++)
        if (!is_own(*entry))
            all[n++] = *entry;
    for (int i = 0; i < OWN; i++) {
        own_entry(i, environment, words[i]);
        all[n++] = words[i];
    }
    all[n] = NULL;
}

/* For shells that the libc starts by itself. */
void ar_own_environment(void)
{
    char word[WORD];
    if (!ar_active)
        return;
    for (int i = 0; i < OWN; i++) {
        own_entry(i, environ, word);
        const char *value = strchr(word, '=') + 1, *now = getenv(names[i]);
        if (!now || strcmp(now, value))
            setenv(names[i], value, 1);
    }
}

/* ---- which programs cannot have the library */

static bool has_other_rights(int fd)
{
    struct statx st;
    char capability[64];
    if (ar_look(fd, "", AT_EMPTY_PATH, &st) < 0)
        return false;
    bool set_id = (st.stx_mode & S_ISUID && geteuid()) || st.stx_mode & S_ISGID;
    return set_id || fgetxattr(fd, "security.capability", capability, sizeof capability) > 0;
}

static bool elf_is_dynamic(int fd, const Elf64_Ehdr *head)
{
    if (head->e_ident[EI_CLASS] != ELFCLASS64)
        return false;
    for (int i = 0; i < head->e_phnum; i++) {
        Elf64_Phdr part;
        if (ar_pread(fd, &part, sizeof part, (off_t)(head->e_phoff + (size_t)i * head->e_phentsize)) != sizeof part)
            return false;
        if (part.p_type == PT_INTERP)
            return true;
    }
    return false;
}

/* Whether `path` would run without the library. A file of the mount is brought in on the way: the kernel reads it. */
static bool runs_unseen(int dir, const char *path, int depth)
{
    char head[256] = {0};
    int fd = ar_open(dir, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK, 0);
    if (fd < 0)
        return errno == EACCES && faccessat(dir, path, X_OK, 0) == 0;
    struct slot *slot = ar_slot_of(fd);
    ssize_t n = slot && ar_keep_present(fd, slot) < 0 ? -1 : ar_pread(fd, head, sizeof head - 1, 0);
    bool unseen = has_other_rights(fd);
    if (n >= (ssize_t)sizeof(Elf64_Ehdr) && !memcmp(head, ELFMAG, SELFMAG)) {
        Elf64_Ehdr elf;
        memcpy(&elf, head, sizeof elf);
        unseen |= !elf_is_dynamic(fd, &elf);
    } else if (n > 2 && head[0] == '#' && head[1] == '!' && depth < 4) {
        char *program = head + 2 + strspn(head + 2, " \t");
        program[strcspn(program, " \t\n")] = 0;
        unseen |= runs_unseen(AT_FDCWD, program, depth + 1);
    }
    close(fd);
    return unseen;
}

/* As execvp looks for it. */
static bool found_runs_unseen(const char *name)
{
    char path[PATH_MAX];
    const char *list = getenv("PATH");
    if (strchr(name, '/'))
        return runs_unseen(AT_FDCWD, name, 0);
    for (list = list ? list : "/bin:/usr/bin"; *list;) {
        size_t n = strcspn(list, ":");
        snprintf(path, sizeof path, "%.*s%s%s", (int)n, list, n ? "/" : "", name);
        if (access(path, X_OK) == 0)
            return runs_unseen(AT_FDCWD, path, 0);
        list += n + (list[n] == ':');
    }
    return false;
}

/* ---- what they may read */

static _Thread_local uint64_t room, wanted; /* bytes that fit on the disk; bytes of files that were met */

static int bring_in_file(const char *path)
{
    int fd = ar_open(AT_FDCWD, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW, 0);
    struct slot *slot = fd < 0 ? NULL : ar_slot_of(fd);
    int result = 0;
    if (slot && (wanted += atomic_load(&slot->size)) > room) {
        errno = ENOSPC;
        result = -1;
    } else if (slot) {
        result = ar_keep_present(fd, slot);
    }
    int error = errno;
    if (fd >= 0)
        close(fd);
    errno = error;
    return result;
}

static int visit(const char *path, const struct stat *st, int kind, struct FTW *at)
{
    (void)at;
    return kind == FTW_F && S_ISREG(st->st_mode) ? bring_in_file(path) : 0;
}

/* The files beside `path`, itself among them: who archives one segment of a log may send the next ones as well. */
static int bring_in_around(const char *path)
{
    char directory[PATH_MAX], each[2 * PATH_MAX];
    snprintf(directory, sizeof directory, "%s", path);
    char *slash = strrchr(directory, '/');
    slash ? (void)(slash[slash == directory] = 0) : (void)strcpy(directory, ".");
    DIR *all = opendir(directory);
    int result = all ? 0 : -1;
    for (struct dirent *entry; !result && (entry = readdir(all));) {
        snprintf(each, sizeof each, "%s/%s", directory, entry->d_name);
        if (entry->d_type == DT_REG)
            result = bring_in_file(each);
    }
    if (all)
        closedir(all);
    return result;
}

/* A word of a command line: what it names in the mount. */
static int bring_in(const char *word)
{
    struct stat st;
    char out[PATH_MAX];
    const char *value = word[0] == '-' && strchr(word, '=') ? strchr(word, '=') + 1 : word;
    int fd = stat(value, &st) == 0 ? real_openat(AT_FDCWD, value, O_PATH | O_CLOEXEC) : -1;
    const char *local = fd < 0 ? NULL : ar_path_of(fd, out);
    if (fd >= 0)
        real_close(fd);
    if (!local)
        return 0;
    return S_ISDIR(st.st_mode) ? nftw(value, visit, 16, FTW_PHYS) : bring_in_around(value);
}

#define INHERITED_MAX 1024

static int hand_down(int fd, bool may_change)
{
    char link[64];
    int how = real_fcntl(fd, F_GETFD);
    struct slot *slot = how < 0 || how & FD_CLOEXEC ? NULL : ar_slot_of(fd);
    if (!slot)
        return 0;
    how = real_fcntl(fd, F_GETFL);
    if ((how & O_ACCMODE) == O_RDONLY)
        return ar_keep_present(fd, slot);
    int reads = may_change ? real_openat(AT_FDCWD, ar_proc_link(fd, link), O_RDONLY | O_CLOEXEC) : -1;
    if (reads < 0 || ar_keep_present(fd, slot) < 0)
        return -1;
    real_lseek(reads, real_lseek(fd, 0, SEEK_CUR), SEEK_SET);
    real_dup2(reads, fd);
    real_close(reads);
    return 0;
}

/* Before a program that cannot be seen starts. -1 with errno: it must not start, it would read holes. */
static int serve_unseen(char *const *arguments, bool may_change)
{
    struct statvfs disk;
    room = statvfs(ar_mount_path, &disk) == 0 ? (uint64_t)disk.f_bavail * disk.f_frsize : 0;
    wanted = 0;
    for (size_t i = 1; arguments && arguments[0] && arguments[i]; i++)
        if (bring_in(arguments[i]) < 0)
            return -1;
    for (int fd = 0; fd < INHERITED_MAX; fd++)
        if (hand_down(fd, may_change) < 0)
            return -1;
    return 0;
}

/* ---- exec */

enum { BY_PATH, SEARCHED };

static int start(int how, int dir, const char *path, char *const *arguments, char *const *environment, int flags)
{
    if (how == SEARCHED)
        return real_execvpe(path, arguments, environment);
    bool plain = dir == AT_FDCWD && !flags;
    return plain ? real_execve(path, arguments, environment) : real_execveat(dir, path, arguments, environment, flags);
}

static int execute(int how, int dir, const char *path, char *const *arguments, char *const *environment, int flags)
{
    ar_resolve_libc();
    if (!ar_active)
        return start(how, dir, path, arguments, environment, flags);
    char words[OWN][WORD];
    char *all[length_of(environment) + OWN + 1];
    char own[64];
    ar_capture_streams(-1);
    bool itself = flags & AT_EMPTY_PATH && !*path;
    bool unseen = how == SEARCHED ? found_runs_unseen(path)
                                  : runs_unseen(itself ? AT_FDCWD : dir, itself ? ar_proc_link(dir, own) : path, 0);
    if (unseen && serve_unseen(arguments, true) < 0)
        return -1;
    with_own(environment, all, words);
    return start(how, dir, path, arguments, all, flags);
}

AR_EXPORT int execve(const char *path, char *const arguments[], char *const environment[])
{
    return execute(BY_PATH, AT_FDCWD, path, arguments, environment, 0);
}
AR_EXPORT int execv(const char *path, char *const arguments[])
{
    return execute(BY_PATH, AT_FDCWD, path, arguments, environ, 0);
}
AR_EXPORT int execvp(const char *path, char *const arguments[])
{
    return execute(SEARCHED, AT_FDCWD, path, arguments, environ, 0);
}
AR_EXPORT int execvpe(const char *path, char *const arguments[], char *const environment[])
{
    return execute(SEARCHED, AT_FDCWD, path, arguments, environment, 0);
}
AR_EXPORT int fexecve(int fd, char *const arguments[], char *const environment[])
{
    return execute(BY_PATH, fd, "", arguments, environment, AT_EMPTY_PATH);
}
AR_EXPORT int execveat(int dir, const char *path, char *const arguments[], char *const environment[], int flags)
{
    return execute(BY_PATH, dir, path, arguments, environment, flags);
}

/* Collects the arguments of the variadic ones, the NULL among them; `rest` is at what follows. */
#define LISTED(first)                                                                                                  \
    va_list rest;                                                                                                      \
    size_t n = 1;                                                                                                      \
    va_start(rest, first);                                                                                             \
    while (va_arg(rest, char *))                                                                                       \
        n++;                                                                                                           \
    va_end(rest);                                                                                                      \
    char *arguments[n + 1];                                                                                            \
    arguments[0] = (char *)(uintptr_t)first;                                                                           \
    va_start(rest, first);                                                                                             \
    for (size_t i = 1; i <= n; i++)                                                                                    \
        arguments[i] = va_arg(rest, char *);

AR_EXPORT int execl(const char *path, const char *first, ...)
{
    LISTED(first)
    va_end(rest);
    return execute(BY_PATH, AT_FDCWD, path, arguments, environ, 0);
}
AR_EXPORT int execlp(const char *path, const char *first, ...)
{
    LISTED(first)
    va_end(rest);
    return execute(SEARCHED, AT_FDCWD, path, arguments, environ, 0);
}
AR_EXPORT int execle(const char *path, const char *first, ...)
{
    LISTED(first)
    char *const *environment = va_arg(rest, char *const *);
    va_end(rest);
    return execute(BY_PATH, AT_FDCWD, path, arguments, environment, 0);
}

/* ---- spawn: the child is made inside the libc, so what it inherits cannot be changed here */

static int spawn(bool searched, pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions,
                 const posix_spawnattr_t *attributes, char *const *arguments, char *const *environment)
{
    ar_resolve_libc();
    if (!ar_active)
        return (searched ? real_posix_spawnp : real_posix_spawn)(pid, path, actions, attributes, arguments, environment);
    char words[OWN][WORD];
    char *all[length_of(environment) + OWN + 1];
    ar_capture_streams(-1);
    bool unseen = searched ? found_runs_unseen(path) : runs_unseen(AT_FDCWD, path, 0);
    if (unseen && serve_unseen(arguments, false) < 0)
        return errno;
    with_own(environment, all, words);
    return (searched ? real_posix_spawnp : real_posix_spawn)(pid, path, actions, attributes, arguments, all);
}
AR_EXPORT int posix_spawn(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions,
                          const posix_spawnattr_t *attributes, char *const arguments[], char *const environment[])
{
    return spawn(false, pid, path, actions, attributes, arguments, environment);
}
AR_EXPORT int posix_spawnp(pid_t *pid, const char *path, const posix_spawn_file_actions_t *actions,
                           const posix_spawnattr_t *attributes, char *const arguments[], char *const environment[])
{
    return spawn(true, pid, path, actions, attributes, arguments, environment);
}
AR_EXPORT FILE *popen(const char *command, const char *mode)
{
    ar_resolve_libc();
    ar_capture_streams(-1);
    ar_own_environment();
    return real_popen(command, mode);
}
