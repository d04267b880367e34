/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What the gateway knows of models: an immutable snapshot, built from rows, asked by every request.
 *
 *     gateway_config_new -> config_add_…  (in any order) -> gateway_config_seal ->
 * gateway_config_choose…
 *
 * Pure: no I/O, no clock.   Thread: the loop's.   Tests: tests/unit/test_gateway_config.c
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "producers/gateway_route.h"
#include "schema/chain.h"
#include "schema/limits.h"

#define CONFIG_NAME_SIZE 65

struct config;

struct config_model {
    char id[CONFIG_NAME_SIZE], name[CONFIG_NAME_SIZE], tenant[CONFIG_NAME_SIZE];
    size_t first_deployment, deployment_count; /* filled by gateway_config_seal() */
    size_t first_target, target_count;
};

struct config_deployment {
    char id[CONFIG_NAME_SIZE], name[CONFIG_NAME_SIZE], model[CONFIG_NAME_SIZE];
    char pool[CONFIG_NAME_SIZE], status[24];
    uint32_t shard;
    uint32_t slot_count; /* of one replica: what a job may ask for at most */
    uint64_t run_limit_ms;
    char webhook[CHAIN_WEBHOOK_SIZE]; /* of a declared chain, for runs that name none; "": none */
    bool is_chain;                    /* or a chainlet of one in Python */
    bool streams;                     /* a declared chain one of whose steps does */
    bool is_truss; /* on every route, who accepts only JSON gets an answer in pieces as one text */
};

/* An environment, and one of the deployments that it points at; deployment "": none yet. */
struct config_target {
    char model[CONFIG_NAME_SIZE], environment[CONFIG_NAME_SIZE], deployment[CONFIG_NAME_SIZE];
    uint32_t weight;
};

/* What somebody has set for a tenant or an API key. */
struct config_limits {
    char name[CONFIG_NAME_SIZE]; /* the tenant's id, or the key's prefix */
    enum limit_on on;
    struct limits limits;
};

/* A kill switch that is on. */
struct config_switch {
    char tenant[CONFIG_NAME_SIZE], kind[CONFIG_NAME_SIZE], value[CONFIG_NAME_SIZE];
    char reason[256]; /* the beginning of it */
};

struct config *gateway_config_new(void);
void gateway_config_free(struct config **config_p);
void gateway_config_add_model(struct config *config, const struct config_model *model);
void gateway_config_add_deployment(struct config *config,
                                   const struct config_deployment *deployment);
void gateway_config_add_target(struct config *config, const struct config_target *target);
void gateway_config_add_limits(struct config *config, const struct config_limits *limits);
void gateway_config_add_switch(struct config *config, const struct config_switch *on);
void gateway_config_seal(struct config *config);
size_t gateway_config_model_count(const struct config *config);

/* Never NULL: who has none set has an empty set. */
const struct limits *gateway_config_limits(const struct config *config, enum limit_on on,
                                           const char *name);

/* By id or name; NULL: this tenant has no such model. */
const struct config_model *gateway_config_find_model(const struct config *config,
                                                     const char *tenant, const char *id_or_name);
/* A model with a deployment that is a chain's. */
bool gateway_config_is_chain(const struct config *config, const struct config_model *model);

/* By id or name within the model. */
const struct config_deployment *gateway_config_find_deployment(const struct config *config,
                                                               const struct config_model *model,
                                                               const char *id_or_name);

struct config_choice {
    const struct config_model *model;
    const struct config_deployment *deployment;
    const char *environment; /* "" for a deployment called by its own name */
};

/* Whom a request goes to; of an environment's deployments one by weight, chosen by `random`.
 * ERR_NOT_FOUND: no such model, environment or deployment, it is deactivated, or no chain where the
 * route is of chains. ERR_UNAVAILABLE:
 * it exists and cannot take requests yet, or failed to start. The text says which. */
int gateway_config_choose(const struct config *config, const char *tenant,
                          const struct route_match *match, uint64_t random,
                          struct config_choice *ret_choice, struct err *err) MUST_CHECK;

/* The switch that a submit meets: of its tenant, its model (an id) or one of its tags ("a,b");
 * NULL: none is on. */
const struct config_switch *gateway_config_find_switch(const struct config *config,
                                                       const char *tenant, const char *model,
                                                       const char *tags);
