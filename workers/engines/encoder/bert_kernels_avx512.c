/* SPDX-License-Identifier: Apache-2.0 */

/* Compiled with -mavx512f -mavx512dq -mavx512vl; CMakeLists.txt sets it for this file alone. */

#define KERNELS_SYMBOL bert_kernels_avx512
#define KERNELS_NAME "avx512"
#define LANES 16
#define ROWS 8
#define COLUMNS 2
#include "workers/engines/encoder/bert_kernels.inc"
