/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* Inside of `headrace confine`, for its files only: confine.c (the program), confine_strict.c
 * (bubblewrap), confine_rules.c (Landlock, seccomp, capabilities), confine_group.c (cgroups),
 * confine_keeper.c (the end of everything). */

#include "base/settings.h"
#include "workers/confine.h"

struct confine_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
#include "workers/confine_settings.def"
#include "base/settings_end.def"
};

/* ---- confine_strict.c ---- */

/* 0 when bubblewrap is there and makes the namespaces that we need. */
int confine_strict_try(struct err *err) MUST_CHECK;

/* Becomes bubblewrap, which becomes the inner half. Returns only on failure. */
int confine_strict_exec(const struct confine_settings *settings, char **argv,
                        struct err *err) MUST_CHECK;

/* ---- confine_rules.c ---- */

int confine_landlock_abi(void); /* 0: the kernel has none */

/* Files: only what the settings and the system name, and `scratch` for writing. Without an ABI
 * there are no rules, and that is no error: confine_describe() says it. */
int confine_files(const struct confine_settings *settings, const char *scratch,
                  struct err *err) MUST_CHECK;

/* Of files: that nothing is written but below the settings' `write`; for a sandbox of bubblewrap,
 * whose /proc would let a user 0 outside write to what is the machine's. */
int confine_files_written(const struct confine_settings *settings, struct err *err) MUST_CHECK;

/* TCP to and on the ports of the settings only, no abstract sockets and signals outward. */
int confine_network(const struct confine_settings *settings, struct err *err) MUST_CHECK;

/* Refuses system calls; no_connect: connect(2) and UDP too; local: sockets of files and other
 * processes of this user are its own, as in a sandbox. Needs PR_SET_NO_NEW_PRIVS. */
int confine_calls(bool no_connect, bool local, struct err *err) MUST_CHECK;
int confine_drop_capabilities(struct err *err) MUST_CHECK;

/* ---- confine_group.c ---- */

/* Puts this process into a cgroup with the settings' limits. Bits in *ret_held say which limits the
 * kernel now holds; 0 where no cgroup can be made, which is no error. */
#define CONFINE_GROUP_MEMORY 1u
#define CONFINE_GROUP_PROCESSES 2u
unsigned confine_group_join(const struct confine_settings *settings);
unsigned confine_group_can(void); /* which of them could be had */

/* ---- confine_keeper.c ---- */

/* What the keeper removes at the end. */
struct confine_kept {
    const char *scratch;                       /* folder; NULL: none */
    const char *container_program, *container; /* docker or podman, and a name; "": none */
};

/* Forks. In the child: returns 0. In the parent: keeps, and ends the process as the child ended. */
int confine_keep(const struct confine_kept *kept, struct err *err) MUST_CHECK;

/* ---- shared ---- */

/* Calls `each` for every part of a list with this separator; stops at a failure. */
typedef int confine_part_call(void *opaque, const char *part, struct err *err);
int confine_parts(const char *list, char separator, confine_part_call *each, void *opaque,
                  struct err *err) MUST_CHECK;

/* What every program reads, for both sandboxes; ends in NULL. What is not there is skipped. */
extern const char *const confine_system_paths[];
