/* SPDX-License-Identifier: Apache-2.0 */

/* Compiled with -mavx2 -mfma; CMakeLists.txt sets it for this file alone. */

#define KERNELS_SYMBOL bert_kernels_avx2
#define KERNELS_NAME "avx2"
#define LANES 8
#define ROWS 6
#define COLUMNS 2
#include "workers/engines/encoder/bert_kernels.inc"
