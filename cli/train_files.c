/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A checkpoint comes to this machine: its list of files, page by page, then each file into a new
 * folder beside the one that is wanted, its digest checked while it is written; at the end the
 * folder gets its name. Cut short, it leaves the folder with the .part at its end.
 */

#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/list.h"
#include "cli/train.h"

#define PATH_SIZE_MAX 16384
#define FILES_MAX 1000000

/* ---- which ---- */

int train_choose(const struct client *client, const char *job, const char *name, char **ret_name,
                 struct err *err)
{
    OWNED(mem_free) char *path = path_make("/v1/training_projects/-/jobs/%/checkpoints", job);
    const struct client_call call = {.method = "GET", .path = path};
    OWNED(client_json_free) json_t *answer = NULL;
    const char *found = NULL;
    const json_t *one;
    size_t i;
    int status, r = client_exchange(client, &call, &status, &answer, err);

    if (r < 0)
        return r;
    json_array_foreach(json_object_get(answer, "checkpoints"), i, one)
    {
        const char *id = json_string_value(json_object_get(one, "checkpoint_id"));
        const char *state = json_string_value(json_object_get(one, "sync_status"));

        if (id != NULL && strchr(id, '/') == NULL && state != NULL &&
            strcmp(state, "COMPLETE") == 0 && (*name == '\0' || strcmp(name, id) == 0))
            found = id;
    }
    if (found == NULL)
        return err_set(err, ERR_NOT_FOUND, "job %s has no complete checkpoint%s%s", job,
                       *name != '\0' ? " " : "", name);
    *ret_name = xstrdup(found);
    return 0;
}

int train_list_files(const struct client *client, const char *job, const char *checkpoint,
                     json_t *files, struct err *err)
{
    OWNED(mem_free) char *route = path_make("/v1/training_projects/-/jobs/%/checkpoint_files", job);
    long long token = 0;

    while (token >= 0) {
        OWNED(buf_done) struct buf path = BUF_WITH_LIMIT(PATH_SIZE_MAX);
        OWNED(client_json_free) json_t *page = NULL;
        struct client_call call = {.method = "GET"};
        const json_t *next;
        int status, r;

        buf_printf(&path, "%s?page_token=%lld", route, token);
        path_append_field(&path, "checkpoint", checkpoint);
        call.path = buf_text(&path);
        r = client_exchange(client, &call, &status, &page, err);
        if (r < 0)
            return r;
        (void)json_array_extend(files, json_object_get(page, "presigned_urls"));
        next = json_object_get(page, "next_page_token");
        token = json_is_integer(next) ? json_integer_value(next) : -1;
        if (json_array_size(files) > FILES_MAX)
            return err_set(err, ERR_TOO_BIG, "more than %d files", FILES_MAX);
    }
    return 0;
}

/* ---- bytes ---- */

struct writing {
    int fd;
    bool failed;
    uint64_t size;
    crypto_hash_sha256_state state;
};

static bool on_bytes(const void *bytes, size_t size, void *opaque)
{
    struct writing *writing = opaque;
    const uint8_t *from = bytes;

    (void)crypto_hash_sha256_update(&writing->state, from, size);
    writing->size += size;
    while (size > 0) {
        ssize_t n = write(writing->fd, from, size);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            writing->failed = true;
            return false;
        }
        from += n;
        size -= (size_t)n;
    }
    return true;
}

/* Nothing absolute, no empty part, '.' or '..': it stays below the folder. */
static bool path_is_inside(const char *path)
{
    for (;;) {
        size_t part = strcspn(path, "/");

        if (part == 0 || (part <= 2 && strncmp(path, "..", part) == 0))
            return false;
        if (path[part] == '\0')
            return true;
        path += part + 1;
    }
}

static int make_folders(char *path, struct err *err)
{
    for (char *slash = strchr(path + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        int r;

        *slash = '\0';
        r = mkdir(path, 0777);
        if (r < 0 && errno != EEXIST)
            return err_set_errno(err, ERR_IO, "make '%s'", path);
        *slash = '/';
    }
    return 0;
}

static int fetch(const struct client *client, const char *url, struct writing *writing,
                 struct err *err)
{
    const struct client_call call = {.method = "GET", .path = url, .send = {.timeout_ms = 3600000}};
    struct client_answer answer;
    int r = client_stream(client, &call, on_bytes, writing, &answer, err);

    if (r == 0 && answer.status >= 400)
        r = client_answer_refusal(&answer, err);
    if (writing->failed)
        r = err_set_errno(err, ERR_IO, "write");
    client_answer_done(&answer);
    return r;
}

int train_take_file(const struct client *client, const json_t *file, char *to, struct err *err)
{
    const char *url = json_string_value(json_object_get(file, "url"));
    const char *path = json_string_value(json_object_get(file, "path"));
    const char *name = json_string_value(json_object_get(file, "relative_file_name"));
    const char *digest = json_string_value(json_object_get(file, "digest"));
    const char *route = url != NULL ? strstr(url, "/v1/training_projects/") : NULL;
    struct writing writing = {.fd = -1};
    uint8_t hash[crypto_hash_sha256_BYTES];
    char hex[2 * sizeof(hash) + 1];
    int r;

    if (route == NULL || path == NULL || digest == NULL || name == NULL || !path_is_inside(path) ||
        !path_is_inside(name))
        return err_set(err, ERR_MALFORMED, "the gateway's list of files has '%.80s'",
                       path != NULL ? path : "-");
    r = make_folders(to, err);
    if (r < 0)
        return r;
    writing.fd = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (writing.fd < 0)
        return err_set_errno(err, ERR_IO, "make '%s'", to);
    (void)crypto_hash_sha256_init(&writing.state);
    r = fetch(client, route, &writing, err);
    if (close(writing.fd) < 0 && r == 0)
        r = err_set_errno(err, ERR_IO, "write '%s'", to);
    if (r < 0)
        return err_wrap(err, "%s", path);
    (void)crypto_hash_sha256_final(&writing.state, hash);
    (void)sodium_bin2hex(hex, sizeof(hex), hash, sizeof(hash));
    if (strcmp(hex, digest) != 0)
        return err_set(err, ERR_MISMATCH, "%s: %llu bytes came, and their SHA-256 is not %s", path,
                       (unsigned long long)writing.size, digest);
    return 0;
}

static long long rank_of(const json_t *file)
{
    return json_integer_value(json_object_get(file, "node_rank"));
}

/* A checkpoint of other nodes alone is none of this one. */
static int check_rank(const json_t *files, int rank, const char *checkpoint, struct err *err)
{
    const json_t *file;
    size_t i;

    json_array_foreach(files, i, file)
    {
        if (rank < 0 || rank_of(file) == rank)
            return 0;
    }
    if (json_array_size(files) == 0)
        return err_set(err, ERR_NOT_FOUND, "checkpoint %s has no files", checkpoint);
    return err_set(err, ERR_NOT_FOUND,
                   "checkpoint %s has no files of node %d; there are those of node %lld",
                   checkpoint, rank, rank_of(json_array_get(files, 0)));
}

/* One of a checkpoint, unless it is another node's. */
static int take_of_rank(const struct client *client, const json_t *file, int rank,
                        const char *folder, struct err *err)
{
    const char *path = json_string_value(json_object_get(file, "path"));
    long long from = rank_of(file);
    OWNED(mem_free) char *to = NULL;

    if (rank >= 0 && from != rank)
        return 0;
    to = rank >= 0 ? xasprintf("%s/%s", folder, path != NULL ? path : "")
                   : xasprintf("%s/rank-%lld/%s", folder, from, path != NULL ? path : "");
    return train_take_file(client, file, to, err);
}

int train_download(const struct client *client, const char *job, const char *checkpoint, int rank,
                   const char *folder, struct err *err)
{
    OWNED(mem_free) char *part = xasprintf("%s.part", folder);
    OWNED(client_json_free) json_t *files = json_array();
    size_t i;
    const json_t *file;
    int r = 0;

    if (access(folder, F_OK) == 0)
        r = err_set(err, ERR_USAGE, "'%s' is there already", folder);
    if (r == 0)
        r = train_list_files(client, job, checkpoint, files, err);
    if (r == 0)
        r = check_rank(files, rank, checkpoint, err);
    if (r == 0 && mkdir(part, 0777) < 0)
        r = err_set_errno(err, ERR_USAGE, "make '%s'", part);
    if (r < 0)
        return r;
    json_array_foreach(files, i, file)
    {
        r = take_of_rank(client, file, rank, part, err);
        if (r < 0)
            return r;
    }
    if (rename(part, folder) < 0)
        return err_set_errno(err, ERR_IO, "name '%s'", folder);
    return 0;
}
