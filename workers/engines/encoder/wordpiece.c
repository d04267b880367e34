/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/engines/encoder/wordpiece.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/assert.h"
#include "workers/engines/encoder/wordpiece_int.h"

#define CHAR_SIZE_MAX 4u
#define DECOMPOSED_MAX 8 /* canonical decompositions have 4 code points at most */
#define WORD_SIZE_MAX (WORDPIECE_WORD_CHARS_MAX * CHAR_SIZE_MAX)
#define HASH_BASIS 2166136261u
#define HASH_PRIME 16777619u

enum char_class {
    CHAR_PLAIN,
    CHAR_DROPPED,
    CHAR_SPACE,
    CHAR_IDEOGRAPH,
    CHAR_ACCENT,
    CHAR_PUNCTUATION,
};

static const struct {
    uint8_t class;
    uint32_t first, last;
} char_ranges[] = {
#define CHARS(name, first, last) {CHAR_##name, first, last},
#include "workers/engines/encoder/wordpiece_chars.def"
#undef CHARS
};

/* By code point; made once and the same for every tokenizer. */
static uint8_t char_classes[WORDPIECE_CODE_POINT_COUNT];

static void fill_char_classes(void)
{
    for (size_t i = 0; i < COUNT_OF(char_ranges); i++)
        memset(char_classes + char_ranges[i].first, char_ranges[i].class,
               char_ranges[i].last - char_ranges[i].first + 1);
}

/* One text on its way: the word that is being collected, and the ids so far. */
struct encoding {
    const struct wordpiece *pieces;
    struct token_list *tokens;
    uint32_t position; /* of the character of the text that is being read */
    uint32_t word_first, word_last;
    uint32_t positions[WORDPIECE_WORD_CHARS_MAX]; /* of the word's characters */
    uint32_t word_size, word_char_count;
    uint8_t char_ends[WORD_SIZE_MAX + 1]; /* 1 where a character of the word ends */
    char word[WORD_SIZE_MAX];
};

void wordpiece_options_init(struct wordpiece_options *options)
{
    *options = (struct wordpiece_options){
        .lower_case = true,
        .strip_accents = true,
        .split_ideographs = true,
        .sep_count = 1,
        .word_chars_max = WORDPIECE_WORD_CHARS_MAX,
        .unk = "[UNK]",
        .cls = "[CLS]",
        .sep = "[SEP]",
    };
}

static uint32_t hash_start(bool continues)
{
    return continues ? HASH_BASIS ^ 0x5bd1e995u : HASH_BASIS;
}

static uint32_t hash_step(uint32_t hash, char byte)
{
    return (hash ^ (uint8_t)byte) * HASH_PRIME;
}

/* 0 marks a free slot; FNV's low bits are weak, so they are mixed once. */
static uint32_t hash_end(uint32_t hash)
{
    hash ^= hash >> 15;
    hash *= 0x2c1b3c6du;
    hash ^= hash >> 13;
    return hash | 1u << 31;
}

struct wordpiece *wordpiece_alloc(const struct wordpiece_options *options, uint32_t token_count,
                                  size_t texts_size)
{
    static pthread_once_t filled = PTHREAD_ONCE_INIT;
    struct wordpiece *pieces = xcalloc(1, sizeof(*pieces));
    uint32_t slot_count = 16;

    assert(token_count <= WORDPIECE_TOKEN_COUNT_MAX);
    while (slot_count < 2 * token_count)
        slot_count *= 2;
    pieces->options = *options;
    pieces->slots = xcalloc(slot_count, sizeof(*pieces->slots));
    pieces->slot_mask = slot_count - 1;
    pieces->texts = xmalloc(texts_size + 1);
    pieces->texts_room = texts_size;
    (void)pthread_once(&filled, fill_char_classes);
    for (uint32_t i = 0; i < options->special_count; i++)
        pieces->special_starts[(uint8_t)options->specials[i].text[0]] = true;
    return pieces;
}

void wordpiece_free(struct wordpiece **pieces_p)
{
    struct wordpiece *pieces = TAKE(*pieces_p);

    if (pieces == NULL)
        return;
    free(pieces->slot_of_id);
    free(pieces->texts);
    free(pieces->slots);
    free(pieces);
}

uint32_t wordpiece_id_count(const struct wordpiece *pieces)
{
    return pieces->id_count;
}

uint32_t wordpiece_cls(const struct wordpiece *pieces)
{
    return pieces->cls_id;
}

uint32_t wordpiece_sep(const struct wordpiece *pieces)
{
    return pieces->sep_id;
}

uint32_t wordpiece_unk(const struct wordpiece *pieces)
{
    return pieces->unk_id;
}

uint32_t wordpiece_sep_count(const struct wordpiece *pieces)
{
    return pieces->options.sep_count;
}

/* The slot of the text, or the free one where it would go. `hash` is hash_end's. */
static struct wordpiece_slot *find_slot(const struct wordpiece *pieces, const char *text,
                                        uint32_t size, bool continues, uint32_t hash)
{
    for (uint32_t i = hash & pieces->slot_mask;; i = (i + 1) & pieces->slot_mask) {
        struct wordpiece_slot *slot = &pieces->slots[i];

        if (slot->hash == 0 ||
            (slot->hash == hash && slot->size == size && slot->continues == continues &&
             memcmp(pieces->texts + slot->text_offset, text, size) == 0))
            return slot;
    }
}

int wordpiece_add(struct wordpiece *pieces, const char *token, size_t token_size, uint32_t id,
                  struct err *err)
{
    bool continues = token_size > 2 && token[0] == '#' && token[1] == '#';
    const char *text = continues ? token + 2 : token;
    uint32_t size, hash = hash_start(continues);
    struct wordpiece_slot *slot;

    if (token_size > WORDPIECE_TOKEN_SIZE_MAX)
        return err_set(err, ERR_RANGE, "token %u has %zu bytes, limit %u", id, token_size,
                       WORDPIECE_TOKEN_SIZE_MAX);
    if (id >= WORDPIECE_TOKEN_COUNT_MAX)
        return err_set(err, ERR_RANGE, "token id %u is over the limit of %u", id,
                       WORDPIECE_TOKEN_COUNT_MAX);
    size = (uint32_t)(token_size - (size_t)(text - token));
    for (uint32_t i = 0; i < size; i++)
        hash = hash_step(hash, text[i]);
    hash = hash_end(hash);
    slot = find_slot(pieces, text, size, continues, hash);
    if (slot->hash == 0) {
        assert(size <= pieces->texts_room - pieces->texts_size);
        *slot = (struct wordpiece_slot){
            .hash = hash,
            .text_offset = (uint32_t)pieces->texts_size,
            .size = (uint16_t)size,
            .continues = continues,
        };
        memcpy(pieces->texts + pieces->texts_size, text, size);
        pieces->texts_size += size;
    }
    slot->id = id; /* of two lines with one text the later wins, as in the reference */
    if (size > pieces->piece_size_max)
        pieces->piece_size_max = size;
    if (id >= pieces->id_count)
        pieces->id_count = id + 1;
    return 0;
}

bool wordpiece_find(const struct wordpiece *pieces, const char *token, uint32_t *ret_id)
{
    uint32_t size = (uint32_t)strlen(token), hash = hash_start(false);
    const struct wordpiece_slot *slot;

    for (uint32_t i = 0; i < size; i++)
        hash = hash_step(hash, token[i]);
    slot = find_slot(pieces, token, size, false, hash_end(hash));
    if (slot->hash == 0)
        return false;
    *ret_id = slot->id;
    return true;
}

static int find_id(const struct wordpiece *pieces, const char *token, uint32_t *ret_id,
                   struct err *err)
{
    if (!wordpiece_find(pieces, token, ret_id))
        return err_set(err, ERR_MISMATCH, "the vocabulary has no token '%s'", token);
    return 0;
}

int wordpiece_finish(struct wordpiece *pieces, struct err *err)
{
    int r;

    r = find_id(pieces, pieces->options.unk, &pieces->unk_id, err);
    if (r == 0)
        r = find_id(pieces, pieces->options.cls, &pieces->cls_id, err);
    if (r == 0)
        r = find_id(pieces, pieces->options.sep, &pieces->sep_id, err);
    for (uint32_t i = 0; i < pieces->options.special_count; i++) {
        struct wordpiece_special *special = &pieces->options.specials[i];

        special->char_count = 0;
        for (uint32_t j = 0; j < special->size; j++)
            special->char_count += ((uint8_t)special->text[j] & 0xc0u) != 0x80u;
        if (special->id >= pieces->id_count)
            pieces->id_count = special->id + 1;
    }
    pieces->slot_of_id = xcalloc(pieces->id_count, sizeof(*pieces->slot_of_id));
    for (uint32_t i = 0; i <= pieces->slot_mask; i++) {
        if (pieces->slots[i].hash != 0)
            pieces->slot_of_id[pieces->slots[i].id] = i + 1;
    }
    return r;
}

size_t wordpiece_text(const struct wordpiece *pieces, uint32_t id, const char **ret_text,
                      bool *ret_continues)
{
    const struct wordpiece_slot *slot;

    *ret_text = "";
    *ret_continues = false;
    if (id >= pieces->id_count)
        return 0;
    if (pieces->slot_of_id[id] == 0) {
        for (uint32_t i = 0; i < pieces->options.special_count; i++) {
            if (pieces->options.specials[i].id == id) {
                *ret_text = pieces->options.specials[i].text;
                return pieces->options.specials[i].size;
            }
        }
        return 0;
    }
    slot = &pieces->slots[pieces->slot_of_id[id] - 1];
    *ret_text = pieces->texts + slot->text_offset;
    *ret_continues = slot->continues;
    return slot->size;
}

int wordpiece_new(const struct wordpiece_options *options, const char *vocab, size_t vocab_size,
                  struct wordpiece **ret_pieces, struct err *err)
{
    OWNED(wordpiece_free) struct wordpiece *pieces = NULL;
    const char *end = vocab + vocab_size;
    uint32_t line_count = 0, id = 0;
    int r = 0;

    for (size_t i = 0; i < vocab_size; i++)
        line_count += vocab[i] == '\n' && line_count <= WORDPIECE_TOKEN_COUNT_MAX;
    if (line_count >= WORDPIECE_TOKEN_COUNT_MAX || vocab_size > WORDPIECE_FILE_SIZE_MAX)
        return err_set(err, ERR_TOO_BIG, "vocabulary has more than %u tokens or %u bytes",
                       WORDPIECE_TOKEN_COUNT_MAX, WORDPIECE_FILE_SIZE_MAX);
    pieces = wordpiece_alloc(options, line_count + 1, vocab_size);
    for (const char *line = vocab; r == 0 && line < end; id++) {
        const char *stop = memchr(line, '\n', (size_t)(end - line));
        size_t size = (size_t)((stop != NULL ? stop : end) - line);

        if (size > 0 && line[size - 1] == '\r')
            size--;
        r = wordpiece_add(pieces, line, size, id, err);
        line = stop != NULL ? stop + 1 : end;
    }
    if (r == 0)
        r = wordpiece_finish(pieces, err);
    if (r == 0)
        *ret_pieces = TAKE(pieces);
    return r;
}

/* The longest piece that the word has at `start`. 0: none; else its size, and its id. */
static uint32_t match_piece(const struct encoding *to, uint32_t start, uint32_t *ret_id)
{
    const struct wordpiece *pieces = to->pieces;
    uint32_t hashes[WORD_SIZE_MAX];
    uint32_t room = to->word_size - start, hash = hash_start(start > 0);

    if (room > pieces->piece_size_max)
        room = pieces->piece_size_max;
    for (uint32_t i = 0; i < room; i++) {
        hash = hash_step(hash, to->word[start + i]);
        hashes[i] = hash;
    }
    for (uint32_t size = room; size > 0; size--) {
        const struct wordpiece_slot *slot;

        if (!to->char_ends[start + size])
            continue;
        slot = find_slot(pieces, to->word + start, size, start > 0, hash_end(hashes[size - 1]));
        if (slot->hash != 0) {
            *ret_id = slot->id;
            return size;
        }
    }
    return 0;
}

/* Pieces end at bytes of the word, spans at characters of the text. */
static void put_pieces(struct encoding *to, const uint32_t *ids, const uint32_t *ends,
                       uint32_t count)
{
    uint32_t at = 0, first = 0, last = 0;

    for (uint32_t i = 0; i < count; i++) {
        for (; to->tokens->with_spans && at < ends[i]; at++)
            last += to->char_ends[at + 1];
        if (to->tokens->with_spans)
            token_list_put(to->tokens, ids[i], to->positions[first], to->positions[last - 1] + 1);
        else
            token_list_put(to->tokens, ids[i], 0, 0);
        first = last;
    }
}

static void end_word(struct encoding *to)
{
    uint32_t ids[WORDPIECE_WORD_CHARS_MAX], ends[WORDPIECE_WORD_CHARS_MAX];
    uint32_t count = 0, at = 0, id = 0, size = 1;

    if (to->word_char_count == 0)
        return;
    if (to->word_char_count > to->pieces->options.word_chars_max)
        size = 0;
    while (size > 0 && at < to->word_size) {
        size = match_piece(to, at, &id);
        at += size;
        ids[count] = id;
        ends[count] = at;
        count += size > 0;
    }
    if (size == 0)
        token_list_put(to->tokens, to->pieces->unk_id, to->word_first, to->word_last + 1);
    else
        put_pieces(to, ids, ends, count);
    to->word_size = 0;
    to->word_char_count = 0;
}

/* Of a word past the limit only its length still matters. */
static void add_char(struct encoding *to, utf8proc_int32_t c)
{
    utf8proc_uint8_t bytes[CHAR_SIZE_MAX];
    uint32_t size;

    if (to->word_char_count == 0)
        to->word_first = to->position;
    to->word_last = to->position;
    to->word_char_count++;
    if (to->word_char_count > to->pieces->options.word_chars_max)
        return;
    to->positions[to->word_char_count - 1] = to->position;
    size = (uint32_t)utf8proc_encode_char(c, bytes);
    for (uint32_t i = 0; i < size; i++) {
        to->word[to->word_size + i] = (char)bytes[i];
        to->char_ends[to->word_size + i + 1] = i + 1 == size;
    }
    to->word_size += size;
}

static void put_normal(struct encoding *to, utf8proc_int32_t c)
{
    switch ((enum char_class)char_classes[c]) {
    case CHAR_SPACE:
        end_word(to);
        return;
    case CHAR_PUNCTUATION:
        end_word(to);
        add_char(to, c);
        end_word(to);
        return;
    case CHAR_PLAIN:
    case CHAR_DROPPED:
    case CHAR_IDEOGRAPH:
    case CHAR_ACCENT:
        break;
    }
    add_char(to, c);
}

static void put_lower(struct encoding *to, utf8proc_int32_t c)
{
    if (!to->pieces->options.lower_case) {
        put_normal(to, c);
    } else if (c == 0x130) { /* the one letter whose lower case is two code points */
        put_normal(to, 'i');
        put_normal(to, 0x307);
    } else {
        put_normal(to, utf8proc_tolower(c));
    }
}

static void put_decomposed(struct encoding *to, utf8proc_int32_t c)
{
    utf8proc_int32_t parts[DECOMPOSED_MAX];
    utf8proc_ssize_t count;
    int boundary = UTF8PROC_BOUNDCLASS_START;

    if (!to->pieces->options.strip_accents) {
        put_lower(to, c);
        return;
    }
    count = utf8proc_decompose_char(c, parts, DECOMPOSED_MAX, UTF8PROC_DECOMPOSE, &boundary);
    assert(count >= 0 && count <= DECOMPOSED_MAX);
    for (utf8proc_ssize_t i = 0; i < count; i++) {
        if (char_classes[parts[i]] != CHAR_ACCENT)
            put_lower(to, parts[i]);
    }
}

static void put_raw(struct encoding *to, utf8proc_int32_t c)
{
    bool ideograph;

    switch ((enum char_class)char_classes[c]) {
    case CHAR_DROPPED:
        return;
    case CHAR_SPACE:
        end_word(to);
        return;
    case CHAR_PLAIN:
    case CHAR_IDEOGRAPH:
    case CHAR_ACCENT:
    case CHAR_PUNCTUATION:
        break;
    }
    ideograph = char_classes[c] == CHAR_IDEOGRAPH && to->pieces->options.split_ideographs;
    if (ideograph)
        end_word(to);
    put_decomposed(to, c);
    if (ideograph)
        end_word(to);
}

static bool is_special(const struct wordpiece *pieces, const struct wordpiece_special *special,
                       const char *text)
{
    if (special->any_case && pieces->options.lower_case)
        return strncasecmp(special->text, text, special->size) == 0;
    return memcmp(special->text, text, special->size) == 0;
}

/* The longest special token at the front of the text, or NULL. */
static const struct wordpiece_special *match_special(const struct wordpiece *pieces,
                                                     const char *text, size_t size)
{
    const struct wordpiece_special *best = NULL;

    if (!pieces->special_starts[(uint8_t)text[0]])
        return NULL;
    for (uint32_t i = 0; i < pieces->options.special_count; i++) {
        const struct wordpiece_special *special = &pieces->options.specials[i];

        if (special->size <= size && (best == NULL || special->size > best->size) &&
            is_special(pieces, special, text))
            best = special;
    }
    return best;
}

/* ASCII letters and digits are most of what there is, and need none of the tables. */
static bool put_ascii(struct encoding *to, char c)
{
    if ((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9')) {
        add_char(to, c);
        return true;
    }
    if (c >= 'A' && c <= 'Z') {
        add_char(to, to->pieces->options.lower_case ? c - 'A' + 'a' : c);
        return true;
    }
    if (c == ' ') {
        end_word(to);
        return true;
    }
    return false;
}

void wordpiece_cut(const struct wordpiece *pieces, const char *text, size_t text_size,
                   struct token_list *tokens)
{
    struct encoding to = {.pieces = pieces, .tokens = tokens};
    size_t at = 0;

    while (at < text_size && !tokens->truncated) {
        const struct wordpiece_special *special = match_special(pieces, text + at, text_size - at);
        utf8proc_int32_t c = 0;
        utf8proc_ssize_t size;

        if (special != NULL) {
            end_word(&to);
            token_list_put(tokens, special->id, to.position, to.position + special->char_count);
            to.position += special->char_count;
            at += special->size;
            continue;
        }
        if (put_ascii(&to, text[at])) {
            to.position++;
            at++;
            continue;
        }
        size = utf8proc_iterate((const utf8proc_uint8_t *)text + at,
                                (utf8proc_ssize_t)(text_size - at), &c);
        if (size > 0)
            put_raw(&to, c);
        to.position++;
        at += size > 0 ? (size_t)size : 1;
    }
    end_word(&to);
}

uint32_t wordpiece_encode(const struct wordpiece *pieces, const char *text, size_t text_size,
                          uint32_t *ids, uint32_t id_count_max, bool *ret_truncated)
{
    struct token_list tokens = {
        .ids = ids + 1, .room = id_count_max - 2, .count_max = id_count_max - 2};

    assert(id_count_max >= 2);
    ids[0] = pieces->cls_id;
    wordpiece_cut(pieces, text, text_size, &tokens);
    ids[1 + tokens.count] = pieces->sep_id;
    *ret_truncated = tokens.truncated;
    return tokens.count + 2;
}
