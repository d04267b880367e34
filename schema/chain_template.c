/* SPDX-License-Identifier: Apache-2.0 */

#include "schema/chain_template.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "base/buf.h"

#define OPENS "{{"
#define CLOSES "}}"

/* A reference as it stands between the braces, without the spaces around it. */
struct reference {
    char path[CHAIN_PATH_SIZE_MAX + 1];
    bool optional; /* it ended in a question mark */
    bool whole;    /* the text holds nothing else */
};

/* The text up to the next reference, then that; 0 when there is none any more. */
struct scan {
    const char *text;
    const char *plain;
    size_t plain_size;
    struct reference reference;
};

static int scan_next(struct scan *scan, bool *ret_found, struct err *err)
{
    const char *begin = strstr(scan->text, OPENS), *end, *from, *beyond;
    struct reference *reference = &scan->reference;

    scan->plain = scan->text;
    *ret_found = begin != NULL;
    if (begin == NULL) {
        scan->plain_size = strlen(scan->text);
        scan->text += scan->plain_size;
        return 0;
    }
    scan->plain_size = (size_t)(begin - scan->text);
    from = begin + strlen(OPENS);
    end = strstr(from, CLOSES);
    if (end == NULL)
        return err_set(err, ERR_MALFORMED, "'%.60s' opens {{ and does not close it", begin);
    scan->text = end + strlen(CLOSES);
    for (beyond = end; beyond > from && isspace((unsigned char)beyond[-1]); beyond--)
        ;
    while (from < beyond && isspace((unsigned char)*from))
        from++;
    reference->optional = beyond > from && beyond[-1] == '?';
    beyond -= reference->optional;
    if (beyond == from || beyond - from > CHAIN_PATH_SIZE_MAX)
        return err_set(err, ERR_MALFORMED, "'%.60s' must name 1 to %d bytes between the braces",
                       begin, CHAIN_PATH_SIZE_MAX);
    memcpy(reference->path, from, (size_t)(beyond - from));
    reference->path[beyond - from] = '\0';
    reference->whole = scan->plain_size == 0 && scan->text[0] == '\0' && begin == scan->plain;
    return 0;
}

/* ---- checks ---- */

static bool part_is_good(const char *part, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        unsigned char c = (unsigned char)part[i];

        if (c <= ' ' || c == 0x7f || strchr("{}[]()\"'|?", c) != NULL)
            return false;
    }
    return size > 0;
}

static int check_steps(const char *rest, const struct chain_template_use *use, struct err *err)
{
    char name[CHAIN_PATH_SIZE_MAX + 1];
    size_t size = strcspn(rest, ".");
    const char *what = rest + size;

    memcpy(name, rest, size);
    name[size] = '\0';
    if (size == 0 || (strcmp(what, ".output") != 0 && strncmp(what, ".output.", 8) != 0 &&
                      strcmp(what, ".state") != 0 && strcmp(what, ".error") != 0 &&
                      strncmp(what, ".error.", 7) != 0))
        return err_set(err, ERR_MALFORMED,
                       "'steps.%.80s' must go on with a step's name and .output, .state or .error",
                       rest);
    return use->step(use->opaque, name, err);
}

static int check_path(const char *path, const struct chain_template_use *use, struct err *err)
{
    size_t size = strcspn(path, ".");

    for (const char *part = path; part != NULL;) {
        size_t part_size = strcspn(part, ".");

        if (!part_is_good(part, part_size))
            return err_set(err, ERR_MALFORMED,
                           "'%.80s' is no path: names with dots between them are", path);
        part = part[part_size] == '.' ? part + part_size + 1 : NULL;
    }
    if (strncmp(path, "steps.", 6) == 0)
        return check_steps(path + 6, use, err);
    if (size == 5 && memcmp(path, "input", 5) == 0)
        return 0;
    if (strcmp(path, "run.id") == 0)
        return 0;
    if ((size == 4 && memcmp(path, "item", 4) == 0) || strcmp(path, "index") == 0)
        return use->item ? 0
                         : err_set(err, ERR_MALFORMED,
                                   "'%.80s' has a meaning only in a step with map or loop", path);
    return err_set(err, ERR_MALFORMED,
                   "'%.80s' is not known: there are input, steps, item, index and run.id", path);
}

static int check_expression(const char *text, const char *where,
                            const struct chain_template_use *use, struct err *err)
{
    int r = chain_jq_check(text, use->item, use->step, use->opaque, err);

    if (r == 0)
        r = chain_jq_add(use->jq, where, text, err);
    return r < 0 ? err_wrap(err, "%s", where) : 0;
}

static int check_text(const char *text, const char *where, const struct chain_template_use *use,
                      struct err *err)
{
    struct scan scan = {.text = text};
    bool found = true;

    if (chain_jq_is_expression(text))
        return check_expression(text, where, use, err);
    while (found) {
        int r = scan_next(&scan, &found, err);

        if (r == 0 && found)
            r = check_path(scan.reference.path, use, err);
        if (r < 0)
            return err_wrap(err, "%s", where);
    }
    return 0;
}

int chain_template_check(const json_t *value, const char *where,
                         const struct chain_template_use *use, struct err *err)
{
    json_t *member;
    const char *key;
    size_t index;
    int r = 0;

    if (json_is_string(value)) {
        if (strlen(json_string_value(value)) != json_string_length(value))
            return err_set(err, ERR_MALFORMED, "%s: a text has a NUL in it", where);
        return check_text(json_string_value(value), where, use, err);
    }
    json_array_foreach(value, index, member)
    {
        char deeper[256];

        (void)snprintf(deeper, sizeof(deeper), "%.200s.%zu", where, index);
        r = chain_template_check(member, deeper, use, err);
        if (r < 0)
            return r;
    }
    json_object_foreach((json_t *)value, key, member)
    {
        char deeper[256];

        (void)snprintf(deeper, sizeof(deeper), "%.160s.%.60s", where, key);
        r = chain_template_check(member, deeper, use, err);
        if (r < 0)
            return r;
    }
    return r;
}

/* ---- values ---- */

static const json_t *step_down(const json_t *value, const char *part)
{
    size_t at = 0;

    if (json_is_object(value))
        return json_object_get(value, part);
    if (!json_is_array(value) || strlen(part) > 9 || strspn(part, "0123456789") != strlen(part))
        return NULL;
    for (; *part != '\0'; part++)
        at = 10 * at + (size_t)(*part - '0');
    return json_array_get(value, at);
}

/* Where a path begins; the rest of it in *ret_rest. */
static json_t *root_of(const struct reference *reference, const struct chain_scope *scope,
                       const char **ret_rest)
{
    const char *path = reference->path;
    size_t size = strcspn(path, ".");

    *ret_rest = path[size] == '.' ? path + size + 1 : "";
    switch (path[1]) {
    case 'n': /* input, index */
        return path[2] == 'p' ? json_incref((json_t *)scope->input)
                              : json_integer((json_int_t)scope->index);
    case 't': /* item, steps */
        return json_incref(path[0] == 'i' ? (json_t *)scope->item : (json_t *)scope->steps);
    default:
        *ret_rest = "";
        return json_string(scope->run);
    }
}

static int refuse_body(const struct chain_scope *scope, const char *path, const json_t *value,
                       bool deep, struct err *err)
{
    const char *about = scope->bodies == NULL ? NULL
                                              : scope->body_about(scope->bodies, value, deep);

    return about == NULL ? 0
                         : err_set(err, ERR_MISMATCH, "%.120s: " CHAIN_BODY_REFUSED, path, about);
}

static int value_of(const struct reference *reference, const struct chain_scope *scope,
                    json_t **ret_value, struct err *err)
{
    const char *rest;
    json_t *root = root_of(reference, scope, &rest);
    const json_t *value = root;

    while (value != NULL && *rest != '\0') {
        char part[CHAIN_PATH_SIZE_MAX + 1];
        size_t size = strcspn(rest, ".");

        memcpy(part, rest, size);
        part[size] = '\0';
        if (refuse_body(scope, reference->path, value, false, err) < 0) {
            json_decref(root);
            return err->code;
        }
        value = step_down(value, part);
        rest += size + (rest[size] == '.');
        if (value == NULL && !reference->optional) {
            json_decref(root);
            return err_set(err, ERR_NOT_FOUND, "%.120s: there is no '%.60s'", reference->path,
                           part);
        }
    }
    *ret_value = value == NULL ? json_null() : json_incref((json_t *)value);
    json_decref(root);
    return 0;
}

static int append_dumped(const char *bytes, size_t size, void *opaque)
{
    struct buf *to = opaque;

    buf_append(to, bytes, size);
    return to->failed ? -1 : 0;
}

static void append_value(struct buf *to, const json_t *value)
{
    if (json_is_string(value))
        buf_append(to, json_string_value(value), json_string_length(value));
    else if (!json_is_null(value))
        (void)json_dump_callback(value, append_dumped, to, JSON_COMPACT | JSON_ENCODE_ANY);
}

/* Scheme, host and what follows are there: what comes next is of a path or a query. */
static bool is_behind_host(const struct buf *url)
{
    const char *text = (const char *)url->bytes;
    const char *host = url->size == 0 ? NULL : memmem(text, url->size, "://", 3);
    size_t size = host == NULL ? 0 : url->size - (size_t)(host + 3 - text);

    return host != NULL &&
           (memchr(host + 3, '/', size) != NULL || memchr(host + 3, '?', size) != NULL);
}

/* All but letters, digits and -._~ (RFC 3986, 2.3). Two texts would change the path all the same.
 */
static int append_escaped(struct buf *to, const json_t *value, struct err *err)
{
    static const char plain[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~";
    OWNED(buf_done) struct buf text = BUF_WITH_LIMIT(CHAIN_TEXT_SIZE_MAX);
    bool dots;

    append_value(&text, value);
    dots = (text.size == 1 || text.size == 2) && memcmp(text.bytes, "..", text.size) == 0;
    if (dots)
        return err_set(err, ERR_RANGE, "'%.*s' cannot be a part of a URL", (int)text.size,
                       (const char *)text.bytes);
    for (size_t i = 0; i < text.size; i++) {
        if (text.bytes[i] != '\0' && strchr(plain, text.bytes[i]) != NULL)
            buf_append_byte(to, text.bytes[i]);
        else
            buf_printf(to, "%%%02X", text.bytes[i]);
    }
    return buf_check(&text, "a text of a template", err);
}

/* It came to one value, or to something else. */
static int make_expression(const struct chain_scope *scope, json_t **ret_value, struct err *err)
{
    const json_t *came = scope->next_value == NULL
                             ? NULL
                             : json_array_get(scope->values, (*scope->next_value)++);

    if (json_array_size(came) != 1)
        return err_set(err, ERR_MISMATCH,
                       "the expression came to %zu values, it must come to one: first(…) and […] "
                       "make one of many, and // another of none",
                       json_array_size(came));
    *ret_value = json_incref(json_array_get(came, 0));
    return 0;
}

static int make_text(const json_t *template, const struct chain_scope *scope, json_t **ret_value,
                     struct err *err)
{
    const char *text = json_string_value(template);
    OWNED(buf_done) struct buf to = BUF_WITH_LIMIT(CHAIN_TEXT_SIZE_MAX);
    struct scan scan = {.text = text};
    bool found = true;

    if (chain_jq_is_expression(text))
        return make_expression(scope, ret_value, err);
    while (found) {
        json_t *value = NULL;
        int r = scan_next(&scan, &found, err);

        if (r < 0)
            return r;
        buf_append(&to, scan.plain, scan.plain_size);
        if (!found)
            break;
        r = value_of(&scan.reference, scope, &value, err);
        if (r < 0)
            return r;
        if (scan.reference.whole) {
            *ret_value = value;
            return 0;
        }
        r = refuse_body(scope, scan.reference.path, value, true, err);
        if (r == 0 && template == scope->url && is_behind_host(&to))
            r = append_escaped(&to, value, err);
        else if (r == 0)
            append_value(&to, value);
        json_decref(value);
        if (r == 0)
            r = buf_check(&to, "a text of a template", err);
        if (r < 0)
            return r;
    }
    *ret_value = json_stringn((const char *)to.bytes, to.size);
    return *ret_value != NULL ? 0 : err_set(err, ERR_MALFORMED, "a text is not UTF-8");
}

static int make_array(const json_t *value, const struct chain_scope *scope, json_t *to,
                      struct err *err)
{
    json_t *member;
    size_t index;

    json_array_foreach(value, index, member)
    {
        json_t *made;
        int r = chain_template_make(member, scope, &made, err);

        if (r < 0)
            return err_wrap(err, "%zu", index);
        (void)json_array_append_new(to, made);
    }
    return 0;
}

static int make_object(const json_t *value, const struct chain_scope *scope, json_t *to,
                       struct err *err)
{
    const char *key;
    json_t *member;

    json_object_foreach((json_t *)value, key, member)
    {
        json_t *made;
        int r = chain_template_make(member, scope, &made, err);

        if (r < 0)
            return err_wrap(err, "%.60s", key);
        (void)json_object_set_new(to, key, made);
    }
    return 0;
}

int chain_template_make(const json_t *value, const struct chain_scope *scope, json_t **ret_value,
                        struct err *err)
{
    json_t *to;
    int r;

    if (json_is_string(value))
        return make_text(value, scope, ret_value, err);
    if (!json_is_array(value) && !json_is_object(value)) {
        *ret_value = json_incref((json_t *)value);
        return 0;
    }
    to = json_is_array(value) ? json_array() : json_object();
    r = json_is_array(value) ? make_array(value, scope, to, err)
                             : make_object(value, scope, to, err);
    if (r < 0)
        json_decref(to);
    else
        *ret_value = to;
    return r;
}

bool chain_template_is_true(const json_t *value)
{
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        return json_object_size(value) > 0;
    case JSON_ARRAY:
        return json_array_size(value) > 0;
    case JSON_STRING:
        return json_string_length(value) > 0;
    case JSON_INTEGER:
        return json_integer_value(value) != 0;
    case JSON_REAL:
        return json_real_value(value) < 0 || json_real_value(value) > 0;
    case JSON_TRUE:
        return true;
    case JSON_FALSE:
    case JSON_NULL:
        return false;
    }
    return false;
}
