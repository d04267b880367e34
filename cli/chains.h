/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What the files of `headrace chains` share.
 *
 * Thread: the only one of a command.
 */

#include "cli/verb.h"

#define CHAINS_PUSH_SETTINGS                                                                       \
    VERB_COMMON_SETTINGS                                                                           \
    SETTING_STRING(name, "",                                                                       \
                   "name of the chain; needed for a chain.yaml; empty: what a Python file says")   \
    SETTING_STRING(environment, "",                                                                \
                   "environment to point at it; empty: production, if it is the "                  \
                   "chain's first")                                                                \
    SETTING_INT(slots, 0, 0, 2048,                                                                 \
                "runs at a time of one replica; 0: 1,024; not of a Python file")                   \
    SETTING_INT(replicas, 1, 0, 1000, "processes that coordinate its runs; not of a Python file")  \
    SETTING_STRING(python, "python3", "of a Python file: a Python that has the truss package")     \
    SETTING_STRING(entrypoint, "", "of a Python file: its entrypoint, if several are marked")      \
    SETTING_BOOL(no_wait, false, "do not wait until it is ready")                                  \
    SETTING_DURATION(timeout, "10m", "1s", "24h", "how long to wait until it is ready")

struct chains_push_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
    CHAINS_PUSH_SETTINGS
#include "base/settings_end.def"
};

/* The program that makes Trusses of a Python file's chainlets; made from chains_generate.py. */
extern const char *const chains_generate_text;

/* Deploys a truss_chains file; returns the exit code. */
int chains_push_python(const struct client *client, const struct chains_push_settings *settings,
                       const char *file);
