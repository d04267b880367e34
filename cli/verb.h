/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Frame of the user verbs. A command has actions ("jobs ls"), an action has a table of options of
 * its own; all share --url, --api-key, --client and --json.
 *
 * Thread: the only one of a command.
 */

#include <stddef.h>

#include "base/settings.h"
#include "cli/client.h"

/* The settings that every action has, as the first rows of its table. */
#define VERB_COMMON_SETTINGS                                                                       \
    SETTING_URL(url, "", "gateway to talk to; empty: what the client file says")                   \
    SETTING_SECRET(api_key, "", "key to show; empty: what the client file says")                   \
    SETTING_STRING(client, "", "client file to read instead of the usual ones")                    \
    SETTING_BOOL(json, false, "print JSON instead of tables and sentences")

struct verb_common {
    char *url, *api_key, *client;
    bool json;
};

struct verb_action {
    const char *name;     /* "ls"; NULL: the command has one action and no name for it */
    const char *operands; /* "MODEL INPUT"; NULL: none */
    const char *purpose;  /* one sentence */
    const struct setting *rows;
    size_t row_count;
    size_t values_size; /* of the settings struct, whose first member is a struct verb_common */
    int (*run)(const struct client *client, const void *values, char **operands, int operand_count);
};

struct verb {
    const char *name;
    const char *purpose;
    const struct verb_action *actions;
    size_t action_count;
};

/* Picks the action, parses its options, opens the client, runs it; returns the exit code. */
int verb_main(const struct verb *verb, int argc, char **argv);

/* The same for actions that need no gateway: their client is empty, and verb_client() opens it. */
int verb_main_offline(const struct verb *verb, int argc, char **argv);
int verb_client(const struct verb_common *values, struct client *ret_client,
                struct err *err) MUST_CHECK;

/* Checks how many operands there are; says what is missing and returns false. */
bool verb_operands(const char *what, int operand_count, int least, int most);
