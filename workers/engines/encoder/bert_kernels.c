/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/engines/encoder/bert_kernels.h"

#define LANES_MAX 16u
#define ROWS_MAX 8u

static size_t round_up(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

/* Room for the widest variant; see attend() for what lies where. */
size_t bert_attention_scratch_size(uint32_t token_count_max, uint32_t head_size)
{
    size_t rows = round_up(token_count_max, LANES_MAX) + LANES_MAX;
    size_t size = round_up(head_size, LANES_MAX);

    return (3 * rows * size + ROWS_MAX * (rows + size)) * sizeof(float);
}

const struct bert_kernels *bert_kernels_at(int index)
{
    const struct bert_kernels *found[4] = {0};
    int count = 0;

#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
        found[count++] = &bert_kernels_avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        found[count++] = &bert_kernels_avx2;
#endif
    found[count++] = &bert_kernels_base;
    return index < count ? found[index] : NULL;
}
