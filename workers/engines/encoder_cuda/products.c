/* SPDX-License-Identifier: Apache-2.0 */

/*
 * cuBLASLt counts columns first, so what is y = x W' by rows is y' = W x' to it: W transposed of
 * `input` rows, x' as it lies in memory. A bias is then a number a row of y', which is what its
 * epilogue adds.
 */

#include "workers/engines/encoder_cuda/products.h"

#include <stdlib.h>

#include "base/assert.h"
#include "workers/engines/encoder_cuda/device_error.h"
#include "workers/engines/encoder_cuda/run_plan.h"

struct products {
    cublasLtHandle_t handle;
    cublasLtMatmulPreference_t preference;
};

struct choice {
    uint32_t row_count; /* 0: not asked for yet */
    cublasLtMatmulAlgo_t algorithm;
};

struct product {
    struct products *products;
    struct product_shape shape;
    cublasLtMatmulDesc_t what;
    cublasLtMatrixLayout_t weight, x, y;
    struct choice choices[RUN_BUCKET_COUNT_MAX];
};

int products_open(struct products **ret_products, struct err *err)
{
    OWNED(products_close) struct products *products = xcalloc(1, sizeof(*products));
    const size_t workspace_size = RUN_WORKSPACE_SIZE;

    CUBLAS_TRY(cublasLtCreate(&products->handle), err);
    CUBLAS_TRY(cublasLtMatmulPreferenceCreate(&products->preference), err);
    CUBLAS_TRY(cublasLtMatmulPreferenceSetAttribute(products->preference,
                                                    CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                    &workspace_size, sizeof(workspace_size)),
               err);
    *ret_products = TAKE(products);
    return 0;
}

void products_close(struct products **products_p)
{
    struct products *products = TAKE(*products_p);

    if (products == NULL)
        return;
    if (products->preference != NULL)
        (void)cublasLtMatmulPreferenceDestroy(products->preference);
    if (products->handle != NULL)
        (void)cublasLtDestroy(products->handle);
    free(products);
}

static int set(struct product *product, cublasLtMatmulDescAttributes_t attribute, const void *value,
               size_t size, struct err *err)
{
    CUBLAS_TRY(cublasLtMatmulDescSetAttribute(product->what, attribute, value, size), err);
    return 0;
}

static int describe(struct product *product, struct err *err)
{
    static const cublasLtEpilogue_t epilogues[] = {
        [PRODUCT_BIAS] = CUBLASLT_EPILOGUE_BIAS,
        [PRODUCT_BIAS_GELU_TANH] = CUBLASLT_EPILOGUE_GELU_BIAS,
        [PRODUCT_BIAS_RELU] = CUBLASLT_EPILOGUE_RELU_BIAS,
    };
    const cublasLtEpilogue_t epilogue = epilogues[product->shape.epilogue];
    const cublasOperation_t transposed = CUBLAS_OP_T;
    const int32_t bias_type = product->shape.bf16 && !product->shape.f32_out ? CUDA_R_16BF
                                                                             : CUDA_R_32F;
    int r;

    CUBLAS_TRY(cublasLtMatmulDescCreate(&product->what, CUBLAS_COMPUTE_32F, CUDA_R_32F), err);
    r = set(product, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed), err);
    if (r == 0)
        r = set(product, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof(epilogue), err);
    if (r == 0)
        r = set(product, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &bias_type, sizeof(bias_type), err);
    return r;
}

int product_open(struct products *products, const struct product_shape *shape,
                 struct product **ret_product, struct err *err)
{
    OWNED(product_close) struct product *product = xcalloc(1, sizeof(*product));
    const cudaDataType_t in = shape->bf16 ? CUDA_R_16BF : CUDA_R_32F;
    const cudaDataType_t out = shape->f32_out ? CUDA_R_32F : in;
    int r;

    product->products = products;
    product->shape = *shape;
    r = describe(product, err);
    if (r < 0)
        return r;
    CUBLAS_TRY(
        cublasLtMatrixLayoutCreate(&product->weight, in, shape->input, shape->output, shape->input),
        err);
    CUBLAS_TRY(
        cublasLtMatrixLayoutCreate(&product->x, in, shape->input, RUN_ROWS_MIN, shape->input), err);
    CUBLAS_TRY(
        cublasLtMatrixLayoutCreate(&product->y, out, shape->output, RUN_ROWS_MIN, shape->output),
        err);
    *ret_product = TAKE(product);
    return 0;
}

void product_close(struct product **product_p)
{
    struct product *product = TAKE(*product_p);

    if (product == NULL)
        return;
    if (product->y != NULL)
        (void)cublasLtMatrixLayoutDestroy(product->y);
    if (product->x != NULL)
        (void)cublasLtMatrixLayoutDestroy(product->x);
    if (product->weight != NULL)
        (void)cublasLtMatrixLayoutDestroy(product->weight);
    if (product->what != NULL)
        (void)cublasLtMatmulDescDestroy(product->what);
    free(product);
}

static int set_rows(struct product *product, uint64_t row_count, struct err *err)
{
    CUBLAS_TRY(cublasLtMatrixLayoutSetAttribute(product->x, CUBLASLT_MATRIX_LAYOUT_COLS, &row_count,
                                                sizeof(row_count)),
               err);
    CUBLAS_TRY(cublasLtMatrixLayoutSetAttribute(product->y, CUBLASLT_MATRIX_LAYOUT_COLS, &row_count,
                                                sizeof(row_count)),
               err);
    return 0;
}

static int set_bias(struct product *product, const void *bias, struct err *err)
{
    return set(product, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof(bias), err);
}

static struct choice *choice_of(struct product *product, uint32_t row_count)
{
    const uint32_t bucket = run_bucket_of(row_count);

    assert(bucket < RUN_BUCKET_COUNT_MAX);
    return &product->choices[bucket];
}

int product_prepare(struct product *product, uint32_t row_count,
                    const struct product_memory *memory, struct err *err)
{
    struct choice *choice = choice_of(product, row_count);
    cublasLtMatmulHeuristicResult_t found;
    int count = 0, r;

    if (choice->row_count == row_count)
        return 0;
    r = set_rows(product, row_count, err);
    if (r == 0)
        r = set_bias(product, memory->bias, err);
    if (r < 0)
        return r;
    CUBLAS_TRY(cublasLtMatmulAlgoGetHeuristic(product->products->handle, product->what,
                                              product->weight, product->x, product->y, product->y,
                                              product->products->preference, 1, &found, &count),
               err);
    if (count == 0 || found.state != CUBLAS_STATUS_SUCCESS)
        return err_set(err, ERR_UNSUPPORTED,
                       "cuBLASLt has no algorithm for a product of %u rows, %u to %u columns",
                       row_count, product->shape.input, product->shape.output);
    choice->algorithm = found.algo;
    choice->row_count = row_count;
    return 0;
}

int product_run(struct product *product, uint32_t row_count, const struct product_memory *memory,
                cudaStream_t stream, struct err *err)
{
    const struct choice *choice = choice_of(product, row_count);
    const float one = 1, none = 0;
    int r;

    assert(choice->row_count == row_count && memory->y != memory->x);
    r = set_rows(product, row_count, err);
    if (r == 0)
        r = set_bias(product, memory->bias, err);
    if (r < 0)
        return r;
    CUBLAS_TRY(cublasLtMatmul(product->products->handle, product->what, &one, memory->weight,
                              product->weight, memory->x, product->x, &none, memory->y, product->y,
                              memory->y, product->y, &choice->algorithm, memory->workspace,
                              RUN_WORKSPACE_SIZE, stream),
               err);
    return 0;
}
