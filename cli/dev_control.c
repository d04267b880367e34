/* SPDX-License-Identifier: Apache-2.0 */

/*
 * DATA/dev.sock: how a second shell, and a test, talks to a running dev. One line in, one JSON
 * answer out, one request a connection:
 *
 *     status | down | stop NAME | kill NAME | start NAME
 *
 * `stop` ends a service as dev itself would, `kill` by SIGKILL, and neither counts as a death.
 * The directory is mode 0700, which is the access control. A socket's path may have 107 bytes
 * and a clone may lie deeper, so both sides reach it through /proc/self/fd of the directory.
 */

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/buf.h"
#include "cli/dev.h"

enum { REQUEST_SIZE_MAX = 256, ANSWER_SIZE_MAX = 262144, REQUEST_WAIT_MS = 1000 };

/* Opens the directory and fills the address of the socket below it; -1 on failure. */
static int address_fill(const char *data_dir, struct sockaddr_un *address)
{
    int directory = open(data_dir, O_PATH | O_DIRECTORY | O_CLOEXEC);

    *address = (struct sockaddr_un){.sun_family = AF_UNIX};
    (void)snprintf(address->sun_path, sizeof(address->sun_path), "/proc/self/fd/%d/dev.sock",
                   directory);
    return directory;
}

int dev_control_listen(struct dev *dev, struct err *err)
{
    struct sockaddr_un address;
    int directory = address_fill(dev->data_dir, &address);
    bool bound;

    if (directory < 0)
        return err_set_errno(err, ERR_IO, "open %s", dev->data_dir);
    dev->control_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    /* We hold the directory's lock, so a socket that is there belongs to a dead run. */
    (void)unlink(address.sun_path);
    bound = dev->control_fd >= 0 &&
            bind(dev->control_fd, (struct sockaddr *)&address, sizeof(address)) == 0 &&
            listen(dev->control_fd, SOMAXCONN) == 0;
    (void)close(directory);
    if (!bound)
        return err_set_errno(err, ERR_IO, "listen on %s/dev.sock", dev->data_dir);
    return 0;
}

void dev_control_close(struct dev *dev)
{
    struct sockaddr_un address;
    int directory;

    if (dev->control_fd < 0)
        return;
    (void)close(dev->control_fd);
    dev->control_fd = -1;
    directory = address_fill(dev->data_dir, &address);
    (void)unlink(address.sun_path);
    (void)close(directory);
}

static bool line_read(int fd, char *line, size_t line_size)
{
    size_t size = 0;

    while (size + 1 < line_size) {
        struct pollfd ready = {.fd = fd, .events = POLLIN};
        ssize_t got;

        if (poll(&ready, 1, REQUEST_WAIT_MS) <= 0)
            return false;
        got = read(fd, line + size, line_size - 1 - size);
        if (got <= 0)
            return false;
        size += (size_t)got;
        line[size] = '\0';
        if (line[size - 1] == '\n') {
            line[size - 1] = '\0';
            return true;
        }
    }
    return false;
}

/* Carries out stop, kill or start of one service; the answer is a static text or NULL. */
static const char *service_order(struct dev *dev, const char *verb, const char *name)
{
    struct dev_service *service = dev_service_find(dev, name);

    if (service == NULL || service->state == DEV_STATE_ABSENT)
        return "{\"error\":\"there is no such service\"}";
    if (strcmp(verb, "start") == 0) {
        if (service->state != DEV_STATE_DOWN)
            return "{\"error\":\"it is not down\"}";
        service->tries = 0;
        service->lingers = 0;
        dev_service_start(dev, service);
        return NULL;
    }
    if (service->process.pid == 0)
        return "{\"error\":\"it is down\"}";
    service->stop_asked = true;
    dev_service_stop(dev, service,
                     strcmp(verb, "kill") == 0 ? SIGKILL : service->kind->stop_signal);
    return NULL;
}

static char *request_answer(struct dev *dev, char *line)
{
    char *rest = line;
    const char *verb = strsep(&rest, " ");
    const char *problem = NULL;

    if (strcmp(verb, "down") == 0)
        dev->stopping = true;
    else if (strcmp(verb, "stop") == 0 || strcmp(verb, "kill") == 0 || strcmp(verb, "start") == 0)
        problem = service_order(dev, verb, rest == NULL ? "" : rest);
    else if (strcmp(verb, "status") != 0)
        problem = "{\"error\":\"there is no such request\"}";
    return problem != NULL ? xstrdup(problem) : dev_state_to_json(dev);
}

void dev_control_serve(struct dev *dev)
{
    char line[REQUEST_SIZE_MAX];
    int fd = accept4(dev->control_fd, NULL, NULL, SOCK_CLOEXEC);

    if (fd < 0)
        return;
    if (line_read(fd, line, sizeof(line))) {
        OWNED(mem_free) char *answer = request_answer(dev, line);

        (void)!send(fd, answer, strlen(answer), MSG_NOSIGNAL);
    }
    (void)close(fd);
}

int dev_control_ask(const char *data_dir, const char *request, char **ret_answer, struct err *err)
{
    OWNED(buf_done) struct buf answer = BUF_WITH_LIMIT(ANSWER_SIZE_MAX);
    OWNED(mem_free) char *line = xasprintf("%s\n", request);
    struct sockaddr_un address;
    int directory = address_fill(data_dir, &address);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    char part[4096];
    ssize_t got = -1;
    int code = 0;

    if (directory < 0 || fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
        code = err_set(err, ERR_NOT_FOUND, "no headrace dev runs in %s", data_dir);
    } else {
        if (send(fd, line, strlen(line), MSG_NOSIGNAL) == (ssize_t)strlen(line))
            while ((got = read(fd, part, sizeof(part))) > 0)
                buf_append(&answer, part, (size_t)got);
        if (got < 0 || answer.size == 0)
            code = err_set(err, ERR_IO, "the dev that runs in %s does not answer", data_dir);
    }
    if (fd >= 0)
        (void)close(fd);
    if (directory >= 0)
        (void)close(directory);
    if (code == 0)
        *ret_answer = xstrdup(buf_text(&answer));
    return code;
}
