/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: what people write for a delivery or an endpoint is understood or refused, never guessed. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "base/mem.h"
#include "producers/gateway_delivery_id.h"
#include "schema/job_id.h"

#define ID "019ab2c4-7d51-7c11-8000-5d1f0a6c9e42"

static void test_deliveries(void **state)
{
    static const struct {
        const char *text;
        int64_t round; /* -1: refused */
    } rows[] = {
        {ID, 0},
        {"019ab2c47d517c1180005d1f0a6c9e42", 0},
        {"msg_" ID "_1", 1},
        {"msg_" ID "_32767", 32767},
        {"msg_" ID "_32768", -1},
        {"msg_" ID "_99999999999999999999", -1},
        {"msg_" ID "_0", -1},
        {"msg_" ID "_", -1},
        {"msg_" ID, -1},
        {"msg_" ID "_1x", -1},
        {"msg_" ID "_-1", -1},
        {"msg__1", -1},
        {"msg_", -1},
        {"", -1},
        {ID "_1", -1},
        {"MSG_" ID "_1", -1},
        {"msg_" ID ID "_1", -1},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct wire_id job;
        uint64_t round = 77;
        struct err err;
        int r = delivery_id_parse(rows[i].text, &job, &round, &err);
        char text[JOB_ID_TEXT_SIZE];

        if (r != (rows[i].round < 0 ? ERR_MALFORMED : 0))
            fail_msg("'%s': %d", rows[i].text, r);
        if (r < 0)
            continue;
        job_id_format(&job, text);
        assert_string_equal(text, ID);
        assert_int_equal(round, rows[i].round);
    }
}

static void test_endpoints(void **state)
{
    static const struct {
        const char *text, *want; /* NULL: refused */
    } rows[] = {
        {"https://a.example/h", "https://a.example/h"},
        {"https://a.example/h?q=1#f", "https://a.example/h"},
        {"http://127.0.0.1:9/#f", "http://127.0.0.1:9/"},
        {"ftp://a.example/h", NULL},
        {"a.example/h", NULL},
        {"https://a.example/h h", NULL},
        {"https://a.example/\n", NULL},
        {"https://a.example/\xc3\xa4", NULL},
        {"https://a.example/0123456789012345678901234567", NULL}, /* longer than there is room */
        {"", NULL},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        char to[45] = "";
        struct err err;
        int r = endpoint_url_read(rows[i].text, to, sizeof(to), &err);

        if (r != (rows[i].want == NULL ? ERR_RANGE : 0))
            fail_msg("'%s': %d", rows[i].text, r);
        if (r == 0)
            assert_string_equal(to, rows[i].want);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_deliveries),
        cmocka_unit_test(test_endpoints),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
