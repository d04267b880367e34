/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Steps with `cache`: before such a job is submitted, the ledger is asked whether a job with the
 * same input has succeeded at the same deployment. What is taken over is written down among the
 * run's steps in the statement that finds it, under the fence of the attempt, so that whoever goes
 * on with the run takes over the same.
 *
 * An attempt asks if all before it in its round were put off, or there was none: one that was lost
 * might have submitted the job, and its row may not be there yet. (An attempt of an owner that was
 * fenced has no row: what it submits meanwhile runs for nothing.) An answer that may have been
 * carried out is asked for again, and is the same.
 */

#include <string.h>

#include "base/log.h"
#include "chains/coordinator_int.h"

PG_STATEMENT(cache_take, "SELECT place, job_id, output, coalesce(output_type, ''), "
                         "coalesce(output_blob, '') FROM chain_cache_take($1, $2, $3, $4, $5, $6, "
                         "$7, $8)");
PG_STATEMENT(cache_put, "SELECT chain_cache_put($1, $2, $3)");

/* ---- what is asked for ---- */

void cache_want(struct item *item)
{
    item->stage = ITEM_TO_ASK;
    LIST_INSERT_HEAD(&item->coordinator->to_ask, item, ask_link);
}

void cache_forget(struct item *item)
{
    if (item->stage == ITEM_TO_ASK)
        LIST_REMOVE(item, ask_link);
}

/* Its blob may have to be read twice: by the id of the job that it is of. */
static void item_rename(struct item *item, struct wire_id job)
{
    HASH_DEL(item->coordinator->items, item);
    item->job = job;
    HASH_ADD(hh, item->coordinator->items, job, sizeof(item->job), item);
}

static void item_take(struct item *item, const struct pg_answer *answer, size_t row)
{
    struct wire_text blob = pg_text(answer, 0, row, 4);

    item->fresh = false;
    mem_free(&item->text);
    if (blob.size > 0)
        item_rename(item, pg_id(answer, 0, row, 1));
    item_over(item, JOB_SUCCEEDED, ERROR_CLASS_NONE, (struct wire_text){0},
              pg_bytes(answer, 0, row, 2), pg_text(answer, 0, row, 3), blob);
}

/* An item that is over may end its run, and others of it with it: those are pinned until their
 * turn. */
static void on_taken(void *opaque, const struct pg_answer *answer)
{
    struct coordinator *coordinator = opaque;
    size_t count = coordinator->question_count, rows[COORDINATOR_ASKED_MAX] = {0};
    struct item *items[COORDINATOR_ASKED_MAX];
    bool known = answer->err.code == ERR_OK;

    memcpy(items, coordinator->questions, sizeof(items));
    coordinator->question_count = 0;
    for (size_t i = 0; known && i < pg_row_count(answer, 0); i++)
        rows[pg_u64(answer, 0, i, 0) - 1] = i + 1;
    if (!known)
        log_warn("cache_not_asked", LOG_ERR(&answer->err));
    for (size_t i = 0; i < count; i++) {
        if (!item_unpin(items[i]))
            continue;
        if (!known)
            cache_want(items[i]);
        else if (rows[i] > 0)
            item_take(items[i], answer, rows[i] - 1);
        else
            item_send(items[i]);
    }
    if (known)
        cache_tick(coordinator);
}

#define BIND_EACH(type, bind, value)                                                               \
    do {                                                                                           \
        pg_bind_array(batch, type, count);                                                         \
        for (size_t i = 0; i < count; i++) {                                                       \
            const struct item *item = items[i];                                                    \
            const struct chain_step *step = &item->coordinator->chain->steps[item->step];          \
                                                                                                   \
            (void)step;                                                                            \
            bind(batch, value);                                                                    \
        }                                                                                          \
    } while (0)

static struct pg_batch *take_batch(struct item *const *items, size_t count)
{
    struct pg_batch *batch = pg_batch_new();

    pg_add(batch, &cache_take);
    BIND_EACH(PG_ID, pg_bind_id, &item->run->job);
    BIND_EACH(PG_I64, pg_bind_i64, (int64_t)item->run->id);
    BIND_EACH(PG_TEXT, pg_bind_c, step->name);
    BIND_EACH(PG_I32, pg_bind_i32, item->item);
    BIND_EACH(PG_I16, pg_bind_i16, item->run->round);
    BIND_EACH(PG_TEXT, pg_bind_c, item->run->targets[item->step].deployment);
    BIND_EACH(PG_BYTES, pg_bind_bytes, ((struct wire_bytes){item->digest, sizeof(item->digest)}));
    BIND_EACH(PG_DOUBLE, pg_bind_double, (double)step->cache_seconds);
    return batch;
}

static void take_ask(struct coordinator *coordinator)
{
    struct pg_batch *batch;
    struct item *item;
    size_t count = 0;
    struct err err;

    if (coordinator->question_count > 0 || !pg_connected(coordinator->pg))
        return;
    LIST_FOREACH(item, &coordinator->to_ask, ask_link)
    {
        if (count < COORDINATOR_ASKED_MAX)
            coordinator->questions[count++] = item;
    }
    if (count == 0)
        return;
    batch = take_batch(coordinator->questions, count);
    if (pg_send(coordinator->pg, &batch, COORDINATOR_QUERY_MS, on_taken, coordinator, &err) == 0)
        coordinator->question_count = count;
    pg_batch_free(&batch);
    for (size_t i = 0; i < coordinator->question_count; i++) {
        cache_forget(coordinator->questions[i]);
        coordinator->questions[i]->stage = ITEM_ASKING;
        coordinator->questions[i]->pin_count++;
    }
}

/* ---- what is told ---- */

static void on_put(void *opaque, const struct pg_answer *answer)
{
    struct coordinator *coordinator = opaque;

    coordinator->caching = false;
    if (answer->err.code != ERR_OK) /* they run again when they are asked for */
        log_warn("cache_not_told", LOG_ERR(&answer->err));
    else
        cache_tick(coordinator);
}

static void put_tell(struct coordinator *coordinator)
{
    const struct cached *cached = coordinator->cached;
    size_t count = coordinator->cached_count;
    struct pg_batch *batch;
    struct err err;

    if (count == 0 || coordinator->caching || !pg_connected(coordinator->pg))
        return;
    batch = pg_batch_new();
    pg_add(batch, &cache_put);
    pg_bind_array(batch, PG_TEXT, count);
    for (size_t i = 0; i < count; i++)
        pg_bind_c(batch, cached[i].deployment);
    pg_bind_array(batch, PG_BYTES, count);
    for (size_t i = 0; i < count; i++)
        pg_bind_bytes(batch, (struct wire_bytes){cached[i].digest, sizeof(cached[i].digest)});
    pg_bind_array(batch, PG_ID, count);
    for (size_t i = 0; i < count; i++)
        pg_bind_id(batch, &cached[i].job);
    coordinator->caching = pg_send(coordinator->pg, &batch, COORDINATOR_QUERY_MS, on_put,
                                   coordinator, &err) == 0;
    pg_batch_free(&batch);
    if (coordinator->caching)
        coordinator->cached_count = 0;
}

/* What finds no room is not in the cache. */
void cache_note(const struct item *item)
{
    struct coordinator *coordinator = item->coordinator;
    struct cached *cached = &coordinator->cached[coordinator->cached_count];

    if (coordinator->chain->steps[item->step].cache_seconds == 0 || item->text_type != NULL ||
        coordinator->cached_count == COORDINATOR_CACHED_MAX)
        return;
    mem_copy_text(cached->deployment, item->run->targets[item->step].deployment);
    memcpy(cached->digest, item->digest, sizeof(cached->digest));
    cached->job = item->job;
    coordinator->cached_count++;
    put_tell(coordinator);
}

void cache_tick(struct coordinator *coordinator)
{
    take_ask(coordinator);
    put_tell(coordinator);
}
