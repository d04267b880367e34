/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Any bytes as a text, and any bytes as a vocabulary: the first byte chooses case and length, what
 * is before the first NUL byte is the vocabulary (behind its three special tokens), the rest is
 * the text. Ids stay inside the vocabulary and the length; reading on never changes what a shorter
 * limit gave.
 */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/buf.h"
#include "workers/engines/encoder/wordpiece.h"

#define IDS_MAX 600u
#define SPECIAL "[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n##a\n##b\nab\n!\n"
#define VOCAB_SIZE_MAX 65536u

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size);

static void encode(const struct wordpiece *pieces, const char *text, size_t text_size,
                   uint32_t id_count_max)
{
    uint32_t some[IDS_MAX], all[IDS_MAX];
    bool some_truncated, all_truncated;
    uint32_t some_count, all_count;

    some_count = wordpiece_encode(pieces, text, text_size, some, id_count_max, &some_truncated);
    all_count = wordpiece_encode(pieces, text, text_size, all, IDS_MAX, &all_truncated);
    assert(some_count >= 2 && some_count <= id_count_max && some_count <= all_count);
    assert(some_truncated == (all_truncated || all_count > id_count_max));
    assert(memcmp(some, all, (some_count - 1) * sizeof(*some)) == 0);
    for (uint32_t i = 0; i < some_count; i++)
        assert(some[i] < wordpiece_id_count(pieces));
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
    OWNED(buf_done) struct buf vocab = BUF_WITH_LIMIT(VOCAB_SIZE_MAX);
    OWNED(wordpiece_free) struct wordpiece *pieces = NULL;
    struct wordpiece_options options;
    const uint8_t *text;
    struct err err;

    if (size < 1)
        return 0;
    wordpiece_options_init(&options);
    options.lower_case = bytes[0] & 1;
    options.strip_accents = bytes[0] & 2;
    options.split_ideographs = bytes[0] & 4;
    options.special_count = 1;
    options.specials[0] = (struct wordpiece_special){.text = "[MASK]", .size = 6, .id = 3};
    text = memchr(bytes + 1, 0, size - 1);
    text = text != NULL ? text : bytes + size;
    buf_append_text(&vocab, SPECIAL);
    buf_append(&vocab, bytes + 1, (size_t)(text - bytes) - 1);
    if (buf_check(&vocab, "vocabulary", &err) < 0 ||
        wordpiece_new(&options, (const char *)vocab.bytes, vocab.size, &pieces, &err) < 0)
        return 0;
    encode(pieces, (const char *)text, (size_t)(bytes + size - text), 2 + bytes[0] / 8);
    return 0;
}
