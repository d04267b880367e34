/* SPDX-License-Identifier: Apache-2.0 */
#include "workers/engines/encoder_cuda/cudnn_graph.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/assert.h"

#define VERSION_MIN 91500   /* sequence lengths as attributes of the attention operation */
#define CONFIG_MAX 32       /* engine configurations that are looked at */
#define TEXT_MAX (8u << 20) /* of a plan or a device */

struct cudnn_device {
    cudnnBackendDescriptor_t properties;
    char *text;
};

struct cudnn_graph {
    cudnnBackendDescriptor_t parts[CUDNN_GRAPH_PART_MAX]; /* in the order they were made */
    uint32_t part_count;
    cudnnBackendDescriptor_t closed; /* the last part; NULL: no operation yet */
};

struct plan_pack {
    cudnnBackendDescriptor_t pack; /* NULL: the place is free */
    struct cudnn_pointers pointers;
};

struct cudnn_plan {
    cudnnBackendDescriptor_t plan;
    size_t workspace_size;
    struct plan_pack packs[CUDNN_PLAN_PACK_MAX];
    uint32_t pack_next; /* the place that is taken next */
};

static int code_of(cudnnStatus_t status)
{
    switch ((int)status) {
    case CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED:
    case CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED:
        return ERR_MEMORY;
    case CUDNN_STATUS_NOT_SUPPORTED_INCOMPATIBLE_CUDA_DRIVER:
    case CUDNN_STATUS_NOT_SUPPORTED_INCOMPATIBLE_CUDART:
    case CUDNN_STATUS_NOT_SUPPORTED_RUNTIME_PREREQUISITE_MISSING:
    case CUDNN_STATUS_NOT_SUPPORTED_SUBLIBRARY_UNAVAILABLE:
        return ERR_DEPENDENCY;
    default:
        break;
    }
    if (status >= 5000)
        return ERR_DEVICE;
    return status >= 2000 && status < 4000 ? ERR_UNSUPPORTED : ERR_DEPENDENCY;
}

int cudnn_fail(struct err *err, cudnnStatus_t status, const char *fmt, ...)
{
    char what[256], words[256] = "";
    va_list args;

    va_start(args, fmt);
    (void)vsnprintf(what, sizeof(what), fmt, args);
    va_end(args);
    cudnnGetLastErrorString(words, sizeof(words));
    return err_set(err, code_of(status), "cuDNN: %s: %s%s%s%s", what, cudnnGetErrorString(status),
                   words[0] ? " (" : "", words, words[0] ? ")" : "");
}

int cudnn_check_version(struct err *err)
{
    size_t version = cudnnGetVersion();

    if (version < VERSION_MIN)
        return err_set(err, ERR_DEPENDENCY, "cuDNN is %zu.%zu.%zu; 9.15 or later is needed",
                       version / 10000, version / 100 % 100, version % 100);
    return 0;
}

/* libnvrtc is found by the run path of who is linked with cuBLASLt, its builtins stand beside it.
 */
void cudnn_load_compiler(void)
{
    void *library, *symbol = NULL;
    int (*get_version)(int *, int *);
    int major = 0, minor = 0;
    char path[PATH_MAX];
    Dl_info info;
    int folder;

    (void)snprintf(path, sizeof(path), "libnvrtc.so.%d", CUDART_VERSION / 1000);
    library = dlopen(path, RTLD_LAZY | RTLD_LOCAL);
    if (library)
        symbol = dlsym(library, "nvrtcVersion");
    if (!symbol || !dladdr(symbol, &info) || !strrchr(info.dli_fname, '/'))
        return;
    memcpy(&get_version, &symbol, sizeof(symbol));
    if (get_version(&major, &minor) != 0)
        return;
    folder = (int)(strrchr(info.dli_fname, '/') - info.dli_fname);
    (void)snprintf(path, sizeof(path), "%.*s/libnvrtc-builtins.so.%d.%d", folder, info.dli_fname,
                   major, minor);
    (void)dlopen(path, RTLD_LAZY | RTLD_LOCAL);
}

static void part_free(cudnnBackendDescriptor_t *part_p)
{
    if (*part_p)
        (void)cudnnBackendDestroyDescriptor(*part_p);
    *part_p = NULL;
}

static int part_new(cudnnBackendDescriptorType_t type, const char *name,
                    cudnnBackendDescriptor_t *ret_part, struct err *err)
{
    cudnnStatus_t status = cudnnBackendCreateDescriptor(type, ret_part);

    return status ? cudnn_fail(err, status, "create %s", name) : 0;
}

#define part_set(part, name, attribute, type, count, values, err)                                  \
    part_set_named((part), (name), (attribute), #attribute, (type), (count), (values), (err))
static int part_set_named(cudnnBackendDescriptor_t part, const char *name,
                          cudnnBackendAttributeName_t attribute, const char *attribute_name,
                          cudnnBackendAttributeType_t type, int64_t count, const void *values,
                          struct err *err)
{
    cudnnStatus_t status = cudnnBackendSetAttribute(part, attribute, type, count, values);

    return status ? cudnn_fail(err, status, "%s: set %s", name, attribute_name) : 0;
}

static int part_finish(cudnnBackendDescriptor_t part, const char *name, struct err *err)
{
    cudnnStatus_t status = cudnnBackendFinalize(part);

    return status ? cudnn_fail(err, status, "%s: finalize", name) : 0;
}

/* An attribute that is text, whatever its length. */
static int part_text(cudnnBackendDescriptor_t part, const char *name,
                     cudnnBackendAttributeName_t attribute, char **ret_text, struct err *err)
{
    OWNED(mem_free) char *text = NULL;
    int64_t size = 0, got = 0;
    cudnnStatus_t status = cudnnBackendGetAttribute(part, attribute, CUDNN_TYPE_CHAR, 0, &size,
                                                    NULL);

    if (status)
        return cudnn_fail(err, status, "%s: size of its JSON", name);
    if (size <= 0 || size > TEXT_MAX)
        return err_set(err, ERR_TOO_BIG, "cuDNN: %s: %lld bytes of JSON; the limit is %u", name,
                       (long long)size, TEXT_MAX);
    text = xcalloc((size_t)size + 1, 1);
    status = cudnnBackendGetAttribute(part, attribute, CUDNN_TYPE_CHAR, size, &got, text);
    if (status)
        return cudnn_fail(err, status, "%s: its JSON", name);
    *ret_text = TAKE(text);
    return 0;
}

/* --- devices --- */

static int device_finish(struct cudnn_device **device_p, struct cudnn_device **ret_device,
                         struct err *err)
{
    struct cudnn_device *device = *device_p;

    if (part_finish(device->properties, "device properties", err) ||
        part_text(device->properties, "device properties",
                  CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, &device->text, err))
        return err->code;
    *ret_device = TAKE(*device_p);
    return 0;
}

int cudnn_device_new_json(const char *json, struct cudnn_device **ret_device, struct err *err)
{
    OWNED(cudnn_device_free) struct cudnn_device *device = xcalloc(1, sizeof(*device));
    const char *name = "device properties";

    if (part_new(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR, name, &device->properties, err) ||
        part_set(device->properties, name, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION,
                 CUDNN_TYPE_CHAR, (int64_t)strlen(json) + 1, json, err))
        return err->code;
    return device_finish(&device, ret_device, err);
}

int cudnn_device_new(cudnnHandle_t handle, struct cudnn_device **ret_device, struct err *err)
{
    OWNED(cudnn_device_free) struct cudnn_device *device = xcalloc(1, sizeof(*device));
    const char *name = "device properties";

    if (part_new(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR, name, &device->properties, err) ||
        part_set(device->properties, name, CUDNN_ATTR_DEVICEPROP_HANDLE, CUDNN_TYPE_HANDLE, 1,
                 &handle, err))
        return err->code;
    return device_finish(&device, ret_device, err);
}

void cudnn_device_free(struct cudnn_device **device_p)
{
    struct cudnn_device *device = *device_p;

    if (!device)
        return;
    part_free(&device->properties);
    mem_free(&device->text);
    mem_free(device_p);
}

const char *cudnn_device_text(const struct cudnn_device *device)
{
    return device->text;
}

/* --- graphs --- */

struct cudnn_graph *cudnn_graph_new(void)
{
    return xcalloc(1, sizeof(struct cudnn_graph));
}

void cudnn_graph_free(struct cudnn_graph **graph_p)
{
    struct cudnn_graph *graph = *graph_p;

    if (!graph)
        return;
    while (graph->part_count > 0) /* users before what they use */
        part_free(&graph->parts[--graph->part_count]);
    mem_free(graph_p);
}

static int graph_part(struct cudnn_graph *graph, cudnnBackendDescriptorType_t type,
                      const char *name, cudnnBackendDescriptor_t *ret_part, struct err *err)
{
    assert(graph->part_count < CUDNN_GRAPH_PART_MAX && !graph->closed);
    if (part_new(type, name, ret_part, err))
        return err->code;
    graph->parts[graph->part_count++] = *ret_part;
    return 0;
}

int cudnn_graph_tensor(struct cudnn_graph *graph, const struct cudnn_tensor *tensor,
                       cudnn_part *ret_part, struct err *err)
{
    const char *name = tensor->name;
    cudnnBackendDescriptor_t part;
    int64_t alignment = 16;

    if (tensor->type == CUDNN_DATA_INT32 || tensor->by_value)
        alignment = 4;
    if (graph_part(graph, CUDNN_BACKEND_TENSOR_DESCRIPTOR, name, &part, err) ||
        part_set(part, name, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &tensor->uid, err) ||
        part_set(part, name, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &tensor->type,
                 err) ||
        part_set(part, name, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &alignment,
                 err) ||
        part_set(part, name, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, tensor->dims,
                 err) ||
        part_set(part, name, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, tensor->strides, err))
        return err->code;
    if (tensor->by_value && part_set(part, name, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN,
                                     1, &tensor->by_value, err))
        return err->code;
    if (tensor->offsets && part_set(part, name, CUDNN_ATTR_TENSOR_RAGGED_OFFSET_DESC,
                                    CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &tensor->offsets, err))
        return err->code;
    if (part_finish(part, name, err))
        return err->code;
    *ret_part = part;
    return 0;
}

int cudnn_graph_operation(struct cudnn_graph *graph, cudnnBackendDescriptorType_t type,
                          const char *name, const struct cudnn_link *links, uint32_t link_count,
                          struct err *err)
{
    cudnnBackendDescriptor_t operation, whole;

    if (graph_part(graph, type, name, &operation, err))
        return err->code;
    for (uint32_t i = 0; i < link_count; i++)
        if (part_set_named(operation, name, links[i].attribute, links[i].name,
                           CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &links[i].part, err))
            return err->code;
    if (part_finish(operation, name, err))
        return err->code;
    if (graph_part(graph, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR, "graph", &whole, err) ||
        part_set(whole, "graph", CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
                 &operation, err) ||
        part_finish(whole, "graph", err))
        return err->code;
    graph->closed = whole;
    return 0;
}

/* --- engines and plans --- */

struct configs {
    cudnnBackendDescriptor_t list[CONFIG_MAX];
    uint32_t count;
};

static void configs_done(struct configs *configs)
{
    for (uint32_t i = 0; i < CONFIG_MAX; i++)
        part_free(&configs->list[i]);
    configs->count = 0;
}

/* Appends what one mode of the heuristics offers. */
static int configs_ask(struct cudnn_graph *graph, const struct cudnn_device *device,
                       cudnnBackendHeurMode_t mode, struct configs *configs, struct err *err)
{
    OWNED(part_free) cudnnBackendDescriptor_t heuristics = NULL;
    const char *name = "heuristics";
    int64_t got = 0;
    cudnnStatus_t status;

    if (part_new(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR, name, &heuristics, err) ||
        part_set(heuristics, name, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH,
                 CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &graph->closed, err) ||
        part_set(heuristics, name, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode,
                 err) ||
        part_set(heuristics, name, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                 1, &device->properties, err) ||
        part_finish(heuristics, name, err))
        return err->code;
    for (uint32_t i = configs->count; i < CONFIG_MAX; i++)
        if (!configs->list[i] && part_new(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR,
                                          "engine configuration", &configs->list[i], err))
            return err->code;
    status = cudnnBackendGetAttribute(heuristics, CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                      CUDNN_TYPE_BACKEND_DESCRIPTOR, CONFIG_MAX - configs->count,
                                      &got, configs->list + configs->count);
    if (status)
        return cudnn_fail(err, status, "heuristics: results");
    if (got > CONFIG_MAX - configs->count)
        got = CONFIG_MAX - configs->count;
    configs->count += (uint32_t)got;
    return 0;
}

/* Whether the words of the best heuristics name a part that is missing, not the graph. */
static int configs_none(const char *words, struct err *err)
{
    if (strstr(words, "nvrtc"))
        return err_set(err, ERR_DEPENDENCY,
                       "cuDNN cannot open libnvrtc, with which it compiles; it stands beside "
                       "libcudnn in the toolkit");
    return err_set(err, ERR_UNSUPPORTED, "cuDNN has no engine for this graph and device%s%.200s",
                   words[0] ? ": " : "", words);
}

static int configs_find(struct cudnn_graph *graph, const struct cudnn_device *device,
                        struct configs *configs, struct err *err)
{
    char words[1024] = "";
    struct err refused;

    assert(graph->closed);
    if (configs_ask(graph, device, CUDNN_HEUR_MODE_A, configs, &refused) &&
        refused.code != ERR_UNSUPPORTED) {
        *err = refused;
        return err->code;
    }
    if (configs->count > 0)
        return 0;
    cudnnGetLastErrorString(words, sizeof(words));
    if (configs_ask(graph, device, CUDNN_HEUR_MODE_FALLBACK, configs, err))
        return err->code;
    return configs->count > 0 ? 0 : configs_none(words, err);
}

int cudnn_graph_count_configs(struct cudnn_graph *graph, const struct cudnn_device *device,
                              uint32_t *ret_count, struct err *err)
{
    OWNED(configs_done) struct configs configs = {0};

    if (configs_find(graph, device, &configs, err))
        return err->code;
    *ret_count = configs.count;
    return 0;
}

static int plan_finish(struct cudnn_plan **plan_p, struct cudnn_plan **ret_plan, struct err *err)
{
    struct cudnn_plan *plan = *plan_p;
    int64_t got = 0, size = 0;
    cudnnStatus_t status;

    if (part_finish(plan->plan, "plan", err))
        return err->code;
    status = cudnnBackendGetAttribute(plan->plan, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE,
                                      CUDNN_TYPE_INT64, 1, &got, &size);
    if (status)
        return cudnn_fail(err, status, "plan: size of its workspace");
    plan->workspace_size = (size_t)size;
    *ret_plan = TAKE(*plan_p);
    return 0;
}

static int plan_try(cudnnBackendDescriptor_t config, const struct cudnn_device *device,
                    struct cudnn_plan **ret_plan, struct err *err)
{
    OWNED(cudnn_plan_free) struct cudnn_plan *plan = xcalloc(1, sizeof(*plan));

    if (part_new(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, "plan", &plan->plan, err) ||
        part_set(plan->plan, "plan", CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG,
                 CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &config, err) ||
        part_set(plan->plan, "plan", CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP,
                 CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &device->properties, err))
        return err->code;
    return plan_finish(&plan, ret_plan, err);
}

int cudnn_graph_plan(struct cudnn_graph *graph, const struct cudnn_device *device,
                     struct cudnn_plan **ret_plan, struct err *err)
{
    OWNED(configs_done) struct configs configs = {0};

    if (configs_find(graph, device, &configs, err))
        return err->code;
    for (uint32_t i = 0; i < configs.count; i++)
        if (plan_try(configs.list[i], device, ret_plan, err) == 0)
            return 0;
    return err_wrap(err, "none of %u engine configurations compiles", configs.count);
}

int cudnn_plan_new_text(const char *text, const struct cudnn_device *device,
                        struct cudnn_plan **ret_plan, struct err *err)
{
    OWNED(cudnn_plan_free) struct cudnn_plan *plan = xcalloc(1, sizeof(*plan));

    if (part_new(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, "plan", &plan->plan, err) ||
        part_set(plan->plan, "plan", CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP,
                 CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &device->properties, err) ||
        part_set(plan->plan, "plan", CUDNN_ATTR_EXECUTION_PLAN_JSON_REPRESENTATION, CUDNN_TYPE_CHAR,
                 (int64_t)strlen(text) + 1, text, err))
        return err->code;
    return plan_finish(&plan, ret_plan, err);
}

void cudnn_plan_free(struct cudnn_plan **plan_p)
{
    struct cudnn_plan *plan = *plan_p;

    if (!plan)
        return;
    for (uint32_t i = 0; i < CUDNN_PLAN_PACK_MAX; i++)
        part_free(&plan->packs[i].pack);
    part_free(&plan->plan);
    mem_free(plan_p);
}

int cudnn_plan_text(const struct cudnn_plan *plan, char **ret_text, struct err *err)
{
    return part_text(plan->plan, "plan", CUDNN_ATTR_EXECUTION_PLAN_JSON_REPRESENTATION, ret_text,
                     err);
}

size_t cudnn_plan_workspace_size(const struct cudnn_plan *plan)
{
    return plan->workspace_size;
}

static bool pointers_equal(const struct cudnn_pointers *a, const struct cudnn_pointers *b)
{
    return a->count == b->count && a->workspace == b->workspace &&
           memcmp(a->uids, b->uids, a->count * sizeof(a->uids[0])) == 0 &&
           memcmp(a->pointers, b->pointers, a->count * sizeof(a->pointers[0])) == 0;
}

static int pack_new(const struct cudnn_pointers *pointers, cudnnBackendDescriptor_t *ret_pack,
                    struct err *err)
{
    OWNED(part_free) cudnnBackendDescriptor_t pack = NULL;
    const char *name = "pointers";

    if (part_new(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, name, &pack, err) ||
        part_set(pack, name, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, pointers->count,
                 pointers->uids, err) ||
        part_set(pack, name, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR,
                 pointers->count, pointers->pointers, err) ||
        part_set(pack, name, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1,
                 &pointers->workspace, err) ||
        part_finish(pack, name, err))
        return err->code;
    *ret_pack = TAKE(pack);
    return 0;
}

static int plan_pack(struct cudnn_plan *plan, const struct cudnn_pointers *pointers,
                     cudnnBackendDescriptor_t *ret_pack, struct err *err)
{
    struct plan_pack *place = &plan->packs[plan->pack_next];

    for (uint32_t i = 0; i < CUDNN_PLAN_PACK_MAX; i++)
        if (plan->packs[i].pack && pointers_equal(&plan->packs[i].pointers, pointers)) {
            *ret_pack = plan->packs[i].pack;
            return 0;
        }
    part_free(&place->pack);
    if (pack_new(pointers, &place->pack, err))
        return err->code;
    place->pointers = *pointers;
    plan->pack_next = (plan->pack_next + 1) % CUDNN_PLAN_PACK_MAX;
    *ret_pack = place->pack;
    return 0;
}

int cudnn_plan_run(struct cudnn_plan *plan, cudnnHandle_t handle,
                   const struct cudnn_pointers *pointers, struct err *err)
{
    cudnnBackendDescriptor_t pack = NULL;
    cudnnStatus_t status;

    assert(pointers->count <= CUDNN_PLAN_POINTER_MAX);
    if (plan_pack(plan, pointers, &pack, err))
        return err->code;
    status = cudnnBackendExecute(handle, plan->plan, pack);
    return status ? cudnn_fail(err, status, "execute") : 0;
}
