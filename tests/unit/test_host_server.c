/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: host-server runs a real HTTP server in real processes, and each way for it and for a
 * request to end is what the worker is promised. Method: fork, serve in the child, talk frames in
 * the parent; the server is tests/lib/http_model/server.py, which does as each request says. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>

#include "base/mem.h"
#include "schema/job.h"
#include "tests/unit/host_talk.h"
#include "tests/unit/processes.h"
#include "workers/host_server.h"
#include "workers/host_server_int.h"

#define SLOTS 4
#define MODEL_DIR "tests/lib/http_model"
#define ENDPOINTS                                                                                  \
    "\"predict_endpoint\":\"/predict\",\"readiness_endpoint\":\"/health\","                        \
    "\"liveness_endpoint\":\"/alive\""
#define COMMAND "\"start_command\":\"exec python3 server.py\","

static int serve(int fd)
{
    return host_server_serve(fd, CONFINE_OFF);
}

static void talk_start(struct talk *talk, const char *settings)
{
    OWNED(mem_free) char *json = xasprintf("{" ENDPOINTS "%s}", settings);
    const struct frame_load load = {.engine = WIRE_TEXT_OF("server"),
                                    .model = WIRE_TEXT_OF("m"),
                                    .dir = WIRE_TEXT_OF(MODEL_DIR),
                                    .req_count_max = SLOTS,
                                    .settings = WIRE_TEXT_OF(json)};
    struct frame frame;

    talk_open(talk, serve);
    talk_want(talk, FRAME_HELLO, &frame);
    talk_send(talk, FRAME_LOAD, &load);
}

static void talk_load(struct talk *talk, const char *settings)
{
    OWNED(mem_free) char *more = xasprintf("," COMMAND "\"stop_seconds\":5%s", settings);
    struct frame frame;

    talk_start(talk, more);
    talk_want(talk, FRAME_READY, &frame);
    assert_int_equal(frame.ready.granted, SLOTS);
    assert_non_null(memmem(frame.ready.detail.text, frame.ready.detail.size, "isolation off", 13));
}

static void talk_req(struct talk *talk, uint64_t id, bool stream, const char *input)
{
    const struct frame_req req = {
        .id = id, .stream = stream, .input = {(const uint8_t *)input, strlen(input)}};

    talk_send(talk, FRAME_REQ, &req);
}

static void want_text(struct wire_text text, const char *holds)
{
    if (text.size < strlen(holds) ||
        (text.size > 0 && memmem(text.text, text.size, holds, strlen(holds)) == NULL))
        fail_msg("'%.*s' does not hold '%s'", (int)text.size, text.text, holds);
}

static void want_bye(struct talk *talk, enum error_class class, const char *holds, int exit_code)
{
    struct frame frame;

    talk_want(talk, FRAME_BYE, &frame);
    assert_int_equal(frame.bye.error_class, class);
    want_text(frame.bye.reason, holds);
    assert_int_equal(talk_close(talk), exit_code);
}

static void talk_drain(struct talk *talk)
{
    const struct frame_drain drain = {.haste = false};

    talk_send(talk, FRAME_DRAIN, &drain);
    want_bye(talk, ERROR_CLASS_NONE, "drained", 0);
}

/* ---- answers ---- */

static void test_answers(void **state)
{
    static const struct {
        const char *type, *route, *input;
        enum error_class class;
        uint64_t status;
        const char *output_type, *data;
    } rows[] = {
        {"", "", "{\"a\":1}", ERROR_CLASS_NONE, 200, "application/json", "\"input\": {\"a\": 1}"},
        {"", "", "{}", ERROR_CLASS_NONE, 200, "application/json", "\"path\": \"/predict\""},
        {"", "POST /v1/x?y=1", "[1]", ERROR_CLASS_NONE, 200, "application/json", "/v1/x?y=1"},
        {"", "GET /nowhere", "", ERROR_CLASS_BAD_INPUT, 404, "application/json", "no /nowhere"},
        {"application/msgpack", "", "\x81", ERROR_CLASS_NONE, 200, "application/msgpack", "\x81"},
        {"", "", "{\"do\":\"status\",\"status\":422}", ERROR_CLASS_BAD_INPUT, 422,
         "application/json", "as ordered"},
        {"", "", "{\"do\":\"status\",\"status\":500,\"kind\":\"text/plain\",\"body\":\"b\"}",
         ERROR_CLASS_MODEL_ERROR, 500, "text/plain", "\"b\""},
        {"", "", "{\"do\":\"status\",\"status\":503,\"headers\":{\"Retry-After\":\"2\"}}",
         ERROR_CLASS_MODEL_UNAVAILABLE, 503, "application/json", "as ordered"},
        {"", "HEAD /health", "{}", ERROR_CLASS_MODEL_ERROR, 501, "text/html", ""},
        {"", "", "{\"do\":\"status\",\"status\":204,\"body\":\"\"}", ERROR_CLASS_NONE, 204,
         "application/json", ""},
        {"", "bad route", "{}", ERROR_CLASS_BAD_INPUT, 0, "", ""},
    };
    struct talk talk;
    struct frame frame;

    (void)state;
    talk_load(&talk, "");
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        const struct frame_req req = {
            .id = i + 1,
            .input_type = WIRE_TEXT_OF(rows[i].type),
            .route = WIRE_TEXT_OF(rows[i].route),
            .input = {(const uint8_t *)rows[i].input, strlen(rows[i].input)}};

        talk_send(&talk, FRAME_REQ, &req);
        talk_want(&talk, FRAME_EVT, &frame);
        assert_int_equal(frame.evt.id, i + 1);
        assert_int_equal(frame.evt.granted, SLOTS + i + 1);
        assert_int_equal(frame.evt.error_class, rows[i].class);
        assert_int_equal(frame.evt.http_status, rows[i].status);
        want_text(frame.evt.output_type, rows[i].output_type);
        want_text((struct wire_text){(const char *)frame.evt.data.bytes, frame.evt.data.size},
                  rows[i].data);
        if (rows[i].status == 503)
            assert_int_equal(frame.evt.retry_after_ms, 2000);
    }
    talk_drain(&talk);
}

/* What a server says behind a 204 is not taken for the next answer. */
static void test_a_204_with_a_body(void **state)
{
    static const char *const asks[] = {"{\"do\":\"late_204\"}", "{\"a\":1}"};
    struct talk talk;
    struct frame frame;

    (void)state;
    talk_load(&talk, "");
    for (uint64_t id = 1; id <= 8; id++) {
        talk_req(&talk, id, false, asks[1 - id % 2]);
        talk_want(&talk, FRAME_EVT, &frame);
        if (frame.evt.kind != FRAME_EVT_OUTPUT)
            fail_msg("%.*s", (int)frame.evt.text.size, frame.evt.text.text);
        assert_int_equal(frame.evt.http_status, id % 2 == 1 ? 204 : 200);
        assert_int_equal(frame.evt.data.size == 0, id % 2 == 1);
    }
    talk_drain(&talk);
}

static void test_statuses_have_classes(void **state)
{
    static const struct {
        int status;
        bool unready;
        enum error_class class;
    } rows[] = {
        {200, true, ERROR_CLASS_NONE},
        {301, false, ERROR_CLASS_MODEL_ERROR},
        {400, false, ERROR_CLASS_BAD_INPUT},
        {400, true, ERROR_CLASS_MODEL_NOT_READY},
        {404, false, ERROR_CLASS_BAD_INPUT},
        {408, false, ERROR_CLASS_MODEL_TIMEOUT},
        {429, false, ERROR_CLASS_MODEL_UNAVAILABLE},
        {500, false, ERROR_CLASS_MODEL_ERROR},
        {502, false, ERROR_CLASS_MODEL_UNAVAILABLE},
        {504, false, ERROR_CLASS_MODEL_UNAVAILABLE},
        {507, false, ERROR_CLASS_MODEL_ERROR},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        assert_int_equal(host_server_status_class(rows[i].status, rows[i].unready), rows[i].class);
}

static void test_stream_comes_in_pieces_and_whole(void **state)
{
    struct talk talk;
    struct frame frame;
    size_t size = 0, count = 0;

    (void)state;
    talk_load(&talk, "");
    talk_req(&talk, 1, true, "{\"do\":\"sse\",\"pieces\":20,\"every\":0.01}");
    talk_want(&talk, FRAME_EVT, &frame);
    assert_int_equal(frame.evt.kind, FRAME_EVT_TOKENS);
    want_text(frame.evt.output_type, "text/event-stream");
    assert_int_equal(frame.evt.http_status, 200);
    while (frame.evt.kind == FRAME_EVT_TOKENS) {
        size += frame.evt.data.size;
        count++;
        talk_want(&talk, FRAME_EVT, &frame);
    }
    assert_true(count > 5); /* as they came, not gathered */
    assert_int_equal(frame.evt.kind, FRAME_EVT_OUTPUT);
    assert_int_equal(frame.evt.data.size, size);
    assert_memory_equal(frame.evt.data.bytes, "data: 0\n\ndata: 1\n\n", 18);
    talk_drain(&talk);
}

/* A worker that takes nothing for a while holds the server up; nothing is lost. */
static void test_a_slow_worker_holds_the_server_up(void **state)
{
    const char *ask = "{\"do\":\"sse\",\"pieces\":2000,\"pad\":8000}";
    struct talk talk;
    struct frame frame;
    size_t size = 0;

    (void)state;
    talk_load(&talk, "");
    talk_req(&talk, 1, true, ask);
    wait_ms(300);
    do {
        talk_want(&talk, FRAME_EVT, &frame);
        if (frame.evt.kind == FRAME_EVT_TOKENS)
            size += frame.evt.data.size;
    } while (frame.evt.kind == FRAME_EVT_TOKENS);
    assert_int_equal(frame.evt.kind, FRAME_EVT_OUTPUT);
    assert_int_equal(frame.evt.data.size, size);
    assert_true(size > 2000 * 8000);
    talk_drain(&talk);
}

static void test_large_bodies(void **state)
{
    OWNED(mem_free) char *input = xmalloc(3u << 20);
    struct talk talk;
    struct frame frame;

    (void)state;
    talk_load(&talk, ",\"answer_size_max\":10485760");
    memset(input, 'a', 3u << 20);
    memcpy(input, "{\"a\":\"", 6);
    memcpy(input + (3u << 20) - 3, "\"}", 3);
    talk_req(&talk, 1, false, input);
    talk_want(&talk, FRAME_EVT, &frame);
    assert_int_equal(frame.evt.kind, FRAME_EVT_OUTPUT);
    assert_true(frame.evt.data.size > 3u << 20);
    talk_req(&talk, 2, false, "{\"do\":\"big\",\"mib\":2048}");
    talk_want(&talk, FRAME_EVT, &frame);
    assert_int_equal(frame.evt.error_class, ERROR_CLASS_MODEL_ERROR);
    want_text(frame.evt.text, "over the limit of 10485760 bytes (answer_size_max)");
    talk_drain(&talk);
}

static void test_cancel_closes_the_connection(void **state)
{
    const struct frame_cancel cancel = {.id = 1};
    const struct frame_req ask = {.id = 2, .route = WIRE_TEXT_OF("GET /state")};
    struct talk talk;
    struct frame frame;

    (void)state;
    talk_load(&talk, "");
    talk_req(&talk, 1, false, "{\"do\":\"hang\"}");
    talk_send(&talk, FRAME_CANCEL, &cancel);
    talk_want(&talk, FRAME_EVT, &frame);
    assert_int_equal(frame.evt.error_class, ERROR_CLASS_CANCELED);
    talk_send(&talk, FRAME_REQ, &ask);
    talk_want(&talk, FRAME_EVT, &frame);
    assert_int_equal(frame.evt.http_status, 200);
    talk_drain(&talk);
}

static void test_run_limit(void **state)
{
    const struct frame_req req = {
        .id = 1, .limit_ms = 200, .input = {(const uint8_t *)"{\"do\":\"hang\"}", 13}};
    struct talk talk;
    struct frame frame;

    (void)state;
    talk_load(&talk, "");
    talk_send(&talk, FRAME_REQ, &req);
    talk_want(&talk, FRAME_EVT, &frame);
    assert_int_equal(frame.evt.error_class, ERROR_CLASS_MODEL_TIMEOUT);
    talk_drain(&talk);
}

/* ---- ends of the server ---- */

/* The end of the server speaks for what was in it: no other event comes before it. */
static void test_a_crash_ends_the_host(void **state)
{
    struct talk talk;

    (void)state;
    talk_load(&talk, "");
    talk_req(&talk, 1, false, "{\"do\":\"exit\",\"code\":7}");
    want_bye(&talk, ERROR_CLASS_LOST_WORKER, "exited with code 7; its last lines: ", 3);
}

static void test_starts_that_fail(void **state)
{
    static const struct {
        const char *settings, *holds;
        bool final;
    } rows[] = {
        {"," COMMAND "\"environment_variables\":{\"START\":\"exit\"}",
         "exited with code 3 before it was ready; its last lines: cannot find weights.bin", false},
        {",\"start_command\":\"exec no-such-program\"", "no-such-program", true},
        {"," COMMAND "\"environment_variables\":{\"READY_AFTER\":\"never\"},"
         "\"startup_threshold_seconds\":4",
         "was not ready within 4 s: /health answers 503", false},
        {",\"start_command\":\"exec sleep 60\",\"startup_threshold_seconds\":1",
         "was not ready within 1 s", false},
        {",\"start_comand\":\"x\"", "'start_comand' is no setting", true},
    };
    struct talk talk;
    struct frame frame;

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        talk_start(&talk, rows[i].settings);
        talk_want(&talk, FRAME_BYE, &frame);
        assert_int_equal(frame.bye.error_class, ERROR_CLASS_MODEL_UNAVAILABLE);
        assert_int_equal(frame.bye.final, rows[i].final);
        want_text(frame.bye.reason, rows[i].holds);
        assert_int_equal(talk_close(&talk), 2);
    }
}

static void test_a_taken_port_is_named(void **state)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t size = sizeof(address);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    OWNED(mem_free) char *settings = NULL;
    struct talk talk;

    (void)state;
    assert_int_equal(bind(fd, (struct sockaddr *)&address, size), 0);
    assert_int_equal(listen(fd, 1), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &size), 0);
    settings = xasprintf("," COMMAND "\"server_port\":%u", ntohs(address.sin_port));
    talk_start(&talk, settings);
    want_bye(&talk, ERROR_CLASS_MODEL_UNAVAILABLE, "is taken by another process", 2);
    (void)close(fd);
}

/* Whether a host holds that port: /proc/net/unix names its socket. */
static bool port_is_held(unsigned port)
{
    OWNED(mem_free) char *want = xasprintf("@headrace-port-%u\n", port);
    FILE *sockets = fopen("/proc/net/unix", "re");
    char line[256];
    bool held = false;

    while (!held && fgets(line, sizeof(line), sockets) != NULL)
        held = strstr(line, want) != NULL;
    (void)fclose(sockets);
    return held;
}

/* The first server never listens; its port is its own all the same. */
static void test_a_port_is_held_before_it_is_used(void **state)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t size = sizeof(address);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    OWNED(mem_free) char *settings = NULL;
    struct talk first, second;
    unsigned port;

    (void)state;
    assert_int_equal(bind(fd, (struct sockaddr *)&address, size), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &size), 0);
    (void)close(fd);
    port = ntohs(address.sin_port);
    settings = xasprintf(",\"start_command\":\"exec sleep 60\",\"startup_threshold_seconds\":2,"
                         "\"server_port\":%u",
                         port);
    talk_start(&first, settings);
    for (int i = 0; i < PROCESSES_TURNS && !port_is_held(port); i++)
        wait_ms(PROCESSES_TURN_MS);
    talk_start(&second, settings);
    want_bye(&second, ERROR_CLASS_MODEL_UNAVAILABLE, "is taken by another process", 2);
    want_bye(&first, ERROR_CLASS_MODEL_UNAVAILABLE, "was not ready within 2 s", 2);
}

static void test_a_dead_server_is_ended(void **state)
{
    struct talk talk;
    struct frame frame;

    (void)state;
    talk_load(&talk, ",\"probe_seconds\":0.1,\"restart_threshold_seconds\":0.3");
    talk_req(&talk, 1, false, "{\"do\":\"state\",\"state\":{\"dead\":true}}");
    talk_want(&talk, FRAME_EVT, &frame);
    want_bye(&talk, ERROR_CLASS_LOST_WORKER, "not alive for 0.3 s: /alive answers 500", 3);
}

static void test_a_sick_server_gets_no_traffic(void **state)
{
    struct talk talk;
    struct frame frame;
    uint64_t id = 1;

    (void)state;
    talk_load(&talk, ",\"probe_seconds\":0.1,\"stop_traffic_threshold_seconds\":0.2");
    talk_req(&talk, id, false, "{\"do\":\"state\",\"state\":{\"sick\":true}}");
    do {
        talk_want(&talk, FRAME_EVT, &frame);
        wait_ms(20);
        if (frame.evt.error_class == ERROR_CLASS_NONE)
            talk_req(&talk, ++id, false, "{}");
    } while (frame.evt.error_class == ERROR_CLASS_NONE && id < 500);
    assert_int_equal(frame.evt.error_class, ERROR_CLASS_HANDED_BACK);
    want_text(frame.evt.text, "/health answers 503");
    talk_drain(&talk);
}

/* ---- what is left behind ---- */

static void test_children_die_with_the_server(void **state)
{
    struct talk talk;
    struct frame frame;

    (void)state;
    talk_load(&talk, "");
    talk_req(&talk, 1, false, "{\"do\":\"children\",\"sleep\":\"77001\"}");
    talk_want(&talk, FRAME_EVT, &frame);
    want_sleeper("77001", true);
    talk_drain(&talk);
    want_sleeper("77001", false);
}

static void test_nothing_survives_a_killed_host(void **state)
{
    struct talk talk;
    struct frame frame;

    (void)state;
    talk_load(&talk, "");
    talk_req(&talk, 1, false, "{\"do\":\"children\",\"sleep\":\"77002\"}");
    talk_want(&talk, FRAME_EVT, &frame);
    want_sleeper("77002", true);
    assert_int_equal(kill(talk.pid, SIGKILL), 0);
    assert_int_equal(talk_close(&talk), -SIGKILL);
    want_sleeper("77002", false);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_answers),
        cmocka_unit_test(test_a_204_with_a_body),
        cmocka_unit_test(test_statuses_have_classes),
        cmocka_unit_test(test_stream_comes_in_pieces_and_whole),
        cmocka_unit_test(test_a_slow_worker_holds_the_server_up),
        cmocka_unit_test(test_large_bodies),
        cmocka_unit_test(test_cancel_closes_the_connection),
        cmocka_unit_test(test_run_limit),
        cmocka_unit_test(test_a_crash_ends_the_host),
        cmocka_unit_test(test_starts_that_fail),
        cmocka_unit_test(test_a_taken_port_is_named),
        cmocka_unit_test(test_a_port_is_held_before_it_is_used),
        cmocka_unit_test(test_a_dead_server_is_ended),
        cmocka_unit_test(test_a_sick_server_gets_no_traffic),
        cmocka_unit_test(test_children_die_with_the_server),
        cmocka_unit_test(test_nothing_survives_a_killed_host),
    };

    (void)signal(SIGPIPE, SIG_IGN);
    if (argc > 1 && strcmp(argv[1], "confine") == 0)
        return confine_main(argc - 1, argv + 1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
