/* SPDX-License-Identifier: Apache-2.0 */

/* headrace tail: a line for each job as it ends, until Ctrl-C. */

#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "cli/list.h"

int tail_main(int argc, char **argv);

#define PATH_SIZE_MAX 65536
#define POLL_MS 300

#define TAIL_SETTINGS                                                                              \
    VERB_COMMON_SETTINGS                                                                           \
    SETTING_STRING(tenant, "",                                                                     \
                   "jobs of this tenant; only an operator may say another one than its own")       \
    SETTING_STRING(model, "", "only of this model, by id or name")                                 \
    SETTING_STRING(status, "", "only SUCCEEDED, FAILED, EXPIRED or CANCELED")                      \
    SETTING_STRING(tag, "", "only with this tag")                                                  \
    SETTING_INT(count, 0, 0, 1000000000, "stop after so many; 0: at Ctrl-C")

struct tail_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
    TAIL_SETTINGS
#include "base/settings_end.def"
};

static const struct setting tail_rows[] = {
#define SETTINGS_ROWS struct tail_settings
#include "base/settings_rows.def"
    TAIL_SETTINGS
#include "base/settings_end.def"
};

static const char *text_of(const json_t *event, const char *name)
{
    const char *text = json_string_value(json_object_get(event, name));

    return text != NULL ? text : "";
}

static void event_print(const json_t *event)
{
    const char *class = text_of(event, "error_class"), *tags = text_of(event, "tags");
    long long attempts = (long long)json_integer_value(json_object_get(event, "attempts"));

    (void)printf("%s %-9s %s %s%s%s attempts=%lld", text_of(event, "ended_at"),
                 text_of(event, "status"), text_of(event, "request_id"),
                 text_of(event, "model_name"), *text_of(event, "environment") != '\0' ? "/" : "",
                 text_of(event, "environment"), attempts);
    if (*tags != '\0')
        (void)printf(" tags=%s", tags);
    if (*class != '\0')
        (void)printf(" %s: %s", class, text_of(event, "error_message"));
    (void)putchar('\n');
}

/* Prints what there is and returns the next cursor, the caller's to free; NULL: it failed. */
static char *tail_step(const struct client *client, const struct tail_settings *settings,
                       char *path, int64_t *shown, size_t *ret_events, struct err *err)
{
    OWNED(client_json_free) json_t *answer = NULL;
    const struct client_call call = {.method = "GET", .path = path};
    const json_t *events;
    json_t *event;
    size_t i;
    int status;

    if (client_exchange(client, &call, &status, &answer, err) < 0)
        return NULL;
    events = json_object_get(answer, "events");
    *ret_events = json_array_size(events);
    json_array_foreach(events, i, event)
    {
        if (settings->count > 0 && *shown == settings->count)
            break;
        (*shown)++;
        if (settings->json)
            (void)(json_dumpf(event, stdout, JSON_COMPACT), putchar('\n'));
        else
            event_print(event);
    }
    (void)fflush(stdout);
    return xstrdup(text_of(answer, "cursor"));
}

static int tail_run(const struct client *client, const void *values, char **operands,
                    int operand_count)
{
    const struct tail_settings *settings = values;
    OWNED(mem_free) char *cursor = NULL;
    int64_t shown = 0;
    struct err err;

    (void)operands;
    if (!verb_operands("nothing more", operand_count, 0, 0))
        return CLI_EXIT_USAGE;
    while (settings->count == 0 || shown < settings->count) {
        OWNED(buf_done) struct buf path = BUF_WITH_LIMIT(PATH_SIZE_MAX);
        char *next;
        size_t events = 0;

        buf_append_text(&path, "/v1/tail?");
        path_append_field(&path, "cursor", cursor != NULL ? cursor : "");
        path_append_field(&path, "tenant", settings->tenant);
        path_append_field(&path, "model", settings->model);
        path_append_field(&path, "status", settings->status);
        path_append_field(&path, "tag", settings->tag);
        next = tail_step(client, settings, (char *)buf_text(&path), &shown, &events, &err);
        if (next == NULL)
            return client_complain("tail", &err);
        mem_free(&cursor);
        cursor = next;
        if (events == 0)
            (void)poll(NULL, 0, POLL_MS);
    }
    return CLI_EXIT_OK;
}

int tail_main(int argc, char **argv)
{
    static const struct verb_action actions[] = {
        {NULL, NULL, "A line for each job as it ends, until Ctrl-C.", tail_rows,
         COUNT_OF(tail_rows), sizeof(struct tail_settings), tail_run},
    };
    static const struct verb verb = {"tail", "Jobs as they end.", actions, COUNT_OF(actions)};

    return verb_main(&verb, argc, argv);
}
