/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: what a status costs is decided by its number alone: memory shrinks a batch, a lost context
 * ends the process, a wrong call is one run's. Numbers are CUDA's and cuBLAS's, so that a header
 * that renumbers them is noticed. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "workers/engines/encoder_cuda/device_error.h"

struct row {
    int status, want;
};

static const struct row cuda_rows[] = {
    {0, ERR_OK},
    {2, ERR_MEMORY},        /* allocation */
    {1, ERR_INTERNAL},      /* invalid value */
    {9, ERR_INTERNAL},      /* invalid configuration */
    {701, ERR_INTERNAL},    /* launch out of resources: the context lives on */
    {35, ERR_UNSUPPORTED},  /* insufficient driver */
    {100, ERR_UNSUPPORTED}, /* no device */
    {101, ERR_UNSUPPORTED}, /* invalid device */
    {209, ERR_UNSUPPORTED}, /* no kernel image for the device */
    {803, ERR_UNSUPPORTED}, /* driver mismatch */
    {900, ERR_INTERNAL},    /* stream capture unsupported */
    {214, ERR_DEVICE},      /* ECC, uncorrectable */
    {220, ERR_DEVICE},      /* NVLink, uncorrectable */
    {700, ERR_DEVICE},      /* illegal address */
    {702, ERR_DEVICE},      /* launch timeout */
    {709, ERR_DEVICE},      /* context is destroyed */
    {710, ERR_DEVICE},      /* assert */
    {714, ERR_DEVICE},      /* hardware stack */
    {715, ERR_DEVICE},      /* illegal instruction */
    {716, ERR_DEVICE},      /* misaligned address */
    {719, ERR_DEVICE},      /* launch failure */
    {46, ERR_DEVICE},       /* devices unavailable */
    {999, ERR_DEVICE},      /* unknown */
    {123456, ERR_DEVICE},   /* of a CUDA that we do not know */
    {-1, ERR_DEVICE},
};

static const struct row cublas_rows[] = {
    {0, ERR_OK},           {3, ERR_MEMORY},       {7, ERR_INTERNAL}, {8, ERR_UNSUPPORTED},
    {15, ERR_UNSUPPORTED}, {16, ERR_UNSUPPORTED}, {1, ERR_DEVICE},   {11, ERR_DEVICE},
    {13, ERR_DEVICE},      {14, ERR_DEVICE},      {77, ERR_DEVICE},
};

static void test_numbers(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(cuda_rows); i++)
        assert_int_equal(device_error_cuda(cuda_rows[i].status), cuda_rows[i].want);
    for (size_t i = 0; i < COUNT_OF(cublas_rows); i++)
        assert_int_equal(device_error_cublas(cublas_rows[i].status), cublas_rows[i].want);
}

static int call_cuda(cudaError_t status, struct err *err)
{
    CUDA_TRY(status, err);
    return 0;
}

static int call_cublas(cublasStatus_t status, struct err *err)
{
    CUBLAS_TRY(status, err);
    return 0;
}

static void test_texts(void **state)
{
    struct err err;

    (void)state;
    assert_int_equal(call_cuda(cudaSuccess, &err), 0);
    assert_int_equal(call_cublas(CUBLAS_STATUS_SUCCESS, &err), 0);
    assert_int_equal(call_cuda(cudaErrorIllegalAddress, &err), ERR_DEVICE);
    assert_string_equal(err.text, "status: an illegal memory access was encountered (CUDA 700)");
    assert_int_equal(err_class(err.code), ERR_CLASS_FATAL);
    assert_int_equal(call_cublas(CUBLAS_STATUS_ALLOC_FAILED, &err), ERR_MEMORY);
    assert_string_equal(err.text, "status: the resource allocation failed (cuBLAS 3)");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_texts),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
