/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/container_call.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/mem.h"
#include "workers/child.h"
#include "workers/confine.h"

#define OUR_BINARY "/proc/self/exe"

struct container_call {
    struct container_call **place; /* where the caller keeps it */
    struct child *child;
    struct loop_timer *timer;
    int fd; /* what it prints, in memory */
    bool killed;
    container_done *done;
    void *opaque;
    char error[ERR_TEXT_SIZE]; /* it did not start */
};

void container_call_free(struct container_call **call_p)
{
    struct container_call *call = TAKE(*call_p);

    if (call == NULL)
        return;
    if (call->child != NULL)
        confine_end(call->child);
    child_free(&call->child);
    loop_timer_free(&call->timer);
    if (call->fd >= 0)
        (void)close(call->fd);
    free(call);
}

/* The last of what it has printed. */
static void text_read(const struct container_call *call, char text[CONTAINER_CALL_TEXT_SIZE])
{
    off_t size = lseek(call->fd, 0, SEEK_END), most = CONTAINER_CALL_TEXT_SIZE - 1;
    ssize_t n = pread(call->fd, text, (size_t)most, size > most ? size - most : 0);

    n = n < 0 ? 0 : n;
    while (n > 0 && strchr("\n\r ", text[n - 1]) != NULL)
        n--;
    text[n] = '\0';
}

static void call_over(struct container_call *call, int exit_code, const char *text)
{
    container_done *done = call->done;
    void *opaque = call->opaque;

    child_free(&call->child);
    container_call_free(call->place);
    done(opaque, exit_code, text);
}

static void call_on_end(void *opaque, const struct child_end *end)
{
    struct container_call *call = opaque;
    char text[CONTAINER_CALL_TEXT_SIZE];

    text_read(call, text);
    if (call->killed)
        mem_copy_text(text, "it took too long, and was ended");
    call_over(call, call->killed || end->signal != 0 ? -1 : end->exit_code, text);
}

void container_call_end(struct container_call *call)
{
    call->killed = true;
    if (call->child != NULL)
        confine_end(call->child);
}

static void call_on_time(void *opaque)
{
    struct container_call *call = opaque;
    char text[ERR_TEXT_SIZE];

    if (call->child != NULL) {
        container_call_end(call);
        return;
    }
    mem_copy_text(text, call->error);
    call_over(call, -1, text);
}

void container_call(struct loop *loop, const struct container_tool *tool, const char *const *words,
                    uint64_t limit_ms, container_done *done, void *opaque,
                    struct container_call **ret_call)
{
    struct container_call *call = xcalloc(1, sizeof(*call));
    OWNED(container_words_done) struct container_words line;
    struct child_spawn spawn = {.path = OUR_BINARY, .extra_fd = -1, .new_group = true};
    struct err err;
    int r = 0;

    *call = (struct container_call){.place = ret_call, .done = done, .opaque = opaque};
    call->timer = loop_timer_new(loop, call_on_time, call);
    call->fd = memfd_create("headrace-container-call", MFD_CLOEXEC);
    container_call_words(tool, words, &line);
    spawn.argv = line.words;
    spawn.stdout_fd = spawn.stderr_fd = call->fd;
    if (call->fd < 0)
        r = err_set_errno(&err, ERR_IO, "make memory for what it prints");
    if (r == 0)
        r = child_start(loop, &spawn, call_on_end, call, &call->child, &err);
    if (r < 0)
        mem_copy_text(call->error, err.text);
    loop_timer_start(call->timer, r < 0 ? 0 : limit_ms, 0);
    *ret_call = call;
}
