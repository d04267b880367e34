/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Carries out what the agent's core asks for. An archive is opened in the blob store, then unpacked
 * on a thread of libuv's pool; what is in the cache already is not asked for again.
 */

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "brokers/fault.h"
#include "schema/message.h"
#include "workers/agent_int.h"
#include "workers/agent_unpack.h"

#define SWEEP_MS 600000

/* ---- archives ---- */

struct fetch {
    uv_work_t work; /* first, so that libuv's pointer is ours */
    struct agent *agent;
    char digest[AGENT_DIGEST_SIZE];
    char *folder;
    int fd;
    struct err err;
};

static void fetch_end(struct fetch *fetch)
{
    struct agent *agent = fetch->agent;
    bool ok = fetch->folder != NULL;

    agent->fetching--;
    if (ok)
        log_info("archive_unpacked", LOG_STR("digest", fetch->digest),
                 LOG_STR("folder", fetch->folder));
    else
        log_error("archive_refused", LOG_STR("digest", fetch->digest), LOG_ERR(&fetch->err));
    agent_tick(agent);
    agent_core_on_fetched(agent->core, fetch->digest, fetch->folder,
                          !ok && err_class(fetch->err.code) == ERR_CLASS_REJECT, fetch->err.text);
    if (fetch->fd >= 0)
        (void)close(fetch->fd);
    free(fetch->folder);
    free(fetch);
    agent_act(agent);
}

/* thread: libuv's pool   locks: none; the fetch is this thread's until fetch_on_done() */
static void fetch_unpack(uv_work_t *work)
{
    struct fetch *fetch = (struct fetch *)work;

    (void)!agent_unpack(fetch->fd, fetch->digest, fetch->agent->cache,
                        fetch->agent->settings.model_size_size, &fetch->folder, &fetch->err);
}

static void fetch_on_done(uv_work_t *work, int status)
{
    (void)status;
    fetch_end((struct fetch *)work);
}

static void fetch_on_file(void *opaque, int fd, uint64_t size, const struct err *err)
{
    struct fetch *fetch = opaque;

    (void)size;
    fetch->err = *err;
    fetch->fd = err->code == ERR_OK ? fd : -1;
    if (err->code != ERR_OK ||
        uv_queue_work(loop_uv(fetch->agent->loop), &fetch->work, fetch_unpack, fetch_on_done) < 0)
        fetch_end(fetch);
}

static void act_fetch(struct agent *agent, const struct agent_todo *todo)
{
    struct fetch *fetch = xcalloc(1, sizeof(*fetch));

    fetch->agent = agent;
    fetch->fd = -1;
    mem_copy_text(fetch->digest, todo->deployment->digest);
    agent->fetching++;
    fetch->folder = agent_unpacked(agent->cache, fetch->digest);
    if (fetch->folder != NULL) {
        fetch_end(fetch);
        return;
    }
    if (agent->blobs == NULL)
        (void)err_set(&fetch->err, ERR_DEPENDENCY, "this agent has no blob store (--blobs)");
    else if (blob_open(agent->blobs, todo->deployment->blob, fetch_on_file, fetch, &fetch->err) ==
             0)
        return;
    fetch_end(fetch);
}

/* ---- models that nobody needs any more ---- */

struct sweep {
    uv_work_t work; /* first, so that libuv's pointer is ours */
    struct agent *agent;
};

/* thread: libuv's pool   locks: none; it touches only folders that nobody uses */
static void sweep_remove(uv_work_t *work)
{
    agent_sweep_remove(((struct sweep *)work)->agent->cache);
}

static void sweep_on_done(uv_work_t *work, int status)
{
    struct sweep *sweep = (struct sweep *)work;

    (void)status;
    sweep->agent->fetching--;
    free(sweep);
}

void agent_sweep(struct agent *agent, const struct agent_deployment *deployments,
                 size_t deployment_count)
{
    OWNED(mem_free) const char **digests = xcalloc(deployment_count + 1, sizeof(*digests));
    uint64_t now_ms = loop_now_ms(agent->loop);
    struct sweep *sweep;
    size_t count;

    if (now_ms < agent->sweep_ms)
        return;
    for (size_t i = 0; i < deployment_count; i++)
        digests[i] = deployments[i].digest;
    count = agent_sweep_mark(agent->cache, digests, deployment_count, agent->sweep_ms == 0);
    agent->sweep_ms = now_ms + SWEEP_MS;
    if (count == 0)
        return;
    log_info("models_swept", LOG_U64("count", count));
    sweep = xcalloc(1, sizeof(*sweep));
    sweep->agent = agent;
    agent->fetching++;
    if (uv_queue_work(loop_uv(agent->loop), &sweep->work, sweep_remove, sweep_on_done) < 0)
        sweep_on_done(&sweep->work, 0);
}

/* ---- the end of a worker ---- */

static void gone_on_report(void *opaque, uint64_t tag, const struct queue_report *report)
{
    struct agent *agent = opaque;

    (void)tag;
    agent->gone_unreported--;
    if (report->code != ERR_OK) /* its lease will lapse */
        log_warn("gone_not_reported", LOG_STR("code", err_name(report->code)),
                 LOG_STR("error", report->why));
}

static void act_gone(struct agent *agent, const struct agent_todo *todo)
{
    const struct message_gone gone = {.worker = WIRE_TEXT_OF(todo->worker),
                                      .boot = todo->boot,
                                      .reason = WIRE_TEXT_OF(todo->reason),
                                      .left = todo->left};
    OWNED(buf_done) struct buf bytes = BUF_WITH_LIMIT(QUEUE_RECORD_MAX);
    struct queue_message message = {
        .topic = agent->outcome, .partition = todo->shard, .done = gone_on_report, .opaque = agent};
    struct err err;
    int r = message_encode(MESSAGE_GONE, &gone, &bytes, &err);

    fault_point(FAULT_agent_gone);
    message.bytes = bytes.bytes;
    message.size = bytes.size;
    if (r == 0)
        r = queue_produce(agent->producer, &message, &err);
    if (r < 0)
        log_warn("gone_not_told", LOG_STR("worker", todo->worker), LOG_ERR(&err));
    else
        agent->gone_unreported++;
}

void agent_start_with(struct agent *agent, const struct agent_todo *todo, int secrets_fd,
                      struct err *err)
{
    char worker[AGENT_NAME_SIZE];
    int r = err->code;
    bool final = r != ERR_OK && err_class(r) != ERR_CLASS_RETRY;

    if (r == ERR_OK)
        r = agent_process_start(agent, todo, secrets_fd, err);
    if (r < 0)
        log_error("worker_not_started", LOG_STR("worker", todo->worker), LOG_ERR(err));
    mem_copy_text(worker, todo->worker);
    agent_core_on_started(agent->core, worker, r == 0, final, err->text);
}

static void act_start(struct agent *agent, const struct agent_todo *todo)
{
    struct err err = {0};

    if (agent_secrets_are_wanted(todo->deployment))
        agent_secrets_start(agent, todo);
    else
        agent_start_with(agent, todo, -1, &err);
}

static void act_signal(struct agent *agent, const struct agent_todo *todo, int signal)
{
    struct agent_process *process = agent_process_find(agent, todo->worker);

    log_info("worker_signaled", LOG_STR("worker", todo->worker), LOG_I64("signal", signal));
    if (process != NULL)
        child_signal(process->child, signal);
}

/* ---- all of them ---- */

static void act_one(struct agent *agent, const struct agent_todo *todo)
{
    switch (todo->type) {
    case AGENT_TODO_CLAIM:
        agent_sql_claim(agent, todo);
        return;
    case AGENT_TODO_FETCH:
        act_fetch(agent, todo);
        return;
    case AGENT_TODO_START:
        act_start(agent, todo);
        return;
    case AGENT_TODO_SERVE:
        act_signal(agent, todo, SIGHUP);
        return;
    case AGENT_TODO_STOP:
        act_signal(agent, todo, SIGTERM);
        return;
    case AGENT_TODO_KILL:
        act_signal(agent, todo, SIGKILL);
        return;
    case AGENT_TODO_REPLICA:
        agent_sql_replica(agent, todo);
        return;
    case AGENT_TODO_GONE:
        act_gone(agent, todo);
        return;
    case AGENT_TODO_PROBE:
        agent_devices_probe(agent, todo->reason);
        return;
    case AGENT_TODO_DEVICES:
        agent_sql_devices(agent);
        return;
    case AGENT_TODO_EXIT:
        agent_end(agent, 0);
        return;
    }
}

void agent_act(struct agent *agent)
{
    struct agent_todo todo;
    uint64_t due_ms, now_ms = loop_now_ms(agent->loop);

    while (agent_core_next_todo(agent->core, &todo))
        act_one(agent, &todo);
    due_ms = agent_core_due_ms(agent->core);
    if (due_ms == UINT64_MAX)
        loop_timer_stop(agent->tick_timer);
    else
        loop_timer_start(agent->tick_timer, due_ms <= now_ms ? 1 : due_ms - now_ms + 1, 0);
}
