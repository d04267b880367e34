/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: a table shows members of members, says so when it is empty, and never breaks on odd rows.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "cli/table.h"

static char *printed(const json_t *array)
{
    static const struct table_column columns[] = {
        {"ID", "id", false, false}, {"WHY", "error.code", false, false}, {"N", "n", true, false}};
    char *text = NULL;
    size_t size;
    FILE *to = open_memstream(&text, &size);
    struct err err;

    assert_non_null(to);
    assert_int_equal(table_print(to, array, columns, COUNT_OF(columns), "nothing", &err), 0);
    (void)fclose(to);
    return text;
}

static void test_rows(void **state)
{
    json_t *array = json_pack("[{s:s,s:{s:s},s:i},{s:n}]", "id", "one", "error", "code", "OOM", "n",
                              42, "id");
    OWNED(mem_free) char *text = printed(array);

    (void)state;
    assert_non_null(strstr(text, "ID"));
    assert_non_null(strstr(text, "OOM"));
    assert_non_null(strstr(text, "42"));
    json_decref(array);
}

static void test_nothing(void **state)
{
    json_t *array = json_array();
    OWNED(mem_free) char *text = printed(array);

    (void)state;
    assert_string_equal(text, "nothing\n");
    json_decref(array);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_nothing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
