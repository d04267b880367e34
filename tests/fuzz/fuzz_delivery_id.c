/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: whatever people write for a delivery or an endpoint, and whatever a receiver writes into
 * Retry-After, what comes out is within its bounds; what is taken reads the same when written. */

#include <stdio.h>
#include <string.h>

#include "base/assert.h"
#include "base/mem.h"
#include "producers/gateway_delivery_id.h"
#include "schema/job_id.h"
#include "schema/webhook_key.h"
#include "workers/webhook_gate.h"
#include "workers/webhook_plan.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static void check_delivery(const char *text)
{
    char id[JOB_ID_TEXT_SIZE], again[JOB_ID_TEXT_SIZE + 16];
    struct wire_id job, same;
    uint64_t round, same_round;
    struct err err;

    if (delivery_id_parse(text, &job, &round, &err) < 0)
        return;
    assert(round <= INT16_MAX);
    job_id_format(&job, id);
    (void)snprintf(again, sizeof(again), "msg_%s_%d", id, (int)(round == 0 ? 1 : round));
    assert(delivery_id_parse(again, &same, &same_round, &err) == 0);
    assert(memcmp(&job, &same, sizeof(job)) == 0 && same_round == (round == 0 ? 1 : round));
}

static void check_url(const char *text)
{
    char to[100];
    struct err err;

    assert(webhook_url_origin_size(text) <= strlen(text));
    assert(webhook_url_endpoint_size(text) <= strlen(text));
    if (endpoint_url_read(text, to, sizeof(to), &err) < 0)
        return;
    assert(strpbrk(to, "?# \r\n") == NULL && strlen(to) == webhook_url_endpoint_size(text));
}

static void check_key(const char *text)
{
    char again[WEBHOOK_PRIVATE_KEY_TEXT_SIZE];
    struct webhook_key_pair key;
    struct err err;

    if (webhook_key_parse(text, &key, &err) < 0)
        return;
    webhook_key_format_private(&key, again);
    assert(strcmp(text, again) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    OWNED(mem_free) char *text = xmalloc(size + 1);

    if (size > 0)
        memcpy(text, bytes, size);
    text[size] = '\0';
    check_delivery(text);
    check_url(text);
    check_key(text);
    assert(webhook_plan_retry_after(text, 1764000000) <= WEBHOOK_RETRY_AFTER_MS_MAX);
    return 0;
}
