/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The simulated engine: takes the time, fails and breaks as it is told, and echoes its input. It is
 * what tests break and what the benchmark runs at zero service time.
 *
 *     submit ─▶ waiting (in order) ─▶ a lane: one batch with one service time ─▶ OUTPUT or ERROR
 *
 * A request is one allocation: its struct and a copy of its input. At zero service time a batch
 * begins and ends in the same step and never enters a lane. Faults of a request strike when its
 * batch begins (crash, hang) or ends (fail).
 *
 * Output: {"output": <input or echo>, "sim": {"attempt": n, "batch": n, "service_us": n}}, where a
 * route was named with "route" besides, and where a device is played (test_mode) "device", which is
 * what CUDA_VISIBLE_DEVICES says. An input that is no JSON comes back as it is. Pieces come at
 * their times where a stream is wanted; the output is all of them, else a JSON string of that.
 *
 * With HEADRACE_SIM_JOURNAL in the environment each request that begins appends its input to that
 * file, as a line: a side effect, which tests count.
 *
 * Thread: the host's.   Tests: tests/unit/test_sim_engine.c, test_host_c.c
 */

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/buf.h"
#include "base/rng.h"
#include "schema/media_type.h"
#include "workers/engines/sim/sim_config.h"

#define SIM_REQS_DEFAULT 64u
#define SIM_INPUT_SIZE_DEFAULT (256u << 20)
#define SIM_OUTPUT_LIMIT (512u << 20)
#define SIM_OUTPUT_FRAME 160 /* bytes of the output around the echo */
#define SIM_PROGRESS_STEPS 10
#define SIM_PIECE_SIZE 16
#define SIM_HOST_SIZE (1u << 20)
#define SIM_JOURNAL "HEADRACE_SIM_JOURNAL"
#define SIM_JOURNAL_INPUT_MAX 4000u /* a line in one write, and nobody else's in it */

struct sim_req {
    struct sim_req *next;
    uint64_t id;
    uint64_t deadline_us;
    uint32_t number;
    bool alone;
    bool canceled;
    bool has_order;
    bool stream;
    uint32_t piece_sent;
    char *input_type, *route; /* NULL: JSON, predict */
    struct sim_order order;
    size_t input_size;
    char input[];
};

struct sim_list {
    struct sim_req *first, **last;
    uint32_t count;
};

struct sim_lane {
    struct sim_list batch; /* empty: the lane is free */
    uint64_t begin_us, end_us, service_us;
};

struct engine {
    struct sim_config config;
    struct engine_sink sink;
    uint32_t req_count_max, req_count; /* held: waiting and in lanes */
    size_t input_size_max;
    struct sim_list waiting;
    struct sim_lane *lanes;
    uint32_t lane_count, busy_lane_count;
    struct rng rng;
    struct buf output;
    struct engine_stats stats;
    int journal_fd;     /* -1: none */
    const char *device; /* what it is told of devices, when it plays one; NULL: it does not */
};

/* ---- lists ---- */

static void list_init(struct sim_list *list)
{
    *list = (struct sim_list){.last = &list->first};
}

static void list_push(struct sim_list *list, struct sim_req *req)
{
    req->next = NULL;
    *list->last = req;
    list->last = &req->next;
    list->count++;
}

static struct sim_req *list_pop(struct sim_list *list)
{
    struct sim_req *req = list->first;

    if (req == NULL)
        return NULL;
    list->first = req->next;
    if (list->first == NULL)
        list->last = &list->first;
    list->count--;
    return req;
}

static struct sim_req *list_find(const struct sim_list *list, uint64_t id)
{
    struct sim_req *req = list->first;

    while (req != NULL && req->id != id)
        req = req->next;
    return req;
}

/* ---- answers ---- */

static void req_free(struct engine *engine, struct sim_req *req)
{
    engine->req_count--;
    sim_order_done(&req->order);
    free(req->input_type);
    free(req->route);
    free(req);
}

static const char *text_type(const struct sim_req *req, const char *otherwise)
{
    return req->order.media_type != NULL ? req->order.media_type : otherwise;
}

static void req_fail(struct engine *engine, struct sim_req *req, enum engine_error error,
                     const char *text, uint32_t batch_count)
{
    engine->stats.error_count++;
    engine->stats.oom_count += error == ENGINE_ERROR_OOM;
    engine->sink.emit(
        engine->sink.opaque,
        &(struct engine_event){
            .type = ENGINE_EVENT_ERROR,
            .req_id = req->id,
            .error = error,
            .text = text,
            .data = req->order.body,
            .data_size = req->order.body == NULL ? 0 : strlen(req->order.body),
            .output_type = req->order.body == NULL ? NULL : text_type(req, "text/plain"),
            .http_status = req->order.http_status,
            .batch_req_count = batch_count,
            .retry_after_ms = req->order.retry_after_ms});
    req_free(engine, req);
}

/* device: what a device that is played sees of the machine's; NULL: none is. */
static void output_write_json(struct buf *output, const struct sim_req *req, uint64_t service_us,
                              uint32_t batch_count, const char *device)
{
    size_t pad = req->order.output_size;

    buf_append_text(output, "{\"output\":");
    if (req->order.echo != NULL)
        buf_append_text(output, req->order.echo);
    else if (req->input_size > 0)
        buf_append(output, req->input, req->input_size);
    else
        buf_append_text(output, "null");
    if (pad > output->size + SIM_OUTPUT_FRAME) {
        pad -= output->size + SIM_OUTPUT_FRAME;
        buf_append_text(output, ",\"pad\":\"");
        memset(buf_reserve(output, pad), 'x', pad);
        buf_commit(output, pad);
        buf_append_byte(output, '"');
    }
    buf_printf(output, ",\"sim\":{\"attempt\":%u,\"batch\":%u,\"service_us\":%llu", req->number,
               batch_count, (unsigned long long)service_us);
    if (req->route != NULL) {
        buf_append_text(output, ",\"route\":");
        media_append_value(output, WIRE_TEXT_OF("text/plain"),
                           (struct wire_bytes){(const uint8_t *)req->route, strlen(req->route)});
    }
    if (device != NULL)
        buf_printf(output, ",\"device\":\"%s\"", device);
    buf_append_text(output, "}}");
}

/* ---- pieces ---- */

/* "7:xxxx…" and a line's end; as an event where it is a stream of those. */
static void piece_write(struct buf *to, const struct sim_req *req, uint32_t number)
{
    bool event = req->order.media_type != NULL &&
                 strcmp(req->order.media_type, MEDIA_TYPE_EVENTS) == 0;
    size_t size = req->order.piece_size > 0 ? req->order.piece_size : SIM_PIECE_SIZE;
    size_t begin = to->size, end = event ? 2 : 1;

    buf_printf(to, "%s%u:", event ? "data: " : "", number);
    if (size > to->size - begin + end) {
        size -= to->size - begin + end;
        memset(buf_reserve(to, size), 'x', size);
        buf_commit(to, size);
    }
    buf_append_text(to, event ? "\n\n" : "\n");
}

static bool wants_pieces(const struct sim_req *req)
{
    return req->stream && req->order.piece_count > 0;
}

/* Those whose time has come. */
static void req_emit_pieces(struct engine *engine, struct sim_req *req, uint64_t since_us)
{
    while (wants_pieces(req) && !req->canceled && req->piece_sent < req->order.piece_count &&
           req->piece_sent * req->order.piece_gap_us <= since_us) {
        buf_clear(&engine->output);
        piece_write(&engine->output, req, req->piece_sent++);
        engine->sink.emit(engine->sink.opaque,
                          &(struct engine_event){.type = ENGINE_EVENT_TOKENS,
                                                 .req_id = req->id,
                                                 .data = engine->output.bytes,
                                                 .data_size = engine->output.size,
                                                 .output_type = text_type(req, MEDIA_TYPE_BYTES)});
    }
}

/* All pieces together: as they are, or as the JSON string that who wants no stream gets. */
static const char *output_write_pieces(struct buf *output, const struct sim_req *req)
{
    OWNED(buf_done) struct buf all = BUF_WITH_LIMIT(SIM_OUTPUT_LIMIT);

    for (uint32_t i = 0; i < req->order.piece_count; i++)
        piece_write(&all, req, i);
    if (req->stream || req->order.media_type != NULL) {
        buf_append(output, all.bytes, all.size);
        return text_type(req, MEDIA_TYPE_BYTES);
    }
    media_append_value(output, WIRE_TEXT_OF("text/plain"),
                       (struct wire_bytes){all.bytes, all.size});
    return NULL;
}

/* Writes the output, and returns its type. */
static const char *output_write(struct engine *engine, const struct sim_req *req,
                                uint64_t service_us, uint32_t batch_count)
{
    struct buf *output = &engine->output;

    buf_clear(output);
    if (req->order.piece_count > 0)
        return output_write_pieces(output, req);
    if (req->order.body != NULL) {
        buf_append_text(output, req->order.body);
        return text_type(req, "text/plain");
    }
    if (req->input_type != NULL && req->input_size > 0) {
        buf_append(output, req->input, req->input_size);
        return req->input_type;
    }
    output_write_json(output, req, service_us, batch_count, engine->device);
    return NULL;
}

static void req_succeed(struct engine *engine, struct sim_req *req, uint64_t service_us,
                        uint32_t batch_count)
{
    struct buf *output = &engine->output;
    const char *type;

    req_emit_pieces(engine, req, UINT64_MAX);
    type = output_write(engine, req, service_us, batch_count);
    engine->stats.output_count++;
    engine->sink.emit(engine->sink.opaque,
                      &(struct engine_event){.type = ENGINE_EVENT_OUTPUT,
                                             .req_id = req->id,
                                             .data = output->bytes,
                                             .data_size = output->size,
                                             .output_type = type,
                                             .http_status = req->order.http_status,
                                             .token_count = 1,
                                             .batch_req_count = batch_count});
    req_free(engine, req);
}

/* ---- time ---- */

static double normal(struct rng *rng)
{
    double u = 1 - rng_unit(rng), v = rng_unit(rng);

    return sqrt(-2 * log(u)) * cos(2 * M_PI * v);
}

/* The mean of each distribution is service_us. */
static uint64_t service_draw(struct engine *engine)
{
    double mean = engine->config.service_us, sigma = engine->config.sigma;

    switch (engine->config.dist) {
    case SIM_DIST_FIXED:
        break;
    case SIM_DIST_EXPONENTIAL:
        mean *= -log(1 - rng_unit(&engine->rng));
        break;
    case SIM_DIST_LOGNORMAL:
        mean *= exp(sigma * normal(&engine->rng) - sigma * sigma / 2);
        break;
    }
    return (uint64_t)mean;
}

/* A batch takes as long as its slowest request was told to, else what is drawn. */
static uint64_t batch_service_us(struct engine *engine, const struct sim_list *batch)
{
    uint64_t told_us = 0;
    bool told = false;

    for (const struct sim_req *req = batch->first; req != NULL; req = req->next) {
        uint64_t pieces_us = req->order.piece_count * req->order.piece_gap_us;

        if (req->order.has_service && req->order.service_us >= told_us) {
            told = true;
            told_us = req->order.service_us;
        }
        if (req->order.piece_count > 0 && pieces_us >= told_us) {
            told = true;
            told_us = pieces_us;
        }
    }
    if (told)
        return told_us;
    return engine->config.service_us > 0 ? service_draw(engine) : 0;
}

/* ---- faults ---- */

static bool fault_strikes(const struct sim_req *req)
{
    return req->has_order && (req->order.fail_count == 0 || req->number <= req->order.fail_count);
}

_Noreturn static void hang(void)
{
    for (;;)
        (void)pause();
}

/* The orders that do not wait for the end of the batch. */
static int batch_begin_faults(const struct sim_list *batch, struct err *err)
{
    for (const struct sim_req *req = batch->first; req != NULL; req = req->next) {
        if (!fault_strikes(req))
            continue;
        if (req->order.crash)
            abort();
        if (req->order.hang == SIM_HANG_HOST)
            hang();
        if (req->order.loses_device)
            return err_set(err, ERR_DEVICE, "sim: request %llu lost the device",
                           (unsigned long long)req->id);
    }
    return 0;
}

static bool batch_hangs(const struct sim_list *batch)
{
    for (const struct sim_req *req = batch->first; req != NULL; req = req->next) {
        if (fault_strikes(req) && req->order.hang == SIM_HANG_REQ && !req->canceled)
            return true;
    }
    return false;
}

static void req_end(struct engine *engine, struct sim_req *req, uint64_t service_us,
                    uint32_t batch_count)
{
    const struct sim_config *config = &engine->config;

    if (req->canceled)
        req_fail(engine, req, ENGINE_ERROR_CANCELED, "canceled", batch_count);
    else if (fault_strikes(req) && req->order.fails)
        req_fail(engine, req, req->order.failure, "sim: failed as ordered", batch_count);
    else if (config->failure_rate > 0 && rng_unit(&engine->rng) < config->failure_rate)
        req_fail(engine, req, config->failure, "sim: failed by its failure rate", batch_count);
    else
        req_succeed(engine, req, service_us, batch_count);
}

/* ---- side effects ---- */

static int journal_open(struct engine *engine, struct err *err)
{
    const char *path = getenv(SIM_JOURNAL);

    engine->journal_fd = -1;
    if (path == NULL)
        return 0;
    engine->journal_fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (engine->journal_fd < 0)
        return err_set(err, ERR_IO, "sim: %s of the environment is '%.150s': %s", SIM_JOURNAL, path,
                       strerror(errno));
    return 0;
}

static int journal_write(struct engine *engine, struct sim_req *req, struct err *err)
{
    size_t size = req->input_size < SIM_JOURNAL_INPUT_MAX ? req->input_size : SIM_JOURNAL_INPUT_MAX;
    struct iovec line[] = {{req->input, size}, {"\n", 1}};

    if (engine->journal_fd < 0 ||
        writev(engine->journal_fd, line, COUNT_OF(line)) == (ssize_t)size + 1)
        return 0;
    return err_set(err, ERR_IO, "sim: the journal cannot be written: %s", strerror(errno));
}

static int batch_write_journal(struct engine *engine, struct sim_list *batch, struct err *err)
{
    int r = 0;

    for (struct sim_req *req = batch->first; r == 0 && req != NULL; req = req->next)
        r = journal_write(engine, req, err);
    return r;
}

/* ---- batches ---- */

static void batch_end(struct engine *engine, struct sim_list *batch, uint64_t service_us)
{
    uint32_t count = batch->count;
    struct sim_req *req;

    engine->stats.step_count++;
    engine->stats.step_req_count += count;
    engine->stats.step_token_count += count;
    engine->stats.step_busy_us += service_us;
    while ((req = list_pop(batch)) != NULL)
        req_end(engine, req, service_us, count);
}

/* Takes requests out of the queue; what must be alone is a batch by itself. */
static void batch_cut(struct engine *engine, uint64_t now_us, struct sim_list *batch)
{
    struct sim_req *req;

    list_init(batch);
    while ((req = engine->waiting.first) != NULL &&
           batch->count < engine->config.batch_req_count_max) {
        if (batch->count > 0 && (req->alone || batch->first->alone))
            return;
        (void)list_pop(&engine->waiting);
        if (req->canceled)
            req_fail(engine, req, ENGINE_ERROR_CANCELED, "canceled", 0);
        else if (req->deadline_us != 0 && req->deadline_us < now_us)
            req_fail(engine, req, ENGINE_ERROR_EXPIRED, "its deadline passed in the queue", 0);
        else
            list_push(batch, req);
    }
}

static void lane_take(struct engine *engine, struct sim_lane *lane, struct sim_list *batch)
{
    struct sim_req *req;

    list_init(&lane->batch);
    while ((req = list_pop(batch)) != NULL)
        list_push(&lane->batch, req);
    engine->busy_lane_count++;
}

static void batch_return(struct engine *engine, struct sim_list *batch)
{
    struct sim_req *req;

    while ((req = list_pop(batch)) != NULL)
        list_push(&engine->waiting, req);
}

static struct sim_lane *lane_free(struct engine *engine)
{
    for (uint32_t i = 0; i < engine->lane_count; i++) {
        if (engine->lanes[i].batch.count == 0)
            return &engine->lanes[i];
    }
    return NULL;
}

static int sim_start_batches(struct engine *engine, uint64_t now_us, struct err *err)
{
    while (engine->waiting.count > 0 && engine->busy_lane_count < engine->lane_count) {
        struct sim_lane *lane;
        struct sim_list batch;
        uint64_t service_us;
        int r;

        batch_cut(engine, now_us, &batch);
        if (batch.count == 0)
            continue;
        r = batch_write_journal(engine, &batch, err);
        if (r == 0)
            r = batch_begin_faults(&batch, err);
        if (r < 0) { /* the host ends with the requests in it */
            batch_return(engine, &batch);
            return r;
        }
        service_us = batch_service_us(engine, &batch);
        if (service_us == 0 && !batch_hangs(&batch)) {
            batch_end(engine, &batch, 0);
            continue;
        }
        lane = lane_free(engine);
        assert(lane != NULL);
        lane_take(engine, lane, &batch);
        lane->service_us = service_us;
        lane->begin_us = now_us;
        lane->end_us = now_us + service_us;
    }
    return 0;
}

static bool lane_is_over(const struct sim_lane *lane, uint64_t now_us)
{
    bool all_canceled = true;

    for (const struct sim_req *req = lane->batch.first; req != NULL; req = req->next)
        all_canceled = all_canceled && req->canceled;
    return all_canceled || (lane->end_us <= now_us && !batch_hangs(&lane->batch));
}

static void sim_end_batches(struct engine *engine, uint64_t now_us)
{
    for (uint32_t i = 0; engine->busy_lane_count > 0 && i < engine->lane_count; i++) {
        struct sim_lane *lane = &engine->lanes[i];

        if (lane->batch.count > 0 && lane_is_over(lane, now_us)) {
            batch_end(engine, &lane->batch, lane->service_us);
            engine->busy_lane_count--;
        }
    }
}

/* ---- the contract ---- */

static int sim_probe(const char *dir, struct engine_probe *ret_probe, struct err *err)
{
    (void)dir;
    (void)err;
    *ret_probe = (struct engine_probe){.host_size = SIM_HOST_SIZE};
    mem_copy_text(ret_probe->text, "sim serves no model directory; it is named by a deployment");
    return 0;
}

/* Takes its time in small pieces, so that a worker that leaves ends it. */
static int sim_load_slowly(const struct engine_load *load, uint64_t load_us, struct err *err)
{
    for (uint64_t i = 0; i <= SIM_PROGRESS_STEPS; i++) {
        const struct timespec piece = {
            .tv_sec = (time_t)(load_us / SIM_PROGRESS_STEPS / 1000000),
            .tv_nsec = (long)(load_us / SIM_PROGRESS_STEPS % 1000000 * 1000)};

        if (load->sink.progress != NULL &&
            !load->sink.progress(load->sink.opaque, i * SIM_HOST_SIZE / SIM_PROGRESS_STEPS,
                                 SIM_HOST_SIZE))
            return err_set(err, ERR_CANCELED, "sim: the load was stopped");
        if (load_us > 0 && i < SIM_PROGRESS_STEPS)
            (void)nanosleep(&piece, NULL);
    }
    return 0;
}

static void sim_unload(struct engine **engine_p)
{
    struct engine *engine = TAKE(*engine_p);
    struct sim_req *req;

    if (engine == NULL)
        return;
    while ((req = list_pop(&engine->waiting)) != NULL)
        req_free(engine, req);
    for (uint32_t i = 0; i < engine->lane_count; i++) {
        while (engine->lanes[i].batch.count > 0)
            req_free(engine, list_pop(&engine->lanes[i].batch));
    }
    if (engine->journal_fd >= 0)
        (void)close(engine->journal_fd);
    free(engine->lanes);
    buf_done(&engine->output);
    free(engine);
}

static int sim_load(const struct engine_load *load, struct engine **ret_engine,
                    struct engine_info *ret_info, struct err *err)
{
    OWNED(sim_unload) struct engine *engine = xcalloc(1, sizeof(*engine));
    int r;

    list_init(&engine->waiting);
    buf_init(&engine->output, SIM_OUTPUT_LIMIT);
    r = journal_open(engine, err);
    if (r == 0)
        r = sim_config_parse(load->settings_json, &engine->config, err);
    if (r == 0 && engine->config.load_fails)
        r = err_set(err, ERR_MALFORMED, "sim: load fails as it is set to");
    if (r == 0 && strcmp(load->device, "cpu") != 0 && !engine->config.test_mode)
        r = err_set(err, ERR_UNSUPPORTED, "sim: device is '%s', only cpu is simulated",
                    load->device);
    if (r == 0)
        r = sim_load_slowly(load, engine->config.load_us, err);
    if (r < 0)
        return r;
    if (strcmp(load->device, "cpu") != 0)
        engine->device = getenv("CUDA_VISIBLE_DEVICES");
    engine->sink = load->sink;
    engine->req_count_max = load->req_count_max > 0 ? load->req_count_max : SIM_REQS_DEFAULT;
    engine->input_size_max = load->input_size_max > 0 ? load->input_size_max
                                                      : SIM_INPUT_SIZE_DEFAULT;
    engine->lane_count = engine->config.lane_count > 0 ? engine->config.lane_count
                                                       : engine->req_count_max;
    engine->lanes = xcalloc(engine->lane_count, sizeof(*engine->lanes));
    rng_seed(&engine->rng, engine->config.seed);
    *ret_info = (struct engine_info){.req_count_max = engine->req_count_max,
                                     .host_size = SIM_HOST_SIZE};
    mem_copy_text(ret_info->task, "tensor");
    (void)snprintf(ret_info->detail, sizeof(ret_info->detail),
                   "simulated: service %g ms, %u lanes of %u, %g fail%s",
                   engine->config.service_us / 1000, engine->lane_count,
                   engine->config.batch_req_count_max, engine->config.failure_rate,
                   engine->config.test_mode ? ", test mode" : "");
    *ret_engine = TAKE(engine);
    return 0;
}

static void sim_refuse(struct engine *engine, const struct engine_req *req, const char *text)
{
    engine->stats.error_count++;
    engine->sink.emit(engine->sink.opaque, &(struct engine_event){.type = ENGINE_EVENT_ERROR,
                                                                  .req_id = req->id,
                                                                  .error = ENGINE_ERROR_BAD_INPUT,
                                                                  .text = text});
}

static int sim_submit(struct engine *engine, const struct engine_req *req, uint64_t now_us,
                      struct err *err)
{
    struct sim_order order = {0};
    struct sim_req *mine;

    (void)now_us;
    if (engine->req_count == engine->req_count_max)
        return err_set(err, ERR_FULL, "sim: %u requests are held already", engine->req_count_max);
    if (req->input_size > engine->input_size_max) {
        sim_refuse(engine, req, "sim: the input is over its limit");
        return 0;
    }
    if (engine->config.test_mode && sim_order_parse(req->input, req->input_size, &order, err) < 0) {
        sim_refuse(engine, req, err->text);
        return 0;
    }
    mine = xmalloc(sizeof(*mine) + req->input_size);
    *mine = (struct sim_req){.id = req->id,
                             .deadline_us = req->deadline_us,
                             .number = req->number,
                             .alone = req->alone,
                             .has_order = engine->config.test_mode,
                             .stream = req->stream,
                             .input_type = req->input_type == NULL ? NULL
                                                                   : xstrdup(req->input_type),
                             .route = req->route == NULL ? NULL : xstrdup(req->route),
                             .order = order,
                             .input_size = req->input_size};
    if (req->input_size > 0)
        memcpy(mine->input, req->input, req->input_size);
    engine->req_count++;
    list_push(&engine->waiting, mine);
    return 0;
}

static void sim_emit_pieces(struct engine *engine, uint64_t now_us)
{
    for (uint32_t i = 0; engine->busy_lane_count > 0 && i < engine->lane_count; i++) {
        struct sim_lane *lane = &engine->lanes[i];

        for (struct sim_req *req = lane->batch.first; req != NULL; req = req->next)
            req_emit_pieces(engine, req, now_us - lane->begin_us);
    }
}

/* Its next piece, or its end. */
static uint64_t lane_wake_us(const struct sim_lane *lane)
{
    uint64_t wake_us = ENGINE_NEVER_US;

    if (lane->batch.count == 0)
        return wake_us;
    if (!batch_hangs(&lane->batch))
        wake_us = lane->end_us;
    for (const struct sim_req *req = lane->batch.first; req != NULL; req = req->next) {
        uint64_t piece_us = lane->begin_us + req->piece_sent * req->order.piece_gap_us;

        if (wants_pieces(req) && req->piece_sent < req->order.piece_count && piece_us < wake_us)
            wake_us = piece_us;
    }
    return wake_us;
}

static int sim_step(struct engine *engine, uint64_t now_us, uint64_t *ret_wake_us, struct err *err)
{
    uint64_t wake_us = ENGINE_NEVER_US;
    int r;

    sim_emit_pieces(engine, now_us);
    sim_end_batches(engine, now_us);
    r = sim_start_batches(engine, now_us, err);
    if (r < 0)
        return r;
    sim_emit_pieces(engine, now_us);
    for (uint32_t i = 0; engine->busy_lane_count > 0 && i < engine->lane_count; i++) {
        uint64_t lane_us = lane_wake_us(&engine->lanes[i]);

        if (lane_us < wake_us)
            wake_us = lane_us;
    }
    *ret_wake_us = wake_us;
    return 0;
}

static int sim_cancel(struct engine *engine, uint64_t req_id, struct err *err)
{
    struct sim_req *req = list_find(&engine->waiting, req_id);

    (void)err;
    for (uint32_t i = 0; req == NULL && i < engine->lane_count; i++) {
        if (engine->lanes[i].batch.count > 0)
            req = list_find(&engine->lanes[i].batch, req_id);
    }
    if (req != NULL)
        req->canceled = true;
    return 0;
}

static void sim_stats(const struct engine *engine, struct engine_stats *ret_stats)
{
    *ret_stats = engine->stats;
    ret_stats->queue_req_count = engine->waiting.count;
    ret_stats->running_req_count = engine->req_count - engine->waiting.count;
    ret_stats->host_size = SIM_HOST_SIZE;
}

ENGINE_EXPORT const struct engine_api *headrace_engine(void)
{
    static const struct engine_api api = {
        .abi = ENGINE_ABI,
        .name = "sim",
        .version = HEADRACE_VERSION,
        .probe = sim_probe,
        .load = sim_load,
        .submit = sim_submit,
        .step = sim_step,
        .cancel = sim_cancel,
        .stats = sim_stats,
        .unload = sim_unload,
    };

    return &api;
}
