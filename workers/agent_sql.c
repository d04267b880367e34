/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What the agent reads and writes in Postgres, all on one connection, in order.
 *
 * Deployments are read once a second, and at once when headrace_config says that one has changed.
 * A write whose fate is not known makes the core say everything again after the next read.
 */

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "workers/agent_int.h"

#define SQL_TIMEOUT_MS 10000

/* Deployments that should run. */
PG_STATEMENT(agent_deployments,
             "SELECT d.id, m.name, d.pool, d.engine, d.device, encode(d.archive_digest, 'hex'), "
             "a.blob, d.config::text, d.shard::bigint, d.slot_count::bigint, "
             "d.replicas_wanted::bigint, d.status IN ('ACTIVE', 'UNHEALTHY', 'UPDATING', "
             "'SCALED_TO_ZERO', 'WAKING_UP'), d.model_id, coalesce(d.promote_to, (SELECT "
             "min(t.environment) FROM environment_target t WHERE t.deployment_id = d.id), ''), "
             "d.replicas_warm::bigint "
             "FROM deployment d JOIN model m ON m.id = d.model_id "
             "LEFT JOIN archive a ON a.digest = d.archive_digest "
             "WHERE d.deleted_at IS NULL AND m.deleted_at IS NULL AND d.status IN ('DEPLOYING', "
             "'LOADING_MODEL', 'ACTIVE', 'UNHEALTHY', 'UPDATING', 'SCALED_TO_ZERO', 'WAKING_UP') "
             "ORDER BY d.created_at LIMIT 1000");

PG_STATEMENT(agent_running,
             "SELECT r.worker, r.deployment_id, r.boot, r.pid::bigint, r.state, "
             "r.restart_count::bigint, d.shard::bigint, coalesce(r.device, ''), d.config::text "
             "FROM replica r "
             "JOIN deployment d ON d.id = r.deployment_id "
             "WHERE r.host = $1 AND r.state NOT IN ('STOPPED', 'FAILED')");

/* What other machines have, of agents that live. */
PG_STATEMENT(
    agent_elsewhere,
    "SELECT host, name, number::bigint, split_part(capability, '.', 1)::bigint, "
    "split_part(capability, '.', 2)::bigint, memory_bytes, CASE WHEN state IN ('well', "
    "'probation') THEN free_bytes ELSE 0 END, workers = 0 FROM device WHERE host <> $1 AND "
    "state <> 'gone' AND seen_at > now() - interval '15 seconds' ORDER BY host LIMIT 1000");

/* Ours when nobody else has it: a new one, our own, a stopped one, or one whose agent is silent. */
PG_STATEMENT(
    agent_claim,
    "INSERT INTO replica AS r (worker, deployment_id, pool, host, state, slot_count, device, "
    "log_path) VALUES ($1, $2, $3, $4, 'STARTING', $5, $6, $7) "
    "ON CONFLICT (worker) DO UPDATE SET deployment_id = excluded.deployment_id, "
    "pool = excluded.pool, host = excluded.host, state = 'STARTING', reason = NULL, "
    "slot_count = excluded.slot_count, device = excluded.device, "
    "log_path = excluded.log_path, boot = 0, pid = 0, restart_count = 0, "
    "started_at = now(), ready_at = NULL, seen_at = now() "
    "WHERE r.host = excluded.host OR r.state = 'STOPPED' "
    "OR r.seen_at < now() - interval '15 seconds' RETURNING worker");

PG_STATEMENT(agent_replica,
             "UPDATE replica SET state = $2, reason = nullif($3, ''), boot = $4, pid = $5, "
             "restart_count = $6, seen_at = now(), device = coalesce(nullif($8, ''), device), "
             "ready_at = CASE WHEN $2 = 'READY' AND state <> 'READY' THEN now() ELSE ready_at END "
             "WHERE worker = $1 AND host = $7");

PG_STATEMENT(agent_devices, "SELECT device_tell($1, $2::jsonb)");

/* What the agent before this one wrote is not to be given to others, nor taken for nothing. */
PG_STATEMENT(agent_devices_unseen_rows,
             "UPDATE device SET seen_at = now(), free_bytes = 0, reason = $2 WHERE host = $1");

PG_STATEMENT(agent_seen,
             "UPDATE replica SET seen_at = now() WHERE host = $1 AND state <> 'STOPPED'");

/* ---- reading ---- */

static void deployment_fill(struct agent_deployment *deployment, const struct pg_answer *answer,
                            size_t row)
{
    *deployment = (struct agent_deployment){
        .shard = (uint32_t)pg_u64(answer, 0, row, 8),
        .slot_count = (uint32_t)pg_u64(answer, 0, row, 9),
        .replicas_wanted = (uint32_t)pg_u64(answer, 0, row, 10),
        .replicas_warm = (uint32_t)pg_u64(answer, 0, row, 14),
        .was_active = pg_bool(answer, 0, row, 11),
        .config = xstrdup(pg_c(answer, 0, row, 7)),
    };
    mem_copy_text(deployment->id, pg_c(answer, 0, row, 0));
    mem_copy_text(deployment->model, pg_c(answer, 0, row, 1));
    mem_copy_text(deployment->pool, pg_c(answer, 0, row, 2));
    mem_copy_text(deployment->engine, pg_c(answer, 0, row, 3));
    mem_copy_text(deployment->device, pg_c(answer, 0, row, 4));
    mem_copy_text(deployment->digest, pg_c(answer, 0, row, 5));
    mem_copy_text(deployment->blob, pg_c(answer, 0, row, 6));
    mem_copy_text(deployment->model_id, pg_c(answer, 0, row, 12));
    mem_copy_text(deployment->environment, pg_c(answer, 0, row, 13));
}

static void elsewhere_take(struct agent *agent, const struct pg_answer *answer)
{
    size_t count = pg_row_count(answer, 1);
    struct agent_elsewhere *devices = xcalloc(count + 1, sizeof(*devices));

    for (size_t i = 0; i < count; i++) {
        struct device_info *info = &devices[i].info;

        mem_copy_text(devices[i].host, pg_c(answer, 1, i, 0));
        mem_copy_text(info->name, pg_c(answer, 1, i, 1));
        info->index = (uint32_t)pg_u64(answer, 1, i, 2);
        info->major = (uint32_t)pg_u64(answer, 1, i, 3);
        info->minor = (uint32_t)pg_u64(answer, 1, i, 4);
        info->total_size = pg_u64(answer, 1, i, 5);
        devices[i].free_size = pg_u64(answer, 1, i, 6);
        devices[i].empty = pg_bool(answer, 1, i, 7);
    }
    agent_core_on_elsewhere(agent->core, devices, count);
    free(devices);
}

static void on_deployments(void *opaque, const struct pg_answer *answer)
{
    struct agent *agent = opaque;
    struct agent_deployment *deployments;
    size_t count;

    agent->reading = false;
    if (answer->err.code != ERR_OK) {
        log_warn("deployments_not_read", LOG_ERR(&answer->err));
        return;
    }
    count = pg_row_count(answer, 0);
    deployments = xcalloc(count + 1, sizeof(*deployments));
    for (size_t i = 0; i < count; i++)
        deployment_fill(&deployments[i], answer, i);
    agent->has_read = true;
    agent_tick(agent);
    agent_act(agent); /* what is to be started now names deployments that are replaced here */
    agent_sweep(agent, deployments, count);
    elsewhere_take(agent, answer);
    agent_core_on_deployments(agent->core, deployments, count);
    free(deployments);
    if (agent->writes_lost) {
        agent->writes_lost = false;
        agent_core_tell_again(agent->core);
    }
    agent_act(agent);
    if (agent->read_again) {
        agent->read_again = false;
        agent_sql_read(agent);
    }
}

/* A worker of the time before this agent. */
static void running_take(struct agent *agent, const struct pg_answer *answer, size_t row)
{
    const char *worker = pg_c(answer, 0, row, 0), *state = pg_c(answer, 0, row, 4);
    uint64_t boot = pg_u64(answer, 0, row, 2);
    pid_t pid = (pid_t)pg_i64(answer, 0, row, 3);
    uint32_t shard = (uint32_t)pg_u64(answer, 0, row, 6);
    bool loaded = strcmp(state, "READY") == 0 || strcmp(state, "WARM") == 0, warm = false;

    if (pid > 0 && loaded && agent_process_adopt(agent, worker, pid, &warm)) {
        agent_core_on_adopted(agent->core, worker, pg_c(answer, 0, row, 1), pg_c(answer, 0, row, 8),
                              pg_c(answer, 0, row, 7), shard, boot,
                              (uint32_t)pg_u64(answer, 0, row, 5), warm);
        return;
    }
    if (pid > 0)
        agent_process_kill_stray(agent, worker, pid);
    /* To the core it is one that was adopted and has ended at once: its owner is told. */
    agent_core_on_adopted(agent->core, worker, pg_c(answer, 0, row, 1), "", "", shard, boot,
                          (uint32_t)pg_u64(answer, 0, row, 5), false);
    agent_core_on_ended(agent->core, worker, AGENT_EXIT_UNKNOWN, 0, "it ended while no agent ran");
}

static void on_running(void *opaque, const struct pg_answer *answer)
{
    struct agent *agent = opaque;

    agent->reading = false;
    if (answer->err.code != ERR_OK) {
        log_warn("replicas_not_read", LOG_ERR(&answer->err));
        return;
    }
    agent->adopted = true;
    agent_tick(agent);
    for (size_t i = 0; i < pg_row_count(answer, 0); i++)
        running_take(agent, answer, i);
    agent_act(agent);
    agent_sql_read(agent);
}

void agent_sql_read(struct agent *agent)
{
    struct pg_batch *batch;
    struct err err;

    if (agent->reading || !pg_connected(agent->pg) || !agent_devices_known(agent)) {
        agent->read_again = agent->reading;
        return;
    }
    batch = pg_batch_new();
    pg_add(batch, agent->adopted ? &agent_deployments : &agent_running);
    if (agent->adopted)
        pg_add(batch, &agent_elsewhere);
    pg_bind_c(batch, agent->host);
    agent->reading = true;
    if (pg_send(agent->pg, &batch, SQL_TIMEOUT_MS, agent->adopted ? on_deployments : on_running,
                agent, &err) < 0) {
        agent->reading = false;
        log_warn("deployments_not_read", LOG_ERR(&err));
        pg_batch_free(&batch);
    }
}

static void on_notify(void *opaque, const char *payload)
{
    /* Our own writes to `replica` are no news. */
    if (payload == NULL || strncmp(payload, "replica", 7) != 0)
        agent_sql_read(opaque);
}

int agent_sql_open(struct agent *agent, struct err *err)
{
    const struct pg_options options = {.url = agent->settings.postgres,
                                       .application = "headrace agent"};
    int r = pg_open(agent->loop, &options, &agent->pg, err);

    if (r == 0)
        pg_listen(agent->pg, "headrace_config", on_notify, agent);
    return r;
}

/* ---- writing ---- */

static void on_written(void *opaque, const struct pg_answer *answer)
{
    struct agent *agent = opaque;

    if (answer->err.code == ERR_OK)
        return;
    log_warn("state_not_written", LOG_ERR(&answer->err));
    agent->writes_lost = true;
}

static void sql_write(struct agent *agent, struct pg_batch *batch)
{
    struct err err;

    if (pg_send(agent->pg, &batch, SQL_TIMEOUT_MS, on_written, agent, &err) == 0)
        return;
    log_warn("state_not_written", LOG_ERR(&err));
    agent->writes_lost = true;
    pg_batch_free(&batch);
}

struct claim {
    struct agent *agent;
    char worker[AGENT_NAME_SIZE];
};

static void on_claimed(void *opaque, const struct pg_answer *answer)
{
    struct claim *claim = opaque;
    struct agent *agent = claim->agent;

    if (answer->err.code != ERR_OK)
        log_warn("worker_not_claimed", LOG_STR("worker", claim->worker), LOG_ERR(&answer->err));
    agent_tick(agent);
    agent_core_on_claimed(agent->core, claim->worker,
                          answer->err.code == ERR_OK && pg_row_count(answer, 0) == 1);
    free(claim);
    agent_act(agent);
}

void agent_sql_claim(struct agent *agent, const struct agent_todo *todo)
{
    OWNED(mem_free) char *log_path = agent_process_log_path(agent, todo->worker);
    struct claim *claim = xcalloc(1, sizeof(*claim));
    struct pg_batch *batch = pg_batch_new();
    struct err err;

    claim->agent = agent;
    mem_copy_text(claim->worker, todo->worker);
    pg_add(batch, &agent_claim);
    pg_bind_c(batch, todo->worker);
    pg_bind_c(batch, todo->deployment->id);
    pg_bind_c(batch, todo->deployment->pool);
    pg_bind_c(batch, agent->host);
    pg_bind_i32(batch, todo->deployment->slot_count);
    pg_bind_c(batch, todo->deployment->device);
    pg_bind_c(batch, log_path);
    if (pg_send(agent->pg, &batch, SQL_TIMEOUT_MS, on_claimed, claim, &err) == 0)
        return;
    log_warn("worker_not_claimed", LOG_STR("worker", todo->worker), LOG_ERR(&err));
    pg_batch_free(&batch);
    free(claim);
    agent_core_on_claimed(agent->core, todo->worker, false);
}

void agent_sql_replica(struct agent *agent, const struct agent_todo *todo)
{
    const struct agent_process *process = agent_process_find(agent, todo->worker);
    struct pg_batch *batch = pg_batch_new();

    pg_add(batch, &agent_replica);
    pg_bind_c(batch, todo->worker);
    pg_bind_c(batch, todo->state);
    pg_bind_c(batch, todo->reason);
    pg_bind_i64(batch, (int64_t)todo->boot);
    pg_bind_i32(batch, process == NULL ? 0 : child_pid(process->child));
    pg_bind_i32(batch, todo->restart_count);
    pg_bind_c(batch, agent->host);
    pg_bind_c(batch, todo->device);
    sql_write(agent, batch);
}

void agent_sql_seen(struct agent *agent)
{
    struct pg_batch *batch;

    if (!pg_connected(agent->pg))
        return;
    batch = pg_batch_new();
    pg_add(batch, &agent_seen);
    pg_bind_c(batch, agent->host);
    sql_write(agent, batch);
}

void agent_sql_devices(struct agent *agent)
{
    OWNED(mem_free) char *devices = NULL;
    const char *unseen = agent_devices_unseen(agent);
    struct pg_batch *batch;

    if (!pg_connected(agent->pg))
        return;
    devices = agent_devices_json(agent);
    batch = pg_batch_new();
    pg_add(batch, unseen != NULL ? &agent_devices_unseen_rows : &agent_devices);
    pg_bind_c(batch, agent->host);
    pg_bind_c(batch, unseen != NULL ? unseen : devices);
    sql_write(agent, batch);
}
