/* SPDX-License-Identifier: Apache-2.0 */

/* The plugin's one exported symbol; everything else is in a library that tests link too. */

#include "workers/engines/encoder_cuda/encoder_cuda.h"

ENGINE_EXPORT const struct engine_api *headrace_engine(void)
{
    return &encoder_cuda_api;
}
