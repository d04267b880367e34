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

struct chains_plain_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
    VERB_COMMON_SETTINGS
#include "base/settings_end.def"
};

/* ---- chains_file.c ---- */

/* path: "-" is standard input. */
int chains_file_read(const char *path, struct buf *to, struct err *err) MUST_CHECK;

/* A chain.yaml, or its JSON, which is YAML as well; the object that is pushed. */
int chains_read(const char *path, json_t **ret_json, size_t *ret_steps, struct err *err) MUST_CHECK;

/* JSON, @FILE, or - for standard input. */
int chains_input(const char *input, json_t **ret_json, struct err *err) MUST_CHECK;

/* ---- chains_show.c ---- */

#define CHAINS_GRAPH_SETTINGS                                                                      \
    VERB_COMMON_SETTINGS                                                                           \
    SETTING_BOOL(dot, false, "in the language of graphviz")                                        \
    SETTING_BOOL(svg, false, "as a picture")

struct chains_graph_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
    CHAINS_GRAPH_SETTINGS
#include "base/settings_end.def"
};

#define CHAINS_SHOW_SETTINGS                                                                       \
    VERB_COMMON_SETTINGS                                                                           \
    SETTING_BOOL(watch, false, "draw it anew as it goes, until it is over")

struct chains_show_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
    CHAINS_SHOW_SETTINGS
#include "base/settings_end.def"
};

#define CHAINS_RETRY_SETTINGS                                                                      \
    VERB_COMMON_SETTINGS                                                                           \
    SETTING_STRING(from, "", "step from which on all runs again; empty: what has failed")

struct chains_retry_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
    CHAINS_RETRY_SETTINGS
#include "base/settings_end.def"
};

#define CHAINS_RERUN_SETTINGS                                                                      \
    VERB_COMMON_SETTINGS                                                                           \
    SETTING_STRING(from, "",                                                                       \
                   "step from which on all runs again; empty: those of --inputs, or all of them")  \
    SETTING_STRING(input, "", "another input of the run: JSON, @FILE, or - for standard input")    \
    SETTING_STRING(inputs, "",                                                                     \
                   "inputs of steps instead of their templates, by name: a JSON object, @FILE, "   \
                   "or -")                                                                         \
    SETTING_STRING(deployment, "", "another version of the chain: id or name; empty: the run's")   \
    SETTING_BOOL(dry_run, false, "make no job: tell what would run, and what is as it was")        \
    SETTING_STRING(chain, "", "of a dry run: a chain.yaml in place of the run's own version")      \
    SETTING_BOOL(no_wait, false, "print the id of the new run and leave")                          \
    SETTING_BOOL(quiet, false, "say nothing while it runs")

struct chains_rerun_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
    CHAINS_RERUN_SETTINGS
#include "base/settings_end.def"
};

/* ---- chains_main.c ---- */

/* Of a run that has just been begun: waits for it and prints its output; returns the exit code. */
int chains_follow(const struct client *client, const char *id, bool no_wait, bool quiet);

/* ---- chains_dry_main.c ---- */

/* Plans the run again with what it has recorded; chain_file "": by its own file. The body is that
 * of a rerun. Returns the exit code. */
int chains_dry_run(const struct client *client, const char *run, const json_t *body,
                   const char *chain_file, bool json);

/* Actions, as struct verb_action has them. */
int chains_init(const struct client *client, const void *values, char **operands,
                int operand_count);
int chains_graph(const struct client *client, const void *values, char **operands,
                 int operand_count);
int chains_show(const struct client *client, const void *values, char **operands,
                int operand_count);
int chains_cancel(const struct client *client, const void *values, char **operands,
                  int operand_count);
int chains_retry(const struct client *client, const void *values, char **operands,
                 int operand_count);
int chains_rerun(const struct client *client, const void *values, char **operands,
                 int operand_count);
