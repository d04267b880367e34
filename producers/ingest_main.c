/* SPDX-License-Identifier: Apache-2.0 */

/*
 * headrace ingest: puts work in that is not one request at a time; ingest.h says how.
 *
 * Happy path: open the parts, claim bulk jobs as they come (a notification, and each second), work
 * on them until they are over.
 * Failures: servers that are away do not stop it from starting; /readyz says what it waits for. Two
 * of us share the bulk jobs; killed, another one goes on when the lease has lapsed. Exit codes: 0
 * drained, 1 wrong settings, 2 something that it needs cannot be had, 3 it could not drain in time.
 * Shutdown: SIGTERM gives the bulk jobs back, waits for Kafka's reports up to the setting `drain`.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/http_client.h"
#include "base/http_server.h"
#include "base/log.h"
#include "base/rng.h"
#include "base/settings.h"
#include "producers/ingest.h"
#include "producers/ingest_topics.h"
#include "schema/message.h"
#include "schema/topics.h"

#define TICK_MS 1000
#define DRAIN_STEP_MS 20
#define NOTIFY_CHANNEL "headrace_bulk"

enum { EXIT_DRAINED, EXIT_USAGE, EXIT_DEPENDENCY, EXIT_FAULT };

int ingest_main(int argc, char **argv);

static const struct setting ingest_rows[] = {
#define SETTINGS_ROWS struct ingest_settings
#include "base/settings_rows.def"
#include "producers/ingest_settings.def"
#include "base/settings_end.def"
};

static const struct metric_row ingest_metric_rows[] = {
#define METRICS_ROWS
#include "base/metrics_rows.def"
#include "producers/ingest_metrics.def"
#include "base/metrics_end.def"
};

static const struct settings_program ingest_program = {
    .command = "ingest",
    .wire_version = MESSAGE_WIRE_VERSION,
    .purpose =
        "Works on bulk jobs: validates their files, makes each line a job, and writes what "
        "became of them. Makes jobs of the records of users' Kafka topics, and sends results "
        "to theirs.",
    .rows = ingest_rows,
    .row_count = COUNT_OF(ingest_rows),
};

/* ---- time ---- */

static void on_tick(void *opaque)
{
    ingest_tick(opaque);
}

static void on_news(void *opaque, const char *payload)
{
    (void)payload;
    ingest_tick(opaque);
    ingest_sweep_now(opaque);
}

static const char *not_ready(void *opaque)
{
    const struct ingest *ingest = opaque;

    if (ingest->draining)
        return "draining";
    return pg_connected(ingest->pg) ? NULL : "Postgres cannot be reached";
}

/* ---- the end ---- */

static void on_drain_step(void *opaque)
{
    struct ingest *ingest = opaque;
    bool quiet = ingest->released && queue_producer_unreported(ingest->producer) == 0 &&
                 topics_busy(ingest->topics) == 0;

    if (quiet || loop_now_ms(ingest->loop) >= ingest->drain_by_ms)
        loop_stop(ingest->loop);
}

static void on_signal(void *opaque)
{
    struct ingest *ingest = opaque;

    if (ingest->draining) {
        loop_stop(ingest->loop);
        return;
    }
    ingest->draining = true;
    ingest->drain_by_ms = loop_now_ms(ingest->loop) + ingest->settings.drain_ms;
    loop_end_within(ingest->settings.drain_ms + LOOP_END_EXTRA_MS, EXIT_FAULT);
    log_info("draining", LOG_U64("bulk_jobs", ingest->bulk_count));
    ingest_release(ingest);
    topics_leave(ingest->topics);
    loop_timer_start(ingest->drain_step, 0, DRAIN_STEP_MS);
}

static void on_reload(void *opaque)
{
    struct err err;

    (void)opaque;
    if (log_reopen(&err) < 0)
        log_warn("log_not_reopened", LOG_ERR(&err));
}

/* ---- life ---- */

static int open_pages(struct ingest *ingest, struct err *err)
{
    const struct ingest_settings *settings = &ingest->settings;
    const struct metrics_options options = {
        .prefix = "headrace_",
        .prefix_again = settings->metrics_prefix[0] != '\0' ? settings->metrics_prefix : NULL,
        .rows = ingest_metric_rows,
        .row_count = COUNT_OF(ingest_metric_rows),
    };
    int r = metrics_open(&options, &ingest->metrics, err);

    if (r < 0)
        return r;
    ingest->pages = (struct metrics_pages){ingest->metrics, not_ready, ingest};
    return metrics_serve(ingest->loop, settings->listen, (uint16_t)settings->port, &ingest->pages,
                         &ingest->server, err);
}

static bool check_address(const struct sockaddr *address, socklen_t size, void *opaque)
{
    const struct ingest *ingest = opaque;

    (void)size;
    return address_allowed(&ingest->url_allow, address);
}

static int open_http(struct ingest *ingest, struct err *err)
{
    const struct http_client_options options = {.check_address = check_address,
                                                .check_opaque = ingest};
    int r = address_allow_parse(ingest->settings.url_allow, &ingest->url_allow, err);

    if (r < 0)
        return err_wrap(err, "url-allow");
    return http_client_open(ingest->loop, &options, &ingest->http, err);
}

static int open_servers(struct ingest *ingest, struct err *err)
{
    /* As the broker's session (store_postgres.c): a plan that is right for ten rows of a day that
     * has just begun reads the whole of it for each chunk an hour later. */
    const struct pg_options pg = {
        .url = ingest->settings.postgres,
        .application = "headrace ingest",
        .settings = "-c enable_seqscan=off -c enable_hashjoin=off -c enable_mergejoin=off "
                    "-c jit=off -c plan_cache_mode=force_generic_plan"};
    const struct queue_producer_options producer = {
        .queue = {.bootstrap = ingest->settings.kafka,
                  .client_id = ingest->boot,
                  .properties = ingest->settings.kafka_properties}};
    int r = pg_open(ingest->loop, &pg, &ingest->pg, err);

    if (r == 0)
        r = queue_producer_open(ingest->loop, &producer, &ingest->producer, err);
    if (r == 0)
        r = blob_store_open(ingest->loop, ingest->settings.blobs, &ingest->blobs, err);
    if (r == 0)
        r = open_http(ingest, err);
    if (r < 0)
        return r;
    ingest->intake = queue_producer_topic(ingest->producer, topic_name(TOPIC_INTAKE));
    pg_listen(ingest->pg, NOTIFY_CHANNEL, on_news, ingest);
    return 0;
}

static int ingest_open(struct ingest *ingest, struct err *err)
{
    uint64_t boot;
    int r = loop_open(&ingest->loop, err);

    LIST_INIT(&ingest->bulks);
    rng_secret_bytes(&boot, sizeof(boot));
    (void)snprintf(ingest->boot, sizeof(ingest->boot), "in-%016llx", (unsigned long long)boot);
    ingest->reader = bulk_reader_new();
    if (r == 0)
        r = open_pages(ingest, err);
    if (r == 0)
        r = open_servers(ingest, err);
    if (r == 0)
        r = loop_on_signals(ingest->loop, on_signal, on_reload, ingest, err);
    if (r < 0)
        return r;
    ingest->tick = loop_timer_new(ingest->loop, on_tick, ingest);
    ingest->drain_step = loop_timer_new(ingest->loop, on_drain_step, ingest);
    ingest_sweep_open(ingest);
    r = topics_open(ingest, &ingest->topics, err);
    if (r < 0)
        return r;
    loop_timer_start(ingest->tick, 0, TICK_MS);
    return 0;
}

static void ingest_close(struct ingest *ingest)
{
    loop_timer_free(&ingest->tick);
    loop_timer_free(&ingest->drain_step);
    http_server_close(&ingest->server);
    queue_producer_close(&ingest->producer);
    pg_close(&ingest->pg);
    ingest_sweep_close(ingest);
    http_client_close(&ingest->http);
    ingest_bulks_close(ingest);
    blob_store_close(&ingest->blobs);
    topics_close(&ingest->topics); /* whatever could answer it is gone */
    metrics_close(&ingest->metrics);
    bulk_reader_free(&ingest->reader);
    if (ingest->loop != NULL)
        loop_close(&ingest->loop);
}

static int open_log(const struct ingest *ingest, struct err *err)
{
    struct log_options options = {.program = "ingest"};
    int r = log_level_parse(ingest->settings.log_level, &options.level, err);

    if (ingest->settings.log_file[0] != '\0')
        options.path = ingest->settings.log_file;
    return r < 0 ? r : log_open(&options, err);
}

static int ingest_run(struct ingest *ingest)
{
    struct err err;
    int code = EXIT_DRAINED;

    if (open_log(ingest, &err) < 0 || ingest_open(ingest, &err) < 0) {
        log_error("not_started", LOG_ERR(&err));
        code = err_class(err.code) == ERR_CLASS_REJECT ? EXIT_USAGE : EXIT_DEPENDENCY;
    } else {
        log_info("started", LOG_U64("wire", MESSAGE_WIRE_VERSION), LOG_STR("boot", ingest->boot),
                 LOG_U64("port", http_server_port(ingest->server)));
        loop_run(ingest->loop);
        log_info("drained", LOG_BOOL("asked", ingest->draining));
    }
    ingest_close(ingest);
    log_close();
    return code;
}

int ingest_main(int argc, char **argv)
{
    struct ingest *ingest = xcalloc(1, sizeof(*ingest));
    enum settings_outcome outcome;
    struct err err;
    int code = EXIT_DRAINED;

    if (settings_parse(&ingest_program, argc, argv, &ingest->settings, NULL, &outcome, &err) < 0) {
        (void)fprintf(stderr, "headrace ingest: %s\n", err.text);
        free(ingest);
        return EXIT_USAGE;
    }
    if (outcome == SETTINGS_RUN)
        code = ingest_run(ingest);
    settings_free(&ingest_program, &ingest->settings);
    free(ingest);
    return code;
}
