/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Outputs that are no JSON. In values a body stands as an object that says what it is, and is known
 * by being that very object: nothing that a model answers, or a template makes, can be taken for
 * one. Whole, it may become the input of a model; everywhere else it is an error that names it.
 */

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "chains/plan_int.h"
#include "schema/chain_template.h"

#define uthash_fatal(text) NEVER(text)
#define uthash_malloc(size) xmalloc(size)
#include <uthash.h>

struct body {
    UT_hash_handle hh; /* by where its value is */
    json_t *value;
    char *type, *about;
    size_t size;
    uint8_t bytes[];
};

json_t *body_make(struct plan *plan, struct wire_bytes bytes, struct wire_text type)
{
    struct body *body = xmalloc(sizeof(*body) + bytes.size);

    *body = (struct body){.size = bytes.size, .type = wire_text_dup(type)};
    body->about = xasprintf("%s of %zu bytes", body->type, bytes.size);
    body->value = json_pack("{s:s, s:I}", "content_type", body->type, "size",
                            (json_int_t)bytes.size);
    if (body->value == NULL) /* a type that is no UTF-8 */
        body->value = json_object();
    if (bytes.size > 0)
        memcpy(body->bytes, bytes.bytes, bytes.size);
    HASH_ADD_PTR(plan->bodies, value, body);
    return json_incref(body->value);
}

void bodies_free(struct plan *plan)
{
    struct body *body, *next;

    HASH_ITER(hh, plan->bodies, body, next)
    {
        HASH_DEL(plan->bodies, body);
        json_decref(body->value);
        free(body->type);
        free(body->about);
        free(body);
    }
}

static const struct body *body_find(const struct plan *plan, const json_t *value)
{
    struct body *body = NULL;

    if (plan->bodies != NULL && json_is_object(value))
        HASH_FIND_PTR(plan->bodies, &value, body);
    return body;
}

bool body_is(const struct plan *plan, const json_t *value)
{
    return body_find(plan, value) != NULL;
}

const char *body_about(const void *plan, const json_t *value, bool deep)
{
    const struct body *body = body_find(plan, value);
    const char *key, *about = body == NULL ? NULL : body->about;
    json_t *member;
    size_t index;

    if (about != NULL || !deep)
        return about;
    json_array_foreach(value, index, member)
    {
        about = body_about(plan, member, true);
        if (about != NULL)
            return about;
    }
    json_object_foreach((json_t *)value, key, member)
    {
        about = body_about(plan, member, true);
        if (about != NULL)
            return about;
    }
    return NULL;
}

int body_refuse(const struct plan *plan, const json_t *value, struct err *err)
{
    const char *about = plan->bodies == NULL ? NULL : body_about(plan, value, true);

    return about == NULL ? 0 : err_set(err, ERR_MISMATCH, CHAIN_BODY_REFUSED, about);
}

int body_put(const struct plan *plan, const json_t *value, struct plan_todo *todo, struct err *err)
{
    const struct body *body = body_find(plan, value);

    if (body->size > PLAN_STEP_INPUT_MAX)
        return err_set(err, ERR_TOO_BIG, "input has more than %u bytes", PLAN_STEP_INPUT_MAX);
    todo->text = xmalloc(body->size + 1);
    memcpy(todo->text, body->bytes, body->size);
    todo->text_size = body->size;
    todo->text_type = body->type;
    return 0;
}
