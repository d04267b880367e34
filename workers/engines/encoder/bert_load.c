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

/* Names of a family's tensors; those of the head stand beside the model unless head_inside. A NULL
 * qkv[1]: the three are one. `gate` that is `up` again: both are one, the gate behind. */
struct names {
    const char *prefixes[2];
    const char *words, *norm;
    const char *layer; /* before its number */
    const char *qkv[3], *out, *out_norm, *up, *gate, *down, *down_norm;
    const char *last_norm; /* where the norm comes first: down_norm is the next layer's */
    const char *head_dense, *head_norm, *head_labels;
    bool head_inside;
};

#define BERT_NAMES                                                                                 \
    .words = "embeddings.word_embeddings", .norm = "embeddings.LayerNorm",                         \
    .layer = "encoder.layer.",                                                                     \
    .qkv = {"attention.self.query", "attention.self.key", "attention.self.value"},                 \
    .out = "attention.output.dense", .out_norm = "attention.output.LayerNorm",                     \
    .up = "intermediate.dense", .down = "output.dense", .down_norm = "output.LayerNorm"

static const struct names all_names[] = {
    [ENCODER_FAMILY_BERT] = {BERT_NAMES, .prefixes = {"bert."}, .head_dense = "pooler.dense",
                             .head_labels = "classifier", .head_inside = true},
    [ENCODER_FAMILY_ROBERTA] = {BERT_NAMES, .prefixes = {"roberta."},
                                .head_dense = "classifier.dense",
                                .head_labels = "classifier.out_proj"},
    [ENCODER_FAMILY_XLM_ROBERTA] = {BERT_NAMES, .prefixes = {"roberta."},
                                    .head_dense = "classifier.dense",
                                    .head_labels = "classifier.out_proj"},
    [ENCODER_FAMILY_DISTILBERT] = {.prefixes = {"distilbert."},
                                   .words = "embeddings.word_embeddings",
                                   .norm = "embeddings.LayerNorm",
                                   .layer = "transformer.layer.",
                                   .qkv = {"attention.q_lin", "attention.k_lin", "attention.v_lin"},
                                   .out = "attention.out_lin",
                                   .out_norm = "sa_layer_norm",
                                   .up = "ffn.lin1",
                                   .down = "ffn.lin2",
                                   .down_norm = "output_layer_norm",
                                   .head_dense = "pre_classifier",
                                   .head_labels = "classifier"},
    [ENCODER_FAMILY_MPNET] = {.prefixes = {"mpnet."},
                              .words = "embeddings.word_embeddings",
                              .norm = "embeddings.LayerNorm",
                              .layer = "encoder.layer.",
                              .qkv = {"attention.attn.q", "attention.attn.k", "attention.attn.v"},
                              .out = "attention.attn.o",
                              .out_norm = "attention.LayerNorm",
                              .up = "intermediate.dense",
                              .down = "output.dense",
                              .down_norm = "output.LayerNorm",
                              .head_dense = "classifier.dense",
                              .head_labels = "classifier.out_proj"},
    [ENCODER_FAMILY_MODERNBERT] = {.prefixes = {"model."},
                                   .words = "embeddings.tok_embeddings",
                                   .norm = "embeddings.norm",
                                   .layer = "layers.",
                                   .qkv = {"attn.Wqkv"},
                                   .out = "attn.Wo",
                                   .out_norm = "mlp_norm",
                                   .up = "mlp.Wi",
                                   .gate = "mlp.Wi",
                                   .down = "mlp.Wo",
                                   .down_norm = "attn_norm",
                                   .last_norm = "final_norm",
                                   .head_dense = "head.dense",
                                   .head_norm = "head.norm",
                                   .head_labels = "classifier"},
    [ENCODER_FAMILY_NOMICBERT] = {.prefixes = {"nomic_bert.", "bert."},
                                  .words = "embeddings.word_embeddings",
                                  .norm = "emb_ln",
                                  .layer = "encoder.layers.",
                                  .qkv = {"attn.Wqkv"},
                                  .out = "attn.out_proj",
                                  .out_norm = "norm1",
                                  .up = "mlp.fc12",
                                  .gate = "mlp.fc11",
                                  .down = "mlp.fc2",
                                  .down_norm = "norm2",
                                  .head_dense = "pooler.dense",
                                  .head_labels = "classifier",
                                  .head_inside = true},
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
    char full[2 * NAME_SIZE];

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
        return err_set(err, ERR_UNSUPPORTED, "tensor '%s': dtype is %s, none of F32, F16, BF16",
                       tensor->name, tensor->dtype_name);
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

/* Rows [first, first + rows) of a tensor that has rows_all. */
static int read_part(struct loader *loader, const char *name, uint64_t rows_all, uint64_t first,
                     uint64_t rows, uint64_t columns, float *to, struct err *err)
{
    const uint64_t width = columns > 0 ? columns : 1;
    const struct safetensors_tensor *tensor;
    int r;

    r = check(loader, name, rows_all, columns, &tensor, err);
    if (r < 0 || loader->bert == NULL)
        return r;
    r = safetensors_read_f32(tensor, first * width, rows * width, to, err);
    if (r == 0)
        r = report(loader, tensor->size * rows / rows_all, err);
    return r;
}

static int read_into(struct loader *loader, const char *name, uint64_t rows, uint64_t columns,
                     float *to, struct err *err)
{
    return read_part(loader, name, rows, 0, rows, columns, to, err);
}

/* A norm's two vectors, under their new names or their old ones. */
static int read_norm(struct loader *loader, const char *name, float **ret_gain, float **ret_bias,
                     struct err *err)
{
    const uint32_t hidden = loader->config->hidden;
    char gain[NAME_SIZE], bias[NAME_SIZE];
    int r = 0;

    (void)snprintf(gain, sizeof(gain), "%s.gamma", name);
    (void)snprintf(bias, sizeof(bias), "%s.beta", name);
    if (find(loader, gain) == NULL) {
        (void)snprintf(gain, sizeof(gain), "%s.weight", name);
        (void)snprintf(bias, sizeof(bias), "%s.bias", name);
    }
    if (loader->bert != NULL) {
        r = bert_alloc(loader->bert, hidden, sizeof(float), ret_gain, err);
        if (r == 0)
            r = bert_alloc(loader->bert, hidden, sizeof(float), ret_bias, err);
    }
    if (r == 0)
        r = read_into(loader, gain, hidden, 0, *ret_gain, err);
    if (r == 0 && !loader->config->no_norm_bias)
        r = read_into(loader, bias, hidden, 0, *ret_bias, err);
    return r;
}

/* "encoder.layer.3.output.dense" */
static void name_in_layer(const struct loader *loader, uint32_t layer, const char *name,
                          char to[NAME_SIZE])
{
    (void)snprintf(to, NAME_SIZE, "%s%u.%s", loader->names->layer, layer, name);
}

/* One linear step of a layer, or rows of one, read to first_row of the loader's buffers. */
struct step {
    const char *name;
    uint32_t output, input;
    uint32_t first_row;
    uint32_t from, output_all; /* of the file's tensor; output_all 0: it is all of it */
    bool no_bias;
};

static int read_linear(struct loader *loader, uint32_t layer, const struct step *step,
                       struct err *err)
{
    const uint32_t all = step->output_all > 0 ? step->output_all : step->output;
    float *matrix = NULL, *bias = NULL;
    char name[NAME_SIZE], full[NAME_SIZE + 8];
    int r;

    if (loader->bert != NULL) {
        matrix = loader->matrix + (size_t)step->first_row * step->input;
        bias = loader->bias + step->first_row;
    }
    name_in_layer(loader, layer, step->name, name);
    (void)snprintf(full, sizeof(full), "%s.weight", name);
    r = read_part(loader, full, all, step->from, step->output, step->input, matrix, err);
    (void)snprintf(full, sizeof(full), "%s.bias", name);
    if (r == 0 && !step->no_bias)
        r = read_part(loader, full, all, step->from, step->output, 0, bias, err);
    else if (r == 0 && bias != NULL)
        memset(bias, 0, step->output * sizeof(*bias));
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

static int load_product(struct loader *loader, uint32_t layer, enum bert_product product,
                        const struct step *step, struct err *err)
{
    const int r = read_linear(loader, layer, step, err);

    return r == 0 ? pack(loader, layer, product, err) : r;
}

/* q, k and v are one product here, and three steps in most files. */
static int load_attention(struct loader *loader, uint32_t index, struct err *err)
{
    const struct names *names = loader->names;
    const uint32_t hidden = loader->config->hidden;
    const bool no_bias = loader->config->no_qkv_bias, fused = names->qkv[1] == NULL;
    int r = 0;

    for (uint32_t i = 0; r == 0 && i < (fused ? 1 : COUNT_OF(names->qkv)); i++) {
        const struct step step = {.name = names->qkv[i],
                                  .output = fused ? 3 * hidden : hidden,
                                  .input = hidden,
                                  .first_row = i * hidden,
                                  .no_bias = no_bias};

        r = read_linear(loader, index, &step, err);
    }
    if (r == 0)
        r = pack(loader, index, BERT_QKV, err);
    if (r == 0)
        r = load_product(
            loader, index, BERT_OUT,
            &(struct step){
                .name = names->out, .output = hidden, .input = hidden, .no_bias = no_bias},
            err);
    return r;
}

static int load_feed_forward(struct loader *loader, uint32_t index, struct err *err)
{
    const struct names *names = loader->names;
    const struct encoder_config *config = loader->config;
    const bool fused = names->gate != NULL && strcmp(names->up, names->gate) == 0;
    struct step step = {.name = names->up,
                        .output = config->intermediate,
                        .input = config->hidden,
                        .output_all = fused ? 2 * config->intermediate : 0,
                        .no_bias = config->no_up_bias};
    int r;

    r = load_product(loader, index, BERT_UP, &step, err);
    step.name = names->gate;
    step.from = fused ? config->intermediate : 0;
    if (r == 0 && config->gated)
        r = load_product(loader, index, BERT_GATE, &step, err);
    if (r == 0)
        r = load_product(loader, index, BERT_DOWN,
                         &(struct step){.name = names->down,
                                        .output = config->hidden,
                                        .input = config->intermediate,
                                        .no_bias = config->no_down_bias},
                         err);
    return r;
}

static int load_layer(struct loader *loader, uint32_t index, struct err *err)
{
    const struct names *names = loader->names;
    const bool is_last = index + 1 == loader->config->layer_count;
    struct bert_layer unread = {0}, *layer = &unread;
    char name[NAME_SIZE];
    int r;

    if (loader->bert != NULL)
        layer = &loader->bert->layers[index];
    r = load_attention(loader, index, err);
    if (r == 0)
        r = load_feed_forward(loader, index, err);
    name_in_layer(loader, index, names->out_norm, name);
    if (r == 0)
        r = read_norm(loader, name, &layer->out_gain, &layer->out_bias, err);
    name_in_layer(loader, index + loader->config->norm_first, names->down_norm, name);
    if (r == 0)
        r = read_norm(loader, is_last && loader->config->norm_first ? names->last_norm : name,
                      &layer->down_gain, &layer->down_bias, err);
    return r;
}

/* The word table is the largest part of a small model and is read by row, so an f32 table stays
 * in the mapped file, shared between the processes that serve the model. */
static int load_words(struct loader *loader, struct err *err)
{
    struct bert *bert = loader->bert;
    const struct encoder_config *config = loader->config;
    const struct safetensors_tensor *tensor;
    char name[NAME_SIZE];
    int r;

    (void)snprintf(name, sizeof(name), "%s.weight", loader->names->words);
    r = check(loader, name, config->vocab_count, config->hidden, &tensor, err);
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
    const bool has_table = encoder_config_has_positions(config);
    const size_t count = (size_t)(has_table ? config->position_count : 1) * config->hidden;
    const struct safetensors_tensor *types;
    OWNED(mem_free) float *type = xcalloc(config->hidden, sizeof(float));
    float *positions = NULL;
    int r = 0;

    if (bert != NULL) {
        r = bert_alloc(bert, count, sizeof(float), &bert->positions, err);
        positions = bert->positions;
    }
    if (r == 0 && has_table)
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
static void spread(const struct encoder_config *config, const float *kinds, float *to)
{
    const uint32_t heads = config->head_count, far = config->token_count_max - 1;

    for (uint32_t head = 0; head < heads; head++) {
        for (uint32_t i = 0; i <= 2 * far; i++)
            to[head * (2 * (size_t)far + 1) + i] =
                kinds[kind_of_distance((int64_t)i - far, config->distance_count) * heads + head];
    }
}

#define DISTANCES "encoder.relative_attention_bias.weight"

static int load_distances(struct loader *loader, struct err *err)
{
    const struct encoder_config *config = loader->config;
    OWNED(mem_free) float *kinds = NULL;
    int r;

    if (config->distance_count == 0)
        return 0;
    kinds = xcalloc((size_t)config->distance_count * config->head_count, sizeof(*kinds));
    r = read_into(loader, DISTANCES, config->distance_count, config->head_count, kinds, err);
    if (r < 0 || loader->bert == NULL)
        return r;
    r = bert_alloc(loader->bert, config->head_count * (2 * (size_t)config->token_count_max - 1),
                   sizeof(float), &loader->bert->distances, err);
    if (r == 0)
        spread(config, kinds, loader->bert->distances);
    return r;
}

/* cos and sin of token * base^(-2 i / head_size), i below half of head_size. */
static int make_turns(struct bert *bert, float base, float **ret_turns, struct err *err)
{
    const uint32_t size = bert->config.hidden / bert->config.head_count, half = size / 2;
    float *turns;
    int r;

    r = bert_alloc(bert, (size_t)bert->config.token_count_max * size, sizeof(float), &turns, err);
    if (r < 0)
        return r;
    *ret_turns = turns;
    for (uint32_t i = 0; i < half; i++) {
        const double step = pow((double)base, -2.0 * i / size);

        for (size_t t = 0; t < bert->config.token_count_max; t++) {
            turns[t * size + i] = (float)cos((double)t * step);
            turns[t * size + half + i] = (float)sin((double)t * step);
        }
    }
    return 0;
}

static int load_turns(struct loader *loader, struct err *err)
{
    const struct encoder_config *config = loader->config;
    int r = 0;

    for (size_t i = 0; r == 0 && loader->bert != NULL && i < COUNT_OF(config->turn_base); i++) {
        if (config->turn_base[i] > 0)
            r = make_turns(loader->bert, config->turn_base[i], &loader->bert->turns[i], err);
    }
    return r;
}

/* A matrix of `rows` by hidden and its bias, read as they are. */
static int read_step(struct loader *loader, const char *name, uint32_t rows, bool no_bias,
                     float **ret_matrix, float **ret_bias, struct err *err)
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
    if (r == 0 && !no_bias)
        r = read_into(loader, full, rows, 0, *ret_bias, err);
    return r;
}

static int load_head(struct loader *loader, struct err *err)
{
    const struct encoder_config *config = loader->config;
    struct bert_head unread = {0}, *head = loader->bert != NULL ? &loader->bert->head : &unread;
    const struct names *names = loader->names;
    const char *prefix = loader->prefix;
    int r = 0;

    if (config->head == ENCODER_HEAD_EMBED)
        return 0;
    if (!names->head_inside)
        loader->prefix = "";
    if (config->head == ENCODER_HEAD_CLASSIFY || names->head_norm != NULL)
        r = read_step(loader, names->head_dense, config->hidden, config->no_head_bias, &head->dense,
                      &head->dense_bias, err);
    if (r == 0 && names->head_norm != NULL)
        r = read_norm(loader, names->head_norm, &head->gain, &head->bias, err);
    loader->prefix = "";
    if (r == 0)
        r = read_step(loader,
                      config->head == ENCODER_HEAD_CLASSIFY ? names->head_labels : "classifier",
                      config->label_count, false, &head->labels, &head->labels_bias, err);
    loader->prefix = prefix;
    return r;
}

/* None, where the file was made of the model without a head; else the first that fits, so that what
 * is missing is named as most files have it. */
static void choose_prefix(struct loader *loader)
{
    char name[NAME_SIZE];

    (void)snprintf(name, sizeof(name), "%s.weight", loader->names->words);
    if (find(loader, name) != NULL)
        return;
    loader->prefix = loader->names->prefixes[1];
    if (loader->prefix == NULL || find(loader, name) == NULL)
        loader->prefix = loader->names->prefixes[0];
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
    choose_prefix(loader);
    r = load_words(loader, err);
    if (r == 0)
        r = load_positions(loader, err);
    if (r == 0)
        r = read_norm(loader, loader->names->norm,
                      loader->bert != NULL ? &loader->bert->gain : &gain,
                      loader->bert != NULL ? &loader->bert->bias : &bias, err);
    for (uint32_t i = 0; r == 0 && i < loader->config->layer_count; i++)
        r = load_layer(loader, i, err);
    if (r == 0)
        r = load_distances(loader, err);
    if (r == 0)
        r = load_turns(loader, err);
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

static const char *step_name(const struct names *names, enum bert_role role)
{
    switch (role) {
    case BERT_ROLE_Q:
    case BERT_ROLE_Q_BIAS:
        return names->qkv[0];
    case BERT_ROLE_K:
    case BERT_ROLE_K_BIAS:
        return names->qkv[1];
    case BERT_ROLE_V:
    case BERT_ROLE_V_BIAS:
        return names->qkv[2];
    case BERT_ROLE_OUT:
    case BERT_ROLE_OUT_BIAS:
        return names->out;
    case BERT_ROLE_OUT_NORM_GAIN:
    case BERT_ROLE_OUT_NORM_BIAS:
        return names->out_norm;
    case BERT_ROLE_UP:
    case BERT_ROLE_UP_BIAS:
        return names->up;
    case BERT_ROLE_DOWN:
    case BERT_ROLE_DOWN_BIAS:
        return names->down;
    case BERT_ROLE_DOWN_NORM_GAIN:
    case BERT_ROLE_DOWN_NORM_BIAS:
        return names->down_norm;
    case BERT_ROLE_DENSE:
    case BERT_ROLE_DENSE_BIAS:
        return names->head_dense;
    default:
        return names->head_labels;
    }
}

/* The weight or the bias of a step or a norm, under its new name or its old one. */
static const struct safetensors_tensor *find_part(const struct loader *loader, const char *name,
                                                  bool is_bias)
{
    static const char *const endings[] = {".weight", ".gamma", ".bias", ".beta"};
    const struct safetensors_tensor *tensor = NULL;
    char full[NAME_SIZE + 8];

    for (size_t i = is_bias ? 2 : 0; tensor == NULL && i < (is_bias ? 4u : 2u); i++) {
        (void)snprintf(full, sizeof(full), "%s%s", name, endings[i]);
        tensor = find(loader, full);
    }
    return tensor;
}

const struct safetensors_tensor *bert_find(const struct encoder_config *config,
                                           const struct safetensors *file, enum bert_role role,
                                           uint32_t layer)
{
    struct loader loader = {
        .config = config, .names = &all_names[config->family], .file = file, .prefix = ""};
    const bool is_bias = role == BERT_ROLE_BIAS ||
                         (role >= BERT_ROLE_Q && (role - BERT_ROLE_Q) % 2);
    char name[NAME_SIZE];

    choose_prefix(&loader);
    switch (role) {
    case BERT_ROLE_WORDS:
        return find_part(&loader, loader.names->words, false);
    case BERT_ROLE_POSITIONS:
        return find(&loader, "embeddings.position_embeddings.weight");
    case BERT_ROLE_TYPES:
        return find(&loader, "embeddings.token_type_embeddings.weight");
    case BERT_ROLE_GAIN:
    case BERT_ROLE_BIAS:
        return find_part(&loader, loader.names->norm, is_bias);
    default:
        break;
    }
    if (step_name(loader.names, role) == NULL)
        return NULL; /* a family that has q, k and v in one */
    if (role < BERT_ROLE_DENSE) {
        name_in_layer(&loader, layer, step_name(loader.names, role), name);
        return find_part(&loader, name, is_bias);
    }
    if (role >= BERT_ROLE_LABELS || !loader.names->head_inside)
        loader.prefix = "";
    if (role >= BERT_ROLE_LABELS && config->head == ENCODER_HEAD_TOKENS)
        return find_part(&loader, "classifier", is_bias);
    return find_part(&loader, step_name(loader.names, role), is_bias);
}

int bert_read_distances(const struct encoder_config *config, const struct safetensors *file,
                        float *to, struct err *err)
{
    struct loader loader = {
        .config = config, .names = &all_names[config->family], .file = file, .prefix = ""};
    const struct safetensors_tensor *tensor;
    OWNED(mem_free) float *kinds = NULL;
    int r;

    choose_prefix(&loader);
    tensor = find(&loader, DISTANCES);
    if (tensor == NULL)
        return err_set(err, ERR_MISMATCH, "tensor '%s' is missing", DISTANCES);
    kinds = xcalloc(tensor->element_count, sizeof(*kinds));
    r = safetensors_read_f32(tensor, 0, tensor->element_count, kinds, err);
    if (r == 0)
        spread(config, kinds, to);
    return r;
}
