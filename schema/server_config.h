/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Settings of the `server` engine: the JSON object of a deployment, checked key by key.
 *
 * Names and meanings are those of `docker_server`, `runtime.health_checks` and
 * `environment_variables` of a config.yaml; docs/engines.md lists them. An unknown key, a wrong
 * type and a value out of range are refused by name.
 *
 * Pure. Thread: any.   Tests: tests/unit/test_server_config.c
 */

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

struct json_t;

#define SERVER_ENV_MAX 256
#define SERVER_PORT_MARK "{port}"
#define SERVER_ANSWER_SIZE_MAX (256u << 20) /* what a frame can hand on */

struct server_config {   /* texts are the config's own */
    char *start_command; /* for /bin/sh -c */
    char *image;         /* of a container; NULL: a plain process */
    char *predict_endpoint, *readiness_endpoint, *liveness_endpoint;
    char *checkpoint_folder;       /* where files of training jobs are looked for; NULL: none */
    char *env[SERVER_ENV_MAX + 1]; /* NAME=value, ends in NULL */
    struct json_t *secrets;        /* names the model may have, with null or a text; NULL: none */
    uint32_t port;                 /* 0: ours to choose, told by {port} and $PORT */
    uint32_t run_as_user_id;       /* of a container; 0: the image's */
    uint64_t probe_ms;             /* between two looks at a server that is ready */
    uint64_t startup_ms;           /* from its start until it must be ready */
    uint64_t stop_traffic_ms;      /* not ready for so long: requests are handed back */
    uint64_t restart_ms;           /* not alive for so long: killed */
    uint64_t stop_ms;              /* from SIGTERM to SIGKILL */
    uint64_t answer_size_max;      /* bytes of one answer */
    bool network_out;              /* may connect to other machines; read by the worker */
};

/* On an error nothing is left to be freed. */
int server_config_parse(const char *json, struct server_config *ret_config,
                        struct err *err) MUST_CHECK;
void server_config_done(struct server_config *config);

/* The command with the port in the place of every {port}; the caller's to free. */
char *server_config_command(const struct server_config *config, uint32_t port);
