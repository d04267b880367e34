/* SPDX-License-Identifier: Apache-2.0 */

/*
 * /healthz: the loop turns. /readyz: the model is loaded and the owner knows of us. /metrics: what
 * the core and the engine count, in Prometheus' text form; all of it is counted elsewhere already,
 * so a page is a table of where to read.
 */

#include <string.h>

#include "base/http_server.h"
#include "workers/worker_int.h"

#define PAGE_SIZE_MAX (64u << 10)

struct page_row {
    const char *name, *type, *help;
    uint64_t value;
};

static void page_rows(struct buf *page, const struct page_row *rows, size_t row_count)
{
    for (size_t i = 0; i < row_count; i++)
        buf_printf(page, "# HELP headrace_%s %s\n# TYPE headrace_%s %s\nheadrace_%s %llu\n",
                   rows[i].name, rows[i].help, rows[i].name, rows[i].type, rows[i].name,
                   (unsigned long long)rows[i].value);
}

static void page_metrics(struct worker *worker, struct buf *page)
{
    const struct worker_stats core = worker_core_stats(worker->core);
    const struct queue_producer_counts kafka = queue_producer_counts(worker->producer);
    const struct frame_stats *engine = &worker->engine_stats;
    const struct page_row rows[] = {
        {"worker_attempts_total", "counter", "attempts read for this boot", core.attempts},
        {"worker_skipped_total", "counter", "records for other boots or older owners",
         core.skipped},
        {"worker_unreadable_total", "counter", "records that could not be decoded",
         worker->unreadable_records},
        {"worker_revoked_total", "counter", "attempts that their owner ended", core.revoked},
        {"worker_succeeded_total", "counter", "attempts with an output", core.succeeded},
        {"worker_failed_total", "counter", "attempts that ended with an error", core.failed},
        {"worker_handed_back_total", "counter", "attempts that were not run", core.handed_back},
        {"worker_host_starts_total", "counter", "engine hosts started", core.host_starts},
        {"worker_slots", "gauge", "jobs that may run at once", worker->options.slot_count},
        {"worker_slots_busy", "gauge", "slots in use", core.slots_busy},
        {"worker_held", "gauge", "attempts held, unreported ones too", core.held},
        {"worker_granted_total", "counter", "credit given so far", core.granted},
        {"worker_unreported", "gauge", "records that Kafka has not taken yet", kafka.unreported},
        {"engine_queue", "gauge", "requests waiting in the engine", engine->queue_req_count},
        {"engine_running", "gauge", "requests running in the engine", engine->running_req_count},
        {"engine_steps_total", "counter", "batches or iterations", engine->step_count},
        {"engine_batched_total", "counter", "requests in those", engine->step_req_count},
        {"engine_tokens_total", "counter", "tokens computed", engine->step_token_count},
        {"engine_padding_total", "counter", "tokens computed only to fill a shape",
         engine->step_pad_count},
        {"engine_busy_microseconds_total", "counter", "time spent in steps", engine->step_busy_us},
        {"engine_oom_total", "counter", "requests that ran out of memory", engine->oom_count},
        {"engine_host_bytes", "gauge", "main memory of the engine", engine->host_size},
        {"engine_device_bytes", "gauge", "device memory of the engine", engine->dev_size},
    };

    page_rows(page, rows, COUNT_OF(rows));
}

static void page_on_request(struct http_request *request, void *opaque)
{
    static const struct http_header plain[] = {{"Content-Type", "text/plain; version=0.0.4"}};
    const char *target = http_request_target(request);
    struct worker *worker = opaque;
    const struct worker_stats core = worker_core_stats(worker->core);
    bool ready = core.host_ready && core.said_hello && !core.draining;
    OWNED(buf_done) struct buf page = BUF_WITH_LIMIT(PAGE_SIZE_MAX);
    int status = 200;

    if (strcmp(target, "/metrics") == 0) {
        page_metrics(worker, &page);
    } else if (strcmp(target, "/healthz") == 0) {
        buf_append_text(&page, "ok\n");
    } else if (strcmp(target, "/readyz") == 0) {
        status = ready ? 200 : 503;
        buf_append_text(&page, ready              ? "ready\n"
                               : core.draining    ? "draining\n"
                               : !core.host_ready ? "the model is not loaded\n"
                                                  : "Kafka has not answered yet\n");
    } else {
        status = 404;
        buf_append_text(&page, "there are /metrics, /healthz and /readyz\n");
    }
    http_request_answer_buf(&request, status, plain, COUNT_OF(plain), &page);
}

int worker_pages_open(struct worker *worker, struct err *err)
{
    const struct http_server_options options = {.address = worker->settings.listen,
                                                .port = (uint16_t)worker->settings.port,
                                                .connection_count_max = 64};

    return http_server_open(worker->loop, &options, page_on_request, worker, &worker->pages, err);
}
