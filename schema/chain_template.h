/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Templates of a chain: JSON values whose texts may name the input of a run and the outputs of its
 * steps.
 *
 *     "{{steps.split.output.chunks}}"         alone in its text: the value itself, of any type
 *     "page {{index}} of {{input.title}}"     else: text; objects and lists as JSON, null as ""
 *
 *     input            what the run was given          item, index   in a step with `map`
 *     steps.A.output   null when A was skipped         run.id
 *     steps.A.state    "succeeded", "skipped", "failed"
 *     steps.A.error    {"class", "message"} of one that failed and may, else null
 *
 * Behind them come members (.name), places of lists (.0) and, at the very end, a `?`: what is not
 * there is null then, and an error otherwise. What has to be computed is an expression in jq, a
 * text of its own (schema/chain_jq.h): "${ $steps.split.output | length }".
 *
 * Pure, but for memory; values that are put in are shared, not copied, so what is made must not be
 * changed. Thread: any.   Tests: tests/unit/test_chain.c, tests/fuzz/fuzz_chain.c
 */

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "schema/chain_jq.h"

#define CHAIN_PATH_SIZE_MAX 256   /* between the braces */
#define CHAIN_TEXT_SIZE_MAX 65536 /* of a text that is put together */

struct chain_template_use {
    bool item;             /* `item` and `index` may stand in it */
    chain_jq_use_fn *step; /* called with the name of each step that is read */
    void *opaque;
    struct chain_jq *jq; /* whose newest part the expressions join */
};

/* Looks at every text of the value. `where` names it in errors ("step embed: input").
 * ERR_MALFORMED says which text, and what is wrong in it. */
int chain_template_check(const json_t *value, const char *where,
                         const struct chain_template_use *use, struct err *err) MUST_CHECK;

/* What the names stand for. Borrowed. */
struct chain_scope {
    const json_t *input;
    const json_t *steps; /* {"A": {"output": …, "state": …, "error": …}} */
    const json_t *item;  /* NULL: there is none */
    uint64_t index;
    const char *run; /* its id */
    /* What the expressions came to: for each, as they are met, a list with one value. */
    const json_t *values;
    size_t *next_value; /* which is the next; NULL when there are no values */
    /* A text of the template that is a URL: what is put in behind its host is percent-escaped. */
    const json_t *url;
    /* Outputs that are no JSON: what the value is, or what is deep in it; NULL: none is. One that
     * is named alone in its text is handed on; else it is ERR_MISMATCH. */
    const char *(*body_about)(const void *bodies, const json_t *value, bool deep);
    const void *bodies; /* NULL: there are none */
};

#define CHAIN_BODY_REFUSED                                                                         \
    "an output is no JSON but %s: it can be the whole input of a model, and nothing else"

/* ERR_NOT_FOUND: something that the template names is not there; ERR_TOO_BIG: a text is longer than
 * its limit. The caller frees *ret_value with json_decref(). */
int chain_template_make(const json_t *value, const struct chain_scope *scope, json_t **ret_value,
                        struct err *err) MUST_CHECK;

/* Of `when`: null, false, 0, "", [] and {} are false. */
bool chain_template_is_true(const json_t *value);
