/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: an id is a UUIDv7 that names its shard and its time, and its text reads back as itself. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "base/rng.h"
#include "schema/job_id.h"

static const uint8_t all_ones[JOB_ID_RANDOM_SIZE] = {0xff, 0xff, 0xff, 0xff,
                                                     0xff, 0xff, 0xff, 0xff};

static void test_shard_and_time_read_back(void **state)
{
    static const uint32_t shards[] = {0, 1, 15, 16, 63, 512, 1023};
    static const uint64_t times[] = {0, 1, 1763900000000, 0xffffffffffff};
    static const uint8_t none[JOB_ID_RANDOM_SIZE];

    (void)state;
    for (size_t i = 0; i < COUNT_OF(shards); i++) {
        for (size_t j = 0; j < COUNT_OF(times); j++) {
            for (int k = 0; k < 2; k++) {
                struct wire_id id = job_id_make(shards[i], times[j], k == 0 ? none : all_ones);

                assert_int_equal(job_id_shard(&id), shards[i]);
                assert_int_equal(job_id_time_ms(&id), times[j]);
                assert_int_equal(id.bytes[6] >> 4, 7);
                assert_int_equal(id.bytes[8] >> 6, 2);
            }
        }
    }
}

static void test_text_reads_back(void **state)
{
    struct rng rng;
    struct err err;

    (void)state;
    rng_seed(&rng, 1);
    for (int i = 0; i < 1000; i++) {
        uint64_t random = rng_next(&rng);
        struct wire_id id, again;
        char text[JOB_ID_TEXT_SIZE];

        id = job_id_make((uint32_t)rng_below(&rng, JOB_SHARD_COUNT_MAX), rng_next(&rng) >> 16,
                         (const uint8_t *)&random);
        job_id_format(&id, text);
        assert_int_equal(strlen(text), 36);
        assert_int_equal(job_id_parse(text, &again, &err), 0);
        assert_true(job_id_equal(&id, &again));
    }
}

static void test_what_is_no_id(void **state)
{
    static const struct {
        const char *text;
        bool good;
    } rows[] = {
        {"01936f5e-8a7b-7c3d-8e9f-0123456789ab", true},
        {"01936F5E-8A7B-7C3D-8E9F-0123456789AB", true},
        {"01936f5e8a7b7c3d8e9f0123456789ab", true},
        {"", false},
        {"01936f5e-8a7b-7c3d-8e9f-0123456789a", false},
        {"01936f5e-8a7b-7c3d-8e9f-0123456789abc", false},
        {"01936f5e-8a7b-7c3d-8e9f-0123456789ag", false},
        {"01936f5e_8a7b-7c3d-8e9f-0123456789ab", false},
        {"01936f5e8-a7b-7c3d-8e9f-0123456789ab", false},
        {"01936f5e-8a7b-7c3d-8e9f-01234567\n9ab", false},
        {"------------------------------------", false},
        {"01936f5e8a7b7c3d8e9f0123456789a-", false},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct wire_id id;
        struct err err;
        int r = job_id_parse(rows[i].text, &id, &err);

        assert_int_equal(r, rows[i].good ? 0 : ERR_MALFORMED);
    }
}

static void test_ids_sort_by_time(void **state)
{
    static const uint8_t none[JOB_ID_RANDOM_SIZE];
    struct wire_id early = job_id_make(1023, 1000, all_ones), late = job_id_make(0, 1001, none);

    (void)state;
    assert_true(memcmp(&early, &late, sizeof(early)) < 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shard_and_time_read_back),
        cmocka_unit_test(test_text_reads_back),
        cmocka_unit_test(test_what_is_no_id),
        cmocka_unit_test(test_ids_sort_by_time),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
