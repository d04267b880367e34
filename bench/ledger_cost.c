/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What a job costs in the ledger: flushes of 1, 10, 100 and 1,000 jobs, one after another, through
 * brokers/store.h to a real server. Prints microseconds a job: on the clock, of our CPU, of all
 * processes of the server; and how long one flush took.
 *
 *   finished   a job that was done before its first row: one insert, with result and attempt
 *   accepted   the first row of a job that waits, with its input
 *   done       the last write of such a job
 *
 * Run by bench/ledger_cost, which starts a server with fsync.
 */

#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/loop.h"
#include "base/rng.h"
#include "base/settings.h"
#include "brokers/store.h"
#include "migrations/migrate.h"
#include "schema/job_id.h"

#define FLUSH_TIMEOUT_MS 60000
#define US_PER_S 1000000u

enum kind {
    KIND_FINISHED,
    KIND_ACCEPTED,
    KIND_DONE,
    KIND_COUNT,
};

static const char *const kind_names[KIND_COUNT] = {"finished", "accepted", "done"};

struct bench {
    struct loop *loop;
    struct store *store;
    struct wire_decoder *decoder;
    int64_t server_pid;
    uint32_t epoch;
    uint64_t number, token;
    bool done, failed;
    size_t job_count;
};

static const char input[] =
    "{\"input\":\"two hundred and fifty-six bytes, as the rules of the benchmark want them: "
    "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890"
    "12345678901234567890123456789012345678901234567890123456789012345678901234567890\"}";

static void fail(const char *what, const char *why)
{
    (void)fprintf(stderr, "ledger_cost: %s: %s\n", what, why);
    exit(1);
}

/* ---- CPU ---- */

static uint64_t process_us(const char *pid)
{
    char path[64], line[1024], *at;
    uint64_t ticks[2] = {0};
    FILE *file;

    (void)snprintf(path, sizeof(path), "/proc/%s/stat", pid);
    file = fopen(path, "r");
    if (file == NULL)
        return 0;
    if (fgets(line, sizeof(line), file) != NULL && (at = strrchr(line, ')')) != NULL &&
        sscanf(at, ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %" SCNu64 " %" SCNu64, &ticks[0],
               &ticks[1]) != 2)
        ticks[0] = ticks[1] = 0;
    (void)fclose(file);
    return (ticks[0] + ticks[1]) * (US_PER_S / (uint64_t)sysconf(_SC_CLK_TCK));
}

static bool is_child(const char *pid, int64_t of)
{
    char path[64], line[1024], *at;
    int64_t parent = 0;
    FILE *file;

    (void)snprintf(path, sizeof(path), "/proc/%s/stat", pid);
    file = fopen(path, "r");
    if (file == NULL)
        return false;
    if (fgets(line, sizeof(line), file) == NULL || (at = strrchr(line, ')')) == NULL ||
        sscanf(at, ") %*c %" SCNd64, &parent) != 1)
        parent = 0;
    (void)fclose(file);
    return parent == of;
}

/* The server's processes are the children of the one that was started. */
static uint64_t server_us(const struct bench *bench)
{
    DIR *dir = opendir("/proc");
    const struct dirent *entry;
    uint64_t sum = 0;

    if (dir == NULL)
        fail("/proc", "cannot be read");
    while ((entry = readdir(dir)) != NULL) {
        if (entry->d_name[0] >= '1' && entry->d_name[0] <= '9' &&
            is_child(entry->d_name, bench->server_pid))
            sum += process_us(entry->d_name);
    }
    (void)closedir(dir);
    return sum;
}

static uint64_t own_us(void)
{
    struct rusage usage;

    (void)getrusage(RUSAGE_SELF, &usage);
    return (uint64_t)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * US_PER_S +
           (uint64_t)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

/* ---- jobs and flushes ---- */

static struct job_spec *spec_new(struct bench *bench)
{
    static const uint8_t digest[32] = {1};
    uint8_t entropy[JOB_ID_RANDOM_SIZE];
    struct message_submit submit = {
        .tenant = WIRE_TEXT_OF("tenant"),
        .model = WIRE_TEXT_OF("model"),
        .deployment = WIRE_TEXT_OF("deployment"),
        .environment = WIRE_TEXT_OF("production"),
        .pool = WIRE_TEXT_OF("deployment"),
        .input = {(const uint8_t *)input, 256},
        .input_size = 256,
        .input_digest = {digest, sizeof(digest)},
        .max_attempts = 3,
        .queue_limit_ms = 600000,
        .run_limit_ms = 3600000,
        .received_us = clock_wall_us(),
        .gateway = WIRE_TEXT_OF("gateway-0123456789abcdef"),
        .key_prefix = WIRE_TEXT_OF("hr_01234567"),
    };
    struct buf buf = BUF_WITH_LIMIT(100000);
    struct job_spec *spec = NULL;
    struct err err = {0};

    rng_secret_bytes(entropy, sizeof(entropy));
    submit.id = job_id_make(0, clock_wall_ms(), entropy);
    if (message_encode(MESSAGE_SUBMIT, &submit, &buf, &err) < 0 ||
        job_spec_new(bench->decoder, buf.bytes, buf.size, 1, clock_wall_us(), &spec, &err) < 0)
        fail("job", err.text);
    buf_done(&buf);
    return spec;
}

static void on_takeover(void *opaque, struct ledger_takeover *takeover, struct err *err)
{
    struct bench *bench = opaque;

    if (takeover == NULL)
        fail("takeover", err->text);
    bench->epoch = takeover->epoch;
    bench->done = true;
}

static void on_flush(void *opaque, const struct flush_result *result)
{
    struct bench *bench = opaque;

    bench->done = true;
    bench->failed = result->verdict != FLUSH_COMMITTED;
    for (size_t i = 0; !bench->failed && i < bench->job_count; i++)
        bench->failed = !result->applied[i];
}

static struct flush_job job_of(struct bench *bench, const struct job_spec *spec, enum kind kind)
{
    static const char output[] = "{\"data\":[{\"embedding\":[0.1,0.2,0.3,0.4]}]}";
    struct flush_job job = {.spec = spec,
                            .action = kind == KIND_DONE ? FLUSH_UPDATE : FLUSH_INSERT,
                            .state = kind == KIND_ACCEPTED ? JOB_QUEUED : JOB_SUCCEEDED,
                            .state_us = clock_wall_us()};

    if (kind == KIND_ACCEPTED)
        return job;
    job.token = job.fence = job.final_token = TOKEN_MAKE(bench->epoch, ++bench->token);
    job.attempt_count = 1;
    job.started_us = job.state_us;
    job.worker = WIRE_TEXT_OF("worker-0123");
    job.output = (struct wire_bytes){(const uint8_t *)output, sizeof(output) - 1};
    job.output_size = sizeof(output) - 1;
    return job;
}

static void flush_run(struct bench *bench, struct job_spec *const *specs, size_t count,
                      enum kind kind)
{
    struct flush_job *jobs = xcalloc(count, sizeof(*jobs));
    struct flush_attempt *attempts = xcalloc(count, sizeof(*attempts));
    struct flush flush = {.epoch = bench->epoch,
                          .number = ++bench->number,
                          .floor_us = clock_wall_us(),
                          .jobs = jobs,
                          .job_count = count,
                          .attempts = attempts,
                          .attempt_count = kind == KIND_ACCEPTED ? 0 : count};

    for (size_t i = 0; i < count; i++) {
        jobs[i] = job_of(bench, specs[i], kind);
        attempts[i] = (struct flush_attempt){.job = specs[i]->submit.id,
                                             .round = 1,
                                             .number = 1,
                                             .token = jobs[i].token,
                                             .worker = jobs[i].worker,
                                             .dispatched_us = jobs[i].state_us,
                                             .started_us = jobs[i].state_us,
                                             .ended_us = jobs[i].state_us};
    }
    bench->done = false;
    bench->job_count = count;
    store_flush(bench->store, &flush, on_flush, bench);
    if (!loop_run_until(bench->loop, &bench->done, FLUSH_TIMEOUT_MS) || bench->failed)
        fail("flush", "not committed, or not every row was written");
    mem_free(&jobs);
    mem_free(&attempts);
}

struct cost {
    uint64_t jobs, flushes, clock_us, own_us, server_us;
};

static void cost_print(const char *kind, size_t count, const struct cost *cost)
{
    double jobs = (double)cost->jobs;

    (void)printf("| %-8s | %4zu | %7.1f | %6.1f | %7.1f | %8.0f | %6.0f |\n", kind, count,
                 (double)cost->clock_us / jobs, (double)cost->own_us / jobs,
                 (double)cost->server_us / jobs, (double)cost->clock_us / (double)cost->flushes,
                 jobs * US_PER_S / (double)cost->clock_us);
    (void)fflush(stdout);
}

/* Jobs are made before the clock starts; `done` writes the rows that `accepted` made. */
static void measure(struct bench *bench, struct job_spec *const *specs, size_t total, size_t count,
                    enum kind kind)
{
    struct cost cost = {0};
    uint64_t clock_us = clock_mono_us(), own = own_us(), server = server_us(bench);

    for (size_t i = 0; i + count <= total; i += count) {
        flush_run(bench, specs + i, count, kind);
        cost.jobs += count;
        cost.flushes++;
    }
    cost.clock_us = clock_mono_us() - clock_us;
    cost.own_us = own_us() - own;
    cost.server_us = server_us(bench) - server;
    cost_print(kind_names[kind], count, &cost);
}

static void round_run(struct bench *bench, size_t count, size_t total)
{
    struct job_spec **specs = xcalloc(total, sizeof(struct job_spec *));

    for (int pass = 0; pass < 2; pass++) {
        for (size_t i = 0; i < total; i++)
            specs[i] = spec_new(bench);
        if (pass == 0) {
            measure(bench, specs, total, count, KIND_FINISHED);
        } else {
            measure(bench, specs, total, count, KIND_ACCEPTED);
            measure(bench, specs, total, count, KIND_DONE);
        }
        for (size_t i = 0; i < total; i++)
            job_spec_unref(&specs[i]);
    }
    mem_free(&specs);
}

int main(void)
{
    static const struct {
        size_t count, total;
    } rounds[] = {{1, 2000}, {10, 10000}, {100, 40000}, {1000, 60000}};
    const char *url = getenv("HEADRACE_POSTGRES"), *pid = getenv("HEADRACE_POSTGRES_PID");
    const struct store_options options = {
        .url = url, .application = "ledger_cost", .statement_timeout_ms = FLUSH_TIMEOUT_MS};
    struct bench bench = {0};
    struct err err = {0};

    if (url == NULL || pid == NULL)
        fail("use", "run bench/ledger_cost, which starts a server");
    if (settings_parse_int("HEADRACE_POSTGRES_PID", pid, &bench.server_pid, &err) < 0 ||
        migrate_run(url, MIGRATE_APPLY, NULL, NULL, &err) < 0 || loop_open(&bench.loop, &err) < 0 ||
        store_open(bench.loop, &options, &bench.store, &err) < 0)
        fail("start", err.text);
    bench.decoder = wire_decoder_new();
    store_takeover(bench.store, 0, on_takeover, &bench);
    if (!loop_run_until(bench.loop, &bench.done, FLUSH_TIMEOUT_MS))
        fail("takeover", "no answer");
    (void)printf(
        "| write    | jobs a flush | us a job | our CPU | server's CPU | us a flush | jobs/s |\n"
        "|---|---|---|---|---|---|---|\n");
    for (size_t i = 0; i < COUNT_OF(rounds); i++)
        round_run(&bench, rounds[i].count, rounds[i].total);
    wire_decoder_free(&bench.decoder);
    store_close(&bench.store);
    loop_close(&bench.loop);
    return 0;
}
