/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: receivers of either scheme accept our signatures.
 * Method: fixed vectors. The standard one is the example of the Standard Webhooks libraries'
 * tests with a 40-character secret; both were computed apart from this code, with Python's hmac:
 *   hmac.new(b"whsec_" + tail, body, "sha256").hexdigest()
 *   base64.b64encode(hmac.new(base64.b64decode(tail), id + b"." + ts + b"." + body, "sha256"))
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "base/mem.h"
#include "workers/webhook_sign.h"

#define OLD_SECRET "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8G"
#define NEW_SECRET "whsec_ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmn"

static const char body[] = "{\"test\": 2432232314}";

static struct webhook_message message_make(void)
{
    return (struct webhook_message){
        .id = "msg_p5jXN8AQM9LWM0D4loKWxJek",
        .timestamp_s = 1614265330,
        .body = (const uint8_t *)body,
        .body_size = strlen(body),
    };
}

static void test_one_secret(void **state)
{
    const struct webhook_secrets secrets = {.text = {OLD_SECRET}, .count = 1};
    struct webhook_message message = message_make();
    OWNED(buf_done) struct buf value = BUF_WITH_LIMIT(1000);

    (void)state;
    webhook_sign_baseten(&secrets, &message, &value);
    assert_string_equal(buf_text(&value),
                        "v1=4ed25cb49f65dea461291ddfce6aab5ce58f2f45cd2d0ac3300eb9a93374d2c3");
    buf_clear(&value);
    webhook_sign_standard(&secrets, &message, &value);
    assert_string_equal(buf_text(&value), "v1,aYC3F5B152oCAHjXMpe7RzTJsF8y8mmZHfWfWUU7w+M=");
}

static void test_rotation_signs_with_both_newest_first(void **state)
{
    const struct webhook_secrets secrets = {.text = {NEW_SECRET, OLD_SECRET}, .count = 2};
    struct webhook_message message = message_make();
    OWNED(buf_done) struct buf value = BUF_WITH_LIMIT(1000);

    (void)state;
    webhook_sign_baseten(&secrets, &message, &value);
    assert_string_equal(buf_text(&value),
                        "v1=946f24f748cead7840ac5b42183495344a7270d45b2801e70c10acd8c1a921b5,"
                        "v1=4ed25cb49f65dea461291ddfce6aab5ce58f2f45cd2d0ac3300eb9a93374d2c3");
    buf_clear(&value);
    webhook_sign_standard(&secrets, &message, &value);
    assert_string_equal(buf_text(&value), "v1,/QYjsUtFLjV+k9mmWQupZm2UjEaHtld4Mqv+VWYxpcs= "
                                          "v1,aYC3F5B152oCAHjXMpe7RzTJsF8y8mmZHfWfWUU7w+M=");
}

static void test_no_secret_no_signature(void **state)
{
    const struct webhook_secrets secrets = {.count = 0};
    struct webhook_message message = message_make();
    OWNED(buf_done) struct buf value = BUF_WITH_LIMIT(1000);

    (void)state;
    webhook_sign_baseten(&secrets, &message, &value);
    webhook_sign_standard(&secrets, &message, &value);
    assert_int_equal(value.size, 0);
}

/* The vector of the asymmetric scheme that the libraries of the standard share. */
#define PRIVATE_KEY                                                                                \
    "whsk_6Xb/dCcHpPea21PS1N9VY/"                                                                  \
    "NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg=="
#define KEY_SIGNATURE                                                                              \
    "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg=="

static void add_key(struct webhook_secrets *secrets)
{
    struct webhook_key_pair key;
    struct err err;

    assert_int_equal(webhook_key_parse(PRIVATE_KEY, &key, &err), 0);
    memcpy(secrets->private_keys[secrets->key_count++], key.private_key, sizeof(key.private_key));
}

static void test_key_signs_for_the_standard_alone(void **state)
{
    struct webhook_secrets secrets = {.count = 0};
    struct webhook_message message = message_make();
    OWNED(buf_done) struct buf value = BUF_WITH_LIMIT(1000);

    (void)state;
    add_key(&secrets);
    webhook_sign_baseten(&secrets, &message, &value);
    assert_int_equal(value.size, 0);
    webhook_sign_standard(&secrets, &message, &value);
    assert_string_equal(buf_text(&value), KEY_SIGNATURE);
}

static void test_secrets_come_before_keys(void **state)
{
    struct webhook_secrets secrets = {.text = {NEW_SECRET, OLD_SECRET}, .count = 2};
    struct webhook_message message = message_make();
    OWNED(buf_done) struct buf value = BUF_WITH_LIMIT(1000);

    (void)state;
    add_key(&secrets);
    add_key(&secrets);
    webhook_sign_standard(&secrets, &message, &value);
    assert_string_equal(buf_text(&value),
                        "v1,/QYjsUtFLjV+k9mmWQupZm2UjEaHtld4Mqv+VWYxpcs= "
                        "v1,aYC3F5B152oCAHjXMpe7RzTJsF8y8mmZHfWfWUU7w+M= " KEY_SIGNATURE
                        " " KEY_SIGNATURE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_secret),
        cmocka_unit_test(test_rotation_signs_with_both_newest_first),
        cmocka_unit_test(test_no_secret_no_signature),
        cmocka_unit_test(test_key_signs_for_the_standard_alone),
        cmocka_unit_test(test_secrets_come_before_keys),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
