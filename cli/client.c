/* SPDX-License-Identifier: Apache-2.0 */

#include "cli/client.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/loop.h"

#define CLIENT_FILE_SIZE_MAX (64u * 1024)
#define CLIENT_PATH_MAX 4096
#define CLIENT_LOCAL_FILE ".headrace/client.json"
#define CLIENT_HOME_FILE ".config/headrace/client.json"
#define CALL_TIMEOUT_MS (30u * 1000)

void client_json_free(json_t **json_p)
{
    json_decref(*json_p);
    *json_p = NULL;
}

void client_done(struct client *client)
{
    free(client->url);
    free(client->api_key);
    free(client->postgres);
    *client = (struct client){0};
}

/* ---- the client file ---- */

/* Looks for the file here and in every parent; a heap path, or NULL. */
static char *client_find_local(void)
{
    char folder[CLIENT_PATH_MAX];

    if (getcwd(folder, sizeof(folder)) == NULL)
        return NULL;
    for (;;) {
        OWNED(mem_free)
        char *path = xasprintf("%s/%s", strcmp(folder, "/") == 0 ? "" : folder, CLIENT_LOCAL_FILE);
        char *slash;

        if (access(path, F_OK) == 0)
            return TAKE(path);
        slash = strrchr(folder, '/');
        if (slash == NULL || strcmp(folder, "/") == 0)
            return NULL;
        slash[slash == folder ? 1 : 0] = '\0';
    }
}

static char *client_find_file(const char *file)
{
    const char *named = file != NULL ? file : getenv("HEADRACE_CLIENT");
    const char *home = getenv("HOME");
    char *path;

    if (named != NULL && *named != '\0')
        return xstrdup(named);
    path = client_find_local();
    if (path != NULL || home == NULL)
        return path;
    path = xasprintf("%s/%s", home, CLIENT_HOME_FILE);
    if (access(path, F_OK) != 0)
        mem_free(&path);
    return path;
}

static int client_check_private(const char *path, struct err *err)
{
    struct stat info;

    if (stat(path, &info) != 0)
        return err_set_errno(err, ERR_USAGE, "client file '%s'", path);
    if ((info.st_mode & 077) != 0)
        return err_set(err, ERR_USAGE,
                       "client file '%s' holds a key and has mode %03o: chmod 600 it", path,
                       (unsigned)info.st_mode & 0777u);
    if (info.st_size > (off_t)CLIENT_FILE_SIZE_MAX)
        return err_set(err, ERR_USAGE, "client file '%s' is over %u bytes", path,
                       CLIENT_FILE_SIZE_MAX);
    return 0;
}

/* Replaces *value by the file's text of that name, unless something named it before. */
static void client_fill(char **value, const json_t *json, const char *name)
{
    const char *text = json_string_value(json_object_get(json, name));

    if (*value == NULL && text != NULL)
        *value = xstrdup(text);
}

static int client_read_file(const char *path, struct client *client, struct err *err)
{
    OWNED(client_json_free) json_t *json = NULL;
    json_error_t where;
    int r;

    r = client_check_private(path, err);
    if (r < 0)
        return r;
    json = json_load_file(path, JSON_REJECT_DUPLICATES, &where);
    if (json == NULL)
        return err_set(err, ERR_USAGE, "client file '%s', line %d: %s", path, where.line,
                       where.text);
    client_fill(&client->url, json, "url");
    client_fill(&client->api_key, json, "api_key");
    client_fill(&client->postgres, json, "postgres");
    return 0;
}

static char *first_set(const char *flag, const char *variable)
{
    const char *value = flag != NULL && *flag != '\0' ? flag : getenv(variable);

    return value != NULL && *value != '\0' ? xstrdup(value) : NULL;
}

int client_open(const char *url, const char *api_key, const char *file, struct client *ret_client,
                struct err *err)
{
    OWNED(client_done)
    struct client client = {
        .url = first_set(url, "HEADRACE_URL"),
        .api_key = first_set(api_key, "HEADRACE_API_KEY"),
        .postgres = first_set(NULL, "HEADRACE_POSTGRES"),
    };
    OWNED(mem_free) char *path = client_find_file(file);
    size_t size;
    int r;

    if (path != NULL) {
        r = client_read_file(path, &client, err);
        if (r < 0)
            return r;
    }
    if (client.url == NULL)
        return err_set(err, ERR_USAGE,
                       "no gateway is known: --url, HEADRACE_URL, or a client file in "
                       "./.headrace/ (written by 'headrace dev') or ~/.config/headrace/");
    size = strlen(client.url);
    while (size > 0 && client.url[size - 1] == '/')
        client.url[--size] = '\0';
    if (client.api_key == NULL)
        client.api_key = xstrdup("");
    if (client.postgres == NULL)
        client.postgres = xstrdup("");
    *ret_client = client;
    client = (struct client){0};
    return 0;
}

/* ---- one exchange ---- */

struct exchange {
    enum http_outcome outcome;
    int status;
    char error[ERR_TEXT_SIZE];
    struct buf body;
};

static void exchange_done(struct exchange *exchange)
{
    buf_done(&exchange->body);
}

static void on_result(const struct http_result *result, void *opaque)
{
    struct exchange *exchange = opaque;

    exchange->outcome = result->outcome;
    exchange->status = result->status;
    mem_copy_text(exchange->error, result->error);
    buf_move(&exchange->body, result->body);
}

static int code_of_status(int status)
{
    switch (status) {
    case 401:
        return ERR_UNAUTHORIZED;
    case 403:
        return ERR_FORBIDDEN;
    case 404:
        return ERR_NOT_FOUND;
    case 409:
        return ERR_CONFLICT;
    case 413:
        return ERR_TOO_BIG;
    case 422:
        return ERR_MISMATCH;
    case 429:
        return ERR_LIMIT;
    default:
        return status >= 500 ? ERR_UNAVAILABLE : ERR_MALFORMED;
    }
}

/* The gateway's words: its "error", or the message in it, and "detail" when there is one. */
static int refusal(const struct exchange *exchange, const json_t *json, struct err *err)
{
    const json_t *error = json_object_get(json, "error");
    const char *text = json_string_value(json_is_object(error) ? json_object_get(error, "message")
                                                               : error);
    const char *detail = json_string_value(json_object_get(json, "detail"));

    return err_set(err, code_of_status(exchange->status), "%s%s%s (HTTP %d)",
                   text != NULL ? text : "the gateway refused", detail != NULL ? ": " : "",
                   detail != NULL ? detail : "", exchange->status);
}

/* A call with address and key. */
struct outgoing {
    char *url, *key, *text;
    struct http_header headers[8];
    struct http_send send;
};

static void outgoing_done(struct outgoing *outgoing)
{
    free(outgoing->url);
    free(outgoing->key);
    free(outgoing->text);
}

static void outgoing_make(const struct client *client, const struct client_call *call,
                          struct outgoing *to)
{
    size_t count = 0;

    to->url = xasprintf("%s%s", client->url, call->path);
    to->key = xasprintf("Bearer %s", client->api_key);
    to->text = call->body != NULL ? json_dumps(call->body, JSON_COMPACT | JSON_ENCODE_ANY) : NULL;
    to->headers[count++] = (struct http_header){.name = "Authorization", .value = to->key};
    to->send = call->send;
    for (size_t i = 0; i < call->send.header_count && count + 1 < COUNT_OF(to->headers); i++)
        to->headers[count++] = call->send.headers[i];
    if (to->text != NULL) {
        to->headers[count++] = (struct http_header){.name = "Content-Type",
                                                    .value = "application/json"};
        to->send.body = to->text;
        to->send.body_size = strlen(to->text);
    }
    to->send.method = call->method;
    to->send.url = to->url;
    to->send.headers = to->headers;
    to->send.header_count = count;
    to->send.answer_size_max = CLI_ANSWER_SIZE_MAX;
    to->send.timeout_ms = call->send.timeout_ms > 0 ? call->send.timeout_ms : CALL_TIMEOUT_MS;
}

/* The answer's bytes are in *exchange. */
static int exchange_run(const struct client *client, const struct client_call *call,
                        struct exchange *exchange, struct err *err)
{
    static const struct http_client_options options = {.connection_count_max = 1};
    OWNED(outgoing_done) struct outgoing outgoing = {.url = NULL};
    int r;

    outgoing_make(client, call, &outgoing);
    outgoing.send.on_done = on_result;
    outgoing.send.opaque = exchange;
    r = http_client_call(&options, &outgoing.send, err);
    if (r < 0)
        return r;
    if (exchange->outcome != HTTP_OUTCOME_ANSWERED)
        return err_set(err, ERR_UNAVAILABLE, "%s: %s", client->url, exchange->error);
    return 0;
}

int client_exchange(const struct client *client, const struct client_call *call, int *ret_status,
                    json_t **ret_json, struct err *err)
{
    OWNED(exchange_done) struct exchange exchange = {.body = BUF_WITH_LIMIT(CLI_ANSWER_SIZE_MAX)};
    OWNED(client_json_free) json_t *json = NULL;
    int r;

    r = exchange_run(client, call, &exchange, err);
    if (r < 0)
        return r;
    *ret_status = exchange.status;
    if (exchange.body.size > 0)
        json = json_loadb(buf_text(&exchange.body), exchange.body.size, JSON_DECODE_ANY, NULL);
    if (exchange.status >= 400)
        return refusal(&exchange, json, err);
    *ret_json = TAKE(json);
    return 0;
}

int client_fetch(const struct client *client, const char *path, struct buf *ret_body,
                 struct err *err)
{
    OWNED(exchange_done) struct exchange exchange = {.body = BUF_WITH_LIMIT(CLI_ANSWER_SIZE_MAX)};
    const struct client_call call = {.method = "GET", .path = path};
    OWNED(client_json_free) json_t *json = NULL;
    int r;

    r = exchange_run(client, &call, &exchange, err);
    if (r < 0)
        return r;
    if (exchange.status >= 400) {
        json = json_loadb(buf_text(&exchange.body), exchange.body.size, 0, NULL);
        return refusal(&exchange, json, err);
    }
    buf_move(ret_body, &exchange.body);
    return 0;
}

/* ---- answers that come piece by piece ---- */

struct streaming {
    struct loop *loop;
    struct http_transfer *transfer;
    struct client_answer *answer;
    client_bytes_call *on_bytes;
    void *opaque;
    enum http_outcome outcome;
    char error[ERR_TEXT_SIZE];
};

void client_answer_done(struct client_answer *answer)
{
    buf_done(&answer->body);
}

static bool streaming_receive(const void *bytes, size_t size, void *opaque)
{
    struct streaming *streaming = opaque;
    struct err err;

    if (streaming->on_bytes != NULL && http_transfer_status(streaming->transfer) < 400)
        return streaming->on_bytes(bytes, size, streaming->opaque);
    buf_append(&streaming->answer->body, bytes, size);
    return buf_check(&streaming->answer->body, "an answer", &err) == 0;
}

static void header_copy(const struct http_result *result, const char *name, char *to, size_t size)
{
    const char *value = http_transfer_header(result->transfer, name);

    (void)snprintf(to, size, "%s", value == NULL ? "" : value);
}

static void streaming_done(const struct http_result *result, void *opaque)
{
    struct streaming *streaming = opaque;
    struct client_answer *answer = streaming->answer;
    char source[16];

    streaming->outcome = result->outcome;
    mem_copy_text(streaming->error, result->error);
    answer->status = result->status;
    header_copy(result, "X-Baseten-Request-Id", answer->request_id, sizeof(answer->request_id));
    header_copy(result, "Content-Type", answer->type, sizeof(answer->type));
    header_copy(result, "X-BASETEN-ERROR-CODE", source, sizeof(source));
    answer->of_model = source[0] != '\0';
    loop_stop(streaming->loop);
}

static int streaming_run(struct streaming *streaming, struct http_send *send, struct err *err)
{
    static const struct http_client_options options = {.connection_count_max = 1};
    OWNED(loop_close) struct loop *loop = NULL;
    OWNED(http_client_close) struct http_client *http = NULL;
    int r = loop_open(&loop, err);

    if (r == 0)
        r = http_client_open(loop, &options, &http, err);
    if (r < 0)
        return r;
    streaming->loop = loop;
    send->on_receive = streaming_receive;
    send->on_done = streaming_done;
    send->opaque = streaming;
    r = http_client_send(http, send, &streaming->transfer, err);
    if (r == 0)
        loop_run(loop);
    return r;
}

int client_stream(const struct client *client, const struct client_call *call,
                  client_bytes_call *on_bytes, void *opaque, struct client_answer *ret_answer,
                  struct err *err)
{
    OWNED(outgoing_done) struct outgoing outgoing = {.url = NULL};
    struct streaming streaming = {.answer = ret_answer, .on_bytes = on_bytes, .opaque = opaque};
    int r;

    *ret_answer = (struct client_answer){.body = BUF_WITH_LIMIT(CLI_ANSWER_SIZE_MAX)};
    outgoing_make(client, call, &outgoing);
    r = streaming_run(&streaming, &outgoing.send, err);
    if (r == 0 && streaming.outcome == HTTP_OUTCOME_CANCELED)
        r = err_set(err, ERR_CANCELED, "the answer was not read to its end");
    else if (r == 0 && streaming.outcome != HTTP_OUTCOME_ANSWERED)
        r = err_set(err, ERR_UNAVAILABLE, "%s: %s", client->url, streaming.error);
    return r;
}

int client_answer_refusal(struct client_answer *answer, struct err *err)
{
    OWNED(client_json_free)
    json_t *json = json_loadb(buf_text(&answer->body), answer->body.size, 0, NULL);
    const struct exchange exchange = {.status = answer->status};

    return refusal(&exchange, json, err);
}

void client_append_escaped(struct buf *path, const char *text)
{
    static const char plain[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
                                "0123456789-._~";

    for (; *text != '\0'; text++) {
        if (strchr(plain, *text) != NULL)
            buf_append_byte(path, (uint8_t)*text);
        else
            buf_printf(path, "%%%02X", (unsigned)(unsigned char)*text);
    }
}

int client_complain(const char *verb, const struct err *err)
{
    (void)fprintf(stderr, "headrace %s: %s\n", verb, err->text);
    return err->code == ERR_USAGE ? CLI_EXIT_USAGE : CLI_EXIT_REFUSED;
}
