/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: what is counted is what is read, under both prefixes; label values from outside cannot grow
 * without bound or break the text. That Prometheus reads it: tests/stack/test_trace.py. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/http_client.h"
#include "base/loop.h"
#include "base/metrics.h"

enum test_metric {
#define METRICS_ENUM(name) TEST_METRIC_##name,
#include "base/metrics_rows.def"
#include "tests/unit/test_metrics.def"
#include "base/metrics_end.def"
    TEST_METRIC_COUNT
};

static const struct metric_row rows[] = {
#define METRICS_ROWS
#include "base/metrics_rows.def"
#include "tests/unit/test_metrics.def"
#include "base/metrics_end.def"
};

static struct metrics *metrics;

static int open_metrics(void **state)
{
    const struct metrics_options options = {
        .prefix = "one_", .prefix_again = "two_", .rows = rows, .row_count = COUNT_OF(rows)};
    struct err err;

    (void)state;
    return metrics_open(&options, &metrics, &err);
}

static int close_metrics(void **state)
{
    (void)state;
    metrics_close(&metrics);
    assert_null(metrics);
    return 0;
}

#define VALUES(...) ((const char *const[]){__VA_ARGS__})

static void expect_lines(const char *const *lines, size_t line_count)
{
    OWNED(buf_done) struct buf text = BUF_WITH_LIMIT(16 << 20);
    struct err err;

    assert_int_equal(metrics_write(metrics, &text, &err), 0);
    for (size_t i = 0; i < line_count; i++) {
        if (strstr(buf_text(&text), lines[i]) == NULL)
            fail_msg("no '%s' in:\n%s", lines[i], buf_text(&text));
    }
}

#define EXPECT_LINES(...) expect_lines(VALUES(__VA_ARGS__), COUNT_OF(VALUES(__VA_ARGS__)))

static void test_numbers_come_out(void **state)
{
    struct metric *ok = metrics_series(metrics, TEST_METRIC_requests_total, VALUES("GET", "200"));

    (void)state;
    metric_add(ok, 1);
    metric_add(ok, 2);
    assert_ptr_equal(ok, metrics_series(metrics, TEST_METRIC_requests_total, VALUES("GET", "200")));
    metric_add(metrics_series(metrics, TEST_METRIC_requests_total, VALUES("POST", "503")), 1);
    metric_add(metrics_of(metrics, TEST_METRIC_ticks_total), 7);
    metric_set(metrics_series(metrics, TEST_METRIC_queue_size, VALUES("a")), 5);
    metric_add(metrics_series(metrics, TEST_METRIC_queue_size, VALUES("a")), -2);
    metric_observe(metrics_of(metrics, TEST_METRIC_wait_seconds), 0.2);
    metric_observe(metrics_of(metrics, TEST_METRIC_wait_seconds), 99999);
    EXPECT_LINES("# HELP one_requests_total requests answered\n",
                 "# TYPE one_requests_total counter\n",
                 "one_requests_total{method=\"GET\",status=\"200\"} 3\n",
                 "two_requests_total{method=\"GET\",status=\"200\"} 3\n",
                 "one_requests_total{method=\"POST\",status=\"503\"} 1\n", "one_ticks_total 7\n",
                 "one_queue_size{pool=\"a\"} 3\n", "one_wait_seconds_bucket{le=\"0.1\"} 0\n",
                 "one_wait_seconds_bucket{le=\"0.25\"} 1\n", "one_wait_seconds_count 2\n",
                 "one_wait_seconds_bucket{le=\"+Inf\"} 2\n", "process_open_fds ",
                 "process_cpu_seconds_total ", "process_resident_memory_bytes ");
}

static void test_forgotten_series_are_gone(void **state)
{
    OWNED(buf_done) struct buf text = BUF_WITH_LIMIT(1 << 20);
    struct err err;

    (void)state;
    metric_set(metrics_series(metrics, TEST_METRIC_queue_size, VALUES("gone")), 1);
    metrics_forget(metrics, TEST_METRIC_queue_size, VALUES("gone"));
    metrics_forget(metrics, TEST_METRIC_queue_size, VALUES("never was"));
    assert_int_equal(metrics_write(metrics, &text, &err), 0);
    assert_null(strstr(buf_text(&text), "gone"));
}

static void test_hostile_labels(void **state)
{
    char value[300];

    (void)state;
    memset(value, 'v', sizeof(value) - 1);
    value[sizeof(value) - 1] = '\0';
    metric_set(metrics_series(metrics, TEST_METRIC_queue_size, VALUES("a\"b\\c\nd")), 1);
    metric_set(metrics_series(metrics, TEST_METRIC_queue_size, VALUES("\xff\xfe")), 1);
    metric_set(metrics_series(metrics, TEST_METRIC_queue_size, VALUES(value)), 1);
    EXPECT_LINES("one_queue_size{pool=\"a\\\"b\\\\c\\nd\"} 1\n", "one_queue_size{pool=\"??\"} 1\n");
    for (int i = 0; i < METRICS_SERIES_MAX + 50; i++) {
        (void)snprintf(value, sizeof(value), "pool-%d", i);
        metric_set(metrics_series(metrics, TEST_METRIC_queue_size, VALUES(value)), i);
    }
    EXPECT_LINES("one_queue_size{pool=\"pool-0\"} 0\n", "one_queue_size{pool=\"other\"} 1049\n",
                 "one_metrics_overflow_total{metric=\"queue_size\"} 53\n");
}

static void test_bad_rows_are_refused(void **state)
{
    const struct metric_row bad = {"no-dashes", METRIC_TYPE_COUNTER, "", NULL, 0, "x"};
    const struct metrics_options options = {.prefix = "x_", .rows = &bad, .row_count = 1};
    struct metrics *other = NULL;
    struct err err;

    (void)state;
    assert_int_equal(metrics_open(&options, &other, &err), ERR_INTERNAL);
    assert_non_null(strstr(err.text, "no-dashes"));
}

static void *count_many(void *opaque)
{
    for (int i = 0; i < 10000; i++)
        metric_add(opaque, 1);
    return NULL;
}

static void test_threads_count_together(void **state)
{
    struct metric *ticks = metrics_of(metrics, TEST_METRIC_ticks_total);
    pthread_t threads[4];

    (void)state;
    for (size_t i = 0; i < COUNT_OF(threads); i++)
        assert_int_equal(pthread_create(&threads[i], NULL, count_many, ticks), 0);
    for (size_t i = 0; i < COUNT_OF(threads); i++)
        (void)pthread_join(threads[i], NULL);
    EXPECT_LINES("one_ticks_total 40000\n");
}

/* ---- Pages */

static const char *reason;

static const char *not_ready(void *opaque)
{
    assert_ptr_equal(opaque, &reason);
    return reason;
}

struct answer {
    bool done;
    int status;
    char body[100000];
};

static void on_done(const struct http_result *result, void *opaque)
{
    struct answer *answer = opaque;

    answer->done = true;
    answer->status = result->status;
    mem_copy_text(answer->body, buf_text(result->body));
}

static void test_pages(void **state)
{
    static const struct {
        const char *method, *path, *reason;
        int want;
        const char *body;
    } cases[] = {
        {"GET", "/metrics", NULL, 200, "one_ticks_total 0\n"},
        {"GET", "/metrics?x", NULL, 200, "one_ticks_total 0\n"},
        {"GET", "/healthz", "starting", 200, "ok"},
        {"GET", "/readyz", NULL, 200, "ok"},
        {"GET", "/readyz", "no database", 503, "no database"},
        {"POST", "/metrics", NULL, 405, "GET"},
        {"GET", "/", NULL, 404, "/metrics"},
        {"GET", "/metricsz", NULL, 404, "/metrics"},
    };
    struct metrics_pages pages = {metrics, not_ready, &reason};
    struct loop *loop = NULL;
    struct http_server *server = NULL;
    struct http_client *client = NULL;
    struct err err;

    (void)state;
    assert_int_equal(loop_open(&loop, &err), 0);
    assert_int_equal(metrics_serve(loop, NULL, 0, &pages, &server, &err), 0);
    assert_int_equal(http_client_open(loop, &(struct http_client_options){0}, &client, &err), 0);
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        struct answer answer = {.done = false};
        char url[128];
        struct http_send send = {
            .method = cases[i].method, .url = url, .on_done = on_done, .opaque = &answer};

        reason = cases[i].reason;
        (void)snprintf(url, sizeof(url), "http://127.0.0.1:%u%s", http_server_port(server),
                       cases[i].path);
        assert_int_equal(http_client_send(client, &send, NULL, &err), 0);
        assert_true(loop_run_until(loop, &answer.done, 10000));
        assert_int_equal(answer.status, cases[i].want);
        assert_non_null(strstr(answer.body, cases[i].body));
    }
    http_client_close(&client);
    http_server_close(&server);
    loop_close(&loop);
}

#define WITH_METRICS(test) cmocka_unit_test_setup_teardown(test, open_metrics, close_metrics)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WITH_METRICS(test_numbers_come_out),       WITH_METRICS(test_forgotten_series_are_gone),
        WITH_METRICS(test_hostile_labels),         WITH_METRICS(test_bad_rows_are_refused),
        WITH_METRICS(test_threads_count_together), WITH_METRICS(test_pages),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
