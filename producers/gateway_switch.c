/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Kill switches: on, off, which are on. What they do: submits are refused here (gateway_submit.c),
 * waiting jobs are held by their owners (brokers/owner_switch.c). Both learn of a change by the
 * notification that the row makes.
 */

#include <jansson.h>
#include <string.h>

#include "base/clock.h"
#include "brokers/pg.h"
#include "producers/gateway.h"
#include "producers/gateway_tags.h"
#include "schema/api_key.h"

#define BODY_SIZE_MAX 65536
#define REASON_LENGTH_MAX 1000
#define SWITCHES_MAX 1000 /* of a tenant */

PG_STATEMENT(switches_list, "SELECT id, kind, value, reason, created_by, created_at FROM switch "
                            "WHERE tenant = $1 ORDER BY created_at, id LIMIT 1000");
PG_STATEMENT(switch_insert,
             "INSERT INTO switch (tenant, kind, value, reason, created_by) "
             "SELECT $1, $2, $3, $4, $5 WHERE (SELECT count(*) FROM switch WHERE tenant = $1) < $6 "
             "ON CONFLICT (tenant, kind, value) DO UPDATE SET reason = excluded.reason "
             "RETURNING id, kind, value, reason, created_by, created_at");
PG_STATEMENT(switch_delete, "DELETE FROM switch WHERE tenant = $1 AND id = $2 "
                            "RETURNING id, kind, value, reason, created_by, created_at");
PG_STATEMENT(switch_audit, "INSERT INTO audit (tenant, actor, action, target, details) "
                           "VALUES ($1, $2, $3, $4, jsonb_build_object('reason', $5::text))");

static json_t *switch_json(struct call *call, const struct pg_answer *answer, size_t row)
{
    const struct config *config = gateway_watch_config(call->gateway->watch);
    const char *kind = pg_c(answer, 0, row, 1), *value = pg_c(answer, 0, row, 2);
    const struct config_model *model = config == NULL || strcmp(kind, "model") != 0
                                           ? NULL
                                           : gateway_config_find_model(config, call->tenant, value);
    struct wire_id id = pg_id(answer, 0, row, 0);
    char text[JOB_ID_TEXT_SIZE], at[CLOCK_TEXT_SIZE];

    job_id_format(&id, text);
    clock_format_iso(pg_time_us(answer, 0, row, 5), at);
    return json_pack("{s:s, s:s, s:s, s:o, s:s, s:s, s:s}", "id", text, "kind", kind, "value",
                     value, "model_name", model == NULL ? json_null() : json_string(model->name),
                     "reason", pg_c(answer, 0, row, 3), "created_by", pg_c(answer, 0, row, 4),
                     "created_at", at);
}

static void on_switches(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    json_t *list, *body;

    if (!call_take_answer(&call, answer))
        return;
    list = json_array();
    for (size_t i = 0; i < pg_row_count(answer, 0); i++)
        (void)json_array_append_new(list, switch_json(call, answer, i));
    body = json_pack("{s:o}", "switches", list);
    call_answer_json(&call, 200, &body);
}

void switches_begin(struct call *call)
{
    struct pg_batch *batch = pg_batch_new();

    pg_add(batch, &switches_list);
    pg_bind_c(batch, call->tenant);
    call_query(call, &batch, on_switches);
}

static void audit(struct pg_batch *batch, const struct call *call, const char *action,
                  const char *target, const char *reason)
{
    pg_add(batch, &switch_audit);
    pg_bind_c(batch, call->tenant);
    pg_bind_c(batch, call->key_prefix);
    pg_bind_c(batch, action);
    pg_bind_c(batch, target);
    pg_bind_c(batch, reason);
}

/* ---- on ---- */

struct switch_body {
    const char *kind, *value, *reason;
};

static int read_target(struct call *call, const json_t *body, struct switch_body *ret,
                       struct err *err)
{
    const struct config *config = gateway_watch_config(call->gateway->watch);
    const json_t *model = json_object_get(body, "model"), *tag = json_object_get(body, "tag");
    const json_t *tenant = json_object_get(body, "tenant");
    const struct config_model *found;

    if ((model != NULL) + (tag != NULL) + (tenant != NULL) != 1)
        return err_set(err, ERR_MALFORMED,
                       "what is to be switched? one of model, tag and \"tenant\": true");
    if (tenant != NULL && !json_is_true(tenant))
        return err_set(err, ERR_MALFORMED, "tenant must be true: it is the tenant of the key");
    if (tenant != NULL) {
        *ret = (struct switch_body){.kind = "tenant", .value = call->tenant};
        return 0;
    }
    if (!json_is_string(model != NULL ? model : tag))
        return err_set(err, ERR_MALFORMED, "%s must be a text", model != NULL ? "model" : "tag");
    if (tag != NULL) {
        *ret = (struct switch_body){.kind = "tag", .value = json_string_value(tag)};
        return tag_check(ret->value, json_string_length(tag), err);
    }
    if (name_check("model", json_string_value(model), err) < 0)
        return ERR_RANGE;
    found = config == NULL
                ? NULL
                : gateway_config_find_model(config, call->tenant, json_string_value(model));
    if (found == NULL)
        return err_set(err, ERR_NOT_FOUND, "there is no model '%.80s'", json_string_value(model));
    *ret = (struct switch_body){.kind = "model", .value = found->id};
    return 0;
}

static void on_switched_on(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    json_t *body;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 0) == 0) {
        call_fail_as(&call, 409, "client_error", "1000 switches are on, which is the most");
        return;
    }
    body = switch_json(call, answer, 0);
    call_answer_json(&call, 201, &body);
}

static void on_body(struct call *call)
{
    static const char *const fields[] = {"model", "tag", "tenant", "reason"};
    struct pg_batch *batch;
    struct switch_body what = {.reason = ""};
    json_t *body = NULL;
    const json_t *reason;
    struct err err;
    int r = call_read_json(call, &body, &err);

    if (r == 0)
        r = fields_check(body, fields, COUNT_OF(fields), &err);
    if (r == 0)
        r = read_target(call, body, &what, &err);
    reason = json_object_get(body, "reason");
    if (r == 0 && reason != NULL &&
        (!json_is_string(reason) ||
         count_characters(json_string_value(reason)) > REASON_LENGTH_MAX))
        r = err_set(&err, ERR_MALFORMED, "reason must be a text of at most %d characters",
                    REASON_LENGTH_MAX);
    if (r < 0) {
        json_decref(body);
        call_fail(&call, &err);
        return;
    }
    what.reason = reason == NULL ? "" : json_string_value(reason);
    batch = pg_batch_new();
    pg_add(batch, &switch_insert);
    pg_bind_c(batch, call->tenant);
    pg_bind_c(batch, what.kind);
    pg_bind_c(batch, what.value);
    pg_bind_c(batch, what.reason);
    pg_bind_c(batch, call->key_prefix);
    pg_bind_i64(batch, SWITCHES_MAX);
    audit(batch, call, "SWITCH_ON", what.value, what.reason);
    json_decref(body);
    call_query(call, &batch, on_switched_on);
}

void switch_on_begin(struct call *call)
{
    call_collect_body(call, BODY_SIZE_MAX, on_body);
}

/* ---- off ---- */

static void on_switched_off(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    json_t *body;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 0) == 0) {
        call_fail_as(&call, 404, "client_error", "there is no such switch, or it is off");
        return;
    }
    body = switch_json(call, answer, 0);
    call_answer_json(&call, 200, &body);
}

void switch_off_begin(struct call *call)
{
    struct pg_batch *batch;
    char text[JOB_ID_TEXT_SIZE];
    struct wire_id id;
    struct err err;

    if (job_id_parse(call->match.param, &id, &err) < 0) {
        call_fail(&call, &err);
        return;
    }
    job_id_format(&id, text);
    batch = pg_batch_new();
    pg_add(batch, &switch_delete);
    pg_bind_c(batch, call->tenant);
    pg_bind_id(batch, &id);
    audit(batch, call, "SWITCH_OFF", text, "");
    call_query(call, &batch, on_switched_off);
}
