/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What pushes have in common: a folder is sent as a new deployment of a model, and waited for.
 * Progress goes to standard error.
 *
 * Thread: the only one of a command.
 */

#include "cli/client.h"

struct push_model {
    const char *folder;
    const char *name;
    const char *deployment_name; /* "": deployment-N */
    const char *environment;     /* to point at it once it is ready; "": as the gateway decides */
    const char *device;          /* "": as headrace.json says */
    const char *trained;         /* JOB/CHECKPOINT,… that it was made of; NULL: of none */
    char *external;              /* a folder that stands in the archive as well; NULL: none */
};

struct push_archive;

/* Posts an archive with these headers and its digest, with a line of progress on a terminal. */
int push_archive_send(const struct client *client, const char *path,
                      const struct http_header *headers, size_t header_count,
                      const struct push_archive *archive, json_t **ret_answer,
                      struct err *err) MUST_CHECK;

/* Packs and sends the folder; *ret_id is the deployment's id, which the caller frees. */
int push_model_send(const struct client *client, const struct push_model *push, char **ret_id,
                    struct err *err) MUST_CHECK;

/* Returns when the deployment is ready or has failed, with the gateway's last object of it; fails
 * with ERR_TIMEOUT when it is neither after that time. */
int push_model_wait(const struct client *client, const char *model, const char *deployment,
                    uint64_t timeout_ms, json_t **ret_state, struct err *err) MUST_CHECK;

/* Prints what push_model_wait() has got, and what one does next; returns the exit code. */
int push_model_report(const char *verb, const char *model, const json_t *state, bool json);
