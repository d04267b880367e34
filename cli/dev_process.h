/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * One child process of `headrace dev`: started with its output in a log file, watched by a
 * pidfd, and never left behind: when we die, by whatever signal, the kernel kills it.
 *
 * A child gets a process group of its own, so that Ctrl-C in a terminal reaches only us and the
 * order of stopping stays ours. As root it may be started in a user namespace where it has
 * another uid, because PostgreSQL refuses to run as root; no chown is needed then.
 *
 * Thread: one, and no other thread of ours may be inside fork-unsafe code (the child only makes
 * system calls between fork and exec).   Tests: tests/unit/test_dev_process.c
 */

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"

enum dev_identity {
    DEV_IDENTITY_SAME,      /* as we are */
    DEV_IDENTITY_NAMESPACE, /* in a user namespace, where we have the given uid and gid */
    DEV_IDENTITY_ACCOUNT,   /* as the given uid and gid; root only */
};

struct dev_spawn {
    const char *program; /* path of the executable */
    char *const *argv;   /* ends in NULL; argv[0] may differ from program */
    char *const *env;    /* ends in NULL */
    const char *log_path;
    const char *directory;
    enum dev_identity identity;
    uid_t uid; /* of the last two identities */
    gid_t gid;
    int death_signal; /* what the kernel sends it when we die */
};

struct dev_process {
    pid_t pid; /* 0: none was started, or it was reaped */
    int pidfd; /* readable once it has ended; -1 without a process */
    uint64_t start_ticks;
    int wait_code; /* si_code and si_status of waitid, once it has ended */
    int wait_status;
};

#define DEV_PROCESS_NONE ((struct dev_process){.pidfd = -1})

/* Starts a child. A failure of the exec itself is reported here, not by an exit code. */
int dev_process_start(struct dev_process *process, const struct dev_spawn *spawn,
                      struct err *err) MUST_CHECK;

/* True once the child has ended and was reaped; its status is in the struct then. */
bool dev_process_reap(struct dev_process *process);

void dev_process_signal(const struct dev_process *process, int signal_number);

/* "exited with code 1", "was killed by signal 9 (Killed)"; to must hold 80 bytes. */
void dev_process_describe_end(const struct dev_process *process, char *to, size_t to_size);

/* When the process began, in clock ticks since boot; 0 when none of that pid runs. A pid and this
 * number together name a process for good; a pid alone is used again. */
uint64_t dev_process_start_ticks(pid_t pid);

/* True where a user namespace can be made and mapped; tried once in a child. */
bool dev_process_can_map_user(void);
