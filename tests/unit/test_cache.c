/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: what brokers/cache.h promises when Redis answers, refuses, is silent, or goes away. Method:
 * a thread that speaks enough of Redis' protocol, so that no server is needed; tests/stack runs the
 * same code against the real one. */

#include <arpa/inet.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/loop.h"
#include "brokers/cache.h"
#include "brokers/cache_link.h"
#include "schema/job_id.h"

#define WAIT_MS 10000
#define PEERS_MAX 8

/* ---- A Redis of a hundred lines: one key, one channel */

struct peer {
    int fd;
    bool subscribed;
    char bytes[65536];
    size_t size;
};

struct fake {
    int listener, stop_fd;
    uint16_t port;
    pthread_t thread;
    struct peer peers[PEERS_MAX];
    char key[256], value[4096];
    _Atomic bool mute, stop, drop;
    _Atomic uint32_t auth_count;
};

static void fake_say(int fd, const char *text)
{
    (void)!write(fd, text, strlen(text)); /* the peer may have left: its tests tell */
}

static void fake_say_bulk(int fd, const char *text)
{
    char to[8192];

    (void)snprintf(to, sizeof(to), "$%zu\r\n%s\r\n", strlen(text), text);
    fake_say(fd, to);
}

static void fake_publish(struct fake *fake, int fd, const char *channel, const char *text)
{
    char to[8192];

    for (int i = 0; i < PEERS_MAX; i++) {
        if (fake->peers[i].fd < 0 || !fake->peers[i].subscribed)
            continue;
        (void)snprintf(to, sizeof(to), "*3\r\n$7\r\nmessage\r\n$%zu\r\n%s\r\n$%zu\r\n%s\r\n",
                       strlen(channel), channel, strlen(text), text);
        fake_say(fake->peers[i].fd, to);
    }
    fake_say(fd, ":1\r\n");
}

static void fake_serve(struct fake *fake, struct peer *peer, int count, char **words)
{
    char to[512];

    if (strcmp(words[0], "PING") == 0) {
        fake_say(peer->fd, "+PONG\r\n");
    } else if (strcmp(words[0], "AUTH") == 0) {
        fake->auth_count++;
        fake_say(peer->fd, strcmp(words[count - 1], "secret") == 0 ? "+OK\r\n" : "-WRONGPASS\r\n");
    } else if (strcmp(words[0], "SELECT") == 0) {
        fake_say(peer->fd, "+OK\r\n");
    } else if (strcmp(words[0], "SET") == 0) {
        mem_copy_text(fake->key, words[1]);
        mem_copy_text(fake->value, words[2]);
        fake_say(peer->fd, "+OK\r\n");
    } else if (strcmp(words[0], "GET") == 0) {
        if (strcmp(fake->key, words[1]) == 0)
            fake_say_bulk(peer->fd, fake->value);
        else
            fake_say(peer->fd, "$-1\r\n");
    } else if (strcmp(words[0], "PUBLISH") == 0) {
        fake_publish(fake, peer->fd, words[1], words[2]);
    } else if (strcmp(words[0], "SUBSCRIBE") == 0) {
        peer->subscribed = true;
        (void)snprintf(to, sizeof(to), "*3\r\n$9\r\nsubscribe\r\n$%zu\r\n%s\r\n:1\r\n",
                       strlen(words[1]), words[1]);
        fake_say(peer->fd, to);
    } else {
        fake_say(peer->fd, "-ERR unknown command\r\n");
    }
}

/* Serves one whole command at the start of the peer's bytes; 0 when it is not all there yet. */
static size_t fake_parse(struct fake *fake, struct peer *peer)
{
    char *words[16], *at = peer->bytes, *end = peer->bytes + peer->size;
    int count, offset;

    if (peer->size < 4 || sscanf(at, "*%d\r\n%n", &count, &offset) != 1)
        return 0;
    at += offset;
    for (int i = 0; i < count; i++) {
        int size;

        if (at >= end || sscanf(at, "$%d\r\n%n", &size, &offset) != 1 ||
            at + offset + size + 2 > end)
            return 0;
        words[i] = at + offset;
        at += offset + size + 2;
    }
    for (int i = 0; i < count; i++)
        *strchr(words[i], '\r') = 0;
    if (!fake->mute)
        fake_serve(fake, peer, count, words);
    return (size_t)(at - peer->bytes);
}

static void fake_read(struct fake *fake, struct peer *peer)
{
    ssize_t got = read(peer->fd, peer->bytes + peer->size, sizeof(peer->bytes) - 1 - peer->size);
    size_t used;

    if (got <= 0) {
        (void)close(peer->fd);
        peer->fd = -1;
        return;
    }
    peer->size += (size_t)got;
    peer->bytes[peer->size] = 0;
    while ((used = fake_parse(fake, peer)) > 0) {
        memmove(peer->bytes, peer->bytes + used, peer->size - used + 1);
        peer->size -= used;
    }
}

static void fake_accept(struct fake *fake)
{
    int fd = accept(fake->listener, NULL, NULL);

    for (int i = 0; i < PEERS_MAX; i++) {
        if (fake->peers[i].fd >= 0)
            continue;
        fake->peers[i] = (struct peer){.fd = fd};
        return;
    }
    (void)close(fd);
}

static void fake_drop(struct fake *fake)
{
    for (int i = 0; i < PEERS_MAX; i++) {
        if (fake->peers[i].fd >= 0)
            (void)close(fake->peers[i].fd);
        fake->peers[i].fd = -1;
    }
    fake->drop = false;
}

static void *fake_run(void *opaque)
{
    struct fake *fake = opaque;

    while (!fake->stop) {
        struct pollfd fds[PEERS_MAX + 2] = {{.fd = fake->listener, .events = POLLIN},
                                            {.fd = fake->stop_fd, .events = POLLIN}};
        uint64_t count;

        for (int i = 0; i < PEERS_MAX; i++)
            fds[i + 2] = (struct pollfd){.fd = fake->peers[i].fd, .events = POLLIN};
        (void)poll(fds, PEERS_MAX + 2, -1);
        if (fds[1].revents != 0)
            (void)!read(fake->stop_fd, &count, sizeof(count));
        if (fds[0].revents != 0)
            fake_accept(fake);
        for (int i = 0; i < PEERS_MAX; i++) {
            if (fds[i + 2].fd >= 0 && fds[i + 2].revents != 0)
                fake_read(fake, &fake->peers[i]);
        }
        if (fake->drop)
            fake_drop(fake);
    }
    fake_drop(fake);
    return NULL;
}

static void fake_wake(struct fake *fake)
{
    const uint64_t one = 1;

    (void)!write(fake->stop_fd, &one, sizeof(one));
}

/* port 0: any */
static void fake_start(struct fake *fake, uint16_t port)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof(address);
    const int yes = 1;

    fake->stop = false;
    for (int i = 0; i < PEERS_MAX; i++)
        fake->peers[i].fd = -1;
    fake->stop_fd = eventfd(0, EFD_CLOEXEC);
    fake->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    (void)setsockopt(fake->listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
    assert_int_equal(bind(fake->listener, (struct sockaddr *)&address, size), 0);
    assert_int_equal(listen(fake->listener, 8), 0);
    assert_int_equal(getsockname(fake->listener, (struct sockaddr *)&address, &size), 0);
    fake->port = ntohs(address.sin_port);
    assert_int_equal(pthread_create(&fake->thread, NULL, fake_run, fake), 0);
}

static void fake_stop(struct fake *fake)
{
    fake->stop = true;
    fake_wake(fake);
    (void)pthread_join(fake->thread, NULL);
    (void)close(fake->listener);
    (void)close(fake->stop_fd);
}

/* ---- The world */

struct world {
    struct fake fake;
    bool running;
    struct loop *loop;
    struct cache *cache;
    bool up, down;
};

struct answer {
    bool done;
    int code;
    uint32_t count;
    char text[4096];
};

static void on_state(void *opaque, bool connected)
{
    struct world *world = opaque;

    world->up = connected;
    world->down = !connected;
}

static void on_answer(void *opaque, int code, const void *bytes, size_t size)
{
    struct answer *answer = opaque;

    answer->done = true;
    answer->count++;
    answer->code = code;
    (void)snprintf(answer->text, sizeof(answer->text), "%.*s", (int)size, (const char *)bytes);
}

static void world_open(struct world *world, const char *credentials)
{
    char url[128];
    const struct cache_options options = {.url = url,
                                          .in_flight_max = 100,
                                          .reply_timeout_ms = 200,
                                          .on_state = on_state,
                                          .opaque = world};
    struct err err;

    (void)snprintf(url, sizeof(url), "redis://%s127.0.0.1:%u/2", credentials, world->fake.port);
    assert_int_equal(cache_open(world->loop, &options, &world->cache, &err), 0);
}

static int world_setup(void **state)
{
    struct world *world = xcalloc(1, sizeof(*world));
    struct err err;

    assert_int_equal(loop_open(&world->loop, &err), 0);
    fake_start(&world->fake, 0);
    world->running = true;
    *state = world;
    return 0;
}

static int world_teardown(void **state)
{
    struct world *world = *state;

    cache_close(&world->cache);
    loop_close(&world->loop);
    if (world->running)
        fake_stop(&world->fake);
    free(world);
    return 0;
}

static struct wire_id an_id(uint8_t last)
{
    struct wire_id id = {{0x01, 0x90, 0, 0, 0, 0, 0x70}};

    id.bytes[WIRE_ID_SIZE - 1] = last;
    return id;
}

/* ---- Tests */

static void test_final_result_is_set_and_found(void **state)
{
    struct world *world = *state;
    struct wire_id id = an_id(1), other = an_id(2);
    struct answer set = {0}, get = {0}, missing = {0};

    world_open(world, "user:secret@");
    assert_int_equal(cache_get_final(world->cache, &id, on_answer, &get), ERR_UNAVAILABLE);
    assert_true(loop_run_until(world->loop, &world->up, WAIT_MS));
    assert_int_equal(world->fake.auth_count, 1);
    assert_int_equal(cache_set_final(world->cache, &id, "result", 6, 60, on_answer, &set), 0);
    assert_int_equal(cache_get_final(world->cache, &id, on_answer, &get), 0);
    assert_int_equal(cache_get_final(world->cache, &other, on_answer, &missing), 0);
    assert_false(get.done);
    assert_true(loop_run_until(world->loop, &missing.done, WAIT_MS));
    assert_int_equal(set.code, 0);
    assert_int_equal(get.code, 0);
    assert_string_equal(get.text, "result");
    assert_int_equal(missing.code, ERR_NOT_FOUND);
    assert_int_equal(cache_counts(world->cache).in_flight, 0);
}

static void test_replies_of_other_types_are_handed_out(void **state)
{
    struct world *world = *state;
    const char *publish[] = {"PUBLISH", "c", "m"}, *nonsense[] = {"NONSENSE"};
    const size_t publish_sizes[] = {7, 1, 1}, nonsense_sizes[] = {8};
    struct answer number = {0}, error = {0};

    world_open(world, "");
    assert_true(loop_run_until(world->loop, &world->up, WAIT_MS));
    assert_int_equal(cache_command(world->cache, 3, publish, publish_sizes, on_answer, &number), 0);
    assert_int_equal(cache_command(world->cache, 1, nonsense, nonsense_sizes, on_answer, &error),
                     0);
    assert_true(loop_run_until(world->loop, &error.done, WAIT_MS));
    assert_string_equal(number.text, "1");
    assert_int_equal(error.code, ERR_IO);
    assert_string_equal(error.text, "ERR unknown command");
}

static void test_in_flight_is_bounded_and_answered_when_the_connection_dies(void **state)
{
    struct world *world = *state;
    struct wire_id id = an_id(1);
    struct answer answer = {0}, refused = {0}, later = {0};

    world_open(world, "");
    assert_true(loop_run_until(world->loop, &world->up, WAIT_MS));
    world->fake.mute = true;
    for (int i = 0; i < 100; i++)
        assert_int_equal(cache_get_final(world->cache, &id, on_answer, &answer), 0);
    assert_int_equal(cache_get_final(world->cache, &id, on_answer, &refused), ERR_FULL);
    /* Nothing comes back: after reply_timeout_ms the connection is given up. */
    assert_true(loop_run_until(world->loop, &world->down, WAIT_MS));
    assert_int_equal(answer.count, 100);
    assert_int_equal(answer.code, ERR_UNAVAILABLE);
    assert_int_equal(refused.count, 0);
    world->fake.mute = false;
    assert_true(loop_run_until(world->loop, &world->up, WAIT_MS));
    assert_int_equal(cache_get_final(world->cache, &id, on_answer, &later), 0);
    assert_true(loop_run_until(world->loop, &later.done, WAIT_MS));
    assert_int_equal(later.code, ERR_NOT_FOUND);
}

static void test_restart_of_redis_is_survived(void **state)
{
    struct world *world = *state;
    struct wire_id id = an_id(1);
    uint16_t port = world->fake.port;
    struct answer answer = {0};
    bool never = false;

    world_open(world, "");
    assert_true(loop_run_until(world->loop, &world->up, WAIT_MS));
    fake_stop(&world->fake);
    world->running = false;
    assert_true(loop_run_until(world->loop, &world->down, WAIT_MS));
    assert_int_equal(cache_set_final(world->cache, &id, "x", 1, 60, on_answer, &answer),
                     ERR_UNAVAILABLE);
    (void)loop_run_until(world->loop, &never, 250); /* some refused connections */
    fake_start(&world->fake, port);
    world->running = true;
    assert_true(loop_run_until(world->loop, &world->up, WAIT_MS));
    assert_int_equal(cache_counts(world->cache).connects, 2);
}

static void test_wrong_password_never_counts_as_connected(void **state)
{
    struct world *world = *state;
    bool never = false;

    world_open(world, ":wrong@");
    while (world->fake.auth_count < 3)
        (void)loop_run_until(world->loop, &never, 10);
    assert_false(world->up);
    assert_false(cache_connected(world->cache));
}

struct heard {
    struct answer message;
    bool subscribed, joined;
    char name[32];
    uint32_t subscribed_count;
};

static void on_message(void *opaque, const void *bytes, size_t size)
{
    on_answer(&((struct heard *)opaque)->message, 0, bytes, size);
}

static void on_subscribed(void *opaque)
{
    struct heard *heard = opaque;

    heard->subscribed = true;
    heard->subscribed_count++;
}

static void on_joined(void *opaque, const char *name)
{
    struct heard *heard = opaque;

    heard->joined = true;
    (void)snprintf(heard->name, sizeof(heard->name), "%s", name);
}

static void test_wake_up_reaches_the_listener_also_after_a_loss(void **state)
{
    static const struct cache_listener_calls calls = {on_message, on_subscribed, on_joined};
    struct world *world = *state;
    struct cache_listener *listener;
    struct heard heard = {0};
    struct err err;

    world_open(world, "");
    assert_int_equal(cache_listen(world->cache, "boot-1", &calls, &heard, &listener, &err), 0);
    assert_true(loop_run_until(world->loop, &heard.subscribed, WAIT_MS));
    assert_true(world->up || loop_run_until(world->loop, &world->up, WAIT_MS));
    assert_int_equal(cache_wake(world->cache, WIRE_TEXT_OF("boot-1"), "wake", 4), 0);
    assert_true(loop_run_until(world->loop, &heard.message.done, WAIT_MS));
    assert_string_equal(heard.message.text, "wake");

    heard.subscribed = false;
    world->fake.drop = true;
    fake_wake(&world->fake);
    assert_true(loop_run_until(world->loop, &heard.subscribed, WAIT_MS));
    assert_int_equal(heard.subscribed_count, 2);
    cache_listener_close(&listener);
}

static void test_other_channels_are_joined_and_left(void **state)
{
    static const struct cache_listener_calls calls = {on_message, on_subscribed, on_joined};
    struct world *world = *state;
    struct cache_listener *listener;
    struct heard heard = {0};
    struct err err;

    world_open(world, "");
    assert_int_equal(cache_listen(world->cache, "boot-1", &calls, &heard, &listener, &err), 0);
    cache_listener_join(listener, "job-7"); /* before there is a connection */
    cache_listener_join(listener, "job-7");
    assert_true(loop_run_until(world->loop, &heard.joined, WAIT_MS));
    assert_string_equal(heard.name, "job-7");
    assert_true(world->up || loop_run_until(world->loop, &world->up, WAIT_MS));
    assert_int_equal(cache_wake(world->cache, WIRE_TEXT_OF("job-7"), "wake", 4), 0);
    assert_true(loop_run_until(world->loop, &heard.message.done, WAIT_MS));
    cache_listener_leave(listener, "job-7");
    heard.joined = false;
    world->fake.drop = true;
    fake_wake(&world->fake);
    assert_true(loop_run_until(world->loop, &heard.joined, WAIT_MS)); /* one has not left */
    cache_listener_leave(listener, "job-7");
    cache_listener_close(&listener);
}

static void test_addresses(void **state)
{
    static const struct {
        const char *url, *host, *path, *user, *password; /* host and path NULL: refused */
        uint16_t port;
        uint32_t database;
    } rows[] = {
        {"redis://h", "h", NULL, NULL, NULL, 6379, 0},
        {"redis://h:1/3", "h", NULL, NULL, NULL, 1, 3},
        {"redis://:p@h:1", "h", NULL, NULL, "p", 1, 0},
        {"redis://u:p:q@h/", "h", NULL, "u", "p:q", 6379, 0},
        {"redis://[::1]:7", "::1", NULL, NULL, NULL, 7, 0},
        {"unix:///run/r.sock", NULL, "/run/r.sock", NULL, NULL, 0, 0},
        {"rediss://h", NULL, NULL, NULL, NULL, 0, 0},
        {"redis://h:99999", NULL, NULL, NULL, NULL, 0, 0},
        {"redis://h:x", NULL, NULL, NULL, NULL, 0, 0},
        {"redis://", NULL, NULL, NULL, NULL, 0, 0},
        {"h:6379", NULL, NULL, NULL, NULL, 0, 0},
        {"", NULL, NULL, NULL, NULL, 0, 0},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        struct cache_address address = {0};
        struct err err;
        bool good = rows[i].host != NULL || rows[i].path != NULL;

        print_message("%s\n", rows[i].url);
        assert_int_equal(cache_address_parse(rows[i].url, &address, &err), good ? 0 : ERR_USAGE);
        if (!good)
            continue;
        if (rows[i].host != NULL)
            assert_string_equal(address.host, rows[i].host);
        else
            assert_string_equal(address.path, rows[i].path);
        assert_string_equal(address.user != NULL ? address.user : "",
                            rows[i].user != NULL ? rows[i].user : "");
        assert_string_equal(address.password != NULL ? address.password : "",
                            rows[i].password != NULL ? rows[i].password : "");
        assert_int_equal(address.port, rows[i].port);
        assert_int_equal(address.database, rows[i].database);
        cache_address_done(&address);
    }
}

int main(void)
{
#define WORLD_TEST(name) cmocka_unit_test_setup_teardown(name, world_setup, world_teardown)
    const struct CMUnitTest tests[] = {
        WORLD_TEST(test_final_result_is_set_and_found),
        WORLD_TEST(test_replies_of_other_types_are_handed_out),
        WORLD_TEST(test_in_flight_is_bounded_and_answered_when_the_connection_dies),
        WORLD_TEST(test_restart_of_redis_is_survived),
        WORLD_TEST(test_wrong_password_never_counts_as_connected),
        WORLD_TEST(test_wake_up_reaches_the_listener_also_after_a_loss),
        WORLD_TEST(test_other_channels_are_joined_and_left),
        cmocka_unit_test(test_addresses),
    };

    (void)signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
