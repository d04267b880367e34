/* SPDX-License-Identifier: Apache-2.0 */

#include "cli/webhooks.h"

#include <stdio.h>
#include <string.h>

#include "cli/list.h"

#define PATH_SIZE_MAX 16384

#define DELIVERY_FILTERS                                                                           \
    VERB_COMMON_SETTINGS                                                                           \
    SETTING_STRING(model, "", "only of this model")                                                \
    SETTING_STRING(endpoint, "", "only to this URL; its query does not count")                     \
    SETTING_STRING(since, "", "only made at or after this time (RFC 3339, or a day)")

#define LS_SETTINGS                                                                                \
    DELIVERY_FILTERS                                                                               \
    SETTING_STRING(status, "", "only PENDING, SUCCEEDED, FAILED (given up) or CANCELED")           \
    SETTING_STRING(cursor, "", "the page behind this cursor")                                      \
    SETTING_INT(limit, 50, 1, 1000, "rows of a page")

#define REPLAY_SETTINGS                                                                            \
    DELIVERY_FILTERS                                                                               \
    SETTING_STRING(status, "FAILED", "only FAILED (given up), SUCCEEDED or PENDING")               \
    SETTING_INT(limit, 1000, 1, 10000, "at most so many, the oldest first")                        \
    SETTING_BOOL(yes, false, "send them; without it they are counted")

struct ls_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
    LS_SETTINGS
#include "base/settings_end.def"
};

static const struct setting ls_rows[] = {
#define SETTINGS_ROWS struct ls_settings
#include "base/settings_rows.def"
    LS_SETTINGS
#include "base/settings_end.def"
};

struct replay_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
    REPLAY_SETTINGS
#include "base/settings_end.def"
};

static const struct setting replay_rows[] = {
#define SETTINGS_ROWS struct replay_settings
#include "base/settings_rows.def"
    REPLAY_SETTINGS
#include "base/settings_end.def"
};

/* ---- ls ---- */

static int deliveries_ls(const struct client *client, const void *values, char **operands,
                         int operand_count)
{
    static const struct table_column columns[] = {
        {"ID", "id", false, false},           {"STATUS", "status", false, false},
        {"TRIES", "try_count", true, false},  {"HTTP", "last_http_status", true, false},
        {"MODEL", "model_id", false, true},   {"ENDPOINT", "endpoint", false, true},
        {"NEXT", "next_try_at", false, true}, {"ERROR", "last_error", false, true},
    };
    const struct ls_settings *settings = values;
    OWNED(buf_done) struct buf path = BUF_WITH_LIMIT(PATH_SIZE_MAX);
    struct list_view view = {"webhooks ls",        NULL,    "deliveries",
                             "no such deliveries", columns, COUNT_OF(columns)};

    (void)operands;
    (void)operand_count;
    buf_printf(&path, "/v1/webhook_deliveries?limit=%lld", (long long)settings->limit);
    path_append_field(&path, "status", settings->status);
    path_append_field(&path, "model", settings->model);
    path_append_field(&path, "endpoint", settings->endpoint);
    path_append_field(&path, "since", settings->since);
    path_append_field(&path, "cursor", settings->cursor);
    view.path = buf_text(&path);
    return list_run(client, &view, settings->json);
}

/* ---- show ---- */

static int deliveries_show(const struct client *client, const void *values, char **operands,
                           int operand_count)
{
    static const struct table_column columns[] = {
        {"TRY", "number", true, false},       {"STARTED", "started_at", false, false},
        {"SECONDS", "seconds", true, false},  {"HTTP", "http_status", true, false},
        {"ADDRESS", "address", false, false}, {"ERROR", "error", false, true},
        {"ANSWER", "answer", false, true},
    };
    const struct ls_settings *settings = values;
    OWNED(mem_free) char *path = NULL;
    OWNED(client_json_free) json_t *answer = NULL, *tries = NULL;
    struct client_call call = {.method = "GET"};
    struct err err;
    int status;

    if (!verb_operands("one delivery (its webhook-id, or the request's id)", operand_count, 1, 1))
        return CLI_EXIT_USAGE;
    path = path_make("/v1/webhook_deliveries/%", operands[0]);
    call.path = path;
    if (client_exchange(client, &call, &status, &answer, &err) < 0)
        return client_complain("webhooks show", &err);
    if (settings->json) {
        table_print_json(stdout, answer);
        return CLI_EXIT_OK;
    }
    tries = json_incref(json_object_get(answer, "tries"));
    (void)json_object_del(answer, "tries");
    table_print_object(stdout, answer);
    (void)fputc('\n', stdout);
    if (table_print(stdout, tries, columns, COUNT_OF(columns), "not tried yet", &err) < 0)
        return client_complain("webhooks show", &err);
    return CLI_EXIT_OK;
}

/* ---- replay ---- */

static void set_text(json_t *body, const char *name, const char *text)
{
    if (*text != '\0')
        (void)json_object_set_new(body, name, json_string(text));
}

static void say_replayed(json_int_t matched, bool more, bool sent)
{
    if (matched == 0)
        (void)printf("no delivery matches\n");
    else if (sent)
        (void)printf("%lld deliveries are sent again%s\n", (long long)matched,
                     more ? "; there may be more: ask again" : "");
    else
        (void)printf("%lld deliveries match%s; with --yes they are sent again\n",
                     (long long)matched, more ? ", or more" : "");
}

static int replay_many(const struct client *client, const struct replay_settings *settings)
{
    OWNED(client_json_free)
    json_t *body = json_pack("{s:b, s:I}", "dry_run", !settings->yes, "limit",
                             (json_int_t)settings->limit);
    OWNED(client_json_free) json_t *answer = NULL;
    const struct client_call call = {
        .method = "POST", .path = "/v1/webhook_deliveries/replay", .body = body};
    json_int_t matched;
    struct err err;
    int status;

    set_text(body, "status", settings->status);
    set_text(body, "model", settings->model);
    set_text(body, "endpoint", settings->endpoint);
    set_text(body, "since", settings->since);
    if (client_exchange(client, &call, &status, &answer, &err) < 0)
        return client_complain("webhooks replay", &err);
    matched = json_integer_value(json_object_get(answer, "matched"));
    if (settings->json)
        table_print_json(stdout, answer);
    else
        say_replayed(matched, json_is_true(json_object_get(answer, "more")), settings->yes);
    return matched > 0 ? CLI_EXIT_OK : CLI_EXIT_FAILED;
}

static int deliveries_replay(const struct client *client, const void *values, char **operands,
                             int operand_count)
{
    const struct replay_settings *settings = values;
    OWNED(mem_free) char *path = NULL;

    if (!verb_operands("one delivery, or none and filters", operand_count, 0, 1))
        return CLI_EXIT_USAGE;
    if (operand_count == 0)
        return replay_many(client, settings);
    path = path_make("/v1/webhook_deliveries/%/replay", operands[0]);
    return show_run(client, "webhooks replay", "POST", path, NULL, settings->json);
}

const struct verb_action webhooks_ls_action = {"ls",
                                               NULL,
                                               "Lists deliveries, newest first.",
                                               ls_rows,
                                               COUNT_OF(ls_rows),
                                               sizeof(struct ls_settings),
                                               deliveries_ls};
const struct verb_action webhooks_show_action = {
    "show",
    "DELIVERY",
    "Shows one delivery with every try and what the receiver answered.",
    ls_rows,
    COUNT_OF(ls_rows),
    sizeof(struct ls_settings),
    deliveries_show};
const struct verb_action webhooks_replay_action = {
    "replay",
    "[DELIVERY]",
    "Sends one delivery again, or all that match: counts them first, sends with --yes; exit code 3 "
    "when none matches.",
    replay_rows,
    COUNT_OF(replay_rows),
    sizeof(struct replay_settings),
    deliveries_replay};
