/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: whatever stands in a config.yaml is read within its bounds, and what is accepted has every
 * key that the model is promised. */

#include "base/assert.h"
#include "schema/truss_config.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    OWNED(truss_config_done) struct truss_config config = {0};
    struct err err;

    if (truss_config_parse((const char *)bytes, size, &config, &err) < 0)
        return 0;
    assert(config.concurrency >= 1 && config.concurrency <= 2048);
    assert(json_is_string(json_object_get(config.config, "model_class_name")));
    assert(json_is_object(json_object_get(config.config, "runtime")));
    assert(json_is_array(config.warnings));
    return 0;
}
