/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: tokenizers that are not WordPiece cut texts as the reference does, id for id and character
 * for character, and what is not ours is refused by name.
 * Method: the 200 texts of make_reference.py, whose tokens make_kinds.py took from the reference;
 * copies of tokenizer.json with one thing changed.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "workers/engines/encoder/encoder_json.h"
#include "workers/engines/encoder/tokenizer.h"

#define DATA "tests/data/encoder"
#define ROBERTA DATA "/kinds/roberta-embed"
#define MODERN DATA "/kinds/modernbert-embed"
#define XLM DATA "/kinds/xlm-embed"

/* Where a token that is all space begins and ends is nobody's business, but it is one place. */
static bool same_span(struct token_span got, uint32_t first, uint32_t last)
{
    if (first == last)
        return got.first == got.last;
    return got.first == first && got.last == last;
}

static void check_text(const struct tokenizer *tokenizer, const json_t *text, size_t index,
                       const uint16_t *want)
{
    OWNED(token_list_done) struct token_list tokens = {0};

    token_list_begin(&tokens, UINT32_MAX, true);
    tokenizer_cut(tokenizer, json_string_value(text), json_string_length(text), &tokens);
    for (uint32_t i = 0; i < tokens.count && i < want[0]; i++) {
        const uint16_t *one = want + 1 + 3 * (size_t)i;

        if (tokens.ids[i] != one[0] || !same_span(tokens.spans[i], one[1], one[2]))
            fail_msg("text %zu '%.60s', token %u: %u at %u to %u, want %u at %u to %u", index,
                     json_string_value(text), i, tokens.ids[i], tokens.spans[i].first,
                     tokens.spans[i].last, one[0], one[1], one[2]);
    }
    if (tokens.count != want[0])
        fail_msg("text %zu: %u tokens, want %u", index, tokens.count, want[0]);
}

static void check_reference(const char *dir, const char *name)
{
    OWNED(encoder_json_free) json_t *texts = NULL;
    OWNED(tokenizer_free) struct tokenizer *tokenizer = NULL;
    OWNED(mem_free) char *bytes = NULL;
    struct err err = {0};
    const uint16_t *want;
    const json_t *text;
    size_t size, i;

    assert_int_equal(encoder_json_read(DATA "/minilm", "texts.json", 1u << 20, &texts, &err), 0);
    assert_int_equal(encoder_json_read_bytes(DATA "/kinds", name, 1u << 20, &bytes, &size, &err),
                     0);
    if (tokenizer_open(dir, &tokenizer, &err) < 0)
        fail_msg("%s", err.text);
    want = (const uint16_t *)(const void *)bytes;
    json_array_foreach(texts, i, text)
    {
        check_text(tokenizer, text, i, want);
        want += 1 + 3 * (size_t)want[0];
    }
    assert_ptr_equal(want, bytes + size);
}

static void test_bpe_equals_the_reference(void **state)
{
    (void)state;
    check_reference(ROBERTA, "roberta.tokens");
}

/* Behind NFC, with runs of spaces as tokens, and spans that keep their spaces. */
static void test_composed_bpe_equals_the_reference(void **state)
{
    (void)state;
    check_reference(MODERN, "modernbert.tokens");
}

static void test_unigram_equals_the_reference(void **state)
{
    (void)state;
    check_reference(XLM, "xlm.tokens");
}

static void write_file(const char *dir, const char *name, const json_t *json)
{
    OWNED(mem_free) char *path = xasprintf("%s/%s", dir, name);

    assert_int_equal(json_dump_file(json, path, 0), 0);
}

static void remove_dir(const char *dir)
{
    OWNED(mem_free) char *tokenizer = xasprintf("%s/tokenizer.json", dir);
    OWNED(mem_free) char *config = xasprintf("%s/tokenizer_config.json", dir);

    (void)unlink(tokenizer);
    (void)unlink(config);
    assert_int_equal(rmdir(dir), 0);
}

static json_t *read_tokenizer(const char *dir)
{
    json_t *json = NULL;
    struct err err;

    assert_int_equal(encoder_json_read(dir, "tokenizer.json", 1u << 20, &json, &err), 0);
    return json;
}

/* tokenizer_config.json has the last word. */
static void test_prefix_space(void **state)
{
    OWNED(encoder_json_free) json_t *json = read_tokenizer(ROBERTA);
    OWNED(encoder_json_free) json_t *config = json_pack("{s:b}", "add_prefix_space", 1);
    char dir[] = "/tmp/tokenizer-XXXXXX";

    (void)state;
    assert_non_null(mkdtemp(dir));
    write_file(dir, "tokenizer.json", json);
    write_file(dir, "tokenizer_config.json", config);
    check_reference(dir, "roberta-prefix.tokens");
    remove_dir(dir);
}

/* Other files of the same model: white space split off before anything else, or ends stripped. */
static void test_forms_of_unigram(void **state)
{
    static const struct {
        const char *part, *json, *tokens;
    } rows[] = {
        {"pre_tokenizer",
         "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"WhitespaceSplit\"},{\"type\":"
         "\"Metaspace\",\"replacement\":\"\\u2581\",\"add_prefix_space\":true}]}",
         "xlm-split.tokens"},
        {"normalizer", NULL, "xlm-strip.tokens"},
    };
    const char *strip = "[{\"type\":\"Strip\",\"strip_left\":false,\"strip_right\":true},{\"type\":"
                        "\"Replace\",\"pattern\":{\"Regex\":\" {2,}\"},\"content\":\"\\u2581\"}]";

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        OWNED(encoder_json_free) json_t *json = read_tokenizer(XLM);
        OWNED(encoder_json_free) json_t *more = json_loads(strip, 0, NULL);
        json_t *normalizer = json_object_get(json, "normalizer");
        char dir[] = "/tmp/tokenizer-XXXXXX";

        assert_non_null(mkdtemp(dir));
        if (rows[i].json != NULL) {
            (void)json_object_set_new(json, rows[i].part, json_loads(rows[i].json, 0, NULL));
        } else {
            json_t *steps = json_object_get(normalizer, "normalizers");

            assert_int_equal(json_array_remove(steps, 1), 0);
            assert_int_equal(json_array_extend(steps, more), 0);
        }
        write_file(dir, "tokenizer.json", json);
        check_reference(dir, rows[i].tokens);
        remove_dir(dir);
    }
}

/* A list that is full stops the cutting, and has what a longer one begins with. */
static void check_full_list(const char *dir)
{
    static const char text[] = "the quick <mask> brown fox, it's 12 dogs";
    OWNED(tokenizer_free) struct tokenizer *tokenizer = NULL;
    OWNED(token_list_done) struct token_list all = {0}, some = {0};
    struct err err;

    assert_int_equal(tokenizer_open(dir, &tokenizer, &err), 0);
    token_list_begin(&all, UINT32_MAX, false);
    tokenizer_cut(tokenizer, text, strlen(text), &all);
    assert_false(all.truncated);
    for (uint32_t max = 0; max <= all.count; max++) {
        token_list_begin(&some, max, false);
        tokenizer_cut(tokenizer, text, strlen(text), &some);
        assert_int_equal(some.count, max);
        assert_int_equal(some.truncated, max < all.count);
        if (max > 0)
            assert_memory_equal(some.ids, all.ids, max * sizeof(*all.ids));
    }
}

static void test_full_list_stops(void **state)
{
    (void)state;
    check_full_list(ROBERTA);
    check_full_list(XLM);
}

/* A word of a hundred thousand letters costs what its length does, not its square. */
static void check_long_word(const char *dir)
{
    enum { SIZE = 100000 };
    OWNED(tokenizer_free) struct tokenizer *tokenizer = NULL;
    OWNED(token_list_done) struct token_list tokens = {0};
    OWNED(mem_free) char *text = xmalloc(SIZE);
    struct err err;

    for (int i = 0; i < SIZE; i++)
        text[i] = "the"[i % 3];
    assert_int_equal(tokenizer_open(dir, &tokenizer, &err), 0);
    token_list_begin(&tokens, UINT32_MAX, true);
    tokenizer_cut(tokenizer, text, SIZE, &tokens);
    assert_true(tokens.count > SIZE / 8 && tokens.count < SIZE);
    assert_int_equal(tokens.spans[tokens.count - 1].last, SIZE);
}

static void test_long_word(void **state)
{
    (void)state;
    check_long_word(ROBERTA);
    check_long_word(XLM);
}

static void test_refusals(void **state)
{
    static const struct {
        const char *part, *json;
        int code;
        const char *text;
    } rows[] = {
        {"model", "{\"type\":\"Unigram\",\"vocab\":[]}", ERR_RANGE, "model.vocab has 0 tokens"},
        {"model", "{\"type\":\"Unigram\",\"vocab\":[7]}", ERR_MALFORMED,
         "model.vocab[0] is no text with a score"},
        {"model", "{\"type\":\"Unigram\",\"byte_fallback\":true}", ERR_UNSUPPORTED,
         "byte_fallback"},
        {"model", "{\"type\":\"Unigram\",\"vocab\":[[\"a\",0]]}", ERR_UNSUPPORTED,
         "pre_tokenizer is 'ByteLevel', the encoder has for Unigram Metaspace"},
        {"pre_tokenizer", "{\"type\":\"Whitespace\"}", ERR_UNSUPPORTED,
         "pre_tokenizer is 'Whitespace', the encoder has 'ByteLevel' for BPE"},
        {"pre_tokenizer", "{\"type\":\"ByteLevel\",\"use_regex\":false}", ERR_UNSUPPORTED,
         "use_regex is false"},
        {"normalizer", "{\"type\":\"NFD\"}", ERR_UNSUPPORTED,
         "normalizer is 'NFD', the encoder has none or NFC for BPE"},
        {"post_processor", "{\"type\":\"BertProcessing\"}", ERR_UNSUPPORTED,
         "post_processor is 'BertProcessing'"},
        {"post_processor", "{\"type\":\"RobertaProcessing\",\"cls\":[\"<x>\",0]}", ERR_MISMATCH,
         "names '<x>'"},
        {"post_processor", "{\"type\":\"TemplateProcessing\",\"single\":[]}", ERR_UNSUPPORTED,
         "post_processor is not one special token"},
        {"added_tokens", "[{\"id\":1,\"content\":\"a\",\"single_word\":true}]", ERR_UNSUPPORTED,
         "'a' is single_word"},
        {"added_tokens", "[{\"id\":1}]", ERR_RANGE, "added_tokens[0] has no id"},
        {"model", "{\"type\":\"BPE\",\"vocab\":{},\"merges\":[]}", ERR_MISMATCH,
         "no token for the byte 0x00"},
        {"model", "{\"type\":\"BPE\",\"byte_fallback\":true}", ERR_UNSUPPORTED, "byte_fallback"},
        {"model", "{\"type\":\"BPE\",\"end_of_word_suffix\":\"@\"}", ERR_UNSUPPORTED,
         "end_of_word_suffix is '@'"},
        {"model", "{\"type\":\"BPE\",\"vocab\":{\"a\":-1}}", ERR_RANGE, "id of token 'a'"},
        {"model", "{\"type\":\"BPE\",\"vocab\":{\"a\":1,\"b\":1}}", ERR_MISMATCH,
         "id 1 is that of two tokens"},
        {"model", "{\"type\":\"WordLevel\"}", ERR_UNSUPPORTED, "model is 'WordLevel'"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        OWNED(encoder_json_free) json_t *json = read_tokenizer(ROBERTA);
        OWNED(tokenizer_free) struct tokenizer *tokenizer = NULL;
        char dir[] = "/tmp/tokenizer-XXXXXX";
        struct err err = {0};
        int r;

        assert_non_null(mkdtemp(dir));
        (void)json_object_set_new(json, rows[i].part, json_loads(rows[i].json, 0, NULL));
        write_file(dir, "tokenizer.json", json);
        r = tokenizer_open(dir, &tokenizer, &err);
        remove_dir(dir);
        if (r != rows[i].code || strstr(err.text, rows[i].text) == NULL)
            fail_msg("row %zu: %s (%s)", i, err_name(r), err.text);
    }
}

static void test_unigrams_that_are_refused(void **state)
{
    static const struct {
        const char *part, *json;
        int code;
        const char *text;
    } rows[] = {
        {"normalizer", "{\"type\":\"NFKC\"}", ERR_UNSUPPORTED, "normalizer is 'NFKC'"},
        {"normalizer", "{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"?\"}", ERR_MALFORMED,
         "precompiled_charsmap is not base64"},
        {"normalizer", "{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"AAAA\"}", ERR_RANGE,
         "precompiled_charsmap has 3 bytes"},
        {"normalizer", "{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"//////////8=\"}",
         ERR_MALFORMED, "precompiled_charsmap says 4294967295 bytes of trie"},
        {"normalizer", "{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"a\"},\"content\":\"b\"}",
         ERR_UNSUPPORTED, "normalizer is 'Replace'"},
        {"pre_tokenizer", "{\"type\":\"Metaspace\",\"replacement\":\"_\"}", ERR_UNSUPPORTED,
         "Metaspace has U+2581"},
        {"pre_tokenizer",
         "{\"type\":\"Metaspace\",\"replacement\":\"\\u2581\",\"prepend_scheme\":\"first\"}",
         ERR_UNSUPPORTED, "Metaspace has U+2581"},
        {"pre_tokenizer", "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Digits\"},{}]}",
         ERR_UNSUPPORTED, "pre_tokenizer is 'Sequence'"},
        {"model", "{\"type\":\"Unigram\",\"vocab\":[[\"a\",0]],\"unk_id\":1}", ERR_RANGE,
         "model.unk_id is none of 0 to 0"},
        {"model", "{\"type\":\"Unigram\",\"vocab\":[[\"a\",\"b\"]],\"unk_id\":0}", ERR_MALFORMED,
         "model.vocab[0] has no score"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        OWNED(encoder_json_free) json_t *json = read_tokenizer(XLM);
        OWNED(tokenizer_free) struct tokenizer *tokenizer = NULL;
        char dir[] = "/tmp/tokenizer-XXXXXX";
        struct err err = {0};
        int r;

        assert_non_null(mkdtemp(dir));
        (void)json_object_set_new(json, rows[i].part, json_loads(rows[i].json, 0, NULL));
        write_file(dir, "tokenizer.json", json);
        r = tokenizer_open(dir, &tokenizer, &err);
        remove_dir(dir);
        if (r != rows[i].code || strstr(err.text, rows[i].text) == NULL)
            fail_msg("row %zu: %s (%s)", i, err_name(r), err.text);
    }
}

static void test_merges_that_are_refused(void **state)
{
    static const struct {
        const char *merge;
        int code;
        const char *text;
    } rows[] = {
        {"7", ERR_MALFORMED, "model.merges[0] is no pair of tokens"},
        {"\"ab\"", ERR_MALFORMED, "model.merges[0] is no pair"},
        {"\"q z\"", ERR_MISMATCH, "model.merges[0] joins 'q z'"},
        {"[\"a\",\"a\"]", 0, ""},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        OWNED(encoder_json_free) json_t *json = read_tokenizer(ROBERTA);
        OWNED(tokenizer_free) struct tokenizer *tokenizer = NULL;
        json_t *merges = json_array();
        char dir[] = "/tmp/tokenizer-XXXXXX";
        struct err err = {0};
        int r;

        assert_non_null(mkdtemp(dir));
        (void)json_array_append_new(merges, json_loads(rows[i].merge, JSON_DECODE_ANY, NULL));
        (void)json_object_set_new(json_object_get(json, "model"), "merges", merges);
        write_file(dir, "tokenizer.json", json);
        r = tokenizer_open(dir, &tokenizer, &err);
        remove_dir(dir);
        if (r != rows[i].code || strstr(err.text, rows[i].text) == NULL)
            fail_msg("row %zu: %s (%s)", i, err_name(r), err.text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bpe_equals_the_reference),
        cmocka_unit_test(test_composed_bpe_equals_the_reference),
        cmocka_unit_test(test_unigram_equals_the_reference),
        cmocka_unit_test(test_prefix_space),
        cmocka_unit_test(test_forms_of_unigram),
        cmocka_unit_test(test_full_list_stops),
        cmocka_unit_test(test_long_word),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_unigrams_that_are_refused),
        cmocka_unit_test(test_merges_that_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
