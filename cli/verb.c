/* SPDX-License-Identifier: Apache-2.0 */

#include "cli/verb.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct verb_action *action_find(const struct verb *verb, const char *name)
{
    for (size_t i = 0; i < verb->action_count; i++) {
        const struct verb_action *action = &verb->actions[i];

        if (action->name == NULL || (name != NULL && strcmp(action->name, name) == 0))
            return action;
    }
    return NULL;
}

static int verb_usage(const struct verb *verb, FILE *to)
{
    (void)fprintf(to, "usage: headrace %s ACTION [OPTION…]\n%s\n\n", verb->name, verb->purpose);
    for (size_t i = 0; i < verb->action_count; i++) {
        const struct verb_action *action = &verb->actions[i];

        (void)fprintf(to, "  %s %s%s%s\n      %s\n", verb->name, action->name,
                      action->operands != NULL ? " " : "",
                      action->operands != NULL ? action->operands : "", action->purpose);
    }
    (void)fprintf(to, "\nheadrace %s ACTION --help tells more.\n", verb->name);
    return to == stdout ? CLI_EXIT_OK : CLI_EXIT_USAGE;
}

static bool is_help(const char *word)
{
    return strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0 || strcmp(word, "help") == 0;
}

int verb_client(const struct verb_common *values, struct client *ret_client, struct err *err)
{
    return client_open(values->url, values->api_key, *values->client ? values->client : NULL,
                       ret_client, err);
}

static int action_run(const struct verb *verb, const struct verb_action *action, bool online,
                      int argc, char **argv)
{
    OWNED(mem_free)
    char *command = action->name == NULL ? xstrdup(verb->name)
                                         : xasprintf("%s %s", verb->name, action->name);
    const struct settings_program program = {
        .command = command,
        .purpose = action->purpose,
        .operands = action->operands,
        .rows = action->rows,
        .row_count = action->row_count,
    };
    OWNED(mem_free) struct verb_common *values = xcalloc(1, action->values_size);
    OWNED(client_done) struct client client = {0};
    enum settings_outcome outcome;
    int operand = argc, code;
    struct err err;

    if (settings_parse(&program, argc, argv, values, action->operands != NULL ? &operand : NULL,
                       &outcome, &err) < 0)
        return client_complain(command, &err);
    if (outcome == SETTINGS_QUIT)
        code = CLI_EXIT_OK;
    else if (online && verb_client(values, &client, &err) < 0)
        code = client_complain(command, &err);
    else
        code = action->run(&client, values, argv + operand, argc - operand);
    settings_free(&program, values);
    return code;
}

static int verb_run(const struct verb *verb, bool online, int argc, char **argv)
{
    const struct verb_action *action = action_find(verb, argc > 1 ? argv[1] : NULL);

    if (action != NULL && action->name == NULL)
        return action_run(verb, action, online, argc, argv);
    if (argc < 2)
        return verb_usage(verb, stderr);
    if (is_help(argv[1]))
        return verb_usage(verb, stdout);
    if (action == NULL) {
        (void)fprintf(stderr, "headrace %s: there is no action '%s'\n", verb->name, argv[1]);
        return verb_usage(verb, stderr);
    }
    return action_run(verb, action, online, argc - 1, argv + 1);
}

int verb_main(const struct verb *verb, int argc, char **argv)
{
    return verb_run(verb, true, argc, argv);
}

int verb_main_offline(const struct verb *verb, int argc, char **argv)
{
    return verb_run(verb, false, argc, argv);
}

bool verb_operands(const char *what, int operand_count, int least, int most)
{
    if (operand_count >= least && operand_count <= most)
        return true;
    if (least == most)
        (void)fprintf(stderr, "headrace: %s expected, %d given\n", what, operand_count);
    else
        (void)fprintf(stderr, "headrace: %s expected (%d to %d), %d given\n", what, least, most,
                      operand_count);
    return false;
}
