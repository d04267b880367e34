/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: a batch leaves when it is full or when its oldest request has waited long enough, and never
 * later; settings are refused by key, value and limit.
 * Method: rows of the pure rule; then the tiny model driven with times of the test's own.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "tests/unit/encoder_drive.h"
#include "workers/engines/encoder/encoder.h"
#include "workers/engines/encoder/encoder_batching.h"
#include "workers/engines/encoder/encoder_json.h"

#define TINY "tests/data/encoder/tiny"

static void test_rule(void **state)
{
    static const struct {
        uint32_t item_max, token_max;
        uint64_t wait_us, items, tokens, oldest_us, want_us;
    } rows[] = {
        {8, 0, 0, 1, 0, 500, 500},      {8, 0, 2000, 1, 0, 500, 2500},
        {8, 0, 2000, 7, 99, 500, 2500}, {8, 0, 2000, 8, 0, 500, 0},
        {8, 0, 2000, 9, 0, 500, 0},     {8, 100, 2000, 1, 99, 500, 2500},
        {8, 100, 2000, 1, 100, 500, 0},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        const struct encoder_batching batching = {rows[i].item_max, rows[i].token_max,
                                                  rows[i].wait_us};
        uint64_t due_us = encoder_batching_due_us(&batching, rows[i].items, rows[i].tokens,
                                                  rows[i].oldest_us);

        if (due_us != rows[i].want_us)
            fail_msg("row %zu: %llu", i, (unsigned long long)due_us);
    }
    assert_int_equal(encoder_batching_wake_us(10, 10), 0);
    assert_int_equal(encoder_batching_wake_us(11, 10), 11);
}

static void test_settings(void **state)
{
    static const struct {
        const char *json;
        int code;
        const char *want;
    } rows[] = {
        {"{}", 0, ""},
        {"{\"batching\":{\"max_items\":2,\"max_tokens\":64,\"max_wait_ms\":3}}", 0, ""},
        {"{\"batching\":7}", ERR_MALFORMED, "batching"},
        {"{\"batching\":{\"max_item\":2}}", ERR_USAGE, "max_item'"},
        {"{\"batching\":{\"max_items\":0}}", ERR_RANGE, "'max_items' is 0, allowed are 1 to 2048"},
        {"{\"batching\":{\"max_tokens\":1.5}}", ERR_MALFORMED, "max_tokens"},
        {"{\"batching\":{\"max_wait_ms\":1001}}", ERR_RANGE, "1001, allowed are 0 to 1000"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        OWNED(encoder_json_free) json_t *json = json_loads(rows[i].json, 0, NULL);
        struct encoder_batching batching = {9, 9, 0};
        struct err err = {0};
        int r = encoder_batching_read(json, &batching, &err);

        if (r != rows[i].code || (r < 0 && strstr(err.text, rows[i].want) == NULL))
            fail_msg("row %zu: %d %s", i, r, err.text);
        if (i == 1)
            assert_true(batching.item_max == 2 && batching.token_max == 64 &&
                        batching.wait_us == 3000);
    }
}

static uint64_t step(struct drive *drive, uint64_t now_us)
{
    uint64_t wake_us = 7;
    struct err err;

    assert_int_equal(drive->api->step(drive->engine, now_us, &wake_us, &err), 0);
    return wake_us;
}

static void submit_at(struct drive *drive, uint64_t id, uint64_t now_us, bool alone)
{
    static const char input[] = "{\"input\": \"the wheel\"}";
    const struct engine_req req = {
        .id = id, .input = input, .input_size = strlen(input), .alone = alone};
    struct err err;

    assert_int_equal(drive->api->submit(drive->engine, &req, now_us, &err), 0);
}

static void load(struct drive *drive, const char *settings, uint32_t req_count_max)
{
    const struct engine_load wish = {
        .dir = TINY, .thread_count = 1, .settings_json = settings, .req_count_max = req_count_max};
    struct err err = {0};

    if (drive_load(drive, &encoder_api, &wish, &err) < 0)
        fail_msg("%s", err.text);
}

static void test_waits_for_company(void **state)
{
    OWNED(drive_done) struct drive drive = {0};

    (void)state;
    load(&drive, "{\"batching\":{\"max_items\":3,\"max_wait_ms\":5}}", 4);
    submit_at(&drive, 1, 1000, false);
    assert_int_equal(step(&drive, 1000), 6000);
    submit_at(&drive, 2, 2000, false);
    assert_int_equal(step(&drive, 5999), 6000); /* the oldest one's time, not the newest one's */
    assert_true(step(&drive, 6000) == ENGINE_NEVER_US);
    assert_int_equal(drive_final(&drive, 1)->batch_req_count, 2);
    assert_int_equal(drive_final(&drive, 2)->batch_req_count, 2);

    for (uint64_t id = 3; id < 6; id++)
        submit_at(&drive, id, 7000, false);
    submit_at(&drive, 6, 7000, true);
    assert_int_equal(step(&drive, 7000), 0); /* full at once; then the one that stays alone */
    assert_int_equal(drive_final(&drive, 5)->batch_req_count, 3);
    assert_true(step(&drive, 7000) == ENGINE_NEVER_US);
    assert_int_equal(drive_final(&drive, 6)->batch_req_count, 1);
}

/* Nobody waits for company that cannot come, and a deadline passes also while one waits. */
static void test_ends_of_waiting(void **state)
{
    OWNED(drive_done) struct drive drive = {0};
    const struct engine_req late = {
        .id = 9, .input = "{\"input\":\"x\"}", .input_size = 13, .deadline_us = 1500};
    struct err err;

    (void)state;
    load(&drive, "{\"batching\":{\"max_wait_ms\":1000}}", 2);
    submit_at(&drive, 1, 0, false);
    assert_int_equal(step(&drive, 0), 1000000);
    submit_at(&drive, 2, 0, false);
    assert_true(step(&drive, 0) == ENGINE_NEVER_US);
    assert_int_equal(drive_final(&drive, 1)->batch_req_count, 2);
    assert_int_equal(drive.api->submit(drive.engine, &late, 1000, &err), 0);
    assert_int_equal(step(&drive, 1000), 1500);
    assert_true(step(&drive, 1501) == ENGINE_NEVER_US);
    assert_int_equal(drive_final(&drive, 9)->error, ENGINE_ERROR_EXPIRED);
}

static void test_budget_below_a_text(void **state)
{
    OWNED(drive_done) struct drive drive = {0};
    const struct engine_load wish = {.dir = TINY,
                                     .settings_json = "{\"batching\":{\"max_tokens\":8}}"};
    struct err err = {0};

    (void)state;
    assert_int_equal(drive_load(&drive, &encoder_api, &wish, &err), ERR_RANGE);
    assert_non_null(strstr(err.text, "max_tokens"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rule),
        cmocka_unit_test(test_settings),
        cmocka_unit_test(test_waits_for_company),
        cmocka_unit_test(test_ends_of_waiting),
        cmocka_unit_test(test_budget_below_a_text),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
