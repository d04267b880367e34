/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: what a deployment needs of a GPU is read as it stands, and what is wrong is named.
 * Method: a table of devices and resources. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "schema/gpu_need.h"

static const struct {
    const char *device, *resources;
    int code;
    const char *want; /* the description, or a part of the error */
} rows[] = {
    {"cuda", "{}", 0, "a device"},
    {"cuda", "null", 0, "a device"},
    {"cuda:3", "{}", 0, "GPU 3"},
    {"cuda:0", "{\"accelerator\":\"T4\"}", 0, "GPU 0, T4"},
    {"cuda", "{\"accelerator\":\"H100\"}", 0, "H100"},
    {"cuda", "{\"accelerator\":\"A10G:2\"}", 0, "2 A10G"},
    {"cuda", "{\"accelerator\":null}", 0, "a device"},
    {"cuda", "{\"accelerator\":\"T4\",\"accelerator_memory\":\"6GiB\"}", 0, "T4 with 6.0 GiB"},
    {"cuda", "{\"accelerator\":\"L4:3\",\"accelerator_memory\":\"512MiB\"}", 0,
     "3 L4 with 0.5 GiB each"},
    {"cuda", "{\"compute_capability\":\"8.9\"}", 0, "a device of compute capability 8.9"},
    {"cuda:x", "{}", ERR_RANGE, "'cuda:x'; it must be cuda or cuda:N"},
    {"cuda:256", "{}", ERR_RANGE, "N of 0 to 255"},
    {"cuda:", "{}", ERR_RANGE, "'cuda:'"},
    {"cuda:1", "{\"accelerator\":\"T4:2\"}", ERR_RANGE, "asks for 2"},
    {"cuda", "{\"accelerator\":\"H100:0\"}", ERR_RANGE, "'H100:0'; it must be TYPE"},
    {"cuda", "{\"accelerator\":\"H100:17\"}", ERR_RANGE, "N of 1 to 16"},
    {"cuda", "{\"accelerator\":\":2\"}", ERR_RANGE, "':2'"},
    {"cuda", "{\"accelerator\":\"H100:x\"}", ERR_RANGE, "'H100:x'"},
    {"cuda", "{\"accelerator_memory\":\"much\"}", ERR_RANGE, "'much'; it must be a size"},
    {"cuda", "{\"accelerator_memory\":\"0\"}", ERR_RANGE, "'0'; it must be a size"},
    {"cuda", "{\"accelerator_memory\":20}", ERR_RANGE, "accelerator_memory must be a text"},
    {"cuda", "{\"compute_capability\":\"8\"}", ERR_RANGE, "'8'; it must be MAJOR.MINOR"},
    {"cuda", "{\"compute_capability\":\"8.6.1\"}", ERR_RANGE, "MAJOR.MINOR"},
};

static void test_needs(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        json_t *resources = json_loads(rows[i].resources, JSON_DECODE_ANY, NULL);
        struct gpu_need need;
        struct err err = {0};
        char text[DEVICE_TEXT_SIZE];

        assert_true(gpu_is_wanted(rows[i].device));
        assert_int_equal(gpu_need_parse(rows[i].device, resources, &need, &err), rows[i].code);
        if (rows[i].code == 0) {
            gpu_need_describe(&need, text);
            assert_string_equal(text, rows[i].want);
        } else if (strstr(err.text, rows[i].want) == NULL) {
            fail_msg("%s %s: '%s' has no '%s'", rows[i].device, rows[i].resources, err.text,
                     rows[i].want);
        }
        json_decref(resources);
    }
    assert_false(gpu_is_wanted("cpu"));
    assert_false(gpu_is_wanted("cudax"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_needs),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
