/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/server_log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/loop.h"

#define PIECE_SIZE 16384
#define FINISH_SIZE_MAX (1u << 20)

struct server_log {
    struct loop *loop;
    struct loop_watch *watch;
    struct loop_timer *second; /* runs while something was read in this second */
    int fd;
    char line[SERVER_LINE_MAX + 1];
    size_t line_size;
    char kept[SERVER_LINES_KEPT][SERVER_LINE_MAX + 1];
    size_t kept_count; /* since the start; the ring's place is this modulo its length */
    size_t read_size, line_count;
    uint64_t dropped_count;
};

static void on_line(struct server_log *log)
{
    log->line[log->line_size] = '\0';
    log->line_size = 0;
    if (log->line[0] == '\0')
        return;
    mem_copy_text(log->kept[log->kept_count++ % SERVER_LINES_KEPT], log->line);
    if (log->line_count++ < SERVER_LINES_A_SECOND)
        log_info("server_says", LOG_STR("line", log->line));
    else
        log->dropped_count++;
}

static void take(struct server_log *log, const char *bytes, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        if (bytes[i] == '\n')
            on_line(log);
        else if (bytes[i] != '\r' && bytes[i] != '\0' && log->line_size < SERVER_LINE_MAX)
            log->line[log->line_size++] = bytes[i];
    }
}

/* Reads once; 0 when there is nothing, or never will be again. */
static size_t read_piece(struct server_log *log)
{
    char bytes[PIECE_SIZE];
    ssize_t n;

    do {
        n = read(log->fd, bytes, sizeof(bytes));
    } while (n < 0 && errno == EINTR);
    if (n == 0)
        loop_watch_free(&log->watch);
    if (n <= 0)
        return 0;
    take(log, bytes, (size_t)n);
    return (size_t)n;
}

static void on_readable(void *opaque, unsigned events)
{
    struct server_log *log = opaque;

    (void)events;
    log->read_size += read_piece(log);
    if (!loop_timer_is_running(log->second))
        loop_timer_start(log->second, 1000, 0);
    if (log->watch != NULL && log->read_size >= SERVER_BYTES_A_SECOND)
        loop_watch_set(log->watch, 0); /* the writer waits until the second is over */
}

static void tell_dropped(struct server_log *log)
{
    if (log->dropped_count > 0)
        log_warn("server_lines_dropped", LOG_U64("lines", log->dropped_count),
                 LOG_U64("limit_a_second", SERVER_LINES_A_SECOND));
    log->dropped_count = 0;
}

static void on_second(void *opaque)
{
    struct server_log *log = opaque;

    tell_dropped(log);
    log->read_size = log->line_count = 0;
    if (log->watch != NULL)
        loop_watch_set(log->watch, LOOP_READABLE);
}

int server_log_open(struct loop *loop, int fd, struct server_log **ret_log, struct err *err)
{
    OWNED(server_log_close) struct server_log *log = xcalloc(1, sizeof(*log));
    int r;

    log->loop = loop;
    log->fd = fd;
    log->second = loop_timer_new(loop, on_second, log);
    (void)fcntl(fd, F_SETFL, O_NONBLOCK);
    r = loop_watch_new(loop, fd, on_readable, log, &log->watch, err);
    if (r < 0)
        return r;
    loop_watch_set(log->watch, LOOP_READABLE);
    *ret_log = TAKE(log);
    return 0;
}

void server_log_finish(struct server_log *log)
{
    size_t size = 0, n;

    while (size < FINISH_SIZE_MAX && (n = read_piece(log)) > 0)
        size += n;
    if (log->line_size > 0)
        on_line(log);
    tell_dropped(log);
}

void server_log_last(const struct server_log *log, char *to, size_t to_size)
{
    static const char between[] = " | ";
    size_t count = log->kept_count < SERVER_LINES_KEPT ? log->kept_count : SERVER_LINES_KEPT;
    size_t first = log->kept_count, size = 0;

    to[0] = '\0';
    while (count-- > 0) {
        size_t next = strlen(log->kept[(first - 1) % SERVER_LINES_KEPT]) + sizeof(between) - 1;

        if (size + next >= to_size && size > 0)
            break;
        size += next;
        first--;
    }
    for (size = 0; first < log->kept_count && size < to_size; first++) {
        int n = snprintf(to + size, to_size - size, "%s%s", size > 0 ? between : "",
                         log->kept[first % SERVER_LINES_KEPT]);

        size += n > 0 ? (size_t)n : 0;
    }
}

void server_log_close(struct server_log **log_p)
{
    struct server_log *log = TAKE(*log_p);

    if (log == NULL)
        return;
    loop_watch_free(&log->watch);
    loop_timer_free(&log->second);
    (void)close(log->fd);
    free(log);
}
