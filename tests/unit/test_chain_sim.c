/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: under crashes of the coordinator at any step, jobs that are lost before they reach the
 * ledger, outcomes told twice, late and in any order, each run of a random chain ends, with the
 * output that the same run has without faults, and no job is in the ledger twice.
 *
 * The ledger is a table of jobs by (step, item). A plan is dropped and made anew at each crash;
 * what it asks for is answered from the ledger, as the coordinator does.
 */

#include "chain_random.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chains/plan.h"

#define RUNS 3000
#define ITEMS_MAX CHAIN_RANDOM_ITEMS_MAX
#define EVENTS_MAX 20000

enum fate { FATE_NONE, FATE_ASKED, FATE_LEDGER, FATE_FINAL };

struct job {
    enum fate fate;
    bool known; /* the plan that lives now has asked for it */
    bool told;  /* it was told that the job is final */
    bool canceled, fails;
    bool undone_itself; /* it was canceled before it had begun, or while it ran */
    char *input;        /* as it was asked for first */
};

struct world {
    struct rng rng;
    struct chain *chain;
    struct plan *plan;
    struct job jobs[CHAIN_STEPS_MAX][ITEMS_MAX];
    unsigned faults, crashes, submits, over;
    bool finished;
    char *output, *error;
};

static void world_decide_failures(struct world *world)
{
    unsigned percent = chance(&world->rng, 30) ? 15 : 0;

    for (size_t i = 0; i < world->chain->step_count; i++) {
        for (size_t n = 0; n < ITEMS_MAX; n++)
            world->jobs[i][n].fails = chance(&world->rng, percent);
    }
}

/* ---- what the coordinator does ---- */

static void begin(struct world *world)
{
    plan_free(&world->plan);
    world->plan = plan_new(world->chain, json_null(), "run");
    for (size_t i = 0; i < world->chain->step_count; i++) {
        for (size_t n = 0; n < ITEMS_MAX; n++)
            world->jobs[i][n].known = world->jobs[i][n].told = false;
    }
}

static void take_submit(struct world *world, struct plan_todo *todo)
{
    struct job *job = &world->jobs[todo->step][todo->item];
    char *input = xmemdup(todo->text, todo->text_size + 1);

    input[todo->text_size] = '\0';
    free(todo->text);
    assert_true(todo->item < ITEMS_MAX);
    assert_false(job->known); /* once a plan */
    job->known = true;
    world->submits++;
    if (job->input == NULL)
        job->input = TAKE(input);
    else
        assert_string_equal(job->input, input); /* the same each time that it is planned */
    free(input);
    if (job->fate == FATE_NONE)
        job->fate = FATE_ASKED;
}

/* The run has failed: what was submitted is canceled, behind a Submit that nobody has seen yet. */
static void take_settle(struct world *world, struct plan_todo *todo)
{
    const struct plan_final never = {.state = JOB_CANCELED, .never = true};
    struct job *job = &world->jobs[todo->step][todo->item];

    free(todo->text);
    assert_false(job->known);
    job->known = job->canceled = true;
    if (job->fate == FATE_LEDGER || job->fate == FATE_FINAL)
        return;
    if (job->fate == FATE_ASKED) {
        job->fate = FATE_FINAL;
        job->undone_itself = true;
    }
    job->told = true;
    plan_on_final(world->plan, todo->step, todo->item, &never);
}

/* True: the run is over. Stops half-way where a crash is due. */
static bool act(struct world *world, bool crash)
{
    uint64_t stop_after = crash ? rng_below(&world->rng, 4) : UINT64_MAX;
    struct plan_todo todo;

    while (stop_after-- > 0 && plan_next(world->plan, &todo)) {
        switch (todo.type) {
        case PLAN_SUBMIT:
            if (todo.settle)
                take_settle(world, &todo);
            else
                take_submit(world, &todo);
            break;
        case PLAN_CANCEL:
            assert_true(world->jobs[todo.step][todo.item].known);
            world->jobs[todo.step][todo.item].canceled = true;
            break;
        case PLAN_EVALUATE:
            fail_msg("no chain here has expressions");
            break;
        case PLAN_WAIT: /* what was decided is in the ledger, too */
            free(todo.text);
            if (world->jobs[todo.step][0].fails)
                plan_on_waited(world->plan, todo.step, NULL, "rejected", "no");
            else
                plan_on_waited(world->plan, todo.step, json_true(), NULL, NULL);
            break;
        case PLAN_FINISH:
            free(world->output);
            free(world->error);
            world->output = todo.text == NULL ? NULL : xmemdup(todo.text, todo.text_size + 1);
            if (world->output != NULL)
                world->output[todo.text_size] = '\0';
            world->error = todo.error == NULL ? NULL : xstrdup(todo.error);
            free(todo.text);
            return true;
        }
    }
    return false;
}

static void tell(struct world *world, uint32_t step, uint32_t item)
{
    struct job *job = &world->jobs[step][item];
    char output[64];
    struct plan_final final = {.state = JOB_FAILED, .error_class = ERROR_CLASS_MODEL_ERROR};

    (void)snprintf(output, sizeof(output), "{\"at\":[%u,%u],\"done\":%s}", step, item,
                   item > 0 ? "true" : "false");
    if (job->undone_itself)
        final = (struct plan_final){.state = JOB_CANCELED};
    else if (!job->fails)
        final = (struct plan_final){.state = JOB_SUCCEEDED,
                                    .output = {(const uint8_t *)output, strlen(output)},
                                    .output_is_json = true};
    plan_on_final(world->plan, step, item, &final);
    job->told = true;
}

/* One thing happens to one job; false: it was not its turn. */
static bool happen(struct world *world, uint32_t step, uint32_t item)
{
    struct job *job = &world->jobs[step][item];

    switch (job->fate) {
    case FATE_NONE:
        return false;
    case FATE_ASKED: /* the record reaches the ledger, or a crash of the coordinator loses it */
        job->fate = FATE_LEDGER;
        return true;
    case FATE_LEDGER:
        job->fate = FATE_FINAL;
        job->undone_itself = job->canceled && chance(&world->rng, 50);
        return true;
    case FATE_FINAL:
        if (!job->known || (job->told && (world->faults == 0 || !chance(&world->rng, 5))))
            return false;
        tell(world, step, item);
        return true;
    }
    return false;
}

static void crash(struct world *world)
{
    world->crashes++;
    for (size_t i = 0; i < world->chain->step_count; i++) {
        for (size_t n = 0; n < ITEMS_MAX; n++) {
            struct job *job = &world->jobs[i][n];

            if (job->fate == FATE_ASKED && chance(&world->rng, 50))
                job->fate = FATE_NONE; /* it was never produced */
        }
    }
    begin(world);
}

static void run(struct world *world, unsigned faults)
{
    unsigned events = 0;

    world->faults = faults;
    begin(world);
    while (!world->finished) {
        bool dies = faults > 0 && world->crashes < 50 && chance(&world->rng, faults);
        uint32_t step, item;

        if (events++ > EVENTS_MAX)
            fail_msg("the run is stuck");
        world->finished = act(world, dies) && !dies;
        if (dies)
            crash(world);
        step = (uint32_t)rng_below(&world->rng, world->chain->step_count);
        item = (uint32_t)rng_below(&world->rng, ITEMS_MAX);
        for (uint32_t i = 0; i < world->chain->step_count * ITEMS_MAX && !world->finished; i++) {
            if (happen(world, step, item))
                break;
            item = (item + 1) % ITEMS_MAX;
            step = (uint32_t)((step + (item == 0)) % world->chain->step_count);
        }
    }
}

static void world_done(struct world *world)
{
    plan_free(&world->plan);
    chain_free(&world->chain);
    for (size_t i = 0; i < CHAIN_STEPS_MAX; i++) {
        for (size_t n = 0; n < ITEMS_MAX; n++)
            free(world->jobs[i][n].input);
    }
    free(world->output);
    free(world->error);
}

/* The jobs of a run that failed are canceled as far as they were not over. */
static void check_nothing_runs(const struct world *world)
{
    for (size_t i = 0; i < world->chain->step_count; i++) {
        for (size_t n = 0; n < ITEMS_MAX; n++) {
            const struct job *job = &world->jobs[i][n];

            if (job->known && !job->told)
                assert_true(job->canceled);
        }
    }
}

/* Of a run that failed, what succeeded is undone; of another nothing. */
static void check_undone(uint64_t seed, const struct world *world)
{
    for (size_t i = 0; i < world->chain->step_count; i++) {
        int undo = world->chain->steps[i].undo;
        bool succeeded = false;

        for (size_t n = 0; n < ITEMS_MAX && undo >= 0; n++) {
            const struct job *job = &world->jobs[i][n];

            succeeded = succeeded ||
                        (job->fate == FATE_FINAL && !job->fails && !job->undone_itself);
            if (world->error != NULL && job->fate == FATE_LEDGER)
                fail_msg("seed %llu: item %zu of step %zu still runs", (unsigned long long)seed, n,
                         i);
        }
        if (undo >= 0 && world->error != NULL && succeeded &&
            world->jobs[undo][0].fate != FATE_FINAL)
            fail_msg("seed %llu: step %zu is not undone", (unsigned long long)seed, i);
        if (undo >= 0 && world->error == NULL)
            assert_int_equal(world->jobs[undo][0].fate, FATE_NONE);
    }
}

static void make_both(uint64_t seed, struct world *calm, struct world *rough)
{
    rng_seed(&calm->rng, seed);
    calm->chain = chain_random(&calm->rng);
    world_decide_failures(calm);
    rng_seed(&rough->rng, seed);
    rough->chain = chain_random(&rough->rng);
    world_decide_failures(rough);
    rng_seed(&rough->rng, seed + 1000000);
}

static void test_runs_end_as_they_would_without_faults(void **state)
{
    uint64_t crashes = 0, failures = 0, undone = 0;

    (void)state;
    chain_random_calls = true;
    for (uint64_t seed = 1; seed <= RUNS; seed++) {
        OWNED(world_done) struct world calm = {0};
        OWNED(world_done) struct world rough = {0};

        make_both(seed, &calm, &rough);
        run(&calm, 0);
        run(&rough, 12);
        crashes += rough.crashes;
        failures += calm.error != NULL;
        if ((calm.error == NULL) != (rough.error == NULL))
            fail_msg("seed %llu: %s, with faults %s", (unsigned long long)seed,
                     calm.error == NULL ? "it succeeds" : calm.error,
                     rough.error == NULL ? "it succeeds" : rough.error);
        if (calm.error == NULL)
            assert_string_equal(calm.output, rough.output);
        check_nothing_runs(&calm);
        check_nothing_runs(&rough);
        check_undone(seed, &calm);
        check_undone(seed, &rough);
        undone += calm.error != NULL && calm.chain->undos != 0;
    }
    assert_true(crashes > RUNS);
    assert_in_range(failures, RUNS / 100, RUNS / 2);
    assert_true(undone > RUNS / 100);
    print_message("%u runs, %llu crashes, %llu failed as they should, %llu of them were undone\n",
                  RUNS, (unsigned long long)crashes, (unsigned long long)failures,
                  (unsigned long long)undone);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_runs_end_as_they_would_without_faults),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
