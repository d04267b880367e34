/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What the files of `headrace train` share.
 *
 * Thread: the only one of a command.   Tests: tests/stack/test_training_api.py
 */

#include "cli/verb.h"
#include "schema/training_config.h"

#define TRAIN_PUSH_SETTINGS                                                                        \
    VERB_COMMON_SETTINGS                                                                           \
    SETTING_STRING(job_name, "", "name of the job; empty: what the file says")                     \
    SETTING_STRING(priority, "", "higher runs first; empty: what the file says")                   \
    SETTING_STRING(accelerator, "", "TYPE or TYPE:N for each node; empty: what the file says")     \
    SETTING_INT(node_count, 0, 0, 64, "nodes; 0: what the file says")                              \
    SETTING_STRING(entrypoint, "", "command to run instead of the file's start_commands")          \
    SETTING_STRING(python, "python3", "of a config.py: a Python that has the truss package")       \
    SETTING_STRING(confine, "auto", "of a config.py: what it runs in, as of `headrace confine`")   \
    SETTING_STRING(read, "", "of a config.py: further folders that it reads, with colons between") \
    SETTING_BOOL(check, false, "only check the file, and print what would be sent")                \
    SETTING_BOOL(tail, false, "follow its lines until it is over")

struct train_push_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
    TRAIN_PUSH_SETTINGS
#include "base/settings_end.def"
};

/* The program that makes JSON of a config.py; made from train_evaluate.py. */
extern const char *const train_evaluate_text;

/* What `train init` begins with; made from train_init_*.py. */
extern const char *const train_init_train_text;
extern const char *const train_init_model_text;

/* ---- train_config.c ---- */

/* A config.yaml or config.py, or a folder that has one; changed by the settings, then checked.
 * *ret_folder is where it stands, and the caller's to free. */
int train_config_read(const struct train_push_settings *settings, const char *path,
                      char ret_project[TRAINING_NAME_SIZE], struct training_config *ret_config,
                      char **ret_folder, struct err *err) MUST_CHECK;

/* ---- train_init.c ---- */

int train_init(const struct client *client, const void *values, char **operands, int operand_count);

/* ---- train_push.c ---- */

int train_push(const struct client *client, const void *values, char **operands, int operand_count);

/* ---- train_logs.c ---- */

/* Prints lines of a job; follow: until it is over, also when the gateway goes away meanwhile. */
struct train_logs {
    const char *job, *search, *node;
    int64_t limit; /* without follow: the newest ones */
    bool follow, json;
};
/* *ret_completed, unless NULL: followed, it has come to its end, and that is COMPLETED. */
int train_logs_print(const struct client *client, const struct train_logs *logs,
                     bool *ret_completed, struct err *err) MUST_CHECK;

/* ---- train_show.c ---- */

int train_view(const struct client *client, const void *values, char **operands, int operand_count);
int train_metrics(const struct client *client, const void *values, char **operands,
                  int operand_count);

#define TRAIN_VIEW_SETTINGS                                                                        \
    VERB_COMMON_SETTINGS                                                                           \
    SETTING_BOOL(follow, false, "go on showing how it goes, until it is over")

struct train_view_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
    TRAIN_VIEW_SETTINGS
#include "base/settings_end.def"
};

#define TRAIN_METRICS_SETTINGS                                                                     \
    VERB_COMMON_SETTINGS                                                                           \
    SETTING_STRING(name, "", "only figures whose names begin with this")                           \
    SETTING_INT(height, 6, 1, 40, "lines of a curve")                                              \
    SETTING_INT(width, 60, 10, 300, "columns of a curve")

struct train_metrics_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
    TRAIN_METRICS_SETTINGS
#include "base/settings_end.def"
};

/* "TRAINING_JOB_RUNNING" is "RUNNING"; borrowed. */
const char *train_status(const json_t *job);
bool train_is_over(const char *status);

/* ---- train_files.c ---- */

/* Appends what the gateway says of each file of a complete checkpoint; "": of all of them. */
int train_list_files(const struct client *client, const char *job, const char *checkpoint,
                     json_t *files, struct err *err) MUST_CHECK;

/* One of these into a new file, whose folders are made; its digest is checked. `to` is changed
 * meanwhile, and as it was at the end. */
int train_take_file(const struct client *client, const json_t *file, char *to,
                    struct err *err) MUST_CHECK;

/* The complete checkpoint of that name, "": the newest; the caller frees. ERR_NOT_FOUND: none. */
int train_choose(const struct client *client, const char *job, const char *name, char **ret_name,
                 struct err *err) MUST_CHECK;

/* Files of a complete checkpoint into a new folder, each checked by its digest. rank -1: all,
 * below rank-<n>/; else those of that node, without it. */
int train_download(const struct client *client, const char *job, const char *checkpoint, int rank,
                   const char *folder, struct err *err) MUST_CHECK;
