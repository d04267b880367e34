/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What a Hugging Face directory says about its encoder, checked against what we have.
 *
 *     config.json                  shapes, activation, architecture
 *     modules.json                 which steps follow the transformer (sentence-transformers)
 *     1_Pooling/config.json        how token vectors become one; the folder is modules.json's
 *     sentence_bert_config.json    the length that texts are cut to
 *     tokenizer_config.json        the same, where the former is silent
 *
 * A directory that we could only serve wrongly (another architecture, a Dense step, relative
 * positions) is ERR_UNSUPPORTED, and the text names file, key and value.
 *
 * Thread: any.   Tests: tests/unit/test_encoder_config.c
 */

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

#define ENCODER_FILE_SIZE_MAX (1u << 20)
#define ENCODER_LAYER_COUNT_MAX 128u
#define ENCODER_HEAD_COUNT_MAX 128u
#define ENCODER_HIDDEN_MAX 8192u
#define ENCODER_INTERMEDIATE_MAX 65536u
#define ENCODER_TOKEN_COUNT_MAX 8192u
#define ENCODER_VOCAB_MAX (1u << 20)

enum encoder_activation {
    ENCODER_GELU,      /* by the error function */
    ENCODER_GELU_TANH, /* by its approximation */
    ENCODER_RELU,
};

enum encoder_pooling {
    ENCODER_POOL_MEAN,
    ENCODER_POOL_CLS,
};

struct encoder_config {
    uint32_t layer_count;
    uint32_t head_count;
    uint32_t hidden;       /* width of a token's vector, and of the answer */
    uint32_t intermediate; /* width inside the feed-forward step */
    uint32_t vocab_count;
    uint32_t position_count;
    uint32_t type_count;
    uint32_t token_count_max; /* of one text, [CLS] and [SEP] included */
    float norm_eps;
    enum encoder_activation activation;
    enum encoder_pooling pooling;
    bool normalize;
};

/* ERR_UNSUPPORTED or ERR_NOT_FOUND: no directory for this engine. Others: it is broken. */
int encoder_config_read(const char *dir, struct encoder_config *ret_config,
                        struct err *err) MUST_CHECK;

/* The files beside config.json alone: token_count_max within config->position_count, pooling and
 * normalize. */
int encoder_config_read_texts(const char *dir, struct encoder_config *config,
                              struct err *err) MUST_CHECK;

/* Parameters in all, and those that each token is multiplied with. */
uint64_t encoder_config_weight_count(const struct encoder_config *config);
uint64_t encoder_config_weight_count_per_token(const struct encoder_config *config);

const char *encoder_pooling_name(enum encoder_pooling pooling);
