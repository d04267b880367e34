/* SPDX-License-Identifier: Apache-2.0 */

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "workers/engine_host.h"
#include "workers/trainer_int.h"

#define BEAT_MS 1000
#define LOOK_MS 500
#define LOOK_SOON_MS 5

PG_STATEMENT(trainer_beat, "SELECT training_beat($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)");
PG_STATEMENT(trainer_work,
             "SELECT n.job_id, n.placement, n.rank, n.state, coalesce(n.stop_cause, ''), "
             "(SELECT bool_and(g.state IN ('READY', 'RUNNING')) FROM training_node g "
             "WHERE g.job_id = n.job_id AND g.placement = n.placement) "
             "FROM training_node n JOIN training_job t ON t.job_id = n.job_id "
             "AND t.placement = n.placement "
             "WHERE n.trainer = $1 AND n.boot = $2 AND n.state <> 'ENDED'");

/* ---- sending ---- */

void trainer_send(struct trainer *trainer, struct pg_batch **batch_p, pg_done_fn *done,
                  void *opaque)
{
    struct pg_answer refused = {0};

    if (pg_send(trainer->pg, batch_p, TRAINER_SQL_MS, done, opaque, &refused.err) == 0)
        return;
    pg_batch_free(batch_p);
    done(opaque, &refused);
}

void trainer_blob_key(const char *project, const char *digest, uint64_t number,
                      char to[BLOB_KEY_SIZE])
{
    char tail[24] = "";

    if (number > 0)
        (void)snprintf(tail, sizeof(tail), "-%llu", (unsigned long long)number);
    (void)snprintf(to, BLOB_KEY_SIZE, "training/%s/%s%s", project, digest, tail);
}

/* ---- I am here ---- */

static void on_beat(void *opaque, const struct pg_answer *answer)
{
    struct trainer *trainer = opaque;
    uint64_t now_us = clock_mono_us();

    trainer->beating = false;
    if (answer->err.code != ERR_OK) {
        log_warn("trainer_not_heard", LOG_ERR(&answer->err));
        return;
    }
    /* Whoever hears nothing himself must not take others for silent. */
    if (now_us - trainer->beat_ok_us > trainer->settings->trainer_lease_ms * 1000 / 2)
        trainer->touch_since_us = now_us;
    trainer->beat_ok_us = now_us;
    if (pg_bool(answer, 0, 0, 0))
        return;
    trainer->replaced = true;
    host_frames_end(trainer->frames, 2, ERROR_CLASS_MODEL_UNAVAILABLE,
                    "another trainer has been started with this name");
}

static void trainer_on_beat(void *opaque)
{
    struct trainer *trainer = opaque;
    const struct trainer_settings *settings = trainer->settings;
    struct pg_batch *batch;
    char machine[64] = "";

    if (trainer->beating || trainer->replaced)
        return;
    (void)gethostname(machine, sizeof(machine) - 1);
    batch = pg_batch_new();
    pg_add(batch, &trainer_beat);
    pg_bind_c(batch, settings->trainer);
    pg_bind_i64(batch, (int64_t)trainer->boot);
    pg_bind_c(batch, machine);
    pg_bind_c(batch, settings->trainer_address);
    pg_bind_c(batch, settings->accelerator);
    pg_bind_i32(batch, settings->gpus);
    pg_bind_i32(batch, trainer->cpu_count);
    pg_bind_i64(batch, (int64_t)trainer->memory_size);
    pg_bind_bool(batch, trainer->draining);
    pg_bind_c(batch, HEADRACE_VERSION);
    trainer->beating = true;
    trainer_send(trainer, &batch, on_beat, trainer);
}

/* ---- what am I to run? ---- */

static void rows_follow(struct trainer *trainer, const struct pg_answer *answer)
{
    size_t count = pg_row_count(answer, 0);
    struct node *node, *next;

    for (node = LIST_FIRST(&trainer->nodes); node != NULL; node = next) {
        bool is_there = node->phase == NODE_GONE || node->phase == NODE_ENDING;

        next = LIST_NEXT(node, link);
        for (size_t i = 0; i < count && !is_there; i++) {
            struct wire_id job = pg_id(answer, 0, i, 0);

            is_there = job_id_equal(&job, &node->job) &&
                       pg_u64(answer, 0, i, 1) == node->placement &&
                       pg_u64(answer, 0, i, 2) == node->rank;
        }
        if (!is_there)
            node_lost(node);
    }
    for (size_t i = 0; i < count; i++) {
        const struct node_row row = {.job = pg_id(answer, 0, i, 0),
                                     .placement = (uint32_t)pg_u64(answer, 0, i, 1),
                                     .rank = (uint32_t)pg_u64(answer, 0, i, 2),
                                     .state = pg_c(answer, 0, i, 3),
                                     .stop_cause = pg_c(answer, 0, i, 4),
                                     .gathered = pg_bool(answer, 0, i, 5)};

        node = node_find(trainer, &row.job, row.placement, row.rank);
        if (node != NULL)
            node_follow(node, &row);
        else
            node_take(trainer, &row);
    }
}

static void trainer_look(struct trainer *trainer);

static void on_work(void *opaque, const struct pg_answer *answer)
{
    struct trainer *trainer = opaque;

    trainer->asking = false;
    if (answer->err.code != ERR_OK) {
        log_warn("work_not_read", LOG_ERR(&answer->err));
        return;
    }
    rows_follow(trainer, answer);
    trainer_holds_look(trainer);
    trainer_plan(trainer);
    trainer_end_if_drained(trainer);
    if (trainer->ask_again)
        trainer_look_soon(trainer);
}

static void trainer_look(struct trainer *trainer)
{
    struct pg_batch *batch;

    if (trainer->asking || trainer->replaced || !pg_connected(trainer->pg)) {
        trainer->ask_again = trainer->asking;
        return;
    }
    trainer->ask_again = false;
    trainer->asking = true;
    batch = pg_batch_new();
    pg_add(batch, &trainer_work);
    pg_bind_c(batch, trainer->settings->trainer);
    pg_bind_i64(batch, (int64_t)trainer->boot);
    trainer_send(trainer, &batch, on_work, trainer);
}

static void trainer_on_look(void *opaque)
{
    struct trainer *trainer = opaque;

    loop_timer_start(trainer->look_timer, LOOK_MS, LOOK_MS);
    trainer_look(trainer);
}

void trainer_look_soon(struct trainer *trainer)
{
    loop_timer_start(trainer->look_timer, LOOK_SOON_MS, LOOK_MS);
}

static void on_notify(void *opaque, const char *payload)
{
    (void)payload;
    trainer_look_soon(opaque);
}

/* ---- life ---- */

void trainer_end_if_drained(struct trainer *trainer)
{
    if (!trainer->draining || trainer->drained || !LIST_EMPTY(&trainer->nodes))
        return;
    trainer->drained = true;
    host_frames_drained(trainer->frames);
}

void trainer_drain(struct trainer *trainer)
{
    struct node *node, *next;

    if (trainer->draining)
        return;
    trainer->draining = true;
    log_info("trainer_drains");
    for (node = LIST_FIRST(&trainer->nodes); node != NULL; node = next) {
        next = LIST_NEXT(node, link);
        node_stop(node, "drain");
    }
    trainer_on_beat(trainer);
    trainer_look_soon(trainer);
}

static int folder_make(const char *path, struct err *err)
{
    if (mkdir(path, 0700) < 0 && errno != EEXIST)
        return err_set_errno(err, ERR_IO, "make folder %s", path);
    return 0;
}

static int folders_make(struct trainer *trainer, struct err *err)
{
    OWNED(mem_free) char *real = NULL;
    int r = folder_make(trainer->settings->trainer_dir, err);

    if (r < 0)
        return r;
    real = realpath(trainer->settings->trainer_dir, NULL); /* a sandbox has no current folder */
    if (real == NULL)
        return err_set_errno(err, ERR_IO, "find folder %s", trainer->settings->trainer_dir);
    trainer->jobs_dir = xasprintf("%s/jobs", real);
    trainer->cache_dir = xasprintf("%s/cache", real);
    r = folder_make(trainer->jobs_dir, err);
    return r < 0 ? r : folder_make(trainer->cache_dir, err);
}

static int stores_open(struct trainer *trainer, struct err *err)
{
    const struct trainer_settings *settings = trainer->settings;
    const struct pg_options options = {.url = settings->postgres,
                                       .application = "headrace trainer"};
    int r = confine_level_parse(settings->isolation, &trainer->isolation, err);

    if (r == 0)
        r = confine_level_find(trainer->isolation, &trainer->isolation, err);
    if (r == 0)
        r = blob_store_open(trainer->loop, settings->blobs, &trainer->blobs, err);
    if (r == 0 && settings->seal_key_file[0] != '\0')
        r = seal_key_open(settings->seal_key_file, &trainer->seal_key, err);
    return r < 0 ? r : pg_open(trainer->loop, &options, &trainer->pg, err);
}

static void machine_measure(struct trainer *trainer)
{
    long cores = sysconf(_SC_NPROCESSORS_ONLN), pages = sysconf(_SC_PHYS_PAGES);

    trainer->cpu_count = (uint32_t)trainer->settings->cpus;
    trainer->memory_size = trainer->settings->memory_size;
    if (trainer->cpu_count == 0)
        trainer->cpu_count = cores > 0 ? (uint32_t)cores : 1;
    if (trainer->memory_size == 0)
        trainer->memory_size = (uint64_t)pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

int trainer_open(struct loop *loop, const struct trainer_settings *settings,
                 struct host_frames *frames, struct trainer **ret_trainer, struct err *err)
{
    OWNED(trainer_close) struct trainer *trainer = xcalloc(1, sizeof(*trainer));
    int r;

    trainer->loop = loop;
    trainer->settings = settings;
    trainer->frames = frames;
    trainer->boot = clock_wall_us();
    LIST_INIT(&trainer->nodes);
    machine_measure(trainer);
    r = folders_make(trainer, err);
    if (r == 0)
        r = stores_open(trainer, err);
    if (r < 0)
        return r;
    for (unsigned slot = 0; slot < TRAINER_NODES_MAX; slot++) {
        OWNED(mem_free) char *prefix = xasprintf("train-%s-%u", settings->trainer, slot);

        confine_group_sweep(prefix);
    }
    trainer_leftovers_open(trainer);
    trainer->beat_timer = loop_timer_new(loop, trainer_on_beat, trainer);
    trainer->look_timer = loop_timer_new(loop, trainer_on_look, trainer);
    loop_timer_start(trainer->beat_timer, 0, BEAT_MS);
    pg_listen(trainer->pg, "headrace_training", on_notify, trainer);
    trainer_containers_sweep(trainer);
    log_info("trainer_started", LOG_STR("trainer", settings->trainer),
             LOG_U64("boot", trainer->boot), LOG_STR("dir", trainer->jobs_dir),
             LOG_STR("isolation", confine_level_name(trainer->isolation)),
             LOG_STR("accelerator", settings->accelerator), LOG_I64("gpus", settings->gpus),
             LOG_U64("cpus", trainer->cpu_count), LOG_U64("memory", trainer->memory_size));
    *ret_trainer = TAKE(trainer);
    return 0;
}

void trainer_close(struct trainer **trainer_p)
{
    struct trainer *trainer = TAKE(*trainer_p);
    struct node *node;

    if (trainer == NULL)
        return;
    pg_close(&trainer->pg);
    blob_store_close(&trainer->blobs);
    while ((node = LIST_FIRST(&trainer->nodes)) != NULL)
        node_free(&node);
    trainer_holds_free(trainer);
    container_call_free(&trainer->call);
    trainer_leftovers_close(trainer);
    container_tool_done(&trainer->tool);
    loop_timer_free(&trainer->beat_timer);
    loop_timer_free(&trainer->look_timer);
    seal_key_close(&trainer->seal_key);
    free(trainer->jobs_dir);
    free(trainer->cache_dir);
    free(trainer);
}
