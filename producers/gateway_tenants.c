/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Tenants and their limits. The admin keys of one tenant, the setting operator-tenant, manage all
 * of them; every other key sees its own and changes none.
 *
 * A change is a row; brokers and gateways hear of it by headrace_config and read it. The name of a
 * tenant that was deleted is not given out again: its jobs are still in the ledger.
 */

#include <jansson.h>
#include <string.h>

#include "base/clock.h"
#include "brokers/pg.h"
#include "producers/gateway.h"
#include "schema/limits.h"

#define BODY_SIZE_MAX 65536
#define NAME_SIZE_MAX 200

PG_STATEMENT(tenants_list, "SELECT id, name, limits::text, created_at FROM tenant "
                           "WHERE deleted_at IS NULL AND ($1 OR id = $2) ORDER BY id LIMIT 10000");
PG_STATEMENT(tenants_show,
             "SELECT t.id, t.name, t.limits::text, t.created_at, "
             "coalesce(sum(q.waiting), 0)::bigint, coalesce(sum(q.delayed), 0)::bigint, "
             "coalesce(sum(q.running), 0)::bigint, coalesce(sum(q.bytes), 0)::bigint "
             "FROM tenant t LEFT JOIN model m ON m.tenant = t.id LEFT JOIN deployment d ON "
             "d.model_id = m.id LEFT JOIN queue_delta q ON q.deployment = d.id "
             "WHERE t.id = $1 AND t.deleted_at IS NULL GROUP BY t.id");
PG_STATEMENT(tenants_insert, "INSERT INTO tenant (id, name, limits) VALUES ($1, $2, "
                             "jsonb_strip_nulls(coalesce($3::text, '{}')::jsonb)) "
                             "ON CONFLICT DO NOTHING RETURNING id");
PG_STATEMENT(tenants_set, "UPDATE tenant SET limits = jsonb_strip_nulls(limits || coalesce($2, "
                          "'{}')::jsonb), name = coalesce($3, name) "
                          "WHERE id = $1 AND deleted_at IS NULL RETURNING id");
PG_STATEMENT(tenants_delete, "UPDATE tenant SET deleted_at = now() WHERE id = $1 AND deleted_at "
                             "IS NULL AND NOT EXISTS (SELECT 1 FROM model WHERE tenant = $1 AND "
                             "deleted_at IS NULL) RETURNING id");
PG_STATEMENT(tenants_revoke_keys,
             "UPDATE api_key SET revoked_at = now() WHERE tenant = $1 AND revoked_at IS NULL AND "
             "EXISTS (SELECT 1 FROM tenant WHERE id = $1 AND deleted_at IS NOT NULL)");
PG_STATEMENT(tenants_still, "SELECT 1 FROM tenant WHERE id = $1 AND deleted_at IS NULL");

/* ---- who may ---- */

bool call_is_operator(const struct call *call)
{
    return call->role == API_KEY_ROLE_ADMIN &&
           strcmp(call->tenant, call->gateway->settings.operator_tenant) == 0;
}

int call_whose(const struct call *call, const char **ret_tenant, struct err *err)
{
    const char *tenant = http_target_query(&call->target, "tenant");

    if (tenant != NULL && strcmp(tenant, call->tenant) != 0 && !call_is_operator(call))
        return err_set(err, ERR_FORBIDDEN,
                       "this api-key belongs to another tenant than '%.64s', and not to the "
                       "operator's",
                       tenant);
    *ret_tenant = tenant == NULL ? call->tenant : tenant;
    return tenant == NULL ? 0 : name_check("tenant", tenant, err);
}

static bool refuse_stranger(struct call **call_p)
{
    struct err err;

    if (call_is_operator(*call_p))
        return false;
    (void)err_set(&err, ERR_FORBIDDEN,
                  "only an admin's api-key of the operator's tenant may change tenants");
    call_fail(call_p, &err);
    return true;
}

/* ---- limits in bodies ---- */

static int check_limit(const char *name, const json_t *value, enum limit_on on, struct err *err)
{
    enum limit limit;
    int r = limit_find(name, on, &limit, err);

    if (r < 0 || json_is_null(value)) /* null takes it away */
        return r;
    if (!json_is_number(value))
        return err_set(err, ERR_RANGE, "limits.%s must be a number, or null to take it away", name);
    return limit_check(limit, json_number_value(value), err);
}

int limits_of_body(const json_t *body, enum limit_on on, char **ret_json, struct err *err)
{
    json_t *limits = json_object_get(body, "limits");
    const char *name;
    json_t *value;
    int r = 0;

    *ret_json = NULL;
    if (limits == NULL || json_is_null(limits))
        return 0;
    if (!json_is_object(limits))
        return err_set(err, ERR_MALFORMED, "limits must be an object of numbers");
    json_object_foreach(limits, name, value)
    {
        if (r == 0)
            r = check_limit(name, value, on, err);
    }
    if (r == 0)
        *ret_json = json_dumps(limits, JSON_COMPACT);
    return r;
}

int fields_check(const json_t *body, const char *const *names, size_t count, struct err *err)
{
    const char *field;
    json_t *value;

    json_object_foreach((json_t *)body, field, value)
    {
        size_t i = 0;

        while (i < count && strcmp(names[i], field) != 0)
            i++;
        if (i == count)
            return err_set(err, ERR_RANGE, "there is no field '%.60s' here", field);
    }
    return 0;
}

static int name_of_body(const json_t *body, const char **ret_name, struct err *err)
{
    const json_t *name = json_object_get(body, "name");

    *ret_name = NULL;
    if (name == NULL || json_is_null(name))
        return 0;
    if (!json_is_string(name) || json_string_length(name) == 0 ||
        json_string_length(name) > NAME_SIZE_MAX)
        return err_set(err, ERR_RANGE, "name must be a string of 1 to %d bytes", NAME_SIZE_MAX);
    *ret_name = json_string_value(name);
    return 0;
}

/* ---- list and show ---- */

json_t *limits_json(const char *text)
{
    json_t *limits = json_loads(text, 0, NULL);

    return limits == NULL ? json_object() : limits;
}

static json_t *tenant_json(const struct pg_answer *answer, size_t row)
{
    char created[CLOCK_TEXT_SIZE];

    clock_format_iso(pg_time_us(answer, 0, row, 3), created);
    return json_pack("{s:s, s:s, s:o, s:s}", "id", pg_c(answer, 0, row, 0), "name",
                     pg_c(answer, 0, row, 1), "limits", limits_json(pg_c(answer, 0, row, 2)),
                     "created_at", created);
}

static void on_tenants(void *opaque, const struct pg_answer *answer)
{
    call_answer_rows(opaque, answer, "tenants", tenant_json);
}

void tenants_begin(struct call *call)
{
    struct pg_batch *batch = pg_batch_new();

    pg_add(batch, &tenants_list);
    pg_bind_bool(batch, call_is_operator(call));
    pg_bind_c(batch, call->tenant);
    call_query(call, &batch, on_tenants);
}

static void on_tenant(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    json_t *body, *usage;
    int status = 200;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 0) == 0) {
        call_fail_as(&call, 404, "client_error", "there is no such tenant");
        return;
    }
    if (call->match.route == ROUTE_TENANT_CREATE)
        status = 201;
    body = tenant_json(answer, 0);
    usage = json_pack("{s:I, s:I, s:I, s:I}", "waiting_jobs", (json_int_t)pg_i64(answer, 0, 0, 4),
                      "delayed_jobs", (json_int_t)pg_i64(answer, 0, 0, 5), "running_jobs",
                      (json_int_t)pg_i64(answer, 0, 0, 6), "payload_bytes",
                      (json_int_t)pg_i64(answer, 0, 0, 7));
    (void)json_object_set_new(body, "usage", usage);
    call_answer_json(&call, status, &body);
}

static void tenant_show(struct call *call, const char *id)
{
    struct pg_batch *batch = pg_batch_new();

    pg_add(batch, &tenants_show);
    pg_bind_c(batch, id);
    call_query(call, &batch, on_tenant);
}

void tenant_begin(struct call *call)
{
    if (strcmp(call->match.param, call->tenant) != 0 && !call_is_operator(call))
        call_fail_as(&call, 404, "client_error", "there is no such tenant");
    else
        tenant_show(call, call->match.param);
}

/* ---- create, change, delete ---- */

static void on_created(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 0) == 0)
        call_fail_as(&call, 409, "client_error", "there is, or was, a tenant of this id");
    else
        tenant_show(call, call->about);
}

static int read_id(const json_t *body, const char **ret_id, struct err *err)
{
    const json_t *id = json_object_get(body, "id");

    if (!json_is_string(id))
        return err_set(err, ERR_MALFORMED, "id must be a string");
    *ret_id = json_string_value(id);
    return name_check("id", *ret_id, err);
}

static void create_tenant(struct call *call)
{
    static const char *const fields[] = {"id", "name", "limits"};
    OWNED(mem_free) char *limits = NULL;
    const char *id = NULL, *name = NULL;
    struct pg_batch *batch;
    json_t *body = NULL;
    struct err err;
    int r = call_read_json(call, &body, &err);

    if (r == 0)
        r = fields_check(body, fields, COUNT_OF(fields), &err);
    if (r == 0)
        r = read_id(body, &id, &err);
    if (r == 0)
        r = name_of_body(body, &name, &err);
    if (r == 0)
        r = limits_of_body(body, LIMIT_ON_TENANT, &limits, &err);
    if (r < 0) {
        json_decref(body);
        call_fail(&call, &err);
        return;
    }
    mem_copy_text(call->about, id);
    batch = pg_batch_new();
    pg_add(batch, &tenants_insert);
    pg_bind_c(batch, id);
    pg_bind_c(batch, name == NULL ? id : name);
    pg_bind_c(batch, limits);
    call_audit(batch, call, id, AUDITED_TENANT, "TENANT_CREATED", id);
    json_decref(body);
    call_query(call, &batch, on_created);
}

void tenant_create_begin(struct call *call)
{
    if (!refuse_stranger(&call))
        call_collect_body(call, BODY_SIZE_MAX, create_tenant);
}

static void on_set(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 0) == 0)
        call_fail_as(&call, 404, "client_error", "there is no such tenant");
    else
        tenant_show(call, call->match.param);
}

static void set_tenant(struct call *call)
{
    static const char *const fields[] = {"name", "limits"};
    OWNED(mem_free) char *limits = NULL;
    const char *name = NULL;
    struct pg_batch *batch;
    json_t *body = NULL;
    struct err err;
    int r = call_read_json(call, &body, &err);

    if (r == 0)
        r = fields_check(body, fields, COUNT_OF(fields), &err);
    if (r == 0)
        r = name_of_body(body, &name, &err);
    if (r == 0)
        r = limits_of_body(body, LIMIT_ON_TENANT, &limits, &err);
    if (r < 0) {
        json_decref(body);
        call_fail(&call, &err);
        return;
    }
    batch = pg_batch_new();
    pg_add(batch, &tenants_set);
    pg_bind_c(batch, call->match.param);
    pg_bind_c(batch, limits);
    pg_bind_c(batch, name);
    call_audit(batch, call, call->match.param, AUDITED_TENANT, "TENANT_CHANGED", call->match.param);
    json_decref(body);
    call_query(call, &batch, on_set);
}

void tenant_set_begin(struct call *call)
{
    if (!refuse_stranger(&call))
        call_collect_body(call, BODY_SIZE_MAX, set_tenant);
}

static void on_deleted(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    json_t *body;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 2) > 0) {
        call_fail_as(&call, 409, "client_error", "this tenant has models: delete them first");
    } else if (pg_row_count(answer, 0) == 0) {
        call_fail_as(&call, 404, "client_error", "there is no such tenant");
    } else {
        body = json_pack("{s:s, s:b}", "id", pg_c(answer, 0, 0, 0), "deleted", 1);
        call_answer_json(&call, 200, &body);
    }
}

void tenant_delete_begin(struct call *call)
{
    struct pg_batch *batch;

    if (refuse_stranger(&call))
        return;
    if (strcmp(call->match.param, call->tenant) == 0) {
        call_fail_as(&call, 409, "client_error", "the operator's tenant cannot be deleted");
        return;
    }
    batch = pg_batch_new();
    pg_add(batch, &tenants_delete);
    pg_bind_c(batch, call->match.param);
    pg_add(batch, &tenants_revoke_keys);
    pg_bind_c(batch, call->match.param);
    pg_add(batch, &tenants_still);
    pg_bind_c(batch, call->match.param);
    call_audit(batch, call, call->match.param, AUDITED_TENANT, "TENANT_DELETED", call->match.param);
    call_query(call, &batch, on_deleted);
}
