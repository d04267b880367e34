/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: what fails ends its run, or its step alone, or is stood in for, as the chain says; what had
 * succeeded is undone; and outputs are what they were promised to be. */

#include "chain_plan_world.h"

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
    struct plan_final final = {.state = JOB_SUCCEEDED,
                               .output = {(const uint8_t *)"pieces\n", 7},
                               .output_type = WIRE_TEXT_OF("audio/wav")};
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
    expect_failure(&no_text, "output: an output is no JSON but audio/wav of 1 bytes");
}

static void test_outputs_that_are_no_json(void **state)
{
    static const struct plan_final image = {.state = JOB_SUCCEEDED,
                                            .output = {(const uint8_t *)"\x89PNG", 4},
                                            .output_type = {"image/png", 9}};
    OWNED(world_done) struct world read = {0};
    OWNED(world_done) struct world unread = {0};
    OWNED(world_done) struct world broken = {0};

    (void)state;
    world_make(&read, "steps: {a: {model: m, input: 1}}", "null");
    expect_submit(&read, "a", 0, "1");
    plan_on_final(read.plan, 0, 0, &image);
    expect_failure(&read, "output: an output is no JSON but image/png of 4 bytes: it can be the "
                          "whole input of a model, and nothing else");
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
    assert_true(plan_next(world.plan, &todo));
    assert_true(todo.type == PLAN_WAIT && todo.settle && todo.step == 3 && todo.text == NULL);
    plan_on_waited(world.plan, 3, NULL, "canceled", "the run has failed");
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
        cmocka_unit_test(test_fallbacks),
        cmocka_unit_test(test_another_step_stands_in),
        cmocka_unit_test(test_a_stand_in_that_fails_ends_the_run),
        cmocka_unit_test(test_a_fallback_that_fails_ends_the_run),
        cmocka_unit_test(test_outputs_that_are_not_as_promised),
        cmocka_unit_test(test_a_failure_ends_the_run),
        cmocka_unit_test(test_a_failure_may_be_passed_over),
        cmocka_unit_test(test_what_is_not_there_names_its_step),
        cmocka_unit_test(test_a_stream_comes_to_a_text),
        cmocka_unit_test(test_outputs_that_are_no_json),
        cmocka_unit_test(test_outputs_have_a_limit),
        cmocka_unit_test(test_what_succeeded_is_undone),
        cmocka_unit_test(test_what_ends_well_is_not_undone),
        cmocka_unit_test(test_what_runs_is_settled_first),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
