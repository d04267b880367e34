/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Which topics are bound, for whom their records are now, and what stands against them: looked at
 * each second and after each notification of headrace_config. A binding never changes but for being
 * paused: one that is new is opened, one that is gone is closed.
 *
 * Failures: with Postgres away the last look rules; nothing can be claimed meanwhile.
 */

#include <jansson.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/loop.h"
#include "base/seal.h"
#include "producers/ingest_topics.h"
#include "schema/secret.h"

#define LOOK_GAP_MS 1000
#define HURRY_GAP_MS 50 /* when we are ahead of the ledger */
#define REFUSED_LOOKS 5

PG_STATEMENT(
    topic_bindings,
    "SELECT b.id, b.tenant, b.name, b.topic, b.brokers, b.properties, b.group_id, b.format, "
    "b.mapping::text, b.max_attempts, b.queue_limit_ms, b.priority, b.tags, b.start_at = "
    "'end', b.bad = 'skip', b.dead_topic, b.result_topic, b.created_at, b.paused_at IS NOT "
    "NULL, b.secret, s.sealed FROM topic_binding b LEFT JOIN secret s ON s.tenant = b.tenant "
    "AND s.name = b.secret ORDER BY b.created_at, b.id LIMIT 256");
PG_STATEMENT(topic_state,
             "SELECT binding_id, coalesce(model_id, ''), targets, coalesce(problem, ''), "
             "limit_name, limit_value, limit_now, room FROM topic_look($1, $2, $3, $4, $5)");
PG_STATEMENT(
    topic_floors,
    "SELECT s.id, f.intake_floor FROM shard s CROSS JOIN LATERAL (SELECT x.intake_floor FROM "
    "flush x WHERE x.shard = s.id ORDER BY x.epoch DESC, x.number DESC LIMIT 1) f");

int topic_targets_read(const char *json, struct topic_targets *ret_targets, struct err *err)
{
    json_t *list = json == NULL ? NULL : json_loads(json, 0, NULL);
    json_t *entry;
    size_t i;

    *ret_targets = (struct topic_targets){.count = 0};
    json_array_foreach(list, i, entry)
    {
        struct topic_target *target = &ret_targets->items[ret_targets->count];
        const char *deployment, *environment, *pool;
        json_int_t shard, weight, run_limit_ms;

        if (i >= TOPIC_TARGETS_MAX ||
            json_unpack(entry, "{s:s, s:s, s:s, s:I, s:I, s:I}", "deployment", &deployment,
                        "environment", &environment, "pool", &pool, "shard", &shard, "weight",
                        &weight, "run_limit_ms", &run_limit_ms) < 0 ||
            shard < 0 || shard >= JOB_SHARD_COUNT_MAX || weight <= 0) {
            json_decref(list);
            return err_set(err, ERR_INTERNAL, "targets are not as the ledger says them");
        }
        mem_copy_text(target->deployment, deployment);
        mem_copy_text(target->environment, environment);
        mem_copy_text(target->pool, pool);
        target->shard = (uint32_t)shard;
        target->weight = (uint32_t)weight;
        target->run_limit_ms = (uint64_t)run_limit_ms;
        ret_targets->weight += target->weight;
        ret_targets->count++;
    }
    json_decref(list);
    return 0;
}

/* ---- a binding's life ---- */

static void binding_free(struct binding **binding_p)
{
    struct binding *binding = TAKE(*binding_p);

    if (binding == NULL)
        return;
    stream_close(&binding->in);
    stream_close(&binding->out);
    TAILQ_REMOVE(&binding->topics->bindings, binding, link);
    ingest_mapping_free(&binding->mapping);
    if (binding->properties != NULL)
        sodium_memzero(binding->properties, strlen(binding->properties));
    free(binding->id);
    free(binding->tenant);
    free(binding->name);
    free(binding->topic);
    free(binding->brokers);
    free(binding->properties);
    free(binding->group);
    free(binding->dead_topic);
    free(binding->result_topic);
    free(binding->tags);
    free(binding->targets_json);
    free(binding);
}

static struct binding *binding_find(struct topics *topics, const char *id)
{
    struct binding *binding;

    TAILQ_FOREACH(binding, &topics->bindings, link)
    {
        if (strcmp(binding->id, id) == 0)
            return binding;
    }
    return NULL;
}

static char *text_or_null(const struct pg_answer *answer, size_t row, size_t column)
{
    return pg_is_null(answer, 0, row, column) ? NULL : xstrdup(pg_c(answer, 0, row, column));
}

/* The secret has more properties, in the same form; it may end in a newline. */
static int binding_open_secret(struct binding *binding, const char *name, struct wire_bytes sealed,
                               struct err *err)
{
    OWNED(buf_done) struct buf secret = BUF_WITH_LIMIT(SECRET_VALUE_SIZE_MAX + 1);
    char context[SECRET_CONTEXT_SIZE], *whole;
    int r;

    if (sealed.size == 0)
        return err_set(err, ERR_NOT_FOUND, "there is no secret '%s'", name);
    if (binding->topics->seal_key == NULL)
        return err_set(err, ERR_UNSUPPORTED,
                       "this ingest has no seal-key-file to open secrets with");
    secret_context(binding->tenant, name, context);
    r = seal_open(binding->topics->seal_key, context, sealed.bytes, sealed.size, &secret, err);
    if (r < 0)
        return r;
    if (secret.size > 0 && secret.bytes[secret.size - 1] == '\n')
        secret.size--;
    whole = xasprintf("%s;%s", binding->properties, buf_text(&secret));
    free(binding->properties);
    binding->properties = whole;
    sodium_memzero(secret.bytes, secret.room);
    return 0;
}

static void binding_new(struct topics *topics, const struct pg_answer *answer, size_t row)
{
    struct binding *binding = xcalloc(1, sizeof(*binding));
    struct err err;
    int r;

    binding->topics = topics;
    binding->id = xstrdup(pg_c(answer, 0, row, 0));
    binding->tenant = xstrdup(pg_c(answer, 0, row, 1));
    binding->name = xstrdup(pg_c(answer, 0, row, 2));
    binding->topic = text_or_null(answer, row, 3);
    binding->brokers = xstrdup(pg_c(answer, 0, row, 4));
    binding->properties = xstrdup(pg_c(answer, 0, row, 5));
    binding->group = xstrdup(pg_c(answer, 0, row, 6));
    binding->max_attempts = (uint32_t)pg_u64(answer, 0, row, 9);
    binding->queue_limit_ms = pg_u64(answer, 0, row, 10);
    binding->priority = (uint32_t)pg_u64(answer, 0, row, 11);
    binding->tags = xstrdup(pg_c(answer, 0, row, 12));
    binding->start_at_end = pg_bool(answer, 0, row, 13);
    binding->skips_bad = pg_bool(answer, 0, row, 14);
    binding->dead_topic = text_or_null(answer, row, 15);
    binding->result_topic = text_or_null(answer, row, 16);
    binding->created_ms = pg_time_us(answer, 0, row, 17) / 1000;
    TAILQ_INSERT_TAIL(&topics->bindings, binding, link);
    if (binding->topic != NULL)
        binding->in = stream_new(binding, &stream_in);
    if (binding->result_topic != NULL)
        binding->out = stream_new(binding, &stream_out);
    r = ingest_mapping_parse(pg_c(answer, 0, row, 7), pg_c(answer, 0, row, 8), &binding->mapping,
                             &err);
    if (r == 0 && !pg_is_null(answer, 0, row, 19))
        r = binding_open_secret(binding, pg_c(answer, 0, row, 19), pg_bytes(answer, 0, row, 20),
                                &err);
    log_info("binding_opened", LOG_STR("binding", binding->name),
             LOG_STR("tenant", binding->tenant), LOG_STR("topic", binding->topic),
             LOG_STR("result_topic", binding->result_topic));
    binding->refused = r < 0;
    if (binding->refused && binding->in != NULL)
        stream_trouble(binding->in, "%s", err.text);
    if (binding->refused && binding->out != NULL)
        stream_trouble(binding->out, "%s", err.text);
}

/* ---- looking ---- */

static void take_bindings(struct topics *topics, const struct pg_answer *answer)
{
    struct binding *binding, *next;

    TAILQ_FOREACH(binding, &topics->bindings, link)
    {
        binding->seen = false;
    }
    for (size_t row = 0; row < pg_row_count(answer, 0); row++) {
        binding = binding_find(topics, pg_c(answer, 0, row, 0));
        if (binding == NULL) {
            binding_new(topics, answer, row);
            binding = TAILQ_LAST(&topics->bindings, binding_list);
        }
        binding->seen = true;
        binding->paused = pg_bool(answer, 0, row, 18);
    }
    for (binding = TAILQ_FIRST(&topics->bindings); binding != NULL; binding = next) {
        next = TAILQ_NEXT(binding, link);
        /* One whose secret was not there is tried again as a new one. */
        if (binding->seen && !binding->refused)
            continue;
        if (!binding->seen)
            log_info("binding_closed", LOG_STR("binding", binding->name),
                     LOG_STR("tenant", binding->tenant));
        else if (++binding->refused_looks < REFUSED_LOOKS)
            continue;
        binding_free(&binding);
    }
}

static void take_state(struct topics *topics, const struct pg_answer *answer)
{
    for (size_t row = 0; row < pg_row_count(answer, 1); row++) {
        struct binding *binding = binding_find(topics, pg_c(answer, 1, row, 0));
        struct err err;

        if (binding == NULL)
            continue;
        if (*pg_c(answer, 1, row, 1) != '\0') /* what was claimed goes on without its model */
            mem_copy_text(binding->model, pg_c(answer, 1, row, 1));
        mem_copy_text(binding->problem, pg_c(answer, 1, row, 3));
        binding->room = pg_double(answer, 1, row, 7);
        (void)snprintf(binding->limit, sizeof(binding->limit),
                       "the limit %s is %.0f, and there are %.0f", pg_c(answer, 1, row, 4),
                       pg_double(answer, 1, row, 5), pg_double(answer, 1, row, 6));
        if (binding->targets_json != NULL &&
            strcmp(binding->targets_json, pg_c(answer, 1, row, 2)) == 0)
            continue;
        free(binding->targets_json);
        binding->targets_json = xstrdup(pg_c(answer, 1, row, 2));
        if (topic_targets_read(binding->targets_json, &binding->targets, &err) < 0)
            mem_copy_text(binding->problem, err.text);
    }
}

static void on_looked(void *opaque, const struct pg_answer *answer)
{
    struct topics *topics = opaque;

    topics->looking = false;
    if (answer->err.code != ERR_OK) {
        log_warn("bindings_not_read", LOG_ERR(&answer->err));
        return;
    }
    if (topics->leaving)
        return;
    take_bindings(topics, answer);
    take_state(topics, answer);
    for (size_t row = 0; row < pg_row_count(answer, 2); row++) {
        struct shard_pace *pace = &topics->shards[pg_u64(answer, 2, row, 0) % JOB_SHARD_COUNT_MAX];

        pace->floor = pg_i64(answer, 2, row, 1);
    }
}

void bindings_look(struct topics *topics)
{
    const struct ingest_settings *settings = topics->settings;
    struct pg_batch *batch;
    struct err err;

    if (topics->looking || topics->leaving || !pg_connected(topics->pg))
        return;
    topics->hurry = false;
    topics->looked_ms = loop_now_ms(topics->loop);
    batch = pg_batch_new();
    pg_add(batch, &topic_bindings);
    pg_add(batch, &topic_state);
    pg_bind_i64(batch, settings->pool_waiting_max);
    pg_bind_double(batch, (double)settings->pool_payload_max_size);
    pg_bind_double(batch, (double)settings->tenant_waiting_max);
    pg_bind_double(batch, (double)settings->tenant_delayed_max);
    pg_bind_double(batch, settings->tenant_payload_max_size == 0
                              ? 1e18
                              : (double)settings->tenant_payload_max_size);
    pg_add(batch, &topic_floors);
    topics->looking = pg_send(topics->pg, &batch, INGEST_QUERY_MS, on_looked, topics, &err) == 0;
    pg_batch_free(&batch);
}

/* Also when the connection is new. */
void bindings_on_config(void *opaque, const char *payload)
{
    static const char ours[] = "topic_binding ";

    if (payload == NULL || strncmp(payload, ours, sizeof(ours) - 1) == 0)
        bindings_look(opaque);
}

/* ---- time, and the end ---- */

void bindings_tick(struct topics *topics)
{
    uint64_t now_ms = loop_now_ms(topics->loop);
    size_t troubled = 0, partitions = 0;
    struct binding *binding;

    if (now_ms - topics->looked_ms >= (topics->hurry ? HURRY_GAP_MS : LOOK_GAP_MS))
        bindings_look(topics);
    TAILQ_FOREACH(binding, &topics->bindings, link)
    {
        if (binding->in != NULL)
            stream_tick(binding->in, now_ms);
        if (binding->out != NULL)
            stream_tick(binding->out, now_ms);
        troubled += (binding->in != NULL && binding->in->told[0] != '\0') ||
                    (binding->out != NULL && binding->out->told[0] != '\0');
        partitions += binding->in == NULL ? 0 : stream_busy(binding->in) - !binding->in->left;
    }
    metric_set(metrics_of(topics->metrics, INGEST_METRIC_ingest_bindings_troubled),
               (double)troubled);
    metric_set(metrics_of(topics->metrics, INGEST_METRIC_ingest_partitions), (double)partitions);
    metric_set(metrics_of(topics->metrics, INGEST_METRIC_ingest_held_bytes), (double)topics->bytes);
}

void bindings_leave(struct topics *topics)
{
    struct binding *binding;

    TAILQ_FOREACH(binding, &topics->bindings, link)
    {
        if (binding->in != NULL)
            stream_leave(binding->in);
        if (binding->out != NULL)
            stream_leave(binding->out);
    }
}

size_t bindings_busy(const struct topics *topics)
{
    const struct binding *binding;
    size_t count = 0;

    TAILQ_FOREACH(binding, &topics->bindings, link)
    {
        count += binding->in == NULL ? 0 : stream_busy(binding->in);
        count += binding->out == NULL ? 0 : stream_busy(binding->out);
    }
    return count;
}

void bindings_close(struct topics *topics)
{
    struct binding *binding;

    while ((binding = TAILQ_FIRST(&topics->bindings)) != NULL)
        binding_free(&binding);
    orphans_free(topics);
}
