/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: every documented path form finds its route and its names; nothing else finds any. The
 * targets are built by hand, so that this test leans on no parser. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "producers/gateway_route.h"

#define BASE "run.example.com"

static void target_split(const char *path, struct http_target *target)
{
    memset(target, 0, sizeof(*target));
    mem_copy_text(target->text, path);
    for (char *save, *word = strtok_r(target->text, "/", &save); word != NULL; /* NOLINT */
         word = strtok_r(NULL, "/", &save))
        target->segments[target->segment_count++] = word;
}

static const struct {
    const char *method, *host, *path;
    enum route route;
    const char *model;
    enum route_target target;
    const char *name, *param;
} rows[] = {
    {"POST", NULL, "/model/m/production/async_predict", ROUTE_SUBMIT, "m", ROUTE_TARGET_ENVIRONMENT,
     "production", NULL},
    {"POST", NULL, "/model/m/development/async_predict", ROUTE_SUBMIT, "m",
     ROUTE_TARGET_DEVELOPMENT, NULL, NULL},
    {"POST", NULL, "/model/m/environments/eu/async_predict", ROUTE_SUBMIT, "m",
     ROUTE_TARGET_ENVIRONMENT, "eu", NULL},
    {"POST", NULL, "/model/m/deployment/d1/async_predict", ROUTE_SUBMIT, "m",
     ROUTE_TARGET_DEPLOYMENT, "d1", NULL},
    {"POST", NULL, "/model/m/deployment/async_predict", ROUTE_NONE, NULL, 0, NULL, NULL},
    {"POST", NULL, "/model/m/async_predict", ROUTE_NONE, NULL, 0, NULL, NULL},
    {"POST", NULL, "/model/m/production/async_predict/x", ROUTE_NONE, NULL, 0, NULL, NULL},
    {"GET", NULL, "/model/m/production/async_predict", ROUTE_WRONG_METHOD, NULL, 0, NULL, NULL},
    {"POST", NULL, "/model/m/environments/eu/predict", ROUTE_PREDICT, "m", ROUTE_TARGET_ENVIRONMENT,
     "eu", NULL},
    {"GET", NULL, "/model/m/production/predict", ROUTE_WRONG_METHOD, NULL, 0, NULL, NULL},
    {"PATCH", NULL, "/model/m/deployment/d/sync/v1/x", ROUTE_PASSTHROUGH, "m",
     ROUTE_TARGET_DEPLOYMENT, "d", NULL},
    {"HEAD", NULL, "/model/m/production/sync", ROUTE_PASSTHROUGH, "m", ROUTE_TARGET_ENVIRONMENT,
     "production", NULL},
    {"TRACE", NULL, "/model/m/production/sync/x", ROUTE_WRONG_METHOD, NULL, 0, NULL, NULL},
    {"POST", NULL, "/model/m/development/wake", ROUTE_WAKE, "m", ROUTE_TARGET_DEVELOPMENT, NULL,
     NULL},
    {"POST", NULL, "/chain/c/production/run_remote", ROUTE_RUN_REMOTE, "c",
     ROUTE_TARGET_ENVIRONMENT, "production", NULL},
    {"POST", NULL, "/chain/c/deployment/d/async_run_remote", ROUTE_ASYNC_RUN_REMOTE, "c",
     ROUTE_TARGET_DEPLOYMENT, "d", NULL},
    {"GET", NULL, "/async_request/x/stream", ROUTE_STREAM, NULL, 0, NULL, "x"},
    {"GET", NULL, "/async_request/x", ROUTE_STATUS, NULL, 0, NULL, "x"},
    {"HEAD", NULL, "/async_request/x", ROUTE_STATUS, NULL, 0, NULL, "x"},
    {"DELETE", NULL, "/async_request/x", ROUTE_CANCEL, NULL, 0, NULL, "x"},
    {"PUT", NULL, "/async_request/x", ROUTE_WRONG_METHOD, NULL, 0, NULL, NULL},
    {"GET", NULL, "/async_request/x/result", ROUTE_RESULT, NULL, 0, NULL, "x"},
    {"GET", NULL, "/model/m/async_request/x/result", ROUTE_RESULT_OF_MODEL, "m", 0, NULL, "x"},
    {"GET", NULL, "/model/m/production/async_queue_status", ROUTE_QUEUE_STATUS, "m",
     ROUTE_TARGET_ENVIRONMENT, "production", NULL},
    {"GET", NULL, "/v1/models/m/deployments/d", ROUTE_DEPLOYMENT, "m", 0, NULL, "d"},
    {"GET", NULL, "/chain/c/async_request/x", ROUTE_STATUS_OF_CHAIN, "c", 0, NULL, "x"},
    {"DELETE", NULL, "/chain/c/async_request/x", ROUTE_CANCEL_OF_CHAIN, "c", 0, NULL, "x"},
    {"GET", NULL, "/chain/c/production/async_queue_status", ROUTE_QUEUE_OF_CHAIN, "c",
     ROUTE_TARGET_ENVIRONMENT, "production", NULL},
    {"GET", NULL, "/v1/chains/c/environments/e", ROUTE_CHAIN_ENVIRONMENT, "c", 0, NULL, "e"},
    {"PATCH", NULL, "/v1/chains/c/environments/e/chainlet_settings/autoscaling_settings",
     ROUTE_CHAIN_AUTOSCALING, "c", 0, NULL, "e"},
    {"GET", NULL, "/v1/chains/c/deployments/d/chainlets/x/logs", ROUTE_CHAINLET_LOGS, "c", 0, NULL,
     "x"},
    {"POST", NULL, "/v1/webhook_secrets/rotate", ROUTE_SECRET_ROTATE, NULL, 0, NULL, NULL},
    {"DELETE", NULL, "/v1/webhook_secrets/s", ROUTE_SECRET_DELETE, NULL, 0, NULL, "s"},
    {"GET", NULL, "/", ROUTE_NONE, NULL, 0, NULL, NULL},
    {"GET", NULL, "/healthz", ROUTE_HEALTH, NULL, 0, NULL, NULL},
    /* host form */
    {"POST", "model-abc.run.example.com", "/production/async_predict", ROUTE_SUBMIT, "abc",
     ROUTE_TARGET_ENVIRONMENT, "production", NULL},
    {"POST", "MODEL-Abc.Run.example.com:8080", "/async_predict", ROUTE_SUBMIT, "abc",
     ROUTE_TARGET_NONE, NULL, NULL},
    {"POST", "model-abc-eu.run.example.com.", "/async_predict", ROUTE_SUBMIT, "abc-eu",
     ROUTE_TARGET_NONE, NULL, NULL},
    {"POST", "model-abc.run.example.com", "/predict", ROUTE_PREDICT, "abc", ROUTE_TARGET_NONE, NULL,
     NULL},
    {"POST", "chain-abc-eu.run.example.com", "/run_remote", ROUTE_RUN_REMOTE, "abc-eu",
     ROUTE_TARGET_NONE, NULL, NULL},
    {"POST", "chain-abc.run.example.com", "/production/async_run_remote", ROUTE_ASYNC_RUN_REMOTE,
     "abc", ROUTE_TARGET_ENVIRONMENT, "production", NULL},
    {"POST", "chain-abc.run.example.com", "/predict", ROUTE_NONE, NULL, 0, NULL, NULL},
    {"POST", "model-abc.run.example.com", "/run_remote", ROUTE_NONE, NULL, 0, NULL, NULL},
    {"POST", "chains-abc.run.example.com", "/run_remote", ROUTE_NONE, NULL, 0, NULL, NULL},
    {"GET", "chain-abc.run.example.com", "/async_request/x", ROUTE_STATUS, NULL, 0, NULL, "x"},
    {"GET", "model-abc.run.example.com", "/sync/v1/models", ROUTE_PASSTHROUGH, "abc",
     ROUTE_TARGET_NONE, NULL, NULL},
    {"GET", "model-abc.run.example.com", "/async_request/x", ROUTE_STATUS, NULL, 0, NULL, "x"},
    {"POST", "model-abc.run.example.com", "/model/m/production/async_predict", ROUTE_SUBMIT, "m",
     ROUTE_TARGET_ENVIRONMENT, "production", NULL},
    {"POST", "model-abc.other.example.com", "/production/async_predict", ROUTE_NONE, NULL, 0, NULL,
     NULL},
    {"POST", "model-.run.example.com", "/production/async_predict", ROUTE_NONE, NULL, 0, NULL,
     NULL},
    {"POST", "model-abc.run.example.comx", "/production/async_predict", ROUTE_NONE, NULL, 0, NULL,
     NULL},
};

static void same_text(const char *got, const char *want)
{
    if (want == NULL)
        assert_null(got);
    else
        assert_string_equal(got, want);
}

static void test_rows(void **state)
{
    struct http_target *target = xcalloc(1, sizeof(*target));

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct route_match match;

        target_split(rows[i].path, target);
        route_find(rows[i].method, rows[i].host, BASE, target, &match);
        assert_string_equal(route_name(match.route), route_name(rows[i].route));
        if (match.route <= ROUTE_WRONG_METHOD)
            continue;
        same_text(match.model, rows[i].model);
        same_text(match.target_name, rows[i].name);
        same_text(match.param, rows[i].param);
        assert_int_equal(match.target, rows[i].target);
    }
    free(target);
}

/* What stands in front of the rest, on paths and on hosts. */
static void test_rest(void **state)
{
    static const struct {
        const char *host, *path;
        size_t skip;
    } paths[] = {
        {NULL, "/model/m/production/sync/v1/x", 4},
        {NULL, "/model/m/environments/eu/sync/v1/x", 5},
        {"model-abc.run.example.com", "/sync/v1/x", 1},
        {"model-abc.run.example.com", "/deployment/d/sync/v1/x", 3},
    };
    struct http_target *target = xcalloc(1, sizeof(*target));
    struct route_match match;

    (void)state;
    for (size_t i = 0; i < COUNT_OF(paths); i++) {
        target_split(paths[i].path, target);
        route_find("POST", paths[i].host, BASE, target, &match);
        assert_int_equal(match.route, ROUTE_PASSTHROUGH);
        assert_int_equal(match.rest_skip, paths[i].skip);
    }
    free(target);
}

static void test_allow(void **state)
{
    struct http_target *target = xcalloc(1, sizeof(*target));
    struct route_match match;

    (void)state;
    target_split("/async_request/x", target);
    route_find("PATCH", NULL, "", target, &match);
    assert_string_equal(match.allow, "GET, DELETE");
    target_split("/v1/webhook_secrets/rotate", target);
    route_find("DELETE", NULL, "", target, &match);
    assert_int_equal(match.route, ROUTE_WRONG_METHOD);
    assert_string_equal(match.allow, "POST");
    target_split("/production/async_predict", target);
    route_find("POST", "model-abc.x", "", target, &match);
    assert_int_equal(match.route, ROUTE_NONE);
    free(target);
}

static void test_access(void **state)
{
    (void)state;
    assert_true(route_is_open_to(ROUTE_SUBMIT, API_KEY_ROLE_PREDICT));
    assert_true(route_is_open_to(ROUTE_SUBMIT, API_KEY_ROLE_ADMIN));
    assert_false(route_is_open_to(ROUTE_SUBMIT, API_KEY_ROLE_METRICS));
    assert_false(route_is_open_to(ROUTE_KEY_CREATE, API_KEY_ROLE_PREDICT));
    assert_true(route_is_open_to(ROUTE_METRICS, API_KEY_ROLE_METRICS));
    assert_false(route_is_open_to(ROUTE_METRICS, API_KEY_ROLE_PREDICT));
    assert_int_equal(route_access(ROUTE_HEALTH), ROUTE_ACCESS_PUBLIC);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_rest),
        cmocka_unit_test(test_allow),
        cmocka_unit_test(test_access),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
