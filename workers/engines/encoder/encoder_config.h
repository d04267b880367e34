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
 * Which architectures there are: schema/encoder_families.def. A model with a head has labels, from
 * id2label or num_labels; one of a single label ranks texts.
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
#define ENCODER_DISTANCE_COUNT_MAX 1024u
#define ENCODER_LABEL_COUNT_MAX 4096u
#define ENCODER_LABEL_SIZE_MAX 128u

enum encoder_activation {
    ENCODER_GELU,      /* by the error function */
    ENCODER_GELU_TANH, /* by its approximation */
    ENCODER_RELU,
    ENCODER_SILU,
};

enum encoder_pooling {
    ENCODER_POOL_MEAN,
    ENCODER_POOL_CLS,
};

enum encoder_family {
#define ENCODER_FAMILY(name, architecture, model_type) ENCODER_FAMILY_##name,
#include "schema/encoder_families.def"
};

enum encoder_head {
#define ENCODER_HEAD(name, architecture) ENCODER_HEAD_##name,
#include "schema/encoder_families.def"
};

struct encoder_config {
    enum encoder_family family;
    enum encoder_head head;
    uint32_t label_count; /* 0: no head */
    bool multi_label;     /* each label stands for itself: no softmax over them */
    uint32_t layer_count;
    uint32_t head_count;
    uint32_t hidden;       /* width of a token's vector, and of the answer */
    uint32_t intermediate; /* width inside the feed-forward step */
    uint32_t vocab_count;
    uint32_t position_count;
    uint32_t position_first; /* of a text's first token: RoBERTa begins behind its padding's */
    uint32_t pad_id;         /* where position_first is not 0: tokens of this id stand nowhere */
    uint32_t type_count;     /* 0: the family has none */
    uint32_t
        distance_count; /* kinds of distance between two tokens (MPNet); 0: none is looked at */
    uint32_t token_count_max; /* of one text, [CLS] and [SEP] included */
    float norm_eps;
    enum encoder_activation activation;
    enum encoder_pooling pooling;
    bool normalize;

    /* ModernBERT and NomicBERT. */
    bool norm_first; /* before each step, not behind it; and one at the end */
    bool gated;      /* feed-forward: activation(x W1) (x W2), number by number */
    bool no_qkv_bias, no_up_bias, no_down_bias, no_norm_bias, no_head_bias;
    float turn_base[2]; /* of global and of local layers; 0: positions are in a table */
    uint32_t window;    /* tokens to each side that a local layer looks at */
    uint8_t layer_is_local[ENCODER_LAYER_COUNT_MAX];
    enum encoder_pooling head_pooling; /* of the text that a head labels */
    enum encoder_activation head_activation;
};

/* Whether positions are looked up in a table of the weights. */
static inline bool encoder_config_has_positions(const struct encoder_config *config)
{
    return config->turn_base[0] <= 0;
}

struct encoder_labels {
    uint32_t count;
    char (*names)[ENCODER_LABEL_SIZE_MAX];
};
void encoder_labels_done(struct encoder_labels *labels);

/* The labels' names, config->label_count of them; none for a model without a head. */
int encoder_labels_read(const char *dir, const struct encoder_config *config,
                        struct encoder_labels *ret_labels, struct err *err) MUST_CHECK;

/* embed, classify, rerank or classify_tokens. */
const char *encoder_task_name(const struct encoder_config *config);
const char *encoder_architecture_name(const struct encoder_config *config, char to[64]);

/* Numbers of one row of the model's output: a vector's, or one a label. */
uint32_t encoder_config_width(const struct encoder_config *config);

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
