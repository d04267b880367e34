/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The worker's side of an engine host: the process, its socket, and the frames both ways.
 *
 *     worker_host_start() -> on_ready -> worker_host_run()… -> on_piece… on_final… -> on_gone
 *
 * Frames are gathered and leave with the turn of the loop. on_gone comes once for each start, when
 * the process has ended and all that it had sent was handed out.
 *
 * Failures: a host that cannot be started, breaks the protocol or is killed ends in on_gone with a
 * class: LOST_WORKER, unless it said another one in its BYE.
 * Shutdown: worker_host_free() kills what still runs.
 * Thread: the loop's.   Tests: tests/unit/test_worker_main.c
 */

#include "schema/job.h"
#include "workers/confine.h"
#include "workers/frame.h"
#include "workers/worker_core.h"

struct loop;
struct worker_host;

struct worker_host_options { /* texts are copied */
    const char *engines_folder, *engine, *dir, *model, *device, *settings_json;
    const char *worker;         /* names the cgroup of a host of user code */
    const char *isolation_read; /* what user code may read besides, with colons between */
    enum confine_level isolation;
    uint64_t host_memory_size, host_process_count; /* of user code; 0: no limit */
    unsigned host_nice;                            /* of user code */
    const char *cache_dir, *environment, *deployment, *gateway;
    struct wire_bytes secrets; /* a JSON object; borrowed, for as long as the host lives */
    uint32_t thread_count, batch_token_max, slot_count;
};

struct worker_host_calls {
    void (*on_ready)(void *opaque, const struct frame_ready *ready);
    void (*on_loading)(void *opaque, uint64_t done_size, uint64_t total_size);
    /* A piece of the answer; type is its media type. Texts and bytes are borrowed for the call. */
    void (*on_piece)(void *opaque, uint64_t token, struct wire_bytes bytes, struct wire_text type);
    void (*on_final)(void *opaque, uint64_t token, uint64_t granted,
                     const struct worker_result *result);
    void (*on_stats)(void *opaque, const struct frame_stats *stats);
    void (*on_gone)(void *opaque, enum error_class class, bool final, const char *why);
};

struct worker_host *worker_host_new(struct loop *loop, const struct worker_host_options *options,
                                    const struct worker_host_calls *calls, void *opaque);
void worker_host_free(struct worker_host **host_p);

void worker_host_start(struct worker_host *host);
void worker_host_run(struct worker_host *host, const struct frame_req *req);

/* The same with the input in a sealable memfd, which is taken. */
void worker_host_run_fd(struct worker_host *host, const struct frame_req *req, int fd);

/* The same with a websocket's connection to its gateway beside it, which is taken. False: this
 * engine has no use for one; then the request is to be sent as any other. */
bool worker_host_takes_tunnels(const struct worker_host *host);
void worker_host_run_tunnel(struct worker_host *host, const struct frame_req *req, int fd);

/* During on_final: the memfd that the output came in; -1 when it came in the frame. Borrowed. */
int worker_host_output_fd(const struct worker_host *host, const void *output);
void worker_host_cancel(struct worker_host *host, uint64_t token);
void worker_host_drain(struct worker_host *host);
void worker_host_kill(struct worker_host *host);
