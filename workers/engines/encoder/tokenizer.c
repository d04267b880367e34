/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/engines/encoder/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "workers/engines/encoder/tokenizer_int.h"

int tokenizer_open(const char *dir, struct tokenizer **ret_tokenizer, struct err *err)
{
    OWNED(tokenizer_free) struct tokenizer *tokenizer = xcalloc(1, sizeof(*tokenizer));
    bool loaded;
    int r;

    r = tokenizer_is_loaded(dir, &loaded, err);
    if (r == 0 && loaded) {
        r = tokenizer_load(dir, tokenizer, err);
    } else if (r == 0) {
        r = wordpiece_open(dir, &tokenizer->pieces, err);
        if (r < 0)
            return r;
        tokenizer->frame = (struct tokenizer_frame){
            .begin = wordpiece_cls(tokenizer->pieces),
            .middle = {wordpiece_sep(tokenizer->pieces), wordpiece_sep(tokenizer->pieces)},
            .middle_count = wordpiece_sep_count(tokenizer->pieces),
            .end = wordpiece_sep(tokenizer->pieces),
        };
        tokenizer->unk_id = wordpiece_unk(tokenizer->pieces);
        tokenizer->id_count = wordpiece_id_count(tokenizer->pieces);
    }
    if (r < 0)
        return r;
    *ret_tokenizer = TAKE(tokenizer);
    return 0;
}

void tokenizer_free(struct tokenizer **tokenizer_p)
{
    struct tokenizer *tokenizer = TAKE(*tokenizer_p);

    if (tokenizer == NULL)
        return;
    wordpiece_free(&tokenizer->pieces);
    bpe_free(&tokenizer->bpe);
    unigram_free(&tokenizer->unigram);
    vocab_free(&tokenizer->vocab);
    free(tokenizer);
}

uint32_t tokenizer_id_count(const struct tokenizer *tokenizer)
{
    return tokenizer->id_count;
}

const struct tokenizer_frame *tokenizer_frame(const struct tokenizer *tokenizer)
{
    return &tokenizer->frame;
}

static uint32_t count_chars(const char *text, size_t size)
{
    uint32_t count = 0;

    for (size_t i = 0; i < size; i++)
        count += ((uint8_t)text[i] & 0xc0u) != 0x80u;
    return count;
}

/* The longest added token at the front of the text, or NULL. */
static const struct tokenizer_added *match_added(const struct tokenizer *tokenizer,
                                                 const char *text, size_t size)
{
    const struct tokenizer_added *best = NULL;

    if (!tokenizer->added_starts[(uint8_t)text[0]])
        return NULL;
    for (uint32_t i = 0; i < tokenizer->added_count; i++) {
        const struct tokenizer_added *added = &tokenizer->added[i];

        if (added->size <= size && (best == NULL || added->size > best->size) &&
            memcmp(added->text, text, added->size) == 0)
            best = added;
    }
    return best;
}

static bool is_white(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static void cut_part(const struct tokenizer *tokenizer, const char *text, size_t size,
                     uint32_t first, struct token_list *tokens)
{
    if (size == 0)
        return;
    if (tokenizer->bpe != NULL)
        bpe_cut(tokenizer->bpe, text, size, first, tokens);
    else
        unigram_cut(tokenizer->unigram, text, size, first, tokens);
}

void tokenizer_cut(const struct tokenizer *tokenizer, const char *text, size_t text_size,
                   struct token_list *tokens)
{
    const bool trims = tokenizer->bpe != NULL && bpe_trims_spans(tokenizer->bpe);
    size_t part = 0, at = 0, end;
    uint32_t first = 0, before, behind; /* character of part; white space beside a token */

    if (tokenizer->pieces != NULL) {
        wordpiece_cut(tokenizer->pieces, text, text_size, tokens);
        return;
    }
    while (at < text_size && !tokens->truncated) {
        const struct tokenizer_added *added = match_added(tokenizer, text + at, text_size - at);

        if (added == NULL) {
            at++;
            continue;
        }
        end = at;
        while (added->takes_left && end > part && is_white(text[end - 1]))
            end--;
        cut_part(tokenizer, text + part, end - part, first, tokens);
        first += count_chars(text + part, end - part);
        part = at + added->size;
        while (added->takes_right && part < text_size && is_white(text[part]))
            part++;
        before = count_chars(text + end, at - end);
        behind = (uint32_t)(part - at) - added->size;
        first += before;
        token_list_put(tokens, added->id, first - (trims ? 0 : before),
                       first + added->char_count + (trims ? 0 : behind));
        first += added->char_count + behind;
        at = part;
    }
    if (!tokens->truncated)
        cut_part(tokenizer, text + part, text_size - part, first, tokens);
}

size_t tokenizer_text(const struct tokenizer *tokenizer, uint32_t id, const char **ret_prefix,
                      const char **ret_text)
{
    bool continues = false;
    size_t size;

    if (tokenizer->pieces != NULL)
        size = wordpiece_text(tokenizer->pieces, id, ret_text, &continues);
    else
        *ret_text = vocab_text(tokenizer->vocab, id, &size);
    for (uint32_t i = 0; size == 0 && i < tokenizer->added_count; i++) {
        if (tokenizer->added[i].id == id) {
            *ret_text = tokenizer->added[i].text;
            size = tokenizer->added[i].size;
        }
    }
    *ret_prefix = continues ? "##" : "";
    return size;
}

/* Whether there is a space at character `at` or the one before it. */
static bool has_space_around(const char *text, size_t size, uint32_t at)
{
    uint32_t character = 0;

    for (size_t i = 0; i < size; i++) {
        character += i > 0 && ((uint8_t)text[i] & 0xc0u) != 0x80u;
        if (character > at)
            return false;
        if (text[i] == ' ' && (character == at || character + 1 == at))
            return true;
    }
    return false;
}

/* The reference compares lengths where a token that continues has "##" before its characters, and
 * looks for a space before it elsewhere. */
bool tokenizer_continues(const struct tokenizer *tokenizer, uint32_t id, struct token_span span,
                         const char *text, size_t text_size)
{
    const char *prefix, *own;
    size_t size = tokenizer_text(tokenizer, id, &prefix, &own);

    if (id == tokenizer->unk_id)
        return false;
    if (tokenizer->pieces == NULL)
        return span.first > 0 && !has_space_around(text, text_size, span.first);
    return count_chars(own, size) + (prefix[0] != '\0' ? 2 : 0) != span.last - span.first;
}
