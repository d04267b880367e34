/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What a node prints, as numbered lines in `training_log`: gathered for half a second or 64 KiB,
 * then written as one row, behind a check that the node still is ours.
 *
 * Bounded in each direction: a line is cut at LINE_MAX bytes; what comes above the rate of the
 * settings, or while UNSENT_MAX bytes wait for Postgres, is left out, and a line says how many
 * were; the pipe is read at no more than READ_A_TURN bytes in READ_MS, so that a flood waits for
 * itself. Who prints line after line does not wake us for each: after two that came within
 * OFTEN_MS the pipe is left alone for REST_MS, unless there was so much that it might be full
 * before that. A row whose fate is not known is written again: its key is the number of its first
 * line.
 */

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/clock.h"
#include "workers/trainer_int.h"

#define LINE_MAX_SIZE (16u << 10)
#define FLUSH_MS 500
#define FLUSH_SIZE (64u << 10)
#define UNSENT_MAX (8u << 20)
#define BURST 16
#define READ_A_TURN (256u << 10)
#define READ_MS 20
#define REST_MS 50
#define REST_SIZE (8u << 10) /* of 64 KiB that a pipe holds */
#define OFTEN_MS 100

PG_STATEMENT(lines_add,
             "INSERT INTO training_log (job_id, rank, number, line_count, placement, at, "
             "at_last, text) VALUES ($1, $2, $3, $4, $5, $6, $7, $8) "
             "ON CONFLICT (job_id, rank, number) DO NOTHING");

struct node_log {
    struct node *node;
    struct loop_watch *watch;
    struct loop_timer *flush_timer, *pause_timer;
    int fd;
    struct buf part;              /* of a line that has no end yet */
    struct buf lines;             /* whole ones, not sent */
    struct buf sent;              /* being written */
    uint64_t number, sent_number; /* of the first line of each */
    uint32_t line_count, sent_count;
    uint64_t at_us, last_us, sent_at_us, sent_last_us;
    uint64_t room, room_at_us; /* bytes that may be kept now */
    uint64_t read_ms;          /* when something was read last */
    uint64_t left_out;
    bool cutting, sending, over;
    bool resting;                       /* the pipe is not watched: the pause is over soon */
    char last[2][TRAINER_WHY_SIZE / 2]; /* newest line and the one before */
};

static void lines_flush(struct node_log *log);

/* ---- lines ---- */

static void lines_append(struct node_log *log, const char *line, size_t size)
{
    uint64_t now_us = clock_wall_us();

    if (log->lines.size == 0) {
        log->at_us = now_us;
        if (!loop_timer_is_running(log->flush_timer))
            loop_timer_start(log->flush_timer, FLUSH_MS, 0);
    }
    for (size_t i = 0; i < size; i++) /* Postgres takes no zero bytes, nor what is no UTF-8 */
        buf_append_byte(&log->lines, line[i] == '\0' ? ' ' : (uint8_t)line[i]);
    buf_append_byte(&log->lines, '\n');
    log->line_count++;
    log->last_us = now_us;
    if (log->lines.size >= FLUSH_SIZE)
        lines_flush(log);
}

static void lines_tell_left_out(struct node_log *log)
{
    OWNED(mem_free) char *line = NULL;

    if (log->left_out == 0)
        return;
    line = xasprintf("[headrace] %llu lines left out here: more than this trainer keeps",
                     (unsigned long long)log->left_out);
    log->left_out = 0;
    lines_append(log, line, strlen(line));
}

static void room_refill(struct node_log *log)
{
    uint64_t rate = log->node->trainer->settings->node_log_rate_size, now_us = clock_mono_us();

    log->room += (now_us - log->room_at_us) * rate / 1000000;
    log->room_at_us = now_us;
    if (log->room > rate * BURST)
        log->room = rate * BURST;
}

/* Replaces what is no UTF-8; Postgres would refuse the whole row. */
static size_t utf8_mend(char *text, size_t size)
{
    for (size_t i = 0; i < size;) {
        unsigned char c = (unsigned char)text[i];
        size_t more = c < 0x80                ? 0
                      : c >= 0xc2 && c < 0xe0 ? 1
                      : c >= 0xe0 && c < 0xf0 ? 2
                      : c >= 0xf0 && c < 0xf5 ? 3
                                              : SIZE_MAX;
        bool fine = more != SIZE_MAX && i + more < size;

        for (size_t k = 1; fine && k <= more; k++)
            fine = ((unsigned char)text[i + k] & 0xc0) == 0x80;
        if (fine && more == 2)
            fine = !(c == 0xe0 && (unsigned char)text[i + 1] < 0xa0) &&
                   !(c == 0xed && (unsigned char)text[i + 1] >= 0xa0);
        if (fine && more == 3)
            fine = !(c == 0xf0 && (unsigned char)text[i + 1] < 0x90) &&
                   !(c == 0xf4 && (unsigned char)text[i + 1] >= 0x90);
        if (!fine)
            text[i] = '?';
        i += fine ? more + 1 : 1;
    }
    return size;
}

static void lines_line(struct node_log *log)
{
    char *text = (char *)log->part.bytes;
    size_t size = utf8_mend(text, log->part.size);

    while (size > 0 && text[size - 1] == '\r')
        size--;
    if (size > 0) {
        memcpy(log->last[1], log->last[0], sizeof(log->last[0]));
        (void)snprintf(log->last[0], sizeof(log->last[0]), "%.*s", (int)size, text);
    }
    node_metric_line(log->node, text, size);
    room_refill(log);
    if (size + 1 > log->room || log->lines.size + size > UNSENT_MAX) {
        log->left_out++;
    } else {
        log->room -= size + 1;
        lines_tell_left_out(log);
        lines_append(log, size == 0 ? "" : text, size);
    }
    buf_clear(&log->part);
    log->cutting = false;
}

static void lines_take(struct node_log *log, const char *bytes, size_t size)
{
    while (size > 0) {
        const char *end = memchr(bytes, '\n', size);
        size_t part = end == NULL ? size : (size_t)(end - bytes);
        size_t room = LINE_MAX_SIZE - log->part.size;

        if (!log->cutting)
            buf_append(&log->part, bytes, part < room ? part : room);
        if (part > room && !log->cutting) {
            buf_append_text(&log->part, " [cut]");
            log->cutting = true;
        }
        if (end != NULL)
            lines_line(log);
        bytes += part + (end != NULL);
        size -= part + (end != NULL);
    }
}

void node_log_say(struct node *node, const char *line)
{
    if (node->log != NULL)
        lines_append(node->log, line, strlen(line));
}

void node_log_last(const struct node *node, char *to, size_t to_size)
{
    const struct node_log *log = node->log;

    to[0] = '\0';
    if (log != NULL && log->last[0][0] != '\0')
        (void)snprintf(to, to_size, "%s%s%s", log->last[1], log->last[1][0] == '\0' ? "" : " | ",
                       log->last[0]);
}

/* ---- rows ---- */

static void lines_send(struct node_log *log);

static void on_added(void *opaque, const struct pg_answer *answer)
{
    struct node *node = opaque;
    struct node_log *log = node->log;

    if (node_unbusy(node) || log == NULL)
        return;
    log->sending = false;
    if (answer->err.code == ERR_STALE)
        return; /* the rows will say that it is over */
    if (answer->err.code == ERR_OK || err_class(answer->err.code) == ERR_CLASS_REJECT) {
        if (answer->err.code != ERR_OK)
            log_warn("lines_refused", LOG_STR("job", node->job_text), LOG_ERR(&answer->err));
        buf_done(&log->sent);
        log->sent_count = 0;
    }
    if (log->sent.size > 0)
        loop_timer_start(log->flush_timer, FLUSH_MS, 0);
    else if (log->lines.size >= FLUSH_SIZE || (log->over && log->lines.size > 0))
        lines_flush(log);
    else if (log->lines.size > 0)
        loop_timer_start(log->flush_timer, FLUSH_MS, 0);
    else if (node->saved)
        node_saved(node); /* that was the last one */
}

static void lines_send(struct node_log *log)
{
    struct node *node = log->node;
    struct pg_batch *batch = pg_batch_new();

    node_fence(batch, node);
    pg_add(batch, &lines_add);
    pg_bind_id(batch, &node->job);
    pg_bind_i32(batch, node->rank);
    pg_bind_i64(batch, (int64_t)log->sent_number);
    pg_bind_i32(batch, log->sent_count);
    pg_bind_i32(batch, node->placement);
    pg_bind_time(batch, log->sent_at_us);
    pg_bind_time(batch, log->sent_last_us);
    pg_bind_text(batch, (struct wire_text){(const char *)log->sent.bytes, log->sent.size});
    log->sending = true;
    node->busy++;
    trainer_send(node->trainer, &batch, on_added, node);
}

static void lines_flush(struct node_log *log)
{
    if (log->sending)
        return;
    if (log->sent.size == 0) {
        if (log->lines.size == 0)
            return;
        buf_move(&log->sent, &log->lines);
        log->sent_number = log->number;
        log->sent_count = log->line_count;
        log->sent_at_us = log->at_us;
        log->sent_last_us = log->last_us;
        log->number += log->line_count;
        log->line_count = 0;
    }
    lines_send(log);
}

static void lines_on_flush(void *opaque)
{
    lines_flush(opaque);
}

/* ---- the pipe ---- */

/* How much; 0: there is nothing now, or nothing more. */
static size_t lines_read(struct node_log *log, char *block, size_t block_size)
{
    ssize_t size = log->fd < 0 ? 0 : read(log->fd, block, block_size);

    if (size > 0) {
        lines_take(log, block, (size_t)size);
        return (size_t)size;
    }
    if (size < 0 && (errno == EAGAIN || errno == EINTR))
        return 0;
    if (log->fd >= 0) {
        loop_watch_free(&log->watch);
        (void)close(log->fd);
        log->fd = -1;
    }
    return 0;
}

/* Reads what there is, and says when to read again. */
static void lines_turn(struct node_log *log)
{
    uint64_t now_ms = loop_now_ms(log->node->trainer->loop), rest_ms = 0;
    bool often = now_ms - log->read_ms < OFTEN_MS;
    char block[32u << 10];
    size_t turns = READ_A_TURN / sizeof(block), size = 0, part;

    while (turns > 0 && (part = lines_read(log, block, sizeof(block))) > 0) {
        size += part;
        turns--;
    }
    if (log->watch == NULL)
        return;
    if (size > 0)
        log->read_ms = now_ms;
    if (turns == 0)
        rest_ms = READ_MS;
    else if (often && size > 0 && size < REST_SIZE)
        rest_ms = REST_MS;
    if (log->resting != (rest_ms > 0))
        loop_watch_set(log->watch, rest_ms > 0 ? 0 : LOOP_READABLE);
    log->resting = rest_ms > 0;
    if (log->resting)
        loop_timer_start(log->pause_timer, rest_ms, 0);
}

static void lines_on_pause(void *opaque)
{
    struct node_log *log = opaque;

    if (log->watch != NULL)
        lines_turn(log);
}

static void lines_on_readable(void *opaque, unsigned events)
{
    (void)events;
    lines_turn(opaque);
}

/* What is in the pipe now. */
static void lines_drain(struct node_log *log)
{
    char block[32u << 10];
    int waiting = 0;

    if (log->fd >= 0)
        (void)ioctl(log->fd, FIONREAD, &waiting);
    for (; waiting > 0 && lines_read(log, block, sizeof(block)) > 0; waiting -= (int)sizeof(block))
        ;
}

void node_log_along(struct node *node)
{
    struct node_log *log = node->log;

    if (log == NULL || log->lines.size == 0 || log->sent.size > 0 || log->sending)
        return;
    loop_timer_stop(log->flush_timer);
    lines_flush(log);
}

uint64_t node_log_mark(struct node *node)
{
    struct node_log *log = node->log;

    if (log == NULL)
        return 0;
    lines_drain(log);
    return log->number + log->line_count;
}

bool node_log_has_stored(struct node *node, uint64_t mark)
{
    struct node_log *log = node->log;

    if (log == NULL)
        return true;
    lines_flush(log);
    return (log->sent.size > 0 ? log->sent_number : log->number) >= mark;
}

void node_log_finish(struct node *node)
{
    struct node_log *log = node->log;

    if (log == NULL || log->over)
        return;
    log->over = true;
    lines_drain(log);
    if (log->part.size > 0)
        lines_line(log);
    lines_tell_left_out(log);
    loop_watch_free(&log->watch);
    lines_flush(log);
}

bool node_log_is_empty(const struct node *node)
{
    return node->log == NULL || (node->log->lines.size == 0 && node->log->sent.size == 0);
}

int node_log_open(struct node *node, int fd, struct err *err)
{
    struct node_log *log = xcalloc(1, sizeof(*log));
    int r;

    log->node = node;
    log->fd = fd;
    log->number = node->log_number;
    log->room = node->trainer->settings->node_log_rate_size * BURST;
    log->room_at_us = clock_mono_us();
    buf_init(&log->part, LINE_MAX_SIZE + 16);
    buf_init(&log->lines, UNSENT_MAX + LINE_MAX_SIZE + 4096);
    buf_init(&log->sent, UNSENT_MAX + LINE_MAX_SIZE + 4096);
    log->flush_timer = loop_timer_new(node->trainer->loop, lines_on_flush, log);
    log->pause_timer = loop_timer_new(node->trainer->loop, lines_on_pause, log);
    node->log = log;
    (void)fcntl(fd, F_SETFL, O_NONBLOCK);
    r = loop_watch_new(node->trainer->loop, fd, lines_on_readable, log, &log->watch, err);
    if (r == 0)
        loop_watch_set(log->watch, LOOP_READABLE);
    return r;
}

void node_log_close(struct node *node)
{
    struct node_log *log = TAKE(node->log);

    if (log == NULL)
        return;
    loop_watch_free(&log->watch);
    loop_timer_free(&log->flush_timer);
    loop_timer_free(&log->pause_timer);
    if (log->fd >= 0)
        (void)close(log->fd);
    buf_done(&log->part);
    buf_done(&log->lines);
    buf_done(&log->sent);
    free(log);
}
