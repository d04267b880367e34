/* SPDX-License-Identifier: Apache-2.0 */

#include "producers/gateway_view.h"

#include <string.h>

#include "base/clock.h"
#include "producers/gateway_body.h"
#include "schema/job_id.h"
#include "schema/message.h"

/* The widest setting of clock-skew-max. Two clocks count: a gateway's and an owner's. */
#define CLOCK_US_MAX (60 * 1000 * 1000ull)
#define LATE_US_MAX (VIEW_PROMISE_US_MAX + 2 * CLOCK_US_MAX)
#define INTAKE_KEPT_US (7ull * 24 * 3600 * 1000 * 1000)

struct job_view view_of_completed(const struct message_completed *completed)
{
    bool state_known = job_state_known(completed->state);
    bool class_known = error_class_known(completed->error_class);

    return (struct job_view){
        .id = completed->id,
        .state = state_known ? (enum job_state)completed->state : JOB_FAILED,
        .model = completed->model,
        .deployment = completed->deployment,
        .environment = completed->environment,
        .error_message = completed->error_message,
        .accepted_us = completed->accepted_us,
        .state_us = completed->finished_us,
        .error_class = class_known ? (enum error_class)completed->error_class : ERROR_CLASS_NONE,
        .has_webhook = completed->webhook_url.size > 0,
        .attempts = completed->attempts,
    };
}

struct job_view view_of_queued(const struct wire_id *id)
{
    return (struct job_view){
        .id = *id,
        .state = JOB_QUEUED,
        .accepted_us = job_id_time_ms(id) * 1000,
        .state_us = job_id_time_ms(id) * 1000,
    };
}

const char *view_status(const struct job_view *view)
{
    if (view->state == JOB_SUCCEEDED && view->delivery == VIEW_DELIVERY_FAILED)
        return "WEBHOOK_FAILED";
    return job_state_name(view->state);
}

const char *view_webhook_status(const struct job_view *view)
{
    switch (view->delivery) {
    case VIEW_DELIVERY_SUCCEEDED:
        return "SUCCEEDED";
    case VIEW_DELIVERY_FAILED:
        return "FAILED";
    case VIEW_DELIVERY_CANCELED:
        return "CANCELED";
    case VIEW_DELIVERY_PENDING:
    case VIEW_DELIVERY_NONE:
        break;
    }
    return view->has_webhook ? "PENDING" : "NO_WEBHOOK_PROVIDED";
}

static void append_text(struct buf *to, const char *name, struct wire_text text)
{
    buf_printf(to, ",\"%s\":", name);
    json_append_string(to, text.size > 0 ? text.text : "", text.size);
}

static void append_errors(const struct job_view *view, struct buf *to)
{
    const char *code = view->error_class == ERROR_CLASS_NONE ? "INTERNAL_SERVER_ERROR"
                                                             : error_class_wire(view->error_class);

    if (!job_state_final(view->state) || view->state == JOB_SUCCEEDED) {
        buf_append_text(to, ",\"errors\":[]");
        return;
    }
    buf_printf(to, ",\"errors\":[{\"code\":\"%s\"", code);
    append_text(to, "message", view->error_message);
    buf_append_text(to, "}]");
}

/* The object without its end, for those who have more to say. */
static void append_members(const struct job_view *view, struct buf *to)
{
    char id[JOB_ID_TEXT_SIZE], accepted[CLOCK_TEXT_SIZE], since[CLOCK_TEXT_SIZE];

    job_id_format(&view->id, id);
    clock_format_iso(view->accepted_us, accepted);
    clock_format_iso(view->state_us, since);
    buf_printf(to, "{\"request_id\":\"%s\"", id);
    append_text(to, view->is_chain ? "chain_id" : "model_id", view->model);
    append_text(to, "model_name", view->model_name);
    append_text(to, "deployment_id", view->deployment);
    append_text(to, "environment", view->environment);
    buf_printf(to,
               ",\"status\":\"%s\",\"webhook_status\":\"%s\",\"created_at\":\"%s\","
               "\"status_at\":\"%s\",\"attempts\":%llu",
               view_status(view), view_webhook_status(view), accepted, since,
               (unsigned long long)view->attempts);
    if (view->run_at_us > 0) {
        clock_format_iso(view->run_at_us, since);
        buf_printf(to, ",\"run_at\":\"%s\"", since);
    }
    append_errors(view, to);
}

void view_append_url(struct buf *to, const char *name, const struct buf *base, const char *id,
                     const char *suffix)
{
    struct buf url = BUF_WITH_LIMIT(4096);

    buf_append(&url, base->bytes, base->size);
    buf_printf(&url, "/async_request/%s%s", id, suffix);
    buf_printf(to, ",\"%s\":", name);
    json_append_string(to, (const char *)url.bytes, url.size);
    buf_done(&url);
}

void view_append_json(const struct job_view *view, struct buf *to)
{
    append_members(view, to);
    buf_append_byte(to, '}');
}

static const char *ended_because(const struct job_view *view)
{
    if (view->state == JOB_EXPIRED)
        return "one of its deadlines passed";
    if (view->state == JOB_CANCELED)
        return "it was canceled";
    if (view->state != JOB_FAILED)
        return NULL;
    switch (error_class_budget(view->error_class)) {
    case ERROR_BUDGET_USER:
        return "the model failed it as often as inference_retry_config.max_attempts allows";
    case ERROR_BUDGET_OOM:
        return "it ran out of memory again and again, also alone in its batch";
    case ERROR_BUDGET_LOST:
        return "its attempts lost their worker or engine host again and again: quarantined as "
               "poison";
    case ERROR_BUDGET_NONE:
        break;
    }
    return "of an error that no retry can change";
}

static void append_null_or(struct buf *to, const char *name, const char *text)
{
    if (text == NULL || text[0] == '\0')
        buf_printf(to, ",\"%s\":null", name);
    else
        append_text(to, name, WIRE_TEXT_OF(text));
}

static void append_time(struct buf *to, const char *name, uint64_t at_us)
{
    char text[CLOCK_TEXT_SIZE] = "";

    if (at_us != 0)
        clock_format_iso(at_us, text);
    append_null_or(to, name, text);
}

void view_append_detail(const struct job_view *view, const struct view_detail *detail,
                        struct buf *to)
{
    append_members(view, to);
    append_null_or(to, "reason",
                   view->state == JOB_FAILED ? error_class_reason(view->error_class) : NULL);
    append_null_or(to, "ended_because", ended_because(view));
    buf_printf(to,
               ",\"round\":%llu,\"budgets\":{\"model_errors\":{\"used\":%llu,\"limit\":%llu},"
               "\"out_of_memory\":{\"used\":%llu,\"limit\":%d},"
               "\"lost_workers\":{\"used\":%llu,\"limit\":%d}},\"run_limit_ms\":%llu",
               (unsigned long long)detail->round, (unsigned long long)detail->user_failures,
               (unsigned long long)detail->max_attempts, (unsigned long long)detail->oom_failures,
               JOB_OOM_ATTEMPTS_MAX, (unsigned long long)detail->lost_failures,
               JOB_LOST_ATTEMPTS_MAX, (unsigned long long)detail->run_limit_ms);
    append_time(to, "retry_at", detail->due_us);
    append_time(to, "start_deadline_at", detail->start_deadline_us);
    append_time(to, "total_deadline_at", detail->total_deadline_us);
    buf_append_text(to, ",\"attempt_log\":");
    if (detail->attempt_log.size > 0)
        buf_append(to, detail->attempt_log.text, detail->attempt_log.size);
    else
        buf_append_text(to, "[]");
    buf_append_byte(to, '}');
}

void view_append_failure(const struct job_view *view, struct buf *to)
{
    char id[JOB_ID_TEXT_SIZE];

    job_id_format(&view->id, id);
    buf_printf(to, "{\"error\":\"the request is %s and has no result\"", view_status(view));
    buf_printf(to, ",\"error_code\":\"%s\"",
               view->state == JOB_FAILED ? "application_error" : "client_error");
    append_text(to, "detail", view->error_message);
    buf_printf(to, ",\"request_id\":\"%s\",\"status\":\"%s\"", id, view_status(view));
    append_errors(view, to);
    buf_append_byte(to, '}');
}

bool view_may_be_queued(const struct wire_id *id, uint64_t floor_us, uint64_t now_us)
{
    uint64_t id_us = job_id_time_ms(id) * 1000;

    if (id_us > now_us + 2 * CLOCK_US_MAX) /* a clock behind ours gave it to a clock ahead */
        return false;
    if (floor_us == 0)
        return id_us + INTAKE_KEPT_US >= now_us;
    return id_us + LATE_US_MAX >= floor_us;
}

bool view_may_be_promised(const struct wire_id *id, uint64_t now_us)
{
    return job_id_time_ms(id) * 1000 + VIEW_PROMISE_US_MAX >= now_us;
}
