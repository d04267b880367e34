/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Each call is a struct blob_call that travels to a thread of libuv's pool, does its blocking work
 * there, and comes back to the loop. The store counts what is under way; closed with calls open, it
 * lives until the last one is back and tells nobody.
 */

#include "brokers/blob.h"

#include <errno.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/loop.h"
#include "brokers/blob_dir.h"
#include "schema/job_id.h"

struct blob_store {
    struct loop *loop;
    struct blob_dir *dir;
    uint32_t call_count; /* under way */
    bool closed;
};

struct blob_upload {
    struct blob_store *store;
    EVP_MD_CTX *digest;
    int fd;
    char *path;
    uint64_t size;
    bool busy, ended, freed; /* busy: a call is under way and holds the memory */
};

enum blob_work {
    BLOB_WORK_PUT,
    BLOB_WORK_GET,
    BLOB_WORK_OPEN,
    BLOB_WORK_REMOVE,
    BLOB_WORK_UPLOAD_WRITE,
    BLOB_WORK_UPLOAD_END,
};

struct blob_call {
    uv_work_t uv;
    struct blob_store *store;
    struct blob_upload *upload; /* of the two upload calls */
    enum blob_work work;
    char key[BLOB_KEY_SIZE];
    struct buf bytes;
    size_t limit;
    int fd;
    uint64_t size;
    struct err err;
    blob_done_call *on_done;
    blob_bytes_call *on_bytes;
    blob_file_call *on_file;
    void *opaque;
};

/* ---- keys ---- */

static void key_of_day(const struct wire_id *job, char to[BLOB_KEY_SIZE])
{
    char when[CLOCK_TEXT_SIZE], id[JOB_ID_TEXT_SIZE];

    clock_format_iso(job_id_time_ms(job) * 1000, when);
    job_id_format(job, id);
    (void)snprintf(to, BLOB_KEY_SIZE, "jobs/%.10s/%s", when, id);
}

void blob_key_input(const struct wire_id *job, char to[BLOB_KEY_SIZE])
{
    char day[BLOB_KEY_SIZE];

    key_of_day(job, day);
    (void)snprintf(to, BLOB_KEY_SIZE, "%.100s/input", day);
}

void blob_key_output(const struct wire_id *job, uint64_t token, char to[BLOB_KEY_SIZE])
{
    char day[BLOB_KEY_SIZE];

    key_of_day(job, day);
    (void)snprintf(to, BLOB_KEY_SIZE, "%.100s/%016llx", day, (unsigned long long)token);
}

void blob_key_archive(const uint8_t digest[BLOB_DIGEST_SIZE], char to[BLOB_KEY_SIZE])
{
    char hex[2 * BLOB_DIGEST_SIZE + 1];

    for (size_t i = 0; i < BLOB_DIGEST_SIZE; i++)
        (void)snprintf(hex + 2 * i, 3, "%02x", digest[i]);
    (void)snprintf(to, BLOB_KEY_SIZE, "archives/%s", hex);
}

int blob_key_check(const char *key, struct err *err)
{
    size_t size = strnlen(key, BLOB_KEY_SIZE);
    char before = '/';

    if (size == 0 || size >= BLOB_KEY_SIZE)
        return err_set(err, ERR_MALFORMED, "blob key has %zu characters; 1 to %d are allowed", size,
                       BLOB_KEY_SIZE - 1);
    for (size_t i = 0; i < size; i++) {
        char c = key[i];
        bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                     c == '_' || c == '-';

        if (!plain && (before == '/' || (c != '.' && c != '/')))
            return err_set(err, ERR_MALFORMED, "blob key '%s' is no path of plain segments", key);
        before = c;
    }
    if (before == '/')
        return err_set(err, ERR_MALFORMED, "blob key '%s' ends in a slash", key);
    return 0;
}

/* ---- work on the pool ---- */

static int work_get(struct blob_call *call)
{
    uint64_t size;
    uint8_t *to;
    int fd, r;

    r = blob_dir_read(call->store->dir, call->key, &fd, &size, &call->err);
    if (r < 0)
        return r;
    if (size > call->limit)
        r = err_set(&call->err, ERR_TOO_BIG, "blob '%s' has %llu bytes; %zu are allowed", call->key,
                    (unsigned long long)size, call->limit);
    call->bytes = BUF_WITH_LIMIT((size_t)size + BLOB_PADDING);
    to = r == 0 ? buf_reserve(&call->bytes, (size_t)size + BLOB_PADDING) : NULL;
    for (size_t at = 0; r == 0 && at < size;) {
        ssize_t n = read(fd, to + at, (size_t)size - at);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            r = n < 0
                    ? err_set_errno(&call->err, ERR_IO, "read blob '%s'", call->key)
                    : err_set(&call->err, ERR_IO, "blob '%s' shrank while it was read", call->key);
        else
            at += (size_t)n;
    }
    (void)close(fd);
    if (r == 0) {
        memset(to + size, 0, BLOB_PADDING);
        buf_commit(&call->bytes, (size_t)size);
    }
    return r;
}

static int work_upload_write(struct blob_call *call)
{
    if (EVP_DigestUpdate(call->upload->digest, call->bytes.bytes, call->bytes.size) != 1)
        return err_set(&call->err, ERR_INTERNAL, "digest of an upload failed");
    return blob_dir_write(call->upload->fd, call->bytes.bytes, call->bytes.size, &call->err);
}

/* thread: libuv's pool   The call belongs to this thread until on_worked(). */
static void on_work(uv_work_t *uv)
{
    struct blob_call *call = (struct blob_call *)uv;
    struct blob_dir *dir = call->store->dir;
    int r = 0;

    switch (call->work) {
    case BLOB_WORK_PUT:
        r = blob_dir_put(dir, call->key, call->bytes.bytes, call->bytes.size, &call->err);
        break;
    case BLOB_WORK_GET:
        r = work_get(call);
        break;
    case BLOB_WORK_OPEN:
        r = blob_dir_read(dir, call->key, &call->fd, &call->size, &call->err);
        break;
    case BLOB_WORK_REMOVE:
        r = blob_dir_remove(dir, call->key, &call->err);
        break;
    case BLOB_WORK_UPLOAD_WRITE:
        r = work_upload_write(call);
        break;
    case BLOB_WORK_UPLOAD_END:
        r = blob_dir_adopt(dir, call->key, call->upload->fd, call->upload->path, &call->err);
        break;
    }
    call->err.code = r;
}

/* ---- back on the loop ---- */

static void upload_release(struct blob_upload *upload)
{
    if (upload->fd >= 0)
        (void)close(upload->fd);
    if (!upload->ended && upload->path != NULL)
        (void)unlink(upload->path);
    EVP_MD_CTX_free(upload->digest);
    free(upload->path);
    free(upload);
}

static void store_release(struct blob_store *store)
{
    blob_dir_close(&store->dir);
    free(store);
}

/* Returns true when somebody still wants to hear of the call. */
static bool call_settle_upload(struct blob_call *call)
{
    struct blob_upload *upload = call->upload;

    if (upload == NULL)
        return true;
    upload->busy = false;
    if (call->work == BLOB_WORK_UPLOAD_END && call->err.code == 0)
        upload->ended = true;
    if (!upload->freed)
        return true;
    upload_release(upload);
    return false;
}

static void on_worked(uv_work_t *uv, int status)
{
    struct blob_call *call = (struct blob_call *)uv;
    struct blob_store *store = call->store;
    bool wanted = call_settle_upload(call) && !store->closed;

    if (status < 0)
        (void)err_set(&call->err, ERR_CANCELED, "blob call was canceled");
    assert(store->call_count > 0);
    store->call_count--;
    if (wanted && call->on_bytes != NULL)
        call->on_bytes(call->opaque, &call->bytes, &call->err);
    else if (wanted && call->on_file != NULL)
        call->on_file(call->opaque, call->err.code == 0 ? call->fd : -1, call->size, &call->err);
    else if (wanted && call->on_done != NULL)
        call->on_done(call->opaque, &call->err);
    else if (call->fd >= 0)
        (void)close(call->fd);
    buf_done(&call->bytes);
    free(call);
    if (store->closed && store->call_count == 0)
        store_release(store);
}

/* Takes the call. */
static int call_send(struct blob_store *store, struct blob_call *call, struct err *err)
{
    int r;

    if (store->call_count >= BLOB_CALLS_MAX) {
        buf_done(&call->bytes);
        free(call);
        return err_set(err, ERR_FULL, "%d calls of the blob store are under way", BLOB_CALLS_MAX);
    }
    r = uv_queue_work(loop_uv(store->loop), &call->uv, on_work, on_worked);
    assert(r == 0);
    store->call_count++;
    if (call->upload != NULL)
        call->upload->busy = true;
    return 0;
}

static int call_new(struct blob_store *store, enum blob_work work, const char *key, void *opaque,
                    struct blob_call **ret_call, struct err *err)
{
    struct blob_call *call;
    int r = key == NULL ? 0 : blob_key_check(key, err);

    if (r < 0)
        return r;
    call = xcalloc(1, sizeof(*call));
    call->store = store;
    call->work = work;
    call->fd = -1;
    call->opaque = opaque;
    if (key != NULL)
        mem_copy_text(call->key, key);
    *ret_call = call;
    return 0;
}

int blob_put(struct blob_store *store, const char *key, struct buf *bytes, blob_done_call *done,
             void *opaque, struct err *err)
{
    struct blob_call *call;
    int r = call_new(store, BLOB_WORK_PUT, key, opaque, &call, err);

    if (r < 0) {
        buf_done(bytes);
        return r;
    }
    buf_move(&call->bytes, bytes);
    call->on_done = done;
    return call_send(store, call, err);
}

int blob_get(struct blob_store *store, const char *key, size_t limit, blob_bytes_call *done,
             void *opaque, struct err *err)
{
    struct blob_call *call;
    int r = call_new(store, BLOB_WORK_GET, key, opaque, &call, err);

    if (r < 0)
        return r;
    call->limit = limit;
    call->on_bytes = done;
    return call_send(store, call, err);
}

int blob_open(struct blob_store *store, const char *key, blob_file_call *done, void *opaque,
              struct err *err)
{
    struct blob_call *call;
    int r = call_new(store, BLOB_WORK_OPEN, key, opaque, &call, err);

    if (r < 0)
        return r;
    call->on_file = done;
    return call_send(store, call, err);
}

int blob_remove(struct blob_store *store, const char *key, blob_done_call *done, void *opaque,
                struct err *err)
{
    struct blob_call *call;
    int r = call_new(store, BLOB_WORK_REMOVE, key, opaque, &call, err);

    if (r < 0)
        return r;
    call->on_done = done;
    return call_send(store, call, err);
}

/* ---- uploads ---- */

int blob_upload_new(struct blob_store *store, struct blob_upload **ret_upload, struct err *err)
{
    OWNED(blob_upload_free) struct blob_upload *upload = xcalloc(1, sizeof(*upload));
    int r;

    upload->store = store;
    upload->fd = -1;
    upload->digest = EVP_MD_CTX_new();
    if (upload->digest == NULL || EVP_DigestInit_ex(upload->digest, EVP_sha256(), NULL) != 1)
        return err_set(err, ERR_INTERNAL, "SHA-256 is not to be had");
    r = blob_dir_make_file(store->dir, &upload->fd, &upload->path, err);
    if (r < 0)
        return r;
    *ret_upload = TAKE(upload);
    return 0;
}

int blob_upload_write(struct blob_upload *upload, struct buf *bytes, blob_done_call *done,
                      void *opaque, struct err *err)
{
    struct blob_call *call;
    int r = call_new(upload->store, BLOB_WORK_UPLOAD_WRITE, NULL, opaque, &call, err);

    assert(r == 0 && !upload->busy);
    buf_move(&call->bytes, bytes);
    call->upload = upload;
    call->on_done = done;
    upload->size += call->bytes.size;
    return call_send(upload->store, call, err);
}

uint64_t blob_upload_size(const struct blob_upload *upload)
{
    return upload->size;
}

void blob_upload_digest(struct blob_upload *upload, uint8_t to[BLOB_DIGEST_SIZE])
{
    int done = EVP_DigestFinal_ex(upload->digest, to, NULL);

    assert(done == 1);
}

const char *blob_upload_path(const struct blob_upload *upload)
{
    return upload->path;
}

int blob_upload_end(struct blob_upload *upload, const char *key, blob_done_call *done, void *opaque,
                    struct err *err)
{
    struct blob_call *call;
    int r = call_new(upload->store, BLOB_WORK_UPLOAD_END, key, opaque, &call, err);

    if (r < 0)
        return r;
    assert(!upload->busy);
    call->upload = upload;
    call->on_done = done;
    return call_send(upload->store, call, err);
}

void blob_upload_free(struct blob_upload **upload_p)
{
    struct blob_upload *upload = TAKE(*upload_p);

    if (upload == NULL)
        return;
    upload->freed = true;
    if (!upload->busy)
        upload_release(upload);
}

/* ---- the store ---- */

int blob_store_open(struct loop *loop, const char *url, struct blob_store **ret_store,
                    struct err *err)
{
    OWNED(mem_free) struct blob_store *store = xcalloc(1, sizeof(*store));
    const char *path = url;
    int r;

    if (strncmp(url, "file://", 7) == 0)
        path = url + 7;
    else if (strstr(url, "://") != NULL)
        return err_set(err, ERR_UNSUPPORTED, "blob store '%.60s' is neither file:// nor a path",
                       url);
    r = blob_dir_open(path, &store->dir, err);
    if (r < 0)
        return r;
    store->loop = loop;
    *ret_store = TAKE(store);
    return 0;
}

void blob_store_close(struct blob_store **store_p)
{
    struct blob_store *store = TAKE(*store_p);

    if (store == NULL)
        return;
    store->closed = true;
    if (store->call_count == 0)
        store_release(store);
}
