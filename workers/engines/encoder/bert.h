/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The forward pass of a BERT encoder on the CPU: ids in, a row of numbers a text or a token out.
 *
 * This is the specification of what a GPU must compute, within a stated tolerance.
 *
 *     x = norm(word[id] + position[t] + type[of one text or the second])
 *     per layer:  q, k, v = x Wqkv + b         products: gemm.h (oneDNN)
 *                 c = attention(q, k, v)       per text and head: bert_kernels.h
 *                 x = norm(x + c Wo + b)
 *                 x = norm(x + act(x W1 + b) W2 + b)
 *     embed     row = mean or first of x, scaled to length 1 where the model asks for it
 *     classify  row = act(x[first] Wd + b) Wl + b        a number a label
 *     tokens    row = x[t] Wl + b                        of each token, [CLS] and [SEP] too
 *
 * MPNet adds a number to each score, by the tokens' distance. NomicBERT and ModernBERT have no
 * positions and turn q and k instead, and gate the feed-forward step: act(x W1) (x W1') W2.
 * ModernBERT's layers add to x what comes of norm(x), some of them look at near keys only, x is
 * normed at the end, and its heads are norm(act(x Wd)) Wl, of each token too.
 *
 * Texts of a batch lie back to back without padding, whatever their lengths. A layer is two
 * loops over the team: attention (one turn a text and head), and, per tile of rows, all that
 * follows it up to the next layer's q, k, v, so that a tile stays in its core's cache.
 *
 * Memory is taken when the model is opened, sized for token_count_max tokens a run.
 *
 * Thread: one.   Tests: tests/unit/test_encoder_golden.c
 */

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "workers/engines/encoder/encoder_config.h"
#include "workers/engines/encoder/safetensors.h"

struct bert;

struct bert_options {
    uint32_t thread_count;    /* 1 at least */
    uint32_t token_count_max; /* of one run */
    bool bf16;                /* matrix products in bf16, sums in f32 */
    /* False stops the loading; NULL: nobody asks. */
    bool (*progress)(void *opaque, uint64_t done_size, uint64_t total_size);
    void *opaque;
};

/* Texts one behind the other: text i is ids[offsets[i]] … ids[offsets[i + 1] - 1]. */
struct bert_batch {
    const uint32_t *ids;
    const uint32_t *offsets; /* text_count + 1 of them, the first 0 */
    uint32_t text_count;
    const uint32_t *seconds; /* per text: its token from which on it is of type 1; 0: none. NULL:
                              * all texts are of type 0 */
};

/* Compares names, shapes and types of the weights with the configuration; reads none of them.
 * ERR_MISMATCH names the tensor, what it has and what is wanted. */
int bert_check(const struct encoder_config *config, const struct safetensors *weights,
               struct err *err) MUST_CHECK;

/* Takes *weights_p on success, and keeps it mapped. Fails as bert_check() does; or
 * ERR_MEMORY; or ERR_CANCELED when progress said stop. */
int bert_open(const struct encoder_config *config, struct safetensors **weights_p,
              const struct bert_options *options, struct bert **ret_bert,
              struct err *err) MUST_CHECK;
void bert_close(struct bert **bert_p);

/* Writes encoder_config_width() numbers a text, or a token where the head is TOKENS. At most
 * token_count_max tokens, each text of 1 to config.token_count_max; ids below config.vocab_count.
 */
int bert_run(struct bert *bert, const struct bert_batch *batch, float *rows,
             struct err *err) MUST_CHECK;

/* Rows that a run of so many tokens computes for nothing. */
uint32_t bert_pad_count(uint32_t token_count);

/* Bytes of main memory that the model holds, the mapped file not counted. */
uint64_t bert_memory_size(const struct bert *bert);
const char *bert_kernel_name(const struct bert *bert);

/* Where a checkpoint has what: names differ from family to family. */
enum bert_role {
    BERT_ROLE_WORDS,
    BERT_ROLE_POSITIONS,
    BERT_ROLE_TYPES,
    BERT_ROLE_GAIN, /* of the norm of their sum */
    BERT_ROLE_BIAS,
    BERT_ROLE_Q, /* from here on of a layer; a matrix's bias is the role behind it */
    BERT_ROLE_Q_BIAS,
    BERT_ROLE_K,
    BERT_ROLE_K_BIAS,
    BERT_ROLE_V,
    BERT_ROLE_V_BIAS,
    BERT_ROLE_OUT,
    BERT_ROLE_OUT_BIAS,
    BERT_ROLE_OUT_NORM_GAIN,
    BERT_ROLE_OUT_NORM_BIAS,
    BERT_ROLE_UP,
    BERT_ROLE_UP_BIAS,
    BERT_ROLE_DOWN,
    BERT_ROLE_DOWN_BIAS,
    BERT_ROLE_DOWN_NORM_GAIN,
    BERT_ROLE_DOWN_NORM_BIAS,
    BERT_ROLE_DENSE, /* from here on of the head */
    BERT_ROLE_DENSE_BIAS,
    BERT_ROLE_LABELS,
    BERT_ROLE_LABELS_BIAS,
    BERT_ROLE_COUNT,
};

/* The tensor of a role, `layer` where it is of one; NULL: the model has none. What bert_check() has
 * passed has all of its roles, in the shapes of the configuration. */
const struct safetensors_tensor *bert_find(const struct encoder_config *config,
                                           const struct safetensors *file, enum bert_role role,
                                           uint32_t layer);

/* Per head 2 * token_count_max - 1 numbers, by the distances of keys from -(token_count_max - 1)
 * on: what MPNet adds to scores. `to` has room for them; only where config->distance_count > 0. */
int bert_read_distances(const struct encoder_config *config, const struct safetensors *file,
                        float *to, struct err *err) MUST_CHECK;
