/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/engines/sim/sim_config.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#define SIM_SERVICE_MS_MAX 3600000.0
#define SIM_REQS_MAX 65536.0
#define SIM_OUTPUT_SIZE_MAX (64.0 * 1024 * 1024)

/* Reads one value into the struct behind `to`. */
typedef int sim_read(const char *name, const json_t *value, void *to, struct err *err);

struct sim_key {
    const char *name;
    sim_read *read;
};

/* ---- values ---- */

static int number_read(const char *name, const json_t *value, double lowest, double highest,
                       double *ret_number, struct err *err)
{
    double number = json_number_value(value);

    if (!json_is_number(value))
        return err_set(err, ERR_RANGE, "sim: '%s' is no number", name);
    if (!(number >= lowest && number <= highest))
        return err_set(err, ERR_RANGE, "sim: '%s' is %g, it must be between %g and %g", name,
                       number, lowest, highest);
    *ret_number = number;
    return 0;
}

static int flag_read(const char *name, const json_t *value, bool *ret_flag, struct err *err)
{
    if (!json_is_boolean(value))
        return err_set(err, ERR_RANGE, "sim: '%s' is neither true nor false", name);
    *ret_flag = json_is_true(value);
    return 0;
}

/* The place of a text in a list of words. */
static int word_read(const char *name, const json_t *value, const char *const *words,
                     size_t word_count, size_t *ret_index, struct err *err)
{
    const char *word = json_string_value(value);

    for (size_t i = 0; word != NULL && i < word_count; i++) {
        if (strcmp(word, words[i]) == 0) {
            *ret_index = i;
            return 0;
        }
    }
    return err_set(err, ERR_RANGE, "sim: '%s' is '%.40s', which is none of its words", name,
                   word == NULL ? "no text" : word);
}

static int failure_read(const char *name, const json_t *value, enum engine_error *ret_failure,
                        struct err *err)
{
    static const char *const words[] = {"model_error", "bad_input", "model_unavailable", "oom",
                                        "not_ready"};
    static const enum engine_error failures[] = {ENGINE_ERROR_MODEL_ERROR, ENGINE_ERROR_BAD_INPUT,
                                                 ENGINE_ERROR_MODEL_UNAVAILABLE, ENGINE_ERROR_OOM,
                                                 ENGINE_ERROR_MODEL_UNAVAILABLE};
    size_t index;
    int r = word_read(name, value, words, COUNT_OF(words), &index, err);

    if (r == 0)
        *ret_failure = failures[index];
    return r;
}

static int object_read(const json_t *object, const struct sim_key *keys, size_t key_count, void *to,
                       struct err *err)
{
    const char *name;
    json_t *value;

    json_object_foreach((json_t *)object, name, value)
    {
        int r = err_set(err, ERR_RANGE, "sim: there is no '%.40s'", name);

        for (size_t i = 0; i < key_count; i++) {
            if (strcmp(name, keys[i].name) == 0)
                r = keys[i].read(name, value, to, err);
        }
        if (r < 0)
            return r;
    }
    return 0;
}

/* ---- settings ---- */

#define SETTING_NUMBER(key, member, type, lowest, highest, factor)                                 \
    static int set_##key(const char *name, const json_t *value, void *to, struct err *err)         \
    {                                                                                              \
        double number;                                                                             \
        int r = number_read(name, value, lowest, highest, &number, err);                           \
                                                                                                   \
        if (r == 0)                                                                                \
            ((struct sim_config *)to)->member = (type)(number * (factor));                         \
        return r;                                                                                  \
    }

SETTING_NUMBER(service_ms, service_us, double, 0, SIM_SERVICE_MS_MAX, 1000)
SETTING_NUMBER(sigma, sigma, double, 0, 10, 1)
SETTING_NUMBER(failure_rate, failure_rate, double, 0, 1, 1)
SETTING_NUMBER(lanes, lane_count, uint32_t, 0, SIM_REQS_MAX, 1)
SETTING_NUMBER(batch, batch_req_count_max, uint32_t, 1, SIM_REQS_MAX, 1)
SETTING_NUMBER(load_ms, load_us, uint64_t, 0, SIM_SERVICE_MS_MAX, 1000)
SETTING_NUMBER(seed, seed, uint64_t, 0, 9007199254740992.0, 1)

static int set_dist(const char *name, const json_t *value, void *to, struct err *err)
{
    static const char *const words[] = {"fixed", "exponential", "lognormal"};
    size_t index;
    int r = word_read(name, value, words, COUNT_OF(words), &index, err);

    if (r == 0)
        ((struct sim_config *)to)->dist = (enum sim_dist)index;
    return r;
}

static int set_failure(const char *name, const json_t *value, void *to, struct err *err)
{
    return failure_read(name, value, &((struct sim_config *)to)->failure, err);
}

static int set_load_fails(const char *name, const json_t *value, void *to, struct err *err)
{
    return flag_read(name, value, &((struct sim_config *)to)->load_fails, err);
}

static int set_test_mode(const char *name, const json_t *value, void *to, struct err *err)
{
    return flag_read(name, value, &((struct sim_config *)to)->test_mode, err);
}

static const struct sim_key sim_settings[] = {
    {"service_ms", set_service_ms},     /* mean time of a batch; 0 */
    {"dist", set_dist},                 /* "fixed", "exponential", "lognormal" */
    {"sigma", set_sigma},               /* of lognormal; 1 */
    {"failure_rate", set_failure_rate}, /* 0 … 1; 0 */
    {"failure", set_failure},           /* "model_error", "bad_input", "oom" … */
    {"lanes", set_lanes},               /* batches at the same time; 0: no limit of its own */
    {"batch", set_batch},               /* requests a batch; 1 */
    {"load_ms", set_load_ms},           /* how long loading takes; 0 */
    {"load_fails", set_load_fails},     /* false */
    {"seed", set_seed},                 /* 1 */
    {"test_mode", set_test_mode},       /* inputs may carry orders; false */
};

int sim_config_parse(const char *json, struct sim_config *ret_config, struct err *err)
{
    struct sim_config config = {
        .sigma = 1, .failure = ENGINE_ERROR_MODEL_ERROR, .batch_req_count_max = 1, .seed = 1};
    json_error_t where;
    json_t *object;
    int r;

    if (json != NULL) {
        object = json_loads(json, JSON_REJECT_DUPLICATES, &where);
        if (!json_is_object(object)) {
            json_decref(object);
            return err_set(err, ERR_RANGE, "sim: settings are no JSON object: %s", where.text);
        }
        r = object_read(object, sim_settings, COUNT_OF(sim_settings), &config, err);
        json_decref(object);
        if (r < 0)
            return r;
    }
    *ret_config = config;
    return 0;
}

/* ---- orders ---- */

static int order_sleep_ms(const char *name, const json_t *value, void *to, struct err *err)
{
    struct sim_order *order = to;
    double number;
    int r = number_read(name, value, 0, SIM_SERVICE_MS_MAX, &number, err);

    if (r == 0) {
        order->has_service = true;
        order->service_us = (uint64_t)(number * 1000);
    }
    return r;
}

static int order_fail(const char *name, const json_t *value, void *to, struct err *err)
{
    struct sim_order *order = to;

    if (json_is_string(value) && strcmp(json_string_value(value), "device_fault") == 0) {
        order->loses_device = true;
        return 0;
    }
    order->fails = true;
    return failure_read(name, value, &order->failure, err);
}

static int order_retry_after_ms(const char *name, const json_t *value, void *to, struct err *err)
{
    double number;
    int r = number_read(name, value, 1, SIM_SERVICE_MS_MAX, &number, err);

    if (r == 0)
        ((struct sim_order *)to)->retry_after_ms = (uint64_t)number;
    return r;
}

static int order_fail_times(const char *name, const json_t *value, void *to, struct err *err)
{
    double number;
    int r = number_read(name, value, 1, 1000, &number, err);

    if (r == 0)
        ((struct sim_order *)to)->fail_count = (uint32_t)number;
    return r;
}

static int order_crash(const char *name, const json_t *value, void *to, struct err *err)
{
    return flag_read(name, value, &((struct sim_order *)to)->crash, err);
}

static int order_hang(const char *name, const json_t *value, void *to, struct err *err)
{
    struct sim_order *order = to;
    bool yes = false;
    int r = 0;

    if (json_is_string(value) && strcmp(json_string_value(value), "soft") == 0) {
        order->hang = SIM_HANG_REQ;
        return 0;
    }
    r = flag_read(name, value, &yes, err);
    order->hang = yes ? SIM_HANG_HOST : SIM_HANG_NONE;
    return r;
}

static int order_echo(const char *name, const json_t *value, void *to, struct err *err)
{
    struct sim_order *order = to;

    (void)name;
    (void)err;
    free(order->echo);
    order->echo = json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT);
    return 0;
}

static int order_output_size(const char *name, const json_t *value, void *to, struct err *err)
{
    double number;
    int r = number_read(name, value, 0, SIM_OUTPUT_SIZE_MAX, &number, err);

    if (r == 0)
        ((struct sim_order *)to)->output_size = (uint32_t)number;
    return r;
}

/* Keeps a text; a second one replaces it. */
static int text_read(const char *name, const json_t *value, char **to, struct err *err)
{
    if (!json_is_string(value))
        return err_set(err, ERR_RANGE, "sim: '%s' is no text", name);
    free(*to);
    *to = xstrdup(json_string_value(value));
    return 0;
}

static int order_body(const char *name, const json_t *value, void *to, struct err *err)
{
    return text_read(name, value, &((struct sim_order *)to)->body, err);
}

static int order_media_type(const char *name, const json_t *value, void *to, struct err *err)
{
    return text_read(name, value, &((struct sim_order *)to)->media_type, err);
}

#define ORDER_NUMBER(key, member, type, lowest, highest, factor)                                   \
    static int order_##key(const char *name, const json_t *value, void *to, struct err *err)       \
    {                                                                                              \
        double number;                                                                             \
        int r = number_read(name, value, lowest, highest, &number, err);                           \
                                                                                                   \
        if (r == 0)                                                                                \
            ((struct sim_order *)to)->member = (type)(number * (factor));                          \
        return r;                                                                                  \
    }

ORDER_NUMBER(http_status, http_status, uint32_t, 100, 599, 1)
ORDER_NUMBER(pieces, piece_count, uint32_t, 1, 1000000, 1)
ORDER_NUMBER(piece_bytes, piece_size, uint32_t, 1, SIM_OUTPUT_SIZE_MAX, 1)
ORDER_NUMBER(piece_gap_ms, piece_gap_us, uint64_t, 0, SIM_SERVICE_MS_MAX, 1000)

static const struct sim_key sim_orders[] = {
    {"sleep_ms", order_sleep_ms},             /* instead of the service time */
    {"fail", order_fail},                     /* "model_error" … "oom", "device_fault" */
    {"fail_times", order_fail_times},         /* faults hit the first so many attempts */
    {"retry_after_ms", order_retry_after_ms}, /* goes with the failure, as a server's Retry-After */
    {"crash", order_crash},                   /* abort() when it would run */
    {"hang", order_hang},                     /* true: the process; "soft": this request */
    {"echo", order_echo},                     /* the output, whatever it is */
    {"output_bytes", order_output_size},      /* pads the output */
    {"body", order_body},                     /* answers with this text, to a failure too */
    {"media_type", order_media_type},         /* of body, or of the pieces */
    {"http_status", order_http_status},       /* of the answer */
    {"pieces", order_pieces},                 /* the answer is made of so many */
    {"piece_bytes", order_piece_bytes},       /* each of this size */
    {"piece_gap_ms", order_piece_gap_ms},     /* from one to the next */
};

int sim_order_parse(const void *input, size_t input_size, struct sim_order *ret_order,
                    struct err *err)
{
    struct sim_order order = {0};
    json_t *object, *sim;
    int r = 0;

    *ret_order = order;
    if (memmem(input, input_size, "\"sim\"", 5) == NULL)
        return 0;
    object = json_loadb(input, input_size, 0, NULL);
    sim = json_object_get(object, "sim");
    if (sim != NULL && !json_is_object(sim))
        r = err_set(err, ERR_RANGE, "sim: the orders are no JSON object");
    else if (sim != NULL)
        r = object_read(sim, sim_orders, COUNT_OF(sim_orders), &order, err);
    json_decref(object);
    if (r < 0)
        sim_order_done(&order);
    else
        *ret_order = order;
    return r;
}

void sim_order_done(struct sim_order *order)
{
    mem_free(&order->echo);
    mem_free(&order->body);
    mem_free(&order->media_type);
}
