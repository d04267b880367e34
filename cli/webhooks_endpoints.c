/* SPDX-License-Identifier: Apache-2.0 */

#include "cli/webhooks.h"

#include <stdio.h>
#include <string.h>

#include "cli/list.h"

#define PATH_SIZE_MAX 16384

#define ENDPOINT_SETTINGS                                                                          \
    VERB_COMMON_SETTINGS                                                                           \
    SETTING_STRING(status, "", "ls: only enabled or disabled")                                     \
    SETTING_STRING(circuit, "", "ls: only closed, open or half-open")                              \
    SETTING_STRING(cursor, "", "ls: the page behind this cursor")                                  \
    SETTING_INT(limit, 100, 1, 1000, "ls: rows of a page")                                         \
    SETTING_STRING(reason, "", "disable: why, for others to read")

struct endpoint_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
    ENDPOINT_SETTINGS
#include "base/settings_end.def"
};

static const struct setting endpoint_rows[] = {
#define SETTINGS_ROWS struct endpoint_settings
#include "base/settings_rows.def"
    ENDPOINT_SETTINGS
#include "base/settings_end.def"
};

static int endpoints_ls(const struct client *client, const struct endpoint_settings *settings)
{
    static const struct table_column columns[] = {
        {"URL", "url", false, true},
        {"STATUS", "status", false, false},
        {"CIRCUIT", "circuit", false, false},
        {"FAILURES", "failures", true, false},
        {"HTTP", "last_http_status", true, false},
        {"MS", "latency_ms", true, false},
        {"RETRY", "retry_at", false, true},
        {"LAST SUCCESS", "last_success_at", false, true},
        {"ERROR", "last_error", false, true},
        {"DISABLED BY", "disabled_by", false, true},
    };
    OWNED(buf_done) struct buf path = BUF_WITH_LIMIT(PATH_SIZE_MAX);
    struct list_view view = {"webhooks endpoints ls", NULL,    "endpoints",
                             "no such endpoints",     columns, COUNT_OF(columns)};

    buf_printf(&path, "/v1/webhook_endpoints?limit=%lld", (long long)settings->limit);
    path_append_field(&path, "status", settings->status);
    path_append_field(&path, "circuit", settings->circuit);
    path_append_field(&path, "cursor", settings->cursor);
    view.path = buf_text(&path);
    return list_run(client, &view, settings->json);
}

static int webhooks_endpoints(const struct client *client, const void *values, char **operands,
                              int operand_count)
{
    const struct endpoint_settings *settings = values;
    OWNED(client_json_free) json_t *body = NULL;

    if (!verb_operands("ls, enable URL or disable URL", operand_count, 1, 2))
        return CLI_EXIT_USAGE;
    if (operand_count == 1 && strcmp(operands[0], "ls") == 0)
        return endpoints_ls(client, settings);
    if (operand_count == 2 && strcmp(operands[0], "enable") == 0) {
        body = json_pack("{s:s}", "url", operands[1]);
        return show_run(client, "webhooks endpoints enable", "POST", "/v1/webhook_endpoints/enable",
                        body, settings->json);
    }
    if (operand_count == 2 && strcmp(operands[0], "disable") == 0) {
        body = json_pack("{s:s, s:s}", "url", operands[1], "reason", settings->reason);
        return show_run(client, "webhooks endpoints disable", "POST",
                        "/v1/webhook_endpoints/disable", body, settings->json);
    }
    (void)fprintf(stderr, "headrace webhooks endpoints: ls, enable URL or disable URL expected\n");
    return CLI_EXIT_USAGE;
}

const struct verb_action webhooks_endpoints_action = {
    "endpoints",
    "ls|enable|disable [URL]",
    "Shows how receivers are, and switches them off and on.",
    endpoint_rows,
    COUNT_OF(endpoint_rows),
    sizeof(struct endpoint_settings),
    webhooks_endpoints};
