/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: a model that 'cuda' does not compute is refused by name, and where there is no device a
 * load fails with the sentence that says so, whatever the model. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <cuda_runtime_api.h>

#include "tests/unit/encoder_drive.h"
#include "workers/engines/encoder_cuda/bert_cuda.h"
#include "workers/engines/encoder_cuda/encoder_cuda.h"

static void test_what_is_not_computed(void **state)
{
    static const struct {
        struct encoder_config config;
        bool bf16;
        const char *text; /* NULL: it is */
    } rows[] = {
        {{.family = ENCODER_FAMILY_BERT, .head_count = 12, .hidden = 768}, true, NULL},
        {{.family = ENCODER_FAMILY_BERT, .head_count = 12, .hidden = 384}, false, NULL},
        {{.family = ENCODER_FAMILY_MPNET, .head_count = 12, .hidden = 768}, false, NULL},
        {{.family = ENCODER_FAMILY_MPNET, .head_count = 12, .hidden = 768}, true, NULL},
        {{.family = ENCODER_FAMILY_MODERNBERT, .head_count = 12, .hidden = 768},
         true,
         "ModernBertModel is not computed on 'cuda', only on 'cpu'; on 'cuda' are BERT, RoBERTa, "
         "XLM-RoBERTa, DistilBERT and MPNet"},
        {{.family = ENCODER_FAMILY_BERT, .head_count = 1, .hidden = 12},
         false,
         "hidden_size is 12; 'cuda' wants a multiple of 8 up to 8192"},
        {{.family = ENCODER_FAMILY_BERT, .head_count = 6, .hidden = 72},
         true,
         "a head has 12 numbers; bf16 on 'cuda' wants a multiple of 8, f32 takes any"},
        {{.family = ENCODER_FAMILY_BERT, .head_count = 6, .hidden = 72}, false, NULL},
        {{.family = ENCODER_FAMILY_BERT, .head_count = 1, .hidden = 256},
         false,
         "a head has 256 numbers; 'cuda' has 128 at most"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct err err;

        assert_int_equal(bert_cuda_check(&rows[i].config, rows[i].bf16, &err),
                         rows[i].text == NULL ? 0 : ERR_UNSUPPORTED);
        if (rows[i].text != NULL)
            assert_string_equal(err.text, rows[i].text);
    }
}

static void test_without_a_device(void **state)
{
    static const char *const devices[] = {"cuda", "cuda:0", "cuda:3"};
    int count = 0;

    (void)state;
    if (cudaGetDeviceCount(&count) == cudaSuccess && count > 0)
        skip();
    for (size_t i = 0; i < COUNT_OF(devices); i++) {
        const struct engine_load load = {.dir = "tests/data/encoder/tiny", .device = devices[i]};
        struct drive drive = {.api = NULL};
        struct err err;

        assert_int_equal(drive_load(&drive, &encoder_cuda_api, &load, &err), ERR_UNSUPPORTED);
        assert_null(drive.engine);
        (void)printf("%s: %s\n", devices[i], err.text);
        assert_memory_equal(err.text, "device is 'cuda:", 16);
        assert_true(strstr(err.text, "has no NVIDIA driver") != NULL ||
                    strstr(err.text, "sees none") != NULL || strstr(err.text, "too old") != NULL);
    }
}

static void test_other_devices(void **state)
{
    const struct engine_load load = {.dir = "tests/data/encoder/tiny", .device = "cpu"};
    struct drive drive = {.api = NULL};
    struct err err;

    (void)state;
    assert_int_equal(drive_load(&drive, &encoder_cuda_api, &load, &err), ERR_UNSUPPORTED);
    assert_string_equal(err.text, "device is 'cpu'; this plugin has 'cuda' and 'cuda:N' only");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_is_not_computed),
        cmocka_unit_test(test_without_a_device),
        cmocka_unit_test(test_other_devices),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
