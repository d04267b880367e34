/* SPDX-License-Identifier: Apache-2.0 */

/*
 * headrace webhook: delivers final results to the addresses that their requests named.
 *
 * Reads `completed`, keeps a row for each delivery and each try, signs, POSTs, tries again on the
 * schedule of workers/webhook_plan.h. It never touches a slot: a dead receiver costs nobody a GPU.
 *
 * SIGTERM: leaves its group, finishes what is being sent (at most --drain-timeout), exits 0.
 */

#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/loop.h"
#include "base/settings.h"
#include "base/trace.h"
#include "brokers/model_names.h"
#include "schema/job_id.h"
#include "schema/message.h"
#include "workers/webhook_intake.h"

#define TRACE_FLUSH_MS 1000

int webhook_main(int argc, char **argv);

struct webhook_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
#include "workers/webhook_settings.def"
#include "base/settings_end.def"
};

static const struct setting setting_rows[] = {
#define SETTINGS_ROWS struct webhook_settings
#include "base/settings_rows.def"
#include "workers/webhook_settings.def"
#include "base/settings_end.def"
};

static const struct metric_row metric_rows[] = {
#define METRICS_ROWS
#include "base/metrics_rows.def"
#include "workers/webhook_metrics.def"
#include "base/metrics_end.def"
};

struct webhook {
    struct webhook_settings settings;
    struct loop *loop;
    struct metrics *metrics;
    struct tracer *tracer;
    struct model_names *names;
    struct metrics_pages pages;
    struct http_server *server; /* of the pages */
    struct pg *pg, *results_pg;
    struct blob_store *blobs;
    struct seal_key *key;
    struct webhook_secret_cache *secrets;
    struct webhook_sender *sender;
    struct webhook_intake *intake;
    struct loop_timer *drain_limit;
    bool draining, drained;
    int exit_code;
};

/* ---- what the parts tell ---- */

static void on_delivery_trouble(void *opaque, const struct webhook_delivery *delivery,
                                const struct err *err)
{
    char job[JOB_ID_TEXT_SIZE] = "";

    (void)opaque;
    if (delivery == NULL) {
        log_warn("delivery_trouble", LOG_ERR(err));
        return;
    }
    job_id_format(&delivery->key.job, job);
    log_warn("delivery_trouble", LOG_STR("job", job), LOG_STR("tenant", delivery->tenant),
             LOG_STR(delivery->trace[0] != '\0' ? "trace" : NULL, delivery->trace),
             LOG_STR("webhook", delivery->webhook_id), LOG_ERR(err));
}

/* One that arrived is no news; one that did not is. */
static void on_try(void *opaque, const struct webhook_delivery *delivery)
{
    static const char *const outcomes[] = {"delivered", "again", "given_up", "gone"};
    enum log_level level = delivery->outcome == WEBHOOK_DELIVERED ? LOG_LEVEL_DEBUG
                                                                  : LOG_LEVEL_INFO;
    char job[JOB_ID_TEXT_SIZE];

    (void)opaque;
    if (!log_enabled(level))
        return;
    job_id_format(&delivery->key.job, job);
    log_line(level, "try_ended", LOG_STR("job", job), LOG_STR("tenant", delivery->tenant),
             LOG_STR(delivery->trace[0] != '\0' ? "trace" : NULL, delivery->trace),
             LOG_STR("webhook", delivery->webhook_id), LOG_U64("try", delivery->try_count),
             LOG_STR("outcome", outcomes[delivery->outcome]),
             LOG_I64("http_status", delivery->http_status),
             LOG_DOUBLE("seconds", (double)delivery->took_us / 1e6),
             LOG_STR(delivery->error[0] != '\0' ? "error" : NULL, delivery->error));
}

static void on_circuit(void *opaque, const struct webhook_endpoint *endpoint)
{
    bool closed = webhook_endpoint_circuit(endpoint) == WEBHOOK_CIRCUIT_CLOSED;

    (void)opaque;
    log_info(closed ? "circuit_closed" : "circuit_open", LOG_STR("tenant", endpoint->tenant),
             LOG_STR("endpoint", endpoint->url), LOG_U64("failures", endpoint->valve.failure_count),
             LOG_I64("http_status", endpoint->last_status),
             LOG_STR(endpoint->last_error[0] != '\0' ? "error" : NULL, endpoint->last_error));
}

static void on_intake_trouble(void *opaque, const char *what, const struct err *err)
{
    (void)opaque;
    log_warn("intake_trouble", LOG_STR("step", what), LOG_ERR(err));
}

static void on_fatal(void *opaque, const struct err *err)
{
    struct webhook *webhook = opaque;

    log_error("fatal", LOG_ERR(err));
    webhook->exit_code = 3;
    loop_stop(webhook->loop);
}

static void on_room(void *opaque, bool soon)
{
    struct webhook *webhook = opaque;

    if (webhook->intake != NULL && !webhook->draining)
        webhook_intake_room(webhook->intake, soon);
}

static void on_config(void *opaque, const char *payload)
{
    struct webhook *webhook = opaque;

    (void)payload;
    webhook_secret_cache_clear(webhook->secrets);
    model_names_read(webhook->names);
}

static const char *not_ready(void *opaque)
{
    const struct webhook *webhook = opaque;

    if (webhook->draining)
        return "draining";
    if (webhook->pg == NULL || !pg_connected(webhook->pg))
        return "Postgres cannot be reached";
    return NULL;
}

/* ---- life ---- */

static void on_spans_flushed(void *opaque)
{
    struct webhook *webhook = opaque;

    loop_stop(webhook->loop);
}

static void on_drained(void *opaque)
{
    struct webhook *webhook = opaque;

    if (webhook->drained) /* the limit and the sender may both say so */
        return;
    webhook->drained = true;
    log_info("drained", LOG_U64("left", webhook_sender_count(webhook->sender)));
    loop_timer_stop(webhook->drain_limit);
    tracer_flush(webhook->tracer, TRACE_FLUSH_MS, on_spans_flushed, webhook);
}

static void on_left(void *opaque)
{
    struct webhook *webhook = opaque;

    webhook_sender_drain(webhook->sender, on_drained, webhook);
}

static void on_sigterm(void *opaque)
{
    struct webhook *webhook = opaque;

    if (webhook->draining) {
        loop_stop(webhook->loop);
        return;
    }
    log_info("draining", LOG_U64("in_memory", webhook_sender_count(webhook->sender)));
    webhook->draining = true;
    loop_end_within(webhook->settings.drain_timeout_ms + LOOP_END_EXTRA_MS, 3);
    loop_timer_start(webhook->drain_limit, webhook->settings.drain_timeout_ms, 0);
    webhook_intake_leave(webhook->intake, on_left, webhook);
}

static void on_sighup(void *opaque)
{
    struct err err;

    (void)opaque;
    if (log_reopen(&err) < 0)
        log_warn("log_not_reopened", LOG_ERR(&err));
}

static int stores_open(struct webhook *webhook, struct err *err)
{
    const struct webhook_settings *settings = &webhook->settings;
    const struct pg_options pg = {.url = settings->postgres, .application = "headrace webhook"};
    const struct pg_options results_pg = {.url = settings->postgres,
                                          .application = "headrace webhook results",
                                          .settings = "-c synchronous_commit=off"};
    int r;

    r = pg_open(webhook->loop, &pg, &webhook->pg, err);
    if (r == 0)
        r = pg_open(webhook->loop, &results_pg, &webhook->results_pg, err);
    if (r == 0 && *settings->blobs != '\0')
        r = blob_store_open(webhook->loop, settings->blobs, &webhook->blobs, err);
    if (r == 0 && *settings->seal_key_file != '\0')
        r = seal_key_open(settings->seal_key_file, &webhook->key, err);
    if (r < 0)
        return r;
    webhook->secrets = webhook_secret_cache_new(webhook->pg, webhook->key);
    webhook->names = model_names_new(webhook->pg);
    pg_listen(webhook->pg, "headrace_config", on_config, webhook);
    return 0;
}

static int sender_open(struct webhook *webhook, struct err *err)
{
    const struct webhook_settings *settings = &webhook->settings;
    struct webhook_sender_options options = {
        .results_pg = webhook->results_pg,
        .secrets = webhook->secrets,
        .poster = {.blobs = webhook->blobs,
                   .metrics = webhook->metrics,
                   .tracer = webhook->tracer,
                   .names = webhook->names,
                   .connections_max = (uint32_t)settings->connections,
                   .timeout_ms = (uint32_t)settings->timeout_ms},
        .metrics = webhook->metrics,
        .in_memory_max = (uint32_t)settings->in_memory,
        .per_host_max = (uint32_t)settings->connections_per_host,
        .per_endpoint_max = (uint32_t)settings->connections_per_endpoint,
        .failures_max = (uint32_t)settings->circuit_failures,
        .time_scale = (double)settings->schedule_percent / 100,
        .on_trouble = on_delivery_trouble,
        .on_try = on_try,
        .on_circuit = on_circuit,
        .on_room = on_room,
        .opaque = webhook,
    };
    int r;

    r = address_allow_parse(settings->allow, &options.poster.allow, err);
    if (r < 0)
        return err_wrap(err, "--allow");
    return webhook_sender_new(webhook->loop, &options, &webhook->sender, err);
}

static int intake_open(struct webhook *webhook, struct err *err)
{
    const struct webhook_settings *settings = &webhook->settings;
    const struct webhook_intake_options options = {
        .queue = {.bootstrap = settings->kafka,
                  .client_id = "headrace-webhook",
                  .properties = *settings->kafka_properties != '\0' ? settings->kafka_properties
                                                                    : NULL},
        .instance = *settings->instance != '\0' ? settings->instance : NULL,
        .pg = webhook->pg,
        .sender = webhook->sender,
        .metrics = webhook->metrics,
        .claim_ms = settings->claim_ms,
        .on_trouble = on_intake_trouble,
        .on_fatal = on_fatal,
        .opaque = webhook,
    };

    return webhook_intake_open(webhook->loop, &options, &webhook->intake, err);
}

static int spans_open(struct webhook *webhook, struct err *err)
{
    const struct tracer_options options = {
        .endpoint = webhook->settings.otlp_endpoint,
        .service_name = "headrace-webhook",
        .service_version = HEADRACE_VERSION,
        .service_instance = webhook->settings.instance,
    };

    return tracer_open(webhook->loop, &options, &webhook->tracer, err);
}

static int pages_open(struct webhook *webhook, struct err *err)
{
    const struct metrics_options metrics = {
        .prefix = "headrace_",
        .prefix_again = *webhook->settings.metrics_prefix != '\0' ? webhook->settings.metrics_prefix
                                                                  : NULL,
        .rows = metric_rows,
        .row_count = COUNT_OF(metric_rows),
    };
    int r = metrics_open(&metrics, &webhook->metrics, err);

    if (r < 0)
        return r;
    webhook->pages = (struct metrics_pages){
        .metrics = webhook->metrics, .not_ready = not_ready, .opaque = webhook};
    return metrics_serve(webhook->loop, webhook->settings.listen, (uint16_t)webhook->settings.port,
                         &webhook->pages, &webhook->server, err);
}

/* The order matters: pages first, so that a start that hangs can be looked at; readers last. */
static int parts_open(struct webhook *webhook, struct err *err)
{
    int r;

    r = loop_open(&webhook->loop, err);
    if (r == 0)
        r = loop_on_signals(webhook->loop, on_sigterm, on_sighup, webhook, err);
    if (r == 0)
        r = pages_open(webhook, err);
    if (r == 0)
        r = spans_open(webhook, err);
    if (r == 0)
        r = stores_open(webhook, err);
    if (r == 0)
        r = sender_open(webhook, err);
    if (r == 0)
        r = intake_open(webhook, err);
    if (r == 0)
        webhook->drain_limit = loop_timer_new(webhook->loop, on_drained, webhook);
    return r;
}

/* In reverse; the ledger is closed first, so that nothing answers to what is already gone. */
static void parts_close(struct webhook *webhook)
{
    if (webhook->loop == NULL)
        return;
    pg_close(&webhook->pg);
    pg_close(&webhook->results_pg);
    webhook_intake_close(&webhook->intake);
    webhook_sender_free(&webhook->sender);
    webhook_secret_cache_free(&webhook->secrets);
    model_names_free(&webhook->names);
    seal_key_close(&webhook->key);
    blob_store_close(&webhook->blobs);
    http_server_close(&webhook->server);
    tracer_close(&webhook->tracer);
    metrics_close(&webhook->metrics);
    loop_timer_free(&webhook->drain_limit);
    loop_close(&webhook->loop);
}

int webhook_main(int argc, char **argv)
{
    static const struct settings_program program = {
        .command = "webhook",
        .wire_version = MESSAGE_WIRE_VERSION,
        .purpose = "Delivers final results to webhooks: signed, tried again, written down.",
        .rows = setting_rows,
        .row_count = COUNT_OF(setting_rows),
    };
    struct log_options log = {.program = "webhook"};
    struct webhook webhook = {.exit_code = 0};
    enum settings_outcome outcome;
    struct err err;

    if (settings_parse(&program, argc, argv, &webhook.settings, NULL, &outcome, &err) < 0) {
        (void)fprintf(stderr, "headrace webhook: %s\n", err.text);
        return 1;
    }
    if (outcome == SETTINGS_QUIT) {
        settings_free(&program, &webhook.settings);
        return 0;
    }
    log.path = *webhook.settings.log_file != '\0' ? webhook.settings.log_file : NULL;
    if (log_level_parse(webhook.settings.log_level, &log.level, &err) < 0 ||
        log_open(&log, &err) < 0) {
        (void)fprintf(stderr, "headrace webhook: %s\n", err.text);
        webhook.exit_code = 1;
    } else if (parts_open(&webhook, &err) < 0) {
        log_error("start_failed", LOG_ERR(&err));
        webhook.exit_code = err.code == ERR_USAGE ? 1 : 2;
    } else {
        log_info("started", LOG_U64("wire", MESSAGE_WIRE_VERSION),
                 LOG_U64("port", http_server_port(webhook.server)));
        loop_run(webhook.loop);
    }
    parts_close(&webhook);
    log_close();
    settings_free(&program, &webhook.settings);
    return webhook.exit_code;
}
