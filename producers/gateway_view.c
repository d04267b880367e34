/* SPDX-License-Identifier: Apache-2.0 */

#include "producers/gateway_view.h"

#include "base/clock.h"
#include "producers/gateway_body.h"
#include "schema/job_id.h"
#include "schema/message.h"

#define SKEW_US_MAX (2 * 1000 * 1000ull) /* as in the setting clock-skew-max and DESIGN 3.1 */
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

void view_append_json(const struct job_view *view, struct buf *to)
{
    char id[JOB_ID_TEXT_SIZE], accepted[CLOCK_TEXT_SIZE], since[CLOCK_TEXT_SIZE];

    job_id_format(&view->id, id);
    clock_format_iso(view->accepted_us, accepted);
    clock_format_iso(view->state_us, since);
    buf_printf(to, "{\"request_id\":\"%s\"", id);
    append_text(to, "model_id", view->model);
    append_text(to, "model_name", view->model_name);
    append_text(to, "deployment_id", view->deployment);
    append_text(to, "environment", view->environment);
    buf_printf(to,
               ",\"status\":\"%s\",\"webhook_status\":\"%s\",\"created_at\":\"%s\","
               "\"status_at\":\"%s\",\"attempts\":%llu",
               view_status(view), view_webhook_status(view), accepted, since,
               (unsigned long long)view->attempts);
    append_errors(view, to);
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

    if (id_us > now_us + 2 * SKEW_US_MAX) /* a clock behind ours gave it to a clock ahead */
        return false;
    if (floor_us == 0)
        return id_us + INTAKE_KEPT_US >= now_us;
    return id_us + SKEW_US_MAX >= floor_us;
}
