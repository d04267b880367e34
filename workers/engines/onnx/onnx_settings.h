/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The engine's settings, one JSON object; unknown keys and values are refused by name.
 *
 *     file      path of the ONNX file below the directory; default: model.onnx, the only *.onnx at
 *               the top, or onnx/model.onnx
 *     task      "auto" (default), "tensor", or "embed": texts in, vectors out
 *     join      "auto" (default): requests are joined along the first axis where all inputs and
 *               outputs call theirs by one name that says batch; "on": where all first axes are
 *               free; "off"
 *     outputs   names of the outputs that there are for requests; default: all
 *     threads   for arithmetic, 1 to 64; default: the CPUs
 *     batching  encoder_batching.h
 *
 * Thread: any.   Tests: tests/unit/test_onnx.c
 */

#include <jansson.h>

#include "workers/engines/onnx/onnx_file.h"

#define ONNX_THREAD_COUNT_MAX 64u

enum onnx_wish {
    ONNX_AUTO,
    ONNX_FIRST,  /* "tensor", "on" */
    ONNX_SECOND, /* "embed", "off" */
};

struct onnx_settings {
    char file[ONNX_NAME_SIZE];
    enum onnx_wish task, join;
    uint32_t thread_count; /* 0: not set */
    json_t *outputs;       /* borrowed from json; NULL: not set */
    json_t *json;          /* the whole, for batching */
};

int onnx_settings_read(const char *dir, const char *text, struct onnx_settings *ret_settings,
                       struct err *err) MUST_CHECK;
void onnx_settings_done(struct onnx_settings *settings);
