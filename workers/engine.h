/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The plugin ABI: what host-c asks of an engine, and what an engine tells it.
 *
 *     host-c                                   plugin .so
 *       dlopen, dlsym(ENGINE_SYMBOL) ------->  struct engine_api (static)
 *       probe(dir)                  ------->   can it serve this directory, at what cost
 *       load(…, sink)               ------->   reads weights; progress() on the way
 *       submit(req)                 ------->   queues; ACCEPTED, or ERROR bad_input at once
 *       step(now)                   ------->   runs one batch; TOKENS…, OUTPUT or ERROR each
 *       cancel(id)                  ------->   ERROR canceled, now or at the next step
 *       unload()                    ------->   frees all; requests in it are dropped silently
 *
 * Each submitted request ends in exactly one final event: OUTPUT or ERROR. Two batching
 * shapes fit: a *batch* engine queues in submit and cuts one batch a step; a *continuous*
 * engine admits sequences in submit and decodes one token of each a step.
 *
 * Rules
 * - Failure of a request is an ERROR event with a class. Failure of a call (a negative
 *   return) is about the engine: load cannot go on, the queue is full, the device is gone.
 * - An engine never falls back in silence: asked for a device, a dtype or a setting that
 *   it cannot honour, load fails and the text says which.
 * - The host passes times in; they are microseconds on the host's monotonic clock.
 * - Plain C only: no C++ types, no CUDA types, nothing but the .so links a GPU library.
 *
 * Thread: one. The host makes all calls of one engine from one thread, and the engine calls
 * the sink on that thread only, from inside submit, step, cancel and load. What threads an
 * engine keeps for its arithmetic is its own affair.
 * Ownership: everything passed in is borrowed for the call; everything in an event likewise.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Raised by one whenever a line below changes; a host refuses any other number. */
#define ENGINE_ABI 3u

/* The one symbol that a plugin exports: const struct engine_api *headrace_engine(void). */
#define ENGINE_SYMBOL "headrace_engine"

#define ENGINE_TASK_SIZE 24
#define ENGINE_TEXT_SIZE 512

#define ENGINE_NEVER_US UINT64_MAX

struct err;
struct engine; /* the plugin's own */

/* DESIGN section 4, without lost_worker: nobody is left to report that one. The class alone
 * decides retry and budget. Names on the wire: engine_error_name() of the host. */
enum engine_error {
    ENGINE_ERROR_BAD_INPUT,         /* this request can never succeed */
    ENGINE_ERROR_MODEL_ERROR,       /* the model failed on it: the user's retry policy */
    ENGINE_ERROR_MODEL_UNAVAILABLE, /* not ready, shutting down: the user's retry policy */
    ENGINE_ERROR_OOM,               /* memory was short: again, with `alone` set */
    ENGINE_ERROR_DEVICE_FAULT,      /* step fails too: the host must be started anew */
    ENGINE_ERROR_EXPIRED,           /* its deadline passed while it was queued in the engine */
    ENGINE_ERROR_CANCELED,          /* cancel() was called for it */
};

enum engine_event_type {
    ENGINE_EVENT_ACCEPTED, /* queued; at most one a request, from inside submit */
    ENGINE_EVENT_TOKENS, /* a piece of a stream, where `stream` asks for it; before the final event
                          */
    ENGINE_EVENT_OUTPUT, /* final: data is the whole output; after TOKENS, all of them together */
    ENGINE_EVENT_ERROR,  /* final: error and text say why */
};

struct engine_event {
    enum engine_event_type type;
    uint64_t req_id;
    const void *data; /* TOKENS, OUTPUT: of output_type. ERROR: the model's own answer, if any */
    size_t data_size;
    const char *output_type;  /* media type of data, of TOKENS from the first one on; NULL: JSON */
    uint32_t http_status;     /* OUTPUT, ERROR: the model's own; 0: it speaks no HTTP */
    enum engine_error error;  /* ERROR only */
    const char *text;         /* ERROR only: for the user; names field, value and limit */
    uint32_t token_count;     /* OUTPUT: tokens that were computed for this request */
    uint32_t batch_req_count; /* OUTPUT, ERROR from a step: requests in the same batch */
    uint64_t retry_after_ms;  /* ERROR only: not to be tried again sooner; 0: no wish */
};

/* The host's half. emit must not call back into the engine. */
struct engine_sink {
    void (*emit)(void *opaque, const struct engine_event *event);
    /* From inside load: so many of so many bytes are read. False: stop, load fails. */
    bool (*progress)(void *opaque, uint64_t done_size, uint64_t total_size);
    void *opaque;
};

struct engine_probe {
    uint32_t score;              /* 0: cannot serve it, and text says what was looked for */
    char task[ENGINE_TASK_SIZE]; /* embed, classify, rerank, classify_tokens, generate, tensor */
    uint64_t host_size;          /* bytes of main memory once loaded, about */
    uint64_t dev_size;           /* bytes of device memory, about; 0 without a device */
    uint32_t token_count_max;    /* longest input in tokens; 0: no such limit */
    char text[ENGINE_TEXT_SIZE];
};

struct engine_load {
    const char *dir;           /* the model directory */
    const char *model;         /* the model's name, for answers that carry one */
    const char *device;        /* "cpu", "cuda" or "cuda:N" */
    uint32_t thread_count;     /* for arithmetic; 0: the engine's default */
    uint32_t batch_token_max;  /* budget of one batch; 0: the engine's default */
    uint32_t req_count_max;    /* requests held at once, queued and running; 0: default */
    uint32_t input_size_max;   /* bytes of one request's input; 0: default */
    const char *settings_json; /* one object of the engine's own keys; NULL: none. Unknown
                                * keys and values fail the load and are named. */
    struct engine_sink sink;
};

struct engine_info {
    char task[ENGINE_TASK_SIZE];
    char detail[ENGINE_TEXT_SIZE]; /* one line for the log: dtype, instruction set, limits */
    uint32_t req_count_max;        /* what the host may grant as credits */
    uint32_t token_count_max;
    uint64_t host_size;
    uint64_t dev_size;
};

struct engine_req {
    uint64_t id;       /* the host's, unique among requests in the engine */
    const void *input; /* of input_type, not terminated; JSON: the job's model_input */
    size_t input_size;
    const char *input_type; /* media type of the input; NULL: JSON */
    const char *route;      /* "GET /health?x=1": as it came; NULL: predict */
    bool stream;            /* TOKENS are wanted as they come */
    uint64_t deadline_us;   /* expired when now is past it before it runs; 0: none */
    bool alone;             /* in a batch of its own: it, or its neighbour, ran out of memory */
    uint32_t number;        /* which attempt of the job it is, from 1; 0: not known */
};

struct engine_stats {
    uint32_t queue_req_count;
    uint32_t running_req_count;
    uint64_t step_count; /* batches or iterations, since load; so all below */
    uint64_t step_req_count;
    uint64_t step_token_count; /* real tokens computed */
    uint64_t step_pad_count;   /* tokens computed only to fill a shape */
    uint64_t step_busy_us;
    uint64_t output_count;
    uint64_t error_count;
    uint64_t oom_count;
    uint64_t host_size;
    uint64_t dev_size;
    uint64_t cache_used_size; /* KV cache; 0 where there is none */
    uint64_t cache_size;
};

/* Functions return 0 or a negative ERR_ code with err filled. None is NULL. */
struct engine_api {
    uint32_t abi; /* first, for ever */
    const char *name;
    const char *version;

    /* Reads headers and settings of dir, never weights. A directory that this engine does
     * not serve is no failure: score is 0. Negative: dir cannot be read at all. */
    int (*probe)(const char *dir, struct engine_probe *ret_probe, struct err *err);

    /* Blocks until the model is ready to run. */
    int (*load)(const struct engine_load *load, struct engine **ret_engine,
                struct engine_info *ret_info, struct err *err);

    /* Copies what it needs of req, and emits ACCEPTED, or ERROR when the input is at fault.
     * Negative: nothing was taken and nothing emitted (more than req_count_max held). */
    int (*submit)(struct engine *engine, const struct engine_req *req, uint64_t now_us,
                  struct err *err);

    /* Does one piece of work, if there is any, and never waits for some. *ret_wake_us is when
     * to call again: 0 at once, ENGINE_NEVER_US not before the next submit, else a time. The
     * host serves its socket in between, so a piece should be short against a lease.
     * Negative: the engine is unusable; the requests in it are lost with this process. */
    int (*step)(struct engine *engine, uint64_t now_us, uint64_t *ret_wake_us, struct err *err);

    /* The request gets ERROR canceled, unless its final event is out already: an unknown id
     * is no failure, for the two cross on the wire. */
    int (*cancel)(struct engine *engine, uint64_t req_id, struct err *err);

    void (*stats)(const struct engine *engine, struct engine_stats *ret_stats);

    /* Takes the engine and leaves NULL; accepts NULL. */
    void (*unload)(struct engine **engine_p);
};

/* What dlsym(ENGINE_SYMBOL) finds. */
#define ENGINE_EXPORT __attribute__((visibility("default")))
const struct engine_api *headrace_engine(void);
