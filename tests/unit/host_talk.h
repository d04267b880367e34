/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* A worker's side of an engine host, for tests: the host serves in a forked child, the test talks
 * frames to it. Include after cmocka.h. */

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "workers/frame_link.h"

#define WAIT_MS 20000

typedef int talk_serve(int fd);

struct talk {
    pid_t pid;
    struct frame_link *link;
};

/* The host: `serve` in a child, which is killed with the test. */
static inline void talk_open(struct talk *talk, talk_serve *serve)
{
    int fds[2];

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    talk->pid = fork();
    if (talk->pid == 0) {
        (void)close(fds[0]);
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        _exit(serve(fds[1]));
    }
    (void)close(fds[1]);
    talk->link = frame_link_new(fds[0]);
}

static inline void talk_send(struct talk *talk, enum frame_type type, const void *fields)
{
    struct err err;
    bool more = true;

    assert_int_equal(frame_link_send(talk->link, type, fields, &err), 0);
    while (more)
        assert_int_equal(frame_link_flush(talk->link, &more, &err), 0);
}

/* The next frame that is no STATS; false when the host has closed. */
static inline bool talk_next(struct talk *talk, struct frame *ret_frame)
{
    struct err err;
    int r;

    for (;;) {
        struct pollfd ready = {.fd = frame_link_fd(talk->link), .events = POLLIN};

        r = frame_link_next(talk->link, ret_frame, &err);
        assert_true(r >= 0);
        if (r == 1 && ret_frame->type != FRAME_STATS)
            return true;
        if (r == 1)
            continue;
        assert_int_equal(poll(&ready, 1, WAIT_MS), 1);
        if (frame_link_receive(talk->link, &err) < 0)
            return false;
    }
}

static inline void talk_want(struct talk *talk, enum frame_type type, struct frame *ret_frame)
{
    assert_true(talk_next(talk, ret_frame));
    assert_string_equal(frame_type_name(ret_frame->type), frame_type_name(type));
}

/* Ends the talk; returns the exit code, or minus the signal that ended the host. */
static inline int talk_close(struct talk *talk)
{
    int status;

    frame_link_free(&talk->link);
    assert_int_equal(waitpid(talk->pid, &status, 0), talk->pid);
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}
