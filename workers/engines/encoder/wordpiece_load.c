/* SPDX-License-Identifier: Apache-2.0 */

/*
 * From the files of a model directory to a tokenizer.
 *
 * tokenizer.json says everything and wins over vocab.txt; tokenizer_config.json has the last word
 * on case, accents and ideographs, as it has in the reference's BertTokenizerFast. Whatever the
 * encoder does not do (another model type, another normalizer) is refused here, so that no
 * text is ever cut up in a way that the model was not trained on.
 */

#include <stdlib.h>
#include <string.h>

#include "workers/engines/encoder/encoder_json.h"
#include "workers/engines/encoder/wordpiece_int.h"

static int expect_type(const json_t *json, const char *part, const char *type, struct err *err)
{
    const char *got = json_string_value(json_object_get(json_object_get(json, part), "type"));

    if (got == NULL || strcmp(got, type) != 0)
        return err_set(err, ERR_UNSUPPORTED, "tokenizer.json: %s is '%.40s', the encoder has '%s'",
                       part, got != NULL ? got : "(none)", type);
    return 0;
}

static int copy_special(char *to, const char *text, const char *what, struct err *err)
{
    if (text[0] == '\0' || strlen(text) >= WORDPIECE_SPECIAL_SIZE_MAX)
        return err_set(err, ERR_RANGE, "%s '%.40s' has %zu bytes, allowed are 1 to %u", what, text,
                       strlen(text), WORDPIECE_SPECIAL_SIZE_MAX - 1);
    mem_copy_text_at(to, WORDPIECE_SPECIAL_SIZE_MAX, text);
    return 0;
}

static int add_special(struct wordpiece_options *options, const char *text, uint32_t id,
                       struct err *err)
{
    struct wordpiece_special *special = &options->specials[options->special_count];
    int r;

    if (options->special_count == WORDPIECE_SPECIAL_COUNT_MAX)
        return err_set(err, ERR_RANGE, "more than %u added tokens", WORDPIECE_SPECIAL_COUNT_MAX);
    r = copy_special(special->text, text, "added token", err);
    if (r < 0)
        return r;
    special->size = (uint32_t)strlen(special->text);
    special->id = id;
    options->special_count++;
    return 0;
}

/* "<mask>", "[UNK]": letters of ASCII between brackets, so that it is found in a text as in its
 * normal form, but for its case. */
static bool is_marked(const char *text)
{
    const size_t size = strlen(text);

    for (size_t i = 0; i < size; i++) {
        const char lower = (char)(text[i] | 0x20);

        if (!(lower >= 'a' && lower <= 'z') && strchr("/<>[]", text[i]) == NULL)
            return false;
    }
    return size > 2 &&
           ((text[0] == '<' && text[size - 1] == '>') || (text[0] == '[' && text[size - 1] == ']'));
}

/* lstrip and rstrip eat white space around the token, which separates words and nothing else
 * here: both are right as they are. */
static int read_added_tokens(const json_t *json, struct wordpiece_options *options, struct err *err)
{
    const json_t *token;
    size_t i;

    json_array_foreach(json_object_get(json, "added_tokens"), i, token)
    {
        const char *text = NULL;
        bool single_word = false, normalized = false;
        uint32_t id = UINT32_MAX;
        int r;

        r = encoder_json_get_text(token, "content", &text, err);
        if (r == 0)
            r = encoder_json_get_u32(token, "id", 0, WORDPIECE_TOKEN_COUNT_MAX - 1, &id, err);
        if (r == 0)
            r = encoder_json_get_bool(token, "single_word", &single_word, err);
        if (r == 0)
            r = encoder_json_get_bool(token, "normalized", &normalized, err);
        if (r < 0)
            return err_wrap(err, "tokenizer.json: added_tokens[%zu]", i);
        if (text == NULL || id == UINT32_MAX)
            return err_set(err, ERR_MALFORMED,
                           "tokenizer.json: added_tokens[%zu] has no content "
                           "or no id",
                           i);
        if (single_word || (normalized && !is_marked(text)))
            return err_set(err, ERR_UNSUPPORTED,
                           "tokenizer.json: added token '%.40s' is single_word, or normalized and "
                           "not letters in brackets; the encoder has neither",
                           text);
        r = add_special(options, text, id, err);
        if (r == 0)
            options->specials[options->special_count - 1].any_case = normalized;
        if (r < 0)
            return err_wrap(err, "tokenizer.json");
    }
    return 0;
}

/* Lower case decides over accents too, unless the file decides for itself. */
static int read_normalizer(const json_t *json, const char *lower_key, const char *ideograph_key,
                           struct wordpiece_options *options, struct err *err)
{
    const json_t *strip = json_object_get(json, "strip_accents");
    int r;

    r = encoder_json_get_bool(json, lower_key, &options->lower_case, err);
    if (r == 0)
        r = encoder_json_get_bool(json, ideograph_key, &options->split_ideographs, err);
    if (r == 0 && strip != NULL) {
        options->strip_accents = options->lower_case;
        r = encoder_json_get_bool(json, "strip_accents", &options->strip_accents, err);
    } else if (r == 0 && json_object_get(json, lower_key) != NULL) {
        options->strip_accents = options->lower_case;
    }
    return r;
}

static int read_post_processor(const json_t *json, struct wordpiece_options *options,
                               struct err *err)
{
    const json_t *post = json_object_get(json, "post_processor");
    const char *type = json_string_value(json_object_get(post, "type"));
    const char *cls = NULL, *sep = NULL;
    int r;

    if (type != NULL && strcmp(type, "TemplateProcessing") == 0) {
        const json_t *single = json_object_get(post, "single");

        cls = json_string_value(
            json_object_get(json_object_get(json_array_get(single, 0), "SpecialToken"), "id"));
        sep = json_string_value(
            json_object_get(json_object_get(json_array_get(single, 2), "SpecialToken"), "id"));
        if (json_array_size(single) != 3 || cls == NULL || sep == NULL ||
            json_object_get(json_array_get(single, 1), "Sequence") == NULL)
            return err_set(err, ERR_UNSUPPORTED,
                           "tokenizer.json: post_processor.single is not one "
                           "special token, the text, one special token");
        if (json_array_size(json_object_get(post, "pair")) == 6)
            options->sep_count = 2;
    } else if (type != NULL &&
               (strcmp(type, "BertProcessing") == 0 || strcmp(type, "RobertaProcessing") == 0)) {
        options->sep_count = type[0] == 'R' ? 2 : 1;
        cls = json_string_value(json_array_get(json_object_get(post, "cls"), 0));
        sep = json_string_value(json_array_get(json_object_get(post, "sep"), 0));
        if (cls == NULL || sep == NULL)
            return err_set(err, ERR_MALFORMED, "tokenizer.json: post_processor has no cls or sep");
    } else {
        return err_set(err, ERR_UNSUPPORTED,
                       "tokenizer.json: post_processor is '%.40s', the "
                       "encoder has TemplateProcessing, BertProcessing and RobertaProcessing",
                       type != NULL ? type : "(none)");
    }
    r = copy_special(options->cls, cls, "tokenizer.json: cls", err);
    return r == 0 ? copy_special(options->sep, sep, "tokenizer.json: sep", err) : r;
}

static int read_model(const json_t *model, struct wordpiece_options *options, struct err *err)
{
    const char *unk = options->unk, *prefix = "##";
    int r;

    r = encoder_json_get_text(model, "unk_token", &unk, err);
    if (r == 0)
        r = encoder_json_get_text(model, "continuing_subword_prefix", &prefix, err);
    if (r == 0)
        r = encoder_json_get_u32(model, "max_input_chars_per_word", 1, WORDPIECE_WORD_CHARS_MAX,
                                 &options->word_chars_max, err);
    if (r == 0 && strcmp(prefix, "##") != 0)
        return err_set(err, ERR_UNSUPPORTED, "continuing_subword_prefix is '%.20s', not '##'",
                       prefix);
    return r == 0 ? copy_special(options->unk, unk, "unk_token", err) : r;
}

static int read_options(const json_t *json, struct wordpiece_options *options, struct err *err)
{
    const json_t *normalizer = json_object_get(json, "normalizer");
    bool clean = true;
    int r;

    r = expect_type(json, "model", "WordPiece", err);
    if (r == 0)
        r = expect_type(json, "normalizer", "BertNormalizer", err);
    if (r == 0)
        r = expect_type(json, "pre_tokenizer", "BertPreTokenizer", err);
    if (r < 0)
        return r;
    r = encoder_json_get_bool(normalizer, "clean_text", &clean, err);
    if (r == 0)
        r = read_normalizer(normalizer, "lowercase", "handle_chinese_chars", options, err);
    if (r == 0)
        r = read_model(json_object_get(json, "model"), options, err);
    if (r < 0)
        return err_wrap(err, "tokenizer.json");
    if (!clean)
        return err_set(err, ERR_UNSUPPORTED,
                       "tokenizer.json: clean_text is false, the encoder "
                       "always cleans");
    r = read_post_processor(json, options, err);
    return r == 0 ? read_added_tokens(json, options, err) : r;
}

static int read_vocab(const json_t *vocab, const struct wordpiece_options *options,
                      struct wordpiece **ret_pieces, struct err *err)
{
    OWNED(wordpiece_free) struct wordpiece *pieces = NULL;
    size_t texts_size = 0, key_size;
    const json_t *id;
    const char *key;
    int r = 0;

    if (!json_is_object(vocab) || json_object_size(vocab) > WORDPIECE_TOKEN_COUNT_MAX)
        return err_set(err, ERR_RANGE, "tokenizer.json: model.vocab has %zu tokens, limit %u",
                       json_object_size(vocab), WORDPIECE_TOKEN_COUNT_MAX);
    json_object_keylen_foreach((json_t *)vocab, key, key_size, id) texts_size += key_size;
    pieces = wordpiece_alloc(options, (uint32_t)json_object_size(vocab), texts_size);
    json_object_keylen_foreach((json_t *)vocab, key, key_size, id)
    {
        if (!json_is_integer(id) || json_integer_value(id) < 0 ||
            json_integer_value(id) >= WORDPIECE_TOKEN_COUNT_MAX)
            return err_set(err, ERR_RANGE, "tokenizer.json: id of token '%.40s' is none of 0 to %u",
                           key, WORDPIECE_TOKEN_COUNT_MAX - 1);
        r = wordpiece_add(pieces, key, key_size, (uint32_t)json_integer_value(id), err);
        if (r < 0)
            return err_wrap(err, "tokenizer.json");
    }
    r = wordpiece_finish(pieces, err);
    if (r < 0)
        return err_wrap(err, "tokenizer.json");
    *ret_pieces = TAKE(pieces);
    return 0;
}

/* A special token is a text, or an object with the text as its content. */
static const char *special_text(const json_t *config, const char *key, const char *otherwise)
{
    const json_t *value = json_object_get(config, key);

    if (json_is_object(value))
        value = json_object_get(value, "content");
    return json_is_string(value) ? json_string_value(value) : otherwise;
}

static int open_vocab_txt(const char *dir, const json_t *config, struct wordpiece_options *options,
                          struct wordpiece **ret_pieces, struct err *err)
{
    static const char *const keys[] = {"pad_token", "unk_token", "cls_token", "sep_token",
                                       "mask_token"};
    static const char *const defaults[] = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"};
    OWNED(wordpiece_free) struct wordpiece *plain = NULL;
    OWNED(mem_free) char *vocab = NULL;
    size_t vocab_size = 0;
    int r;

    r = encoder_json_read_bytes(dir, "vocab.txt", WORDPIECE_FILE_SIZE_MAX, &vocab, &vocab_size,
                                err);
    if (r < 0)
        return r;
    r = copy_special(options->unk, special_text(config, "unk_token", "[UNK]"), "unk_token", err);
    if (r == 0)
        r = copy_special(options->cls, special_text(config, "cls_token", "[CLS]"), "cls_token",
                         err);
    if (r == 0)
        r = copy_special(options->sep, special_text(config, "sep_token", "[SEP]"), "sep_token",
                         err);
    if (r == 0)
        r = wordpiece_new(options, vocab, vocab_size, &plain, err);
    for (size_t i = 0; r == 0 && i < COUNT_OF(keys); i++) {
        const char *text = special_text(config, keys[i], defaults[i]);
        uint32_t id;

        if (wordpiece_find(plain, text, &id))
            r = add_special(options, text, id, err);
    }
    if (r == 0)
        r = wordpiece_new(options, vocab, vocab_size, ret_pieces, err);
    return r < 0 ? err_wrap(err, "vocab.txt") : 0;
}

/* sentence_bert_config.json may lower the case of a text before the tokenizer sees it. */
static int read_sentence_config(const char *dir, struct wordpiece_options *options, struct err *err)
{
    OWNED(encoder_json_free) json_t *config = NULL;
    bool lower = false;
    int r;

    r = encoder_json_read(dir, "sentence_bert_config.json", WORDPIECE_FILE_SIZE_MAX, &config, err);
    if (r == ERR_NOT_FOUND)
        return 0;
    if (r == 0)
        r = encoder_json_get_bool(config, "do_lower_case", &lower, err);
    if (r < 0)
        return err_wrap(err, "sentence_bert_config.json");
    options->lower_case = options->lower_case || lower;
    return 0;
}

int wordpiece_open(const char *dir, struct wordpiece **ret_pieces, struct err *err)
{
    OWNED(encoder_json_free) json_t *tokenizer = NULL;
    OWNED(encoder_json_free) json_t *config = NULL;
    struct wordpiece_options options;
    bool has_json;
    int r;

    wordpiece_options_init(&options);
    r = encoder_json_read(dir, "tokenizer.json", WORDPIECE_FILE_SIZE_MAX, &tokenizer, err);
    has_json = r != ERR_NOT_FOUND;
    if (r == 0)
        r = read_options(tokenizer, &options, err);
    if (has_json && r < 0)
        return r;
    r = encoder_json_read(dir, "tokenizer_config.json", WORDPIECE_FILE_SIZE_MAX, &config, err);
    if (r == 0)
        r = read_normalizer(config, "do_lower_case", "tokenize_chinese_chars", &options, err);
    if (r < 0 && r != ERR_NOT_FOUND)
        return err_wrap(err, "tokenizer_config.json");
    r = read_sentence_config(dir, &options, err);
    if (r < 0)
        return r;
    if (!has_json)
        return open_vocab_txt(dir, config, &options, ret_pieces, err);
    return read_vocab(json_object_get(json_object_get(tokenizer, "model"), "vocab"), &options,
                      ret_pieces, err);
}
