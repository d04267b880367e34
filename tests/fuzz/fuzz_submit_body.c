/* SPDX-License-Identifier: Apache-2.0 */

/* Bodies of submits: whatever the bytes, the reader ends, what it hands out lies inside the body
 * and in its ranges, and its warnings are JSON. */

#include <jansson.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/json_fast.h"
#include "producers/gateway_body.h"
#include "schema/job.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static void check_warnings(struct submit_body *body)
{
    struct buf text = BUF_WITH_LIMIT(2 * SUBMIT_WARNINGS_SIZE_MAX);
    json_t *list;

    buf_append_byte(&text, '[');
    buf_append(&text, body->warnings.bytes, body->warnings.size);
    buf_append_byte(&text, ']');
    list = json_loadb((const char *)text.bytes, text.size, 0, NULL);
    assert(!body->warnings.failed && json_is_array(list));
    assert((json_array_size(list) == 0) == (body->warning_count == 0));
    json_decref(list);
    buf_done(&text);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    static struct body_reader *reader;
    char *padded = xcalloc(1, size + JSON_FAST_PADDING);
    struct submit_body body;
    struct err err;

    if (reader == NULL)
        reader = body_reader_new();
    memcpy(padded, bytes, size);
    if (body_read_submit(reader, padded, size, true, true, &body, &err) == 0) {
        assert(body.input >= padded && body.input + body.input_size <= padded + size);
        assert(body.input[0] == '{' && body.input[body.input_size - 1] == '}');
        assert(body.priority <= JOB_PRIORITY_MAX);
        assert(body.queue_limit_s >= JOB_QUEUE_LIMIT_S_MIN);
        assert(body.queue_limit_s <= JOB_QUEUE_LIMIT_S_MAX);
        assert(body.max_attempts >= 1 && body.max_attempts <= JOB_ATTEMPTS_MAX);
        assert(body.webhook_url == NULL || strlen(body.webhook_url) <= SUBMIT_WEBHOOK_SIZE_MAX);
        check_warnings(&body);
        submit_body_done(&body);
    }
    free(padded);
    return 0;
}
