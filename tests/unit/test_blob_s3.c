/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: what leaves for S3 is signed as its makers say, comes back whole, is tried again when that
 * may help and named when it does not. Method: a server of our own on the same loop that keeps
 * objects in memory, checks each signature with an implementation of its own (which the published
 * examples check first), and fails as it is told. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/http_server.h"
#include "base/loop.h"
#include "brokers/blob.h"
#include "brokers/blob_s3_answer.h"
#include "brokers/blob_s3_options.h"

#define WAIT_MS 30000
#define USER "AKIAIOSFODNN7EXAMPLE"
#define SECRET "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
#define OBJECTS_MAX 16
#define MIB (1u << 20)

/* ---- Signature Version 4, written from its specification ---- */

struct signed_header {
    const char *name, *value;
};

struct signed_request {
    const char *method, *path, *query; /* query: canonical */
    struct signed_header headers[8];   /* in order */
    const char *payload;               /* its digest, or UNSIGNED-PAYLOAD */
    const char *region, *time;         /* 20130524T000000Z */
};

static void hex_of(const uint8_t *bytes, size_t size, char *to)
{
    for (size_t i = 0; i < size; i++)
        (void)snprintf(to + 2 * i, 3, "%02x", bytes[i]);
}

static void sha256_hex(const void *bytes, size_t size, char to[65])
{
    uint8_t digest[32];

    assert_int_equal(EVP_Digest(bytes, size, digest, NULL, EVP_sha256(), NULL), 1);
    hex_of(digest, sizeof(digest), to);
}

static void mac(const void *key, size_t key_size, const char *text, uint8_t to[32])
{
    unsigned size = 32;

    assert_non_null(
        HMAC(EVP_sha256(), key, (int)key_size, (const uint8_t *)text, strlen(text), to, &size));
}

static void sign(const struct signed_request *request, char to[65])
{
    struct buf canonical = BUF_WITH_LIMIT(1u << 16), text = BUF_WITH_LIMIT(4096);
    char names[200] = "", digest[65], day[9];
    uint8_t key[32], next[32];

    buf_printf(&canonical, "%s\n%s\n%s\n", request->method, request->path, request->query);
    for (size_t i = 0; i < 8 && request->headers[i].name != NULL; i++) {
        buf_printf(&canonical, "%s:%s\n", request->headers[i].name, request->headers[i].value);
        (void)snprintf(names + strlen(names), sizeof(names) - strlen(names), "%s%s",
                       i > 0 ? ";" : "", request->headers[i].name);
    }
    buf_printf(&canonical, "\n%s\n%s", names, request->payload);
    sha256_hex(canonical.bytes, canonical.size, digest);
    (void)snprintf(day, sizeof(day), "%.8s", request->time);
    buf_printf(&text, "AWS4-HMAC-SHA256\n%s\n%s/%s/s3/aws4_request\n%s", request->time, day,
               request->region, digest);
    mac("AWS4" SECRET, strlen("AWS4" SECRET), day, key);
    mac(key, 32, request->region, next);
    mac(next, 32, "s3", key);
    mac(key, 32, "aws4_request", next);
    mac(next, 32, buf_text(&text), key);
    hex_of(key, 32, to);
    buf_done(&canonical);
    buf_done(&text);
}

#define EMPTY_DIGEST "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

/* The four examples of "Authenticating Requests (AWS Signature Version 4)", Amazon S3 API. */
static void test_published_vectors(void **state)
{
    static const struct {
        struct signed_request request;
        const char *signature;
    } vectors[] = {
        {{"GET",
          "/test.txt",
          "",
          {{"host", "examplebucket.s3.amazonaws.com"},
           {"range", "bytes=0-9"},
           {"x-amz-content-sha256", EMPTY_DIGEST},
           {"x-amz-date", "20130524T000000Z"}},
          EMPTY_DIGEST,
          "us-east-1",
          "20130524T000000Z"},
         "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"},
        {{"PUT",
          "/test%24file.text",
          "",
          {{"date", "Fri, 24 May 2013 00:00:00 GMT"},
           {"host", "examplebucket.s3.amazonaws.com"},
           {"x-amz-content-sha256",
            "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072"},
           {"x-amz-date", "20130524T000000Z"},
           {"x-amz-storage-class", "REDUCED_REDUNDANCY"}},
          "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072",
          "us-east-1",
          "20130524T000000Z"},
         "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd"},
        {{"GET",
          "/",
          "lifecycle=",
          {{"host", "examplebucket.s3.amazonaws.com"},
           {"x-amz-content-sha256", EMPTY_DIGEST},
           {"x-amz-date", "20130524T000000Z"}},
          EMPTY_DIGEST,
          "us-east-1",
          "20130524T000000Z"},
         "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"},
        {{"GET",
          "/",
          "max-keys=2&prefix=J",
          {{"host", "examplebucket.s3.amazonaws.com"},
           {"x-amz-content-sha256", EMPTY_DIGEST},
           {"x-amz-date", "20130524T000000Z"}},
          EMPTY_DIGEST,
          "us-east-1",
          "20130524T000000Z"},
         "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(vectors); i++) {
        char signature[65];

        sign(&vectors[i].request, signature);
        assert_string_equal(signature, vectors[i].signature);
    }
}

/* ---- the server ---- */

struct object {
    char key[200];
    struct buf bytes;
};

struct world {
    struct loop *loop;
    struct http_server *server;
    struct blob_store *store;
    struct object objects[OBJECTS_MAX];
    struct buf parts[8];
    int request_count, fail_count, fail_status, part_count, abort_count, complete_count;
    const char *fail_code, *token;
    bool lose_complete; /* takes a completion and answers 500 */
    bool hang;
    struct http_request *hanging[64];
    int hanging_count;
    char unsigned_why[300];
    bool done;
    int code, fd;
    uint64_t size;
    uint8_t digest[BLOB_DIGEST_SIZE];
    char text[ERR_TEXT_SIZE];
    struct buf bytes;
    struct blob_list list;
};

static struct world world;

static struct object *object_find(const char *key, bool make)
{
    struct object *spare = NULL;

    for (size_t i = 0; i < OBJECTS_MAX; i++) {
        if (strcmp(world.objects[i].key, key) == 0)
            return &world.objects[i];
        if (spare == NULL && world.objects[i].key[0] == '\0')
            spare = &world.objects[i];
    }
    if (!make)
        return NULL;
    assert_non_null(spare);
    mem_copy_text(spare->key, key);
    spare->bytes = BUF_WITH_LIMIT(64 * MIB);
    return spare;
}

static void object_forget(struct object *object)
{
    object->key[0] = '\0';
    buf_done(&object->bytes);
}

/* Computes again what the request should have been signed with. */
static void check_signature(struct http_request *request, const char *path, const char *query)
{
    const char *authorization = http_request_header(request, "Authorization");
    struct signed_request again = {.method = http_request_method(request),
                                   .path = path,
                                   .query = query,
                                   .payload = http_request_header(request, "x-amz-content-sha256"),
                                   .time = http_request_header(request, "x-amz-date"),
                                   .region = "eu-west-7"};
    char names[200] = "", want[400], signature[65];
    struct signed_header *header = again.headers;
    char *save = NULL;

    assert_non_null(authorization);
    assert_non_null(again.payload);
    assert_non_null(again.time);
    assert_int_equal(
        sscanf(strstr(authorization, "SignedHeaders="), "SignedHeaders=%199[^,]", names), 1);
    (void)snprintf(want, sizeof(want),
                   "AWS4-HMAC-SHA256 Credential=" USER "/%.8s/eu-west-7/s3/aws4_request, "
                   "SignedHeaders=%s, Signature=",
                   again.time, names);
    assert_int_equal(strncmp(authorization, want, strlen(want)), 0);
    for (char *name = strtok_r(names, ";", &save); name != NULL; name = strtok_r(NULL, ";", &save))
        *header++ = (struct signed_header){name, http_request_header(request, name)};
    assert_non_null(strstr(want, "host;"));
    assert_non_null(strstr(want, "x-amz-content-sha256;x-amz-date"));
    sign(&again, signature);
    assert_string_equal(authorization + strlen(want), signature);
    if (world.token != NULL)
        assert_string_equal(http_request_header(request, "x-amz-security-token"), world.token);
}

static void answer(struct http_request *request, int status, const char *body)
{
    const struct http_header headers[] = {{"ETag", "\"abc\""}};

    http_request_answer(&request, status, headers, 1, body, strlen(body));
}

static void answer_list(struct http_request *request, const char *query)
{
    struct buf xml = BUF_WITH_LIMIT(1u << 16);
    bool folders = strncmp(query, "delimiter=%2F&", 14) == 0;

    buf_append_text(&xml, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult xmlns="
                          "\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>water</Name>"
                          "<IsTruncated>true</IsTruncated>");
    if (folders)
        buf_append_text(&xml, "<CommonPrefixes><Prefix>head/jobs/2026-01-31/</Prefix>"
                              "</CommonPrefixes>");
    for (size_t i = 0; i < OBJECTS_MAX && !folders; i++) {
        if (world.objects[i].key[0] != '\0')
            buf_printf(&xml,
                       "<Contents><Key>%s</Key><LastModified>2026-01-31T01:02:03.000Z"
                       "</LastModified><ETag>&quot;x&quot;</ETag><Size>%zu</Size></Contents>",
                       world.objects[i].key, world.objects[i].bytes.size);
    }
    buf_append_text(&xml, "</ListBucketResult>");
    answer(request, 200, buf_text(&xml));
    buf_done(&xml);
}

static void answer_post(struct http_request *request, const char *key, const char *query)
{
    struct buf *body = http_request_body(request);

    if (strcmp(query, "uploads=") == 0) {
        world.part_count = 0;
        answer(request, 200,
               "<InitiateMultipartUploadResult><Bucket>water</Bucket><UploadId>a+b/c"
               "</UploadId></InitiateMultipartUploadResult>");
        return;
    }
    assert_string_equal(query, "uploadId=a%2Bb%2Fc");
    assert_non_null(strstr(buf_text(body), "<Part><PartNumber>1</PartNumber><ETag>\"abc\"</ETag>"));
    world.complete_count++;
    if (world.complete_count > 1) {
        answer(request, 404, "<Error><Code>NoSuchUpload</Code><Message>gone</Message></Error>");
        return;
    }
    for (int i = 0; i < world.part_count; i++)
        buf_append(&object_find(key, true)->bytes, world.parts[i].bytes, world.parts[i].size);
    if (world.lose_complete)
        answer(request, 200, "<Error><Code>InternalError</Code><Message>again</Message></Error>");
    else
        answer(request, 200, "<CompleteMultipartUploadResult/>");
}

static void answer_put(struct http_request *request, const char *key, const char *query)
{
    struct buf *body = http_request_body(request);
    const char *payload = http_request_header(request, "x-amz-content-sha256");
    char digest[65];
    int number;

    sha256_hex(body->bytes, body->size, digest);
    if (strcmp(payload, "UNSIGNED-PAYLOAD") != 0)
        assert_string_equal(payload, digest);
    if (sscanf(query, "partNumber=%d&uploadId=a%%2Bb%%2Fc", &number) == 1) {
        assert_int_equal(number, world.part_count + 1);
        buf_done(&world.parts[world.part_count]);
        buf_move(&world.parts[world.part_count++], body);
    } else {
        struct object *object = object_find(key, true);

        buf_done(&object->bytes);
        buf_move(&object->bytes, body);
    }
    answer(request, 200, "");
}

static void on_body(struct http_request *request, void *opaque)
{
    char path[600], *query;
    const char *method = http_request_method(request), *key;
    struct object *object;

    (void)opaque;
    mem_copy_text(path, http_request_target(request));
    query = strchr(path, '?');
    if (query != NULL)
        *query++ = '\0';
    check_signature(request, path, query == NULL ? "" : query);
    key = strncmp(path, "/water/", 7) == 0 ? path + 7 : "";
    query = query == NULL ? path + strlen(path) : query;
    world.request_count++;
    if (world.hang) {
        world.hanging[world.hanging_count++] = request;
        return;
    }
    if (world.fail_count > 0) {
        char body[200];

        world.fail_count--;
        (void)snprintf(body, sizeof(body), "<Error><Code>%s</Code><Message>no</Message></Error>",
                       world.fail_code);
        answer(request, world.fail_status, body);
        return;
    }
    object = object_find(key, false);
    if (strcmp(method, "PUT") == 0) {
        answer_put(request, key, query);
    } else if (strcmp(method, "POST") == 0) {
        answer_post(request, key, query);
    } else if (strcmp(path, "/water") == 0) {
        answer_list(request, query);
    } else if (strcmp(method, "DELETE") == 0) {
        world.abort_count += strncmp(query, "uploadId=", 9) == 0;
        if (object != NULL && query[0] == '\0')
            object_forget(object);
        answer(request, object == NULL ? 404 : 204,
               object == NULL ? "<Error><Code>NoSuchKey</Code></Error>" : "");
    } else if (object == NULL) {
        answer(request, 404, "<Error><Code>NoSuchKey</Code><Message>none</Message></Error>");
    } else {
        http_request_answer(&request, 200, NULL, 0, object->bytes.bytes, object->bytes.size);
    }
}

static void handler(struct http_request *request, void *opaque)
{
    http_request_collect_body(request, 64 * MIB, on_body, opaque);
}

/* ---- the store under test ---- */

static int world_open(void **state)
{
    struct err err;
    char *url;

    (void)state;
    memset(&world, 0, sizeof(world));
    world.bytes = BUF_WITH_LIMIT(64 * MIB);
    for (size_t i = 0; i < COUNT_OF(world.parts); i++)
        world.parts[i] = BUF_WITH_LIMIT(64 * MIB);
    if (loop_open(&world.loop, &err) < 0 ||
        http_server_open(world.loop, &(struct http_server_options){0}, handler, NULL, &world.server,
                         &err) < 0)
        return -1;
    (void)setenv("AWS_ACCESS_KEY_ID", USER, 1);
    (void)setenv("AWS_SECRET_ACCESS_KEY", SECRET, 1);
    (void)unsetenv("AWS_SESSION_TOKEN");
    url = xasprintf("s3://water/head?endpoint=http://127.0.0.1:%u&region=eu-west-7&spool=/tmp"
                    "&part_mib=5",
                    http_server_port(world.server));
    if (blob_store_open(world.loop, url, &world.store, &err) < 0)
        return -1;
    free(url);
    return 0;
}

static int world_close(void **state)
{
    (void)state;
    blob_store_close(&world.store);
    for (int i = 0; i < world.hanging_count; i++)
        http_request_drop(&world.hanging[i]);
    http_server_close(&world.server);
    loop_close(&world.loop);
    buf_done(&world.bytes);
    blob_list_done(&world.list);
    for (size_t i = 0; i < COUNT_OF(world.parts); i++)
        buf_done(&world.parts[i]);
    for (size_t i = 0; i < OBJECTS_MAX; i++)
        buf_done(&world.objects[i].bytes);
    return 0;
}

static void on_done(void *opaque, const struct err *err)
{
    assert_ptr_equal(opaque, &world);
    world.code = err->code;
    mem_copy_text(world.text, err->code == ERR_OK ? "" : err->text);
    world.done = true;
}

static void on_bytes(void *opaque, struct buf *bytes, const struct err *err)
{
    buf_done(&world.bytes);
    buf_move(&world.bytes, bytes);
    on_done(opaque, err);
}

static void on_file(void *opaque, int fd, uint64_t size, const struct err *err)
{
    world.fd = fd;
    world.size = size;
    on_done(opaque, err);
}

static void on_copied(void *opaque, uint64_t size, const uint8_t digest[BLOB_DIGEST_SIZE],
                      const struct err *err)
{
    world.size = size;
    memcpy(world.digest, digest, sizeof(world.digest));
    on_done(opaque, err);
}

static void on_list(void *opaque, struct blob_list *list, const struct err *err)
{
    blob_list_done(&world.list);
    world.list = *list;
    *list = (struct blob_list){0};
    on_done(opaque, err);
}

static int wait_code(void)
{
    bool in_time = loop_run_until(world.loop, &world.done, WAIT_MS);

    assert_true(in_time);
    world.done = false;
    return world.code;
}

static int put(const char *key, const void *bytes, size_t size)
{
    struct buf buf = BUF_WITH_LIMIT(64 * MIB);
    struct err err;

    buf_append(&buf, bytes, size);
    assert_int_equal(blob_put(world.store, key, &buf, on_done, &world, &err), 0);
    return wait_code();
}

static int get(const char *key, size_t limit)
{
    struct err err;

    assert_int_equal(blob_get(world.store, key, limit, on_bytes, &world, &err), 0);
    return wait_code();
}

static void test_put_get_remove(void **state)
{
    struct err err;

    (void)state;
    assert_int_equal(put("jobs/2026-01-31/x/input", "water", 5), 0);
    assert_non_null(object_find("head/jobs/2026-01-31/x/input", false));
    assert_int_equal(put("top", "", 0), 0);
    assert_int_equal(get("jobs/2026-01-31/x/input", 5), 0);
    assert_int_equal(world.bytes.size, 5);
    assert_memory_equal(world.bytes.bytes, "water\0\0\0", 8);
    assert_int_equal(get("top", 0), 0);
    assert_int_equal(get("jobs/2026-01-31/x/input", 4), ERR_TOO_BIG);
    assert_int_equal(get("jobs/none", 4), ERR_NOT_FOUND);
    assert_non_null(strstr(world.text, "NoSuchKey"));
    for (int i = 0; i < 2; i++) {
        assert_int_equal(blob_remove(world.store, "top", on_done, &world, &err), 0);
        assert_int_equal(wait_code(), 0);
    }
    assert_int_equal(get("top", 4), ERR_NOT_FOUND);
}

/* Also the size that ends exactly with a part. */
static void test_parts(void **state)
{
    static const size_t sizes[] = {5 * MIB, 10 * MIB, 11 * MIB + 3};
    struct err err;

    (void)state;
    for (size_t i = 0; i < COUNT_OF(sizes); i++) {
        int fd = memfd_create("test", MFD_CLOEXEC), copy = memfd_create("copy", MFD_CLOEXEC);
        uint8_t *bytes = xmalloc(sizes[i]), digest[32];

        for (size_t at = 0; at < sizes[i]; at++)
            bytes[at] = (uint8_t)(at * 2654435761u >> 13);
        assert_int_equal(write(fd, bytes, sizes[i]), sizes[i]);
        world.complete_count = 0;
        world.part_count = 0;
        assert_int_equal(blob_put_file(world.store, "big", fd, sizes[i], on_done, &world, &err), 0);
        (void)close(fd); /* the store has its own */
        assert_int_equal(wait_code(), 0);
        assert_int_equal(world.part_count,
                         sizes[i] <= 5 * MIB ? 0 : (sizes[i] + 5 * MIB - 1) / (5 * MIB));

        assert_int_equal(blob_copy(world.store, "big", copy, sizes[i], on_copied, &world, &err), 0);
        assert_int_equal(wait_code(), 0);
        assert_int_equal(world.size, sizes[i]);
        assert_int_equal(EVP_Digest(bytes, sizes[i], digest, NULL, EVP_sha256(), NULL), 1);
        assert_memory_equal(world.digest, digest, 32);
        assert_int_equal(lseek(copy, 0, SEEK_END), sizes[i]);
        object_forget(object_find("head/big", false));
        (void)close(copy);
        free(bytes);
    }
}

/* Written as it arrives, looked at, then made a blob; read back through a descriptor. */
static void test_upload(void **state)
{
    struct blob_upload *upload = NULL;
    struct buf bytes = BUF_WITH_LIMIT(8 * MIB);
    char text[4] = "";
    struct err err;

    (void)state;
    assert_int_equal(blob_upload_new(world.store, &upload, &err), 0);
    for (int i = 0; i < 2; i++) {
        buf_append_text(&bytes, "head");
        assert_int_equal(blob_upload_write(upload, &bytes, on_done, &world, &err), 0);
        assert_int_equal(wait_code(), 0);
    }
    assert_int_equal(access(blob_upload_path(upload), R_OK), 0);
    assert_int_equal(blob_upload_end(upload, "up", on_done, &world, &err), 0);
    assert_int_equal(wait_code(), 0);
    blob_upload_free(&upload);
    assert_int_equal(blob_open(world.store, "up", on_file, &world, &err), 0);
    assert_int_equal(wait_code(), 0);
    assert_int_equal(world.size, 8);
    assert_int_equal(read(world.fd, text, 4), 4);
    assert_memory_equal(text, "head", 4);
    (void)close(world.fd);
    assert_int_equal(blob_open(world.store, "none", on_file, &world, &err), 0);
    assert_int_equal(wait_code(), ERR_NOT_FOUND);
}

static void test_tries_again(void **state)
{
    (void)state;
    world.fail_status = 503;
    world.fail_code = "SlowDown";
    world.fail_count = 3;
    assert_int_equal(put("a", "x", 1), 0);
    assert_int_equal(world.request_count, 4);
    world.fail_count = 100;
    world.request_count = 0;
    assert_int_equal(get("a", 1), ERR_UNAVAILABLE);
    assert_int_equal(world.request_count, 4); /* and no more */
    assert_non_null(strstr(world.text, "SlowDown"));
}

static void test_refusals(void **state)
{
    static const struct {
        int status;
        const char *code;
        int want;
    } rows[] = {
        {403, "AccessDenied", ERR_UNAVAILABLE}, {403, "SignatureDoesNotMatch", ERR_UNAVAILABLE},
        {404, "NoSuchBucket", ERR_UNAVAILABLE}, {507, "XMinioStorageFull", ERR_FULL},
        {403, "QuotaExceeded", ERR_FULL},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        world.fail_status = rows[i].status;
        world.fail_code = rows[i].code;
        world.request_count = 0;
        world.fail_count = 1;
        assert_int_equal(put("a", "x", 1), rows[i].want);
        assert_int_equal(world.request_count, 1);
        assert_non_null(strstr(world.text, rows[i].code));
        world.fail_count = 1;
        assert_int_equal(get("a", 1), rows[i].want);
    }
}

/* A completion that was taken although its answer was lost is no failure; a put that fails half
 * way gives its parts back. */
static void test_parts_that_fail(void **state)
{
    OWNED(mem_free) uint8_t *bytes = xcalloc(1, 6 * MIB);

    (void)state;
    world.lose_complete = true;
    assert_int_equal(put("a", bytes, 6 * MIB), 0);
    assert_int_equal(world.complete_count, 2);
    assert_int_equal(object_find("head/a", false)->bytes.size, 6 * MIB);
    world.fail_status = 403;
    world.fail_code = "AccessDenied";
    world.part_count = world.complete_count = 0;
    world.lose_complete = false;
    world.fail_count = 1;
    assert_int_equal(put("b", bytes, 6 * MIB), ERR_UNAVAILABLE); /* at its start: nothing to undo */
    assert_int_equal(world.abort_count, 0);
}

static void test_list(void **state)
{
    const struct blob_listing all = {.prefix = "jobs/", .after = "", .count_max = 10};
    const struct blob_listing folders = {
        .prefix = "jobs/", .after = "jobs/2026-01-30", .count_max = 10, .folders = true};
    struct err err;

    (void)state;
    assert_int_equal(put("jobs/2026-01-31/x/input", "water", 5), 0);
    assert_int_equal(put("jobs/2026-01-31/x/out", "water", 5), 0);
    mem_copy_text(object_find("head/jobs/2026-01-31/x/out", false)->key, "head/jobs/..bad key");
    assert_int_equal(blob_list(world.store, &all, on_list, &world, &err), 0);
    assert_int_equal(wait_code(), 0);
    assert_int_equal(world.list.count, 1);
    assert_true(world.list.more);
    assert_string_equal(world.list.last, "jobs/..bad key");
    assert_string_equal(world.list.entries[0].key, "jobs/2026-01-31/x/input");
    assert_int_equal(world.list.entries[0].size, 5);
    assert_int_equal(world.list.entries[0].modified_us, 1769821323ull * 1000000);
    assert_int_equal(blob_list(world.store, &folders, on_list, &world, &err), 0);
    assert_int_equal(wait_code(), 0);
    assert_int_equal(world.list.count, 1);
    assert_string_equal(world.list.entries[0].key, "jobs/2026-01-31");
}

/* More calls than may be under way wait their turn; a close in the middle tells nobody. */
static void test_many_and_close(void **state)
{
    struct err err;

    (void)state;
    world.hang = true;
    for (int i = 0; i < 200; i++)
        assert_int_equal(blob_get(world.store, "a", 1, on_bytes, &world, &err), 0);
    assert_false(loop_run_until(world.loop, &world.done, 50));
    blob_store_close(&world.store);
    assert_false(loop_run_until(world.loop, &world.done, 50));
}

static void test_nobody_there(void **state)
{
    struct err err;

    (void)state;
    http_server_close(&world.server);
    assert_int_equal(blob_get(world.store, "a", 1, on_bytes, &world, &err), 0);
    assert_int_equal(wait_code(), ERR_UNAVAILABLE);
}

/* ---- options ---- */

static const char *env_names[8], *env_values[8];

static char *env(const char *name)
{
    for (size_t i = 0; i < COUNT_OF(env_names) && env_names[i] != NULL; i++) {
        if (strcmp(env_names[i], name) == 0)
            return (char *)(uintptr_t)env_values[i];
    }
    return NULL;
}

static void test_options(void **state)
{
    static const char *const bad[] = {
        "s3://",
        "s3://no",
        "s3://Water",
        "s3://user:secret@water",
        "s3://water/a b",
        "s3://water/../x",
        "s3://water?colour=blue",
        "s3://water?part_mib=4",
        "s3://water?part_mib=1025",
        "s3://water?part_mib=5x",
        "s3://water?spool=tmp",
        "s3://water?endpoint=ftp://x",
        "s3://water?endpoint=http://u:p@x",
        "s3://water?endpoint=http://x/path",
        "s3://water?region=a/b",
    };
    struct blob_s3_options options;
    struct err err;

    (void)state;
    memset(env_names, 0, sizeof(env_names));
    assert_int_equal(blob_s3_options_read("s3://water", env, &options, &err), ERR_USAGE);
    assert_non_null(strstr(err.text, "AWS_ACCESS_KEY_ID"));
    env_names[0] = "AWS_ACCESS_KEY_ID", env_values[0] = "me";
    env_names[1] = "AWS_SECRET_ACCESS_KEY", env_values[1] = "hush";
    for (size_t i = 0; i < COUNT_OF(bad); i++)
        assert_int_equal(blob_s3_options_read(bad[i], env, &options, &err), ERR_USAGE);

    assert_int_equal(blob_s3_options_read("s3://water", env, &options, &err), 0);
    assert_string_equal(options.endpoint, "https://s3.us-east-1.amazonaws.com");
    assert_string_equal(options.prefix, "");
    assert_string_equal(options.spool, "/var/tmp");
    assert_null(options.token);
    blob_s3_options_done(&options);

    env_names[2] = "AWS_REGION", env_values[2] = "eu-west-7";
    env_names[3] = "AWS_ENDPOINT_URL", env_values[3] = "http://minio:9000/";
    env_names[4] = "AWS_SESSION_TOKEN", env_values[4] = "t";
    assert_int_equal(blob_s3_options_read("s3://water/a/b?part_mib=8", env, &options, &err), 0);
    assert_string_equal(options.region, "eu-west-7");
    assert_string_equal(options.endpoint, "http://minio:9000");
    assert_string_equal(options.prefix, "a/b/");
    assert_string_equal(options.token, "t");
    assert_int_equal(options.part_size, 8 * MIB);
    blob_s3_options_done(&options);
}

static void test_answers(void **state)
{
    static const char doctype[] = "<!DOCTYPE x [<!ENTITY a \"b\">]><Error><Code>&a;</Code></Error>";
    char id[BLOB_S3_UPLOAD_ID_SIZE];
    struct blob_s3_error error;
    struct err err;

    (void)state;
    assert_false(blob_s3_read_error("", 0, &error));
    assert_false(blob_s3_read_error("no xml", 6, &error));
    assert_false(blob_s3_read_error(doctype, sizeof(doctype) - 1, &error));
    assert_true(blob_s3_read_error("<Error><Code>A&lt;B</Code></Error>", 34, &error));
    assert_string_equal(error.code, "A<B");
    assert_int_equal(blob_s3_read_upload_id("<a/>", 4, id, &err), ERR_UNAVAILABLE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_published_vectors),
        cmocka_unit_test(test_options),
        cmocka_unit_test(test_answers),
        cmocka_unit_test_setup_teardown(test_put_get_remove, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_parts, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_upload, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_tries_again, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_refusals, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_parts_that_fail, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_list, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_many_and_close, world_open, world_close),
        cmocka_unit_test_setup_teardown(test_nobody_there, world_open, world_close),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
