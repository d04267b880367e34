/* SPDX-License-Identifier: Apache-2.0 */

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "chains/coordinator_int.h"

#define LOOK_ITEMS_MAX 1000
#define FETCH_ITEMS_MAX 32 /* outputs of 512 KiB at most */

/* What is over, and what waits for a deployment that nobody will start again. */
PG_STATEMENT(look_final,
             "SELECT j.id, j.state, j.error_class, left(coalesce(j.error_message, ''), 4096), "
             "j.attempt_count = 0 FROM job j WHERE j.id = ANY($1) AND (j.state NOT IN (1, 2) OR "
             "(j.state = 1 AND EXISTS "
             "(SELECT FROM deployment d WHERE d.id = j.deployment AND d.deleted_at IS NOT NULL)))");
PG_STATEMENT(look_output,
             "SELECT j.id, r.output, coalesce(r.output_type, ''), coalesce(r.output_blob, '') FROM "
             "job j LEFT JOIN job_result r ON r.job_id = j.id AND r.round = j.round WHERE j.id = "
             "ANY($1) AND j.state = 3");
PG_STATEMENT(look_leftovers, "SELECT job_id, tenant FROM chain_leftovers()");
PG_STATEMENT(look_closed, "UPDATE chain_run SET closed_at = now() WHERE run_id = ANY($1)");

static struct item *item_find(struct coordinator *coordinator, const struct wire_id *id)
{
    struct item *item;

    HASH_FIND(hh, coordinator->items, id, sizeof(*id), item);
    return item;
}

static bool send_query(struct coordinator *coordinator, struct pg_batch *batch, pg_done_fn *done)
{
    struct err err;
    bool sent = pg_connected(coordinator->pg) &&
                pg_send(coordinator->pg, &batch, COORDINATOR_QUERY_MS, done, coordinator, &err) ==
                    0;

    pg_batch_free(&batch);
    return sent;
}

static void bind_items(struct pg_batch *batch, struct item *const *items, size_t count)
{
    pg_bind_array(batch, PG_ID, count);
    for (size_t i = 0; i < count; i++)
        pg_bind_id(batch, &items[i]->job);
}

/* ---- outputs ---- */

static void look_fetch(struct coordinator *coordinator);

static void on_outputs(void *opaque, const struct pg_answer *answer)
{
    struct coordinator *coordinator = opaque;
    size_t count = answer->err.code == ERR_OK ? pg_row_count(answer, 0) : 0;

    coordinator->fetching = false;
    for (size_t i = 0; i < count; i++) {
        struct wire_id id = pg_id(answer, 0, i, 0);
        struct item *item = item_find(coordinator, &id);

        if (item != NULL && item->stage == ITEM_WANTED)
            item_over(item, JOB_SUCCEEDED, ERROR_CLASS_NONE, (struct wire_text){0},
                      pg_bytes(answer, 0, i, 1), pg_text(answer, 0, i, 2),
                      pg_text(answer, 0, i, 3));
    }
    if (count > 0)
        look_fetch(coordinator);
}

static void look_fetch(struct coordinator *coordinator)
{
    struct item *items[FETCH_ITEMS_MAX], *item, *next;
    struct pg_batch *batch;
    size_t count = 0;

    if (coordinator->fetching)
        return;
    HASH_ITER(hh, coordinator->items, item, next)
    {
        if (item->stage == ITEM_WANTED && count < FETCH_ITEMS_MAX)
            items[count++] = item;
    }
    if (count == 0)
        return;
    batch = pg_batch_new();
    pg_add(batch, &look_output);
    bind_items(batch, items, count);
    coordinator->fetching = send_query(coordinator, batch, on_outputs);
}

/* ---- states ---- */

static void on_finals(void *opaque, const struct pg_answer *answer)
{
    struct coordinator *coordinator = opaque;
    size_t count = answer->err.code == ERR_OK ? pg_row_count(answer, 0) : 0;

    coordinator->looking = false;
    for (size_t i = 0; i < count; i++) {
        struct wire_id id = pg_id(answer, 0, i, 0);
        struct item *item = item_find(coordinator, &id);
        enum job_state state = (enum job_state)pg_i64(answer, 0, i, 1);
        uint64_t class = pg_u64(answer, 0, i, 2);

        if (item == NULL || item->stage != ITEM_WATCHED)
            continue;
        if (state == JOB_QUEUED) {
            item_orphaned(item);
            continue;
        }
        item->untried = pg_bool(answer, 0, i, 4);
        if (state == JOB_SUCCEEDED && plan_reads(item->run->plan, item->step))
            item->stage = ITEM_WANTED;
        else
            item_over(item, state,
                      error_class_known(class) ? (enum error_class) class : ERROR_CLASS_NONE,
                      pg_text(answer, 0, i, 3), (struct wire_bytes){0}, (struct wire_text){0},
                      (struct wire_text){0});
    }
    look_fetch(coordinator);
    if (count > 0)
        look_run(coordinator); /* of a run that goes on, the next ones are known as well */
}

void look_run(struct coordinator *coordinator)
{
    uint64_t now_ms = loop_now_ms(coordinator->loop);
    struct item *items[LOOK_ITEMS_MAX], *item, *next;
    struct pg_batch *batch;
    size_t count = 0;

    if (coordinator->looking)
        return;
    HASH_ITER(hh, coordinator->items, item, next)
    {
        if (item->stage != ITEM_WATCHED || item->look_ms > now_ms || count == LOOK_ITEMS_MAX)
            continue;
        items[count++] = item;
        item->look_ms = now_ms + item->gap_ms;
        item->gap_ms = 2 * item->gap_ms < COORDINATOR_LOOK_MS_MAX ? 2 * item->gap_ms
                                                                  : COORDINATOR_LOOK_MS_MAX;
    }
    if (count == 0)
        return;
    batch = pg_batch_new();
    pg_add(batch, &look_final);
    bind_items(batch, items, count);
    coordinator->looking = send_query(coordinator, batch, on_finals);
}

/* ---- runs that are over ---- */

static void on_leftovers(void *opaque, const struct pg_answer *answer)
{
    struct coordinator *coordinator = opaque;
    struct err err;

    coordinator->sweeping = false;
    for (size_t i = 0; answer->err.code == ERR_OK && i < pg_row_count(answer, 0); i++) {
        struct wire_id id = pg_id(answer, 0, i, 0);

        if (cancel_job(coordinator, &id, pg_c(answer, 0, i, 1), &err) < 0) {
            log_warn("step_not_canceled", LOG_ERR(&err)); /* the next sweep finds it again */
            return;
        }
    }
}

void look_sweep(struct coordinator *coordinator)
{
    struct pg_batch *batch;

    if (coordinator->sweeping)
        return;
    batch = pg_batch_new();
    pg_add(batch, &look_leftovers);
    coordinator->sweeping = send_query(coordinator, batch, on_leftovers);
}

static void on_closed(void *opaque, const struct pg_answer *answer)
{
    (void)opaque; /* what was not closed, the sweep closes */
    if (answer->err.code != ERR_OK)
        log_warn("runs_not_closed", LOG_ERR(&answer->err));
}

void look_close(struct coordinator *coordinator)
{
    struct pg_batch *batch;

    if (coordinator->closed_count == 0)
        return;
    batch = pg_batch_new();
    pg_add(batch, &look_closed);
    pg_bind_array(batch, PG_ID, coordinator->closed_count);
    for (size_t i = 0; i < coordinator->closed_count; i++)
        pg_bind_id(batch, &coordinator->closed[i]);
    (void)send_query(coordinator, batch, on_closed);
    coordinator->closed_count = 0;
}
