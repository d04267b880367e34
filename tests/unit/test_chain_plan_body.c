/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: an output that is no JSON goes as it is, with its type, to a model whose whole input it is;
 * wherever else it is named the run fails by a name, and nothing that a model answers can be taken
 * for one. */

#include "chain_plan_world.h"

#define PNG "\x89PNG\0\xff"
#define PNG_SIZE (sizeof(PNG) - 1)
#define REFUSED                                                                                    \
    "an output is no JSON but image/png of 6 bytes: it can be the whole input of a model, and "    \
    "nothing else"

static void answer_png(struct world *world, const char *step, uint32_t item)
{
    const struct plan_final final = {.state = JOB_SUCCEEDED,
                                     .output = {(const uint8_t *)PNG, PNG_SIZE},
                                     .output_type = WIRE_TEXT_OF("image/png")};

    assert_true(plan_on_final(world->plan, (uint32_t)chain_find(world->chain, step), item, &final));
}

static void expect_png(struct world *world, const char *step, uint32_t item)
{
    struct plan_todo todo;

    assert_true(plan_next(world->plan, &todo));
    assert_int_equal(todo.type, PLAN_SUBMIT);
    assert_string_equal(world->chain->steps[todo.step].name, step);
    assert_int_equal(todo.item, item);
    assert_string_equal(todo.text_type, "image/png");
    assert_int_equal(todo.text_size, PNG_SIZE);
    assert_memory_equal(todo.text, PNG, PNG_SIZE);
    free(todo.text);
}

static void test_a_whole_input(void **state)
{
    OWNED(world_done) struct world world = {0};
    struct plan_todo todo;

    (void)state;
    world_make(&world,
               "steps: {a: {model: m, input: 1}, b: {model: m, input: '{{ steps.a.output }}'},\n"
               " c: {model: m, input: '{{steps.b.output}}'}}",
               "null");
    assert_true(plan_next(world.plan, &todo));
    assert_null(todo.text_type);
    free(todo.text);
    answer_png(&world, "a", 0);
    expect_png(&world, "b", 0);
    answer_png(&world, "b", 0);
    expect_png(&world, "c", 0);
    succeed(&world, "c", 0, "\"done\"");
    expect_output(&world, "\"done\"");
}

/* Item by item, from one map to the next. */
static void test_a_map(void **state)
{
    OWNED(world_done) struct world world = {0};

    (void)state;
    world_make(&world,
               "steps:\n"
               "  a: {model: m, map: '{{input}}', input: '{{item}}'}\n"
               "  b: {model: m, map: '{{steps.a.output}}', input: '{{item}}'}\n"
               "  c: {model: m, input: '{{steps.a.output.1}}', needs: [b]}\n"
               "output: '{{steps.c.output}}'",
               "[1, 2]");
    expect_submit(&world, "a", 0, "1");
    expect_submit(&world, "a", 1, "2");
    answer_png(&world, "a", 0);
    answer_png(&world, "a", 1);
    expect_png(&world, "b", 0);
    expect_png(&world, "b", 1);
    answer_png(&world, "b", 0);
    answer_png(&world, "b", 1);
    expect_png(&world, "c", 0);
    succeed(&world, "c", 0, "3");
    expect_output(&world, "3");
}

static void test_everywhere_else_it_is_refused(void **state)
{
    static const struct {
        const char *rest, *why;
    } rows[] = {
        {"  b: {model: m, input: {image: '{{steps.a.output}}'}}", "step b: input: " REFUSED},
        {"  b: {model: m, input: 'of {{steps.a.output}}'}",
         "step b: input: steps.a.output: " REFUSED},
        {"  b: {model: m, input: '{{steps.a.output.size}}'}",
         "step b: input: steps.a.output.size: " REFUSED},
        {"  b: {model: m, input: '${ $steps.a.output }'}", "step b: input: " REFUSED},
        {"  b: {model: m, input: 1, when: '{{steps.a.output}}'}", "step b: when: " REFUSED},
        {"  b: {model: m, map: '{{steps.a.output}}', input: '{{item}}'}", "step b: map: " REFUSED},
        {"  b: {transform: '{{steps.a.output}}'}", "step b: transform: " REFUSED},
        {"  b: {approval: '{{steps.a.output}}'}", "step b: approval: " REFUSED},
        {"  b: {switch: '{{steps.a.output}}', cases: {x: []}}", "step b: switch: " REFUSED},
        {"  b: {http: {url: 'http://x/', method: POST, body: '{{steps.a.output}}'}}",
         "step b: http: " REFUSED},
        {"output: '{{steps.a.output}}'", "output: " REFUSED},
        {"output: {it: ['{{steps.a.output}}']}", "output: " REFUSED},
        {"", "output: " REFUSED},
    };

    (void)state;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        OWNED(world_done) struct world world = {0};
        OWNED(mem_free)
        char *yaml = xasprintf("steps:\n  a: {model: m, input: 1}\n%s\n", rows[i].rest);

        world_make(&world, yaml, "null");
        expect_submit(&world, "a", 0, "1");
        answer_png(&world, "a", 0);
        expect_failure(&world, rows[i].why);
    }
}

/* A list of some is none, and neither is it the input of a model. */
static void test_a_list_of_them(void **state)
{
    OWNED(world_done) struct world world = {0};

    (void)state;
    world_make(&world,
               "steps: {a: {model: m, map: [1], input: '{{item}}'}, b: {model: m, input: "
               "'{{steps.a.output}}'}}",
               "null");
    expect_submit(&world, "a", 0, "1");
    answer_png(&world, "a", 0);
    expect_failure(&world, "step b: input: " REFUSED);
}

static void test_what_looks_like_one_is_none(void **state)
{
    OWNED(world_done) struct world world = {0};

    (void)state;
    world_make(&world,
               "steps: {a: {model: m, input: 1}, like: {model: m, input: 2},\n"
               " b: {model: m, input: '{{steps.a.output}}'},\n"
               " c: {model: m, input: {x: '{{steps.like.output}}'}}}\noutput: 1",
               "null");
    expect_submit(&world, "a", 0, "1");
    expect_submit(&world, "like", 0, "2");
    answer_png(&world, "a", 0);
    expect_png(&world, "b", 0);
    succeed(&world, "like", 0, "{\"content_type\":\"image/png\",\"size\":6}");
    expect_submit(&world, "c", 0, "{\"x\":{\"content_type\":\"image/png\",\"size\":6}}");
}

/* It is no JSON, so no schema fits it; a failure that may be leaves null. */
static void test_a_schema(void **state)
{
    OWNED(world_done) struct world world = {0};

    (void)state;
    world_make(&world,
               "steps: {a: {model: m, input: 1, on_error: skip, output_schema: {type: object}}}\n"
               "output: '{{steps.a.error.message}}'",
               "null");
    expect_submit(&world, "a", 0, "1");
    const struct plan_final final = {.state = JOB_SUCCEEDED,
                                     .output = {(const uint8_t *)PNG, PNG_SIZE},
                                     .output_type = WIRE_TEXT_OF("image/png")};
    (void)plan_on_final(world.plan, 0, 0, &final);
    expect_output(&world, "\"output_schema: it is image/png of 6 bytes, and no JSON\"");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_whole_input),
        cmocka_unit_test(test_a_map),
        cmocka_unit_test(test_everywhere_else_it_is_refused),
        cmocka_unit_test(test_a_list_of_them),
        cmocka_unit_test(test_what_looks_like_one_is_none),
        cmocka_unit_test(test_a_schema),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
