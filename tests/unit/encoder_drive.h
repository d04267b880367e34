/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Drives an engine as host-c would, for tests: loads, submits, steps until idle, keeps the events.
 */

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "workers/engine.h"

#define DRIVE_EVENT_COUNT_MAX 64

struct drive_event {
    enum engine_event_type type;
    uint64_t req_id;
    enum engine_error error;
    char text[512];
    json_t *output;
    uint32_t token_count;
    uint32_t batch_req_count;
};

struct drive {
    const struct engine_api *api;
    struct engine *engine;
    struct engine_info info;
    struct drive_event events[DRIVE_EVENT_COUNT_MAX];
    uint32_t event_count;
    uint64_t progress_done, progress_total;
    bool stop_loading;
};

static inline void drive_emit(void *opaque, const struct engine_event *event)
{
    struct drive *drive = opaque;
    struct drive_event *to = &drive->events[drive->event_count++];

    assert_true(drive->event_count <= DRIVE_EVENT_COUNT_MAX);
    *to = (struct drive_event){
        .type = event->type,
        .req_id = event->req_id,
        .error = event->error,
        .token_count = event->token_count,
        .batch_req_count = event->batch_req_count,
    };
    if (event->type == ENGINE_EVENT_ERROR)
        mem_copy_text(to->text, event->text);
    if (event->type == ENGINE_EVENT_OUTPUT) {
        to->output = json_loadb(event->data, event->data_size, JSON_REJECT_DUPLICATES, NULL);
        assert_non_null(to->output);
    }
}

static inline bool drive_progress(void *opaque, uint64_t done_size, uint64_t total_size)
{
    struct drive *drive = opaque;

    drive->progress_done = done_size;
    drive->progress_total = total_size;
    return !drive->stop_loading;
}

/* Defaults where load has zeros. */
static inline int drive_load(struct drive *drive, const struct engine_api *api,
                             const struct engine_load *wish, struct err *err)
{
    struct engine_load load = *wish;

    drive->api = api;
    load.model = load.model != NULL ? load.model : "test-model";
    load.device = load.device != NULL ? load.device : "cpu";
    load.sink = (struct engine_sink){drive_emit, drive_progress, drive};
    return api->load(&load, &drive->engine, &drive->info, err);
}

static inline void drive_clear(struct drive *drive)
{
    for (uint32_t i = 0; i < drive->event_count; i++)
        json_decref(drive->events[i].output);
    drive->event_count = 0;
}

static inline void drive_done(struct drive *drive)
{
    drive_clear(drive);
    if (drive->api != NULL)
        drive->api->unload(&drive->engine);
}

static inline void drive_submit(struct drive *drive, uint64_t id, const char *input)
{
    const struct engine_req req = {.id = id, .input = input, .input_size = strlen(input)};
    struct err err;

    assert_int_equal(drive->api->submit(drive->engine, &req, 1, &err), 0);
}

/* Steps until the engine has nothing left; returns how many steps that took. */
static inline uint32_t drive_run(struct drive *drive, uint64_t now_us)
{
    uint64_t wake_us = 0;
    uint32_t count = 0;
    struct err err;

    while (wake_us == 0) {
        assert_int_equal(drive->api->step(drive->engine, now_us, &wake_us, &err), 0);
        count++;
    }
    assert_true(wake_us == ENGINE_NEVER_US);
    return count;
}

/* The final event of a request; exactly one must be there. */
static inline const struct drive_event *drive_final(const struct drive *drive, uint64_t id)
{
    const struct drive_event *found = NULL;

    for (uint32_t i = 0; i < drive->event_count; i++) {
        const struct drive_event *event = &drive->events[i];

        if (event->req_id != id ||
            (event->type != ENGINE_EVENT_OUTPUT && event->type != ENGINE_EVENT_ERROR))
            continue;
        assert_null(found);
        found = event;
    }
    assert_non_null(found);
    return found;
}
