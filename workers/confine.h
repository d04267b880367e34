/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * `headrace confine [settings] -- PROGRAM ARGUMENT…`: runs a user's code where it can hurt only
 * itself, and ends all of it when its starter or its first process ends.
 *
 *     level    what it has
 *     off      a process group, no inherited descriptors but those named, no core dumps
 *     basic    + no new privileges, no capabilities, Landlock (files), seccomp (system calls),
 *                resource limits, a cgroup where one can be made
 *     strict   + bubblewrap: processes, files, network and user ids of its own
 *
 * `auto` is strict where bubblewrap works, else basic; what of it is in force here is printed by
 * --explain and is in the text of confine_describe(). Order in the child: cgroup, limits, sandbox,
 * capabilities, Landlock, seccomp, nice value (at each level; in strict the session has it before),
 * exec.
 *
 * Without a pid namespace (off, basic, inner) this process stays as the *keeper*: descendants
 * become its children, and are killed when the first one ends, when the keeper's parent dies, and
 * before the keeper ends; it passes SIGTERM on. In a pid namespace the kernel does it.
 *
 * Failures: exit code 125 when the confinement that was asked for cannot be had, with a line in the
 * log; never the program without it.
 *
 * Thread: one.   Tests: tests/unit/test_confine.c, tests/stack/test_server.py
 */

#include <signal.h>
#include <stdbool.h>
#include <sys/types.h>

#include "base/err.h"

#define CONFINE_EXIT 125

/* Tells a keeper to kill all that it keeps, and to end; the kernel sends it when its parent dies.
 * To bubblewrap it is as deadly. A keeper that is killed itself cannot do its work. */
#define CONFINE_END_SIGNAL SIGUSR1
#define CONFINE_TEXT_SIZE 400

enum confine_level {
    CONFINE_AUTO,
    CONFINE_OFF,
    CONFINE_BASIC,
    CONFINE_STRICT,
};

int confine_level_parse(const char *text, enum confine_level *ret_level,
                        struct err *err) MUST_CHECK;
const char *confine_level_name(enum confine_level level); /* "strict"; static storage */

/* The level that is in force here when this one is asked for. ERR_UNSUPPORTED: strict was asked for
 * and bubblewrap is missing or may not make namespaces; the text says which. Runs bubblewrap once,
 * which takes some milliseconds. */
int confine_level_find(enum confine_level asked, enum confine_level *ret_level,
                       struct err *err) MUST_CHECK;

/* One sentence for logs: what is in force at this level with this network, and what is not. */
void confine_describe(enum confine_level level, const char *network, char *to, size_t to_size);

/* Whether `basic` confines files here: the kernel has Landlock. */
bool confine_basic_has_files(void);

/* Has a keeper, or bubblewrap, end all that is below it, also one that was stopped (SIGSTOP). */
struct child;
void confine_end(struct child *child);

/* Removes the cgroups "<prefix>-<pid>" of processes that are no more, and ends what they hold. */
void confine_group_sweep(const char *prefix);

/* Ends what is left in the cgroup of that name and removes it; nothing when there is none. True
 * when the kernel killed a process of it for its memory limit. */
bool confine_group_end(const char *name);

/* Whether a cgroup can hold the memory of a confined program here. Makes one to see: not for each
 * second. */
bool confine_group_has_memory(void);

/* The folder of the cgroup of that name; NULL: there is none. The caller frees. */
char *confine_group_dir(const char *name);

/* All processes below another one, in the order of their ids; the count in *ret_count. The caller
 * frees. */
pid_t *confine_below(pid_t root, size_t *ret_count);

/* The program: `headrace confine`. */
int confine_main(int argc, char **argv);
