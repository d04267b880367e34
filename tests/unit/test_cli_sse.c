/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: events come out whole however the stream is cut; what is no event of ours is skipped. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/sse.h"

static void on_event(void *opaque, const char *event, const char *data)
{
    char *said = opaque;

    (void)snprintf(said + strlen(said), 200 - strlen(said), "[%s|%s]", event, data);
}

static void test_every_cut(void **state)
{
    static const char stream[] =
        "retry: 1000\n\n:\n\nid: 1-1\ndata: {\"text\":\"a: b\"}\n\n"
        "event: final\r\nid: final\r\ndata: 1\r\ndata:2\r\n\r\nevent: none\n\n"
        "data\n\ndata: cut";

    (void)state;
    for (size_t cut = 0; cut < sizeof(stream); cut++) {
        char said[200] = "";
        struct sse sse;
        struct err err;

        sse_init(&sse, on_event, said);
        assert_int_equal(sse_feed(&sse, stream, cut, &err), 0);
        assert_int_equal(sse_feed(&sse, stream + cut, sizeof(stream) - 1 - cut, &err), 0);
        assert_string_equal(said, "[|{\"text\":\"a: b\"}][final|1\n2][|]");
        sse_done(&sse);
    }
}

static void test_a_line_has_a_limit(void **state)
{
    char *line = xmalloc(SSE_LINE_SIZE_MAX);
    struct sse sse;
    struct err err;

    (void)state;
    memset(line, 'x', SSE_LINE_SIZE_MAX);
    sse_init(&sse, on_event, line);
    assert_int_equal(sse_feed(&sse, line, SSE_LINE_SIZE_MAX, &err), 0);
    assert_int_equal(sse_feed(&sse, line, 1, &err), ERR_TOO_BIG);
    sse_done(&sse);
    free(line);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_cut),
        cmocka_unit_test(test_a_line_has_a_limit),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
