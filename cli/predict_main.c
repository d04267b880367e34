/* SPDX-License-Identifier: Apache-2.0 */

/*
 * headrace predict MODEL: submits one job, waits for it and prints what the model said.
 *
 * Standard output: the model's output. Standard error: the id and how it goes. --async prints the
 * id and goes; --async --wait is the same as neither.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/list.h"
#include "cli/watch.h"

int predict_main(int argc, char **argv);

#define INPUT_SIZE_MAX (100u << 20)

#define PREDICT_SETTINGS                                                                           \
    VERB_COMMON_SETTINGS                                                                           \
    SETTING_STRING(input, "", "model input: JSON, @FILE, or - for standard input")                 \
    SETTING_STRING(environment, "production", "environment of the model to ask")                   \
    SETTING_STRING(deployment, "", "deployment to ask instead of an environment")                  \
    SETTING_BOOL(async, false, "print the request id and go, instead of waiting")                  \
    SETTING_BOOL(wait, false, "with --async: wait for the result all the same")                    \
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

static int input_read_file(const char *path, struct buf *text, struct err *err)
{
    FILE *file = strcmp(path, "-") == 0 ? stdin : fopen(path, "rb");
    char part[65536];
    size_t n;
    bool bad;

    if (file == NULL)
        return err_set_errno(err, ERR_USAGE, "input file '%s'", path);
    while ((n = fread(part, 1, sizeof(part), file)) > 0)
        buf_append(text, part, n);
    bad = ferror(file) != 0;
    if (file != stdin)
        (void)fclose(file);
    if (bad)
        return err_set(err, ERR_IO, "input file '%s' cannot be read", path);
    return buf_check(text, "input", err);
}

/* The input as JSON; what the text is wrong about is said with its line and column. */
static int input_load(const char *input, json_t **ret_json, struct err *err)
{
    OWNED(buf_done) struct buf text = BUF_WITH_LIMIT(INPUT_SIZE_MAX);
    json_error_t where;
    json_t *json;
    int r = 0;

    if (*input == '\0')
        return err_set(err, ERR_USAGE, "--input is missing: JSON, @FILE, or - for standard input");
    if (strcmp(input, "-") == 0 || *input == '@')
        r = input_read_file(*input == '@' ? input + 1 : input, &text, err);
    else
        buf_append_text(&text, input);
    if (r < 0)
        return r;
    json = json_loadb(buf_text(&text), text.size, JSON_REJECT_DUPLICATES, &where);
    if (json == NULL)
        return err_set(err, ERR_USAGE, "--input is no JSON: line %d, column %d: %s", where.line,
                       where.column, where.text);
    *ret_json = json;
    return 0;
}

static char *submit_path(const struct predict_settings *settings, const char *model)
{
    if (*settings->deployment != '\0')
        return path_make("/model/%/deployment/%/async_predict", model, settings->deployment);
    if (strcmp(settings->environment, "production") == 0)
        return path_make("/model/%/production/async_predict", model);
    return path_make("/model/%/environments/%/async_predict", model, settings->environment);
}

static int submit(const struct client *client, const struct predict_settings *settings,
                  const char *model, json_t **ret_answer, struct err *err)
{
    OWNED(client_json_free) json_t *body = NULL;
    OWNED(mem_free) char *path = submit_path(settings, model);
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
    call.send.headers = headers;
    if (*settings->idempotency_key != '\0')
        headers[call.send.header_count++] = (struct http_header){
            .name = "Idempotency-Key", .value = settings->idempotency_key};
    if (*settings->tags != '\0')
        headers[call.send.header_count++] = (struct http_header){.name = "X-Headrace-Tags",
                                                                 .value = settings->tags};
    call.body = body;
    return client_exchange(client, &call, &status, ret_answer, err);
}

/* Prints the result of a job that is final; its exit code. */
static int print_result(const struct client *client, const char *id, const json_t *status,
                        bool json, struct err *err)
{
    const char *state = json_string_value(json_object_get(status, "status"));
    OWNED(buf_done) struct buf output = BUF_WITH_LIMIT(CLI_ANSWER_SIZE_MAX);
    OWNED(mem_free) char *path = path_make("/async_request/%/result", id);

    if (strcmp(state, "SUCCEEDED") != 0 && strcmp(state, "WEBHOOK_FAILED") != 0) {
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
    if (submit(client, settings, operands[0], &answer, &err) < 0)
        return client_complain("predict", &err);
    id = json_string_value(json_object_get(answer, "request_id"));
    if (id == NULL)
        return CLI_EXIT_REFUSED;
    if (settings->async && !settings->wait) {
        if (settings->json)
            table_print_json(stdout, answer);
        else
            (void)printf("%s\n", id);
        return CLI_EXIT_OK;
    }
    if (!settings->quiet)
        (void)fprintf(stderr, "request %s\n", id);
    if (watch_job(client, id, settings->quiet, &status, &err) < 0)
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
