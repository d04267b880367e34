/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Any bytes as a precompiled map, and any bytes as a text, cut up by a small unigram model: the
 * first byte chooses what happens to spaces, the second how many of the next are the map. A map is
 * refused or walked without leaving it; ids stay inside the vocabulary, spans inside the text; a
 * list that is full has what a longer one begins with.
 */

#include <stdint.h>
#include <string.h>

#include "base/assert.h"
#include "workers/engines/encoder/unigram.h"

#define SOME 5u
#define MODEL                                                                                      \
    "{\"unk_id\":0,\"vocab\":[[\"<unk>\",0],[\"\xe2\x96\x81\",-2],[\"\xe2\x96\x81the\",-3],"       \
    "[\"t\",-4.5],[\"he\",-4],[\"th\",-3.5],[\"e\",-5],[\"\xc3\xa9\",-6],[\"aa\",-2],[\"a\",-3]]}"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static void check(const struct unigram *unigram, uint32_t id_count, const char *text, size_t size)
{
    struct token_list all = {0}, some = {0};
    uint32_t chars = 0;

    /* A byte that is no UTF-8 may count as a character here and there. */
    for (size_t i = 0; i < size; i++)
        chars++;
    token_list_begin(&all, UINT32_MAX, true);
    unigram_cut(unigram, text, size, 0, &all);
    for (uint32_t i = 0; i < all.count; i++) {
        assert(all.ids[i] < id_count);
        assert(all.spans[i].first < all.spans[i].last && all.spans[i].last <= chars);
    }
    token_list_begin(&some, SOME, false);
    unigram_cut(unigram, text, size, 0, &some);
    assert(some.count == (all.count < SOME ? all.count : SOME) &&
           some.truncated == (all.count > SOME));
    assert(some.count == 0 || memcmp(some.ids, all.ids, some.count * sizeof(*some.ids)) == 0);
    token_list_done(&some);
    token_list_done(&all);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    json_t *model = json_loads(MODEL, 0, NULL), *piece;
    struct unigram_options options = {.map = NULL};
    struct unigram *unigram = NULL;
    struct vocab *vocab = vocab_new(16, 256);
    size_t map_size, i;
    struct err err;

    json_array_foreach(json_object_get(model, "vocab"), i, piece)
    {
        const json_t *text = json_array_get(piece, 0);

        assert(vocab_add(vocab, json_string_value(text), json_string_length(text), (uint32_t)i,
                         &err) == 0);
    }
    if (size >= 2) {
        options.join_spaces = bytes[0] & 1;
        options.strip_left = bytes[0] & 2;
        options.strip_right = bytes[0] & 4;
        options.split_white = bytes[0] & 8;
        map_size = bytes[1] < size - 2 ? bytes[1] : size - 2;
        if (charsmap_new(bytes + 2, map_size, &options.map, &err) < 0)
            options.map = NULL;
        assert(unigram_new(model, vocab, &options, &unigram, &err) == 0);
        check(unigram, vocab_id_count(vocab), (const char *)bytes + 2 + map_size,
              size - 2 - map_size);
    }
    unigram_free(&unigram);
    vocab_free(&vocab);
    json_decref(model);
    return 0;
}
