/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The broker's spans: `job`, from the acceptance to the committed end, and below it one `queue` for
 * each attempt, from the moment it could have run to its dispatch. Workers hang their runs below
 * `job` too.
 *
 * Nothing is kept between the two ends of a job: its span is recorded when it is published, from
 * the committed row, and its id is made of the caller's span and the job's id and round. So the
 * broker that publishes need not be the one that dispatched, and what is published twice is the
 * same span twice.
 *
 * Without an endpoint, or for a trace that is not sampled, the context is handed on as it came.
 */

#include <string.h>

#include "base/clock.h"
#include "base/trace.h"
#include "brokers/broker.h"
#include "schema/job_id.h"

#define TRACE_FLUSH_MS 1000

int broker_trace_open(struct broker *broker, struct err *err)
{
    const struct tracer_options options = {
        .endpoint = broker->settings.otlp_endpoint,
        .service_name = "headrace-broker",
        .service_version = HEADRACE_VERSION,
        .service_instance = broker->boot,
    };

    return tracer_open(broker->loop, &options, &broker->tracer, err);
}

void broker_trace_flush(struct broker *broker, void (*done)(void *opaque))
{
    tracer_flush(broker->tracer, TRACE_FLUSH_MS, done, broker);
}

/* False: this job leaves no spans. */
static bool caller_read(const struct broker *broker, struct wire_text trace,
                        struct trace_context *ret_caller)
{
    if (!tracer_is_on(broker->tracer))
        return false;
    *ret_caller = trace_context_read(trace.text, trace.size);
    return ret_caller->sampled;
}

static struct trace_context job_context(const struct trace_context *caller,
                                        const struct wire_id *job, uint64_t round)
{
    uint8_t name[WIRE_ID_SIZE + sizeof(round)];

    memcpy(name, job->bytes, WIRE_ID_SIZE);
    memcpy(name + WIRE_ID_SIZE, &round, sizeof(round));
    return trace_context_derive(caller, name, sizeof(name));
}

static void set_text(struct trace_span *span, const char *key, struct wire_text value)
{
    char text[TRACE_TEXT_SIZE];
    size_t size = value.size < sizeof(text) ? value.size : sizeof(text) - 1;

    if (size > 0)
        memcpy(text, value.text, size);
    text[size] = '\0';
    trace_set_text(span, key, text);
}

static void set_job(struct trace_span *span, const struct wire_id *job, struct wire_text tenant)
{
    char id[JOB_ID_TEXT_SIZE];

    job_id_format(job, id);
    trace_set_text(span, "headrace.job", id);
    set_text(span, "headrace.tenant", tenant);
}

void broker_trace_attempt(struct broker *broker, const struct owner_todo *todo,
                          struct message_attempt *attempt, char trace[TRACE_PARENT_SIZE])
{
    struct trace_context caller, job, queue;
    struct trace_span span;

    if (!caller_read(broker, attempt->trace, &caller))
        return;
    job = job_context(&caller, &attempt->job, todo->attempt.round);
    queue = trace_context_child(&job);
    trace_start(broker->tracer, &span, "queue", TRACE_KIND_PRODUCER, &queue, &job,
                todo->attempt.waited_from_us);
    set_job(&span, &attempt->job, attempt->tenant);
    trace_set_number(&span, "headrace.attempt", (int64_t)attempt->number);
    set_text(&span, "headrace.pool", todo->attempt.pool);
    set_text(&span, "headrace.worker", attempt->worker);
    trace_end(broker->tracer, &span, false, clock_wall_us());
    trace_context_format(&job, trace);
    attempt->trace = WIRE_TEXT_OF(trace);
}

void broker_trace_final(struct broker *broker, const struct message_completed *completed)
{
    struct trace_context caller, job;
    enum job_state state = (enum job_state)completed->state;
    struct trace_span span;

    if (!caller_read(broker, completed->trace, &caller))
        return;
    job = job_context(&caller, &completed->id, completed->round);
    trace_start(broker->tracer, &span, "job", TRACE_KIND_CONSUMER, &job, &caller,
                completed->accepted_us);
    set_job(&span, &completed->id, completed->tenant);
    set_text(&span, "headrace.model", completed->model);
    set_text(&span, "headrace.deployment", completed->deployment);
    trace_set_text(&span, "headrace.state", job_state_name(state));
    trace_set_number(&span, "headrace.attempts", (int64_t)completed->attempts);
    if (state != JOB_SUCCEEDED && error_class_known(completed->error_class))
        trace_set_text(&span, "error.type",
                       error_class_name((enum error_class)completed->error_class));
    trace_end(broker->tracer, &span, state == JOB_FAILED || state == JOB_EXPIRED,
              completed->finished_us);
}
