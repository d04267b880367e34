/* SPDX-License-Identifier: Apache-2.0 */

#include <stdlib.h>
#include <strings.h>

#include "base/assert.h"
#include "base/http_server_int.h"

#define FORM_TYPE "multipart/form-data"
#define PIECE_SIZE (64u << 10) /* also the longest headers of a field */

struct http_form {
    struct MHD_PostProcessor *processor; /* NULL: it has ended */
    http_form_call *on_piece;
    void *opaque;
    struct err err; /* of on_piece; ERR_OK: none */
};

static enum MHD_Result on_value(void *cls, enum MHD_ValueKind kind, const char *name,
                                const char *filename, const char *type, const char *encoding,
                                const char *bytes, uint64_t offset, size_t size)
{
    struct http_form *form = cls;
    const struct http_form_piece piece = {.name = name == NULL ? "" : name,
                                          .filename = filename,
                                          .type = type,
                                          .offset = offset,
                                          .bytes = bytes,
                                          .size = size};

    (void)kind, (void)encoding;
    form->err.code = form->on_piece(form->opaque, &piece, &form->err);
    return form->err.code < 0 ? MHD_NO : MHD_YES;
}

int http_form_new(struct http_request *request, http_form_call *on_piece, void *opaque,
                  struct http_form **ret_form, struct err *err)
{
    const char *type = http_request_header(request, "Content-Type");
    struct http_form *form;

    if (type == NULL || strncasecmp(type, FORM_TYPE, sizeof(FORM_TYPE) - 1) != 0)
        return err_set(err, ERR_MALFORMED, "Content-Type is '%.80s'; it must be " FORM_TYPE,
                       type == NULL ? "" : type);
    form = xcalloc(1, sizeof(*form));
    form->on_piece = on_piece;
    form->opaque = opaque;
    form->processor = MHD_create_post_processor(request->connection->mhd, PIECE_SIZE, on_value,
                                                form);
    if (form->processor == NULL) {
        free(form);
        return err_set(err, ERR_MALFORMED, "Content-Type '%.80s' has no boundary", type);
    }
    *ret_form = form;
    return 0;
}

void http_form_free(struct http_form **form_p)
{
    struct http_form *form = TAKE(*form_p);

    if (form == NULL)
        return;
    if (form->processor != NULL)
        (void)MHD_destroy_post_processor(form->processor);
    free(form);
}

int http_form_feed(struct http_form *form, const void *bytes, size_t size, struct err *err)
{
    assert(form->processor != NULL);
    if (MHD_post_process(form->processor, bytes, size) == MHD_YES)
        return 0;
    if (form->err.code < 0) {
        *err = form->err;
        return err->code;
    }
    return err_set(err, ERR_MALFORMED, "the body is not the " FORM_TYPE " that it announces");
}

int http_form_end(struct http_form *form, struct err *err)
{
    if (MHD_destroy_post_processor(TAKE(form->processor)) == MHD_YES && form->err.code == ERR_OK)
        return 0;
    if (form->err.code < 0) {
        *err = form->err;
        return err->code;
    }
    return err_set(err, ERR_MALFORMED, "the body ends in the middle of a field");
}
