/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The secrets that this worker's model may have, from where its starter put them: read once, kept
 * for each start of the engine host, in memory that goes into no core dump.
 */

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <sodium.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "schema/secret.h"
#include "workers/worker_int.h"

#define HANDED_OVER "/dev/fd/3"
#define HANDED_OVER_FD 3

static int secrets_read(const char *path, struct buf *text, struct err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = 1;

    if (fd < 0)
        return err_set_errno(err, ERR_USAGE, "--secrets=%s", path);
    while (n > 0) {
        uint8_t *room = buf_reserve(text, 4096);

        n = room == NULL ? 0 : read(fd, room, 4096);
        if (n < 0 && errno == EINTR)
            n = 1;
        else if (n > 0)
            buf_commit(text, (size_t)n);
    }
    (void)close(fd);
    if (n < 0)
        return err_set_errno(err, ERR_USAGE, "--secrets=%s", path);
    return buf_check(text, "--secrets", err);
}

static int secrets_check(const char *path, const char *text, struct err *err)
{
    json_t *root = json_loads(text, JSON_REJECT_DUPLICATES, NULL), *value;
    const char *name;
    bool good = json_is_object(root);

    json_object_foreach(root, name, value) good = good && json_is_string(value);
    json_decref(root);
    return good
               ? 0
               : err_set(err, ERR_USAGE, "--secrets=%s: it must hold a JSON object of texts", path);
}

int worker_secrets_open(struct worker *worker, struct err *err)
{
    const struct rlimit no_core = {0, 0};
    const char *path = worker->settings.secrets;
    int r;

    worker->secrets = BUF_WITH_LIMIT(SECRETS_SIZE_MAX + 4096);
    if (path[0] == '\0')
        return 0;
    (void)setrlimit(RLIMIT_CORE, &no_core);
    r = secrets_read(path, &worker->secrets, err);
    if (strcmp(path, HANDED_OVER) == 0)
        (void)close(HANDED_OVER_FD);
    if (r == 0)
        r = secrets_check(path, buf_text(&worker->secrets), err);
    return r;
}

void worker_secrets_close(struct worker *worker)
{
    if (worker->secrets.bytes != NULL)
        sodium_memzero(worker->secrets.bytes, worker->secrets.room);
    buf_done(&worker->secrets);
}
