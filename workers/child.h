/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * One child process on the loop: started with a few descriptors, watched by a pidfd, reaped, told
 * about once. Also somebody else's process that is only watched (an agent's workers after the agent
 * started again).
 *
 * Failures: an exec that fails is reported by child_start() itself, by the code of execve(2).
 * Shutdown: child_free() of a running child forgets it, and does not kill it.
 * Thread: the loop's.   Tests: tests/unit/test_worker_child.c
 */

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/err.h"

struct child;
struct loop;

struct child_end {
    bool known; /* false: it was not ours, so nobody tells us how it ended */
    int exit_code;
    int signal;     /* 0: it exited by itself */
    char text[128]; /* "exited with code 1", "was killed by signal 9 (Killed)" */
};

typedef void child_end_call(void *opaque, const struct child_end *end);

struct child_spawn {
    const char *path;
    char *const *argv;
    char *const *env; /* NULL: ours */
    int stdout_fd;    /* -1: ours */
    int stderr_fd;    /* -1: ours */
    int extra_fd;     /* becomes descriptor 3; -1: none */
    bool new_group;   /* a process group of its own: Ctrl-C of a terminal reaches only us */
};

/* All other descriptors must be close-on-exec, and are. Signals are at their defaults in it. */
int child_start(struct loop *loop, const struct child_spawn *spawn, child_end_call *on_end,
                void *opaque, struct child **ret_child, struct err *err) MUST_CHECK;

/* Watches a process that is there. ERR_NOT_FOUND: there is none of that pid, or it began at
 * another time (a pid is used again): start_ticks as of child_start_ticks() then. */
int child_watch(struct loop *loop, pid_t pid, uint64_t start_ticks, child_end_call *on_end,
                void *opaque, struct child **ret_child, struct err *err) MUST_CHECK;

void child_free(struct child **child_p);

pid_t child_pid(const struct child *child);
void child_signal(struct child *child, int signal); /* after its end: nothing */

/* When the process began, in clock ticks since boot; 0: there is none of that pid. */
uint64_t child_start_ticks(pid_t pid);
