/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: commands at a real server. They are read in order behind a cursor and acknowledged once, in
 * the transaction of their effect; a replay makes the next round of a dead row and of nothing else;
 * a row that moves takes its queue's depth along; tags come back; a notification is heard. Method:
 * as in test_store.c.
 */

#include "tests/stack/store_world.h"

#define COMMANDS_MAX 16

struct read {
    struct world *world;
    struct ledger_command commands[COMMANDS_MAX];
    size_t count;
    bool complete;
};

static void on_read(void *opaque, const struct ledger_command *commands, size_t command_count,
                    bool complete, struct err *err)
{
    struct read *read = opaque;

    assert_int_equal(err->code, ERR_OK);
    assert_true(command_count <= COMMANDS_MAX);
    if (command_count > 0)
        memcpy(read->commands, commands, command_count * sizeof(*commands));
    read->count = command_count;
    read->complete = complete;
    read->world->done = true;
}

static void read_commands(struct world *world, struct read *read, uint64_t from, uint32_t limit)
{
    *read = (struct read){.world = world};
    world->done = false;
    store_commands(world->store, SHARD, from, limit, on_read, read);
    hear(world);
}

static void flush_with(struct world *world, uint64_t number, const struct flush_job *jobs,
                       size_t job_count, const struct flush_command *commands, size_t command_count)
{
    struct flush flush = flush_of(world, number, jobs, job_count);
    struct flush_ask ask;

    flush.commands = commands;
    flush.command_count = command_count;
    flush.command_floor = 100 + number;
    send_flush(world, &flush, &ask);
    hear(world);
    assert_int_equal(world->verdict, FLUSH_COMMITTED);
}

static int command_setup(void **state)
{
    int r = setup(state);

    script(*state, "TRUNCATE command, command_done, job_tag RESTART IDENTITY");
    return r;
}

static void insert_commands(struct world *world)
{
    script(world,
           "INSERT INTO command (shard, kind, job_id, round, priority) VALUES "
           "(3, 'cancel', gen_random_uuid(), 0, 0), (4, 'cancel', gen_random_uuid(), 0, 0), "
           "(3, 'replay', gen_random_uuid(), 3, 0), (3, 'priority', gen_random_uuid(), 0, 2)");
}

static void test_commands_are_read_until_they_are_acknowledged(void **state)
{
    struct world *world = *state;
    struct flush_command acks[2];
    struct read read;

    take_over(world);
    assert_int_equal(world->takeover->command_floor, 0);
    insert_commands(world);
    read_commands(world, &read, 0, 2);
    assert_int_equal(read.count, 2);
    assert_false(read.complete);
    assert_int_equal(read.commands[0].kind, COMMAND_CANCEL);
    assert_int_equal(read.commands[1].kind, COMMAND_REPLAY);
    assert_int_equal(read.commands[1].round, 3);
    acks[0] = (struct flush_command){.id = read.commands[0].id, .applied = true, .reason = ""};
    acks[1] = (struct flush_command){.id = read.commands[1].id, .reason = "no"};
    flush_with(world, 1, NULL, 0, acks, 2);
    flush_with(world, 2, NULL, 0, acks, 1); /* once is enough */
    read_commands(world, &read, 0, 2);
    assert_int_equal(read.count, 1);
    assert_true(read.complete);
    assert_int_equal(read.commands[0].kind, COMMAND_PRIORITY);
    assert_int_equal(read.commands[0].priority, 2);
    expect(world,
           "SELECT string_agg(command_id || ':' || applied || ':' || reason || ':' || number, ' ' "
           "ORDER BY command_id) FROM command_done",
           "1:true::1 3:false:no:1");
    take_over(world);
    assert_int_equal(world->takeover->command_floor, 102);
}

static void test_a_replay_is_of_a_dead_row_and_its_round(void **state)
{
    static const enum job_state states[] = {JOB_FAILED, JOB_EXPIRED, JOB_SUCCEEDED, JOB_CANCELED,
                                            JOB_QUEUED};
    struct world *world = *state;
    struct job_spec *specs[COUNT_OF(states)], *placed[COUNT_OF(states)];
    struct flush_command acks[COUNT_OF(states)];
    struct flush_job jobs[COUNT_OF(states)];

    take_over(world);
    for (uint32_t i = 0; i < COUNT_OF(states); i++) {
        specs[i] = spec_of(world, i, "acme", false);
        jobs[i] = job_of(specs[i], states[i]);
        jobs[i].attempt_count = 3;
        jobs[i].fence = 70;
    }
    flush_now(world, 1, jobs, COUNT_OF(states));
    for (uint32_t i = 0; i < COUNT_OF(states); i++) {
        placed[i] = job_spec_placed(world->decoder, specs[i], 500 + i, ACCEPTED_US + 9000000);
        placed[i]->round = 2;
        jobs[i] = job_of(placed[i], JOB_QUEUED);
        jobs[i].action = FLUSH_REPLAY;
        jobs[i].fence = 71;
        acks[i] = (struct flush_command){
            .id = i + 1, .job = id_of(i), .round = 2, .applied = true, .reason = ""};
    }
    flush_with(world, 2, jobs, COUNT_OF(states), acks, COUNT_OF(states));
    for (size_t i = 0; i < COUNT_OF(states); i++)
        assert_int_equal(world->applied[i], i < 2);
    expect(world,
           "SELECT string_agg(applied || ':' || reason, ' ' ORDER BY command_id) FROM command_done",
           "true: true: false:the job is gone false:the job is gone false:the job is gone");
    expect(world,
           "SELECT string_agg(concat_ws(',', state, round, seq, attempt_count, fence, "
           "replayed_at - accepted_at, start_deadline_at - replayed_at), ' ' ORDER BY id) FROM job "
           "WHERE round = 2",
           "1,2,500,0,71,00:00:09,00:10:00 1,2,501,0,71,00:00:08.999999,00:10:00");
    expect(world, "SELECT sum(waiting)::text FROM queue_delta", "3");
    flush_with(world, 3, jobs, 2, NULL, 0); /* of that round no more */
    assert_false(world->applied[0] || world->applied[1]);
    for (size_t i = 0; i < COUNT_OF(states); i++) {
        job_spec_unref(&specs[i]);
        job_spec_unref(&placed[i]);
    }
}

static void test_a_row_moves_with_its_depth(void **state)
{
    struct world *world = *state;
    struct job_spec *spec, *placed;
    struct flush_job job;

    take_over(world);
    spec = spec_of(world, 1, "acme", false);
    job = job_of(spec, JOB_QUEUED);
    flush_now(world, 1, &job, 1);
    placed = job_spec_placed(world->decoder, spec, 77, spec->queued_us);
    placed->rank = JOB_RANK_PRIORITY_2;
    job.spec = placed;
    job.action = FLUSH_UPDATE;
    job.placed = true;
    flush_now(world, 2, &job, 1);
    assert_true(world->applied[0]);
    expect(world, "SELECT rank || ',' || seq FROM job", "3,77");
    expect(world,
           "SELECT string_agg(rank || ':' || w, ' ' ORDER BY rank) FROM (SELECT rank, "
           "sum(waiting) AS w FROM queue_delta GROUP BY rank) x",
           "2:0 3:1");
    job_spec_unref(&spec);
    job_spec_unref(&placed);
}

static void count_notice(void *opaque)
{
    struct world *world = opaque;

    world->done = true;
}

static void test_a_notification_is_heard(void **state)
{
    struct world *world = *state;

    take_over(world);
    world->done = false;
    store_on_commands(world->store, SHARD, count_notice, world);
    hear(world); /* the connection is made, something may have been missed */
    world->done = false;
    insert_commands(world);
    hear(world);
}

/* Ids are drawn behind a lock that is held to the commit: none appears below one that was read. */
static void test_ids_become_visible_in_their_order(void **state)
{
    struct world *world = *state;
    struct pg_session *other = looker_open();
    struct err err = {0};

    looker_script(other, "BEGIN; INSERT INTO command (shard, kind, job_id) "
                         "VALUES (1, 'cancel', gen_random_uuid())");
    assert_true(pg_session_script(world->session,
                                  "INSERT INTO command (shard, kind, job_id) "
                                  "VALUES (1, 'cancel', gen_random_uuid())",
                                  &err) < 0);
    assert_non_null(strstr(err.text, "lock timeout"));
    looker_script(other, "COMMIT");
    script(world, "INSERT INTO command (shard, kind, job_id) "
                  "VALUES (1, 'cancel', gen_random_uuid())");
    expect(world, "SELECT count(*)::text FROM command", "2");
    pg_session_close(&other);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_commands_are_read_until_they_are_acknowledged,
                                        command_setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_replay_is_of_a_dead_row_and_its_round, command_setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_a_row_moves_with_its_depth, command_setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_notification_is_heard, command_setup, teardown),
        cmocka_unit_test_setup_teardown(test_ids_become_visible_in_their_order, command_setup,
                                        teardown),
    };

    return cmocka_run_group_tests(tests, group_setup, NULL);
}
