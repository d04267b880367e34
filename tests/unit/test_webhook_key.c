/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: secrets and keys have the form that receivers' libraries read, and nothing else is taken.
 * Method: the key pair of the Standard Webhooks libraries' tests, and RFC 8032's first test.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "base/mem.h"
#include "schema/webhook_key.h"

#define PRIVATE_KEY                                                                                \
    "whsk_6Xb/dCcHpPea21PS1N9VY/"                                                                  \
    "NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg=="
#define PUBLIC_KEY "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4="
#define PUBLIC_URL "1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4"

static void test_key_there_and_back(void **state)
{
    char private_text[WEBHOOK_PRIVATE_KEY_TEXT_SIZE], public_text[WEBHOOK_PUBLIC_KEY_TEXT_SIZE];
    char url_text[WEBHOOK_PUBLIC_KEY_URL_SIZE];
    struct webhook_key_pair key;
    struct err err;

    (void)state;
    assert_int_equal(webhook_key_parse(PRIVATE_KEY, &key, &err), 0);
    webhook_key_format_private(&key, private_text);
    webhook_key_format_public(key.public_key, public_text);
    webhook_key_format_url(key.public_key, url_text);
    assert_string_equal(private_text, PRIVATE_KEY);
    assert_string_equal(public_text, PUBLIC_KEY);
    assert_string_equal(url_text, PUBLIC_URL);
}

/* RFC 8032, section 7.1, test 1. */
static void test_key_of_a_seed(void **state)
{
    static const uint8_t seed[WEBHOOK_SEED_SIZE] = {0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60,
                                                    0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec, 0x2c, 0xc4,
                                                    0x44, 0x49, 0xc5, 0x69, 0x7b, 0x32, 0x69, 0x19,
                                                    0x70, 0x3b, 0xac, 0x03, 0x1c, 0xae, 0x7f, 0x60};
    static const uint8_t public_key[WEBHOOK_PUBLIC_KEY_SIZE] = {
        0xd7, 0x5a, 0x98, 0x01, 0x82, 0xb1, 0x0a, 0xb7, 0xd5, 0x4b, 0xfe,
        0xd3, 0xc9, 0x64, 0x07, 0x3a, 0x0e, 0xe1, 0x72, 0xf3, 0xda, 0xa6,
        0x23, 0x25, 0xaf, 0x02, 0x1a, 0x68, 0xf7, 0x07, 0x51, 0x1a};
    struct webhook_key_pair key;

    (void)state;
    webhook_key_make(seed, &key);
    assert_memory_equal(key.public_key, public_key, sizeof(public_key));
    assert_memory_equal(key.private_key, seed, sizeof(seed));
}

static void test_what_is_no_key(void **state)
{
    static const char *const bad[] = {
        "",
        "whsk_",
        PUBLIC_KEY,
        "whsk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4=", /* half of it */
        "whsk_6Xb/dCcHpPea21PS1N9VY/"
        "NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kv",
        "whsk_6Xb/dCcHpPea21PS1N9VY/"
        "NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlaaaaaaaaaaAJ6p9lMicMFs6Kvg==",
        PRIVATE_KEY "AAAA",
        "whsk_%",
        "whsk_6Xb\257dCcHpPea21PS1N9VY/"
        "NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg==",
    };
    struct webhook_key_pair key;
    struct err err;

    (void)state;
    for (size_t i = 0; i < COUNT_OF(bad); i++) {
        if (webhook_key_parse(bad[i], &key, &err) != ERR_MALFORMED)
            fail_msg("'%s' was taken", bad[i]);
        assert_null(strstr(err.text, "6Xb/")); /* errors go to logs */
    }
}

static void test_secret_form(void **state)
{
    struct err err;

    (void)state;
    assert_int_equal(webhook_secret_check("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8G", &err),
                     0);
    assert_int_equal(webhook_secret_check("whsec_short", &err), ERR_MALFORMED);
    assert_int_equal(webhook_secret_check("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8G", &err),
                     ERR_MALFORMED);
    assert_int_equal(webhook_secret_check("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r+/", &err),
                     ERR_MALFORMED);
}

static void test_secret_of_random_bytes(void **state)
{
    uint8_t random[WEBHOOK_SECRET_RANDOM_SIZE];
    char text[WEBHOOK_SECRET_TEXT_SIZE];
    struct err err;

    (void)state;
    for (size_t i = 0; i < sizeof(random); i++)
        random[i] = i < 40 ? 255
                           : (uint8_t)i; /* the first forty are skipped: no letter of theirs */
    webhook_secret_make(random, text);
    assert_int_equal(webhook_secret_check(text, &err), 0);
    assert_string_equal(text, "whsec_opqrstuvwxyz0123456789ABCDEFGHIJKLMNOPQR");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_key_there_and_back),     cmocka_unit_test(test_key_of_a_seed),
        cmocka_unit_test(test_what_is_no_key),         cmocka_unit_test(test_secret_form),
        cmocka_unit_test(test_secret_of_random_bytes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
