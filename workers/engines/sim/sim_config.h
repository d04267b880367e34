/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What the simulated model is asked to be: settings of the deployment, and orders that a request
 * carries in its input when `test_mode` is on.
 *
 * Settings, one JSON object: the rows of sim_settings[] in sim_config.c.
 * Orders, the member `sim` of the input: the rows of sim_orders[] there.
 * Both refuse what they do not know, naming it.
 *
 * Thread: any.   Tests: tests/unit/test_sim_engine.c, test_host_c.c
 */

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "workers/engine.h"

enum sim_dist {
    SIM_DIST_FIXED,
    SIM_DIST_EXPONENTIAL,
    SIM_DIST_LOGNORMAL,
};

struct sim_config {
    enum sim_dist dist;
    double service_us;            /* mean time of a batch */
    double sigma;                 /* of the lognormal distribution */
    double failure_rate;          /* share of the requests that fail by themselves */
    enum engine_error failure;    /* … and how */
    uint32_t lane_count;          /* batches at the same time; 0: as many as requests may be held */
    uint32_t batch_req_count_max; /* requests in a batch */
    uint64_t load_us;             /* how long loading takes */
    bool load_fails;
    uint64_t seed;
    bool test_mode; /* inputs may carry orders */
};

/* json NULL: all defaults. ERR_RANGE names setting, value and limit; *ret_config is untouched. */
int sim_config_parse(const char *json, struct sim_config *ret_config, struct err *err) MUST_CHECK;

enum sim_hang {
    SIM_HANG_NONE,
    SIM_HANG_REQ,  /* this request never ends by itself; cancel works */
    SIM_HANG_HOST, /* the whole process stands still and obeys nothing */
};

struct sim_order {
    bool has_service;
    uint64_t service_us;
    bool fails;
    enum engine_error failure;
    uint64_t retry_after_ms; /* of the failure; 0: none */
    uint32_t fail_count;     /* only the first so many attempts are hit; 0: all of them */
    bool crash;              /* the process aborts */
    enum sim_hang hang;      /* … or stands still */
    bool loses_device;       /* step reports that the device is gone */
    uint32_t output_size;    /* the output is padded to this */
    char *echo;              /* JSON text that is the output; heap; NULL: the input */
    char *body;              /* what it answers instead, also to a failure; heap; NULL: none */
    char *media_type;        /* of that, or of the pieces; heap; NULL: by what it is */
    uint32_t http_status;    /* its own; 0: none */
    uint32_t piece_count;    /* the answer comes in so many pieces; 0: in one */
    uint32_t piece_size;
    uint64_t piece_gap_us; /* from one to the next */
};

/* Looks for `sim` in the input. ERR_RANGE: the order is wrong, the text says where. An input that
 * is no JSON, or has none, has no orders. */
int sim_order_parse(const void *input, size_t input_size, struct sim_order *ret_order,
                    struct err *err) MUST_CHECK;
void sim_order_done(struct sim_order *order);
