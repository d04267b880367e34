/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * How a failure travels: a negative code for the program, a text for people.
 *
 * A function that can fail returns 0 or a negative ERR_… code and fills the caller's struct err
 * (on its stack, never NULL). Layers on the way up may put context in front of the text. Foreign
 * errors (errno, librdkafka, libpq, hiredis, curl) are translated once, in their adapter.
 *
 * Thread: any; a struct err belongs to one thread.   Tests: tests/unit/test_err.c
 */

#include "base/mem.h"

#ifdef __cplusplus
extern "C" {
#endif

#define ERR_OK 0
enum err_code {
#define ERROR(name, value, class, http, text) name = (value),
#include "base/errors.def"
#undef ERROR
};

enum err_class {
    ERR_CLASS_OK,
    ERR_CLASS_RETRY,  /* the same work may succeed later: back off, redo */
    ERR_CLASS_REJECT, /* this work can never succeed: 4xx or dead letter */
    ERR_CLASS_FATAL,  /* this process cannot be trusted: drain and exit */
};

#define ERR_TEXT_SIZE 512

struct err {
    int code; /* ERR_OK, or one of the negative codes of errors.def */
    int line;
    const char *file; /* static storage, borrowed */
    char text[ERR_TEXT_SIZE];
};

/* Fills err and yields code, so that a failure is one return statement. A macro yields it, so that
 * the compiler sees which value it is and that what comes behind a check is reached on success. */
#define err_set(err, code, ...)                                                                    \
    ({                                                                                             \
        int err_code_ = (code);                                                                    \
        (void)err_set_at((err), err_code_, __FILE__, __LINE__, __VA_ARGS__);                       \
        err_code_;                                                                                 \
    })
int err_set_at(struct err *err, int code, const char *file, int line, const char *fmt, ...)
    PRINTF_LIKE(5, 6);

/* The same for a failed system call: the text ends in what errno says. */
#define err_set_errno(err, code, ...)                                                              \
    ({                                                                                             \
        int err_code_ = (code);                                                                    \
        (void)err_set_errno_at((err), err_code_, __FILE__, __LINE__, __VA_ARGS__);                 \
        err_code_;                                                                                 \
    })
int err_set_errno_at(struct err *err, int code, const char *file, int line, const char *fmt, ...)
    PRINTF_LIKE(5, 6);

/* Puts context in front of the text on the way up ("load 'bert': read: …"); returns err->code. */
int err_wrap(struct err *err, const char *fmt, ...) PRINTF_LIKE(2, 3);

enum err_class err_class(int code);
int err_http_status(int code);     /* 200 for ERR_OK */
const char *err_name(int code);    /* "ERR_RANGE"; static storage */
const char *err_meaning(int code); /* the sentence of errors.def; static storage */

#ifdef __cplusplus
}
#endif
