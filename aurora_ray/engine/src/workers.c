#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "workers.h"

#include "miscadmin.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "utils/wait_event.h"

#include <dlfcn.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define BACKLOG 8
#define RESTART_S 5

void worker_register(const char *name, const char *function, const char *variable, int flags, BgWorkerStartTime when)
{
    BackgroundWorker worker = {
        .bgw_flags = BGWORKER_SHMEM_ACCESS | flags,
        .bgw_start_time = when,
        .bgw_restart_time = RESTART_S,
    };
    Dl_info self;

    if (getenv(variable) == NULL || !dladdr((void *) worker_register, &self))
        return;
    if (strlen(self.dli_fname) >= sizeof worker.bgw_library_name)
    {
        ereport(LOG, (errmsg("%s does not run: %s is too long a name", name, self.dli_fname)));
        return;
    }
    strlcpy(worker.bgw_name, name, sizeof worker.bgw_name);
    strlcpy(worker.bgw_type, name, sizeof worker.bgw_type);
    strlcpy(worker.bgw_library_name, self.dli_fname, sizeof worker.bgw_library_name);
    strlcpy(worker.bgw_function_name, function, sizeof worker.bgw_function_name);
    RegisterBackgroundWorker(&worker);
}

int worker_listen(const char *variable)
{
    const char *path = getenv(variable);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
    pqsignal(SIGPIPE, SIG_IGN);
    BackgroundWorkerUnblockSignals();
    if (path == NULL || strlen(path) >= sizeof address.sun_path)
        ereport(FATAL, (errmsg("%s is no name for a socket", path ? path : variable)));
    strcpy(address.sun_path, path);
    unlink(path);
    if (fd < 0 || bind(fd, (struct sockaddr *) &address, sizeof address) != 0 || chmod(path, 0600) != 0
        || listen(fd, BACKLOG) != 0)
        ereport(FATAL, (errmsg("cannot listen on %s: %m", path)));
    return fd;
}

void worker_wait(int fd, long timeout_ms)
{
    int wake = WL_LATCH_SET | WL_SOCKET_READABLE | WL_EXIT_ON_PM_DEATH | (timeout_ms >= 0 ? WL_TIMEOUT : 0);

    (void) WaitLatchOrSocket(MyLatch, wake, fd, timeout_ms, PG_WAIT_EXTENSION);
    ResetLatch(MyLatch);
    CHECK_FOR_INTERRUPTS();
    if (ShutdownRequestPending)
        proc_exit(1); /* not 0: after a pg_terminate_backend it is started again */
}

int worker_accept(int fd) { return accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK); }
