/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: a large body falls into its input, verbatim, and the rest; what is no JSON is refused where
 * it stops being so; memory does not grow with the input. Method: a table, each row fed whole and
 * byte by byte. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/json_fast.h"
#include "producers/gateway_scan.h"

struct row {
    const char *body, *envelope, *input; /* envelope NULL: refused */
};

static const struct row rows[] = {
    {"{\"model_input\":{}}", "{\"model_input\":{}}", "{}"},
    {"{\"model_input\" : { \"a\" : [1,{\"b\":\"}\"}] } , \"priority\":1}",
     "{\"model_input\" : {} , \"priority\":1}", "{ \"a\" : [1,{\"b\":\"}\"}] }"},
    {" {\"a\":{\"model_input\":{\"x\":1}},\"model_input\":{\"y\":2}} \n",
     " {\"a\":{\"model_input\":{\"x\":1}},\"model_input\":{}} \n", "{\"y\":2}"},
    {"{\"model_input\":\"text\"}", "{\"model_input\":\"text\"}", ""},
    {"{\"model_input\":[{}]}", "{\"model_input\":[{}]}", ""},
    {"{\"model_inpu\":{\"a\":1},\"model_input2\":{\"a\":1}}",
     "{\"model_inpu\":{\"a\":1},\"model_input2\":{\"a\":1}}", ""},
    {"{\"model\\u005finput\":{\"a\":1}}", "{\"model\\u005finput\":{\"a\":1}}", ""},
    {"{\"model_input\":{\"n\":[0,-0,1.5,-2e10,3E+1,4e-2,10.25e0,true,false,null,\"\"]}}",
     "{\"model_input\":{}}", "{\"n\":[0,-0,1.5,-2e10,3E+1,4e-2,10.25e0,true,false,null,\"\"]}"},
    {"{\"model_input\":{\"u\":\"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80 \\ud83d\\ude00\\n\"}}",
     "{\"model_input\":{}}", "{\"u\":\"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80 \\ud83d\\ude00\\n\"}"},
    {"{}", "{}", ""},
    {"", NULL, NULL},
    {"[]", NULL, NULL},
    {"{", NULL, NULL},
    {"{}x", NULL, NULL},
    {"{\"a\"}", NULL, NULL},
    {"{\"a\":}", NULL, NULL},
    {"{\"a\":1,}", NULL, NULL},
    {"{,}", NULL, NULL},
    {"{\"a\":[1,]}", NULL, NULL},
    {"{\"a\":[1}", NULL, NULL},
    {"{\"a\":01}", NULL, NULL},
    {"{\"a\":1.}", NULL, NULL},
    {"{\"a\":-}", NULL, NULL},
    {"{\"a\":1e}", NULL, NULL},
    {"{\"a\":+1}", NULL, NULL},
    {"{\"a\":nul}", NULL, NULL},
    {"{\"a\":truex}", NULL, NULL},
    {"{\"a\":\"\\x\"}", NULL, NULL},
    {"{\"a\":\"\\u12g4\"}", NULL, NULL},
    {"{\"a\":\"\\ud800\"}", NULL, NULL},
    {"{\"a\":\"\\ud800\\n\"}", NULL, NULL},
    {"{\"a\":\"\n\"}", NULL, NULL},
    {"{\"a\":\"\xc0\x80\"}", NULL, NULL},
    {"{\"a\":\"\xed\xa0\x80\"}", NULL, NULL},
    {"{\"a\":\"\xf4\x90\x80\x80\"}", NULL, NULL},
    {"{\"a\":\"\xe2\x82\"}", NULL, NULL},
};

static void check_row(const struct row *row, size_t piece)
{
    size_t size = strlen(row->body);
    struct buf input = BUF_WITH_LIMIT(4096);
    struct scan scan;
    struct err err;
    int r = 0;

    scan_init(&scan);
    for (size_t at = 0; at < size && r == 0; at += piece)
        r = scan_feed(&scan, row->body + at, size - at < piece ? size - at : piece, &input, &err);
    if (r == 0)
        r = scan_end(&scan, &err);
    if (row->envelope == NULL) {
        assert_int_equal(r, ERR_MALFORMED);
        assert_non_null(strstr(err.text, "byte"));
    } else {
        assert_int_equal(r, 0);
        assert_string_equal(buf_text(&scan.envelope), row->envelope);
        assert_string_equal(input.size == 0 ? "" : buf_text(&input), row->input);
    }
    scan_done(&scan);
    buf_done(&input);
}

static void test_rows(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        check_row(&rows[i], 1000);
        for (size_t piece = 1; piece < 5; piece++)
            check_row(&rows[i], piece);
    }
}

static int feed_text(struct scan *scan, const char *text, struct buf *input, struct err *err)
{
    return scan_feed(scan, text, strlen(text), input, err);
}

static void test_limits(void **state)
{
    static char large[SCAN_ENVELOPE_SIZE_MAX];
    struct buf input = BUF_WITH_LIMIT(1u << 20);
    struct scan scan;
    struct err err;
    int r;

    (void)state;
    memset(large, 'x', sizeof(large));
    scan_init(&scan);
    assert_int_equal(feed_text(&scan, "{\"model_input\":{\"a\":\"", &input, &err), 0);
    for (int i = 0; i < 100; i++) { /* 25 MiB pass through */
        assert_int_equal(scan_feed(&scan, large, sizeof(large), &input, &err), 0);
        buf_clear(&input);
    }
    assert_true(scan.envelope.room < 4096);
    assert_int_equal(feed_text(&scan, "\"},\"other\":\"", &input, &err), 0);
    assert_int_equal(scan_feed(&scan, large, sizeof(large), &input, &err), ERR_TOO_BIG);
    scan_done(&scan);

    scan_init(&scan);
    r = feed_text(&scan, "{\"model_input\":", &input, &err);
    for (int i = 1; i <= JSON_FAST_DEPTH_MAX && r == 0; i++)
        r = feed_text(&scan, "{\"a\":", &input, &err);
    assert_int_equal(r, ERR_RANGE);
    scan_done(&scan);
    buf_done(&input);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_limits),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
