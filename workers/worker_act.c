/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Carries out what the core asks for.
 *
 * Inputs by blob key flow from the store into a memfd, are checked on the way against the digest
 * that the gateway made, and the memfd goes to the host. Outputs over the inline limit are stored
 * under day/id/token first and named in the Finished; large ones flow from the host's memfd.
 * Neither is ever whole in this process' own memory.
 *
 * A store that is away or full costs nothing: the job goes back and waits longer each time. An
 * input that is missing, short or not what was submitted ends the attempt as input_lost, which is
 * tried on a few workers and then final; the blob is left for people to look at.
 */

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/log.h"
#include "brokers/fault.h"
#include "schema/job_id.h"
#include "workers/engine_host.h"
#include "workers/worker_int.h"

/* ---- inputs ---- */

static void input_free(struct worker *worker, struct input **input_p)
{
    struct input *input = TAKE(*input_p);

    HASH_DEL(worker->inputs, input);
    if (input->fd >= 0)
        (void)close(input->fd);
    free(input);
}

static struct input *input_find(struct worker *worker, uint64_t token)
{
    struct input *input;

    HASH_FIND(hh, worker->inputs, &token, sizeof(token), input);
    return input;
}

void worker_inputs_free(struct worker *worker)
{
    struct input *input, *next;

    HASH_ITER(hh, worker->inputs, input, next)
    {
        input_free(worker, &input);
    }
}

static int input_check(const struct input *input, uint64_t size,
                       const uint8_t digest[BLOB_DIGEST_SIZE], struct err *err)
{
    if (size != input->size)
        return err_set(err, ERR_MISMATCH, "the input's blob has %llu bytes, it should have %llu",
                       (unsigned long long)size, (unsigned long long)input->size);
    if (input->has_digest && memcmp(digest, input->digest, sizeof(input->digest)) != 0)
        return err_set(err, ERR_MISMATCH, "the input's blob is not what was submitted");
    return 0;
}

/* What a failure of the blob store means for the attempt. While the store is full or away, the job
 * goes back free of charge and waits longer each time; what will not pass has its tries. */
static enum error_class blob_error_class(const struct err *err)
{
    if (err->code == ERR_OK)
        return ERROR_CLASS_NONE;
    return err_class(err->code) == ERR_CLASS_RETRY ? ERROR_CLASS_HANDED_BACK
                                                   : ERROR_CLASS_LOST_WORKER;
}

static enum error_class input_error_class(const struct err *err)
{
    return err->code == ERR_NOT_FOUND || err->code == ERR_MISMATCH || err->code == ERR_TOO_BIG
               ? ERROR_CLASS_INPUT_LOST
               : blob_error_class(err);
}

static void input_tell(struct worker *worker, uint64_t token, const struct err *err)
{
    worker_tick(worker);
    worker_core_on_input(worker->core, token, input_error_class(err), err->text);
    worker_act(worker);
}

static void input_on_copied(void *opaque, uint64_t size, const uint8_t digest[BLOB_DIGEST_SIZE],
                            const struct err *err)
{
    struct input *input = opaque;
    struct worker *worker = input->worker;
    uint64_t token = input->token;
    struct err mine = *err;

    input->fetching = false;
    if (input->forgotten) {
        input_free(worker, &input);
        return;
    }
    if (mine.code == ERR_OK)
        mine.code = input_check(input, size, digest, &mine);
    if (mine.code != ERR_OK) {
        log_warn("input_not_read", LOG_U64("token", token), LOG_ERR(&mine));
        input_free(worker, &input);
    }
    input_tell(worker, token, &mine);
}

static int input_fetch(struct worker *worker, struct input *input, const char *key, struct err *err)
{
    if (worker->blobs == NULL)
        return err_set(err, ERR_DEPENDENCY, "this worker has no blob store for large inputs");
    input->fd = memfd_create("headrace-input", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (input->fd < 0)
        return err_set_errno(err, ERR_IO, "make a memfd for an input");
    return blob_copy(worker->blobs, key, input->fd, FRAME_FD_SIZE_MAX, input_on_copied, input, err);
}

static void act_fetch(struct worker *worker, const struct worker_todo *todo)
{
    OWNED(mem_free) char *key = wire_text_dup(todo->fetch.blob);
    struct input *input = xcalloc(1, sizeof(*input));
    struct err err = {0};
    int r;

    *input = (struct input){
        .worker = worker, .token = todo->token, .size = todo->fetch.size, .fd = -1};
    input->has_digest = todo->fetch.digest.size == sizeof(input->digest);
    if (input->has_digest)
        memcpy(input->digest, todo->fetch.digest.bytes, sizeof(input->digest));
    HASH_ADD(hh, worker->inputs, token, sizeof(input->token), input);
    r = input_fetch(worker, input, key, &err);
    if (r == 0) {
        input->fetching = true;
        return;
    }
    input_free(worker, &input);
    worker_core_on_input(worker->core, todo->token, input_error_class(&err), err.text);
}

static void act_forget(struct worker *worker, uint64_t token)
{
    struct input *input = input_find(worker, token);

    if (input == NULL)
        return;
    if (input->fetching)
        input->forgotten = true;
    else
        input_free(worker, &input);
}

/* ---- the host ---- */

static void act_run(struct worker *worker, const struct worker_todo *todo)
{
    struct input *input = input_find(worker, todo->token);
    struct frame_req req = {
        .id = todo->token,
        .input = todo->run.input,
        .limit_ms = todo->run.limit_ms,
        .alone = todo->run.alone,
        .job = todo->run.job,
        .run = todo->run.run,
        .number = todo->run.number,
        .trace = worker_trace_begin(worker, todo),
        .input_type = todo->run.input_type,
        .route = todo->run.route,
        .stream = todo->run.stream,
    };

    if (worker_tunnel_is_wanted(worker, &req)) {
        worker_tunnel_run(worker, &req);
    } else if (input == NULL) {
        worker_host_run(worker->host, &req);
    } else {
        req.input_fd_size = input->size;
        worker_host_run_fd(worker->host, &req, input->fd);
        input->fd = -1;
        input_free(worker, &input);
    }
    if (todo->run.stream)
        worker_stream_begin(worker, todo);
    fault_point(FAULT_worker_running);
}

static void host_on_ready(void *opaque, const struct frame_ready *ready)
{
    struct worker *worker = opaque;

    (void)snprintf(worker->loaded.engine, sizeof(worker->loaded.engine), "%.*s",
                   (int)ready->engine.size, ready->engine.text);
    (void)snprintf(worker->loaded.task, sizeof(worker->loaded.task), "%.*s", (int)ready->task.size,
                   ready->task.size > 0 ? ready->task.text : "");
    log_info("model_loaded", LOG_STR("engine", worker->loaded.engine),
             LOG_TEXT("detail", ready->detail.text, ready->detail.size),
             LOG_U64("credit", ready->granted));
    worker_tick(worker);
    worker_core_on_host_ready(worker->core, ready->granted);
    worker_act(worker);
    worker_queue_tell_warm(worker);
}

static void host_on_loading(void *opaque, uint64_t done_size, uint64_t total_size)
{
    struct worker *worker = opaque;

    worker_tick(worker);
    worker_core_on_host_loading(worker->core);
    worker->loaded.loaded_size = done_size;
    worker->loaded.weights_size = total_size;
    worker_say(worker, json_pack("{s:s, s:I, s:I}", "event", "loading", "done_size",
                                 (json_int_t)done_size, "total_size", (json_int_t)total_size));
}

static void host_on_piece(void *opaque, uint64_t token, struct wire_bytes bytes,
                          struct wire_text type)
{
    worker_stream_add(opaque, token, bytes, type);
}

/* For who started us, which counts the faults of a device: also one whose text is no UTF-8. */
static void say_fault(struct worker *worker, const char *kind, const char *why, size_t why_size)
{
    json_t *reason = json_stringn(why, why_size);

    if (reason == NULL)
        reason = json_string("it said why in no UTF-8");
    worker_say(worker,
               json_pack("{s:s, s:s, s:o}", "event", "fault", "kind", kind, "reason", reason));
}

static void host_on_final(void *opaque, uint64_t token, uint64_t granted,
                          const struct worker_result *result)
{
    struct worker *worker = opaque;

    worker_trace_end(worker, token, result);
    worker_stream_end(worker, token);
    if (result->error_class == ERROR_CLASS_OOM)
        say_fault(worker, "oom", result->error_message.text, result->error_message.size);
    worker_tick(worker);
    worker_core_on_host_final(worker->core, token, granted, result);
    worker_act(worker);
}

static void host_on_stats(void *opaque, const struct frame_stats *stats)
{
    struct worker *worker = opaque;

    worker->engine_stats = *stats;
}

static void host_on_gone(void *opaque, enum error_class class, bool final, const char *why)
{
    struct worker *worker = opaque;

    if (class == ERROR_CLASS_DEVICE_FAULT)
        say_fault(worker, "context", why, strlen(why));
    if (class != ERROR_CLASS_NONE)
        log_error("host_gone", LOG_STR("class", error_class_name(class)), LOG_STR("error", why));
    worker_trace_end_all(worker, class == ERROR_CLASS_NONE ? ERROR_CLASS_HANDED_BACK : class);
    worker_stream_drop_all(worker);
    worker_tick(worker);
    worker_core_on_host_gone(worker->core, class, final, why);
    worker_act(worker);
}

struct worker_host *worker_host_open(struct worker *worker)
{
    static const struct worker_host_calls calls = {
        .on_ready = host_on_ready,
        .on_loading = host_on_loading,
        .on_piece = host_on_piece,
        .on_final = host_on_final,
        .on_stats = host_on_stats,
        .on_gone = host_on_gone,
    };
    const struct worker_host_options options = {
        .engines_folder = worker->settings.engines,
        .engine = worker->settings.engine,
        .dir = worker->settings.model_dir,
        .model = worker->settings.model,
        .device = worker->settings.device,
        .settings_json = worker->settings.engine_settings,
        .cache_dir = worker->settings.cache_dir,
        .environment = worker->settings.environment,
        .secrets = {worker->secrets.bytes, worker->secrets.size},
        .deployment = worker->settings.deployment,
        .gateway = worker->settings.gateway,
        .thread_count = (uint32_t)worker->settings.threads,
        .batch_token_max = (uint32_t)worker->settings.batch_tokens,
        .slot_count = (uint32_t)worker->settings.slots,
        .worker = worker->settings.worker,
        .isolation = worker->isolation,
        .isolation_read = worker->settings.isolation_read,
        .host_memory_size = worker->settings.host_memory_size,
        .host_process_count = (uint64_t)worker->settings.host_processes,
        .host_nice = (unsigned)worker->settings.host_nice,
    };

    return worker_host_new(worker->loop, &options, &calls, worker);
}

/* ---- results ---- */

/* Whose it is: the texts of the to-do. */
static void finished_log(const struct message_finished *finished, struct wire_text tenant,
                         struct wire_text trace)
{
    char job[JOB_ID_TEXT_SIZE];

    if (!log_enabled(finished->error_class == 0 ? LOG_LEVEL_DEBUG : LOG_LEVEL_INFO))
        return;
    job_id_format(&finished->job, job);
    if (finished->error_class == 0)
        log_debug("attempt_succeeded", LOG_STR("job", job), LOG_U64("attempt", finished->number),
                  LOG_TEXT("tenant", tenant.text, tenant.size), LOG_TRACE(trace.text, trace.size),
                  LOG_U64("took_us", finished->finished_us - finished->started_us),
                  LOG_U64("output_size", finished->output_size));
    else
        log_info("attempt_failed", LOG_STR("job", job), LOG_U64("attempt", finished->number),
                 LOG_TEXT("tenant", tenant.text, tenant.size), LOG_TRACE(trace.text, trace.size),
                 LOG_STR("class", error_class_name((enum error_class)finished->error_class)),
                 LOG_TEXT("error", finished->error_message.text, finished->error_message.size));
}

/* A result that is being stored; its texts do not outlive the to-do, so it keeps what it needs. */
struct stored {
    struct worker *worker;
    struct message_finished finished;
    char key[BLOB_KEY_SIZE];
    char *tenant, *trace, *output_type, *error_message;
};

static void stored_say(struct stored *stored, const struct err *err)
{
    struct message_finished *finished = &stored->finished;

    finished->worker = WIRE_TEXT_OF(stored->worker->options.worker);
    finished->device = WIRE_TEXT_OF(stored->worker->options.device);
    finished->output_type = WIRE_TEXT_OF(stored->output_type);
    finished->error_message = WIRE_TEXT_OF(stored->error_message);
    finished->output_blob = WIRE_TEXT_OF(stored->key);
    if (err->code != ERR_OK) {
        log_warn("result_not_stored", LOG_STR("blob", stored->key), LOG_ERR(err));
        finished->error_class = blob_error_class(err);
        finished->error_message = WIRE_TEXT_OF(err->text);
        finished->output_blob = finished->output_type = (struct wire_text){0};
        finished->output_size = finished->http_status = 0;
    }
    finished_log(finished, WIRE_TEXT_OF(stored->tenant), WIRE_TEXT_OF(stored->trace));
    worker_produce(stored->worker, MESSAGE_FINISHED, finished, finished->token);
    free(stored->tenant);
    free(stored->trace);
    free(stored->output_type);
    free(stored->error_message);
    free(stored);
}

static void stored_on_put(void *opaque, const struct err *err)
{
    if (err->code == ERR_OK)
        fault_point(FAULT_worker_blob_put);
    stored_say(opaque, err);
}

/* What came in a memfd goes on from there, the rest is at most FRAME_INLINE_MAX. */
static int stored_put(struct stored *stored, struct wire_bytes output, struct err *err)
{
    struct worker *worker = stored->worker;
    int fd = worker_host_output_fd(worker->host, output.bytes);
    struct buf bytes = BUF_WITH_LIMIT(FRAME_INLINE_MAX);

    if (fd >= 0)
        return blob_put_file(worker->blobs, stored->key, fd, output.size, stored_on_put, stored,
                             err);
    buf_append(&bytes, output.bytes, output.size);
    if (buf_check(&bytes, "a result", err) < 0)
        return err->code;
    return blob_put(worker->blobs, stored->key, &bytes, stored_on_put, stored, err);
}

static void act_store(struct worker *worker, const struct worker_todo *todo)
{
    const struct message_finished *finished = &todo->finished;
    struct stored *stored = xcalloc(1, sizeof(*stored));
    struct err err = {0};
    int r;

    stored->worker = worker;
    stored->tenant = wire_text_dup(todo->tenant);
    stored->trace = wire_text_dup(todo->trace);
    stored->finished = *finished;
    stored->finished.output = (struct wire_bytes){0};
    stored->output_type = wire_text_dup(finished->output_type);
    stored->error_message = wire_text_dup(finished->error_message);
    blob_key_output(&finished->job, finished->token, stored->key);
    r = worker->blobs == NULL
            ? err_set(&err, ERR_DEPENDENCY, "this worker has no blob store for large results")
            : stored_put(stored, finished->output, &err);
    if (r < 0)
        stored_say(stored, &err);
}

static void act_finished(struct worker *worker, const struct worker_todo *todo)
{
    const struct message_finished *finished = &todo->finished;

    worker_pages_count_finished(worker, finished);
    if (finished->output.size > JOB_OUTPUT_INLINE_MAX) {
        act_store(worker, todo);
        return;
    }
    finished_log(finished, todo->tenant, todo->trace);
    worker_produce(worker, MESSAGE_FINISHED, finished, finished->token);
}

/* ---- all of them ---- */

static void act_exit(struct worker *worker, const struct worker_todo *todo)
{
    if (todo->exit.code == 0)
        log_info("worker_drained");
    else
        log_error("worker_leaves", LOG_I64("exit_code", todo->exit.code),
                  LOG_STR("error", todo->exit.why));
    worker_say(worker, json_pack("{s:s, s:i, s:s}", "event", "exit", "code", todo->exit.code,
                                 "reason", todo->exit.why));
    worker_leave(worker, todo->exit.code);
}

/* A user's code that goes on is its own affair; an engine of ours looks up between two steps, so
 * one that does not has a device that does not come back. */
static void act_kill(struct worker *worker, const struct worker_todo *todo)
{
    static const char why[] = "its engine host stood still and was killed";

    log_warn("host_killed", LOG_STR("error", "it did not obey"));
    if (todo->hung && engine_host_kind(worker->settings.engine) == ENGINE_HOST_C)
        say_fault(worker, "hang", why, sizeof(why) - 1);
    worker_host_kill(worker->host);
}

static void act_one(struct worker *worker, const struct worker_todo *todo)
{
    switch (todo->type) {
    case WORKER_TODO_FETCH:
        act_fetch(worker, todo);
        return;
    case WORKER_TODO_RUN:
        act_run(worker, todo);
        return;
    case WORKER_TODO_CANCEL:
        worker_host_cancel(worker->host, todo->token);
        return;
    case WORKER_TODO_FORGET:
        act_forget(worker, todo->token);
        return;
    case WORKER_TODO_HELLO:
        worker_produce(worker, MESSAGE_HELLO, &todo->hello, 0);
        return;
    case WORKER_TODO_HEARTBEAT:
        worker_produce(worker, MESSAGE_HEARTBEAT, &todo->heartbeat, 0);
        return;
    case WORKER_TODO_STARTED:
        worker_produce(worker, MESSAGE_STARTED, &todo->started, 0);
        return;
    case WORKER_TODO_FINISHED:
        act_finished(worker, todo);
        return;
    case WORKER_TODO_BYE:
        worker_produce(worker, MESSAGE_BYE, &todo->bye, 0);
        return;
    case WORKER_TODO_HOST_START:
        worker_host_start(worker->host);
        return;
    case WORKER_TODO_HOST_KILL:
        act_kill(worker, todo);
        return;
    case WORKER_TODO_HOST_DRAIN:
        worker_host_drain(worker->host);
        return;
    case WORKER_TODO_EXIT:
        act_exit(worker, todo);
        return;
    }
}

void worker_act(struct worker *worker)
{
    struct worker_todo todo;

    while (worker_core_next_todo(worker->core, &todo))
        act_one(worker, &todo);
}
