/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: a run does what its chain says, in the order that it says, and ends in one result or one
 * named reason. */

#include "chain_plan_world.h"

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_expressions),
        cmocka_unit_test(test_expressions_of_a_large_map),
        cmocka_unit_test(test_expressions_that_fail),
        cmocka_unit_test(test_transforms),
        cmocka_unit_test(test_a_transform_has_a_limit),
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
        cmocka_unit_test(test_conditions),
        cmocka_unit_test(test_cancel),
        cmocka_unit_test(test_a_large_map_in_little_memory),
        cmocka_unit_test(test_a_switch_chooses_steps),
        cmocka_unit_test(test_a_switch_without_its_case),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
