/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The C half of metrics: buckets, the process's own numbers, and the pages. The registry is in
 * metrics_core.cc.
 */

#include "base/metrics.h"

#include <dirent.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/http_server.h"
#include "base/metrics_int.h"

#define METRICS_TEXT_SIZE_MAX (64u << 20)

const double metric_buckets_seconds[] = {
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,  1,
    2.5,    5,     10,     20,    30,   60,    120,  300, 600,  1800, 3600,
};
const double metric_buckets_bytes[] = {
    64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864, 268435456,
};
const double metric_buckets_count[] = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096};

bool metrics_text_is_utf8(const char *text)
{
    json_t *string = json_string(text); /* NULL for what is no UTF-8 */
    bool valid = string != NULL;

    json_decref(string);
    return valid;
}

/* ---- The process's own numbers, under the names that every Prometheus client uses */

static double count_open_fds(void)
{
    DIR *folder = opendir("/proc/self/fd");
    double count = -3; /* "." and "..", and the folder itself */

    if (folder == NULL)
        return 0;
    while (readdir(folder) != NULL)
        count++;
    (void)closedir(folder);
    return count;
}

struct process_numbers {
    unsigned long long user_ticks, system_ticks, start_ticks, resident_pages;
};

static bool process_read(struct process_numbers *numbers)
{
    char text[2048];
    FILE *file = fopen("/proc/self/stat", "re");
    const char *at;
    size_t n;

    if (file == NULL)
        return false;
    n = fread(text, 1, sizeof(text) - 1, file);
    (void)fclose(file);
    text[n] = '\0';
    at = strrchr(text, ')'); /* the name before it may hold anything */
    return at != NULL &&
           sscanf(at + 1,
                  " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu %*d %*d %*d %*d %*d %*d "
                  "%llu %*u %llu",
                  &numbers->user_ticks, &numbers->system_ticks, &numbers->start_ticks,
                  &numbers->resident_pages) == 4;
}

static double boot_time_seconds(void)
{
    FILE *file = fopen("/proc/stat", "re");
    char line[4096];
    unsigned long long seconds = 0;

    if (file == NULL)
        return 0;
    while (fgets(line, sizeof(line), file) != NULL) {
        if (sscanf(line, "btime %llu", &seconds) == 1)
            break;
    }
    (void)fclose(file);
    return (double)seconds;
}

static void write_number(struct buf *to, const char *name, const char *type, const char *help,
                         double value)
{
    buf_printf(to, "# HELP %s %s\n# TYPE %s %s\n%s %.3f\n", name, help, name, type, name, value);
}

static void process_write(struct buf *to)
{
    struct process_numbers numbers;
    double tick = 1.0 / (double)sysconf(_SC_CLK_TCK);

    if (!process_read(&numbers))
        return;
    write_number(to, "process_cpu_seconds_total", "counter", "CPU time spent, user and system",
                 (double)(numbers.user_ticks + numbers.system_ticks) * tick);
    write_number(to, "process_resident_memory_bytes", "gauge", "memory in use",
                 (double)numbers.resident_pages * (double)sysconf(_SC_PAGESIZE));
    write_number(to, "process_start_time_seconds", "gauge", "when the process began, Unix time",
                 boot_time_seconds() + (double)numbers.start_ticks * tick);
    write_number(to, "process_open_fds", "gauge", "open descriptors", count_open_fds());
}

int metrics_write(struct metrics *metrics, struct buf *to, struct err *err)
{
    int r = metrics_core_write(metrics, to, err);

    if (r < 0)
        return r;
    process_write(to);
    return buf_check(to, "text of the metrics", err);
}

/* ---- Pages */

static void answer_plain(struct http_request **request_p, int status, const char *text)
{
    const struct http_header type = {"Content-Type", "text/plain; charset=utf-8"};
    OWNED(buf_done) struct buf body = BUF_WITH_LIMIT(4096);

    buf_printf(&body, "%.1000s\n", text);
    http_request_answer_buf(request_p, status, &type, 1, &body);
}

static void answer_metrics(struct metrics *metrics, struct http_request **request_p)
{
    const struct http_header type = {"Content-Type", "text/plain; version=0.0.4; charset=utf-8"};
    OWNED(buf_done) struct buf body = BUF_WITH_LIMIT(METRICS_TEXT_SIZE_MAX);
    struct err err;

    if (metrics_write(metrics, &body, &err) < 0)
        answer_plain(request_p, 500, err.text);
    else
        http_request_answer_buf(request_p, 200, &type, 1, &body);
}

bool metrics_pages_answer(const struct metrics_pages *pages, struct http_request **request_p)
{
    const char *target = http_request_target(*request_p);
    const char *method = http_request_method(*request_p);
    size_t size = strcspn(target, "?");
    bool is_metrics = size == 8 && strncmp(target, "/metrics", size) == 0;
    bool is_health = size == 8 && strncmp(target, "/healthz", size) == 0;
    bool is_ready = size == 7 && strncmp(target, "/readyz", size) == 0;
    const char *reason;

    if (!is_metrics && !is_health && !is_ready)
        return false;
    if (strcmp(method, "GET") != 0 && strcmp(method, "HEAD") != 0) {
        answer_plain(request_p, 405, "only GET is allowed here");
    } else if (is_metrics) {
        answer_metrics(pages->metrics, request_p);
    } else {
        reason = is_ready && pages->not_ready != NULL ? pages->not_ready(pages->opaque) : NULL;
        answer_plain(request_p, reason == NULL ? 200 : 503, reason == NULL ? "ok" : reason);
    }
    return true;
}

static void serve_pages(struct http_request *request, void *opaque)
{
    if (!metrics_pages_answer(opaque, &request))
        answer_plain(&request, 404, "there is /metrics, /healthz and /readyz");
}

int metrics_serve(struct loop *loop, const char *address, uint16_t port,
                  const struct metrics_pages *pages, struct http_server **ret_server,
                  struct err *err)
{
    const struct http_server_options options = {
        .address = address, .port = port, .connection_count_max = 100};

    return http_server_open(loop, &options, serve_pages, (void *)(uintptr_t)pages, ret_server, err);
}
