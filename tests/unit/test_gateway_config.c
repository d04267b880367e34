/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: each way of naming a model leads to the deployment that it should, tenants do not see each
 * other, and a refusal says which part is missing. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "producers/gateway_config.h"

static const struct config_target targets[] = {
    {"m2", "production", "", 100}, {"m1", "production", "d1", 30}, {"m1", "production", "d2", 70},
    {"m1", "eu-west", "d3", 1},    {"m1", "old", "d4", 1},         {"gone", "production", "d9", 1},
};

static const char *const deployments[][4] = {
    /* id, name, model, status */
    {"d3", "deployment-3", "m1", "ACTIVE"},         {"d1", "deployment-1", "m1", "ACTIVE"},
    {"d2", "deployment-2", "m1", "SCALED_TO_ZERO"}, {"d4", "deployment-4", "m1", "INACTIVE"},
    {"d5", "deployment-5", "m1", "DEPLOY_FAILED"},  {"d6", "deployment-1", "m2", "DEPLOYING"},
};

static const char *const models[][3] = {
    /* id, name, tenant */
    {"m2", "other-model", "a"},
    {"m3", "mini-lm", "b"},
    {"m1", "mini-lm", "a"},
};

static int world_open(void **state)
{
    struct config *config = gateway_config_new();

    for (size_t i = 0; i < COUNT_OF(targets); i++)
        gateway_config_add_target(config, &targets[i]);
    for (size_t i = 0; i < COUNT_OF(deployments); i++) {
        struct config_deployment deployment = {.shard = 0};

        mem_copy_text(deployment.id, deployments[i][0]);
        mem_copy_text(deployment.name, deployments[i][1]);
        mem_copy_text(deployment.model, deployments[i][2]);
        mem_copy_text(deployment.status, deployments[i][3]);
        gateway_config_add_deployment(config, &deployment);
    }
    for (size_t i = 0; i < COUNT_OF(models); i++) {
        struct config_model model = {.target_count = 0};

        mem_copy_text(model.id, models[i][0]);
        mem_copy_text(model.name, models[i][1]);
        mem_copy_text(model.tenant, models[i][2]);
        gateway_config_add_model(config, &model);
    }
    gateway_config_seal(config);
    *state = config;
    return 0;
}

static int world_close(void **state)
{
    gateway_config_free((struct config **)state);
    return 0;
}

static const struct {
    const char *what, *tenant, *model;
    enum route_target target;
    const char *name;
    bool from_host;
    uint64_t random;
    int code;
    const char *want, *environment;
} rows[] = {
    {"by id", "a", "m1", ROUTE_TARGET_ENVIRONMENT, "production", false, 0, 0, "d1", "production"},
    {"by name", "a", "mini-lm", ROUTE_TARGET_ENVIRONMENT, "production", false, 29, 0, "d1",
     "production"},
    {"by weight", "a", "m1", ROUTE_TARGET_ENVIRONMENT, "production", false, 30, 0, "d2",
     "production"},
    {"by weight, last", "a", "m1", ROUTE_TARGET_ENVIRONMENT, "production", false, 199, 0, "d2",
     "production"},
    {"deployment by id", "a", "m1", ROUTE_TARGET_DEPLOYMENT, "d3", false, 0, 0, "d3", ""},
    {"deployment by name", "a", "m1", ROUTE_TARGET_DEPLOYMENT, "deployment-3", false, 0, 0, "d3",
     ""},
    {"deployment of another", "a", "m2", ROUTE_TARGET_DEPLOYMENT, "d3", false, 0, ERR_NOT_FOUND,
     "deployment 'd3'", ""},
    {"starting", "a", "m2", ROUTE_TARGET_DEPLOYMENT, "d6", false, 0, 0, "d6", ""},
    {"other tenant", "b", "m1", ROUTE_TARGET_ENVIRONMENT, "production", false, 0, ERR_NOT_FOUND,
     "no model 'm1'", ""},
    {"same name elsewhere", "b", "mini-lm", ROUTE_TARGET_ENVIRONMENT, "production", false, 0,
     ERR_NOT_FOUND, "no environment 'production'", ""},
    {"no environment", "a", "m1", ROUTE_TARGET_ENVIRONMENT, "x", false, 0, ERR_NOT_FOUND,
     "no environment 'x'", ""},
    {"no development", "a", "m1", ROUTE_TARGET_DEVELOPMENT, NULL, false, 0, ERR_NOT_FOUND,
     "no environment 'development'", ""},
    {"nothing ready", "a", "m2", ROUTE_TARGET_ENVIRONMENT, "production", false, 0, ERR_UNAVAILABLE,
     "no deployment that is ready", ""},
    {"deactivated", "a", "m1", ROUTE_TARGET_ENVIRONMENT, "old", false, 0, ERR_NOT_FOUND,
     "deactivated", ""},
    {"failed", "a", "m1", ROUTE_TARGET_DEPLOYMENT, "d5", false, 0, ERR_UNAVAILABLE, "DEPLOY_FAILED",
     ""},
    {"host", "a", "m1", ROUTE_TARGET_NONE, NULL, true, 0, 0, "d1", "production"},
    {"host by name with a dash", "a", "mini-lm", ROUTE_TARGET_NONE, NULL, true, 0, 0, "d1",
     "production"},
    {"regional host", "a", "mini-lm-eu-west", ROUTE_TARGET_NONE, NULL, true, 0, 0, "d3", "eu-west"},
    {"regional host with a prefix", "a", "m1-eu-west", ROUTE_TARGET_ENVIRONMENT, "production", true,
     0, ERR_NOT_FOUND, "no model 'm1-eu-west'", ""},
    {"path is no host", "a", "m1-eu-west", ROUTE_TARGET_NONE, NULL, false, 0, ERR_NOT_FOUND,
     "no model", ""},
};

static void test_choose(void **state)
{
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        const struct route_match match = {.model = rows[i].model,
                                          .target = rows[i].target,
                                          .target_name = rows[i].name,
                                          .from_host = rows[i].from_host};
        struct config_choice choice;
        struct err err = {0};
        int r = gateway_config_choose(*state, rows[i].tenant, &match, rows[i].random, &choice,
                                      &err);

        if (r != rows[i].code)
            fail_msg("%s: %d %s", rows[i].what, r, err.text);
        if (r < 0 && strstr(err.text, rows[i].want) == NULL)
            fail_msg("%s: '%s' does not say '%s'", rows[i].what, err.text, rows[i].want);
        if (r < 0)
            continue;
        assert_string_equal(choice.deployment->id, rows[i].want);
        assert_string_equal(choice.environment, rows[i].environment);
    }
}

static void test_empty(void **state)
{
    struct config *config = gateway_config_new();

    (void)state;
    gateway_config_seal(config);
    assert_null(gateway_config_find_model(config, "a", "m1"));
    assert_int_equal(gateway_config_model_count(config), 0);
    gateway_config_free(&config);
    gateway_config_free(&config);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_choose, world_open, world_close),
        cmocka_unit_test(test_empty),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
