/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Versions and environments of chains, in the shapes of the management API (SURFACE, appendix A).
 * A chain is a model, and a chain in Python several, so what is shown or done is one function of
 * the ledger each (migrations/0037_chain_versions.sql), which answers JSON.
 *
 * A version with runs that are not over is neither stopped nor deleted: 409.
 */

#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "brokers/pg.h"
#include "producers/gateway.h"

#define BODY_SIZE_MAX 65536
#define UPDATES_MAX 100
#define REPLICAS_MAX 1000

PG_STATEMENT(versions_list,
             "SELECT jsonb_build_object('deployments', coalesce(jsonb_agg(chain_deployment_json("
             "d.id) ORDER BY d.number DESC), '[]'))::text FROM deployment d WHERE d.model_id = $1 "
             "AND d.deleted_at IS NULL");
PG_STATEMENT(versions_get, "SELECT chain_deployment_json(d.id)::text FROM deployment d WHERE "
                           "d.model_id = $1 AND $2 IN (d.id, d.name) AND d.deleted_at IS NULL "
                           "ORDER BY d.id <> $2 LIMIT 1");
PG_STATEMENT(versions_do, "SELECT deployment_id, refused FROM chain_version_do($1, $2, $3)");
PG_STATEMENT(versions_delete_chain, "SELECT refused FROM chain_delete($1)");
PG_STATEMENT(versions_environments,
             "SELECT jsonb_build_object('environments', coalesce(jsonb_agg(chain_environment_json("
             "$1, e.name) ORDER BY e.name), '[]'))::text FROM environment e WHERE e.model_id = $1");
PG_STATEMENT(versions_environment,
             "SELECT chain_environment_json($1, $2)::text WHERE EXISTS (SELECT FROM environment e "
             "WHERE e.model_id = $1 AND e.name = $2)");
PG_STATEMENT(versions_environment_make, "INSERT INTO environment (model_id, name) VALUES ($1, $2) "
                                        "ON CONFLICT DO NOTHING RETURNING name");
PG_STATEMENT(versions_promote, "UPDATE deployment SET promote_to = $3 WHERE model_id = $1 AND "
                               "$2 IN (id, name) AND deleted_at IS NULL RETURNING id");
PG_STATEMENT(versions_scale, "SELECT chain_scale($1, $2, $3, nullif($4, -1), nullif($5, -1))");
PG_STATEMENT(
    versions_chainlet,
    "SELECT c.model_id, c.deployment_id FROM deployment d CROSS JOIN LATERAL "
    "chain_members(d.id) c WHERE d.model_id = $1 AND d.deleted_at IS NULL AND "
    "$2 IN (c.deployment_id, c.name) ORDER BY c.deployment_id <> $2, d.number DESC LIMIT 1");
PG_STATEMENT(versions_audit, "INSERT INTO audit (tenant, actor, action, target) "
                             "VALUES ($1, $2, $3, $4)");

static void audit(struct pg_batch *batch, const struct call *call, const char *action,
                  const char *target)
{
    pg_add(batch, &versions_audit);
    pg_bind_c(batch, call->tenant);
    pg_bind_c(batch, call->key_prefix);
    pg_bind_c(batch, action);
    pg_bind_c(batch, target);
}

/* A query about the chain $1. */
static struct pg_batch *ask(const struct pg_statement *statement, const struct config_model *model)
{
    struct pg_batch *batch = pg_batch_new();

    pg_add(batch, statement);
    pg_bind_c(batch, model->id);
    return batch;
}

static void answer_none(struct call *call, const char *what, const char *name)
{
    char text[200];

    (void)snprintf(text, sizeof(text), "chain '%.64s' has no %s '%.64s'", call->match.model, what,
                   name);
    call_fail_as(&call, 404, "model_does_not_exist", text);
}

/* The JSON of the last row there is, in its first column. */
static void answer_row(struct call *call, const struct pg_answer *answer, size_t result, int status)
{
    call_answer_text(&call, status, "application/json", pg_c(answer, result, 0, 0));
}

/* ---- chains ---- */

/* {m} must be a chain, as below /chain/{m}. */
static bool is_chain(struct call *call, const struct config_model *model)
{
    char text[160];

    if (gateway_config_is_chain(gateway_watch_config(call->gateway->watch), model))
        return true;
    (void)snprintf(text, sizeof(text), "'%s' is a model and no chain", model->name);
    call_fail_as(&call, 404, "model_does_not_exist", text);
    return false;
}

static void on_chain_deleted(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    json_t *body;

    if (!call_take_answer(&call, answer))
        return;
    if (!pg_is_null(answer, 0, 0, 0)) {
        call_fail_as(&call, 409, "client_error", pg_c(answer, 0, 0, 0));
        return;
    }
    body = json_pack("{s:s, s:b}", "id", call->about, "deleted", 1);
    call_answer_json(&call, 200, &body);
}

static void delete_chain(struct call *call, const struct config_model *model)
{
    struct pg_batch *batch;

    if (!is_chain(call, model))
        return;
    mem_copy_text(call->about, model->id);
    batch = ask(&versions_delete_chain, model);
    audit(batch, call, "CHAIN_DELETED", model->id);
    call_query(call, &batch, on_chain_deleted);
}

void chain_delete_begin(struct call *call)
{
    gateway_watch_find_model(call, delete_chain);
}

/* ---- versions ---- */

static void on_versions(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;

    if (call_take_answer(&call, answer))
        answer_row(call, answer, 0, 200);
}

static void list_versions(struct call *call, const struct config_model *model)
{
    struct pg_batch *batch;

    if (!is_chain(call, model))
        return;
    batch = ask(&versions_list, model);
    call_query(call, &batch, on_versions);
}

void chain_deployments_begin(struct call *call)
{
    gateway_watch_find_model(call, list_versions);
}

static void on_version(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 0) == 0)
        answer_none(call, "deployment", call->match.param);
    else
        answer_row(call, answer, 0, 200);
}

static void get_version(struct call *call, const struct config_model *model)
{
    struct pg_batch *batch;

    if (!is_chain(call, model))
        return;
    batch = ask(&versions_get, model);
    pg_bind_c(batch, call->match.param);
    call_query(call, &batch, on_version);
}

void chain_deployment_begin(struct call *call)
{
    gateway_watch_find_model(call, get_version);
}

static void on_version_done(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    json_t *body;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 0) == 0) {
        answer_none(call, "deployment", call->match.param);
        return;
    }
    if (!pg_is_null(answer, 0, 0, 1)) {
        call_fail_as(&call, 409, "client_error", pg_c(answer, 0, 0, 1));
        return;
    }
    if (call->match.route == ROUTE_CHAIN_DEPLOYMENT_DELETE)
        body = json_pack("{s:s, s:b, s:s}", "id", pg_c(answer, 0, 0, 0), "deleted", 1, "chain_id",
                         call->about);
    else
        body = json_pack("{s:s, s:b}", "id", pg_c(answer, 0, 0, 0), "success", 1);
    call_answer_json(&call, 200, &body);
}

static void do_with_version(struct call *call, const struct config_model *model)
{
    enum route route = call->match.route;
    const char *what = route == ROUTE_CHAIN_DEPLOYMENT_DELETE ? "delete"
                       : route == ROUTE_CHAIN_DEACTIVATE      ? "stop"
                                                              : "start";
    const char *action = route == ROUTE_CHAIN_DEPLOYMENT_DELETE ? "CHAIN_DEPLOYMENT_DELETED"
                         : route == ROUTE_CHAIN_DEACTIVATE      ? "CHAIN_DEPLOYMENT_DEACTIVATED"
                                                                : "CHAIN_DEPLOYMENT_ACTIVATED";
    struct pg_batch *batch;

    if (!is_chain(call, model))
        return;
    mem_copy_text(call->about, model->id);
    batch = ask(&versions_do, model);
    pg_bind_c(batch, call->match.param);
    pg_bind_c(batch, what);
    audit(batch, call, action, call->match.param);
    call_query(call, &batch, on_version_done);
}

/* Delete, deactivate, activate. */
void chain_version_do_begin(struct call *call)
{
    gateway_watch_find_model(call, do_with_version);
}

/* ---- logs ---- */

static void on_chainlet(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 0) == 0) {
        answer_none(call, "chainlet", call->match.param);
        return;
    }
    mem_copy_text(call->about, pg_c(answer, 0, 0, 0));
    mem_copy_text(call->about_deployment, pg_c(answer, 0, 0, 1));
    call->match.model = call->about;
    call->match.param = call->about_deployment;
    deployment_logs_begin(call);
}

static void find_chainlet(struct call *call, const struct config_model *model)
{
    struct pg_batch *batch;

    if (!is_chain(call, model))
        return;
    batch = ask(&versions_chainlet, model);
    pg_bind_c(batch, call->match.param);
    call_query(call, &batch, on_chainlet);
}

void chainlet_logs_begin(struct call *call)
{
    gateway_watch_find_model(call, find_chainlet);
}

/* ---- environments ---- */

static void list_environments(struct call *call, const struct config_model *model)
{
    struct pg_batch *batch;

    if (!is_chain(call, model))
        return;
    batch = ask(&versions_environments, model);
    call_query(call, &batch, on_versions);
}

void chain_environments_begin(struct call *call)
{
    gateway_watch_find_model(call, list_environments);
}

static void on_environment(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 0) == 0)
        answer_none(call, "environment", call->match.param);
    else
        answer_row(call, answer, 0, 200);
}

static void get_environment(struct call *call, const struct config_model *model)
{
    struct pg_batch *batch;

    if (!is_chain(call, model))
        return;
    batch = ask(&versions_environment, model);
    pg_bind_c(batch, call->match.param);
    call_query(call, &batch, on_environment);
}

void chain_environment_begin(struct call *call)
{
    gateway_watch_find_model(call, get_environment);
}

/* What a promotion does here is not to be chosen: the old version stays for its runs. */
static int check_promotion_settings(const json_t *settings, struct err *err)
{
    const char *key;
    json_t *value;

    if (!json_is_object(settings) && !json_is_null(settings) && settings != NULL)
        return err_set(err, ERR_MALFORMED, "promotion_settings must be an object");
    json_object_foreach((json_t *)settings, key, value)
    {
        const char *text = json_string_value(value);

        if (json_is_null(value) || json_is_false(value) ||
            (strcmp(key, "promotion_cleanup_strategy") == 0 && text != NULL &&
             strcmp(text, "KEEP") == 0) ||
            (strcmp(key, "ramp_up_duration_seconds") == 0 && json_is_integer(value) &&
             json_integer_value(value) == 0))
            continue;
        return err_set(err, ERR_MALFORMED,
                       "promotion_settings.%.60s: a chain's environment moves at once, and keeps "
                       "the version before for its runs; nothing else is supported",
                       key);
    }
    return 0;
}

static void on_environment_made(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    char text[160];

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 0) == 1) {
        answer_row(call, answer, 1, 201);
        return;
    }
    (void)snprintf(text, sizeof(text), "chain '%.64s' has an environment '%.64s'",
                   call->match.model, call->about_deployment);
    call_fail_as(&call, 409, "client_error", text);
}

static void make_environment(struct call *call, const struct config_model *model)
{
    struct pg_batch *batch;
    json_t *body = NULL;
    const char *name;
    struct err err;
    int r;

    if (!is_chain(call, model))
        return;
    r = call_read_json(call, &body, &err);
    name = json_string_value(json_object_get(body, "name"));
    if (r == 0 && name == NULL)
        r = err_set(&err, ERR_MALFORMED, "name is missing; it must be a string");
    if (r == 0)
        r = name_check("name", name, &err);
    if (r == 0)
        r = check_promotion_settings(json_object_get(body, "promotion_settings"), &err);
    if (r == 0 && json_array_size(json_object_get(body, "chainlet_settings")) > 0)
        r = err_set(&err, ERR_MALFORMED,
                    "chainlet_settings: an environment that points at nothing has no chainlets; "
                    "promote first");
    if (r < 0) {
        json_decref(body);
        call_fail(&call, &err);
        return;
    }
    mem_copy_text(call->about_deployment, name);
    batch = ask(&versions_environment_make, model);
    pg_bind_c(batch, name);
    pg_add(batch, &versions_environment);
    pg_bind_c(batch, model->id);
    pg_bind_c(batch, name);
    audit(batch, call, "ENVIRONMENT_CREATED", name);
    json_decref(body);
    call_query(call, &batch, on_environment_made);
}

static void on_environment_body(struct call *call)
{
    gateway_watch_find_model(call, make_environment);
}

void chain_environment_make_begin(struct call *call)
{
    call_collect_body(call, BODY_SIZE_MAX, on_environment_body);
}

static void on_environment_set(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    json_t *body;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 0) == 0) {
        answer_none(call, "environment", call->match.param);
        return;
    }
    body = json_pack("{s:b}", "ok", 1);
    call_answer_json(&call, 200, &body);
}

static void set_environment(struct call *call, const struct config_model *model)
{
    struct pg_batch *batch;
    json_t *body = NULL;
    struct err err;
    int r;

    if (!is_chain(call, model))
        return;
    r = call_read_json(call, &body, &err);
    if (r == 0)
        r = check_promotion_settings(json_object_get(body, "promotion_settings"), &err);
    json_decref(body);
    if (r < 0) {
        call_fail(&call, &err);
        return;
    }
    batch = ask(&versions_environment, model);
    pg_bind_c(batch, call->match.param);
    call_query(call, &batch, on_environment_set);
}

static void on_environment_settings(struct call *call)
{
    gateway_watch_find_model(call, set_environment);
}

void chain_environment_set_begin(struct call *call)
{
    call_collect_body(call, BODY_SIZE_MAX, on_environment_settings);
}

/* ---- promotion ---- */

static void on_promoted(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 0) == 0)
        answer_none(call, "deployment", call->about_deployment);
    else
        answer_row(call, answer, 1, 200);
}

static void promote(struct call *call, const struct config_model *model)
{
    struct pg_batch *batch;
    json_t *body = NULL;
    const char *deployment;
    struct err err;
    int r;

    if (!is_chain(call, model))
        return;
    r = call_read_json(call, &body, &err);
    deployment = json_string_value(json_object_get(body, "deployment_id"));
    if (r == 0)
        r = name_check("environment", call->match.param, &err);
    if (r == 0 && deployment == NULL)
        r = err_set(&err, ERR_MALFORMED, "deployment_id is missing; it must be a string");
    if (r == 0)
        r = name_check("deployment_id", deployment, &err);
    if (r < 0) {
        json_decref(body);
        call_fail(&call, &err);
        return;
    }
    mem_copy_text(call->about_deployment, deployment);
    batch = ask(&versions_promote, model);
    pg_bind_c(batch, deployment);
    pg_bind_c(batch, call->match.param);
    pg_add(batch, &versions_get);
    pg_bind_c(batch, model->id);
    pg_bind_c(batch, deployment);
    audit(batch, call, "CHAIN_DEPLOYMENT_PROMOTED", deployment);
    json_decref(body);
    call_query(call, &batch, on_promoted);
}

static void on_promotion_body(struct call *call)
{
    gateway_watch_find_model(call, promote);
}

void chain_promote_begin(struct call *call)
{
    call_collect_body(call, BODY_SIZE_MAX, on_promotion_body);
}

/* ---- settings of chainlets ---- */

/* Null, or 0 to REPLICAS_MAX. */
static int read_replicas(const json_t *settings, const char *key, const json_t **ret_value,
                         struct err *err)
{
    const json_t *value = json_object_get(settings, key);

    *ret_value = json_is_null(value) ? NULL : value;
    if (*ret_value == NULL || (json_is_integer(value) && json_integer_value(value) >= 0 &&
                               json_integer_value(value) <= REPLICAS_MAX))
        return 0;
    return err_set(err, ERR_RANGE, "%s must be a number of 0 to %d", key, REPLICAS_MAX);
}

static int add_scale(struct pg_batch *batch, const struct call *call, const char *model,
                     const json_t *update, struct err *err)
{
    const char *chainlet = json_string_value(json_object_get(update, "chainlet_name"));
    const json_t *settings = json_object_get(update, "autoscaling_settings"), *min, *max;
    const char *key;
    json_t *value;
    int r;

    if (chainlet == NULL || !json_is_object(settings))
        return err_set(err, ERR_MALFORMED,
                       "each of updates must have chainlet_name and autoscaling_settings");
    json_object_foreach((json_t *)settings, key, value)
    {
        if (strcmp(key, "min_replica") != 0 && strcmp(key, "max_replica") != 0 &&
            !json_is_null(value))
            return err_set(err, ERR_MALFORMED,
                           "autoscaling_settings.%.60s is not supported; min_replica and "
                           "max_replica are",
                           key);
    }
    r = read_replicas(settings, "min_replica", &min, err);
    if (r == 0)
        r = read_replicas(settings, "max_replica", &max, err);
    if (r == 0 && min != NULL && max != NULL && json_integer_value(min) > json_integer_value(max))
        r = err_set(err, ERR_RANGE, "min_replica is more than max_replica");
    if (r < 0)
        return r;
    pg_add(batch, &versions_scale);
    pg_bind_c(batch, model);
    pg_bind_c(batch, call->match.param);
    pg_bind_c(batch, chainlet);
    pg_bind_i32(batch, min == NULL ? -1 : json_integer_value(min));
    pg_bind_i32(batch, max == NULL ? -1 : json_integer_value(max));
    return 0;
}

/* Of the types nothing has changed. */
static void answer_types(struct call *call, const char *environment)
{
    json_t *json = json_loads(environment, 0, NULL);
    json_t *body = json_pack("{s:b, s:n, s:O}", "requires_redeployment", 0, "chain_deployment",
                             "chainlet_environment_settings",
                             json_object_get(json, "chainlet_settings"));

    json_decref(json);
    call_answer_json(&call, 200, &body);
}

static void on_scaled(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;

    if (!call_take_answer(&call, answer))
        return;
    for (uint32_t i = 0; i < call->about_count; i++) {
        if (pg_bool(answer, i, 0, 0))
            continue;
        answer_none(call, "chainlet of such a name in the environment", call->match.param);
        return;
    }
    if (pg_row_count(answer, call->about_count) == 0)
        answer_none(call, "environment", call->match.param);
    else if (call->match.route == ROUTE_CHAIN_AUTOSCALING)
        answer_row(call, answer, call->about_count, 200);
    else
        answer_types(call, pg_c(answer, call->about_count, 0, 0));
}

/* Only one type of machine is there: the one that a replica's agent runs on. */
static int check_instance_type(const json_t *update, struct err *err)
{
    const char *type = json_string_value(json_object_get(update, "instance_type_id"));

    if (json_string_value(json_object_get(update, "chainlet_name")) == NULL || type == NULL)
        return err_set(err, ERR_MALFORMED,
                       "each of updates must have chainlet_name and instance_type_id");
    if (strcmp(type, "local") != 0)
        return err_set(err, ERR_MALFORMED,
                       "instance_type_id is '%.64s'; there is one type here, 'local'", type);
    return 0;
}

static void set_chainlets(struct call *call, const struct config_model *model)
{
    bool scale = call->match.route == ROUTE_CHAIN_AUTOSCALING;
    struct pg_batch *batch = NULL;
    json_t *body = NULL, *update;
    const json_t *updates;
    struct err err;
    size_t i;
    int r;

    if (!is_chain(call, model))
        return;
    r = call_read_json(call, &body, &err);
    updates = json_object_get(body, "updates");
    if (r == 0 && (json_array_size(updates) == 0 || json_array_size(updates) > UPDATES_MAX))
        r = err_set(&err, ERR_MALFORMED, "updates must be a list of 1 to %d", UPDATES_MAX);
    batch = pg_batch_new();
    call->about_count = 0;
    json_array_foreach(updates, i, update)
    {
        if (r < 0)
            break;
        r = scale ? add_scale(batch, call, model->id, update, &err)
                  : check_instance_type(update, &err);
        call->about_count += scale ? 1 : 0;
    }
    json_decref(body);
    if (r < 0) {
        pg_batch_free(&batch);
        call_fail(&call, &err);
        return;
    }
    pg_add(batch, &versions_environment);
    pg_bind_c(batch, model->id);
    pg_bind_c(batch, call->match.param);
    audit(batch, call,
          scale ? "CHAINLET_AUTOSCALING_SETTINGS_CHANGED" : "CHAINLET_INSTANCE_TYPE_CHANGED",
          model->id);
    call_query(call, &batch, on_scaled);
}

static void on_chainlets_body(struct call *call)
{
    gateway_watch_find_model(call, set_chainlets);
}

/* Autoscaling settings, instance types. */
void chainlets_set_begin(struct call *call)
{
    call_collect_body(call, BODY_SIZE_MAX, on_chainlets_body);
}
