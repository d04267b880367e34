/* SPDX-License-Identifier: Apache-2.0 */

#include "producers/bulk_line.h"

#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json_fast.h"
#include "producers/gateway_body.h"
#include "schema/job_id.h"

#define BASE64 sodium_base64_VARIANT_ORIGINAL

struct bulk_reader {
    struct json_fast *line, *body; /* two, so that the texts of a line outlive its body's parse */
    char number[24];               /* a custom_id that was not given */
};

struct bulk_reader *bulk_reader_new(void)
{
    struct bulk_reader *reader = xcalloc(1, sizeof(*reader));

    reader->line = json_fast_new();
    reader->body = json_fast_new();
    return reader;
}

void bulk_reader_free(struct bulk_reader **reader_p)
{
    struct bulk_reader *reader = TAKE(*reader_p);

    if (reader == NULL)
        return;
    json_fast_free(&reader->line);
    json_fast_free(&reader->body);
    free(reader);
}

bool bulk_line_is_blank(const char *line, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        if (line[i] != ' ' && line[i] != '\t' && line[i] != '\r')
            return false;
    }
    return true;
}

/* ---- in ---- */

static int fail(char ret_code[BULK_CODE_SIZE], const char *code)
{
    (void)snprintf(ret_code, BULK_CODE_SIZE, "%s", code);
    return ERR_MALFORMED;
}

/* A member that must be a string. */
static int read_text(struct json_fast *parser, const char *name, struct json_field *ret_field,
                     const char **ret_text, size_t *ret_size, char ret_code[BULK_CODE_SIZE],
                     struct err *err)
{
    if (!json_fast_find(parser, name, ret_field)) {
        (void)err_set(err, ERR_MALFORMED, "%s is missing", name);
        return fail(ret_code, "missing_required_parameter");
    }
    if (json_fast_string(parser, ret_field, ret_text, ret_size, err) < 0)
        return fail(ret_code, "invalid_type");
    return 0;
}

static int read_custom_id(struct bulk_reader *reader, struct bulk_line *line,
                          char ret_code[BULK_CODE_SIZE], struct err *err)
{
    struct json_field field;
    const char *text;
    size_t size = 0;
    int r = read_text(reader->line, "custom_id", &field, &text, &size, ret_code, err);

    if (r < 0)
        return r;
    if (size == 0 || size > BULK_CUSTOM_ID_SIZE_MAX) {
        (void)err_set(err, ERR_RANGE, "custom_id has %zu bytes; it must have 1 to %d", size,
                      BULK_CUSTOM_ID_SIZE_MAX);
        return fail(ret_code, "invalid_custom_id");
    }
    line->custom_id = (struct wire_text){field.raw, field.raw_size};
    line->custom_id_plain = (struct wire_text){text, size};
    return 0;
}

static int read_route(struct bulk_reader *reader, const char *endpoint,
                      char ret_code[BULK_CODE_SIZE], struct err *err)
{
    struct json_field field;
    const char *text;
    int r = read_text(reader->line, "method", &field, &text, NULL, ret_code, err);

    if (r < 0)
        return r;
    if (strcmp(text, "POST") != 0) {
        (void)err_set(err, ERR_RANGE, "method is '%.20s'; it must be POST", text);
        return fail(ret_code, "invalid_method");
    }
    r = read_text(reader->line, "url", &field, &text, NULL, ret_code, err);
    if (r < 0)
        return r;
    if (strcmp(text, endpoint) != 0) {
        (void)err_set(err, ERR_RANGE, "url is '%.80s'; the batch's endpoint is %s", text, endpoint);
        return fail(ret_code, "mismatched_endpoint");
    }
    return 0;
}

static int read_body(struct bulk_reader *reader, struct bulk_line *line,
                     char ret_code[BULK_CODE_SIZE], struct err *err)
{
    struct json_field field;
    const char *text;
    size_t size = 0;
    int r;

    if (!json_fast_find(reader->line, "body", &field)) {
        (void)err_set(err, ERR_MALFORMED, "body is missing");
        return fail(ret_code, "missing_required_parameter");
    }
    if (field.type != JSON_TYPE_OBJECT) {
        (void)err_set(err, ERR_MALFORMED, "body is a %s; it must be an object",
                      json_type_name(field.type));
        return fail(ret_code, "invalid_type");
    }
    line->body = (struct wire_text){field.raw, field.raw_size};
    r = json_fast_parse(reader->body, field.raw, field.raw_size, true, err);
    if (r < 0) {
        (void)err_wrap(err, "body");
        return fail(ret_code, "invalid_json_line");
    }
    r = read_text(reader->body, "model", &field, &text, &size, ret_code, err);
    if (r < 0) {
        (void)err_wrap(err, "body");
        return r;
    }
    if (size == 0 || size >= sizeof(line->model) || strlen(text) != size) {
        (void)err_set(err, ERR_RANGE, "body: model has %zu bytes; it must have 1 to %zu", size,
                      sizeof(line->model) - 1);
        return fail(ret_code, "model_not_found");
    }
    mem_copy_text(line->model, text);
    return 0;
}

/* A line of a bulk job of one model. */
static int read_native(struct bulk_reader *reader, uint64_t number, struct bulk_line *line,
                       char ret_code[BULK_CODE_SIZE], struct err *err)
{
    struct json_field field;
    int size;

    if (json_fast_find(reader->line, "custom_id", &field)) {
        int r = read_custom_id(reader, line, ret_code, err);

        if (r < 0)
            return r;
    } else {
        size = snprintf(reader->number, sizeof(reader->number), "\"%llu\"",
                        (unsigned long long)number);
        line->custom_id = (struct wire_text){reader->number, (size_t)size};
        line->custom_id_plain = (struct wire_text){reader->number + 1, (size_t)size - 2};
    }
    if (!json_fast_find(reader->line, "model_input", &field)) {
        (void)err_set(err, ERR_MALFORMED, "model_input is missing");
        return fail(ret_code, "missing_required_parameter");
    }
    line->body = (struct wire_text){field.raw, field.raw_size};
    return 0;
}

int bulk_line_read(struct bulk_reader *reader, const char *line, size_t size, uint64_t number,
                   const char *endpoint, struct bulk_line *ret_line, char ret_code[BULK_CODE_SIZE],
                   struct err *err)
{
    int r = json_fast_parse(reader->line, line, size, true, err);

    *ret_line = (struct bulk_line){0};
    if (r < 0)
        return fail(ret_code, "invalid_json_line");
    if (strcmp(endpoint, BULK_PREDICT) == 0)
        return read_native(reader, number, ret_line, ret_code, err);
    r = read_custom_id(reader, ret_line, ret_code, err);
    if (r == 0)
        r = read_route(reader, endpoint, ret_code, err);
    return r < 0 ? r : read_body(reader, ret_line, ret_code, err);
}

/* SHA-256, so that SQL can name a line's job as well (bulk_line_job() of migrations). */
struct wire_id bulk_line_job(const struct wire_id *bulk, uint64_t line, uint32_t shard)
{
    uint8_t text[WIRE_ID_SIZE + 8], hash[crypto_hash_sha256_BYTES];

    memcpy(text, bulk->bytes, WIRE_ID_SIZE);
    for (int i = 0; i < 8; i++)
        text[WIRE_ID_SIZE + i] = (uint8_t)(line >> (56 - 8 * i));
    (void)crypto_hash_sha256(hash, text, sizeof(text));
    return job_id_make(shard, job_id_time_ms(bulk), hash);
}

/* ---- out ---- */

bool bulk_outcome_is_good(const struct bulk_outcome *outcome)
{
    return outcome->job != NULL && outcome->state == JOB_SUCCEEDED &&
           (outcome->http_status == 0 || outcome->http_status < 400);
}

/* What is JSON loses its line ends: outside of strings they mean nothing, inside there are none. */
static void append_json(struct buf *to, struct wire_bytes json)
{
    size_t at = to->size;

    buf_append(to, json.bytes, json.size);
    for (; !to->failed && at < to->size; at++) {
        if (to->bytes[at] == '\n' || to->bytes[at] == '\r')
            to->bytes[at] = ' ';
    }
}

/* Text as text; else, for what no JSON can hold, its base64. */
static void append_other(struct bulk_reader *reader, struct wire_bytes output, struct buf *to)
{
    size_t at = to->size, room = sodium_base64_ENCODED_LEN(output.size, BASE64);
    struct err err;
    uint8_t *text;

    json_append_string(to, (const char *)output.bytes, output.size);
    if (to->failed ||
        json_fast_check(reader->body, to->bytes + at, to->size - at, false, &err) == 0)
        return;
    to->size = at;
    buf_append_text(to, "{\"base64\":\"");
    text = buf_reserve(to, room);
    if (text != NULL) {
        (void)sodium_bin2base64((char *)text, room, output.bytes, output.size, BASE64);
        buf_commit(to, room - 1);
    }
    buf_append_text(to, "\"}");
}

static void append_body(struct bulk_reader *reader, const struct bulk_outcome *outcome,
                        struct buf *to)
{
    const struct wire_bytes *output = &outcome->output;
    struct err err;

    if (output->size == 0)
        buf_append_text(to, "null");
    else if (outcome->output_is_json &&
             json_fast_check(reader->body, output->bytes, output->size, false, &err) == 0)
        append_json(to, *output);
    else
        append_other(reader, *output, to);
}

static int outcome_status(const struct bulk_outcome *outcome)
{
    if (outcome->http_status != 0)
        return outcome->http_status;
    return outcome->state == JOB_SUCCEEDED ? 200 : error_class_http(outcome->class);
}

static void append_response(struct bulk_reader *reader, const struct bulk_outcome *outcome,
                            struct buf *to)
{
    char job[JOB_ID_TEXT_SIZE];

    if (outcome->job == NULL || (outcome->state != JOB_SUCCEEDED && outcome->output.size == 0)) {
        buf_append_text(to, ",\"response\":null");
        return;
    }
    job_id_format(outcome->job, job);
    buf_printf(to, ",\"response\":{\"status_code\":%d,\"request_id\":\"%s\",\"body\":",
               outcome_status(outcome), job);
    append_body(reader, outcome, to);
    buf_append_byte(to, '}');
}

static void append_error(const struct bulk_outcome *outcome, struct buf *to)
{
    struct wire_text message = outcome->error_message;
    const char *code = outcome->never_run != NULL ? outcome->never_run
                                                  : error_class_wire(outcome->class);

    if (bulk_outcome_is_good(outcome)) {
        buf_append_text(to, ",\"error\":null");
        return;
    }
    if (outcome->state == JOB_EXPIRED)
        code = "batch_expired";
    else if (outcome->state == JOB_CANCELED)
        code = "batch_cancelled";
    else if (outcome->state == JOB_SUCCEEDED)
        code = "MODEL_INVALID_INPUT"; /* its server said so, and it was no failure of the job */
    if (message.size == 0)
        message = outcome->never_run != NULL || outcome->state == JOB_EXPIRED ||
                          outcome->state == JOB_CANCELED
                      ? WIRE_TEXT_OF("the request was not run to its end before the batch was over")
                      : WIRE_TEXT_OF("the model answered with an error");
    buf_printf(to, ",\"error\":{\"code\":\"%s\",\"message\":", code);
    json_append_string(to, message.text, message.size);
    if (outcome->job != NULL && outcome->class != ERROR_CLASS_NONE)
        buf_printf(to, ",\"class\":\"%s\"", error_class_name(outcome->class));
    buf_printf(to, ",\"attempts\":%llu,\"line\":%llu}", (unsigned long long)outcome->attempts,
               (unsigned long long)outcome->line);
}

void bulk_outcome_append(struct bulk_reader *reader, const struct bulk_outcome *outcome,
                         struct buf *to)
{
    buf_append_text(to, "{\"id\":\"batch_req_");
    if (outcome->job != NULL) {
        for (size_t i = 0; i < WIRE_ID_SIZE; i++)
            buf_printf(to, "%02x", outcome->job->bytes[i]);
    } else {
        buf_printf(to, "line_%llu", (unsigned long long)outcome->line);
    }
    buf_append_text(to, "\",\"custom_id\":");
    append_json(
        to, (struct wire_bytes){(const uint8_t *)outcome->custom_id.text, outcome->custom_id.size});
    append_response(reader, outcome, to);
    append_error(outcome, to);
    buf_append_text(to, "}\n");
}
