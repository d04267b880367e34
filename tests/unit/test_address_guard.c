/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: a user's URL reaches public addresses only, unless the operator allows a range. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <arpa/inet.h>
#include <cmocka.h>
#include <netinet/in.h>
#include <string.h>

#include "brokers/address_guard.h"

static bool allowed(const char *allow_text, const char *text)
{
    struct address_allow allow;
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6};
    struct sockaddr_in v4 = {.sin_family = AF_INET};
    struct err err;

    assert_int_equal(address_allow_parse(allow_text, &allow, &err), 0);
    if (inet_pton(AF_INET, text, &v4.sin_addr) == 1)
        return address_allowed(&allow, (const struct sockaddr *)&v4);
    assert_int_equal(inet_pton(AF_INET6, text, &v6.sin6_addr), 1);
    return address_allowed(&allow, (const struct sockaddr *)&v6);
}

static void test_public_addresses(void **state)
{
    static const char *const rows[] = {"8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1",
                                       "2606:4700:4700::1111"};

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        if (!allowed("", rows[i]))
            fail_msg("%s is refused", rows[i]);
    }
}

static void test_inner_addresses(void **state)
{
    static const char *const rows[] = {
        "127.0.0.1",   "127.255.0.9",     "0.0.0.0",
        "10.2.3.4",    "172.16.0.1",      "172.31.255.255",
        "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "224.0.0.1",   "255.255.255.255", "::1",
        "::",          "::ffff:10.0.0.1", "fe80::1",
        "fd00::1",     "ff02::1",         "2001:db8::1",
        "::127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::",
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        if (allowed("", rows[i]))
            fail_msg("%s is let through", rows[i]);
    }
}

static void test_operator_allows_a_range(void **state)
{
    (void)state;
    assert_true(allowed("127.0.0.0/8,::1", "127.0.0.1"));
    assert_true(allowed("127.0.0.0/8,::1", "::1"));
    assert_true(allowed("127.0.0.0/8,::1", "::ffff:127.0.0.1"));
    assert_false(allowed("127.0.0.0/8,::1", "10.0.0.1"));
    assert_true(allowed("10.1.2.3", "10.1.2.3"));
    assert_false(allowed("10.1.2.3", "10.1.2.4"));
}

static void test_bad_ranges_are_named(void **state)
{
    struct address_allow allow;
    struct err err;

    (void)state;
    assert_int_equal(address_allow_parse("10.0.0.0/33", &allow, &err), ERR_USAGE);
    assert_non_null(strstr(err.text, "10.0.0.0/33"));
    assert_int_equal(address_allow_parse("localhost", &allow, &err), ERR_USAGE);
    assert_int_equal(address_allow_parse("10.0.0.0/8x", &allow, &err), ERR_USAGE);
    assert_int_equal(address_allow_parse(",", &allow, &err), ERR_USAGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_public_addresses),
        cmocka_unit_test(test_inner_addresses),
        cmocka_unit_test(test_operator_allows_a_range),
        cmocka_unit_test(test_bad_ranges_are_named),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
