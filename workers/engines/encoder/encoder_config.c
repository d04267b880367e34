/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/engines/encoder/encoder_config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/assert.h"
#include "workers/engines/encoder/encoder_config_int.h"
#include "workers/engines/encoder/encoder_json.h"

#define EPS_DEFAULT 1e-12

static const struct {
    const char *name;
    enum encoder_activation activation;
} activations[] = {
    {"gelu", ENCODER_GELU},
    {"gelu_new", ENCODER_GELU_TANH},
    {"gelu_pytorch_tanh", ENCODER_GELU_TANH},
    {"relu", ENCODER_RELU},
};

const char *encoder_pooling_name(enum encoder_pooling pooling)
{
    return pooling == ENCODER_POOL_CLS ? "cls" : "mean";
}

static const struct {
    const char *architecture, *model_type;
} families[] = {
#define ENCODER_FAMILY(name, architecture, model_type) {architecture, model_type},
#include "schema/encoder_families.def"
};

static const char *const heads[] = {
#define ENCODER_HEAD(name, architecture) architecture,
#include "schema/encoder_families.def"
};

const char *encoder_architecture_name(const struct encoder_config *config, char to[64])
{
    (void)snprintf(to, 64, "%s%s", families[config->family].architecture, heads[config->head]);
    return to;
}

const char *encoder_task_name(const struct encoder_config *config)
{
    switch (config->head) {
    case ENCODER_HEAD_EMBED:
        return "embed";
    case ENCODER_HEAD_CLASSIFY:
        return config->label_count == 1 ? "rerank" : "classify";
    case ENCODER_HEAD_TOKENS:
        return "classify_tokens";
    case ENCODER_HEAD_MASKED:
        break;
    }
    NEVER("head is out of range; encoder_config_read() sets it");
}

uint32_t encoder_config_width(const struct encoder_config *config)
{
    return config->head == ENCODER_HEAD_EMBED ? config->hidden : config->label_count;
}

static int find_architecture(const char *name, struct encoder_config *config, struct err *err)
{
    char have[256] = "";
    size_t size = 0;

    for (size_t i = 0; i < COUNT_OF(families); i++) {
        const size_t length = strlen(families[i].architecture);

        size += (size_t)snprintf(have + size, sizeof(have) - size, "%s%s", i > 0 ? ", " : "",
                                 families[i].architecture);
        for (size_t j = 0; j < COUNT_OF(heads); j++) {
            if (name != NULL && strncmp(name, families[i].architecture, length) == 0 &&
                strcmp(name + length, heads[j]) == 0) {
                config->family = (enum encoder_family)i;
                config->head = (enum encoder_head)j;
                return 0;
            }
        }
    }
    return err_set(err, ERR_UNSUPPORTED,
                   "architectures[0] is '%.60s', the encoder has Model, "
                   "ForSequenceClassification and ForTokenClassification of %s",
                   name != NULL ? name : "(none)", have);
}

static int check_architecture(const json_t *json, struct encoder_config *config, struct err *err)
{
    const char *name = json_string_value(json_array_get(json_object_get(json, "architectures"), 0));
    const char *type = json_string_value(json_object_get(json, "model_type"));
    const char *positions = "absolute";
    bool decoder = false;
    int r;

    r = find_architecture(name, config, err);
    if (r < 0)
        return r;
    if (type != NULL && strcmp(type, families[config->family].model_type) != 0)
        return err_set(err, ERR_UNSUPPORTED, "model_type is '%.60s', that of %s is '%s'", type,
                       name, families[config->family].model_type);
    r = encoder_json_get_text(json, "position_embedding_type", &positions, err);
    if (r == 0)
        r = encoder_json_get_bool(json, "is_decoder", &decoder, err);
    if (r < 0)
        return r;
    if (strcmp(positions, "absolute") != 0)
        return err_set(err, ERR_UNSUPPORTED,
                       "position_embedding_type is '%.40s', the encoder has "
                       "'absolute'",
                       positions);
    if (decoder)
        return err_set(err, ERR_UNSUPPORTED, "is_decoder is true");
    return 0;
}

/* Two labels are what the reference takes where config.json names none. */
static int read_label_count(const json_t *json, struct encoder_config *config, struct err *err)
{
    const json_t *names = json_object_get(json, "id2label");
    const char *problem = "";
    uint32_t count = 2;
    int r;

    if (config->head == ENCODER_HEAD_EMBED)
        return 0;
    r = encoder_json_get_u32(json, "num_labels", 1, ENCODER_LABEL_COUNT_MAX, &count, err);
    if (r == 0)
        r = encoder_json_get_text(json, "problem_type", &problem, err);
    if (r < 0)
        return r;
    if (json_is_object(names))
        count = (uint32_t)json_object_size(names);
    if (count == 0 || count > ENCODER_LABEL_COUNT_MAX)
        return err_set(err, ERR_RANGE, "id2label has %u labels, allowed are 1 to %u", count,
                       ENCODER_LABEL_COUNT_MAX);
    config->label_count = count;
    config->multi_label = strcmp(problem, "multi_label_classification") == 0;
    return 0;
}

/* What a family calls its shapes, and what they are where config.json is silent. */
struct shape_names {
    const char *layers, *heads, *hidden, *intermediate, *activation, *positions, *eps;
    struct encoder_config defaults;
};

#define USUAL_NAMES                                                                                \
    .layers = "num_hidden_layers", .heads = "num_attention_heads", .hidden = "hidden_size",        \
    .intermediate = "intermediate_size", .activation = "hidden_act",                               \
    .positions = "max_position_embeddings", .eps = "layer_norm_eps"

static const struct shape_names shapes[] = {
    [ENCODER_FAMILY_BERT] = {USUAL_NAMES, .defaults = {.vocab_count = 30522, .type_count = 2}},
    [ENCODER_FAMILY_ROBERTA] = {USUAL_NAMES, .defaults = {.vocab_count = 50265, .type_count = 2}},
    [ENCODER_FAMILY_XLM_ROBERTA] = {USUAL_NAMES,
                                    .defaults = {.vocab_count = 30522, .type_count = 2}},
    [ENCODER_FAMILY_DISTILBERT] = {.layers = "n_layers",
                                   .heads = "n_heads",
                                   .hidden = "dim",
                                   .intermediate = "hidden_dim",
                                   .activation = "activation",
                                   .positions = "max_position_embeddings",
                                   .defaults = {.layer_count = 6, .vocab_count = 30522}},
    [ENCODER_FAMILY_MPNET] = {USUAL_NAMES,
                              .defaults = {.vocab_count = 30527, .distance_count = 32}},
    [ENCODER_FAMILY_MODERNBERT] = {.layers = "num_hidden_layers",
                                   .heads = "num_attention_heads",
                                   .hidden = "hidden_size",
                                   .intermediate = "intermediate_size",
                                   .activation = "hidden_activation",
                                   .positions = "max_position_embeddings",
                                   .eps = "norm_eps",
                                   .defaults = {.layer_count = 22,
                                                .vocab_count = 50368,
                                                .intermediate = 1152,
                                                .position_count = 8192,
                                                .norm_eps = 1e-5f}},
    [ENCODER_FAMILY_NOMICBERT] = {USUAL_NAMES, .defaults = {.vocab_count = 30528,
                                                            .type_count = 2,
                                                            .position_count = 2048}},
};

/* As its authors wrote it, before transformers had the family. */
static const struct shape_names first_nomic = {
    .layers = "n_layer",
    .heads = "n_head",
    .hidden = "n_embd",
    .intermediate = "n_inner",
    .activation = "activation_function",
    .positions = "n_positions",
    .eps = "layer_norm_epsilon",
    .defaults = {.vocab_count = 30528, .type_count = 2, .position_count = 2048, .norm_eps = 1e-5f},
};

static const struct shape_names *names_of(const json_t *json, const struct encoder_config *config)
{
    return config->family == ENCODER_FAMILY_NOMICBERT && encoder_config_is_first_nomic(json)
               ? &first_nomic
               : &shapes[config->family];
}

/* RoBERTa's positions count from behind that of its padding, whose token stands nowhere itself. */
static int read_padding(const json_t *json, struct encoder_config *config, struct err *err)
{
    int r;

    if (config->family == ENCODER_FAMILY_ROBERTA || config->family == ENCODER_FAMILY_XLM_ROBERTA ||
        config->family == ENCODER_FAMILY_MPNET) {
        config->pad_id = 1;
        r = encoder_json_get_u32(json, "pad_token_id", 0, config->vocab_count - 1, &config->pad_id,
                                 err);
        if (r < 0)
            return r;
        config->position_first = config->pad_id + 1;
    }
    if (config->position_count < config->position_first + 2)
        return err_set(err, ERR_RANGE, "max_position_embeddings is %u, %u are the least",
                       config->position_count, config->position_first + 2);
    return 0;
}

static int read_eps(const json_t *json, const struct shape_names *names,
                    struct encoder_config *config, struct err *err)
{
    const json_t *eps;

    config->norm_eps = names->defaults.norm_eps > 0 ? names->defaults.norm_eps : (float)EPS_DEFAULT;
    if (names->eps == NULL)
        return 0;
    eps = json_object_get(json, names->eps);
    if (eps == NULL)
        return 0;
    if (!json_is_number(eps) || !(json_number_value(eps) >= 0) || json_number_value(eps) > 1)
        return err_set(err, ERR_RANGE, "%s is none of 0 to 1", names->eps);
    config->norm_eps = (float)json_number_value(eps);
    return 0;
}

static uint32_t or_else(uint32_t value, uint32_t otherwise)
{
    return value > 0 ? value : otherwise;
}

static int read_shapes(const json_t *json, struct encoder_config *config, struct err *err)
{
    const struct shape_names *names = names_of(json, config);
    const struct encoder_config *defaults = &names->defaults;
    const bool has_types = defaults->type_count > 0;
    const struct {
        const char *key;
        uint32_t max, otherwise;
        uint32_t *value;
    } sizes[] = {
        {names->layers, ENCODER_LAYER_COUNT_MAX, or_else(defaults->layer_count, 12),
         &config->layer_count},
        {names->heads, ENCODER_HEAD_COUNT_MAX, 12, &config->head_count},
        {names->hidden, ENCODER_HIDDEN_MAX, 768, &config->hidden},
        {names->intermediate, ENCODER_INTERMEDIATE_MAX, or_else(defaults->intermediate, 3072),
         &config->intermediate},
        {"vocab_size", ENCODER_VOCAB_MAX, defaults->vocab_count, &config->vocab_count},
        {names->positions, ENCODER_TOKEN_COUNT_MAX, or_else(defaults->position_count, 512),
         &config->position_count},
        {"type_vocab_size", 16, defaults->type_count, &config->type_count},
    };
    int r = 0;

    for (size_t i = 0; r == 0 && i < COUNT_OF(sizes) - !has_types; i++) {
        *sizes[i].value = sizes[i].otherwise;
        r = encoder_json_get_u32(json, sizes[i].key, 1, sizes[i].max, sizes[i].value, err);
    }
    if (r == 0 && config->hidden % config->head_count != 0)
        r = err_set(err, ERR_MISMATCH, "%s %u is no multiple of %s %u", names->hidden,
                    config->hidden, names->heads, config->head_count);
    config->distance_count = defaults->distance_count;
    if (r == 0 && config->distance_count > 0)
        r = encoder_json_get_u32(json, "relative_attention_num_buckets", 4,
                                 ENCODER_DISTANCE_COUNT_MAX, &config->distance_count, err);
    if (r == 0)
        r = read_padding(json, config, err);
    return r < 0 ? r : read_eps(json, names, config, err);
}

int encoder_config_read_activation(const json_t *json, const char *key,
                                   enum encoder_activation *ret_activation, struct err *err)
{
    const char *name = "gelu";
    int r;

    r = encoder_json_get_text(json, key, &name, err);
    if (r < 0)
        return r;
    for (size_t i = 0; i < COUNT_OF(activations); i++) {
        if (strcmp(name, activations[i].name) == 0) {
            *ret_activation = activations[i].activation;
            return 0;
        }
    }
    return err_set(err, ERR_UNSUPPORTED,
                   "%s is '%.40s', the encoder has gelu, gelu_new, "
                   "gelu_pytorch_tanh and relu",
                   key, name);
}

/* What a family has beside its shapes. */
static int read_family(const json_t *json, struct encoder_config *config, struct err *err)
{
    int r;

    if (config->family == ENCODER_FAMILY_NOMICBERT)
        return encoder_config_read_nomic(json, config, err);
    r = encoder_config_read_activation(json, shapes[config->family].activation, &config->activation,
                                       err);
    if (r == 0 && config->family == ENCODER_FAMILY_MODERNBERT)
        r = encoder_config_read_modern(json, config, err);
    return r;
}

static int read_length(const char *dir, struct encoder_config *config, struct err *err)
{
    static const struct {
        const char *file, *key;
    } places[] = {
        {"sentence_bert_config.json", "max_seq_length"},
        {"tokenizer_config.json", "model_max_length"},
    };

    config->token_count_max = config->position_count - config->position_first;
    for (size_t i = 0; i < COUNT_OF(places); i++) {
        OWNED(encoder_json_free) json_t *json = NULL;
        const json_t *value;
        int r = encoder_json_read(dir, places[i].file, ENCODER_FILE_SIZE_MAX, &json, err);

        if (r < 0 && r != ERR_NOT_FOUND)
            return r;
        value = json_object_get(json, places[i].key);
        if (!json_is_number(value))
            continue;
        if (json_number_value(value) < 2)
            return err_set(err, ERR_RANGE, "%s: '%s' is less than the 2 of [CLS] and [SEP]",
                           places[i].file, places[i].key);
        /* Tokenizers without a limit of their own write 1e30 here. */
        if (json_number_value(value) < config->token_count_max)
            config->token_count_max = (uint32_t)json_number_value(value);
        return 0;
    }
    return 0;
}

static int read_pooling(const char *dir, const char *folder, struct encoder_config *config,
                        struct err *err)
{
    static const char mean_key[] = "pooling_mode_mean_tokens", cls_key[] = "pooling_mode_cls_token";
    OWNED(mem_free) char *name = xasprintf("%s/config.json", folder);
    OWNED(encoder_json_free) json_t *json = NULL;
    bool mean = false, cls = false;
    const json_t *value;
    const char *key;
    int r;

    r = encoder_json_read(dir, name, ENCODER_FILE_SIZE_MAX, &json, err);
    if (r == 0)
        r = encoder_json_get_bool(json, mean_key, &mean, err);
    if (r == 0)
        r = encoder_json_get_bool(json, cls_key, &cls, err);
    if (r < 0)
        return err_wrap(err, "%s", name);
    json_object_foreach(json, key, value)
    {
        if (strncmp(key, "pooling_mode_", 13) == 0 && json_is_true(value) &&
            strcmp(key, mean_key) != 0 && strcmp(key, cls_key) != 0)
            return err_set(err, ERR_UNSUPPORTED, "%s: %.60s is true, the encoder has mean and cls",
                           name, key);
    }
    if (mean == cls)
        return err_set(err, ERR_UNSUPPORTED, "%s: %s pooling of mean and cls, the encoder does one",
                       name, mean ? "both" : "neither");
    config->pooling = cls ? ENCODER_POOL_CLS : ENCODER_POOL_MEAN;
    return 0;
}

static int read_module(const char *dir, const json_t *module, size_t index,
                       struct encoder_config *config, struct err *err)
{
    const char *type = json_string_value(json_object_get(module, "type"));
    const char *path = json_string_value(json_object_get(module, "path"));
    const char *dot = type != NULL ? strrchr(type, '.') : NULL;
    const char *name = dot != NULL ? dot + 1 : type;

    if (name == NULL || path == NULL)
        return err_set(err, ERR_MALFORMED, "modules.json: module %zu has no type or no path",
                       index);
    if (index == 0 && strcmp(name, "Transformer") == 0 && path[0] == '\0')
        return 0;
    if (index == 1 && strcmp(name, "Pooling") == 0 && strchr(path, '/') == NULL &&
        strcmp(path, "..") != 0)
        return read_pooling(dir, path, config, err);
    if (index == 2 && strcmp(name, "Normalize") == 0) {
        config->normalize = true;
        return 0;
    }
    return err_set(err, ERR_UNSUPPORTED,
                   "modules.json: module %zu is '%.60s' in '%.60s'; the "
                   "encoder has Transformer in '', then Pooling, then Normalize",
                   index, name, path);
}

/* Without modules.json: the mean of the token vectors, as sentence-transformers does it. */
static int read_modules(const char *dir, struct encoder_config *config, struct err *err)
{
    OWNED(encoder_json_free) json_t *modules = NULL;
    const json_t *module;
    size_t i;
    int r;

    config->pooling = ENCODER_POOL_MEAN;
    r = encoder_json_read(dir, "modules.json", ENCODER_FILE_SIZE_MAX, &modules, err);
    if (r == ERR_NOT_FOUND)
        return 0;
    if (r < 0)
        return r;
    if (json_array_size(modules) < 2)
        return err_set(err, ERR_UNSUPPORTED,
                       "modules.json: %zu modules, the encoder wants "
                       "Transformer and Pooling",
                       json_array_size(modules));
    json_array_foreach(modules, i, module)
    {
        r = read_module(dir, module, i, config, err);
        if (r < 0)
            return r;
    }
    return 0;
}

int encoder_config_read_texts(const char *dir, struct encoder_config *config, struct err *err)
{
    int r = read_length(dir, config, err);

    return r < 0 || config->head != ENCODER_HEAD_EMBED ? r : read_modules(dir, config, err);
}

/* What was trained to fill masks is often published as what makes vectors: with modules.json. */
static int leave_out_masks(const char *dir, struct encoder_config *config, struct err *err)
{
    OWNED(mem_free) char *path = xasprintf("%s/modules.json", dir);
    char name[64];

    if (config->head != ENCODER_HEAD_MASKED)
        return 0;
    if (access(path, R_OK) < 0)
        return err_set(
            err, ERR_UNSUPPORTED,
            "config.json: architectures[0] is '%s', which fills masks; the encoder makes "
            "vectors of it where modules.json says how, and there is none",
            encoder_architecture_name(config, name));
    config->head = ENCODER_HEAD_EMBED;
    return 0;
}

int encoder_config_read(const char *dir, struct encoder_config *ret_config, struct err *err)
{
    OWNED(encoder_json_free) json_t *json = NULL;
    struct encoder_config config = {.head_pooling = ENCODER_POOL_CLS};
    int r;

    r = encoder_json_read(dir, "config.json", ENCODER_FILE_SIZE_MAX, &json, err);
    if (r < 0)
        return r;
    r = check_architecture(json, &config, err);
    if (r == 0)
        r = read_shapes(json, &config, err);
    if (r == 0)
        r = read_family(json, &config, err);
    if (r == 0)
        r = read_label_count(json, &config, err);
    if (r < 0)
        return err_wrap(err, "config.json");
    r = leave_out_masks(dir, &config, err);
    if (r == 0)
        r = encoder_config_read_texts(dir, &config, err);
    if (r == 0)
        *ret_config = config;
    return r;
}

void encoder_labels_done(struct encoder_labels *labels)
{
    free(labels->names);
    *labels = (struct encoder_labels){0};
}

int encoder_labels_read(const char *dir, const struct encoder_config *config,
                        struct encoder_labels *ret_labels, struct err *err)
{
    OWNED(encoder_labels_done) struct encoder_labels labels = {.count = config->label_count};
    OWNED(encoder_json_free) json_t *json = NULL;
    const json_t *names;
    int r;

    r = encoder_json_read(dir, "config.json", ENCODER_FILE_SIZE_MAX, &json, err);
    if (r < 0)
        return r;
    names = json_object_get(json, "id2label");
    labels.names = xcalloc(labels.count + 1, sizeof(*labels.names));
    for (uint32_t i = 0; i < labels.count; i++) {
        char key[16];
        const char *name;

        (void)snprintf(key, sizeof(key), "%u", i);
        (void)snprintf(labels.names[i], sizeof(labels.names[i]), "LABEL_%u", i);
        if (!json_is_object(names))
            continue;
        name = json_string_value(json_object_get(names, key));
        if (name == NULL || strlen(name) >= ENCODER_LABEL_SIZE_MAX)
            return err_set(err, ERR_RANGE,
                           "config.json: id2label has no text of less than %u bytes for '%s'",
                           ENCODER_LABEL_SIZE_MAX, key);
        mem_copy_text(labels.names[i], name);
    }
    *ret_labels = labels;
    labels = (struct encoder_labels){0};
    return 0;
}

uint64_t encoder_config_weight_count_per_token(const struct encoder_config *config)
{
    const uint64_t hidden = config->hidden, products = config->gated ? 3 : 2;

    return config->layer_count * (4 * hidden * hidden + products * hidden * config->intermediate);
}

/* A layer's vectors: the biases of its products, and its norms'. */
static uint64_t vector_count(const struct encoder_config *config)
{
    const uint64_t hidden = config->hidden, products = config->gated ? 2 : 1;
    uint64_t count = 2 * hidden;

    count += config->no_norm_bias ? 0 : 2 * hidden;
    count += config->no_qkv_bias ? 0 : 4 * hidden;
    count += config->no_up_bias ? 0 : products * config->intermediate;
    count += config->no_down_bias ? 0 : hidden;
    return count;
}

uint64_t encoder_config_weight_count(const struct encoder_config *config)
{
    const uint64_t positions = encoder_config_has_positions(config) ? config->position_count : 0;
    const uint64_t rows = (uint64_t)config->vocab_count + positions + config->type_count;

    return encoder_config_weight_count_per_token(config) +
           (rows + (config->no_norm_bias ? 1 : 2)) * config->hidden +
           config->layer_count * vector_count(config);
}
