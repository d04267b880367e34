/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: whatever stands in a training project's config.yaml is read within its bounds, and what is
 * accepted is within those of a job. */

#include "base/assert.h"
#include "schema/training_config.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    OWNED(training_config_done) struct training_config config = {0};
    char project[TRAINING_NAME_SIZE];
    struct err err;

    if (training_config_yaml("config.yaml", (const char *)bytes, size, project, &config, &err) < 0)
        return 0;
    assert(*project != '\0');
    assert(config.node_count >= 1 && config.node_count <= 64 && config.gpu_count <= 99);
    assert((config.gpu_count == 0) == (config.gpu_type[0] == '\0'));
    assert(config.memory_size >= 1u << 20);
    assert(json_is_array(config.warnings));
    return 0;
}
