/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What a node needs before it may run, one after the other:
 *
 *   folders ─▶ image, where it has a container: fetched where it is not on this machine
 *           ─▶ archive: from the store, unpacked into the cache of this machine once
 *           ─▶ workspace: a copy of it, the job's own to write to
 *           ─▶ checkpoint to go on with: file by file from the store, each by its digest
 *           ─▶ node_ready()
 *
 * A file of a checkpoint that is not there, or not what was saved, read twice: the checkpoint is
 * given up (training_checkpoint_lose() of the migrations), and the one before it is taken.
 *
 * What blocks is done on libuv's threads, one job a node at a time. Whatever fails ends the node:
 * as `image`, `workspace` or `restore`, which is the job's own affair, or as `lost` when this
 * machine or the store is at fault, so that it is tried again.
 */

#include <errno.h>
#include <fcntl.h>
#include <fts.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "workers/agent_unpack.h"
#include "workers/trainer_int.h"

#define WORKSPACE_SIZE_MAX (64ull << 30)
#define COPY_SIZE (256u << 10)

PG_STATEMENT(setup_resume, "SELECT r.job_id, r.rank, r.name, r.files::text, t.project_id "
                           "FROM training_resume($1) r JOIN training_job t ON t.job_id = r.job_id");

PG_STATEMENT(setup_lose,
             "SELECT training_checkpoint_lose($1, $2, $3, $4, $5::text::uuid, $6, $7, $8)");

struct setup {
    uv_work_t work; /* first, so that libuv's pointer is ours */
    struct node *node;
    int fd;         /* the archive's */
    char *unpacked; /* where it is in the cache */
    json_t *files;  /* to be restored: {path, size, digest, number, mode, project, job, name} */
    size_t file_at;
    bool again; /* its file was read, and was not what was saved */
    int file_fd;
    int r;
    struct err err;
};

static void setup_free(struct setup **setup_p)
{
    struct setup *setup = TAKE(*setup_p);

    if (setup == NULL)
        return;
    if (setup->fd >= 0)
        (void)close(setup->fd);
    if (setup->file_fd >= 0)
        (void)close(setup->file_fd);
    json_decref(setup->files);
    free(setup->unpacked);
    free(setup);
}

/* The node is gone, or this step has failed: true, and the setup is over. */
static bool setup_over(struct setup *setup, const char *cause)
{
    struct node *node = setup->node;
    struct err err = setup->err;
    bool failed = setup->r < 0;

    if (!node_unbusy(node)) {
        if (!failed && node->phase == NODE_SETUP)
            return false;
        if (failed)
            node_end(node, err_class(err.code) == ERR_CLASS_REJECT ? cause : "lost", -1, 0,
                     err.text);
    }
    setup_free(&setup);
    return true;
}

static void setup_on_thread(struct setup *setup, uv_work_cb work, uv_after_work_cb done)
{
    setup->node->busy++;
    if (uv_queue_work(loop_uv(setup->node->trainer->loop), &setup->work, work, done) < 0) {
        setup->r = err_set(&setup->err, ERR_UNAVAILABLE, "no thread for it");
        done(&setup->work, 0);
    }
}

/* ---- the checkpoint ---- */

static void restore_next(struct setup *setup);
static void restore(struct setup *setup);

static int folders_above(const char *path, struct err *err)
{
    OWNED(mem_free) char *copy = xstrdup(path);

    for (char *at = strchr(copy + 1, '/'); at != NULL; at = strchr(at + 1, '/')) {
        *at = '\0';
        if (mkdir(copy, 0755) < 0 && errno != EEXIST)
            return err_set_errno(err, ERR_IO, "make folder %s", copy);
        *at = '/';
    }
    return 0;
}

/* thread: libuv's pool   locks: none; the setup is this thread's until its done call */
static void clear_work(uv_work_t *work)
{
    struct setup *setup = (struct setup *)work;

    setup->r = agent_remove_tree(setup->node->loaded, &setup->err);
}

static void on_cleared(uv_work_t *work, int status)
{
    struct setup *setup = (struct setup *)work;

    (void)status;
    if (!setup_over(setup, "restore"))
        restore(setup);
}

static void on_lost(void *opaque, const struct pg_answer *answer)
{
    struct setup *setup = opaque;

    setup->err = answer->err;
    setup->r = answer->err.code;
    if (!setup_over(setup, "restore"))
        setup_on_thread(setup, clear_work, on_cleared);
}

/* The checkpoint of that file is none any more; the one before it is tried. */
static void restore_lose(struct setup *setup, const json_t *file)
{
    struct pg_batch *batch = pg_batch_new();
    const char *name = json_string_value(json_object_get(file, "name"));
    char *text = json_dumps(file, JSON_COMPACT);

    log_warn("checkpoint_lost", LOG_STR("job", setup->node->job_text), LOG_STR("checkpoint", name),
             LOG_ERR(&setup->err));
    pg_add(batch, &setup_lose);
    node_bind(batch, setup->node);
    pg_bind_c(batch, json_string_value(json_object_get(file, "job")));
    pg_bind_c(batch, name);
    pg_bind_json(batch, text);
    pg_bind_c(batch, setup->err.text);
    free(text);
    setup->r = 0;
    setup->node->busy++;
    trainer_send(setup->node->trainer, &batch, on_lost, setup);
}

/* Compares what was read with the manifest. */
static void restore_check(struct setup *setup, const json_t *file, uint64_t size,
                          const uint8_t digest[BLOB_DIGEST_SIZE])
{
    const char *wanted = json_string_value(json_object_get(file, "digest"));
    const char *path = json_string_value(json_object_get(file, "path"));
    json_int_t wanted_size = json_integer_value(json_object_get(file, "size"));
    char is[TRAINER_DIGEST_TEXT_SIZE] = "";

    for (size_t i = 0; i < BLOB_DIGEST_SIZE; i++)
        (void)snprintf(is + 2 * i, 3, "%02x", digest[i]);
    if (size != (uint64_t)wanted_size)
        setup->r = err_set(&setup->err, ERR_MISMATCH,
                           "the store's copy of %.200s has %llu bytes; it was saved with %lld",
                           path, (unsigned long long)size, (long long)wanted_size);
    else if (wanted == NULL || strcmp(is, wanted) != 0)
        setup->r = err_set(&setup->err, ERR_MISMATCH,
                           "the store's copy of %.200s is not what was saved: its SHA-256 is %s",
                           path, is);
}

static void on_restored(void *opaque, uint64_t size, const uint8_t digest[BLOB_DIGEST_SIZE],
                        const struct err *err)
{
    struct setup *setup = opaque;
    const json_t *file = json_array_get(setup->files, setup->file_at);
    bool bad;

    setup->err = *err;
    setup->r = err->code;
    if (setup->r == 0)
        restore_check(setup, file, size, digest);
    bad = setup->r == ERR_MISMATCH || setup->r == ERR_NOT_FOUND;
    (void)fchmod(setup->file_fd, (mode_t)json_integer_value(json_object_get(file, "mode")) & 0777);
    (void)close(setup->file_fd);
    setup->file_fd = -1;
    if (bad)
        setup->r = 0; /* of the checkpoint, not of the node */
    if (setup_over(setup, "restore"))
        return;
    if (bad && setup->again) {
        restore_lose(setup, file);
        return;
    }
    setup->again = bad;
    if (!bad)
        setup->file_at++;
    restore_next(setup);
}

static int restore_begin(struct setup *setup, const json_t *file)
{
    struct node *node = setup->node;
    const char *path = json_string_value(json_object_get(file, "path"));
    OWNED(mem_free) char *to = xasprintf("%s/%s", node->loaded, path);
    char key[BLOB_KEY_SIZE];
    int r = folders_above(to, &setup->err);

    if (r < 0)
        return r;
    trainer_blob_key(json_string_value(json_object_get(file, "project")),
                     json_string_value(json_object_get(file, "digest")),
                     (uint64_t)json_integer_value(json_object_get(file, "number")), key);
    setup->file_fd = open(to, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (setup->file_fd < 0)
        return err_set_errno(&setup->err, ERR_IO, "make %s", to);
    return blob_copy(node->trainer->blobs, key, setup->file_fd, UINT64_MAX >> 1, on_restored, setup,
                     &setup->err);
}

static void restore_next(struct setup *setup)
{
    struct node *node = setup->node;

    if (setup->file_at == json_array_size(setup->files)) {
        if (setup->file_at == 0)
            mem_free(&node->loaded);
        setup_free(&setup);
        node_ready(node);
        return;
    }
    node->busy++;
    setup->r = restore_begin(setup, json_array_get(setup->files, setup->file_at));
    if (setup->r < 0)
        (void)setup_over(setup, "restore");
}

/* Below the folder that is handed over: rank-<n>/<checkpoint>/<path>. */
static void restore_add(struct setup *setup, const struct pg_answer *answer, size_t row)
{
    json_error_t where;
    json_t *files = json_loads(pg_c(answer, 0, row, 3), 0, &where), *file;
    struct wire_id job = pg_id(answer, 0, row, 0);
    char job_text[JOB_ID_TEXT_SIZE];
    size_t i;

    job_id_format(&job, job_text);
    json_array_foreach(files, i, file)
    {
        const char *path = json_string_value(json_object_get(file, "path"));
        OWNED(mem_free) char *below = NULL;

        if (path == NULL || path[0] == '/' || strstr(path, "..") != NULL)
            continue; /* none of our manifests has one */
        below = xasprintf("rank-%llu/%s/%s", (unsigned long long)pg_u64(answer, 0, row, 1),
                          pg_c(answer, 0, row, 2), path);
        (void)json_object_set_new(file, "path", json_string(below));
        (void)json_object_set_new(file, "project", json_string(pg_c(answer, 0, row, 4)));
        (void)json_object_set_new(file, "job", json_string(job_text));
        (void)json_object_set_new(file, "name", json_string(pg_c(answer, 0, row, 2)));
        (void)json_array_append(setup->files, file);
    }
    json_decref(files);
}

static void on_resume(void *opaque, const struct pg_answer *answer)
{
    struct setup *setup = opaque;
    struct node *node = setup->node;

    setup->err = answer->err;
    setup->r = answer->err.code;
    if (setup_over(setup, "restore"))
        return;
    json_decref(setup->files);
    setup->files = json_array();
    setup->file_at = 0;
    setup->again = false;
    for (size_t row = 0; row < pg_row_count(answer, 0); row++)
        restore_add(setup, answer, row);
    if (pg_row_count(answer, 0) > 0)
        log_info("node_restores", LOG_STR("job", node->job_text),
                 LOG_STR("checkpoint", pg_c(answer, 0, 0, 2)),
                 LOG_U64("files", json_array_size(setup->files)));
    restore_next(setup);
}

static void restore(struct setup *setup)
{
    struct node *node = setup->node;
    struct pg_batch *batch = pg_batch_new();

    mem_free(&node->loaded);
    node->loaded = xasprintf("%s/loaded", node->dir);
    pg_add(batch, &setup_resume);
    pg_bind_id(batch, &node->job);
    node->busy++;
    trainer_send(node->trainer, &batch, on_resume, setup);
}

/* ---- the workspace ---- */

static int file_copy(const char *from, const char *to, struct err *err)
{
    OWNED(mem_free) char *block = xmalloc(COPY_SIZE);
    int in = open(from, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    int out = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    ssize_t size = -1;
    bool first = true;

    while (in >= 0 && out >= 0 && (size = read(in, block, COPY_SIZE)) > 0) {
        /* Archives carry no modes here; what begins like a script is meant to be run. */
        if (first && size > 2 && block[0] == '#' && block[1] == '!')
            (void)fchmod(out, 0755);
        first = false;
        if (write(out, block, (size_t)size) != size) {
            size = -1;
            break;
        }
    }
    if (size < 0)
        (void)err_set_errno(err, ERR_IO, "copy %s", from);
    if (in >= 0)
        (void)close(in);
    if (out >= 0)
        (void)close(out);
    return size < 0 ? ERR_IO : 0;
}

static int tree_copy(const char *from, const char *to, struct err *err)
{
    char *roots[] = {(char *)from, NULL}; /* NOLINT: fts only reads it */
    FTS *tree = fts_open(roots, FTS_PHYSICAL | FTS_NOCHDIR, NULL);
    FTSENT *entry;
    int r = 0;

    if (tree == NULL)
        return err_set_errno(err, ERR_IO, "read folder %s", from);
    while (r == 0 && (entry = fts_read(tree)) != NULL) {
        OWNED(mem_free) char *path = xasprintf("%s%s", to, entry->fts_path + strlen(from));

        if (entry->fts_info == FTS_D && mkdir(path, 0755) < 0 && errno != EEXIST)
            r = err_set_errno(err, ERR_IO, "make folder %s", path);
        else if (entry->fts_info == FTS_F)
            r = file_copy(entry->fts_path, path, err);
        else if (entry->fts_info == FTS_ERR || entry->fts_info == FTS_DNR)
            r = err_set(err, ERR_IO, "read %s: %s", entry->fts_path, strerror(entry->fts_errno));
    }
    (void)fts_close(tree);
    return r;
}

/* thread: libuv's pool   locks: none; the setup is this thread's until its done call */
static void copy_work(uv_work_t *work)
{
    struct setup *setup = (struct setup *)work;
    OWNED(mem_free) char *to = xasprintf("%s/workspace", setup->node->dir);

    setup->r = tree_copy(setup->unpacked, to, &setup->err);
}

static void on_copied(uv_work_t *work, int status)
{
    struct setup *setup = (struct setup *)work;

    (void)status;
    if (!setup_over(setup, "workspace"))
        restore(setup);
}

/* thread: libuv's pool   locks: none; the setup is this thread's until its done call */
static void unpack_work(uv_work_t *work)
{
    struct setup *setup = (struct setup *)work;
    OWNED(mem_free) char *cache = xasprintf("%s/workspaces", setup->node->trainer->cache_dir);

    (void)mkdir(cache, 0700);
    setup->r = agent_unpack(setup->fd, setup->node->archive, cache, WORKSPACE_SIZE_MAX,
                            &setup->unpacked, &setup->err);
}

static void on_unpacked(uv_work_t *work, int status)
{
    struct setup *setup = (struct setup *)work;

    (void)status;
    if (!setup_over(setup, "workspace"))
        setup_on_thread(setup, copy_work, on_copied);
}

static void on_archive(void *opaque, int fd, uint64_t size, const struct err *err)
{
    struct setup *setup = opaque;

    (void)size;
    setup->fd = err->code == ERR_OK ? fd : -1;
    setup->err = *err;
    setup->r = err->code;
    if (!setup_over(setup, "workspace"))
        setup_on_thread(setup, unpack_work, on_unpacked);
}

static void workspace(struct setup *setup)
{
    struct node *node = setup->node;
    OWNED(mem_free) char *cache = xasprintf("%s/workspaces", node->trainer->cache_dir);

    if (node->archive[0] == '\0') {
        restore(setup);
        return;
    }
    setup->unpacked = agent_unpacked(cache, node->archive);
    if (setup->unpacked != NULL) {
        setup_on_thread(setup, copy_work, on_copied);
        return;
    }
    node->busy++;
    if (node->archive_blob[0] == '\0')
        setup->r = err_set(&setup->err, ERR_NOT_FOUND, "there is no archive %s", node->archive);
    else
        setup->r = blob_open(node->trainer->blobs, node->archive_blob, on_archive, setup,
                             &setup->err);
    if (setup->r < 0)
        (void)setup_over(setup, "workspace");
}

/* ---- the image ---- */

static void on_fetched(void *opaque, int exit_code, const char *text)
{
    struct setup *setup = opaque;
    const struct node *node = setup->node;
    const char *last = strrchr(text, '\n');

    setup->r = 0;
    if (exit_code != 0)
        setup->r = err_set(&setup->err, ERR_NOT_FOUND, "image '%.120s' cannot be fetched by %s: %s",
                           node->image, container_tool_name(&node->tool),
                           last == NULL ? text : last + 1);
    if (!setup_over(setup, "image"))
        workspace(setup);
}

static void on_looked(void *opaque, int exit_code, const char *text)
{
    struct setup *setup = opaque;

    (void)text;
    setup->r = 0;
    if (setup_over(setup, "image"))
        return;
    if (exit_code == 0) {
        workspace(setup);
        return;
    }
    setup->node->busy++;
    node_container_fetch(setup->node, on_fetched, setup);
}

/* ---- folders ---- */

static int folder(const char *path, struct err *err)
{
    int r = folders_above(path, err);

    if (r == 0 && mkdir(path, 0755) < 0 && errno != EEXIST)
        return err_set_errno(err, ERR_IO, "make folder %s", path);
    return r;
}

static int folders_make(struct node *node, struct err *err)
{
    static const char *const below[] = {"workspace", "checkpoints", "scratch"};
    OWNED(mem_free)
    char *project = xasprintf("%s/projects/%s", node->trainer->cache_dir, node->project);
    OWNED(mem_free)
    char *team = xasprintf("%s/teams/%s", node->trainer->cache_dir, node->tenant);
    int r = folder(project, err);

    node->dir = xasprintf("%s/%s-%u-%u", node->trainer->jobs_dir, node->job_text, node->placement,
                          node->rank);
    if (r == 0)
        r = folder(team, err);
    for (size_t i = 0; i < COUNT_OF(below) && r == 0; i++) {
        OWNED(mem_free) char *path = xasprintf("%s/%s", node->dir, below[i]);

        r = folder(path, err);
    }
    return r;
}

void node_setup(struct node *node)
{
    struct setup *setup = xcalloc(1, sizeof(*setup));
    struct err err;

    setup->node = node;
    setup->fd = setup->file_fd = -1;
    if (folders_make(node, &err) < 0) {
        setup_free(&setup);
        node_end(node, "lost", -1, 0, err.text);
        return;
    }
    if (node_container_choose(node, &err) < 0) {
        setup_free(&setup);
        node_end(node, "image", -1, 0, err.text);
        return;
    }
    if (node->image == NULL) {
        workspace(setup);
        return;
    }
    node->busy++;
    node_container_look(node, on_looked, setup);
}
