/* SPDX-License-Identifier: Apache-2.0 */

#include "schema/result_body.h"

#include <jansson.h>
#include <stdlib.h>

#include "base/assert.h"
#include "base/clock.h"
#include "schema/job.h"
#include "schema/job_id.h"
#include "schema/media_type.h"

/* Appends "name":"text" with what JSON needs escaped; text that is no UTF-8 is refused. */
static int append_text(struct buf *body, const char *name, struct wire_text text, struct err *err)
{
    json_t *value = json_stringn(text.size > 0 ? text.text : "", text.size);
    char *encoded;

    if (value == NULL)
        return err_set(err, ERR_MALFORMED, "%s is not UTF-8", name);
    encoded = json_dumps(value, JSON_ENCODE_ANY);
    json_decref(value);
    assert(encoded != NULL);
    buf_printf(body, "\"%s\":%s", name, encoded);
    free(encoded);
    return 0;
}

static int append_errors(struct buf *body, const struct message_completed *completed,
                         struct err *err)
{
    enum error_class class = (enum error_class)completed->error_class;
    int r;

    if (completed->error_class == ERROR_CLASS_NONE) {
        buf_append_text(body, "\"errors\":[]");
        return 0;
    }
    if (!error_class_known(completed->error_class))
        return err_set(err, ERR_MALFORMED, "error class %llu is not known",
                       (unsigned long long)completed->error_class);
    buf_printf(body, "\"errors\":[{\"code\":\"%s\",", error_class_wire(class));
    r = append_text(body, "message", completed->error_message, err);
    buf_append_text(body, "}]");
    return r;
}

int result_body_write(const struct message_completed *completed, struct wire_bytes output,
                      struct buf *body, struct err *err)
{
    char id[JOB_ID_TEXT_SIZE], when[CLOCK_TEXT_SIZE];
    int r;

    job_id_format(&completed->id, id);
    clock_format_iso(completed->finished_us, when);
    buf_printf(body, "{\"request_id\":\"%s\",", id);
    r = append_text(body, "model_id", completed->model, err);
    if (r < 0)
        return r;
    buf_append_byte(body, ',');
    r = append_text(body, "deployment_id", completed->deployment, err);
    if (r < 0)
        return r;
    buf_printf(body, ",\"type\":\"async_request_completed\",\"time\":\"%s\",\"data\":", when);
    if (completed->state == JOB_SUCCEEDED)
        media_append_value(body, completed->output_type, output);
    else
        buf_append_text(body, "null");
    buf_append_byte(body, ',');
    r = append_errors(body, completed, err);
    if (r < 0)
        return r;
    buf_printf(body, ",\"round\":%llu}", (unsigned long long)completed->round);
    return buf_check(body, "webhook body", err);
}
