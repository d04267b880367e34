/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * From the files of a model directory to the engine that serves it: one set of rules for the
 * gateway, which sees an archive, and for `headrace probe`, which sees the directory.
 *
 *     each file's path -> model_facts_note(); the text of a few into model_facts_text()
 *     model_plan_make() -> engine, device, slots, replicas, settings, and why
 *
 * headrace.json at the top has the first word, all of it optional:
 *
 *     {"engine": "onnx", "device": "cpu", "slots": 4, "replicas": 1, "warm": 0, "settings": {…},
 *      "batching": {"max_items": 32, "max_tokens": 4096, "max_wait_ms": 2},
 *      "resources": {"accelerator": "H100", …}}, as schema/gpu_need.h has it
 *
 * A Truss (config.yaml with model/model.py or a docker_server) is `python` or `server`; its keys
 * are those of schema/truss_config.def. "batching" goes to the engine as the member of that name of
 * its settings. Otherwise the first of these that fits: a model of one of the families of
 * encoder_families.def with *.safetensors and a tokenizer is `encoder`; a file *.onnx is `onnx`.
 * What fits nothing is refused, with what was looked for.
 *
 * Pure, but for memory. Thread: any.   Tests: tests/unit/test_model_plan.c
 */

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

#define MODEL_TEXT_SIZE_MAX (1u << 20) /* of a file that is read for the plan */
#define MODEL_PATH_SIZE 256
#define MODEL_ENGINE_SIZE 32
#define MODEL_DEVICE_SIZE 16
#define MODEL_SLOTS_MAX 2048
#define MODEL_REPLICAS_MAX 1000
#define MODEL_WARM_MAX 16 /* as deployment_warm_check has it */

/* Limits of "batching", for the engines too. */
#define MODEL_BATCH_ITEMS_MAX 2048u
#define MODEL_BATCH_TOKENS_MAX 65536u
#define MODEL_BATCH_WAIT_MS_MAX 1000u

struct model_facts {
    uint32_t file_count;
    uint64_t content_size;
    uint32_t safetensors_count, gguf_count, onnx_count; /* at the top */
    char onnx_file[MODEL_PATH_SIZE];                    /* the one to serve; "": none */
    bool has_tokenizer;                                 /* vocab.txt or tokenizer.json at the top */
    bool has_model_py;                                  /* model/model.py */
    bool has_adapter;                                   /* adapter_config.json at the top */
    bool has_checkpoints;           /* files of training jobs, as `headrace push` brings them */
    char device[MODEL_DEVICE_SIZE]; /* whoever pushes wants it there; "": says nothing */
    char *config_json, *headrace_json, *config_yaml; /* at the top; NULL: there is none */
};
void model_facts_done(struct model_facts *facts);

/* Counts a file by its path below the model directory. */
void model_facts_note(struct model_facts *facts, const char *path);

/* Where the text of that file belongs; NULL: it is not read. Owned by the facts. */
char **model_facts_text(struct model_facts *facts, const char *path);

struct model_plan {
    char engine[MODEL_ENGINE_SIZE], device[MODEL_DEVICE_SIZE];
    char accelerator[48]; /* as config.yaml has it; "": none */
    uint32_t slot_count, replica_count;
    uint32_t warm_count;    /* replicas beside them that are loaded and take no jobs */
    char *settings;         /* a JSON object, the engine's own, and "resources" for the agent */
    char *warnings;         /* a JSON array of texts, what has no effect here; NULL: none */
    char *name;             /* model_name of config.yaml; NULL: it has none */
    bool wants_checkpoints; /* config.yaml has training_checkpoints */
    char why[256];          /* one line: what decided */
};
void model_plan_done(struct model_plan *plan);

/* Whether the engine of that name computes what waits in one batch. */
bool model_engine_batches(const char *engine);

/* ERR_UNSUPPORTED says what was looked for and is missing; ERR_MALFORMED and ERR_RANGE name the key
 * of headrace.json, its value and the limit. What facts->device says counts before headrace.json.
 */
int model_plan_make(const struct model_facts *facts, struct model_plan *ret_plan,
                    struct err *err) MUST_CHECK;
