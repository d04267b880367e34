/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The collector of blobs: the driver of blob_care.h.
 *
 *   pass: list the days -> ask Postgres which are over -> each day, page by page:
 *         list -> ask for the rows of its jobs -> remove what has outlived them -> next page
 *
 * A pass begins every --maintenance and does one page a tick, so it costs the loop, the store and
 * Postgres little however much there is. Its only state is where it stands: a crash begins anew,
 * two brokers at once do the same work twice and remove what is not there any more. Failures are
 * logged and counted, end the pass, and the next one tries again. Nothing is removed on a guess:
 * without Postgres' answer there is no verdict.
 */

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/loop.h"
#include "base/metrics.h"
#include "brokers/blob_care.h"
#include "brokers/broker.h"
#include "brokers/pg.h"
#include "schema/job_id.h"

#define PAGE_COUNT 500
#define PAGE_PAUSE_MS 100
#define DAYS_MAX 400
#define ASK_TIMEOUT_MS 10000

struct broker_blobs {
    struct broker *broker;
    struct blob_store *store;
    struct loop_timer *timer, *page_timer;
    struct blob_list days, page;
    bool *over; /* of each day */
    size_t day;
    char after[BLOB_LIST_LAST_SIZE];
    bool under_way;
    uint32_t removing; /* answers that are due */
    uint64_t count, size, removed_count, removed_size;
};

PG_STATEMENT(blob_days, "SELECT to_char(day, 'YYYY-MM-DD') FROM "
                        "blob_days_over($1::text[]::date[], $2 * interval '1 second')");
PG_STATEMENT(blob_rows, "SELECT id, state, age_seconds, delivery_open FROM blob_facts($1)");

/* ---- ends of a pass ---- */

static void pass_end(struct broker_blobs *blobs)
{
    struct metrics *metrics = blobs->broker->metrics;

    blobs->under_way = false;
    blob_list_done(&blobs->days);
    blob_list_done(&blobs->page);
    mem_free(&blobs->over);
    metric_set(metrics_of(metrics, BROKER_METRIC_broker_blobs), (double)blobs->count);
    metric_set(metrics_of(metrics, BROKER_METRIC_broker_blob_bytes), (double)blobs->size);
    log_info("blobs_looked_through", LOG_U64("blobs", blobs->count), LOG_U64("bytes", blobs->size),
             LOG_U64("removed", blobs->removed_count),
             LOG_U64("removed_bytes", blobs->removed_size));
}

static void blobs_failed(struct broker_blobs *blobs, const struct err *err)
{
    log_warn("blobs_not_looked_through", LOG_ERR(err));
    metric_add(metrics_of(blobs->broker->metrics, BROKER_METRIC_broker_blob_failures_total), 1);
}

static void pass_fail(struct broker_blobs *blobs, const struct err *err)
{
    blobs_failed(blobs, err);
    blobs->under_way = false;
    blob_list_done(&blobs->days);
    blob_list_done(&blobs->page);
    mem_free(&blobs->over);
}

/* ---- a page ---- */

static void page_list(void *opaque);

static void page_end(struct broker_blobs *blobs)
{
    bool more = blobs->page.more && strcmp(blobs->page.last, blobs->after) > 0;

    mem_copy_text(blobs->after, blobs->page.last);
    if (!more) {
        blobs->day++;
        blobs->after[0] = '\0';
    }
    if (blobs->day < blobs->days.count)
        loop_timer_start(blobs->page_timer, PAGE_PAUSE_MS, 0);
    else
        pass_end(blobs);
}

static void on_removed(void *opaque, const struct err *err)
{
    struct broker_blobs *blobs = opaque;

    if (err->code != ERR_OK)
        blobs_failed(blobs, err);
    if (--blobs->removing == 0)
        page_end(blobs);
}

static void page_remove(struct broker_blobs *blobs, const struct blob_entry *entry)
{
    struct metrics *metrics = blobs->broker->metrics;
    struct err err;

    if (blob_remove(blobs->store, entry->key, on_removed, blobs, &err) < 0) {
        blobs_failed(blobs, &err);
        return;
    }
    blobs->removing++;
    blobs->count--;
    blobs->size -= entry->size;
    blobs->removed_count++;
    blobs->removed_size += entry->size;
    metric_add(metrics_of(metrics, BROKER_METRIC_broker_blobs_removed_total), 1);
    metric_add(metrics_of(metrics, BROKER_METRIC_broker_blob_bytes_removed_total),
               (double)entry->size);
}

static struct blob_care_facts facts_of(const struct pg_answer *answer, const struct wire_id *job,
                                       bool day_over)
{
    for (size_t row = 0; row < pg_row_count(answer, 0); row++) {
        struct wire_id id = pg_id(answer, 0, row, 0);

        if (job_id_equal(&id, job))
            return (struct blob_care_facts){
                .day_over = day_over,
                .has_row = true,
                .state = (enum job_state)pg_i64(answer, 0, row, 1),
                .age_s = pg_double(answer, 0, row, 2),
                .delivery_open = pg_bool(answer, 0, row, 3),
            };
    }
    return (struct blob_care_facts){.day_over = day_over};
}

static void on_rows(void *opaque, const struct pg_answer *answer)
{
    struct broker_blobs *blobs = opaque;
    const struct broker_settings *settings = &blobs->broker->settings;
    const struct blob_care_rules rules = {.input_keep_s = (double)settings->input_keep_ms / 1000,
                                          .output_keep_s = (double)settings->result_keep_ms / 1000,
                                          .fresh_s = (double)settings->orphan_keep_ms / 1000};
    uint64_t now_us = clock_wall_us();

    if (answer->err.code != ERR_OK) {
        pass_fail(blobs, &answer->err);
        return;
    }
    blobs->removing = 1; /* the page's own, so that a quick answer does not end it */
    for (size_t i = 0; i < blobs->page.count; i++) {
        const struct blob_entry *entry = &blobs->page.entries[i];
        struct blob_care_facts facts;
        struct wire_id job;
        bool is_input;

        blobs->count++;
        blobs->size += entry->size;
        if (!blob_care_read_key(entry->key, &job, &is_input))
            continue;
        facts = facts_of(answer, &job, blobs->over[blobs->day]);
        if (blob_care_is_over(&rules, &facts, is_input, entry->modified_us, now_us))
            page_remove(blobs, entry);
    }
    if (--blobs->removing == 0)
        page_end(blobs);
}

static int page_ask(struct broker_blobs *blobs, struct err *err)
{
    OWNED(pg_batch_free) struct pg_batch *batch = pg_batch_new();
    OWNED(mem_free) struct wire_id *ids = xcalloc(blobs->page.count + 1, sizeof(*ids));
    size_t count = 0;

    for (size_t i = 0; i < blobs->page.count; i++) {
        bool is_input;

        if (blob_care_read_key(blobs->page.entries[i].key, &ids[count], &is_input) &&
            (count == 0 || !job_id_equal(&ids[count], &ids[count - 1])))
            count++;
    }
    pg_add(batch, &blob_rows);
    pg_bind_array(batch, PG_ID, count);
    for (size_t i = 0; i < count; i++)
        pg_bind_id(batch, &ids[i]);
    return pg_send(blobs->broker->pg, &batch, ASK_TIMEOUT_MS, on_rows, blobs, err);
}

static void on_page(void *opaque, struct blob_list *list, const struct err *err)
{
    struct broker_blobs *blobs = opaque;
    struct err mine = *err;

    blob_list_done(&blobs->page);
    blobs->page = *list;
    *list = (struct blob_list){0};
    if (mine.code == ERR_OK)
        mine.code = page_ask(blobs, &mine);
    if (mine.code != ERR_OK)
        pass_fail(blobs, &mine);
}

static void page_list(void *opaque)
{
    struct broker_blobs *blobs = opaque;
    char prefix[BLOB_KEY_SIZE];
    struct blob_listing listing = {
        .prefix = prefix, .after = blobs->after, .count_max = PAGE_COUNT};
    struct err err;

    (void)snprintf(prefix, sizeof(prefix), "%.100s/", blobs->days.entries[blobs->day].key);
    if (blob_list(blobs->store, &listing, on_page, blobs, &err) < 0)
        pass_fail(blobs, &err);
}

/* ---- the days ---- */

static void on_days_over(void *opaque, const struct pg_answer *answer)
{
    struct broker_blobs *blobs = opaque;

    if (answer->err.code != ERR_OK) {
        pass_fail(blobs, &answer->err);
        return;
    }
    blobs->over = xcalloc(blobs->days.count + 1, sizeof(*blobs->over));
    for (size_t row = 0; row < pg_row_count(answer, 0); row++) {
        for (size_t i = 0; i < blobs->days.count; i++)
            blobs->over[i] |= strcmp(blobs->days.entries[i].key + strlen("jobs/"),
                                     pg_c(answer, 0, row, 0)) == 0;
    }
    if (blobs->days.count == 0)
        pass_end(blobs);
    else
        page_list(blobs);
}

static bool is_day(const char *text)
{
    static const char form[] = "0000-00-00";

    for (size_t i = 0; i < sizeof(form) - 1; i++) {
        if (form[i] == '0' ? text[i] < '0' || text[i] > '9' : text[i] != form[i])
            return false;
    }
    return text[sizeof(form) - 1] == '\0';
}

static void on_days(void *opaque, struct blob_list *list, const struct err *err)
{
    struct broker_blobs *blobs = opaque;
    OWNED(pg_batch_free) struct pg_batch *batch = NULL;
    struct err mine = *err;

    if (mine.code != ERR_OK) {
        pass_fail(blobs, &mine);
        return;
    }
    for (size_t i = 0; i < list->count; i++) {
        if (is_day(list->entries[i].key + strlen("jobs/")))
            blob_list_add(&blobs->days, list->entries[i].key, 0, 0);
    }
    batch = pg_batch_new();
    pg_add(batch, &blob_days);
    pg_bind_array(batch, PG_TEXT, blobs->days.count);
    for (size_t i = 0; i < blobs->days.count; i++)
        pg_bind_c(batch, blobs->days.entries[i].key + strlen("jobs/"));
    pg_bind_double(batch, (double)blobs->broker->settings.retention_ms / 1000);
    if (pg_send(blobs->broker->pg, &batch, ASK_TIMEOUT_MS, on_days_over, blobs, &mine) < 0)
        pass_fail(blobs, &mine);
}

static void pass_begin(void *opaque)
{
    const struct blob_listing listing = {
        .prefix = "jobs/", .after = "", .count_max = DAYS_MAX, .folders = true};
    struct broker_blobs *blobs = opaque;
    struct err err;

    if (blobs->under_way)
        return;
    blobs->under_way = true;
    blobs->day = 0;
    blobs->after[0] = '\0';
    blobs->count = blobs->size = blobs->removed_count = blobs->removed_size = 0;
    if (blob_list(blobs->store, &listing, on_days, blobs, &err) < 0)
        pass_fail(blobs, &err);
}

/* ---- life ---- */

int broker_blobs_open(struct broker *broker, struct err *err)
{
    struct broker_blobs *blobs;
    int r;

    if (broker->settings.blobs[0] == '\0')
        return 0;
    blobs = xcalloc(1, sizeof(*blobs));
    broker->blobs = blobs;
    blobs->broker = broker;
    blobs->timer = loop_timer_new(broker->loop, pass_begin, blobs);
    blobs->page_timer = loop_timer_new(broker->loop, page_list, blobs);
    r = blob_store_open(broker->loop, broker->settings.blobs, &blobs->store, err);
    if (r < 0)
        return err_wrap(err, "blobs");
    loop_timer_start(blobs->timer, broker->settings.maintenance_ms,
                     broker->settings.maintenance_ms);
    return 0;
}

void broker_blobs_close(struct broker *broker)
{
    struct broker_blobs *blobs = TAKE(broker->blobs);

    if (blobs == NULL)
        return;
    loop_timer_free(&blobs->timer);
    loop_timer_free(&blobs->page_timer);
    blob_store_close(&blobs->store);
    blob_list_done(&blobs->days);
    blob_list_done(&blobs->page);
    free(blobs->over);
    free(blobs);
}
