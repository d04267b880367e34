/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What the gateway knows of the rest: models and where their requests go, limits that people have
 * set, how many shards there are.
 *
 * Models, limits and switches are read whole (six statements, one transaction) after each
 * notification of headrace_config, every config_poll, and when a request names one that is not
 * known; readings are never nearer than READ_GAP_MS, and all requests that wait share the next one.
 * With Postgres away the last snapshot is used, however old.
 */

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/log.h"
#include "base/loop.h"
#include "base/metrics.h"
#include "brokers/pg.h"
#include "brokers/queue.h"
#include "producers/gateway.h"
#include "producers/gateway_body.h"
#include "schema/topics.h"

#define READ_GAP_MS 100
#define READ_TIMEOUT_MS 5000
#define SHARDS_GAP_MS 30000
#define WAITING_MAX 20000

/* A training project is a model that nobody calls. */
PG_STATEMENT(watch_models, "SELECT id, name, tenant FROM model m WHERE deleted_at IS NULL AND NOT "
                           "EXISTS (SELECT FROM training_project p WHERE p.id = m.id)");
PG_STATEMENT(
    watch_deployments,
    "SELECT id, name, model_id, pool, status, shard, run_limit_ms, "
    "slot_count, engine = 'python', engine = 'chain' OR coalesce(config -> 'truss' -> "
    "'model_metadata' ? 'headrace_chainlets', false), coalesce(engine = 'chain' AND config "
    "-> 'steps' @? '$.*.stream ? (@ == true)', false), CASE WHEN engine = 'chain' THEN "
    "coalesce(left(config ->> 'webhook', 512), '') ELSE '' END FROM deployment WHERE "
    "deleted_at IS "
    "NULL AND engine <> 'training'");
PG_STATEMENT(watch_targets,
             "SELECT e.model_id, e.name, coalesce(t.deployment_id, ''), coalesce(t.weight, 0) "
             "FROM environment e LEFT JOIN environment_target t "
             "ON t.model_id = e.model_id AND t.environment = e.name");
static const struct pg_statement watch_tenant_limits = {
    "watch_tenant_limits", "SELECT id"
#define LIMIT(name, on_tenant, on_key, lowest, highest, whole, sentence)                           \
    ", limit_of(limits, '" #name "')"
#include "schema/limits.def"
                           " FROM tenant WHERE limits <> '{}' AND deleted_at IS NULL"};
static const struct pg_statement watch_key_limits = {
    "watch_key_limits", "SELECT prefix"
#include "schema/limits.def"
#undef LIMIT
                        " FROM api_key WHERE limits <> '{}' AND revoked_at IS NULL"};
PG_STATEMENT(watch_switches,
             "SELECT tenant, kind, value, left(reason, 60) FROM switch LIMIT 10000");

struct waiter {
    STAILQ_ENTRY(waiter) link;
    struct call *call;
};
STAILQ_HEAD(waiters, waiter);

struct watch {
    struct gateway *gateway;
    struct config *config;
    struct loop_timer *gap;  /* runs while the next reading waits for its time */
    struct waiters waiting;  /* for the reading that begins next */
    struct waiters reading;  /* for the one that is under way */
    uint32_t waiting_count;  /* of both */
    bool is_reading, wanted; /* wanted: another one must follow */
    bool is_asking_shards;
    uint64_t read_ms, shards_ms; /* when the last one began */
    uint32_t shard_count;
};

/* ---- reading ---- */

static void read_soon(struct watch *watch);

static void copy_limits(struct config *config, const struct pg_answer *answer, size_t at,
                        enum limit_on on)
{
    for (size_t i = 0; i < pg_row_count(answer, at); i++) {
        struct config_limits limits = {.on = on};

        mem_copy_text(limits.name, pg_c(answer, at, i, 0));
        for (enum limit limit = 0; limit < LIMIT_COUNT; limit++) {
            if (limit_is_on(limit, on) && !pg_is_null(answer, at, i, 1 + (size_t)limit))
                limits_set(&limits.limits, limit, pg_double(answer, at, i, 1 + (size_t)limit));
        }
        gateway_config_add_limits(config, &limits);
    }
}

static void copy_rows(struct config *config, const struct pg_answer *answer)
{
    for (size_t i = 0; i < pg_row_count(answer, 0); i++) {
        struct config_model model = {.target_count = 0};

        mem_copy_text(model.id, pg_c(answer, 0, i, 0));
        mem_copy_text(model.name, pg_c(answer, 0, i, 1));
        mem_copy_text(model.tenant, pg_c(answer, 0, i, 2));
        gateway_config_add_model(config, &model);
    }
    for (size_t i = 0; i < pg_row_count(answer, 1); i++) {
        struct config_deployment deployment = {
            .shard = (uint32_t)pg_u64(answer, 1, i, 5),
            .slot_count = (uint32_t)pg_u64(answer, 1, i, 7),
            .run_limit_ms = pg_u64(answer, 1, i, 6),
            .is_truss = pg_bool(answer, 1, i, 8),
            .is_chain = pg_bool(answer, 1, i, 9),
            .streams = pg_bool(answer, 1, i, 10),
        };

        mem_copy_text(deployment.id, pg_c(answer, 1, i, 0));
        mem_copy_text(deployment.name, pg_c(answer, 1, i, 1));
        mem_copy_text(deployment.model, pg_c(answer, 1, i, 2));
        mem_copy_text(deployment.pool, pg_c(answer, 1, i, 3));
        mem_copy_text(deployment.status, pg_c(answer, 1, i, 4));
        mem_copy_text(deployment.webhook, pg_c(answer, 1, i, 11));
        gateway_config_add_deployment(config, &deployment);
    }
    for (size_t i = 0; i < pg_row_count(answer, 2); i++) {
        struct config_target target = {.weight = (uint32_t)pg_u64(answer, 2, i, 3)};

        mem_copy_text(target.model, pg_c(answer, 2, i, 0));
        mem_copy_text(target.environment, pg_c(answer, 2, i, 1));
        mem_copy_text(target.deployment, pg_c(answer, 2, i, 2));
        gateway_config_add_target(config, &target);
    }
    copy_limits(config, answer, 3, LIMIT_ON_TENANT);
    copy_limits(config, answer, 4, LIMIT_ON_KEY);
    for (size_t i = 0; i < pg_row_count(answer, 5); i++) {
        struct config_switch on = {.reason = ""};

        mem_copy_text(on.tenant, pg_c(answer, 5, i, 0));
        mem_copy_text(on.kind, pg_c(answer, 5, i, 1));
        mem_copy_text(on.value, pg_c(answer, 5, i, 2));
        mem_copy_text(on.reason, pg_c(answer, 5, i, 3));
        gateway_config_add_switch(config, &on);
    }
}

static void call_choose(struct call *call, bool may_ask);

static void on_config(void *opaque, const struct pg_answer *answer)
{
    struct watch *watch = opaque;
    bool fresh = answer->err.code == ERR_OK;
    const char *const outcome = fresh ? "ok" : "failed";
    struct waiters served = STAILQ_HEAD_INITIALIZER(served);
    struct waiter *waiter;

    watch->is_reading = false;
    metric_add(metrics_series(watch->gateway->metrics, GATEWAY_METRIC_gateway_config_loads_total,
                              &outcome),
               1);
    if (fresh) {
        gateway_config_free(&watch->config);
        watch->config = gateway_config_new();
        copy_rows(watch->config, answer);
        gateway_config_seal(watch->config);
    } else {
        log_warn("config_not_read", LOG_ERR(&answer->err));
    }
    STAILQ_CONCAT(&served, &watch->reading);
    while ((waiter = STAILQ_FIRST(&served)) != NULL) {
        STAILQ_REMOVE_HEAD(&served, link);
        watch->waiting_count--;
        call_choose(waiter->call, false);
        free(waiter);
    }
    if (watch->wanted || !STAILQ_EMPTY(&watch->waiting))
        read_soon(watch);
}

static void read_now(void *opaque)
{
    struct watch *watch = opaque;
    struct pg_batch *batch = pg_batch_new();
    struct err err;

    watch->wanted = false;
    watch->read_ms = loop_now_ms(watch->gateway->loop);
    pg_add(batch, &watch_models);
    pg_add(batch, &watch_deployments);
    pg_add(batch, &watch_targets);
    pg_add(batch, &watch_tenant_limits);
    pg_add(batch, &watch_key_limits);
    pg_add(batch, &watch_switches);
    if (pg_send(watch->gateway->pg_control, &batch, READ_TIMEOUT_MS, on_config, watch, &err) == 0) {
        watch->is_reading = true;
        STAILQ_CONCAT(&watch->reading, &watch->waiting);
    } else {
        log_warn("config_not_read", LOG_ERR(&err));
        watch->wanted = true; /* the next tick tries again */
    }
    pg_batch_free(&batch);
}

static void read_soon(struct watch *watch)
{
    uint64_t now_ms = loop_now_ms(watch->gateway->loop);
    uint64_t since_ms = now_ms - watch->read_ms;

    watch->wanted = true;
    if (watch->is_reading || loop_timer_is_running(watch->gap))
        return;
    if (since_ms >= READ_GAP_MS)
        read_now(watch);
    else
        loop_timer_start(watch->gap, READ_GAP_MS - since_ms, 0);
}

/* NULL: connected (again), something may have been missed. */
static void on_notify(void *opaque, const char *payload)
{
    struct watch *watch = opaque;

    if (payload != NULL && strncmp(payload, "api_key ", 8) == 0) {
        gateway_keys_forget(watch->gateway->keys, payload + 8);
        read_soon(watch); /* its limits may be new */
        return;
    }
    if (payload != NULL &&
        (strncmp(payload, "replica ", 8) == 0 || strncmp(payload, "webhook_secret ", 15) == 0))
        return;
    read_soon(watch);
}

/* ---- who asks ---- */

static int wait_for_reading(struct watch *watch, struct call *call, struct err *err)
{
    struct waiter *waiter;

    if (!pg_connected(watch->gateway->pg_control))
        return err_set(err, ERR_UNAVAILABLE, "models cannot be looked up now: Postgres is away");
    if (watch->waiting_count >= WAITING_MAX)
        return err_set(err, ERR_FULL, "%d requests wait for their model to be looked up",
                       WAITING_MAX);
    waiter = xcalloc(1, sizeof(*waiter));
    waiter->call = call;
    STAILQ_INSERT_TAIL(&watch->waiting, waiter, link);
    watch->waiting_count++;
    read_soon(watch);
    return 0;
}

static void fail_to_choose(struct call *call, const struct err *err)
{
    if (err->code == ERR_NOT_FOUND) {
        call_fail_as(&call, 404, "model_does_not_exist", err->text);
    } else if (call->gateway->watch->config != NULL && err->code == ERR_UNAVAILABLE) {
        mem_copy_text(call->retry_after, "2");
        call_fail_as(&call, 503, "model_not_ready", err->text);
    } else {
        call_fail(&call, err);
    }
}

/* One try with the snapshot that there is; what fails may wait for a newer one, once. */
static void call_choose(struct call *call, bool may_ask)
{
    struct watch *watch = call->gateway->watch;
    struct config_choice choice = {.environment = ""};
    struct err err, ask_err;
    int r;

    if (watch->config == NULL) {
        r = err_set(&err, ERR_UNAVAILABLE, "no model is known yet: Postgres was not reached");
    } else if (call->on_choice != NULL) {
        r = gateway_config_choose(watch->config, call->tenant, &call->match,
                                  rng_next(&call->gateway->rng), &choice, &err);
    } else {
        choice.model = gateway_config_find_model(watch->config, call->tenant, call->match.model);
        r = choice.model != NULL
                ? 0
                : err_set(&err, ERR_NOT_FOUND, "there is no model '%.80s'", call->match.model);
    }
    if (r == 0 && call->on_choice != NULL)
        call->on_choice(call, &choice);
    else if (r == 0)
        call->on_model(call, choice.model);
    else if (!may_ask)
        fail_to_choose(call, &err);
    else if (wait_for_reading(watch, call, &ask_err) < 0)
        fail_to_choose(call, err.code == ERR_NOT_FOUND ? &ask_err : &err);
}

void gateway_watch_choose(struct call *call,
                          void (*done)(struct call *call, const struct config_choice *choice))
{
    call->on_choice = done;
    call->on_model = NULL;
    call_choose(call, true);
}

void gateway_watch_find_model(struct call *call,
                              void (*done)(struct call *call, const struct config_model *model))
{
    call->on_model = done;
    call->on_choice = NULL;
    call_choose(call, true);
}

int gateway_watch_webhook(const struct watch *watch, const char *tenant, const char *model,
                          const char *deployment, char **url_p, struct err *err)
{
    const struct config_model *found = gateway_config_find_model(watch->config, tenant, model);
    const struct config_deployment *chain = found == NULL ? NULL
                                                          : gateway_config_find_deployment(
                                                                watch->config, found, deployment);

    if (*url_p != NULL || chain == NULL || chain->webhook[0] == '\0')
        return 0;
    *url_p = xstrdup(chain->webhook);
    return webhook_url_check(*url_p, watch->gateway->settings.loopback_webhooks, err);
}

const struct config *gateway_watch_config(const struct watch *watch)
{
    return watch->config;
}

/* ---- shards ---- */

static void on_shards(void *opaque, const char *cluster_id, uint32_t partition_count,
                      const struct err *err)
{
    struct watch *watch = opaque;

    (void)cluster_id;
    watch->is_asking_shards = false;
    if (err != NULL || partition_count == 0)
        return; /* asked again each second until it is known */
    if (watch->shard_count != partition_count)
        log_info("shards_known", LOG_U64("shards", partition_count));
    watch->shard_count = partition_count < JOB_SHARD_COUNT_MAX ? partition_count
                                                               : JOB_SHARD_COUNT_MAX;
}

uint32_t gateway_watch_shard_count(const struct watch *watch)
{
    return watch->shard_count;
}

/* ---- opening, closing, time ---- */

void gateway_watch_tick(struct watch *watch, uint64_t now_ms)
{
    struct gateway *gateway = watch->gateway;
    uint64_t shards_gap_ms = watch->shard_count == 0 ? 0 : SHARDS_GAP_MS;

    if (watch->wanted || now_ms - watch->read_ms >= gateway->settings.config_poll_ms) {
        if (pg_connected(gateway->pg_control))
            read_soon(watch);
    }
    if (!watch->is_asking_shards && now_ms - watch->shards_ms >= shards_gap_ms) {
        watch->shards_ms = now_ms;
        watch->is_asking_shards = true;
        queue_admin_about(gateway->queue_admin, topic_name(TOPIC_INTAKE), READ_TIMEOUT_MS,
                          on_shards, watch);
    }
}

int gateway_watch_open(struct gateway *gateway, struct err *err)
{
    struct watch *watch = xcalloc(1, sizeof(*watch));

    (void)err;
    watch->gateway = gateway;
    watch->gap = loop_timer_new(gateway->loop, read_now, watch);
    STAILQ_INIT(&watch->waiting);
    STAILQ_INIT(&watch->reading);
    gateway->watch = watch;
    pg_listen(gateway->pg_control, "headrace_config", on_notify, watch);
    return 0;
}

static void waiters_free(struct waiters *waiters)
{
    struct waiter *waiter;

    while ((waiter = STAILQ_FIRST(waiters)) != NULL) {
        STAILQ_REMOVE_HEAD(waiters, link);
        free(waiter);
    }
}

void gateway_watch_close(struct watch **watch_p)
{
    struct watch *watch = TAKE(*watch_p);

    if (watch == NULL)
        return;
    loop_timer_free(&watch->gap);
    waiters_free(&watch->waiting);
    waiters_free(&watch->reading);
    gateway_config_free(&watch->config);
    free(watch);
}
