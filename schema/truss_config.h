/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A Truss's config.yaml: every key checked by the table of schema/truss_config.def, and what
 * follows for the engine that runs it.
 *
 *     text ─▶ yaml_json_parse() ─▶ each key: known? of its kind? honoured here? ─▶ the whole config
 *                                                                               with its defaults
 *
 * Nothing is ignored in silence: a key that changes nothing here is in the warnings, one that would
 * have to change something is refused, both by name and with the reason.
 *
 * Pure, but for memory. Source: the truss package's truss_config.py. Thread: any.
 * Tests: tests/unit/test_truss_config.c, tests/fuzz/fuzz_truss_config.c
 */

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

/* Where files of checkpoints stand in an archive, as JOB/rank-<n>/CHECKPOINT/PATH. */
#define TRUSS_CHECKPOINTS_FOLDER "training_checkpoints"
#define TRUSS_REFERENCES_MAX 8
#define TRUSS_PATTERNS_MAX 64

struct truss_config {
    json_t *config;      /* every key with its value or default, as the model sees it */
    json_t *warnings;    /* texts */
    json_t *server;      /* settings of the `server` engine; NULL: it is Python code */
    json_t *checkpoints; /* training_checkpoints.artifact_references; NULL: none. In `config` */
    uint32_t concurrency;
    bool accelerator; /* it asks for one */
};
void truss_config_done(struct truss_config *config);

/* ERR_MALFORMED, ERR_RANGE: key, value and limit; ERR_UNSUPPORTED: what is not honoured, and why;
 * ERR_TOO_BIG: over the limits of schema/yaml_json.h. */
int truss_config_parse(const char *text, size_t size, struct truss_config *ret_config,
                       struct err *err) MUST_CHECK;
