/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: whoever asks for a device that this machine has not reads what is missing. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "workers/engines/encoder_cuda/device_need.h"

#define GIB (1ull << 30)

static void test_names(void **state)
{
    static const struct {
        const char *device;
        int want;
        uint32_t ordinal;
        const char *text;
    } rows[] = {
        {"cuda", 0, 0, NULL},
        {"cuda:0", 0, 0, NULL},
        {"cuda:7", 0, 7, NULL},
        {"cuda:1023", 0, 1023, NULL},
        {"cuda:1024", ERR_RANGE, 0, "device is 'cuda:1024'; N of 'cuda:N' is 0 to 1023"},
        {"cuda:99999999999999999999", ERR_RANGE, 0,
         "device is 'cuda:99999999999999999999'; N of 'cuda:N' is 0 to 1023"},
        {"cuda:", ERR_RANGE, 0, "device is 'cuda:'; what follows 'cuda:' is no number"},
        {"cuda:-1", ERR_RANGE, 0, "device is 'cuda:-1'; what follows 'cuda:' is no number"},
        {"cuda:1x", ERR_RANGE, 0, "device is 'cuda:1x'; N of 'cuda:N' is 0 to 1023"},
        {"cpu", ERR_UNSUPPORTED, 0, "device is 'cpu'; this plugin has 'cuda' and 'cuda:N' only"},
        {"cudax", ERR_UNSUPPORTED, 0,
         "device is 'cudax'; this plugin has 'cuda' and 'cuda:N' only"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        uint32_t ordinal = 99;
        struct err err;

        assert_int_equal(device_need_parse(rows[i].device, &ordinal, &err), rows[i].want);
        if (rows[i].want == 0)
            assert_int_equal(ordinal, rows[i].ordinal);
        else
            assert_string_equal(err.text, rows[i].text);
    }
}

static void test_what_is_missing(void **state)
{
    static const struct {
        int driver;
        uint32_t count;
        const char *visible;
        uint32_t ordinal, capability;
        const char *text; /* NULL: nothing */
    } rows[] = {
        {13000, 1, NULL, 0, 90, NULL},
        {13000, 8, "", 7, 80, NULL},
        {13010, 1, NULL, 0, 100, NULL},
        {14000, 1, NULL, 0, 90, NULL},
        {0, 0, NULL, 0, 0, "device is 'cuda:0', this machine has no NVIDIA driver (libcuda.so.1)"},
        {12080, 0, NULL, 1, 0,
         "device is 'cuda:1', the NVIDIA driver is too old: it is for CUDA 12.8, the runtime is "
         "13.0 "
         "and needs a driver for CUDA 13.0 at least"},
        {13000, 0, NULL, 0, 0, "device is 'cuda:0', the NVIDIA driver of this machine sees none"},
        {13000, 0, "-1", 0, 0,
         "device is 'cuda:0', the driver sees none; CUDA_VISIBLE_DEVICES is '-1'"},
        {13000, 1, NULL, 1, 0,
         "device is 'cuda:1', the driver sees 1 device, the last is 'cuda:0'"},
        {13000, 2, "0,1", 9, 0,
         "device is 'cuda:9', the driver sees 2 devices, the last is 'cuda:1'"},
        {13000, 1, NULL, 0, 75,
         "device 'cuda:0' is too old: Tesla T4 has compute capability 7.5, 8.0 is needed at least"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        const struct device_facts facts = {
            .runtime_version = 13000,
            .driver_version = rows[i].driver,
            .device_count = rows[i].count,
            .visible = rows[i].visible,
            .capability = rows[i].capability,
            .name = "Tesla T4",
        };
        struct err err = {.code = 0};

        assert_int_equal(device_need_check(&facts, rows[i].ordinal, &err),
                         rows[i].text == NULL ? 0 : ERR_UNSUPPORTED);
        if (rows[i].text != NULL)
            assert_string_equal(err.text, rows[i].text);
    }
}

static void test_memory(void **state)
{
    const struct device_facts facts = {
        .name = "NVIDIA L4", .memory_size = 24 * GIB, .free_size = 3 * GIB};
    struct err err;

    (void)state;
    assert_int_equal(device_need_memory(&facts, 3 * GIB, &err), 0);
    assert_int_equal(device_need_memory(&facts, 3 * GIB + 1, &err), ERR_MEMORY);
    assert_string_equal(err.text,
                        "the model needs 3.00 GiB of device memory, NVIDIA L4 has 3.00 GiB "
                        "free of 24.00 GiB");
    assert_int_equal(err_class(err.code), ERR_CLASS_RETRY);
    assert_int_equal(device_need_memory(&facts, 24 * GIB, &err), ERR_MEMORY);
    assert_int_equal(device_need_memory(&facts, 31 * GIB, &err), ERR_UNSUPPORTED);
    assert_string_equal(
        err.text, "the model needs 31.00 GiB of device memory, NVIDIA L4 has 24.00 GiB in all; "
                  "a smaller batch (max_tokens of 'batching') needs less");
    assert_int_equal(err_class(err.code), ERR_CLASS_REJECT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_what_is_missing),
        cmocka_unit_test(test_memory),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
