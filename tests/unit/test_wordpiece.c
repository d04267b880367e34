/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: texts become the reference's ids, and a tokenizer that is not ours is refused by name.
 * Method: the 200 texts of make_reference.py through the tiny model's tokenizer, whose ids the
 * reference gave; rows for what options change; copies of tokenizer.json with one thing changed.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/buf.h"
#include "workers/engines/encoder/encoder_json.h"
#include "workers/engines/encoder/wordpiece.h"

#define DATA "tests/data/encoder"
#define LENGTH 48u
#define IDS_MAX 64u

static void *read_data(const char *name)
{
    char *bytes = NULL;
    struct err err;
    size_t size;

    assert_int_equal(encoder_json_read_bytes(DATA, name, 1u << 20, &bytes, &size, &err), 0);
    return bytes;
}

static void check_reference(const char *dir)
{
    OWNED(encoder_json_free) json_t *texts = NULL;
    OWNED(wordpiece_free) struct wordpiece *pieces = NULL;
    OWNED(mem_free) uint16_t *tokens = read_data("tiny_tokens.u16");
    OWNED(mem_free) uint8_t *cut = read_data("tiny_truncated.u8");
    const uint16_t *want = tokens;
    const json_t *text;
    struct err err;
    size_t i;

    assert_int_equal(encoder_json_read(DATA "/minilm", "texts.json", 1u << 20, &texts, &err), 0);
    assert_int_equal(wordpiece_open(dir, &pieces, &err), 0);
    assert_int_equal(wordpiece_id_count(pieces), 1000);
    json_array_foreach(texts, i, text)
    {
        uint32_t ids[LENGTH];
        bool truncated;
        uint32_t count = wordpiece_encode(pieces, json_string_value(text), json_string_length(text),
                                          ids, LENGTH, &truncated);

        if (count != want[0] || truncated != cut[i])
            fail_msg("text %zu: %u ids, want %u; truncated %d, want %d", i, count, want[0],
                     truncated, cut[i]);
        for (uint32_t j = 0; j < count; j++) {
            if (ids[j] != want[1 + j])
                fail_msg("text %zu: id %u is %u, want %u", i, j, ids[j], want[1 + j]);
        }
        want += 1 + want[0];
    }
}

static void test_tiny_tokens_equal_the_reference(void **state)
{
    (void)state;
    check_reference(DATA "/tiny");
}

static void link_into(const char *dir, const char *name)
{
    OWNED(mem_free) char *cwd = getcwd(NULL, 0);
    OWNED(mem_free) char *from = xasprintf("%s/" DATA "/tiny/%s", cwd, name);
    OWNED(mem_free) char *to = xasprintf("%s/%s", dir, name);

    assert_int_equal(symlink(from, to), 0);
}

static void unlink_in(const char *dir, const char *name)
{
    OWNED(mem_free) char *path = xasprintf("%s/%s", dir, name);

    (void)unlink(path);
}

/* vocab.txt and tokenizer_config.json alone say the same as tokenizer.json. */
static void test_vocab_txt_is_enough(void **state)
{
    char dir[] = "/tmp/wordpiece-XXXXXX";

    (void)state;
    assert_non_null(mkdtemp(dir));
    link_into(dir, "vocab.txt");
    link_into(dir, "tokenizer_config.json");
    check_reference(dir);
    unlink_in(dir, "vocab.txt");
    unlink_in(dir, "tokenizer_config.json");
    assert_int_equal(rmdir(dir), 0);
}

/* Ids: [UNK] 0, [CLS] 1, [SEP] 2, then as they stand. */
static const char vocab[] = "[UNK]\n[CLS]\n[SEP]\n"
                            "un\n##aff\n##able\n,\ncafe\nCaf\xc3\xa9\n\xe4\xb8\x96\n" /* 3 … 9 */
                            "##x\nx\nhello\n##\n#\n[MASK]\n"; /* 10 … 15 */

static const struct {
    const char *what;
    const char *text;
    bool cased;
    uint32_t count;
    uint32_t ids[8];
} rows[] = {
    {"nothing", "", false, 2, {1, 2}},
    {"pieces", "unaffable", false, 5, {1, 3, 4, 5, 2}},
    {"one unknown piece spoils the word", "unaffzable", false, 3, {1, 0, 2}},
    {"and that word alone", "un zz un", false, 5, {1, 3, 0, 3, 2}},
    {"punctuation stands alone", "un,un", false, 5, {1, 3, 6, 3, 2}},
    {"accents go with lower case", "CAF\xc3\x89", false, 3, {1, 7, 2}},
    {"a combining accent too", "Cafe\xcc\x81", false, 3, {1, 7, 2}},
    {"cased keeps both", "Caf\xc3\xa9 CAFE", true, 4, {1, 8, 0, 2}},
    {"ideographs stand alone", "x\xe4\xb8\x96x", false, 5, {1, 11, 9, 11, 2}},
    {"control characters vanish",
     "un\x01\x7f\xc2\xad"
     "aff\xe2\x80\x8b"
     "able",
     false,
     5,
     {1, 3, 4, 5, 2}},
    {"broken UTF-8 vanishes",
     "un\xff\xc3"
     "aff\xed\xa0\x80"
     "able\xf0",
     false,
     5,
     {1, 3, 4, 5, 2}},
    {"special tokens in the text", "un[MASK]un", false, 5, {1, 3, 15, 3, 2}},
    {"but whole ones only", "[MASK", false, 4, {1, 0, 0, 2}},
    {"marks that look like a prefix", "##", false, 4, {1, 14, 14, 2}},
};

static void init_options(struct wordpiece_options *options, bool cased)
{
    wordpiece_options_init(options);
    options->lower_case = !cased;
    options->strip_accents = !cased;
    options->special_count = 1;
    options->specials[0] = (struct wordpiece_special){.text = "[MASK]", .size = 6, .id = 15};
}

static void test_rows(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        OWNED(wordpiece_free) struct wordpiece *pieces = NULL;
        struct wordpiece_options options;
        uint32_t ids[IDS_MAX], count;
        bool truncated;
        struct err err;

        init_options(&options, rows[i].cased);
        assert_int_equal(wordpiece_new(&options, vocab, sizeof(vocab) - 1, &pieces, &err), 0);
        count = wordpiece_encode(pieces, rows[i].text, strlen(rows[i].text), ids, IDS_MAX,
                                 &truncated);
        if (count != rows[i].count || truncated ||
            memcmp(ids, rows[i].ids, count * sizeof(*ids)) != 0)
            fail_msg("%s: %u ids %u %u %u %u", rows[i].what, count, ids[0], ids[1], ids[2], ids[3]);
    }
}

static void test_length_is_kept(void **state)
{
    OWNED(wordpiece_free) struct wordpiece *pieces = NULL;
    struct wordpiece_options options;
    uint32_t ids[IDS_MAX];
    bool truncated;
    struct err err;

    (void)state;
    init_options(&options, false);
    assert_int_equal(wordpiece_new(&options, vocab, sizeof(vocab) - 1, &pieces, &err), 0);
    assert_int_equal(wordpiece_encode(pieces, "x x x", 5, ids, 5, &truncated), 5);
    assert_false(truncated);
    assert_int_equal(wordpiece_encode(pieces, "x x x  ", 7, ids, 5, &truncated), 5);
    assert_false(truncated);
    assert_int_equal(wordpiece_encode(pieces, "x x x x", 7, ids, 5, &truncated), 5);
    assert_true(truncated);
    assert_int_equal(ids[4], 2);
    assert_int_equal(wordpiece_encode(pieces, "unaffable", 9, ids, 4, &truncated), 4);
    assert_true(truncated);
    assert_int_equal(ids[2], 4);
    assert_int_equal(wordpiece_encode(pieces, "x", 1, ids, 2, &truncated), 2);
    assert_true(truncated);
}

static void test_vocabulary_needs_its_special_tokens(void **state)
{
    OWNED(wordpiece_free) struct wordpiece *pieces = NULL;
    struct wordpiece_options options;
    struct err err;

    (void)state;
    wordpiece_options_init(&options);
    assert_int_equal(wordpiece_new(&options, "[UNK]\n[CLS]\n", 12, &pieces, &err), ERR_MISMATCH);
    assert_string_equal(err.text, "the vocabulary has no token '[SEP]'");
    assert_int_equal(wordpiece_new(&options, "", 0, &pieces, &err), ERR_MISMATCH);
}

static const struct {
    const char *path; /* keys of tokenizer.json */
    const char *json; /* what is put there */
    int code;
    const char *text;
} changes[] = {
    {"model.type", "\"BPE\"", ERR_UNSUPPORTED, "model is 'BPE', the encoder has 'WordPiece'"},
    {"normalizer.type", "\"NFKC\"", ERR_UNSUPPORTED, "normalizer is 'NFKC'"},
    {"normalizer.clean_text", "false", ERR_UNSUPPORTED, "clean_text is false"},
    {"normalizer.lowercase", "\"yes\"", ERR_MALFORMED, "'lowercase' is neither true nor false"},
    {"pre_tokenizer.type", "\"ByteLevel\"", ERR_UNSUPPORTED, "pre_tokenizer is 'ByteLevel'"},
    {"post_processor.type", "\"ByteLevel\"", ERR_UNSUPPORTED, "'ByteLevel'"},
    {"post_processor.single", "[]", ERR_UNSUPPORTED, "post_processor.single"},
    {"model.max_input_chars_per_word", "1000", ERR_RANGE, "is 1000, allowed are 1 to 100"},
    {"model.continuing_subword_prefix", "\"@@\"", ERR_UNSUPPORTED, "'@@', not '##'"},
    {"model.unk_token", "\"<none>\"", ERR_MISMATCH, "no token '<none>'"},
    {"model.vocab", "{\"a\": -1}", ERR_RANGE, "id of token 'a'"},
    {"model.vocab", "{\"a\": 99999999}", ERR_RANGE, "id of token 'a'"},
    {"added_tokens", "[{\"id\":5,\"content\":\"x\",\"normalized\":true}]", ERR_UNSUPPORTED,
     "added token 'x'"},
    {"added_tokens", "[{\"id\":5}]", ERR_MALFORMED, "added_tokens[0] has no content"},
};

static void set_path(json_t *json, const char *path, json_t *value)
{
    OWNED(mem_free) char *folder = xstrdup(path);
    char *dot = strchr(folder, '.');

    if (dot != NULL) {
        *dot = '\0';
        json = json_object_get(json, folder);
    }
    assert_int_equal(json_object_set_new(json, dot != NULL ? dot + 1 : path, value), 0);
}

static void test_other_tokenizers_are_refused(void **state)
{
    char dir[] = "/tmp/wordpiece-XXXXXX";
    OWNED(mem_free) char *path = NULL;

    (void)state;
    assert_non_null(mkdtemp(dir));
    path = xasprintf("%s/tokenizer.json", dir);
    for (size_t i = 0; i < COUNT_OF(changes); i++) {
        OWNED(encoder_json_free) json_t *json = NULL;
        OWNED(wordpiece_free) struct wordpiece *pieces = NULL;
        struct err err = {0};
        int r;

        assert_int_equal(encoder_json_read(DATA "/tiny", "tokenizer.json", 1u << 20, &json, &err),
                         0);
        set_path(json, changes[i].path, json_loads(changes[i].json, JSON_DECODE_ANY, NULL));
        assert_int_equal(json_dump_file(json, path, 0), 0);
        r = wordpiece_open(dir, &pieces, &err);
        if (r != changes[i].code || strstr(err.text, changes[i].text) == NULL)
            fail_msg("%s = %s: %s (%s)", changes[i].path, changes[i].json, err_name(r), err.text);
    }
    assert_int_equal(unlink(path), 0);
    assert_int_equal(rmdir(dir), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tiny_tokens_equal_the_reference),
        cmocka_unit_test(test_vocab_txt_is_enough),
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_length_is_kept),
        cmocka_unit_test(test_vocabulary_needs_its_special_tokens),
        cmocka_unit_test(test_other_tokenizers_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
