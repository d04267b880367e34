/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/engines/encoder/encoder_batching.h"

#include <string.h>

#include "schema/model_plan.h"
#include "workers/engines/encoder/encoder_json.h"

int encoder_batching_read(const json_t *settings, struct encoder_batching *batching,
                          struct err *err)
{
    const json_t *json = json_object_get(settings, "batching");
    uint32_t wait_ms = (uint32_t)(batching->wait_us / 1000);
    const json_t *value;
    const char *key;
    int r;

    if (json == NULL)
        return 0;
    if (!json_is_object(json))
        return err_set(err, ERR_MALFORMED, "setting 'batching' is no object");
    json_object_foreach((json_t *)json, key, value)
    {
        if (strcmp(key, "max_items") != 0 && strcmp(key, "max_tokens") != 0 &&
            strcmp(key, "max_wait_ms") != 0)
            return err_set(err, ERR_USAGE,
                           "setting 'batching' has no '%.60s'; it has max_items, max_tokens and "
                           "max_wait_ms",
                           key);
    }
    r = encoder_json_get_u32(json, "max_items", 1, MODEL_BATCH_ITEMS_MAX, &batching->item_max, err);
    if (r == 0)
        r = encoder_json_get_u32(json, "max_tokens", 1, MODEL_BATCH_TOKENS_MAX,
                                 &batching->token_max, err);
    if (r == 0)
        r = encoder_json_get_u32(json, "max_wait_ms", 0, MODEL_BATCH_WAIT_MS_MAX, &wait_ms, err);
    if (r < 0)
        return err_wrap(err, "setting 'batching'");
    batching->wait_us = wait_ms * 1000ull;
    return 0;
}

uint64_t encoder_batching_due_us(const struct encoder_batching *batching, uint64_t item_count,
                                 uint64_t token_count, uint64_t oldest_us)
{
    if (item_count >= batching->item_max ||
        (batching->token_max > 0 && token_count >= batching->token_max))
        return 0;
    return oldest_us + batching->wait_us;
}

uint64_t encoder_batching_wake_us(uint64_t due_us, uint64_t now_us)
{
    return due_us <= now_us ? 0 : due_us;
}
