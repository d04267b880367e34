/* SPDX-License-Identifier: Apache-2.0 */

#include "schema/job.h"

#include <stddef.h>

#include "base/assert.h"

#define EFFECT_FINAL true
#define EFFECT_RETRY false

static const struct {
    const char *name;
    bool final;
} states[] = {
#define JOB_STATE(name, number, final, meaning) [number] = {#name, final},
#include "schema/job_states.def"
#undef JOB_STATE
};

static const struct {
    const char *name, *wire;
    int http;
    enum error_budget budget;
    bool final;
} classes[ERROR_CLASS_COUNT] = {
    [ERROR_CLASS_NONE] = {"none", "", 200, ERROR_BUDGET_NONE, true},
#define ERROR_CLASS(name, number, wire, http, budget, effect)                                      \
    [number] = {#name, wire, http, ERROR_BUDGET_##budget, EFFECT_##effect},
#include "schema/error_classes.def"
#undef ERROR_CLASS
};

bool job_state_known(uint64_t number)
{
    return number > 0 && number < sizeof(states) / sizeof(states[0]);
}

bool job_state_final(enum job_state state)
{
    assert(job_state_known(state));
    return states[state].final;
}

bool job_state_dead(enum job_state state)
{
    return state == JOB_FAILED || state == JOB_EXPIRED;
}

const char *job_state_name(enum job_state state)
{
    assert(job_state_known(state));
    return states[state].name;
}

bool error_class_known(uint64_t number)
{
    return number < ERROR_CLASS_COUNT;
}

const char *error_class_name(enum error_class class)
{
    assert(error_class_known(class));
    return classes[class].name;
}

const char *error_class_wire(enum error_class class)
{
    assert(error_class_known(class));
    return classes[class].wire;
}

int error_class_http(enum error_class class)
{
    assert(error_class_known(class));
    return classes[class].http;
}

enum error_budget error_class_budget(enum error_class class)
{
    assert(error_class_known(class));
    return classes[class].budget;
}

bool error_class_final(enum error_class class)
{
    assert(error_class_known(class));
    return classes[class].final;
}

const char *error_class_reason(enum error_class class)
{
    if (class == ERROR_CLASS_INPUT_LOST) /* has tries like what kills workers, and is none of it */
        return "input_lost";
    switch (error_class_budget(class)) {
    case ERROR_BUDGET_USER:
        return "attempts_used";
    case ERROR_BUDGET_OOM:
        return "out_of_memory";
    case ERROR_BUDGET_LOST:
        return "poison";
    case ERROR_BUDGET_NONE:
        break;
    }
    switch (class) {
    case ERROR_CLASS_BAD_INPUT:
        return "bad_input";
    case ERROR_CLASS_MODEL_MISSING:
        return "model_missing";
    case ERROR_CLASS_UNSTORABLE:
        return "unstorable";
    case ERROR_CLASS_STEP_FAILED:
        return "step_failed";
    case ERROR_CLASS_TRAINING_FAILED:
        return "training_failed";
    case ERROR_CLASS_RUN_STUCK:
        return "poison";
    default: /* no class that fails a job */
        return "";
    }
}

uint64_t job_backoff_ms(uint64_t initial_ms, uint64_t max_ms, uint32_t failures, double jitter)
{
    uint64_t delay_ms = initial_ms;

    assert(failures > 0);
    for (uint32_t i = 1; i < failures && delay_ms < max_ms; i++)
        delay_ms *= 2;
    if (delay_ms > max_ms)
        delay_ms = max_ms;
    return delay_ms / 2 + (uint64_t)((double)(delay_ms - delay_ms / 2) * jitter);
}
