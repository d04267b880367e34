/* SPDX-License-Identifier: Apache-2.0 */

#include "producers/gateway_config.h"

#include <stdlib.h>
#include <string.h>

#include "base/assert.h"

/* A model under its id or its name. */
struct config_ref {
    const char *tenant, *text;
    const struct config_model *model;
};

struct config {
    struct config_model *models;           /* by id */
    struct config_deployment *deployments; /* by model, then id */
    struct config_target *targets;         /* by model, then environment */
    struct config_ref *refs;               /* by tenant, then text */
    struct config_limits *limits;          /* by what they are on, then name */
    struct config_switch *switches;        /* by tenant, kind, value */
    size_t model_count, deployment_count, target_count, ref_count, limits_count, switch_count;
    bool sealed;
};

struct config *gateway_config_new(void)
{
    return xcalloc(1, sizeof(struct config));
}

void gateway_config_free(struct config **config_p)
{
    struct config *config = TAKE(*config_p);

    if (config == NULL)
        return;
    free(config->models);
    free(config->deployments);
    free(config->targets);
    free(config->refs);
    free(config->limits);
    free(config->switches);
    free(config);
}

/* Returns the array with room for one item more: it doubles at each power of two. */
static void *grown(void *array, size_t count, size_t item_size)
{
    bool full = count == 0 || (count & (count - 1)) == 0;

    return full ? xrealloc(array, count == 0 ? 1 : 2 * count, item_size) : array;
}

void gateway_config_add_model(struct config *config, const struct config_model *model)
{
    config->models = grown(config->models, config->model_count, sizeof(*model));
    config->models[config->model_count++] = *model;
}

void gateway_config_add_deployment(struct config *config,
                                   const struct config_deployment *deployment)
{
    config->deployments = grown(config->deployments, config->deployment_count, sizeof(*deployment));
    config->deployments[config->deployment_count++] = *deployment;
}

void gateway_config_add_target(struct config *config, const struct config_target *target)
{
    config->targets = grown(config->targets, config->target_count, sizeof(*target));
    config->targets[config->target_count++] = *target;
}

void gateway_config_add_limits(struct config *config, const struct config_limits *limits)
{
    config->limits = grown(config->limits, config->limits_count, sizeof(*limits));
    config->limits[config->limits_count++] = *limits;
}

static int compare_limits(const void *a, const void *b)
{
    const struct config_limits *x = a, *y = b;

    return x->on != y->on ? (x->on < y->on ? -1 : 1) : strcmp(x->name, y->name);
}

void gateway_config_add_switch(struct config *config, const struct config_switch *on)
{
    config->switches = grown(config->switches, config->switch_count, sizeof(*on));
    config->switches[config->switch_count++] = *on;
}

static int compare_switches(const void *a, const void *b)
{
    const struct config_switch *x = a, *y = b;
    int r = strcmp(x->tenant, y->tenant);

    if (r == 0)
        r = strcmp(x->kind, y->kind);
    return r != 0 ? r : strcmp(x->value, y->value);
}

static int compare_models(const void *a, const void *b)
{
    return strcmp(((const struct config_model *)a)->id, ((const struct config_model *)b)->id);
}

static int compare_deployments(const void *a, const void *b)
{
    const struct config_deployment *x = a, *y = b;
    int r = strcmp(x->model, y->model);

    return r != 0 ? r : strcmp(x->id, y->id);
}

static int compare_targets(const void *a, const void *b)
{
    const struct config_target *x = a, *y = b;
    int r = strcmp(x->model, y->model);

    if (r == 0)
        r = strcmp(x->environment, y->environment);
    return r != 0 ? r : strcmp(x->deployment, y->deployment);
}

static int compare_refs(const void *a, const void *b)
{
    const struct config_ref *x = a, *y = b;
    int r = strcmp(x->tenant, y->tenant);

    return r != 0 ? r : strcmp(x->text, y->text);
}

static void sort(void *items, size_t count, size_t item_size,
                 int (*compare)(const void *, const void *))
{
    if (count > 0)
        qsort(items, count, item_size, compare);
}

/* Models come by id, and so do the other two: one walk over all three. */
static void link_parts(struct config *config)
{
    size_t d = 0, t = 0;

    for (size_t i = 0; i < config->model_count; i++) {
        struct config_model *model = &config->models[i];

        while (d < config->deployment_count && strcmp(config->deployments[d].model, model->id) < 0)
            d++;
        model->first_deployment = d;
        while (d < config->deployment_count && strcmp(config->deployments[d].model, model->id) == 0)
            d++;
        model->deployment_count = d - model->first_deployment;
        while (t < config->target_count && strcmp(config->targets[t].model, model->id) < 0)
            t++;
        model->first_target = t;
        while (t < config->target_count && strcmp(config->targets[t].model, model->id) == 0)
            t++;
        model->target_count = t - model->first_target;
    }
}

void gateway_config_seal(struct config *config)
{
    assert(!config->sealed);
    sort(config->models, config->model_count, sizeof(config->models[0]), compare_models);
    sort(config->deployments, config->deployment_count, sizeof(config->deployments[0]),
         compare_deployments);
    sort(config->targets, config->target_count, sizeof(config->targets[0]), compare_targets);
    sort(config->limits, config->limits_count, sizeof(config->limits[0]), compare_limits);
    sort(config->switches, config->switch_count, sizeof(config->switches[0]), compare_switches);
    link_parts(config);
    config->refs = xcalloc(2 * config->model_count, sizeof(config->refs[0]));
    for (size_t i = 0; i < config->model_count; i++) {
        const struct config_model *model = &config->models[i];

        config->refs[config->ref_count++] = (struct config_ref){model->tenant, model->id, model};
        if (strcmp(model->id, model->name) != 0)
            config->refs[config->ref_count++] = (struct config_ref){model->tenant, model->name,
                                                                    model};
    }
    sort(config->refs, config->ref_count, sizeof(config->refs[0]), compare_refs);
    config->sealed = true;
}

size_t gateway_config_model_count(const struct config *config)
{
    return config->model_count;
}

const struct limits *gateway_config_limits(const struct config *config, enum limit_on on,
                                           const char *name)
{
    static const struct limits none;
    struct config_limits want = {.on = on};
    const struct config_limits *found;

    assert(config->sealed);
    if (config->limits_count == 0)
        return &none;
    mem_copy_text(want.name, name);
    found = bsearch(&want, config->limits, config->limits_count, sizeof(want), compare_limits);
    return found == NULL ? &none : &found->limits;
}

const struct config_model *gateway_config_find_model(const struct config *config,
                                                     const char *tenant, const char *id_or_name)
{
    const struct config_ref want = {tenant, id_or_name, NULL};
    const struct config_ref *ref;

    assert(config->sealed);
    if (config->ref_count == 0)
        return NULL;
    ref = bsearch(&want, config->refs, config->ref_count, sizeof(want), compare_refs);
    return ref == NULL ? NULL : ref->model;
}

const struct config_deployment *gateway_config_find_deployment(const struct config *config,
                                                               const struct config_model *model,
                                                               const char *id_or_name)
{
    const struct config_deployment *deployments = config->deployments + model->first_deployment;
    const struct config_deployment *by_name = NULL;

    for (size_t i = 0; i < model->deployment_count; i++) {
        if (strcmp(deployments[i].id, id_or_name) == 0)
            return &deployments[i];
        if (strcmp(deployments[i].name, id_or_name) == 0)
            by_name = &deployments[i];
    }
    return by_name;
}

bool gateway_config_is_chain(const struct config *config, const struct config_model *model)
{
    for (size_t i = 0; i < model->deployment_count; i++) {
        if (config->deployments[model->first_deployment + i].is_chain)
            return true;
    }
    return false;
}

/* A host's label may be "<model>-<environment>": tries each dash, from the right. */
static const struct config_model *find_split(const struct config *config, const char *tenant,
                                             const char *label, const char **ret_environment)
{
    char id[ROUTE_HOST_SIZE];

    for (size_t at = strlen(label); at-- > 1;) {
        const struct config_model *model;

        if (label[at] != '-')
            continue;
        memcpy(id, label, at);
        id[at] = '\0';
        model = gateway_config_find_model(config, tenant, id);
        if (model != NULL) {
            *ret_environment = label + at + 1;
            return model;
        }
    }
    return NULL;
}

static int choose_of_environment(const struct config *config, const char *name, uint64_t random,
                                 struct config_choice *choice, struct err *err)
{
    const struct config_target *targets = config->targets + choice->model->first_target;
    uint64_t sum = 0;
    bool known = false;

    for (size_t i = 0; i < choice->model->target_count; i++) {
        if (strcmp(targets[i].environment, name) != 0)
            continue;
        known = true;
        choice->environment = targets[i].environment;
        sum += targets[i].deployment[0] != '\0' ? targets[i].weight : 0;
    }
    if (!known)
        return err_set(err, ERR_NOT_FOUND, "model '%s' has no environment '%s'",
                       choice->model->name, name);
    random = sum > 0 ? random % sum : 0;
    for (size_t i = 0; i < choice->model->target_count; i++) {
        if (strcmp(targets[i].environment, name) != 0 || targets[i].deployment[0] == '\0' ||
            targets[i].weight == 0)
            continue;
        if (random < targets[i].weight) {
            choice->deployment = gateway_config_find_deployment(config, choice->model,
                                                                targets[i].deployment);
            break;
        }
        random -= targets[i].weight;
    }
    if (choice->deployment == NULL)
        return err_set(err, ERR_UNAVAILABLE,
                       "environment '%s' of model '%s' has no deployment that is ready yet", name,
                       choice->model->name);
    return 0;
}

static int check_status(const struct config_choice *choice, struct err *err)
{
    static const char *const failed[] = {"FAILED", "DEPLOY_FAILED", "BUILD_FAILED",
                                         "BUILD_STOPPED"};
    const struct config_deployment *deployment = choice->deployment;

    if (strcmp(deployment->status, "INACTIVE") == 0 ||
        strcmp(deployment->status, "DEACTIVATING") == 0)
        return err_set(err, ERR_NOT_FOUND, "deployment '%s' of model '%s' is deactivated",
                       deployment->id, choice->model->name);
    for (size_t i = 0; i < COUNT_OF(failed); i++) {
        if (strcmp(deployment->status, failed[i]) == 0)
            return err_set(err, ERR_UNAVAILABLE, "deployment '%s' of model '%s' is %s",
                           deployment->id, choice->model->name, deployment->status);
    }
    return 0;
}

int gateway_config_choose(const struct config *config, const char *tenant,
                          const struct route_match *match, uint64_t random,
                          struct config_choice *ret_choice, struct err *err)
{
    struct config_choice choice = {.environment = ""};
    const char *environment = match->target_name;
    int r = 0;

    choice.model = gateway_config_find_model(config, tenant, match->model);
    if (choice.model == NULL && match->from_host && match->target == ROUTE_TARGET_NONE)
        choice.model = find_split(config, tenant, match->model, &environment);
    if (choice.model == NULL)
        return err_set(err, ERR_NOT_FOUND, "there is no %s '%.80s'",
                       route_is_of_chains(match->route) ? "chain" : "model", match->model);
    if (match->target == ROUTE_TARGET_DEPLOYMENT) {
        choice.deployment = gateway_config_find_deployment(config, choice.model,
                                                           match->target_name);
        if (choice.deployment == NULL)
            return err_set(err, ERR_NOT_FOUND, "model '%s' has no deployment '%.80s'",
                           choice.model->name, match->target_name);
    } else {
        if (match->target == ROUTE_TARGET_DEVELOPMENT)
            environment = "development";
        else if (environment == NULL)
            environment = "production";
        r = choose_of_environment(config, environment, random, &choice, err);
    }
    if (r == 0 && route_is_of_chains(match->route) && !choice.deployment->is_chain)
        r = err_set(err, ERR_NOT_FOUND, "'%s' is a model and no chain: /model/%s/… has its routes",
                    choice.model->name, choice.model->name);
    if (r == 0)
        r = check_status(&choice, err);
    if (r == 0)
        *ret_choice = choice;
    return r;
}

static const struct config_switch *find_switch(const struct config *config, const char *tenant,
                                               const char *kind, const char *value,
                                               size_t value_size)
{
    struct config_switch want = {.reason = ""};

    if (strlen(tenant) >= sizeof(want.tenant) || value_size >= sizeof(want.value))
        return NULL;
    mem_copy_text(want.tenant, tenant);
    mem_copy_text(want.kind, kind);
    memcpy(want.value, value, value_size);
    return bsearch(&want, config->switches, config->switch_count, sizeof(want), compare_switches);
}

const struct config_switch *gateway_config_find_switch(const struct config *config,
                                                       const char *tenant, const char *model,
                                                       const char *tags)
{
    const struct config_switch *on;

    if (config->switch_count == 0)
        return NULL;
    on = find_switch(config, tenant, "tenant", tenant, strlen(tenant));
    if (on == NULL)
        on = find_switch(config, tenant, "model", model, strlen(model));
    while (on == NULL && *tags != '\0') {
        size_t size = strcspn(tags, ",");

        on = find_switch(config, tenant, "tag", tags, size);
        tags += tags[size] == ',' ? size + 1 : size;
    }
    return on;
}
