/* What an engine's module gives to ar_defer_commits: the one thing that interposer and module both know. */
#ifndef COMMIT_HOOKS_H
#define COMMIT_HOOKS_H
#include <stdbool.h>

struct ar_commit_hooks {
    bool (*before_sleep)(void); /* this process is about to sleep in epoll_wait; true: it shall not, nothing came */
    void (*after_sleep)(void);
    bool (*send_waits)(void); /* what is sent now waits as if it called ar_wait_for_ordered */
    bool (*orders_only)(void); /* nobody is told anything by this process: all of its syncs only order */
    const char *logs; /* of files whose paths in the mount begin so, and of the directory, all syncs only order */
    bool (*writes_behind)(void); /* nobody waits for what this process writes: it does not run ahead of the volume */
    bool (*checkpoints)(void); /* it sleeps in epoll_wait, without locks, until the volume lacks nothing (exchange.c) */
};
#endif
