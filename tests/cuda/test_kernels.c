/* SPDX-License-Identifier: Apache-2.0 */

/* What no kernel computes is refused before anything is launched, so also where there is no device.
 * What they compute: tests/gpu/test_kernels.c. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/mem.h"
#include "workers/engines/encoder_cuda/kernels.h"

static const uint32_t bad_widths[] = {0, 4, 12, KERNEL_WIDTH_MAX + KERNEL_WIDTH_MULTIPLE};

static void test_widths(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(bad_widths); i++) {
        const struct kernel_norm norm = {.hidden = bad_widths[i]};
        const struct kernel_embed embed = {.row_count = 1};
        const struct kernel_pool pool = {.text_count = 1, .hidden = bad_widths[i]};

        assert_int_equal(kernel_embed_norm(&embed, &norm, NULL), cudaErrorInvalidValue);
        assert_int_equal(kernel_add_norm(NULL, NULL, 1, KERNEL_F32, &norm, NULL),
                         cudaErrorInvalidValue);
        assert_int_equal(kernel_pool_rows(&pool, NULL), cudaErrorInvalidValue);
        assert_int_equal(kernel_first_rows(&pool, NULL, NULL), cudaErrorInvalidValue);
    }
}

static void test_counts(void **state)
{
    const struct kernel_norm norm = {.hidden = KERNEL_WIDTH_MULTIPLE};
    const struct kernel_embed embed = {.row_count = 0};
    const struct kernel_pool pool = {.text_count = 0, .hidden = KERNEL_WIDTH_MULTIPLE};

    (void)state;
    assert_int_equal(kernel_embed_norm(&embed, &norm, NULL), cudaErrorInvalidValue);
    assert_int_equal(kernel_add_norm(NULL, NULL, 0, KERNEL_BF16, &norm, NULL),
                     cudaErrorInvalidValue);
    assert_int_equal(kernel_pool_rows(&pool, NULL), cudaErrorInvalidValue);
    assert_int_equal(kernel_first_rows(&pool, NULL, NULL), cudaErrorInvalidValue);
    assert_int_equal(kernel_activate(NULL, 0, KERNEL_F32, KERNEL_GELU, NULL),
                     cudaErrorInvalidValue);
    assert_int_equal(kernel_activate(NULL, 12, KERNEL_F32, KERNEL_GELU, NULL),
                     cudaErrorInvalidValue);
    assert_int_equal(kernel_activate(NULL, UINT64_MAX / 8 * 8, KERNEL_F32, KERNEL_GELU, NULL),
                     cudaErrorInvalidValue);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_widths),
        cmocka_unit_test(test_counts),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
