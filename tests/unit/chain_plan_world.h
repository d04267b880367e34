/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* A plan and its chain, what it asks for, and what it is told: for tests of the planner. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "brokers/jq_program.h"
#include "chains/plan.h"
#include "schema/yaml_json.h"

struct world {
    struct chain *chain;
    struct plan *plan;
};

static inline void world_done(struct world *world)
{
    plan_free(&world->plan);
    chain_free(&world->chain);
}

static inline void world_make(struct world *world, const char *yaml, const char *input)
{
    json_t *json = NULL;
    struct err err;

    if (yaml_json_parse("chain.yaml", yaml, strlen(yaml), &json, &err) < 0 ||
        chain_parse(json, &world->chain, &err) < 0)
        fail_msg("%s", err.text);
    json_decref(json);
    world->plan = plan_new(world->chain, json_loads(input, JSON_DECODE_ANY, NULL), "run-1");
}

static inline void expect_submit(struct world *world, const char *step, uint32_t item,
                                 const char *input)
{
    struct plan_todo todo;

    assert_true(plan_next(world->plan, &todo));
    assert_int_equal(todo.type, PLAN_SUBMIT);
    assert_string_equal(world->chain->steps[todo.step].name, step);
    assert_int_equal(todo.item, item);
    if (todo.text_size != strlen(input) || memcmp(todo.text, input, todo.text_size) != 0)
        fail_msg("input is %.*s, not %s", (int)todo.text_size, todo.text, input);
    free(todo.text);
}

static inline void expect_cancel(struct world *world, const char *step, uint32_t item)
{
    struct plan_todo todo;

    assert_true(plan_next(world->plan, &todo));
    assert_int_equal(todo.type, PLAN_CANCEL);
    assert_string_equal(world->chain->steps[todo.step].name, step);
    assert_int_equal(todo.item, item);
}

static inline void expect_nothing(struct world *world)
{
    struct plan_todo todo;

    assert_false(plan_next(world->plan, &todo));
}

static inline void expect_output(struct world *world, const char *output)
{
    struct plan_todo todo;

    assert_true(plan_next(world->plan, &todo));
    assert_int_equal(todo.type, PLAN_FINISH);
    if (todo.error != NULL)
        fail_msg("%s", todo.error);
    if (todo.text_size != strlen(output) || memcmp(todo.text, output, todo.text_size) != 0)
        fail_msg("output is %.*s, not %s", (int)todo.text_size, todo.text, output);
    free(todo.text);
    expect_nothing(world);
}

static inline void expect_failure(struct world *world, const char *error)
{
    struct plan_todo todo;

    assert_true(plan_next(world->plan, &todo));
    assert_int_equal(todo.type, PLAN_FINISH);
    assert_null(todo.text);
    if (todo.error == NULL || strstr(todo.error, error) == NULL)
        fail_msg("error is %s, not %s", todo.error == NULL ? "none" : todo.error, error);
    expect_nothing(world);
}

static inline void succeed(struct world *world, const char *step, uint32_t item, const char *output)
{
    const struct plan_final final = {.state = JOB_SUCCEEDED,
                                     .output = {(const uint8_t *)output, strlen(output)},
                                     .output_is_json = true};

    plan_on_final(world->plan, (uint32_t)chain_find(world->chain, step), item, &final);
}

static inline void break_job(struct world *world, const char *step, uint32_t item)
{
    const struct plan_final final = {.state = JOB_FAILED,
                                     .error_class = ERROR_CLASS_MODEL_ERROR,
                                     .error_message = WIRE_TEXT_OF("it broke")};

    plan_on_final(world->plan, (uint32_t)chain_find(world->chain, step), item, &final);
}

/* What the coordinator's processes do, at once. `items`: how many it was asked for. */
static inline void evaluate(struct world *world, size_t items)
{
    OWNED(jq_program_close) struct jq_program *program = NULL;
    OWNED(buf_done) struct buf text = BUF_WITH_LIMIT(1 << 20), answer = BUF_WITH_LIMIT(1 << 20);
    struct plan_todo todo;
    json_t *request;
    struct err err;

    assert_true(plan_next(world->plan, &todo));
    assert_int_equal(todo.type, PLAN_EVALUATE);
    request = json_loadb(todo.text, todo.text_size, 0, NULL);
    assert_int_equal(json_array_size(json_object_get(request, "items")), items);
    json_decref(request);
    chain_jq_program(&world->chain->jq, &text);
    if (jq_program_open(buf_text(&text), &program, &err) < 0)
        fail_msg("%s", err.text);
    if (jq_program_run(program, todo.text, todo.text_size, &answer, &err) < 0)
        plan_on_values(world->plan, todo.step, NULL, err.text);
    else
        plan_on_values(world->plan, todo.step,
                       json_loadb((const char *)answer.bytes, answer.size, 0, NULL), NULL);
    free(todo.text);
}
