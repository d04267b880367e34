/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Whom the lines of a bulk job go to: chosen once, while it is validated, and kept in its row, so
 * that a line's job has the same shard whoever goes on with it. A deployment takes lines of the
 * routes that its engine has.
 */

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "producers/ingest.h"

#define LISTED_MAX 20
#define LISTED_SIZE_MAX 320

PG_STATEMENT(targets_find,
             "SELECT model, name, deployment, environment, pool, shard, run_limit_ms, engine FROM "
             "bulk_targets($1)");

/* What stands behind a server is the user's: a route that it has not, it refuses itself. */
static bool engine_serves(const char *engine, const char *endpoint)
{
    if (strcmp(engine, "encoder") == 0)
        return strcmp(endpoint, "/v1/embeddings") == 0;
    return strcmp(engine, "server") == 0 || strcmp(engine, "sim") == 0;
}

void targets_ask(struct pg_batch *batch, const struct bulk *bulk)
{
    pg_add(batch, &targets_find);
    pg_bind_c(batch, bulk->tenant);
}

void targets_take(struct bulk *bulk, const struct pg_answer *answer, size_t at)
{
    size_t count = pg_row_count(answer, at);

    free(bulk->targets);
    bulk->last_target = NULL;
    bulk->targets = xcalloc(count + 1, sizeof(*bulk->targets));
    bulk->target_count = count;
    for (size_t i = 0; i < count; i++) {
        struct target *target = &bulk->targets[i];

        mem_copy_text(target->model, pg_c(answer, at, i, 0));
        mem_copy_text(target->name, pg_c(answer, at, i, 1));
        mem_copy_text(target->deployment, pg_c(answer, at, i, 2));
        mem_copy_text(target->environment, pg_c(answer, at, i, 3));
        mem_copy_text(target->pool, pg_c(answer, at, i, 4));
        target->shard = (uint32_t)pg_u64(answer, at, i, 5);
        target->run_limit_ms = pg_u64(answer, at, i, 6);
        target->serves = engine_serves(pg_c(answer, at, i, 7), bulk->endpoint);
    }
}

/* ---- in the row ---- */

json_t *targets_json(const struct bulk *bulk)
{
    json_t *all = json_array();

    for (size_t i = 0; i < bulk->target_count; i++) {
        const struct target *target = &bulk->targets[i];

        if (!target->used)
            continue;
        (void)json_array_append_new(
            all,
            json_pack("{s:s, s:s, s:s, s:s, s:s, s:I, s:I}", "model", target->model, "name",
                      target->name, "deployment", target->deployment, "environment",
                      target->environment, "pool", target->pool, "shard", (json_int_t)target->shard,
                      "run_limit_ms", (json_int_t)target->run_limit_ms));
    }
    return all;
}

static void copy_member(char to[INGEST_NAME_SIZE], const json_t *from, const char *name)
{
    const char *text = json_string_value(json_object_get(from, name));

    mem_copy_text_at(to, INGEST_NAME_SIZE, text == NULL ? "" : text);
}

int targets_read(struct bulk *bulk, const char *json, struct err *err)
{
    json_t *all = json_loads(json, 0, NULL);

    if (!json_is_array(all)) {
        json_decref(all);
        return err_set(err, ERR_INTERNAL, "the targets of bulk job %s are no list", bulk->text);
    }
    free(bulk->targets);
    bulk->last_target = NULL;
    bulk->target_count = json_array_size(all);
    bulk->targets = xcalloc(bulk->target_count + 1, sizeof(*bulk->targets));
    for (size_t i = 0; i < bulk->target_count; i++) {
        const json_t *from = json_array_get(all, i);
        struct target *to = &bulk->targets[i];

        copy_member(to->model, from, "model");
        copy_member(to->name, from, "name");
        copy_member(to->deployment, from, "deployment");
        copy_member(to->environment, from, "environment");
        copy_member(to->pool, from, "pool");
        to->shard = (uint32_t)json_integer_value(json_object_get(from, "shard"));
        to->run_limit_ms = (uint64_t)json_integer_value(json_object_get(from, "run_limit_ms"));
        to->serves = to->used = true;
    }
    json_decref(all);
    return 0;
}

/* ---- found ---- */

static void list_served(const struct bulk *bulk, struct buf *to)
{
    size_t count = 0;

    for (size_t i = 0; i < bulk->target_count; i++) {
        if (!bulk->targets[i].serves)
            continue;
        if (count == LISTED_MAX || to->size > LISTED_SIZE_MAX) {
            buf_append_text(to, " …");
            return;
        }
        buf_printf(to, "%s%s", count++ == 0 ? "" : ", ", bulk->targets[i].name);
    }
    if (count == 0)
        buf_append_text(to, "no model");
}

struct target *target_find(struct bulk *bulk, const char *model, struct err *err)
{
    struct buf served = BUF_WITH_LIMIT(1024);
    struct target *found = bulk->last_target; /* most lines name the same as the one before */

    if (found != NULL && found->serves && strcmp(found->name, model) == 0)
        return found;
    found = NULL;
    for (size_t i = 0; i < bulk->target_count; i++) {
        struct target *target = &bulk->targets[i];

        if (model[0] == '\0' || strcmp(target->name, model) == 0 ||
            strcmp(target->model, model) == 0)
            found = target;
    }
    if (found != NULL && found->serves)
        return bulk->last_target = found;
    list_served(bulk, &served);
    (void)err_set(err, ERR_NOT_FOUND, "model '%s' %s %s; served there: %s", model,
                  found == NULL ? "is not there for" : "does not serve", bulk->endpoint,
                  buf_text(&served));
    buf_done(&served);
    return NULL;
}
