/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: what the driver lists becomes devices, slices each one of their own; one that does not
 * answer is none; an Xid comes with the UUID that it is about. Method:
 * tests/unit/nvml_fake.c, whose path is in HEADRACE_NVML_FAKE; its files are rewritten on the way.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/buf.h"
#include "workers/nvml.h"

static char dir[] = "/tmp/headrace-nvml.XXXXXX";

static void write_file(const char *name, const char *how, const char *text)
{
    char path[64];
    FILE *file;

    (void)snprintf(path, sizeof(path), "%s/%s", dir, name);
    file = fopen(path, how);
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

static void remove_file(const char *name)
{
    char path[64];

    (void)snprintf(path, sizeof(path), "%s/%s", dir, name);
    (void)unlink(path);
}

static int open_fake(void **state)
{
    const char *path = getenv("HEADRACE_NVML_FAKE");

    (void)state;
    if (path == NULL)
        return 0;
    assert_non_null(mkdtemp(dir));
    (void)setenv("HEADRACE_NVML_FAKE_DIR", dir, 1);
    write_file("gpus", "we",
               "gpu GPU-a 8 6 24564 300 42 3 1 NVIDIA_A10G\n"
               "lost\n"
               "gpu GPU-h 9 0 81559 500 0 0 0 NVIDIA_H100_80GB_HBM3\n"
               "mig MIG-1 1 0 40192 25 NVIDIA_H100_80GB_HBM3_MIG_3g.40gb\n"
               "mig MIG-2 2 0 40192 30 NVIDIA_H100_80GB_HBM3_MIG_3g.40gb\n");
    return nvml_load(path) == NULL ? 0 : -1;
}

static int close_fake(void **state)
{
    (void)state;
    if (getenv("HEADRACE_NVML_FAKE") == NULL)
        return 0;
    remove_file("gpus");
    remove_file("xids");
    return rmdir(dir);
}

/* A machine without a driver: no devices, and a sentence that says so. */
static void test_without_a_driver(void **state)
{
    struct device_info infos[DEVICES_MAX];
    struct nvml_versions versions;
    char why[DEVICE_TEXT_SIZE];
    double utilization;
    uint64_t size;

    (void)state;
    if (getenv("HEADRACE_NVML_FAKE") != NULL)
        skip();
    assert_string_equal(nvml_load("/nowhere/" NVML_LIBRARY),
                        "this machine has no NVIDIA driver (/nowhere/" NVML_LIBRARY
                        " cannot be loaded)");
    assert_int_equal(nvml_inventory(infos, &versions, why), 0);
    assert_string_equal(why, nvml_load(NVML_LIBRARY)); /* it is tried once */
    assert_string_equal(versions.driver, "");
    assert_false(nvml_use(0, &utilization, &size));
}

static void test_inventory(void **state)
{
    struct device_info infos[DEVICES_MAX];
    struct nvml_versions versions;
    char why[DEVICE_TEXT_SIZE];

    (void)state;
    if (getenv("HEADRACE_NVML_FAKE") == NULL)
        skip();
    assert_int_equal(nvml_inventory(infos, &versions, why), 4);
    assert_string_equal(why, "");
    assert_string_equal(versions.driver, "550.54.15");
    assert_string_equal(versions.cuda, "12.4");
    assert_string_equal(infos[0].uuid, "GPU-a");
    assert_string_equal(infos[0].name, "NVIDIA A10G");
    assert_int_equal(infos[0].index, 0);
    assert_int_equal(infos[0].major * 10 + infos[0].minor, 86);
    assert_int_equal(infos[0].total_size, 24564ull << 20);
    assert_int_equal(infos[0].used_size, 300ull << 20);
    assert_int_equal(infos[0].utilization_percent, 42);
    assert_int_equal(infos[0].ecc_count, 3);
    assert_true(infos[0].repair && !infos[0].sliced);
    assert_string_equal(infos[1].uuid, "GPU-h");
    assert_int_equal(infos[1].index, 2); /* the one before it is lost, and counted */
    assert_true(infos[1].sliced);
    assert_string_equal(infos[3].uuid, "MIG-2");
    assert_string_equal(infos[3].parent, "GPU-h");
    assert_int_equal(infos[3].index, 2);
    assert_int_equal(infos[3].major, 9); /* its GPU's: a slice does not say */
    assert_int_equal(infos[3].gpu_instance, 2);
    assert_int_equal(infos[3].total_size, 40192ull << 20);
    write_file("gpus", "we", "");
    assert_int_equal(nvml_inventory(infos, &versions, why), 0);
    assert_string_equal(why, "the NVIDIA driver lists no GPU");
}

static void test_xids(void **state)
{
    static const char *const want[] = {"GPU-a:31", "MIG-2:94", "MIG-1:13", "GPU-h:48", "GPU-a:79"};
    struct device_info infos[DEVICES_MAX];
    struct nvml_versions versions;
    char why[DEVICE_TEXT_SIZE];
    struct nvml_xid xid;
    struct err err;

    (void)state;
    if (getenv("HEADRACE_NVML_FAKE") == NULL)
        skip();
    write_file("gpus", "we",
               "gpu GPU-a 8 6 24564 300 42 3 1 NVIDIA_A10G\n"
               "gpu GPU-h 9 0 81559 500 0 0 0 NVIDIA_H100\n"
               "mig MIG-1 1 0 40192 25 NVIDIA_H100_MIG\n"
               "mig MIG-2 2 0 40192 30 NVIDIA_H100_MIG\n");
    assert_int_equal(nvml_xids_open(&err), 0);
    assert_int_equal(nvml_xid_wait(10, &xid), NVML_QUIET);
    write_file("xids", "ae", "0 -1 -1 31\n1 2 0 94\n1 1 -1 13\n1 -1 -1 48\n");
    write_file("xids", "ae", "0 -1 -1 79\n");
    for (size_t i = 0; i < COUNT_OF(want); i++) {
        char text[128];

        assert_int_equal(nvml_xid_wait(10000, &xid), NVML_XID);
        (void)snprintf(text, sizeof(text), "%s:%u", xid.uuid, (unsigned)xid.number);
        assert_string_equal(text, want[i]);
    }
    write_file("gpus", "we", "lost\ngpu GPU-h 9 0 81559 500 0 0 0 NVIDIA_H100\n");
    assert_int_equal(nvml_inventory(infos, &versions, why), 1);
    write_file("xids", "ae", "0 -1 -1 79\n");
    assert_int_equal(nvml_xid_wait(10000, &xid), NVML_XID);
    assert_string_equal(xid.uuid, "GPU-a"); /* it does not say so itself any more */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_without_a_driver),
        cmocka_unit_test(test_inventory),
        cmocka_unit_test(test_xids),
    };

    return cmocka_run_group_tests(tests, open_fake, close_fake);
}
