/* SPDX-License-Identifier: Apache-2.0 */

/*
 * From tokenizer.json to a tokenizer that is not WordPiece.
 *
 * Each part of the file is compared with what there is: normalizer, pre_tokenizer, model,
 * post_processor, added_tokens. What is not there is refused by name, so that no text is ever cut
 * up in a way that the model was not trained on.
 */

#include <string.h>

#include "workers/engines/encoder/encoder_json.h"
#include "workers/engines/encoder/tokenizer_int.h"

static const char *type_of(const json_t *json, const char *part)
{
    const char *type = json_string_value(json_object_get(json_object_get(json, part), "type"));

    return type != NULL ? type : "(none)";
}

static int refuse(const char *part, const char *got, const char *have, struct err *err)
{
    return err_set(err, ERR_UNSUPPORTED, "tokenizer.json: %s is '%.40s', the encoder has %s", part,
                   got, have);
}

/* WordPiece has its own reader, which also knows what to say of kinds that there are not. */
int tokenizer_is_loaded(const char *dir, bool *ret_answer, struct err *err)
{
    OWNED(encoder_json_free) json_t *json = NULL;
    int r = encoder_json_read(dir, "tokenizer.json", TOKENIZER_FILE_SIZE_MAX, &json, err);

    *ret_answer = r == 0 && (strcmp(type_of(json, "model"), "BPE") == 0 ||
                             strcmp(type_of(json, "model"), "Unigram") == 0);
    return r == ERR_NOT_FOUND ? 0 : r;
}

/* ---- added tokens ---- */

static int read_added(const json_t *token, size_t index, struct tokenizer *tokenizer,
                      struct err *err)
{
    struct tokenizer_added *added = &tokenizer->added[tokenizer->added_count];
    const char *text = "";
    bool single_word = false;
    int r;

    added->id = UINT32_MAX;
    r = encoder_json_get_text(token, "content", &text, err);
    if (r == 0)
        r = encoder_json_get_u32(token, "id", 0, VOCAB_TOKEN_COUNT_MAX - 1, &added->id, err);
    if (r == 0)
        r = encoder_json_get_bool(token, "single_word", &single_word, err);
    if (r == 0)
        r = encoder_json_get_bool(token, "lstrip", &added->takes_left, err);
    if (r == 0)
        r = encoder_json_get_bool(token, "rstrip", &added->takes_right, err);
    if (r < 0)
        return err_wrap(err, "tokenizer.json: added_tokens[%zu]", index);
    if (text[0] == '\0' || strlen(text) >= TOKENIZER_ADDED_SIZE_MAX || added->id == UINT32_MAX)
        return err_set(
            err, ERR_RANGE,
            "tokenizer.json: added_tokens[%zu] has no id, or not 1 to %u bytes of content", index,
            TOKENIZER_ADDED_SIZE_MAX - 1);
    if (single_word)
        return err_set(err, ERR_UNSUPPORTED,
                       "tokenizer.json: added token '%.40s' is single_word, the encoder has none",
                       text);
    mem_copy_text(added->text, text);
    added->size = (uint32_t)strlen(text);
    for (uint32_t i = 0; i < added->size; i++)
        added->char_count += ((uint8_t)text[i] & 0xc0u) != 0x80u;
    tokenizer->added_starts[(uint8_t)text[0]] = true;
    tokenizer->added_count++;
    if (added->id >= tokenizer->id_count)
        tokenizer->id_count = added->id + 1;
    return 0;
}

static int read_all_added(const json_t *json, struct tokenizer *tokenizer, struct err *err)
{
    const json_t *list = json_object_get(json, "added_tokens"), *token;
    size_t i;

    if (json_array_size(list) > TOKENIZER_ADDED_COUNT_MAX)
        return err_set(err, ERR_RANGE, "tokenizer.json: %zu added tokens, limit %u",
                       json_array_size(list), TOKENIZER_ADDED_COUNT_MAX);
    json_array_foreach(list, i, token)
    {
        int r = read_added(token, i, tokenizer, err);

        if (r < 0)
            return r;
    }
    return 0;
}

/* ---- what stands around a text ---- */

static int find_token(const struct tokenizer *tokenizer, const char *text, uint32_t *ret_id,
                      struct err *err)
{
    if (text != NULL && vocab_find(tokenizer->vocab, text, strlen(text), ret_id))
        return 0;
    for (uint32_t i = 0; text != NULL && i < tokenizer->added_count; i++) {
        if (strcmp(tokenizer->added[i].text, text) == 0) {
            *ret_id = tokenizer->added[i].id;
            return 0;
        }
    }
    return err_set(err, ERR_MISMATCH,
                   "tokenizer.json: post_processor names '%.40s', no token of it",
                   text != NULL ? text : "(none)");
}

/* "<s> a </s></s> b </s>" */
static int read_roberta(const json_t *post, struct tokenizer *tokenizer, struct err *err)
{
    struct tokenizer_frame *frame = &tokenizer->frame;
    int r;

    r = find_token(tokenizer, json_string_value(json_array_get(json_object_get(post, "cls"), 0)),
                   &frame->begin, err);
    if (r == 0)
        r = find_token(tokenizer,
                       json_string_value(json_array_get(json_object_get(post, "sep"), 0)),
                       &frame->end, err);
    frame->middle[0] = frame->middle[1] = frame->end;
    frame->middle_count = 2;
    return r;
}

/* The special token at place `index` of a template. */
static int read_place(const json_t *list, size_t index, struct tokenizer *tokenizer,
                      uint32_t *ret_id, struct err *err)
{
    const json_t *token = json_object_get(json_array_get(list, index), "SpecialToken");

    return find_token(tokenizer, json_string_value(json_object_get(token, "id")), ret_id, err);
}

static bool is_sequence(const json_t *list, size_t index)
{
    return json_object_get(json_array_get(list, index), "Sequence") != NULL;
}

/* [begin, a, end] and [begin, a, middle…, b, end] */
static int read_template(const json_t *post, struct tokenizer *tokenizer, struct err *err)
{
    const json_t *single = json_object_get(post, "single"), *pair = json_object_get(post, "pair");
    const size_t pair_size = json_array_size(pair);
    struct tokenizer_frame *frame = &tokenizer->frame;
    int r;

    if (json_array_size(single) != 3 || !is_sequence(single, 1) || pair_size < 5 ||
        pair_size > 4 + TOKENIZER_MIDDLE_MAX || !is_sequence(pair, 1) ||
        !is_sequence(pair, pair_size - 2))
        return err_set(err, ERR_UNSUPPORTED,
                       "tokenizer.json: post_processor is not one special token, the text, one "
                       "special token, with one or two more between two texts");
    r = read_place(single, 0, tokenizer, &frame->begin, err);
    if (r == 0)
        r = read_place(single, 2, tokenizer, &frame->end, err);
    frame->middle_count = (uint32_t)(pair_size - 4);
    for (uint32_t i = 0; r == 0 && i < frame->middle_count; i++)
        r = read_place(pair, 2 + i, tokenizer, &frame->middle[i], err);
    return r;
}

static int read_frame(const json_t *json, struct tokenizer *tokenizer, struct err *err)
{
    const char *type = type_of(json, "post_processor");
    const json_t *post = json_object_get(json, "post_processor");

    if (strcmp(type, "RobertaProcessing") == 0)
        return read_roberta(post, tokenizer, err);
    if (strcmp(type, "TemplateProcessing") == 0)
        return read_template(post, tokenizer, err);
    return refuse("post_processor", type, "RobertaProcessing and TemplateProcessing", err);
}

/* ---- byte-level BPE ---- */

static int fill_vocab(const json_t *vocab, struct tokenizer *tokenizer, struct err *err)
{
    size_t texts_size = 0, key_size;
    const json_t *id;
    const char *key;

    if (!json_is_object(vocab) || json_object_size(vocab) > VOCAB_TOKEN_COUNT_MAX)
        return err_set(err, ERR_RANGE, "model.vocab has %zu tokens, limit %u",
                       json_object_size(vocab), VOCAB_TOKEN_COUNT_MAX);
    json_object_keylen_foreach((json_t *)vocab, key, key_size, id) texts_size += key_size;
    tokenizer->vocab = vocab_new((uint32_t)json_object_size(vocab), texts_size);
    json_object_keylen_foreach((json_t *)vocab, key, key_size, id)
    {
        int r;

        if (!json_is_integer(id) || json_integer_value(id) < 0 ||
            json_integer_value(id) >= VOCAB_TOKEN_COUNT_MAX)
            return err_set(err, ERR_RANGE, "id of token '%.40s' is none of 0 to %u", key,
                           VOCAB_TOKEN_COUNT_MAX - 1);
        r = vocab_add(tokenizer->vocab, key, key_size, (uint32_t)json_integer_value(id), err);
        if (r < 0)
            return r;
    }
    tokenizer->id_count = vocab_id_count(tokenizer->vocab);
    return 0;
}

/* Members of the model that would change what it does. */
static int check_bpe(const json_t *model, struct err *err)
{
    static const char *const texts[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    bool fallback = false;
    int r = 0;

    for (size_t i = 0; r == 0 && i < COUNT_OF(texts); i++) {
        const char *value = "";

        r = encoder_json_get_text(model, texts[i], &value, err);
        if (r == 0 && value[0] != '\0')
            r = err_set(err, ERR_UNSUPPORTED, "model.%s is '%.20s', the encoder has none", texts[i],
                        value);
    }
    if (r == 0)
        r = encoder_json_get_bool(model, "byte_fallback", &fallback, err);
    if (r == 0 && (fallback || json_is_true(json_object_get(model, "ignore_merges")) ||
                   json_is_number(json_object_get(model, "dropout"))))
        r = err_set(err, ERR_UNSUPPORTED,
                    "model has byte_fallback, ignore_merges or dropout, the encoder has none");
    return r;
}

/* tokenizer_config.json has the last word, as it has in the reference's RobertaTokenizerFast. */
static int read_prefix_space(const char *dir, const json_t *pre, bool *ret_value, struct err *err)
{
    OWNED(encoder_json_free) json_t *config = NULL;
    int r;

    r = encoder_json_get_bool(pre, "add_prefix_space", ret_value, err);
    if (r < 0)
        return err_wrap(err, "tokenizer.json: pre_tokenizer");
    r = encoder_json_read(dir, "tokenizer_config.json", TOKENIZER_FILE_SIZE_MAX, &config, err);
    if (r == ERR_NOT_FOUND)
        return 0;
    if (r == 0)
        r = encoder_json_get_bool(config, "add_prefix_space", ret_value, err);
    return r < 0 ? err_wrap(err, "tokenizer_config.json") : 0;
}

static int load_bpe(const char *dir, const json_t *json, struct tokenizer *tokenizer,
                    struct err *err)
{
    const json_t *model = json_object_get(json, "model");
    const json_t *pre = json_object_get(json, "pre_tokenizer");
    const bool no_normalizer = !json_is_object(json_object_get(json, "normalizer"));
    struct bpe_options options = {
        .trim_spans = strcmp(type_of(json, "post_processor"), "RobertaProcessing") == 0};
    bool regex = true;
    const char *unk;
    int r;

    options.compose = strcmp(type_of(json, "normalizer"), "NFC") == 0;
    if (!no_normalizer && !options.compose)
        return refuse("normalizer", type_of(json, "normalizer"), "none or NFC for BPE", err);
    if (strcmp(type_of(json, "pre_tokenizer"), "ByteLevel") != 0)
        return refuse("pre_tokenizer", type_of(json, "pre_tokenizer"), "'ByteLevel' for BPE", err);
    r = check_bpe(model, err);
    if (r == 0)
        r = encoder_json_get_bool(pre, "use_regex", &regex, err);
    if (r == 0)
        r = encoder_json_get_bool(json_object_get(json, "post_processor"), "trim_offsets",
                                  &options.trim_spans, err);
    if (r == 0 && !regex)
        r = err_set(err, ERR_UNSUPPORTED,
                    "pre_tokenizer.use_regex is false, the encoder's is true");
    if (r == 0)
        r = fill_vocab(json_object_get(model, "vocab"), tokenizer, err);
    if (r < 0)
        return err_wrap(err, "tokenizer.json");
    r = read_prefix_space(dir, pre, &options.add_prefix_space, err);
    if (r < 0)
        return r;
    unk = json_string_value(json_object_get(model, "unk_token"));
    if (unk != NULL)
        (void)vocab_find(tokenizer->vocab, unk, strlen(unk), &tokenizer->unk_id);
    r = bpe_new(model, tokenizer->vocab, &options, &tokenizer->bpe, err);
    return r < 0 ? err_wrap(err, "tokenizer.json") : 0;
}

/* ---- Unigram ---- */

static int fill_pieces(const json_t *pieces, struct tokenizer *tokenizer, struct err *err)
{
    size_t texts_size = 0, i;
    const json_t *piece;

    if (json_array_size(pieces) == 0 || json_array_size(pieces) > VOCAB_TOKEN_COUNT_MAX)
        return err_set(err, ERR_RANGE, "model.vocab has %zu tokens, allowed are 1 to %u",
                       json_array_size(pieces), VOCAB_TOKEN_COUNT_MAX);
    json_array_foreach(pieces, i, piece) texts_size += json_string_length(json_array_get(piece, 0));
    tokenizer->vocab = vocab_new((uint32_t)json_array_size(pieces), texts_size);
    json_array_foreach(pieces, i, piece)
    {
        const json_t *text = json_array_get(piece, 0);
        int r;

        if (!json_is_string(text))
            return err_set(err, ERR_MALFORMED, "model.vocab[%zu] is no text with a score", i);
        r = vocab_add(tokenizer->vocab, json_string_value(text), json_string_length(text),
                      (uint32_t)i, err);
        if (r < 0)
            return r;
    }
    tokenizer->id_count = vocab_id_count(tokenizer->vocab);
    return 0;
}

static int read_step(const json_t *step, struct unigram_options *options, struct err *err)
{
    const char *type = json_string_value(json_object_get(step, "type"));
    const json_t *pattern = json_object_get(json_object_get(step, "pattern"), "Regex");
    const char *content = json_string_value(json_object_get(step, "content"));
    const char *map = json_string_value(json_object_get(step, "precompiled_charsmap"));
    int r;

    if (type != NULL && strcmp(type, "Precompiled") == 0 && map != NULL && options->map == NULL)
        return charsmap_decode(map, &options->map, err);
    if (type != NULL && strcmp(type, "Strip") == 0) {
        r = encoder_json_get_bool(step, "strip_left", &options->strip_left, err);
        return r == 0 ? encoder_json_get_bool(step, "strip_right", &options->strip_right, err) : r;
    }
    if (type != NULL && strcmp(type, "Replace") == 0 && json_is_string(pattern) &&
        strcmp(json_string_value(pattern), " {2,}") == 0 && content != NULL &&
        (strcmp(content, " ") == 0 || strcmp(content, "\u2581") == 0)) {
        options->join_spaces = true;
        return 0;
    }
    return refuse("normalizer", type != NULL ? type : "(none)",
                  "for Unigram Precompiled, Strip, and Replace of ' {2,}' by one space", err);
}

static int read_normalizer(const json_t *json, struct unigram_options *options, struct err *err)
{
    const json_t *normalizer = json_object_get(json, "normalizer"), *step;
    const json_t *steps = json_object_get(normalizer, "normalizers");
    size_t i;

    if (normalizer == NULL || json_is_null(normalizer))
        return 0;
    if (strcmp(type_of(json, "normalizer"), "Sequence") != 0)
        return read_step(normalizer, options, err);
    json_array_foreach(steps, i, step)
    {
        int r = read_step(step, options, err);

        if (r < 0)
            return r;
    }
    return 0;
}

/* Older files say add_prefix_space, newer ones prepend_scheme. */
static int read_metaspace(const json_t *pre, struct err *err)
{
    const char *type = json_string_value(json_object_get(pre, "type"));
    const char *mark = "", *scheme = "always";
    bool prefix = true, split = true;
    int r;

    if (type == NULL || strcmp(type, "Metaspace") != 0)
        return refuse("pre_tokenizer", type != NULL ? type : "(none)",
                      "for Unigram Metaspace, or WhitespaceSplit and Metaspace", err);
    r = encoder_json_get_text(pre, "replacement", &mark, err);
    if (r == 0)
        r = encoder_json_get_text(pre, "prepend_scheme", &scheme, err);
    if (r == 0)
        r = encoder_json_get_bool(pre, "add_prefix_space", &prefix, err);
    if (r == 0)
        r = encoder_json_get_bool(pre, "split", &split, err);
    if (r == 0 &&
        (strcmp(mark, "\u2581") != 0 || strcmp(scheme, "always") != 0 || !prefix || !split))
        r = err_set(
            err, ERR_UNSUPPORTED,
            "pre_tokenizer: the encoder's Metaspace has U+2581, before every text, and splits");
    return r < 0 ? err_wrap(err, "tokenizer.json") : 0;
}

static int read_words(const json_t *json, struct unigram_options *options, struct err *err)
{
    const json_t *pre = json_object_get(json, "pre_tokenizer");
    const json_t *steps = json_object_get(pre, "pretokenizers");
    const char *first = json_string_value(json_object_get(json_array_get(steps, 0), "type"));

    if (strcmp(type_of(json, "pre_tokenizer"), "Sequence") != 0)
        return read_metaspace(pre, err);
    if (json_array_size(steps) != 2 || first == NULL || strcmp(first, "WhitespaceSplit") != 0)
        return refuse("pre_tokenizer", "Sequence",
                      "for Unigram Metaspace, or WhitespaceSplit and Metaspace", err);
    options->split_white = true;
    return read_metaspace(json_array_get(steps, 1), err);
}

static int load_unigram(const json_t *json, struct tokenizer *tokenizer, struct err *err)
{
    const json_t *model = json_object_get(json, "model");
    struct unigram_options options = {.map = NULL};
    bool fallback = false;
    int r;

    r = encoder_json_get_bool(model, "byte_fallback", &fallback, err);
    if (r == 0 && fallback)
        r = err_set(err, ERR_UNSUPPORTED, "model has byte_fallback, the encoder has none");
    if (r == 0)
        r = fill_pieces(json_object_get(model, "vocab"), tokenizer, err);
    if (r < 0)
        return err_wrap(err, "tokenizer.json");
    r = read_words(json, &options, err);
    if (r == 0)
        r = read_normalizer(json, &options, err);
    if (r == 0)
        r = unigram_new(model, tokenizer->vocab, &options, &tokenizer->unigram, err);
    charsmap_free(&options.map);
    if (r == 0)
        tokenizer->unk_id = unigram_unk(tokenizer->unigram);
    return r;
}

int tokenizer_load(const char *dir, struct tokenizer *tokenizer, struct err *err)
{
    OWNED(encoder_json_free) json_t *json = NULL;
    int r;

    tokenizer->unk_id = UINT32_MAX;
    r = encoder_json_read(dir, "tokenizer.json", TOKENIZER_FILE_SIZE_MAX, &json, err);
    if (r == 0)
        r = strcmp(type_of(json, "model"), "BPE") == 0 ? load_bpe(dir, json, tokenizer, err)
                                                       : load_unigram(json, tokenizer, err);
    if (r == 0)
        r = read_all_added(json, tokenizer, err);
    return r < 0 ? r : read_frame(json, tokenizer, err);
}
