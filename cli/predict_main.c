/* SPDX-License-Identifier: Apache-2.0 */

/*
 * headrace predict MODEL: asks a model and prints what it says.
 *
 *   (nothing)         a sync call: waits for the answer
 *   --stream          … and prints its pieces as they come
 *   --async           submits a job, prints its id and goes
 *   --async --wait    … waits for it and prints its result
 *   --async --stream  … follows it and prints its pieces as they come
 *
 * Standard output: the model's output. Standard error: the id and how it goes.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/input.h"
#include "cli/list.h"
#include "cli/predict_stream.h"
#include "cli/watch.h"

int predict_main(int argc, char **argv);

#define TIMEOUT_EXTRA_MS 5000 /* for the gateway to say itself that the time is over */

#define PREDICT_SETTINGS                                                                           \
    VERB_COMMON_SETTINGS                                                                           \
    SETTING_STRING(input, "", "model input: JSON, @FILE, or - for standard input")                 \
    SETTING_STRING(environment, "production", "environment of the model to ask")                   \
    SETTING_STRING(deployment, "", "deployment to ask instead of an environment")                  \
    SETTING_BOOL(async, false, "submit a job, print its id and go, instead of waiting")            \
    SETTING_STRING(run_at, "", "with --async: not before this time (2026-12-24T18:00:00Z)")        \
    SETTING_BOOL(wait, false, "with --async: wait for the result all the same")                    \
    SETTING_BOOL(stream, false, "print the pieces of the answer as they come")                     \
    SETTING_STRING(content_type, "", "media type of the input, which is sent as it is; JSON")      \
    SETTING_DURATION(timeout, "20m", "1s", "24h", "how long to wait for a sync answer")            \
    SETTING_BOOL(quiet, false, "say nothing on standard error while waiting")                      \
    SETTING_STRING(webhook, "", "URL that gets the result too")                                    \
    SETTING_STRING(idempotency_key, "", "key that makes sending twice harmless")                   \
    SETTING_STRING(tags, "", "words for filters and kill switches, by comma")                      \
    SETTING_INT(priority, 0, 0, 2, "lower runs first")                                             \
    SETTING_INT(max_time_in_queue_seconds, 600, 10, 259200, "not started by then: EXPIRED")

struct predict_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
    PREDICT_SETTINGS
#include "base/settings_end.def"
};

static const struct setting predict_rows[] = {
#define SETTINGS_ROWS struct predict_settings
#include "base/settings_rows.def"
    PREDICT_SETTINGS
#include "base/settings_end.def"
};

static char *model_path(const struct predict_settings *settings, const char *model)
{
    const char *verb = settings->async ? "async_predict" : "predict";

    if (*settings->deployment != '\0')
        return path_make("/model/%/deployment/%/%", model, settings->deployment, verb);
    if (strcmp(settings->environment, "production") == 0)
        return path_make("/model/%/production/%", model, verb);
    return path_make("/model/%/environments/%/%", model, settings->environment, verb);
}

static size_t common_headers(const struct predict_settings *settings, struct http_header headers[2])
{
    size_t count = 0;

    if (*settings->idempotency_key != '\0')
        headers[count++] = (struct http_header){.name = "Idempotency-Key",
                                                .value = settings->idempotency_key};
    if (*settings->tags != '\0')
        headers[count++] = (struct http_header){.name = "X-Headrace-Tags", .value = settings->tags};
    return count;
}

static int submit(const struct client *client, const struct predict_settings *settings,
                  const char *model, json_t **ret_answer, struct err *err)
{
    OWNED(client_json_free) json_t *body = NULL;
    OWNED(mem_free) char *path = model_path(settings, model);
    struct http_header headers[2];
    struct client_call call = {.method = "POST", .path = path};
    json_t *input = NULL;
    int status, r;

    r = input_load(settings->input, &input, err);
    if (r < 0)
        return r;
    body = json_pack("{s:o, s:I, s:I}", "model_input", input, "priority",
                     (json_int_t)settings->priority, "max_time_in_queue_seconds",
                     (json_int_t)settings->max_time_in_queue_seconds);
    if (*settings->webhook != '\0')
        (void)json_object_set_new(body, "webhook_endpoint", json_string(settings->webhook));
    if (settings->stream)
        (void)json_object_set_new(body, "stream", json_true());
    if (*settings->run_at != '\0')
        (void)json_object_set_new(body, "run_at", json_string(settings->run_at));
    call.send.headers = headers;
    call.send.header_count = common_headers(settings, headers);
    call.body = body;
    return client_exchange(client, &call, &status, ret_answer, err);
}

static bool job_succeeded(const json_t *status)
{
    const char *state = json_string_value(json_object_get(status, "status"));

    return state != NULL &&
           (strcmp(state, "SUCCEEDED") == 0 || strcmp(state, "WEBHOOK_FAILED") == 0);
}

/* Prints the result of a job that is final; its exit code. */
static int print_result(const struct client *client, const char *id, const json_t *status,
                        bool json, struct err *err)
{
    const char *state = json_string_value(json_object_get(status, "status"));
    OWNED(buf_done) struct buf output = BUF_WITH_LIMIT(CLI_ANSWER_SIZE_MAX);
    OWNED(mem_free) char *path = path_make("/async_request/%/result", id);

    if (!job_succeeded(status)) {
        const json_t *why = json_array_get(json_object_get(status, "errors"), 0);
        const char *code = json_string_value(json_object_get(why, "code"));
        const char *text = json_string_value(json_object_get(why, "message"));

        if (json)
            table_print_json(stdout, status);
        (void)fprintf(stderr, "headrace predict: %s %s%s%s%s\n", id, state,
                      code != NULL ? ": " : "", code != NULL ? code : "",
                      text != NULL && *text != '\0' ? ": " : "");
        if (text != NULL && *text != '\0')
            (void)fprintf(stderr, "  %s\n", text);
        return CLI_EXIT_FAILED;
    }
    if (client_fetch(client, path, &output, err) < 0)
        return client_complain("predict", err);
    (void)fwrite(buf_text(&output), 1, output.size, stdout);
    (void)fputc('\n', stdout);
    return CLI_EXIT_OK;
}

/* ---- sync ---- */

static int print_answer(struct client_answer *answer, const struct predict_settings *settings)
{
    struct err err;

    if (answer->status < 400) {
        (void)fwrite(buf_text(&answer->body), 1, answer->body.size, stdout);
        if (!settings->stream && strncmp(answer->type, "application/json", 16) == 0)
            (void)fputc('\n', stdout);
        return CLI_EXIT_OK;
    }
    if (settings->json)
        (void)printf("%s\n", buf_text(&answer->body));
    (void)client_answer_refusal(answer, &err);
    (void)client_complain("predict", &err);
    return answer->of_model || answer->status == 502 || answer->status == 504 ? CLI_EXIT_FAILED
                                                                              : CLI_EXIT_REFUSED;
}

/* What the call sends: JSON that was looked at, or bytes of a type of their own. */
static int sync_input(const struct predict_settings *settings, struct buf *bytes,
                      struct client_call *call, struct err *err)
{
    int r;

    if (*settings->content_type == '\0')
        return input_load(settings->input, &call->body, err);
    r = input_read(settings->input, bytes, err);
    call->send.body = buf_text(bytes);
    call->send.body_size = bytes->size;
    return r;
}

static int predict_sync(const struct client *client, const struct predict_settings *settings,
                        const char *model)
{
    OWNED(client_answer_done) struct client_answer answer = {.status = 0};
    OWNED(buf_done) struct buf bytes = BUF_WITH_LIMIT(INPUT_SIZE_MAX);
    OWNED(mem_free) char *path = model_path(settings, model);
    char timeout[24];
    struct http_header headers[6];
    struct client_call call = {.method = "POST", .path = path};
    size_t count = common_headers(settings, headers);
    struct err err;
    int r = sync_input(settings, &bytes, &call, &err);

    (void)snprintf(timeout, sizeof(timeout), "%llu", (unsigned long long)settings->timeout_ms);
    headers[count++] = (struct http_header){"Request-Timeout-Ms", timeout};
    if (!settings->stream)
        headers[count++] = (struct http_header){"Accept", "application/json"};
    if (*settings->content_type != '\0')
        headers[count++] = (struct http_header){"Content-Type", settings->content_type};
    call.send.headers = headers;
    call.send.header_count = count;
    call.send.timeout_ms = (uint32_t)settings->timeout_ms + TIMEOUT_EXTRA_MS;
    if (r == 0)
        r = client_stream(client, &call, settings->stream ? stream_print : NULL, NULL, &answer,
                          &err);
    json_decref(call.body);
    if (r < 0)
        return client_complain("predict", &err);
    if (!settings->quiet && answer.request_id[0] != '\0')
        (void)fprintf(stderr, "request %s\n", answer.request_id);
    return print_answer(&answer, settings);
}

static int check_settings(const struct predict_settings *settings)
{
    struct err err;

    if (settings->async && *settings->content_type != '\0')
        (void)err_set(&err, ERR_USAGE,
                      "--content-type does not go with --async, whose input is JSON");
    else if (!settings->async && *settings->webhook != '\0')
        (void)err_set(&err, ERR_USAGE, "--webhook goes with --async");
    else if (!settings->async && *settings->run_at != '\0')
        (void)err_set(&err, ERR_USAGE, "--run-at goes with --async");
    else if (!settings->async && settings->wait)
        (void)err_set(&err, ERR_USAGE, "--wait goes with --async");
    else
        return CLI_EXIT_OK;
    return client_complain("predict", &err);
}

static int predict_run(const struct client *client, const void *values, char **operands,
                       int operand_count)
{
    const struct predict_settings *settings = values;
    OWNED(client_json_free) json_t *answer = NULL;
    OWNED(client_json_free) json_t *status = NULL;
    const char *id;
    struct err err;

    if (!verb_operands("one model", operand_count, 1, 1))
        return CLI_EXIT_USAGE;
    if (check_settings(settings) != CLI_EXIT_OK)
        return CLI_EXIT_USAGE;
    if (!settings->async)
        return predict_sync(client, settings, operands[0]);
    if (submit(client, settings, operands[0], &answer, &err) < 0)
        return client_complain("predict", &err);
    id = json_string_value(json_object_get(answer, "request_id"));
    if (id == NULL)
        return CLI_EXIT_REFUSED;
    if (!settings->wait && !settings->stream) {
        if (settings->json)
            table_print_json(stdout, answer);
        else
            (void)printf("%s\n", id);
        return CLI_EXIT_OK;
    }
    if (!settings->quiet)
        (void)fprintf(stderr, "request %s\n", id);
    if (settings->stream && stream_follow(client, id, settings->quiet, &status, &err) < 0)
        return client_complain("predict", &err);
    if (settings->stream && job_succeeded(status))
        return CLI_EXIT_OK;
    if (status == NULL && watch_job(client, id, settings->quiet, &status, &err) < 0)
        return client_complain("predict", &err);
    return print_result(client, id, status, settings->json, &err);
}

int predict_main(int argc, char **argv)
{
    static const struct verb_action actions[] = {
        {NULL, "MODEL", "Runs a model on one input and prints what it says.", predict_rows,
         COUNT_OF(predict_rows), sizeof(struct predict_settings), predict_run},
    };
    static const struct verb verb = {"predict", "", actions, COUNT_OF(actions)};

    return verb_main(&verb, argc, argv);
}
