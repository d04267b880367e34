/* SPDX-License-Identifier: Apache-2.0 */
#include "workers/engines/encoder_cuda/plan_cache.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <openssl/evp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/rng.h"

#define FORMAT 1
#define GRAPH_SIZE_MAX 4096
#define HEADER_SIZE_MAX (2 * GRAPH_SIZE_MAX + 1024) /* a graph may be escaped */
#define NAME_SIZE 96
#define DIGEST_TEXT_SIZE 65
#define SUFFIX ".plan"
#define PART_SUFFIX ".part"
#define PART_AGE_MAX_S 3600
#define LISTED_MAX 65536 /* files that a sweep looks at */

struct plan_cache {
    int dir; /* file descriptor */
    struct plan_cache_bounds bounds;
};

static void fd_close(int *fd_p)
{
    if (*fd_p >= 0)
        (void)close(*fd_p);
    *fd_p = -1;
}

static void digest_text(const void *bytes, size_t size, char ret_text[DIGEST_TEXT_SIZE])
{
    unsigned char digest[32];
    int done = EVP_Digest(bytes, size, digest, NULL, EVP_sha256(), NULL);

    assert(done == 1);
    for (size_t i = 0; i < sizeof(digest); i++)
        (void)snprintf(ret_text + 2 * i, 3, "%02x", digest[i]);
}

static void entry_name(const struct plan_cache_key *key, char ret_name[NAME_SIZE])
{
    OWNED(mem_free)
    char *said = xasprintf("%s\n%s\n%llu\n%s", key->device, key->capability,
                           (unsigned long long)key->library, key->graph);

    digest_text(said, strlen(said), ret_name);
    memcpy(ret_name + DIGEST_TEXT_SIZE - 1, SUFFIX, sizeof(SUFFIX));
}

int plan_cache_open(const char *dir, const struct plan_cache_bounds *bounds,
                    struct plan_cache **ret_cache, struct err *err)
{
    OWNED(plan_cache_close) struct plan_cache *cache = xcalloc(1, sizeof(*cache));
    struct stat st;

    cache->dir = -1;
    if (mkdir(dir, 0700) < 0 && errno != EEXIST)
        return err_set_errno(err, ERR_IO, "plans: cannot make '%s'", dir);
    cache->dir = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (cache->dir < 0 || fstat(cache->dir, &st) < 0)
        return err_set_errno(err, ERR_IO, "plans: cannot open '%s'", dir);
    if (st.st_uid != geteuid() || (st.st_mode & 022))
        return err_set(err, ERR_FORBIDDEN,
                       "plans: '%s' must be this user's own and writable by nobody else", dir);
    cache->bounds.entry_max = bounds && bounds->entry_max ? bounds->entry_max
                                                          : PLAN_CACHE_ENTRY_MAX;
    cache->bounds.size_max = bounds && bounds->size_max ? bounds->size_max : PLAN_CACHE_SIZE_MAX;
    *ret_cache = TAKE(cache);
    return 0;
}

void plan_cache_close(struct plan_cache **cache_p)
{
    if (*cache_p)
        fd_close(&(*cache_p)->dir);
    mem_free(cache_p);
}

/* --- reading --- */

static int read_all(int fd, char *to, size_t size)
{
    for (size_t got = 0; got < size;) {
        ssize_t n = read(fd, to + got, size - got);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return -1;
        got += (size_t)n;
    }
    return 0;
}

static bool key_equal(json_t *header, const struct plan_cache_key *key)
{
    const char *device = json_string_value(json_object_get(header, "device"));
    const char *capability = json_string_value(json_object_get(header, "capability"));
    const char *graph = json_string_value(json_object_get(header, "graph"));
    json_t *library = json_object_get(header, "library");

    return device && capability && graph && strcmp(device, key->device) == 0 &&
           strcmp(capability, key->capability) == 0 && strcmp(graph, key->graph) == 0 &&
           json_is_integer(library) && (uint64_t)json_integer_value(library) == key->library;
}

/* text is the whole file, size bytes and a NUL. */
static int entry_parse(const char *name, const char *text, size_t size,
                       const struct plan_cache_key *key, const char **ret_plan, struct err *err)
{
    const char *end = memchr(text, '\n', size < HEADER_SIZE_MAX ? size : HEADER_SIZE_MAX);
    json_t *header = end ? json_loadb(text, (size_t)(end - text), 0, NULL) : NULL;
    const char *want = json_string_value(json_object_get(header, "sha256"));
    char have[DIGEST_TEXT_SIZE];
    int r = 0;

    if (!header || json_integer_value(json_object_get(header, "headrace_plan")) != FORMAT)
        r = err_set(err, ERR_MALFORMED, "plans: %s has no header of format %d", name, FORMAT);
    else if (!key_equal(header, key))
        r = err_set(err, ERR_MISMATCH, "plans: %s was made for something else", name);
    if (r == 0) {
        size_t plan_size = size - (size_t)(end + 1 - text);

        digest_text(end + 1, plan_size, have);
        if (!want || strcmp(want, have) != 0 || memchr(end + 1, '\0', plan_size))
            r = err_set(err, ERR_MALFORMED, "plans: %s is damaged", name);
        *ret_plan = end + 1;
    }
    json_decref(header);
    return r;
}

int plan_cache_get(struct plan_cache *cache, const struct plan_cache_key *key, char **ret_plan,
                   struct err *err)
{
    OWNED(fd_close) int fd = -1;
    OWNED(mem_free) char *text = NULL;
    char name[NAME_SIZE];
    const char *plan;
    struct stat st;
    size_t size;

    entry_name(key, name);
    fd = openat(cache->dir, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT) {
        *ret_plan = NULL;
        return 0;
    }
    if (fd < 0 || fstat(fd, &st) < 0)
        return err_set_errno(err, ERR_IO, "plans: cannot open %s", name);
    if (!S_ISREG(st.st_mode) || st.st_size > HEADER_SIZE_MAX + PLAN_CACHE_PLAN_SIZE_MAX)
        return err_set(err, ERR_MALFORMED, "plans: %s is no plan: %lld bytes", name,
                       (long long)st.st_size);
    size = (size_t)st.st_size;
    text = xcalloc(size + 1, 1);
    if (read_all(fd, text, size))
        return err_set_errno(err, ERR_IO, "plans: cannot read %s", name);
    if (entry_parse(name, text, size, key, &plan, err))
        return err->code;
    (void)futimens(fd, NULL); /* used now: the last to be deleted; no harm where it fails */
    *ret_plan = xstrdup(plan);
    return 0;
}

/* --- writing --- */

struct listed {
    char name[NAME_SIZE];
    struct timespec used;
    uint64_t size;
};

static int listed_compare(const void *a, const void *b)
{
    const struct timespec *x = &((const struct listed *)a)->used;
    const struct timespec *y = &((const struct listed *)b)->used;

    if (x->tv_sec != y->tv_sec)
        return x->tv_sec < y->tv_sec ? -1 : 1;
    return x->tv_nsec < y->tv_nsec ? -1 : x->tv_nsec > y->tv_nsec;
}

static bool name_ends(const char *name, const char *suffix)
{
    size_t size = strlen(name), suffix_size = strlen(suffix);

    return size > suffix_size && size < NAME_SIZE && strcmp(name + size - suffix_size, suffix) == 0;
}

/* Deletes old parts and lists the entries; the caller frees the list. */
static uint32_t sweep_list(struct plan_cache *cache, const struct timespec *now,
                           struct listed **ret_list)
{
    OWNED(fd_close) int fd = openat(cache->dir, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
    struct listed *list = NULL;
    uint32_t count = 0, room = 0;

    *ret_list = NULL;
    if (!dir)
        return 0;
    fd = -1; /* the stream's from here on */
    for (struct dirent *entry; count < LISTED_MAX && (entry = readdir(dir)) != NULL;) {
        bool part = name_ends(entry->d_name, PART_SUFFIX);
        struct stat st;

        if ((!part && !name_ends(entry->d_name, SUFFIX)) ||
            fstatat(cache->dir, entry->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0)
            continue;
        if (part) {
            if (st.st_mtim.tv_sec + PART_AGE_MAX_S < now->tv_sec)
                (void)unlinkat(cache->dir, entry->d_name, 0);
            continue;
        }
        if (count == room) {
            room = room ? 2 * room : 64;
            list = xrealloc(list, room, sizeof(*list));
        }
        mem_copy_text(list[count].name, entry->d_name);
        list[count].used = st.st_mtim;
        list[count++].size = (uint64_t)st.st_size;
    }
    (void)closedir(dir);
    *ret_list = list;
    return count;
}

/* now is the time at which the newest entry was written, by the file system's own clock. */
static void sweep(struct plan_cache *cache, const char *newest, const struct timespec *now)
{
    OWNED(mem_free) struct listed *list = NULL;
    uint32_t count = sweep_list(cache, now, &list), left = count;
    uint64_t size = 0;

    for (uint32_t i = 0; i < count; i++)
        size += list[i].size;
    if (count > 1)
        qsort(list, count, sizeof(*list), listed_compare);
    for (uint32_t i = 0; i < count; i++) {
        if (left <= cache->bounds.entry_max && size <= cache->bounds.size_max)
            return;
        if (strcmp(list[i].name, newest) == 0)
            continue;
        (void)unlinkat(cache->dir, list[i].name, 0); /* another host may have been faster */
        size -= list[i].size;
        left--;
    }
}

static int write_all(int fd, const char *from, size_t size)
{
    while (size > 0) {
        ssize_t n = write(fd, from, size);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return -1;
        from += n;
        size -= (size_t)n;
    }
    return 0;
}

static char *header_make(const struct plan_cache_key *key, const char *plan, size_t plan_size)
{
    char digest[DIGEST_TEXT_SIZE];
    json_t *header;
    char *text;

    digest_text(plan, plan_size, digest);
    header = json_pack("{s:i, s:s, s:s, s:I, s:s, s:s}", "headrace_plan", FORMAT, "device",
                       key->device, "capability", key->capability, "library",
                       (json_int_t)key->library, "graph", key->graph, "sha256", digest);
    text = header ? json_dumps(header, JSON_COMPACT) : NULL;
    json_decref(header);
    return text;
}

/* Whole, on the disk and closed; *ret_now is when. */
static int part_write(struct plan_cache *cache, const char *part, const char *header,
                      const char *plan, size_t plan_size, struct timespec *ret_now, struct err *err)
{
    OWNED(fd_close)
    int fd = openat(cache->dir, part, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    struct stat st;

    if (fd < 0 || write_all(fd, header, strlen(header)) || write_all(fd, "\n", 1) ||
        write_all(fd, plan, plan_size) || fsync(fd) || fstat(fd, &st))
        return err_set_errno(err, ERR_IO, "plans: cannot write %s", part);
    *ret_now = st.st_mtim;
    return 0;
}

int plan_cache_put(struct plan_cache *cache, const struct plan_cache_key *key, const char *plan,
                   struct err *err)
{
    OWNED(mem_free) char *header = NULL;
    size_t plan_size = strlen(plan);
    char name[NAME_SIZE], part[NAME_SIZE];
    struct timespec now;
    uint64_t random;

    if (plan_size > PLAN_CACHE_PLAN_SIZE_MAX || strlen(key->graph) > GRAPH_SIZE_MAX)
        return err_set(err, ERR_TOO_BIG,
                       "plans: a plan of %zu bytes for a graph of %zu; the limits are %u and %u",
                       plan_size, strlen(key->graph), PLAN_CACHE_PLAN_SIZE_MAX, GRAPH_SIZE_MAX);
    header = header_make(key, plan, plan_size);
    if (!header)
        return err_set(err, ERR_MALFORMED, "plans: the key is not UTF-8");
    entry_name(key, name);
    rng_secret_bytes(&random, sizeof(random));
    (void)snprintf(part, sizeof(part), "%016llx" PART_SUFFIX, (unsigned long long)random);
    if (part_write(cache, part, header, plan, plan_size, &now, err) ||
        (renameat(cache->dir, part, cache->dir, name) &&
         err_set_errno(err, ERR_IO, "plans: cannot rename %s", part))) {
        (void)unlinkat(cache->dir, part, 0);
        return err->code;
    }
    sweep(cache, name, &now);
    return 0;
}
