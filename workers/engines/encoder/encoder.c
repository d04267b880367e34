/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/engines/encoder/encoder.h"

#include "workers/engines/encoder/encoder_int.h"

int encoder_submit(struct engine *engine, const struct engine_req *req, uint64_t now_us,
                   struct err *err)
{
    return encoder_texts_submit(engine->texts, req, now_us, err);
}

int encoder_step(struct engine *engine, uint64_t now_us, uint64_t *ret_wake_us, struct err *err)
{
    return encoder_texts_step(engine->texts, now_us, ret_wake_us, err);
}

int encoder_cancel(struct engine *engine, uint64_t req_id, struct err *err)
{
    return encoder_texts_cancel(engine->texts, req_id, err);
}

void encoder_stats(const struct engine *engine, struct engine_stats *ret_stats)
{
    encoder_texts_stats(engine->texts, ret_stats);
    ret_stats->host_size = engine->backend->host_size(engine->self);
    ret_stats->dev_size = engine->backend->dev_size(engine->self);
}

static int load_on_cpu(const struct engine_load *load, struct engine **ret_engine,
                       struct engine_info *ret_info, struct err *err)
{
    return encoder_load_on(&encoder_cpu, load, ret_engine, ret_info, err);
}

const struct engine_api encoder_api = ENCODER_API(load_on_cpu);
