/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Texts in, vectors or scores out, whatever computes them: the part of an engine that `encoder` and
 * the text task of `onnx` share.
 *
 *     submit   JSON -> texts -> ids (encoder_input, tokenizer), queued (encoder_queue)
 *     step     one batch, when it is due (encoder_batching) -> runner -> answers
 *              (encoder_output, encoder_scores)
 *
 * The head decides which routes there are: /v1/embeddings without one; /predict of texts' labels,
 * and /rerank where there is but one; /predict_tokens of tokens' labels. A request without a route
 * means the first of /v1/embeddings, /rerank, /predict and /predict_tokens that there is.
 *
 * The functions mirror engine.h, whose rules hold for them. The runner is borrowed and outlives it.
 *
 * Two batches may be out at once, where the runner's device computes by itself. Who has `alone`
 * set has the device to itself.
 *
 * A batch that finds no memory runs again as two halves, each of which may do so again; a text that
 * finds none alone costs its request, and nobody else.
 *
 * Failures of a request: bad_input for what the user sent, model_error for a run that failed or a
 * vector that is not finite, oom, expired, canceled. A runner that says ERR_DEVICE has lost its
 * device: step fails so too, and what is held is lost with this process.
 *
 * Thread: its engine's.   Tests: tests/unit/test_encoder.c, test_encoder_texts.c, test_onnx.c
 */

#include <jansson.h>

#include "schema/model_plan.h"
#include "workers/engine.h"
#include "workers/engines/encoder/bert.h"
#include "workers/engines/encoder/encoder.h"
#include "workers/engines/encoder/encoder_batching.h"
#include "workers/engines/encoder/tokenizer.h"

struct encoder_texts;

/* Batches that a device may have at once: it computes one while the next one is cut and copied,
 * and the one before is answered. */
#define ENCODER_FLIGHT_MAX 2u

/* A runner that computes in the call has run alone. One whose device computes by itself has start
 * and finish too; then run is for what is run again, and may be called while a batch is out. */
struct encoder_runner {
    /* Writes a row of `width` numbers for each text of the batch, or for each token where the head
     * is TOKENS, and how many tokens were computed for nothing. The longest text comes first.
     * ERR_MEMORY: the batch was too large. ERR_DEVICE: nothing will run here any more. */
    int (*run)(void *self, const struct bert_batch *batch, float *rows, uint32_t *ret_pad_count,
               struct err *err);
    void *self;

    /* Begins what run does, and does not wait for its end. `slot` is below ENCODER_FLIGHT_MAX, and
     * no batch is out in it; *batch is borrowed for the call, what it and `rows` point to until
     * finish(slot). An error: nothing was begun, and there is no finish. NULL: run is all. */
    int (*start)(void *self, uint32_t slot, const struct bert_batch *batch, float *rows,
                 struct err *err);

    /* Waits until that batch has ended, whose rows are there then; fails as run does. Batches are
     * finished in the order in which they were started, each exactly once. */
    int (*finish)(void *self, uint32_t slot, uint32_t *ret_pad_count, struct err *err);
};

struct encoder_texts_options {
    struct encoder_runner runner;
    enum encoder_head head;
    bool multi_label;
    struct encoder_labels *labels; /* taken on success; NULL: no head */
    uint32_t width;                /* of a row */
    uint32_t token_count_max;      /* of one text, [CLS] and [SEP] included */
    struct encoder_batching batching;
};

/* Takes *tokenizer_p on success. ERR_RANGE names the limit of the load that is too large. */
int encoder_texts_new(const struct engine_load *load, const struct encoder_texts_options *options,
                      struct tokenizer **tokenizer_p, struct encoder_texts **ret_texts,
                      struct err *err) MUST_CHECK;
void encoder_texts_free(struct encoder_texts **texts_p);

/* One short text, so that the first job meets warm memory. */
int encoder_texts_warm_up(struct encoder_texts *texts, struct err *err) MUST_CHECK;

int encoder_texts_submit(struct encoder_texts *texts, const struct engine_req *from,
                         uint64_t now_us, struct err *err) MUST_CHECK;
int encoder_texts_step(struct encoder_texts *texts, uint64_t now_us, uint64_t *ret_wake_us,
                       struct err *err) MUST_CHECK;
int encoder_texts_cancel(struct encoder_texts *texts, uint64_t req_id, struct err *err) MUST_CHECK;

/* All but host_size. */
void encoder_texts_stats(const struct encoder_texts *texts, struct engine_stats *ret_stats);
uint32_t encoder_texts_req_count_max(const struct encoder_texts *texts);

/* What the load and the settings say of batches; the default of max_tokens is the engine's. */
int encoder_texts_batching(const struct engine_load *load, const json_t *settings,
                           uint32_t token_count_max, uint32_t token_max_default,
                           struct encoder_batching *ret_batching, struct err *err) MUST_CHECK;

/* Texts of one batch at most: each has [CLS] and [SEP]. */
uint32_t encoder_texts_count_max(const struct encoder_batching *batching);

/* The load's wishes, or the defaults that all engines with these inputs have. */
int encoder_limits(const struct engine_load *load, uint32_t *ret_req_count_max,
                   uint32_t *ret_input_size_max, struct err *err) MUST_CHECK;
int encoder_thread_count(const struct engine_load *load, uint32_t max, uint32_t *ret_count,
                         struct err *err) MUST_CHECK;

/* The final event of a request that failed, counted. */
void encoder_emit_error(const struct engine_sink *sink, struct engine_stats *stats, uint64_t req_id,
                        enum engine_error class, const char *text, uint32_t batch_req_count);
