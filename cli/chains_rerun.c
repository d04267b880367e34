/* SPDX-License-Identifier: Apache-2.0 */

/* headrace chains rerun: a run again, from a step on or with another input. */

#include <stdlib.h>
#include <string.h>

#include "cli/chains.h"
#include "cli/list.h"

/* The body of the call; members that were not given are not in it. */
static int rerun_body(const struct chains_rerun_settings *settings, json_t **ret_body,
                      struct err *err)
{
    OWNED(client_json_free) json_t *body = json_object();
    json_t *value;
    int r = 0;

    if (settings->input[0] != '\0') {
        r = chains_input(settings->input, &value, err);
        if (r == 0)
            (void)json_object_set_new(body, "input", value);
    }
    if (r == 0 && settings->inputs[0] != '\0') {
        r = chains_input(settings->inputs, &value, err);
        if (r == 0)
            (void)json_object_set_new(body, "inputs", value);
    }
    if (r < 0)
        return r;
    if (settings->from[0] != '\0')
        (void)json_object_set_new(body, "from", json_string(settings->from));
    if (settings->deployment[0] != '\0')
        (void)json_object_set_new(body, "deployment_id", json_string(settings->deployment));
    *ret_body = TAKE(body);
    return 0;
}

int chains_rerun(const struct client *client, const void *values, char **operands,
                 int operand_count)
{
    const struct chains_rerun_settings *settings = values;
    OWNED(client_json_free) json_t *body = NULL;
    OWNED(client_json_free) json_t *answer = NULL;
    OWNED(mem_free) char *path = NULL;
    struct client_call call = {.method = "POST"};
    struct err err;
    int status;

    if (!verb_operands("one run", operand_count, 1, 1))
        return CLI_EXIT_USAGE;
    if (rerun_body(settings, &body, &err) < 0)
        return client_complain("chains rerun", &err);
    if (settings->dry_run)
        return chains_dry_run(client, operands[0], body, settings->chain, settings->json);
    if (settings->chain[0] != '\0') {
        (void)err_set(&err, ERR_USAGE,
                      "--chain is of a dry run; push it and name it by --deployment");
        return client_complain("chains rerun", &err);
    }
    call.path = path = path_make("/v1/chain_runs/%/rerun", operands[0]);
    call.body = body;
    if (client_exchange(client, &call, &status, &answer, &err) < 0)
        return client_complain("chains rerun", &err);
    return chains_follow(client, json_string_value(json_object_get(answer, "request_id")),
                         settings->no_wait, settings->quiet);
}
