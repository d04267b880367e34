/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/engines/encoder/encoder_texts.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/buf.h"
#include "base/clock.h"
#include "workers/engines/encoder/encoder_json.h"
#include "workers/engines/encoder/encoder_output.h"
#include "workers/engines/encoder/encoder_queue.h"
#include "workers/engines/encoder/encoder_scores.h"

#define THREAD_COUNT_DEFAULT_MAX 64u
#define PAIR_TOKENS_MIN (2u + TOKENIZER_MIDDLE_MAX + 2u)

/* One batch: at most token_max tokens, of which a text has [CLS] and [SEP] at least. */
struct flight {
    struct encoder_pick *picks;
    uint32_t pick_count, req_count;
    uint32_t *ids;
    uint32_t *offsets;
    uint32_t *seconds;
    float *rows;
    uint64_t start_us;
    int code; /* of the runner's start */
    struct err err;
};

struct encoder_texts {
    struct engine_sink sink;
    struct encoder_runner runner;
    struct tokenizer *tokenizer;
    struct encoder_labels labels;
    enum encoder_head head;
    bool multi_label;
    char *model_json; /* the model's name, quoted and escaped */
    uint32_t width, token_count_max;
    struct encoder_batching batching;
    uint32_t req_count_max;
    uint32_t input_size_max;
    struct encoder_queue queue;
    struct engine_stats stats;
    struct err no_memory; /* why the last text that found none did not */

    /* Batches in the air, the oldest at flight_first. */
    struct flight flights[ENCODER_FLIGHT_MAX];
    uint32_t flight_max, flight_first, flight_count;
    uint64_t landed_us; /* when the last one landed: the device has been busy since then at most */
    struct buf out;

    /* Texts on their way into a request. */
    struct token_list one, two;
};

void encoder_emit_error(const struct engine_sink *sink, struct engine_stats *stats, uint64_t req_id,
                        enum engine_error class, const char *text, uint32_t batch_req_count)
{
    const struct engine_event event = {
        .type = ENGINE_EVENT_ERROR,
        .req_id = req_id,
        .error = class,
        .text = text,
        .batch_req_count = batch_req_count,
    };

    stats->error_count++;
    stats->oom_count += class == ENGINE_ERROR_OOM;
    sink->emit(sink->opaque, &event);
}

static void emit_error(struct encoder_texts *texts, uint64_t req_id, enum engine_error class,
                       const char *text, uint32_t batch_req_count)
{
    encoder_emit_error(&texts->sink, &texts->stats, req_id, class, text, batch_req_count);
}

/* What is left of `count` tokens. */
struct kept {
    uint32_t first, count;
};

static struct kept keep(uint32_t count, uint32_t count_max, bool left)
{
    const uint32_t kept = count < count_max ? count : count_max;

    return (struct kept){left ? count - kept : 0, kept};
}

/* The longer of two texts gives way first, and what is too long of both is shared out, as the
 * reference does it ("longest first"). */
static void share_out(uint32_t *one, uint32_t *two, uint32_t count_max)
{
    uint32_t *shorter = *one <= *two ? one : two, *longer = *one <= *two ? two : one;

    if (*one + (uint64_t)*two <= count_max)
        return;
    if (*shorter > count_max)
        *longer = *shorter;
    else
        *longer = count_max - *shorter > *shorter ? count_max - *shorter : *shorter;
    if (*shorter + (uint64_t)*longer > count_max) {
        *shorter = count_max / 2;
        *longer = *shorter + count_max % 2;
    }
}

static void append(struct token_list *to, const struct token_list *from, struct kept kept)
{
    for (uint32_t i = kept.first; i < kept.first + kept.count; i++) {
        const struct token_span span = from->with_spans ? from->spans[i] : (struct token_span){0};

        token_list_put(to, from->ids[i], span.first, span.last);
    }
}

/* Appends the cut texts with what the model wants around them, as text `index` of the request. */
static void put_text(struct encoder_texts *texts, struct encoder_req *req, uint32_t index,
                     bool is_pair)
{
    const struct tokenizer_frame *frame = tokenizer_frame(texts->tokenizer);
    const uint32_t around = 2 + (is_pair ? frame->middle_count : 0);
    const uint32_t room = texts->token_count_max > around ? texts->token_count_max - around : 0;
    uint32_t one = texts->one.count, two = is_pair ? texts->two.count : 0;

    share_out(&one, &two, room);
    req->truncated[index] = texts->one.truncated || one < texts->one.count ||
                            (is_pair && two < texts->two.count);
    token_list_put(&req->tokens, frame->begin, 0, 0);
    append(&req->tokens, &texts->one, keep(texts->one.count, one, req->input.truncate_left));
    for (uint32_t i = 0; is_pair && i < frame->middle_count; i++)
        token_list_put(&req->tokens, frame->middle[i], 0, 0);
    if (is_pair) {
        req->seconds[index] = req->tokens.count - req->offsets[index];
        append(&req->tokens, &texts->two, keep(texts->two.count, two, req->input.truncate_left));
    }
    token_list_put(&req->tokens, frame->end, 0, 0);
    req->offsets[index + 1] = req->tokens.count;
}

/* The user's texts as ids. What is wrong with them is the user's fault. A query is cut up once for
 * all texts, and no more is read of a text than fits, where its end is what goes. */
static int tokenize(struct encoder_texts *texts, struct encoder_req *req, struct err *err)
{
    const struct encoder_input *input = &req->input;
    const bool spans = input->route == ENCODER_ROUTE_PREDICT_TOKENS;

    token_list_begin(&req->tokens, UINT32_MAX, spans);
    for (uint32_t i = 0; i < input->text_count; i++) {
        size_t size, second_size;
        const char *text = encoder_input_text(input, i, &size);
        const char *second = encoder_input_second(input, i, &second_size);

        if (i == 0 || input->route != ENCODER_ROUTE_RERANK) {
            const bool whole = second != NULL || input->truncate_left;

            token_list_begin(&texts->one, whole ? UINT32_MAX : texts->token_count_max - 2, spans);
            tokenizer_cut(texts->tokenizer, text, size, &texts->one);
        }
        token_list_begin(&texts->two, UINT32_MAX, false);
        if (second != NULL)
            tokenizer_cut(texts->tokenizer, second, second_size, &texts->two);
        put_text(texts, req, i, second != NULL);
        if (req->truncated[i] && !input->truncate)
            return err_set(err, ERR_TOO_BIG,
                           "input[%u] has more tokens than the model's limit of "
                           "%u, and truncate is false",
                           i, texts->token_count_max);
    }
    return 0;
}

static bool has_route(const struct encoder_texts *texts, enum encoder_route route)
{
    switch (texts->head) {
    case ENCODER_HEAD_EMBED:
        return route == ENCODER_ROUTE_EMBEDDINGS;
    case ENCODER_HEAD_CLASSIFY:
        return route == ENCODER_ROUTE_PREDICT ||
               (route == ENCODER_ROUTE_RERANK && texts->labels.count == 1);
    case ENCODER_HEAD_TOKENS:
        return route == ENCODER_ROUTE_PREDICT_TOKENS;
    case ENCODER_HEAD_MASKED:
        break;
    }
    NEVER("head is out of range; encoder_config_read() sets it");
}

/* The route that a request names, or the one that stands for predict. */
static int find_route(const struct encoder_texts *texts, const char *text,
                      enum encoder_route *ret_route, struct err *err)
{
    enum encoder_route first = ENCODER_ROUTE_EMBEDDINGS;

    while (!has_route(texts, first))
        first++;
    *ret_route = first;
    if (text == NULL)
        return 0;
    if (encoder_route_find(text, ret_route) && has_route(texts, *ret_route))
        return 0;
    return err_set(err, ERR_NOT_FOUND, "there is no route '%.60s' of this model; there is %s%s",
                   text, encoder_route_name(first),
                   first == ENCODER_ROUTE_RERANK ? " and POST /predict" : "");
}

static int check_answer_size(const struct encoder_texts *texts, const struct encoder_req *req,
                             size_t input_size, struct err *err)
{
    uint64_t size;

    if (req->input.route == ENCODER_ROUTE_EMBEDDINGS)
        size = encoder_output_size_max(req->text_count, texts->width);
    else
        size = encoder_scores_size_max(&req->input, input_size, &texts->labels, req->tokens.count);
    if (size <= ENCODER_OUTPUT_SIZE_MAX)
        return 0;
    return err_set(err, ERR_TOO_BIG,
                   "input has %u texts, whose answer may have %llu bytes, "
                   "limit %u",
                   req->text_count, (unsigned long long)size, ENCODER_OUTPUT_SIZE_MAX);
}

static int accept(struct encoder_texts *texts, const struct engine_req *from, uint64_t now_us,
                  struct encoder_req **ret_req, struct err *err)
{
    OWNED(encoder_input_done) struct encoder_input input = {0};
    OWNED(encoder_req_free) struct encoder_req *req = NULL;
    enum encoder_route route;
    int r;

    r = find_route(texts, from->route, &route, err);
    if (r < 0)
        return r;
    if (from->input_size > texts->input_size_max)
        return err_set(err, ERR_TOO_BIG, "model_input has %zu bytes, limit %u", from->input_size,
                       texts->input_size_max);
    r = encoder_input_parse(from->input, from->input_size, route, texts->width, &input, err);
    if (r < 0)
        return r;
    req = encoder_req_new(input.text_count);
    req->id = from->id;
    req->deadline_us = from->deadline_us;
    req->alone = from->alone;
    req->arrived_us = now_us;
    req->input = input;
    input = (struct encoder_input){0};
    r = check_answer_size(texts, req, from->input_size, err);
    if (r == 0)
        r = tokenize(texts, req, err);
    if (r == 0)
        r = check_answer_size(texts, req, from->input_size, err);
    if (r < 0)
        return r;
    if (!req->input.return_text && req->input.aggregation == ENCODER_AGGREGATE_NONE) {
        json_decref(req->input.json);
        req->input.json = NULL;
    }
    *ret_req = TAKE(req);
    return 0;
}

int encoder_texts_submit(struct encoder_texts *texts, const struct engine_req *from,
                         uint64_t now_us, struct err *err)
{
    const struct engine_event accepted = {.type = ENGINE_EVENT_ACCEPTED, .req_id = from->id};
    struct encoder_req *req = NULL;
    struct err fault;

    if (texts->queue.count == texts->req_count_max)
        return err_set(err, ERR_FULL, "engine holds %u requests, its limit", texts->queue.count);
    if (encoder_queue_find(&texts->queue, from->id) != NULL)
        return err_set(err, ERR_CONFLICT, "request %llu is held already",
                       (unsigned long long)from->id);
    if (accept(texts, from, now_us, &req, &fault) < 0) {
        emit_error(texts, from->id, ENGINE_ERROR_BAD_INPUT, fault.text, 0);
        return 0;
    }
    encoder_queue_push(&texts->queue, &req);
    texts->sink.emit(texts->sink.opaque, &accepted);
    return 0;
}

/* Out of the queue, and freed once no batch in the air has a text of it. */
static void leave(struct encoder_texts *texts, struct encoder_req *req)
{
    req = encoder_queue_remove(&texts->queue, req);
    req->gone = true;
    if (req->done_count == req->taken_count)
        encoder_req_free(&req);
}

/* The pick's text is over, with a row or without. */
static void land_pick(struct encoder_pick *pick)
{
    struct encoder_req *req = pick->req;

    assert(!pick->landed);
    pick->landed = true;
    req->done_count++;
    if (req->gone && req->done_count == req->taken_count)
        encoder_req_free(&req);
}

int encoder_texts_cancel(struct encoder_texts *texts, uint64_t req_id, struct err *err)
{
    struct encoder_req *req = encoder_queue_find(&texts->queue, req_id);

    (void)err;
    if (req == NULL)
        return 0;
    leave(texts, req);
    emit_error(texts, req_id, ENGINE_ERROR_CANCELED, "canceled", 0);
    return 0;
}

/* Copies the ids of `count` picks from `first` on into the batch. Returns the number of tokens. */
static uint32_t gather(struct flight *flight, uint32_t first, uint32_t count)
{
    uint32_t at = 0;

    flight->offsets[0] = 0;
    for (uint32_t i = 0; i < count; i++) {
        const struct encoder_pick *pick = &flight->picks[first + i];

        memcpy(flight->ids + at, pick->req->tokens.ids + pick->req->offsets[pick->index],
               pick->token_count * sizeof(*flight->ids));
        flight->seconds[i] = pick->req->seconds[pick->index];
        at += pick->token_count;
        flight->offsets[i + 1] = at;
    }
    return at;
}

/* A row a text, or one a token. */
static void scatter(struct encoder_texts *texts, struct flight *flight, uint32_t first,
                    uint32_t count)
{
    const bool by_token = texts->head == ENCODER_HEAD_TOKENS;
    const size_t width = texts->width;

    for (uint32_t i = 0; i < count; i++) {
        struct encoder_pick *pick = &flight->picks[first + i];
        struct encoder_req *req = pick->req;
        const size_t row = by_token ? req->offsets[pick->index] : pick->index;
        const size_t from = by_token ? flight->offsets[i] : i;

        if (req->rows == NULL)
            req->rows = xcalloc((by_token ? req->tokens.count : req->text_count) * width,
                                sizeof(float));
        memcpy(req->rows + row * width, flight->rows + from * width,
               (by_token ? pick->token_count : 1) * width * sizeof(float));
        land_pick(pick);
    }
}

static int write_answer(struct encoder_texts *texts, const struct encoder_req *req, struct err *err)
{
    const struct encoder_output output = {
        .model_json = texts->model_json,
        .vectors = req->rows,
        .truncated = req->truncated,
        .text_count = req->text_count,
        .dimension_count = texts->width,
        .token_count = req->offsets[req->text_count],
        .base64 = req->input.base64,
        .warnings = req->input.warnings,
    };
    const struct encoder_scores scores = {
        .input = &req->input,
        .labels = &texts->labels,
        .multi_label = texts->multi_label,
        .rows = req->rows,
        .tokenizer = texts->tokenizer,
        .tokens = &req->tokens,
        .offsets = req->offsets,
    };

    buf_clear(&texts->out);
    return req->input.route == ENCODER_ROUTE_EMBEDDINGS
               ? encoder_output_write(&output, &texts->out, err)
               : encoder_scores_write(&scores, &texts->out, err);
}

static void answer(struct encoder_texts *texts, const struct encoder_req *req,
                   uint32_t batch_req_count)
{
    struct engine_event event = {
        .type = ENGINE_EVENT_OUTPUT,
        .req_id = req->id,
        .token_count = req->offsets[req->text_count],
        .batch_req_count = batch_req_count,
    };
    struct err err;

    if (write_answer(texts, req, &err) < 0) {
        emit_error(texts, req->id, ENGINE_ERROR_MODEL_ERROR, err.text, batch_req_count);
        return;
    }
    event.data = texts->out.bytes;
    event.data_size = texts->out.size;
    texts->stats.output_count++;
    texts->sink.emit(texts->sink.opaque, &event);
}

/* Those of the batch's requests that are still there and of which a text has no row. */
static void fail_flight(struct encoder_texts *texts, struct flight *flight, const struct err *err)
{
    for (uint32_t i = 0; i < flight->pick_count; i++) {
        struct encoder_pick *pick = &flight->picks[i];
        struct encoder_req *req = pick->req;

        if (pick->landed)
            continue;
        if (!req->gone) {
            emit_error(texts, req->id, ENGINE_ERROR_MODEL_ERROR, err->text, flight->req_count);
            leave(texts, req);
        }
        land_pick(pick);
    }
}

static void finish_reqs(struct encoder_texts *texts, uint32_t req_count)
{
    struct encoder_req *next;

    for (struct encoder_req *req = texts->queue.first; req != NULL; req = next) {
        next = req->next;
        if (req->done_count < req->text_count && !req->starved)
            continue;
        if (req->starved)
            emit_error(texts, req->id, ENGINE_ERROR_OOM, texts->no_memory.text, req_count);
        else
            answer(texts, req, req_count);
        leave(texts, req);
    }
}

static int run_picks(struct encoder_texts *texts, struct flight *flight, uint32_t first,
                     uint32_t count, struct err *err);

/* What became of picks [first, first + count), which ran together: rows, or, where memory was
 * short, two halves; what finds none alone is marked, and no failure of the rest. */
static int settle_picks(struct encoder_texts *texts, struct flight *flight, uint32_t first,
                        uint32_t count, int code, struct err *err)
{
    int r;

    if (code == 0) {
        scatter(texts, flight, first, count);
        return 0;
    }
    if (code != ERR_MEMORY)
        return code;
    if (count == 1) {
        flight->picks[first].req->starved = true;
        texts->no_memory = *err;
        land_pick(&flight->picks[first]);
        return 0;
    }
    r = run_picks(texts, flight, first, count / 2, err);
    return r == 0 ? run_picks(texts, flight, first + count / 2, count - count / 2, err) : r;
}

/* Time is the device's: from when it was free, or had the batch, until now. */
static void count_run(struct encoder_texts *texts, uint32_t token_count, uint32_t pad_count,
                      uint64_t start_us)
{
    const uint64_t now_us = clock_mono_us();
    const uint64_t from_us = start_us > texts->landed_us ? start_us : texts->landed_us;

    texts->stats.step_token_count += token_count;
    texts->stats.step_pad_count += pad_count;
    texts->stats.step_busy_us += now_us - from_us;
    texts->landed_us = now_us;
}

static int run_picks(struct encoder_texts *texts, struct flight *flight, uint32_t first,
                     uint32_t count, struct err *err)
{
    const struct bert_batch batch = {flight->ids, flight->offsets, count, flight->seconds};
    const uint32_t token_count = gather(flight, first, count);
    const uint64_t start_us = clock_mono_us();
    uint32_t pad_count = 0;
    int r;

    r = texts->runner.run(texts->runner.self, &batch, flight->rows, &pad_count, err);
    count_run(texts, token_count, pad_count, start_us);
    return settle_picks(texts, flight, first, count, r, err);
}

static uint32_t count_reqs(const struct flight *flight)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < flight->pick_count; i++) {
        count += !flight->picks[i].req->counted;
        flight->picks[i].req->counted = true;
    }
    for (uint32_t i = 0; i < flight->pick_count; i++)
        flight->picks[i].req->counted = false;
    return count;
}

static void launch(struct encoder_texts *texts)
{
    const uint32_t slot = (texts->flight_first + texts->flight_count) % texts->flight_max;
    struct flight *flight = &texts->flights[slot];
    const struct bert_batch *batch;

    assert(texts->flight_count < texts->flight_max);
    flight->pick_count = encoder_queue_cut(&texts->queue, texts->batching.token_max, flight->picks,
                                           texts->batching.item_max);
    assert(flight->pick_count > 0);
    flight->req_count = count_reqs(flight);
    texts->flight_count++;
    texts->stats.step_count++;
    texts->stats.step_req_count += flight->req_count;
    if (texts->runner.start == NULL)
        return; /* land() runs it */
    batch = &(const struct bert_batch){flight->ids, flight->offsets, flight->pick_count,
                                       flight->seconds};
    (void)gather(flight, 0, flight->pick_count);
    flight->start_us = clock_mono_us();
    flight->code = texts->runner.start(texts->runner.self, slot, batch, flight->rows, &flight->err);
}

/* Takes the oldest batch out of the air; ERR_DEVICE leaves it there. */
static int land(struct encoder_texts *texts, struct err *err)
{
    const uint32_t slot = texts->flight_first;
    struct flight *flight = &texts->flights[slot];
    uint32_t pad_count = 0;
    int r;

    assert(texts->flight_count > 0);
    if (texts->runner.start == NULL) {
        r = run_picks(texts, flight, 0, flight->pick_count, &flight->err);
    } else {
        r = flight->code;
        if (r == 0)
            r = texts->runner.finish(texts->runner.self, slot, &pad_count, &flight->err);
        count_run(texts, flight->offsets[flight->pick_count], pad_count, flight->start_us);
        r = settle_picks(texts, flight, 0, flight->pick_count, r, &flight->err);
    }
    if (r == ERR_DEVICE) {
        flight->code = r; /* nothing is left to finish */
        *err = flight->err;
        return r;
    }
    if (r < 0)
        fail_flight(texts, flight, &flight->err);
    texts->flight_first = (slot + 1) % texts->flight_max;
    texts->flight_count--;
    finish_reqs(texts, flight->req_count);
    return 0;
}

static const struct encoder_req *first_waiting(const struct encoder_texts *texts)
{
    const struct encoder_req *req = texts->queue.first;

    while (req != NULL && req->taken_count == req->text_count)
        req = req->next;
    return req;
}

/* When the next batch should leave; ENGINE_NEVER_US when nothing waits. */
static uint64_t due_us(const struct encoder_texts *texts)
{
    const struct encoder_req *first = first_waiting(texts);
    uint64_t item_count = 0, token_count = 0, deadline_us = ENGINE_NEVER_US, due;

    if (first == NULL)
        return ENGINE_NEVER_US;
    /* Who wants no company waits for none, and no more can come than the engine may hold. */
    if (first->alone || first->taken_count > 0 || texts->queue.count == texts->req_count_max)
        return 0;
    for (const struct encoder_req *req = first; req != NULL; req = req->next) {
        item_count += req->text_count - req->taken_count;
        token_count += req->offsets[req->text_count] - req->offsets[req->taken_count];
        if (req->deadline_us != 0 && req->deadline_us < deadline_us)
            deadline_us = req->deadline_us;
    }
    due = encoder_batching_due_us(&texts->batching, item_count, token_count, first->arrived_us);
    return due < deadline_us ? due : deadline_us;
}

/* Who runs alone, because memory was short, has the device to itself. */
static bool may_launch(const struct encoder_texts *texts)
{
    if (texts->flight_count == 0)
        return true;
    return texts->flight_count < texts->flight_max && !first_waiting(texts)->alone &&
           !texts->flights[texts->flight_first].picks[0].req->alone;
}

/* A batch lands when nothing can leave beside it: so the next one is under way before. */
int encoder_texts_step(struct encoder_texts *texts, uint64_t now_us, uint64_t *ret_wake_us,
                       struct err *err)
{
    struct encoder_req *late;
    int r = 0;

    while ((late = encoder_queue_expire(&texts->queue, now_us)) != NULL) {
        emit_error(texts, late->id, ENGINE_ERROR_EXPIRED,
                   "the deadline passed while the request waited in the engine", 0);
        encoder_req_free(&late);
    }
    if (due_us(texts) <= now_us && may_launch(texts))
        launch(texts);
    if (texts->flight_count > 0 && (due_us(texts) > now_us || !may_launch(texts)))
        r = land(texts, err);
    *ret_wake_us = texts->flight_count > 0 ? 0 : encoder_batching_wake_us(due_us(texts), now_us);
    return r;
}

void encoder_texts_stats(const struct encoder_texts *texts, struct engine_stats *ret_stats)
{
    *ret_stats = texts->stats;
    ret_stats->queue_req_count = texts->queue.count;
    for (uint32_t i = 0; i < texts->flight_count; i++)
        ret_stats->running_req_count +=
            texts->flights[(texts->flight_first + i) % texts->flight_max].req_count;
}

/* ---- limits, and the two ends ---- */

static int set_limit(const char *what, uint32_t value, uint32_t otherwise, uint32_t max,
                     uint32_t *ret_value, struct err *err)
{
    if (value > max)
        return err_set(err, ERR_RANGE, "%s is %u, limit %u", what, value, max);
    *ret_value = value != 0 ? value : otherwise;
    return 0;
}

int encoder_thread_count(const struct engine_load *load, uint32_t max, uint32_t *ret_count,
                         struct err *err)
{
    uint32_t otherwise = 1;
    cpu_set_t cpus;

    /* The CPUs that this process may run on: a container's share, not the machine's number. */
    if (sched_getaffinity(0, sizeof(cpus), &cpus) == 0)
        otherwise = (uint32_t)CPU_COUNT(&cpus);
    if (otherwise > THREAD_COUNT_DEFAULT_MAX)
        otherwise = THREAD_COUNT_DEFAULT_MAX;
    return set_limit("thread_count", load->thread_count, otherwise, max, ret_count, err);
}

int encoder_limits(const struct engine_load *load, uint32_t *ret_req_count_max,
                   uint32_t *ret_input_size_max, struct err *err)
{
    int r = set_limit("req_count_max", load->req_count_max, ENCODER_REQ_COUNT_DEFAULT,
                      ENCODER_REQ_COUNT_MAX, ret_req_count_max, err);

    if (r < 0)
        return r;
    return set_limit("input_size_max", load->input_size_max, ENCODER_INPUT_SIZE_DEFAULT,
                     ENCODER_INPUT_SIZE_MAX, ret_input_size_max, err);
}

int encoder_texts_batching(const struct engine_load *load, const json_t *settings,
                           uint32_t token_count_max, uint32_t token_max_default,
                           struct encoder_batching *ret_batching, struct err *err)
{
    struct encoder_batching batching = {.item_max = MODEL_BATCH_ITEMS_MAX};
    int r;

    r = set_limit("batch_token_max", load->batch_token_max, token_max_default,
                  ENCODER_BATCH_TOKEN_MAX, &batching.token_max, err);
    if (r == 0)
        r = encoder_batching_read(settings, &batching, err);
    if (r < 0)
        return r;
    if (batching.token_max < token_count_max)
        return err_set(err, ERR_RANGE,
                       "batch_token_max (or max_tokens of 'batching') is %u, less than the %u "
                       "tokens that one text may have",
                       batching.token_max, token_count_max);
    *ret_batching = batching;
    return 0;
}

static char *quote_model(const char *model)
{
    OWNED(encoder_json_free) json_t *name = json_string(model);

    return name != NULL ? json_dumps(name, JSON_ENCODE_ANY) : NULL;
}

static void flight_init(struct flight *flight, const struct encoder_texts *texts)
{
    const size_t token_max = texts->batching.token_max;
    const size_t row_max = texts->head == ENCODER_HEAD_TOKENS ? token_max : token_max / 2 + 1;

    flight->picks = xcalloc(token_max, sizeof(*flight->picks));
    flight->ids = xcalloc(token_max, sizeof(*flight->ids));
    flight->offsets = xcalloc(token_max + 1, sizeof(*flight->offsets));
    flight->seconds = xcalloc(token_max, sizeof(*flight->seconds));
    flight->rows = xcalloc(row_max * texts->width, sizeof(float));
}

uint32_t encoder_texts_count_max(const struct encoder_batching *batching)
{
    const uint32_t most = batching->token_max / 2 + 1;

    return batching->item_max < most ? batching->item_max : most;
}

static void flight_done(struct flight *flight)
{
    free(flight->rows);
    free(flight->seconds);
    free(flight->offsets);
    free(flight->ids);
    free(flight->picks);
}

/* The device writes into our memory until a batch has landed. */
static void abandon_flights(struct encoder_texts *texts)
{
    for (; texts->flight_count > 0; texts->flight_count--) {
        struct flight *flight = &texts->flights[texts->flight_first];
        uint32_t pad_count;

        if (texts->runner.start != NULL && flight->code == 0)
            (void)texts->runner.finish(texts->runner.self, texts->flight_first, &pad_count,
                                       &flight->err);
        for (uint32_t i = 0; i < flight->pick_count; i++) {
            if (!flight->picks[i].landed)
                land_pick(&flight->picks[i]);
        }
        texts->flight_first = (texts->flight_first + 1) % texts->flight_max;
    }
}

int encoder_texts_new(const struct engine_load *load, const struct encoder_texts_options *options,
                      struct tokenizer **tokenizer_p, struct encoder_texts **ret_texts,
                      struct err *err)
{
    OWNED(encoder_texts_free) struct encoder_texts *texts = xcalloc(1, sizeof(*texts));
    int r;

    if (options->head == ENCODER_HEAD_CLASSIFY && options->token_count_max < PAIR_TOKENS_MIN)
        return err_set(err, ERR_RANGE, "the model has %u tokens a text, a pair needs %u",
                       options->token_count_max, PAIR_TOKENS_MIN);
    texts->sink = load->sink;
    texts->runner = options->runner;
    texts->head = options->head;
    texts->multi_label = options->multi_label;
    texts->width = options->width;
    texts->token_count_max = options->token_count_max;
    texts->batching = options->batching;
    r = encoder_limits(load, &texts->req_count_max, &texts->input_size_max, err);
    if (r < 0)
        return r;
    texts->model_json = quote_model(load->model);
    if (texts->model_json == NULL)
        return err_set(err, ERR_MALFORMED, "the model's name is not UTF-8");
    texts->flight_max = texts->runner.start != NULL ? ENCODER_FLIGHT_MAX : 1;
    for (uint32_t i = 0; i < texts->flight_max; i++)
        flight_init(&texts->flights[i], texts);
    texts->out = BUF_WITH_LIMIT(2ull * ENCODER_OUTPUT_SIZE_MAX);
    texts->tokenizer = TAKE(*tokenizer_p);
    if (options->labels != NULL) {
        texts->labels = *options->labels;
        *options->labels = (struct encoder_labels){0};
    }
    *ret_texts = TAKE(texts);
    return 0;
}

void encoder_texts_free(struct encoder_texts **texts_p)
{
    struct encoder_texts *texts = TAKE(*texts_p);

    if (texts == NULL)
        return;
    abandon_flights(texts);
    encoder_queue_done(&texts->queue);
    tokenizer_free(&texts->tokenizer);
    encoder_labels_done(&texts->labels);
    buf_done(&texts->out);
    token_list_done(&texts->two);
    token_list_done(&texts->one);
    for (uint32_t i = 0; i < texts->flight_max; i++)
        flight_done(&texts->flights[i]);
    free(texts->model_json);
    free(texts);
}

int encoder_texts_warm_up(struct encoder_texts *texts, struct err *err)
{
    const uint32_t offsets[] = {0, 2};
    const struct bert_batch batch = {texts->flights[0].ids, offsets, 1, NULL};
    uint32_t pad_count;

    return texts->runner.run(texts->runner.self, &batch, texts->flights[0].rows, &pad_count, err);
}

uint32_t encoder_texts_req_count_max(const struct encoder_texts *texts)
{
    return texts->req_count_max;
}
