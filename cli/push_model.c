/* SPDX-License-Identifier: Apache-2.0 */

#include "cli/push_model.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/clock.h"
#include "cli/list.h"
#include "cli/push_archive.h"

#define UPLOAD_TIMEOUT_MS (3600u * 1000)
#define READY_POLL_MS 250
#define HEADERS_MAX 4

struct upload {
    uint64_t size;
    bool terminal;
    unsigned percent_shown;
};

static void on_progress(uint64_t sent_size, void *opaque)
{
    struct upload *upload = opaque;
    unsigned percent = (unsigned)(upload->size > 0 ? sent_size * 100 / upload->size : 100);

    if (!upload->terminal || percent == upload->percent_shown)
        return;
    upload->percent_shown = percent;
    (void)fprintf(stderr, "\r\033[Kuploading %u %% of %.1f MB%s", percent,
                  (double)upload->size / 1e6, percent == 100 ? "\n" : "");
}

int push_archive_send(const struct client *client, const char *path,
                      const struct http_header *headers, size_t header_count,
                      const struct push_archive *archive, json_t **ret_answer, struct err *err)
{
    OWNED(mem_free) char *digest = xasprintf("sha-256=%s", archive->digest);
    struct upload upload = {archive->size, isatty(STDERR_FILENO) == 1, 101};
    struct http_header all[HEADERS_MAX] = {
        {.name = "Content-Type", .value = "application/zstd"},
        {.name = "X-Headrace-Digest", .value = digest},
    };
    const struct client_call call = {
        .method = "POST",
        .path = path,
        .send =
            {
                .body_fd = archive->fd,
                .body_size = archive->size,
                .headers = all,
                .header_count = 2 + header_count,
                .on_progress = on_progress,
                .opaque = &upload,
                .timeout_ms = UPLOAD_TIMEOUT_MS,
            },
    };
    int status;

    assert(header_count + 2 <= HEADERS_MAX);
    for (size_t i = 0; i < header_count; i++)
        all[2 + i] = headers[i];
    return client_exchange(client, &call, &status, ret_answer, err);
}

static char *push_path(const struct push_model *push)
{
    const bool chosen = *push->environment != '\0', placed = *push->device != '\0';

    if (chosen && placed)
        return path_make("/v1/models/%/deployments?environment=%&device=%", push->name,
                         push->environment, push->device);
    if (chosen)
        return path_make("/v1/models/%/deployments?environment=%", push->name, push->environment);
    if (placed)
        return path_make("/v1/models/%/deployments?device=%", push->name, push->device);
    return path_make("/v1/models/%/deployments", push->name);
}

static int upload_archive(const struct client *client, const struct push_model *push,
                          const struct push_archive *archive, json_t **ret_answer, struct err *err)
{
    OWNED(mem_free) char *path = push_path(push);
    struct http_header headers[2];
    size_t count = 0;

    if (*push->deployment_name != '\0')
        headers[count++] = (struct http_header){"X-Headrace-Deployment-Name",
                                                push->deployment_name};
    if (push->trained != NULL)
        headers[count++] = (struct http_header){"X-Headrace-Training-Checkpoint", push->trained};
    return push_archive_send(client, path, headers, count, archive, ret_answer, err);
}

int push_model_send(const struct client *client, const struct push_model *push, char **ret_id,
                    struct err *err)
{
    OWNED(client_json_free) json_t *answer = NULL;
    struct push_archive archive;
    const char *id;
    const struct push_sources sources = {.externals = {push->external},
                                         .external_count = push->external != NULL};
    int r = push_archive_make_of(push->folder, &sources, &archive, err);

    if (r < 0)
        return r;
    (void)fprintf(stderr, "%llu files, %.1f MB, packed %.1f MB, sha-256 %.12s; %llu left out\n",
                  (unsigned long long)archive.file_count, (double)archive.content_size / 1e6,
                  (double)archive.size / 1e6, archive.digest,
                  (unsigned long long)archive.left_out_count);
    r = upload_archive(client, push, &archive, &answer, err);
    (void)close(archive.fd);
    if (r < 0)
        return r;
    id = json_string_value(json_object_get(answer, "id"));
    if (id == NULL)
        return err_set(err, ERR_MALFORMED, "the gateway's answer has no id");
    *ret_id = xstrdup(id);
    return 0;
}

static bool status_settled(const char *status)
{
    static const char *const waiting[] = {"BUILDING", "DEPLOYING", "LOADING_MODEL", "UPDATING",
                                          "WAKING_UP"};

    for (size_t i = 0; i < COUNT_OF(waiting); i++) {
        if (strcmp(status, waiting[i]) == 0)
            return false;
    }
    return true;
}

int push_model_wait(const struct client *client, const char *model, const char *deployment,
                    uint64_t timeout_ms, json_t **ret_state, struct err *err)
{
    OWNED(mem_free) char *path = path_make("/v1/models/%/deployments/%", model, deployment);
    const struct client_call call = {.method = "GET", .path = path};
    uint64_t give_up_ms = clock_mono_ms() + timeout_ms;
    char last[32] = "";

    for (;;) {
        OWNED(client_json_free) json_t *state = NULL;
        const char *status;
        int http, r;

        r = client_exchange(client, &call, &http, &state, err);
        if (r < 0)
            return r;
        status = json_string_value(json_object_get(state, "status"));
        if (status == NULL)
            return err_set(err, ERR_MALFORMED, "the gateway's answer has no status");
        if (strcmp(last, status) != 0)
            (void)fprintf(stderr, "%s\n", status);
        mem_copy_text(last, status);
        if (status_settled(status)) {
            *ret_state = TAKE(state);
            return 0;
        }
        if (clock_mono_ms() > give_up_ms)
            return err_set(err, ERR_TIMEOUT, "not ready after %llu ms; headrace logs %s says more",
                           (unsigned long long)timeout_ms, model);
        (void)poll(NULL, 0, READY_POLL_MS);
    }
}

static const char *member(const json_t *state, const char *key)
{
    const char *text = json_string_value(json_object_get(state, key));

    return text != NULL ? text : "-";
}

static void print_ready(const char *model, const json_t *state)
{
    bool chain = strcmp(member(state, "engine"), "chain") == 0;
    const char *environment = json_string_value(json_object_get(state, "environment"));
    const char *id = member(state, "id");

    (void)printf("%s is ready: %s (%s), engine %s on %s, %lld at a time\n"
                 "  headrace %s %s --%s=%s --input=…\n",
                 model, member(state, "name"), id, member(state, "engine"), member(state, "device"),
                 (long long)json_integer_value(json_object_get(state, "slot_count")),
                 chain && environment != NULL ? "chains run" : "predict", model,
                 environment != NULL ? "environment" : "deployment",
                 environment != NULL ? environment : id);
    if (environment == NULL)
        (void)printf("  headrace deployments promote %s %s     # no environment points at it yet\n",
                     model, id);
}

int push_model_report(const char *verb, const char *model, const json_t *state, bool json)
{
    const char *status = json_string_value(json_object_get(state, "status"));
    const char *why = json_string_value(json_object_get(state, "error"));
    bool ready = strcmp(status, "ACTIVE") == 0;

    if (json)
        table_print_json(stdout, state);
    else if (ready)
        print_ready(model, state);
    if (ready)
        return CLI_EXIT_OK;
    (void)fprintf(stderr, "headrace %s: %s%s%s\n", verb, status, why != NULL ? ": " : "",
                  why != NULL ? why : "");
    return CLI_EXIT_FAILED;
}
