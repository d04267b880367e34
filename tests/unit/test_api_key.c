/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: a key that was made is recognized in any header form, and nothing else is. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "schema/api_key.h"

static void key_of(uint8_t seed, struct api_key *ret_key)
{
    uint8_t random[API_KEY_RANDOM_SIZE];

    for (size_t i = 0; i < sizeof(random); i++)
        random[i] = (uint8_t)(seed + 7 * i);
    api_key_make(random, ret_key);
}

static void test_make_parse(void **state)
{
    struct api_key key, other, parsed;
    struct err err;

    (void)state;
    key_of(1, &key);
    key_of(2, &other);
    assert_int_equal(strlen(key.prefix), API_KEY_PREFIX_SIZE - 1);
    assert_int_equal(strlen(key.text), API_KEY_TEXT_SIZE - 1);
    assert_int_equal(strncmp(key.text, key.prefix, strlen(key.prefix)), 0);
    assert_int_equal(api_key_parse(key.text, &parsed, &err), 0);
    assert_string_equal(parsed.prefix, key.prefix);
    assert_true(api_key_digest_equal(parsed.digest, key.digest));
    assert_false(api_key_digest_equal(parsed.digest, other.digest));
    key.text[API_KEY_TEXT_SIZE - 2] ^= 1;
    assert_int_equal(api_key_parse(key.text, &parsed, &err), 0);
    assert_false(api_key_digest_equal(parsed.digest, key.digest));
}

static void test_parse_refuses(void **state)
{
    static const char *const rows[] = {
        "",
        "abc",
        "abcdefgh",
        "abcdefgh.short",
        "ABCDEFGH.aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "abcdefgh aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "abcdefghi.aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "abcdefgh.aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    };
    struct api_key parsed;
    struct err err;

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++)
        assert_int_equal(api_key_parse(rows[i], &parsed, &err), ERR_UNAUTHORIZED);
}

static void test_header(void **state)
{
    static const struct {
        const char *header, *want;
    } rows[] = {
        {"Bearer k", "k"}, {"bearer  k", "k"}, {"Api-Key k", "k"}, {"API-KEY k", "k"},
        {"Basic k", NULL}, {"k", NULL},        {"", NULL},         {NULL, NULL},
        {"Bearerk", NULL}, {"Bearer ", ""},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        const char *key = api_key_of_header(rows[i].header);

        if (rows[i].want == NULL)
            assert_null(key);
        else
            assert_string_equal(key, rows[i].want);
    }
}

static void test_roles(void **state)
{
    enum api_key_role role;
    struct err err;

    (void)state;
    for (enum api_key_role r = 0; r < API_KEY_ROLE_COUNT; r++) {
        assert_int_equal(api_key_role_parse(api_key_role_name(r), &role, &err), 0);
        assert_int_equal(role, r);
        assert_int_equal(api_key_type_parse(api_key_role_type(r), &role, &err), 0);
        assert_int_equal(role, r);
    }
    assert_int_equal(api_key_type_parse("PERSONAL", &role, &err), 0);
    assert_int_equal(role, API_KEY_ROLE_ADMIN);
    assert_int_equal(api_key_type_parse("ROOT", &role, &err), ERR_RANGE);
    assert_int_equal(api_key_role_parse("root", &role, &err), ERR_RANGE);
}

static void test_names(void **state)
{
    static const char *const good[] = {"a", "MiniLM-L6.v2_x", "0"};
    static const char *const bad[] = {"", "-a", ".a", "a b", "a/b", "\xc3\xa4"};
    const uint8_t random[SHORT_ID_RANDOM_SIZE] = {0, 31, 32, 255, 4, 5, 6, 7};
    char id[SHORT_ID_SIZE], longest[66];
    struct err err;

    (void)state;
    for (size_t i = 0; i < COUNT_OF(good); i++)
        assert_int_equal(name_check("name", good[i], &err), 0);
    for (size_t i = 0; i < COUNT_OF(bad); i++)
        assert_int_equal(name_check("name", bad[i], &err), ERR_RANGE);
    memset(longest, 'a', sizeof(longest));
    longest[65] = '\0';
    assert_int_equal(name_check("name", longest, &err), ERR_RANGE);
    longest[64] = '\0';
    assert_int_equal(name_check("name", longest, &err), 0);
    short_id_make(random, id);
    assert_string_equal(id, "a9a9efgh");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_make_parse), cmocka_unit_test(test_parse_refuses),
        cmocka_unit_test(test_header),     cmocka_unit_test(test_roles),
        cmocka_unit_test(test_names),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
