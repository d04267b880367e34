/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: a chain is drawn as it is: each step behind what it needs, a line for each need, none that
 * follows from others; and no input makes a picture that cannot be read.
 * Method: small graphs against their pictures, which are looked at here.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "base/mem.h"
#include "cli/chain_graph.h"

static struct chain_graph *graph_of(const char *text)
{
    json_t *steps = json_loads(text, 0, NULL);
    struct chain_graph *graph = NULL;
    struct err err;

    assert_non_null(steps);
    if (chain_graph_new(steps, &graph, &err) < 0)
        fail_msg("%s", err.text);
    json_decref(steps);
    return graph;
}

static void drawn_as(const char *steps, size_t lines, const char *picture)
{
    OWNED(chain_graph_free) struct chain_graph *graph = graph_of(steps);
    OWNED(buf_done) struct buf to = BUF_WITH_LIMIT(65536);

    assert_int_equal(chain_graph_draw(graph, false, &to), lines);
    buf_append_byte(&to, '\0');
    assert_string_equal((const char *)to.bytes, picture);
}

static void test_a_line(void **state)
{
    (void)state;
    drawn_as("[{\"name\": \"two\", \"needs\": [\"one\"]}, {\"name\": \"one\", \"model\": \"m\", "
             "\"status\": \"SUCCEEDED\", \"jobs\": 3, \"succeeded\": 3, \"attempts\": 2}]",
             2, "●  one  m  SUCCEEDED  3/3  2 attempts\n○  two  \n");
}

static void test_a_fork_and_a_join(void **state)
{
    (void)state;
    drawn_as(
        "[{\"name\": \"a\"}, {\"name\": \"b\", \"needs\": [\"a\"]}, {\"name\": \"c\", \"needs\": "
        "[\"a\"]}, {\"name\": \"d\", \"needs\": [\"a\", \"b\", \"c\"]}, {\"name\": \"e\"}]",
        6,
        "○    a  \n"
        "├─╮ \n"
        "○ │  b  \n"
        "│ ○  c  \n"
        "○─╯  d  \n"
        "○    e  \n");
}

static void test_lines_that_cross(void **state)
{
    (void)state;
    drawn_as("[{\"name\": \"a\"}, {\"name\": \"b\"}, {\"name\": \"x\", \"needs\": [\"a\", \"b\"]}, "
             "{\"name\": \"y\", \"needs\": [\"a\", \"b\"]}]",
             6,
             "○        a  \n"
             "├─╮ \n"
             "│ │ ○    b  \n"
             "│ │ ├─╮ \n"
             "○─┼─╯ │  x  \n"
             "  ○───╯  y  \n");
}

static void test_what_is_refused(void **state)
{
    json_t *steps = json_loads(
        "[{\"name\": \"a\", \"needs\": [\"b\"]}, {\"name\": \"b\", \"needs\": "
        "[\"a\", \"nobody\"]}]",
        0, NULL);
    struct chain_graph *graph = NULL;
    struct err err;

    (void)state;
    assert_int_equal(chain_graph_new(steps, &graph, &err), ERR_MALFORMED);
    json_decref(steps);
    steps = json_array();
    for (size_t i = 0; i <= GRAPH_STEPS_MAX; i++)
        (void)json_array_append_new(steps, json_pack("{s:s}", "name", "a"));
    assert_int_equal(chain_graph_new(steps, &graph, &err), ERR_RANGE);
    json_decref(steps);
}

/* One to a hundred: too wide for lines, and so a list. */
static void test_a_wide_one_is_a_list(void **state)
{
    json_t *steps = json_pack("[{s:s}]", "name", "root");
    OWNED(buf_done) struct buf to = BUF_WITH_LIMIT(65536);
    struct chain_graph *graph = NULL;
    struct err err;

    (void)state;
    for (int i = 0; i < 100; i++) {
        char name[8];

        (void)snprintf(name, sizeof(name), "s%d", i);
        (void)json_array_append_new(steps,
                                    json_pack("{s:s, s:[s]}", "name", name, "needs", "root"));
    }
    assert_int_equal(chain_graph_new(steps, &graph, &err), 0);
    json_decref(steps);
    assert_int_equal(chain_graph_draw(graph, false, &to), 101);
    assert_null(memchr(to.bytes, '|', to.size));
    chain_graph_free(&graph);
}

static void test_other_pictures(void **state)
{
    OWNED(chain_graph_free)
    struct chain_graph *graph = graph_of("[{\"name\": \"a\", \"model\": \"<m> & \\\"n\\\"\"}, "
                                         "{\"name\": \"b\", \"needs\": [\"a\"]}]");
    OWNED(buf_done) struct buf dot = BUF_WITH_LIMIT(65536);
    OWNED(buf_done) struct buf svg = BUF_WITH_LIMIT(65536);

    (void)state;
    chain_graph_dot(graph, &dot);
    buf_append_byte(&dot, '\0');
    assert_non_null(strstr((const char *)dot.bytes, "\"a\" -> \"b\";"));
    assert_non_null(strstr((const char *)dot.bytes, "\\n<m> & \\\"n\\\"\""));
    chain_graph_svg(graph, &svg);
    buf_append_byte(&svg, '\0');
    assert_non_null(strstr((const char *)svg.bytes, "&lt;m> &amp; \"n\"</text>"));
    assert_non_null(strstr((const char *)svg.bytes, "<path d=\"M200 33 C235 33 235 33 270 33\"/>"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_line),
        cmocka_unit_test(test_a_fork_and_a_join),
        cmocka_unit_test(test_lines_that_cross),
        cmocka_unit_test(test_what_is_refused),
        cmocka_unit_test(test_a_wide_one_is_a_list),
        cmocka_unit_test(test_other_pictures),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
