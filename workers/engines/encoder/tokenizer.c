/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/engines/encoder/tokenizer.h"

#include <stdlib.h>

#include "workers/engines/encoder/wordpiece.h"

struct tokenizer {
    struct wordpiece *pieces;
    struct tokenizer_frame frame;
};

int tokenizer_open(const char *dir, struct tokenizer **ret_tokenizer, struct err *err)
{
    OWNED(tokenizer_free) struct tokenizer *tokenizer = xcalloc(1, sizeof(*tokenizer));
    int r;

    r = wordpiece_open(dir, &tokenizer->pieces, err);
    if (r < 0)
        return r;
    tokenizer->frame = (struct tokenizer_frame){
        .begin = wordpiece_cls(tokenizer->pieces),
        .middle = {wordpiece_sep(tokenizer->pieces)},
        .middle_count = 1,
        .end = wordpiece_sep(tokenizer->pieces),
    };
    *ret_tokenizer = TAKE(tokenizer);
    return 0;
}

void tokenizer_free(struct tokenizer **tokenizer_p)
{
    struct tokenizer *tokenizer = TAKE(*tokenizer_p);

    if (tokenizer == NULL)
        return;
    wordpiece_free(&tokenizer->pieces);
    free(tokenizer);
}

uint32_t tokenizer_id_count(const struct tokenizer *tokenizer)
{
    return wordpiece_id_count(tokenizer->pieces);
}

const struct tokenizer_frame *tokenizer_frame(const struct tokenizer *tokenizer)
{
    return &tokenizer->frame;
}

void tokenizer_cut(const struct tokenizer *tokenizer, const char *text, size_t text_size,
                   struct token_list *tokens)
{
    wordpiece_cut(tokenizer->pieces, text, text_size, tokens);
}

size_t tokenizer_text(const struct tokenizer *tokenizer, uint32_t id, const char **ret_prefix,
                      const char **ret_text)
{
    bool continues;
    size_t size = wordpiece_text(tokenizer->pieces, id, ret_text, &continues);

    *ret_prefix = continues ? "##" : "";
    return size;
}

static size_t count_chars(const char *text, size_t size)
{
    size_t count = 0;

    for (size_t i = 0; i < size; i++)
        count += ((uint8_t)text[i] & 0xc0u) != 0x80u;
    return count;
}

/* The reference compares lengths: a token that continues has "##" before its characters. */
bool tokenizer_continues(const struct tokenizer *tokenizer, uint32_t id, struct token_span span,
                         const char *text, size_t text_size)
{
    const char *prefix, *own;
    size_t size = tokenizer_text(tokenizer, id, &prefix, &own);

    (void)text;
    (void)text_size;
    if (id == wordpiece_unk(tokenizer->pieces))
        return false;
    return count_chars(own, size) + (prefix[0] != '\0' ? 2 : 0) != span.last - span.first;
}
