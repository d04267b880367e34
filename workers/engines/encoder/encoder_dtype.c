/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/engines/encoder/encoder_dtype.h"

#include <stdio.h>

#include "base/mem.h"

int encoder_dtype_choose(const struct encoder_config *config, bool has_bf16,
                         encoder_dtype_measure *measure, struct encoder_dtype_choice *ret_choice,
                         struct err *err)
{
    struct gemm_shape shape = {
        config->hidden, config->intermediate, GEMM_ACTIVATION, config->activation, false, false};
    struct encoder_dtype_choice choice = {.bf16 = false};
    uint64_t f32_ns = 0, bf16_ns = 0;
    double gain;
    int r;

    if (!has_bf16) {
        mem_copy_text(choice.text, "f32 (auto: this CPU has no bf16)");
        *ret_choice = choice;
        return 0;
    }
    r = measure(&shape, &f32_ns, err);
    shape.input_bf16 = shape.output_bf16 = true;
    if (r == 0)
        r = measure(&shape, &bf16_ns, err);
    if (r < 0)
        return err_wrap(err, "dtype auto");
    gain = (double)f32_ns / (double)(bf16_ns > 0 ? bf16_ns : 1);
    choice.bf16 = gain >= ENCODER_DTYPE_GAIN_LEAST;
    (void)snprintf(choice.text, sizeof(choice.text), "%s (auto: bf16 is %.2f times as fast)",
                   choice.bf16 ? "bf16" : "f32", gain);
    *ret_choice = choice;
    return 0;
}
