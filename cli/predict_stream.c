/* SPDX-License-Identifier: Apache-2.0 */

#include "cli/predict_stream.h"

#include <poll.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/list.h"
#include "cli/sse.h"

#define TRIES_MAX 20 /* in a row without an event */
#define TRY_GAP_MS 500

bool stream_print(const void *bytes, size_t size, void *opaque)
{
    (void)opaque;
    return fwrite(bytes, 1, size, stdout) == size && fflush(stdout) == 0;
}

struct following {
    struct sse sse;
    bool quiet, failed;
    int tries;
    char last[SSE_ID_SIZE];
    json_t *status; /* of the final event */
};

static bool print_base64(const char *text)
{
    size_t size = strlen(text), used = 0;
    unsigned char *bytes = xmalloc(size + 1);
    bool good = sodium_base642bin(bytes, size, text, size, NULL, &used, NULL,
                                  sodium_base64_VARIANT_ORIGINAL) == 0 &&
                stream_print(bytes, used, NULL);

    free(bytes);
    return good;
}

static void print_piece(struct following *following, const json_t *data)
{
    const json_t *text = json_object_get(data, "text");
    const char *base64 = json_string_value(json_object_get(data, "base64"));

    if (json_is_string(text))
        following->failed |= !stream_print(json_string_value(text), json_string_length(text), NULL);
    else if (base64 != NULL)
        following->failed |= !print_base64(base64);
}

static void say(const struct following *following, const char *text)
{
    if (!following->quiet)
        (void)fprintf(stderr, "\n%s\n", text);
}

static void on_event(void *opaque, const char *event, const char *data)
{
    struct following *following = opaque;
    json_t *json = json_loads(data, JSON_DECODE_ANY | JSON_ALLOW_NUL, NULL);

    following->tries = 0;
    (void)snprintf(following->last, sizeof(following->last), "%s", following->sse.id);
    if (event[0] == '\0')
        print_piece(following, json);
    else if (strcmp(event, "reset") == 0)
        say(following, "the attempt was lost; another one begins anew");
    else if (strcmp(event, "gap") == 0)
        say(following, "pieces are missing here; the result has them");
    else if (strcmp(event, "final") == 0 && following->status == NULL)
        following->status = json_incref(json);
    json_decref(json);
}

static bool on_bytes(const void *bytes, size_t size, void *opaque)
{
    struct following *following = opaque;
    struct err err;

    return sse_feed(&following->sse, bytes, size, &err) == 0 && !following->failed;
}

/* One connection, up to its end. */
static int follow_once(const struct client *client, struct following *following, const char *path,
                       struct err *err)
{
    OWNED(client_answer_done) struct client_answer answer = {.status = 0};
    const struct http_header header = {"Last-Event-ID", following->last};
    const struct client_call call = {
        .method = "GET",
        .path = path,
        .send = {.headers = &header,
                 .header_count = following->last[0] != '\0',
                 .timeout_ms = UINT32_MAX},
    };
    int r;

    sse_init(&following->sse, on_event, following);
    r = client_stream(client, &call, on_bytes, following, &answer, err);
    sse_done(&following->sse);
    if (r == 0 && answer.status >= 400)
        r = client_answer_refusal(&answer, err);
    return r;
}

int stream_follow(const struct client *client, const char *id, bool quiet, json_t **ret_status,
                  struct err *err)
{
    OWNED(mem_free) char *path = path_make("/async_request/%/stream", id);
    struct following following = {.quiet = quiet};
    int r;

    for (;;) {
        r = follow_once(client, &following, path, err);
        if (following.failed)
            r = err_set(err, ERR_IO, "standard output cannot be written to");
        if (following.status != NULL || following.failed ||
            (r < 0 && err_class(r) == ERR_CLASS_REJECT) || following.tries == TRIES_MAX)
            break;
        following.tries++; /* the connection was lost: another gateway goes on behind it */
        (void)poll(NULL, 0, TRY_GAP_MS);
    }
    if (following.status == NULL)
        return r < 0 ? r : err_set(err, ERR_UNAVAILABLE, "the stream ended before its job");
    *ret_status = following.status;
    return 0;
}
