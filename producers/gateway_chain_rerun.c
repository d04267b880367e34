/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A run of a chain again: POST /v1/chain_runs/{id}/rerun.
 *
 *   body -> the earlier run, its version's file and its input -> which steps run again, which are
 *   taken over -> a row that says so (chain_rerun_open()) -> a submit like any other, under the id
 *   that the row has
 *
 * The coordinator finds the row as it begins, and plans with what the earlier run's jobs came to.
 * Crash between row and submit: a row of no job, which nobody sees.
 */

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "brokers/blob.h"
#include "brokers/pg.h"
#include "producers/gateway.h"
#include "schema/chain.h"
#include "schema/job_id.h"

#define INPUT_SIZE_MAX (16u << 20)

PG_STATEMENT(
    rerun_find,
    "SELECT j.state NOT IN (1, 2), j.model, d.id, d.config::text, coalesce(r.input, i.input), "
    "coalesce(j.input_blob, '') FROM job j JOIN deployment o ON o.id = j.deployment AND o.engine = "
    "'chain' LEFT JOIN deployment d ON d.model_id = j.model AND d.deleted_at IS NULL AND d.engine "
    "= 'chain' AND coalesce($3, j.deployment) IN (d.id, d.name) LEFT JOIN chain_run r ON r.run_id "
    "= j.id LEFT JOIN job_input i ON i.job_id = j.id WHERE j.id = $1 AND j.tenant = $2 ORDER BY "
    "d.id <> $3 LIMIT 1");
PG_STATEMENT(rerun_open,
             "SELECT chain_rerun_open($1, $2, $3, string_to_array(nullif($4, ''), ','), $5)");

struct rerun {
    struct wire_id source, id;
    char model[CONFIG_NAME_SIZE], deployment[CONFIG_NAME_SIZE];
    json_t *body;
    struct buf reused;   /* names of steps, with commas between */
    struct buf envelope; /* the body of the submit */
};

static void rerun_free(struct rerun **rerun_p)
{
    struct rerun *rerun = TAKE(*rerun_p);

    json_decref(rerun->body);
    buf_done(&rerun->reused);
    buf_done(&rerun->envelope);
    free(rerun);
}

static void on_freed(struct call *call)
{
    rerun_free((struct rerun **)&call->state);
}

static void rerun_fail_as(struct call *call, int status, const char *text)
{
    call_fail_as(&call, status, status == 404 ? "model_does_not_exist" : "client_error", text);
}

/* ---- the submit ---- */

static void on_choice(struct call *call, const struct config_choice *choice)
{
    struct rerun *rerun = call->state;
    struct wire_id id = rerun->id;
    struct buf envelope = BUF_WITH_LIMIT(INPUT_SIZE_MAX + 64);

    buf_move(&envelope, &rerun->envelope);
    on_freed(call);
    call->on_freed = NULL; /* from here on the state is the submit's */
    submit_given(call, choice, &id, &envelope);
}

static void on_opened(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;

    if (call_take_answer(&call, answer))
        gateway_watch_choose(call, on_choice);
}

static void on_shard(struct call *call, const struct config_choice *choice)
{
    struct rerun *rerun = call->state;
    struct pg_batch *batch = pg_batch_new();
    json_t *given = json_object_get(rerun->body, "inputs");
    uint8_t entropy[JOB_ID_RANDOM_SIZE];
    char *text = given == NULL ? xstrdup("{}") : json_dumps(given, JSON_COMPACT);

    rng_secret_bytes(entropy, sizeof(entropy));
    rerun->id = job_id_make(choice->deployment->shard, clock_wall_ms(), entropy);
    pg_add(batch, &rerun_open);
    pg_bind_id(batch, &rerun->id);
    pg_bind_c(batch, choice->deployment->id);
    pg_bind_id(batch, &rerun->source);
    pg_bind_c(batch, buf_text(&rerun->reused));
    pg_bind_c(batch, text);
    free(text);
    call_query(call, &batch, on_opened);
}

static void rerun_submit(struct call *call, const void *input, size_t size)
{
    struct rerun *rerun = call->state;
    struct err err;

    buf_append_text(&rerun->envelope, "{\"model_input\":");
    buf_append(&rerun->envelope, input, size);
    buf_append_byte(&rerun->envelope, '}');
    if (buf_check(&rerun->envelope, "the run's input", &err) < 0) {
        call_fail(&call, &err);
        return;
    }
    call->match.target = ROUTE_TARGET_DEPLOYMENT;
    mem_copy_text(call->about, rerun->model);
    mem_copy_text(call->about_deployment, rerun->deployment);
    call->match.model = call->about;
    call->match.target_name = call->about_deployment;
    gateway_watch_choose(call, on_shard);
}

/* ---- its input ---- */

static void on_input_blob(void *opaque, struct buf *bytes, const struct err *err)
{
    struct call *call = opaque;
    struct err mine = *err;

    if (err->code == ERR_OK) {
        rerun_submit(call, bytes->bytes, bytes->size);
    } else if (err->code == ERR_NOT_FOUND) {
        rerun_fail_as(call, 409, "the run's input is not kept any more: give it as input");
    } else {
        (void)err_wrap(&mine, "the run's input cannot be read");
        call_fail(&call, &mine);
    }
}

static void rerun_find_input(struct call *call, const struct pg_answer *answer)
{
    struct rerun *rerun = call->state;
    json_t *input = json_object_get(rerun->body, "input");
    struct wire_bytes kept = pg_bytes(answer, 0, 0, 4);
    const char *blob = pg_c(answer, 0, 0, 5);
    struct err err;
    char *text;

    if (input != NULL) {
        text = json_dumps(input, JSON_COMPACT | JSON_ENCODE_ANY);
        rerun_submit(call, text, strlen(text));
        free(text);
    } else if (kept.size > 0) {
        rerun_submit(call, kept.bytes, kept.size);
    } else if (blob[0] == '\0') {
        rerun_fail_as(call, 409, "the run's input is not kept any more: give it as input");
    } else if (blob_get(call->gateway->blobs, blob, INPUT_SIZE_MAX, on_input_blob, call, &err) <
               0) {
        call_fail(&call, &err);
    }
}

/* ---- which steps ---- */

static int find_step(const struct chain *chain, const char *name, uint64_t *ret_again,
                     struct err *err)
{
    int at = chain_find(chain, name);

    if (at < 0)
        return err_set(err, ERR_NOT_FOUND, "the chain has no step '%.64s'", name);
    *ret_again |= chain_steps_behind(chain, (size_t)at);
    return at;
}

/* A model's input, or the list of its map, may be given. */
static int check_given(const struct chain *chain, const json_t *inputs, uint64_t *ret_again,
                       struct err *err)
{
    const char *name;
    json_t *value;

    json_object_foreach((json_t *)inputs, name, value)
    {
        const struct chain_step *step;
        int at = find_step(chain, name, ret_again, err);

        if (at < 0)
            return err_wrap(err, "inputs");
        step = &chain->steps[at];
        if (step->kind != CHAIN_MODEL || step->until != NULL)
            return err_set(err, ERR_MALFORMED,
                           "inputs.%.64s: it must be a step with a model and no loop", name);
        if (step->map != NULL &&
            (!json_is_array(value) || json_array_size(value) > CHAIN_ITEMS_MAX))
            return err_set(err, ERR_MALFORMED,
                           "inputs.%.64s: the step has a map, so it must be the list that it goes "
                           "over, of at most %u",
                           name, CHAIN_ITEMS_MAX);
    }
    return 0;
}

static int rerun_choose_steps(struct rerun *rerun, const char *config, struct err *err)
{
    OWNED(chain_free) struct chain *chain = NULL;
    const json_t *inputs = json_object_get(rerun->body, "inputs");
    const char *from = json_string_value(json_object_get(rerun->body, "from"));
    json_t *json = json_loads(config, 0, NULL);
    uint64_t again = 0;
    int r = json == NULL ? err_set(err, ERR_INTERNAL, "the chain's file cannot be read")
                         : chain_parse(json, &chain, err);

    json_decref(json);
    if (r == 0 && from != NULL)
        r = find_step(chain, from, &again, err) < 0 ? err_wrap(err, "from") : 0;
    if (r == 0)
        r = check_given(chain, inputs, &again, err);
    if (r < 0 || again == 0) /* neither is given: all of them */
        return r;
    for (size_t i = 0; i < chain->step_count; i++) {
        if ((again >> i & 1) == 0)
            buf_printf(&rerun->reused, "%s%s", rerun->reused.size > 0 ? "," : "",
                       chain->steps[i].name);
    }
    return buf_check(&rerun->reused, "the steps", err);
}

static void on_found(void *opaque, const struct pg_answer *answer)
{
    struct call *call = opaque;
    struct rerun *rerun;
    struct err err;

    if (!call_take_answer(&call, answer))
        return;
    rerun = call->state;
    if (pg_row_count(answer, 0) == 0) {
        rerun_fail_as(call, 404, "there is no such run of a declared chain");
        return;
    }
    if (!pg_bool(answer, 0, 0, 0)) {
        rerun_fail_as(call, 409, "the run is not over: cancel it first, or wait");
        return;
    }
    if (pg_is_null(answer, 0, 0, 2)) {
        rerun_fail_as(call, 404, "the chain has no such deployment any more");
        return;
    }
    mem_copy_text(rerun->model, pg_c(answer, 0, 0, 1));
    mem_copy_text(rerun->deployment, pg_c(answer, 0, 0, 2));
    if (rerun_choose_steps(rerun, pg_c(answer, 0, 0, 3), &err) < 0)
        call_fail(&call, &err);
    else
        rerun_find_input(call, answer);
}

/* ---- the body ---- */

static int check_body(const json_t *body, struct err *err)
{
    const json_t *from = json_object_get(body, "from"), *inputs = json_object_get(body, "inputs");
    const json_t *deployment = json_object_get(body, "deployment_id");
    const char *key;
    json_t *value;

    json_object_foreach((json_t *)body, key, value)
    {
        if (strcmp(key, "from") != 0 && strcmp(key, "input") != 0 && strcmp(key, "inputs") != 0 &&
            strcmp(key, "deployment_id") != 0)
            return err_set(err, ERR_MALFORMED,
                           "'%.60s' is not known; from, input, inputs and deployment_id are", key);
    }
    if (from != NULL && !json_is_string(from))
        return err_set(err, ERR_MALFORMED, "from must be the name of a step");
    if (inputs != NULL && !json_is_object(inputs))
        return err_set(err, ERR_MALFORMED, "inputs must be an object, by the names of steps");
    if (deployment != NULL && !json_is_string(deployment))
        return err_set(err, ERR_MALFORMED, "deployment_id must be a string");
    return deployment == NULL ? 0 : name_check("deployment_id", json_string_value(deployment), err);
}

static void on_body(struct call *call)
{
    struct rerun *rerun = xcalloc(1, sizeof(*rerun));
    struct pg_batch *batch;
    struct err err;
    int r;

    rerun->reused = (struct buf)BUF_WITH_LIMIT(CHAIN_STEPS_MAX * CHAIN_NAME_SIZE);
    rerun->envelope = (struct buf)BUF_WITH_LIMIT(INPUT_SIZE_MAX + 64);
    call->state = rerun;
    call->on_freed = on_freed;
    r = call_job_id(call, &rerun->source, &err);
    if (r == 0)
        r = call_read_json(call, &rerun->body, &err);
    if (r == 0)
        r = check_body(rerun->body, &err);
    if (r < 0) {
        call_fail(&call, &err);
        return;
    }
    batch = pg_batch_new();
    pg_add(batch, &rerun_find);
    pg_bind_id(batch, &rerun->source);
    pg_bind_c(batch, call->tenant);
    pg_bind_c(batch, json_string_value(json_object_get(rerun->body, "deployment_id")));
    call_query(call, &batch, on_found);
}

static void on_rate_passed(struct call *call)
{
    call_collect_body(call, call->gateway->settings.body_max_size, on_body);
}

void chain_rerun_begin(struct call *call)
{
    struct refusal refusal;

    if (!gateway_caps_admit_tenant(call->gateway->caps, call->tenant, &refusal))
        call_refuse(&call, &refusal);
    else
        gateway_rates_check(call, on_rate_passed);
}
