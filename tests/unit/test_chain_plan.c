/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: a run does what its chain says, in the order that it says, and ends in one result or one
 * named reason. */

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

static void world_done(struct world *world)
{
    plan_free(&world->plan);
    chain_free(&world->chain);
}

static void world_make(struct world *world, const char *yaml, const char *input)
{
    json_t *json = NULL;
    struct err err;

    if (yaml_json_parse("chain.yaml", yaml, strlen(yaml), &json, &err) < 0 ||
        chain_parse(json, &world->chain, &err) < 0)
        fail_msg("%s", err.text);
    json_decref(json);
    world->plan = plan_new(world->chain, json_loads(input, JSON_DECODE_ANY, NULL), "run-1");
}

static void expect_submit(struct world *world, const char *step, uint32_t item, const char *input)
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

static void expect_cancel(struct world *world, const char *step, uint32_t item)
{
    struct plan_todo todo;

    assert_true(plan_next(world->plan, &todo));
    assert_int_equal(todo.type, PLAN_CANCEL);
    assert_string_equal(world->chain->steps[todo.step].name, step);
    assert_int_equal(todo.item, item);
}

static void expect_nothing(struct world *world)
{
    struct plan_todo todo;

    assert_false(plan_next(world->plan, &todo));
}

static void expect_output(struct world *world, const char *output)
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

static void expect_failure(struct world *world, const char *error)
{
    struct plan_todo todo;

    assert_true(plan_next(world->plan, &todo));
    assert_int_equal(todo.type, PLAN_FINISH);
    assert_null(todo.text);
    if (todo.error == NULL || strstr(todo.error, error) == NULL)
        fail_msg("error is %s, not %s", todo.error == NULL ? "none" : todo.error, error);
    expect_nothing(world);
}

static void succeed(struct world *world, const char *step, uint32_t item, const char *output)
{
    const struct plan_final final = {.state = JOB_SUCCEEDED,
                                     .output = {(const uint8_t *)output, strlen(output)},
                                     .output_is_json = true};

    plan_on_final(world->plan, (uint32_t)chain_find(world->chain, step), item, &final);
}

static void break_job(struct world *world, const char *step, uint32_t item)
{
    const struct plan_final final = {.state = JOB_FAILED,
                                     .error_class = ERROR_CLASS_MODEL_ERROR,
                                     .error_message = WIRE_TEXT_OF("it broke")};

    plan_on_final(world->plan, (uint32_t)chain_find(world->chain, step), item, &final);
}

/* What the coordinator's processes do, at once. `items`: how many it was asked for. */
static void evaluate(struct world *world, size_t items)
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

static void test_expressions(void **state)
{
    OWNED(world_done) struct world world = {0};

    (void)state;
    world_make(&world,
               "steps:\n"
               "  a: {model: m, input: {n: '${ .n + 1 }', was: '{{input.n}}'}}\n"
               "  b: {model: m, when: '${ $steps.a.output > 5 }', map: '${ [range($steps.a.output)]"
               " }', input: ['${ $item * 2 }', '${ $index }', '{{item}}'], max_parallel: 3}\n"
               "  c: {model: m, unless: '${ $steps.a.output > 5 }', input: 0}\n"
               "output: {all: '${ $steps.b.output | add }', c: '${ $steps.c.state }'}\n",
               "{\"n\":1}");
    evaluate(&world, 1);
    expect_submit(&world, "a", 0, "{\"n\":2,\"was\":1}");
    expect_nothing(&world);
    succeed(&world, "a", 0, "6");
    evaluate(&world, 1); /* when */
    evaluate(&world, 1); /* map */
    evaluate(&world, 6);
    expect_submit(&world, "b", 0, "[0,0,0]");
    expect_submit(&world, "b", 1, "[2,1,1]");
    expect_submit(&world, "b", 2, "[4,2,2]");
    evaluate(&world, 1); /* unless */
    for (uint32_t i = 3; i < 6; i++) {
        char input[32];

        (void)snprintf(input, sizeof(input), "[%u,%u,%u]", 2 * i, i, i);
        succeed(&world, "b", i - 3, "1");
        expect_submit(&world, "b", i, input);
    }
    for (uint32_t i = 3; i < 6; i++)
        succeed(&world, "b", i, "1");
    evaluate(&world, 1);
    expect_output(&world, "{\"all\":6,\"c\":\"skipped\"}");
}

/* One answer has room for some; the rest is asked for. An answer that comes again is no news. */
static void test_expressions_of_a_large_map(void **state)
{
    OWNED(world_done) struct world world = {0};
    struct plan_todo todo;

    (void)state;
    world_make(&world,
               "steps: {a: {model: m, map: '{{input}}', input: '${ $item }', max_parallel: 4}}",
               "[1,2,3]");
    assert_true(plan_next(world.plan, &todo));
    assert_int_equal(todo.type, PLAN_EVALUATE);
    free(todo.text);
    assert_false(plan_next(world.plan, &todo)); /* it is out */
    plan_on_values(world.plan, todo.step, json_loads("[[[1]]]", 0, NULL), NULL);
    plan_on_values(world.plan, todo.step, json_loads("[[[9]]]", 0, NULL), NULL);
    plan_on_values(world.plan, 7, json_loads("[[[9]]]", 0, NULL), NULL);
    expect_submit(&world, "a", 0, "1");
    evaluate(&world, 2);
    expect_submit(&world, "a", 1, "2");
    expect_submit(&world, "a", 2, "3");
    expect_nothing(&world);
}

static void test_expressions_that_fail(void **state)
{
    static const struct {
        const char *step, *error;
    } cases[] = {
        {"input: '${ 1 + \"x\" }'",
         "step a: input: jq: number (1) and string (\"x\") cannot be added"},
        {"input: '${ 1, 2 }'", "step a: input: the expression came to 2 values"},
        {"input: '${ empty }'", "step a: input: the expression came to 0 values"},
        {"input: 1, when: '${ error(\"no\") }'", "step a: when: jq: no"},
        {"input: 1, map: '${ 5 }'", "step a: map is over a number, it must be a list"},
        {"input: [1, {x: '${ .a.b.c | error }'}]", "step a: input: "},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        OWNED(world_done) struct world world = {0};
        OWNED(mem_free) char *yaml = xasprintf("steps: {a: {model: m, %s}}", cases[i].step);

        world_make(&world, yaml, "{}");
        evaluate(&world, 1);
        expect_failure(&world, cases[i].error);
    }
}

static void test_transforms(void **state)
{
    OWNED(world_done) struct world world = {0};

    (void)state;
    world_make(&world,
               "steps:\n"
               "  t: {transform: {n: '{{input}}', text: 'is {{input}}'}}\n"
               "  m: {map: [1, 2, 3], transform: '${ $item * $steps.t.output.n }'}\n"
               "  a: {model: m, input: '{{steps.m.output}}'}\n"
               "  no: {transform: 1, when: false}\n"
               "  bad: {transform: '{{input.x}}', on_error: skip}\n"
               "output: ['{{steps.t.output.text}}', '{{steps.a.output}}', '{{steps.no.state}}', "
               "'{{steps.bad.error.message}}']\n",
               "7");
    evaluate(&world, 3);
    expect_submit(&world, "a", 0, "[7,14,21]");
    expect_nothing(&world);
    succeed(&world, "a", 0, "true");
    expect_output(&world, "[\"is 7\",true,\"skipped\",\"transform: input.x: there is no 'x'\"]");
}

static void test_a_transform_has_a_limit(void **state)
{
    OWNED(world_done) struct world world = {0};
    OWNED(mem_free) char *text = xcalloc(1, 60001 + 3);

    (void)state;
    memset(text, 'a', 60002);
    text[0] = text[60001] = '"';
    world_make(&world,
               "steps:\n"
               "  n: {transform: '${ [range(2000)] }'}\n"
               "  t: {map: '{{steps.n.output}}', transform: '{{input}}'}\n",
               text);
    evaluate(&world, 1);
    expect_failure(&world, "step t: the outputs that templates read have over 64 MiB together");
}

static void test_fallbacks(void **state)
{
    OWNED(world_done) struct world world = {0};

    (void)state;
    world_make(&world,
               "steps:\n"
               "  a: {model: m, input: 1, on_error: fallback, fallback: {was: '{{input}}'}}\n"
               "  b: {model: m, map: [1, 2], input: '${ $item }', on_error: fallback, fallback: "
               "'${ [\"none\"] }'}\n"
               "  c: {model: m, input: '{{input.x}}', on_error: fallback, fallback: 5}\n"
               "  d: {model: m, input: 4, on_error: fallback, fallback: 6}\n"
               "output: ['{{steps.a.output}}', '{{steps.a.state}}', '{{steps.b.output}}', "
               "'{{steps.c.output}}', '{{steps.d.output}}', '{{steps.d.state}}']\n",
               "7");
    expect_submit(&world, "a", 0, "1");
    evaluate(&world, 2);
    expect_submit(&world, "b", 0, "1");
    expect_submit(&world, "b", 1, "2");
    expect_submit(&world, "d", 0, "4");
    break_job(&world, "a", 0);
    break_job(&world, "b", 1);
    expect_nothing(&world); /* its other item is out there */
    succeed(&world, "b", 0, "1");
    succeed(&world, "d", 0, "4");
    evaluate(&world, 1);
    expect_output(&world, "[{\"was\":7},\"failed\",[\"none\"],5,4,\"succeeded\"]");
}

static void test_another_step_stands_in(void **state)
{
    static const char yaml[] =
        "steps:\n"
        "  big: {model: m, input: 1, on_error: fallback, fallback_step: small}\n"
        "  small: {model: n, input: '{{steps.big.error.message}}', on_error: fallback, "
        "fallback_step: none}\n"
        "  none: {transform: '{{steps.small.state}}'}\n"
        "  last: {model: m, input: ['{{steps.big.output}}', '{{steps.big.state}}', "
        "'{{steps.small.state}}', '{{steps.none.state}}']}\n";
    OWNED(world_done) struct world well = {0};
    OWNED(world_done) struct world once = {0};
    OWNED(world_done) struct world twice = {0};

    (void)state;
    world_make(&well, yaml, "1");
    expect_submit(&well, "big", 0, "1");
    expect_nothing(&well);
    succeed(&well, "big", 0, "5");
    expect_submit(&well, "last", 0, "[5,\"succeeded\",\"skipped\",\"skipped\"]");
    succeed(&well, "last", 0, "1");
    expect_output(&well, "1");
    world_make(&once, yaml, "1");
    expect_submit(&once, "big", 0, "1");
    break_job(&once, "big", 0);
    expect_submit(&once, "small", 0, "\"FAILED (MODEL_ERROR): it broke\"");
    expect_nothing(&once);
    succeed(&once, "small", 0, "7");
    expect_submit(&once, "last", 0, "[7,\"failed\",\"succeeded\",\"skipped\"]");
    world_make(&twice, yaml, "1");
    expect_submit(&twice, "big", 0, "1");
    break_job(&twice, "big", 0);
    expect_submit(&twice, "small", 0, "\"FAILED (MODEL_ERROR): it broke\"");
    break_job(&twice, "small", 0);
    expect_submit(&twice, "last", 0, "[\"failed\",\"failed\",\"failed\",\"succeeded\"]");
}

static void test_a_stand_in_that_fails_ends_the_run(void **state)
{
    static const char yaml[] =
        "steps:\n"
        "  big: {model: m, map: '{{input}}', input: 1, on_error: fallback, fallback_step: small}\n"
        "  small: {model: n, input: 2}\n"
        "  beside: {model: m, input: 3}\n"
        "output: '{{steps.big.output}}'\n";
    OWNED(world_done) struct world world = {0};

    (void)state;
    world_make(&world, yaml, "[1,2]");
    expect_submit(&world, "big", 0, "1");
    expect_submit(&world, "big", 1, "1");
    expect_submit(&world, "beside", 0, "3");
    break_job(&world, "big", 0);
    expect_nothing(&world); /* its other item still runs */
    succeed(&world, "big", 1, "1");
    expect_submit(&world, "small", 0, "2");
    break_job(&world, "small", 0);
    expect_cancel(&world, "beside", 0);
    expect_failure(&world, "step small: FAILED (MODEL_ERROR): it broke");
}

static void test_a_fallback_that_fails_ends_the_run(void **state)
{
    OWNED(world_done) struct world world = {0};

    (void)state;
    world_make(&world,
               "steps: {a: {model: m, input: 1, on_error: fallback, fallback: '{{input.x}}'}}",
               "7");
    expect_submit(&world, "a", 0, "1");
    break_job(&world, "a", 0);
    expect_failure(&world, "step a: fallback: input.x: there is no 'x'");
}

static void expect_wait(struct world *world, const char *step, double seconds, const char *text)
{
    struct plan_todo todo;

    assert_true(plan_next(world->plan, &todo));
    assert_int_equal(todo.type, PLAN_WAIT);
    assert_string_equal(world->chain->steps[todo.step].name, step);
    assert_float_equal(todo.wait_seconds, seconds, 0.0001);
    assert_int_equal(todo.text == NULL, text == NULL);
    if (text != NULL)
        assert_memory_equal(todo.text, text, strlen(text));
    free(todo.text);
}

static void test_waits_and_approvals(void **state)
{
    OWNED(world_done) struct world world = {0};

    (void)state;
    world_make(
        &world,
        "steps:\n"
        "  w: {wait: '${ .n / 2 }'}\n"
        "  u: {wait: '{{input.at}}'}\n"
        "  a: {approval: {say: 'n is {{input.n}}'}, needs: [w]}\n"
        "  no: {approval: 1, on_error: skip}\n"
        "  end: {model: m, input: '{{steps.a.output.by}}', needs: [u]}\n"
        "output: ['{{steps.end.output}}', '{{steps.w.output}}', '{{steps.no.error.message}}']\n",
        "{\"n\":5,\"at\":\"2026-11-26T12:00:00.25+01:00\"}");
    evaluate(&world, 1);
    expect_wait(&world, "w", 2.5, NULL);
    expect_wait(&world, "u", 0, "2026-11-26T12:00:00.25+01:00");
    expect_wait(&world, "no", 0, "1");
    expect_nothing(&world);
    plan_on_waited(world.plan, 2, json_null(), NULL, NULL); /* it was not asked for yet */
    plan_on_waited(world.plan, 99, json_null(), NULL, NULL);
    plan_on_waited(world.plan, 0, json_null(), NULL, NULL);
    expect_wait(&world, "a", 0, "{\"say\":\"n is 5\"}");
    plan_on_waited(world.plan, 0, json_true(), NULL, NULL); /* a second time */
    plan_on_waited(world.plan, 2, json_pack("{s:s}", "by", "me"), NULL, NULL);
    plan_on_waited(world.plan, 3, NULL, "rejected", "it was rejected");
    expect_nothing(&world);
    plan_on_waited(world.plan, 1, json_null(), NULL, NULL);
    expect_submit(&world, "end", 0, "\"me\"");
    succeed(&world, "end", 0, "1");
    expect_output(&world, "[1,null,\"it was rejected\"]");
}

static void test_waits_that_fail(void **state)
{
    static const struct {
        const char *wait, *error;
    } cases[] = {
        {"-1", "step a: wait is -1, it must be 0 to 604800 seconds"},
        {"1000000000", "it must be 0 to 604800 seconds"},
        {"'tomorrow'", "wait came to the text tomorrow, it must be a number of seconds or a time"},
        {"'2026-11-26 12:00:00Z'", "it must be a number of seconds or a time"},
        {"'2026-11-26T12:00:00'", "it must be a number of seconds or a time"},
        {"'2026-11-26T12:00:00Z; now'", "it must be a number of seconds or a time"},
        {"'{{input}}'", "wait came to something else"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        OWNED(world_done) struct world world = {0};
        OWNED(mem_free) char *yaml = xasprintf("steps: {a: {wait: %s}}", cases[i].wait);

        world_make(&world, yaml, "{}");
        expect_failure(&world, cases[i].error);
    }
}

/* There is no job to cancel, and a rejection that may not be ends the run. */
static void test_a_rejection_ends_the_run(void **state)
{
    OWNED(world_done) struct world world = {0};

    (void)state;
    world_make(&world,
               "steps: {w: {wait: 5}, a: {approval: 1}, m: {model: m, input: 1}}\noutput: 1", "{}");
    expect_wait(&world, "w", 5, NULL);
    expect_wait(&world, "a", 0, "1");
    expect_submit(&world, "m", 0, "1");
    plan_on_waited(world.plan, 1, NULL, "rejected", "it was rejected: no");
    expect_cancel(&world, "m", 0);
    expect_failure(&world, "step a: it was rejected: no");
}

static void test_a_loop(void **state)
{
    OWNED(world_done) struct world world = {0};

    (void)state;
    world_make(
        &world,
        "steps:\n"
        "  a: {model: m, input: {last: '{{item}}', n: '{{index}}', of: '${ $item.n }'}, loop: "
        "{until: '${ $item.n >= 2 and $index == 3 }', max_iterations: 3}}\n"
        "  b: {model: m, input: '{{steps.a.output.n}}'}\n",
        "7");
    evaluate(&world, 1);
    expect_submit(&world, "a", 0, "{\"last\":null,\"n\":0,\"of\":null}");
    expect_nothing(&world);
    succeed(&world, "a", 0, "{\"n\":0}");
    evaluate(&world, 1); /* until */
    evaluate(&world, 1);
    expect_submit(&world, "a", 1, "{\"last\":{\"n\":0},\"n\":1,\"of\":0}");
    succeed(&world, "a", 0, "{\"n\":9}"); /* a second time */
    expect_nothing(&world);
    succeed(&world, "a", 1, "{\"n\":1}");
    evaluate(&world, 1);
    evaluate(&world, 1);
    expect_submit(&world, "a", 2, "{\"last\":{\"n\":1},\"n\":2,\"of\":1}");
    succeed(&world, "a", 2, "{\"n\":2}");
    evaluate(&world, 1);
    expect_submit(&world, "b", 0, "2");
    succeed(&world, "b", 0, "3");
    expect_output(&world, "3");
}

static void test_a_loop_that_ends_badly(void **state)
{
    OWNED(world_done) struct world world = {0};
    OWNED(world_done) struct world other = {0};

    (void)state;
    world_make(&world, "steps: {a: {model: m, input: '{{index}}', loop: {until: '{{item}}'}}}",
               "7");
    for (uint32_t i = 0; i < CHAIN_ITERATIONS_DEFAULT; i++) {
        char input[12];

        (void)snprintf(input, sizeof(input), "%u", i);
        expect_submit(&world, "a", i, input);
        succeed(&world, "a", i, "false");
    }
    expect_failure(&world, "step a: loop.until did not hold after 10 iterations");
    world_make(&other,
               "steps: {a: {model: m, input: 1, loop: {until: '{{item.x}}'}, on_error: skip}, b: "
               "{model: m, input: 1, loop: {until: false}}}\noutput: '{{steps.a.error.message}}'",
               "7");
    expect_submit(&other, "a", 0, "1");
    expect_submit(&other, "b", 0, "1");
    succeed(&other, "a", 0, "{}");
    expect_nothing(&other);
    succeed(&other, "b", 0, "{}");
    expect_submit(&other, "b", 1, "1");
    break_job(&other, "b", 1);
    expect_failure(&other, "step b: iteration 1: FAILED (");
}

static void test_linear(void **state)
{
    OWNED(world_done) struct world world = {0};

    (void)state;
    world_make(&world,
               "steps:\n"
               "  a: {model: m, input: '{{input}}'}\n"
               "  b: {model: m, input: {x: '{{steps.a.output.y}}'}}\n"
               "  c: {model: m, input: '{{steps.b.output}}'}\n",
               "{\"q\":1}");
    expect_submit(&world, "a", 0, "{\"q\":1}");
    expect_nothing(&world);
    succeed(&world, "a", 0, "{\"y\":[2]}");
    expect_submit(&world, "b", 0, "{\"x\":[2]}");
    succeed(&world, "a", 0, "{\"y\":\"again\"}"); /* a second time */
    succeed(&world, "c", 0, "{}");                /* never asked for */
    expect_nothing(&world);
    succeed(&world, "b", 0, "3");
    expect_submit(&world, "c", 0, "3");
    succeed(&world, "c", 0, "\"end\"");
    expect_output(&world, "\"end\"");
}

static void test_join_waits_for_all(void **state)
{
    OWNED(world_done) struct world world = {0};

    (void)state;
    world_make(&world,
               "steps:\n"
               "  join: {model: m, input: ['{{steps.l.output}}', '{{steps.r.output}}']}\n"
               "  l: {model: m, input: 1}\n"
               "  r: {model: m, input: 2}\n"
               "output: '{{steps.join.output}}'\n",
               "null");
    expect_submit(&world, "l", 0, "1");
    expect_submit(&world, "r", 0, "2");
    succeed(&world, "r", 0, "22");
    expect_nothing(&world);
    succeed(&world, "l", 0, "11");
    expect_submit(&world, "join", 0, "[11,22]");
    succeed(&world, "join", 0, "0");
    expect_output(&world, "0");
}

static void test_map_keeps_order_and_room(void **state)
{
    OWNED(world_done) struct world world = {0};

    (void)state;
    world_make(&world,
               "steps:\n"
               "  e: {model: m, map: '{{input}}', input: {t: '{{item}}', i: '{{index}}'},"
               " max_parallel: 2}\n",
               "[\"a\",\"b\",\"c\"]");
    expect_submit(&world, "e", 0, "{\"t\":\"a\",\"i\":0}");
    expect_submit(&world, "e", 1, "{\"t\":\"b\",\"i\":1}");
    expect_nothing(&world);
    assert_int_equal(plan_item_count(world.plan, 0), 3);
    succeed(&world, "e", 1, "\"B\"");
    expect_submit(&world, "e", 2, "{\"t\":\"c\",\"i\":2}");
    succeed(&world, "e", 2, "\"C\"");
    succeed(&world, "e", 0, "\"A\"");
    expect_output(&world, "[\"A\",\"B\",\"C\"]");
}

static void test_map_of_nothing_and_of_what_is_no_list(void **state)
{
    OWNED(world_done) struct world empty = {0};
    OWNED(world_done) struct world number = {0};
    static const char yaml[] = "steps: {e: {model: m, map: '{{input}}', input: '{{item}}'}}";

    (void)state;
    world_make(&empty, yaml, "[]");
    expect_output(&empty, "[]");
    world_make(&number, yaml, "5");
    expect_failure(&number, "step e: map is over a number, it must be a list");
}

static void test_map_may_lose_some(void **state)
{
    static const char yaml[] =
        "steps: {e: {model: m, map: '{{input}}', input: '{{item}}', max_failures: 1}}";
    OWNED(world_done) struct world one = {0};
    OWNED(world_done) struct world two = {0};

    (void)state;
    world_make(&one, yaml, "[1,2]");
    expect_submit(&one, "e", 0, "1");
    expect_submit(&one, "e", 1, "2");
    break_job(&one, "e", 0);
    succeed(&one, "e", 1, "4");
    expect_output(&one, "[null,4]");
    world_make(&two, yaml, "[1,2,3]");
    expect_submit(&two, "e", 0, "1");
    expect_submit(&two, "e", 1, "2");
    expect_submit(&two, "e", 2, "3");
    break_job(&two, "e", 0);
    break_job(&two, "e", 2);
    expect_cancel(&two, "e", 1);
    expect_failure(&two, "step e: item 2: FAILED (MODEL_ERROR): it broke");
}

static void test_outputs_that_are_not_as_promised(void **state)
{
    static const char yaml[] =
        "steps:\n"
        "  each: {model: m, map: '{{input}}', input: '{{item}}', max_failures: 1, "
        "output_schema: {type: integer}}\n"
        "  told: {model: m, input: '{{steps.each.output}}', on_error: skip, "
        "output_schema: {required: [a]}}\n"
        "  also: {transform: ['{{steps.told.error.class?}}', '{{steps.told.error.message?}}'], "
        "output_schema: {items: {type: string}}}\n";
    OWNED(world_done) struct world one = {0};
    OWNED(world_done) struct world two = {0};
    OWNED(world_done) struct world three = {0};

    (void)state;
    world_make(&one, yaml, "[1,2]");
    expect_submit(&one, "each", 0, "1");
    expect_submit(&one, "each", 1, "2");
    succeed(&one, "each", 0, "\"text\"");
    succeed(&one, "each", 1, "7");
    expect_submit(&one, "told", 0, "[null,7]");
    succeed(&one, "told", 0, "{\"b\":1}");
    expect_output(&one, "[\"output_mismatch\",\"output_schema: 'required' does not hold at its "
                        "top\"]");
    world_make(&two, yaml, "[1,2]");
    expect_submit(&two, "each", 0, "1");
    expect_submit(&two, "each", 1, "2");
    succeed(&two, "each", 1, "\"text\"");
    break_job(&two, "each", 0);
    expect_failure(&two, "step each: item 0: FAILED (MODEL_ERROR): it broke");
    world_make(&three, yaml, "[]");
    expect_submit(&three, "told", 0, "[]");
    succeed(&three, "told", 0, "{\"a\":1}");
    expect_failure(&three, "step also: output_schema: 'type' does not hold at /0");
}

static void test_conditions(void **state)
{
    static const char yaml[] = "steps:\n"
                               "  a: {model: m, input: 1, when: '{{input.a}}'}\n"
                               "  b: {model: m, input: 2, unless: '{{input.a}}'}\n"
                               "  c: {model: m, input: '{{steps.a.output}}', needs: [b]}\n"
                               "output: ['{{steps.a.state}}', '{{steps.b.state}}']\n";
    OWNED(world_done) struct world yes = {0};
    OWNED(world_done) struct world no = {0};

    (void)state;
    world_make(&yes, yaml, "{\"a\":true}");
    expect_submit(&yes, "a", 0, "1");
    expect_nothing(&yes);
    succeed(&yes, "a", 0, "9");
    expect_submit(&yes, "c", 0, "9");
    succeed(&yes, "c", 0, "0");
    expect_output(&yes, "[\"succeeded\",\"skipped\"]");
    world_make(&no, yaml, "{\"a\":0}");
    expect_submit(&no, "b", 0, "2");
    succeed(&no, "b", 0, "0");
    expect_submit(&no, "c", 0, "null");
    succeed(&no, "c", 0, "0");
    expect_output(&no, "[\"skipped\",\"succeeded\"]");
}

static void test_a_failure_ends_the_run(void **state)
{
    OWNED(world_done) struct world world = {0};

    (void)state;
    world_make(&world,
               "steps:\n"
               "  a: {model: m, input: 1}\n"
               "  b: {model: m, input: 2}\n"
               "  c: {model: m, input: '{{steps.a.output}}'}\n"
               "output: '{{steps.c.output}}'\n",
               "null");
    expect_submit(&world, "a", 0, "1");
    expect_submit(&world, "b", 0, "2");
    break_job(&world, "a", 0);
    expect_cancel(&world, "b", 0);
    expect_failure(&world, "step a: FAILED (MODEL_ERROR): it broke");
}

static void test_a_failure_may_be_passed_over(void **state)
{
    OWNED(world_done) struct world world = {0};

    (void)state;
    world_make(&world,
               "steps:\n"
               "  a: {model: m, input: 1, on_error: skip}\n"
               "  b: {model: m, input: ['{{steps.a.output}}', '{{steps.a.error.class}}']}\n",
               "null");
    expect_submit(&world, "a", 0, "1");
    break_job(&world, "a", 0);
    expect_submit(&world, "b", 0, "[null,\"MODEL_ERROR\"]");
    succeed(&world, "b", 0, "1");
    expect_output(&world, "1");
}

static void test_what_is_not_there_names_its_step(void **state)
{
    OWNED(world_done) struct world world = {0};
    OWNED(world_done) struct world output = {0};

    (void)state;
    world_make(&world,
               "steps:\n"
               "  a: {model: m, input: 1}\n"
               "  b: {model: m, input: {q: '{{steps.a.output.x}}'}}\n",
               "null");
    expect_submit(&world, "a", 0, "1");
    succeed(&world, "a", 0, "{}");
    expect_failure(&world, "step b: input: q: steps.a.output.x: there is no 'x'");
    world_make(&output, "steps: {a: {model: m, input: 1}}\noutput: '{{steps.a.output.x}}'", "null");
    expect_submit(&output, "a", 0, "1");
    succeed(&output, "a", 0, "{}");
    expect_failure(&output, "output: steps.a.output.x: there is no 'x'");
}

static void test_a_stream_comes_to_a_text(void **state)
{
    static const char yaml[] = "steps: {a: {model: m, input: 1, stream: true}}\n";
    static const char bytes[] = "\xff";
    struct plan_final final = {.state = JOB_SUCCEEDED, .output = {(const uint8_t *)"pieces\n", 7}};
    OWNED(world_done) struct world text = {0};
    OWNED(world_done) struct world no_text = {0};

    (void)state;
    world_make(&text, yaml, "1");
    expect_submit(&text, "a", 0, "1");
    (void)plan_on_final(text.plan, 0, 0, &final);
    expect_output(&text, "\"pieces\\n\"");
    world_make(&no_text, yaml, "1");
    expect_submit(&no_text, "a", 0, "1");
    final.output = (struct wire_bytes){(const uint8_t *)bytes, 1};
    (void)plan_on_final(no_text.plan, 0, 0, &final);
    expect_failure(&no_text, "step a: its output is not JSON, and a template reads it");
}

static void test_outputs_that_are_no_json(void **state)
{
    static const struct plan_final image = {.state = JOB_SUCCEEDED,
                                            .output = {(const uint8_t *)"\x89PNG", 4}};
    OWNED(world_done) struct world read = {0};
    OWNED(world_done) struct world unread = {0};
    OWNED(world_done) struct world broken = {0};

    (void)state;
    world_make(&read, "steps: {a: {model: m, input: 1}}", "null");
    expect_submit(&read, "a", 0, "1");
    plan_on_final(read.plan, 0, 0, &image);
    expect_failure(&read, "step a: its output is not JSON");
    world_make(&unread, "steps: {a: {model: m, input: 1}}\noutput: done", "null");
    expect_submit(&unread, "a", 0, "1");
    assert_false(plan_reads(unread.plan, 0));
    plan_on_final(unread.plan, 0, 0, &image);
    expect_output(&unread, "\"done\"");
    world_make(&broken, "steps: {a: {model: m, input: 1}}", "null");
    expect_submit(&broken, "a", 0, "1");
    succeed(&broken, "a", 0, "{\"half\":");
    expect_failure(&broken, "step a: its output is called JSON and is none");
}

static void test_cancel(void **state)
{
    OWNED(world_done) struct world world = {0};

    (void)state;
    world_make(&world,
               "steps: {e: {model: m, map: [1, 2, 3, 4], input: '{{item}}', max_parallel: 3}}",
               "null");
    expect_submit(&world, "e", 0, "1");
    expect_submit(&world, "e", 1, "2");
    expect_submit(&world, "e", 2, "3");
    succeed(&world, "e", 1, "0");
    plan_cancel(world.plan);
    expect_cancel(&world, "e", 0);
    expect_cancel(&world, "e", 2);
    expect_nothing(&world);
}

static void test_a_large_map_in_little_memory(void **state)
{
    OWNED(world_done) struct world world = {0};
    json_t *list = json_array();
    struct plan_todo todo;
    char *text;

    (void)state;
    for (unsigned i = 0; i < CHAIN_ITEMS_MAX; i++)
        (void)json_array_append_new(list, json_integer(1));
    text = json_dumps(list, JSON_COMPACT);
    world_make(&world,
               "steps: {e: {model: m, map: '{{input}}', input: '{{item}}', max_parallel: 100}}\n"
               "output: '{{steps.e.state}}'",
               text);
    for (unsigned i = 0; i < CHAIN_ITEMS_MAX; i++) {
        assert_true(plan_next(world.plan, &todo));
        free(todo.text);
        if (i >= 99)
            succeed(&world, "e", i - 99, "1");
    }
    expect_nothing(&world);
    for (unsigned i = CHAIN_ITEMS_MAX - 99; i < CHAIN_ITEMS_MAX; i++)
        succeed(&world, "e", i, "1");
    expect_output(&world, "\"succeeded\"");
    (void)json_array_append_new(list, json_integer(1));
    plan_free(&world.plan);
    world.plan = plan_new(world.chain, list, "run-2");
    expect_failure(&world, "step e: map is over 100001 items, at most 100000 are allowed");
    free(text);
}

static void test_outputs_have_a_limit(void **state)
{
    OWNED(world_done) struct world world = {0};
    size_t size = PLAN_SIZE_MAX / 4;
    char *large = xmalloc(size + 1);

    (void)state;
    memset(large, ' ', size);
    memcpy(large, "1", 1);
    large[size] = '\0';
    world_make(&world, "steps: {e: {model: m, map: [1, 2, 3, 4, 5], input: '{{item}}'}}", "null");
    for (uint32_t i = 0; i < 5; i++) {
        struct plan_todo todo;

        assert_true(plan_next(world.plan, &todo));
        free(todo.text);
    }
    for (uint32_t i = 0; i < 4; i++)
        succeed(&world, "e", i, large);
    expect_nothing(&world);
    succeed(&world, "e", 4, "1");
    expect_failure(&world, "step e: the outputs that templates read have over 64 MiB together");
    free(large);
}

/* A case is a text, or the JSON of a value; steps that are not chosen are skipped, and so is what a
 * switch chooses that was skipped itself. */
static void test_a_switch_chooses_steps(void **state)
{
    static const char yaml[] = "steps:\n"
                               "  route: {switch: '{{input.lang}}', unless: '{{input.none?}}', "
                               "cases: {de: [german, both], '7': [both], 'true': both}, "
                               "default: [other]}\n"
                               "  german: {model: m, input: de}\n"
                               "  other: {model: m, input: other}\n"
                               "  both: {model: m, input: both}\n"
                               "output: ['{{steps.route.output}}', '{{steps.german.state}}', "
                               "'{{steps.other.state}}', '{{steps.both.state}}']\n";
    static const struct {
        const char *input, *runs[2], *output;
    } cases[] = {
        {"{\"lang\":\"de\"}",
         {"german", "both"},
         "[\"de\",\"succeeded\",\"skipped\",\"succeeded\"]"},
        {"{\"lang\":7}", {"both", NULL}, "[7,\"skipped\",\"skipped\",\"succeeded\"]"},
        {"{\"lang\":true}", {"both", NULL}, "[true,\"skipped\",\"skipped\",\"succeeded\"]"},
        {"{\"lang\":null}", {"other", NULL}, "[null,\"skipped\",\"succeeded\",\"skipped\"]"},
        {"{\"lang\":\"de\",\"none\":1}",
         {NULL, NULL},
         "[null,\"skipped\",\"skipped\",\"skipped\"]"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        OWNED(world_done) struct world world = {0};

        world_make(&world, yaml, cases[i].input);
        for (size_t n = 0; n < 2 && cases[i].runs[n] != NULL; n++)
            expect_submit(&world, cases[i].runs[n], 0,
                          strcmp(cases[i].runs[n], "german") == 0  ? "\"de\""
                          : strcmp(cases[i].runs[n], "other") == 0 ? "\"other\""
                                                                   : "\"both\"");
        for (size_t n = 0; n < 2 && cases[i].runs[n] != NULL; n++)
            succeed(&world, cases[i].runs[n], 0, "1");
        expect_output(&world, cases[i].output);
    }
}

static void test_a_switch_without_its_case(void **state)
{
    static const struct {
        const char *input, *error;
    } cases[] = {
        {"\"fr\"", "step a: switch came to 'fr', no case is that, and there is no default"},
        {"[]", "step a: switch came to a list, it must be a text, a number"},
        {"{}", "step a: switch came to an object"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        OWNED(world_done) struct world world = {0};

        world_make(&world,
                   "steps: {a: {switch: '{{input}}', cases: {de: b}}, b: {model: m, input: 1}}",
                   cases[i].input);
        expect_failure(&world, cases[i].error);
    }
}

#define UNDONE                                                                                     \
    "steps:\n"                                                                                     \
    "  a: {model: m, input: 1, compensate: undo-a}\n"                                              \
    "  b: {model: m, input: '{{steps.a.output}}', compensate: undo-b}\n"                           \
    "  c: {model: m, input: '{{steps.b.output}}', on_error: compensate, compensate: undo-c}\n"     \
    "  undo-a: {model: m, input: '{{steps.a.output}}'}\n"                                          \
    "  undo-b: {model: m, input: '{{steps.b.output}}'}\n"                                          \
    "  undo-c: {model: m, input: ['{{steps.c.output}}', '{{steps.c.state}}']}\n"

static void test_what_succeeded_is_undone(void **state)
{
    OWNED(world_done) struct world world = {0};

    (void)state;
    world_make(&world, UNDONE, "null");
    expect_submit(&world, "a", 0, "1");
    succeed(&world, "a", 0, "5");
    expect_submit(&world, "b", 0, "5");
    succeed(&world, "b", 0, "6");
    expect_submit(&world, "c", 0, "6");
    break_job(&world, "c", 0);
    expect_submit(&world, "undo-c", 0, "[null,\"failed\"]");
    expect_nothing(&world);
    succeed(&world, "undo-c", 0, "1");
    expect_submit(&world, "undo-b", 0, "6");
    break_job(&world, "undo-b", 0);
    expect_submit(&world, "undo-a", 0, "5");
    succeed(&world, "undo-a", 0, "1");
    expect_failure(&world, "it broke; step b is not undone: step undo-b: FAILED (");
}

static void test_what_ends_well_is_not_undone(void **state)
{
    OWNED(world_done) struct world world = {0};

    (void)state;
    world_make(&world, UNDONE, "null");
    expect_submit(&world, "a", 0, "1");
    succeed(&world, "a", 0, "5");
    expect_submit(&world, "b", 0, "5");
    succeed(&world, "b", 0, "6");
    expect_submit(&world, "c", 0, "6");
    succeed(&world, "c", 0, "7");
    expect_output(&world, "7");
}

/* How canceled jobs have ended is waited for, and what an earlier coordinator had submitted is
 * looked for. */
static void test_what_runs_is_settled_first(void **state)
{
    const struct plan_final canceled = {.state = JOB_CANCELED},
                            never = {.state = JOB_CANCELED, .never = true};
    OWNED(world_done) struct world world = {0};
    struct plan_todo todo;

    (void)state;
    world_make(
        &world,
        "steps:\n"
        "  p: {model: m, map: [1, 2, 3], max_parallel: 2, input: '{{item}}', compensate: u}\n"
        "  q: {model: m, input: 1}\n"
        "  r: {model: m, input: '{{steps.p.output}}', compensate: v, on_error: compensate}\n"
        "  w: {approval: 1}\n"
        "  u: {model: m, input: '{{steps.p.output}}'}\n"
        "  v: {model: m, input: '{{steps.r.output}}'}\n"
        "output: 1\n",
        "null");
    expect_submit(&world, "p", 0, "1");
    expect_submit(&world, "p", 1, "2");
    expect_submit(&world, "q", 0, "1");
    assert_true(plan_next(world.plan, &todo));
    assert_int_equal(todo.type, PLAN_WAIT);
    free(todo.text);
    break_job(&world, "q", 0);
    expect_cancel(&world, "p", 0);
    expect_cancel(&world, "p", 1);
    expect_nothing(&world);
    succeed(&world, "p", 0, "7");
    assert_true(plan_next(world.plan, &todo));
    assert_true(todo.type == PLAN_SUBMIT && todo.settle && todo.step == 0 && todo.item == 2);
    free(todo.text);
    plan_on_final(world.plan, 0, 2, &never);
    plan_on_final(world.plan, 0, 1, &canceled);
    assert_true(plan_next(world.plan, &todo)); /* r may have begun: it needs p, which is over */
    assert_true(todo.type == PLAN_SUBMIT && todo.settle && todo.step == 2);
    free(todo.text);
    plan_on_final(world.plan, 2, 0, &never);
    expect_submit(&world, "u", 0, "[7,null,null]");
    succeed(&world, "u", 0, "1");
    expect_failure(&world, "step q: FAILED");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_expressions),
        cmocka_unit_test(test_expressions_of_a_large_map),
        cmocka_unit_test(test_expressions_that_fail),
        cmocka_unit_test(test_transforms),
        cmocka_unit_test(test_a_transform_has_a_limit),
        cmocka_unit_test(test_fallbacks),
        cmocka_unit_test(test_another_step_stands_in),
        cmocka_unit_test(test_a_stand_in_that_fails_ends_the_run),
        cmocka_unit_test(test_a_fallback_that_fails_ends_the_run),
        cmocka_unit_test(test_waits_and_approvals),
        cmocka_unit_test(test_waits_that_fail),
        cmocka_unit_test(test_a_rejection_ends_the_run),
        cmocka_unit_test(test_a_loop),
        cmocka_unit_test(test_a_loop_that_ends_badly),
        cmocka_unit_test(test_linear),
        cmocka_unit_test(test_join_waits_for_all),
        cmocka_unit_test(test_map_keeps_order_and_room),
        cmocka_unit_test(test_map_of_nothing_and_of_what_is_no_list),
        cmocka_unit_test(test_map_may_lose_some),
        cmocka_unit_test(test_outputs_that_are_not_as_promised),
        cmocka_unit_test(test_conditions),
        cmocka_unit_test(test_a_failure_ends_the_run),
        cmocka_unit_test(test_a_failure_may_be_passed_over),
        cmocka_unit_test(test_what_is_not_there_names_its_step),
        cmocka_unit_test(test_a_stream_comes_to_a_text),
        cmocka_unit_test(test_outputs_that_are_no_json),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_a_large_map_in_little_memory),
        cmocka_unit_test(test_outputs_have_a_limit),
        cmocka_unit_test(test_a_switch_chooses_steps),
        cmocka_unit_test(test_a_switch_without_its_case),
        cmocka_unit_test(test_what_succeeded_is_undone),
        cmocka_unit_test(test_what_ends_well_is_not_undone),
        cmocka_unit_test(test_what_runs_is_settled_first),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
