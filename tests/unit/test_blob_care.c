/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: no blob that somebody may still need is judged to be over, a missing row least of all.
 * Method: one row a case; keys as blob.h makes them, and near misses. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "brokers/blob_care.h"
#include "schema/job_id.h"

#define HOUR 3600.0
#define NOW_US 1800000000000000ull

static const struct blob_care_rules rules = {
    .input_keep_s = HOUR, .output_keep_s = 24 * HOUR, .fresh_s = 24 * HOUR};

struct row {
    struct blob_care_facts facts;
    bool is_input;
    double written_hours_ago;
    bool want;
};

#define ROW(st, hours, delivery)                                                                   \
    {                                                                                              \
        .has_row = true, .state = (st), .age_s = (hours)*HOUR, .delivery_open = (delivery)         \
    }
#define NO_ROW(over)                                                                               \
    {                                                                                              \
        .day_over = (over)                                                                         \
    }

static const struct row rows[] = {
    /* No row: only a day that is over, and nothing that was written lately. */
    {NO_ROW(false), true, 10000, false},
    {NO_ROW(false), false, 10000, false},
    {NO_ROW(true), true, 25, true},
    {NO_ROW(true), false, 25, true},
    {NO_ROW(true), true, 23, false},
    {NO_ROW(true), true, -5, false}, /* from a clock that is ahead */
    /* Not final: never, not even of a day that is over. */
    {ROW(JOB_QUEUED, 10000, false), true, 10000, false},
    {ROW(JOB_IN_PROGRESS, 10000, false), true, 10000, false},
    {ROW(JOB_IN_PROGRESS, 10000, false), false, 10000, false},
    /* Inputs: of those that succeeded, once nobody reads them any more; a replay needs the others.
     */
    {ROW(JOB_SUCCEEDED, 0.9, false), true, 10000, false},
    {ROW(JOB_SUCCEEDED, 1.1, false), true, 0, true},
    {ROW(JOB_FAILED, 10000, false), true, 10000, false},
    {ROW(JOB_EXPIRED, 10000, false), true, 10000, false},
    {ROW(JOB_CANCELED, 10000, false), true, 10000, false},
    /* Outputs: so long after the end, and while something is to be delivered. */
    {ROW(JOB_SUCCEEDED, 23, false), false, 10000, false},
    {ROW(JOB_SUCCEEDED, 25, true), false, 10000, false},
    {ROW(JOB_SUCCEEDED, 25, false), false, 10000, true},
    {ROW(JOB_FAILED, 25, false), false, 10000, true}, /* of an attempt that was fenced */
};
/* clang-format on */

static void test_verdicts(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        uint64_t modified_us = NOW_US - (uint64_t)(int64_t)(rows[i].written_hours_ago * HOUR * 1e6);

        if (blob_care_is_over(&rules, &rows[i].facts, rows[i].is_input, modified_us, NOW_US) !=
            rows[i].want)
            fail_msg("row %zu", i);
    }
}

/* A time that the store did not tell is no age. */
static void test_unknown_time(void **state)
{
    const struct blob_care_facts facts = {.day_over = true};

    (void)state;
    assert_false(blob_care_is_over(&rules, &facts, true, UINT64_MAX, NOW_US));
}

static void test_keys(void **state)
{
    static const char *const bad[] = {
        "",
        "jobs/",
        "archives/0123",
        "jobs/2026-01-31/x/input",
        "jobs/2025-01-31/019c1234-5678-7abc-8000-5d1f0a6c9e42/input", /* another day */
        "tmp/blob-abc",
    };
    const uint8_t entropy[JOB_ID_RANDOM_SIZE] = {1, 2, 3};
    struct wire_id id = job_id_make(3, 1769821323000, entropy), read;
    char key[BLOB_KEY_SIZE], near[BLOB_KEY_SIZE];
    bool is_input;

    (void)state;
    for (size_t i = 0; i < COUNT_OF(bad); i++)
        assert_false(blob_care_read_key(bad[i], &read, &is_input));
    blob_key_input(&id, key);
    assert_true(blob_care_read_key(key, &read, &is_input));
    assert_true(is_input && job_id_equal(&id, &read));
    for (size_t size = 0; size < strlen(key); size++) {
        (void)snprintf(near, sizeof(near), "%.*s", (int)size, key);
        assert_false(blob_care_read_key(near, &read, &is_input));
    }
    blob_key_output(&id, 0xabc, key);
    assert_true(blob_care_read_key(key, &read, &is_input));
    assert_true(!is_input && job_id_equal(&id, &read));
    (void)snprintf(near, sizeof(near), "%.150sx", key);
    assert_false(blob_care_read_key(near, &read, &is_input));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_verdicts),
        cmocka_unit_test(test_unknown_time),
        cmocka_unit_test(test_keys),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
