/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A node from its row to its end. Each step is one write of the row, and goes on only when it was
 * answered: a node whose row is not ours any more never starts.
 *
 * A write that gets no answer is made again with the next look at the rows, which come twice a
 * second; none of them does harm when it comes twice.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "schema/secret.h"
#include "workers/agent_unpack.h"
#include "workers/trainer_int.h"

PG_STATEMENT(node_details,
             "SELECT t.project_id, p.name, t.tenant, t.name, t.spec::text, "
             "coalesce(encode(t.archive_digest, 'hex'), ''), coalesce(a.blob, ''), t.retry_count, "
             "t.node_count, t.gpu_count, t.cpu_count, t.memory_bytes, p.checkpoint_keep, "
             "coalesce((SELECT l.address FROM training_node n JOIN training_trainer l "
             "ON l.name = n.trainer WHERE n.job_id = t.job_id AND n.placement = t.placement "
             "AND n.rank = 0), ''), coalesce((SELECT max(number + line_count) FROM training_log "
             "WHERE job_id = t.job_id AND rank = $2), 1)::bigint, "
             "coalesce((SELECT sum(extract(epoch FROM ended_at - started_at) * 1000) FROM "
             "training_node WHERE job_id = t.job_id AND rank = $2), 0)::bigint "
             "FROM training_job t JOIN training_project p ON p.id = t.project_id "
             "LEFT JOIN archive a ON a.digest = t.archive_digest WHERE t.job_id = $1");
PG_STATEMENT(node_state, "SELECT training_node_set($1, $2, $3, $4, $5)");
PG_STATEMENT(node_over,
             "SELECT training_node_end($1, $2, $3, $4, $5, nullif($6, -1), nullif($7, 0), $8)");
PG_STATEMENT(node_guard, "SELECT training_fence($1, $2, $3, $4)");
PG_STATEMENT(node_secrets, "SELECT tenant, name, sealed FROM secret WHERE tenant = $1 "
                           "AND name = ANY($2)");

/* ---- rows ---- */

void node_bind(struct pg_batch *batch, const struct node *node)
{
    pg_bind_id(batch, &node->job);
    pg_bind_i32(batch, node->placement);
    pg_bind_i32(batch, node->rank);
    pg_bind_i64(batch, (int64_t)node->trainer->boot);
}

void node_fence(struct pg_batch *batch, const struct node *node)
{
    pg_add(batch, &node_guard);
    node_bind(batch, node);
}

struct node *node_find(struct trainer *trainer, const struct wire_id *job, uint32_t placement,
                       uint32_t rank)
{
    struct node *node;

    LIST_FOREACH(node, &trainer->nodes, link)
    {
        if (job_id_equal(&node->job, job) && node->placement == placement && node->rank == rank)
            return node;
    }
    return NULL;
}

bool node_unbusy(struct node *node)
{
    struct trainer *trainer = node->trainer;
    bool gone = node->phase == NODE_GONE;

    node->busy--;
    if (gone && node->busy == 0 && node->child == NULL) {
        node_free(&node);
        trainer_end_if_drained(trainer);
    }
    return gone;
}

/* Nothing of it concerns us any more; what is still under way for it ends first. */
static void node_forget(struct node *node)
{
    node->phase = NODE_GONE;
    node->busy++;
    (void)node_unbusy(node);
}

void node_free(struct node **node_p)
{
    struct node *node = TAKE(*node_p);
    struct trainer *trainer = node->trainer;
    struct err err;

    LIST_REMOVE(node, link);
    node_sync_close(node);
    node_log_close(node);
    loop_timer_free(&node->watch_timer);
    loop_timer_free(&node->grace_timer);
    loop_timer_free(&node->limit_timer);
    loop_timer_free(&node->end_timer);
    child_free(&node->child);
    container_call_free(&node->call);
    container_call_free(&node->term_call);
    container_tool_done(&node->tool);
    for (uint32_t i = 0; i < node->gpu_count && i < TRAINER_GPUS_MAX; i++)
        trainer->gpu_used &= ~(1ull << node->gpus[i]);
    trainer->slot_used &= ~(1ull << node->slot);
    if (node->dir != NULL && agent_remove_tree(node->dir, &err) < 0)
        log_warn("folder_stays", LOG_STR("folder", node->dir), LOG_ERR(&err));
    free(node->figures);
    json_decref(node->spec);
    json_decref(node->secrets);
    free(node->project);
    free(node->project_name);
    free(node->tenant);
    free(node->name);
    free(node->leader);
    free(node->archive_blob);
    free(node->dir);
    free(node->group_dir);
    free(node->loaded);
    free(node);
}

/* ---- its end ---- */

/* Its image is not fetched any further; the answer comes, and finds that it is over. */
static void node_call_end(struct node *node)
{
    if (node->call != NULL)
        container_call_end(node->call);
}

static void node_write_end(struct node *node);

static void on_over(void *opaque, const struct pg_answer *answer)
{
    struct node *node = opaque;

    if (answer->err.code == ERR_OK)
        node->phase = NODE_GONE;
    else
        loop_timer_start(node->end_timer, 1000, 0); /* the row says RUNNING until it is told */
    (void)node_unbusy(node);
}

static void node_on_end_timer(void *opaque)
{
    node_write_end(opaque);
}

static void node_write_end(struct node *node)
{
    struct pg_batch *batch = pg_batch_new();

    pg_add(batch, &node_over);
    node_bind(batch, node);
    pg_bind_c(batch, node->cause);
    pg_bind_i32(batch, node->exit_code);
    pg_bind_i32(batch, node->signal);
    pg_bind_c(batch, node->why[0] == '\0' ? NULL : node->why);
    node->busy++;
    trainer_send(node->trainer, &batch, on_over, node);
}

/* Lines first: who reads that it has ended finds all of them. */
static void node_end_when_told(struct node *node)
{
    if (node->phase != NODE_SAVING)
        return;
    node_log_finish(node);
    if (!node_log_is_empty(node))
        return; /* comes again */
    node->phase = NODE_ENDING;
    log_info("node_ended", LOG_STR("job", node->job_text), LOG_U64("placement", node->placement),
             LOG_U64("rank", node->rank), LOG_STR("cause", node->cause),
             LOG_I64("exit_code", node->exit_code), LOG_I64("signal", node->signal),
             LOG_STR("why", node->why));
    node_write_end(node);
}

bool node_ended_well(const struct node *node)
{
    return strcmp(node->cause, "exit") == 0 && node->exit_code == 0;
}

void node_not_saved(struct node *node, const char *why)
{
    if (!node_ended_well(node))
        return; /* that it has failed is the news */
    mem_copy_text(node->cause, "store");
    (void)snprintf(node->why, sizeof(node->why), "its last checkpoint could not be stored: %s",
                   why);
}

void node_saved(struct node *node)
{
    node->saved = true;
    node_end_when_told(node);
}

void node_end(struct node *node, const char *cause, int exit_code, int signal, const char *why)
{
    if (node->phase >= NODE_SAVING)
        return;
    mem_copy_text(node->cause, cause);
    mem_copy_text(node->why, why);
    node->exit_code = exit_code;
    node->signal = signal;
    node->phase = NODE_SAVING;
    node_call_end(node);
    loop_timer_stop(node->watch_timer);
    loop_timer_stop(node->limit_timer);
    loop_timer_stop(node->grace_timer);
    node_sync_finish(node);
}

void node_lost(struct node *node)
{
    if (node->phase == NODE_GONE)
        return;
    log_warn("node_fenced", LOG_STR("job", node->job_text), LOG_U64("placement", node->placement),
             LOG_U64("rank", node->rank));
    node_sync_close(node);
    node_call_end(node);
    if (node->child != NULL)
        node_kill(node);
    node_forget(node);
}

void node_stop(struct node *node, const char *cause)
{
    static const struct {
        const char *stop, *cause;
    } causes[] = {{"stop", "stopped"}, {"preempt", "preempted"}, {"drain", "drained"}};

    if (node->stop_cause[0] != '\0' || node->phase > NODE_SAVING)
        return;
    mem_copy_text(node->stop_cause, cause);
    if (node->phase == NODE_SAVING)
        return; /* it ends by itself, and is not waited for any longer */
    for (size_t i = 0; i < COUNT_OF(causes); i++) {
        if (strcmp(causes[i].stop, cause) == 0)
            mem_copy_text(node->stop_cause, causes[i].cause);
    }
    log_info("node_stops", LOG_STR("job", node->job_text), LOG_U64("rank", node->rank),
             LOG_STR("cause", node->stop_cause));
    if (node->phase == NODE_RUNNING)
        node_terminate(node);
    else if (node->phase != NODE_STARTING)
        node_end(node, node->stop_cause, -1, 0, "");
}

/* ---- steps ---- */

static void on_state(void *opaque, const struct pg_answer *answer)
{
    struct node *node = opaque;
    bool ours = answer->err.code == ERR_OK && pg_bool(answer, 0, 0, 0);

    if (node_unbusy(node))
        return;
    if (answer->err.code == ERR_OK && !ours) {
        node_lost(node);
        return;
    }
    if (node->phase == NODE_STARTING && ours)
        node_run(node);
    else if (node->phase == NODE_STARTING)
        node->phase = NODE_READY; /* not known: asked again */
    if (node->phase == NODE_READY)
        trainer_look_soon(node->trainer);
}

static void node_set(struct node *node, const char *state)
{
    struct pg_batch *batch = pg_batch_new();

    pg_add(batch, &node_state);
    node_bind(batch, node);
    pg_bind_c(batch, state);
    node->busy++;
    trainer_send(node->trainer, &batch, on_state, node);
}

void node_ready(struct node *node)
{
    if (node->phase != NODE_SETUP)
        return;
    node->phase = NODE_READY;
    node_set(node, "READY");
}

void node_follow(struct node *node, const struct node_row *row)
{
    if (row->stop_cause[0] != '\0')
        node_stop(node, row->stop_cause);
    if (node->phase != NODE_READY)
        return;
    if (strcmp(row->state, "TAKEN") == 0) {
        node_set(node, "READY");
    } else if (row->gathered) {
        node->phase = NODE_STARTING;
        node_set(node, "RUNNING");
    }
}

/* ---- taking ---- */

static bool gpus_take(struct node *node)
{
    struct trainer *trainer = node->trainer;
    uint32_t count = 0;

    for (uint32_t i = 0; i < (uint32_t)trainer->settings->gpus && count < node->gpu_count; i++) {
        if (trainer->gpu_used & (1ull << i))
            continue;
        trainer->gpu_used |= 1ull << i;
        node->gpus[count++] = i;
    }
    if (count == node->gpu_count)
        return true;
    for (uint32_t i = 0; i < count; i++)
        trainer->gpu_used &= ~(1ull << node->gpus[i]);
    node->gpu_count = 0;
    return false;
}

static uint64_t spec_u64(const json_t *spec, const char *key, uint64_t otherwise)
{
    const json_t *value = json_object_get(spec, key);

    if (json_is_real(value) && json_real_value(value) > 0)
        return (uint64_t)json_real_value(value);
    return json_is_integer(value) && json_integer_value(value) > 0
               ? (uint64_t)json_integer_value(value)
               : otherwise;
}

static void node_read_spec(struct node *node)
{
    const json_t *saving = json_object_get(node->spec, "checkpointing");
    uint64_t disk_size = spec_u64(node->spec, "disk_bytes", 0);

    node->checkpoints = json_is_true(json_object_get(saving, "enabled"));
    node->quiet_ms = spec_u64(saving, "quiet_ms", 5000);
    node->checkpoint_keep = (uint32_t)spec_u64(saving, "keep", node->checkpoint_keep);
    if (disk_size == 0)
        disk_size = node->trainer->settings->node_disk_size;
    node->disk_size = disk_size;
    node->limit_ms = spec_u64(node->spec, "time_limit_seconds", 0) * 1000;
    node->grace_ms = spec_u64(node->spec, "grace_seconds", 30) * 1000;
}

static void node_read(struct node *node, const struct pg_answer *answer)
{
    json_error_t where;

    node->project = xstrdup(pg_c(answer, 1, 0, 0));
    node->project_name = xstrdup(pg_c(answer, 1, 0, 1));
    node->tenant = xstrdup(pg_c(answer, 1, 0, 2));
    node->name = xstrdup(pg_c(answer, 1, 0, 3));
    node->spec = json_loads(pg_c(answer, 1, 0, 4), 0, &where);
    mem_copy_text(node->archive, pg_c(answer, 1, 0, 5));
    node->archive_blob = xstrdup(pg_c(answer, 1, 0, 6));
    node->retry_count = (uint32_t)pg_u64(answer, 1, 0, 7);
    node->node_count = (uint32_t)pg_u64(answer, 1, 0, 8);
    node->gpu_count = (uint32_t)pg_u64(answer, 1, 0, 9);
    node->cpu_count = (uint32_t)pg_u64(answer, 1, 0, 10);
    node->memory_size = pg_u64(answer, 1, 0, 11);
    node->checkpoint_keep = (uint32_t)pg_u64(answer, 1, 0, 12);
    node->leader = xstrdup(pg_c(answer, 1, 0, 13));
    node->log_number = pg_u64(answer, 1, 0, 14);
    node->ran_ms = pg_u64(answer, 1, 0, 15);
    node_read_spec(node);
}

static int secrets_open(struct node *node, const struct pg_answer *answer, struct err *err)
{
    for (size_t row = 0; row < pg_row_count(answer, 0); row++) {
        OWNED(buf_done) struct buf value = BUF_WITH_LIMIT(SECRET_VALUE_SIZE_MAX);
        struct wire_bytes sealed = pg_bytes(answer, 0, row, 2);
        char context[SECRET_CONTEXT_SIZE];
        int r;

        if (node->trainer->seal_key == NULL)
            return err_set(err, ERR_DEPENDENCY,
                           "the job names the secret '%s', and this trainer has no seal-key-file "
                           "to open it with",
                           pg_c(answer, 0, row, 1));
        secret_context(pg_c(answer, 0, row, 0), pg_c(answer, 0, row, 1), context);
        r = seal_open(node->trainer->seal_key, context, sealed.bytes, sealed.size, &value, err);
        if (r < 0)
            return r;
        (void)json_object_set_new(node->secrets, pg_c(answer, 0, row, 1),
                                  json_stringn((const char *)value.bytes, value.size));
    }
    return 0;
}

static void on_secrets(void *opaque, const struct pg_answer *answer)
{
    struct node *node = opaque;
    struct err err = answer->err;

    if (node_unbusy(node))
        return;
    if (err.code != ERR_OK || secrets_open(node, answer, &err) < 0)
        node_end(node, "secret", -1, 0, err.text);
    else
        node_setup(node);
}

/* Those that the environment names; false: none. */
static bool node_ask_secrets(struct node *node)
{
    const json_t *variables = json_object_get(node->spec, "environment_variables");
    struct pg_batch *batch;
    const char *name;
    json_t *value;
    size_t count = 0;

    node->secrets = json_object();
    json_object_foreach((json_t *)variables, name, value)
        count += json_is_string(json_object_get(value, "name"));
    if (count == 0)
        return false;
    batch = pg_batch_new();
    pg_add(batch, &node_secrets);
    pg_bind_c(batch, node->tenant);
    pg_bind_array(batch, PG_TEXT, count);
    json_object_foreach((json_t *)variables, name, value)
    {
        if (json_is_string(json_object_get(value, "name")))
            pg_bind_c(batch, json_string_value(json_object_get(value, "name")));
    }
    node->busy++;
    trainer_send(node->trainer, &batch, on_secrets, node);
    return true;
}

static void on_taken(void *opaque, const struct pg_answer *answer)
{
    struct node *node = opaque;

    if (node_unbusy(node))
        return;
    if (answer->err.code != ERR_OK || !pg_bool(answer, 0, 0, 0) || pg_row_count(answer, 1) != 1) {
        node_forget(node); /* seen again with the next look, if it still is ours */
        return;
    }
    node_read(node, answer);
    node->phase = NODE_SETUP;
    log_info("node_taken", LOG_STR("job", node->job_text), LOG_U64("placement", node->placement),
             LOG_U64("rank", node->rank), LOG_U64("nodes", node->node_count),
             LOG_STR("project", node->project_name));
    if (node->stop_cause[0] != '\0')
        node_end(node, node->stop_cause, -1, 0, "");
    else if (!gpus_take(node))
        node_end(node, "lost", -1, 0, "its trainer has fewer GPUs than were planned with");
    else if (!node_ask_secrets(node))
        node_setup(node);
}

void node_take(struct trainer *trainer, const struct node_row *row)
{
    struct node *node = xcalloc(1, sizeof(*node));
    struct pg_batch *batch = pg_batch_new();

    node->trainer = trainer;
    node->job = row->job;
    job_id_format(&node->job, node->job_text);
    node->placement = row->placement;
    node->rank = row->rank;
    node->exit_code = -1;
    while (node->slot + 1 < TRAINER_NODES_MAX && trainer->slot_used & (1ull << node->slot))
        node->slot++;
    trainer->slot_used |= 1ull << node->slot;
    node->end_timer = loop_timer_new(trainer->loop, node_on_end_timer, node);
    node_run_open(node);
    LIST_INSERT_HEAD(&trainer->nodes, node, link);
    pg_add(batch, &node_state);
    node_bind(batch, node);
    pg_bind_c(batch, "TAKEN");
    pg_add(batch, &node_details);
    pg_bind_id(batch, &node->job);
    pg_bind_i32(batch, node->rank);
    node->busy++;
    trainer_send(trainer, &batch, on_taken, node);
}
