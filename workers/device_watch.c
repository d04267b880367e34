/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/device_watch.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/loop.h"
#include "workers/child.h"

#define BINARY "/proc/self/exe"
#define PATIENCE 5    /* so many limits more until the process is killed */
#define SINCE_SIZE 19 /* of a date: to the second */

struct device_watch {
    struct loop *loop;
    struct device_watch_options options;
    struct device_watch_calls calls;
    void *opaque;
    struct child *child; /* NULL: there is none, or it could not be started */
    struct loop_watch *readable;
    struct loop_timer *limit;
    int fd;      /* our end; -1: there is no process, or it is to end */
    bool asked;  /* and not answered yet … */
    bool late;   /* … within the limit */
    bool silent; /* and told */
    bool killed; /* and not ended yet */
    uint64_t limit_ms, asked_wall_us;
    struct device_packet packet;
};

/* ---- silence ---- */

static void watch_silent(struct device_watch *watch, const char *why)
{
    if (watch->silent)
        return;
    watch->silent = true;
    watch->calls.on_silent(watch->opaque, why);
}

static void watch_forget(struct device_watch *watch)
{
    loop_watch_free(&watch->readable);
    if (watch->fd >= 0)
        (void)close(watch->fd);
    watch->fd = -1;
}

static void watch_kill(struct device_watch *watch)
{
    watch->killed = true;
    watch_forget(watch);
    child_signal(watch->child, SIGKILL);
}

static void watch_on_limit(void *opaque)
{
    struct device_watch *watch = opaque;
    char since[CLOCK_TEXT_SIZE], why[DEVICE_TEXT_SIZE];

    if (watch->killed || !watch->asked)
        return;
    if (watch->late) {
        log_warn("devices_given_up", LOG_I64("pid", child_pid(watch->child)));
        watch_kill(watch);
        return;
    }
    clock_format_iso(watch->asked_wall_us, since);
    (void)snprintf(why, sizeof(why), "the NVIDIA driver does not answer since %.*sZ", SINCE_SIZE,
                   since);
    watch->late = true;
    loop_timer_start(watch->limit, watch->options.timeout_ms * PATIENCE, 0);
    watch_silent(watch, why);
}

/* ---- the process ---- */

static void watch_on_end(void *opaque, const struct child_end *end)
{
    struct device_watch *watch = opaque;
    char why[DEVICE_TEXT_SIZE];

    log_warn("devices_host_ended", LOG_I64("pid", child_pid(watch->child)),
             LOG_STR("how", end->text));
    (void)snprintf(why, sizeof(why), "what asks the NVIDIA driver %s", end->text);
    child_free(&watch->child);
    watch_forget(watch);
    loop_timer_stop(watch->limit);
    watch->asked = watch->late = watch->killed = false;
    watch_silent(watch, why);
}

static void watch_take(struct device_watch *watch, size_t size)
{
    const struct device_packet *packet = &watch->packet;

    if (size == DEVICE_PACKET_SIZE(xid) && packet->kind == DEVICE_PACKET_XID) {
        watch->calls.on_xid(watch->opaque, packet->xid.uuid, packet->xid.number);
    } else if (size == DEVICE_PACKET_SIZE(list) && packet->kind == DEVICE_PACKET_LIST &&
               watch->asked) {
        loop_timer_stop(watch->limit);
        watch->asked = watch->late = watch->silent = false;
        watch->limit_ms = watch->options.timeout_ms;
        watch->calls.on_devices(watch->opaque, &packet->list);
    }
}

static void watch_on_readable(void *opaque, unsigned events)
{
    struct device_watch *watch = opaque;
    ssize_t size = 1;

    (void)events;
    while (watch->fd >= 0 && size > 0) {
        size = recv(watch->fd, &watch->packet, sizeof(watch->packet), MSG_DONTWAIT);
        if (size > 0)
            watch_take(watch, (size_t)size);
        if (size == 0)
            loop_watch_free(&watch->readable); /* watch_on_end() tells of it */
    }
}

static int watch_start(struct device_watch *watch, struct err *err)
{
    char name[] = "headrace", command[] = "host-devices", *library = NULL;
    struct child_spawn spawn = {
        .path = BINARY, .stdout_fd = -1, .stderr_fd = -1, .new_group = true};
    int fds[2], r;

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) < 0)
        return err_set_errno(err, ERR_IO, "make a socket");
    library = xstrdup(watch->options.library);
    spawn.argv = (char *[]){name, command, library, NULL};
    spawn.extra_fd = fds[1];
    r = child_start(watch->loop, &spawn, watch_on_end, watch, &watch->child, err);
    free(library);
    (void)close(fds[1]);
    watch->fd = fds[0];
    if (r == 0)
        r = loop_watch_new(watch->loop, watch->fd, watch_on_readable, watch, &watch->readable, err);
    if (r == 0)
        loop_watch_set(watch->readable, LOOP_READABLE);
    else if (watch->child != NULL)
        watch_kill(watch);
    else
        watch_forget(watch);
    return r;
}

bool device_watch_look(struct device_watch *watch)
{
    struct err err;

    if (watch->asked || watch->killed)
        return false;
    if (watch->child == NULL && watch_start(watch, &err) < 0) {
        log_warn("devices_host_not_started", LOG_ERR(&err));
        watch_silent(watch, err.text);
        return false;
    }
    /* One that has ended, and of which we have not heard yet, is told of by watch_on_end(). */
    (void)send(watch->fd, "", 1, MSG_NOSIGNAL | MSG_DONTWAIT);
    watch->asked = true;
    watch->asked_wall_us = clock_wall_us();
    loop_timer_start(watch->limit, watch->limit_ms, 0);
    return true;
}

/* ---- life ---- */

struct device_watch *device_watch_open(struct loop *loop,
                                       const struct device_watch_options *options,
                                       const struct device_watch_calls *calls, void *opaque)
{
    struct device_watch *watch = xcalloc(1, sizeof(*watch));

    watch->loop = loop;
    watch->options = *options;
    watch->calls = *calls;
    watch->opaque = opaque;
    watch->fd = -1;
    watch->limit_ms = options->first_ms;
    watch->limit = loop_timer_new(loop, watch_on_limit, watch);
    return watch;
}

void device_watch_close(struct device_watch **watch_p)
{
    struct device_watch *watch = TAKE(*watch_p);

    if (watch == NULL)
        return;
    if (watch->child != NULL)
        watch_kill(watch);
    child_free(&watch->child);
    loop_timer_free(&watch->limit);
    free(watch);
}
