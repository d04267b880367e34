/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: a chain is taken as documented; what is wrong in one is refused by step, key and value; and
 * templates give what they name. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "schema/chain.h"
#include "schema/chain_template.h"
#include "schema/yaml_json.h"

static int parse(const char *yaml, struct chain **ret_chain, struct err *err)
{
    json_t *json = NULL;
    int r = yaml_json_parse("chain.yaml", yaml, strlen(yaml), &json, err);

    if (r == 0)
        r = chain_parse(json, ret_chain, err);
    json_decref(json);
    return r;
}

static const char rag[] = "description: answers from documents\n"
                          "timeout_seconds: 60\n"
                          "priority: 1\n"
                          "steps:\n"
                          "  split: {model: splitter, input: {text: '{{input.text}}'}}\n"
                          "  embed:\n"
                          "    model: minilm\n"
                          "    environment: staging\n"
                          "    map: '{{ steps.split.output.chunks }}'\n"
                          "    input: {text: '{{item}}'}\n"
                          "    max_parallel: 8\n"
                          "    max_failures: 2\n"
                          "    retry: {max_attempts: 5, initial_delay_ms: 10, max_delay_ms: 20}\n"
                          "    timeout_seconds: 30\n"
                          "    max_time_in_queue_seconds: 60\n"
                          "    priority: 2\n"
                          "  rank:\n"
                          "    model: ranker\n"
                          "    deployment: d1\n"
                          "    input: ['{{steps.embed.output}}', '{{input.question}}']\n"
                          "    needs: [split]\n"
                          "    when: '{{steps.embed.output}}'\n"
                          "    on_error: skip\n"
                          "output: {best: '{{steps.rank.output.best?}}'}\n";

static void test_everything(void **state)
{
    OWNED(chain_free) struct chain *chain = NULL;
    const struct chain_step *embed, *rank;
    struct err err;

    (void)state;
    assert_int_equal(parse(rag, &chain, &err), 0);
    assert_int_equal(chain->step_count, 3);
    embed = &chain->steps[1];
    rank = &chain->steps[2];
    assert_string_equal(chain->steps[0].environment, "production");
    assert_int_equal(chain->steps[0].max_parallel, CHAIN_PARALLEL_DEFAULT);
    assert_int_equal(chain->steps[0].priority, 1);
    assert_int_equal(chain->run_limit_ms, 60000);
    assert_string_equal(embed->environment, "staging");
    assert_int_equal(embed->max_parallel, 8);
    assert_int_equal(embed->max_failures, 2);
    assert_int_equal(embed->max_attempts, 5);
    assert_int_equal(embed->initial_delay_ms, 10);
    assert_int_equal(embed->max_delay_ms, 20);
    assert_int_equal(embed->run_limit_ms, 30000);
    assert_int_equal(embed->queue_limit_ms, 60000);
    assert_int_equal(embed->priority, 2);
    assert_int_equal(embed->needs, 1);
    assert_string_equal(rank->deployment, "d1");
    assert_int_equal(rank->needs, 3);
    assert_true(rank->may_fail);
    assert_int_equal(chain->used, 7);
    assert_int_equal(chain_find(chain, "rank"), 2);
    assert_int_equal(chain_find(chain, "none"), -1);
}

#define STEP(rest) "steps: {a: {model: m, input: 1" rest "}}"
#define TWO(a, b) "steps: {a: {model: m, input: " a "}, b: {model: m, input: " b "}}"

struct wrong {
    const char *yaml;
    int code;
    const char *text;
};

static void expect_wrong(const struct wrong *cases, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        OWNED(chain_free) struct chain *chain = NULL;
        struct err err = {0};
        int r = parse(cases[i].yaml, &chain, &err);

        if (r != cases[i].code || strstr(err.text, cases[i].text) == NULL)
            fail_msg("%s: %d %s", cases[i].yaml, r, err.text);
        assert_null(chain);
    }
}

static void test_what_is_wrong_in_expressions(void **state)
{
    static const struct wrong cases[] = {
        {TWO("'${ $steps.c.output }'", "1"), ERR_RANGE, "step a: input: there is no step 'c'"},
        {TWO("'${ \"\\($steps.c)\" }'", "1"), ERR_RANGE, "there is no step 'c'"},
        {TWO("'${ $steps.b.outputs }'", "1"), ERR_MALFORMED, "there are output, state and error"},
        {TWO("'${ $steps | keys }'", "1"), ERR_MALFORMED, "must stand the name of a step"},
        {TWO("'${ $steps[$input.x] }'", "1"), ERR_MALFORMED, "must stand the name of a step"},
        {TWO("'${ $ item }'", "1"), ERR_MALFORMED, "only in a step with map"},
        {TWO("'${ $ENV.PATH }'", "1"), ERR_MALFORMED, "$ENV is not there"},
        {TWO("'${ 1) | (2 }'", "1"), ERR_MALFORMED, "a ')' in it closes nothing"},
        {TWO("'${ $steps.b.output }'", "'${ $steps[\"a\"].output }'"), ERR_MISMATCH,
         "steps wait for each other: "},
    };

    (void)state;
    expect_wrong(cases, COUNT_OF(cases));
}

static void test_what_is_wrong_in_a_switch(void **state)
{
    static const struct wrong cases[] = {
        {"steps: {a: {switch: 1}}", ERR_MALFORMED, "step a: cases is missing"},
        {"steps: {a: {switch: 1, cases: {}}}", ERR_RANGE, "cases must be an object of 1 to 64"},
        {"steps: {a: {switch: 1, cases: {x: 1}}}", ERR_MALFORMED,
         "step a: cases.x must be a step or a list of steps"},
        {"steps: {a: {switch: 1, cases: {x: [b]}}}", ERR_RANGE,
         "step a: cases.x: there is no step 'b'"},
        {"steps: {a: {switch: 1, cases: {x: []}, default: c}}", ERR_RANGE,
         "step a: default: there is no step 'c'"},
        {"steps: {a: {switch: 1, cases: {x: a}}}", ERR_MISMATCH, "wait for each other: a -> a"},
        {"steps: {a: {switch: 1, cases: {x: []}, map: []}}", ERR_MISMATCH,
         "map has no meaning with switch"},
        {"steps: {a: {switch: 1, cases: {x: []}, on_error: fallback, fallback: 1}}", ERR_MISMATCH,
         "fallback has no meaning with switch: there is default"},
        {STEP(", cases: {x: a}"), ERR_MISMATCH, "only with switch"},
        {STEP(", default: a"), ERR_MISMATCH, "only with switch"},
    };

    (void)state;
    expect_wrong(cases, COUNT_OF(cases));
}

static void test_what_is_wrong_in_a_schema(void **state)
{
    static const struct wrong cases[] = {
        {STEP(", output_schema: 5"), ERR_MALFORMED,
         "step a: output_schema: it must be a schema: an object, true or false"},
        {STEP(", output_schema: {properties: {b: {pattern: x}}}"), ERR_UNSUPPORTED,
         "step a: output_schema: properties.b.pattern is not checked here"},
        {STEP(", output_schema: {allOf: [{$ref: '#'}]}"), ERR_TOO_BIG, "refers to itself"},
        {"steps: {a: {wait: 1, output_schema: {}}}", ERR_MISMATCH,
         "step a: output_schema has no meaning with wait"},
    };

    (void)state;
    expect_wrong(cases, COUNT_OF(cases));
}

static void test_what_is_wrong_in_a_cache(void **state)
{
    static const struct wrong cases[] = {
        {STEP(", stream: 5"), ERR_MALFORMED, "step a: stream must be a truth value"},
        {STEP(", stream: true, map: []"), ERR_MISMATCH, "stream has no meaning with map or loop"},
        {"steps: {a: {wait: 1, stream: true}}", ERR_MISMATCH, "stream has no meaning with wait"},
        {"steps: {a: {model: m, input: 1, stream: true}, b: {model: m, input: "
         "'{{steps.a.output}}', "
         "stream: true}}",
         ERR_MISMATCH, "both step a and step b have stream"},
        {STEP(", cache: 5"), ERR_MALFORMED, "step a: cache must be an object"},
        {STEP(", cache: {}"), ERR_MALFORMED, "step a: cache.ttl_seconds is missing"},
        {STEP(", cache: {ttl_seconds: 86401}"), ERR_RANGE,
         "step a: cache.ttl_seconds is 86401, it must be 1 to 86400"},
        {STEP(", cache: {ttl_seconds: 9, by: x}"), ERR_UNSUPPORTED,
         "step a: cache has no key 'by'; there is ttl_seconds"},
        {"steps: {a: {transform: 1, cache: {ttl_seconds: 9}}}", ERR_MISMATCH,
         "step a: cache has no meaning with transform"},
        {"steps: {a: {model: m, input: 1, compensate: b, cache: {ttl_seconds: 9}}, b: {model: m, "
         "input: 1}}",
         ERR_MISMATCH, "step a: both compensate and cache are set"},
        {"steps: {a: {model: m, input: 1, compensate: b}, b: {model: m, input: 1, cache: "
         "{ttl_seconds: 9}}}",
         ERR_MISMATCH, "step a: compensate: step b has a cache"},
    };

    (void)state;
    expect_wrong(cases, COUNT_OF(cases));
}

#define CALL(rest) "secrets: [S]\nsteps: {a: {http: {" rest "}}}"

static void test_what_is_wrong_in_a_call(void **state)
{
    static const struct wrong cases[] = {
        {"steps: {a: {http: 5}}", ERR_MALFORMED, "step a: http must be an object"},
        {CALL(""), ERR_MALFORMED, "step a: http.url must be a text"},
        {CALL("url: 'ftp://a/'"), ERR_RANGE, "http.url must begin with http:// or https://"},
        {CALL("url: 'http://a/{{steps.b.output}}'"), ERR_RANGE, "there is no step 'b'"},
        {CALL("url: 'http://a/', method: TRACE"), ERR_RANGE, "http.method must be GET, HEAD, POST"},
        {CALL("url: 'http://a/', method: GET, body: 1"), ERR_MISMATCH, "no meaning with GET"},
        {CALL("url: 'http://a/', verb: GET"), ERR_UNSUPPORTED, "http has no key 'verb'"},
        {CALL("url: 'http://a/', headers: {Host: b}"), ERR_RANGE, "http.headers: 'Host' must be"},
        {CALL("url: 'http://a/', headers: {'a b': b}"), ERR_RANGE, "http.headers: 'a b' must be"},
        {CALL("url: 'http://a/', headers: {x: 5}"), ERR_MALFORMED,
         "http.headers.x must be a text, or {secret"},
        {CALL("url: 'http://a/', headers: {x: {secret: '{{input}}'}}"), ERR_MALFORMED,
         "without templates"},
        {CALL("url: '{{input.url}}', headers: {x: {secret: S}}"), ERR_MISMATCH,
         "http.headers.x is a secret, so http.url must say scheme, host"},
        {CALL("url: 'http://a{{input.b}}/', headers: {x: {secret: S}}"), ERR_MISMATCH,
         "in plain text"},
        {CALL("url: 'http://u@a/', headers: {x: {secret: S}}"), ERR_MISMATCH, "in plain text"},
        {CALL("url: 'http://a/', headers: {x: {secret: T}}"), ERR_RANGE,
         "the chain's secrets do not name 'T'"},
        {CALL("url: 'http://a/', statuses: [99]"), ERR_RANGE, "http.statuses.0 must be 200 to 599"},
        {CALL("url: 'http://a/', max_bytes: 1048577"), ERR_RANGE, "must be 1 to 1048576"},
        {"secrets: [5]\nsteps: {a: {wait: 1}}", ERR_RANGE, "secrets.0 is no name of a secret"},
        {"secrets: x\nsteps: {a: {wait: 1}}", ERR_RANGE, "secrets must be a list of up to 32"},
        {"steps: {a: {http: {url: 'http://a/'}, cache: {ttl_seconds: 5}}}", ERR_MISMATCH,
         "cache has no meaning with http"},
        {"steps: {a: {http: {url: 'http://a/'}, model: m}}", ERR_MISMATCH, "both model and http"},
    };
    OWNED(chain_free) struct chain *chain = NULL;
    struct err err;

    (void)state;
    expect_wrong(cases, COUNT_OF(cases));
    assert_int_equal(
        parse(CALL("url: 'https://a.b:1/c?{{input}}', headers: {x: {secret: S, prefix: "
                   "'Bearer '}, y: '{{input}}'}, body: {z: '{{input}}'}, statuses: "
                   "[201, 404]"),
              &chain, &err),
        0);
    assert_string_equal(chain->steps[0].http.method, "POST");
    assert_int_equal(chain->steps[0].http.host_size, strlen("https://a.b:1/"));
    assert_true(chain_http_takes(&chain->steps[0].http, 404) &&
                !chain_http_takes(&chain->steps[0].http, 200));
}

#define FALL(a, b)                                                                                 \
    "steps: {a: {model: m, input: 1, on_error: fallback, fallback_step: b" a "}, b: {" b "}}"

static void test_what_is_wrong_in_a_stand_in(void **state)
{
    static const struct wrong cases[] = {
        {STEP(", on_error: fallback, fallback_step: 5"), ERR_MALFORMED,
         "step a: fallback_step must be the name of a step"},
        {STEP(", on_error: fallback, fallback_step: b"), ERR_RANGE,
         "step a: fallback_step: there is no step 'b'"},
        {STEP(", on_error: fallback, fallback_step: a"), ERR_MISMATCH, "must be another one"},
        {STEP(", fallback_step: a"), ERR_MISMATCH, "need each other"},
        {FALL(", fallback: 1", "model: m, input: 1"), ERR_MISMATCH,
         "step a: both fallback and fallback_step are set"},
        {FALL("", "switch: 1, cases: {x: []}"), ERR_MISMATCH, "step b must be another one, no sw"},
        {FALL("", "model: m, input: 1}, c: {switch: 1, cases: {x: b}"), ERR_MISMATCH,
         "chosen by none"},
        {FALL("", "model: m, input: 1}, c: {model: m, input: 1, compensate: b"), ERR_MISMATCH,
         "undo nothing"},
        {FALL("", "model: m, input: 1}, c: {model: m, input: 1, on_error: fallback, "
                  "fallback_step: b"),
         ERR_MISMATCH, "step b is that of another step, too"},
        {FALL("", "model: m, input: '{{steps.c.output}}'}, c: {model: m, input: "
                  "'{{steps.a.output}}'"),
         ERR_MISMATCH, "steps wait for each other: "},
        {FALL("", "model: m, input: 1, on_error: fallback, fallback_step: a"), ERR_MISMATCH,
         "steps wait for each other: "},
    };

    (void)state;
    expect_wrong(cases, COUNT_OF(cases));
}

#define UNDO(a, b) "steps: {a: {model: m, input: 1, compensate: b" a "}, b: {" b "}}"

static void test_what_is_wrong_in_a_compensation(void **state)
{
    static const struct wrong cases[] = {
        {STEP(", compensate: 5"), ERR_MALFORMED, "step a: compensate must be the name of a step"},
        {STEP(", compensate: b"), ERR_RANGE, "step a: compensate: there is no step 'b'"},
        {STEP(", compensate: a"), ERR_MISMATCH, "step a: compensate: step a must have a model, no"},
        {STEP(", on_error: compensate"), ERR_MISMATCH, "on_error: compensate needs compensate"},
        {UNDO("", "transform: 1"), ERR_MISMATCH, "step b must have a model"},
        {UNDO(", map: [], on_error: skip", "model: m, input: 1"), ERR_MISMATCH,
         "on_error must be fail or compensate"},
        {UNDO("", "model: m, input: 1}, c: {model: m, input: '{{steps.b.output}}'"), ERR_MISMATCH,
         "step c: it waits for step b, which only undoes another"},
        {UNDO("", "model: m, input: 1}, c: {model: m, input: 1, compensate: b"), ERR_MISMATCH,
         "step c: compensate: step b undoes another step, too"},
        {UNDO("", "model: m, input: 1") "\noutput: '{{steps.b.output}}'", ERR_MISMATCH,
         "output: it waits for step b, which only undoes another"},
        {"steps: {a: {wait: 1, compensate: b}, b: {model: m, input: 1}}", ERR_MISMATCH,
         "compensate has no meaning with wait"},
    };

    (void)state;
    expect_wrong(cases, COUNT_OF(cases));
}

static void test_what_is_wrong_is_named(void **state)
{
    static const struct wrong cases[] = {
        {"[]", ERR_MALFORMED, "chain"},
        {"{}", ERR_MALFORMED, "steps must be an object"},
        {"steps: {}", ERR_RANGE, "steps has 0 members"},
        {"steps: {a: 1}", ERR_MALFORMED, "step a: must be an object"},
        {"stepz: {}", ERR_UNSUPPORTED, "no key 'stepz'"},
        {"description: 7\nsteps: {a: {model: m, input: 1}}", ERR_MALFORMED, "description"},
        {"timeout_seconds: 0\nsteps: {a: {model: m, input: 1}}", ERR_RANGE, "must be 1 to 3600"},
        {"priority: low\nsteps: {a: {model: m, input: 1}}", ERR_MALFORMED, "must be a whole"},
        {"webhook: 'ftp://a/'\nsteps: {a: {model: m, input: 1}}", ERR_MALFORMED, "with https"},
        {"steps: {'a b': {model: m, input: 1}}", ERR_RANGE, "'a b' is no name"},
        {"steps: {a: {input: 1}}", ERR_MALFORMED,
         "one of model, transform, wait, approval, switch and http is missing"},
        {"steps: {a: {model: m}}", ERR_MALFORMED, "step a: input is missing"},
        {"steps: {a: {model: 5, input: 1}}", ERR_RANGE, "step a: model must be a text"},
        {STEP(", modle: x"), ERR_UNSUPPORTED, "step a: there is no key 'modle'"},
        {STEP(", environment: e, deployment: d"), ERR_MISMATCH, "both environment and deployment"},
        {STEP(", transform: 1"), ERR_MISMATCH, "both model and transform are set"},
        {"steps: {a: {transform: 1, input: 2}}", ERR_MISMATCH,
         "input has no meaning with transform"},
        {"steps: {a: {transform: 1, wait: 2}}", ERR_MISMATCH, "both transform and wait are set"},
        {"steps: {a: {wait: [1]}}", ERR_MALFORMED, "wait must be seconds, a time, or a template"},
        {"steps: {a: {wait: 1, map: []}}", ERR_MISMATCH, "map has no meaning with wait"},
        {"steps: {a: {wait: 1, timeout_seconds: 5}}", ERR_MISMATCH, "has no meaning with wait"},
        {"steps: {a: {approval: '{{item}}'}}", ERR_MALFORMED, "step a: approval: 'item' has a mea"},
        {STEP(", loop: 5"), ERR_MALFORMED, "step a: loop must be an object"},
        {STEP(", loop: {max_iterations: 5}"), ERR_MALFORMED, "loop.until is missing"},
        {STEP(", loop: {until: true, max_iterations: 1001}"), ERR_RANGE, "must be 1 to 1000"},
        {STEP(", loop: {until: true, while: 1}"), ERR_UNSUPPORTED, "loop has no key 'while'"},
        {STEP(", map: [], loop: {until: true}"), ERR_MISMATCH, "both map and loop are set"},
        {"steps: {a: {wait: 1, loop: {until: true}}}", ERR_MISMATCH, "loop has no meaning with"},
        {STEP(", fallback: 1"), ERR_MISMATCH, "on_error: fallback and fallback need each"},
        {STEP(", on_error: fallback"), ERR_MISMATCH, "on_error: fallback and fallback need each"},
        {STEP(", max_parallel: 4"), ERR_MISMATCH, "only with map"},
        {STEP(", map: {}"), ERR_MALFORMED, "step a: map must be a template or a list"},
        {STEP(", map: [], max_parallel: 0"), ERR_RANGE,
         "step a: max_parallel is 0, it must be 1 to 4096"},
        {STEP(", map: [], max_failures: many"), ERR_MALFORMED, "max_failures must be a whole"},
        {STEP(", retry: {max_attempts: 11}"), ERR_RANGE,
         "retry.max_attempts is 11, it must be 1 to 10"},
        {STEP(", retry: {tries: 1}"), ERR_UNSUPPORTED, "retry has no key 'tries'"},
        {STEP(", retry: 3"), ERR_MALFORMED, "retry must be an object"},
        {STEP(", on_error: explode"), ERR_RANGE, "on_error is 'explode'"},
        {STEP(", when: [1]"), ERR_MALFORMED, "step a: when must be"},
        {STEP(", timeout_seconds: 0"), ERR_RANGE, "timeout_seconds is 0"},
        {STEP(", max_time_in_queue_seconds: 9"), ERR_RANGE, "must be 10 to 259200"},
        {STEP(", priority: 3"), ERR_RANGE, "priority is 3, it must be 0 to 2"},
        {STEP(", needs: b"), ERR_MALFORMED, "step a: needs must be a list"},
        {STEP(", needs: [b]"), ERR_RANGE, "step a: needs.0: there is no step 'b'"},
        {TWO("'{{steps.c.output}}'", "1"), ERR_RANGE, "step a: input: there is no step 'c'"},
        {TWO("{x: [1, '{{nothing}}']}", "1"), ERR_MALFORMED,
         "step a: input.x.1: 'nothing' is not known"},
        {TWO("'{{item}}'", "1"), ERR_MALFORMED, "only in a step with map"},
        {TWO("'{{input.x'", "1"), ERR_MALFORMED, "does not close it"},
        {TWO("'{{}}'", "1"), ERR_MALFORMED, "must name 1 to 256 bytes"},
        {TWO("'{{input..x}}'", "1"), ERR_MALFORMED, "is no path"},
        {TWO("'{{input[0]}}'", "1"), ERR_MALFORMED, "is no path"},
        {TWO("'{{steps.b.outputs}}'", "1"), ERR_MALFORMED, "must go on with"},
        {TWO("'{{steps.b.output}}'", "'{{steps.a.output}}'"), ERR_MISMATCH,
         "steps wait for each other: "},
        {TWO("'{{steps.a.output}}'", "1"), ERR_MISMATCH, "a -> a"},
        {TWO("1", "2"), ERR_MALFORMED, "output is missing, and 2 steps are last: a and b are"},
        {STEP("") "\noutput: '{{steps.b.output}}'", ERR_RANGE, "output: there is no step 'b'"},
    };

    (void)state;
    expect_wrong(cases, COUNT_OF(cases));
}

/* What an expression needs is read from its text, where it is no text of its own and no comment. */
static void test_what_expressions_read(void **state)
{
    static const char yaml[] =
        "steps:\n"
        "  a: {model: m, input: 1}\n"
        "  b-2: {model: m, input: 2}\n"
        "  c: {model: m, input: {x: '${ $steps.a.output + $steps[\"b-2\"].state }', y: "
        "'{{input}}', "
        "z: '${ 1 }'}}\n"
        "  d:\n"
        "    model: m\n"
        "    map: |-\n"
        "      ${ . # $steps.nobody\n"
        "       | [\"$steps.nobody \\(\"\\(1)\" + $steps.\"c\".output)\"] }\n"
        "    input: '${ $item }'\n"
        "output: '${ $steps.d.output? }'\n";
    OWNED(chain_free) struct chain *chain = NULL;
    const struct chain_step *c, *d;
    struct err err = {0};

    (void)state;
    if (parse(yaml, &chain, &err) < 0)
        fail_msg("%s", err.text);
    c = &chain->steps[2];
    d = &chain->steps[3];
    assert_int_equal(c->needs, 3);
    assert_int_equal(d->needs, 4);
    assert_int_equal(chain->jq.expression_count, 5);
    assert_int_equal(chain->jq.part_count, 4);
    assert_int_equal(chain->jq.parts[c->jq[CHAIN_KEY_INPUT]].count, 2);
    assert_int_equal(chain->jq.parts[c->jq[CHAIN_KEY_INPUT]].reads, 3);
    assert_string_equal(chain->jq.expressions[1].where, "step c: input.z");
    assert_int_equal(c->jq[CHAIN_KEY_MAP], CHAIN_NO_JQ);
    assert_int_equal(chain->jq.parts[d->jq[CHAIN_KEY_INPUT]].reads, 0);
    assert_int_equal(chain->jq.parts[d->jq[CHAIN_KEY_MAP]].reads, 4);
    assert_int_equal(chain->jq.parts[chain->output_jq].reads, 8);
}

/* What editors know, the parser takes, and the other way round. */
static void test_the_schema_has_the_parsers_keys(void **state)
{
    json_t *schema = json_load_file("schema/chain.schema.json", 0, NULL);
    json_t *step = json_object_get(json_object_get(schema, "definitions"), "step"), *value;
    json_t *retry, *properties = json_object_get(step, "properties");
    size_t count = 0;
    const char *key;

    (void)state;
    assert_non_null(properties);
    for (; chain_step_key(count) != NULL; count++) {
        if (json_object_get(properties, chain_step_key(count)) == NULL)
            fail_msg("the schema has no '%s'", chain_step_key(count));
    }
    assert_int_equal(count, json_object_size(properties));
    retry = json_object_get(json_object_get(properties, "retry"), "properties");
    for (count = 0; chain_key(count) != NULL; count++)
        assert_non_null(json_object_get(json_object_get(schema, "properties"), chain_key(count)));
    assert_int_equal(count, json_object_size(json_object_get(schema, "properties")));
    json_object_foreach(retry, key, value)
    {
        OWNED(mem_free) char *yaml = xasprintf(STEP(", retry: {%s: 1}"), key);
        OWNED(chain_free) struct chain *chain = NULL;
        struct err err;

        assert_int_equal(parse(yaml, &chain, &err), 0);
    }
    assert_int_equal(json_object_size(retry), 3);
    json_decref(schema);
}

static void test_a_cycle_is_told_from_its_inside(void **state)
{
    OWNED(chain_free) struct chain *chain = NULL;
    struct err err;

    (void)state;
    assert_int_equal(parse("steps:\n"
                           "  a: {model: m, input: '{{steps.c.output}}'}\n"
                           "  b: {model: m, input: '{{steps.a.output}}'}\n"
                           "  c: {model: m, input: '{{steps.b.output}}'}\n"
                           "  d: {model: m, input: '{{steps.c.output}}'}\n",
                           &chain, &err),
                     ERR_MISMATCH);
    assert_non_null(strstr(err.text, "steps wait for each other: "));
    assert_null(strstr(err.text, "d ->"));
}

static void test_limits_of_a_chain(void **state)
{
    json_t *json = json_pack("{s:{}, s:n}", "steps", "output"), *large;
    OWNED(chain_free) struct chain *chain = NULL;
    struct err err;

    (void)state;
    for (int i = 0; i < CHAIN_STEPS_MAX; i++) {
        OWNED(mem_free) char *name = xasprintf("s%d", i);

        (void)json_object_set_new(json_object_get(json, "steps"), name,
                                  json_pack("{s:s, s:s}", "model", "m", "input", "x"));
    }
    assert_int_equal(chain_parse(json, &chain, &err), 0);
    chain_free(&chain);
    (void)json_object_set_new(json_object_get(json, "steps"), "more",
                              json_pack("{s:s, s:s}", "model", "m", "input", "x"));
    assert_int_equal(chain_parse(json, &chain, &err), ERR_RANGE);
    assert_non_null(strstr(err.text, "steps has 65 members, it must have 1 to 64"));
    json_decref(json);
    large = json_pack("{s:{s:{s:s, s:o}}}", "steps", "a", "model", "m", "input", json_array());
    for (unsigned i = 0; i <= CHAIN_SIZE_MAX / 4; i++)
        (void)json_array_append_new(
            json_object_get(json_object_get(json_object_get(large, "steps"), "a"), "input"),
            json_integer(1000));
    assert_int_equal(chain_parse(large, &chain, &err), ERR_TOO_BIG);
    json_decref(large);
}

static void test_templates(void **state)
{
    static const struct {
        const char *template, *made; /* NULL: it fails */
    } cases[] = {
        {"7", "7"},
        {"\"plain\"", "\"plain\""},
        {"\"{{input}}\"", "{\"a\":[1,2.5],\"t\":\"x\",\"n\":null}"},
        {"\"{{input.a.1}}\"", "2.5"},
        {"\"{{ input.t }}\"", "\"x\""},
        {"\"<{{input.t}}|{{input.a}}|{{input.n}}|{{index}}>\"", "\"<x|[1,2.5]||3>\""},
        {"[\"{{item}}\",{\"k\":\"{{run.id}}\"}]", "[\"it\",{\"k\":\"r1\"}]"},
        {"\"{{steps.s.output.y}}\"", "5"},
        {"\"{{steps.s.state}}\"", "\"succeeded\""},
        {"\"{{steps.s.error}}\"", "null"},
        {"\"{{input.none?}}\"", "null"},
        {"\"{{steps.s.output.y.z?}}\"", "null"},
        {"\"{{input.none}}\"", NULL},
        {"\"{{input.a.2}}\"", NULL},
        {"\"{{input.a.x}}\"", NULL},
        {"\"{{input.t.0}}\"", NULL},
    };
    json_t *input = json_pack("{s:[i,f], s:s, s:n}", "a", 1, 2.5, "t", "x", "n");
    json_t *steps = json_pack("{s:{s:{s:i}, s:s, s:n}}", "s", "output", "y", 5, "state",
                              "succeeded", "error");
    json_t *item = json_string("it");
    const struct chain_scope scope = {
        .input = input, .steps = steps, .item = item, .index = 3, .run = "r1"};

    (void)state;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        json_t *template = json_loads(cases[i].template, JSON_DECODE_ANY, NULL);
        json_t *made = NULL;
        struct err err = {0};
        int r = chain_template_make(template, &scope, &made, &err);
        char *text = r < 0 ? NULL : json_dumps(made, JSON_COMPACT | JSON_ENCODE_ANY);

        if (cases[i].made == NULL)
            assert_int_equal(r, ERR_NOT_FOUND);
        else if (text == NULL || strcmp(text, cases[i].made) != 0)
            fail_msg("%s gave %s, %s", cases[i].template, text, err.text);
        free(text);
        json_decref(made);
        json_decref(template);
    }
    json_decref(input);
    json_decref(steps);
    json_decref(item);
}

static void test_urls_are_escaped(void **state)
{
    static const struct {
        const char *template, *input, *made; /* made NULL: refused */
    } cases[] = {
        {"https://h/a/{{input}}/b", "\"x/y?z=1&ü\"", "https://h/a/x%2Fy%3Fz%3D1%26%C3%BC/b"},
        {"https://h/?q={{input}}#{{input}}", "\"a b\"", "https://h/?q=a%20b#a%20b"},
        {"https://h/{{input}}", "\"A-z0.9_~\"", "https://h/A-z0.9_~"},
        {"https://h/{{input}}", "[1,\"a\"]", "https://h/%5B1%2C%22a%22%5D"},
        {"https://h?{{input}}", "12", "https://h?12"},
        {"https://{{input}}/x", "\"h:8/y\"", "https://h:8/y/x"},
        {"{{input}}/{{input}}", "\"https://h/\"", "https://h//https%3A%2F%2Fh%2F"},
        {"{{input}}", "\"https://h/a?b=c d\"", "https://h/a?b=c d"},
        {"https://h/{{input}}/x", "\"..\"", NULL},
        {"https://h/{{input}}", "\".\"", NULL},
        {"https://h/{{input}}", "\"...\"", "https://h/..."},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        json_t *template = json_pack("{s:s, s:s}", "url", cases[i].template, "body", "{{input}}");
        json_t *input = json_loads(cases[i].input, JSON_DECODE_ANY, NULL), *made = NULL;
        const struct chain_scope scope = {
            .input = input, .run = "r", .url = json_object_get(template, "url")};
        struct err err;
        int r = chain_template_make(template, &scope, &made, &err);

        assert_int_equal(r, cases[i].made == NULL ? ERR_RANGE : 0);
        if (r == 0) {
            assert_string_equal(json_string_value(json_object_get(made, "url")), cases[i].made);
            assert_true(json_equal(json_object_get(made, "body"), input));
        }
        json_decref(made);
        json_decref(template);
        json_decref(input);
    }
}

static void test_a_text_has_a_limit(void **state)
{
    OWNED(mem_free) char *long_text = xcalloc(1, CHAIN_TEXT_SIZE_MAX);
    json_t *template, *input, *made = NULL;
    struct chain_scope scope = {.run = "r"};
    struct err err;

    (void)state;
    memset(long_text, 'a', CHAIN_TEXT_SIZE_MAX - 1);
    input = json_string(long_text);
    scope.input = input;
    scope.steps = input;
    template = json_string("xx{{input}}");
    assert_int_equal(chain_template_make(template, &scope, &made, &err), ERR_TOO_BIG);
    json_decref(template);
    json_decref(input);
}

static void test_what_is_true(void **state)
{
    static const struct {
        const char *json;
        bool is_true;
    } cases[] = {{"null", false},    {"false", false}, {"true", true}, {"0", false},
                 {"-1", true},       {"0.0", false},   {"0.5", true},  {"\"\"", false},
                 {"\"a\"", true},    {"[]", false},    {"[0]", true},  {"{}", false},
                 {"{\"a\":0}", true}};

    (void)state;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        json_t *value = json_loads(cases[i].json, JSON_DECODE_ANY, NULL);

        assert_int_equal(chain_template_is_true(value), cases[i].is_true);
        json_decref(value);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_everything),
        cmocka_unit_test(test_what_is_wrong_is_named),
        cmocka_unit_test(test_what_is_wrong_in_a_switch),
        cmocka_unit_test(test_what_is_wrong_in_a_schema),
        cmocka_unit_test(test_what_is_wrong_in_a_stand_in),
        cmocka_unit_test(test_what_is_wrong_in_a_call),
        cmocka_unit_test(test_what_is_wrong_in_a_cache),
        cmocka_unit_test(test_what_is_wrong_in_a_compensation),
        cmocka_unit_test(test_what_is_wrong_in_expressions),
        cmocka_unit_test(test_what_expressions_read),
        cmocka_unit_test(test_the_schema_has_the_parsers_keys),
        cmocka_unit_test(test_a_cycle_is_told_from_its_inside),
        cmocka_unit_test(test_limits_of_a_chain),
        cmocka_unit_test(test_templates),
        cmocka_unit_test(test_urls_are_escaped),
        cmocka_unit_test(test_a_text_has_a_limit),
        cmocka_unit_test(test_what_is_true),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
