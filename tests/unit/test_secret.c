/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: names are those of the wire, and files can be called so; the context tells rows apart. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "schema/secret.h"

static void test_names(void **state)
{
    static const char *const good[] = {"a", "hf_access_token", "A-b.C_9", "...", ".netrc"};
    static const char *const bad[] = {"", ".", "..", "a/b", "a b", "a=b", "\xc3\xa4", "a\n"};
    char longest[SECRET_NAME_SIZE_MAX + 2];
    struct err err;

    (void)state;
    for (size_t i = 0; i < COUNT_OF(good); i++)
        assert_int_equal(secret_name_check(good[i], &err), 0);
    for (size_t i = 0; i < COUNT_OF(bad); i++)
        assert_int_equal(secret_name_check(bad[i], &err), ERR_RANGE);
    memset(longest, 'x', sizeof(longest));
    longest[SECRET_NAME_SIZE_MAX] = '\0';
    assert_int_equal(secret_name_check(longest, &err), 0);
    longest[SECRET_NAME_SIZE_MAX] = 'x';
    longest[SECRET_NAME_SIZE_MAX + 1] = '\0';
    assert_int_equal(secret_name_check(longest, &err), ERR_RANGE);
    assert_non_null(strstr(err.text, "1 to 253 of a-z A-Z 0-9 - . _"));
}

static void test_context(void **state)
{
    char tenant[65], name[SECRET_NAME_SIZE_MAX + 1], text[SECRET_CONTEXT_SIZE];

    (void)state;
    secret_context("default", "token", text);
    assert_string_equal(text, "secret default/token");
    memset(tenant, 't', sizeof(tenant));
    memset(name, 'n', sizeof(name));
    tenant[sizeof(tenant) - 1] = name[sizeof(name) - 1] = '\0';
    secret_context(tenant, name, text);
    assert_int_equal(strlen(text), strlen("secret /") + 64 + SECRET_NAME_SIZE_MAX);
}

static void test_what_settings_name(void **state)
{
    (void)state;
    assert_true(secrets_are_named("{\"secrets\": {\"a\": null}}"));
    assert_true(secrets_are_named("{\"truss\": {\"secrets\": {\"a\": \"x\"}}}"));
    assert_false(secrets_are_named("{\"truss\": {\"secrets\": {}}, \"secrets\": {}}"));
    assert_true(secrets_are_named("{\"secrets\": [\"a\"]}"));
    assert_false(secrets_are_named("{\"secrets\": []}"));
    assert_false(secrets_are_named("{}"));
    assert_false(secrets_are_named("no json"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_context),
        cmocka_unit_test(test_what_settings_name),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
