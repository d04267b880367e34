/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The worker's spans: `run`, from the request to the engine host until its final event. The host
 * gets the run's own context, so that what an engine records hangs below it.
 *
 * A run is kept by its token for as long as the host has it: it ends with the host's answer, also
 * when nobody waits for that any more (a revoke, a run limit), or with the host.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/trace.h"
#include "schema/job_id.h"
#include "workers/worker_int.h"

#define TRACE_FLUSH_MS 1000

struct run {
    UT_hash_handle hh;
    uint64_t token;
    char trace[TRACE_PARENT_SIZE]; /* what the host got */
    struct trace_span span;
};

int worker_trace_open(struct worker *worker, struct err *err)
{
    const struct tracer_options options = {
        .endpoint = worker->settings.otlp_endpoint,
        .service_name = "headrace-worker",
        .service_version = HEADRACE_VERSION,
        .service_instance = worker->settings.worker,
    };

    return tracer_open(worker->loop, &options, &worker->tracer, err);
}

void worker_trace_flush(struct worker *worker, void (*done)(void *opaque))
{
    tracer_flush(worker->tracer, TRACE_FLUSH_MS, done, worker);
}

struct wire_text worker_trace_begin(struct worker *worker, const struct worker_todo *todo)
{
    struct trace_context parent, own;
    char job[JOB_ID_TEXT_SIZE], tenant[TRACE_TEXT_SIZE];
    struct run *run;

    if (!tracer_is_on(worker->tracer))
        return todo->trace;
    parent = trace_context_read(todo->trace.text, todo->trace.size);
    if (!parent.sampled)
        return todo->trace;
    own = trace_context_child(&parent);
    run = xcalloc(1, sizeof(*run));
    run->token = todo->token;
    trace_start(worker->tracer, &run->span, "run", TRACE_KIND_CONSUMER, &own, &parent,
                clock_wall_us());
    job_id_format(&todo->run.job, job);
    trace_set_text(&run->span, "headrace.job", job);
    (void)snprintf(tenant, sizeof(tenant), "%.*s", (int)todo->tenant.size, todo->tenant.text);
    trace_set_text(&run->span, "headrace.tenant", tenant);
    trace_set_number(&run->span, "headrace.attempt", (int64_t)todo->run.number);
    trace_set_text(&run->span, "headrace.deployment", worker->settings.deployment);
    trace_set_text(&run->span, "headrace.engine", worker->settings.engine);
    HASH_ADD(hh, worker->runs, token, sizeof(run->token), run);
    trace_context_format(&own, run->trace);
    return WIRE_TEXT_OF(run->trace);
}

static void run_end(struct worker *worker, struct run *run, enum error_class class)
{
    if (class != ERROR_CLASS_NONE)
        trace_set_text(&run->span, "error.type", error_class_name(class));
    trace_end(worker->tracer, &run->span, class != ERROR_CLASS_NONE, clock_wall_us());
    HASH_DEL(worker->runs, run);
    free(run);
}

void worker_trace_end(struct worker *worker, uint64_t token, const struct worker_result *result)
{
    struct run *run;

    HASH_FIND(hh, worker->runs, &token, sizeof(token), run);
    if (run == NULL)
        return;
    trace_set_number(&run->span, "headrace.batch_count", (int64_t)result->batch_count);
    run_end(worker, run, result->error_class);
}

void worker_trace_end_all(struct worker *worker, enum error_class class)
{
    struct run *run, *next;

    HASH_ITER(hh, worker->runs, run, next)
    {
        run_end(worker, run, class);
    }
}

void worker_trace_close(struct worker *worker)
{
    if (worker->tracer != NULL)
        worker_trace_end_all(worker, ERROR_CLASS_HANDED_BACK);
    tracer_close(&worker->tracer);
}
