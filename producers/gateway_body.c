/* SPDX-License-Identifier: Apache-2.0 */

#include "producers/gateway_body.h"

#include <curl/curl.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/json_fast.h"
#include "producers/gateway_time.h"
#include "schema/job.h"

#define NAME_SHOWN_MAX 64

struct body_reader {
    struct json_fast *outer, *inner; /* inner: of inference_retry_config */
};

struct body_reader *body_reader_new(void)
{
    struct body_reader *reader = xcalloc(1, sizeof(*reader));

    reader->outer = json_fast_new();
    reader->inner = json_fast_new();
    return reader;
}

void body_reader_free(struct body_reader **reader_p)
{
    struct body_reader *reader = TAKE(*reader_p);

    if (reader == NULL)
        return;
    json_fast_free(&reader->outer);
    json_fast_free(&reader->inner);
    free(reader);
}

void submit_body_done(struct submit_body *body)
{
    buf_done(&body->warnings);
    mem_free(&body->webhook_url);
}

void json_append_string(struct buf *to, const char *text, size_t size)
{
    size_t plain = 0;

    buf_append_byte(to, '"');
    for (size_t i = 0; i < size; i++) {
        unsigned char c = (unsigned char)text[i];

        if (c >= 0x20 && c != '"' && c != '\\' && c != 0x7f)
            continue;
        buf_append(to, text + plain, i - plain);
        plain = i + 1;
        if (c == '"' || c == '\\')
            buf_printf(to, "\\%c", c);
        else if (c == '\n')
            buf_append_text(to, "\\n");
        else
            buf_printf(to, "\\u%04x", c);
    }
    buf_append(to, text + plain, size - plain);
    buf_append_byte(to, '"');
}

/* A cut must not split a character of several bytes. */
static size_t utf8_cut(const char *text, size_t size, size_t limit)
{
    if (size <= limit)
        return size;
    while (limit > 0 && ((unsigned char)text[limit] & 0xc0) == 0x80)
        limit--;
    return limit;
}

static void warn_unknown(struct submit_body *body, const char *prefix, const char *key,
                         size_t key_size)
{
    struct buf text = BUF_WITH_LIMIT(256);

    body->warning_count++;
    if (body->warning_count > SUBMIT_WARNINGS_MAX)
        return;
    buf_append_text(&text, "unknown field '");
    buf_append_text(&text, prefix);
    buf_append(&text, key, utf8_cut(key, key_size, NAME_SHOWN_MAX));
    buf_append_text(&text, key_size > NAME_SHOWN_MAX ? "…' is ignored" : "' is ignored");
    if (body->warnings.size > 0)
        buf_append_byte(&body->warnings, ',');
    json_append_string(&body->warnings, (const char *)text.bytes, text.size);
    buf_done(&text);
}

static void warn_rest(struct submit_body *body)
{
    if (body->warning_count > SUBMIT_WARNINGS_MAX)
        buf_printf(&body->warnings, ",\"and %u more unknown fields\"",
                   body->warning_count - SUBMIT_WARNINGS_MAX);
}

/* A number of the body: where it goes, and what it may be. */
struct number_rule {
    const char *key, *shown; /* shown: the name with its parent */
    size_t offset;
    int64_t lowest, highest;
};

static const struct number_rule submit_numbers[] = {
    {"priority", "priority", offsetof(struct submit_body, priority), 0, JOB_PRIORITY_MAX},
    {"max_time_in_queue_seconds", "max_time_in_queue_seconds",
     offsetof(struct submit_body, queue_limit_s), JOB_QUEUE_LIMIT_S_MIN, JOB_QUEUE_LIMIT_S_MAX},
    {"slot_count", "slot_count", offsetof(struct submit_body, slot_count), 1, SUBMIT_SLOTS_MAX},
    {NULL, NULL, 0, 0, 0},
};

#define RETRY "inference_retry_config"
static const struct number_rule retry_numbers[] = {
    {"max_attempts", RETRY ".max_attempts", offsetof(struct submit_body, max_attempts), 1,
     JOB_ATTEMPTS_MAX},
    {"initial_delay_ms", RETRY ".initial_delay_ms", offsetof(struct submit_body, initial_delay_ms),
     0, JOB_INITIAL_DELAY_MS_MAX},
    {"max_delay_ms", RETRY ".max_delay_ms", offsetof(struct submit_body, max_delay_ms), 0,
     JOB_MAX_DELAY_MS_MAX},
    {NULL, NULL, 0, 0, 0},
};

static const struct number_rule *rule_find(const struct number_rule *rules,
                                           const struct json_field *field)
{
    for (; rules->key != NULL; rules++) {
        if (strlen(rules->key) == field->key_size && strcmp(rules->key, field->key) == 0)
            return rules;
    }
    return NULL;
}

static int read_number(struct json_fast *json, const struct json_field *field,
                       const struct number_rule *rule, struct submit_body *body, struct err *err)
{
    int64_t number;
    int r;

    if (field->type == JSON_TYPE_NULL)
        return 0;
    if (field->type != JSON_TYPE_NUMBER)
        return err_set(err, ERR_MALFORMED,
                       "%s is of type %s; it must be an integer of %lld to %lld", rule->shown,
                       json_type_name(field->type), (long long)rule->lowest,
                       (long long)rule->highest);
    r = json_fast_int64(json, field, &number, err);
    if (r < 0 || number < rule->lowest || number > rule->highest)
        return err_set(err, r == ERR_MALFORMED ? r : ERR_RANGE,
                       "%s is %.*s; it must be an integer of %lld to %lld", rule->shown,
                       (int)(field->raw_size < 40 ? field->raw_size : 40), field->raw,
                       (long long)rule->lowest, (long long)rule->highest);
    *(uint32_t *)((char *)body + rule->offset) = (uint32_t)number;
    return 0;
}

static int read_retry(struct body_reader *reader, const struct json_field *config,
                      struct submit_body *body, struct err *err)
{
    struct json_field field;
    int r;

    if (config->type == JSON_TYPE_NULL)
        return 0;
    if (config->type != JSON_TYPE_OBJECT)
        return err_set(err, ERR_MALFORMED, RETRY " is of type %s; it must be an object",
                       json_type_name(config->type));
    r = json_fast_parse(reader->inner, config->raw, config->raw_size, false, err);
    if (r == ERR_TOO_BIG)
        err->code = ERR_RANGE;
    if (r < 0)
        return err_wrap(err, RETRY);
    while (r == 0 && json_fast_next(reader->inner, &field)) {
        const struct number_rule *rule = rule_find(retry_numbers, &field);

        if (rule == NULL)
            warn_unknown(body, RETRY ".", field.key, field.key_size);
        else
            r = read_number(reader->inner, &field, rule, body, err);
    }
    return r;
}

static bool host_is_loopback(const char *host)
{
    return strcasecmp(host, "localhost") == 0 || strncmp(host, "127.", 4) == 0 ||
           strcmp(host, "[::1]") == 0;
}

/* The parser of the library that will send to it, so that both mean the same by a URL. */
int webhook_url_check(const char *url, bool loopback_http, struct err *err)
{
    CURLU *parts = curl_url();
    char *scheme = NULL, *host = NULL;
    int r = 0;

    if (curl_url_set(parts, CURLUPART_URL, url, 0) != CURLUE_OK ||
        curl_url_get(parts, CURLUPART_SCHEME, &scheme, 0) != CURLUE_OK ||
        curl_url_get(parts, CURLUPART_HOST, &host, 0) != CURLUE_OK || host[0] == '\0')
        r = err_set(err, ERR_RANGE, "webhook_endpoint '%.100s' is no absolute URL with a host",
                    url);
    else if (strcmp(scheme, "https") != 0 &&
             !(strcmp(scheme, "http") == 0 && loopback_http && host_is_loopback(host)))
        r = err_set(err, ERR_RANGE, "webhook_endpoint '%.100s' has the scheme %.20s; only https%s",
                    url, scheme,
                    loopback_http ? " is allowed, and http to localhost" : " is allowed");
    curl_free(scheme);
    curl_free(host);
    curl_url_cleanup(parts);
    return r;
}

static int read_webhook(struct body_reader *reader, const struct json_field *field,
                        bool loopback_http, struct submit_body *body, struct err *err)
{
    const char *url;
    int r;

    if (field->type == JSON_TYPE_NULL)
        return 0;
    if (field->type != JSON_TYPE_STRING)
        return err_set(err, ERR_MALFORMED, "webhook_endpoint is of type %s; it must be a string",
                       json_type_name(field->type));
    r = json_fast_string(reader->outer, field, &url, NULL, err);
    if (r < 0)
        return r;
    if (strlen(url) > SUBMIT_WEBHOOK_SIZE_MAX)
        return err_set(err, ERR_RANGE, "webhook_endpoint has %zu bytes; at most %d are allowed",
                       strlen(url), SUBMIT_WEBHOOK_SIZE_MAX);
    r = webhook_url_check(url, loopback_http, err);
    if (r == 0)
        body->webhook_url = xstrdup(url);
    return r;
}

static int read_run_at(struct body_reader *reader, const struct json_field *field,
                       struct submit_body *body, struct err *err)
{
    const char *text;
    int r;

    if (field->type == JSON_TYPE_NULL)
        return 0;
    if (field->type != JSON_TYPE_STRING)
        return err_set(err, ERR_MALFORMED,
                       "run_at is of type %s; it must be a time as in 2026-12-24T18:00:00Z",
                       json_type_name(field->type));
    r = json_fast_string(reader->outer, field, &text, NULL, err);
    if (r == 0)
        r = gateway_time_parse(text, &body->run_at_us, err);
    if (r < 0)
        return err_wrap(err, "run_at");
    if (body->run_at_us == 0)
        return err_set(err, ERR_RANGE, "run_at is '%.40s', which is before 1970", text);
    return 0;
}

static int read_flag(const struct json_field *field, bool *ret_flag, struct err *err)
{
    if (field->type == JSON_TYPE_NULL)
        return 0;
    if (field->type != JSON_TYPE_BOOL)
        return err_set(err, ERR_MALFORMED, "%s is of type %s; it must be true or false", field->key,
                       json_type_name(field->type));
    *ret_flag = field->raw_size == 4; /* "true" */
    return 0;
}

static bool key_is(const struct json_field *field, const char *key)
{
    return strlen(key) == field->key_size && strcmp(field->key, key) == 0;
}

static int read_field(struct body_reader *reader, const struct json_field *field,
                      bool loopback_http, struct submit_body *body, struct err *err)
{
    const struct number_rule *rule;

    if (key_is(field, "model_input")) {
        if (field->type != JSON_TYPE_OBJECT)
            return err_set(err, ERR_MALFORMED, "model_input is of type %s; it must be an object",
                           json_type_name(field->type));
        body->input = field->raw;
        body->input_size = field->raw_size;
        return 0;
    }
    if (key_is(field, "webhook_endpoint"))
        return read_webhook(reader, field, loopback_http, body, err);
    if (key_is(field, "run_at"))
        return read_run_at(reader, field, body, err);
    if (key_is(field, "refuse_late"))
        return read_flag(field, &body->refuse_late, err);
    if (key_is(field, "stream"))
        return read_flag(field, &body->stream, err);
    if (key_is(field, RETRY))
        return read_retry(reader, field, body, err);
    rule = rule_find(submit_numbers, field);
    if (rule != NULL)
        return read_number(reader->outer, field, rule, body, err);
    warn_unknown(body, "", field->key, field->key_size);
    return 0;
}

int body_read_submit(struct body_reader *reader, const void *bytes, size_t size, bool padded,
                     bool loopback_http, struct submit_body *ret_body, struct err *err)
{
    OWNED(submit_body_done)
    struct submit_body body = {
        .queue_limit_s = JOB_QUEUE_LIMIT_S_DEFAULT,
        .max_attempts = JOB_ATTEMPTS_DEFAULT,
        .initial_delay_ms = JOB_INITIAL_DELAY_MS_DEFAULT,
        .max_delay_ms = JOB_MAX_DELAY_MS_DEFAULT,
        .slot_count = 1,
        .warnings = BUF_WITH_LIMIT(SUBMIT_WARNINGS_SIZE_MAX),
    };
    struct json_field field;
    int r = json_fast_parse(reader->outer, bytes, size, padded, err);

    if (r == ERR_TOO_BIG) /* too deep or too many fields: 413 would speak of bytes */
        err->code = ERR_RANGE;
    if (r < 0)
        return err_wrap(err, "body");
    while (r == 0 && json_fast_next(reader->outer, &field))
        r = read_field(reader, &field, loopback_http, &body, err);
    if (r < 0)
        return r;
    if (body.input == NULL)
        return err_set(err, ERR_MALFORMED, "model_input is missing; it must be a JSON object");
    warn_rest(&body);
    *ret_body = body;
    body = (struct submit_body){0};
    return 0;
}

int body_check_json(struct body_reader *reader, const void *bytes, size_t size, bool padded,
                    struct err *err)
{
    int r = json_fast_check(reader->outer, bytes, size, padded, err);

    if (r == ERR_TOO_BIG) /* too deep: 413 would speak of bytes */
        err->code = ERR_RANGE;
    return r < 0 ? err_wrap(err, "body") : 0;
}
