/* SPDX-License-Identifier: Apache-2.0 */

#include "base/http_client.h"

#include <curl/curl.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/loop.h"

#define CONNECTIONS_DEFAULT 256
#define CONNECTIONS_PER_HOST_DEFAULT 16
#define TIMEOUT_MS_DEFAULT (30u * 1000)
#define CONNECT_TIMEOUT_MS_DEFAULT (5u * 1000)
#define ANSWER_SIZE_DEFAULT (64u * 1024)

struct http_client {
    struct loop *loop;
    CURLM *multi;
    struct loop_timer *timer;
    struct http_client_options options; /* texts are copies */
    struct http_transfer *transfers;
    uint32_t open_count;
    bool telling; /* inside on_done: must not be closed there */
};

struct http_transfer {
    struct http_client *client;
    struct http_transfer *next, **self;
    CURL *easy;
    struct curl_slist *headers;
    struct http_send send; /* borrowed body, callbacks */
    struct buf body;
    uint64_t read_size; /* of body_fd */
    char error[CURL_ERROR_SIZE];
    bool blocked, allowed, too_big, stopped;
};

/* One watched socket of curl's. */
struct socket_watch {
    struct http_client *client;
    curl_socket_t fd;
    struct loop_watch *watch;
};

const char *http_outcome_name(enum http_outcome outcome)
{
    static const char *const names[] = {
        [HTTP_OUTCOME_ANSWERED] = "answered", [HTTP_OUTCOME_BLOCKED] = "blocked",
        [HTTP_OUTCOME_NAME] = "name",         [HTTP_OUTCOME_UNREACHABLE] = "unreachable",
        [HTTP_OUTCOME_TLS] = "tls",           [HTTP_OUTCOME_TIMEOUT] = "timeout",
        [HTTP_OUTCOME_BROKEN] = "broken",     [HTTP_OUTCOME_BODY_TOO_BIG] = "body_too_big",
        [HTTP_OUTCOME_CANCELED] = "canceled",
    };

    return names[outcome];
}

/* ---- what curl calls during a transfer ---- */

static size_t on_body(char *bytes, size_t one, size_t size, void *opaque)
{
    struct http_transfer *transfer = opaque;

    (void)one;
    if (transfer->send.on_receive != NULL) {
        transfer->stopped = !transfer->send.on_receive(bytes, size, transfer->send.opaque);
        return transfer->stopped ? CURL_WRITEFUNC_ERROR : size;
    }
    buf_append(&transfer->body, bytes, size);
    transfer->too_big = transfer->body.failed;
    return transfer->too_big ? CURL_WRITEFUNC_ERROR : size;
}

static size_t on_read(char *to, size_t one, size_t size, void *opaque)
{
    struct http_transfer *transfer = opaque;
    ssize_t n;

    n = pread(transfer->send.body_fd, to, one * size, (off_t)transfer->read_size);
    if (n < 0)
        return CURL_READFUNC_ABORT;
    transfer->read_size += (uint64_t)n;
    return (size_t)n;
}

static int on_seek(void *opaque, curl_off_t offset, int origin)
{
    struct http_transfer *transfer = opaque;

    if (origin != SEEK_SET || offset < 0)
        return CURL_SEEKFUNC_CANTSEEK;
    transfer->read_size = (uint64_t)offset;
    return CURL_SEEKFUNC_OK;
}

static int on_progress(void *opaque, curl_off_t down_total, curl_off_t down, curl_off_t up_total,
                       curl_off_t up)
{
    struct http_transfer *transfer = opaque;

    (void)down_total;
    (void)down;
    (void)up_total;
    if (up > 0)
        transfer->send.on_progress((uint64_t)up, transfer->send.opaque);
    return 0;
}

/* Asked for every new connection, after the name was resolved. */
static curl_socket_t on_open_socket(void *opaque, curlsocktype purpose,
                                    struct curl_sockaddr *address)
{
    struct http_transfer *transfer = opaque;
    const struct http_client_options *options = &transfer->client->options;

    (void)purpose;
    if (options->check_address != NULL &&
        !options->check_address(&address->addr, (socklen_t)address->addrlen,
                                options->check_opaque)) {
        transfer->blocked = true;
        return CURL_SOCKET_BAD;
    }
    transfer->allowed = true;
    return socket(address->family, address->socktype | SOCK_CLOEXEC | SOCK_NONBLOCK,
                  address->protocol);
}

/* ---- the end of a transfer ---- */

static enum http_outcome outcome_of(const struct http_transfer *transfer, CURLcode code)
{
    switch (code) {
    case CURLE_OK:
        return HTTP_OUTCOME_ANSWERED;
    case CURLE_COULDNT_RESOLVE_HOST:
        return HTTP_OUTCOME_NAME;
    case CURLE_COULDNT_CONNECT:
        return transfer->blocked && !transfer->allowed ? HTTP_OUTCOME_BLOCKED
                                                       : HTTP_OUTCOME_UNREACHABLE;
    case CURLE_OPERATION_TIMEDOUT:
        return HTTP_OUTCOME_TIMEOUT;
    case CURLE_SSL_CONNECT_ERROR:
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_SSL_CERTPROBLEM:
    case CURLE_SSL_CIPHER:
        return HTTP_OUTCOME_TLS;
    case CURLE_WRITE_ERROR:
        if (transfer->too_big)
            return HTTP_OUTCOME_BODY_TOO_BIG;
        return transfer->stopped ? HTTP_OUTCOME_CANCELED : HTTP_OUTCOME_BROKEN;
    default:
        return HTTP_OUTCOME_BROKEN;
    }
}

const char *http_transfer_header(const struct http_transfer *transfer, const char *name)
{
    struct curl_header *header;

    if (curl_easy_header(transfer->easy, name, 0, CURLH_HEADER, -1, &header) != CURLHE_OK)
        return NULL;
    return header->value;
}

static void transfer_free(struct http_transfer *transfer)
{
    struct http_client *client = transfer->client;

    *transfer->self = transfer->next;
    if (transfer->next != NULL)
        transfer->next->self = transfer->self;
    client->open_count--;
    curl_easy_cleanup(transfer->easy);
    curl_slist_free_all(transfer->headers);
    buf_done(&transfer->body);
    free(transfer);
}

/* Takes it out of curl's hands, tells its holder, frees it. */
static void transfer_end(struct http_transfer *transfer, enum http_outcome outcome,
                         const char *error)
{
    struct http_client *client = transfer->client;
    struct http_result result = {
        .outcome = outcome, .body = &transfer->body, .error = error, .transfer = transfer};
    curl_off_t took = 0, connect = 0;
    const char *address = NULL;
    bool outer = client->telling;
    long status = 0;

    (void)curl_easy_getinfo(transfer->easy, CURLINFO_RESPONSE_CODE, &status);
    (void)curl_easy_getinfo(transfer->easy, CURLINFO_TOTAL_TIME_T, &took);
    (void)curl_easy_getinfo(transfer->easy, CURLINFO_CONNECT_TIME_T, &connect);
    (void)curl_easy_getinfo(transfer->easy, CURLINFO_PRIMARY_IP, &address);
    (void)curl_multi_remove_handle(client->multi, transfer->easy);
    if (outcome == HTTP_OUTCOME_ANSWERED || outcome == HTTP_OUTCOME_BODY_TOO_BIG)
        result.status = (int)status;
    else
        buf_done(&transfer->body);
    if (outcome == HTTP_OUTCOME_BODY_TOO_BIG)
        transfer->body.failed = false; /* what came before the limit may be read */
    result.took_us = (uint64_t)took;
    result.connect_us = (uint64_t)connect;
    mem_copy_text(result.address, address != NULL ? address : "");
    client->telling = true;
    transfer->send.on_done(&result, transfer->send.opaque);
    client->telling = outer;
    transfer_free(transfer);
}

/* Hands out what curl has finished. */
static void client_collect(struct http_client *client)
{
    CURLMsg *message;
    int left;

    while ((message = curl_multi_info_read(client->multi, &left)) != NULL) {
        struct http_transfer *transfer;
        enum http_outcome outcome;
        CURLcode code = message->data.result;
        const char *error = "";

        if (message->msg != CURLMSG_DONE)
            continue;
        (void)curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, (char **)&transfer);
        outcome = outcome_of(transfer, code);
        if (outcome != HTTP_OUTCOME_ANSWERED)
            error = *transfer->error != '\0' ? transfer->error : curl_easy_strerror(code);
        transfer_end(transfer, outcome, error);
    }
}

/* ---- curl's sockets and its timer in our loop ---- */

static void on_socket_ready(void *opaque, unsigned events)
{
    struct socket_watch *watch = opaque;
    struct http_client *client = watch->client;
    int mask = 0, running;

    if ((events & (LOOP_READABLE | LOOP_GONE)) != 0)
        mask |= CURL_CSELECT_IN;
    if ((events & LOOP_WRITABLE) != 0)
        mask |= CURL_CSELECT_OUT;
    (void)curl_multi_socket_action(client->multi, watch->fd, mask, &running);
    client_collect(client);
}

static void on_timer(void *opaque)
{
    struct http_client *client = opaque;
    int running;

    (void)curl_multi_socket_action(client->multi, CURL_SOCKET_TIMEOUT, 0, &running);
    client_collect(client);
}

static int on_curl_timer(CURLM *multi, long timeout_ms, void *opaque)
{
    struct http_client *client = opaque;

    (void)multi;
    if (timeout_ms < 0)
        loop_timer_stop(client->timer);
    else
        loop_timer_start(client->timer, (uint64_t)timeout_ms, 0);
    return 0;
}

static int on_curl_socket(CURL *easy, curl_socket_t fd, int what, void *opaque, void *socket_opaque)
{
    struct http_client *client = opaque;
    struct socket_watch *watch = socket_opaque;
    unsigned events = 0;
    struct err err;

    (void)easy;
    if (what == CURL_POLL_REMOVE) {
        if (watch != NULL)
            loop_watch_free(&watch->watch);
        free(watch);
        (void)curl_multi_assign(client->multi, fd, NULL);
        return 0;
    }
    if (watch == NULL) {
        watch = xcalloc(1, sizeof(*watch));
        watch->client = client;
        watch->fd = fd;
        if (loop_watch_new(client->loop, fd, on_socket_ready, watch, &watch->watch, &err) < 0) {
            free(watch);
            return -1;
        }
        (void)curl_multi_assign(client->multi, fd, watch);
    }
    if (what == CURL_POLL_IN || what == CURL_POLL_INOUT)
        events |= LOOP_READABLE;
    if (what == CURL_POLL_OUT || what == CURL_POLL_INOUT)
        events |= LOOP_WRITABLE;
    loop_watch_set(watch->watch, events);
    return 0;
}

/* ---- life ---- */

int http_client_open(struct loop *loop, const struct http_client_options *options,
                     struct http_client **ret_client, struct err *err)
{
    struct http_client *client;
    long total = options->connection_count_max > 0 ? (long)options->connection_count_max
                                                   : CONNECTIONS_DEFAULT;
    long per_host = options->connection_count_max_per_host > 0
                        ? (long)options->connection_count_max_per_host
                        : CONNECTIONS_PER_HOST_DEFAULT;

    if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK)
        return err_set(err, ERR_DEPENDENCY, "libcurl cannot be initialised");
    client = xcalloc(1, sizeof(*client));
    client->loop = loop;
    client->options = *options;
    client->options.ca_path = options->ca_path != NULL ? xstrdup(options->ca_path) : NULL;
    client->options.user_agent = xstrdup(
        options->user_agent != NULL ? options->user_agent : "headrace/" HEADRACE_VERSION);
    client->timer = loop_timer_new(loop, on_timer, client);
    client->multi = curl_multi_init();
    if (client->multi == NULL)
        NEVER("memory is exhausted");
    (void)curl_multi_setopt(client->multi, CURLMOPT_SOCKETFUNCTION, on_curl_socket);
    (void)curl_multi_setopt(client->multi, CURLMOPT_SOCKETDATA, client);
    (void)curl_multi_setopt(client->multi, CURLMOPT_TIMERFUNCTION, on_curl_timer);
    (void)curl_multi_setopt(client->multi, CURLMOPT_TIMERDATA, client);
    (void)curl_multi_setopt(client->multi, CURLMOPT_MAX_TOTAL_CONNECTIONS, total);
    (void)curl_multi_setopt(client->multi, CURLMOPT_MAX_HOST_CONNECTIONS, per_host);
    (void)curl_multi_setopt(client->multi, CURLMOPT_MAXCONNECTS, total);
    *ret_client = client;
    return 0;
}

void http_client_close(struct http_client **client_p)
{
    struct http_client *client = TAKE(*client_p);

    if (client == NULL)
        return;
    assert(!client->telling);
    while (client->transfers != NULL)
        transfer_end(client->transfers, HTTP_OUTCOME_CANCELED, "the client was closed");
    (void)curl_multi_cleanup(client->multi);
    loop_timer_free(&client->timer);
    free((char *)(uintptr_t)client->options.ca_path);
    free((char *)(uintptr_t)client->options.user_agent);
    free(client);
    curl_global_cleanup();
}

uint32_t http_client_open_count(const struct http_client *client)
{
    return client->open_count;
}

/* ---- sending ---- */

/* http or https, a host, nothing else that curl would not take. */
static int url_check(const char *url, struct err *err)
{
    CURLU *parts = curl_url();
    char *scheme = NULL;
    CURLUcode code = curl_url_set(parts, CURLUPART_URL, url, 0);
    bool good = code == CURLUE_OK &&
                curl_url_get(parts, CURLUPART_SCHEME, &scheme, 0) == CURLUE_OK &&
                (strcmp(scheme, "http") == 0 || strcmp(scheme, "https") == 0);

    curl_free(scheme);
    curl_url_cleanup(parts);
    if (good)
        return 0;
    return err_set(err, ERR_MALFORMED, "'%.200s' is no http or https URL%s%s", url,
                   code != CURLUE_OK ? ": " : "", code != CURLUE_OK ? curl_url_strerror(code) : "");
}

static int headers_make(struct http_transfer *transfer, struct err *err)
{
    struct curl_slist *list = curl_slist_append(NULL, "Expect:");

    for (size_t i = 0; i < transfer->send.header_count; i++) {
        const struct http_header *header = &transfer->send.headers[i];
        OWNED(mem_free) char *line = NULL;

        if (strpbrk(header->name, "\r\n:") != NULL || strpbrk(header->value, "\r\n") != NULL) {
            curl_slist_free_all(list);
            return err_set(err, ERR_MALFORMED, "header '%.64s' holds a line break", header->name);
        }
        line = *header->value != '\0' ? xasprintf("%s: %s", header->name, header->value)
                                      : xasprintf("%s;", header->name);
        list = curl_slist_append(list, line);
    }
    transfer->headers = list;
    return 0;
}

static void body_set(struct http_transfer *transfer)
{
    const struct http_send *send = &transfer->send;
    bool from_file = send->body == NULL && send->body_size > 0;
    bool wants_body = send->body != NULL || from_file ||
                      (send->method != NULL && strcmp(send->method, "POST") == 0);

    if (send->method != NULL && strcmp(send->method, "HEAD") == 0)
        (void)curl_easy_setopt(transfer->easy, CURLOPT_NOBODY, 1L);
    if (wants_body) {
        (void)curl_easy_setopt(transfer->easy, CURLOPT_POST, 1L);
        (void)curl_easy_setopt(transfer->easy, CURLOPT_POSTFIELDSIZE_LARGE,
                               (curl_off_t)send->body_size);
        if (!from_file)
            (void)curl_easy_setopt(transfer->easy, CURLOPT_POSTFIELDS,
                                   send->body != NULL ? send->body : "");
    }
    if (from_file) {
        (void)curl_easy_setopt(transfer->easy, CURLOPT_READFUNCTION, on_read);
        (void)curl_easy_setopt(transfer->easy, CURLOPT_READDATA, transfer);
        (void)curl_easy_setopt(transfer->easy, CURLOPT_SEEKFUNCTION, on_seek);
        (void)curl_easy_setopt(transfer->easy, CURLOPT_SEEKDATA, transfer);
    }
    if (send->method != NULL)
        (void)curl_easy_setopt(transfer->easy, CURLOPT_CUSTOMREQUEST, send->method);
    if (send->on_progress != NULL) {
        (void)curl_easy_setopt(transfer->easy, CURLOPT_NOPROGRESS, 0L);
        (void)curl_easy_setopt(transfer->easy, CURLOPT_XFERINFOFUNCTION, on_progress);
        (void)curl_easy_setopt(transfer->easy, CURLOPT_XFERINFODATA, transfer);
    }
}

static void options_set(struct http_transfer *transfer)
{
    const struct http_send *send = &transfer->send;
    const struct http_client_options *options = &transfer->client->options;
    uint32_t connect_ms = send->connect_timeout_ms > 0 ? send->connect_timeout_ms
                                                       : CONNECT_TIMEOUT_MS_DEFAULT;
    uint32_t timeout_ms = send->timeout_ms > 0 ? send->timeout_ms : TIMEOUT_MS_DEFAULT;
    CURL *easy = transfer->easy;

    (void)curl_easy_setopt(easy, CURLOPT_URL, send->url); /* curl copies it */
    (void)curl_easy_setopt(easy, CURLOPT_PRIVATE, transfer);
    (void)curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, transfer->error);
    (void)curl_easy_setopt(easy, CURLOPT_HTTPHEADER, transfer->headers);
    (void)curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
    (void)curl_easy_setopt(easy, CURLOPT_FOLLOWLOCATION, 0L);
    (void)curl_easy_setopt(easy, CURLOPT_PROXY, "");
    (void)curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
    (void)curl_easy_setopt(easy, CURLOPT_USERAGENT, options->user_agent);
    (void)curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS, (long)connect_ms);
    if (timeout_ms != UINT32_MAX)
        (void)curl_easy_setopt(easy, CURLOPT_TIMEOUT_MS, (long)timeout_ms);
    (void)curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, on_body);
    (void)curl_easy_setopt(easy, CURLOPT_WRITEDATA, transfer);
    (void)curl_easy_setopt(easy, CURLOPT_OPENSOCKETFUNCTION, on_open_socket);
    (void)curl_easy_setopt(easy, CURLOPT_OPENSOCKETDATA, transfer);
    if (options->ca_path != NULL)
        (void)curl_easy_setopt(easy, CURLOPT_CAINFO, options->ca_path);
    body_set(transfer);
}

int http_client_send(struct http_client *client, const struct http_send *send,
                     struct http_transfer **ret_transfer, struct err *err)
{
    struct http_transfer *transfer;
    int r;

    r = url_check(send->url, err);
    if (r < 0)
        return r;
    transfer = xcalloc(1, sizeof(*transfer));
    transfer->client = client;
    transfer->send = *send;
    r = headers_make(transfer, err);
    if (r < 0) {
        free(transfer);
        return r;
    }
    buf_init(&transfer->body,
             send->answer_size_max > 0 ? send->answer_size_max : ANSWER_SIZE_DEFAULT);
    transfer->easy = curl_easy_init();
    if (transfer->easy == NULL)
        NEVER("memory is exhausted");
    options_set(transfer);
    transfer->send.headers = NULL; /* they were copied */
    transfer->send.url = NULL;
    transfer->next = client->transfers;
    transfer->self = &client->transfers;
    if (transfer->next != NULL)
        transfer->next->self = &transfer->next;
    client->transfers = transfer;
    client->open_count++;
    if (curl_multi_add_handle(client->multi, transfer->easy) != CURLM_OK)
        NEVER("curl refuses a handle that was just made");
    if (ret_transfer != NULL)
        *ret_transfer = transfer;
    return 0;
}

void http_transfer_cancel(struct http_transfer *transfer)
{
    transfer_end(transfer, HTTP_OUTCOME_CANCELED, "canceled");
}

/* ---- blocking ---- */

struct blocking {
    const struct http_send *send;
    bool done;
};

static void on_blocking_done(const struct http_result *result, void *opaque)
{
    struct blocking *blocking = opaque;

    blocking->send->on_done(result, blocking->send->opaque);
    blocking->done = true;
}

static bool on_blocking_receive(const void *bytes, size_t size, void *opaque)
{
    struct blocking *blocking = opaque;

    return blocking->send->on_receive(bytes, size, blocking->send->opaque);
}

static void on_blocking_progress(uint64_t sent_size, void *opaque)
{
    struct blocking *blocking = opaque;

    blocking->send->on_progress(sent_size, blocking->send->opaque);
}

int http_client_call(const struct http_client_options *options, const struct http_send *send,
                     struct err *err)
{
    struct blocking blocking = {.send = send};
    struct http_send inner = *send;
    struct http_client *client = NULL;
    struct loop *loop = NULL;
    int r;

    r = loop_open(&loop, err);
    if (r < 0)
        return r;
    inner.on_done = on_blocking_done;
    inner.on_receive = send->on_receive != NULL ? on_blocking_receive : NULL;
    inner.on_progress = send->on_progress != NULL ? on_blocking_progress : NULL;
    inner.opaque = &blocking;
    r = http_client_open(loop, options, &client, err);
    if (r == 0)
        r = http_client_send(client, &inner, NULL, err);
    while (r == 0 && !blocking.done)
        (void)loop_run_until(loop, &blocking.done, UINT32_MAX);
    http_client_close(&client);
    loop_close(&loop);
    return r;
}
