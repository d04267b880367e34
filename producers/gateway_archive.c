/* SPDX-License-Identifier: Apache-2.0 */

#include "producers/gateway_archive.h"

#include <archive.h>
#include <archive_entry.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"

#define BLOCK_SIZE (256u * 1024)
#define SAFETENSORS_HEAD_SIZE 9 /* length of the header, and its first byte */
#define SAFETENSORS_HEADER_MAX (100u << 20)
#define ENCODER_SLOTS 64
#define OTHER_SLOTS 8

struct looker {
    struct archive *archive;
    struct archive_facts *facts;
    uint64_t content_size_max;
    char **paths;
    size_t path_count;
};

void gateway_archive_facts_done(struct archive_facts *facts)
{
    mem_free(&facts->config_json);
    mem_free(&facts->headrace_json);
}

void gateway_archive_plan_done(struct archive_plan *plan)
{
    mem_free(&plan->settings);
}

static void looker_done(struct looker *looker)
{
    if (looker->archive != NULL)
        (void)archive_read_free(looker->archive);
    for (size_t i = 0; i < looker->path_count; i++)
        free(looker->paths[i]);
    free(looker->paths);
}

int gateway_archive_path_check(const char *path, struct err *err)
{
    size_t size = strlen(path);
    int depth = 0;

    if (size == 0 || size > ARCHIVE_PATH_SIZE_MAX)
        return err_set(err, ERR_MALFORMED,
                       "a path in the archive has %zu bytes; 1 to %d are allowed", size,
                       ARCHIVE_PATH_SIZE_MAX);
    for (size_t i = 0; i < size; i++) {
        if ((unsigned char)path[i] < 0x20 || path[i] == '\\' || path[i] == 0x7f)
            return err_set(err, ERR_MALFORMED, "a path in the archive has the byte 0x%02x at %zu",
                           (unsigned char)path[i], i);
    }
    if (path[0] == '/')
        return err_set(err, ERR_MALFORMED, "'%.200s' in the archive is an absolute path", path);
    for (const char *at = path; *at != '\0';) {
        size_t part = strcspn(at, "/");

        if (part == 0 || (part <= 2 && strncmp(at, "..", part) == 0))
            return err_set(err, ERR_MALFORMED,
                           "'%.200s' in the archive has an empty part, '.' or '..'", path);
        if (part > 255 || ++depth > ARCHIVE_DEPTH_MAX)
            return err_set(err, ERR_MALFORMED,
                           "'%.200s' in the archive is deeper than %d or has a name over 255 bytes",
                           path, ARCHIVE_DEPTH_MAX);
        at += part;
        if (*at == '/' && at[1] != '\0')
            at++;
        else if (*at == '/')
            break; /* a directory's own slash */
    }
    return 0;
}

static int read_failed(struct looker *looker, const char *path, struct err *err)
{
    const char *why = archive_error_string(looker->archive);

    return err_set(err, ERR_MALFORMED, "the archive cannot be read%s%.200s: %s",
                   path == NULL ? "" : " at ", path == NULL ? "" : path,
                   why == NULL ? "no tar, or cut off" : why);
}

static bool ends_in(const char *text, const char *end)
{
    size_t text_size = strlen(text), end_size = strlen(end);

    return text_size >= end_size && strcmp(text + text_size - end_size, end) == 0;
}

/* Eight bytes little-endian, then that many bytes of JSON. */
static int check_safetensors(const char *path, const uint8_t *head, size_t head_size, uint64_t size,
                             struct err *err)
{
    uint64_t header = 0;

    for (size_t i = 0; i < 8 && i < head_size; i++)
        header |= (uint64_t)head[i] << (8 * i);
    if (size < SAFETENSORS_HEAD_SIZE || header < 2 || header > SAFETENSORS_HEADER_MAX ||
        header > size - 8 || head[8] != '{')
        return err_set(err, ERR_MALFORMED,
                       "'%.200s' is no safetensors file: its header says %llu bytes, the file has "
                       "%llu, and headers have 2 to %u",
                       path, (unsigned long long)header, (unsigned long long)size,
                       SAFETENSORS_HEADER_MAX);
    return 0;
}

/* Reads the content to its end; keeps the first bytes, and all of it into `keep` when not NULL. */
static int read_content(struct looker *looker, const char *path, uint64_t size, struct buf *keep,
                        uint8_t head[SAFETENSORS_HEAD_SIZE], struct err *err)
{
    OWNED(mem_free) uint8_t *block = xmalloc(BLOCK_SIZE);
    uint64_t done = 0;
    la_ssize_t n;

    while ((n = archive_read_data(looker->archive, block, BLOCK_SIZE)) > 0) {
        for (size_t i = 0; i < (size_t)n && done + i < SAFETENSORS_HEAD_SIZE; i++)
            head[done + i] = block[i];
        if (keep != NULL)
            buf_append(keep, block, (size_t)n);
        done += (uint64_t)n;
        looker->facts->content_size += (uint64_t)n;
        if (looker->facts->content_size > looker->content_size_max)
            return err_set(err, ERR_TOO_BIG,
                           "the archive has more than %llu bytes unpacked (unpacked-max)",
                           (unsigned long long)looker->content_size_max);
    }
    if (n < 0 || done != size)
        return read_failed(looker, path, err);
    return keep == NULL ? 0 : buf_check(keep, path, err);
}

static int look_at_file(struct looker *looker, const char *path, uint64_t size, struct err *err)
{
    struct archive_facts *facts = looker->facts;
    OWNED(buf_done) struct buf text = BUF_WITH_LIMIT(ARCHIVE_JSON_SIZE_MAX);
    uint8_t head[SAFETENSORS_HEAD_SIZE] = {0};
    bool is_config = strcmp(path, "config.json") == 0;
    bool is_ours = strcmp(path, "headrace.json") == 0;
    int r;

    if (++facts->file_count > ARCHIVE_FILES_MAX)
        return err_set(err, ERR_TOO_BIG, "the archive has more than %d files", ARCHIVE_FILES_MAX);
    r = read_content(looker, path, size, is_config || is_ours ? &text : NULL, head, err);
    if (r == 0 && ends_in(path, ".safetensors")) {
        facts->safetensors_count++;
        r = check_safetensors(path, head, sizeof(head), size, err);
    }
    if (r < 0)
        return r;
    if (is_config && facts->config_json == NULL)
        facts->config_json = xstrdup(buf_text(&text));
    if (is_ours && facts->headrace_json == NULL)
        facts->headrace_json = xstrdup(buf_text(&text));
    if (strcmp(path, "vocab.txt") == 0 || strcmp(path, "tokenizer.json") == 0)
        facts->has_tokenizer = true;
    return 0;
}

static int look_at_entry(struct looker *looker, struct archive_entry *entry, struct err *err)
{
    const char *path = archive_entry_pathname_utf8(entry); /* whatever the locale */
    bool is_file = archive_entry_filetype(entry) == AE_IFREG;
    int r;

    if (path == NULL)
        return err_set(err, ERR_MALFORMED, "a path in the archive is not UTF-8");
    if (strcmp(path, ".") == 0 || strcmp(path, "./") == 0)
        return 0; /* what `tar c .` begins with */
    if (strncmp(path, "./", 2) == 0)
        path += 2;
    r = gateway_archive_path_check(path, err);
    if (r < 0)
        return r;
    if (archive_entry_hardlink(entry) != NULL || archive_entry_symlink(entry) != NULL ||
        (!is_file && archive_entry_filetype(entry) != AE_IFDIR))
        return err_set(err, ERR_MALFORMED,
                       "'%.200s' in the archive is neither a file nor a directory", path);
    if (looker->path_count >= 2 * ARCHIVE_FILES_MAX)
        return err_set(err, ERR_TOO_BIG, "the archive has more than %d entries",
                       2 * ARCHIVE_FILES_MAX);
    looker->paths = xrealloc(looker->paths, looker->path_count + 1, sizeof(*looker->paths));
    looker->paths[looker->path_count++] = xstrdup(path);
    return is_file ? look_at_file(looker, path, (uint64_t)archive_entry_size(entry), err) : 0;
}

static int compare_paths(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* What comes twice could be checked as one thing and unpacked as another. */
static int check_repeats(struct looker *looker, struct err *err)
{
    if (looker->path_count > 0)
        qsort(looker->paths, looker->path_count, sizeof(*looker->paths), compare_paths);
    for (size_t i = 1; i < looker->path_count; i++) {
        if (strcmp(looker->paths[i - 1], looker->paths[i]) == 0)
            return err_set(err, ERR_MALFORMED, "'%.200s' is in the archive twice",
                           looker->paths[i]);
    }
    return 0;
}

int gateway_archive_look(const char *path, uint64_t content_size_max,
                         struct archive_facts *ret_facts, struct err *err)
{
    OWNED(gateway_archive_facts_done) struct archive_facts facts = {.file_count = 0};
    OWNED(looker_done)
    struct looker looker = {.facts = &facts, .content_size_max = content_size_max};
    struct archive_entry *entry;
    int next, r = 0;

    looker.archive = archive_read_new();
    if (looker.archive == NULL || archive_read_support_format_tar(looker.archive) != ARCHIVE_OK ||
        archive_read_support_filter_gzip(looker.archive) != ARCHIVE_OK ||
        archive_read_support_filter_zstd(looker.archive) != ARCHIVE_OK)
        return err_set(err, ERR_DEPENDENCY, "libarchive has no tar, gzip or zstd");
    if (archive_read_open_filename(looker.archive, path, BLOCK_SIZE) != ARCHIVE_OK)
        return read_failed(&looker, NULL, err);
    while ((next = archive_read_next_header(looker.archive, &entry)) == ARCHIVE_OK) {
        r = look_at_entry(&looker, entry, err);
        if (r < 0)
            return r;
    }
    if (next != ARCHIVE_EOF)
        return read_failed(&looker, NULL, err);
    r = check_repeats(&looker, err);
    if (r < 0)
        return r;
    if (facts.file_count == 0)
        return err_set(err, ERR_MALFORMED, "the archive has no files");
    *ret_facts = facts;
    facts = (struct archive_facts){.file_count = 0};
    return 0;
}

/* ---- the plan ---- */

static int read_number(const json_t *root, const char *key, int64_t highest, uint32_t *number,
                       struct err *err)
{
    const json_t *value = json_object_get(root, key);

    if (value == NULL)
        return 0;
    if (!json_is_integer(value) || json_integer_value(value) < 1 ||
        json_integer_value(value) > highest)
        return err_set(err, ERR_RANGE, "headrace.json: %s must be an integer of 1 to %lld", key,
                       (long long)highest);
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
        return err_set(err, ERR_RANGE, "headrace.json: %s must be a string of 1 to %zu bytes", key,
                       size_max - 1);
    mem_copy_text_at(to, size_max, json_string_value(value));
    return 0;
}

static int check_keys(const json_t *root, struct err *err)
{
    static const char *const known[] = {"engine", "device", "slots", "replicas", "settings"};
    const char *key;
    json_t *value;

    json_object_foreach((json_t *)root, key, value)
    {
        bool found = false;

        for (size_t i = 0; i < COUNT_OF(known); i++)
            found = found || strcmp(known[i], key) == 0;
        if (!found)
            return err_set(err, ERR_RANGE,
                           "headrace.json: '%.60s' is unknown; it has engine, device, slots, "
                           "replicas and settings",
                           key);
    }
    return 0;
}

static int read_ours(const char *text, struct archive_plan *plan, struct err *err)
{
    json_error_t where;
    json_t *root = json_loads(text, JSON_REJECT_DUPLICATES, &where);
    const json_t *settings = json_object_get(root, "settings");
    char *dumped = NULL;
    int r = 0;

    if (root == NULL)
        r = err_set(err, ERR_MALFORMED, "headrace.json: line %d: %s", where.line, where.text);
    else if (!json_is_object(root))
        r = err_set(err, ERR_MALFORMED, "headrace.json is no object");
    if (r == 0)
        r = check_keys(root, err);
    if (r == 0)
        r = read_word(root, "engine", sizeof(plan->engine), plan->engine, err);
    if (r == 0)
        r = read_word(root, "device", sizeof(plan->device), plan->device, err);
    if (r == 0)
        r = read_number(root, "slots", ARCHIVE_SLOTS_MAX, &plan->slot_count, err);
    if (r == 0)
        r = read_number(root, "replicas", ARCHIVE_REPLICAS_MAX, &plan->replica_count, err);
    if (r == 0 && settings != NULL && !json_is_object(settings))
        r = err_set(err, ERR_MALFORMED, "headrace.json: settings is no object");
    if (r == 0 && settings != NULL) {
        dumped = json_dumps(settings, JSON_COMPACT);
        mem_free(&plan->settings);
        plan->settings = xstrdup(dumped != NULL ? dumped : "{}");
    }
    free(dumped);
    json_decref(root);
    return r;
}

/* The BERT family by what config.json calls itself. */
static bool is_bert(const char *config_json)
{
    json_t *root = config_json == NULL ? NULL : json_loads(config_json, 0, NULL);
    const char *type = json_string_value(json_object_get(root, "model_type"));
    const char *name = json_string_value(json_array_get(json_object_get(root, "architectures"), 0));
    bool yes = (type != NULL && strcmp(type, "bert") == 0) ||
               (type == NULL && name != NULL && strncmp(name, "Bert", 4) == 0);

    json_decref(root);
    return yes;
}

static int check_encoder(const struct archive_facts *facts, struct err *err)
{
    const char *missing = facts->config_json == NULL      ? "config.json"
                          : facts->safetensors_count == 0 ? "a file *.safetensors"
                          : !facts->has_tokenizer         ? "vocab.txt or tokenizer.json"
                                                          : NULL;

    if (missing != NULL)
        return err_set(err, ERR_UNSUPPORTED,
                       "no engine for these %u files: an encoder needs config.json, *.safetensors "
                       "and vocab.txt or tokenizer.json at the top, and there is no %s; anything "
                       "else needs a headrace.json that names its engine",
                       facts->file_count, missing);
    if (!is_bert(facts->config_json))
        return err_set(err, ERR_UNSUPPORTED,
                       "no engine for this model: config.json has no model_type 'bert'");
    return 0;
}

int gateway_archive_plan(const struct archive_facts *facts, struct archive_plan *ret_plan,
                         struct err *err)
{
    OWNED(gateway_archive_plan_done)
    struct archive_plan plan = {.device = "cpu", .replica_count = 1};
    int r = 0;

    plan.settings = xstrdup("{}");
    if (facts->headrace_json != NULL)
        r = read_ours(facts->headrace_json, &plan, err);
    if (r == 0 && (plan.engine[0] == '\0' || strcmp(plan.engine, "encoder") == 0)) {
        r = check_encoder(facts, err);
        mem_copy_text(plan.engine, "encoder");
    }
    if (r == 0 && strcmp(plan.engine, "encoder") != 0 && strcmp(plan.engine, "sim") != 0)
        r = err_set(err, ERR_UNSUPPORTED,
                    "headrace.json: engine is '%s'; there are encoder and sim", plan.engine);
    if (r < 0)
        return r;
    if (plan.slot_count == 0)
        plan.slot_count = strcmp(plan.engine, "encoder") == 0 ? ENCODER_SLOTS : OTHER_SLOTS;
    *ret_plan = plan;
    plan = (struct archive_plan){.settings = NULL};
    return 0;
}
