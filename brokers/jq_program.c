/* SPDX-License-Identifier: Apache-2.0 */

#include "brokers/jq_program.h"

#include <jq.h>
#include <jv.h>
#include <stdlib.h>

#include "base/mem.h"
#include "schema/chain_jq.h"

#define ENOUGH_SIZE (16u << 20) /* of an answer; the items that are left are asked for again */

struct jq_program {
    jq_state *jq;
    struct err *err; /* of the compilation; NULL: it is over */
};

static void on_message(void *opaque, jv message)
{
    struct jq_program *program = opaque;
    jv text = jq_format_error(message);
    char explained[200];

    if (program->err != NULL && program->err->code == ERR_OK) { /* the first says most */
        chain_jq_explain(jv_string_value(text), explained, sizeof(explained));
        (void)err_set(program->err, ERR_MALFORMED, "%s", explained);
    }
    jv_free(text);
}

int jq_program_open(const char *text, struct jq_program **ret_program, struct err *err)
{
    OWNED(jq_program_close) struct jq_program *program = xcalloc(1, sizeof(*program));
    int compiled;

    err->code = ERR_OK;
    program->err = err;
    program->jq = jq_init();
    if (program->jq == NULL)
        return err_set(err, ERR_UNAVAILABLE, "libjq does not start");
    jq_set_error_cb(program->jq, on_message, program);
    compiled = jq_compile(program->jq, text);
    program->err = NULL;
    if (!compiled)
        return err->code != ERR_OK ? err->code
                                   : err_set(err, ERR_MALFORMED, "jq does not compile it");
    *ret_program = TAKE(program);
    return 0;
}

void jq_program_close(struct jq_program **program_p)
{
    struct jq_program *program = TAKE(*program_p);

    if (program == NULL)
        return;
    if (program->jq != NULL)
        jq_teardown(&program->jq);
    free(program);
}

/* The text of an error that an expression raised, or that jq did. */
static int tell_error(jv result, struct err *err)
{
    jv message = jv_invalid_get_msg(result);

    if (jv_get_kind(message) != JV_KIND_STRING && jv_get_kind(message) != JV_KIND_NULL)
        message = jv_dump_string(message, 0);
    if (jv_get_kind(message) == JV_KIND_STRING)
        (void)err_set(err, ERR_MISMATCH, "%.200s", jv_string_value(message));
    else
        (void)err_set(err, ERR_MISMATCH, "it ended without a value");
    jv_free(message);
    return err->code;
}

static int run_item(struct jq_program *program, jv root, struct buf *to, struct err *err)
{
    jv result;

    jq_start(program->jq, root, 0);
    result = jq_next(program->jq);
    if (!jv_is_valid(result))
        return tell_error(result, err);
    result = jv_dump_string(result, 0);
    buf_append(to, jv_string_value(result), (size_t)jv_string_length_bytes(jv_copy(result)));
    jv_free(result);
    return buf_check(to, "what it came to", err);
}

static int run_items(struct jq_program *program, jv root, jv items, struct buf *to, struct err *err)
{
    int count = jv_array_length(jv_copy(items)), r = 0;
    jv first = jv_object_get(jv_copy(root), jv_string("first"));
    double index = jv_get_kind(first) == JV_KIND_NUMBER ? jv_number_value(first) : 0;

    jv_free(first);
    buf_append_byte(to, '[');
    for (int i = 0; i < count && r == 0 && (i == 0 || to->size < ENOUGH_SIZE); i++) {
        jv of = jv_object_set(jv_copy(root), jv_string("item"), jv_array_get(jv_copy(items), i));

        of = jv_object_set(of, jv_string("index"), jv_number(index + i));
        if (i > 0)
            buf_append_byte(to, ',');
        r = run_item(program, of, to, err);
    }
    buf_append_byte(to, ']');
    return r == 0 ? buf_check(to, "what it came to", err) : r;
}

int jq_program_run(struct jq_program *program, const char *request, size_t size,
                   struct buf *ret_answer, struct err *err)
{
    jv root = jv_parse_sized(request, (int)size);
    jv items;
    int r;

    if (jv_get_kind(root) != JV_KIND_OBJECT) {
        jv_free(root);
        return err_set(err, ERR_MALFORMED, "jq cannot read its input");
    }
    items = jv_object_get(jv_copy(root), jv_string("items"));
    root = jv_object_delete(root, jv_string("items"));
    r = jv_get_kind(items) == JV_KIND_ARRAY ? run_items(program, root, items, ret_answer, err)
                                            : err_set(err, ERR_MALFORMED, "items is no list");
    jv_free(items);
    jv_free(root);
    return r;
}
