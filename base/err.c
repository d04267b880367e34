/* SPDX-License-Identifier: Apache-2.0 */

#include "base/err.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/assert.h"

struct err_row {
    int code;
    enum err_class class;
    int http;
    const char *name, *meaning;
};

static const struct err_row err_rows[] = {
#define ERROR(name, value, class, http, text) {name, ERR_CLASS_##class, http, #name, text},
#include "base/errors.def"
#undef ERROR
};

static const struct err_row *err_find(int code)
{
    for (size_t i = 0; i < COUNT_OF(err_rows); i++) {
        if (err_rows[i].code == code)
            return &err_rows[i];
    }
    NEVER("error code is not in errors.def");
}

int err_set_at(struct err *err, int code, const char *file, int line, const char *fmt, ...)
{
    va_list args;

    err->code = code;
    err->file = file;
    err->line = line;
    va_start(args, fmt);
    (void)vsnprintf(err->text, sizeof(err->text), fmt, args);
    va_end(args);
    return code;
}

int err_set_errno_at(struct err *err, int code, const char *file, int line, const char *fmt, ...)
{
    int cause = errno;
    char reason[128];
    size_t used;
    va_list args;

    err->code = code;
    err->file = file;
    err->line = line;
    va_start(args, fmt);
    (void)vsnprintf(err->text, sizeof(err->text), fmt, args);
    va_end(args);
    used = strlen(err->text);
    (void)snprintf(err->text + used, sizeof(err->text) - used, ": %s",
                   strerror_r(cause, reason, sizeof(reason)));
    return code;
}

int err_wrap(struct err *err, const char *fmt, ...)
{
    char before[ERR_TEXT_SIZE];
    char inner[ERR_TEXT_SIZE];
    va_list args;

    va_start(args, fmt);
    (void)vsnprintf(before, sizeof(before), fmt, args);
    va_end(args);
    memcpy(inner, err->text, sizeof(inner));
    inner[sizeof(inner) - 1] = '\0';
    if (snprintf(err->text, sizeof(err->text), "%s: %s", before, inner) >= (int)sizeof(err->text))
        memcpy(err->text + sizeof(err->text) - 4, "...", 4); /* say that it was cut */
    return err->code;
}

enum err_class err_class(int code)
{
    return code == ERR_OK ? ERR_CLASS_OK : err_find(code)->class;
}

int err_http_status(int code)
{
    return code == ERR_OK ? 200 : err_find(code)->http;
}

const char *err_name(int code)
{
    return code == ERR_OK ? "ERR_OK" : err_find(code)->name;
}

const char *err_meaning(int code)
{
    return code == ERR_OK ? "no error" : err_find(code)->meaning;
}
