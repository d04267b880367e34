/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/engines/onnx/onnx_ort.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"

#define LIBRARY "libonnxruntime.so.1"
#define API_LEAST 18u
#define API_ASSIGNMENT 24u
#define SEVERITY_FATAL 4
#define CODE_MODEL_CANNOT_BE_READ 7 /* ORT_INVALID_PROTOBUF */
#define VALUE_IS_TENSOR 1           /* ONNX_TYPE_TENSOR */
#define ALLOCATOR_ARENA 1
#define MEMORY_DEFAULT 0
#define CPU_PROVIDER "CPUExecutionProvider"

/* The library's types; all of them opaque to us. */
struct ort_status;
struct ort_env;
struct ort_options;
struct ort_memory;
struct ort_value;
struct ort_shape;
struct ort_native;
struct ort_subgraph;

typedef struct ort_status *status_t;
typedef void ort_log(void *param, int severity, const char *category, const char *id,
                     const char *where, const char *message);

/* Prototypes of the functions in onnx_ort.def. */
typedef int ort_GetErrorCode(const struct ort_status *);
typedef const char *ort_GetErrorMessage(const struct ort_status *);
typedef status_t ort_CreateEnvWithCustomLogger(ort_log *, void *, int, const char *,
                                               struct ort_env **);
typedef status_t ort_CreateSession(const struct ort_env *, const char *, const struct ort_options *,
                                   struct ort_native **);
typedef status_t ort_Run(struct ort_native *, const void *, const char *const *,
                         const struct ort_value *const *, size_t, const char *const *, size_t,
                         struct ort_value **);
typedef status_t ort_CreateSessionOptions(struct ort_options **);
typedef status_t ort_SetIntraOpNumThreads(struct ort_options *, int);
typedef status_t ort_SetInterOpNumThreads(struct ort_options *, int);
typedef status_t ort_CreateTensorWithDataAsOrtValue(const struct ort_memory *, void *, size_t,
                                                    const int64_t *, size_t, int,
                                                    struct ort_value **);
typedef status_t ort_GetTensorMutableData(struct ort_value *, void **);
typedef status_t ort_GetTensorElementType(const struct ort_shape *, int *);
typedef status_t ort_GetDimensionsCount(const struct ort_shape *, size_t *);
typedef status_t ort_GetDimensions(const struct ort_shape *, int64_t *, size_t);
typedef status_t ort_GetTensorTypeAndShape(const struct ort_value *, struct ort_shape **);
typedef status_t ort_GetValueType(const struct ort_value *, int *);
typedef status_t ort_CreateCpuMemoryInfo(int, int, struct ort_memory **);
typedef void ort_ReleaseEnv(struct ort_env *);
typedef void ort_ReleaseStatus(status_t);
typedef void ort_ReleaseMemoryInfo(struct ort_memory *);
typedef void ort_ReleaseSession(struct ort_native *);
typedef void ort_ReleaseValue(struct ort_value *);
typedef void ort_ReleaseTensorTypeAndShapeInfo(struct ort_shape *);
typedef void ort_ReleaseSessionOptions(struct ort_options *);
typedef status_t ort_GetAvailableProviders(char ***, int *);
typedef status_t ort_ReleaseAvailableProviders(char **, int);
typedef status_t ort_AddSessionConfigEntry(struct ort_options *, const char *, const char *);
typedef status_t ort_Session_GetEpGraphAssignmentInfo(const struct ort_native *,
                                                      const struct ort_subgraph *const **,
                                                      size_t *);
typedef status_t ort_EpAssignedSubgraph_GetEpName(const struct ort_subgraph *, const char **);

struct ort_api {
#define ORT(name, slot) ort_##name *name;
#define ORT_OPTIONAL(name, slot) ort_##name *name;
#include "workers/engines/onnx/onnx_ort.def"
#undef ORT
#undef ORT_OPTIONAL
};

struct ort_base {
    const void *(*get_api)(uint32_t version);
    const char *(*get_version)(void);
};

struct onnx_ort {
    struct ort_api api;
    struct ort_env *env;
    struct ort_memory *memory;
    const char *version;
};

struct onnx_session {
    struct onnx_ort *ort;
    struct ort_native *native;
};

/* ---- the library ---- */

static int library_open(void **ret_handle, struct err *err)
{
    const char *told = getenv("HEADRACE_ONNXRUNTIME");
    OWNED(mem_free) char *beside = NULL;
    const char *slash;
    Dl_info here;

    if (told != NULL && told[0] != '\0') {
        *ret_handle = dlopen(told, RTLD_NOW | RTLD_LOCAL);
        return *ret_handle != NULL ? 0
                                   : err_set(err, ERR_DEPENDENCY,
                                             "ONNX Runtime cannot be loaded from "
                                             "HEADRACE_ONNXRUNTIME: %s",
                                             dlerror());
    }
    if (dladdr(&library_open, &here) != 0 && (slash = strrchr(here.dli_fname, '/')) != NULL) {
        beside = xasprintf("%.*s/" LIBRARY, (int)(slash - here.dli_fname), here.dli_fname);
        *ret_handle = dlopen(beside, RTLD_NOW | RTLD_LOCAL);
        if (*ret_handle != NULL)
            return 0;
    }
    *ret_handle = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (*ret_handle != NULL)
        return 0;
    return err_set(err, ERR_DEPENDENCY,
                   "ONNX Runtime is not here: HEADRACE_ONNXRUNTIME is not set, and " LIBRARY
                   " is neither beside the plugin nor among the system's libraries");
}

static int api_find(void *handle, struct onnx_ort *ort, struct err *err)
{
    const struct ort_base *(*base_get)(void);
    const struct ort_base *base;
    const void *const *slots;
    bool whole = true;

    *(void **)&base_get = dlsym(handle, "OrtGetApiBase");
    if (base_get == NULL)
        return err_set(err, ERR_DEPENDENCY, "the ONNX Runtime library has no OrtGetApiBase()");
    base = base_get();
    ort->version = base->get_version();
    slots = base->get_api(API_ASSIGNMENT);
    if (slots == NULL) {
        whole = false;
        slots = base->get_api(API_LEAST);
    }
    if (slots == NULL)
        return err_set(err, ERR_DEPENDENCY, "ONNX Runtime is version %.20s, 1.%u is the least",
                       ort->version, API_LEAST);
#define ORT(name, slot) *(const void **)&ort->api.name = slots[slot];
#define ORT_OPTIONAL(name, slot) *(const void **)&ort->api.name = whole ? slots[slot] : NULL;
#include "workers/engines/onnx/onnx_ort.def"
#undef ORT
#undef ORT_OPTIONAL
    return 0;
}

/* What it says is in the statuses; a log of its own would stand between our lines. */
static void drop_log(void *param, int severity, const char *category, const char *id,
                     const char *where, const char *message)
{
    (void)param;
    (void)severity;
    (void)category;
    (void)id;
    (void)where;
    (void)message;
}

static bool says_memory(const char *text)
{
    return strstr(text, "bad_alloc") != NULL || strstr(text, "Failed to allocate memory") != NULL ||
           strstr(text, "bad allocation") != NULL || strstr(text, "out of memory") != NULL ||
           strstr(text, "Out of memory") != NULL;
}

/* 0, or the status as an error; frees it. */
static int check(const struct onnx_ort *ort, status_t status, const char *what, struct err *err)
{
    const char *text;
    int code = ERR_UNSUPPORTED;

    if (status == NULL)
        return 0;
    text = ort->api.GetErrorMessage(status);
    if (says_memory(text))
        code = ERR_MEMORY;
    else if (ort->api.GetErrorCode(status) == CODE_MODEL_CANNOT_BE_READ)
        code = ERR_MALFORMED;
    (void)err_set(err, code, "%s: %.380s", what, text);
    ort->api.ReleaseStatus(status);
    return code;
}

int onnx_ort_open(struct onnx_ort **ret_ort, struct err *err)
{
    OWNED(onnx_ort_close) struct onnx_ort *ort = xcalloc(1, sizeof(*ort));
    void *handle = NULL;
    int r;

    r = library_open(&handle, err);
    if (r == 0)
        r = api_find(handle, ort, err);
    if (r < 0)
        return r;
    r = check(
        ort,
        ort->api.CreateEnvWithCustomLogger(drop_log, NULL, SEVERITY_FATAL, "headrace", &ort->env),
        "ONNX Runtime", err);
    if (r == 0)
        r = check(ort, ort->api.CreateCpuMemoryInfo(ALLOCATOR_ARENA, MEMORY_DEFAULT, &ort->memory),
                  "ONNX Runtime", err);
    if (r == 0)
        *ret_ort = TAKE(ort);
    return r;
}

/* The library stays: its threads and its C++ runtime do not survive dlclose(3). */
void onnx_ort_close(struct onnx_ort **ort_p)
{
    struct onnx_ort *ort = TAKE(*ort_p);

    if (ort == NULL)
        return;
    if (ort->memory != NULL)
        ort->api.ReleaseMemoryInfo(ort->memory);
    if (ort->env != NULL)
        ort->api.ReleaseEnv(ort->env);
    free(ort);
}

const char *onnx_ort_version(const struct onnx_ort *ort)
{
    return ort->version;
}

/* ---- a model ---- */

static void list_providers(const struct onnx_ort *ort, char *to, size_t to_size)
{
    char **names = NULL;
    int count = 0;
    size_t size = 0;
    struct err err;

    to[0] = '\0';
    if (check(ort, ort->api.GetAvailableProviders(&names, &count), "providers", &err) < 0)
        return;
    for (int i = 0; i < count && size < to_size; i++)
        size += (size_t)snprintf(to + size, to_size - size, "%s%s", i > 0 ? ", " : "", names[i]);
    (void)check(ort, ort->api.ReleaseAvailableProviders(names, count), "providers", &err);
}

static int check_device(const struct onnx_ort *ort, const char *device, struct err *err)
{
    char providers[200];

    if (strcmp(device, "cpu") == 0)
        return 0;
    list_providers(ort, providers, sizeof(providers));
    return err_set(err, ERR_UNSUPPORTED,
                   "device is '%.40s'; this build of the onnx engine has 'cpu' only, and does not "
                   "fall back to it unasked (providers of ONNX Runtime %.20s: %s)",
                   device, ort->version, providers);
}

/* Two threads that spin for work take a core from whatever else runs here. */
static int set_options(const struct onnx_ort *ort, struct ort_options *to,
                       const struct onnx_ort_options *from, struct err *err)
{
    static const char *const entries[][2] = {
        {"session.intra_op.allow_spinning", "0"},
        {"session.inter_op.allow_spinning", "0"},
        {"session.record_ep_graph_assignment_info", "1"},
    };
    int r;

    r = check(ort, ort->api.SetIntraOpNumThreads(to, (int)from->thread_count), "threads", err);
    if (r == 0)
        r = check(ort, ort->api.SetInterOpNumThreads(to, 1), "threads", err);
    for (size_t i = 0; r == 0 && i < COUNT_OF(entries); i++)
        r = check(ort, ort->api.AddSessionConfigEntry(to, entries[i][0], entries[i][1]),
                  entries[i][0], err);
    return r;
}

/* Which provider each part of the graph is really on. */
static int check_assignment(const struct onnx_session *session, struct err *err)
{
    const struct ort_api *api = &session->ort->api;
    const struct ort_subgraph *const *parts = NULL;
    size_t count = 0;
    int r;

    if (api->Session_GetEpGraphAssignmentInfo == NULL)
        return 0;
    r = check(session->ort, api->Session_GetEpGraphAssignmentInfo(session->native, &parts, &count),
              "where the graph runs", err);
    for (size_t i = 0; r == 0 && i < count; i++) {
        const char *name = NULL;

        r = check(session->ort, api->EpAssignedSubgraph_GetEpName(parts[i], &name),
                  "where the graph runs", err);
        if (r == 0 && strcmp(name, CPU_PROVIDER) != 0)
            r = err_set(err, ERR_UNSUPPORTED, "a part of the graph is on %.60s, not on the %s",
                        name, CPU_PROVIDER);
    }
    return r;
}

int onnx_session_open(struct onnx_ort *ort, const char *path,
                      const struct onnx_ort_options *options, struct onnx_session **ret_session,
                      struct err *err)
{
    OWNED(onnx_session_close) struct onnx_session *session = xcalloc(1, sizeof(*session));
    struct ort_options *native = NULL;
    int r;

    session->ort = ort;
    r = check_device(ort, options->device, err);
    if (r == 0)
        r = check(ort, ort->api.CreateSessionOptions(&native), "options", err);
    if (r == 0)
        r = set_options(ort, native, options, err);
    if (r == 0)
        r = check(ort, ort->api.CreateSession(ort->env, path, native, &session->native),
                  "ONNX Runtime cannot load the model", err);
    if (native != NULL)
        ort->api.ReleaseSessionOptions(native);
    if (r == 0)
        r = check_assignment(session, err);
    if (r == 0)
        *ret_session = TAKE(session);
    return r;
}

void onnx_session_close(struct onnx_session **session_p)
{
    struct onnx_session *session = TAKE(*session_p);

    if (session == NULL)
        return;
    if (session->native != NULL)
        session->ort->api.ReleaseSession(session->native);
    free(session);
}

/* ---- a run ---- */

struct run {
    const char *input_names[ONNX_INPUT_COUNT_MAX];
    struct ort_value *inputs[ONNX_INPUT_COUNT_MAX];
    const char *output_names[ONNX_OUTPUT_COUNT_MAX];
    uint32_t output_indexes[ONNX_OUTPUT_COUNT_MAX];
    struct ort_value *outputs[ONNX_OUTPUT_COUNT_MAX];
    uint32_t output_count;
};

static int wrap_inputs(struct onnx_session *session, const struct onnx_model *model,
                       const struct onnx_tensor *inputs, struct run *run, struct err *err)
{
    const struct onnx_ort *ort = session->ort;

    for (uint32_t i = 0; i < model->input_count; i++) {
        status_t status = ort->api.CreateTensorWithDataAsOrtValue(
            ort->memory, inputs[i].data, inputs[i].size, inputs[i].dims, inputs[i].rank,
            (int)inputs[i].type, &run->inputs[i]);
        int r = check(ort, status, model->inputs[i].name, err);

        if (r < 0)
            return r;
        run->input_names[i] = model->inputs[i].name;
    }
    return 0;
}

static int read_shape(const struct onnx_ort *ort, const struct ort_shape *shape,
                      struct onnx_tensor *to, const char *name, struct err *err)
{
    size_t rank = 0;
    uint64_t count;
    int type = 0, r;

    r = check(ort, ort->api.GetTensorElementType(shape, &type), name, err);
    if (r == 0)
        r = check(ort, ort->api.GetDimensionsCount(shape, &rank), name, err);
    if (r == 0 && rank > ONNX_RANK_MAX)
        r = err_set(err, ERR_UNSUPPORTED, "output '%.80s' has %zu axes, limit %u", name, rank,
                    ONNX_RANK_MAX);
    if (r == 0)
        r = check(ort, ort->api.GetDimensions(shape, to->dims, rank), name, err);
    if (r < 0)
        return r;
    to->type = (uint32_t)type;
    to->rank = (uint32_t)rank;
    if (onnx_type_size(to->type) == 0 || !onnx_shape_count(to->dims, to->rank, &count))
        return err_set(err, ERR_UNSUPPORTED, "output '%.80s' is %s", name,
                       onnx_type_name(to->type));
    to->size = count * onnx_type_size(to->type);
    return 0;
}

static int read_value(const struct onnx_ort *ort, struct ort_value *value, struct onnx_tensor *to,
                      const char *name, struct err *err)
{
    struct ort_shape *shape = NULL;
    int kind = 0, r;

    r = check(ort, ort->api.GetValueType(value, &kind), name, err);
    if (r == 0 && kind != VALUE_IS_TENSOR)
        r = err_set(err, ERR_UNSUPPORTED, "output '%.80s' is no tensor", name);
    if (r == 0)
        r = check(ort, ort->api.GetTensorTypeAndShape(value, &shape), name, err);
    if (r == 0)
        r = read_shape(ort, shape, to, name, err);
    if (shape != NULL)
        ort->api.ReleaseTensorTypeAndShapeInfo(shape);
    return r < 0 ? r : check(ort, ort->api.GetTensorMutableData(value, &to->data), name, err);
}

static int read_outputs(struct onnx_session *session, const struct run *run,
                        struct onnx_results *results, struct err *err)
{
    for (uint32_t i = 0; i < run->output_count; i++) {
        int r = read_value(session->ort, run->outputs[i], &results->tensors[run->output_indexes[i]],
                           run->output_names[i], err);

        if (r < 0)
            return r;
    }
    return 0;
}

int onnx_session_run(struct onnx_session *session, const struct onnx_model *model,
                     const struct onnx_tensor *inputs, const bool *wanted,
                     struct onnx_results *ret_results, struct err *err)
{
    OWNED(onnx_results_done) struct onnx_results results = {.ort = session->ort};
    struct onnx_ort *ort = session->ort;
    struct run run = {.output_count = 0};
    int r;

    for (uint32_t i = 0; i < model->output_count; i++) {
        if (!wanted[i])
            continue;
        run.output_indexes[run.output_count] = i;
        run.output_names[run.output_count++] = model->outputs[i].name;
    }
    r = wrap_inputs(session, model, inputs, &run, err);
    if (r == 0)
        r = check(ort,
                  ort->api.Run(session->native, NULL, run.input_names,
                               (const struct ort_value *const *)run.inputs, model->input_count,
                               run.output_names, run.output_count, run.outputs),
                  "the model failed", err);
    for (uint32_t i = 0; i < model->input_count; i++) {
        if (run.inputs[i] != NULL)
            ort->api.ReleaseValue(run.inputs[i]);
    }
    results.count = run.output_count;
    memcpy(results.values, run.outputs, sizeof(run.outputs));
    if (r == 0)
        r = read_outputs(session, &run, &results, err);
    if (r < 0)
        return r;
    *ret_results = results;
    results.count = 0;
    return 0;
}

void onnx_results_done(struct onnx_results *results)
{
    for (uint32_t i = 0; i < results->count; i++) {
        if (results->values[i] != NULL)
            results->ort->api.ReleaseValue(results->values[i]);
    }
    results->count = 0;
}
