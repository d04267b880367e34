/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/engines/encoder/unigram.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "base/assert.h"

#define UNK_PENALTY 10.0
#define GRAPHEME_SIZE_MAX 6u /* from here on a grapheme is not looked up as a whole */
#define SPACE_MARK 0x2581
#define CHAR_SIZE_MAX 4u
#define NONE UINT32_MAX

struct unigram {
    const struct vocab *vocab;
    struct unigram_options options;
    double *scores;   /* by id */
    uint32_t *sorted; /* ids of pieces in the order of their bytes */
    uint32_t sorted_count;
    uint32_t starts[257]; /* of the pieces whose first byte is this or a later one */
    uint32_t unk_id;
    double unk_score;
};

/* Where the best way to a byte comes from. */
struct step {
    double score;
    uint32_t from; /* NONE: there is no way yet */
    uint32_t id;
};

/* A character after normalization, and the one of the text that it stands for. */
struct letter {
    utf8proc_int32_t c;
    uint32_t of;
};

/* One part of a text on its way. */
struct cutting {
    const struct unigram *unigram;
    struct token_list *tokens;
    struct letter *letters;
    size_t letter_count, letter_room;
    uint8_t *bytes; /* of one word */
    uint32_t *of;   /* per byte: the character of the text */
    struct step *steps;
    uint32_t *path; /* ends of the pieces, the last first */
    size_t word_room;
};

/* ---- the model ---- */

static int by_bytes(const void *a_p, const void *b_p, void *vocab)
{
    size_t a_size, b_size;
    const char *a = vocab_text(vocab, *(const uint32_t *)a_p, &a_size);
    const char *b = vocab_text(vocab, *(const uint32_t *)b_p, &b_size);
    const int order = memcmp(a, b, a_size < b_size ? a_size : b_size);

    return order != 0 ? order : a_size < b_size ? -1 : a_size > b_size;
}

static void sort_pieces(struct unigram *unigram)
{
    uint32_t at = 0;

    qsort_r(unigram->sorted, unigram->sorted_count, sizeof(*unigram->sorted), by_bytes,
            (void *)(uintptr_t)unigram->vocab);
    for (uint32_t byte = 0; byte < 256; byte++) {
        size_t size;

        while (at < unigram->sorted_count &&
               (uint8_t)vocab_text(unigram->vocab, unigram->sorted[at], &size)[0] < byte)
            at++;
        unigram->starts[byte] = at;
    }
    unigram->starts[256] = unigram->sorted_count;
}

int unigram_new(const json_t *model, const struct vocab *vocab, struct unigram_options *options,
                struct unigram **ret_unigram, struct err *err)
{
    OWNED(unigram_free) struct unigram *unigram = xcalloc(1, sizeof(*unigram));
    const json_t *pieces = json_object_get(model, "vocab"), *unk = json_object_get(model, "unk_id");
    const uint32_t count = vocab_id_count(vocab);
    double least = 0;

    unigram->vocab = vocab;
    if (!json_is_integer(unk) || json_integer_value(unk) < 0 || json_integer_value(unk) >= count)
        return err_set(err, ERR_RANGE, "model.unk_id is none of 0 to %u", count - 1);
    unigram->unk_id = (uint32_t)json_integer_value(unk);
    unigram->scores = xcalloc(count, sizeof(*unigram->scores));
    unigram->sorted = xcalloc(count, sizeof(*unigram->sorted));
    for (uint32_t id = 0; id < count; id++) {
        const json_t *score = json_array_get(json_array_get(pieces, id), 1);
        uint32_t other;
        size_t size;
        const char *text = vocab_text(vocab, id, &size);

        if (!json_is_number(score))
            return err_set(err, ERR_MALFORMED, "model.vocab[%u] has no score", id);
        unigram->scores[id] = json_number_value(score);
        least = id == 0 || unigram->scores[id] < least ? unigram->scores[id] : least;
        /* Of two pieces with one text the later counts. */
        if (size > 0 && vocab_find(vocab, text, size, &other) && other == id)
            unigram->sorted[unigram->sorted_count++] = id;
    }
    unigram->unk_score = least - UNK_PENALTY;
    sort_pieces(unigram);
    unigram->options = *options;
    options->map = NULL;
    *ret_unigram = TAKE(unigram);
    return 0;
}

void unigram_free(struct unigram **unigram_p)
{
    struct unigram *unigram = TAKE(*unigram_p);

    if (unigram == NULL)
        return;
    charsmap_free(&unigram->options.map);
    free(unigram->sorted);
    free(unigram->scores);
    free(unigram);
}

uint32_t unigram_unk(const struct unigram *unigram)
{
    return unigram->unk_id;
}

/* ---- normalization ---- */

static bool is_white(utf8proc_int32_t c)
{
    return (c >= 0x09 && c <= 0x0d) || c == 0x20 || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f ||
           c == 0x205f || c == 0x3000;
}

static void put_letter(struct cutting *cutting, utf8proc_int32_t c, uint32_t of)
{
    if (cutting->letter_count == cutting->letter_room) {
        cutting->letter_room = cutting->letter_room == 0 ? 256 : 2 * cutting->letter_room;
        cutting->letters = xrealloc(cutting->letters, cutting->letter_room,
                                    sizeof(*cutting->letters));
    }
    cutting->letters[cutting->letter_count++] = (struct letter){c, of};
}

/* `char_count` characters from `first` on become these; more of them stand for the last one. */
static void put_replaced(struct cutting *cutting, const char *text, size_t size, uint32_t first,
                         uint32_t char_count)
{
    uint32_t of = first;

    for (size_t at = 0; at < size;) {
        utf8proc_int32_t c;
        utf8proc_ssize_t step = utf8proc_iterate((const utf8proc_uint8_t *)text + at,
                                                 (utf8proc_ssize_t)(size - at), &c);

        if (step <= 0) { /* the map is a user's */
            at++;
            continue;
        }
        put_letter(cutting, c, of);
        of += of + 1 < first + char_count;
        at += (size_t)step;
    }
}

static bool look_up(struct cutting *cutting, const char *text, size_t size, uint32_t first,
                    uint32_t char_count)
{
    const struct charsmap *map = cutting->unigram->options.map;
    size_t found_size;
    const char *found = map != NULL ? charsmap_find(map, text, size, &found_size) : NULL;

    if (found == NULL)
        return false;
    put_replaced(cutting, found, found_size, first, char_count);
    return true;
}

/* Where the grapheme at `at` ends, and how many characters it has. */
static size_t grapheme_end(const char *text, size_t size, size_t at, uint32_t *ret_char_count)
{
    utf8proc_int32_t c = 0, next = 0, state = 0;
    size_t end = at;

    *ret_char_count = 0;
    while (end < size) {
        const utf8proc_ssize_t step = utf8proc_iterate((const utf8proc_uint8_t *)text + end,
                                                       (utf8proc_ssize_t)(size - end), &next);

        if (step <= 0 && end > at)
            return end;
        if (step <= 0) { /* a byte that is no UTF-8 stands alone, and for nothing */
            *ret_char_count = 1;
            return at + 1;
        }
        if (end > at && utf8proc_grapheme_break_stateful(c, next, &state))
            return end;
        c = next;
        end += (size_t)step;
        (*ret_char_count)++;
    }
    return end;
}

static void normalize(struct cutting *cutting, const char *text, size_t size, uint32_t first)
{
    uint32_t char_count, of = first;

    for (size_t at = 0, end; at < size; at = end, of += char_count) {
        end = grapheme_end(text, size, at, &char_count);
        if (end - at < GRAPHEME_SIZE_MAX && look_up(cutting, text + at, end - at, of, char_count))
            continue;
        for (uint32_t i = 0; i < char_count; i++) {
            utf8proc_int32_t c;
            const utf8proc_ssize_t step = utf8proc_iterate((const utf8proc_uint8_t *)text + at,
                                                           (utf8proc_ssize_t)(end - at), &c);

            if (step <= 0)
                break;
            if (!look_up(cutting, text + at, (size_t)step, of + i, 1))
                put_letter(cutting, c, of + i);
            at += (size_t)step;
        }
    }
}

/* What the file says of spaces; in place. A space that is left stands for the last of its run. */
static void settle_spaces(struct cutting *cutting)
{
    const struct unigram_options *options = &cutting->unigram->options;
    struct letter *letters = cutting->letters;
    size_t first = 0, last = cutting->letter_count, count = 0;

    while (options->strip_left && first < last && is_white(letters[first].c))
        first++;
    while (options->strip_right && last > first && is_white(letters[last - 1].c))
        last--;
    for (size_t i = first; i < last; i++) {
        if (options->join_spaces && letters[i].c == ' ' && i + 1 < last && letters[i + 1].c == ' ')
            continue;
        letters[count++] = letters[i];
    }
    cutting->letter_count = count;
}

/* ---- pieces ---- */

/* Narrows pieces [*low, *high), which agree in their first `depth` bytes, to those whose next byte
 * is `byte`. */
static void narrow(const struct unigram *unigram, size_t depth, uint8_t byte, uint32_t *low,
                   uint32_t *high)
{
    uint32_t bounds[2];

    for (int side = 0; side < 2; side++) {
        uint32_t a = *low, b = *high;

        while (a < b) {
            const uint32_t middle = a + (b - a) / 2;
            size_t size;
            const char *text = vocab_text(unigram->vocab, unigram->sorted[middle], &size);
            const int at = size > depth ? (uint8_t)text[depth] : -1;

            if (at < byte + side)
                a = middle + 1;
            else
                b = middle;
        }
        bounds[side] = a;
    }
    *low = bounds[0];
    *high = bounds[1];
}

static void offer(struct step *to, double score, uint32_t from, uint32_t id)
{
    if (to->from == NONE || score > to->score)
        *to = (struct step){score, from, id};
}

/* All pieces that begin at byte `at` of the word, or an unknown character. */
static void step_from(struct cutting *cutting, size_t size, size_t at, size_t char_size)
{
    const struct unigram *unigram = cutting->unigram;
    const double so_far = cutting->steps[at].score;
    uint32_t low = unigram->starts[cutting->bytes[at]];
    uint32_t high = unigram->starts[cutting->bytes[at] + 1];
    bool has_char = false;

    for (size_t depth = 1; low < high; depth++) {
        size_t piece_size;
        const uint32_t id = unigram->sorted[low];

        (void)vocab_text(unigram->vocab, id, &piece_size);
        if (piece_size == depth) { /* the shortest of those that agree comes first */
            offer(&cutting->steps[at + depth], so_far + unigram->scores[id], (uint32_t)at, id);
            has_char = has_char || depth == char_size;
        }
        if (at + depth == size)
            break;
        narrow(unigram, depth, cutting->bytes[at + depth], &low, &high);
    }
    if (!has_char)
        offer(&cutting->steps[at + char_size], so_far + unigram->unk_score, (uint32_t)at,
              unigram->unk_id);
}

static size_t char_size_at(const uint8_t *bytes, size_t at)
{
    const uint8_t byte = bytes[at];

    return byte < 0x80 ? 1 : byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : 4;
}

static void put_pieces(struct cutting *cutting, size_t size)
{
    const uint32_t unk_id = cutting->unigram->unk_id;
    size_t count = 0, from = 0;

    for (size_t end = size; end > 0; end = cutting->steps[end].from)
        cutting->path[count++] = (uint32_t)end;
    while (count > 0) {
        size_t end = cutting->path[--count];
        const uint32_t id = cutting->steps[end].id;

        /* Unknown neighbours are one. */
        while (id == unk_id && count > 0 && cutting->steps[cutting->path[count - 1]].id == unk_id)
            end = cutting->path[--count];
        token_list_put(cutting->tokens, id, cutting->of[from], cutting->of[end - 1] + 1);
        from = end;
    }
}

static void cut_word(struct cutting *cutting, size_t size)
{
    cutting->steps[0] = (struct step){.score = 0};
    for (size_t i = 1; i <= size; i++)
        cutting->steps[i].from = NONE;
    for (size_t at = 0, step; at < size; at += step) {
        step = char_size_at(cutting->bytes, at);
        step_from(cutting, size, at, step);
    }
    put_pieces(cutting, size);
}

static size_t put_char(struct cutting *cutting, size_t size, utf8proc_int32_t c, uint32_t of)
{
    const size_t more = (size_t)utf8proc_encode_char(c, cutting->bytes + size);

    for (size_t i = 0; i < more; i++)
        cutting->of[size + i] = of;
    return size + more;
}

/* Words begin at a space, which is their first letter, or behind white space that is gone. */
static void cut_words(struct cutting *cutting)
{
    const bool split = cutting->unigram->options.split_white;
    const struct letter *letters = cutting->letters;
    size_t at = 0;

    while (at < cutting->letter_count && !cutting->tokens->truncated) {
        size_t size = 0;

        while (split && at < cutting->letter_count && is_white(letters[at].c))
            at++;
        if (at == cutting->letter_count)
            return;
        if (letters[at].c == ' ' || letters[at].c == SPACE_MARK) {
            size = put_char(cutting, size, SPACE_MARK, letters[at].of);
            at++;
        } else if (split || at == 0) {
            size = put_char(cutting, size, SPACE_MARK, letters[at].of);
        }
        while (at < cutting->letter_count && letters[at].c != ' ' && letters[at].c != SPACE_MARK &&
               !(split && is_white(letters[at].c))) {
            size = put_char(cutting, size, letters[at].c, letters[at].of);
            at++;
        }
        cut_word(cutting, size);
    }
}

void unigram_cut(const struct unigram *unigram, const char *text, size_t size, uint32_t first,
                 struct token_list *tokens)
{
    struct cutting cutting = {.unigram = unigram, .tokens = tokens};

    normalize(&cutting, text, size, first);
    settle_spaces(&cutting);
    cutting.word_room = CHAR_SIZE_MAX * (cutting.letter_count + 1);
    cutting.bytes = xmalloc(cutting.word_room);
    cutting.of = xcalloc(cutting.word_room, sizeof(*cutting.of));
    cutting.steps = xcalloc(cutting.word_room + 1, sizeof(*cutting.steps));
    cutting.path = xcalloc(cutting.word_room, sizeof(*cutting.path));
    cut_words(&cutting);
    free(cutting.path);
    free(cutting.steps);
    free(cutting.of);
    free(cutting.bytes);
    free(cutting.letters);
}
