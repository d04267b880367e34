/* SPDX-License-Identifier: Apache-2.0 */

/*
 * /metrics, /healthz and /readyz of a worker. What the core and the engine count is copied into the
 * metrics once a second; only the histograms are fed as attempts end.
 */

#include "base/http_server.h"
#include "base/metrics.h"
#include "workers/worker_int.h"

#define PAGES_COUNT_MS 1000

enum worker_metric {
#define METRICS_ENUM(name) WORKER_METRIC_##name,
#include "base/metrics_rows.def"
#include "workers/worker_metrics.def"
#include "base/metrics_end.def"
    WORKER_METRIC_COUNT
};

static const struct metric_row worker_metric_rows[] = {
#define METRICS_ROWS
#include "base/metrics_rows.def"
#include "workers/worker_metrics.def"
#include "base/metrics_end.def"
};

struct worker_pages {
    struct worker *worker;
    struct metrics *metrics;
    struct metrics_pages answers;
    struct http_server *server;
    struct loop_timer *timer;
    struct metric *run_seconds[2]; /* success, error */
    uint64_t told[WORKER_METRIC_COUNT];
};

static void count(struct worker_pages *pages, enum worker_metric which, uint64_t value)
{
    struct metric *metric = metrics_of(pages->metrics, which);

    if (worker_metric_rows[which].type == METRIC_TYPE_COUNTER)
        metric_add(metric, (double)(value - pages->told[which]));
    else
        metric_set(metric, (double)value);
    pages->told[which] = value;
}

static void pages_on_second(void *opaque)
{
    struct worker_pages *pages = opaque;
    const struct worker *worker = pages->worker;
    const struct worker_stats core = worker_core_stats(worker->core);
    const struct frame_stats *engine = &worker->engine_stats;

    count(pages, WORKER_METRIC_worker_attempts_total, core.attempts);
    count(pages, WORKER_METRIC_worker_skipped_total, core.skipped);
    count(pages, WORKER_METRIC_worker_unreadable_total, worker->unreadable_records);
    count(pages, WORKER_METRIC_worker_revoked_total, core.revoked);
    count(pages, WORKER_METRIC_worker_succeeded_total, core.succeeded);
    count(pages, WORKER_METRIC_worker_failed_total, core.failed);
    count(pages, WORKER_METRIC_worker_handed_back_total, core.handed_back);
    count(pages, WORKER_METRIC_worker_host_starts_total, core.host_starts);
    count(pages, WORKER_METRIC_worker_granted_total, core.granted);
    count(pages, WORKER_METRIC_worker_pieces_total, worker->stream_counts.pieces);
    count(pages, WORKER_METRIC_worker_piece_bytes_total, worker->stream_counts.bytes);
    count(pages, WORKER_METRIC_worker_pieces_lost_total, worker->stream_counts.lost);
    count(pages, WORKER_METRIC_worker_slots, worker->options.slot_count);
    count(pages, WORKER_METRIC_worker_slots_busy, core.slots_busy);
    count(pages, WORKER_METRIC_worker_slots_allowed, core.slots_allowed);
    count(pages, WORKER_METRIC_worker_held, core.held);
    count(pages, WORKER_METRIC_worker_unreported, queue_producer_unreported(worker->producer));
    count(pages, WORKER_METRIC_engine_queue, engine->queue_req_count);
    count(pages, WORKER_METRIC_engine_running, engine->running_req_count);
    count(pages, WORKER_METRIC_engine_host_bytes, engine->host_size);
    count(pages, WORKER_METRIC_engine_device_bytes, engine->dev_size);
    count(pages, WORKER_METRIC_engine_steps, engine->step_count);
    count(pages, WORKER_METRIC_engine_batched, engine->step_req_count);
    count(pages, WORKER_METRIC_engine_tokens, engine->step_token_count);
    count(pages, WORKER_METRIC_engine_padding_tokens, engine->step_pad_count);
    metric_set(metrics_of(pages->metrics, WORKER_METRIC_engine_busy_seconds),
               (double)engine->step_busy_us / 1e6);
    count(pages, WORKER_METRIC_engine_oom, engine->oom_count);
}

void worker_pages_count_finished(struct worker *worker, const struct message_finished *finished)
{
    struct worker_pages *pages = worker->pages;

    if (finished->started_us == 0 || finished->error_class == ERROR_CLASS_HANDED_BACK)
        return;
    metric_observe(pages->run_seconds[finished->error_class != 0],
                   (double)(finished->finished_us - finished->started_us) / 1e6);
    if (finished->batch_count > 0)
        metric_observe(metrics_of(pages->metrics, WORKER_METRIC_worker_batch_jobs),
                       (double)finished->batch_count);
}

static const char *pages_not_ready(void *opaque)
{
    const struct worker *worker = opaque;
    const struct worker_stats core = worker_core_stats(worker->core);

    if (core.draining)
        return "draining";
    if (!core.host_ready)
        return "the model is not loaded";
    if (worker->standby)
        return "it is kept warm and takes no jobs";
    return core.said_hello ? NULL : "Kafka has not answered yet";
}

int worker_pages_open(struct worker *worker, struct err *err)
{
    const struct metrics_options options = {
        .prefix = "headrace_",
        .prefix_again = worker->settings.metrics_prefix[0] != '\0' ? worker->settings.metrics_prefix
                                                                   : NULL,
        .rows = worker_metric_rows,
        .row_count = COUNT_OF(worker_metric_rows),
    };
    struct worker_pages *pages = xcalloc(1, sizeof(*pages));
    int r;

    worker->pages = pages;
    pages->worker = worker;
    r = metrics_open(&options, &pages->metrics, err);
    if (r < 0)
        return r;
    pages->run_seconds[0] = metrics_series(pages->metrics, WORKER_METRIC_worker_run_seconds,
                                           (const char *const[]){"success"});
    pages->run_seconds[1] = metrics_series(pages->metrics, WORKER_METRIC_worker_run_seconds,
                                           (const char *const[]){"error"});
    pages->answers = (struct metrics_pages){pages->metrics, pages_not_ready, worker};
    pages->timer = loop_timer_new(worker->loop, pages_on_second, pages);
    loop_timer_start(pages->timer, PAGES_COUNT_MS, PAGES_COUNT_MS);
    return metrics_serve(worker->loop, worker->settings.listen, (uint16_t)worker->settings.port,
                         &pages->answers, &pages->server, err);
}

void worker_pages_close(struct worker *worker)
{
    struct worker_pages *pages = TAKE(worker->pages);

    if (pages == NULL)
        return;
    loop_timer_free(&pages->timer);
    http_server_close(&pages->server);
    metrics_close(&pages->metrics);
    mem_free(&pages);
}

uint16_t worker_pages_port(const struct worker *worker)
{
    return http_server_port(worker->pages->server);
}
