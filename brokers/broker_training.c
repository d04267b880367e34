/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The collector of checkpoint files: those that no checkpoint has named for --training-keep.
 *
 *   each --maintenance: mark a batch (training_files_drop() of the migrations; from then on nothing
 *   may name them) -> remove their blobs -> remove the marked rows -> the next batch
 *
 * Whoever stores the same content meanwhile does so under a key of its own, so a removal harms
 * nobody, however late it comes. Crash at any point: the marks lapse after ten minutes, and the
 * same blobs are removed again. Without Postgres' answer nothing is removed.
 *
 * Thread: the loop's.   Tests: tests/stack/test_training.py
 */

#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/loop.h"
#include "base/metrics.h"
#include "brokers/blob.h"
#include "brokers/broker.h"
#include "brokers/pg.h"

#define BATCH_COUNT 500
#define BATCH_PAUSE_MS 100
#define ASK_TIMEOUT_MS 60000

PG_STATEMENT(training_drop, "SELECT blob, project_id, digest, number, size_bytes FROM "
                            "training_files_drop($1 * interval '1 second', $2)");
PG_STATEMENT(training_dropped, "SELECT training_files_dropped($1, $2, $3)");

struct dropped {
    struct broker_training *training;
    char *project;
    uint8_t digest[BLOB_DIGEST_SIZE];
    int64_t number;
    uint64_t size;
    bool gone;
};

struct broker_training {
    struct broker *broker;
    struct blob_store *store;
    struct loop_timer *timer, *batch_timer;
    struct dropped *files;
    size_t count;
    uint32_t removing; /* answers that are due */
    bool under_way;
    uint64_t removed_count, removed_size;
};

static void batch_free(struct broker_training *training)
{
    for (size_t i = 0; i < training->count; i++)
        free(training->files[i].project);
    mem_free(&training->files);
    training->count = 0;
}

static void pass_end(struct broker_training *training)
{
    training->under_way = false;
    if (training->removed_count > 0)
        log_info("checkpoint_files_removed", LOG_U64("files", training->removed_count),
                 LOG_U64("bytes", training->removed_size));
}

static void pass_fail(struct broker_training *training, const struct err *err)
{
    log_warn("checkpoint_files_not_removed", LOG_ERR(err));
    metric_add(metrics_of(training->broker->metrics, BROKER_METRIC_broker_blob_failures_total), 1);
    batch_free(training);
    pass_end(training);
}

/* ---- a batch ---- */

static void on_rows_gone(void *opaque, const struct pg_answer *answer)
{
    struct broker_training *training = opaque;
    bool more = training->count == BATCH_COUNT;

    if (answer->err.code != ERR_OK) {
        pass_fail(training, &answer->err);
        return;
    }
    batch_free(training);
    if (more)
        loop_timer_start(training->batch_timer, BATCH_PAUSE_MS, 0);
    else
        pass_end(training);
}

static void rows_remove(struct broker_training *training)
{
    OWNED(pg_batch_free) struct pg_batch *batch = pg_batch_new();
    struct metrics *metrics = training->broker->metrics;
    size_t gone = 0;
    struct err err;

    for (size_t i = 0; i < training->count; i++) {
        if (!training->files[i].gone)
            continue; /* its mark lapses */
        gone++;
        training->removed_count++;
        training->removed_size += training->files[i].size;
        metric_add(metrics_of(metrics, BROKER_METRIC_broker_training_files_removed_total), 1);
        metric_add(metrics_of(metrics, BROKER_METRIC_broker_training_bytes_removed_total),
                   (double)training->files[i].size);
    }
    pg_add(batch, &training_dropped);
    pg_bind_array(batch, PG_TEXT, gone);
    for (size_t i = 0; i < training->count; i++) {
        if (training->files[i].gone)
            pg_bind_c(batch, training->files[i].project);
    }
    pg_bind_array(batch, PG_BYTES, gone);
    for (size_t i = 0; i < training->count; i++) {
        if (training->files[i].gone)
            pg_bind_bytes(batch, (struct wire_bytes){training->files[i].digest, BLOB_DIGEST_SIZE});
    }
    pg_bind_array(batch, PG_I64, gone);
    for (size_t i = 0; i < training->count; i++) {
        if (training->files[i].gone)
            pg_bind_i64(batch, training->files[i].number);
    }
    if (pg_send(training->broker->pg, &batch, ASK_TIMEOUT_MS, on_rows_gone, training, &err) < 0)
        pass_fail(training, &err);
}

static void on_removed(void *opaque, const struct err *err)
{
    struct dropped *file = opaque;
    struct broker_training *training = file->training;

    file->gone = err->code == ERR_OK;
    if (err->code != ERR_OK)
        log_warn("checkpoint_file_not_removed", LOG_ERR(err));
    if (--training->removing == 0)
        rows_remove(training);
}

static void file_remove(struct broker_training *training, struct dropped *file, const char *key)
{
    struct err err;

    training->removing++;
    if (blob_remove(training->store, key, on_removed, file, &err) < 0)
        on_removed(file, &err);
}

static void on_marked(void *opaque, const struct pg_answer *answer)
{
    struct broker_training *training = opaque;

    if (answer->err.code != ERR_OK) {
        pass_fail(training, &answer->err);
        return;
    }
    training->count = pg_row_count(answer, 0);
    if (training->count == 0) {
        pass_end(training);
        return;
    }
    training->files = xcalloc(training->count, sizeof(*training->files));
    training->removing = 1; /* the batch's own, so that a quick answer does not end it */
    for (size_t i = 0; i < training->count; i++) {
        struct dropped *file = &training->files[i];
        struct wire_bytes digest = pg_bytes(answer, 0, i, 2);

        file->training = training;
        file->project = xstrdup(pg_c(answer, 0, i, 1));
        if (digest.size == sizeof(file->digest))
            memcpy(file->digest, digest.bytes, digest.size);
        file->number = pg_i64(answer, 0, i, 3);
        file->size = pg_u64(answer, 0, i, 4);
        file_remove(training, file, pg_c(answer, 0, i, 0));
    }
    if (--training->removing == 0)
        rows_remove(training);
}

static void batch_begin(void *opaque)
{
    struct broker_training *training = opaque;
    OWNED(pg_batch_free) struct pg_batch *batch = pg_batch_new();
    struct err err;

    pg_add(batch, &training_drop);
    pg_bind_double(batch, (double)training->broker->settings.training_keep_ms / 1000);
    pg_bind_i32(batch, BATCH_COUNT);
    if (pg_send(training->broker->pg, &batch, ASK_TIMEOUT_MS, on_marked, training, &err) < 0)
        pass_fail(training, &err);
}

static void pass_begin(void *opaque)
{
    struct broker_training *training = opaque;

    if (training->under_way)
        return;
    training->under_way = true;
    training->removed_count = training->removed_size = 0;
    batch_begin(training);
}

/* ---- life ---- */

int broker_training_open(struct broker *broker, struct err *err)
{
    struct broker_training *training;
    int r;

    if (broker->settings.blobs[0] == '\0')
        return 0;
    training = xcalloc(1, sizeof(*training));
    broker->training = training;
    training->broker = broker;
    training->timer = loop_timer_new(broker->loop, pass_begin, training);
    training->batch_timer = loop_timer_new(broker->loop, batch_begin, training);
    r = blob_store_open(broker->loop, broker->settings.blobs, &training->store, err);
    if (r < 0)
        return err_wrap(err, "blobs");
    loop_timer_start(training->timer, broker->settings.maintenance_ms,
                     broker->settings.maintenance_ms);
    return 0;
}

void broker_training_close(struct broker *broker)
{
    struct broker_training *training = TAKE(broker->training);

    if (training == NULL)
        return;
    loop_timer_free(&training->timer);
    loop_timer_free(&training->batch_timer);
    blob_store_close(&training->store);
    batch_free(training);
    free(training);
}
