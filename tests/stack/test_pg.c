/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: the Postgres adapter against a real server: values there and back, batches as
 * transactions, failures that stay with their batch, lost connections, timeouts, notifications.
 * Method: tests/lib/postgres.sh starts a server; nothing here sleeps.
 */

#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"
#include "base/loop.h"
#include "brokers/pg_int.h"
#include "tests/stack/postgres_test.h"

#define PATIENCE_MS 10000

struct world {
    struct loop *loop;
    struct pg *pg;
};

/* What an answer said, kept beyond its callback. */
struct heard {
    bool done;
    int count;
    struct pg_answer answer;
};

PG_STATEMENT(echo, "SELECT $1::bool, $2::smallint, $3::integer, $4::bigint, $5::float8, $6::uuid, "
                   "$7::text, $8::bytea, $9::timestamptz, ($10::jsonb)::text, $11::text");
PG_STATEMENT(echo_arrays, "SELECT * FROM unnest($1::bigint[], $2::text[], $3::bytea[], $4::uuid[], "
                          "$5::timestamptz[])");
PG_STATEMENT(row_insert, "INSERT INTO pg_test VALUES ($1)");
PG_STATEMENT(row_count, "SELECT count(*) FROM pg_test");
PG_STATEMENT(wait_long, "SELECT pg_sleep(60)");
PG_STATEMENT(own_pid, "SELECT pg_backend_pid()");
PG_STATEMENT(terminate, "SELECT pg_terminate_backend($1)");
PG_STATEMENT(no_such_table, "SELECT 1 FROM pg_test_later");

static int setup(void **state)
{
    const struct pg_options options = {.url = looker_url(), .application = "test_pg"};
    struct world *world = xcalloc(1, sizeof(*world));
    struct err err = {0};

    script_once("CREATE SCHEMA IF NOT EXISTS headrace; DROP TABLE IF EXISTS headrace.pg_test;"
                "DROP TABLE IF EXISTS headrace.pg_test_later;"
                "CREATE TABLE headrace.pg_test (x integer PRIMARY KEY CHECK (x < 1000))");
    assert_int_equal(loop_open(&world->loop, &err), 0);
    assert_int_equal(pg_open(world->loop, &options, &world->pg, &err), 0);
    *state = world;
    return 0;
}

static int teardown(void **state)
{
    struct world *world = *state;

    pg_close(&world->pg);
    loop_close(&world->loop);
    mem_free(&world);
    return 0;
}

static void on_answer(void *opaque, const struct pg_answer *answer)
{
    struct heard *heard = opaque;

    heard->count++;
    heard->done = true;
    pg_answer_take(answer, &heard->answer);
}

static void ask(struct world *world, struct pg_batch *batch, uint32_t timeout_ms,
                struct heard *heard)
{
    struct err err = {0};

    *heard = (struct heard){0};
    if (pg_send(world->pg, &batch, timeout_ms, on_answer, heard, &err) < 0)
        fail_msg("%s", err.text);
    assert_null(batch);
    assert_false(heard->done);
}

static void hear(struct world *world, struct heard *heard)
{
    assert_true(loop_run_until(world->loop, &heard->done, PATIENCE_MS));
    assert_int_equal(heard->count, 1);
}

static struct pg_batch *one(const struct pg_statement *statement)
{
    struct pg_batch *batch = pg_batch_new();

    pg_add(batch, statement);
    return batch;
}

static struct pg_batch *insert_of(int64_t x)
{
    struct pg_batch *batch = one(&row_insert);

    pg_bind_i32(batch, x);
    return batch;
}

static int64_t rows_now(struct world *world)
{
    struct heard heard;
    int64_t count;

    ask(world, one(&row_count), 0, &heard);
    hear(world, &heard);
    assert_int_equal(heard.answer.err.code, 0);
    count = pg_i64(&heard.answer, 0, 0, 0);
    pg_answer_done(&heard.answer);
    return count;
}

static int64_t pid_now(struct world *world)
{
    struct heard heard;
    int64_t pid;

    ask(world, one(&own_pid), 0, &heard);
    hear(world, &heard);
    pid = pg_i64(&heard.answer, 0, 0, 0);
    pg_answer_done(&heard.answer);
    return pid;
}

static void backend_kill(int64_t pid)
{
    const struct pg_options options = {.url = looker_url(), .application = "test_pg"};
    struct pg_session *session;
    struct pg_batch *batch = one(&terminate);
    struct pg_answer answer;
    struct err err = {0};

    pg_bind_i32(batch, pid);
    assert_int_equal(pg_session_open(&options, &session, &err), 0);
    assert_int_equal(pg_session_run(session, &batch, &answer, &err), 0);
    assert_true(pg_bool(&answer, 0, 0, 0));
    pg_answer_done(&answer);
    pg_session_close(&session);
}

static void test_values_there_and_back(void **state)
{
    struct world *world = *state;
    struct pg_batch *batch = one(&echo);
    struct wire_id id = {{0x01, 0x92, 3, 4, 0x75, 6, 7, 8, 0x89, 10, 11, 12, 13, 14, 15, 0xff}};
    const uint8_t bytes[] = {0, 1, 0xff, 0};
    struct heard heard;
    struct wire_id id_back;

    pg_bind_bool(batch, true);
    pg_bind_i16(batch, -2);
    pg_bind_i32(batch, -3000000);
    pg_bind_i64(batch, INT64_MIN);
    pg_bind_double(batch, -0.125);
    pg_bind_id(batch, &id);
    pg_bind_c(batch, "übermäßig");
    pg_bind_bytes(batch, (struct wire_bytes){bytes, sizeof(bytes)});
    pg_bind_time(batch, 1735689600000001);
    pg_bind_json(batch, "{\"a\": [1]}");
    pg_bind_c(batch, NULL);
    ask(world, batch, 0, &heard);
    hear(world, &heard);
    if (heard.answer.err.code != 0)
        fail_msg("%s", heard.answer.err.text);
    assert_true(pg_bool(&heard.answer, 0, 0, 0));
    assert_int_equal(pg_i64(&heard.answer, 0, 0, 1), -2);
    assert_int_equal(pg_i64(&heard.answer, 0, 0, 2), -3000000);
    assert_true(pg_i64(&heard.answer, 0, 0, 3) == INT64_MIN);
    assert_true(pg_double(&heard.answer, 0, 0, 4) == -0.125);
    id_back = pg_id(&heard.answer, 0, 0, 5);
    assert_memory_equal(&id_back, &id, sizeof(id));
    assert_string_equal(pg_c(&heard.answer, 0, 0, 6), "übermäßig");
    assert_int_equal(pg_bytes(&heard.answer, 0, 0, 7).size, sizeof(bytes));
    assert_memory_equal(pg_bytes(&heard.answer, 0, 0, 7).bytes, bytes, sizeof(bytes));
    assert_true(pg_time_us(&heard.answer, 0, 0, 8) == 1735689600000001);
    assert_string_equal(pg_c(&heard.answer, 0, 0, 9), "{\"a\": [1]}");
    assert_true(pg_is_null(&heard.answer, 0, 0, 10));
    pg_answer_done(&heard.answer);
}

static void test_arrays(void **state)
{
    struct world *world = *state;
    static const size_t counts[] = {0, 1, 1000};

    for (size_t c = 0; c < COUNT_OF(counts); c++) {
        struct pg_batch *batch = one(&echo_arrays);
        size_t n = counts[c];
        struct heard heard;

        pg_bind_array(batch, PG_I64, n);
        for (size_t i = 0; i < n; i++)
            pg_bind_i64(batch, (int64_t)i * -7);
        pg_bind_array(batch, PG_TEXT, n);
        for (size_t i = 0; i < n; i++)
            pg_bind_c(batch, i % 3 == 0 ? NULL : "{\"x\\,}");
        pg_bind_array(batch, PG_BYTES, n);
        for (size_t i = 0; i < n; i++)
            pg_bind_bytes(batch, (struct wire_bytes){(const uint8_t *)"\0a", 2});
        pg_bind_array(batch, PG_ID, n);
        for (size_t i = 0; i < n; i++)
            pg_bind_id(batch, &(struct wire_id){{(uint8_t)i}});
        pg_bind_array(batch, PG_TIME, n);
        for (size_t i = 0; i < n; i++)
            pg_bind_time(batch, i % 2 == 0 ? 0 : 1);
        ask(world, batch, 0, &heard);
        hear(world, &heard);
        if (heard.answer.err.code != 0)
            fail_msg("%s", heard.answer.err.text);
        assert_int_equal(pg_row_count(&heard.answer, 0), n);
        if (n == 1000) {
            assert_int_equal(pg_i64(&heard.answer, 0, 999, 0), 999 * -7);
            assert_true(pg_is_null(&heard.answer, 0, 999, 1));
            assert_string_equal(pg_c(&heard.answer, 0, 998, 1), "{\"x\\,}");
            assert_int_equal(pg_bytes(&heard.answer, 0, 500, 2).size, 2);
            assert_int_equal(pg_id(&heard.answer, 0, 255, 3).bytes[0], 255);
            assert_true(pg_time_us(&heard.answer, 0, 999, 4) == 1);
            assert_true(pg_is_null(&heard.answer, 0, 998, 4));
        }
        pg_answer_done(&heard.answer);
    }
}

/* A batch happens whole or not at all, and a refused one harms neither neighbour. */
static void test_a_refused_batch_stands_alone(void **state)
{
    struct world *world = *state;
    struct pg_batch *refused = insert_of(2);
    struct heard before, middle, after;

    pg_add(refused, &row_insert);
    pg_bind_i32(refused, 1);
    ask(world, insert_of(1), 0, &before);
    ask(world, refused, 0, &middle);
    ask(world, insert_of(3), 0, &after);
    hear(world, &after);
    assert_int_equal(before.answer.err.code, 0);
    assert_int_equal(after.answer.err.code, 0);
    assert_int_equal(middle.answer.err.code, ERR_CONFLICT);
    assert_string_equal(middle.answer.sqlstate, "23505");
    assert_string_equal(middle.answer.constraint, "pg_test_pkey");
    assert_int_equal(middle.answer.failed, 1);
    assert_int_equal(rows_now(world), 2);
    pg_answer_done(&before.answer);
    pg_answer_done(&middle.answer);
    pg_answer_done(&after.answer);
}

/* A statement that cannot be prepared says why, also to those who read the log, and not each time;
 * it works once its table exists. */
static void test_prepare_fails_then_works(void **state)
{
    char path[] = "/tmp/headrace-pg-XXXXXX", text[4096];
    const struct log_options log = {.program = "test", .path = path};
    struct world *world = *state;
    int fd = mkstemp(path);
    struct heard heard;
    struct err err;
    ssize_t size;

    assert_int_equal(log_open(&log, &err), 0);
    for (int i = 0; i < 2; i++) {
        ask(world, one(&no_such_table), 0, &heard);
        hear(world, &heard);
        assert_int_equal(heard.answer.err.code, ERR_INTERNAL);
        assert_non_null(strstr(heard.answer.err.text, "pg_test_later"));
        pg_answer_done(&heard.answer);
    }
    log_close();
    size = read(fd, text, sizeof(text) - 1);
    assert_true(size > 0);
    text[size] = '\0';
    assert_non_null(strstr(text, "ledger_lacks"));
    assert_ptr_equal(strchr(text, '\n'), text + size - 1); /* one line for both */
    (void)close(fd);
    (void)unlink(path);
    script_once("CREATE TABLE headrace.pg_test_later (x integer)");
    ask(world, one(&no_such_table), 0, &heard);
    hear(world, &heard);
    assert_int_equal(heard.answer.err.code, 0);
    pg_answer_done(&heard.answer);
}

/* The server ends our session while a batch runs: unknown; what waits behind it is carried out by
 * the next connection. */
static void test_lost_connection(void **state)
{
    struct world *world = *state;
    int64_t pid = pid_now(world);
    struct heard running, next;

    ask(world, one(&wait_long), 0, &running);
    for (int turn = 0; turn < 3; turn++) { /* let it be written */
        bool never = false;

        (void)loop_run_until(world->loop, &never, 20);
    }
    backend_kill(pid);
    hear(world, &running);
    assert_int_equal(running.answer.err.code, ERR_UNKNOWN);
    pg_answer_done(&running.answer);
    ask(world, insert_of(5), 0, &next);
    hear(world, &next);
    assert_int_equal(next.answer.err.code, 0);
    pg_answer_done(&next.answer);
    assert_true(pid_now(world) != pid);
    assert_int_equal(rows_now(world), 1);
}

static void test_timeout_of_a_running_batch(void **state)
{
    struct world *world = *state;
    struct heard slow, waiting;

    (void)pid_now(world); /* connected */
    ask(world, one(&wait_long), 200, &slow);
    ask(world, insert_of(7), 0, &waiting);
    hear(world, &slow);
    assert_int_equal(slow.answer.err.code, ERR_UNKNOWN);
    hear(world, &waiting);
    pg_answer_done(&slow.answer);
    pg_answer_done(&waiting.answer);
    assert_true(rows_now(world) <= 1);
}

static void test_timeout_without_a_server(void **state)
{
    struct world *world = *state;
    const struct pg_options options = {.url = "postgresql://x:y@127.0.0.1:1/z"};
    struct pg *nowhere;
    struct pg_batch *batch = one(&row_count);
    struct heard heard = {0};
    struct err err = {0};

    assert_int_equal(pg_open(world->loop, &options, &nowhere, &err), 0);
    assert_int_equal(pg_send(nowhere, &batch, 150, on_answer, &heard, &err), 0);
    hear(world, &heard);
    assert_int_equal(heard.answer.err.code, ERR_UNAVAILABLE);
    assert_non_null(strstr(heard.answer.err.text, "refused"));
    assert_false(pg_connected(nowhere));
    pg_answer_done(&heard.answer);
    pg_close(&nowhere);
}

/* A port that takes connections and never says a word. */
static int silent_port(uint16_t *ret_port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof(address);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    assert_int_equal(listen(fd, 16), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &size), 0);
    *ret_port = ntohs(address.sin_port);
    return fd;
}

/* The url of the server with another host in front. */
static char *url_behind(const char *host_and_port)
{
    const char *url = looker_url(), *at = strchr(url, '@') + 1;

    return xasprintf("%.*s%s,%s?target_session_attrs=read-write", (int)(at - url), url,
                     host_and_port, at);
}

static void assert_reaches(struct world *world, const char *first_host)
{
    OWNED(mem_free) char *url = url_behind(first_host);
    const struct pg_options options = {.url = url, .connect_timeout_ms = 300};
    struct pg *pg;
    struct pg_batch *batch = one(&row_count);
    struct heard heard = {0};
    struct err err = {0};

    assert_int_equal(pg_open(world->loop, &options, &pg, &err), 0);
    assert_int_equal(pg_send(pg, &batch, PATIENCE_MS / 2, on_answer, &heard, &err), 0);
    hear(world, &heard);
    assert_int_equal(heard.answer.err.code, ERR_OK);
    pg_answer_done(&heard.answer);
    pg_close(&pg);
}

static void test_several_hosts(void **state)
{
    OWNED(mem_free) char *silent = NULL;
    uint16_t port;
    int fd = silent_port(&port);

    assert_reaches(*state, "127.0.0.1:1"); /* refuses: libpq goes on by itself */
    silent = xasprintf("127.0.0.1:%u", port);
    assert_reaches(*state, silent); /* says nothing: the next attempt begins behind it */
    assert_int_equal(close(fd), 0);
}

static void test_hosts_are_rotated(void **state)
{
    static const struct {
        const char *list;
        size_t by;
        const char *want;
    } rows[] = {
        {"a", 1, NULL},        {"", 1, NULL},         {NULL, 1, NULL},       {"a,b,c", 0, "a,b,c"},
        {"a,b,c", 1, "b,c,a"}, {"a,b,c", 2, "c,a,b"}, {"a,b,c", 3, "a,b,c"}, {"5432,", 1, ",5432"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(rows); i++) {
        OWNED(mem_free) char *got = pg_list_rotate(rows[i].list, rows[i].by);

        if (rows[i].want == NULL)
            assert_null(got);
        else
            assert_string_equal(got, rows[i].want);
    }
}

static void test_in_flight_is_bounded(void **state)
{
    struct world *world = *state;
    const struct pg_options options = {.url = looker_url(), .in_flight_max = 2};
    struct pg *pg;
    struct pg_batch *batch;
    struct heard heard[2] = {0};
    struct err err = {0};

    assert_int_equal(pg_open(world->loop, &options, &pg, &err), 0);
    for (int i = 0; i < 2; i++) {
        batch = one(&row_count);
        assert_int_equal(pg_send(pg, &batch, 0, on_answer, &heard[i], &err), 0);
    }
    batch = one(&row_count);
    assert_int_equal(pg_send(pg, &batch, 0, on_answer, NULL, &err), ERR_FULL);
    assert_non_null(batch);
    pg_batch_free(&batch);
    hear(world, &heard[1]);
    pg_answer_done(&heard[0].answer);
    pg_answer_done(&heard[1].answer);
    pg_close(&pg);
}

static void test_bad_url(void **state)
{
    struct world *world = *state;
    const struct pg_options options = {.url = "postgresql://%zz"};
    struct pg *pg = NULL;
    struct err err = {0};

    assert_int_equal(pg_open(world->loop, &options, &pg, &err), ERR_USAGE);
    assert_null(pg);
}

struct listener {
    bool listening, heard;
    char payload[32];
};

static void on_notify(void *opaque, const char *payload)
{
    struct listener *listener = opaque;

    if (payload == NULL) {
        listener->listening = true;
        return;
    }
    mem_copy_text(listener->payload, payload);
    listener->heard = true;
}

static void test_notifications(void **state)
{
    struct world *world = *state;
    struct listener listener = {0};

    pg_listen(world->pg, "headrace_test", on_notify, &listener);
    assert_true(loop_run_until(world->loop, &listener.listening, PATIENCE_MS));
    script_once("SELECT pg_notify('headrace_test', 'one')");
    assert_true(loop_run_until(world->loop, &listener.heard, PATIENCE_MS));
    assert_string_equal(listener.payload, "one");
    /* After a lost connection it listens again, and says that something may have been missed. */
    listener = (struct listener){0};
    backend_kill(pid_now(world));
    assert_true(loop_run_until(world->loop, &listener.listening, PATIENCE_MS));
    script_once("SELECT pg_notify('headrace_test', 'two')");
    assert_true(loop_run_until(world->loop, &listener.heard, PATIENCE_MS));
    assert_string_equal(listener.payload, "two");
}

static void on_answer_close(void *opaque, const struct pg_answer *answer)
{
    struct world *world = opaque;

    assert_int_equal(answer->err.code, 0);
    pg_close(&world->pg);
    loop_stop(world->loop);
}

static void test_close_inside_an_answer(void **state)
{
    struct world *world = *state;
    struct pg_batch *batch = one(&row_count), *more = one(&row_count);
    struct err err = {0};

    assert_int_equal(pg_send(world->pg, &batch, 0, on_answer_close, world, &err), 0);
    assert_int_equal(pg_send(world->pg, &more, 0, on_answer_close, world, &err), 0);
    loop_run(world->loop);
    assert_null(world->pg);
}

/* More than a socket holds, both ways. */
static void test_large_batches(void **state)
{
    struct world *world = *state;
    size_t size = 8u << 20;
    uint8_t *bytes = xmalloc(size);
    struct heard heard[3];

    memset(bytes, 7, size);
    for (size_t n = 0; n < COUNT_OF(heard); n++) {
        struct pg_batch *batch = one(&echo_arrays);

        pg_bind_array(batch, PG_I64, 0);
        pg_bind_array(batch, PG_TEXT, 0);
        pg_bind_array(batch, PG_BYTES, 1);
        pg_bind_bytes(batch, (struct wire_bytes){bytes, size});
        pg_bind_array(batch, PG_ID, 0);
        pg_bind_array(batch, PG_TIME, 0);
        ask(world, batch, 0, &heard[n]);
    }
    for (size_t n = 0; n < COUNT_OF(heard); n++) {
        hear(world, &heard[n]);
        assert_int_equal(heard[n].answer.err.code, 0);
        assert_int_equal(pg_bytes(&heard[n].answer, 0, 0, 2).size, size);
        pg_answer_done(&heard[n].answer);
    }
    mem_free(&bytes);
}

static void test_pool(void **state)
{
    struct world *world = *state;
    const struct pg_options options = {.url = looker_url()};
    struct pg_pool *pool;
    struct heard heard[20] = {0};
    struct err err = {0};

    assert_int_equal(pg_pool_open(world->loop, &options, 3, &pool, &err), 0);
    for (int i = 0; i < 20; i++) {
        struct pg_batch *batch = insert_of(100 + i);

        assert_int_equal(pg_pool_send(pool, &batch, 0, on_answer, &heard[i], &err), 0);
    }
    for (int i = 0; i < 20; i++) {
        hear(world, &heard[i]);
        assert_int_equal(heard[i].answer.err.code, 0);
        pg_answer_done(&heard[i].answer);
    }
    assert_int_equal(rows_now(world), 20);
    pg_pool_close(&pool);
}

static void test_session_rolls_back(void **state)
{
    struct world *world = *state;
    const struct pg_options options = {.url = looker_url(), .application = "test_pg"};
    struct pg_session *session;
    struct pg_batch *batch = insert_of(11);
    struct pg_answer answer;
    struct err err = {0};

    pg_add(batch, &row_insert);
    pg_bind_i32(batch, 5000);
    assert_int_equal(pg_session_open(&options, &session, &err), 0);
    assert_int_equal(pg_session_run(session, &batch, &answer, &err), ERR_RANGE);
    assert_string_equal(answer.sqlstate, "23514");
    assert_int_equal(rows_now(world), 0);
    pg_session_close(&session);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_values_there_and_back, setup, teardown),
        cmocka_unit_test_setup_teardown(test_arrays, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_refused_batch_stands_alone, setup, teardown),
        cmocka_unit_test_setup_teardown(test_prepare_fails_then_works, setup, teardown),
        cmocka_unit_test_setup_teardown(test_lost_connection, setup, teardown),
        cmocka_unit_test_setup_teardown(test_timeout_of_a_running_batch, setup, teardown),
        cmocka_unit_test_setup_teardown(test_timeout_without_a_server, setup, teardown),
        cmocka_unit_test_setup_teardown(test_several_hosts, setup, teardown),
        cmocka_unit_test(test_hosts_are_rotated),
        cmocka_unit_test_setup_teardown(test_in_flight_is_bounded, setup, teardown),
        cmocka_unit_test_setup_teardown(test_bad_url, setup, teardown),
        cmocka_unit_test_setup_teardown(test_notifications, setup, teardown),
        cmocka_unit_test_setup_teardown(test_close_inside_an_answer, setup, teardown),
        cmocka_unit_test_setup_teardown(test_large_batches, setup, teardown),
        cmocka_unit_test_setup_teardown(test_pool, setup, teardown),
        cmocka_unit_test_setup_teardown(test_session_rolls_back, setup, teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
