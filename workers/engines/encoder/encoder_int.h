/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What encoder.c (the table of functions), encoder_load.c (models) and a backend share.
 *
 * A backend is what computes: encoder_cpu.c, and the plugin for CUDA, which is this engine with
 * another one. Everything that users see of a model but its speed is on this side of it.
 */

#include "workers/engines/encoder/bert.h"
#include "workers/engines/encoder/encoder.h"
#include "workers/engines/encoder/encoder_config.h"
#include "workers/engines/encoder/encoder_texts.h"

enum encoder_dtype {
    ENCODER_DTYPE_UNSET, /* the backend's default */
    ENCODER_DTYPE_AUTO,  /* what is fast here */
    ENCODER_DTYPE_F32,
    ENCODER_DTYPE_BF16,
};

/* A model that is to be opened; borrowed for the call. */
struct encoder_ask {
    const struct engine_load *load;
    const struct encoder_config *config;
    enum encoder_dtype dtype;
    uint32_t token_count_max; /* of one batch */
    uint32_t text_count_max;  /* of one batch */
};

struct encoder_backend {
    /* ERR_UNSUPPORTED: no device of this backend, or none that is there. Before a file is read. */
    int (*check)(const struct engine_load *load, struct err *err);

    /* Tokens of a batch where nobody says how many; at least config->token_count_max. */
    int (*default_tokens)(const struct encoder_ask *ask, uint32_t *ret_count, struct err *err);

    /* From weights that bert_check() has passed to what can run; takes *weights_p on success. The
     * runner's self is *ret_self. */
    int (*open)(const struct encoder_ask *ask, struct safetensors **weights_p, void **ret_self,
                struct encoder_runner *ret_runner, struct err *err);
    void (*close)(void **self_p);

    /* "f32, oneDNN AVX512, 2 threads" */
    void (*describe)(const void *self, char *to, size_t to_size);
    uint64_t (*host_size)(const void *self);
    uint64_t (*dev_size)(const void *self);
};

struct engine {
    struct encoder_config config;
    const struct encoder_backend *backend;
    void *self; /* the backend's */
    struct encoder_texts *texts;
};

extern const struct encoder_backend encoder_cpu;

int encoder_probe(const char *dir, struct engine_probe *ret_probe, struct err *err) MUST_CHECK;
int encoder_load_on(const struct encoder_backend *backend, const struct engine_load *load,
                    struct engine **ret_engine, struct engine_info *ret_info,
                    struct err *err) MUST_CHECK;
void encoder_unload(struct engine **engine_p);

int encoder_submit(struct engine *engine, const struct engine_req *req, uint64_t now_us,
                   struct err *err) MUST_CHECK;
int encoder_step(struct engine *engine, uint64_t now_us, uint64_t *ret_wake_us,
                 struct err *err) MUST_CHECK;
int encoder_cancel(struct engine *engine, uint64_t req_id, struct err *err) MUST_CHECK;
void encoder_stats(const struct engine *engine, struct engine_stats *ret_stats);

/* The engine.h table of this engine on a backend, which `load` chooses. */
#define ENCODER_API(load_function)                                                                 \
    {                                                                                              \
        .abi = ENGINE_ABI, .name = "encoder", .version = HEADRACE_VERSION, .probe = encoder_probe, \
        .load = (load_function), .submit = encoder_submit, .step = encoder_step,                   \
        .cancel = encoder_cancel, .stats = encoder_stats, .unload = encoder_unload,                \
    }
