/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The onnx engine for unit tests: ONNX Runtime where scripts/onnx/fetch puts it, and the small
 * models of tests/data/onnx (made by tests/lib/onnx_file.py).
 */

#include <stdio.h>
#include <unistd.h>

#include "tests/unit/encoder_drive.h"
#include "workers/engines/onnx/onnx.h"

#define ONNX_DATA "tests/data/onnx/"

/* False: ONNX Runtime is not on this machine, and the test is skipped with what would fetch it. */
static inline bool onnx_world_open(void)
{
    const char *deps = getenv("HEADRACE_DEPS");
    OWNED(mem_free)
    char *path = xasprintf("%s/onnxruntime/libonnxruntime.so.1",
                           deps != NULL && deps[0] != '\0' ? deps : ".headrace/deps");

    if (getenv("HEADRACE_ONNXRUNTIME") == NULL && access(path, R_OK) == 0)
        (void)setenv("HEADRACE_ONNXRUNTIME", path, 1);
    if (getenv("HEADRACE_ONNXRUNTIME") != NULL)
        return true;
    (void)printf("skipped: no ONNX Runtime at %s; scripts/onnx/fetch runtime gets it\n", path);
    return false;
}

static inline int onnx_try(struct drive *drive, const char *model, const char *settings,
                           struct err *err)
{
    OWNED(mem_free) char *dir = xasprintf(ONNX_DATA "%s", model);
    const struct engine_load wish = {.dir = dir, .thread_count = 1, .settings_json = settings};

    return drive_load(drive, &onnx_api, &wish, err);
}

static inline void onnx_load_model(struct drive *drive, const char *model, const char *settings)
{
    struct err err = {0};

    if (onnx_try(drive, model, settings, &err) < 0)
        fail_msg("%s: %s", model, err.text);
}

/* The output of that name, or of the only one, as compact JSON of its data; the caller frees. */
static inline char *onnx_data(const struct drive *drive, uint64_t id, const char *name)
{
    const struct drive_event *event = drive_final(drive, id);
    json_t *outputs, *output;

    if (event->type != ENGINE_EVENT_OUTPUT)
        fail_msg("request %d: %s", (int)id, event->text);
    outputs = json_object_get(event->output, "outputs");
    output = json_object_get(outputs, name);
    assert_non_null(output);
    return json_dumps(json_object_get(output, "data"),
                      JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(9));
}

static inline void onnx_expect(const struct drive *drive, uint64_t id, const char *name,
                               const char *want)
{
    char *got = onnx_data(drive, id, name);

    assert_string_equal(got, want);
    free(got);
}
