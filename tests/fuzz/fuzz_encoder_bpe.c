/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Any bytes as a text, and any bytes as the order of merges: the first byte chooses the space
 * before the text and how many of the next are pairs of tokens to join. Ids stay inside the
 * vocabulary, spans inside the text and in order; together the tokens spell the text's bytes; a
 * list that is full has what a longer one begins with.
 */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/assert.h"
#include "workers/engines/encoder/bpe.h"

#define BYTE_COUNT 256u
#define MERGE_COUNT_MAX 64u
#define SOME 5u

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

/* GPT-2's letter for a byte, written down once more. */
static size_t letter(uint32_t byte, utf8proc_uint8_t to[4])
{
    uint32_t letter = byte, others = 0;

    for (uint32_t b = 0; b <= byte; b++) {
        bool itself = (b > 0x20 && b < 0x7f) || (b > 0xa0 && b != 0xad);

        others += !itself;
        letter = itself ? b : 255 + others;
    }
    return (size_t)utf8proc_encode_char((utf8proc_int32_t)letter, to);
}

/* Tokens 0 … 255 are the bytes in order; each merge joins two that are there to one more. */
static struct vocab *make_vocab(const uint8_t *pairs, uint32_t count, json_t *merges)
{
    struct vocab *vocab = vocab_new(BYTE_COUNT + MERGE_COUNT_MAX, 1u << 16);
    struct err err;

    for (uint32_t byte = 0; byte < BYTE_COUNT; byte++) {
        utf8proc_uint8_t text[4];
        size_t text_size = letter(byte, text);

        assert(vocab_add(vocab, (const char *)text, text_size, byte, &err) == 0);
    }
    for (uint32_t i = 0; i < count; i++) {
        char whole[2 * VOCAB_TOKEN_SIZE_MAX];
        size_t left_size, right_size;
        uint32_t id_count = vocab_id_count(vocab), id;
        const char *left = vocab_text(vocab, (uint32_t)pairs[2 * i] * 2 % id_count, &left_size);
        const char *right = vocab_text(vocab, pairs[2 * i + 1], &right_size);

        if (left_size + right_size > 256)
            continue;
        memcpy(whole, left, left_size);
        memcpy(whole + left_size, right, right_size);
        if (!vocab_find(vocab, whole, left_size + right_size, &id))
            assert(vocab_add(vocab, whole, left_size + right_size, id_count, &err) == 0);
        (void)json_array_append_new(
            merges, json_pack("[s#, s#]", left, (int)left_size, right, (int)right_size));
    }
    return vocab;
}

static void check(const struct bpe *bpe, const struct vocab *vocab, const char *text, size_t size)
{
    struct token_list all = {0}, some = {0};
    uint32_t last = 0, chars = 0;
    size_t letters = 0, want = 0;

    for (size_t i = 0; i < size; i++) {
        utf8proc_uint8_t to[4];

        want += letter((uint8_t)text[i], to);
        chars += i == 0 || ((uint8_t)text[i] & 0xc0u) != 0x80u;
    }
    token_list_begin(&all, UINT32_MAX, true);
    bpe_cut(bpe, text, size, 0, &all);
    for (uint32_t i = 0; i < all.count; i++) {
        size_t token_size;

        assert(all.ids[i] < vocab_id_count(vocab));
        (void)vocab_text(vocab, all.ids[i], &token_size);
        letters += token_size;
        assert(all.spans[i].first <= all.spans[i].last && all.spans[i].last <= chars);
        assert(all.spans[i].last >= last);
        last = all.spans[i].last;
    }
    assert(letters == want || letters == want + 2); /* the space before the text */
    token_list_begin(&some, SOME, false);
    bpe_cut(bpe, text, size, 0, &some);
    assert(some.count == (all.count < SOME ? all.count : SOME) &&
           some.truncated == (all.count > SOME));
    assert(some.count == 0 || memcmp(some.ids, all.ids, some.count * sizeof(*some.ids)) == 0);
    token_list_done(&some);
    token_list_done(&all);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    json_t *model = json_object(), *merges = json_array();
    struct vocab *vocab;
    struct bpe_options options = {.add_prefix_space = size > 0 && (bytes[0] & 1),
                                  .trim_spans = true};
    struct token_list composed = {0};
    struct bpe *bpe = NULL;
    struct err err;
    uint32_t count = size > 0 ? bytes[0] / 2 % (MERGE_COUNT_MAX + 1) : 0;
    size_t text = 1 + 2 * (size_t)count;

    if (size < text) {
        count = 0;
        text = size > 0 ? 1 : 0;
    }
    vocab = make_vocab(bytes + 1, count, merges);
    (void)json_object_set_new(model, "merges", merges);
    assert(bpe_new(model, vocab, &options, &bpe, &err) == 0);
    check(bpe, vocab, (const char *)bytes + text, size - text);
    bpe_free(&bpe);
    options.compose = true; /* other bytes than the text's, but within it */
    assert(bpe_new(model, vocab, &options, &bpe, &err) == 0);
    token_list_begin(&composed, UINT32_MAX, true);
    bpe_cut(bpe, (const char *)bytes + text, size - text, 0, &composed);
    for (uint32_t i = 0; i < composed.count; i++)
        assert(composed.spans[i].first <= composed.spans[i].last &&
               composed.spans[i].last <= size - text);
    token_list_done(&composed);
    bpe_free(&bpe);
    vocab_free(&vocab);
    json_decref(model);
    return 0;
}
