/* SPDX-License-Identifier: Apache-2.0 */

/*
 * libcurl's multi interface driven by the loop: curl says which sockets it waits for and when it
 * wants to be woken, the loop's watches and one timer do it, and after each step the transfers that
 * are over are told. User code never runs inside curl, except for on_receive and on_progress.
 *
 * Easy handles are kept for the next transfer: making one costs more than a small request.
 */

#include "base/http_client.h"

#include <curl/curl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <uthash.h>

#include "base/assert.h"
#include "base/loop.h"

#define SPARE_COUNT_MAX 64
#define RECEIVE_SIZE 16384L

struct http_client {
    struct loop *loop;
    CURLM *multi;
    struct loop_timer *timer;
    struct client_socket *sockets; /* by descriptor */
    struct http_transfer *transfers;
    uint32_t open_count;
    CURL *spares[SPARE_COUNT_MAX];
    int spare_count;
    bool inside;  /* curl is running: its handles must not be taken away */
    bool telling; /* an on_done is running */
    http_address_check *check_address;
    void *check_opaque;
    char *ca_path, *user_agent;
};

/* A socket that curl waits for. One that we opened keeps its watch as long as it is open: between
 * two requests of a kept connection curl lets go of it and takes it up again, and the kernel is
 * told of neither. */
struct client_socket {
    struct http_client *client;
    struct loop_watch *watch;
    unsigned armed; /* events that the loop watches for */
    bool ours;      /* we opened it, and are told when it is closed */
    bool idle;      /* curl does not wait for it now */
    curl_socket_t fd;
    UT_hash_handle hh;
};

struct http_transfer {
    struct http_client *client;
    struct http_transfer *next, *prev;
    CURL *easy;
    struct curl_slist *headers;
    struct http_send send;
    struct buf body;
    uint64_t sent_size, received_size;
    bool address_refused, address_allowed, too_big, stopped;
    char error[CURL_ERROR_SIZE];
};

/* ---- What curl asks of the loop */

static void client_tell_done(struct http_client *client);

static void client_step(struct http_client *client, curl_socket_t fd, int what)
{
    int running;

    assert(!client->inside);
    client->inside = true;
    (void)curl_multi_socket_action(client->multi, fd, what, &running);
    client->inside = false;
    client_tell_done(client);
}

static void client_timer_fired(void *opaque)
{
    client_step(opaque, CURL_SOCKET_TIMEOUT, 0);
}

static int client_set_timer(CURLM *multi, long delay_ms, void *opaque)
{
    struct http_client *client = opaque;

    (void)multi;
    if (delay_ms < 0)
        loop_timer_stop(client->timer);
    else
        loop_timer_start(client->timer, (uint64_t)delay_ms, 0);
    return 0;
}

static void socket_arm(struct client_socket *at, unsigned events)
{
    if (at->armed != events)
        loop_watch_set(at->watch, events);
    at->armed = events;
}

static void socket_ready(void *opaque, unsigned events)
{
    struct client_socket *at = opaque;
    int what = 0;

    if (at->idle) { /* the peer closed it, or talks out of turn: curl sees to it at its next use */
        socket_arm(at, 0);
        return;
    }
    if (events & LOOP_READABLE)
        what |= CURL_CSELECT_IN;
    if (events & LOOP_WRITABLE)
        what |= CURL_CSELECT_OUT;
    client_step(at->client, at->fd, what);
}

static void socket_forget(struct client_socket *at)
{
    HASH_DEL(at->client->sockets, at);
    loop_watch_free(&at->watch);
    free(at);
}

static struct client_socket *socket_find(struct http_client *client, curl_socket_t fd)
{
    struct client_socket *at;

    HASH_FIND(hh, client->sockets, &fd, sizeof(fd), at);
    return at;
}

/* NULL when the loop cannot watch it. */
static struct client_socket *socket_make(struct http_client *client, curl_socket_t fd, bool ours)
{
    struct client_socket *at = xcalloc(1, sizeof(*at));
    struct err err;

    at->client = client;
    at->fd = fd;
    at->ours = ours;
    if (loop_watch_new(client->loop, fd, socket_ready, at, &at->watch, &err) < 0) {
        free(at);
        return NULL;
    }
    HASH_ADD(hh, client->sockets, fd, sizeof(fd), at);
    return at;
}

static int client_set_socket(CURL *easy, curl_socket_t fd, int what, void *opaque, void *of_socket)
{
    struct http_client *client = opaque;
    struct client_socket *at = of_socket;

    (void)easy;
    if (what == CURL_POLL_REMOVE) {
        if (at != NULL && at->ours)
            at->idle = true;
        else if (at != NULL)
            socket_forget(at);
        (void)curl_multi_assign(client->multi, fd, NULL);
        return 0;
    }
    if (at == NULL) {
        at = socket_find(client, fd);
        if (at == NULL)
            at = socket_make(client, fd, false);
        if (at == NULL)
            return -1;
        (void)curl_multi_assign(client->multi, fd, at);
    }
    at->idle = false;
    socket_arm(at, (what & CURL_POLL_IN ? LOOP_READABLE : 0) |
                       (what & CURL_POLL_OUT ? LOOP_WRITABLE : 0));
    return 0;
}

static int client_close_socket(void *opaque, curl_socket_t fd)
{
    struct client_socket *at = socket_find(opaque, fd);

    if (at != NULL)
        socket_forget(at);
    return close(fd);
}

/* ---- What curl asks of a transfer */

static curl_socket_t transfer_open_socket(void *opaque, curlsocktype purpose,
                                          struct curl_sockaddr *address)
{
    struct http_transfer *transfer = opaque;
    struct http_client *client = transfer->client;
    int fd;

    (void)purpose;
    if (client->check_address != NULL &&
        !client->check_address(&address->addr, address->addrlen, client->check_opaque)) {
        transfer->address_refused = true;
        return CURL_SOCKET_BAD;
    }
    transfer->address_allowed = true;
    fd = socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol);
    if (fd >= 0)
        (void)socket_make(client, fd, true); /* without it, it is watched from use to use */
    return fd;
}

static size_t transfer_receive(char *bytes, size_t one, size_t size, void *opaque)
{
    struct http_transfer *transfer = opaque;
    size_t limit = transfer->send.answer_size_max;

    (void)one; /* always 1 */
    if (limit > 0 && size > limit - transfer->received_size) {
        transfer->too_big = true;
        return 0;
    }
    transfer->received_size += size;
    if (transfer->send.on_receive == NULL) {
        buf_append(&transfer->body, bytes, size);
        return size;
    }
    transfer->stopped = !transfer->send.on_receive(bytes, size, transfer->send.opaque);
    return transfer->stopped ? 0 : size;
}

/* A 204 has no body, and a server that sends one all the same has it come where the next answer is
 * awaited: that connection is not used again. */
static size_t transfer_header_line(char *bytes, size_t one, size_t size, void *opaque)
{
    struct http_transfer *transfer = opaque;
    const char *length;

    (void)one;
    if (size > 2 || bytes[0] != '\r' || http_transfer_status(transfer) != 204)
        return size;
    length = http_transfer_header(transfer, "Content-Length");
    if ((length != NULL && strcmp(length, "0") != 0) ||
        http_transfer_header(transfer, "Transfer-Encoding") != NULL)
        (void)curl_easy_setopt(transfer->easy, CURLOPT_FORBID_REUSE, 1L);
    return size;
}

static size_t transfer_read_file(char *to, size_t one, size_t size, void *opaque)
{
    struct http_transfer *transfer = opaque;
    uint64_t left = transfer->send.body_size - transfer->sent_size;
    ssize_t n;

    (void)one;
    n = pread(transfer->send.body_fd, to, size < left ? size : (size_t)left,
              (off_t)(transfer->send.body_offset + transfer->sent_size));
    if (n < 0 || (n == 0 && left > 0))
        return CURL_READFUNC_ABORT; /* the file is shorter than was promised */
    transfer->sent_size += (uint64_t)n;
    return (size_t)n;
}

/* curl starts over when a kept connection turns out to be dead. */
static int transfer_seek_file(void *opaque, curl_off_t offset, int origin)
{
    struct http_transfer *transfer = opaque;

    if (origin != SEEK_SET)
        return CURL_SEEKFUNC_CANTSEEK;
    transfer->sent_size = (uint64_t)offset;
    return CURL_SEEKFUNC_OK;
}

static int transfer_progress(void *opaque, curl_off_t down_total, curl_off_t down,
                             curl_off_t up_total, curl_off_t up)
{
    struct http_transfer *transfer = opaque;

    (void)down_total, (void)down, (void)up_total;
    if (up > 0)
        transfer->send.on_progress((uint64_t)up, transfer->send.opaque);
    return 0;
}

/* ---- Transfers */

static void transfer_free(struct http_transfer *transfer)
{
    struct http_client *client = transfer->client;

    if (transfer->next != NULL)
        transfer->next->prev = transfer->prev;
    if (transfer->prev != NULL)
        transfer->prev->next = transfer->next;
    else
        client->transfers = transfer->next;
    client->open_count--;
    if (client->spare_count < SPARE_COUNT_MAX) {
        curl_easy_reset(transfer->easy);
        client->spares[client->spare_count++] = transfer->easy;
    } else {
        curl_easy_cleanup(transfer->easy);
    }
    curl_slist_free_all(transfer->headers);
    buf_done(&transfer->body);
    free(transfer);
}

static enum http_outcome transfer_outcome(const struct http_transfer *transfer, CURLcode code)
{
    switch (code) {
    case CURLE_OK:
        return HTTP_OUTCOME_ANSWERED;
    case CURLE_COULDNT_RESOLVE_HOST:
        return HTTP_OUTCOME_NAME;
    case CURLE_COULDNT_CONNECT:
        return transfer->address_refused && !transfer->address_allowed ? HTTP_OUTCOME_BLOCKED
                                                                       : HTTP_OUTCOME_UNREACHABLE;
    case CURLE_OPERATION_TIMEDOUT:
        return HTTP_OUTCOME_TIMEOUT;
    case CURLE_SSL_CONNECT_ERROR:
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CERTPROBLEM:
    case CURLE_SSL_CIPHER:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_SSL_ISSUER_ERROR:
    case CURLE_SSL_INVALIDCERTSTATUS:
        return HTTP_OUTCOME_TLS;
    case CURLE_WRITE_ERROR:
        if (transfer->too_big)
            return HTTP_OUTCOME_BODY_TOO_BIG;
        return transfer->stopped ? HTTP_OUTCOME_CANCELED : HTTP_OUTCOME_BROKEN;
    default:
        return HTTP_OUTCOME_BROKEN;
    }
}

static void transfer_fill_result(struct http_transfer *transfer, struct http_result *result)
{
    long status = 0;
    curl_off_t took_us = 0, connect_us = 0;
    const char *address = NULL;

    (void)curl_easy_getinfo(transfer->easy, CURLINFO_RESPONSE_CODE, &status);
    (void)curl_easy_getinfo(transfer->easy, CURLINFO_TOTAL_TIME_T, &took_us);
    (void)curl_easy_getinfo(transfer->easy, CURLINFO_CONNECT_TIME_T, &connect_us);
    (void)curl_easy_getinfo(transfer->easy, CURLINFO_PRIMARY_IP, &address);
    result->status = (int)status;
    result->took_us = (uint64_t)took_us;
    result->connect_us = (uint64_t)connect_us;
    result->body = &transfer->body;
    result->transfer = transfer;
    mem_copy_text(result->address, address == NULL ? "" : address);
}

static const char *transfer_error(const struct http_transfer *transfer, enum http_outcome outcome,
                                  CURLcode code)
{
    if (outcome == HTTP_OUTCOME_ANSWERED)
        return "";
    if (outcome == HTTP_OUTCOME_BLOCKED)
        return "address is not allowed";
    if (outcome == HTTP_OUTCOME_BODY_TOO_BIG)
        return "answer is over its size limit";
    if (outcome == HTTP_OUTCOME_CANCELED)
        return "canceled";
    return transfer->error[0] != '\0' ? transfer->error : curl_easy_strerror(code);
}

static void transfer_finish(struct http_transfer *transfer, enum http_outcome outcome,
                            CURLcode code)
{
    struct http_client *client = transfer->client;
    struct http_result result = {.outcome = outcome};
    bool was_telling = client->telling;

    transfer_fill_result(transfer, &result);
    result.error = transfer_error(transfer, outcome, code);
    (void)curl_multi_remove_handle(client->multi, transfer->easy);
    client->telling = true;
    transfer->send.on_done(&result, transfer->send.opaque);
    client->telling = was_telling;
    transfer_free(transfer);
}

static void client_tell_done(struct http_client *client)
{
    CURLMsg *message;
    int left;

    while ((message = curl_multi_info_read(client->multi, &left)) != NULL) {
        struct http_transfer *transfer = NULL;
        CURLcode code = message->data.result; /* gone with the handle */

        (void)curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &transfer);
        transfer_finish(transfer, transfer_outcome(transfer, code), code);
    }
}

void http_transfer_cancel(struct http_transfer *transfer)
{
    assert(!transfer->client->inside); /* on_receive returns false instead */
    transfer_finish(transfer, HTTP_OUTCOME_CANCELED, CURLE_OK);
}

void http_transfer_pause(struct http_transfer *transfer)
{
    (void)curl_easy_pause(transfer->easy, CURLPAUSE_RECV);
}

void http_transfer_resume(struct http_transfer *transfer)
{
    struct http_client *client = transfer->client;

    assert(!client->inside);
    client->inside = true;
    (void)curl_easy_pause(transfer->easy, CURLPAUSE_CONT); /* hands out what curl holds */
    client->inside = false;
    client_step(client, CURL_SOCKET_TIMEOUT, 0);
}

const char *http_transfer_header(const struct http_transfer *transfer, const char *name)
{
    struct curl_header *header;

    if (curl_easy_header(transfer->easy, name, 0, CURLH_HEADER, -1, &header) != CURLHE_OK)
        return NULL;
    return header->value;
}

int http_url_resolve(const char *url, const char *reference, char **ret_url, struct err *err)
{
    CURLU *parts = curl_url();
    char *scheme = NULL, *text = NULL;
    CURLUcode code = curl_url_set(parts, CURLUPART_URL, url, 0);
    int r = 0;

    if (code == CURLUE_OK)
        code = curl_url_set(parts, CURLUPART_URL, reference, 0);
    if (code == CURLUE_OK)
        code = curl_url_get(parts, CURLUPART_SCHEME, &scheme, 0);
    if (code == CURLUE_OK)
        code = curl_url_get(parts, CURLUPART_URL, &text, 0);
    if (code != CURLUE_OK)
        r = err_set(err, ERR_MALFORMED, "'%.100s' is no URL: %s", reference,
                    curl_url_strerror(code));
    else if (strcmp(scheme, "http") != 0 && strcmp(scheme, "https") != 0)
        r = err_set(err, ERR_MALFORMED, "'%.100s' is neither http nor https", reference);
    else
        *ret_url = xstrdup(text);
    curl_free(scheme);
    curl_free(text);
    curl_url_cleanup(parts);
    return r;
}

int64_t http_date_parse(const char *text)
{
    return (int64_t)curl_getdate(text, NULL);
}

int http_transfer_status(const struct http_transfer *transfer)
{
    long status = 0;

    (void)curl_easy_getinfo(transfer->easy, CURLINFO_RESPONSE_CODE, &status);
    return (int)status;
}

const char *http_outcome_name(enum http_outcome outcome)
{
    static const char *const names[] = {
        [HTTP_OUTCOME_ANSWERED] = "answered", [HTTP_OUTCOME_BLOCKED] = "blocked",
        [HTTP_OUTCOME_NAME] = "name",         [HTTP_OUTCOME_UNREACHABLE] = "unreachable",
        [HTTP_OUTCOME_TLS] = "tls",           [HTTP_OUTCOME_TIMEOUT] = "timeout",
        [HTTP_OUTCOME_BROKEN] = "broken",     [HTTP_OUTCOME_BODY_TOO_BIG] = "body_too_big",
        [HTTP_OUTCOME_CANCELED] = "canceled",
    };

    assert((size_t)outcome < COUNT_OF(names));
    return names[outcome];
}

/* ---- Sending */

static int url_check(const char *url, struct err *err)
{
    CURLU *parts = curl_url();
    char *scheme = NULL;
    CURLUcode code = curl_url_set(parts, CURLUPART_URL, url, 0);
    bool known = false;

    if (code == CURLUE_OK && curl_url_get(parts, CURLUPART_SCHEME, &scheme, 0) == CURLUE_OK)
        known = strcmp(scheme, "http") == 0 || strcmp(scheme, "https") == 0;
    curl_free(scheme);
    curl_url_cleanup(parts);
    if (code != CURLUE_OK)
        return err_set(err, ERR_MALFORMED, "not a URL: %s", curl_url_strerror(code));
    if (!known)
        return err_set(err, ERR_MALFORMED, "URL is neither http:// nor https://");
    return 0;
}

static int transfer_add_header(struct http_transfer *transfer, const char *name, const char *value,
                               struct err *err)
{
    OWNED(mem_free) char *line = NULL;

    if (strpbrk(name, "\r\n: ") != NULL || strpbrk(value, "\r\n") != NULL)
        return err_set(err, ERR_MALFORMED, "header '%.40s' has a line break or a bad name", name);
    line = value[0] == '\0' ? xasprintf("%s;", name) : xasprintf("%s: %s", name, value);
    transfer->headers = curl_slist_append(transfer->headers, line);
    return 0;
}

static int transfer_set_headers(struct http_transfer *transfer, const struct http_send *send,
                                struct err *err)
{
    bool has_type = false;

    for (size_t i = 0; i < send->header_count; i++) {
        int r = transfer_add_header(transfer, send->headers[i].name, send->headers[i].value, err);

        if (r < 0)
            return r;
        has_type = has_type || strcasecmp(send->headers[i].name, "Content-Type") == 0;
    }
    /* A name and a colon alone keeps curl from making up that header. curl 7.88 would sign it all
     * the same, as if it had been sent: a signed request goes without, and may have an Expect. */
    if (send->sign == NULL)
        transfer->headers = curl_slist_append(transfer->headers, "Expect:");
    if (!has_type && send->sign == NULL)
        transfer->headers = curl_slist_append(transfer->headers, "Content-Type:");
    (void)curl_easy_setopt(transfer->easy, CURLOPT_HTTPHEADER, transfer->headers);
    return 0;
}

static void transfer_set_body(struct http_transfer *transfer)
{
    const struct http_send *send = &transfer->send;
    CURL *easy = transfer->easy;
    const char *method = send->method;

    if (method != NULL && strcmp(method, "HEAD") == 0) { /* no answer to it has a body either */
        (void)curl_easy_setopt(easy, CURLOPT_NOBODY, 1L);
        method = NULL;
    } else if (send->body == NULL && send->body_size > 0) {
        (void)curl_easy_setopt(easy, CURLOPT_UPLOAD, 1L);
        (void)curl_easy_setopt(easy, CURLOPT_INFILESIZE_LARGE, (curl_off_t)send->body_size);
        (void)curl_easy_setopt(easy, CURLOPT_READFUNCTION, transfer_read_file);
        (void)curl_easy_setopt(easy, CURLOPT_READDATA, transfer);
        (void)curl_easy_setopt(easy, CURLOPT_SEEKFUNCTION, transfer_seek_file);
        (void)curl_easy_setopt(easy, CURLOPT_SEEKDATA, transfer);
        (void)curl_easy_setopt(easy, CURLOPT_UPLOAD_BUFFERSIZE, 256L << 10);
        method = method == NULL ? "POST" : method;
    } else if (send->body != NULL || (method != NULL && strcmp(method, "POST") == 0)) {
        (void)curl_easy_setopt(easy, CURLOPT_POST, 1L);
        (void)curl_easy_setopt(easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)send->body_size);
        (void)curl_easy_setopt(easy, CURLOPT_POSTFIELDS, send->body == NULL ? "" : send->body);
    }
    if (method != NULL)
        (void)curl_easy_setopt(easy, CURLOPT_CUSTOMREQUEST, method);
}

static void transfer_set_limits(struct http_transfer *transfer)
{
    const struct http_send *send = &transfer->send;
    CURL *easy = transfer->easy;
    uint32_t timeout_ms = send->timeout_ms == 0 ? 30000 : send->timeout_ms;
    uint32_t connect_ms = send->connect_timeout_ms == 0 ? 5000 : send->connect_timeout_ms;

    if (timeout_ms != UINT32_MAX)
        (void)curl_easy_setopt(easy, CURLOPT_TIMEOUT_MS, (long)timeout_ms);
    (void)curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT_MS, (long)connect_ms);
    if (send->stall_timeout_ms > 0) {
        (void)curl_easy_setopt(easy, CURLOPT_LOW_SPEED_LIMIT, 1L);
        (void)curl_easy_setopt(easy, CURLOPT_LOW_SPEED_TIME,
                               ((long)send->stall_timeout_ms + 999) / 1000);
    }
    (void)curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
    (void)curl_easy_setopt(easy, CURLOPT_FOLLOWLOCATION, 0L);
    (void)curl_easy_setopt(easy, CURLOPT_PROXY, ""); /* else the environment names one */
    (void)curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
    (void)curl_easy_setopt(easy, CURLOPT_BUFFERSIZE, RECEIVE_SIZE);
    (void)curl_easy_setopt(easy, CURLOPT_OPENSOCKETFUNCTION, transfer_open_socket);
    (void)curl_easy_setopt(easy, CURLOPT_OPENSOCKETDATA, transfer);
    (void)curl_easy_setopt(easy, CURLOPT_CLOSESOCKETFUNCTION, client_close_socket);
    (void)curl_easy_setopt(easy, CURLOPT_CLOSESOCKETDATA, transfer->client);
    (void)curl_easy_setopt(easy, CURLOPT_WRITEFUNCTION, transfer_receive);
    (void)curl_easy_setopt(easy, CURLOPT_HEADERFUNCTION, transfer_header_line);
    (void)curl_easy_setopt(easy, CURLOPT_HEADERDATA, transfer);
    (void)curl_easy_setopt(easy, CURLOPT_WRITEDATA, transfer);
    (void)curl_easy_setopt(easy, CURLOPT_ERRORBUFFER, transfer->error);
    (void)curl_easy_setopt(easy, CURLOPT_PRIVATE, transfer);
    (void)curl_easy_setopt(easy, CURLOPT_USERAGENT, transfer->client->user_agent);
    if (transfer->client->ca_path != NULL)
        (void)curl_easy_setopt(easy, CURLOPT_CAINFO, transfer->client->ca_path);
    if (send->on_progress != NULL) {
        (void)curl_easy_setopt(easy, CURLOPT_NOPROGRESS, 0L);
        (void)curl_easy_setopt(easy, CURLOPT_XFERINFOFUNCTION, transfer_progress);
        (void)curl_easy_setopt(easy, CURLOPT_XFERINFODATA, transfer);
    }
}

/* curl hashes, signs and dates the request as it leaves. */
static void transfer_set_sign(struct http_transfer *transfer)
{
    const struct http_send *send = &transfer->send;

    if (send->sign == NULL)
        return;
    (void)curl_easy_setopt(transfer->easy, CURLOPT_AWS_SIGV4, send->sign);
    (void)curl_easy_setopt(transfer->easy, CURLOPT_USERNAME, send->sign_user);
    (void)curl_easy_setopt(transfer->easy, CURLOPT_PASSWORD, send->sign_secret);
}

static struct http_transfer *transfer_new(struct http_client *client, const struct http_send *send)
{
    struct http_transfer *transfer = xcalloc(1, sizeof(*transfer));

    transfer->client = client;
    transfer->easy = client->spare_count > 0 ? client->spares[--client->spare_count]
                                             : curl_easy_init();
    if (transfer->easy == NULL)
        NEVER("memory is exhausted");
    transfer->send = *send;
    if (send->answer_size_max == 0 && send->on_receive == NULL)
        transfer->send.answer_size_max = 64u << 10;
    transfer->body = BUF_WITH_LIMIT(transfer->send.answer_size_max);
    transfer->next = client->transfers;
    if (transfer->next != NULL)
        transfer->next->prev = transfer;
    client->transfers = transfer;
    client->open_count++;
    return transfer;
}

int http_client_send(struct http_client *client, const struct http_send *send,
                     struct http_transfer **ret_transfer, struct err *err)
{
    struct http_transfer *transfer;
    CURLMcode code;
    int r = url_check(send->url, err);

    assert(!client->inside);
    if (r < 0)
        return r;
    transfer = transfer_new(client, send);
    r = transfer_set_headers(transfer, send, err);
    if (r < 0) {
        transfer_free(transfer);
        return r;
    }
    (void)curl_easy_setopt(transfer->easy, CURLOPT_URL, send->url);
    transfer_set_body(transfer);
    transfer_set_limits(transfer);
    transfer_set_sign(transfer);
    transfer->send.headers = NULL; /* curl has copies of all these */
    transfer->send.url = transfer->send.method = NULL;
    transfer->send.sign = transfer->send.sign_user = transfer->send.sign_secret = NULL;
    code = curl_multi_add_handle(client->multi, transfer->easy);
    if (code != CURLM_OK) {
        transfer_free(transfer);
        return err_set(err, ERR_INTERNAL, "start a transfer: %s", curl_multi_strerror(code));
    }
    if (ret_transfer != NULL)
        *ret_transfer = transfer;
    return 0;
}

/* ---- Clients */

static void global_init(void)
{
    if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK)
        NEVER("libcurl cannot be initialised");
}

int http_client_open(struct loop *loop, const struct http_client_options *options,
                     struct http_client **ret_client, struct err *err)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    struct http_client *client;
    uint32_t total = options->connection_count_max, per_host;

    (void)pthread_once(&once, global_init);
    if (options->ca_path != NULL && access(options->ca_path, R_OK) != 0)
        return err_set_errno(err, ERR_USAGE, "read CA bundle '%s'", options->ca_path);
    client = xcalloc(1, sizeof(*client));
    client->loop = loop;
    client->check_address = options->check_address;
    client->check_opaque = options->check_opaque;
    client->ca_path = options->ca_path == NULL ? NULL : xstrdup(options->ca_path);
    client->user_agent = xstrdup(options->user_agent == NULL ? "headrace/" HEADRACE_VERSION
                                                             : options->user_agent);
    client->timer = loop_timer_new(loop, client_timer_fired, client);
    client->multi = curl_multi_init();
    if (client->multi == NULL)
        NEVER("memory is exhausted");
    total = total == 0 ? 256 : total;
    per_host = options->connection_count_max_per_host;
    per_host = per_host == 0 ? 16 : per_host;
    (void)curl_multi_setopt(client->multi, CURLMOPT_SOCKETFUNCTION, client_set_socket);
    (void)curl_multi_setopt(client->multi, CURLMOPT_SOCKETDATA, client);
    (void)curl_multi_setopt(client->multi, CURLMOPT_TIMERFUNCTION, client_set_timer);
    (void)curl_multi_setopt(client->multi, CURLMOPT_TIMERDATA, client);
    (void)curl_multi_setopt(client->multi, CURLMOPT_MAX_TOTAL_CONNECTIONS, (long)total);
    (void)curl_multi_setopt(client->multi, CURLMOPT_MAX_HOST_CONNECTIONS, (long)per_host);
    (void)curl_multi_setopt(client->multi, CURLMOPT_MAXCONNECTS, (long)total);
    *ret_client = client;
    return 0;
}

void http_client_close(struct http_client **client_p)
{
    struct http_client *client = TAKE(*client_p);
    struct client_socket *at, *next;

    if (client == NULL)
        return;
    assert(!client->inside && !client->telling);
    while (client->transfers != NULL)
        http_transfer_cancel(client->transfers);
    while (client->spare_count > 0)
        curl_easy_cleanup(client->spares[--client->spare_count]);
    (void)curl_multi_cleanup(client->multi); /* tells of the sockets that it closes */
    HASH_ITER(hh, client->sockets, at, next)
    socket_forget(at);
    loop_timer_free(&client->timer);
    free(client->ca_path);
    free(client->user_agent);
    free(client);
}

uint32_t http_client_open_count(const struct http_client *client)
{
    return client->open_count;
}

/* ---- The blocking form */

struct blocking_call {
    const struct http_send *send;
    struct loop *loop;
};

static void call_done(const struct http_result *result, void *opaque)
{
    struct blocking_call *call = opaque;

    call->send->on_done(result, call->send->opaque);
    loop_stop(call->loop);
}

static bool call_receive(const void *bytes, size_t size, void *opaque)
{
    struct blocking_call *call = opaque;

    return call->send->on_receive(bytes, size, call->send->opaque);
}

static void call_progress(uint64_t sent_size, void *opaque)
{
    struct blocking_call *call = opaque;

    call->send->on_progress(sent_size, call->send->opaque);
}

int http_client_call(const struct http_client_options *options, const struct http_send *send,
                     struct err *err)
{
    OWNED(loop_close) struct loop *loop = NULL;
    OWNED(http_client_close) struct http_client *client = NULL;
    struct blocking_call call = {.send = send};
    struct http_send wrapped = *send;
    int r = loop_open(&loop, err);

    if (r < 0)
        return r;
    r = http_client_open(loop, options, &client, err);
    if (r < 0)
        return r;
    call.loop = loop;
    wrapped.on_done = call_done;
    wrapped.on_receive = send->on_receive == NULL ? NULL : call_receive;
    wrapped.on_progress = send->on_progress == NULL ? NULL : call_progress;
    wrapped.opaque = &call;
    r = http_client_send(client, &wrapped, NULL, err);
    if (r < 0)
        return r;
    loop_run(loop);
    return 0;
}
