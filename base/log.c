/* SPDX-License-Identifier: Apache-2.0 */

#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/clock.h"

#define LINE_TAIL_SIZE 24 /* `,"truncated":true}` and the newline always fit */

/* Set by log_open(), which comes before the threads that log; level and descriptor may change. */
static struct {
    const char *program;
    char *path;
    enum log_format format;
    atomic_int level, fd;
    atomic_uint_fast64_t dropped;
} logger = {.program = "", .format = LOG_FORMAT_AUTO, .level = LOG_LEVEL_INFO, .fd = STDERR_FILENO};

static const char *const level_names[] = {"debug", "info", "warn", "error", "off"};

int log_level_parse(const char *text, enum log_level *ret_level, struct err *err)
{
    for (size_t i = 0; i < COUNT_OF(level_names); i++) {
        if (strcmp(text, level_names[i]) == 0) {
            *ret_level = (enum log_level)i;
            return 0;
        }
    }
    return err_set(err, ERR_USAGE, "log level '%.32s' is none of debug, info, warn, error, off",
                   text);
}

static int open_file(const char *path, struct err *err)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640);

    if (fd < 0)
        return err_set_errno(err, ERR_IO, "log file '%s'", path);
    return fd;
}

int log_open(const struct log_options *options, struct err *err)
{
    enum log_level level = options->level;
    const char *wanted = getenv("HEADRACE_LOG");
    int fd = STDERR_FILENO;
    int r = 0;

    if (wanted != NULL && *wanted != '\0')
        r = log_level_parse(wanted, &level, err);
    if (r < 0)
        return err_wrap(err, "HEADRACE_LOG");
    if (options->path != NULL) {
        fd = open_file(options->path, err);
        if (fd < 0)
            return fd;
    }
    log_close();
    logger.program = options->program;
    logger.format = options->format;
    logger.path = options->path != NULL ? xstrdup(options->path) : NULL;
    if (logger.format == LOG_FORMAT_AUTO)
        logger.format = isatty(fd) == 1 ? LOG_FORMAT_HUMAN : LOG_FORMAT_JSON;
    atomic_store(&logger.level, (int)level);
    atomic_store(&logger.fd, fd);
    return 0;
}

int log_reopen(struct err *err)
{
    int fd, old;

    if (logger.path == NULL)
        return 0;
    fd = open_file(logger.path, err);
    if (fd < 0)
        return fd;
    /* dup3 swaps the file under the number that other threads may be writing to. */
    old = atomic_load(&logger.fd);
    if (dup3(fd, old, O_CLOEXEC) < 0) {
        (void)close(fd);
        return err_set_errno(err, ERR_IO, "log file '%s'", logger.path);
    }
    (void)close(fd);
    return 0;
}

void log_close(void)
{
    int fd = atomic_exchange(&logger.fd, STDERR_FILENO);

    if (fd != STDERR_FILENO)
        (void)close(fd);
    mem_free(&logger.path);
    logger.program = "";
    logger.format = LOG_FORMAT_AUTO;
    atomic_store(&logger.level, LOG_LEVEL_INFO);
}

void log_set_level(enum log_level level)
{
    atomic_store(&logger.level, (int)level);
}

uint64_t log_dropped_count(void)
{
    return atomic_load(&logger.dropped);
}

bool log_enabled(enum log_level level)
{
    return (int)level >= atomic_load_explicit(&logger.level, memory_order_relaxed);
}

/* ---- one line ---- */

/* What is written so far; once something did not fit, nothing more is taken. */
struct line {
    char *to;
    size_t size, room;
    bool full;
};

static void put(struct line *line, const char *text, size_t size)
{
    if (line->full || size > line->room - line->size) {
        line->full = true;
        return;
    }
    memcpy(line->to + line->size, text, size);
    line->size += size;
}

static void put_text(struct line *line, const char *text)
{
    put(line, text, strlen(text));
}

static PRINTF_LIKE(2, 3) void put_format(struct line *line, const char *fmt, ...)
{
    char text[64];
    va_list args;
    int n;

    va_start(args, fmt);
    n = vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    assert(n >= 0);
    put(line, text, (size_t)n < sizeof(text) ? (size_t)n : sizeof(text) - 1);
}

/* Bytes of the UTF-8 character at `at`, or 0 when there is none. RFC 3629, table 3-7 of Unicode. */
static size_t utf8_size(const uint8_t *at, size_t left)
{
    size_t size = at[0] < 0x80 ? 1 : at[0] < 0xc2 ? 0 : at[0] < 0xe0 ? 2 : at[0] < 0xf0 ? 3 : 4;

    if (size == 0 || size > left || at[0] > 0xf4)
        return 0;
    for (size_t i = 1; i < size; i++) {
        if ((at[i] & 0xc0) != 0x80)
            return 0;
    }
    if ((at[0] == 0xe0 && at[1] < 0xa0) || (at[0] == 0xed && at[1] > 0x9f) ||
        (at[0] == 0xf0 && at[1] < 0x90) || (at[0] == 0xf4 && at[1] > 0x8f))
        return 0;
    return size;
}

/* A string between quotes: control characters, quotes and backslashes escaped, bad UTF-8 replaced,
 * cut at LOG_STRING_MAX. Both forms use it, so that no input can break or forge a line. */
static void put_quoted(struct line *line, const char *text, size_t size)
{
    const uint8_t *at = (const uint8_t *)text;
    bool cut = size > LOG_STRING_MAX;

    if (cut)
        size = LOG_STRING_MAX;
    put(line, "\"", 1);
    while (size > 0) {
        size_t n = utf8_size(at, size);

        if (n == 0) {
            put_text(line, "\xef\xbf\xbd");
            n = 1;
        } else if (*at == '"' || *at == '\\') {
            char escaped[2] = {'\\', (char)*at};

            put(line, escaped, 2);
        } else if (*at < 0x20 || *at == 0x7f) {
            put_format(line, "\\u%04x", *at);
        } else if (n == 2 && at[0] == 0xc2 && at[1] < 0xa0) { /* C1: terminals obey these, too */
            put_format(line, "\\u%04x", at[1]);
        } else {
            put(line, (const char *)at, n);
        }
        at += n;
        size -= n;
    }
    put_text(line, cut ? "…\"" : "\"");
}

/* Words that need no quotes in the human form. */
static bool is_plain(const char *text, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        if (text[i] <= ' ' || text[i] >= 0x7f || text[i] == '"' || text[i] == '=')
            return false;
    }
    return size > 0 && size <= LOG_STRING_MAX;
}

static void put_string(struct line *line, const struct log_field *field, bool human)
{
    const char *text = field->value.str;
    size_t size;

    if (text == NULL) {
        put_text(line, "null");
        return;
    }
    size = field->size == SIZE_MAX ? strnlen(text, LOG_STRING_MAX + 1) : field->size;
    if (human && is_plain(text, size))
        put(line, text, size);
    else
        put_quoted(line, text, size);
}

static void put_value(struct line *line, const struct log_field *field, bool human)
{
    switch (field->type) {
    case LOG_FIELD_END:
        break;
    case LOG_FIELD_STR:
        put_string(line, field, human);
        break;
    case LOG_FIELD_I64:
        put_format(line, "%" PRId64, field->value.i64);
        break;
    case LOG_FIELD_U64:
        put_format(line, "%" PRIu64, field->value.u64);
        break;
    case LOG_FIELD_DOUBLE: /* JSON has no word for these two */
        if (isfinite(field->value.real))
            put_format(line, "%.9g", field->value.real);
        else
            put_text(line, "null");
        break;
    case LOG_FIELD_BOOL:
        put_text(line, field->value.yes ? "true" : "false");
        break;
    case LOG_FIELD_HEX:
        put(line, "\"", human ? 0 : 1);
        for (size_t i = 0; i < field->size && i < LOG_STRING_MAX / 2; i++)
            put_format(line, "%02x", field->value.bytes[i]);
        put(line, "\"", human ? 0 : 1);
        break;
    }
}

static void put_head(struct line *line, bool human, enum log_level level, uint64_t wall_us,
                     const char *program, const char *event)
{
    char when[CLOCK_TEXT_SIZE];

    clock_format_iso(wall_us, when);
    if (human) {
        put_format(line, "%.12s %-5s ", when + 11, level_names[level]);
        put_text(line, program);
        put_text(line, *program != '\0' ? " " : "");
        put_text(line, event);
        return;
    }
    put_format(line, "{\"ts\":\"%s\",", when);
    put_format(line, "\"level\":\"%s\",\"program\":", level_names[level]);
    put_quoted(line, program, strlen(program));
    put_text(line, ",\"version\":\"" HEADRACE_VERSION "\",\"event\":");
    put_quoted(line, event, strlen(event));
}

static void put_field(struct line *line, bool human, const struct log_field *field)
{
    if (human) {
        put(line, " ", 1);
        put_text(line, field->name);
        put(line, "=", 1);
    } else {
        put(line, ",", 1);
        put_quoted(line, field->name, strlen(field->name));
        put(line, ":", 1);
    }
    put_value(line, field, human);
}

size_t log_format_line(enum log_format format, enum log_level level, uint64_t wall_us,
                       const char *program, const char *event, const struct log_field *fields,
                       char *to, size_t to_size)
{
    bool human = format == LOG_FORMAT_HUMAN;
    struct line line = {.to = to, .room = to_size - LINE_TAIL_SIZE};

    assert(to_size > 4 * LINE_TAIL_SIZE);
    put_head(&line, human, level, wall_us, program, event);
    for (; fields->type != LOG_FIELD_END && !line.full; fields++) {
        size_t before = line.size;

        if (fields->name != NULL)
            put_field(&line, human, fields);
        if (line.full)
            line.size = before; /* a field is there whole, or not at all */
    }
    line.room = to_size;
    if (line.full) {
        line.full = false;
        put_text(&line, human ? " truncated=true" : ",\"truncated\":true");
    }
    put_text(&line, human ? "\n" : "}\n");
    return line.size;
}

void log_write(enum log_level level, const char *event, const struct log_field *fields)
{
    char line[LOG_LINE_MAX];
    int saved = errno;
    size_t size;

    if (logger.format == LOG_FORMAT_AUTO)
        logger.format = isatty(STDERR_FILENO) == 1 ? LOG_FORMAT_HUMAN : LOG_FORMAT_JSON;
    size = log_format_line(logger.format, level, clock_wall_us(), logger.program, event, fields,
                           line, sizeof(line));
    if (write(atomic_load(&logger.fd), line, size) != (ssize_t)size)
        atomic_fetch_add(&logger.dropped, 1);
    errno = saved;
}
