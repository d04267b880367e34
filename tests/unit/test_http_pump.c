/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: bytes of an upgraded TLS connection arrive whole and in order, both ways and however slowly
 * either side reads; what the holder wrote is sent after it has closed; ends are passed on. Method:
 * the server and a client of OpenSSL share one loop, the certificate is made here. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <arpa/inet.h>
#include <cmocka.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <openssl/ec.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/http_server.h"
#include "base/loop.h"

#define ASK "GET /chat HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"
#define MUCH (6u << 20)
#define PART 30000

struct world {
    struct loop *loop;
    struct http_server *server;
    struct http_request *request;
    struct http_upgraded *upgraded;
    int fd, client, opened;
    SSL_CTX *context;
    SSL *ssl;
    char cert[64], key[64];
};

static struct world world;

static void on_open(void *opaque, int fd, const void *bytes, size_t size)
{
    (void)opaque, (void)bytes;
    assert_int_equal(size, 0);
    world.opened++;
    world.fd = fd;
}

static void on_gone(void *opaque)
{
    (void)opaque;
    world.upgraded = NULL;
}

static void handler(struct http_request *request, void *opaque)
{
    (void)opaque;
    world.request = request;
}

static void file_of(char path[64], FILE **ret_file)
{
    (void)snprintf(path, 64, "/tmp/headrace-test-XXXXXX");
    *ret_file = fdopen(mkstemp(path), "w");
    assert_non_null(*ret_file);
}

static void certificate_make(void)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *cert = X509_new();
    FILE *file;

    (void)ASN1_INTEGER_set(X509_get_serialNumber(cert), 1);
    (void)X509_gmtime_adj(X509_getm_notBefore(cert), 0);
    (void)X509_gmtime_adj(X509_getm_notAfter(cert), 3600);
    assert_int_equal(X509_set_pubkey(cert, key), 1);
    assert_true(X509_sign(cert, key, EVP_sha256()) > 0);
    file_of(world.cert, &file);
    assert_int_equal(PEM_write_X509(file, cert), 1);
    (void)fclose(file);
    file_of(world.key, &file);
    assert_int_equal(PEM_write_PrivateKey(file, key, NULL, NULL, 0, NULL, NULL), 1);
    (void)fclose(file);
    X509_free(cert);
    EVP_PKEY_free(key);
}

static void turns(int count)
{
    bool never = false;

    for (int i = 0; i < count; i++)
        (void)loop_run_until(world.loop, &never, 1);
}

static void turn(void) /* without waiting */
{
    bool never = false;

    (void)loop_run_until(world.loop, &never, 0);
}

static void client_open(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};

    address.sin_port = htons(http_server_port(world.server));
    world.client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(world.client, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(fcntl(world.client, F_SETFL, O_NONBLOCK), 0);
    world.context = SSL_CTX_new(TLS_client_method());
    (void)SSL_CTX_set_mode(world.context,
                           SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    world.ssl = SSL_new(world.context);
    assert_int_equal(SSL_set_fd(world.ssl, world.client), 1);
    for (int i = 0; i < 1000 && SSL_connect(world.ssl) != 1; i++)
        turns(1);
    assert_true(SSL_is_init_finished(world.ssl));
}

/* The client has asked, the server has answered, the client has read that. */
static void upgrade(void)
{
    static const struct http_upgrade_calls calls = {.on_open = on_open, .on_gone = on_gone};
    const struct http_header header = {"Upgrade", "echo"};
    char bytes[1024];
    size_t size = 0;

    assert_int_equal(SSL_write(world.ssl, ASK, (int)strlen(ASK)), (int)strlen(ASK));
    for (int i = 0; i < 1000 && world.request == NULL; i++)
        turns(1);
    assert_non_null(world.request);
    world.upgraded = http_request_upgrade(&world.request, &header, 1, &calls, NULL);
    for (int i = 0; i < 1000 && (size < 4 || memcmp(bytes + size - 4, "\r\n\r\n", 4) != 0); i++) {
        int n = SSL_read(world.ssl, bytes + size, (int)(sizeof(bytes) - size));

        size += n > 0 ? (size_t)n : 0;
        turns(1);
    }
    assert_memory_equal(bytes, "HTTP/1.1 101 ", 13);
    assert_int_equal(world.opened, 1);
}

static int world_open(void **state)
{
    struct http_server_options options = {0};
    struct err err;

    (void)state;
    memset(&world, 0, sizeof(world));
    certificate_make();
    options.tls_cert_path = world.cert;
    options.tls_key_path = world.key;
    if (loop_open(&world.loop, &err) < 0 ||
        http_server_open(world.loop, &options, handler, NULL, &world.server, &err) < 0)
        return -1;
    client_open();
    upgrade();
    return 0;
}

static int world_close(void **state)
{
    (void)state;
    http_upgraded_close(&world.upgraded);
    http_server_close(&world.server);
    loop_close(&world.loop);
    SSL_free(world.ssl);
    SSL_CTX_free(world.context);
    (void)close(world.client);
    (void)unlink(world.cert);
    (void)unlink(world.key);
    return 0;
}

/* A byte of a place: what is lost, doubled or moved is seen. */
static uint8_t byte_at(size_t at)
{
    return (uint8_t)(at * 31 + at / 4099);
}

static size_t part_at(size_t at, size_t end, uint8_t to[PART])
{
    size_t size = end - at < PART ? end - at : PART;

    for (size_t i = 0; i < size; i++)
        to[i] = byte_at(at + i);
    return size;
}

static size_t part_check(size_t at, const uint8_t *bytes, ssize_t size)
{
    for (ssize_t i = 0; i < size; i++)
        assert_int_equal(bytes[i], byte_at(at + (size_t)i));
    return size > 0 ? (size_t)size : 0;
}

static size_t client_write(size_t at, size_t end)
{
    uint8_t bytes[PART];
    size_t size = part_at(at, end, bytes);
    int n = size == 0 ? 0 : SSL_write(world.ssl, bytes, (int)size);

    return n > 0 ? (size_t)n : 0;
}

static size_t client_read(size_t at)
{
    uint8_t bytes[PART];

    return part_check(at, bytes, SSL_read(world.ssl, bytes, sizeof(bytes)));
}

static size_t holder_write(size_t at, size_t end)
{
    uint8_t bytes[PART];
    size_t size = part_at(at, end, bytes);
    ssize_t n = size == 0 ? 0 : send(world.fd, bytes, size, MSG_NOSIGNAL | MSG_DONTWAIT);

    return n > 0 ? (size_t)n : 0;
}

static size_t holder_read(size_t at)
{
    uint8_t bytes[PART];

    return part_check(at, bytes, recv(world.fd, bytes, sizeof(bytes), MSG_DONTWAIT));
}

/* Each side reads once in so many turns: 0 never. */
static void carry(size_t up, size_t down, int client_pace, int holder_pace, int turn_max)
{
    size_t sent_up = 0, sent_down = 0, got_up = 0, got_down = 0;

    for (int i = 0; i < turn_max && (got_up < up || got_down < down); i++) {
        sent_up += client_write(sent_up, up);
        sent_down += holder_write(sent_down, down);
        if (i % client_pace == 0)
            got_down += client_read(got_down);
        if (i % holder_pace == 0)
            got_up += holder_read(got_up);
        turn();
    }
    assert_int_equal(got_up, up);
    assert_int_equal(got_down, down);
}

static void test_much_both_ways(void **state)
{
    (void)state;
    carry(MUCH, MUCH, 1, 1, 20000);
}

static void test_much_to_a_client_that_says_nothing(void **state)
{
    (void)state;
    carry(0, MUCH, 3, 1, 20000);
}

static void test_much_to_a_holder_that_is_slow(void **state)
{
    (void)state;
    carry(MUCH, 0, 1, 3, 20000);
}

/* Both stop sending into a side that does not read. */
static void test_nothing_is_read_ahead_without_bound(void **state)
{
    size_t up = 0, down = 0;

    (void)state;
    for (int i = 0; i < 400; i++) {
        up += client_write(up, 4 * MUCH);
        down += holder_write(down, 4 * MUCH);
        turn();
    }
    assert_in_range(up, 1, 4 * MUCH - 1);
    assert_in_range(down, 1, 4 * MUCH - 1);
}

static void test_what_was_written_is_sent_after_the_close(void **state)
{
    size_t sent = holder_write(0, PART), got = 0;
    int n = 1;

    (void)state;
    assert_int_equal(sent, PART);
    http_upgraded_close(&world.upgraded);
    for (int i = 0; i < 1000 && !(SSL_get_shutdown(world.ssl) & SSL_RECEIVED_SHUTDOWN); i++) {
        got += client_read(got);
        turns(1);
    }
    assert_int_equal(got, sent);
    n = SSL_read(world.ssl, &(char){0}, 1);
    assert_int_equal(SSL_get_error(world.ssl, n), SSL_ERROR_ZERO_RETURN); /* close_notify */
    for (int i = 0; i < 100 && http_server_counts(world.server).connections > 0; i++)
        turns(1);
    assert_int_equal(http_server_counts(world.server).connections, 0);
    assert_int_equal(http_server_counts(world.server).requests, 0);
}

static void test_ends_of_a_client_are_passed_on(void **state)
{
    char byte;
    ssize_t n = -1;

    (void)state;
    assert_int_equal(SSL_write(world.ssl, "last", 4), 4);
    (void)SSL_shutdown(world.ssl);
    for (int i = 0; i < 4; i++) {
        for (n = -1; n < 0; turns(1))
            n = recv(world.fd, &byte, 1, MSG_DONTWAIT);
        assert_int_equal(byte, "last"[i]);
    }
    for (int i = 0; i < 1000 && (n = recv(world.fd, &byte, 1, MSG_DONTWAIT)) < 0; i++)
        turns(1);
    assert_int_equal(n, 0);
    assert_int_equal(holder_write(0, PART), PART); /* the other way is open */
    for (size_t got = 0; got < PART; turns(1))
        got += client_read(got);
}

static void test_a_client_that_breaks_off(void **state)
{
    const struct linger reset = {.l_onoff = 1};
    ssize_t n = -1;

    (void)state;
    assert_int_equal(setsockopt(world.client, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset)), 0);
    (void)close(world.client);
    world.client = dup(0);
    for (int i = 0; i < 1000 && (n = recv(world.fd, &(char){0}, 1, MSG_DONTWAIT)) < 0; i++)
        turns(1);
    assert_int_equal(n, 0);
    http_upgraded_close(&world.upgraded);
    for (int i = 0; i < 100 && http_server_counts(world.server).connections > 0; i++)
        turns(1);
    assert_int_equal(http_server_counts(world.server).connections, 0);
}

/* A server that closes waits for nobody who does not read. */
static void test_a_server_closes_under_it(void **state)
{
    int full = 0;

    (void)state;
    while (full < 20) {
        full = holder_write(0, PART) == 0 ? full + 1 : 0;
        turn();
    }
    http_upgraded_close(&world.upgraded);
    turns(5);
    assert_int_equal(http_server_counts(world.server).connections, 1);
}

#define IN_WORLD(test) cmocka_unit_test_setup_teardown(test, world_open, world_close)

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_WORLD(test_much_both_ways),
        IN_WORLD(test_much_to_a_client_that_says_nothing),
        IN_WORLD(test_much_to_a_holder_that_is_slow),
        IN_WORLD(test_nothing_is_read_ahead_without_bound),
        IN_WORLD(test_what_was_written_is_sent_after_the_close),
        IN_WORLD(test_ends_of_a_client_are_passed_on),
        IN_WORLD(test_a_client_that_breaks_off),
        IN_WORLD(test_a_server_closes_under_it),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
