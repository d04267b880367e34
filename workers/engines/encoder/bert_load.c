/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Weights from a safetensors file into the layouts that the forward pass wants.
 *
 * Checkpoints name tensors "encoder.layer.0.…", with "bert." in front when the file came from a
 * model with a head, and the oldest call a norm's weight gamma and its bias beta. Every shape is
 * compared with config.json before a byte is read, so a file and a configuration that do not
 * belong together are told apart from each other by name.
 */

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "workers/engines/encoder/bert_int.h"

#define NAME_SIZE 192
#define DISTANCE_FAR 128 /* from here on all distances are of one kind */

/* Names of a family's tensors; those of the head stand beside the model unless head_inside. */
struct names {
    const char *prefix;
    const char *layer; /* before its number */
    const char *qkv[3], *out, *out_norm, *up, *down, *down_norm;
    const char *head_dense, *head_labels;
    bool head_inside;
};

#define BERT_NAMES                                                                                 \
    "encoder.layer.", {"attention.self.query", "attention.self.key", "attention.self.value"},      \
        "attention.output.dense", "attention.output.LayerNorm", "intermediate.dense",              \
        "output.dense", "output.LayerNorm"

static const struct names all_names[] = {
    [ENCODER_FAMILY_BERT] = {"bert.", BERT_NAMES, "pooler.dense", "classifier", true},
    [ENCODER_FAMILY_ROBERTA] = {"roberta.", BERT_NAMES, "classifier.dense", "classifier.out_proj",
                                false},
    [ENCODER_FAMILY_XLM_ROBERTA] = {"roberta.", BERT_NAMES, "classifier.dense",
                                    "classifier.out_proj", false},
    [ENCODER_FAMILY_DISTILBERT] = {"distilbert.",
                                   "transformer.layer.",
                                   {"attention.q_lin", "attention.k_lin", "attention.v_lin"},
                                   "attention.out_lin",
                                   "sa_layer_norm",
                                   "ffn.lin1",
                                   "ffn.lin2",
                                   "output_layer_norm",
                                   "pre_classifier",
                                   "classifier",
                                   false},
    [ENCODER_FAMILY_MPNET] = {"mpnet.",
                              "encoder.layer.",
                              {"attention.attn.q", "attention.attn.k", "attention.attn.v"},
                              "attention.attn.o",
                              "attention.LayerNorm",
                              "intermediate.dense",
                              "output.dense",
                              "output.LayerNorm",
                              "classifier.dense",
                              "classifier.out_proj",
                              false},
};

struct loader {
    const struct encoder_config *config;
    const struct names *names;
    const struct safetensors *file;
    struct bert *bert; /* NULL: compare names and shapes, read nothing */
    const struct bert_options *options;
    const char *prefix;
    float *matrix, *bias; /* one layer's, on their way into a packed layout */
    uint64_t done_size;
};

static const struct safetensors_tensor *find(const struct loader *loader, const char *name)
{
    char full[NAME_SIZE];

    (void)snprintf(full, sizeof(full), "%s%s", loader->prefix, name);
    return safetensors_find(loader->file, full);
}

/* `columns` 0: a vector of `rows`. */
static int check(const struct loader *loader, const char *name, uint64_t rows, uint64_t columns,
                 const struct safetensors_tensor **ret_tensor, struct err *err)
{
    const struct safetensors_tensor *tensor = find(loader, name);
    uint32_t rank = columns > 0 ? 2 : 1;

    if (tensor == NULL)
        return err_set(err, ERR_MISMATCH, "tensor '%s%s' is missing", loader->prefix, name);
    if (tensor->rank != rank || tensor->shape[0] != rows ||
        (rank == 2 && tensor->shape[1] != columns))
        return err_set(err, ERR_MISMATCH,
                       "tensor '%s' has shape [%" PRIu64 "%s%.0" PRIu64 "] of rank %u, config.json "
                       "wants [%" PRIu64 "%s%.0" PRIu64 "]",
                       tensor->name, tensor->rank > 0 ? tensor->shape[0] : 0,
                       tensor->rank > 1 ? ", " : "", tensor->rank > 1 ? tensor->shape[1] : 0,
                       tensor->rank, rows, columns > 0 ? ", " : "", columns);
    if (tensor->dtype == SAFETENSORS_OTHER)
        return err_set(err, ERR_UNSUPPORTED, "tensor '%s': dtype is none of F32, F16, BF16",
                       tensor->name);
    *ret_tensor = tensor;
    return 0;
}

static int report(struct loader *loader, uint64_t size, struct err *err)
{
    loader->done_size += size;
    if (loader->options->progress == NULL ||
        loader->options->progress(loader->options->opaque, loader->done_size,
                                  safetensors_data_size(loader->file)))
        return 0;
    return err_set(err, ERR_CANCELED, "loading was stopped");
}

static int read_into(struct loader *loader, const char *name, uint64_t rows, uint64_t columns,
                     float *to, struct err *err)
{
    const struct safetensors_tensor *tensor;
    int r;

    r = check(loader, name, rows, columns, &tensor, err);
    if (r < 0 || loader->bert == NULL)
        return r;
    r = safetensors_read_f32(tensor, 0, tensor->element_count, to, err);
    if (r == 0)
        r = report(loader, tensor->size, err);
    return r;
}

/* A norm's two vectors, under their new names or their old ones. */
static int read_norm(struct loader *loader, const char *name, float **ret_gain, float **ret_bias,
                     struct err *err)
{
    const uint32_t hidden = loader->config->hidden;
    char gain[NAME_SIZE], bias[NAME_SIZE];
    int r = 0;

    (void)snprintf(gain, sizeof(gain), "%s.weight", name);
    (void)snprintf(bias, sizeof(bias), "%s.bias", name);
    if (find(loader, gain) == NULL) {
        (void)snprintf(gain, sizeof(gain), "%s.gamma", name);
        (void)snprintf(bias, sizeof(bias), "%s.beta", name);
    }
    if (loader->bert != NULL) {
        r = bert_alloc(loader->bert, hidden, sizeof(float), ret_gain, err);
        if (r == 0)
            r = bert_alloc(loader->bert, hidden, sizeof(float), ret_bias, err);
    }
    if (r == 0)
        r = read_into(loader, gain, hidden, 0, *ret_gain, err);
    if (r == 0)
        r = read_into(loader, bias, hidden, 0, *ret_bias, err);
    return r;
}

/* "encoder.layer.3.output.dense" */
static void name_in_layer(const struct loader *loader, uint32_t layer, const char *name,
                          char to[NAME_SIZE])
{
    (void)snprintf(to, NAME_SIZE, "%s%u.%s", loader->names->layer, layer, name);
}

/* Reads one linear step's weight and bias behind what is in the loader's buffers already. */
static int read_linear(struct loader *loader, uint32_t layer, const char *name, uint32_t output,
                       uint32_t input, uint32_t first_row, struct err *err)
{
    char step[NAME_SIZE], full[NAME_SIZE + 8];
    int r;

    name_in_layer(loader, layer, name, step);
    (void)snprintf(full, sizeof(full), "%s.weight", step);
    r = read_into(loader, full, output, input,
                  loader->bert != NULL ? loader->matrix + (size_t)first_row * input : NULL, err);
    (void)snprintf(full, sizeof(full), "%s.bias", step);
    if (r == 0)
        r = read_into(loader, full, output, 0,
                      loader->bert != NULL ? loader->bias + first_row : NULL, err);
    return r;
}

static int pack(struct loader *loader, uint32_t layer, enum bert_product product, struct err *err)
{
    struct bert *bert = loader->bert;
    struct gemm_weights **weights;
    int r;

    if (bert == NULL)
        return 0;
    weights = &bert->layers[layer].products[product];
    r = gemm_weights_new(bert->plans[product], loader->matrix, loader->bias, weights, err);
    if (r == 0)
        bert->memory_size += gemm_weights_size(*weights);
    return r;
}

/* q, k and v are three steps in the file and one product here. */
static int load_layer(struct loader *loader, uint32_t index, struct err *err)
{
    const struct names *names = loader->names;
    const uint32_t hidden = loader->config->hidden;
    const uint32_t intermediate = loader->config->intermediate;
    struct bert_layer unread, *layer = &unread;
    char name[NAME_SIZE];
    int r = 0;

    if (loader->bert != NULL)
        layer = &loader->bert->layers[index];
    for (uint32_t i = 0; r == 0 && i < COUNT_OF(names->qkv); i++)
        r = read_linear(loader, index, names->qkv[i], hidden, hidden, i * hidden, err);
    if (r == 0)
        r = pack(loader, index, BERT_QKV, err);
    if (r == 0)
        r = read_linear(loader, index, names->out, hidden, hidden, 0, err);
    if (r == 0)
        r = pack(loader, index, BERT_OUT, err);
    if (r == 0)
        r = read_linear(loader, index, names->up, intermediate, hidden, 0, err);
    if (r == 0)
        r = pack(loader, index, BERT_UP, err);
    if (r == 0)
        r = read_linear(loader, index, names->down, hidden, intermediate, 0, err);
    if (r == 0)
        r = pack(loader, index, BERT_DOWN, err);
    name_in_layer(loader, index, names->out_norm, name);
    if (r == 0)
        r = read_norm(loader, name, &layer->out_gain, &layer->out_bias, err);
    name_in_layer(loader, index, names->down_norm, name);
    if (r == 0)
        r = read_norm(loader, name, &layer->down_gain, &layer->down_bias, err);
    return r;
}

/* The word table is the largest part of a small model and is read by row, so an f32 table stays
 * in the mapped file, shared between the processes that serve the model. */
static int load_words(struct loader *loader, struct err *err)
{
    struct bert *bert = loader->bert;
    const struct encoder_config *config = loader->config;
    const struct safetensors_tensor *tensor;
    int r;

    r = check(loader, "embeddings.word_embeddings.weight", config->vocab_count, config->hidden,
              &tensor, err);
    if (r < 0 || bert == NULL)
        return r;
    if (tensor->dtype == SAFETENSORS_F32 && (uintptr_t)tensor->bytes % sizeof(float) == 0) {
        bert->words = (const float *)(const void *)tensor->bytes;
        return report(loader, tensor->size, err);
    }
    r = bert_alloc(bert, (size_t)config->vocab_count * config->hidden, sizeof(float),
                   &bert->words_copy, err);
    if (r == 0)
        r = safetensors_read_f32(tensor, 0, tensor->element_count, bert->words_copy, err);
    bert->words = bert->words_copy;
    return r == 0 ? report(loader, tensor->size, err) : r;
}

/* A text is all of type 0, so that row is added to the positions once and for all. */
static int load_positions(struct loader *loader, struct err *err)
{
    struct bert *bert = loader->bert;
    const struct encoder_config *config = loader->config;
    const size_t count = (size_t)config->position_count * config->hidden;
    const struct safetensors_tensor *types;
    OWNED(mem_free) float *type = xcalloc(config->hidden, sizeof(float));
    float *positions = NULL;
    int r = 0;

    if (bert != NULL) {
        r = bert_alloc(bert, count, sizeof(float), &bert->positions, err);
        positions = bert->positions;
    }
    if (r == 0)
        r = read_into(loader, "embeddings.position_embeddings.weight", config->position_count,
                      config->hidden, positions, err);
    if (r < 0 || config->type_count == 0)
        return r;
    r = check(loader, "embeddings.token_type_embeddings.weight", config->type_count, config->hidden,
              &types, err);
    if (r == 0)
        r = safetensors_read_f32(types, 0, config->hidden, type, err);
    for (size_t i = 0; r == 0 && bert != NULL && i < count; i++)
        positions[i] += type[i % config->hidden];
    if (r < 0 || bert == NULL || config->type_count < 2)
        return r;
    r = bert_alloc(bert, config->hidden, sizeof(float), &bert->type_step, err);
    if (r == 0)
        r = safetensors_read_f32(types, config->hidden, config->hidden, bert->type_step, err);
    for (uint32_t i = 0; r == 0 && i < config->hidden; i++)
        bert->type_step[i] -= type[i];
    return r;
}

/* Half of the kinds are for keys behind the query, half for those before it: of each half the first
 * half are single distances, the rest grow with their logarithm up to DISTANCE_FAR. */
static uint32_t kind_of_distance(int64_t distance, uint32_t kind_count)
{
    const uint32_t half = kind_count / 2, single = half / 2;
    const double size = (double)(distance < 0 ? -distance : distance);
    uint32_t kind = (uint32_t)size;

    if (size >= single) {
        kind = single + (uint32_t)(log(size / single) / log((double)DISTANCE_FAR / single) *
                                   (half - single));
        kind = kind < half ? kind : half - 1;
    }
    return distance > 0 ? half + kind : kind;
}

/* One number a kind of distance and head, the same in all layers, spread out over the distances. */
static int load_distances(struct loader *loader, struct err *err)
{
    const struct encoder_config *config = loader->config;
    const uint32_t heads = config->head_count, far = config->token_count_max - 1;
    OWNED(mem_free) float *kinds = NULL;
    int r;

    if (config->distance_count == 0)
        return 0;
    kinds = xcalloc((size_t)config->distance_count * heads, sizeof(*kinds));
    r = read_into(loader, "encoder.relative_attention_bias.weight", config->distance_count, heads,
                  kinds, err);
    if (r < 0 || loader->bert == NULL)
        return r;
    r = bert_alloc(loader->bert, (size_t)heads * (2 * (size_t)far + 1), sizeof(float),
                   &loader->bert->distances, err);
    for (uint32_t head = 0; r == 0 && head < heads; head++) {
        for (uint32_t i = 0; i <= 2 * far; i++)
            loader->bert->distances[head * (2 * (size_t)far + 1) + i] =
                kinds[kind_of_distance((int64_t)i - far, config->distance_count) * heads + head];
    }
    return r;
}

/* A matrix of `rows` by hidden and its bias, read as they are. */
static int read_step(struct loader *loader, const char *name, uint32_t rows, float **ret_matrix,
                     float **ret_bias, struct err *err)
{
    const uint32_t hidden = loader->config->hidden;
    char full[NAME_SIZE];
    int r = 0;

    if (loader->bert != NULL) {
        r = bert_alloc(loader->bert, (size_t)rows * hidden, sizeof(float), ret_matrix, err);
        if (r == 0)
            r = bert_alloc(loader->bert, rows, sizeof(float), ret_bias, err);
    }
    (void)snprintf(full, sizeof(full), "%s.weight", name);
    if (r == 0)
        r = read_into(loader, full, rows, hidden, *ret_matrix, err);
    (void)snprintf(full, sizeof(full), "%s.bias", name);
    if (r == 0)
        r = read_into(loader, full, rows, 0, *ret_bias, err);
    return r;
}

static int load_head(struct loader *loader, struct err *err)
{
    const struct encoder_config *config = loader->config;
    struct bert_head unread = {0}, *head = loader->bert != NULL ? &loader->bert->head : &unread;
    const char *prefix = loader->prefix;
    int r = 0;

    if (config->head == ENCODER_HEAD_EMBED)
        return 0;
    if (!loader->names->head_inside)
        loader->prefix = "";
    if (config->head == ENCODER_HEAD_CLASSIFY)
        r = read_step(loader, loader->names->head_dense, config->hidden, &head->dense,
                      &head->dense_bias, err);
    loader->prefix = "";
    if (r == 0)
        r = read_step(loader,
                      config->head == ENCODER_HEAD_CLASSIFY ? loader->names->head_labels
                                                            : "classifier",
                      config->label_count, &head->labels, &head->labels_bias, err);
    loader->prefix = prefix;
    return r;
}

static int load_all(struct loader *loader, struct err *err)
{
    const uint64_t want_size = 2 * encoder_config_weight_count(loader->config);
    float *gain = NULL, *bias = NULL;
    int r;

    /* Before any memory is taken for the shapes that config.json claims. */
    if (want_size > safetensors_data_size(loader->file))
        return err_set(err, ERR_MISMATCH,
                       "config.json describes a model of %" PRIu64
                       " bytes at least, the weights have %" PRIu64,
                       want_size, safetensors_data_size(loader->file));
    if (find(loader, "embeddings.word_embeddings.weight") == NULL)
        loader->prefix = loader->names->prefix;
    r = load_words(loader, err);
    if (r == 0)
        r = load_positions(loader, err);
    if (r == 0)
        r = read_norm(loader, "embeddings.LayerNorm",
                      loader->bert != NULL ? &loader->bert->gain : &gain,
                      loader->bert != NULL ? &loader->bert->bias : &bias, err);
    for (uint32_t i = 0; r == 0 && i < loader->config->layer_count; i++)
        r = load_layer(loader, i, err);
    if (r == 0)
        r = load_distances(loader, err);
    return r == 0 ? load_head(loader, err) : r;
}

int bert_check(const struct encoder_config *config, const struct safetensors *file, struct err *err)
{
    struct loader loader = {
        .config = config,
        .names = &all_names[config->family],
        .file = file,
        .prefix = "",
    };

    return load_all(&loader, err);
}

int bert_load_weights(struct bert *bert, const struct bert_options *options, struct err *err)
{
    const size_t hidden = bert->config.hidden;
    const size_t intermediate = bert->config.intermediate;
    const size_t widest = intermediate > 3 * hidden ? intermediate : 3 * hidden;
    OWNED(mem_free) float *matrix = xmalloc(hidden * widest * sizeof(float));
    OWNED(mem_free) float *bias = xmalloc(widest * sizeof(float));
    struct loader loader = {
        .config = &bert->config,
        .names = &all_names[bert->config.family],
        .file = bert->file,
        .bert = bert,
        .options = options,
        .prefix = "",
        .matrix = matrix,
        .bias = bias,
    };

    return load_all(&loader, err);
}
