/* SPDX-License-Identifier: Apache-2.0 */

/*
 * ModernBERT's and NomicBERT's config.json, beside their shapes. Both have no table of positions: q
 * and k are turned by angles that grow with a token's place, on a base that the file names. What
 * would turn or compute otherwise than this is refused by its key.
 */

#include <string.h>

#include "workers/engines/encoder/encoder_config_int.h"
#include "workers/engines/encoder/encoder_json.h"

#define BASE_MAX 1e12

struct flag {
    const char *key;
    bool otherwise;
    bool *ret_lacks; /* whether the model has none of it; NULL: only false is served */
};

static int read_base(const json_t *json, const char *key, float otherwise, float *ret_base,
                     struct err *err)
{
    const json_t *value = json_object_get(json, key);

    *ret_base = otherwise;
    if (value == NULL || json_is_null(value))
        return 0;
    if (!json_is_number(value) || !(json_number_value(value) >= 1) ||
        json_number_value(value) > BASE_MAX)
        return err_set(err, ERR_RANGE, "%s is none of 1 to %.0e", key, BASE_MAX);
    *ret_base = (float)json_number_value(value);
    return 0;
}

/* Newer files have an object a kind of layer. `dynamic` changes nothing within the positions that
 * the model was trained on, and there are no more than those. */
static int read_rope(const json_t *rope, const char *where, bool may_grow, float *base,
                     struct err *err)
{
    const char *type = "default";
    int r;

    if (rope == NULL || json_is_null(rope))
        return 0;
    r = encoder_json_get_text(rope, "rope_type", &type, err);
    if (r == 0 && strcmp(type, "default") != 0 && (!may_grow || strcmp(type, "dynamic") != 0))
        r = err_set(err, ERR_UNSUPPORTED, "rope_type is '%.40s', the encoder has default%s", type,
                    may_grow ? " and dynamic" : "");
    if (r == 0)
        r = read_base(rope, "rope_theta", *base, base, err);
    return r < 0 ? err_wrap(err, "%s", where) : 0;
}

static int read_flags(const json_t *json, const struct flag *flags, size_t count, struct err *err)
{
    int r = 0;

    for (size_t i = 0; r == 0 && i < count; i++) {
        bool value = flags[i].otherwise;

        r = encoder_json_get_bool(json, flags[i].key, &value, err);
        if (r == 0 && flags[i].ret_lacks != NULL)
            *flags[i].ret_lacks = !value;
        if (r == 0 && flags[i].ret_lacks == NULL && value)
            r = err_set(err, ERR_UNSUPPORTED, "%s is true, the encoder has false", flags[i].key);
    }
    return r;
}

static int refuse_set(const json_t *json, const char *key, struct err *err)
{
    const json_t *value = json_object_get(json, key);

    if (value == NULL || json_is_null(value))
        return 0;
    return err_set(err, ERR_UNSUPPORTED, "%s is set, the encoder has none", key);
}

static int check_turned(const struct encoder_config *config, struct err *err)
{
    const uint32_t size = config->hidden / config->head_count;

    if (size % 2 == 0)
        return 0;
    return err_set(err, ERR_UNSUPPORTED, "a head of %u numbers cannot be turned by halves", size);
}

/* ---- ModernBERT ---- */

static int read_layer_types(const json_t *json, struct encoder_config *config, struct err *err)
{
    const json_t *types = json_object_get(json, "layer_types"), *type;
    uint32_t every = 3;
    size_t i;
    int r;

    r = encoder_json_get_u32(json, "global_attn_every_n_layers", 1, ENCODER_LAYER_COUNT_MAX, &every,
                             err);
    if (r < 0)
        return r;
    for (uint32_t layer = 0; layer < config->layer_count; layer++)
        config->layer_is_local[layer] = layer % every != 0;
    if (types == NULL || json_is_null(types))
        return 0;
    if (json_array_size(types) != config->layer_count)
        return err_set(err, ERR_MISMATCH, "layer_types has %zu entries, num_hidden_layers is %u",
                       json_array_size(types), config->layer_count);
    json_array_foreach(types, i, type)
    {
        const char *name = json_string_value(type) != NULL ? json_string_value(type) : "(none)";

        config->layer_is_local[i] = strcmp(name, "sliding_attention") == 0;
        if (!config->layer_is_local[i] && strcmp(name, "full_attention") != 0)
            return err_set(err, ERR_UNSUPPORTED,
                           "layer_types[%zu] is '%.40s', the encoder has full_attention and "
                           "sliding_attention",
                           i, name);
    }
    return 0;
}

static int read_head_pooling(const json_t *json, struct encoder_config *config, struct err *err)
{
    const char *name = "cls";
    int r;

    r = encoder_json_get_text(json, "classifier_pooling", &name, err);
    if (r < 0)
        return r;
    if (strcmp(name, "cls") != 0 && strcmp(name, "mean") != 0)
        return err_set(err, ERR_UNSUPPORTED,
                       "classifier_pooling is '%.40s', the encoder has cls and mean", name);
    config->head_pooling = strcmp(name, "cls") == 0 ? ENCODER_POOL_CLS : ENCODER_POOL_MEAN;
    return encoder_config_read_activation(json, "classifier_activation", &config->head_activation,
                                          err);
}

static int read_modern_turns(const json_t *json, struct encoder_config *config, struct err *err)
{
    const json_t *rope = json_object_get(json, "rope_parameters");
    float *bases = config->turn_base;
    int r;

    r = read_base(json, "global_rope_theta", 160000, &bases[0], err);
    if (r == 0)
        r = read_base(json, "local_rope_theta",
                      json_is_null(json_object_get(json, "local_rope_theta")) ? bases[0] : 10000,
                      &bases[1], err);
    if (r == 0)
        r = read_rope(json_object_get(rope, "full_attention"), "rope_parameters.full_attention",
                      false, &bases[0], err);
    if (r == 0)
        r = read_rope(json_object_get(rope, "sliding_attention"),
                      "rope_parameters.sliding_attention", false, &bases[1], err);
    return r < 0 ? r : refuse_set(json, "rope_scaling", err);
}

int encoder_config_read_modern(const json_t *json, struct encoder_config *config, struct err *err)
{
    bool no_mlp_bias = true;
    uint32_t local = 128;
    const struct flag flags[] = {
        {"attention_bias", false, &config->no_qkv_bias},
        {"mlp_bias", false, &no_mlp_bias},
        {"norm_bias", false, &config->no_norm_bias},
        {"classifier_bias", false, &config->no_head_bias},
    };
    int r;

    config->norm_first = config->gated = true;
    r = read_flags(json, flags, COUNT_OF(flags), err);
    config->no_up_bias = config->no_down_bias = no_mlp_bias;
    if (r == 0)
        r = encoder_json_get_u32(json, "local_attention", 2, 2 * ENCODER_TOKEN_COUNT_MAX, &local,
                                 err);
    config->window = local / 2;
    if (r == 0)
        r = read_modern_turns(json, config, err);
    if (r == 0)
        r = read_layer_types(json, config, err);
    if (r == 0)
        r = read_head_pooling(json, config, err);
    return r < 0 ? r : check_turned(config, err);
}

/* ---- NomicBERT ---- */

bool encoder_config_is_first_nomic(const json_t *json)
{
    return json_object_get(json, "n_embd") != NULL && json_object_get(json, "hidden_size") == NULL;
}

/* As transformers has it: without biases, silu by default. */
static int read_later_nomic(const json_t *json, struct encoder_config *config, struct err *err)
{
    const char *name = "silu";
    int r;

    config->no_qkv_bias = config->no_up_bias = config->no_down_bias = true;
    config->turn_base[0] = 1000;
    r = encoder_json_get_text(json, "hidden_act", &name, err);
    if (r == 0 && strcmp(name, "silu") == 0)
        config->activation = ENCODER_SILU;
    else if (r == 0)
        r = encoder_config_read_activation(json, "hidden_act", &config->activation, err);
    if (r == 0)
        r = read_rope(json_object_get(json, "rope_parameters"), "rope_parameters", true,
                      &config->turn_base[0], err);
    return r;
}

static int read_first_activation(const json_t *json, struct encoder_config *config, struct err *err)
{
    const char *name = "(none)";
    int r;

    r = encoder_json_get_text(json, "activation_function", &name, err);
    if (r < 0)
        return r;
    config->activation = strcmp(name, "swiglu") == 0 ? ENCODER_SILU : ENCODER_GELU;
    if (strcmp(name, "swiglu") == 0 || strcmp(name, "geglu") == 0)
        return 0;
    return err_set(err, ERR_UNSUPPORTED,
                   "activation_function is '%.40s', the encoder has swiglu and geglu for NomicBert",
                   name);
}

/* Beyond the positions that it was trained on, the first form turns otherwise, if it is told to. */
static int read_first_positions(const json_t *json, struct encoder_config *config, struct err *err)
{
    const json_t *fraction = json_object_get(json, "rotary_emb_fraction");
    const json_t *factor = json_object_get(json, "rotary_scaling_factor");
    uint32_t trained = 2048;
    int r;

    if (!json_is_number(fraction) || json_number_value(fraction) < 1 ||
        json_number_value(fraction) > 1)
        return err_set(err, ERR_UNSUPPORTED, "rotary_emb_fraction is not 1");
    r = read_base(json, "rotary_emb_base", 10000, &config->turn_base[0], err);
    if (r == 0)
        r = encoder_json_get_u32(json, "max_trained_positions", 2, ENCODER_TOKEN_COUNT_MAX,
                                 &trained, err);
    if (r == 0 && json_is_number(factor) && config->position_count > trained)
        config->position_count = trained;
    return r < 0 ? r : refuse_set(json, "rotary_emb_scale_base", err);
}

static int read_experts(const json_t *json, struct err *err)
{
    const json_t *every = json_object_get(json, "moe_every_n_layers");

    if (!json_is_integer(every) || json_integer_value(every) <= 0)
        return 0;
    return err_set(err, ERR_UNSUPPORTED,
                   "moe_every_n_layers is %lld, the encoder has no mixture of experts",
                   (long long)json_integer_value(every));
}

static int read_first_nomic(const json_t *json, struct encoder_config *config, struct err *err)
{
    const struct flag flags[] = {
        {"qkv_proj_bias", true, &config->no_qkv_bias},
        {"mlp_fc1_bias", true, &config->no_up_bias},
        {"mlp_fc2_bias", true, &config->no_down_bias},
        {"prenorm", false, NULL},
        {"parallel_block", false, NULL},
        {"causal", false, NULL},
        {"use_rms_norm", false, NULL},
        {"rotary_emb_interleaved", false, NULL},
    };
    int r;

    r = read_flags(json, flags, COUNT_OF(flags), err);
    if (r == 0)
        r = read_experts(json, err);
    if (r == 0)
        r = read_first_activation(json, config, err);
    return r < 0 ? r : read_first_positions(json, config, err);
}

int encoder_config_read_nomic(const json_t *json, struct encoder_config *config, struct err *err)
{
    int r;

    config->gated = true;
    r = encoder_config_is_first_nomic(json) ? read_first_nomic(json, config, err)
                                            : read_later_nomic(json, config, err);
    return r < 0 ? r : check_turned(config, err);
}
