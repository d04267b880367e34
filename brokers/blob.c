/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Each call is a struct blob_call. With a directory it travels to a thread of libuv's pool, does
 * its blocking work there, and comes back to the loop; with S3 the work on local files goes that
 * way, too, and the rest is asked of blob_s3.c. The store counts what is under way; closed with
 * calls open, it lives until the last one is back and tells nobody.
 */

#include "brokers/blob.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/loop.h"
#include "brokers/blob_dir.h"
#include "brokers/blob_s3.h"
#include "brokers/blob_s3_options.h"
#include "schema/job_id.h"

#define COPY_PIECE_SIZE (256u << 10)
#define WRITE_BACK_SIZE (8u << 20) /* of pieces */

struct blob_store {
    struct loop *loop;
    struct blob_dir *dir; /* one of the two */
    struct blob_s3 *s3;
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
    bool nameless;           /* the file goes with its descriptor */
};

enum blob_work {
    BLOB_WORK_PUT,
    BLOB_WORK_GET,
    BLOB_WORK_OPEN,
    BLOB_WORK_PUT_FILE,
    BLOB_WORK_COPY,
    BLOB_WORK_LIST,
    BLOB_WORK_REMOVE,
    BLOB_WORK_UPLOAD_WRITE,
    BLOB_WORK_UPLOAD_END,
};

struct blob_call {
    uv_work_t uv;
    struct blob_store *store;
    struct blob_upload *upload; /* of the two upload calls */
    enum blob_work work;
    char key[BLOB_KEY_SIZE]; /* of a list: the prefix */
    char *after;
    struct blob_listing listing;
    struct blob_list list;
    struct buf bytes;
    uint64_t limit;
    int fd; /* the call's own, but for on_file, which takes it */
    uint64_t size;
    EVP_MD_CTX *hash;
    uint8_t digest[BLOB_DIGEST_SIZE];
    struct blob_s3_ask ask;
    struct err err;
    blob_done_call *on_done;
    blob_bytes_call *on_bytes;
    blob_file_call *on_file;
    blob_copied_call *on_copied;
    blob_list_call *on_list;
    void *opaque;
};

/* ---- keys ---- */

static void key_of_id(const char *folder, const struct wire_id *of, char to[BLOB_KEY_SIZE])
{
    char when[CLOCK_TEXT_SIZE], id[JOB_ID_TEXT_SIZE];

    clock_format_iso(job_id_time_ms(of) * 1000, when);
    job_id_format(of, id);
    (void)snprintf(to, BLOB_KEY_SIZE, "%s/%.10s/%s", folder, when, id);
}

static void key_of_day(const struct wire_id *job, char to[BLOB_KEY_SIZE])
{
    key_of_id("jobs", job, to);
}

void blob_key_file(const struct wire_id *file, char to[BLOB_KEY_SIZE])
{
    key_of_id("files", file, to);
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

void blob_key_bulk(const struct wire_id *bulk, uint32_t chunk, bool errors, char to[BLOB_KEY_SIZE])
{
    char day[BLOB_KEY_SIZE];

    key_of_id("bulk", bulk, day);
    (void)snprintf(to, BLOB_KEY_SIZE, "%.100s/%08u.%s", day, chunk, errors ? "error" : "output");
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
        r = err_set(&call->err, ERR_TOO_BIG, "blob '%s' has %llu bytes; %llu are allowed",
                    call->key, (unsigned long long)size, (unsigned long long)call->limit);
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

/* From one file to another, piece by piece; the digest of what passed if one is begun. Whoever
 * syncs the file afterwards has the disk begin while the rest is read. */
static int copy_bytes(struct blob_call *call, int from, int to, uint64_t size, bool will_sync)
{
    OWNED(mem_free) uint8_t *piece = xmalloc(COPY_PIECE_SIZE);
    int r = 0;

    for (uint64_t at = 0; r == 0 && at < size;) {
        uint64_t left = size - at;
        ssize_t n = pread(from, piece, left < COPY_PIECE_SIZE ? (size_t)left : COPY_PIECE_SIZE,
                          (off_t)at);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            r = err_set_errno(&call->err, ERR_IO, "read blob '%s'", call->key);
        else if (n == 0)
            r = err_set(&call->err, ERR_IO, "blob '%s' shrank while it was read", call->key);
        else if (call->hash != NULL && EVP_DigestUpdate(call->hash, piece, (size_t)n) != 1)
            r = err_set(&call->err, ERR_INTERNAL, "digest of a blob failed");
        else
            r = blob_dir_write(to, piece, (size_t)n, &call->err);
        at += n > 0 ? (uint64_t)n : 0;
        if (r == 0 && will_sync && at % WRITE_BACK_SIZE == 0) /* a hint: refused, nothing is lost */
            (void)sync_file_range(to, (off64_t)(at - WRITE_BACK_SIZE), WRITE_BACK_SIZE,
                                  SYNC_FILE_RANGE_WRITE);
    }
    return r;
}

static int work_copy(struct blob_call *call)
{
    int from, r = blob_dir_read(call->store->dir, call->key, &from, &call->size, &call->err);

    if (r < 0)
        return r;
    if (call->size > call->limit)
        r = err_set(&call->err, ERR_TOO_BIG, "blob '%s' has %llu bytes; %llu are allowed",
                    call->key, (unsigned long long)call->size, (unsigned long long)call->limit);
    else if (EVP_DigestInit_ex(call->hash, EVP_sha256(), NULL) != 1)
        r = err_set(&call->err, ERR_INTERNAL, "SHA-256 is not to be had");
    else if (ftruncate(call->fd, 0) < 0 || lseek(call->fd, 0, SEEK_SET) < 0)
        r = err_set_errno(&call->err, ERR_IO, "empty the file for blob '%s'", call->key);
    if (r == 0)
        r = copy_bytes(call, from, call->fd, call->size, false);
    (void)close(from);
    return r;
}

static int work_put_file(struct blob_call *call)
{
    struct blob_dir *dir = call->store->dir;
    OWNED(mem_free) char *path = NULL;
    int fd, r = blob_dir_make_file(dir, &fd, &path, &call->err);

    if (r < 0)
        return r;
    r = copy_bytes(call, call->fd, fd, call->size, true);
    if (r == 0)
        r = blob_dir_adopt(dir, call->key, fd, path, &call->err);
    (void)close(fd);
    if (r < 0)
        (void)unlink(path);
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
    case BLOB_WORK_PUT_FILE:
        r = work_put_file(call);
        break;
    case BLOB_WORK_COPY:
        r = work_copy(call);
        break;
    case BLOB_WORK_LIST:
        r = blob_dir_list(dir, &call->listing, &call->list, &call->err);
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
    if (!upload->ended && upload->path != NULL && !upload->nameless)
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

static void call_free(struct blob_call *call)
{
    if (call->fd >= 0)
        (void)close(call->fd);
    EVP_MD_CTX_free(call->hash);
    blob_list_done(&call->list);
    buf_done(&call->bytes);
    free(call->after);
    free(call);
}

static void call_tell(struct blob_call *call)
{
    bool good = call->err.code == ERR_OK;

    if (good && call->hash != NULL && EVP_DigestFinal_ex(call->hash, call->digest, NULL) != 1)
        call->err.code = err_set(&call->err, ERR_INTERNAL, "digest of a blob failed");
    if (call->on_bytes != NULL)
        call->on_bytes(call->opaque, &call->bytes, &call->err);
    else if (call->on_file != NULL)
        call->on_file(call->opaque, good ? call->fd : -1, call->size, &call->err);
    else if (call->on_copied != NULL)
        call->on_copied(call->opaque, call->size, call->digest, &call->err);
    else if (call->on_list != NULL)
        call->on_list(call->opaque, &call->list, &call->err);
    else if (call->on_done != NULL)
        call->on_done(call->opaque, &call->err);
    if (call->on_file != NULL && good)
        call->fd = -1; /* the callback's */
}

static void call_finish(struct blob_call *call)
{
    struct blob_store *store = call->store;
    bool wanted = call_settle_upload(call) && !store->closed;

    assert(store->call_count > 0);
    store->call_count--;
    if (wanted)
        call_tell(call);
    call_free(call);
    if (store->closed && store->call_count == 0)
        store_release(store);
}

static void on_worked(uv_work_t *uv, int status)
{
    struct blob_call *call = (struct blob_call *)uv;

    if (status < 0)
        (void)err_set(&call->err, ERR_CANCELED, "blob call was canceled");
    call_finish(call);
}

/* ---- S3 ---- */

static void on_asked(struct blob_s3_ask *ask)
{
    struct blob_call *call = (struct blob_call *)((char *)ask - offsetof(struct blob_call, ask));
    uint8_t *padding;

    call->err = ask->err;
    if (ask->work == BLOB_S3_GET && call->err.code == ERR_OK) {
        call->size = ask->size;
        if (ask->to != NULL && (padding = buf_reserve(&call->bytes, BLOB_PADDING)) != NULL)
            memset(padding, 0, BLOB_PADDING);
        if (call->work == BLOB_WORK_OPEN && lseek(call->fd, 0, SEEK_SET) < 0)
            (void)err_set_errno(&call->err, ERR_IO, "rewind blob '%s'", call->key);
    }
    call_finish(call);
}

static void ask_put(struct blob_call *call, struct blob_s3_ask *ask)
{
    ask->work = BLOB_S3_PUT;
    if (call->work == BLOB_WORK_PUT) {
        ask->bytes = call->bytes.size == 0 ? (const uint8_t *)"" : call->bytes.bytes;
        ask->size = call->bytes.size;
    } else {
        ask->fd = call->upload != NULL ? call->upload->fd : call->fd;
        ask->size = call->upload != NULL ? call->upload->size : call->size;
    }
}

/* True when this call is S3's; the others are work on local files. */
static bool ask_fill(struct blob_call *call, struct blob_s3_ask *ask)
{
    *ask = (struct blob_s3_ask){.key = call->key, .fd = call->fd, .done = on_asked};
    switch (call->work) {
    case BLOB_WORK_PUT:
    case BLOB_WORK_PUT_FILE:
    case BLOB_WORK_UPLOAD_END:
        ask_put(call, ask);
        return true;
    case BLOB_WORK_GET:
        call->bytes = BUF_WITH_LIMIT((size_t)call->limit + BLOB_PADDING);
        ask->to = &call->bytes;
        break;
    case BLOB_WORK_OPEN:
    case BLOB_WORK_COPY:
        break;
    case BLOB_WORK_LIST:
        ask->work = BLOB_S3_LIST;
        ask->after = call->listing.after;
        ask->count_max = call->listing.count_max;
        ask->folders = call->listing.folders;
        ask->list = &call->list;
        return true;
    case BLOB_WORK_REMOVE:
        ask->work = BLOB_S3_REMOVE;
        return true;
    case BLOB_WORK_UPLOAD_WRITE:
        return false;
    }
    ask->work = BLOB_S3_GET;
    ask->limit = call->limit;
    ask->digest = call->hash;
    return true;
}

/* Takes the call. */
static int call_send(struct blob_store *store, struct blob_call *call, struct err *err)
{
    int r;

    if (store->call_count >= BLOB_CALLS_MAX) {
        call_free(call);
        return err_set(err, ERR_FULL, "%d calls of the blob store are under way", BLOB_CALLS_MAX);
    }
    store->call_count++;
    if (call->upload != NULL)
        call->upload->busy = true;
    if (store->s3 != NULL && ask_fill(call, &call->ask)) {
        blob_s3_send(store->s3, &call->ask);
        return 0;
    }
    r = uv_queue_work(loop_uv(store->loop), &call->uv, on_work, on_worked);
    assert(r == 0);
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
    call->limit = UINT64_MAX;
    if (store->s3 != NULL && (r = blob_s3_spool(store->s3, &call->fd, err)) < 0) {
        call_free(call);
        return r;
    }
    return call_send(store, call, err);
}

static int call_dup(struct blob_call *call, int fd, struct err *err)
{
    call->fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (call->fd >= 0)
        return 0;
    (void)err_set_errno(err, ERR_IO, "duplicate the descriptor for blob '%s'", call->key);
    call_free(call);
    return err->code;
}

int blob_put_file(struct blob_store *store, const char *key, int fd, uint64_t size,
                  blob_done_call *done, void *opaque, struct err *err)
{
    struct blob_call *call;
    int r = call_new(store, BLOB_WORK_PUT_FILE, key, opaque, &call, err);

    if (r == 0)
        r = call_dup(call, fd, err);
    if (r < 0)
        return r;
    call->size = size;
    call->on_done = done;
    return call_send(store, call, err);
}

int blob_copy(struct blob_store *store, const char *key, int fd, uint64_t limit,
              blob_copied_call *done, void *opaque, struct err *err)
{
    struct blob_call *call;
    int r = call_new(store, BLOB_WORK_COPY, key, opaque, &call, err);

    if (r == 0)
        r = call_dup(call, fd, err);
    if (r < 0)
        return r;
    call->limit = limit;
    call->on_copied = done;
    call->hash = EVP_MD_CTX_new();
    if (call->hash == NULL) {
        call_free(call);
        return err_set(err, ERR_INTERNAL, "SHA-256 is not to be had");
    }
    return call_send(store, call, err);
}

/* ---- lists ---- */

void blob_list_add(struct blob_list *list, const char *key, uint64_t size, uint64_t modified_us)
{
    struct blob_entry *entry;

    if (list->count == list->room) {
        list->room = list->room == 0 ? 64 : 2 * list->room;
        list->entries = xrealloc(list->entries, list->room, sizeof(*list->entries));
    }
    entry = &list->entries[list->count++];
    *entry = (struct blob_entry){.size = size, .modified_us = modified_us};
    mem_copy_text(entry->key, key);
}

void blob_list_done(struct blob_list *list)
{
    free(list->entries);
    *list = (struct blob_list){0};
}

int blob_list(struct blob_store *store, const struct blob_listing *listing, blob_list_call *done,
              void *opaque, struct err *err)
{
    struct blob_call *call;
    int r = call_new(store, BLOB_WORK_LIST, NULL, opaque, &call, err);

    if (r < 0)
        return r;
    mem_copy_text(call->key, listing->prefix);
    call->after = xstrdup(listing->after);
    call->listing = *listing;
    call->listing.prefix = call->key;
    call->listing.after = call->after;
    call->on_list = done;
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
    if (store->s3 != NULL)
        r = blob_s3_spool(store->s3, &upload->fd, err);
    else
        r = blob_dir_make_file(store->dir, &upload->fd, &upload->path, err);
    if (r < 0)
        return r;
    upload->nameless = store->s3 != NULL;
    if (upload->nameless)
        upload->path = xasprintf("/proc/self/fd/%d", upload->fd);
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
    OWNED(blob_s3_options_done) struct blob_s3_options options = {0};
    OWNED(mem_free) struct blob_store *store = xcalloc(1, sizeof(*store));
    const char *path = url;
    int r = 0;

    if (strncmp(url, "file://", 7) == 0)
        path = url + 7;
    else if (strncmp(url, "s3://", 5) == 0)
        path = NULL;
    else if (strstr(url, "://") != NULL)
        return err_set(err, ERR_UNSUPPORTED,
                       "blob store '%.60s' is neither file:// nor s3:// nor a path", url);
    if (path != NULL)
        r = blob_dir_open(path, &store->dir, err);
    else
        r = blob_s3_options_read(url, getenv, &options, err);
    if (r == 0 && path == NULL)
        r = blob_s3_open(loop, &options, &store->s3, err);
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
    store->call_count++; /* the store stays while S3 ends its calls */
    blob_s3_close(&store->s3);
    if (--store->call_count == 0)
        store_release(store);
}
