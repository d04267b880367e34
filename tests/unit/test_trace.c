/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: contexts survive the trip through a header and nothing malformed does; spans arrive at a
 * collector as OTLP's JSON, or are counted as dropped. Method: the collector is base/http_server.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "base/http_server.h"
#include "base/loop.h"
#include "base/trace.h"

#define WAIT_MS 10000
#define GOOD "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

struct world {
    struct loop *loop;
    struct http_server *server;
    struct tracer *tracer;
    char endpoint[64];
    int posts, status;
    size_t spans;
    json_t *last;
    bool flushed;
};

static struct world world;

static void on_body(struct http_request *request, void *opaque)
{
    struct buf *body = http_request_body(request);
    json_t *root = json_loadb((const char *)body->bytes, body->size, 0, NULL);
    json_t *resource, *scope;

    (void)opaque;
    assert_non_null(root);
    assert_string_equal(http_request_target(request), "/v1/traces");
    assert_string_equal(http_request_header(request, "Content-Type"), "application/json");
    resource = json_array_get(json_object_get(root, "resourceSpans"), 0);
    scope = json_array_get(json_object_get(resource, "scopeSpans"), 0);
    world.posts++;
    world.spans += json_array_size(json_object_get(scope, "spans"));
    json_decref(world.last);
    world.last = root;
    http_request_answer(&request, world.status, NULL, 0, "{}", 2);
}

static void handler(struct http_request *request, void *opaque)
{
    (void)opaque;
    http_request_collect_body(request, 8 << 20, on_body, NULL);
}

static int world_open(void **state)
{
    struct err err;

    (void)state;
    memset(&world, 0, sizeof(world));
    world.status = 200;
    if (loop_open(&world.loop, &err) < 0 ||
        http_server_open(world.loop, &(struct http_server_options){0}, handler, NULL, &world.server,
                         &err) < 0)
        return -1;
    (void)snprintf(world.endpoint, sizeof(world.endpoint), "http://127.0.0.1:%u/",
                   http_server_port(world.server));
    return 0;
}

static int world_close(void **state)
{
    (void)state;
    tracer_close(&world.tracer);
    http_server_close(&world.server);
    loop_close(&world.loop);
    json_decref(world.last);
    return 0;
}

static void tracer_make(struct tracer_options options)
{
    struct err err;

    options.service_name = "svc";
    options.service_version = "1.2";
    options.service_instance = "host-1";
    if (tracer_open(world.loop, &options, &world.tracer, &err) < 0)
        fail_msg("%s", err.text);
}

static void on_flushed(void *opaque)
{
    assert_ptr_equal(opaque, &world);
    world.flushed = true;
}

static void flush(uint32_t timeout_ms)
{
    world.flushed = false;
    tracer_flush(world.tracer, timeout_ms, on_flushed, &world);
    if (!world.flushed)
        assert_true(loop_run_until(world.loop, &world.flushed, WAIT_MS));
}

static void record(int count)
{
    for (int i = 0; i < count; i++) {
        struct trace_context context = tracer_begin(world.tracer, NULL);
        struct trace_span span;

        trace_start(world.tracer, &span, "work", TRACE_KIND_INTERNAL, &context, NULL, 1000);
        trace_end(world.tracer, &span, false, 2000);
    }
}

static void test_traceparent(void **state)
{
    static const struct {
        const char *text;
        int want;
    } rows[] = {
        {GOOD, 0},
        {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00", 0},
        {"cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-the-future-brings", 0},
        {"cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", 0},
        {GOOD "-x", ERR_MALFORMED},
        {GOOD "x", ERR_MALFORMED},
        {"cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01.x", ERR_MALFORMED},
        {"ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", ERR_MALFORMED},
        {"00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01", ERR_MALFORMED},
        {"00-00000000000000000000000000000000-b7ad6b7169203331-01", ERR_MALFORMED},
        {"00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01", ERR_MALFORMED},
        {"00-0af7651916cd43dd8448eb211c80319c_b7ad6b7169203331-01", ERR_MALFORMED},
        {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0g", ERR_MALFORMED},
        {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331", ERR_MALFORMED},
        {"0", ERR_MALFORMED},
        {"", ERR_MALFORMED},
    };
    struct trace_context context, child;
    char text[TRACE_PARENT_SIZE];
    struct err err;

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        int r = trace_context_parse(rows[i].text, &context, &err);

        if (r != rows[i].want)
            fail_msg("'%s': %d", rows[i].text, r);
    }
    assert_int_equal(trace_context_parse(GOOD, &context, &err), 0);
    assert_true(context.sampled);
    trace_context_format(&context, text);
    assert_string_equal(text, GOOD);
    assert_memory_equal(trace_context_read(GOOD "?", 55).span_id, context.span_id, 8);
    assert_false(trace_context_is_set(&(struct trace_context){.sampled = true}));
    child = trace_context_read(GOOD, 54);
    assert_false(trace_context_is_set(&child) || child.sampled);
    child = trace_context_derive(&context, "job", 3);
    assert_memory_equal(child.trace_id, context.trace_id, 16);
    assert_memory_not_equal(child.span_id, context.span_id, 8);
    assert_memory_equal(trace_context_derive(&context, "job", 3).span_id, child.span_id, 8);
    assert_memory_not_equal(trace_context_derive(&context, "jobs", 4).span_id, child.span_id, 8);
    assert_memory_not_equal(trace_context_derive(&child, "job", 3).span_id, child.span_id, 8);
    child = trace_context_child(&context);
    assert_memory_equal(child.trace_id, context.trace_id, 16);
    assert_memory_not_equal(child.span_id, context.span_id, 8);
    assert_true(child.sampled);
    context = trace_context_new(false);
    assert_true(trace_context_is_set(&context));
    assert_false(context.sampled);
}

static void test_a_span_arrives_as_otlp(void **state)
{
    struct trace_context parent, context;
    struct trace_span span;
    struct err err;
    json_t *json, *attributes;

    (void)state;
    tracer_make((struct tracer_options){.endpoint = world.endpoint, .sample_share = 0});
    assert_int_equal(trace_context_parse(GOOD, &parent, &err), 0);
    context = tracer_begin(world.tracer, &parent); /* its flag holds, not our share */
    trace_start(world.tracer, &span, "submit", TRACE_KIND_SERVER, &context, &parent, 1500000);
    trace_set_text(&span, "id", "x\"1");
    trace_set_text(&span, "long",
                   "123456789012345678901234567890123456789012345678901234567890"
                   "12\xc3\xa4"); /* cut inside of a character */
    trace_set_number(&span, "size", INT64_MIN);
    for (int i = 0; i < 10; i++) /* more than fit */
        trace_set_number(&span, "n", i);
    trace_end(world.tracer, &span, true, 1600000);
    trace_end(world.tracer, &span, true, 1700000); /* is ignored */
    flush(WAIT_MS);
    assert_int_equal(world.posts, 1);
    assert_int_equal(tracer_counts(world.tracer).exported, 1);

    json = json_array_get(json_object_get(world.last, "resourceSpans"), 0);
    attributes = json_object_get(json_object_get(json, "resource"), "attributes");
    assert_int_equal(json_array_size(attributes), 3);
    json = json_array_get(json_object_get(json, "scopeSpans"), 0);
    json = json_array_get(json_object_get(json, "spans"), 0);
    assert_string_equal(json_string_value(json_object_get(json, "traceId")),
                        "0af7651916cd43dd8448eb211c80319c");
    assert_string_equal(json_string_value(json_object_get(json, "parentSpanId")),
                        "b7ad6b7169203331");
    assert_int_equal(json_string_length(json_object_get(json, "spanId")), 16);
    assert_string_equal(json_string_value(json_object_get(json, "name")), "submit");
    assert_int_equal(json_integer_value(json_object_get(json, "kind")), 2);
    assert_string_equal(json_string_value(json_object_get(json, "startTimeUnixNano")),
                        "1500000000");
    assert_string_equal(json_string_value(json_object_get(json, "endTimeUnixNano")), "1600000000");
    assert_int_equal(json_integer_value(json_object_get(json_object_get(json, "status"), "code")),
                     2);
    attributes = json_object_get(json, "attributes");
    assert_int_equal(json_array_size(attributes), TRACE_ATTRIBUTES_MAX);
    json = json_object_get(json_array_get(attributes, 0), "value");
    assert_string_equal(json_string_value(json_object_get(json, "stringValue")), "x\"1");
    json = json_object_get(json_array_get(attributes, 1), "value");
    assert_int_equal(json_string_length(json_object_get(json, "stringValue")), 62);
    json = json_object_get(json_array_get(attributes, 2), "value");
    assert_string_equal(json_string_value(json_object_get(json, "intValue")),
                        "-9223372036854775808");
}

static void test_batches_and_drops(void **state)
{
    (void)state;
    tracer_make((struct tracer_options){
        .endpoint = world.endpoint, .sample_share = 1, .batch_count = 10, .interval_ms = 3600000});
    record(9);
    assert_int_equal(tracer_counts(world.tracer).waiting, 9);
    record(1); /* a batch: it leaves at once; then eight batches more fit */
    record(85);
    assert_int_equal(tracer_counts(world.tracer).recorded, 95);
    assert_int_equal(tracer_counts(world.tracer).dropped, 5);
    assert_int_equal(tracer_counts(world.tracer).waiting, 90);
    flush(WAIT_MS);
    assert_int_equal(world.spans, 90);
    assert_int_equal(world.posts, 9);
    assert_int_equal(tracer_counts(world.tracer).exported, 90);
    assert_int_equal(tracer_counts(world.tracer).waiting, 0);
}

static void test_the_interval_posts(void **state)
{
    bool never = false;

    (void)state;
    tracer_make(
        (struct tracer_options){.endpoint = world.endpoint, .sample_share = 1, .interval_ms = 10});
    record(3);
    for (int i = 0; i < 1000 && world.posts == 0; i++)
        (void)loop_run_until(world.loop, &never, 10);
    assert_int_equal(world.posts, 1);
    assert_int_equal(world.spans, 3);
}

static void test_a_collector_that_refuses_or_is_gone(void **state)
{
    (void)state;
    tracer_make((struct tracer_options){.endpoint = world.endpoint, .sample_share = 1});
    world.status = 503;
    record(2);
    flush(WAIT_MS);
    assert_int_equal(tracer_counts(world.tracer).dropped, 2);
    http_server_close(&world.server);
    record(3);
    flush(WAIT_MS);
    assert_int_equal(tracer_counts(world.tracer).dropped, 5);
    assert_int_equal(tracer_counts(world.tracer).exported, 0);
    record(1);
    flush(0); /* no time at all: told at once, and closing drops what is in flight */
}

static void test_sampling(void **state)
{
    int sampled = 0;

    (void)state;
    tracer_make((struct tracer_options){.endpoint = world.endpoint, .sample_share = 0.25});
    for (int i = 0; i < 10000; i++)
        sampled += tracer_begin(world.tracer, NULL).sampled ? 1 : 0;
    assert_in_range(sampled, 2250, 2750);
}

static void test_without_an_endpoint_nothing_is_made(void **state)
{
    struct trace_context parent, context;
    struct trace_span span;
    struct err err;

    (void)state;
    tracer_make((struct tracer_options){.endpoint = "", .sample_share = 1});
    context = tracer_begin(world.tracer, NULL);
    assert_false(trace_context_is_set(&context));
    assert_int_equal(trace_context_parse(GOOD, &parent, &err), 0);
    context = tracer_begin(world.tracer, &parent);
    assert_memory_equal(context.span_id, parent.span_id, 8); /* handed on as it came */
    trace_start(world.tracer, &span, "x", TRACE_KIND_SERVER, &context, &parent, 1);
    assert_false(span.live);
    trace_set_text(&span, "a", "b");
    trace_end(world.tracer, &span, false, 2);
    assert_int_equal(tracer_counts(world.tracer).recorded, 0);
    flush(WAIT_MS);
    tracer_close(&world.tracer);
    assert_int_equal(tracer_open(world.loop,
                                 &(struct tracer_options){.endpoint = "ftp://collector"},
                                 &world.tracer, &err),
                     ERR_USAGE);
}

#define IN_WORLD(test) cmocka_unit_test_setup_teardown(test, world_open, world_close)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_traceparent),
        IN_WORLD(test_a_span_arrives_as_otlp),
        IN_WORLD(test_batches_and_drops),
        IN_WORLD(test_the_interval_posts),
        IN_WORLD(test_a_collector_that_refuses_or_is_gone),
        IN_WORLD(test_sampling),
        IN_WORLD(test_without_an_endpoint_nothing_is_made),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
