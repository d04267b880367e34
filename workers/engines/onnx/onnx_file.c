/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/engines/onnx/onnx_file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define WIRE_VARINT 0u
#define WIRE_FIXED64 1u
#define WIRE_BYTES 2u
#define WIRE_FIXED32 5u
#define GRAPH_INPUT_COUNT_MAX 4096u /* old files list their weights among the inputs */

/* Field numbers of onnx.proto. */
enum {
    MODEL_IR_VERSION = 1,
    MODEL_PRODUCER = 2,
    MODEL_GRAPH = 7,
    MODEL_OPSET = 8,
    MODEL_FUNCTION = 25,
    OPSET_DOMAIN = 1,
    OPSET_VERSION = 2,
    GRAPH_NODE = 1,
    GRAPH_INITIALIZER = 5,
    GRAPH_INPUT = 11,
    GRAPH_OUTPUT = 12,
    FUNCTION_NODE = 7,
    NODE_ATTRIBUTE = 5,
    ATTRIBUTE_TENSOR = 5,
    ATTRIBUTE_GRAPH = 6,
    ATTRIBUTE_TENSORS = 10,
    ATTRIBUTE_GRAPHS = 11,
    TENSOR_DIMS = 1,
    TENSOR_TYPE = 2,
    TENSOR_NAME = 8,
    TENSOR_RAW = 9,
    TENSOR_EXTERNAL = 13,
    TENSOR_LOCATION = 14,
    ENTRY_KEY = 1,
    ENTRY_VALUE = 2,
    VALUE_NAME = 1,
    VALUE_TYPE = 2,
    TYPE_TENSOR = 1,
    TENSOR_TYPE_ELEMENT = 1,
    TENSOR_TYPE_SHAPE = 2,
    SHAPE_DIM = 1,
    DIM_VALUE = 1,
    DIM_SYMBOL = 2,
};

struct span {
    const uint8_t *at, *end;
};

struct field {
    uint32_t number, wire;
    uint64_t value; /* of a varint */
    struct span bytes;
};

struct walk {
    const char *dir;
    const uint8_t *start; /* of the file, for positions */
    struct onnx_model *model;
    struct onnx_spec *specs; /* of all graph inputs */
    bool *given;             /* by an initializer */
    uint32_t spec_count;
    int depth;
};

static void walk_done(struct walk *walk)
{
    free(walk->specs);
    free(walk->given);
}

/* ---- protobuf ---- */

static bool read_varint(struct span *span, uint64_t *ret_value)
{
    uint64_t value = 0;

    for (unsigned shift = 0; shift < 64 && span->at < span->end; shift += 7) {
        const uint8_t byte = *span->at++;

        value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) {
            *ret_value = value;
            return true;
        }
    }
    return false;
}

static bool skip(struct span *span, uint64_t size)
{
    if (size > (uint64_t)(span->end - span->at))
        return false;
    span->at += size;
    return true;
}

static bool read_field(struct span *span, struct field *field)
{
    uint64_t tag, size;

    *field = (struct field){.number = 0};
    if (!read_varint(span, &tag) || tag >> 3 == 0 || tag >> 3 > UINT32_MAX)
        return false;
    field->number = (uint32_t)(tag >> 3);
    field->wire = (uint32_t)(tag & 7);
    switch (field->wire) {
    case WIRE_VARINT:
        return read_varint(span, &field->value);
    case WIRE_FIXED64:
        return skip(span, 8);
    case WIRE_FIXED32:
        return skip(span, 4);
    case WIRE_BYTES:
        if (!read_varint(span, &size))
            return false;
        field->bytes.at = span->at;
        if (!skip(span, size))
            return false;
        field->bytes.end = span->at;
        return true;
    default:
        return false;
    }
}

/* 1: a field; 0: the end; negative: malformed, and where. */
static int next_field(const struct walk *walk, struct span *span, struct field *field,
                      struct err *err)
{
    const uint8_t *at = span->at;

    if (at == span->end)
        return 0;
    if (!read_field(span, field))
        return err_set(err, ERR_MALFORMED, "the ONNX file is cut off or malformed at byte %zu",
                       (size_t)(at - walk->start));
    return 1;
}

static bool is_bytes(const struct field *field, uint32_t number)
{
    return field->number == number && field->wire == WIRE_BYTES;
}

static bool is_number(const struct field *field, uint32_t number)
{
    return field->number == number && field->wire == WIRE_VARINT;
}

/* Cut at the array's end, and at a NUL. */
#define copy_text(array, bytes) copy_text_at((array), sizeof(array), (bytes))
static void copy_text_at(char *to, size_t to_size, struct span bytes)
{
    size_t size = (size_t)(bytes.end - bytes.at);

    if (size > to_size - 1)
        size = to_size - 1;
    if (size > 0) /* an absent field has no bytes at all */
        memcpy(to, bytes.at, size);
    to[size] = '\0';
}

static int copy_name(const char *what, char to[ONNX_NAME_SIZE], struct span bytes, struct err *err)
{
    copy_text_at(to, ONNX_NAME_SIZE, bytes);
    if (strlen(to) != (size_t)(bytes.end - bytes.at))
        return err_set(err, ERR_RANGE, "the name of %s has %zu bytes or holds a NUL; limit %u",
                       what, (size_t)(bytes.end - bytes.at), ONNX_NAME_SIZE - 1);
    return 0;
}

/* ---- inputs and outputs ---- */

static int read_dim(const struct walk *walk, struct span span, struct onnx_spec *spec,
                    struct err *err)
{
    int64_t *dim = &spec->dims[spec->rank];
    struct field field;
    int r;

    *dim = -1;
    while ((r = next_field(walk, &span, &field, err)) > 0) {
        if (is_number(&field, DIM_VALUE))
            *dim = (int64_t)field.value;
        if (is_bytes(&field, DIM_SYMBOL) && spec->rank == 0)
            copy_text(spec->first_symbol, field.bytes);
    }
    /* Exporters write unknown sizes as 0 or -1, too. */
    if (*dim <= 0)
        *dim = -1;
    else if ((uint64_t)*dim > ONNX_ELEMENT_COUNT_MAX)
        return err_set(err, ERR_RANGE, "'%.80s' declares an axis of %" PRId64 ", limit %llu",
                       spec->name, *dim, ONNX_ELEMENT_COUNT_MAX);
    spec->rank++;
    return r;
}

static int read_shape(const struct walk *walk, struct span span, struct onnx_spec *spec,
                      struct err *err)
{
    struct field field;
    int r;

    spec->has_shape = true;
    while ((r = next_field(walk, &span, &field, err)) > 0) {
        if (!is_bytes(&field, SHAPE_DIM))
            continue;
        if (spec->rank == ONNX_RANK_MAX)
            return err_set(err, ERR_RANGE, "'%.80s' has more than %u axes", spec->name,
                           ONNX_RANK_MAX);
        r = read_dim(walk, field.bytes, spec, err);
        if (r < 0)
            return r;
    }
    return r;
}

static int read_tensor_type(const struct walk *walk, struct span span, struct onnx_spec *spec,
                            struct err *err)
{
    struct field field;
    int r;

    while ((r = next_field(walk, &span, &field, err)) > 0) {
        if (is_number(&field, TENSOR_TYPE_ELEMENT))
            spec->type = field.value < UINT32_MAX ? (uint32_t)field.value : UINT32_MAX;
        if (is_bytes(&field, TENSOR_TYPE_SHAPE))
            r = read_shape(walk, field.bytes, spec, err);
        if (r < 0)
            return r;
    }
    return r;
}

static int read_value(const struct walk *walk, struct span span, struct onnx_spec *spec,
                      struct err *err)
{
    struct span type = {NULL, NULL};
    struct field field;
    int r;

    *spec = (struct onnx_spec){.type = 0};
    while ((r = next_field(walk, &span, &field, err)) > 0) {
        if (is_bytes(&field, VALUE_NAME))
            r = copy_name("an input or output", spec->name, field.bytes, err);
        if (is_bytes(&field, VALUE_TYPE))
            type = field.bytes;
        if (r < 0)
            return r;
    }
    while (r == 0 && (r = next_field(walk, &type, &field, err)) > 0)
        r = is_bytes(&field, TYPE_TENSOR) ? read_tensor_type(walk, field.bytes, spec, err) : 0;
    return r;
}

static int add_input(struct walk *walk, struct span span, struct err *err)
{
    if (walk->spec_count == GRAPH_INPUT_COUNT_MAX)
        return err_set(err, ERR_TOO_BIG, "the graph has more than %u inputs",
                       GRAPH_INPUT_COUNT_MAX);
    walk->specs = xrealloc(walk->specs, walk->spec_count + 1, sizeof(*walk->specs));
    return read_value(walk, span, &walk->specs[walk->spec_count++], err);
}

static int add_output(struct walk *walk, struct span span, struct err *err)
{
    struct onnx_model *model = walk->model;

    if (model->output_count == ONNX_OUTPUT_COUNT_MAX)
        return err_set(err, ERR_TOO_BIG, "the graph has more than %u outputs",
                       ONNX_OUTPUT_COUNT_MAX);
    return read_value(walk, span, &model->outputs[model->output_count++], err);
}

/* ---- weights ---- */

int onnx_file_path_check(const char *what, const char *path, struct err *err)
{
    bool bad = path[0] == '\0' || path[0] == '/' || strchr(path, '\\') != NULL;

    for (const char *at = path; !bad && *at != '\0';) {
        size_t part = strcspn(at, "/");

        bad = part == 2 && strncmp(at, "..", 2) == 0;
        at += part + (at[part] == '/');
    }
    if (bad)
        return err_set(err, ERR_RANGE, "%s '%.120s' is no path below the model's directory", what,
                       path);
    return 0;
}

struct external {
    char path[1024];
    uint64_t offset, size;
    bool has_size;
};

static bool read_decimal(struct span bytes, uint64_t *ret_value)
{
    uint64_t value = 0;

    for (; bytes.at < bytes.end; bytes.at++) {
        if (*bytes.at < '0' || *bytes.at > '9' || value > UINT64_MAX / 16)
            return false;
        value = value * 10 + (uint64_t)(*bytes.at - '0');
    }
    *ret_value = value;
    return true;
}

static int read_external_entry(const struct walk *walk, struct span span, const char *name,
                               struct external *external, struct err *err)
{
    struct span value = {NULL, NULL};
    struct field field;
    char key[16] = "";
    bool good = true;
    int r;

    while ((r = next_field(walk, &span, &field, err)) > 0) {
        if (is_bytes(&field, ENTRY_KEY))
            copy_text(key, field.bytes);
        if (is_bytes(&field, ENTRY_VALUE))
            value = field.bytes;
    }
    if (r < 0)
        return r;
    if (strcmp(key, "location") == 0) {
        copy_text(external->path, value);
        good = strlen(external->path) == (size_t)(value.end - value.at);
    } else if (strcmp(key, "offset") == 0) {
        good = read_decimal(value, &external->offset);
    } else if (strcmp(key, "length") == 0) {
        good = external->has_size = read_decimal(value, &external->size);
    }
    return good ? 0
                : err_set(err, ERR_MALFORMED,
                          "tensor '%.80s': %s of its external data is malformed", name, key);
}

static int check_external(struct walk *walk, const char *name, const struct external *external,
                          uint64_t wanted_size, struct err *err)
{
    OWNED(mem_free) char *what = xasprintf("tensor '%.80s': external data", name);
    OWNED(mem_free) char *path = xasprintf("%s/%s", walk->dir, external->path);
    uint64_t size = external->has_size ? external->size : wanted_size;
    struct stat st;
    int r;

    r = onnx_file_path_check(what, external->path, err);
    if (r < 0)
        return r;
    if (lstat(path, &st) < 0 || !S_ISREG(st.st_mode))
        return err_set(err, ERR_NOT_FOUND, "%s '%.120s' is no file of the directory", what,
                       external->path);
    if (external->offset > (uint64_t)st.st_size || size > (uint64_t)st.st_size - external->offset)
        return err_set(err, ERR_RANGE,
                       "%s is %" PRIu64 " bytes at %" PRIu64 " of '%.120s', which has %" PRIu64,
                       what, size, external->offset, external->path, (uint64_t)st.st_size);
    walk->model->weight_size += size;
    return 0;
}

struct weight {
    char name[ONNX_NAME_SIZE];
    uint32_t type;
    uint64_t count, raw_size;
    bool has_raw, is_external;
    struct external external;
};

/* The dims are packed into one field, or one field each. */
static int read_weight_dims(const struct walk *walk, const struct field *field,
                            struct weight *weight, struct err *err)
{
    struct span span = field->bytes;
    uint64_t dim = field->value;
    bool more = field->wire == WIRE_VARINT;

    for (;;) {
        if (!more && span.at == span.end)
            return 0;
        if (!more && !read_varint(&span, &dim))
            return err_set(err, ERR_MALFORMED, "the ONNX file is malformed at byte %zu",
                           (size_t)(span.at - walk->start));
        if (dim > ONNX_ELEMENT_COUNT_MAX ||
            (dim > 0 && weight->count > ONNX_ELEMENT_COUNT_MAX / dim))
            return err_set(err, ERR_RANGE, "tensor '%.80s' has a shape of more than %llu elements",
                           weight->name, ONNX_ELEMENT_COUNT_MAX);
        weight->count *= dim;
        if (more)
            return 0;
    }
}

static int read_weight_field(const struct walk *walk, const struct field *field,
                             struct weight *weight, struct err *err)
{
    if (field->number == TENSOR_DIMS && (field->wire == WIRE_VARINT || field->wire == WIRE_BYTES))
        return read_weight_dims(walk, field, weight, err);
    if (is_number(field, TENSOR_TYPE))
        weight->type = field->value < UINT32_MAX ? (uint32_t)field->value : UINT32_MAX;
    if (is_number(field, TENSOR_LOCATION))
        weight->is_external = field->value == 1;
    if (is_bytes(field, TENSOR_RAW)) {
        weight->has_raw = true;
        weight->raw_size = (uint64_t)(field->bytes.end - field->bytes.at);
    }
    if (is_bytes(field, TENSOR_EXTERNAL))
        return read_external_entry(walk, field->bytes, weight->name, &weight->external, err);
    return 0;
}

/* Of the graph itself, a weight gives the input of its name a value. */
static void mark_given(struct walk *walk, const char *name)
{
    for (uint32_t i = 0; i < walk->spec_count; i++) {
        if (strcmp(walk->specs[i].name, name) == 0)
            walk->given[i] = true;
    }
}

static int read_weight(struct walk *walk, struct span span, struct err *err)
{
    struct weight weight = {.count = 1};
    struct span names = span;
    struct field field;
    uint64_t size;
    int r;

    while ((r = next_field(walk, &names, &field, err)) > 0) {
        if (is_bytes(&field, TENSOR_NAME))
            copy_text(weight.name, field.bytes);
    }
    while (r == 0 && (r = next_field(walk, &span, &field, err)) > 0)
        r = read_weight_field(walk, &field, &weight, err);
    if (r < 0)
        return r;
    size = weight.count * onnx_type_size(weight.type);
    if (weight.is_external)
        r = check_external(walk, weight.name, &weight.external, size, err);
    else if (weight.has_raw && size > 0 && size != weight.raw_size)
        r = err_set(err, ERR_MISMATCH,
                    "tensor '%.80s' has %" PRIu64 " bytes, its shape and type say %" PRIu64,
                    weight.name, weight.raw_size, size);
    else
        walk->model->weight_size += size;
    if (walk->depth == 0)
        mark_given(walk, weight.name);
    return r;
}

/* ---- graphs ---- */

static int walk_graph(struct walk *walk, struct span span, struct err *err);

static int walk_attribute(struct walk *walk, struct span span, struct err *err)
{
    struct field field;
    int r;

    while ((r = next_field(walk, &span, &field, err)) > 0) {
        if (is_bytes(&field, ATTRIBUTE_TENSOR) || is_bytes(&field, ATTRIBUTE_TENSORS))
            r = read_weight(walk, field.bytes, err);
        else if (is_bytes(&field, ATTRIBUTE_GRAPH) || is_bytes(&field, ATTRIBUTE_GRAPHS))
            r = walk_graph(walk, field.bytes, err);
        if (r < 0)
            return r;
    }
    return r;
}

static int walk_node(struct walk *walk, struct span span, struct err *err)
{
    struct field field;
    int r;

    walk->model->node_count++;
    walk->depth++; /* names in it are not the graph's */
    while ((r = next_field(walk, &span, &field, err)) > 0) {
        if (is_bytes(&field, NODE_ATTRIBUTE))
            r = walk_attribute(walk, field.bytes, err);
        if (r < 0)
            return r;
    }
    walk->depth--;
    return r;
}

static int walk_graph(struct walk *walk, struct span span, struct err *err)
{
    struct field field;
    int r;

    if (walk->depth > ONNX_DEPTH_MAX)
        return err_set(err, ERR_TOO_BIG, "graphs are nested deeper than %d", ONNX_DEPTH_MAX);
    while ((r = next_field(walk, &span, &field, err)) > 0) {
        if (is_bytes(&field, GRAPH_NODE))
            r = walk_node(walk, field.bytes, err);
        else if (is_bytes(&field, GRAPH_INITIALIZER))
            r = read_weight(walk, field.bytes, err);
        if (r < 0)
            return r;
    }
    return r;
}

static int walk_function(struct walk *walk, struct span span, struct err *err)
{
    struct field field;
    int r;

    while ((r = next_field(walk, &span, &field, err)) > 0) {
        if (is_bytes(&field, FUNCTION_NODE))
            r = walk_node(walk, field.bytes, err);
        if (r < 0)
            return r;
    }
    return r;
}

/* Inputs first: weights refer to them by name, wherever the two stand in the file. */
static int walk_main_graph(struct walk *walk, struct span graph, struct err *err)
{
    struct span span = graph;
    struct field field;
    int r;

    while ((r = next_field(walk, &span, &field, err)) > 0) {
        if (is_bytes(&field, GRAPH_INPUT))
            r = add_input(walk, field.bytes, err);
        else if (is_bytes(&field, GRAPH_OUTPUT))
            r = add_output(walk, field.bytes, err);
        if (r < 0)
            return r;
    }
    if (r < 0)
        return r;
    walk->given = xcalloc(walk->spec_count + 1, sizeof(*walk->given));
    return walk_graph(walk, graph, err);
}

static int read_opset(struct walk *walk, struct span span, struct err *err)
{
    uint64_t version = 0;
    struct field field;
    bool standard = true;
    int r;

    while ((r = next_field(walk, &span, &field, err)) > 0) {
        if (is_bytes(&field, OPSET_DOMAIN))
            standard = field.bytes.at == field.bytes.end ||
                       (field.bytes.end - field.bytes.at == 7 &&
                        memcmp(field.bytes.at, "ai.onnx", 7) == 0);
        if (is_number(&field, OPSET_VERSION))
            version = field.value;
    }
    if (standard)
        walk->model->opset = version;
    return r;
}

static int walk_model(struct walk *walk, struct span span, struct err *err)
{
    struct span graph = {NULL, NULL};
    struct field field;
    int r;

    while ((r = next_field(walk, &span, &field, err)) > 0) {
        if (is_number(&field, MODEL_IR_VERSION))
            walk->model->ir_version = field.value;
        else if (is_bytes(&field, MODEL_PRODUCER))
            copy_text(walk->model->producer, field.bytes);
        else if (is_bytes(&field, MODEL_GRAPH))
            graph = field.bytes;
        else if (is_bytes(&field, MODEL_OPSET))
            r = read_opset(walk, field.bytes, err);
        else if (is_bytes(&field, MODEL_FUNCTION))
            r = walk_function(walk, field.bytes, err);
        if (r < 0)
            return r;
    }
    if (r < 0)
        return r;
    if (graph.at == NULL || walk->model->ir_version == 0)
        return err_set(err, ERR_MALFORMED, "this is no ONNX file: it has no %s",
                       graph.at == NULL ? "graph" : "ir_version");
    return walk_main_graph(walk, graph, err);
}

static int take_inputs(struct walk *walk, struct err *err)
{
    struct onnx_model *model = walk->model;

    for (uint32_t i = 0; i < walk->spec_count; i++) {
        if (walk->given[i])
            continue;
        if (model->input_count == ONNX_INPUT_COUNT_MAX)
            return err_set(err, ERR_TOO_BIG, "the graph wants more than %u inputs",
                           ONNX_INPUT_COUNT_MAX);
        model->inputs[model->input_count++] = walk->specs[i];
    }
    if (model->output_count == 0)
        return err_set(err, ERR_MALFORMED, "the graph has no outputs");
    return 0;
}

int onnx_file_parse(const char *dir, const void *bytes, uint64_t size, struct onnx_model *ret_model,
                    struct err *err)
{
    OWNED(walk_done) struct walk walk = {.dir = dir, .start = bytes, .model = ret_model};
    const struct span span = {bytes, (const uint8_t *)bytes + size};
    int r;

    memset(ret_model, 0, sizeof(*ret_model));
    r = walk_model(&walk, span, err);
    return r < 0 ? r : take_inputs(&walk, err);
}

static void close_fd(int *fd)
{
    if (*fd >= 0)
        (void)close(*fd);
}

int onnx_file_read(const char *dir, const char *file, struct onnx_model **ret_model,
                   struct err *err)
{
    OWNED(mem_free) char *path = xasprintf("%s/%s", dir, file);
    OWNED(mem_free) struct onnx_model *model = xcalloc(1, sizeof(*model));
    OWNED(close_fd) int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    void *bytes;
    int r;

    if (fd < 0)
        return err_set_errno(err, errno == ENOENT ? ERR_NOT_FOUND : ERR_IO, "open '%s'", path);
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
        return err_set(err, ERR_IO, "'%s' is no regular file", path);
    if (st.st_size == 0 || (uint64_t)st.st_size > ONNX_FILE_SIZE_MAX)
        return err_set(err, ERR_TOO_BIG, "'%s' has %lld bytes, allowed are 1 to %llu", path,
                       (long long)st.st_size, ONNX_FILE_SIZE_MAX);
    bytes = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (bytes == MAP_FAILED)
        return err_set_errno(err, ERR_IO, "map '%s'", path);
    r = onnx_file_parse(dir, bytes, (uint64_t)st.st_size, model, err);
    (void)munmap(bytes, (size_t)st.st_size);
    if (r < 0)
        return err_wrap(err, "%s", file);
    *ret_model = TAKE(model);
    return 0;
}
