/* SPDX-License-Identifier: Apache-2.0 */

#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "chains/coordinator_int.h"
#include "schema/topics.h"

#define POINTER_TTL_S 3600

/* Parent's time, hash of what it is: planned again, it has the same id. */
struct wire_id step_job_id(const struct wire_id *run, const char *step, uint32_t item,
                           uint32_t round, uint32_t shard)
{
    const uint32_t numbers[2] = {item, round};
    uint8_t hash[crypto_generichash_BYTES];
    crypto_generichash_state state;

    (void)crypto_generichash_init(&state, NULL, 0, sizeof(hash));
    (void)crypto_generichash_update(&state, run->bytes, sizeof(run->bytes));
    (void)crypto_generichash_update(&state, (const uint8_t *)numbers, sizeof(numbers));
    (void)crypto_generichash_update(&state, (const uint8_t *)step, strlen(step));
    (void)crypto_generichash_final(&state, hash, sizeof(hash));
    return job_id_make(shard, job_id_time_ms(run), hash);
}

void item_free(struct item **item_p)
{
    struct item *item = TAKE(*item_p);

    if (item->run != NULL) {
        cache_forget(item);
        LIST_REMOVE(item, link);
        HASH_DEL(item->coordinator->items, item);
        LIST_INSERT_HEAD(&item->coordinator->forgotten, item, link);
        item->run = NULL;
    }
    if (item->pin_count > 0)
        return;
    LIST_REMOVE(item, link);
    free(item->text);
    free(item->text_type);
    free(item->output_type);
    free(item);
}

bool item_unpin(struct item *item)
{
    item->pin_count--;
    if (item->run != NULL)
        return true;
    item_free(&item);
    return false;
}

/* ---- Submit ---- */

static struct message_submit item_message(const struct item *item)
{
    const struct run *run = item->run;
    const struct chain_step *step = &item->coordinator->chain->steps[item->step];
    const struct target *target = &run->targets[item->step];
    bool is_inline = item->blob[0] == '\0';

    return (struct message_submit){
        .id = item->job,
        .tenant = WIRE_TEXT_OF(run->tenant),
        .model = WIRE_TEXT_OF(target->model),
        .deployment = WIRE_TEXT_OF(target->deployment),
        .environment = WIRE_TEXT_OF(target->environment),
        .pool = WIRE_TEXT_OF(target->pool),
        .priority = step->priority,
        .input = {is_inline ? (const uint8_t *)item->text : NULL, is_inline ? item->text_size : 0},
        .input_blob = WIRE_TEXT_OF(item->blob),
        .input_size = item->text_size,
        .input_digest = {item->digest, sizeof(item->digest)},
        .input_type = item->text_type == NULL ? (struct wire_text){0}
                                              : WIRE_TEXT_OF(item->text_type),
        .max_attempts = step->max_attempts,
        .initial_delay_ms = step->initial_delay_ms,
        .max_delay_ms = step->max_delay_ms,
        .queue_limit_ms = step->queue_limit_ms,
        .run_limit_ms = step->run_limit_ms != 0 ? step->run_limit_ms : target->run_limit_ms,
        .total_limit_ms = (item->coordinator->chain->undos >> item->step & 1) != 0
                              ? run->whole_limit_ms
                              : run->limit_ms,
        .repeat = item->repeat,
        .gateway = WIRE_TEXT_OF(item->coordinator->boot),
        .trace = WIRE_TEXT_OF(run->trace),
        .received_us = clock_wall_us(),
        .slot_count = 1,
        .stream = step->stream,
        .parent = run->job,
        .step = WIRE_TEXT_OF(step->name),
        .step_item = item->item,
        .step_round = run->round,
    };
}

static void item_ask(struct item *item);

/* Whoever waits for the run is told whose pieces are its own: in its stream, and by a hint. Without
 * Redis there are no pieces. */
static void item_point(const struct item *item)
{
    const struct run *run = item->run;
    struct cache *cache = item->coordinator->cache;
    const struct message_piece piece = {.step = item->job, .attempt = run->number};
    const struct message_wake wake = {.id = run->job, .state = JOB_IN_PROGRESS};
    const struct cache_place place = {run->id, 1}, none = {0};
    OWNED(buf_done) struct buf bytes = BUF_WITH_LIMIT(1024);
    struct err err;

    if (cache == NULL || !item->coordinator->chain->steps[item->step].stream)
        return;
    if (message_encode(MESSAGE_PIECE, &piece, &bytes, &err) < 0 ||
        cache_stream_add(cache, &run->job, place, none, bytes.bytes, bytes.size, NULL, NULL) < 0)
        return;
    (void)cache_stream_expire(cache, &run->job, POINTER_TTL_S);
    buf_clear(&bytes);
    if (message_encode(MESSAGE_WAKE, &wake, &bytes, &err) == 0)
        (void)cache_wake(cache, WIRE_TEXT_OF(run->job_text), bytes.bytes, bytes.size);
}

static void on_report(void *opaque, uint64_t tag, const struct queue_report *report)
{
    struct item *item = opaque;

    (void)tag;
    if (!item_unpin(item))
        return;
    item->repeat = true;
    item->stage = report->code == ERR_OK && !item->untold ? ITEM_WATCHED : ITEM_TO_SEND;
    if (item->stage == ITEM_TO_SEND) {
        log_warn("step_not_sent", LOG_STR("run", item->run->job_text),
                 LOG_STR("error", report->why));
        return;
    }
    mem_free(&item->text);
    if (item->look_ms == 0)
        item_ask(item); /* its wake-up was faster */
}

/* Behind its Submit, in the same partition. */
static void item_say_cancel(struct item *item)
{
    struct err err;

    item->untold = cancel_job(item->coordinator, &item->job, item->run->tenant, &err) < 0;
    if (item->untold)
        log_warn("step_not_canceled", LOG_STR("run", item->run->job_text), LOG_ERR(&err));
}

static void item_produce(struct item *item)
{
    const struct message_submit fields = item_message(item);
    struct buf *record = &item->coordinator->record;
    struct queue_message message;
    struct err err;
    int r;

    buf_clear(record);
    r = message_encode(MESSAGE_SUBMIT, &fields, record, &err);
    message = (struct queue_message){.topic = item->coordinator->intake,
                                     .partition = job_id_shard(&item->job),
                                     .bytes = record->bytes,
                                     .size = record->size,
                                     .trace = item->run->trace,
                                     .done = on_report,
                                     .opaque = item};
    if (r == 0)
        r = queue_produce(item->coordinator->producer, &message, &err);
    if (r < 0) {
        log_warn("step_not_sent", LOG_STR("run", item->run->job_text), LOG_ERR(&err));
        item->stage = ITEM_TO_SEND;
        return;
    }
    item->stage = ITEM_SENDING;
    item->pin_count++;
    item_point(item);
    if (item->settles)
        item_say_cancel(item);
}

static void on_input_stored(void *opaque, const struct err *err)
{
    struct item *item = opaque;

    if (!item_unpin(item))
        return;
    if (err->code != ERR_OK) {
        log_warn("step_input_not_stored", LOG_STR("blob", item->blob), LOG_ERR(err));
        item->stage = ITEM_TO_SEND;
        return;
    }
    item->stored = true;
    item_produce(item);
}

void item_send(struct item *item)
{
    struct coordinator *coordinator = item->coordinator;
    struct buf input = BUF_WITH_LIMIT(PLAN_STEP_INPUT_MAX);
    struct err err;

    if (item->text_size <= JOB_INPUT_INLINE_MAX || item->stored) {
        item_produce(item);
        return;
    }
    blob_key_input(&item->job, item->blob);
    buf_append(&input, item->text, item->text_size);
    if (blob_put(coordinator->blobs, item->blob, &input, on_input_stored, item, &err) < 0) {
        log_warn("step_input_not_stored", LOG_STR("blob", item->blob), LOG_ERR(&err));
        buf_done(&input);
        item->stage = ITEM_TO_SEND;
        return;
    }
    item->stage = ITEM_SENDING;
    item->pin_count++;
}

/* ---- what is there already ---- */

static const struct known *known_find(const struct run *run, uint32_t step, uint32_t item)
{
    const struct known_key key = {step, item};
    struct known *known;

    HASH_FIND(hh, run->known, &key, sizeof(key), known);
    return known;
}

/* What an earlier round came to counts if it was a success that was not undone; else this round has
 * its own job. */
static bool known_counts(const struct run *run, const struct known *known)
{
    return known != NULL && (known->round == run->round ||
                             (known->state == JOB_SUCCEEDED &&
                              (run->undone_round == 0 || known->round > run->undone_round)));
}

void item_begin(struct run *run, struct plan_todo *todo)
{
    struct coordinator *coordinator = run->coordinator;
    const struct known *known = known_find(run, todo->step, todo->item);
    struct item *item = xcalloc(1, sizeof(*item));

    run->job_count++;
    item->coordinator = coordinator;
    item->run = run;
    item->step = todo->step;
    item->item = todo->item;
    item->settles = todo->settle;
    item->text = TAKE(todo->text);
    item->text_size = todo->text_size;
    item->text_type = todo->text_type == NULL ? NULL : xstrdup(todo->text_type);
    item->repeat = run->again || item->settles || run->targets[todo->step].chain;
    item->gap_ms = COORDINATOR_TICK_MS;
    item->look_ms = loop_now_ms(coordinator->loop) + COORDINATOR_TICK_MS;
    item->job = known_counts(run, known)
                    ? known->job
                    : step_job_id(&run->job, coordinator->chain->steps[todo->step].name, todo->item,
                                  run->round, run->targets[todo->step].shard);
    LIST_INSERT_HEAD(&run->items, item, link);
    HASH_ADD(hh, coordinator->items, job, sizeof(item->job), item);
    if (known_counts(run, known)) { /* its row is there */
        mem_free(&item->text);
        item->stage = ITEM_WATCHED;
        item->look_ms = 0;
        if (item->settles && !job_state_final(known->state))
            item_say_cancel(item);
        else
            item_point(item);
        return;
    }
    (void)crypto_hash_sha256(item->digest, (const uint8_t *)item->text, item->text_size);
    item->fresh = !item->settles;
    if (coordinator->chain->steps[item->step].cache_seconds != 0 && run->asks_cache &&
        item->text_type == NULL)
        cache_want(item);
    else
        item_send(item);
}

/* ---- cancel ---- */

int cancel_job(struct coordinator *coordinator, const struct wire_id *job, const char *tenant,
               struct err *err)
{
    const struct message_cancel cancel = {.id = *job, .tenant = WIRE_TEXT_OF(tenant)};
    OWNED(buf_done) struct buf record = BUF_WITH_LIMIT(1024);
    struct queue_message message;
    int r = message_encode(MESSAGE_CANCEL, &cancel, &record, err);

    message = (struct queue_message){.topic = coordinator->intake,
                                     .partition = job_id_shard(job),
                                     .bytes = record.bytes,
                                     .size = record.size};
    return r == 0 ? queue_produce(coordinator->producer, &message, err) : r;
}

/* Another attempt may have submitted it, or will: one before that lives on, or one behind that has
 * not heard of the failure. So it is submitted by us, too, and canceled behind that: it has one
 * end, whoever was first, and what comes later is a repeat. */
void item_settle(struct run *run, struct plan_todo *todo)
{
    const struct plan_final never = {.state = JOB_CANCELED, .never = true};

    if (run->targets[todo->step].deployment[0] != '\0' ||
        known_counts(run, known_find(run, todo->step, todo->item))) {
        item_begin(run, todo);
        return;
    }
    mem_free(&todo->text);
    plan_on_final(run->plan, todo->step, todo->item, &never);
}

void item_cancel(struct run *run, const struct plan_todo *todo)
{
    struct item *item;
    struct err err;

    LIST_FOREACH(item, &run->items, link)
    {
        if (item->step != todo->step || item->item != todo->item)
            continue;
        if (cancel_job(run->coordinator, &item->job, run->tenant, &err) < 0)
            log_warn("step_not_canceled", LOG_STR("run", run->job_text), LOG_ERR(&err));
        if (!todo->settle)
            item_free(&item);
        return;
    }
}

/* ---- outcomes ---- */

static void item_tell(struct item *item, const struct plan_final *final)
{
    struct run *run = item->run;

    if (plan_on_final(run->plan, item->step, item->item, final) && final->state == JOB_SUCCEEDED &&
        item->fresh)
        cache_note(item);
    item_free(&item);
    run_pump(run);
}

static void on_output_read(void *opaque, struct buf *bytes, const struct err *err)
{
    struct item *item = opaque;
    struct plan_final final = {.state = JOB_SUCCEEDED, .output_is_json = item->output_type == NULL};

    if (!item_unpin(item))
        return;
    if (err->code != ERR_OK && err_class(err->code) == ERR_CLASS_RETRY) {
        item->stage = ITEM_WANTED;
        return;
    }
    if (!final.output_is_json)
        final.output_type = WIRE_TEXT_OF(item->output_type);
    final.output = (struct wire_bytes){bytes == NULL ? NULL : bytes->bytes,
                                       bytes == NULL ? 0 : bytes->size};
    if (err->code != ERR_OK)
        final = (struct plan_final){.state = JOB_FAILED,
                                    .error_class = ERROR_CLASS_INPUT_LOST,
                                    .error_message = WIRE_TEXT_OF("its output cannot be read")};
    item_tell(item, &final);
}

static void item_read_blob(struct item *item, struct wire_text key_text)
{
    OWNED(mem_free) char *key = wire_text_dup(key_text);
    struct err err;

    item->stage = ITEM_WANTED;
    if (item->coordinator->blobs == NULL ||
        blob_get(item->coordinator->blobs, key, PLAN_SIZE_MAX, on_output_read, item, &err) < 0)
        return;
    item->stage = ITEM_READING;
    item->pin_count++;
}

static bool is_json(struct wire_text type)
{
    static const char json[] = "application/json";

    return type.size == 0 ||
           (type.size >= sizeof(json) - 1 && memcmp(type.text, json, sizeof(json) - 1) == 0);
}

void item_over(struct item *item, enum job_state state, enum error_class class,
               struct wire_text error, struct wire_bytes output, struct wire_text output_type,
               struct wire_text output_blob)
{
    const struct plan_final final = {.state = state,
                                     .error_class = class,
                                     .error_message = error,
                                     .never = item->untried && item->settles,
                                     .output = output,
                                     .output_is_json = is_json(output_type),
                                     .output_type = output_type};

    if (!final.output_is_json && item->output_type == NULL)
        item->output_type = wire_text_dup(output_type);
    if (state == JOB_SUCCEEDED && output_blob.size > 0 && plan_reads(item->run->plan, item->step))
        item_read_blob(item, output_blob);
    else
        item_tell(item, &final);
}

void item_orphaned(struct item *item)
{
    const struct plan_final final = {.state = JOB_FAILED,
                                     .error_class = ERROR_CLASS_MODEL_MISSING,
                                     .error_message = WIRE_TEXT_OF("its model was deleted")};
    struct run *run = item->run;
    struct err err;

    if (cancel_job(run->coordinator, &item->job, run->tenant, &err) < 0) {
        log_warn("step_not_canceled", LOG_STR("run", run->job_text), LOG_ERR(&err));
        return; /* the next look finds it again */
    }
    item_tell(item, &final);
}

/* What its record says, if it is one. May free item and run. */
static void item_read(struct item *item, const void *bytes, size_t size)
{
    const struct message_completed *completed = NULL;
    struct message message;
    struct err err;

    if (message_decode(item->coordinator->decoder, bytes, size, &message, &err) == 0 &&
        message.type == MESSAGE_COMPLETED && job_state_known(message.completed.state) &&
        job_state_final((enum job_state)message.completed.state))
        completed = &message.completed;
    if (item->stage != ITEM_WATCHED)
        return;
    item->look_ms = 0; /* the ledger knows */
    item->untried = completed != NULL && completed->attempts == 0;
    if (completed != NULL)
        item_over(item, (enum job_state)completed->state,
                  error_class_known(completed->error_class)
                      ? (enum error_class)completed->error_class
                      : ERROR_CLASS_NONE,
                  completed->error_message, completed->output, completed->output_type,
                  completed->output_blob);
}

static void on_cached(void *opaque, int code, const void *bytes, size_t size)
{
    struct item *item = opaque;

    if (!item_unpin(item))
        return;
    if (code == ERR_OK)
        item_read(item, bytes, size);
    else if (item->stage == ITEM_WATCHED)
        item->look_ms = 0;
}

static void item_ask(struct item *item)
{
    if (item->coordinator->cache != NULL &&
        cache_get_final(item->coordinator->cache, &item->job, on_cached, item) == 0)
        item->pin_count++;
}

/* The wake-up may come before Kafka's report. */
void item_on_wake(struct coordinator *coordinator, const void *bytes, size_t size)
{
    struct message message;
    struct item *item;
    struct err err;

    if (message_decode(coordinator->wake_decoder, bytes, size, &message, &err) < 0 ||
        message.type != MESSAGE_WAKE || !job_state_known(message.wake.state) ||
        !job_state_final((enum job_state)message.wake.state))
        return;
    HASH_FIND(hh, coordinator->items, &message.wake.id, sizeof(message.wake.id), item);
    if (item == NULL)
        return;
    item->look_ms = 0;
    if (item->stage != ITEM_WATCHED)
        return;
    if (message.wake.completed.size > 0)
        item_read(item, message.wake.completed.bytes, message.wake.completed.size);
    else
        item_ask(item);
}
