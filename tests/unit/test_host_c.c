/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: host-c runs the simulated engine over a real socket in a real process, and each way for it
 * to end is what the worker is promised: crash, hang, cancel, drain, a failed load, a lost device.
 * Method: fork, serve in the child, talk frames in the parent. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "schema/job.h"
#include "tests/unit/host_talk.h"
#include "workers/host_c.h"

static int serve(int fd)
{
    return host_c_serve(fd, NULL);
}

static void talk_load(struct talk *talk, const char *settings)
{
    const struct frame_load load = {
        .engine = WIRE_TEXT_OF("sim"), .req_count_max = 4, .settings = WIRE_TEXT_OF(settings)};
    struct frame frame;

    talk_open(talk, serve);
    talk_want(talk, FRAME_HELLO, &frame);
    assert_int_equal(frame.hello.protocol, FRAME_PROTOCOL);
    assert_int_equal(frame.hello.pid, talk->pid);
    talk_send(talk, FRAME_LOAD, &load);
    do {
        assert_true(talk_next(talk, &frame));
    } while (frame.type == FRAME_EVT && frame.evt.kind == FRAME_EVT_LOADING);
    assert_int_equal(frame.type, FRAME_READY);
    assert_int_equal(frame.ready.granted, 4);
}

static void talk_req(struct talk *talk, uint64_t id, uint64_t number, const char *input)
{
    const struct frame_req req = {
        .id = id, .number = number, .input = {(const uint8_t *)input, strlen(input)}};

    talk_send(talk, FRAME_REQ, &req);
}

/* ---- answers ---- */

static void test_outcomes(void **state)
{
    static const struct {
        const char *input;
        uint64_t number;
        enum error_class want;
        const char *holds;
    } rows[] = {
        {"{\"a\":1}", 1, ERROR_CLASS_NONE, "{\"output\":{\"a\":1},\"sim\":{\"attempt\":1"},
        {"{\"sim\":{\"echo\":[1]}}", 3, ERROR_CLASS_NONE, "{\"output\":[1],\"sim\":{\"attempt\":3"},
        {"{\"sim\":{\"fail\":\"model_error\"}}", 1, ERROR_CLASS_MODEL_ERROR, "as ordered"},
        {"{\"sim\":{\"fail\":\"bad_input\"}}", 1, ERROR_CLASS_BAD_INPUT, "as ordered"},
        {"{\"sim\":{\"fail\":\"oom\"}}", 1, ERROR_CLASS_OOM, "as ordered"},
        {"{\"sim\":{\"fail\":\"not_ready\"}}", 1, ERROR_CLASS_MODEL_UNAVAILABLE, "as ordered"},
        {"{\"sim\":{\"fail\":\"oom\",\"fail_times\":2}}", 2, ERROR_CLASS_OOM, "as ordered"},
        {"{\"sim\":{\"fail\":\"oom\",\"fail_times\":2}}", 3, ERROR_CLASS_NONE, "\"attempt\":3"},
        {"{\"sim\":{\"sleep_ms\":20}}", 1, ERROR_CLASS_NONE, "\"service_us\":20000"},
        {"{\"sim\":{\"nap\":1}}", 1, ERROR_CLASS_BAD_INPUT, "there is no 'nap'"},
        {"{\"sim\":{\"sleep_ms\":-1}}", 1, ERROR_CLASS_BAD_INPUT, "between 0 and 3.6e+06"},
        {"no json, \"sim\"", 1, ERROR_CLASS_NONE, "no json"},
    };
    struct talk talk;
    struct frame frame;

    (void)state;
    talk_load(&talk, "{\"test_mode\":true}");
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct wire_text text;

        talk_req(&talk, i + 1, rows[i].number, rows[i].input);
        talk_want(&talk, FRAME_EVT, &frame);
        assert_int_equal(frame.evt.id, i + 1);
        assert_int_equal(frame.evt.error_class, rows[i].want);
        assert_int_equal(frame.evt.granted, 4 + i + 1);
        text = rows[i].want != ERROR_CLASS_NONE
                   ? frame.evt.text
                   : (struct wire_text){(const char *)frame.evt.data.bytes, frame.evt.data.size};
        assert_non_null(memmem(text.text, text.size, rows[i].holds, strlen(rows[i].holds)));
    }
    assert_int_equal(talk_close(&talk), 0);
}

static void test_large_output_travels_beside(void **state)
{
    struct talk talk;
    struct frame frame;

    (void)state;
    talk_load(&talk, "{\"test_mode\":true}");
    talk_req(&talk, 1, 1, "{\"sim\":{\"output_bytes\":5000000}}");
    talk_want(&talk, FRAME_EVT, &frame);
    assert_int_equal(frame.evt.kind, FRAME_EVT_OUTPUT);
    assert_in_range(frame.evt.data.size, 4999000, 5001000);
    assert_int_equal(frame.evt.data.bytes[frame.evt.data.size - 1], '}');
    assert_int_equal(talk_close(&talk), 0);
}

static void test_a_failure_says_when_to_try_again(void **state)
{
    struct talk talk;
    struct frame frame;

    (void)state;
    talk_load(&talk, "{\"test_mode\":true}");
    talk_req(&talk, 1, 1, "{\"sim\":{\"fail\":\"model_unavailable\",\"retry_after_ms\":2500}}");
    talk_want(&talk, FRAME_EVT, &frame);
    assert_int_equal(frame.evt.error_class, ERROR_CLASS_MODEL_UNAVAILABLE);
    assert_int_equal(frame.evt.retry_after_ms, 2500);
    assert_int_equal(talk_close(&talk), 0);
}

static void test_orders_need_test_mode(void **state)
{
    struct talk talk;
    struct frame frame;

    (void)state;
    talk_load(&talk, "{}");
    talk_req(&talk, 1, 1, "{\"sim\":{\"crash\":true}}");
    talk_want(&talk, FRAME_EVT, &frame);
    assert_int_equal(frame.evt.kind, FRAME_EVT_OUTPUT);
    assert_int_equal(talk_close(&talk), 0);
}

/* ---- ends ---- */

static void test_crash_kills_only_the_host(void **state)
{
    struct talk talk;
    struct frame frame;

    (void)state;
    talk_load(&talk, "{\"test_mode\":true}");
    talk_req(&talk, 1, 1, "{\"sim\":{\"crash\":true}}");
    assert_false(talk_next(&talk, &frame));
    assert_int_equal(talk_close(&talk), -SIGABRT);
}

static void test_hang_obeys_only_a_kill(void **state)
{
    struct talk talk;
    struct pollfd ready;

    (void)state;
    talk_load(&talk, "{\"test_mode\":true}");
    talk_req(&talk, 1, 1, "{\"sim\":{\"hang\":true}}");
    talk_req(&talk, 2, 1, "{}");
    ready = (struct pollfd){.fd = frame_link_fd(talk.link), .events = POLLIN};
    assert_int_equal(poll(&ready, 1, 100), 0);
    assert_int_equal(kill(talk.pid, SIGKILL), 0);
    assert_int_equal(talk_close(&talk), -SIGKILL);
}

static void test_cancel_ends_a_request(void **state)
{
    const struct frame_cancel cancel = {.id = 1}, unknown = {.id = 99};
    struct talk talk;
    struct frame frame;

    (void)state;
    talk_load(&talk, "{\"test_mode\":true}");
    talk_req(&talk, 1, 1, "{\"sim\":{\"hang\":\"soft\"}}");
    talk_req(&talk, 2, 1, "{}");
    talk_want(&talk, FRAME_EVT, &frame);
    assert_int_equal(frame.evt.id, 2);
    talk_send(&talk, FRAME_CANCEL, &unknown);
    talk_send(&talk, FRAME_CANCEL, &cancel);
    talk_want(&talk, FRAME_EVT, &frame);
    assert_int_equal(frame.evt.id, 1);
    assert_int_equal(frame.evt.error_class, ERROR_CLASS_CANCELED);
    assert_int_equal(talk_close(&talk), 0);
}

static void test_drain_finishes_first(void **state)
{
    const struct frame_drain drain = {.haste = false};
    struct talk talk;
    struct frame frame;

    (void)state;
    talk_load(&talk, "{\"service_ms\":50}");
    talk_req(&talk, 1, 1, "{}");
    talk_send(&talk, FRAME_DRAIN, &drain);
    talk_want(&talk, FRAME_EVT, &frame);
    assert_int_equal(frame.evt.kind, FRAME_EVT_OUTPUT);
    talk_want(&talk, FRAME_BYE, &frame);
    assert_int_equal(frame.bye.error_class, ERROR_CLASS_NONE);
    assert_int_equal(talk_close(&talk), 0);
}

static void test_lost_device(void **state)
{
    struct talk talk;
    struct frame frame;

    (void)state;
    talk_load(&talk, "{\"test_mode\":true}");
    talk_req(&talk, 1, 1, "{\"sim\":{\"fail\":\"device_fault\"}}");
    talk_want(&talk, FRAME_BYE, &frame);
    assert_int_equal(frame.bye.error_class, ERROR_CLASS_DEVICE_FAULT);
    assert_int_equal(talk_close(&talk), 3);
}

static void test_failed_loads(void **state)
{
    static const struct {
        const char *engine, *settings, *device, *holds;
    } rows[] = {
        {"sim", "{\"load_fails\":true}", "cpu", "load fails as it is set to"},
        {"sim", "{\"servce_ms\":1}", "cpu", "there is no 'servce_ms'"},
        {"sim", "{\"failure_rate\":2}", "cpu", "between 0 and 1"},
        {"sim", "{}", "cuda", "device is 'cuda'"},
        {"nosuch", "{}", "cpu", "nosuch.so"},
        {"../sim", "{}", "cpu", "is not 1 to 64 of"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        const struct frame_load load = {.engine = WIRE_TEXT_OF(rows[i].engine),
                                        .device = WIRE_TEXT_OF(rows[i].device),
                                        .settings = WIRE_TEXT_OF(rows[i].settings)};
        struct talk talk;
        struct frame frame;

        talk_open(&talk, serve);
        talk_want(&talk, FRAME_HELLO, &frame);
        talk_send(&talk, FRAME_LOAD, &load);
        talk_want(&talk, FRAME_BYE, &frame);
        assert_true(frame.bye.final);
        assert_non_null(memmem(frame.bye.reason.text, frame.bye.reason.size, rows[i].holds,
                               strlen(rows[i].holds)));
        assert_int_equal(talk_close(&talk), 2);
    }
}

static void test_more_than_its_credit(void **state)
{
    struct talk talk;
    struct frame frame;

    (void)state;
    talk_load(&talk, "{\"service_ms\":60000}");
    for (uint64_t id = 1; id <= 5; id++)
        talk_req(&talk, id, 1, "{}");
    talk_want(&talk, FRAME_BYE, &frame);
    assert_true(wire_text_equal(frame.bye.reason, "REQ came without credit"));
    assert_int_equal(talk_close(&talk), 3);
}

/* ---- the encoder, a real model of random weights ---- */

static void test_encoder_answers_through_the_host(void **state)
{
    const struct frame_load load = {.engine = WIRE_TEXT_OF("encoder"),
                                    .dir = WIRE_TEXT_OF("tests/data/encoder/tiny"),
                                    .model = WIRE_TEXT_OF("tiny"),
                                    .thread_count = 2};
    struct talk talk;
    struct frame frame;

    (void)state;
    talk_open(&talk, serve);
    talk_want(&talk, FRAME_HELLO, &frame);
    talk_send(&talk, FRAME_LOAD, &load);
    do {
        assert_true(talk_next(&talk, &frame));
    } while (frame.type == FRAME_EVT && frame.evt.kind == FRAME_EVT_LOADING);
    assert_int_equal(frame.type, FRAME_READY);
    assert_int_equal(frame.ready.token_count_max, 48);
    talk_req(&talk, 1, 1, "{\"input\":[\"water\",\"wheel\"]}");
    talk_req(&talk, 2, 1, "{\"input\":5}");
    for (int left = 2; left > 0;) {
        talk_want(&talk, FRAME_EVT, &frame);
        if (frame.evt.kind == FRAME_EVT_OUTPUT) {
            assert_int_equal(frame.evt.id, 1);
            assert_non_null(
                memmem(frame.evt.data.bytes, frame.evt.data.size, "\"embedding\":[", 13));
            left--;
        } else if (frame.evt.kind == FRAME_EVT_ERROR) {
            assert_int_equal(frame.evt.id, 2);
            assert_int_equal(frame.evt.error_class, ERROR_CLASS_BAD_INPUT);
            left--;
        }
    }
    talk_send(&talk, FRAME_BYE, &(struct frame_bye){0});
    assert_int_equal(talk_close(&talk), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_outcomes),
        cmocka_unit_test(test_large_output_travels_beside),
        cmocka_unit_test(test_a_failure_says_when_to_try_again),
        cmocka_unit_test(test_orders_need_test_mode),
        cmocka_unit_test(test_crash_kills_only_the_host),
        cmocka_unit_test(test_hang_obeys_only_a_kill),
        cmocka_unit_test(test_cancel_ends_a_request),
        cmocka_unit_test(test_drain_finishes_first),
        cmocka_unit_test(test_lost_device),
        cmocka_unit_test(test_failed_loads),
        cmocka_unit_test(test_more_than_its_credit),
        cmocka_unit_test(test_encoder_answers_through_the_host),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
