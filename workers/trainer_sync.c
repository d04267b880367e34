/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What a node saves, on its way to the store while the node runs on:
 *
 *   look (a thread) ─▶ a checkpoint was renamed into place, or has not changed for quiet_ms, and is
 *   complete ─▶ digests (a thread) ─▶ which of them does the store have, and under which number
 *   are the others put? (training_files_want() of the migrations) ─▶ they are put
 *   ─▶ has it changed meanwhile? (a thread) ─▶ the manifest, in one statement behind the fence
 *
 * One checkpoint at a time. Files are stored by their digest, once for all jobs of a project, so
 * what did not change is read and not sent. A manifest is there with all of its files, or not at
 * all: whatever fails before leaves files that nobody names, and the checkpoint is tried again with
 * the next look. What a process has left that did not end by itself may be half written: of that
 * only goes what was renamed, or was quiet before.
 *
 * Looks are of two kinds. A narrow one looks into what is not sent yet, or has been put there
 * since, and is made when there is any of that. A full one looks into all, for what the kernel does
 * not tell of the folder itself: somebody writes into a checkpoint that is sent already. That one
 * is the rarer the longer it takes (workers/trainer_disk.h).
 */

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <unistd.h>

#include "base/clock.h"
#include "workers/trainer_int.h"
#include "workers/trainer_scan.h"

#define EVENTS_SIZE 8192
#define EVENT_TURNS 64 /* of a tick; what is left then is read with the next */
#define LAST_TRIES 5
#define COMMIT_WAIT_MS 20
#define NARROW_SHARE 100 /* a narrow look is followed by as many times what it took */

PG_STATEMENT(sync_begin, "SELECT training_checkpoint_begin($1, $2, $3, $4, $5)");
PG_STATEMENT(sync_want, "SELECT digest, number, stored FROM training_files_want($1, $2, $3)");
PG_STATEMENT(sync_commit, "SELECT deleted FROM training_checkpoint_commit($1, $2, $3, $4, $5, $6, "
                          "$7, $8, $9, $10, $11, $12)");

struct known { /* a checkpoint that was seen */
    char name[SCAN_NAME_SIZE];
    uint64_t mark, since_us, sent_mark;
    bool moved, complete, is_there;
    bool stirred; /* something was put there since it was looked into */
    UT_hash_handle hh;
};

struct node_sync {
    struct node *node;
    char *folder;
    struct known *known;
    struct loop_timer *timer, *commit_timer;
    struct loop_watch *watch;
    int fd;     /* of inotify: what was renamed, which wakes us */
    int put_fd; /* the same: what was made or written, read with each tick; -1: none was to be had
                 */
    bool put;   /* it told of something */
    uint64_t full_us, narrow_us; /* when the next look of either kind may be */
    bool looking, finishing;
    bool fresh;                 /* looked at since the process has ended */
    bool failed;                /* nothing more is tried before the next look */
    struct upload *upload;      /* NULL: none */
    uint32_t failures;          /* in a row */
    uint64_t finish_us;         /* since when it finishes */
    char why[TRAINER_WHY_SIZE]; /* of the last failure */
};

struct look {
    uv_work_t work; /* first, so that libuv's pointer is ours */
    struct node *node;
    char *folder;
    bool final; /* begun after the process had ended */
    bool full;
    const char **names; /* of what needs no look, each ours */
    size_t name_count;
    uint64_t cpu_us; /* that it took */
    struct scan scan;
    int r;
    struct err err;
};

struct upload {
    uv_work_t work; /* first, so that libuv's pointer is ours */
    struct node *node;
    char *folder;
    char name[SCAN_NAME_SIZE];
    struct scan_files files;
    bool *stored;      /* of each file: need not be put */
    uint64_t *numbers; /* of each: in the key of its blob */
    size_t at;
    uint64_t sent_size, began_us;
    uint64_t mark;     /* after the last file */
    uint64_t log_mark; /* lines before this one belong to it; 0: not known yet */
    int r;
    struct err err;
};

static void sync_next(struct node_sync *sync);
static void sync_look(struct node_sync *sync, bool full);

/* ---- one checkpoint ---- */

static void upload_free(struct upload **upload_p)
{
    struct upload *upload = TAKE(*upload_p);

    trainer_scan_files_done(&upload->files);
    free(upload->stored);
    free(upload->numbers);
    free(upload->folder);
    free(upload);
}

/* True: the node or its sync is gone, and the upload with it. */
static bool upload_over(struct upload *upload)
{
    struct node *node = upload->node;

    if (!node_unbusy(node) && node->sync != NULL)
        return false;
    upload_free(&upload);
    return true;
}

static void upload_end(struct upload *upload, bool sent)
{
    struct node_sync *sync = upload->node->sync;
    struct known *known;

    HASH_FIND_STR(sync->known, upload->name, known);
    if (sent && known != NULL) {
        known->sent_mark = upload->files.mark;
        known->moved = false;
        sync->failures = 0;
    } else if (!sent) {
        sync->failures++;
        sync->failed = true;
        mem_copy_text(sync->why, upload->err.text);
        log_warn("checkpoint_not_sent", LOG_STR("job", upload->node->job_text),
                 LOG_STR("checkpoint", upload->name), LOG_ERR(&upload->err));
    }
    sync->upload = NULL;
    upload_free(&upload);
    sync_next(sync);
}

static void on_committed(void *opaque, const struct pg_answer *answer)
{
    struct upload *upload = opaque;
    bool sent = answer->err.code == ERR_OK;

    upload->err = answer->err;
    if (upload_over(upload))
        return;
    if (sent)
        log_info("checkpoint_sent", LOG_STR("job", upload->node->job_text),
                 LOG_U64("rank", upload->node->rank), LOG_STR("checkpoint", upload->name),
                 LOG_U64("files", upload->files.count), LOG_U64("bytes", upload->files.size),
                 LOG_U64("sent_bytes", upload->sent_size),
                 LOG_U64("us", clock_mono_us() - upload->began_us));
    upload_end(upload, sent);
}

static void digest_format(const uint8_t digest[SCAN_DIGEST_SIZE], char to[TRAINER_DIGEST_TEXT_SIZE])
{
    for (size_t i = 0; i < SCAN_DIGEST_SIZE; i++)
        (void)snprintf(to + 2 * i, 3, "%02x", digest[i]);
}

/* The caller frees. */
static char *manifest_of(const struct upload *upload)
{
    json_t *files = json_array();
    char *text;

    for (size_t i = 0; i < upload->files.count; i++) {
        const struct scan_file *file = &upload->files.files[i];
        char digest[TRAINER_DIGEST_TEXT_SIZE];

        digest_format(file->digest, digest);
        (void)json_array_append_new(
            files, json_pack("{s:s, s:I, s:s, s:I, s:i}", "path", file->path, "size",
                             (json_int_t)file->size, "digest", digest, "number",
                             (json_int_t)upload->numbers[i], "mode", (int)file->mode));
    }
    text = json_dumps(files, JSON_COMPACT);
    json_decref(files);
    return text;
}

static void upload_write(struct upload *upload)
{
    struct node *node = upload->node;
    OWNED(mem_free) char *manifest = manifest_of(upload);
    const char *adapter = upload->files.adapter;
    json_t *config = adapter == NULL ? NULL : json_loads(adapter, 0, NULL);
    struct pg_batch *batch = pg_batch_new();

    pg_add(batch, &sync_commit);
    node_bind(batch, node);
    pg_bind_c(batch, upload->name);
    pg_bind_json(batch, manifest);
    pg_bind_i64(batch, (int64_t)upload->files.size);
    pg_bind_i64(batch, (int64_t)upload->sent_size);
    pg_bind_c(batch, adapter == NULL ? "full" : "lora");
    pg_bind_c(batch, json_string_value(json_object_get(config, "base_model_name_or_path")));
    pg_bind_json(batch, adapter);
    pg_bind_i32(batch, node->checkpoint_keep);
    json_decref(config);
    node->busy++;
    trainer_send(node->trainer, &batch, on_committed, upload);
}

/* Lines that were printed before it was saved are stored before it is: who goes on from it prints
 * what comes after them, and the log has no gap. It does not do that they are under way: of two
 * statements the first one may be lost with its connection, and the second one not. */
static void upload_commit(struct upload *upload)
{
    struct node *node = upload->node;

    if (upload->log_mark == 0)
        upload->log_mark = node_log_mark(node);
    if (node_log_has_stored(node, upload->log_mark))
        upload_write(upload);
    else
        loop_timer_start(node->sync->commit_timer, COMMIT_WAIT_MS, 0);
}

static void sync_on_commit(void *opaque)
{
    struct node_sync *sync = opaque;

    upload_commit(sync->upload);
}

/* thread: libuv's pool   locks: none; the upload is this thread's until its done call */
static void check_work(uv_work_t *work)
{
    struct upload *upload = (struct upload *)work;

    upload->mark = trainer_scan_mark(upload->folder, upload->name);
}

static void on_checked(uv_work_t *work, int status)
{
    struct upload *upload = (struct upload *)work;

    (void)status;
    if (upload_over(upload))
        return;
    if (upload->mark != upload->files.mark) {
        (void)err_set(&upload->err, ERR_CONFLICT, "it has changed while it was sent");
        upload_end(upload, false);
    } else {
        upload_commit(upload);
    }
}

static void upload_put(struct upload *upload);

static void on_put(void *opaque, const struct err *err)
{
    struct upload *upload = opaque;

    upload->err = *err;
    if (upload_over(upload))
        return;
    if (err->code != ERR_OK) {
        upload_end(upload, false);
        return;
    }
    upload->sent_size += upload->files.files[upload->at].size;
    upload->stored[upload->at] = true;
    for (size_t i = upload->at + 1; i < upload->files.count; i++) {
        if (memcmp(upload->files.files[i].digest, upload->files.files[upload->at].digest,
                   SCAN_DIGEST_SIZE) == 0)
            upload->stored[i] = true;
    }
    upload_put(upload);
}

static int put_begin(struct upload *upload, struct err *err)
{
    const struct scan_file *file = &upload->files.files[upload->at];
    char key[BLOB_KEY_SIZE], digest[TRAINER_DIGEST_TEXT_SIZE];
    OWNED(mem_free)
    char *path = xasprintf("%s/%s/%s", upload->folder, upload->name, file->path);
    OWNED(mem_free) char *single = xasprintf("%s/%s", upload->folder, upload->name);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW), r;

    if (fd < 0 && errno == ENOTDIR)
        fd = open(single, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0)
        return err_set_errno(err, ERR_NOT_FOUND, "open %s", path);
    digest_format(file->digest, digest);
    trainer_blob_key(upload->node->project, digest, upload->numbers[upload->at], key);
    r = blob_put_file(upload->node->trainer->blobs, key, fd, file->size, on_put, upload, err);
    (void)close(fd);
    return r;
}

static void upload_put(struct upload *upload)
{
    struct node *node = upload->node;

    while (upload->at < upload->files.count && upload->stored[upload->at])
        upload->at++;
    node->busy++;
    if (upload->at < upload->files.count) {
        if (put_begin(upload, &upload->err) == 0)
            return;
    } else if (uv_queue_work(loop_uv(node->trainer->loop), &upload->work, check_work, on_checked) ==
               0) {
        return;
    }
    if (!upload_over(upload))
        upload_end(upload, false);
}

/* False: the answer does not speak of it. */
static bool file_note(struct upload *upload, const struct pg_answer *answer, size_t i)
{
    for (size_t row = 0; row < pg_row_count(answer, 1); row++) {
        struct wire_bytes digest = pg_bytes(answer, 1, row, 0);

        if (digest.size != SCAN_DIGEST_SIZE ||
            memcmp(upload->files.files[i].digest, digest.bytes, SCAN_DIGEST_SIZE) != 0)
            continue;
        upload->numbers[i] = pg_u64(answer, 1, row, 1);
        upload->stored[i] = pg_bool(answer, 1, row, 2);
        return true;
    }
    return false;
}

static void on_wanted(void *opaque, const struct pg_answer *answer)
{
    struct upload *upload = opaque;
    bool known = true;

    upload->err = answer->err;
    if (upload_over(upload))
        return;
    upload->stored = xcalloc(upload->files.count + 1, sizeof(*upload->stored));
    upload->numbers = xcalloc(upload->files.count + 1, sizeof(*upload->numbers));
    for (size_t i = 0; i < upload->files.count && answer->err.code == ERR_OK; i++)
        known = known && file_note(upload, answer, i);
    if (answer->err.code != ERR_OK || !known)
        upload_end(upload, false);
    else
        upload_put(upload);
}

static void upload_ask(struct upload *upload)
{
    struct node *node = upload->node;
    struct pg_batch *batch = pg_batch_new();

    pg_add(batch, &sync_begin);
    node_bind(batch, node);
    pg_bind_c(batch, upload->name);
    pg_add(batch, &sync_want);
    pg_bind_c(batch, node->project);
    pg_bind_array(batch, PG_BYTES, upload->files.count);
    for (size_t i = 0; i < upload->files.count; i++)
        pg_bind_bytes(batch, (struct wire_bytes){upload->files.files[i].digest, SCAN_DIGEST_SIZE});
    pg_bind_array(batch, PG_I64, upload->files.count);
    for (size_t i = 0; i < upload->files.count; i++)
        pg_bind_i64(batch, (int64_t)upload->files.files[i].size);
    node->busy++;
    trainer_send(node->trainer, &batch, on_wanted, upload);
}

/* thread: libuv's pool   locks: none; the upload is this thread's until its done call */
static void read_work(uv_work_t *work)
{
    struct upload *upload = (struct upload *)work;

    upload->r = trainer_scan_read(upload->folder, upload->name, &upload->files, &upload->err);
}

static void on_read(uv_work_t *work, int status)
{
    struct upload *upload = (struct upload *)work;

    (void)status;
    if (upload_over(upload))
        return;
    if (upload->r < 0)
        upload_end(upload, false);
    else
        upload_ask(upload);
}

static void upload_begin(struct node_sync *sync, const char *name)
{
    struct upload *upload = xcalloc(1, sizeof(*upload));

    upload->node = sync->node;
    upload->folder = xstrdup(sync->folder);
    upload->began_us = clock_mono_us();
    mem_copy_text(upload->name, name);
    sync->upload = upload;
    sync->node->busy++;
    if (uv_queue_work(loop_uv(sync->node->trainer->loop), &upload->work, read_work, on_read) == 0)
        return;
    if (!upload_over(upload))
        upload_end(upload, false);
}

/* ---- looking ---- */

/* Whether it is to be sent now. */
static bool is_ready(const struct node_sync *sync, const struct known *known)
{
    const struct node *node = sync->node;
    bool quiet = clock_mono_us() - known->since_us >= node->quiet_ms * 1000;

    if (!known->is_there || !known->complete || known->mark == known->sent_mark)
        return false;
    return known->moved || quiet || (sync->finishing && !node->fast);
}

/* Whether the last checkpoint is worth waiting for a store that does not take it. */
static bool sync_is_patient(const struct node_sync *sync)
{
    const struct node *node = sync->node;

    if (sync->failures < LAST_TRIES)
        return true;
    return node_ended_well(node) && node->stop_cause[0] == '\0' &&
           clock_mono_us() - sync->finish_us <
               node->trainer->settings->checkpoint_patience_ms * 1000;
}

static void sync_end(struct node_sync *sync)
{
    if (sync->failures > 0) {
        log_warn("checkpoint_given_up", LOG_STR("job", sync->node->job_text),
                 LOG_STR("why", sync->why));
        node_not_saved(sync->node, sync->why);
    }
    loop_timer_stop(sync->timer);
    node_saved(sync->node);
}

/* The next one that is ready; at the end, when there is none, the node is told. */
static void sync_next(struct node_sync *sync)
{
    struct known *known, *next;

    if (sync->upload != NULL || sync->looking)
        return;
    if (sync->finishing && !sync_is_patient(sync)) {
        sync_end(sync);
        return;
    }
    if (sync->failed)
        return;
    HASH_ITER(hh, sync->known, known, next)
    {
        if (is_ready(sync, known)) {
            upload_begin(sync, known->name);
            return;
        }
    }
    if (sync->finishing && sync->fresh)
        sync_end(sync);
    else if (sync->finishing)
        sync_look(sync, true);
}

static void sync_note(struct node_sync *sync, const struct scan_entry *entry)
{
    struct known *known;

    HASH_FIND_STR(sync->known, entry->name, known);
    if (known == NULL) {
        known = xcalloc(1, sizeof(*known));
        mem_copy_text(known->name, entry->name);
        HASH_ADD_STR(sync->known, name, known);
    }
    known->is_there = true;
    if (entry->passed_over)
        return;
    if (known->mark != entry->mark) {
        known->mark = entry->mark;
        known->since_us = clock_mono_us();
    }
    known->complete = entry->complete;
}

static struct known *known_find(const struct node_sync *sync, const char *name)
{
    struct known *known;

    HASH_FIND_STR(sync->known, name, known);
    return known;
}

/* ---- what needs a look ---- */

static bool is_settled(const struct known *known)
{
    return known->is_there && known->complete && known->mark == known->sent_mark && !known->stirred;
}

static bool sync_has_unsettled(const struct node_sync *sync)
{
    const struct known *known;

    if (sync->put)
        return true;
    for (known = sync->known; known != NULL; known = known->hh.next) {
        if (known->stirred || (known->is_there && !is_settled(known)))
            return true;
    }
    return false;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Notes down for a look what it need not look into. */
static void look_pass_over(struct look *look, struct node_sync *sync)
{
    struct known *known;

    look->names = xcalloc(HASH_COUNT(sync->known) + 1, sizeof(*look->names));
    for (known = sync->known; known != NULL; known = known->hh.next) {
        if (!look->full && is_settled(known))
            look->names[look->name_count++] = xstrdup(known->name);
        known->stirred = false;
    }
    if (look->name_count > 1)
        qsort(look->names, look->name_count, sizeof(*look->names), by_name);
    sync->put = sync->put_fd < 0;
}

/* ---- a look ---- */

static void look_free(struct look **look_p)
{
    struct look *look = TAKE(*look_p);

    for (size_t i = 0; i < look->name_count; i++)
        free((char *)look->names[i]); /* NOLINT: look_pass_over() has made it */
    free(look->names);
    trainer_scan_done(&look->scan);
    free(look->folder);
    free(look);
}

/* thread: libuv's pool   locks: none; the look is this thread's until its done call */
static void look_work(uv_work_t *work)
{
    struct look *look = (struct look *)work;
    const struct scan_known known = {look->names, look->name_count};
    uint64_t began_us = clock_thread_us();

    look->r = trainer_scan_folder(look->folder, &known, &look->scan, &look->err);
    look->cpu_us = clock_thread_us() - began_us;
}

static void look_take(const struct look *look, struct node_sync *sync)
{
    uint64_t now_us = clock_mono_us();
    struct known *known;

    sync->looking = false;
    if (look->r < 0)
        log_warn("checkpoints_not_seen", LOG_STR("job", look->node->job_text), LOG_ERR(&look->err));
    if (look->full)
        sync->full_us = now_us + trainer_walk_rest_us(look->cpu_us);
    sync->narrow_us = now_us + look->cpu_us * NARROW_SHARE;
    for (known = sync->known; known != NULL; known = known->hh.next)
        known->is_there = false;
    for (size_t i = 0; i < look->scan.count; i++)
        sync_note(sync, &look->scan.entries[i]);
    sync->fresh = look->final && look->r == 0;
    sync->failed = look->r < 0;
}

static void on_looked(uv_work_t *work, int status)
{
    struct look *look = (struct look *)work;
    struct node *node = look->node;

    (void)status;
    if (!node_unbusy(node) && node->sync != NULL) {
        look_take(look, node->sync);
        sync_next(node->sync);
    }
    look_free(&look);
}

static void sync_look(struct node_sync *sync, bool full)
{
    struct node *node = sync->node;
    struct look *look;

    if (sync->looking || sync->upload != NULL)
        return;
    look = xcalloc(1, sizeof(*look));
    look->node = node;
    look->folder = xstrdup(sync->folder);
    look->final = sync->finishing;
    look->full = full || sync->finishing;
    look_pass_over(look, sync);
    sync->looking = true;
    node->busy++;
    if (uv_queue_work(loop_uv(node->trainer->loop), &look->work, look_work, on_looked) == 0)
        return;
    sync->looking = false;
    sync->full_us = 0;
    look_free(&look);
    (void)node_unbusy(node);
}

/* ---- when to look ---- */

typedef void sync_event(struct node_sync *sync, const char *name);

/* Names of a batch of events; false: there are none now. */
static bool events_read(struct node_sync *sync, int fd, sync_event *each)
{
    char block[EVENTS_SIZE] __attribute__((aligned(8)));
    ssize_t size = read(fd, block, sizeof(block));

    for (ssize_t at = 0; at + (ssize_t)sizeof(struct inotify_event) <= size;) {
        const struct inotify_event *event = (const struct inotify_event *)(block + at); /* NOLINT */

        at += (ssize_t)(sizeof(*event) + event->len);
        if (event->mask & IN_Q_OVERFLOW)
            sync->full_us = 0; /* some are missing */
        else if (event->len > 0 && strlen(event->name) < SCAN_NAME_SIZE)
            each(sync, event->name);
    }
    return size > 0;
}

static void note_moved(struct node_sync *sync, const char *name)
{
    struct known *known = known_find(sync, name);

    if (known == NULL) {
        known = xcalloc(1, sizeof(*known));
        mem_copy_text(known->name, name);
        HASH_ADD_STR(sync->known, name, known);
    }
    known->moved = known->stirred = true;
}

/* What is not known yet is looked into by any look. */
static void note_put(struct node_sync *sync, const char *name)
{
    struct known *known = known_find(sync, name);

    if (trainer_scan_is_being_written(name))
        return;
    sync->put = true;
    if (known != NULL)
        known->stirred = true;
}

static void sync_on_timer(void *opaque)
{
    struct node_sync *sync = opaque;
    uint64_t now_us = clock_mono_us();

    for (int turns = 0; sync->put_fd >= 0 && turns < EVENT_TURNS; turns++) {
        if (!events_read(sync, sync->put_fd, note_put))
            break;
    }
    if (sync->finishing || now_us >= sync->full_us)
        sync_look(sync, true);
    else if (now_us >= sync->narrow_us && sync_has_unsettled(sync))
        sync_look(sync, false);
}

static void sync_on_moved(void *opaque, unsigned events)
{
    struct node_sync *sync = opaque;

    (void)events;
    (void)events_read(sync, sync->fd, note_moved);
    sync_look(sync, false);
}

/* ---- life ---- */

/* What was put there is also found without being told, by looking each time. */
static void sync_watch_puts(struct node_sync *sync)
{
    sync->put_fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    if (sync->put_fd >= 0 &&
        inotify_add_watch(sync->put_fd, sync->folder, IN_CREATE | IN_CLOSE_WRITE) < 0) {
        (void)close(sync->put_fd);
        sync->put_fd = -1;
    }
    sync->put = true;
}

int node_sync_open(struct node *node, struct err *err)
{
    struct node_sync *sync = xcalloc(1, sizeof(*sync));
    uint64_t scan_ms = node->trainer->settings->checkpoint_scan_ms;
    int r;

    sync->node = node;
    sync->folder = xasprintf("%s/checkpoints", node->dir);
    sync->timer = loop_timer_new(node->trainer->loop, sync_on_timer, sync);
    sync->commit_timer = loop_timer_new(node->trainer->loop, sync_on_commit, sync);
    node->sync = sync;
    sync_watch_puts(sync);
    sync->fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    if (sync->fd < 0 || inotify_add_watch(sync->fd, sync->folder, IN_MOVED_TO) < 0)
        return err_set_errno(err, ERR_IO, "watch folder %s", sync->folder);
    r = loop_watch_new(node->trainer->loop, sync->fd, sync_on_moved, sync, &sync->watch, err);
    if (r < 0)
        return r;
    loop_watch_set(sync->watch, LOOP_READABLE);
    loop_timer_start(sync->timer, scan_ms, scan_ms);
    return 0;
}

void node_sync_finish(struct node *node)
{
    struct node_sync *sync = node->sync;

    if (sync == NULL) {
        node_saved(node);
        return;
    }
    sync->finishing = true;
    sync->finish_us = clock_mono_us();
    sync->failures = 0;
    sync_look(sync, true); /* at once, or after what is under way, by the timer */
}

void node_sync_close(struct node *node)
{
    struct node_sync *sync = TAKE(node->sync);
    struct known *known, *next;

    if (sync == NULL)
        return;
    HASH_ITER(hh, sync->known, known, next)
    {
        HASH_DEL(sync->known, known);
        free(known);
    }
    if (loop_timer_is_running(sync->commit_timer)) /* else its own call comes back to it */
        upload_free(&sync->upload);
    loop_watch_free(&sync->watch);
    loop_timer_free(&sync->timer);
    loop_timer_free(&sync->commit_timer);
    if (sync->fd >= 0)
        (void)close(sync->fd);
    if (sync->put_fd >= 0)
        (void)close(sync->put_fd);
    free(sync->folder);
    free(sync);
}
