/* SPDX-License-Identifier: Apache-2.0 */

/* The plugin's one exported symbol; everything else is in a library that tests link too. */

#include "workers/engines/onnx/onnx.h"

ENGINE_EXPORT const struct engine_api *headrace_engine(void)
{
    return &onnx_api;
}
