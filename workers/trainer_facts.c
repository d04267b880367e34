/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The driver of training_plan.h: reads what waits, runs and is there, and carries the plan out.
 *
 * Every trainer does so, whenever something has changed: there is no leader. The version is read
 * first and raised first when the plan is written, so of two who have planned by the same facts one
 * is refused and looks again. What changes meanwhile without a plan (a stop, an end) is met by the
 * conditions of each write.
 */

#include <stdlib.h>

#include "base/clock.h"
#include "workers/trainer_int.h"
#include "workers/training_plan.h"

#define WAITING_MAX "256"

PG_STATEMENT(facts_version, "SELECT version FROM training_plan");
PG_STATEMENT(facts_trainers,
             "SELECT name, boot, accelerator, gpu_count, cpu_count, memory_bytes, draining, "
             "greatest(extract(epoch FROM clock_timestamp() - seen_at) * 1000, 0)::bigint "
             "FROM training_trainer ORDER BY name");
PG_STATEMENT(facts_waiting,
             "SELECT t.job_id, t.priority, t.tenant, t.node_count, t.accelerator, t.gpu_count, "
             "t.cpu_count, t.memory_bytes, t.created_at FROM training_job t "
             "WHERE t.status = 'PENDING' AND t.token > 0 AND t.stop_asked_at IS NULL "
             "ORDER BY t.priority DESC, t.created_at LIMIT " WAITING_MAX);
PG_STATEMENT(facts_running,
             "SELECT t.job_id, t.priority, t.tenant, t.gpu_count, t.cpu_count, t.memory_bytes, "
             "t.created_at, t.placement, t.stop_asked_at IS NOT NULL OR EXISTS (SELECT FROM "
             "training_node n WHERE n.job_id = t.job_id AND n.placement = t.placement AND "
             "n.state <> 'ENDED' AND n.stop_cause IS NOT NULL) FROM training_job t "
             "WHERE t.status IN ('CREATED', 'DEPLOYING', 'RUNNING')");
PG_STATEMENT(facts_nodes, "SELECT n.job_id, n.trainer FROM training_node n JOIN training_job t "
                          "ON t.job_id = n.job_id AND t.placement = n.placement "
                          "WHERE n.state <> 'ENDED'");
/* Over in the ledger, and not here. */
PG_STATEMENT(facts_over,
             "SELECT training_stop_row(t.job_id, 'ledger') FROM training_job t JOIN job j "
             "ON j.id = t.job_id WHERE t.status IN ('PENDING', 'CREATED', 'DEPLOYING', 'RUNNING') "
             "AND t.stop_asked_at IS NULL AND j.state NOT IN (1, 2)");

PG_STATEMENT(plan_next, "SELECT training_plan_next($1)");
PG_STATEMENT(plan_place, "SELECT training_place($1, $2, $3)");
PG_STATEMENT(plan_preempt,
             "UPDATE training_node n SET stop_cause = 'preempt' FROM training_job t "
             "WHERE t.job_id = $1 AND n.job_id = t.job_id AND n.placement = $2 AND "
             "t.placement = n.placement AND n.state <> 'ENDED' AND n.stop_cause IS NULL");
PG_STATEMENT(plan_tell, "SELECT training_tell($1, 'PREEMPTED', $2)");
PG_STATEMENT(plan_bury, "SELECT training_bury($1, $2, $3 * interval '1 millisecond')");

enum { VERSION, TRAINERS, WAITING, RUNNING, NODES }; /* statements of the question */

/* ---- facts ---- */

static struct training_need need_of(const struct pg_answer *answer, size_t at, size_t row,
                                    size_t column)
{
    return (struct training_need){.gpu_count = (uint32_t)pg_u64(answer, at, row, column),
                                  .cpu_count = (uint32_t)pg_u64(answer, at, row, column + 1),
                                  .memory_size = pg_u64(answer, at, row, column + 2)};
}

static struct training_trainer *trainers_of(const struct pg_answer *answer, size_t count)
{
    struct training_trainer *trainers = xcalloc(count + 1, sizeof(*trainers));

    for (size_t i = 0; i < count; i++)
        trainers[i] = (struct training_trainer){.accelerator = pg_c(answer, TRAINERS, i, 2),
                                                .has = need_of(answer, TRAINERS, i, 3),
                                                .draining = pg_bool(answer, TRAINERS, i, 6),
                                                .silent_ms = pg_u64(answer, TRAINERS, i, 7)};
    return trainers;
}

static struct training_waiting *waiting_of(const struct pg_answer *answer, size_t count)
{
    struct training_waiting *waiting = xcalloc(count + 1, sizeof(*waiting));

    for (size_t i = 0; i < count; i++)
        waiting[i] = (struct training_waiting){
            .priority = pg_i64(answer, WAITING, i, 1),
            .tenant = pg_c(answer, WAITING, i, 2),
            .node_count = (uint32_t)pg_u64(answer, WAITING, i, 3),
            .accelerator = pg_c(answer, WAITING, i, 4),
            .need = need_of(answer, WAITING, i, 5),
            .created_us = pg_time_us(answer, WAITING, i, 8)};
    return waiting;
}

static struct training_running *running_of(const struct pg_answer *answer, size_t count)
{
    struct training_running *running = xcalloc(count + 1, sizeof(*running));

    for (size_t i = 0; i < count; i++)
        running[i] = (struct training_running){.priority = pg_i64(answer, RUNNING, i, 1),
                                               .tenant = pg_c(answer, RUNNING, i, 2),
                                               .need = need_of(answer, RUNNING, i, 3),
                                               .created_us = pg_time_us(answer, RUNNING, i, 6),
                                               .ending = pg_bool(answer, RUNNING, i, 8)};
    return running;
}

static size_t row_of_id(const struct pg_answer *answer, size_t at, const struct wire_id *id)
{
    for (size_t i = 0; i < pg_row_count(answer, at); i++) {
        struct wire_id other = pg_id(answer, at, i, 0);

        if (job_id_equal(&other, id))
            return i;
    }
    return SIZE_MAX;
}

static size_t row_of_name(const struct pg_answer *answer, size_t at, const char *name)
{
    for (size_t i = 0; i < pg_row_count(answer, at); i++) {
        if (strcmp(pg_c(answer, at, i, 0), name) == 0)
            return i;
    }
    return SIZE_MAX;
}

/* Those of trainers that are gone take no room: their jobs end, or did. */
static struct training_node *nodes_of(const struct pg_answer *answer, size_t *ret_count)
{
    size_t rows = pg_row_count(answer, NODES), count = 0;
    struct training_node *nodes = xcalloc(rows + 1, sizeof(*nodes));

    for (size_t i = 0; i < rows; i++) {
        struct wire_id job = pg_id(answer, NODES, i, 0);
        struct training_node node = {
            .running = row_of_id(answer, RUNNING, &job),
            .trainer = row_of_name(answer, TRAINERS, pg_c(answer, NODES, i, 1)),
        };

        if (node.running != SIZE_MAX && node.trainer != SIZE_MAX)
            nodes[count++] = node;
    }
    *ret_count = count;
    return nodes;
}

/* ---- carrying out ---- */

static void on_planned(void *opaque, const struct pg_answer *answer)
{
    struct trainer *trainer = opaque;

    trainer->planning = false;
    if (answer->err.code != ERR_OK && answer->err.code != ERR_STALE)
        log_warn("plan_not_written", LOG_ERR(&answer->err));
    trainer_look_soon(trainer);
}

static void add_place(struct pg_batch *batch, const struct pg_answer *answer,
                      const struct training_action *action)
{
    struct wire_id job = pg_id(answer, WAITING, action->job, 0);
    char text[JOB_ID_TEXT_SIZE];

    job_id_format(&job, text);
    log_info("training_placed", LOG_STR("job", text), LOG_U64("nodes", action->trainer_count),
             LOG_STR("leader", pg_c(answer, TRAINERS, action->trainers[0], 0)));
    pg_add(batch, &plan_place);
    pg_bind_id(batch, &job);
    pg_bind_array(batch, PG_TEXT, action->trainer_count);
    for (size_t i = 0; i < action->trainer_count; i++)
        pg_bind_c(batch, pg_c(answer, TRAINERS, action->trainers[i], 0));
    pg_bind_array(batch, PG_I64, action->trainer_count);
    for (size_t i = 0; i < action->trainer_count; i++)
        pg_bind_i64(batch, pg_i64(answer, TRAINERS, action->trainers[i], 1));
}

static void add_preempt(struct pg_batch *batch, const struct pg_answer *answer,
                        const struct training_action *action)
{
    struct wire_id job = pg_id(answer, RUNNING, action->job, 0);
    struct wire_id by = pg_id(answer, WAITING, action->by, 0);
    char text[JOB_ID_TEXT_SIZE], by_text[JOB_ID_TEXT_SIZE];
    OWNED(mem_free) char *why = NULL;

    job_id_format(&job, text);
    job_id_format(&by, by_text);
    log_info("training_preempted", LOG_STR("job", text), LOG_STR("by", by_text));
    why = xasprintf("makes room for %s, whose priority is higher", by_text);
    pg_add(batch, &plan_preempt);
    pg_bind_id(batch, &job);
    pg_bind_i32(batch, pg_i64(answer, RUNNING, action->job, 7));
    pg_add(batch, &plan_tell);
    pg_bind_id(batch, &job);
    pg_bind_c(batch, why);
}

static void add_bury(struct pg_batch *batch, const struct trainer *trainer,
                     const struct pg_answer *answer, const struct training_action *action)
{
    log_warn("trainer_lost", LOG_STR("trainer", pg_c(answer, TRAINERS, action->job, 0)),
             LOG_U64("silent_ms", pg_u64(answer, TRAINERS, action->job, 7)));
    pg_add(batch, &plan_bury);
    pg_bind_c(batch, pg_c(answer, TRAINERS, action->job, 0));
    pg_bind_i64(batch, pg_i64(answer, TRAINERS, action->job, 1));
    pg_bind_i64(batch, (int64_t)trainer->settings->trainer_lease_ms);
}

static void plan_carry_out(struct trainer *trainer, const struct pg_answer *answer,
                           const struct training_plan *plan)
{
    struct pg_batch *batch = pg_batch_new();
    size_t statements = 1;

    pg_add(batch, &plan_next);
    pg_bind_i64(batch, pg_i64(answer, VERSION, 0, 0));
    for (size_t i = 0; i < plan->count && statements + 2 <= PG_STATEMENTS_MAX; i++) {
        const struct training_action *action = &plan->actions[i];

        statements += action->type == TRAINING_PREEMPT ? 2 : 1;
        if (action->type == TRAINING_PLACE)
            add_place(batch, answer, action);
        else if (action->type == TRAINING_PREEMPT)
            add_preempt(batch, answer, action);
        else
            add_bury(batch, trainer, answer, action);
    }
    trainer_send(trainer, &batch, on_planned, trainer);
}

static void on_facts(void *opaque, const struct pg_answer *answer)
{
    struct trainer *trainer = opaque;
    uint64_t lease_ms = trainer->settings->trainer_lease_ms, now_us = clock_mono_us();
    OWNED(mem_free) struct training_trainer *trainers = NULL;
    OWNED(mem_free) struct training_waiting *waiting = NULL;
    OWNED(mem_free) struct training_running *running = NULL;
    OWNED(mem_free) struct training_node *nodes = NULL;
    struct training_facts facts = {.lease_ms = lease_ms, .late_ms = lease_ms / 2};
    struct training_plan plan;

    trainer->planning = false;
    if (answer->err.code != ERR_OK) {
        log_warn("facts_not_read", LOG_ERR(&answer->err));
        return;
    }
    facts.trainer_count = pg_row_count(answer, TRAINERS);
    facts.waiting_count = pg_row_count(answer, WAITING);
    facts.running_count = pg_row_count(answer, RUNNING);
    facts.trainers = trainers = trainers_of(answer, facts.trainer_count);
    facts.waiting = waiting = waiting_of(answer, facts.waiting_count);
    facts.running = running = running_of(answer, facts.running_count);
    facts.nodes = nodes = nodes_of(answer, &facts.node_count);
    facts.may_bury = trainer->beat_ok_us != 0 &&
                     now_us - trainer->beat_ok_us < lease_ms * 1000 / 2 &&
                     now_us - trainer->touch_since_us > lease_ms * 1000;
    training_plan_make(&facts, &plan);
    if (plan.count > 0) {
        trainer->planning = true;
        plan_carry_out(trainer, answer, &plan);
    }
    training_plan_done(&plan);
}

void trainer_plan(struct trainer *trainer)
{
    struct pg_batch *batch;

    if (trainer->planning || trainer->draining || trainer->beat_ok_us == 0)
        return;
    trainer->planning = true;
    batch = pg_batch_new();
    pg_add(batch, &facts_version);
    pg_add(batch, &facts_trainers);
    pg_add(batch, &facts_waiting);
    pg_add(batch, &facts_running);
    pg_add(batch, &facts_nodes);
    pg_add(batch, &facts_over);
    trainer_send(trainer, &batch, on_facts, trainer);
}
