/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A document of keys against a table of them: each key is known, of its kind and in its range, and
 * honoured, noted or refused; what is left out gets its default.
 *
 *     document + table ─▶ the whole config, every key with its value or default
 *                     └─▶ warnings: `key: why`, of what changes nothing here
 *
 * Tables: schema/truss_config.def, schema/training_config.def. What depends on more than one key is
 * for whoever has the table. Texts of errors begin with the key's path.
 *
 * Pure, but for memory. Thread: any.
 * Tests: tests/unit/test_truss_config.c, tests/unit/test_training_config.c
 */

#include <jansson.h>

#include "base/err.h"

enum config_kind {
    CONFIG_TEXT,
    CONFIG_TEXT_OR_NULL,
    CONFIG_PATH, /* below the pushed directory */
    CONFIG_PATH_OR_NULL,
    CONFIG_PLACE, /* an absolute path, without '..' */
    CONFIG_PLACE_OR_NULL,
    CONFIG_ENDPOINT,
    CONFIG_INT,
    CONFIG_INT_OR_NULL,
    CONFIG_NUMBER,
    CONFIG_BOOL,
    CONFIG_BOOL_OR_NULL,
    CONFIG_AMOUNT, /* a text, or a number that is taken as one */
    CONFIG_TEXTS,
    CONFIG_COMMANDS, /* texts of as many lines as they like */
    CONFIG_LIST,
    CONFIG_MAP,
    CONFIG_VALUES,      /* name to text; numbers and bools become texts */
    CONFIG_ENVIRONMENT, /* likewise, or to {"name": a secret's} */
    CONFIG_SECRETS,     /* name to text or null */
    CONFIG_PYTHON,
    CONFIG_ACCELERATOR,
    CONFIG_TRANSPORT,
    CONFIG_SERVER,
    CONFIG_AVAILABILITY,
    CONFIG_GROUP,         /* its keys follow */
    CONFIG_GROUP_OR_NULL, /* likewise, and it may be absent */
};

enum config_use {
    CONFIG_USE_HONOURED,
    CONFIG_USE_WORDS,   /* for people and other tools: changes nothing */
    CONFIG_USE_NOTED,   /* accepted; once it is set, a warning */
    CONFIG_USE_REFUSED, /* once it is set, an error */
};

struct config_key {
    const char *path;
    enum config_kind kind;
    const char *fallback; /* JSON; "": it is left out */
    json_int_t lowest, highest;
    enum config_use use;
    const char *why;
};

struct config_table {
    const struct config_key *keys; /* groups before their keys */
    size_t count;
};

/* Fills the object `whole` and adds texts to the array `warnings`. Values of `document` may be
 * rewritten (numbers that become texts). ERR_MALFORMED, ERR_RANGE: key, value and limit;
 * ERR_UNSUPPORTED: what is not honoured, and why. */
int config_table_apply(const struct config_table *table, json_t *document, json_t *whole,
                       json_t *warnings, struct err *err) MUST_CHECK;
