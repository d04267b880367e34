/* SPDX-License-Identifier: Apache-2.0 */

#include "cli/webhooks.h"

#include <string.h>

#include "cli/list.h"

#define SECRET_SETTINGS                                                                            \
    VERB_COMMON_SETTINGS                                                                           \
    SETTING_STRING(type, "hmac", "create, rotate: hmac (a shared secret) or ed25519 (a key pair)")

struct secret_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
    SECRET_SETTINGS
#include "base/settings_end.def"
};

static const struct setting secret_rows[] = {
#define SETTINGS_ROWS struct secret_settings
#include "base/settings_rows.def"
    SECRET_SETTINGS
#include "base/settings_end.def"
};

static int secret_ls(const struct client *client, const struct secret_settings *settings)
{
    static const struct table_column columns[] = {
        {"ID", "id", false, false},
        {"TYPE", "type", false, false},
        {"STATE", "state", false, false},
        {"CREATED", "created_at", false, true},
        {"SIGNS UNTIL", "expires_at", false, true},
        {"PUBLIC KEY", "public_key", false, false},
    };
    static const struct list_view view = {"webhooks secret ls",
                                          "/v1/webhook_secrets",
                                          "webhook_secrets",
                                          "no secret: webhooks are sent without signatures",
                                          columns,
                                          COUNT_OF(columns)};

    return list_run(client, &view, settings->json);
}

static int secret_public(const struct client *client, const struct secret_settings *settings)
{
    static const struct table_column columns[] = {
        {"ID", "kid", false, false},
        {"STATE", "state", false, false},
        {"SIGNS UNTIL", "expires_at", false, true},
        {"PUBLIC KEY", "public_key", false, false},
    };
    static const struct list_view view = {
        "webhooks secret public",
        "/v1/webhook_keys",
        "keys",
        "no key; make one: headrace webhooks secret create --type ed25519",
        columns,
        COUNT_OF(columns)};

    return list_run(client, &view, settings->json);
}

static int secret_make(const struct client *client, const struct secret_settings *settings,
                       const char *verb, const char *path)
{
    OWNED(client_json_free) json_t *body = json_pack("{s:s}", "type", settings->type);

    return show_run(client, verb, "POST", path, body, settings->json);
}

static int webhooks_secret(const struct client *client, const void *values, char **operands,
                           int operand_count)
{
    const struct secret_settings *settings = values;
    OWNED(mem_free) char *path = NULL;

    if (!verb_operands("create, rotate, ls, public or rm ID", operand_count, 1, 2))
        return CLI_EXIT_USAGE;
    if (strcmp(operands[0], "rm") == 0 && operand_count == 2) {
        path = path_make("/v1/webhook_secrets/%", operands[1]);
        return show_run(client, "webhooks secret rm", "DELETE", path, NULL, settings->json);
    }
    if (operand_count == 1) {
        if (strcmp(operands[0], "ls") == 0)
            return secret_ls(client, settings);
        if (strcmp(operands[0], "public") == 0)
            return secret_public(client, settings);
        if (strcmp(operands[0], "create") == 0)
            return secret_make(client, settings, "webhooks secret create", "/v1/webhook_secrets");
        if (strcmp(operands[0], "rotate") == 0)
            return secret_make(client, settings, "webhooks secret rotate",
                               "/v1/webhook_secrets/rotate");
    }
    (void)fprintf(stderr,
                  "headrace webhooks secret: create, rotate, ls, public or rm ID expected\n");
    return CLI_EXIT_USAGE;
}

const struct verb_action webhooks_secret_action = {
    "secret",
    "create|rotate|ls|public|rm [ID]",
    "Manages the secrets and keys that sign webhooks; after a rotation both sign for a day.",
    secret_rows,
    COUNT_OF(secret_rows),
    sizeof(struct secret_settings),
    webhooks_secret};
