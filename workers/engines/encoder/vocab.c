/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/engines/encoder/vocab.h"

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"

struct place {
    uint32_t offset;
    uint32_t size;
};

struct vocab {
    uint32_t *slots; /* id plus one; 0: free. Open addressing, at most half full */
    uint32_t slot_mask;
    struct place *places; /* by id */
    uint32_t place_room, id_count;
    uint32_t token_count, token_room;
    char *texts;
    size_t texts_size, texts_room;
};

static uint32_t hash_of(const char *text, size_t size)
{
    uint32_t hash = 2166136261u;

    for (size_t i = 0; i < size; i++)
        hash = (hash ^ (uint8_t)text[i]) * 16777619u;
    hash ^= hash >> 15;
    hash *= 0x2c1b3c6du;
    return hash ^ hash >> 13;
}

struct vocab *vocab_new(uint32_t token_count, size_t texts_size)
{
    struct vocab *vocab = xcalloc(1, sizeof(*vocab));
    uint32_t slot_count = 16;

    assert(token_count <= VOCAB_TOKEN_COUNT_MAX);
    while (slot_count < 2 * token_count)
        slot_count *= 2;
    vocab->slots = xcalloc(slot_count, sizeof(*vocab->slots));
    vocab->slot_mask = slot_count - 1;
    vocab->token_room = token_count;
    vocab->texts = xmalloc(texts_size + 1);
    vocab->texts_room = texts_size;
    return vocab;
}

void vocab_free(struct vocab **vocab_p)
{
    struct vocab *vocab = TAKE(*vocab_p);

    if (vocab == NULL)
        return;
    free(vocab->texts);
    free(vocab->places);
    free(vocab->slots);
    free(vocab);
}

static uint32_t *find_slot(const struct vocab *vocab, const char *text, size_t size)
{
    for (uint32_t i = hash_of(text, size) & vocab->slot_mask;; i = (i + 1) & vocab->slot_mask) {
        uint32_t *slot = &vocab->slots[i];

        if (*slot == 0 || (vocab->places[*slot - 1].size == size &&
                           memcmp(vocab->texts + vocab->places[*slot - 1].offset, text, size) == 0))
            return slot;
    }
}

int vocab_add(struct vocab *vocab, const char *text, size_t size, uint32_t id, struct err *err)
{
    uint32_t *slot;

    if (size > VOCAB_TOKEN_SIZE_MAX || id >= VOCAB_TOKEN_COUNT_MAX)
        return err_set(err, ERR_RANGE, "token %u has %zu bytes; limits are %u and %u bytes", id,
                       size, VOCAB_TOKEN_COUNT_MAX, VOCAB_TOKEN_SIZE_MAX);
    if (vocab->token_count == vocab->token_room || size > vocab->texts_room - vocab->texts_size)
        return err_set(err, ERR_INTERNAL, "the vocabulary has room for %u tokens",
                       vocab->token_room);
    if (id < vocab->id_count && vocab->places[id].size > 0)
        return err_set(err, ERR_MISMATCH, "id %u is that of two tokens, '%.*s' is one", id,
                       (int)(size < 40 ? size : 40), text);
    while (id >= vocab->place_room) {
        const uint32_t room = vocab->place_room == 0 ? 1024 : 2 * vocab->place_room;

        vocab->places = xrealloc(vocab->places, room, sizeof(*vocab->places));
        memset(vocab->places + vocab->place_room, 0,
               (room - vocab->place_room) * sizeof(*vocab->places));
        vocab->place_room = room;
    }
    slot = find_slot(vocab, text, size);
    memcpy(vocab->texts + vocab->texts_size, text, size);
    vocab->places[id] = (struct place){(uint32_t)vocab->texts_size, (uint32_t)size};
    vocab->texts_size += size;
    vocab->token_count++;
    *slot = id + 1;
    if (id >= vocab->id_count)
        vocab->id_count = id + 1;
    return 0;
}

bool vocab_find(const struct vocab *vocab, const char *text, size_t size, uint32_t *ret_id)
{
    const uint32_t slot = *find_slot(vocab, text, size);

    if (slot == 0)
        return false;
    *ret_id = slot - 1;
    return true;
}

const char *vocab_text(const struct vocab *vocab, uint32_t id, size_t *ret_size)
{
    *ret_size = id < vocab->id_count ? vocab->places[id].size : 0;
    return *ret_size > 0 ? vocab->texts + vocab->places[id].offset : "";
}

uint32_t vocab_id_count(const struct vocab *vocab)
{
    return vocab->id_count;
}
