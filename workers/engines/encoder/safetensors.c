/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/engines/encoder/safetensors.h"

#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/assert.h"

#define PREFIX_SIZE 8u

struct safetensors {
    const uint8_t *data; /* behind the header */
    uint64_t data_size;
    struct safetensors_tensor *tensors; /* by name, ascending */
    size_t count;
    void *map; /* NULL when the bytes are the caller's */
    size_t map_size;
};

static const struct {
    const char *name;
    uint32_t bits;
    enum safetensors_dtype dtype;
} dtypes[] = {
    {"F32", 32, SAFETENSORS_F32},      {"F16", 16, SAFETENSORS_F16},
    {"BF16", 16, SAFETENSORS_BF16},    {"F64", 64, SAFETENSORS_OTHER},
    {"I64", 64, SAFETENSORS_OTHER},    {"I32", 32, SAFETENSORS_OTHER},
    {"I16", 16, SAFETENSORS_OTHER},    {"I8", 8, SAFETENSORS_OTHER},
    {"U64", 64, SAFETENSORS_OTHER},    {"U32", 32, SAFETENSORS_OTHER},
    {"U16", 16, SAFETENSORS_OTHER},    {"U8", 8, SAFETENSORS_OTHER},
    {"BOOL", 8, SAFETENSORS_OTHER},    {"F8_E4M3", 8, SAFETENSORS_OTHER},
    {"F8_E5M2", 8, SAFETENSORS_OTHER},
};

static void json_done(json_t **json_p)
{
    json_decref(*json_p);
    *json_p = NULL;
}

void safetensors_close(struct safetensors **file_p)
{
    struct safetensors *file = TAKE(*file_p);

    if (file == NULL)
        return;
    for (size_t i = 0; i < file->count; i++)
        free(file->tensors[i].name);
    free(file->tensors);
    if (file->map != NULL)
        (void)munmap(file->map, file->map_size);
    free(file);
}

static int parse_dtype(const json_t *entry, struct safetensors_tensor *tensor, uint32_t *ret_bits,
                       struct err *err)
{
    const char *name = json_string_value(json_object_get(entry, "dtype"));

    for (size_t i = 0; name != NULL && i < COUNT_OF(dtypes); i++) {
        if (strcmp(name, dtypes[i].name) != 0)
            continue;
        tensor->dtype = dtypes[i].dtype;
        tensor->dtype_name = dtypes[i].name;
        *ret_bits = dtypes[i].bits;
        return 0;
    }
    return err_set(err, ERR_MALFORMED, "tensor '%s': dtype '%.32s' is not one of the format",
                   tensor->name, name != NULL ? name : "(none)");
}

static int parse_shape(const json_t *entry, struct safetensors_tensor *tensor, struct err *err)
{
    const json_t *shape = json_object_get(entry, "shape");

    if (!json_is_array(shape))
        return err_set(err, ERR_MALFORMED, "tensor '%s': shape is not an array", tensor->name);
    if (json_array_size(shape) > SAFETENSORS_RANK_MAX)
        return err_set(err, ERR_RANGE, "tensor '%s': shape has %zu dimensions, limit %u",
                       tensor->name, json_array_size(shape), SAFETENSORS_RANK_MAX);
    tensor->rank = (uint32_t)json_array_size(shape);
    tensor->element_count = 1;
    for (uint32_t i = 0; i < tensor->rank; i++) {
        const json_t *dim = json_array_get(shape, i);

        if (!json_is_integer(dim) || json_integer_value(dim) < 0)
            return err_set(err, ERR_MALFORMED, "tensor '%s': shape[%u] is not a size", tensor->name,
                           i);
        tensor->shape[i] = (uint64_t)json_integer_value(dim);
        if (__builtin_mul_overflow(tensor->element_count, tensor->shape[i], &tensor->element_count))
            return err_set(err, ERR_RANGE, "tensor '%s': shape has more elements than 2^64",
                           tensor->name);
    }
    return 0;
}

/* Sets bytes and size, once the offsets are inside the data and agree with the shape. */
static int parse_offsets(const json_t *entry, const struct safetensors *file, uint32_t bits,
                         struct safetensors_tensor *tensor, struct err *err)
{
    const json_t *offsets = json_object_get(entry, "data_offsets");
    const json_t *first = json_array_get(offsets, 0), *second = json_array_get(offsets, 1);
    uint64_t begin, end, want;

    if (json_array_size(offsets) != 2 || !json_is_integer(first) || !json_is_integer(second) ||
        json_integer_value(first) < 0 || json_integer_value(second) < 0)
        return err_set(err, ERR_MALFORMED, "tensor '%s': data_offsets is not a pair of offsets",
                       tensor->name);
    begin = (uint64_t)json_integer_value(first);
    end = (uint64_t)json_integer_value(second);
    if (begin > end || end > file->data_size)
        return err_set(err, ERR_RANGE,
                       "tensor '%s': data_offsets [%" PRIu64 ", %" PRIu64
                       "] leave the file's %" PRIu64 " bytes of data",
                       tensor->name, begin, end, file->data_size);
    if (__builtin_mul_overflow(tensor->element_count, (uint64_t)bits / 8, &want) ||
        want != end - begin)
        return err_set(err, ERR_MISMATCH,
                       "tensor '%s': data_offsets hold %" PRIu64
                       " bytes, shape and dtype want %" PRIu64 " elements of %u bytes",
                       tensor->name, end - begin, tensor->element_count, bits / 8);
    tensor->bytes = file->data + begin;
    tensor->size = end - begin;
    return 0;
}

static int parse_tensor(const char *name, const json_t *entry, const struct safetensors *file,
                        struct safetensors_tensor *tensor, struct err *err)
{
    uint32_t bits = 0;
    int r;

    if (strlen(name) > SAFETENSORS_NAME_SIZE_MAX)
        return err_set(err, ERR_RANGE, "tensor '%.40s…': name has %zu bytes, limit %u", name,
                       strlen(name), SAFETENSORS_NAME_SIZE_MAX);
    if (!json_is_object(entry))
        return err_set(err, ERR_MALFORMED, "tensor '%s': its entry is not an object", name);
    tensor->name = xstrdup(name);
    r = parse_dtype(entry, tensor, &bits, err);
    if (r == 0)
        r = parse_shape(entry, tensor, err);
    if (r == 0)
        r = parse_offsets(entry, file, bits, tensor, err);
    return r;
}

static int compare_offset(const void *a_p, const void *b_p)
{
    const struct safetensors_tensor *a = a_p, *b = b_p;

    if (a->bytes != b->bytes)
        return a->bytes < b->bytes ? -1 : 1;
    return a->size < b->size ? -1 : a->size > b->size;
}

static int compare_name(const void *a_p, const void *b_p)
{
    const struct safetensors_tensor *a = a_p, *b = b_p;

    return strcmp(a->name, b->name);
}

/* The format wants the data described whole: two names for one range, or bytes that no name
 * covers, are how one file comes to mean two things to two readers. */
static int check_coverage(struct safetensors *file, struct err *err)
{
    const uint8_t *at = file->data;

    qsort(file->tensors, file->count, sizeof(*file->tensors), compare_offset);
    for (size_t i = 0; i < file->count; i++) {
        const struct safetensors_tensor *tensor = &file->tensors[i];

        if (tensor->bytes < at)
            return err_set(err, ERR_MISMATCH, "tensor '%s': its data overlaps that of tensor '%s'",
                           tensor->name, file->tensors[i - 1].name);
        if (tensor->bytes > at)
            return err_set(err, ERR_MISMATCH, "tensor '%s': %zu bytes before it belong to none",
                           tensor->name, (size_t)(tensor->bytes - at));
        at += tensor->size;
    }
    if (at != file->data + file->data_size)
        return err_set(err, ERR_MISMATCH, "%zu bytes at the end of the file belong to no tensor",
                       (size_t)(file->data + file->data_size - at));
    qsort(file->tensors, file->count, sizeof(*file->tensors), compare_name);
    return 0;
}

static int parse_header(const char *text, size_t size, struct safetensors *file, struct err *err)
{
    OWNED(json_done) json_t *header = NULL;
    json_error_t json_err;
    const char *name;
    json_t *entry;
    int r;

    if (size == 0 || text[0] != '{')
        return err_set(err, ERR_MALFORMED, "header does not begin with '{'");
    header = json_loadb(text, size, JSON_REJECT_DUPLICATES, &json_err);
    if (header == NULL)
        return err_set(err, ERR_MALFORMED, "header is not JSON at byte %d: %.120s",
                       json_err.position, json_err.text);
    if (json_object_size(header) > SAFETENSORS_TENSOR_COUNT_MAX)
        return err_set(err, ERR_RANGE, "header names %zu tensors, limit %u",
                       json_object_size(header), SAFETENSORS_TENSOR_COUNT_MAX);
    file->tensors = xcalloc(json_object_size(header) + 1, sizeof(*file->tensors));
    json_object_foreach(header, name, entry)
    {
        if (strcmp(name, "__metadata__") == 0)
            continue;
        /* Counted before it is parsed: a half-built entry has a name to free. */
        r = parse_tensor(name, entry, file, &file->tensors[file->count++], err);
        if (r < 0)
            return r;
    }
    return check_coverage(file, err);
}

int safetensors_parse(const uint8_t *bytes, size_t size, struct safetensors **ret_file,
                      struct err *err)
{
    OWNED(safetensors_close) struct safetensors *file = xcalloc(1, sizeof(*file));
    uint64_t header_size = 0;
    int r;

    if (size < PREFIX_SIZE)
        return err_set(err, ERR_MALFORMED, "file has %zu bytes, a header length alone has %u", size,
                       PREFIX_SIZE);
    for (unsigned i = 0; i < PREFIX_SIZE; i++)
        header_size |= (uint64_t)bytes[i] << (8 * i);
    if (header_size > SAFETENSORS_HEADER_SIZE_MAX)
        return err_set(err, ERR_TOO_BIG, "header length is %" PRIu64 " bytes, limit %u",
                       header_size, SAFETENSORS_HEADER_SIZE_MAX);
    if (header_size > size - PREFIX_SIZE)
        return err_set(err, ERR_MALFORMED,
                       "header length is %" PRIu64 " bytes, the file ends after %zu", header_size,
                       size - PREFIX_SIZE);
    file->data = bytes + PREFIX_SIZE + header_size;
    file->data_size = size - PREFIX_SIZE - header_size;
    r = parse_header((const char *)bytes + PREFIX_SIZE, (size_t)header_size, file, err);
    if (r < 0)
        return r;
    *ret_file = TAKE(file);
    return 0;
}

static int map_file(const char *path, void **ret_map, size_t *ret_size, struct err *err)
{
    struct stat st;
    void *map;
    int fd, r = 0;

    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return err_set_errno(err, ERR_IO, "open '%s'", path);
    if (fstat(fd, &st) < 0)
        r = err_set_errno(err, ERR_IO, "stat '%s'", path);
    else if (!S_ISREG(st.st_mode) || st.st_size == 0)
        r = err_set(err, ERR_MALFORMED, "'%s' is empty or no regular file", path);
    if (r == 0) {
        map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (map == MAP_FAILED) {
            r = err_set_errno(err, ERR_MEMORY, "map '%s'", path);
        } else {
            *ret_map = map;
            *ret_size = (size_t)st.st_size;
        }
    }
    (void)close(fd);
    return r;
}

int safetensors_open(const char *path, struct safetensors **ret_file, struct err *err)
{
    struct safetensors *file = NULL;
    void *map = NULL;
    size_t map_size = 0;
    int r;

    r = map_file(path, &map, &map_size, err);
    if (r < 0)
        return r;
    r = safetensors_parse(map, map_size, &file, err);
    if (r < 0) {
        (void)munmap(map, map_size);
        return err_wrap(err, "'%s'", path);
    }
    file->map = map;
    file->map_size = map_size;
    *ret_file = file;
    return 0;
}

uint64_t safetensors_data_size(const struct safetensors *file)
{
    return file->data_size;
}

size_t safetensors_count(const struct safetensors *file)
{
    return file->count;
}

const struct safetensors_tensor *safetensors_at(const struct safetensors *file, size_t index)
{
    assert(index < file->count);
    return &file->tensors[index];
}

const struct safetensors_tensor *safetensors_find(const struct safetensors *file, const char *name)
{
    size_t low = 0, high = file->count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(name, file->tensors[middle].name);

        if (order == 0)
            return &file->tensors[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

static float f32_of_bits(uint32_t bits)
{
    float value;

    memcpy(&value, &bits, sizeof(value));
    return value;
}

/* IEEE half to single; subnormals are scaled by the float unit, Inf and NaN keep their kind. */
static float f32_of_f16(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
    uint32_t exponent = (half >> 10) & 0x1fu, fraction = half & 0x3ffu;
    float tiny;

    if (exponent == 0x1f)
        return f32_of_bits(sign | 0x7f800000u | fraction << 13);
    if (exponent > 0)
        return f32_of_bits(sign | (exponent + 112) << 23 | fraction << 13);
    tiny = (float)fraction * 0x1p-24f;
    return sign != 0 ? -tiny : tiny;
}

int safetensors_read_f32(const struct safetensors_tensor *tensor, uint64_t first, uint64_t count,
                         float *to, struct err *err)
{
    uint16_t half;

    assert(first <= tensor->element_count && count <= tensor->element_count - first);
    switch (tensor->dtype) {
    case SAFETENSORS_F32:
        memcpy(to, tensor->bytes + first * sizeof(float), count * sizeof(float));
        return 0;
    case SAFETENSORS_F16:
    case SAFETENSORS_BF16:
        for (uint64_t i = 0; i < count; i++) {
            memcpy(&half, tensor->bytes + (first + i) * sizeof(half), sizeof(half));
            to[i] = tensor->dtype == SAFETENSORS_F16 ? f32_of_f16(half)
                                                     : f32_of_bits((uint32_t)half << 16);
        }
        return 0;
    case SAFETENSORS_OTHER:
        break;
    }
    return err_set(err, ERR_UNSUPPORTED, "tensor '%s': dtype is %s, none of F32, F16, BF16",
                   tensor->name, tensor->dtype_name);
}
