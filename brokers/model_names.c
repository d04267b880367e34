/* SPDX-License-Identifier: Apache-2.0 */

#include "brokers/model_names.h"

#include <stdlib.h>
#include <uthash.h>

#include "base/err.h"
#include "base/mem.h"
#include "brokers/pg.h"

#define READ_TIMEOUT_MS 5000
#define NAME_SIZE 65

/* Deleted ones too: their last jobs may be under way. */
PG_STATEMENT(model_names_all, "SELECT id, name FROM model ORDER BY created_at DESC LIMIT 10000");

struct entry {
    UT_hash_handle hh;
    char id[NAME_SIZE], name[NAME_SIZE];
};

struct model_names {
    struct pg *pg;
    struct entry *entries;
    unsigned version;
    bool reading, wanted; /* wanted: it changed while it was read */
};

struct model_names *model_names_new(struct pg *pg)
{
    struct model_names *names = xcalloc(1, sizeof(*names));

    names->pg = pg;
    return names;
}

static void entries_free(struct entry **entries_p)
{
    struct entry *entry, *next;

    HASH_ITER(hh, *entries_p, entry, next)
    {
        HASH_DEL(*entries_p, entry);
        free(entry);
    }
}

void model_names_free(struct model_names **names_p)
{
    struct model_names *names = TAKE(*names_p);

    if (names == NULL)
        return;
    entries_free(&names->entries);
    free(names);
}

static void on_notify(void *opaque, const char *payload)
{
    (void)payload;
    model_names_read(opaque);
}

void model_names_listen(struct model_names *names)
{
    pg_listen(names->pg, "headrace_config", on_notify, names);
}

static void entry_add(struct model_names *names, const char *id, const char *name)
{
    struct entry *entry = xcalloc(1, sizeof(*entry));

    mem_copy_text(entry->id, id);
    mem_copy_text(entry->name, name);
    HASH_ADD_STR(names->entries, id, entry);
}

static void on_answer(void *opaque, const struct pg_answer *answer)
{
    struct model_names *names = opaque;

    names->reading = false;
    if (answer->err.code == ERR_OK) { /* else: read again with the next connection or change */
        entries_free(&names->entries);
        for (size_t i = 0; i < pg_row_count(answer, 0); i++)
            entry_add(names, pg_c(answer, 0, i, 0), pg_c(answer, 0, i, 1));
        names->version++;
    }
    if (!names->wanted)
        return;
    names->wanted = false;
    model_names_read(names);
}

void model_names_read(struct model_names *names)
{
    OWNED(pg_batch_free) struct pg_batch *batch = NULL;
    struct err err;

    names->wanted = names->wanted || names->reading;
    if (names->reading)
        return;
    batch = pg_batch_new();
    pg_add(batch, &model_names_all);
    names->reading = pg_send(names->pg, &batch, READ_TIMEOUT_MS, on_answer, names, &err) == 0;
}

unsigned model_names_version(const struct model_names *names)
{
    return names->version;
}

const char *model_names_find(const struct model_names *names, struct wire_text id)
{
    const struct entry *entry;

    HASH_FIND(hh, names->entries, id.text, id.size, entry);
    return entry == NULL ? NULL : entry->name;
}
