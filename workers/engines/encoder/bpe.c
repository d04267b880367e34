/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/engines/encoder/bpe.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/assert.h"

#define MERGE_COUNT_MAX (1u << 20)
#define BYTE_TEXT_MAX 2 /* bytes of the letter that stands for a byte */

struct merge {
    uint32_t left, right; /* ids */
    uint32_t rank, id;    /* id 0 and rank 0 with left == right == 0 and !used: free */
    bool used;
};

struct bpe {
    const struct vocab *vocab;
    struct merge *merges; /* open addressing, at most half full */
    uint32_t merge_mask;
    uint32_t byte_ids[256];
    struct bpe_options options;
};

/* A byte, or what merges have made of several. size 0: it went into the one before. */
struct symbol {
    uint32_t id, size;
    uint32_t before, after; /* indices; NONE */
};

struct candidate {
    uint32_t rank, at, id;
};

#define NONE UINT32_MAX

/* One part of a text on its way. */
struct cutting {
    const struct bpe *bpe;
    struct token_list *tokens;
    uint8_t *bytes;  /* the part, perhaps with a space before it */
    uint32_t *chars; /* per byte: the character of the text that it belongs to */
    size_t size;
    bool has_prefix;
    struct symbol *symbols;
    struct candidate *heap;
    uint32_t symbol_room, heap_count, heap_room;
};

/* GPT-2's letters for bytes: printable ones stand for themselves, the rest from U+0100 on. */
static uint32_t byte_letter(uint8_t byte)
{
    uint32_t letter = 256;

    if ((byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte != 0xad))
        return byte;
    for (uint32_t b = 0; b < byte; b++)
        letter += !((b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b != 0xad));
    return letter;
}

static int find_bytes(struct bpe *bpe, struct err *err)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        utf8proc_uint8_t text[4];
        const utf8proc_ssize_t size = utf8proc_encode_char(
            (utf8proc_int32_t)byte_letter((uint8_t)byte), text);

        assert(size >= 1 && size <= BYTE_TEXT_MAX);
        if (!vocab_find(bpe->vocab, (const char *)text, (size_t)size, &bpe->byte_ids[byte]))
            return err_set(err, ERR_MISMATCH, "the vocabulary has no token for the byte 0x%02x",
                           byte);
    }
    return 0;
}

static struct merge *find_merge(const struct bpe *bpe, uint32_t left, uint32_t right)
{
    uint64_t hash = ((uint64_t)left << 32 | right) * 0x9e3779b97f4a7c15ull;

    for (uint32_t i = (uint32_t)(hash >> 32) & bpe->merge_mask;; i = (i + 1) & bpe->merge_mask) {
        struct merge *merge = &bpe->merges[i];

        if (!merge->used || (merge->left == left && merge->right == right))
            return merge;
    }
}

/* "a b", or ["a", "b"] in newer files. */
static int split_merge(const json_t *value, const char **left, size_t *left_size,
                       const char **right, size_t *right_size)
{
    if (json_is_array(value)) {
        *left = json_string_value(json_array_get(value, 0));
        *left_size = json_string_length(json_array_get(value, 0));
        *right = json_string_value(json_array_get(value, 1));
        *right_size = json_string_length(json_array_get(value, 1));
    } else {
        *left = json_string_value(value);
        *right = *left != NULL ? strchr(*left, ' ') : NULL;
        *left_size = *right != NULL ? (size_t)(*right - *left) : 0;
        *right += *right != NULL;
        *right_size = *right != NULL ? strlen(*right) : 0;
    }
    return *left != NULL && *right != NULL ? 0 : -1;
}

static int add_merge(struct bpe *bpe, const json_t *value, uint32_t rank, struct err *err)
{
    char whole[2 * VOCAB_TOKEN_SIZE_MAX];
    const char *left, *right;
    size_t left_size, right_size;
    struct merge merge = {.rank = rank, .used = true}, *to;

    if (split_merge(value, &left, &left_size, &right, &right_size) < 0 ||
        left_size > VOCAB_TOKEN_SIZE_MAX || right_size > VOCAB_TOKEN_SIZE_MAX)
        return err_set(err, ERR_MALFORMED, "model.merges[%u] is no pair of tokens", rank);
    memcpy(whole, left, left_size);
    memcpy(whole + left_size, right, right_size);
    if (!vocab_find(bpe->vocab, left, left_size, &merge.left) ||
        !vocab_find(bpe->vocab, right, right_size, &merge.right) ||
        !vocab_find(bpe->vocab, whole, left_size + right_size, &merge.id))
        return err_set(err, ERR_MISMATCH,
                       "model.merges[%u] joins '%.40s' to what the vocabulary has not", rank, left);
    to = find_merge(bpe, merge.left, merge.right);
    *to = merge; /* of two the later wins, as in the reference */
    return 0;
}

int bpe_new(const json_t *model, const struct vocab *vocab, const struct bpe_options *options,
            struct bpe **ret_bpe, struct err *err)
{
    OWNED(bpe_free) struct bpe *bpe = xcalloc(1, sizeof(*bpe));
    const json_t *merges = json_object_get(model, "merges"), *merge;
    uint32_t slot_count = 16;
    size_t i;
    int r;

    if (!json_is_array(merges) || json_array_size(merges) > MERGE_COUNT_MAX)
        return err_set(err, ERR_RANGE, "model.merges has %zu merges, limit %u",
                       json_array_size(merges), MERGE_COUNT_MAX);
    while (slot_count < 2 * json_array_size(merges))
        slot_count *= 2;
    bpe->vocab = vocab;
    bpe->options = *options;
    bpe->merges = xcalloc(slot_count, sizeof(*bpe->merges));
    bpe->merge_mask = slot_count - 1;
    r = find_bytes(bpe, err);
    json_array_foreach(merges, i, merge)
    {
        if (r == 0)
            r = add_merge(bpe, merge, (uint32_t)i, err);
    }
    if (r < 0)
        return r;
    *ret_bpe = TAKE(bpe);
    return 0;
}

void bpe_free(struct bpe **bpe_p)
{
    struct bpe *bpe = TAKE(*bpe_p);

    if (bpe == NULL)
        return;
    free(bpe->merges);
    free(bpe);
}

bool bpe_trims_spans(const struct bpe *bpe)
{
    return bpe->options.trim_spans;
}

/* ---- words ---- */

enum kind { KIND_SPACE, KIND_LETTER, KIND_NUMBER, KIND_OTHER };

static bool is_white(utf8proc_int32_t c)
{
    return (c >= 0x09 && c <= 0x0d) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f ||
           c == 0x205f || c == 0x3000;
}

/* Of the character at `at`, and where it ends. A byte that is no UTF-8 is a mark. */
static enum kind kind_at(const struct cutting *cutting, size_t at, size_t *ret_end)
{
    utf8proc_int32_t c;
    const utf8proc_ssize_t size = utf8proc_iterate(cutting->bytes + at,
                                                   (utf8proc_ssize_t)(cutting->size - at), &c);

    *ret_end = at + (size > 0 ? (size_t)size : 1);
    if (size <= 0)
        return KIND_OTHER;
    if (is_white(c))
        return KIND_SPACE;
    switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
        return KIND_LETTER;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
        return KIND_NUMBER;
    default:
        return KIND_OTHER;
    }
}

/* 0 where there is none. */
static size_t contraction_size(const uint8_t *bytes, size_t size)
{
    if (size < 2 || bytes[0] != '\'')
        return 0;
    if (memchr("stmd", bytes[1], 4) != NULL)
        return 2;
    if (size >= 3 && (memcmp(bytes + 1, "re", 2) == 0 || memcmp(bytes + 1, "ve", 2) == 0 ||
                      memcmp(bytes + 1, "ll", 2) == 0))
        return 3;
    return 0;
}

/* Where the word at `at` ends. */
static size_t word_end(const struct cutting *cutting, size_t at)
{
    size_t end, next, last = at;
    enum kind kind;

    next = contraction_size(cutting->bytes + at, cutting->size - at);
    if (next > 0)
        return at + next;
    kind = kind_at(cutting, at, &end);
    if (cutting->bytes[at] == ' ' && end < cutting->size) {
        const enum kind behind = kind_at(cutting, end, &next);

        if (behind != KIND_SPACE) {
            kind = behind;
            end = next;
        }
    }
    while (end < cutting->size && kind_at(cutting, end, &next) == kind) {
        last = end;
        end = next;
    }
    /* The last of several spaces belongs to the word behind them. */
    if (kind == KIND_SPACE && end < cutting->size && last > at)
        return last;
    return end;
}

/* ---- merges ---- */

static bool sooner(const struct candidate *a, const struct candidate *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

static void heap_push(struct cutting *cutting, struct candidate candidate)
{
    uint32_t i = cutting->heap_count++;

    if (cutting->heap_count > cutting->heap_room) {
        cutting->heap_room = cutting->heap_room == 0 ? 64 : 2 * cutting->heap_room;
        cutting->heap = xrealloc(cutting->heap, cutting->heap_room, sizeof(*cutting->heap));
    }
    while (i > 0 && sooner(&candidate, &cutting->heap[(i - 1) / 2])) {
        cutting->heap[i] = cutting->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    cutting->heap[i] = candidate;
}

static struct candidate heap_pop(struct cutting *cutting)
{
    const struct candidate top = cutting->heap[0];
    const struct candidate last = cutting->heap[--cutting->heap_count];
    uint32_t i = 0, child;

    while ((child = 2 * i + 1) < cutting->heap_count) {
        if (child + 1 < cutting->heap_count &&
            sooner(&cutting->heap[child + 1], &cutting->heap[child]))
            child++;
        if (!sooner(&cutting->heap[child], &last))
            break;
        cutting->heap[i] = cutting->heap[child];
        i = child;
    }
    cutting->heap[i] = last;
    return top;
}

/* What joins symbol `at` and the one after it, if something does. */
static void offer(struct cutting *cutting, uint32_t at)
{
    const struct symbol *symbol = &cutting->symbols[at];
    const struct merge *merge;

    if (symbol->after == NONE)
        return;
    merge = find_merge(cutting->bpe, symbol->id, cutting->symbols[symbol->after].id);
    if (merge->used)
        heap_push(cutting, (struct candidate){merge->rank, at, merge->id});
}

static void join(struct cutting *cutting, uint32_t at, uint32_t id)
{
    struct symbol *symbol = &cutting->symbols[at], *right = &cutting->symbols[symbol->after];

    symbol->id = id;
    symbol->size += right->size;
    symbol->after = right->after;
    right->size = 0;
    if (symbol->after != NONE)
        cutting->symbols[symbol->after].before = at;
    if (symbol->before != NONE)
        offer(cutting, symbol->before);
    offer(cutting, at);
}

static void merge_word(struct cutting *cutting, size_t from, uint32_t count)
{
    if (count > cutting->symbol_room) {
        cutting->symbol_room = count < 64 ? 64 : count;
        cutting->symbols = xrealloc(cutting->symbols, cutting->symbol_room,
                                    sizeof(*cutting->symbols));
    }
    for (uint32_t i = 0; i < count; i++)
        cutting->symbols[i] = (struct symbol){
            .id = cutting->bpe->byte_ids[cutting->bytes[from + i]],
            .size = 1,
            .before = i > 0 ? i - 1 : NONE,
            .after = i + 1 < count ? i + 1 : NONE,
        };
    cutting->heap_count = 0;
    for (uint32_t i = 0; i < count; i++)
        offer(cutting, i);
    while (cutting->heap_count > 0) {
        const struct candidate top = heap_pop(cutting);
        const struct symbol *symbol = &cutting->symbols[top.at];
        const struct merge *merge;

        if (symbol->size == 0 || symbol->after == NONE)
            continue;
        merge = find_merge(cutting->bpe, symbol->id, cutting->symbols[symbol->after].id);
        if (merge->used && merge->id == top.id)
            join(cutting, top.at, top.id);
    }
}

/* Spaces at a token's ends do not count, but for the one that is put before a text, or that makes
 * putting one unnecessary. */
static struct token_span span_of(const struct cutting *cutting, size_t from, size_t size)
{
    struct token_span span = {cutting->chars[from], cutting->chars[from + size - 1] + 1};
    uint32_t before = 0, behind = 0;

    if (!cutting->bpe->options.trim_spans)
        return span;
    while (before < size && cutting->bytes[from + before] == ' ')
        before++;
    while (behind < size && cutting->bytes[from + size - 1 - behind] == ' ')
        behind++;
    if (before > 0 && from == 0 && cutting->bpe->options.add_prefix_space &&
        (cutting->has_prefix || cutting->tokens->count == 0))
        before--;
    span.first = span.first + before < span.last ? span.first + before : span.last;
    if (behind > 0 && span.last >= behind)
        span.last = span.last - behind > span.first ? span.last - behind : span.first;
    return span;
}

static void cut_words(struct cutting *cutting)
{
    for (size_t at = 0, end; at < cutting->size && !cutting->tokens->truncated; at = end) {
        size_t from = at;

        end = word_end(cutting, at);
        merge_word(cutting, at, (uint32_t)(end - at));
        for (uint32_t i = 0; i != NONE; i = cutting->symbols[i].after) {
            const struct token_span span = span_of(cutting, from, cutting->symbols[i].size);

            token_list_put(cutting->tokens, cutting->symbols[i].id, span.first, span.last);
            from += cutting->symbols[i].size;
        }
    }
}

/* ---- NFC ---- */

/* Characters that a character is taken apart into. */
static uint32_t count_parts(utf8proc_int32_t c)
{
    utf8proc_int32_t parts[32];
    int last = 0;
    const utf8proc_ssize_t count = utf8proc_decompose_char(
        c, parts, COUNT_OF(parts), UTF8PROC_STABLE | UTF8PROC_DECOMPOSE, &last);

    return count > 0 ? (uint32_t)count : 1;
}

/* The composed text, NULL where nothing is to be composed, and of each byte the character of `text`
 * that it comes from: both have the same parts, in about the same order, and are counted off
 * against each other. */
static uint8_t *compose(const char *text, size_t size, uint32_t first, size_t *ret_size,
                        uint32_t **ret_chars)
{
    const uint8_t *from = (const uint8_t *)text;
    utf8proc_uint8_t *to = NULL;
    uint32_t from_parts = 0, to_parts = 0, character = first;
    utf8proc_ssize_t at = 0, width, to_size;
    utf8proc_int32_t c;

    while (at < (utf8proc_ssize_t)size && from[at] < 0x80)
        at++;
    if (at == (utf8proc_ssize_t)size)
        return NULL;
    to_size = utf8proc_map(from, (utf8proc_ssize_t)size, &to, UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    if (to_size <= 0) {
        free(to); /* not UTF-8: as it is */
        return NULL;
    }
    *ret_chars = xcalloc((size_t)to_size, sizeof(**ret_chars));
    at = utf8proc_iterate(from, (utf8proc_ssize_t)size, &c);
    from_parts = count_parts(c);
    for (utf8proc_ssize_t i = 0; i < to_size; i += width) {
        width = utf8proc_iterate(to + i, to_size - i, &c);
        assert(width > 0);
        while (from_parts <= to_parts && at < (utf8proc_ssize_t)size) {
            utf8proc_int32_t next;

            at += utf8proc_iterate(from + at, (utf8proc_ssize_t)size - at, &next);
            from_parts += count_parts(next);
            character++;
        }
        for (utf8proc_ssize_t byte = i; byte < i + width; byte++)
            (*ret_chars)[byte] = character;
        to_parts += count_parts(c);
    }
    *ret_size = (size_t)to_size;
    return to;
}

/* Of each byte of `text` its character. */
static void number_chars(const char *text, size_t size, uint32_t first, uint32_t *chars)
{
    for (size_t i = 0; i < size; i++) {
        first += i > 0 && ((uint8_t)text[i] & 0xc0u) != 0x80u;
        chars[i] = first;
    }
}

void bpe_cut(const struct bpe *bpe, const char *text, size_t size, uint32_t first,
             struct token_list *tokens)
{
    struct cutting cutting = {.bpe = bpe, .tokens = tokens};
    uint8_t *composed = NULL;
    uint32_t *chars = NULL;

    if (size == 0)
        return;
    if (bpe->options.compose)
        composed = compose(text, size, first, &size, &chars);
    if (composed != NULL)
        text = (const char *)composed;
    cutting.has_prefix = bpe->options.add_prefix_space && text[0] != ' ';
    cutting.size = size + cutting.has_prefix;
    cutting.bytes = xmalloc(cutting.size);
    cutting.chars = xcalloc(cutting.size, sizeof(*cutting.chars));
    cutting.bytes[0] = ' ';
    memcpy(cutting.bytes + cutting.has_prefix, text, size);
    cutting.chars[0] = first;
    if (chars != NULL)
        memcpy(cutting.chars + cutting.has_prefix, chars, size * sizeof(*chars));
    else
        number_chars(text, size, first, cutting.chars + cutting.has_prefix);
    cut_words(&cutting);
    free(cutting.heap);
    free(cutting.symbols);
    free(cutting.chars);
    free(cutting.bytes);
    free(chars);
    free(composed);
}
