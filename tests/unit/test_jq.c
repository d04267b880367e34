/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: expressions come to what jq says; what is wrong in one is told by step, key and line before
 * it runs; one that loops, grows or breaks jq is an error of its request alone, and the next one is
 * answered; and none of them reaches out of its process.
 *
 * The pool starts /proc/self/exe: this program is the host, too. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/loop.h"
#include "brokers/jq.h"

int host_jq_main(int argc, char **argv);

static struct chain *chain_of(const char *expression)
{
    json_t *json = json_pack("{s:{s:{s:s, s:i}, s:{s:s, s:{s:s}}}, s:i}", "steps", "a", "model",
                             "m", "input", 1, "b", "model", "m", "input", "x", expression, "output",
                             1);
    struct chain *chain = NULL;
    struct err err;

    if (chain_parse(json, &chain, &err) < 0)
        fail_msg("%s: %s", expression, err.text);
    json_decref(json);
    return chain;
}

static void test_what_does_not_compile_is_named(void **state)
{
    static const struct {
        const char *expression, *text;
    } cases[] = {
        {"${ foo(1) }", "step b: input.x: jq: line 1: foo/1 is not defined"},
        {"${ 1 +\n bar }", "line 2: bar/0 is not defined"},
        {"${ 1 | }", "syntax error"},
        {"${ \"a }", "syntax error"},
        {"${ $nobody }", "$nobody is not defined"},
        {"${ import \"a\" as a; . }", "unexpected import"},
        {"${ include \"a\"; . }", "unexpected include"},
        {"${ env }", "env is not there in a chain"},
        {"${ \"\\(env)\" }", "env is not there in a chain"},
        {"${ def f: input; f }", "input is not there in a chain"},
        {"${ [inputs] }", "inputs is not there"},
        {"${ debug }", "debug is not there"},
        {"${ stderr }", "stderr is not there"},
        {"${ halt }", "halt is not there"},
        {"${ halt_error }", "halt_error is not there"},
        {"${ halt_error(1) }", "halt_error is not there"},
        {"${ now }", "now is not there"},
        {"${ 0 | localtime }", "localtime is not there"},
        {"${ 0 | strflocaltime(\"%H\") }", "strflocaltime is not there"},
        {"${ input_filename }", "input_filename is not there"},
        {"${ input_line_number }", "input_line_number is not there"},
        {"${ get_search_list }", "get_search_list is not there"},
        {"${ $__prog_args }", "$__prog_args is not defined"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        OWNED(chain_free) struct chain *chain = chain_of(cases[i].expression);
        struct err err = {0};

        assert_int_equal(jq_check(chain, &err), ERR_MALFORMED);
        if (strstr(err.text, cases[i].text) == NULL)
            fail_msg("%s: %s", cases[i].expression, err.text);
    }
}

/* ---- the pool ---- */

struct world {
    struct loop *loop;
    struct chain *chain;
    struct jq_pool *pool;
    unsigned done, errors;
    json_t *values;
    char error[300];
};

static void world_make(struct world *world, const char *expression)
{
    struct err err;

    world->chain = chain_of(expression);
    if (jq_check(world->chain, &err) < 0 || loop_open(&world->loop, &err) < 0)
        fail_msg("%s", err.text);
    world->pool = jq_pool_new(world->loop, world->chain);
}

static void world_done(struct world *world)
{
    jq_pool_close(&world->pool);
    loop_close(&world->loop);
    chain_free(&world->chain);
    json_decref(world->values);
}

static void on_done(void *opaque, json_t *values, const char *error)
{
    struct world *world = opaque;

    assert_true((values == NULL) == (error != NULL));
    json_decref(world->values);
    world->values = values;
    world->done++;
    world->errors += error != NULL;
    mem_copy_text(world->error, error == NULL ? "" : error);
}

static void ask(struct world *world, const char *input)
{
    char *request = xasprintf("{\"n\":0,\"input\":%s,\"steps\":{\"a\":{\"output\":[7]}},\"run\":"
                              "{\"id\":\"r\"},\"items\":[null],\"first\":0}",
                              input);

    jq_pool_ask(world->pool, &request, strlen(request), on_done, world);
}

static void wait_for(struct world *world, unsigned count)
{
    uint64_t end_ms = clock_mono_ms() + 60000;
    bool never = false;

    while (world->done < count && clock_mono_ms() < end_ms)
        (void)loop_run_until(world->loop, &never, 5);
    assert_int_equal(world->done, count);
}

static void expect_output(struct world *world, const char *input, const char *value)
{
    json_t *wanted = json_loads(value, JSON_DECODE_ANY, NULL);

    ask(world, input);
    wait_for(world, world->done + 1);
    assert_string_equal(world->error, "");
    assert_true(
        json_equal(json_array_get(json_array_get(json_array_get(world->values, 0), 0), 0), wanted));
    json_decref(wanted);
}

static void expect_failure(struct world *world, const char *input, const char *error)
{
    ask(world, input);
    wait_for(world, world->done + 1);
    if (strstr(world->error, error) == NULL)
        fail_msg("%s: %s", input, world->error);
}

static void test_values(void **state)
{
    OWNED(world_done) struct world world = {0};

    (void)state;
    world_make(&world, "${ [$input.n + 1, .n, $steps.a.output[0], $run.id] # of all }");
    expect_output(&world, "{\"n\":1}", "[2,1,7,\"r\"]");
    expect_output(&world, "{\"n\":5}", "[6,5,7,\"r\"]");
    expect_failure(&world, "{\"n\":\"x\"}", "string (\"x\") and number (1) cannot be added");
    expect_output(&world, "{\"n\":2.5}", "[3.5,2.5,7,\"r\"]");
}

static void test_what_takes_too_much(void **state)
{
    static const char mean[] =
        "${ if . == \"loop\" then last(range(1e18))"
        "   elif . == \"grow\" then [limit(1e12; repeat(\"a long text that is kept\"))] | length"
        "   elif . == \"text\" then reduce range(40) as $i (\"x\"; . + .) | length"
        "   elif . == \"deep\" then def f: 1 + f; f"
        "   elif . == \"nest\" then reduce range(1e6) as $i (null; [.]) | tojson | length"
        "   elif . == \"error\" then error({why: \"mine\"})"
        "   elif . == \"null\" then error(null)"
        "   else . end }";
    OWNED(world_done) struct world world = {0};

    (void)state;
    world_make(&world, mean);
    expect_output(&world, "\"good\"", "\"good\"");
    expect_failure(&world, "\"loop\"", "took over 2 s of processor time");
    expect_output(&world, "\"good\"", "\"good\"");
    expect_failure(&world, "\"grow\"", "took over");
    expect_failure(&world, "\"text\"", "took over 768 MiB of memory");
    expect_failure(&world, "\"deep\"", "took over");
    ask(&world, "\"nest\""); /* jq 1.6 lives, or does not: its request is answered */
    wait_for(&world, world.done + 1);
    expect_failure(&world, "\"error\"", "{\"why\":\"mine\"}");
    ask(&world, "\"null\"");
    wait_for(&world, world.done + 1);
    expect_output(&world, "[\"good\"]", "[\"good\"]");
}

/* An expression that loops holds one process, not the others. */
static void test_many_at_once(void **state)
{
    OWNED(world_done) struct world world = {0};

    (void)state;
    world_make(&world, "${ if . == 13 then last(range(1e18)) else . end }");
    for (unsigned i = 0; i < 50; i++) {
        OWNED(mem_free) char *input = xasprintf("%u", i);

        ask(&world, input);
    }
    wait_for(&world, 50);
    assert_int_equal(world.errors, 1);
}

/* Kills children of this process. */
static unsigned kill_hosts(void)
{
    OWNED(mem_free) char *path = xasprintf("/proc/self/task/%d/children", (int)getpid());
    FILE *file = fopen(path, "r");
    unsigned count = 0;
    int pid;

    assert_non_null(file);
    while (fscanf(file, "%d", &pid) == 1)
        count += kill(pid, SIGKILL) == 0;
    (void)fclose(file);
    return count;
}

static void test_a_killed_process_is_no_error(void **state)
{
    OWNED(world_done) struct world world = {0};
    bool never = false;

    (void)state;
    world_make(&world, "${ if . == 1 then last(range(600000)) else . end }");
    expect_output(&world, "0", "0");
    ask(&world, "1");
    (void)loop_run_until(world.loop, &never, 5);
    assert_int_not_equal(kill_hosts(), 0);
    wait_for(&world, 2);
    assert_string_equal(world.error, "");
}

/* Whoever reads files or the environment would have to open or inherit them. */
static void test_nothing_to_reach(void **state)
{
    OWNED(world_done) struct world world = {0};
    char path[64], bytes[4096];
    unsigned found = 0;
    FILE *file;
    int pid;

    (void)state;
    world_make(&world, "${ . }");
    expect_output(&world, "0", "0");
    (void)snprintf(path, sizeof(path), "/proc/self/task/%d/children", (int)getpid());
    file = fopen(path, "r");
    assert_non_null(file);
    while (fscanf(file, "%d", &pid) == 1) {
        FILE *of_child;
        size_t size;

        (void)snprintf(path, sizeof(path), "/proc/%d/environ", pid);
        of_child = fopen(path, "r");
        assert_non_null(of_child);
        size = fread(bytes, 1, sizeof(bytes), of_child);
        (void)fclose(of_child);
        assert_int_equal(size, sizeof("TZ=UTC0"));
        assert_string_equal(bytes, "TZ=UTC0");
        (void)snprintf(path, sizeof(path), "/proc/%d/status", pid);
        of_child = fopen(path, "r");
        assert_non_null(of_child);
        while (fgets(bytes, sizeof(bytes), of_child) != NULL)
            found += strcmp(bytes, "Seccomp:\t2\n") == 0;
        (void)fclose(of_child);
    }
    (void)fclose(file);
    assert_int_equal(found, 1);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_does_not_compile_is_named),
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_what_takes_too_much),
        cmocka_unit_test(test_many_at_once),
        cmocka_unit_test(test_a_killed_process_is_no_error),
        cmocka_unit_test(test_nothing_to_reach),
    };

    if (argc == 2 && strcmp(argv[1], "host-jq") == 0)
        return host_jq_main(argc, argv);
#ifdef HEADRACE_WITH_TSAN
    (void)puts(
        "skipped: ThreadSanitizer needs calls that the sandbox of a jq process refuses; there is "
        "one thread in it");
    return 77;
#endif
    return cmocka_run_group_tests(tests, NULL, NULL);
}
