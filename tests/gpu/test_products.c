/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: y = act(x W' + b) for every epilogue, type and number of rows, within 1e-4 in f32 and 1e-2
 * in bf16. Method: fresh random numbers against a loop in double; y is NaN before. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "tests/gpu/device.h"
#include "workers/engines/encoder_cuda/products.h"
#include "workers/engines/encoder_cuda/run_plan.h"

static double act(double x, enum product_epilogue epilogue)
{
    if (epilogue == PRODUCT_BIAS_RELU)
        return x > 0 ? x : 0;
    if (epilogue == PRODUCT_BIAS_GELU_TANH)
        return 0.5 * x * (1 + tanh(0.79788456080286536 * (x + 0.044715 * x * x * x)));
    return x;
}

static float *multiply(const struct product_shape *shape, uint32_t rows, const float *x,
                       const float *weight, const float *bias)
{
    float *y = xcalloc((size_t)rows * shape->output, sizeof(*y));

    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t o = 0; o < shape->output; o++) {
            double sum = (double)bias[o];

            for (uint32_t i = 0; i < shape->input; i++)
                sum += (double)x[(size_t)r * shape->input + i] *
                       (double)weight[(size_t)o * shape->input + i];
            y[(size_t)r * shape->output + o] = (float)act(sum, shape->epilogue);
        }
    }
    return y;
}

static void check_rows(struct product *product, const struct product_shape *shape, uint32_t rows,
                       void *workspace)
{
    const bool wide = !shape->bf16 || shape->f32_out;
    OWNED(device_list_done)
    struct device_list x = device_filled((size_t)rows * shape->input, shape->bf16, 1);
    OWNED(device_list_done)
    struct device_list weight = device_filled((size_t)shape->output * shape->input, shape->bf16,
                                              1 / sqrtf((float)shape->input));
    OWNED(device_list_done) struct device_list bias = device_filled(shape->output, !wide, 1);
    OWNED(device_list_done)
    struct device_list y = device_poisoned((size_t)rows * shape->output, !wide);
    OWNED(mem_free) float *want = multiply(shape, rows, x.host, weight.host, bias.host);
    OWNED(mem_free) float *got = NULL;
    const struct product_memory memory = {x.dev, weight.dev, bias.dev, y.dev, workspace};
    struct err err;

    if (product_prepare(product, rows, &memory, &err) < 0 ||
        product_run(product, rows, &memory, NULL, &err) < 0)
        fail_msg("%s", err.text);
    got = device_get(&y);
    DEVICE_CLOSE(got, want, y.count, shape->bf16);
}

static void test_products(void **state)
{
    static const struct product_shape shapes[] = {
        {384, 1152, PRODUCT_BIAS, true, false},
        {384, 1152, PRODUCT_BIAS, false, false},
        {384, 1536, PRODUCT_BIAS_GELU_TANH, true, false},
        {96, 256, PRODUCT_BIAS_RELU, true, false},
        {96, 256, PRODUCT_BIAS_RELU, false, false},
        {768, 1, PRODUCT_BIAS, true, true},
        {768, 9, PRODUCT_BIAS, true, true},
        {24, 3, PRODUCT_BIAS, false, true},
        {8, 8, PRODUCT_BIAS, true, false},
    };
    static const uint32_t rows[] = {1, 2, 32, 64, 288, 1024};
    OWNED(products_close) struct products *products = NULL;
    void *workspace;
    struct err err;

    (void)state;
    MUST(cudaMalloc(&workspace, RUN_WORKSPACE_SIZE));
    assert_int_equal(products_open(&products, &err), 0);
    for (size_t i = 0; i < COUNT_OF(shapes); i++) {
        OWNED(product_close) struct product *product = NULL;

        assert_int_equal(product_open(products, &shapes[i], &product, &err), 0);
        for (size_t k = 0; k < COUNT_OF(rows); k++)
            check_rows(product, &shapes[i], rows[k], workspace);
    }
    MUST(cudaFree(workspace));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_products)};

    device_begin();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
