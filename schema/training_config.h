/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What a training job is to be: a TrainingProject with its TrainingJob, in the shape of the
 * truss_train package, checked by the table of schema/training_config.def.
 *
 *     config.yaml ─▶ training_config_yaml() ─┐
 *     config.py ─▶ JSON (cli/train_config.py)├─▶ training_config_project() ─▶ training_config_job()
 *     POST …/jobs: training_job ─────────────┴───────────────────────────────────────^
 *
 * Nothing is ignored in silence: a key that changes nothing here is in the warnings, one that would
 * have to change something is refused, both by name and with the reason. The key `headrace` is
 * ours: what the package has no word for.
 *
 * Pure, but for memory. Source: the truss package's truss_train/definitions.py. Thread: any.
 * Tests: tests/unit/test_training_config.c, tests/fuzz/fuzz_training_config.c
 */

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

#define TRAINING_NAME_SIZE 65 /* of a project or a job; bytes, with the terminator */
#define TRAINING_GPU_SIZE 24
#define TRAINING_DIGEST_SIZE 65 /* SHA-256 in hex */
#define TRAINING_COMMANDS_MAX 64
#define TRAINING_LOADED_MAX 16 /* checkpoints of load_checkpoint_config */

struct training_config {
    json_t *config;   /* every key with its value or default; accelerator as "TYPE:N" or null */
    json_t *warnings; /* texts */
    uint32_t node_count, cpu_count;
    uint32_t gpu_count;                 /* of a node; 0: none */
    char gpu_type[TRAINING_GPU_SIZE];   /* "" without any */
    uint64_t memory_size;               /* of a node */
    int32_t priority;                   /* higher first */
    char name[TRAINING_NAME_SIZE];      /* "": none */
    char archive[TRAINING_DIGEST_SIZE]; /* of its workspace; "": none */
};
void training_config_done(struct training_config *config);

/* What texts of errors begin with, and what the one default is that differs. */
struct training_origin {
    const char *what; /* "config.yaml: job", "training_job" */
    bool workdir;     /* enable_baseten_workdir where it is left out: the API false, files true */
};

/* job may be rewritten. ERR_MALFORMED, ERR_RANGE: key, value and limit; ERR_MISMATCH: keys that
 * exclude each other; ERR_UNSUPPORTED: what is not honoured, and why. */
int training_config_job(const struct training_origin *origin, json_t *job,
                        struct training_config *ret_config, struct err *err) MUST_CHECK;

/* {name, team_name?, job}; what: the file's name. The name is copied. */
int training_config_project(const char *what, json_t *document,
                            char ret_project[TRAINING_NAME_SIZE],
                            struct training_config *ret_config, struct err *err) MUST_CHECK;
int training_config_yaml(const char *what, const char *text, size_t size,
                         char ret_project[TRAINING_NAME_SIZE], struct training_config *ret_config,
                         struct err *err) MUST_CHECK;

/* ERR_RANGE unless it is 1 to 64 bytes of one line, without a slash or a space at its ends. */
int training_name_check(const char *what, const char *name, struct err *err) MUST_CHECK;

/* "512Mi", "2Gi", "1.5G", a number of bytes. ERR_RANGE: none of these, or not 1 Mi to 64 Ti. */
int training_memory_parse(const char *text, uint64_t *ret_size, struct err *err) MUST_CHECK;

/* What a trainer is given: one flat object, in which every amount is a number. The caller's. */
json_t *training_config_spec(const struct training_config *config);
