/* SPDX-License-Identifier: Apache-2.0 */

#include "brokers/blob_s3_answer.h"

#include <expat.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/settings.h"

#define NAME_SIZE 48
#define DEPTH_MAX 6

/* The text of each element is handed over when it ends, with its name and its parent's. */
typedef void element_call(void *opaque, const char *parent, const char *name, const char *text);

struct walk {
    XML_Parser parser;
    char names[DEPTH_MAX][NAME_SIZE];
    size_t depth;
    char text[BLOB_LIST_LAST_SIZE];
    size_t text_size;
    element_call *call;
    void *opaque;
};

static void on_start(void *opaque, const char *name, const char **attributes)
{
    struct walk *walk = opaque;

    (void)attributes;
    if (walk->depth == DEPTH_MAX) {
        (void)XML_StopParser(walk->parser, XML_FALSE);
        return;
    }
    mem_copy_text(walk->names[walk->depth], name);
    walk->depth++;
    walk->text_size = 0;
}

static void on_text(void *opaque, const char *text, int size)
{
    struct walk *walk = opaque;
    size_t left = sizeof(walk->text) - 1 - walk->text_size;
    size_t n = (size_t)size < left ? (size_t)size : left;

    memcpy(walk->text + walk->text_size, text, n);
    walk->text_size += n;
}

static void on_end(void *opaque, const char *name)
{
    struct walk *walk = opaque;

    (void)name;
    if (walk->depth == 0)
        return; /* behind a stop */
    walk->depth--;
    walk->text[walk->text_size] = '\0';
    walk->call(walk->opaque, walk->depth > 0 ? walk->names[walk->depth - 1] : "",
               walk->names[walk->depth], walk->text);
    walk->text_size = 0;
}

static void on_doctype(void *opaque, const char *name, const char *system_id, const char *public_id,
                       int internal)
{
    struct walk *walk = opaque;

    (void)name, (void)system_id, (void)public_id, (void)internal;
    (void)XML_StopParser(walk->parser, XML_FALSE);
}

static int walk(const void *bytes, size_t size, element_call *call, void *opaque, struct err *err)
{
    struct walk walk = {.call = call, .opaque = opaque};
    enum XML_Status status;

    if (size > INT32_MAX)
        return err_set(err, ERR_TOO_BIG, "the store's answer has %zu bytes", size);
    walk.parser = XML_ParserCreate("UTF-8");
    XML_SetUserData(walk.parser, &walk);
    XML_SetElementHandler(walk.parser, on_start, on_end);
    XML_SetCharacterDataHandler(walk.parser, on_text);
    XML_SetStartDoctypeDeclHandler(walk.parser, on_doctype);
    status = XML_Parse(walk.parser, bytes, (int)size, 1);
    if (status != XML_STATUS_OK)
        (void)err_set(err, ERR_UNAVAILABLE, "the store's answer is no XML that S3 speaks: %s",
                      XML_ErrorString(XML_GetErrorCode(walk.parser)));
    XML_ParserFree(walk.parser);
    return status == XML_STATUS_OK ? 0 : err->code;
}

/* ---- <Error> ---- */

struct error_walk {
    struct blob_s3_error *error;
    bool found;
};

static void error_element(void *opaque, const char *parent, const char *name, const char *text)
{
    struct error_walk *at = opaque;

    if (strcmp(parent, "Error") != 0)
        return;
    at->found = true;
    if (strcmp(name, "Code") == 0)
        mem_copy_text(at->error->code, text);
    else if (strcmp(name, "Message") == 0)
        mem_copy_text(at->error->message, text);
}

bool blob_s3_read_error(const void *bytes, size_t size, struct blob_s3_error *ret_error)
{
    struct error_walk at = {.error = ret_error};
    struct err err;

    *ret_error = (struct blob_s3_error){.code = ""};
    return size > 0 && walk(bytes, size, error_element, &at, &err) == 0 && at.found;
}

/* ---- <InitiateMultipartUploadResult> ---- */

static void upload_element(void *opaque, const char *parent, const char *name, const char *text)
{
    if (strcmp(parent, "InitiateMultipartUploadResult") == 0 && strcmp(name, "UploadId") == 0)
        mem_copy_text_at(opaque, BLOB_S3_UPLOAD_ID_SIZE, text);
}

int blob_s3_read_upload_id(const void *bytes, size_t size, char to[BLOB_S3_UPLOAD_ID_SIZE],
                           struct err *err)
{
    int r;

    to[0] = '\0';
    r = walk(bytes, size, upload_element, to, err);
    if (r == 0 && to[0] == '\0')
        r = err_set(err, ERR_UNAVAILABLE, "the store's answer names no UploadId");
    return r;
}

/* ---- <ListBucketResult> ---- */

struct list_walk {
    struct blob_list *list;
    const char *prefix;
    bool folders;
    char key[BLOB_LIST_LAST_SIZE];
    uint64_t size, modified_us;
};

static uint64_t number(const char *text)
{
    int64_t value = 0;
    struct err bad;

    return settings_parse_int("size", text, &value, &bad) < 0 || value < 0 ? 0 : (uint64_t)value;
}

static uint64_t time_us(const char *text)
{
    struct tm tm = {0};

    if (sscanf(text, "%4d-%2d-%2dT%2d:%2d:%2d", &tm.tm_year, &tm.tm_mon, &tm.tm_mday, &tm.tm_hour,
               &tm.tm_min, &tm.tm_sec) != 6)
        return UINT64_MAX; /* not known: never old enough to be removed */
    if (tm.tm_year < 1970 || tm.tm_mon < 1 || tm.tm_mon > 12 || tm.tm_mday < 1 || tm.tm_mday > 31)
        return UINT64_MAX;
    tm.tm_year -= 1900;
    tm.tm_mon -= 1;
    return (uint64_t)timegm(&tm) * 1000000;
}

static void list_take(struct list_walk *at)
{
    size_t prefix_size = strlen(at->prefix), size = strlen(at->key);
    struct err bad;

    if (size > prefix_size && memcmp(at->key, at->prefix, prefix_size) == 0) {
        const char *key = at->key + prefix_size;

        if (at->folders && at->key[size - 1] == '/')
            at->key[size - 1] = '\0';
        mem_copy_text(at->list->last, key);
        if (blob_key_check(key, &bad) == 0)
            blob_list_add(at->list, key, at->size, at->modified_us);
    }
    at->key[0] = '\0';
    at->size = 0;
    at->modified_us = UINT64_MAX;
}

static void list_element(void *opaque, const char *parent, const char *name, const char *text)
{
    struct list_walk *at = opaque;
    const char *holder = at->folders ? "CommonPrefixes" : "Contents";

    if (strcmp(parent, holder) == 0 && strcmp(name, at->folders ? "Prefix" : "Key") == 0)
        mem_copy_text(at->key, text);
    else if (strcmp(parent, "Contents") == 0 && strcmp(name, "Size") == 0)
        at->size = number(text);
    else if (strcmp(parent, "Contents") == 0 && strcmp(name, "LastModified") == 0)
        at->modified_us = time_us(text);
    else if (strcmp(name, holder) == 0 && strcmp(parent, "ListBucketResult") == 0)
        list_take(at);
    else if (strcmp(parent, "ListBucketResult") == 0 && strcmp(name, "IsTruncated") == 0)
        at->list->more = strcmp(text, "true") == 0;
}

int blob_s3_read_list(const void *bytes, size_t size, const char *prefix, bool folders,
                      struct blob_list *list, struct err *err)
{
    struct list_walk at = {
        .list = list, .prefix = prefix, .folders = folders, .modified_us = UINT64_MAX};

    return walk(bytes, size, list_element, &at, err);
}
