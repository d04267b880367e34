/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Log: one event a line, one write(2) a line.
 *
 *     log_info("job_finished", LOG_STR("job", id), LOG_U64("attempt", attempt),
 *              LOG_DOUBLE("seconds", took));
 *
 * As JSON (the default where standard error is no terminal):
 *     {"ts":"2026-01-31T12:34:56.123456+00:00","level":"info","program":"broker",
 *      "version":"0.1.0","event":"job_finished","job":"…","attempt":2,"seconds":0.25}
 * On a terminal:
 *     12:34:56.123 info  broker job_finished job=… attempt=2 seconds=0.25
 *
 * An event is a fixed word in snake_case; what varies goes into fields, so that lines can be
 * counted. Bodies, keys and secrets never go into fields: ids, counts and codes do. A string is
 * cut at LOG_STRING_MAX bytes and bad UTF-8 in it is replaced, so no input can break a line or
 * forge one; a line that would pass LOG_LINE_MAX loses its last fields and says "truncated":true.
 *
 * A write that fails (full disk, closed pipe) is dropped and counted: log_dropped_count().
 * Only program edges log; base, schema and brokers return errors instead.
 *
 * Thread: any after log_open(); a line is made on the caller's stack.   Tests:
 * tests/unit/test_log.c
 */

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"

#define LOG_STRING_MAX 512
#define LOG_LINE_MAX 4000 /* below PIPE_BUF: lines of several processes in one pipe stay whole */

enum log_level {
    LOG_LEVEL_DEBUG,
    LOG_LEVEL_INFO,
    LOG_LEVEL_WARN,
    LOG_LEVEL_ERROR,
    LOG_LEVEL_OFF,
};

enum log_format {
    LOG_FORMAT_AUTO, /* human on a terminal, else JSON */
    LOG_FORMAT_JSON,
    LOG_FORMAT_HUMAN,
};

struct log_options {
    const char *program; /* borrowed for ever: a literal */
    const char *path;    /* appended to; NULL: standard error; copied */
    enum log_level level;
    enum log_format format;
};

/* Before log_open() lines go to standard error at level info, with no program name. */
int log_open(const struct log_options *options, struct err *err) MUST_CHECK;

/* Opens the file again under its name, for log rotation (SIGHUP). On failure the old file stays. */
int log_reopen(struct err *err) MUST_CHECK;
void log_close(void); /* back to the state before log_open() */

void log_set_level(enum log_level level);
uint64_t log_dropped_count(void);

/* "debug", "info", "warn", "error", "off". */
int log_level_parse(const char *text, enum log_level *ret_level, struct err *err) MUST_CHECK;

/* True when a line of this level would be written: guards work that only the line needs. */
bool log_enabled(enum log_level level);

struct log_field {
    const char *name; /* NULL: skipped */
    enum {
        LOG_FIELD_END,
        LOG_FIELD_STR,
        LOG_FIELD_I64,
        LOG_FIELD_U64,
        LOG_FIELD_DOUBLE,
        LOG_FIELD_BOOL,
        LOG_FIELD_HEX,
    } type;
    size_t size; /* of a string or of bytes; SIZE_MAX: up to its terminator */
    union {
        const char *str; /* NULL is written as null */
        int64_t i64;
        uint64_t u64;
        double real;
        bool yes;
        const uint8_t *bytes;
    } value;
};

#define LOG_STR(field, text)                                                                       \
    ((struct log_field){                                                                           \
        .name = (field), .type = LOG_FIELD_STR, .size = SIZE_MAX, .value.str = (text)})
#define LOG_TEXT(field, text, text_size)                                                           \
    ((struct log_field){                                                                           \
        .name = (field), .type = LOG_FIELD_STR, .size = (text_size), .value.str = (text)})
#define LOG_I64(field, number)                                                                     \
    ((struct log_field){.name = (field), .type = LOG_FIELD_I64, .value.i64 = (number)})
#define LOG_U64(field, number)                                                                     \
    ((struct log_field){.name = (field), .type = LOG_FIELD_U64, .value.u64 = (number)})
#define LOG_DOUBLE(field, number)                                                                  \
    ((struct log_field){.name = (field), .type = LOG_FIELD_DOUBLE, .value.real = (number)})
#define LOG_BOOL(field, fact)                                                                      \
    ((struct log_field){.name = (field), .type = LOG_FIELD_BOOL, .value.yes = (fact)})
/* The trace id of a traceparent as messages carry it; nothing when there is none. */
#define LOG_TRACE(parent, parent_size)                                                             \
    LOG_TEXT((parent_size) >= 55 ? "trace" : NULL, (parent_size) >= 55 ? (parent) + 3 : "",        \
             (parent_size) >= 55 ? (size_t)32 : (size_t)0)
#define LOG_HEX(field, at, at_size)                                                                \
    ((struct log_field){                                                                           \
        .name = (field), .type = LOG_FIELD_HEX, .size = (at_size), .value.bytes = (at)})

#define LOG_END ((struct log_field){.type = LOG_FIELD_END})

/* Two fields of a struct err: the name of its code, and its text. */
#define LOG_ERR(err) LOG_STR("code", err_name((err)->code)), LOG_STR("error", (err)->text)

#define log_debug(...) log_line(LOG_LEVEL_DEBUG, __VA_ARGS__)
#define log_info(...) log_line(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_warn(...) log_line(LOG_LEVEL_WARN, __VA_ARGS__)
#define log_error(...) log_line(LOG_LEVEL_ERROR, __VA_ARGS__)

/* Fields are evaluated only when the line will be written. */
#define log_line(level, event, ...)                                                                \
    do {                                                                                           \
        if (log_enabled(level))                                                                    \
            log_write((level), (event),                                                            \
                      (const struct log_field[]){__VA_ARGS__ __VA_OPT__(, ) LOG_END});             \
    } while (0)

/* fields ends in LOG_END. */
void log_write(enum log_level level, const char *event, const struct log_field *fields);

/* The pure half, for tests: makes a line, with its newline, and returns its size. */
size_t log_format_line(enum log_format format, enum log_level level, uint64_t wall_us,
                       const char *program, const char *event, const struct log_field *fields,
                       char *to, size_t to_size);
