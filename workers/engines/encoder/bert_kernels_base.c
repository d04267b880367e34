/* SPDX-License-Identifier: Apache-2.0 */

/* Compiled with the compiler's default instruction set: SSE2 on x86-64, NEON on ARM. */

#define KERNELS_SYMBOL bert_kernels_base
#define KERNELS_NAME "base"
#define LANES 4
#define ROWS 4
#define COLUMNS 2
#include "workers/engines/encoder/bert_kernels.inc"
