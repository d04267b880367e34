/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Models, deployments and environments: list, show, delete, promote. Shapes are those of the
 * management API (SURFACE, appendix A), with a few fields more. What follows from a change for the
 * replicas is the agents' work.
 *
 * Deleting keeps the rows, for the jobs that name them; it takes the names out of use.
 */

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "brokers/pg.h"
#include "producers/gateway.h"

#define BODY_SIZE_MAX 65536

PG_STATEMENT(
    models_list,
    "SELECT m.id, m.name, m.created_at, "
    "(SELECT count(*) FROM deployment d WHERE d.model_id = m.id AND d.deleted_at IS NULL), "
    "(SELECT t.deployment_id FROM environment_target t WHERE t.model_id = m.id AND "
    " t.environment = 'production' ORDER BY t.weight DESC LIMIT 1), "
    "(SELECT t.deployment_id FROM environment_target t WHERE t.model_id = m.id AND "
    " t.environment = 'development' ORDER BY t.weight DESC LIMIT 1), "
    "(SELECT d.id FROM deployment d WHERE d.model_id = m.id AND d.deleted_at IS NULL "
    " ORDER BY d.number DESC LIMIT 1), m.tenant "
    "FROM model m WHERE m.tenant = $1 AND ($2::text IS NULL OR m.id = $2) "
    "AND m.deleted_at IS NULL AND NOT EXISTS (SELECT FROM training_project p WHERE p.id = m.id) "
    "ORDER BY m.name LIMIT 10000");
PG_STATEMENT(deployments_list,
             "SELECT d.id, d.name, d.created_at, d.status, d.status_reason, d.engine, d.device, "
             "d.slot_count, d.replicas_min, d.replicas_max, "
             "(SELECT count(*) FROM replica r WHERE r.deployment_id = d.id AND r.state = 'READY'), "
             "(SELECT t.environment FROM environment_target t WHERE t.deployment_id = d.id "
             " AND t.weight > 0 ORDER BY t.environment <> 'production', t.environment LIMIT 1), "
             "d.promote_to, encode(d.archive_digest, 'hex'), d.labels::text, d.model_id, d.pool, "
             "d.shard, d.config::text, d.replicas_warm, (SELECT count(*) FROM replica r WHERE "
             "r.deployment_id = d.id AND r.state = 'WARM') FROM deployment d "
             "WHERE d.model_id = $1 AND ($2::text IS NULL OR d.id = $2 OR d.name = $2) "
             "AND d.deleted_at IS NULL ORDER BY d.number DESC LIMIT 10000");
PG_STATEMENT(model_forget,
             "UPDATE model SET deleted_at = now() WHERE id = $1 AND deleted_at IS NULL");
PG_STATEMENT(model_forget_deployments,
             "UPDATE deployment SET deleted_at = now(), status = 'INACTIVE', status_at = now(), "
             "replicas_wanted = 0, replicas_min = 0, promote_to = NULL "
             "WHERE model_id = $1 AND deleted_at IS NULL");
PG_STATEMENT(model_forget_environments, "DELETE FROM environment WHERE model_id = $1");
PG_STATEMENT(deployment_forget,
             "UPDATE deployment d SET deleted_at = now(), status = 'INACTIVE', status_at = now(), "
             "replicas_wanted = 0, replicas_min = 0, promote_to = NULL "
             "WHERE d.model_id = $1 AND (d.id = $2 OR d.name = $2) AND d.deleted_at IS NULL "
             "AND NOT EXISTS (SELECT 1 FROM environment_target t WHERE t.deployment_id = d.id) "
             "RETURNING d.id");
PG_STATEMENT(deployment_exists, "SELECT id FROM deployment WHERE model_id = $1 AND "
                                "(id = $2 OR name = $2) AND deleted_at IS NULL");
PG_STATEMENT(environments_list,
             "SELECT e.name, e.created_at, t.deployment_id, t.weight FROM environment e "
             "LEFT JOIN environment_target t ON t.model_id = e.model_id AND t.environment = e.name "
             "WHERE e.model_id = $1 ORDER BY e.name, t.weight DESC, t.deployment_id");
PG_STATEMENT(deployment_promote,
             "UPDATE deployment SET promote_to = $3 WHERE model_id = $1 AND (id = $2 OR name = $2) "
             "AND deleted_at IS NULL RETURNING id, status");
PG_STATEMENT(models_audit, "INSERT INTO audit (tenant, actor, action, target) "
                           "VALUES ($1, $2, $3, $4)");

static void audit(struct pg_batch *batch, const struct call *call, const char *action,
                  const char *target)
{
    pg_add(batch, &models_audit);
    pg_bind_c(batch, call->tenant);
    pg_bind_c(batch, call->key_prefix);
    pg_bind_c(batch, action);
    pg_bind_c(batch, target);
}

/* ---- models ---- */

static json_t *model_json(const struct pg_answer *answer, size_t row)
{
    return json_pack("{s:s, s:s, s:o, s:I, s:o, s:o, s:o, s:s, s:s}", "id", pg_c(answer, 0, row, 0),
                     "name", pg_c(answer, 0, row, 1), "created_at", json_of_time(answer, 0, row, 2),
                     "deployments_count", (json_int_t)pg_i64(answer, 0, row, 3),
                     "production_deployment_id", json_of_text(answer, 0, row, 4),
                     "development_deployment_id", json_of_text(answer, 0, row, 5),
                     "newest_deployment_id", json_of_text(answer, 0, row, 6), "instance_type_name",
                     "local", "team_name", pg_c(answer, 0, row, 7));
}

static void on_models(void *opaque, const struct pg_answer *answer)
{
    call_answer_rows(opaque, answer, "models", model_json);
}

void models_begin(struct call *call)
{
    struct pg_batch *batch = pg_batch_new();

    pg_add(batch, &models_list);
    pg_bind_c(batch, call->tenant);
    pg_bind_c(batch, NULL);
    call_query(call, &batch, on_models);
}

static void on_model(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    json_t *body;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 0) == 0) {
        call_fail_as(&call, 404, "model_does_not_exist", "there is no such model any more");
        return;
    }
    body = model_json(answer, 0);
    call_answer_json(&call, 200, &body);
}

static void show_model(struct call *call, const struct config_model *model)
{
    struct pg_batch *batch = pg_batch_new();

    pg_add(batch, &models_list);
    pg_bind_c(batch, call->tenant);
    pg_bind_c(batch, model->id);
    call_query(call, &batch, on_model);
}

void model_begin(struct call *call)
{
    gateway_watch_find_model(call, show_model);
}

static void on_model_forgotten(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    json_t *body;

    if (!call_take_answer(&call, answer))
        return;
    body = json_pack("{s:s, s:b}", "id", call->about, "deleted", 1);
    call_answer_json(&call, 200, &body);
}

static void forget_model(struct call *call, const struct config_model *model)
{
    static const struct pg_statement *const statements[] = {
        &model_forget_environments, &model_forget_deployments, &model_forget};
    struct pg_batch *batch = pg_batch_new();

    mem_copy_text(call->about, model->id);
    for (size_t i = 0; i < COUNT_OF(statements); i++) {
        pg_add(batch, statements[i]);
        pg_bind_c(batch, model->id);
    }
    audit(batch, call, "MODEL_DELETED", model->id);
    call_query(call, &batch, on_model_forgotten);
}

void model_delete_begin(struct call *call)
{
    gateway_watch_find_model(call, forget_model);
}

/* ---- deployments ---- */

static json_t *deployment_json(const struct pg_answer *answer, size_t row)
{
    json_t *autoscaling = json_pack(
        "{s:I, s:I, s:n, s:n, s:I, s:n}", "min_replica", (json_int_t)pg_i64(answer, 0, row, 8),
        "max_replica", (json_int_t)pg_i64(answer, 0, row, 9), "autoscaling_window",
        "scale_down_delay", "concurrency_target", (json_int_t)pg_i64(answer, 0, row, 7),
        "target_utilization_percentage");
    json_t *deployment = json_pack(
        "{s:s, s:s, s:o, s:s, s:s, s:o, s:s, s:s, s:I, s:I, s:o}", "id", pg_c(answer, 0, row, 0),
        "name", pg_c(answer, 0, row, 1), "created_at", json_of_time(answer, 0, row, 2), "model_id",
        pg_c(answer, 0, row, 15), "status", pg_c(answer, 0, row, 3), "error",
        json_of_text(answer, 0, row, 4), "engine", pg_c(answer, 0, row, 5), "device",
        pg_c(answer, 0, row, 6), "slot_count", (json_int_t)pg_i64(answer, 0, row, 7),
        "active_replica_count", (json_int_t)pg_i64(answer, 0, row, 10), "autoscaling_settings",
        autoscaling);
    const char *environment = pg_c(answer, 0, row, 11);
    json_t *rest = json_pack(
        "{s:o, s:o, s:b, s:b, s:o, s:s, s:s, s:I, s:o, s:o, s:I, s:I}", "environment",
        json_of_text(answer, 0, row, 11), "promote_to", json_of_text(answer, 0, row, 12),
        "is_production", strcmp(environment, "production") == 0, "is_development",
        strcmp(environment, "development") == 0, "archive_digest", json_of_text(answer, 0, row, 13),
        "instance_type_name", "local", "pool", pg_c(answer, 0, row, 16), "shard",
        (json_int_t)pg_i64(answer, 0, row, 17), "labels",
        json_loads(pg_c(answer, 0, row, 14), 0, NULL), "config",
        json_loads(pg_c(answer, 0, row, 18), 0, NULL), "warm_replica",
        (json_int_t)pg_i64(answer, 0, row, 19), "warm_replica_count",
        (json_int_t)pg_i64(answer, 0, row, 20));

    (void)json_object_update(deployment, rest);
    json_decref(rest);
    return deployment;
}

static void on_deployments(void *opaque, const struct pg_answer *answer)
{
    call_answer_rows(opaque, answer, "deployments", deployment_json);
}

static void list_deployments(struct call *call, const struct config_model *model)
{
    struct pg_batch *batch = pg_batch_new();

    pg_add(batch, &deployments_list);
    pg_bind_c(batch, model->id);
    pg_bind_c(batch, NULL);
    call_query(call, &batch, on_deployments);
}

void deployments_begin(struct call *call)
{
    gateway_watch_find_model(call, list_deployments);
}

static void answer_no_deployment(struct call *call)
{
    char text[160];

    (void)snprintf(text, sizeof(text), "model '%.64s' has no deployment '%.64s'", call->match.model,
                   call->match.param != NULL ? call->match.param : "");
    call_fail_as(&call, 404, "model_does_not_exist", text);
}

static void on_deployment(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    json_t *body;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 0) == 0) {
        answer_no_deployment(call);
        return;
    }
    body = deployment_json(answer, 0);
    call_answer_json(&call, call->match.route == ROUTE_PUSH ? 201 : 200, &body);
}

void deployment_show(struct call *call, const char *model, const char *deployment)
{
    struct pg_batch *batch = pg_batch_new();

    pg_add(batch, &deployments_list);
    pg_bind_c(batch, model);
    pg_bind_c(batch, deployment);
    call_query(call, &batch, on_deployment);
}

static void show_deployment(struct call *call, const struct config_model *model)
{
    deployment_show(call, model->id, call->match.param);
}

void deployment_begin(struct call *call)
{
    gateway_watch_find_model(call, show_deployment);
}

static void on_deployment_forgotten(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    json_t *body;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 0) == 1) {
        body = json_pack("{s:s, s:b, s:s}", "id", pg_c(answer, 0, 0, 0), "deleted", 1, "model_id",
                         call->about);
        call_answer_json(&call, 200, &body);
    } else if (pg_row_count(answer, 1) == 1) {
        call_fail_as(&call, 409, "client_error",
                     "an environment points at this deployment: promote another one first, or "
                     "delete the model");
    } else {
        answer_no_deployment(call);
    }
}

static void forget_deployment(struct call *call, const struct config_model *model)
{
    struct pg_batch *batch = pg_batch_new();

    mem_copy_text(call->about, model->id);
    pg_add(batch, &deployment_forget);
    pg_bind_c(batch, model->id);
    pg_bind_c(batch, call->match.param);
    pg_add(batch, &deployment_exists);
    pg_bind_c(batch, model->id);
    pg_bind_c(batch, call->match.param);
    audit(batch, call, "MODEL_DEPLOYMENT_DELETED", call->match.param);
    call_query(call, &batch, on_deployment_forgotten);
}

void deployment_delete_begin(struct call *call)
{
    gateway_watch_find_model(call, forget_deployment);
}

/* ---- environments ---- */

static void on_environments(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    json_t *list, *body, *last = NULL;

    if (!call_take_answer(&call, answer))
        return;
    list = json_array();
    for (size_t i = 0; i < pg_row_count(answer, 0); i++) {
        const char *name = pg_c(answer, 0, i, 0);
        const char *before = json_string_value(json_object_get(last, "name"));

        if (before == NULL || strcmp(before, name) != 0) {
            last = json_pack("{s:s, s:o, s:s, s:o, s:[]}", "name", name, "created_at",
                             json_of_time(answer, 0, i, 1), "model_id", call->about,
                             "current_deployment_id", json_of_text(answer, 0, i, 2), "targets");
            (void)json_array_append_new(list, last);
        }
        if (!pg_is_null(answer, 0, i, 2))
            (void)json_array_append_new(json_object_get(last, "targets"),
                                        json_pack("{s:s, s:I}", "deployment_id",
                                                  pg_c(answer, 0, i, 2), "weight",
                                                  (json_int_t)pg_i64(answer, 0, i, 3)));
    }
    body = json_pack("{s:o}", "environments", list);
    call_answer_json(&call, 200, &body);
}

static void list_environments(struct call *call, const struct config_model *model)
{
    struct pg_batch *batch = pg_batch_new();

    mem_copy_text(call->about, model->id);
    pg_add(batch, &environments_list);
    pg_bind_c(batch, model->id);
    call_query(call, &batch, on_environments);
}

void environments_begin(struct call *call)
{
    gateway_watch_find_model(call, list_environments);
}

static void on_promoted(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    bool active;
    json_t *body;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 0) == 0) {
        call_fail_as(&call, 404, "model_does_not_exist", "the model has no such deployment");
        return;
    }
    active = strcmp(pg_c(answer, 0, 0, 1), "ACTIVE") == 0;
    body = json_pack("{s:s, s:s, s:s, s:b}", "model_id", call->about, "environment",
                     call->match.param, "deployment_id", pg_c(answer, 0, 0, 0), "done", active);
    call_answer_json(&call, active ? 200 : 202, &body);
}

static void promote(struct call *call, const struct config_model *model)
{
    struct pg_batch *batch;
    json_t *body = NULL;
    const char *deployment;
    struct err err;
    int r = call_read_json(call, &body, &err);

    if (r == 0)
        r = name_check("environment", call->match.param, &err);
    deployment = json_string_value(json_object_get(body, "deployment_id"));
    if (r == 0 && deployment == NULL)
        r = err_set(&err, ERR_MALFORMED, "deployment_id is missing; it must be a string");
    if (r < 0) {
        json_decref(body);
        call_fail(&call, &err);
        return;
    }
    mem_copy_text(call->about, model->id);
    batch = pg_batch_new();
    pg_add(batch, &deployment_promote);
    pg_bind_c(batch, model->id);
    pg_bind_c(batch, deployment);
    pg_bind_c(batch, call->match.param);
    audit(batch, call, "MODEL_DEPLOYMENT_PROMOTED", deployment);
    json_decref(body);
    call_query(call, &batch, on_promoted);
}

static void promote_with_body(struct call *call)
{
    gateway_watch_find_model(call, promote);
}

void promote_begin(struct call *call)
{
    call_collect_body(call, BODY_SIZE_MAX, promote_with_body);
}
