/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A training job is made:
 *
 *   body -> checked (schema/training_config.h) -> what it names is there (training_resolve) -> its
 *   row (training_job_put) -> Submit to intake[s], marked as a repeat -> Kafka's report -> 200
 *
 * The row comes first, so that the job can be seen as soon as it is promised. Kafka refuses: the
 * row is taken back and nothing was promised. Crash between the two: a row that waits and that the
 * ledger does not know. Every gateway looks for such rows (training_unpromised() of the
 * migrations) and sends their Submit again, under the same id and marked as a repeat, so that one
 * which did arrive makes no second job.
 *
 * Made again (recreate) is the same with the spec of a job that is there.
 */

#include <jansson.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/log.h"
#include "brokers/queue.h"
#include "producers/gateway_training.h"
#include "schema/job.h"
#include "schema/message.h"
#include "schema/training_config.h"

#define RECORD_SIZE_MAX (128u << 10)
#define LIMIT_MS (366ull * 86400000) /* it may wait and run for a year */
#define LOOK_TICKS 3                 /* seconds between two looks for rows without a Submit */
#define CLAIM_MAX 100

PG_STATEMENT(training_target,
             "SELECT p.id, d.id, d.pool, d.shard, training_resolve($1, $3)::text FROM "
             "training_project p JOIN deployment d ON d.model_id = p.id AND d.deleted_at IS NULL "
             "WHERE p.tenant = $1 AND $2 IN (p.id, p.name) AND p.deleted_at IS NULL ORDER BY "
             "p.id = $2 DESC LIMIT 1");
PG_STATEMENT(training_target_again,
             "SELECT p.id, d.id, d.pool, d.shard, t.spec::text FROM headrace_v1.training_jobs t "
             "JOIN training_project p ON p.id = t.project_id AND p.deleted_at IS NULL JOIN "
             "deployment d ON d.model_id = p.id AND d.deleted_at IS NULL WHERE t.tenant = $1 AND "
             "t.job_id = $2 AND ($3 = '-' OR $3 IN (t.project_id, t.project))");
PG_STATEMENT(training_put, "SELECT training_job_put($1, $2, $3, $4, $5)");
PG_STATEMENT(training_take_back,
             "DELETE FROM training_job WHERE job_id = $1 AND status = 'PENDING' "
             "AND placement = 0 AND token = 0");
PG_STATEMENT(training_claim, "SELECT job_id, tenant, project_id, deployment_id, pool, spec::text, "
                             "created_by, created_at FROM training_unpromised($1)");

/* A job from its body, or from its row, to Kafka's report. */
struct training {
    LIST_ENTRY(training) link;
    struct gateway *gateway;
    struct call *call; /* NULL: its gateway was lost between row and Submit */
    struct wire_id id;
    char tenant[CONFIG_NAME_SIZE], project[CONFIG_NAME_SIZE], deployment[CONFIG_NAME_SIZE];
    char pool[CONFIG_NAME_SIZE], by[CONFIG_NAME_SIZE];
    uint64_t received_us;
    char *spec;
};

struct trainings {
    struct gateway *gateway;
    LIST_HEAD(, training) all;
    uint32_t ticks;
    bool asking;
};

static void training_free(struct training **training_p)
{
    struct training *training = TAKE(*training_p);

    LIST_REMOVE(training, link);
    free(training->spec);
    free(training);
}

static void training_fail(struct training *training, const struct err *err)
{
    struct call *call = TAKE(training->call);

    training_free(&training);
    call_fail(&call, err);
}

/* ---- Kafka ---- */

static void on_taken_back(void *opaque, const struct pg_answer *answer)
{
    struct training *training = opaque;
    struct err err;

    if (answer->err.code != ERR_OK)
        log_warn("training_job_not_taken_back", LOG_STR("tenant", training->tenant),
                 LOG_ERR(&answer->err));
    (void)err_set(&err, ERR_UNAVAILABLE,
                  "Kafka did not take the training job; it is not promised to run");
    training_fail(training, &err);
}

static void take_back(struct training *training)
{
    static const struct pg_answer kept = {.err.code = ERR_OK};
    struct pg_batch *batch = pg_batch_new();
    struct err err;

    pg_add(batch, &training_take_back);
    pg_bind_id(batch, &training->id);
    if (pg_pool_send(training->gateway->pg, &batch, GATEWAY_QUERY_TIMEOUT_MS, on_taken_back,
                     training, &err) < 0) {
        pg_batch_free(&batch);
        on_taken_back(training, &kept);
    }
}

static void on_report(void *opaque, uint64_t tag, const struct queue_report *report)
{
    struct training *training = opaque;
    struct wire_id id = training->id;
    struct call *call;

    (void)tag;
    if (training->call == NULL) { /* not taken: its row is found again */
        training_free(&training);
        return;
    }
    if (report->code != ERR_OK) {
        take_back(training);
        return;
    }
    call = TAKE(training->call);
    training_free(&training);
    training_job_show(call, &id);
}

static int training_produce(struct training *training, struct err *err)
{
    struct gateway *gateway = training->gateway;
    OWNED(buf_done) struct buf record = BUF_WITH_LIMIT(RECORD_SIZE_MAX);
    size_t size = strlen(training->spec);
    uint8_t digest[32];
    const struct message_submit fields = {
        .id = training->id,
        .tenant = WIRE_TEXT_OF(training->tenant),
        .model = WIRE_TEXT_OF(training->project),
        .deployment = WIRE_TEXT_OF(training->deployment),
        .pool = WIRE_TEXT_OF(training->pool),
        .input = {(const uint8_t *)training->spec, size},
        .input_size = size,
        .input_digest = {digest, sizeof(digest)},
        .max_attempts = 1,
        .initial_delay_ms = JOB_INITIAL_DELAY_MS_DEFAULT,
        .max_delay_ms = JOB_MAX_DELAY_MS_DEFAULT,
        .queue_limit_ms = LIMIT_MS,
        .run_limit_ms = LIMIT_MS,
        .repeat = true,
        .received_us = training->received_us,
        .slot_count = 1,
        .key_prefix = WIRE_TEXT_OF(training->by),
    };
    struct queue_message message;
    int r = EVP_Digest(training->spec, size, digest, NULL, EVP_sha256(), NULL);

    assert(r == 1);
    r = message_encode(MESSAGE_SUBMIT, &fields, &record, err);
    message = (struct queue_message){.topic = gateway->intake,
                                     .partition = job_id_shard(&training->id),
                                     .bytes = record.bytes,
                                     .size = record.size,
                                     .done = on_report,
                                     .opaque = training};
    return r < 0 ? r : queue_produce(gateway->producer, &message, err);
}

/* ---- rows ---- */

static void on_row(void *opaque, const struct pg_answer *answer)
{
    struct training *training = opaque;
    struct err err;

    if (!call_take_answer(&training->call, answer))
        training_free(&training);
    else if (training_produce(training, &err) < 0)
        take_back(training);
}

static void training_put_row(struct training *training)
{
    struct pg_batch *batch = pg_batch_new();
    struct err err;

    pg_add(batch, &training_put);
    pg_bind_id(batch, &training->id);
    pg_bind_c(batch, training->project);
    pg_bind_c(batch, training->tenant);
    pg_bind_json(batch, training->spec);
    pg_bind_c(batch, training->by);
    if (pg_pool_send(training->gateway->pg, &batch, GATEWAY_QUERY_TIMEOUT_MS, on_row, training,
                     &err) < 0) {
        pg_batch_free(&batch);
        training_fail(training, &err);
    }
}

/* What is said about names that are not there; NULL: all are. The caller frees. */
static char *problem_of(const char *spec)
{
    json_t *json = json_loads(spec, 0, NULL);
    const char *problem = json_string_value(json_object_get(json, "problem"));
    char *text = problem == NULL ? NULL : xstrdup(problem);

    json_decref(json);
    return text;
}

static void training_new(struct call *call, const struct pg_answer *answer)
{
    struct training *training = xcalloc(1, sizeof(*training));
    uint8_t entropy[JOB_ID_RANDOM_SIZE];

    training->gateway = call->gateway;
    training->call = call;
    training->received_us = call->begun_us;
    mem_copy_text(training->by, call->key_prefix);
    mem_copy_text(training->tenant, call->tenant);
    mem_copy_text(training->project, pg_c(answer, 0, 0, 0));
    mem_copy_text(training->deployment, pg_c(answer, 0, 0, 1));
    mem_copy_text(training->pool, pg_c(answer, 0, 0, 2));
    training->spec = xstrdup(pg_c(answer, 0, 0, 4));
    rng_secret_bytes(entropy, sizeof(entropy));
    training->id = job_id_make((uint16_t)pg_i64(answer, 0, 0, 3), clock_wall_ms(), entropy);
    job_id_format(&training->id, call->job);
    LIST_INSERT_HEAD(&call->gateway->trainings->all, training, link);
    training_put_row(training);
}

static void on_target(void *opaque, const struct pg_answer *answer)
{
    OWNED(mem_free) char *problem = NULL;
    struct call *call = opaque;
    struct err err;

    if (!call_take_answer(&call, answer))
        return;
    if (pg_row_count(answer, 0) == 0) {
        call_fail_as(&call, 404, "client_error",
                     call->match.route == ROUTE_TRAINING_JOB_CREATE
                         ? "there is no such training project"
                         : "there is no such training job, or its project was deleted");
        return;
    }
    problem = problem_of(pg_c(answer, 0, 0, 4));
    if (problem != NULL) {
        (void)err_set(&err, ERR_RANGE, "training_job: %s", problem);
        call_fail(&call, &err);
        return;
    }
    training_new(call, answer);
}

/* ---- the body ---- */

/* The spec of a body's training_job as JSON text; the caller frees. */
static int read_job(struct call *call, char **ret_spec, struct err *err)
{
    static const char *const fields[] = {"training_job"};
    const struct training_origin origin = {"training_job", false};
    OWNED(training_config_done) struct training_config config = {0};
    json_t *body = NULL, *job, *spec;
    int r = call_read_json(call, &body, err);

    if (r == 0)
        r = fields_check(body, fields, COUNT_OF(fields), err);
    job = json_object_get(body, "training_job");
    if (r == 0 && job == NULL)
        r = err_set(err, ERR_MALFORMED, "training_job is missing");
    if (r == 0)
        r = training_config_job(&origin, job, &config, err);
    json_decref(body);
    if (r == ERR_UNSUPPORTED) /* 501 would speak of us, not of the job */
        err->code = ERR_MISMATCH;
    if (r < 0)
        return r;
    spec = training_config_spec(&config);
    *ret_spec = json_dumps(spec, JSON_COMPACT);
    json_decref(spec);
    if (strlen(*ret_spec) <= JOB_INPUT_INLINE_MAX)
        return 0;
    r = err_set(err, ERR_TOO_BIG, "training_job has %zu bytes; at most %u", strlen(*ret_spec),
                JOB_INPUT_INLINE_MAX);
    mem_free(ret_spec);
    return r;
}

static void on_job_body(struct call *call)
{
    OWNED(mem_free) char *spec = NULL;
    struct pg_batch *batch;
    struct err err;

    if (read_job(call, &spec, &err) < 0) {
        call_fail(&call, &err);
        return;
    }
    batch = pg_batch_new();
    pg_add(batch, &training_target);
    pg_bind_c(batch, call->tenant);
    pg_bind_c(batch, call->match.model);
    pg_bind_json(batch, spec);
    call_query(call, &batch, on_target);
}

/* False: a limit of the tenant refuses, and the call is over. */
static bool may_submit(struct call *call)
{
    struct refusal refusal;

    if (gateway_caps_admit_tenant(call->gateway->caps, call->tenant, &refusal))
        return true;
    call_refuse(&call, &refusal);
    return false;
}

void training_job_create_begin(struct call *call)
{
    if (may_submit(call))
        call_collect_body(call, TRAINING_BODY_MAX, on_job_body);
}

void training_job_recreate_begin(struct call *call)
{
    struct pg_batch *batch;
    struct err err;

    if (!may_submit(call))
        return;
    batch = pg_batch_new();
    if (training_bind_path(batch, &training_target_again, call, &err) < 0) {
        pg_batch_free(&batch);
        call_fail(&call, &err);
        return;
    }
    call_query(call, &batch, on_target);
}

/* ---- rows that nobody has submitted ---- */

static void claimed_submit(struct gateway *gateway, const struct pg_answer *answer, size_t row)
{
    struct training *training = xcalloc(1, sizeof(*training));
    char id[JOB_ID_TEXT_SIZE];
    struct err err;

    training->gateway = gateway;
    training->id = pg_id(answer, 0, row, 0);
    mem_copy_text(training->tenant, pg_c(answer, 0, row, 1));
    mem_copy_text(training->project, pg_c(answer, 0, row, 2));
    mem_copy_text(training->deployment, pg_c(answer, 0, row, 3));
    mem_copy_text(training->pool, pg_c(answer, 0, row, 4));
    training->spec = xstrdup(pg_c(answer, 0, row, 5));
    mem_copy_text(training->by, pg_c(answer, 0, row, 6));
    training->received_us = pg_time_us(answer, 0, row, 7);
    LIST_INSERT_HEAD(&gateway->trainings->all, training, link);
    job_id_format(&training->id, id);
    log_info("training_job_submitted_again", LOG_STR("job", id),
             LOG_STR("tenant", training->tenant));
    if (training_produce(training, &err) < 0) {
        log_warn("training_job_not_submitted", LOG_STR("job", id), LOG_ERR(&err));
        training_free(&training);
    }
}

static void on_claimed(void *opaque, const struct pg_answer *answer)
{
    struct trainings *trainings = opaque;

    trainings->asking = false;
    if (answer->err.code != ERR_OK) {
        log_warn("training_jobs_not_claimed", LOG_ERR(&answer->err));
        return;
    }
    for (size_t row = 0; row < pg_row_count(answer, 0); row++)
        claimed_submit(trainings->gateway, answer, row);
}

void gateway_trainings_look(struct trainings *trainings)
{
    struct pg_batch *batch;
    struct err err;

    if (++trainings->ticks % LOOK_TICKS != 0 || trainings->asking)
        return;
    batch = pg_batch_new();
    pg_add(batch, &training_claim);
    pg_bind_i32(batch, CLAIM_MAX);
    trainings->asking = true;
    if (pg_pool_send(trainings->gateway->pg, &batch, GATEWAY_QUERY_TIMEOUT_MS, on_claimed,
                     trainings, &err) < 0) {
        trainings->asking = false;
        pg_batch_free(&batch);
    }
}

int gateway_trainings_open(struct gateway *gateway, struct err *err)
{
    (void)err;
    gateway->trainings = xcalloc(1, sizeof(*gateway->trainings));
    gateway->trainings->gateway = gateway;
    LIST_INIT(&gateway->trainings->all);
    return 0;
}

void gateway_trainings_close(struct trainings **trainings_p)
{
    struct trainings *trainings = *trainings_p;
    struct training *training;

    if (trainings == NULL)
        return;
    while ((training = LIST_FIRST(&trainings->all)) != NULL)
        training_free(&training);
    mem_free(trainings_p);
}
