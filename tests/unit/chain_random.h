/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* Random chains: up to six steps of model "m", some over maps of fixed lists, some in loops until
 * an output has `done`, some that may fail; switches, waits and approvals among them. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>

#include "base/mem.h"
#include "base/rng.h"
#include "schema/chain.h"

#define CHAIN_RANDOM_ITEMS_MAX 12

static inline bool chance(struct rng *rng, unsigned percent)
{
    return rng_below(rng, 100) < percent;
}

/* Also what only the test of the coordinator answers: outputs of earlier jobs. */
static bool chain_random_cache;

/* Also what only the planner's own test answers: calls of URLs, which are jobs to it. */
static bool chain_random_calls;

/* Names some of the steps before it. */
static inline json_t *chain_random_input(struct rng *rng, size_t at)
{
    json_t *input = json_array();

    for (size_t i = 0; i < at; i++) {
        OWNED(mem_free) char *text = xasprintf("{{steps.s%zu.output}}", i);

        if (chance(rng, 40))
            (void)json_array_append_new(input, json_string(text));
    }
    (void)json_array_append_new(input, json_integer((json_int_t)at));
    return input;
}

static inline json_t *chain_random_step(struct rng *rng, size_t at)
{
    json_t *step;

    if (chance(rng, 10))
        return json_pack("{s:o}", "approval", chain_random_input(rng, at));
    if (chance(rng, 8))
        return json_pack("{s:i}", "wait", (int)(rng_below(rng, 4) * rng_below(rng, 15)));
    if (chance(rng, 15)) /* what it reads is all that it can be told */
        return json_pack("{s:o}", "transform", chain_random_input(rng, at));
    step = chain_random_calls && chance(rng, 15)
               ? json_pack("{s:{s:s, s:o}}", "http", "url", "http://a.b/", "body",
                           chain_random_input(rng, at))
               : json_pack("{s:s, s:o}", "model", "m", "input", chain_random_input(rng, at));
    if (chance(rng, 15)) {
        (void)json_object_set_new(step, "loop", json_pack("{s:s}", "until", "{{item.done}}"));
    } else if (chance(rng, 40)) {
        json_t *list = json_array();

        for (uint64_t n = rng_below(rng, CHAIN_RANDOM_ITEMS_MAX); n > 0; n--)
            (void)json_array_append_new(list, json_integer((json_int_t)n));
        (void)json_object_set_new(step, "map", list);
        (void)json_object_set_new(step, "max_parallel",
                                  json_integer(1 + (json_int_t)rng_below(rng, 4)));
        (void)json_object_set_new(step, "max_failures",
                                  json_integer((json_int_t)rng_below(rng, 3)));
    }
    if (chain_random_cache && chance(rng, 40))
        (void)json_object_set_new(step, "cache", json_pack("{s:i}", "ttl_seconds", 60));
    if (chance(rng, 20))
        (void)json_object_set_new(step, "when", json_boolean(chance(rng, 50)));
    if (chance(rng, 30))
        (void)json_object_set_new(step, "on_error", json_string("skip"));
    else if (chance(rng, 20))
        (void)json_object_update_new(step, json_pack("{s:s, s:o}", "on_error", "fallback",
                                                     "fallback", chain_random_input(rng, at)));
    return step;
}

/* Some of the steps behind it, by name. */
static inline json_t *chain_random_branch(struct rng *rng, size_t at, size_t count)
{
    json_t *names = json_array();

    for (size_t i = at + 1; i < count; i++) {
        OWNED(mem_free) char *name = xasprintf("s%zu", i);

        if (chance(rng, 40))
            (void)json_array_append_new(names, json_string(name));
    }
    return names;
}

static inline json_t *chain_random_switch(struct rng *rng, size_t at, size_t count)
{
    return json_pack("{s:i, s:{s:o, s:o}, s:o}", "switch", (int)rng_below(rng, 3), "cases", "0",
                     chain_random_branch(rng, at, count), "1", chain_random_branch(rng, at, count),
                     "default", chain_random_branch(rng, at, count));
}

/* Some steps with a model get one that undoes them. */
static inline void chain_random_undo(struct rng *rng, json_t *steps, size_t at)
{
    OWNED(mem_free) char *name = xasprintf("s%zu", at);
    OWNED(mem_free) char *undo = xasprintf("u%zu", at);
    OWNED(mem_free) char *text = xasprintf("{{steps.s%zu.output}}", at);
    json_t *step = json_object_get(steps, name);
    bool says = json_object_get(step, "on_error") != NULL;

    if (json_object_get(step, "model") == NULL || !chance(rng, 50) ||
        json_object_get(step, "cache") != NULL || (says && json_object_get(step, "map") != NULL))
        return;
    (void)json_object_set_new(step, "compensate", json_string(undo));
    if (!says && chance(rng, 30))
        (void)json_object_set_new(step, "on_error", json_string("compensate"));
    (void)json_object_set_new(steps, undo, json_pack("{s:s, s:s}", "model", "m", "input", text));
}

/* Some steps fall back to one of their own. */
static inline void chain_random_stand_in(struct rng *rng, json_t *steps, size_t at)
{
    OWNED(mem_free) char *name = xasprintf("s%zu", at);
    OWNED(mem_free) char *other = xasprintf("f%zu", at);
    OWNED(mem_free) char *why = xasprintf("{{steps.s%zu.error.class}}", at);
    json_t *step = json_object_get(steps, name), *input;

    if (json_object_get(step, "on_error") != NULL || json_object_get(step, "switch") != NULL ||
        json_object_get(step, "compensate") != NULL || !chance(rng, 25))
        return;
    input = chain_random_input(rng, at);
    (void)json_array_append_new(input, json_string(why));
    (void)json_object_update_new(
        step, json_pack("{s:s, s:s}", "on_error", "fallback", "fallback_step", other));
    (void)json_object_set_new(steps, other, json_pack("{s:s, s:o}", "model", "m", "input", input));
}

static inline struct chain *chain_random(struct rng *rng)
{
    json_t *steps = json_object(), *json;
    size_t count = 1 + rng_below(rng, 6);
    struct chain *chain = NULL;
    struct err err;

    for (size_t i = 0; i < count; i++) {
        OWNED(mem_free) char *name = xasprintf("s%zu", i);

        (void)json_object_set_new(steps, name,
                                  chance(rng, 10) ? chain_random_switch(rng, i, count)
                                                  : chain_random_step(rng, i));
    }
    for (size_t i = 0, undoes = chance(rng, 30); undoes != 0 && i < count; i++)
        chain_random_undo(rng, steps, i);
    for (size_t i = 0; i < count; i++)
        chain_random_stand_in(rng, steps, i);
    json = json_pack("{s:o, s:o}", "steps", steps, "output", chain_random_input(rng, count));
    if (chain_parse(json, &chain, &err) < 0)
        fail_msg("%s", err.text);
    json_decref(json);
    return chain;
}
