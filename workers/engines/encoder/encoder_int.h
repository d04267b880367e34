/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* What encoder.c (requests) and encoder_load.c (models) share. */

#include "base/buf.h"
#include "workers/engines/encoder/bert.h"
#include "workers/engines/encoder/encoder.h"
#include "workers/engines/encoder/encoder_config.h"
#include "workers/engines/encoder/encoder_queue.h"
#include "workers/engines/encoder/wordpiece.h"

struct engine {
    struct engine_sink sink;
    struct encoder_config config;
    struct wordpiece *pieces;
    struct bert *bert;
    char *model_json; /* the model's name, quoted and escaped */
    uint32_t batch_token_max;
    uint32_t req_count_max;
    uint32_t input_size_max;
    struct encoder_queue queue;
    struct engine_stats stats;

    /* One batch, room for batch_token_max texts of one token. */
    struct encoder_pick *picks;
    uint32_t *ids;
    uint32_t *offsets;
    float *vectors;
    struct buf out;
};

int encoder_probe(const char *dir, struct engine_probe *ret_probe, struct err *err) MUST_CHECK;
int encoder_load(const struct engine_load *load, struct engine **ret_engine,
                 struct engine_info *ret_info, struct err *err) MUST_CHECK;
void encoder_unload(struct engine **engine_p);
int encoder_submit(struct engine *engine, const struct engine_req *from, uint64_t now_us,
                   struct err *err) MUST_CHECK;
int encoder_step(struct engine *engine, uint64_t now_us, uint64_t *ret_wake_us,
                 struct err *err) MUST_CHECK;
int encoder_cancel(struct engine *engine, uint64_t req_id, struct err *err) MUST_CHECK;
void encoder_stats(const struct engine *engine, struct engine_stats *ret_stats);
