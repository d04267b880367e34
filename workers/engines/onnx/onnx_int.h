/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* What onnx.c (requests) and onnx_load.c (models) share. */

#include "base/buf.h"
#include "workers/engines/encoder/encoder_texts.h"
#include "workers/engines/onnx/onnx.h"
#include "workers/engines/onnx/onnx_ort.h"
#include "workers/engines/onnx/onnx_queue.h"
#include "workers/engines/onnx/onnx_text.h"

struct engine {
    struct engine_sink sink;
    struct onnx_model *model;
    struct onnx_ort *ort;
    struct onnx_session *session;

    /* The text task; NULL: the tensor task. */
    struct onnx_text *text;
    struct encoder_texts *texts;

    /* The tensor task. */
    bool offered[ONNX_OUTPUT_COUNT_MAX];
    struct onnx_joining joining;
    uint32_t req_count_max;
    uint32_t input_size_max;
    struct onnx_queue queue;
    struct onnx_req **run; /* requests of the run in hand, room for all */
    struct engine_stats stats;
    struct buf out;
};

int onnx_probe(const char *dir, struct engine_probe *ret_probe, struct err *err) MUST_CHECK;
int onnx_load(const struct engine_load *load, struct engine **ret_engine,
              struct engine_info *ret_info, struct err *err) MUST_CHECK;
void onnx_unload(struct engine **engine_p);
