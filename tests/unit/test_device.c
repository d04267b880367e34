/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: CUDA_VISIBLE_DEVICES means what NVIDIA's guide says; a need is read from a deployment's
 * config and fits the devices that it should; Xids have the class of NVIDIA's catalog. Method:
 * tables.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "base/buf.h"
#include "workers/device.h"

#define GIB ((uint64_t)1 << 30)
#define WHOLE .gpu_instance = DEVICE_NO_SLICE, .compute_instance = DEVICE_NO_SLICE

/* Two whole GPUs with a long beginning in common, and one that is cut into two slices. */
static const struct device_info infos[] = {
    {.uuid = "GPU-8932f937-d72c", .name = "NVIDIA A10G", .index = 0, .major = 8, .minor = 6, WHOLE},
    {.uuid = "GPU-8932f000-aaaa", .name = "Tesla T4", .index = 1, .major = 7, .minor = 5, WHOLE},
    {.uuid = "GPU-5c89852c-d268",
     .name = "NVIDIA H100 80GB HBM3",
     .index = 2,
     .sliced = true,
     WHOLE},
    {.uuid = "MIG-11111111-2222",
     .parent = "GPU-5c89852c-d268",
     .name = "NVIDIA H100 80GB HBM3 MIG 3g.40gb",
     .index = 2,
     .gpu_instance = 1,
     .compute_instance = 0},
    {.uuid = "MIG-33333333-4444",
     .parent = "GPU-5c89852c-d268",
     .name = "NVIDIA H100 80GB HBM3 MIG 3g.40gb",
     .index = 2,
     .gpu_instance = 2,
     .compute_instance = 0},
};

static const struct {
    const char *value, *want; /* last parts of the UUIDs */
    const char *bad;
} visible_rows[] = {
    {NULL, "d72c aaaa 2222 4444", ""},
    {"", "", ""},
    {"  ", "", ""},
    {"0", "d72c", ""},
    {"1,0", "aaaa d72c", ""},
    {" 1 , 0 ", "aaaa d72c", ""},
    {"0,1,-1,2", "d72c aaaa", "-1"}, /* the guide's own example: what is behind is not seen */
    {"-1", "", "-1"},
    {"0,7,1", "d72c", "7"},
    {"0x1", "", "0x1"},
    {"0,,1", "d72c", "an empty one"},
    {"0,0", "d72c", "0"},
    {"2", "2222 4444", ""},
    {"GPU-8932f937-d72c", "d72c", ""},
    {"GPU-8932f9", "d72c", ""},
    {"GPU-8932f", "", "GPU-8932f"}, /* two begin like that */
    {"GPU-", "", "GPU-"},
    {"8932f937", "", "8932f937"},
    {"GPU-ffff,0", "", "GPU-ffff"},
    {"GPU-5c89", "2222 4444", ""},
    {"MIG-33333333-4444", "4444", ""},
    {"MIG-333", "4444", ""},
    {"MIG-333,MIG-111,1", "4444 2222 aaaa", ""},
    {"MIG-GPU-5c89852c-d268/2/0", "4444", ""},
    {"MIG-GPU-5c89852c-d268/3/0,0", "", "MIG-GPU-5c89852c-d268/3/0"},
    {"MIG-333,2", "4444", "2"},
    {"none", "", "none"},
};

static void test_visible(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(visible_rows); i++) {
        struct device_info to[DEVICES_MAX];
        char bad[DEVICE_UUID_SIZE];
        size_t count = device_visible(visible_rows[i].value, infos, COUNT_OF(infos), to, bad);
        OWNED(buf_done) struct buf got = BUF_WITH_LIMIT(1024);

        for (size_t j = 0; j < count; j++)
            buf_printf(&got, "%s%s", j > 0 ? " " : "", strrchr(to[j].uuid, '-') + 1);
        if (strcmp(buf_text(&got), visible_rows[i].want) != 0)
            fail_msg("'%s': got '%s', want '%s'", visible_rows[i].value, buf_text(&got),
                     visible_rows[i].want);
        assert_string_equal(bad, visible_rows[i].bad);
    }
}

static const struct {
    const char *name;
    uint32_t major, minor, gib;
    const char *kind;
    uint32_t need_major, need_minor, need_gib;
    enum device_misfit want;
} fit_rows[] = {
    {"NVIDIA H100 80GB HBM3", 9, 0, 80, "", 0, 0, 0, DEVICE_FITS},
    {"NVIDIA H100 80GB HBM3", 9, 0, 80, "H100", 8, 0, 80, DEVICE_FITS},
    {"NVIDIA H100 80GB HBM3", 9, 0, 80, "H200", 0, 0, 0, DEVICE_OTHER_KIND},
    {"NVIDIA H100 80GB HBM3", 9, 0, 80, "H100", 9, 1, 0, DEVICE_TOO_OLD},
    {"NVIDIA H100 80GB HBM3", 9, 0, 80, "H100", 8, 9, 0, DEVICE_FITS},
    {"NVIDIA H100 80GB HBM3", 9, 0, 80, "H100", 10, 0, 0, DEVICE_TOO_OLD},
    {"NVIDIA H100 80GB HBM3", 9, 0, 80, "H100_40GB", 0, 0, 0, DEVICE_OTHER_KIND},
    {"NVIDIA H100 80GB HBM3 MIG 3g.40gb", 9, 0, 39, "H100_40GB", 0, 0, 0, DEVICE_FITS},
    {"NVIDIA A100-SXM4-40GB", 8, 0, 40, "A100_40GB", 0, 0, 0, DEVICE_FITS},
    {"NVIDIA A100-SXM4-40GB", 8, 0, 40, "A100", 0, 0, 0, DEVICE_FITS},
    {"NVIDIA A100-SXM4-80GB", 8, 0, 80, "A100_40GB", 0, 0, 0, DEVICE_OTHER_KIND},
    {"NVIDIA L40S", 8, 9, 45, "L4", 0, 0, 0, DEVICE_OTHER_KIND},
    {"NVIDIA L40S", 8, 9, 45, "l40s", 0, 0, 0, DEVICE_FITS},
    {"NVIDIA GB300", 10, 3, 280, "B300", 0, 0, 0, DEVICE_OTHER_KIND},
    {"NVIDIA RTX PRO 6000 Blackwell", 12, 0, 96, "RTX_PRO_6000", 0, 0, 0, DEVICE_FITS},
    {"NVIDIA RTX 6000 Ada", 8, 9, 48, "RTX_PRO_6000", 0, 0, 0, DEVICE_OTHER_KIND},
    {"Tesla T4", 7, 5, 15, "T4", 7, 5, 15, DEVICE_FITS},
    {"Tesla T4", 7, 5, 15, "T4", 0, 0, 16, DEVICE_TOO_SMALL},
};

static void test_fits(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(fit_rows); i++) {
        struct device_info info = {.major = fit_rows[i].major,
                                   .minor = fit_rows[i].minor,
                                   .total_size = fit_rows[i].gib * GIB};
        struct gpu_need need = {.count = 1,
                                .index = DEVICE_ANY,
                                .major = fit_rows[i].need_major,
                                .minor = fit_rows[i].need_minor,
                                .memory_size = fit_rows[i].need_gib * GIB};

        mem_copy_text(info.name, fit_rows[i].name);
        mem_copy_text(need.kind, fit_rows[i].kind);
        if (device_fits(&info, &need) != fit_rows[i].want)
            fail_msg("row %zu: %s for '%s'", i, fit_rows[i].name, fit_rows[i].kind);
    }
}

static const struct {
    uint64_t xid;
    enum device_xid_class want;
} xid_rows[] = {
    {13, DEVICE_XID_APPLICATION},  {31, DEVICE_XID_APPLICATION}, {43, DEVICE_XID_APPLICATION},
    {45, DEVICE_XID_APPLICATION},  {63, DEVICE_XID_NOTED},       {92, DEVICE_XID_NOTED},
    {154, DEVICE_XID_NOTED},       {48, DEVICE_XID_LOST},        {64, DEVICE_XID_LOST},
    {79, DEVICE_XID_LOST},         {95, DEVICE_XID_LOST},        {119, DEVICE_XID_LOST},
    {100, DEVICE_XID_APPLICATION}, {94, DEVICE_XID_HARDWARE},    {74, DEVICE_XID_HARDWARE},
    {999, DEVICE_XID_HARDWARE}, /* NVML's word for one that it does not know */
    {0, DEVICE_XID_HARDWARE},
};

static void test_xids(void **state)
{
    uint64_t last = 0;

    (void)state;
    for (size_t i = 0; i < COUNT_OF(xid_rows); i++) {
        const char *text = NULL;

        assert_int_equal(device_xid_class(xid_rows[i].xid, &text), xid_rows[i].want);
        assert_non_null(text);
    }
#define XID(first, end, class, text)                                                               \
    assert_true((first) > last && (end) >= (first)); /* ascending, no number twice */              \
    last = (end);
#include "workers/device_xids.def"
#undef XID
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_visible),
        cmocka_unit_test(test_fits),
        cmocka_unit_test(test_xids),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
