/* SPDX-License-Identifier: Apache-2.0 */

/*
 * A call is a small machine of exchanges: most have one, a large put has a start, its parts and an
 * end. Each exchange goes through exchange_begin() and ends in on_answer(), which decides by the
 * outcome alone: go on, try again, or end.
 *
 * Bodies are not hashed for the signature when they come from a file (UNSIGNED-PAYLOAD): what they
 * hold is checked end to end by whoever knows the digest.
 */

#include "brokers/blob_s3.h"

#include <curl/curl.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/http_client.h"
#include "base/loop.h"
#include "base/rng.h"
#include "brokers/blob_s3_answer.h"
#include "brokers/blob_s3_options.h"

#define PART_COUNT_MAX 10000 /* of the protocol */
#define BACKOFF_MS 100
#define STALL_MS 15000
#define CONNECT_MS 3000
#define SMALL_ANSWER_MAX (64u << 10)
#define LIST_ANSWER_MAX (4u << 20)
#define ETAG_SIZE 160
#define DIGEST_TEXT_SIZE 65

enum s3_step {
    STEP_ONE,      /* the only exchange of this call */
    STEP_START,    /* of a large put: asks for an upload id */
    STEP_PART,     /* …sends the next part */
    STEP_COMPLETE, /* …makes it an object */
    STEP_ABORT,    /* …gives it up: the call has failed already */
};

struct s3_call {
    TAILQ_ENTRY(s3_call) link; /* in active or waiting */
    struct blob_s3 *s3;
    struct blob_s3_ask *ask;
    enum s3_step step;
    uint32_t try_count; /* of this exchange */
    uint64_t since_ms;  /* its first try began */
    struct loop_timer *again;
    struct http_transfer *transfer;
    struct buf answer; /* what came that is no blob */
    struct buf body;   /* of the completion */
    struct err sink_err;
    uint64_t got_size;
    char upload_id[BLOB_S3_UPLOAD_ID_SIZE];
    uint64_t part_size;
    uint32_t part_count, part_index;
    bool active;
};

struct blob_s3 {
    struct loop *loop;
    struct http_client *client;
    struct blob_s3_options options;
    char *sign, *base; /* base: endpoint/bucket */
    struct rng rng;
    TAILQ_HEAD(, s3_call) active, waiting;
    uint32_t active_count;
    bool closing;
};

static void exchange_begin(void *opaque);
static void on_answer(const struct http_result *result, void *opaque);

/* ---- the life of a call ---- */

static void line_move_up(struct blob_s3 *s3)
{
    struct s3_call *call;

    while (!s3->closing && s3->active_count < BLOB_S3_ACTIVE_MAX &&
           (call = TAILQ_FIRST(&s3->waiting)) != NULL) {
        TAILQ_REMOVE(&s3->waiting, call, link);
        TAILQ_INSERT_TAIL(&s3->active, call, link);
        call->active = true;
        s3->active_count++;
        call->since_ms = loop_now_ms(s3->loop);
        exchange_begin(call);
    }
}

static void call_end(struct s3_call *call)
{
    struct blob_s3 *s3 = call->s3;
    struct blob_s3_ask *ask = call->ask;

    if (call->active) {
        TAILQ_REMOVE(&s3->active, call, link);
        s3->active_count--;
    } else {
        TAILQ_REMOVE(&s3->waiting, call, link);
    }
    loop_timer_free(&call->again);
    buf_done(&call->answer);
    buf_done(&call->body);
    free(call);
    ask->done(ask);
    line_move_up(s3);
}

static void call_fail(struct s3_call *call, const struct err *err)
{
    call->ask->err = *err;
    if (call->upload_id[0] == '\0' || call->s3->closing || call->step == STEP_ABORT) {
        call_end(call);
        return;
    }
    call->step = STEP_ABORT;
    call->try_count = BLOB_S3_TRIES - 1; /* once, for good manners */
    exchange_begin(call);
}

static void step_to(struct s3_call *call, enum s3_step step)
{
    call->step = step;
    call->try_count = 0;
    call->since_ms = loop_now_ms(call->s3->loop);
    exchange_begin(call);
}

/* ---- one exchange: what is sent ---- */

static char *escape(const char *text)
{
    char *escaped = curl_easy_escape(NULL, text, 0), *copy;

    if (escaped == NULL)
        NEVER("memory is exhausted");
    copy = xstrdup(escaped);
    curl_free(escaped);
    return copy;
}

static char *list_url(const struct s3_call *call)
{
    const struct blob_s3 *s3 = call->s3;
    OWNED(mem_free) char *prefix = xasprintf("%s%s", s3->options.prefix, call->ask->key);
    /* Behind a folder is behind all that its name begins: '~' follows every character of a key. */
    OWNED(mem_free)
    char *after = xasprintf("%s%s%s", s3->options.prefix, call->ask->after,
                            call->ask->folders ? "/~" : "");
    OWNED(mem_free) char *prefix_escaped = escape(prefix);
    OWNED(mem_free) char *after_escaped = escape(after);

    /* The query is signed as it stands: its fields must be in the order of the alphabet. */
    return xasprintf("%s?%slist-type=2&max-keys=%u&prefix=%s%s%s", s3->base,
                     call->ask->folders ? "delimiter=%2F&" : "", call->ask->count_max,
                     prefix_escaped, call->ask->after[0] == '\0' ? "" : "&start-after=",
                     call->ask->after[0] == '\0' ? "" : after_escaped);
}

static char *exchange_url(const struct s3_call *call)
{
    const struct blob_s3 *s3 = call->s3;
    OWNED(mem_free) char *object = NULL;
    OWNED(mem_free) char *id = NULL;

    if (call->ask->work == BLOB_S3_LIST)
        return list_url(call);
    object = xasprintf("%s/%s%s", s3->base, s3->options.prefix, call->ask->key);
    if (call->step == STEP_ONE)
        return TAKE(object);
    if (call->step == STEP_START)
        return xasprintf("%s?uploads=", object);
    id = escape(call->upload_id);
    if (call->step == STEP_PART)
        return xasprintf("%s?partNumber=%u&uploadId=%s", object, call->part_index + 1, id);
    return xasprintf("%s?uploadId=%s", object, id);
}

static uint64_t part_size(const struct s3_call *call)
{
    uint64_t offset = call->part_index * call->part_size;
    uint64_t left = call->ask->size - offset;

    return left < call->part_size ? left : call->part_size;
}

/* Method, body and the digest that the signature names. */
static void exchange_fill(struct s3_call *call, struct http_send *send,
                          char digest_text[DIGEST_TEXT_SIZE])
{
    static const char *const methods[] = {[BLOB_S3_PUT] = "PUT",
                                          [BLOB_S3_GET] = "GET",
                                          [BLOB_S3_REMOVE] = "DELETE",
                                          [BLOB_S3_LIST] = "GET"};
    const struct blob_s3_ask *ask = call->ask;
    uint8_t digest[EVP_MAX_MD_SIZE];
    bool is_put = ask->work == BLOB_S3_PUT && call->step != STEP_ABORT;

    send->method = methods[ask->work];
    if (call->step == STEP_ABORT)
        send->method = "DELETE";
    else if (call->step == STEP_START || call->step == STEP_COMPLETE)
        send->method = "POST";
    if (call->step == STEP_COMPLETE) {
        send->body = call->body.bytes;
        send->body_size = call->body.size;
    } else if (is_put && call->step != STEP_START) {
        uint64_t offset = call->part_index * call->part_size;

        send->body_size = call->step == STEP_PART ? part_size(call) : ask->size;
        if (ask->bytes != NULL)
            send->body = (const uint8_t *)ask->bytes + offset;
        else if (ask->size == 0)
            send->body = "";
        send->body_fd = ask->fd;
        send->body_offset = offset;
    }
    mem_copy_text_at(digest_text, DIGEST_TEXT_SIZE, "UNSIGNED-PAYLOAD");
    if (send->body == NULL && send->body_size > 0)
        return;
    if (EVP_Digest(send->body == NULL ? "" : send->body, send->body_size, digest, NULL,
                   EVP_sha256(), NULL) != 1)
        NEVER("SHA-256 is not to be had");
    for (size_t i = 0; i < BLOB_DIGEST_SIZE; i++)
        (void)snprintf(digest_text + 2 * i, 3, "%02x", digest[i]);
}

/* ---- one exchange: what comes ---- */

static int sink_write(struct s3_call *call, const void *bytes, size_t size)
{
    struct blob_s3_ask *ask = call->ask;
    const char *at = bytes;

    if (size > ask->limit || call->got_size > ask->limit - size)
        return err_set(&call->sink_err, ERR_TOO_BIG,
                       "blob '%s' has more than the %llu bytes that are allowed", ask->key,
                       (unsigned long long)ask->limit);
    if (ask->digest != NULL && EVP_DigestUpdate(ask->digest, bytes, size) != 1)
        return err_set(&call->sink_err, ERR_INTERNAL, "digest of a blob failed");
    if (ask->to != NULL)
        buf_append(ask->to, bytes, size);
    for (size_t left = ask->to == NULL ? size : 0; left > 0;) {
        ssize_t n = pwrite(ask->fd, at, left, (off_t)(call->got_size + (size - left)));

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_set_errno(&call->sink_err,
                                 errno == ENOSPC || errno == EDQUOT ? ERR_FULL : ERR_IO,
                                 "write %zu bytes of blob '%s'", left, ask->key);
        at += n;
        left -= (size_t)n;
    }
    call->got_size += size;
    return 0;
}

static bool on_receive(const void *bytes, size_t size, void *opaque)
{
    struct s3_call *call = opaque;

    if (call->ask->work == BLOB_S3_GET && http_transfer_status(call->transfer) == 200)
        return sink_write(call, bytes, size) == 0;
    buf_append(&call->answer, bytes, size);
    return !call->answer.failed;
}

static void sink_begin(struct s3_call *call)
{
    struct blob_s3_ask *ask = call->ask;

    buf_clear(&call->answer);
    call->sink_err = (struct err){.code = ERR_OK};
    call->got_size = 0;
    if (ask->work != BLOB_S3_GET)
        return;
    if (ask->to != NULL)
        buf_clear(ask->to);
    else if (ftruncate(ask->fd, 0) < 0)
        (void)err_set_errno(&call->sink_err, ERR_IO, "empty the file for blob '%s'", ask->key);
    if (ask->digest != NULL && EVP_DigestInit_ex(ask->digest, EVP_sha256(), NULL) != 1)
        (void)err_set(&call->sink_err, ERR_INTERNAL, "SHA-256 is not to be had");
}

static void exchange_begin(void *opaque)
{
    struct s3_call *call = opaque;
    struct blob_s3 *s3 = call->s3;
    OWNED(mem_free) char *url = exchange_url(call);
    char digest[DIGEST_TEXT_SIZE];
    struct http_header headers[3] = {{"Content-Type", "application/octet-stream"},
                                     {"x-amz-content-sha256", digest}};
    struct http_send send = {.url = url,
                             .headers = headers,
                             .header_count = 2,
                             .sign = s3->sign,
                             .sign_user = s3->options.user,
                             .sign_secret = s3->options.secret,
                             .timeout_ms = UINT32_MAX,
                             .connect_timeout_ms = CONNECT_MS,
                             .stall_timeout_ms = STALL_MS,
                             .on_receive = on_receive,
                             .on_done = on_answer,
                             .opaque = call};
    struct err err;

    if (s3->options.token != NULL)
        headers[send.header_count++] = (struct http_header){"x-amz-security-token",
                                                            s3->options.token};
    exchange_fill(call, &send, digest);
    sink_begin(call);
    call->try_count++;
    if (call->sink_err.code != ERR_OK)
        call_fail(call, &call->sink_err);
    else if (http_client_send(s3->client, &send, &call->transfer, &err) < 0)
        call_fail(call, &err);
}

/* ---- what an answer means ---- */

/* Whether the same exchange may do better, and what it is called if it does not. */
static bool status_passes(int status, const struct blob_s3_error *error)
{
    return status == 429 || status == 500 || status == 502 || status == 503 || status == 504 ||
           strcmp(error->code, "RequestTimeout") == 0 || strcmp(error->code, "SlowDown") == 0 ||
           strcmp(error->code, "InternalError") == 0;
}

static int status_error(const struct s3_call *call, int status, const struct blob_s3_error *error,
                        struct err *err)
{
    static const char *const verbs[] = {[BLOB_S3_PUT] = "write",
                                        [BLOB_S3_GET] = "read",
                                        [BLOB_S3_REMOVE] = "remove",
                                        [BLOB_S3_LIST] = "list"};
    bool no_room = status == 507 || strstr(error->code, "StorageFull") != NULL ||
                   strstr(error->code, "QuotaExceeded") != NULL;
    int code = no_room ? ERR_FULL : ERR_UNAVAILABLE;

    if (status == 404 && strcmp(error->code, "NoSuchBucket") != 0 && call->ask->work != BLOB_S3_PUT)
        code = ERR_NOT_FOUND;
    return err_set(err, code, "%s blob '%s': bucket '%s' answered %d %s: %s",
                   verbs[call->ask->work], call->ask->key, call->s3->options.bucket, status,
                   error->code[0] == '\0' ? "without a code" : error->code, error->message);
}

static int outcome_error(const struct s3_call *call, const struct http_result *result,
                         struct err *err)
{
    int code = result->outcome == HTTP_OUTCOME_CANCELED ? ERR_CANCELED : ERR_UNAVAILABLE;

    if (call->sink_err.code != ERR_OK) {
        *err = call->sink_err;
        return err->code;
    }
    return err_set(err, code, "blob store %s, blob '%s': %s", call->s3->options.endpoint,
                   call->ask->key, result->error);
}

/* Fills err when the exchange failed, *ret_again when another try may help. */
static int answer_check(struct s3_call *call, const struct http_result *result, bool *ret_again,
                        struct err *err)
{
    struct blob_s3_error error;

    *ret_again = false;
    if (result->outcome != HTTP_OUTCOME_ANSWERED) {
        *ret_again = call->sink_err.code == ERR_OK && result->outcome != HTTP_OUTCOME_TLS &&
                     result->outcome != HTTP_OUTCOME_CANCELED;
        return outcome_error(call, result, err);
    }
    if (result->status >= 200 && result->status < 300 && call->step != STEP_COMPLETE)
        return 0;
    if (!blob_s3_read_error(call->answer.bytes, call->answer.size, &error) &&
        result->status >= 200 && result->status < 300)
        return 0;
    if (call->ask->work == BLOB_S3_REMOVE && result->status == 404 &&
        strcmp(error.code, "NoSuchBucket") != 0)
        return 0;
    if (call->step == STEP_COMPLETE && call->try_count > 1 &&
        strcmp(error.code, "NoSuchUpload") == 0)
        return 0; /* an earlier try was taken and its answer was lost */
    *ret_again = status_passes(result->status, &error);
    return status_error(call, result->status, &error, err);
}

static void exchange_again(struct s3_call *call, const struct err *err)
{
    struct blob_s3 *s3 = call->s3;
    uint64_t wait_ms = (uint64_t)BACKOFF_MS << call->try_count;

    wait_ms = wait_ms / 2 + rng_below(&s3->rng, wait_ms / 2 + 1);
    if (call->try_count >= BLOB_S3_TRIES || s3->closing ||
        loop_now_ms(s3->loop) + wait_ms > call->since_ms + BLOB_S3_PATIENCE_MS) {
        call_fail(call, err);
        return;
    }
    if (call->again == NULL)
        call->again = loop_timer_new(s3->loop, exchange_begin, call);
    loop_timer_start(call->again, wait_ms, 0);
}

/* ---- large puts ---- */

static void part_done(struct s3_call *call, const struct http_result *result)
{
    const char *etag = http_transfer_header(result->transfer, "etag");
    struct err err;

    if (etag == NULL || strlen(etag) >= ETAG_SIZE || strpbrk(etag, "<>&") != NULL) {
        (void)err_set(&err, ERR_UNAVAILABLE, "the store's answer to a part of '%s' has no ETag",
                      call->ask->key);
        call_fail(call, &err);
        return;
    }
    buf_printf(&call->body, "<Part><PartNumber>%u</PartNumber><ETag>%s</ETag></Part>",
               call->part_index + 1, etag);
    if (++call->part_index < call->part_count) {
        step_to(call, STEP_PART);
        return;
    }
    buf_append_text(&call->body, "</CompleteMultipartUpload>");
    step_to(call, STEP_COMPLETE);
}

static void start_done(struct s3_call *call)
{
    struct err err;

    if (blob_s3_read_upload_id(call->answer.bytes, call->answer.size, call->upload_id, &err) < 0) {
        call_fail(call, &err);
        return;
    }
    buf_append_text(&call->body, "<CompleteMultipartUpload>");
    step_to(call, STEP_PART);
}

static void one_done(struct s3_call *call)
{
    struct blob_s3_ask *ask = call->ask;

    if (ask->work == BLOB_S3_GET)
        ask->size = call->got_size;
    if (ask->work == BLOB_S3_LIST &&
        blob_s3_read_list(call->answer.bytes, call->answer.size, call->s3->options.prefix,
                          ask->folders, ask->list, &ask->err) < 0)
        assert(ask->err.code != ERR_OK);
    call_end(call);
}

static void on_answer(const struct http_result *result, void *opaque)
{
    struct s3_call *call = opaque;
    struct err err;
    bool again;
    int r = answer_check(call, result, &again, &err);

    call->transfer = NULL;
    if (call->step == STEP_ABORT) {
        call_end(call);
    } else if (r < 0 && again) {
        exchange_again(call, &err);
    } else if (r < 0) {
        call_fail(call, &err);
    } else if (call->step == STEP_ONE || call->step == STEP_COMPLETE) {
        one_done(call);
    } else if (call->step == STEP_START) {
        start_done(call);
    } else {
        part_done(call, result);
    }
}

/* ---- the adapter ---- */

void blob_s3_send(struct blob_s3 *s3, struct blob_s3_ask *ask)
{
    struct s3_call *call = xcalloc(1, sizeof(*call));

    call->s3 = s3;
    call->ask = ask;
    call->answer = BUF_WITH_LIMIT(ask->work == BLOB_S3_LIST ? LIST_ANSWER_MAX : SMALL_ANSWER_MAX);
    call->body = BUF_WITH_LIMIT((size_t)PART_COUNT_MAX * (ETAG_SIZE + 80));
    ask->err = (struct err){.code = ERR_OK};
    if (ask->work == BLOB_S3_PUT && ask->size > s3->options.part_size) {
        call->step = STEP_START;
        call->part_size = s3->options.part_size;
        while ((ask->size + call->part_size - 1) / call->part_size > PART_COUNT_MAX)
            call->part_size *= 2;
        call->part_count = (uint32_t)((ask->size + call->part_size - 1) / call->part_size);
    }
    TAILQ_INSERT_TAIL(&s3->waiting, call, link);
    line_move_up(s3);
}

int blob_s3_spool(const struct blob_s3 *s3, int *ret_fd, struct err *err)
{
    int fd = open(s3->options.spool, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);

    if (fd < 0)
        return err_set_errno(err, errno == ENOSPC || errno == EDQUOT ? ERR_FULL : ERR_IO,
                             "make a file in the spool '%s'", s3->options.spool);
    *ret_fd = fd;
    return 0;
}

static void options_copy(const struct blob_s3_options *from, struct blob_s3_options *to)
{
    *to = *from;
    to->user = xstrdup(from->user);
    to->secret = xstrdup(from->secret);
    to->token = from->token == NULL ? NULL : xstrdup(from->token);
}

int blob_s3_open(struct loop *loop, const struct blob_s3_options *options, struct blob_s3 **ret_s3,
                 struct err *err)
{
    OWNED(blob_s3_close) struct blob_s3 *s3 = xcalloc(1, sizeof(*s3));
    const struct http_client_options client = {
        .connection_count_max = BLOB_S3_ACTIVE_MAX,
        .connection_count_max_per_host = BLOB_S3_ACTIVE_MAX,
        .ca_path = options->ca_path[0] == '\0' ? NULL : options->ca_path,
    };
    uint64_t seed;
    int fd = -1, r;

    s3->loop = loop;
    TAILQ_INIT(&s3->active);
    TAILQ_INIT(&s3->waiting);
    options_copy(options, &s3->options);
    s3->sign = xasprintf("aws:amz:%s:s3", options->region);
    s3->base = xasprintf("%s/%s", options->endpoint, options->bucket);
    rng_secret_bytes(&seed, sizeof(seed));
    rng_seed(&s3->rng, seed);
    r = http_client_open(loop, &client, &s3->client, err);
    if (r == 0)
        r = blob_s3_spool(s3, &fd, err); /* a wrong spool is found now, not with the first job */
    if (fd >= 0)
        (void)close(fd);
    if (r < 0)
        return r;
    *ret_s3 = TAKE(s3);
    return 0;
}

/* Calls that wait for their turn or for another try; those under way end with the client. */
static void calls_drop(struct blob_s3 *s3)
{
    struct s3_call *call;
    struct err err;

    (void)err_set(&err, ERR_CANCELED, "the blob store was closed");
    while ((call = TAILQ_FIRST(&s3->waiting)) != NULL)
        call_fail(call, &err);
    while ((call = TAILQ_FIRST(&s3->active)) != NULL)
        call_fail(call, &err);
}

void blob_s3_close(struct blob_s3 **s3_p)
{
    struct blob_s3 *s3 = TAKE(*s3_p);

    if (s3 == NULL)
        return;
    s3->closing = true;
    http_client_close(&s3->client);
    calls_drop(s3);
    blob_s3_options_done(&s3->options);
    free(s3->sign);
    free(s3->base);
    free(s3);
}
