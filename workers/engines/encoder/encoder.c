/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/engines/encoder/encoder.h"

#include "workers/engines/encoder/encoder_int.h"

static int submit(struct engine *engine, const struct engine_req *from, uint64_t now_us,
                  struct err *err)
{
    return encoder_texts_submit(engine->texts, from, now_us, err);
}

static int step(struct engine *engine, uint64_t now_us, uint64_t *ret_wake_us, struct err *err)
{
    return encoder_texts_step(engine->texts, now_us, ret_wake_us, err);
}

static int cancel(struct engine *engine, uint64_t req_id, struct err *err)
{
    return encoder_texts_cancel(engine->texts, req_id, err);
}

static void stats(const struct engine *engine, struct engine_stats *ret_stats)
{
    encoder_texts_stats(engine->texts, ret_stats);
    ret_stats->host_size = bert_memory_size(engine->bert);
}

const struct engine_api encoder_api = {
    .abi = ENGINE_ABI,
    .name = "encoder",
    .version = HEADRACE_VERSION,
    .probe = encoder_probe,
    .load = encoder_load,
    .submit = submit,
    .step = step,
    .cancel = cancel,
    .stats = stats,
    .unload = encoder_unload,
};
