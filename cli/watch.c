/* SPDX-License-Identifier: Apache-2.0 */

#include "cli/watch.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "cli/list.h"

#define POLL_MS_FIRST 20 /* most small jobs are over by the second look */
#define POLL_MS_MAX 500

bool watch_is_final(const char *status)
{
    return strcmp(status, "QUEUED") != 0 && strcmp(status, "IN_PROGRESS") != 0;
}

/* How the wait is shown. */
struct progress {
    bool quiet, terminal;
    uint64_t started_ms;
    unsigned turn;
    char last[32]; /* state shown last */
};

static void progress_show(struct progress *progress, const char *status)
{
    static const char *const spinner[] = {"⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"};
    double seconds = (double)(clock_mono_ms() - progress->started_ms) / 1000;

    if (progress->quiet)
        return;
    if (progress->terminal)
        (void)fprintf(stderr, "\r\033[K%s %s %.1f s", spinner[progress->turn++ % COUNT_OF(spinner)],
                      status, seconds);
    else if (strcmp(progress->last, status) != 0)
        (void)fprintf(stderr, "%s after %.3f s\n", status, seconds);
    mem_copy_text(progress->last, status);
}

int watch_job(const struct client *client, const char *id, bool quiet, json_t **ret_status,
              struct err *err)
{
    struct progress progress = {
        .quiet = quiet, .terminal = isatty(STDERR_FILENO) == 1, .started_ms = clock_mono_ms()};
    OWNED(mem_free) char *path = path_make("/async_request/%", id);
    const struct client_call call = {.method = "GET", .path = path};
    int wait_ms = POLL_MS_FIRST;

    for (;;) {
        OWNED(client_json_free) json_t *answer = NULL;
        const char *status;
        int http, r;

        r = client_exchange(client, &call, &http, &answer, err);
        if (r < 0)
            return r;
        status = json_string_value(json_object_get(answer, "status"));
        if (status == NULL)
            return err_set(err, ERR_MALFORMED, "the gateway's answer has no status");
        progress_show(&progress, status);
        if (watch_is_final(status)) {
            if (progress.terminal && !quiet)
                (void)fputc('\n', stderr);
            *ret_status = TAKE(answer);
            return 0;
        }
        (void)poll(NULL, 0, wait_ms);
        wait_ms = wait_ms * 3 / 2 < POLL_MS_MAX ? wait_ms * 3 / 2 : POLL_MS_MAX;
    }
}
