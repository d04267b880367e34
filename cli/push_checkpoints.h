/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The files of training jobs that a Truss's config.yaml names in training_checkpoints: brought here
 * for its archive, where they stand as training_checkpoints/JOB/rank-<n>/CHECKPOINT/PATH.
 *
 *     artifact_references ─▶ lists of files ─▶ those that a pattern names ─▶ fetched, each checked
 *     by its digest ─▶ a folder to pack, and JOB/CHECKPOINT,… for the lineage
 *
 * Thread: the only one of a command.   Tests: tests/stack/test_training_api.py
 */

#include "cli/client.h"

/* *ret_above is a new temporary folder, whose training_checkpoints is to be packed with `folder`,
 * and *ret_origins what X-Headrace-Training-Checkpoint says; both the caller's (the first by
 * push_folder_remove()). Both NULL: config.yaml names none, or there is no such file.
 * ERR_NOT_FOUND: no job of that id, or no file of a complete checkpoint that a pattern names. */
int push_checkpoints_bring(const struct client *client, const char *folder, char **ret_above,
                           char **ret_origins, struct err *err) MUST_CHECK;
