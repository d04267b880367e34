/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Runs worlds, and says which seed broke what. Without a guard removed, a broken invariant is the
 * failure; with one removed, finding none is.
 *
 * Seeds are handed out in order to several processes. When one fails, those before it are still
 * finished, so that the seed that is named is the first one, whatever ran where.
 */

#include <getopt.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/clock.h"
#include "tests/sim/sim.h"

static const char usage[] =
    "use: headrace_sim [--seed N] [--seeds M | --list FILE] [--jobs K] [--processes P]\n"
    "                  [--trace] [--coverage] [--guards | --remove GUARD] [--markdown]\n"
    "\n"
    "  --seed N       first seed; 1\n"
    "  --seeds M      how many worlds; 1\n"
    "  --list FILE    worlds by the seeds that begin its lines\n"
    "  --jobs K       jobs of a world; 30\n"
    "  --processes P  processes that share them; 1\n"
    "  --trace        say what happens in the world\n"
    "  --coverage     how often each fault happened; fails when one never did\n"
    "  --guards       take each rule of the protocol away; fails when no world breaks without it\n"
    "  --remove GUARD take this one away (names: --guards); with --seed and --trace: watch it\n"
    "  --markdown     tables for docs/simulation.md\n";

struct arguments {
    uint64_t seed, seeds;
    int jobs, processes;
    bool trace, guards, coverage, markdown;
    const char *remove;
    uint64_t *list; /* NULL: `seeds` of them, from `seed` on */
};

static uint64_t seed_at(const struct arguments *arguments, uint64_t index)
{
    return arguments->list != NULL ? arguments->list[index] : arguments->seed + index;
}

static const struct {
    enum owner_guard guard;
    const char *name, *text;
} guards[] = {
#define GUARD(name, bit, text) {OWNER_GUARD_##name, #name, text},
    OWNER_GUARDS(GUARD)
#undef GUARD
};

static const struct {
    const char *name, *where, *text;
} faults[FAULT_COUNT] = {
#define FAULT(name, where, text) {#name, where, text},
#include "tests/sim/sim_faults.def"
#undef FAULT
};

/* What the processes share. */
struct board {
    atomic_uint_fast64_t next;      /* index of the next seed */
    atomic_uint_fast64_t first_bad; /* index of the first that failed; UINT64_MAX: none */
    atomic_uint_fast64_t events;
    atomic_uint_fast64_t hits[FAULT_COUNT];
};

static struct board *board;

static void board_note(uint64_t index, const struct sim *sim)
{
    uint_fast64_t bad = atomic_load(&board->first_bad);

    atomic_fetch_add(&board->events, sim->event_count);
    for (int i = 0; i < FAULT_COUNT; i++)
        atomic_fetch_add(&board->hits[i], sim->hits[i]);
    while (sim->failed && index < bad &&
           !atomic_compare_exchange_weak(&board->first_bad, &bad, index))
        continue;
}

static void run_share(const struct arguments *arguments, unsigned removed)
{
    struct sim *sim = xmalloc(sizeof(*sim));
    uint64_t index;

    while ((index = atomic_fetch_add(&board->next, 1)) < arguments->seeds &&
           index < atomic_load(&board->first_bad)) {
        struct sim_options options = {.seed = seed_at(arguments, index),
                                      .jobs = arguments->jobs,
                                      .removed_guards = removed,
                                      .trace = arguments->trace};

        sim_run(sim, &options);
        board_note(index, sim);
        sim_done(sim);
    }
    free(sim);
}

/* Runs all seeds; returns the first that failed, or UINT64_MAX. */
static uint64_t run_all(const struct arguments *arguments, unsigned removed)
{
    uint64_t bad;

    atomic_store(&board->next, 0);
    atomic_store(&board->first_bad, UINT64_MAX);
    if (arguments->processes == 1)
        run_share(arguments, removed);
    (void)fflush(stdout);
    for (int i = 0; arguments->processes > 1 && i < arguments->processes; i++) {
        if (fork() != 0)
            continue;
        run_share(arguments, removed);
        (void)fflush(stdout);
        _exit(0);
    }
    for (int i = 0; arguments->processes > 1 && i < arguments->processes; i++) {
        int status = 0;

        if (wait(&status) < 0 || !WIFEXITED(status) || WEXITSTATUS(status) != 0) {
            (void)fprintf(stderr, "a process of the simulation died: run its seeds with "
                                  "--processes 1 to see which one\n");
            exit(1);
        }
    }
    bad = atomic_load(&board->first_bad);
    return bad == UINT64_MAX ? UINT64_MAX : seed_at(arguments, bad);
}

/* The same world again, for what it says. */
static void failure_of(const struct arguments *arguments, uint64_t seed, unsigned removed, char *to,
                       size_t size)
{
    struct sim *sim = xmalloc(sizeof(*sim));
    struct sim_options options = {.seed = seed, .jobs = arguments->jobs, .removed_guards = removed};

    sim_run(sim, &options);
    (void)snprintf(to, size, "%s", sim->failed ? sim->failure : "no failure when run again");
    sim_done(sim);
    free(sim);
}

/* ---- all guards in place ---- */

static int show_coverage(const struct arguments *arguments)
{
    int missed = 0;

    if (arguments->markdown)
        (void)printf("| fault | where | times |\n| --- | --- | ---: |\n");
    for (int i = 0; i < FAULT_COUNT; i++) {
        uint64_t count = atomic_load(&board->hits[i]);

        missed += count == 0;
        (void)printf(arguments->markdown ? "| %s | %s | %" PRIu64 " |\n"
                                         : "  %-70s %-9s %10" PRIu64 "\n",
                     faults[i].text, faults[i].where, count);
    }
    if (missed > 0)
        (void)printf("sim: %d faults never happened in %" PRIu64 " seeds\n", missed,
                     arguments->seeds);
    return missed == 0 ? 0 : 1;
}

static int run_seeds(const struct arguments *arguments)
{
    uint64_t began_us = clock_mono_us();
    uint64_t bad = run_all(arguments, 0);
    double took_s = (double)(clock_mono_us() - began_us) / 1e6;
    char failure[512];
    int status = bad == UINT64_MAX ? 0 : 1;

    if (bad != UINT64_MAX) {
        failure_of(arguments, bad, 0, failure, sizeof(failure));
        (void)printf("seed %" PRIu64 ": %s\n  again: headrace_sim --seed %" PRIu64
                     " --jobs %d --trace\n",
                     bad, failure, bad, arguments->jobs);
    } else if (arguments->coverage) {
        status = show_coverage(arguments);
    }
    (void)printf("sim: %" PRIu64 " seeds of %d jobs, %" PRIu64 " events in %.1f s: %s\n",
                 arguments->seeds, arguments->jobs, (uint64_t)atomic_load(&board->events), took_s,
                 status == 0 ? "ok" : "FAILED");
    return status;
}

/* ---- one guard away ---- */

static int try_guard(const struct arguments *arguments, size_t index)
{
    unsigned removed = (unsigned)guards[index].guard;
    uint64_t bad = run_all(arguments, removed);
    char failure[512];

    if (bad == UINT64_MAX) {
        (void)printf("without '%s' (%s): no seed of %" PRIu64 " fails\n", guards[index].text,
                     guards[index].name, arguments->seeds);
        return 1;
    }
    failure_of(arguments, bad, removed, failure, sizeof(failure));
    if (arguments->markdown)
        (void)printf("| %s | `%s` | %" PRIu64 " | %s |\n", guards[index].text, guards[index].name,
                     bad, failure);
    else
        (void)printf("without '%s' (%s): seed %" PRIu64 ": %s\n", guards[index].text,
                     guards[index].name, bad, failure);
    (void)fflush(stdout);
    return 0;
}

static int try_guards(const struct arguments *arguments)
{
    uint64_t began_us = clock_mono_us();
    int missed = 0, tried = 0;

    if (arguments->markdown)
        (void)printf("| without | switch | seed | what breaks |\n| --- | --- | ---: | --- |\n");
    for (size_t i = 0; i < COUNT_OF(guards); i++) {
        if (arguments->remove != NULL && strcmp(arguments->remove, guards[i].name) != 0)
            continue;
        missed += try_guard(arguments, i);
        tried++;
    }
    if (tried == 0) {
        (void)fprintf(stderr, "there is no guard %s; --guards lists them\n", arguments->remove);
        return 2;
    }
    if (!arguments->markdown)
        (void)printf("sim: %d guards removed, %d missed, %.1f s\n", tried, missed,
                     (double)(clock_mono_us() - began_us) / 1e6);
    return missed == 0 ? 0 : 1;
}

/* ---- the command line ---- */

static bool number_of(const char *text, uint64_t *ret_number)
{
    char *end;

    *ret_number = strtoull(text, &end, 10);
    return end != text && *end == '\0';
}

/* Lines are: a seed, or `#` and words. */
static bool read_list(const char *path, struct arguments *ret)
{
    FILE *file = fopen(path, "re");
    char line[256];
    bool good = true;

    if (file == NULL) {
        perror(path);
        return false;
    }
    ret->seeds = 0;
    while (good && fgets(line, sizeof(line), file) != NULL) {
        if (line[0] == '#' || line[0] == '\n')
            continue;
        line[strcspn(line, " \n")] = '\0';
        ret->list = xrealloc(ret->list, ret->seeds + 1, sizeof(*ret->list));
        good = number_of(line, &ret->list[ret->seeds++]);
        if (!good)
            (void)fprintf(stderr, "%s: '%s' is no seed\n", path, line);
    }
    (void)fclose(file);
    if (good && ret->seeds == 0)
        (void)fprintf(stderr, "%s has no seed\n", path);
    return good && ret->seeds > 0;
}

static bool parse(int argc, char **argv, struct arguments *ret)
{
    static const struct option options[] = {
        {"seed", required_argument, NULL, 's'},
        {"seeds", required_argument, NULL, 'n'},
        {"jobs", required_argument, NULL, 'j'},
        {"processes", required_argument, NULL, 'p'},
        {"remove", required_argument, NULL, 'r'},
        {"guards", no_argument, NULL, 'g'},
        {"coverage", no_argument, NULL, 'c'},
        {"markdown", no_argument, NULL, 'm'},
        {"trace", no_argument, NULL, 't'},
        {"list", required_argument, NULL, 'l'},
        {NULL, 0, NULL, 0},
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
        else if (option == 'l' && !read_list(optarg, ret))
            return false;
        else if (option == 'l')
            continue;
        else if (option == 'g')
            ret->guards = true;
        else if (option == 'c')
            ret->coverage = true;
        else if (option == 'm')
            ret->markdown = true;
        else if (option == 't')
            ret->trace = true;
        else
            return false;
    }
    return optind == argc && ret->processes > 0 && ret->processes <= 64 && ret->jobs > 0;
}

int main(int argc, char **argv)
{
    struct arguments arguments;
    int code;

    if (!parse(argc, argv, &arguments)) {
        (void)fputs(usage, stderr);
        mem_free(&arguments.list);
        return 2;
    }
    board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (board == MAP_FAILED) {
        perror("mmap");
        return 1;
    }
    if (arguments.guards || arguments.remove != NULL)
        code = try_guards(&arguments);
    else
        code = run_seeds(&arguments);
    mem_free(&arguments.list);
    return code;
}
