/* SPDX-License-Identifier: Apache-2.0 */

/*
 * headrace_sim --seed N --seeds M --jobs K --processes P --remove GUARD --guards --trace
 *
 * Runs M worlds from seed N on. The first that breaks an invariant is named with its seed, and the
 * exit status is 1. --remove takes one rule of the protocol away (names: --guards without a value
 * lists and tries all of them): then finding no broken invariant is the failure.
 */

#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/sim/sim.h"

struct arguments {
    uint64_t seed, seeds;
    int jobs, processes;
    bool trace, guards;
    const char *remove;
};

static const struct {
    enum owner_guard guard;
    const char *name, *text;
} guards[] = {
#define GUARD(name, bit, text) {OWNER_GUARD_##name, #name, text},
    OWNER_GUARDS(GUARD)
#undef GUARD
};

static bool number_of(const char *text, uint64_t *ret_number)
{
    char *end;

    *ret_number = strtoull(text, &end, 10);
    return end != text && *end == '\0';
}

/* Runs the seeds; returns the first that failed, or UINT64_MAX. */
static uint64_t run_seeds(const struct arguments *arguments, uint64_t step, uint64_t first,
                          unsigned removed, bool quiet)
{
    struct sim *sim = xmalloc(sizeof(*sim));
    uint64_t bad = UINT64_MAX;

    for (uint64_t i = first; i < arguments->seeds && bad == UINT64_MAX; i += step) {
        struct sim_options options = {.seed = arguments->seed + i,
                                      .jobs = arguments->jobs,
                                      .removed_guards = removed,
                                      .trace = arguments->trace};

        sim_run(sim, &options);
        if (sim->failed) {
            bad = options.seed;
            if (!quiet)
                (void)printf("seed %" PRIu64 ": %s\n", bad, sim->failure);
        }
        sim_done(sim);
    }
    free(sim);
    return bad;
}

/* The same in several processes, each with its share of the seeds. */
static int run_shared(const struct arguments *arguments)
{
    int status = 0;

    if (arguments->processes == 1)
        status = run_seeds(arguments, 1, 0, 0, false) != UINT64_MAX;
    for (int i = 0; arguments->processes > 1 && i < arguments->processes; i++) {
        (void)fflush(stdout);
        if (fork() == 0) {
            uint64_t bad = run_seeds(arguments, (uint64_t)arguments->processes, (uint64_t)i, 0,
                                     false);

            (void)fflush(stdout);
            _exit(bad == UINT64_MAX ? 0 : 1);
        }
    }
    for (int i = 0; arguments->processes > 1 && i < arguments->processes; i++) {
        int one = 0;

        (void)wait(&one);
        status |= one;
    }
    (void)printf("sim: %" PRIu64 " seeds of %d jobs: %s\n", arguments->seeds, arguments->jobs,
                 status == 0 ? "ok" : "FAILED");
    return status == 0 ? 0 : 1;
}

static int try_guards(const struct arguments *arguments)
{
    int missed = 0;

    for (size_t i = 0; i < COUNT_OF(guards); i++) {
        uint64_t bad;

        if (arguments->remove != NULL && strcmp(arguments->remove, guards[i].name) != 0)
            continue;
        bad = run_seeds(arguments, 1, 0, (unsigned)guards[i].guard, arguments->remove == NULL);
        if (bad == UINT64_MAX) {
            (void)printf("without '%s' (%s): no seed of %" PRIu64 " fails\n", guards[i].text,
                         guards[i].name, arguments->seeds);
            missed++;
        } else {
            (void)printf("without '%s' (%s): seed %" PRIu64 " fails\n", guards[i].text,
                         guards[i].name, bad);
        }
        (void)fflush(stdout);
    }
    return missed == 0 ? 0 : 1;
}

static bool parse(int argc, char **argv, struct arguments *ret)
{
    static const struct option options[] = {
        {"seed", required_argument, NULL, 's'},   {"seeds", required_argument, NULL, 'n'},
        {"jobs", required_argument, NULL, 'j'},   {"processes", required_argument, NULL, 'p'},
        {"remove", required_argument, NULL, 'r'}, {"guards", no_argument, NULL, 'g'},
        {"trace", no_argument, NULL, 't'},        {NULL, 0, NULL, 0},
    };
    uint64_t number = 0;
    int option;

    *ret = (struct arguments){.seed = 1, .seeds = 1, .jobs = 30, .processes = 1};
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (strchr("snjp", option) != NULL && !number_of(optarg, &number))
            return false;
        if (option == 's')
            ret->seed = number;
        else if (option == 'n')
            ret->seeds = number;
        else if (option == 'j')
            ret->jobs = (int)number;
        else if (option == 'p')
            ret->processes = (int)number;
        else if (option == 'r')
            ret->remove = optarg;
        else if (option == 'g')
            ret->guards = true;
        else if (option == 't')
            ret->trace = true;
        else
            return false;
    }
    return optind == argc && ret->processes > 0 && ret->processes <= 64;
}

int main(int argc, char **argv)
{
    struct arguments arguments;

    if (!parse(argc, argv, &arguments)) {
        (void)fprintf(stderr, "use: headrace_sim [--seed N] [--seeds M] [--jobs K] [--processes P] "
                              "[--guards | --remove GUARD] [--trace]\n");
        return 2;
    }
    if (arguments.guards || arguments.remove != NULL)
        return try_guards(&arguments);
    return run_shared(&arguments);
}
