/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The text task's arithmetic: ids in, one vector a text out, through an ONNX graph in the layout
 * that sentence-transformers and Hugging Face's exporters write.
 *
 *     inputs   input_ids, perhaps attention_mask and token_type_ids: int64 or int32 [texts, tokens]
 *     output   sentence_embedding [texts, width] as it is; else last_hidden_state, token_embeddings
 *              or the first one, [texts, tokens, width], pooled and scaled as the directory's
 *              modules.json says
 *
 * Texts of a batch run in groups of about equal length, each padded to its longest text and masked:
 * at most a quarter of a group is padding, and 16 tokens a text.
 *
 * Thread: one.   Tests: tests/unit/test_onnx.c, tests/stack/test_onnx.py
 */

#include "workers/engines/encoder/bert.h"
#include "workers/engines/onnx/onnx_ort.h"

struct onnx_text;

struct onnx_text_options {
    struct onnx_session *session;   /* borrowed */
    const struct onnx_model *model; /* borrowed */
    const char *dir;
    uint32_t token_max; /* of one batch; the longest text is shorter */
};

/* ERR_UNSUPPORTED unless the graph has these inputs and such an output; says which it has. */
int onnx_text_check(const struct onnx_model *model, struct err *err) MUST_CHECK;

/* The longest text that the directory's files and the graph allow. */
int onnx_text_token_max(const char *dir, const struct onnx_model *model, uint32_t *ret_count,
                        struct err *err) MUST_CHECK;

/* Runs one short text, to see that it works and how wide a vector is. */
int onnx_text_open(const struct onnx_text_options *options, struct onnx_text **ret_text,
                   struct err *err) MUST_CHECK;
void onnx_text_close(struct onnx_text **text_p);
uint32_t onnx_text_width(const struct onnx_text *text);
uint32_t onnx_text_length(const struct onnx_text *text);     /* of the longest text, in tokens */
const char *onnx_text_pooling(const struct onnx_text *text); /* "mean, normalized" */

/* struct encoder_runner's function; self is a struct onnx_text. */
int onnx_text_run(void *self, const struct bert_batch *batch, float *vectors,
                  uint32_t *ret_pad_count, struct err *err) MUST_CHECK;
