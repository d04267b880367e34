/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: every request ends in exactly one on_done that says what happened; what the address check
 * refuses is never connected to. Method: client and server share one loop; faults come from raw
 * listeners. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <arpa/inet.h>
#include <cmocka.h>
#include <netinet/in.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/http_client.h"
#include "base/loop.h"

#define WAIT_MS 20000

struct world {
    struct loop *loop;
    struct http_server *server;
    struct http_client *client;
    char url[128];
    int done_count, seen;
    bool done;
    enum http_outcome outcome;
    int status;
    char body[8192], error[512], address[64], header[64];
    uint64_t progress;
    size_t received, receive_stop;
    char request_body[64], request_header[64], request_method[16];
    size_t request_body_size;
};

static struct world world;

static void on_request_body(struct http_request *request, void *opaque)
{
    struct buf *body = http_request_body(request);
    const struct http_header headers[] = {{"X-Answer", "yes"}, {"Location", "http://10.0.0.1/"}};
    const char *target = http_request_target(request);
    OWNED(buf_done) struct buf large = BUF_WITH_LIMIT(1 << 20);

    (void)opaque;
    world.request_body_size = body->size;
    mem_copy_text(world.request_body, buf_text(body));
    if (strcmp(target, "/large") == 0) {
        for (int i = 0; i < 10000; i++)
            buf_append_text(&large, "0123456789");
        http_request_answer_buf(&request, 200, NULL, 0, &large);
    } else if (strcmp(target, "/redirect") == 0) {
        http_request_answer(&request, 302, headers, 2, "moved", 5);
    } else {
        http_request_answer(&request, 200, headers, 1, "hello", 5);
    }
}

static void handler(struct http_request *request, void *opaque)
{
    const char *value = http_request_header(request, "X-Ask");

    (void)opaque;
    world.seen++;
    mem_copy_text(world.request_method, http_request_method(request));
    mem_copy_text(world.request_header, value == NULL ? "" : value);
    assert_null(http_request_header(request, "Expect"));
    if (strcmp(http_request_target(request), "/never") != 0)
        http_request_collect_body(request, 8 << 20, on_request_body, NULL);
    else
        http_request_collect_body(request, 0, on_request_body, NULL);
}

static void on_done(const struct http_result *result, void *opaque)
{
    const char *header = http_transfer_header(result->transfer, "x-answer");

    assert_ptr_equal(opaque, &world);
    world.done_count++;
    world.done = true;
    world.outcome = result->outcome;
    world.status = result->status;
    mem_copy_text(world.body, buf_text(result->body));
    mem_copy_text(world.error, result->error);
    mem_copy_text(world.address, result->address);
    mem_copy_text(world.header, header == NULL ? "" : header);
}

static bool on_receive(const void *bytes, size_t size, void *opaque)
{
    (void)bytes, (void)opaque;
    world.received += size;
    return world.receive_stop == 0 || world.received < world.receive_stop;
}

static void on_progress(uint64_t sent_size, void *opaque)
{
    (void)opaque;
    world.progress = sent_size;
}

static int world_open(void **state)
{
    struct err err;

    (void)state;
    memset(&world, 0, sizeof(world));
    if (loop_open(&world.loop, &err) < 0 ||
        http_server_open(world.loop, &(struct http_server_options){0}, handler, NULL, &world.server,
                         &err) < 0 ||
        http_client_open(world.loop, &(struct http_client_options){0}, &world.client, &err) < 0)
        return -1;
    return 0;
}

static int world_close(void **state)
{
    (void)state;
    http_client_close(&world.client);
    http_server_close(&world.server);
    loop_close(&world.loop);
    return 0;
}

static const char *url_of(const char *path)
{
    (void)snprintf(world.url, sizeof(world.url), "http://127.0.0.1:%u%s",
                   http_server_port(world.server), path);
    return world.url;
}

/* Sends, waits, and expects this outcome. */
static void exchange(struct http_send *send, enum http_outcome want)
{
    struct err err;

    world.done = false;
    world.done_count = 0;
    send->on_done = on_done;
    send->opaque = &world;
    if (http_client_send(world.client, send, NULL, &err) < 0)
        fail_msg("%s", err.text);
    assert_false(world.done);
    assert_true(loop_run_until(world.loop, &world.done, WAIT_MS));
    assert_int_equal(world.done_count, 1);
    if (world.outcome != want)
        fail_msg("outcome is %s: %s", http_outcome_name(world.outcome), world.error);
    assert_int_equal(http_client_open_count(world.client), 0);
}

static void test_methods_bodies_and_headers(void **state)
{
    const struct http_header ask[] = {{"X-Ask", "what?"}, {"X-Empty", ""}};
    struct http_send send = {.url = url_of("/"), .headers = ask, .header_count = 2};

    (void)state;
    exchange(&send, HTTP_OUTCOME_ANSWERED);
    assert_int_equal(world.status, 200);
    assert_string_equal(world.body, "hello");
    assert_string_equal(world.error, "");
    assert_string_equal(world.header, "yes");
    assert_string_equal(world.address, "127.0.0.1");
    assert_string_equal(world.request_method, "GET");
    assert_string_equal(world.request_header, "what?");

    send = (struct http_send){.url = url_of("/"), .body = "some", .body_size = 4};
    exchange(&send, HTTP_OUTCOME_ANSWERED);
    assert_string_equal(world.request_method, "POST");
    assert_string_equal(world.request_body, "some");
    send = (struct http_send){.url = url_of("/"), .method = "PATCH", .body = "x", .body_size = 1};
    exchange(&send, HTTP_OUTCOME_ANSWERED);
    assert_string_equal(world.request_method, "PATCH");
    send = (struct http_send){.url = url_of("/"), .method = "DELETE"};
    exchange(&send, HTTP_OUTCOME_ANSWERED);
    assert_string_equal(world.request_method, "DELETE");
    assert_int_equal(world.request_body_size, 0);
    send = (struct http_send){.url = url_of("/"), .method = "POST"};
    exchange(&send, HTTP_OUTCOME_ANSWERED);
    assert_string_equal(world.request_method, "POST");
    send = (struct http_send){.url = url_of("/"), .method = "HEAD"};
    exchange(&send, HTTP_OUTCOME_ANSWERED);
    assert_string_equal(world.body, "");
    assert_int_equal(http_server_counts(world.server).connections_total, 1); /* kept */
}

static void test_redirects_are_not_followed(void **state)
{
    struct http_send send = {.url = url_of("/redirect")};

    (void)state;
    exchange(&send, HTTP_OUTCOME_ANSWERED);
    assert_int_equal(world.status, 302);
    assert_int_equal(world.seen, 1);
}

static void test_answer_limit_and_streaming(void **state)
{
    struct http_send send = {.url = url_of("/large"), .answer_size_max = 99999};

    (void)state;
    exchange(&send, HTTP_OUTCOME_BODY_TOO_BIG);
    assert_int_equal(world.status, 200);
    send.answer_size_max = 100000;
    exchange(&send, HTTP_OUTCOME_ANSWERED);
    send = (struct http_send){.url = url_of("/large"), .on_receive = on_receive};
    exchange(&send, HTTP_OUTCOME_ANSWERED);
    assert_int_equal(world.received, 100000);
    world.received = 0;
    world.receive_stop = 10;
    exchange(&send, HTTP_OUTCOME_CANCELED);
    assert_true(world.received < 100000);
}

static void test_upload_from_a_file(void **state)
{
    FILE *file = tmpfile();
    struct http_send send = {.url = url_of("/"), .body_size = 3000000, .on_progress = on_progress};

    (void)state;
    for (int i = 0; i < 3000; i++) {
        char part[1000];

        memset(part, 'a' + i % 26, sizeof(part));
        (void)fwrite(part, 1, sizeof(part), file);
    }
    (void)fflush(file);
    send.body_fd = fileno(file);
    exchange(&send, HTTP_OUTCOME_ANSWERED);
    assert_int_equal(world.request_body_size, 3000000);
    assert_int_equal(world.progress, 3000000);
    send.body_size++; /* more than there is: not sent as if it were whole */
    exchange(&send, HTTP_OUTCOME_BROKEN);
    (void)fclose(file);
}

static int raw_listener(uint16_t *ret_port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof(address);
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    assert_int_equal(bind(fd, (struct sockaddr *)&address, size), 0);
    assert_int_equal(listen(fd, 5), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &size), 0);
    *ret_port = ntohs(address.sin_port);
    return fd;
}

static void test_failures_have_names(void **state)
{
    char url[128];
    uint16_t port;
    int fd = raw_listener(&port);
    struct http_send send = {.url = url, .timeout_ms = 100};

    (void)state;
    (void)snprintf(url, sizeof(url), "http://127.0.0.1:%u/", port);
    exchange(&send, HTTP_OUTCOME_TIMEOUT); /* accepted by the kernel, answered by nobody */
    assert_int_equal(world.status, 0);
    assert_string_not_equal(world.error, "");
    (void)close(fd);
    send.timeout_ms = 10000;
    exchange(&send, HTTP_OUTCOME_UNREACHABLE);
    (void)snprintf(url, sizeof(url), "http://no-such-host.invalid/");
    exchange(&send, HTTP_OUTCOME_NAME);
    (void)snprintf(url, sizeof(url), "https://127.0.0.1:%u/", http_server_port(world.server));
    exchange(&send, HTTP_OUTCOME_TLS);
}

static void write_and_hang_up(void *opaque, unsigned events)
{
    int peer = accept(*(int *)opaque, NULL, NULL);

    (void)events;
    (void)send(peer, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", 43, MSG_NOSIGNAL);
    (void)close(peer);
}

static void test_an_answer_that_breaks_off(void **state)
{
    char url[128];
    uint16_t port;
    int fd = raw_listener(&port);
    struct http_send send = {.url = url};
    struct loop_watch *watch = NULL;
    struct err err;

    (void)state;
    assert_int_equal(loop_watch_new(world.loop, fd, write_and_hang_up, &fd, &watch, &err), 0);
    loop_watch_set(watch, LOOP_READABLE);
    (void)snprintf(url, sizeof(url), "http://127.0.0.1:%u/", port);
    exchange(&send, HTTP_OUTCOME_BROKEN);
    loop_watch_free(&watch);
    (void)close(fd);
}

static int checked;

static bool refuse_all(const struct sockaddr *address, socklen_t address_size, void *opaque)
{
    assert_ptr_equal(opaque, &world);
    assert_true(address_size >= sizeof(struct sockaddr_in));
    assert_true(address->sa_family == AF_INET || address->sa_family == AF_INET6);
    checked++;
    return false;
}

static void test_refused_addresses_are_never_reached(void **state)
{
    static const char *const forms[] = {"127.0.0.1", "localhost", "2130706433", "0x7f.1"};
    struct http_client_options options = {.check_address = refuse_all, .check_opaque = &world};
    char url[128];
    struct http_send send = {.url = url};
    struct err err;

    (void)state;
    http_client_close(&world.client);
    assert_int_equal(http_client_open(world.loop, &options, &world.client, &err), 0);
    for (size_t i = 0; i < COUNT_OF(forms); i++) {
        (void)snprintf(url, sizeof(url), "http://%s:%u/", forms[i], http_server_port(world.server));
        exchange(&send, HTTP_OUTCOME_BLOCKED);
    }
    assert_true(checked >= 4);
    assert_int_equal(world.seen, 0);
    assert_int_equal(http_server_counts(world.server).connections_total, 0);
}

static void test_proxies_of_the_environment_are_ignored(void **state)
{
    struct http_send send = {.url = url_of("/")};

    (void)state;
    (void)setenv("http_proxy", "http://127.0.0.1:1", 1);
    exchange(&send, HTTP_OUTCOME_ANSWERED);
    (void)unsetenv("http_proxy");
}

static void test_bad_requests_are_refused_at_once(void **state)
{
    static const char *const urls[] = {"",        "nowhere",    "file:///etc/passwd", "gopher://x/",
                                       "http://", "http://a b/"};
    const struct http_header forged = {"X-Ask", "a\r\nX-Other: b"};
    struct http_send send = {.on_done = on_done, .opaque = &world};
    struct err err;

    (void)state;
    for (size_t i = 0; i < COUNT_OF(urls); i++) {
        send.url = urls[i];
        assert_int_equal(http_client_send(world.client, &send, NULL, &err), ERR_MALFORMED);
    }
    send.url = url_of("/");
    send.headers = &forged;
    send.header_count = 1;
    assert_int_equal(http_client_send(world.client, &send, NULL, &err), ERR_MALFORMED);
    assert_non_null(strstr(err.text, "X-Ask"));
    assert_int_equal(world.done_count, 0);
    assert_int_equal(http_client_open_count(world.client), 0);
}

static void test_cancel_and_close_tell(void **state)
{
    struct http_send send = {.url = url_of("/"), .on_done = on_done, .opaque = &world};
    struct http_transfer *transfer;
    struct err err;

    (void)state;
    assert_int_equal(http_client_send(world.client, &send, &transfer, &err), 0);
    http_transfer_cancel(transfer);
    assert_int_equal(world.done_count, 1);
    assert_int_equal(world.outcome, HTTP_OUTCOME_CANCELED);
    for (int i = 0; i < 3; i++)
        assert_int_equal(http_client_send(world.client, &send, NULL, &err), 0);
    assert_int_equal(http_client_open_count(world.client), 3);
    http_client_close(&world.client);
    assert_int_equal(world.done_count, 4);
}

static void on_one_of_many(const struct http_result *result, void *opaque)
{
    int *left = opaque;

    assert_int_equal(result->outcome, HTTP_OUTCOME_ANSWERED);
    world.done = --*left == 0;
}

static void test_many_at_once(void **state)
{
    int left = 500;
    struct http_send send = {
        .url = url_of("/"), .body = "x", .body_size = 1, .on_done = on_one_of_many};
    struct err err;

    (void)state;
    send.opaque = &left;
    for (int i = left; i > 0; i--)
        assert_int_equal(http_client_send(world.client, &send, NULL, &err), 0);
    assert_true(loop_run_until(world.loop, &world.done, WAIT_MS));
    assert_int_equal(world.seen, 500);
    assert_in_range(http_server_counts(world.server).connections_total, 1, 16);
}

/* A certificate for 127.0.0.1, signed by itself. */
static void make_certificate(const char *cert_path, const char *key_path)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *cert = X509_new();
    X509_EXTENSION *name = X509V3_EXT_conf_nid(NULL, NULL, NID_subject_alt_name, "IP:127.0.0.1");
    FILE *file;

    (void)X509_set_version(cert, 2);
    (void)ASN1_INTEGER_set(X509_get_serialNumber(cert), 1);
    (void)X509_gmtime_adj(X509_getm_notBefore(cert), -3600);
    (void)X509_gmtime_adj(X509_getm_notAfter(cert), 3600);
    (void)X509_set_pubkey(cert, key);
    (void)X509_NAME_add_entry_by_txt(X509_get_subject_name(cert), "CN", MBSTRING_ASC,
                                     (const unsigned char *)"test", -1, -1, 0);
    (void)X509_set_issuer_name(cert, X509_get_subject_name(cert));
    (void)X509_add_ext(cert, name, -1);
    assert_true(X509_sign(cert, key, EVP_sha256()) > 0);
    file = fopen(cert_path, "w");
    (void)PEM_write_X509(file, cert);
    (void)fclose(file);
    file = fopen(key_path, "w");
    (void)PEM_write_PrivateKey(file, key, NULL, NULL, 0, NULL, NULL);
    (void)fclose(file);
    X509_EXTENSION_free(name);
    X509_free(cert);
    EVP_PKEY_free(key);
}

static void test_tls(void **state)
{
    char folder[] = "/tmp/test_http_XXXXXX", cert[64], key[64], url[128];
    struct http_server_options server = {.tls_cert_path = cert, .tls_key_path = key};
    struct http_client_options trusting = {.ca_path = cert};
    struct http_send send = {.url = url, .body = "secret", .body_size = 6};
    struct err err;

    (void)state;
    assert_non_null(mkdtemp(folder));
    (void)snprintf(cert, sizeof(cert), "%s/cert.pem", folder);
    (void)snprintf(key, sizeof(key), "%s/key.pem", folder);
    make_certificate(cert, key);
    http_server_close(&world.server);
    assert_int_equal(http_server_open(world.loop, &server, handler, NULL, &world.server, &err), 0);
    (void)snprintf(url, sizeof(url), "https://127.0.0.1:%u/", http_server_port(world.server));
    exchange(&send, HTTP_OUTCOME_TLS); /* nobody vouches for this server */
    assert_int_equal(world.seen, 0);
    http_client_close(&world.client);
    assert_int_equal(http_client_open(world.loop, &trusting, &world.client, &err), 0);
    exchange(&send, HTTP_OUTCOME_ANSWERED);
    assert_string_equal(world.request_body, "secret");
    (void)unlink(cert);
    (void)unlink(key);
    (void)rmdir(folder);
    trusting.ca_path = "/nowhere/ca.pem";
    http_client_close(&world.client);
    assert_int_equal(http_client_open(world.loop, &trusting, &world.client, &err), ERR_USAGE);
}

static void test_blocking_call(void **state)
{
    struct http_send send = {.url = "http://127.0.0.1:1/", .on_done = on_done, .opaque = &world};
    struct err err;

    (void)state;
    assert_int_equal(http_client_call(&(struct http_client_options){0}, &send, &err), 0);
    assert_int_equal(world.outcome, HTTP_OUTCOME_UNREACHABLE);
    send.url = "nowhere";
    assert_int_equal(http_client_call(&(struct http_client_options){0}, &send, &err),
                     ERR_MALFORMED);
    assert_int_equal(world.done_count, 1);
}

static void test_where_a_redirect_leads_to(void **state)
{
    static const struct {
        const char *url, *location, *expected; /* NULL: to no URL of ours */
    } rows[] = {
        {"http://a.example/b/c?d=1", "e", "http://a.example/b/e"},
        {"http://a.example/b/c?d=1", "/e?f", "http://a.example/e?f"},
        {"https://a.example/b", "//other.example/x", "https://other.example/x"},
        {"http://a.example/", "https://b.example:8443/c", "https://b.example:8443/c"},
        {"http://a.example/", "ftp://a.example/", NULL},
        {"http://a.example/", "file:///etc/passwd", NULL},
        {"a", "b", NULL},
        {"http://", "http://", NULL},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        char *url = NULL;
        struct err err;
        int r = http_url_resolve(rows[i].url, rows[i].location, &url, &err);

        if (rows[i].expected == NULL) {
            assert_int_equal(r, ERR_MALFORMED);
            assert_non_null(strstr(err.text, rows[i].location));
        } else {
            assert_int_equal(r, 0);
            assert_string_equal(url, rows[i].expected);
        }
        free(url);
    }
}

#define IN_WORLD(test) cmocka_unit_test_setup_teardown(test, world_open, world_close)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_where_a_redirect_leads_to),
        IN_WORLD(test_methods_bodies_and_headers),
        IN_WORLD(test_redirects_are_not_followed),
        IN_WORLD(test_answer_limit_and_streaming),
        IN_WORLD(test_upload_from_a_file),
        IN_WORLD(test_failures_have_names),
        IN_WORLD(test_an_answer_that_breaks_off),
        IN_WORLD(test_refused_addresses_are_never_reached),
        IN_WORLD(test_proxies_of_the_environment_are_ignored),
        IN_WORLD(test_bad_requests_are_refused_at_once),
        IN_WORLD(test_cancel_and_close_tell),
        IN_WORLD(test_many_at_once),
        IN_WORLD(test_tls),
        IN_WORLD(test_blocking_call),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
