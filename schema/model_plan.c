/* SPDX-License-Identifier: Apache-2.0 */

#include "schema/model_plan.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "schema/chain.h"
#include "schema/gpu_need.h"
#include "schema/server_config.h"
#include "schema/truss_config.h"
#include "schema/truss_plan.h"

static const struct {
    const char *name;
    uint32_t slot_count;
    bool batches;
} engines[] = {
#define ENGINE(name, slots, batches) {name, slots, batches},
#include "schema/engines.def"
#undef ENGINE
};

bool model_engine_batches(const char *engine)
{
    for (size_t i = 0; i < COUNT_OF(engines); i++) {
        if (strcmp(engines[i].name, engine) == 0)
            return engines[i].batches;
    }
    return false;
}

static void json_free(json_t **json_p)
{
    json_decref(*json_p);
    *json_p = NULL;
}

/* ---- facts ---- */

void model_facts_done(struct model_facts *facts)
{
    mem_free(&facts->config_json);
    mem_free(&facts->headrace_json);
    mem_free(&facts->config_yaml);
}

static bool ends_in(const char *text, const char *end)
{
    size_t text_size = strlen(text), end_size = strlen(end);

    return text_size >= end_size && strcmp(text + text_size - end_size, end) == 0;
}

/* model.onnx wins, then the only *.onnx at the top, then where Hugging Face's exporter puts it. */
static void note_onnx(struct model_facts *facts, const char *path)
{
    bool top = strchr(path, '/') == NULL;

    facts->onnx_count += top;
    if (strlen(path) >= MODEL_PATH_SIZE || (!top && strcmp(path, "onnx/model.onnx") != 0))
        return;
    if (strcmp(path, "model.onnx") == 0 || facts->onnx_file[0] == '\0' ||
        (top && strchr(facts->onnx_file, '/') != NULL))
        mem_copy_text(facts->onnx_file, path);
}

void model_facts_note(struct model_facts *facts, const char *path)
{
    bool top = strchr(path, '/') == NULL;

    facts->file_count++;
    facts->safetensors_count += top && ends_in(path, ".safetensors") &&
                                strcmp(path, "adapter_model.safetensors") != 0;
    facts->gguf_count += top && ends_in(path, ".gguf");
    if (ends_in(path, ".onnx"))
        note_onnx(facts, path);
    if (strcmp(path, "model/model.py") == 0)
        facts->has_model_py = true;
    if (strcmp(path, "adapter_config.json") == 0)
        facts->has_adapter = true;
    if (strncmp(path, TRUSS_CHECKPOINTS_FOLDER "/", sizeof(TRUSS_CHECKPOINTS_FOLDER)) == 0)
        facts->has_checkpoints = true;
    if (strcmp(path, "vocab.txt") == 0 || strcmp(path, "tokenizer.json") == 0)
        facts->has_tokenizer = true;
}

char **model_facts_text(struct model_facts *facts, const char *path)
{
    if (strcmp(path, "config.json") == 0)
        return &facts->config_json;
    if (strcmp(path, "config.yaml") == 0)
        return &facts->config_yaml;
    return strcmp(path, "headrace.json") == 0 ? &facts->headrace_json : NULL;
}

/* ---- headrace.json ---- */

static int read_number(const json_t *root, const char *key, int64_t lowest, int64_t highest,
                       uint32_t *number, struct err *err)
{
    const json_t *value = json_object_get(root, key);

    if (value == NULL)
        return 0;
    if (!json_is_integer(value))
        return err_set(err, ERR_RANGE,
                       "headrace.json: %s is no integer; it has to be one of %lld to %lld", key,
                       (long long)lowest, (long long)highest);
    if (json_integer_value(value) < lowest || json_integer_value(value) > highest)
        return err_set(err, ERR_RANGE,
                       "headrace.json: %s is %lld; it has to be an integer of %lld to %lld", key,
                       (long long)json_integer_value(value), (long long)lowest, (long long)highest);
    *number = (uint32_t)json_integer_value(value);
    return 0;
}

static int read_word(const json_t *root, const char *key, size_t size_max, char *to,
                     struct err *err)
{
    const json_t *value = json_object_get(root, key);

    if (value == NULL)
        return 0;
    if (!json_is_string(value) || json_string_length(value) == 0 ||
        json_string_length(value) >= size_max)
        return err_set(err, ERR_RANGE, "headrace.json: %s must be a text of 1 to %zu bytes", key,
                       size_max - 1);
    mem_copy_text_at(to, size_max, json_string_value(value));
    return 0;
}

static int check_keys(const json_t *object, const char *what, const char *const known[],
                      size_t known_count, struct err *err)
{
    const char *key;
    json_t *value;

    json_object_foreach((json_t *)object, key, value)
    {
        char list[120] = "";
        bool found = false;

        for (size_t i = 0; i < known_count; i++) {
            size_t size = strlen(list);

            found = found || strcmp(known[i], key) == 0;
            (void)snprintf(list + size, sizeof(list) - size, "%s%s", i > 0 ? ", " : "", known[i]);
        }
        if (!found)
            return err_set(err, ERR_RANGE, "headrace.json: %s'%.60s' is unknown; there are %s",
                           what, key, list);
    }
    return 0;
}

/* Checked here as the engines check it, so that a wrong limit is the answer to the push. */
static int read_batching(const json_t *root, json_t *settings, struct err *err)
{
    static const char *const known[] = {"max_items", "max_tokens", "max_wait_ms"};
    json_t *batching = json_object_get(root, "batching");
    uint32_t number = 0;
    int r;

    if (batching == NULL)
        return 0;
    if (!json_is_object(batching))
        return err_set(err, ERR_MALFORMED, "headrace.json: batching is no object");
    if (json_object_get(settings, "batching") != NULL)
        return err_set(err, ERR_MISMATCH,
                       "headrace.json: batching stands both at the top and in settings");
    r = check_keys(batching, "batching ", known, COUNT_OF(known), err);
    if (r == 0)
        r = read_number(batching, "max_items", 1, MODEL_BATCH_ITEMS_MAX, &number, err);
    if (r == 0)
        r = read_number(batching, "max_tokens", 1, MODEL_BATCH_TOKENS_MAX, &number, err);
    if (r == 0)
        r = read_number(batching, "max_wait_ms", 0, MODEL_BATCH_WAIT_MS_MAX, &number, err);
    if (r == 0)
        (void)json_object_set(settings, "batching", batching);
    return r;
}

static int read_settings(const json_t *root, json_t *settings, struct err *err)
{
    json_t *ours = json_object_get(root, "settings");

    if (ours == NULL)
        return 0;
    if (!json_is_object(ours))
        return err_set(err, ERR_MALFORMED, "headrace.json: settings is no object");
    (void)json_object_update(settings, ours);
    return 0;
}

static int read_ours(const json_t *root, struct model_plan *plan, json_t *settings, struct err *err)
{
    static const char *const known[] = {"engine",   "device",   "slots",     "replicas",
                                        "settings", "batching", "resources", "warm"};
    int r;

    if (!json_is_object(root))
        return err_set(err, ERR_MALFORMED, "headrace.json is no object");
    r = check_keys(root, "", known, COUNT_OF(known), err);
    if (r == 0)
        r = read_word(root, "engine", sizeof(plan->engine), plan->engine, err);
    if (r == 0)
        r = read_word(root, "device", sizeof(plan->device), plan->device, err);
    if (r == 0)
        r = read_number(root, "slots", 1, MODEL_SLOTS_MAX, &plan->slot_count, err);
    if (r == 0)
        r = read_number(root, "replicas", 1, MODEL_REPLICAS_MAX, &plan->replica_count, err);
    if (r == 0)
        r = read_number(root, "warm", 0, MODEL_WARM_MAX, &plan->warm_count, err);
    if (r == 0)
        r = read_settings(root, settings, err);
    if (r == 0)
        r = read_batching(root, settings, err);
    if (r == 0 && plan->engine[0] != '\0')
        mem_copy_text(plan->why, "headrace.json names its engine");
    return r;
}

/* ---- what the files are ---- */

static const struct {
    const char *architecture, *model_type;
} families[] = {
#define ENCODER_FAMILY(name, architecture, model_type) {architecture, model_type},
#include "schema/encoder_families.def"
};

static const char *const heads[] = {
#define ENCODER_HEAD(name, architecture) architecture,
#include "schema/encoder_families.def"
};

struct encoder_kind {
    bool is_family; /* of the encoder's, by model_type, or by the architecture where it is silent */
    bool has_head;
    char text[64]; /* what config.json calls itself */
};

static struct encoder_kind encoder_kind_of(const char *config_json)
{
    OWNED(json_free) json_t *root = config_json == NULL ? NULL : json_loads(config_json, 0, NULL);
    const char *type = json_string_value(json_object_get(root, "model_type"));
    const char *name = json_string_value(json_array_get(json_object_get(root, "architectures"), 0));
    struct encoder_kind kind = {.text = "of another kind"};

    if (name != NULL || type != NULL)
        (void)snprintf(kind.text, sizeof(kind.text), "it says '%.40s'", name != NULL ? name : type);
    for (size_t i = 0; i < COUNT_OF(families); i++) {
        const char *family = families[i].architecture;
        const size_t size = strlen(family);
        const bool named = name != NULL && strncmp(name, family, size) == 0;

        if (type != NULL ? strcmp(type, families[i].model_type) != 0 : !named)
            continue;
        kind.is_family = true;
        kind.has_head = name == NULL; /* the engine knows what to make of it */
        for (size_t j = 0; j < COUNT_OF(heads) && named; j++)
            kind.has_head = kind.has_head || strcmp(name + size, heads[j]) == 0;
        return kind;
    }
    return kind;
}

static bool fits_encoder(const struct model_facts *facts)
{
    return facts->safetensors_count > 0 && facts->has_tokenizer &&
           encoder_kind_of(facts->config_json).is_family;
}

/* "bert, roberta"; "BertModel" … are these with each of the heads. */
static void list_families(char *to, size_t to_size, const char *between)
{
    size_t size = 0;

    for (size_t i = 0; i < COUNT_OF(families); i++)
        size += (size_t)snprintf(to + size, to_size - size, "%s%s", i > 0 ? between : "",
                                 families[i].model_type);
}

static int refuse(const struct model_facts *facts, struct err *err)
{
    const struct encoder_kind kind = encoder_kind_of(facts->config_json);
    const char *config = facts->config_json == NULL ? "missing"
                         : kind.is_family           ? "there"
                                                    : kind.text;
    char types[128];

    if (facts->has_adapter)
        return err_set(err, ERR_UNSUPPORTED,
                       "adapter_config.json is there: this is a LoRA adapter, and no engine here "
                       "loads one beside its base model. Merge it (in peft: merge_and_unload()) "
                       "and save the whole model, or push a Truss with a server that loads both");
    list_families(types, sizeof(types), "|");
    return err_set(
        err, ERR_UNSUPPORTED,
        "no engine for these %u files; looked for at the top: for encoder config.json "
        "with model_type '%s' (%s), *.safetensors (%s), vocab.txt or tokenizer.json "
        "(%s); for python config.yaml (%s) with model/model.py (%s); for server docker_server in "
        "config.yaml; for onnx model.onnx, a single *.onnx or onnx/model.onnx (missing); "
        "headrace.json with an engine (missing)%s",
        facts->file_count, types, config, facts->safetensors_count > 0 ? "there" : "missing",
        facts->has_tokenizer ? "there" : "missing",
        facts->config_yaml != NULL ? "there" : "missing", facts->has_model_py ? "there" : "missing",
        facts->gguf_count > 0 ? "; *.gguf is there, and this version has no engine for it" : "");
}

/* Its family is the encoder's, its head may be none of them. */
static int check_head(const struct model_facts *facts, struct err *err)
{
    const struct encoder_kind kind = encoder_kind_of(facts->config_json);
    char types[128];

    if (kind.has_head)
        return 0;
    list_families(types, sizeof(types), ", ");
    return err_set(err, ERR_UNSUPPORTED,
                   "config.json: architectures[0]: %s; the encoder has Model, "
                   "ForSequenceClassification and ForTokenClassification of %s",
                   kind.text, types);
}

static int pick_engine(const struct model_facts *facts, struct model_plan *plan, struct err *err)
{
    if (fits_encoder(facts) &&
        (encoder_kind_of(facts->config_json).has_head || facts->onnx_file[0] == '\0')) {
        mem_copy_text(plan->engine, "encoder");
        (void)snprintf(plan->why, sizeof(plan->why),
                       "config.json is one of a text encoder (%s), and weights (*.safetensors) and "
                       "a tokenizer are there",
                       encoder_kind_of(facts->config_json).text);
        return check_head(facts, err);
    } else if (facts->onnx_file[0] != '\0') {
        mem_copy_text(plan->engine, "onnx");
        (void)snprintf(plan->why, sizeof(plan->why), "there is the ONNX file %.200s",
                       facts->onnx_file);
    } else {
        return refuse(facts, err);
    }
    return 0;
}

static int check_encoder(const struct model_facts *facts, struct err *err)
{
    return fits_encoder(facts) ? check_head(facts, err) : refuse(facts, err);
}

/* The file is written down, so that engine and gateway cannot choose differently. */
static int check_onnx(const struct model_facts *facts, json_t *settings, struct err *err)
{
    const json_t *file = json_object_get(settings, "file");

    if (file != NULL)
        return json_is_string(file)
                   ? 0
                   : err_set(err, ERR_RANGE, "headrace.json: settings.file is no text");
    if (facts->onnx_file[0] == '\0')
        return refuse(facts, err);
    if (facts->onnx_count > 1 && strcmp(facts->onnx_file, "model.onnx") != 0)
        return err_set(err, ERR_UNSUPPORTED,
                       "there are %u files *.onnx and none of them is model.onnx: name one in "
                       "headrace.json, {\"settings\": {\"file\": \"%.100s\"}}",
                       facts->onnx_count, facts->onnx_file);
    (void)json_object_set_new(settings, "file", json_string(facts->onnx_file));
    return 0;
}

static int check_server(json_t *settings, struct err *err)
{
    OWNED(server_config_done) struct server_config config = {0};
    char *text = json_dumps(settings, JSON_COMPACT);
    int r = server_config_parse(text, &config, err);

    free(text);
    return r;
}

static int check_chain(json_t *settings, struct err *err)
{
    OWNED(chain_free) struct chain *chain = NULL;

    return chain_parse(settings, &chain, err);
}

static int check_engine(const struct model_facts *facts, struct model_plan *plan, json_t *settings,
                        struct err *err)
{
    size_t i = 0;

    while (i < COUNT_OF(engines) && strcmp(engines[i].name, plan->engine) != 0)
        i++;
    if (i == COUNT_OF(engines))
        return err_set(
            err, ERR_UNSUPPORTED,
            "headrace.json: engine is '%s'; there are chain, encoder, onnx, python, server and sim",
            plan->engine);
    if (!engines[i].batches && json_object_get(settings, "batching") != NULL)
        return err_set(err, ERR_UNSUPPORTED, "headrace.json: batching is set, and %s has none",
                       plan->engine);
    if (plan->slot_count == 0)
        plan->slot_count = engines[i].slot_count;
    if (strcmp(plan->engine, "encoder") == 0)
        return check_encoder(facts, err);
    if (strcmp(plan->engine, "server") == 0)
        return check_server(settings, err);
    if (strcmp(plan->engine, "chain") == 0)
        return check_chain(settings, err);
    return strcmp(plan->engine, "onnx") == 0 ? check_onnx(facts, settings, err) : 0;
}

/* That of whoever pushes, else of headrace.json; "": that is for the resources to say. */
static int take_device(const struct model_facts *facts, struct model_plan *plan, struct err *err)
{
    const char *where = facts->device[0] != '\0' ? "device" : "headrace.json: device";

    if (facts->device[0] != '\0')
        mem_copy_text(plan->device, facts->device);
    if (plan->device[0] == '\0' || strcmp(plan->device, "cpu") == 0 || gpu_is_wanted(plan->device))
        return 0;
    return err_set(err, ERR_RANGE, "%s is '%s'; it must be cpu, cuda or cuda:N", where,
                   plan->device);
}

/* Of headrace.json, and of config.yaml where that is silent. They go with the settings of the
 * engine, behind its back: they are the agent's, which places it. */
static int take_resources(const json_t *root, struct model_plan *plan, json_t *settings,
                          struct err *err)
{
    static const char *const known[] = {"accelerator", "accelerator_memory", "compute_capability"};
    json_t *ours = json_object_get(root, "resources");
    OWNED(json_free) json_t *resources = json_deep_copy(ours);
    struct gpu_need need;
    int r;

    if (json_object_get(settings, "resources") != NULL)
        return err_set(err, ERR_MISMATCH,
                       "headrace.json: resources stands in settings; it belongs to the top");
    if (ours != NULL && !json_is_object(ours))
        return err_set(err, ERR_MALFORMED, "headrace.json: resources is no object");
    r = check_keys(ours, "resources ", known, COUNT_OF(known), err);
    if (r < 0)
        return r;
    if (plan->device[0] == '\0' && (ours != NULL || plan->accelerator[0] != '\0'))
        mem_copy_text(plan->device, "cuda");
    if (!gpu_is_wanted(plan->device))
        return ours == NULL ? 0
                            : err_set(err, ERR_MISMATCH,
                                      "headrace.json: resources are of a GPU, and device is '%s'",
                                      plan->device);
    if (resources == NULL)
        resources = json_object();
    if (plan->accelerator[0] != '\0' && json_object_get(resources, "accelerator") == NULL)
        (void)json_object_set_new(resources, "accelerator", json_string(plan->accelerator));
    if (gpu_need_parse(plan->device, resources, &need, err) < 0)
        return err_wrap(err, "headrace.json or config.yaml");
    if (json_object_size(resources) > 0)
        (void)json_object_set(settings, "resources", resources);
    return 0;
}

void model_plan_done(struct model_plan *plan)
{
    mem_free(&plan->warnings);
    mem_free(&plan->name);
    mem_free(&plan->settings);
}

int model_plan_make(const struct model_facts *facts, struct model_plan *ret_plan, struct err *err)
{
    OWNED(json_free) json_t *root = NULL;
    OWNED(json_free) json_t *settings = json_object();
    OWNED(model_plan_done) struct model_plan plan = {.replica_count = 1};
    json_error_t where;
    char *dumped;
    int r = 0;

    if (facts->headrace_json != NULL) {
        root = json_loads(facts->headrace_json, JSON_REJECT_DUPLICATES, &where);
        r = root != NULL
                ? read_ours(root, &plan, settings, err)
                : err_set(err, ERR_MALFORMED, "headrace.json: line %d: %s", where.line, where.text);
    }
    if (r == 0 &&
        (strcmp(plan.engine, "python") == 0 || (plan.engine[0] == '\0' && truss_plan_fits(facts))))
        r = facts->config_yaml == NULL ? refuse(facts, err)
                                       : truss_plan_make(facts, &plan, settings, err);
    if (r == 0 && plan.engine[0] == '\0')
        r = pick_engine(facts, &plan, err);
    if (r == 0)
        r = check_engine(facts, &plan, settings, err);
    if (r == 0)
        r = take_device(facts, &plan, err);
    if (r == 0)
        r = take_resources(root, &plan, settings, err);
    if (r < 0)
        return r;
    if (plan.device[0] == '\0')
        mem_copy_text(plan.device, "cpu");
    dumped = json_dumps(settings, JSON_COMPACT);
    plan.settings = xstrdup(dumped != NULL ? dumped : "{}");
    free(dumped);
    *ret_plan = plan;
    plan = (struct model_plan){.settings = NULL};
    return 0;
}
