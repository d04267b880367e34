/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The encoder's half of bench/encoder: runs what it is told on its standard input, so that a
 * driver can let it and a rival take turns.
 *
 *     in   TEXTS TOKENS THREADS DTYPE MILLISECONDS     e.g. "8 128 1 f32 500"
 *     in   mixed TEXTS TOKENS THREADS DTYPE MS         texts of 8 to TOKENS tokens instead
 *     out  RUNS WALL_SECONDS CPU_SECONDS V0 V1 …       of one batch again and again; V are the
 *                                                      first text's vector, to be compared
 *     in   engine TEXTS TOKENS THREADS DTYPE MS        the same through JSON, tokenizer and queue,
 *     out  RUNS WALL_SECONDS CPU_SECONDS               as a job goes
 *     in   jobs HELD THREADS DTYPE PATH                each line of a file is a request;
 *     out  REQUESTS WALL_SECONDS CPU_SECONDS TOKENS    the engine holds HELD at a time
 *
 * Ids are those that encoder_ort.py makes: 101, then (1000 + 7 * i + text) % 20000 + 1000, 102.
 * A model is loaded anew when threads or dtype change.
 */

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "base/buf.h"
#include "base/clock.h"
#include "workers/engines/encoder/bert.h"
#include "workers/engines/encoder/encoder.h"

#define BATCH_TOKEN_MAX 16384u
#define TEXT_COUNT_MAX 256u
#define LINE_SIZE_MAX 65536u

struct bench {
    const char *dir;
    uint32_t text_count, token_count, thread_count;
    uint64_t budget_us;
    bool mixed;
    char dtype[8];
    struct bert *bert; /* of thread_count and dtype */
    uint32_t bert_thread_count;
    char bert_dtype[8];
    struct encoder_config config;
};

struct spent {
    uint64_t run_count;
    double wall_s, cpu_s;
};

static double cpu_now_s(void)
{
    struct rusage usage;

    (void)getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
}

static int open_bert(struct bench *bench, struct err *err)
{
    OWNED(mem_free) char *path = xasprintf("%s/model.safetensors", bench->dir);
    OWNED(safetensors_close) struct safetensors *weights = NULL;
    const struct bert_options options = {
        .thread_count = bench->thread_count,
        .token_count_max = BATCH_TOKEN_MAX,
        .bf16 = strcmp(bench->dtype, "bf16") == 0,
    };
    int r;

    if (bench->bert != NULL && bench->bert_thread_count == bench->thread_count &&
        strcmp(bench->bert_dtype, bench->dtype) == 0)
        return 0;
    bert_close(&bench->bert);
    r = encoder_config_read(bench->dir, &bench->config, err);
    if (r == 0)
        r = safetensors_open(path, &weights, err);
    if (r == 0)
        r = bert_open(&bench->config, &weights, &options, &bench->bert, err);
    bench->bert_thread_count = bench->thread_count;
    mem_copy_text(bench->bert_dtype, bench->dtype);
    return r;
}

#define MIXED_LEAST 8u

/* Lengths evenly from MIXED_LEAST to token_count, in an order that is neither; or all the same. */
static uint32_t length_of(const struct bench *bench, uint32_t text)
{
    const uint32_t place = (uint32_t)((uint64_t)text * 7919u % bench->text_count);

    if (!bench->mixed || bench->text_count < 2)
        return bench->token_count;
    return MIXED_LEAST + (bench->token_count - MIXED_LEAST) * place / (bench->text_count - 1);
}

static int run_forward(struct bench *bench, struct spent *spent, struct err *err)
{
    const uint32_t n = bench->text_count, t = bench->token_count;
    OWNED(mem_free) uint32_t *ids = xcalloc((size_t)n * t, sizeof(*ids));
    OWNED(mem_free) uint32_t *offsets = xcalloc(n + 1, sizeof(*offsets));
    OWNED(mem_free) float *vectors = NULL;
    const struct bert_batch batch = {ids, offsets, n, NULL};
    uint64_t start_us, now_us;
    double start_cpu_s;
    int r;

    r = open_bert(bench, err);
    if (r < 0)
        return r;
    vectors = xcalloc((size_t)n * bench->config.hidden, sizeof(float));
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t length = length_of(bench, i), at = offsets[i];

        for (uint32_t j = 0; j < length; j++)
            ids[at + j] = j == 0 ? 101 : j + 1 == length ? 102 : (1000 + 7 * j + i) % 20000 + 1000;
        offsets[i + 1] = at + length;
    }
    r = bert_run(bench->bert, &batch, vectors, err); /* warm */
    start_cpu_s = cpu_now_s();
    start_us = clock_mono_us();
    do {
        if (r == 0)
            r = bert_run(bench->bert, &batch, vectors, err);
        now_us = clock_mono_us();
        spent->run_count++;
    } while (r == 0 && now_us - start_us < bench->budget_us);
    spent->wall_s = (double)(now_us - start_us) * 1e-6;
    spent->cpu_s = cpu_now_s() - start_cpu_s;
    if (r < 0)
        return r;
    (void)printf("%" PRIu64 " %.6f %.6f", spent->run_count, spent->wall_s, spent->cpu_s);
    for (uint32_t i = 0; i < bench->config.hidden; i++)
        (void)printf(" %.9g", (double)vectors[i]);
    (void)printf("\n");
    return 0;
}

struct answers {
    uint64_t count, token_count;
};

static void count_output(void *opaque, const struct engine_event *event)
{
    struct answers *answers = opaque;

    if (event->type != ENGINE_EVENT_OUTPUT)
        return;
    answers->count++;
    answers->token_count += event->token_count;
}

static int check_count(const struct answers *answers, uint64_t request_count, int r,
                       struct err *err)
{
    if (r == 0 && answers->count != request_count)
        return err_set(err, ERR_INTERNAL, "%" PRIu64 " answers to %" PRIu64 " requests",
                       answers->count, request_count);
    return r;
}

/* One request a text, as jobs come; words of one piece each. */
static int run_engine(struct bench *bench, struct spent *spent, struct err *err)
{
    OWNED(mem_free) char *settings = xasprintf("{\"dtype\":\"%s\"}", bench->dtype);
    OWNED(buf_done) struct buf input = BUF_WITH_LIMIT(1u << 20);
    struct answers answers = {0};
    uint64_t start_us, now_us, wake_us, id = 0;
    const struct engine_load load = {
        .dir = bench->dir,
        .model = "bench",
        .device = "cpu",
        .thread_count = bench->thread_count,
        .req_count_max = TEXT_COUNT_MAX,
        .batch_token_max = bench->text_count * bench->token_count < 512
                               ? 512
                               : bench->text_count * bench->token_count,
        .settings_json = settings,
        .sink = {count_output, NULL, &answers},
    };
    struct engine *engine = NULL;
    struct engine_info info;
    double start_cpu_s;
    int r;

    r = encoder_api.load(&load, &engine, &info, err);
    if (r < 0)
        return r;
    buf_append_text(&input, "{\"input\":\"");
    for (uint32_t i = 0; i + 2 < bench->token_count; i++)
        buf_append_text(&input, i % 2 == 0 ? "water " : "wheel ");
    buf_append_text(&input, "\"}");
    start_cpu_s = cpu_now_s();
    start_us = clock_mono_us();
    do {
        for (uint32_t i = 0; r == 0 && i < bench->text_count; i++) {
            const struct engine_req req = {
                .id = ++id, .input = input.bytes, .input_size = input.size};

            r = encoder_api.submit(engine, &req, start_us, err);
        }
        for (wake_us = 0; r == 0 && wake_us == 0;)
            r = encoder_api.step(engine, start_us, &wake_us, err);
        now_us = clock_mono_us();
        spent->run_count++;
    } while (r == 0 && now_us - start_us < bench->budget_us);
    spent->wall_s = (double)(now_us - start_us) * 1e-6;
    spent->cpu_s = cpu_now_s() - start_cpu_s;
    encoder_api.unload(&engine);
    r = check_count(&answers, id, r, err);
    if (r == 0)
        (void)printf("%" PRIu64 " %.6f %.6f\n", spent->run_count, spent->wall_s, spent->cpu_s);
    return r;
}

/* Hands the engine up to `held` lines, as a host holds requests; *id counts them. */
static int submit_lines(struct engine *engine, FILE *file, uint32_t held, uint64_t *id,
                        struct err *err)
{
    char line[LINE_SIZE_MAX];

    for (uint32_t i = 0; i < held && fgets(line, sizeof(line), file) != NULL; i++) {
        const struct engine_req req = {.id = ++*id, .input = line, .input_size = strlen(line)};
        int r = encoder_api.submit(engine, &req, 0, err);

        if (r < 0)
            return r;
    }
    return 0;
}

/* A file of requests, once, in batches as the engine cuts them by itself. */
static int run_jobs(struct bench *bench, uint32_t held, FILE *file, struct spent *spent,
                    struct err *err)
{
    OWNED(mem_free) char *settings = xasprintf("{\"dtype\":\"%s\"}", bench->dtype);
    struct answers answers = {0};
    const struct engine_load load = {
        .dir = bench->dir,
        .model = "bench",
        .device = "cpu",
        .thread_count = bench->thread_count,
        .req_count_max = held,
        .settings_json = settings,
        .sink = {count_output, NULL, &answers},
    };
    struct engine *engine = NULL;
    struct engine_info info;
    uint64_t id = 0, before, wake_us;
    double start_cpu_s, start_s;
    int r;

    r = encoder_api.load(&load, &engine, &info, err);
    if (r < 0)
        return r;
    (void)fprintf(stderr, "%s\n", info.detail);
    start_cpu_s = cpu_now_s();
    start_s = (double)clock_mono_us() * 1e-6;
    do {
        before = id;
        r = submit_lines(engine, file, held, &id, err);
        for (wake_us = 0; r == 0 && wake_us == 0;)
            r = encoder_api.step(engine, 0, &wake_us, err);
    } while (r == 0 && id > before);
    spent->wall_s = (double)clock_mono_us() * 1e-6 - start_s;
    spent->cpu_s = cpu_now_s() - start_cpu_s;
    encoder_api.unload(&engine);
    r = check_count(&answers, id, r, err);
    if (r == 0)
        (void)printf("%" PRIu64 " %.6f %.6f %" PRIu64 "\n", id, spent->wall_s, spent->cpu_s,
                     answers.token_count);
    return r;
}

static int run_file(struct bench *bench, const char *line, struct err *err)
{
    struct spent spent = {0};
    char path[256];
    uint32_t held;
    FILE *file;
    int r;

    if (sscanf(line, "%u %u %7s %255s", &held, &bench->thread_count, bench->dtype, path) != 4 ||
        held < 1 || held > ENCODER_REQ_COUNT_MAX || bench->thread_count < 1)
        return err_set(err, ERR_USAGE, "cannot run 'jobs %s'", line);
    file = fopen(path, "re");
    if (file == NULL)
        return err_set_errno(err, ERR_IO, "read '%s'", path);
    r = run_jobs(bench, held, file, &spent, err);
    (void)fclose(file);
    return r;
}

static int run_line(struct bench *bench, const char *line, struct err *err)
{
    const bool whole = strncmp(line, "engine ", 7) == 0;
    struct spent spent = {0};
    unsigned milliseconds;

    if (strncmp(line, "jobs ", 5) == 0)
        return run_file(bench, line + 5, err);
    bench->mixed = strncmp(line, "mixed ", 6) == 0;
    if (sscanf(line + (whole          ? 7
                       : bench->mixed ? 6
                                      : 0),
               "%u %u %u %7s %u", &bench->text_count, &bench->token_count, &bench->thread_count,
               bench->dtype, &milliseconds) != 5 ||
        bench->text_count < 1 || bench->text_count > TEXT_COUNT_MAX ||
        bench->token_count < (bench->mixed ? MIXED_LEAST : 2) ||
        bench->token_count > BATCH_TOKEN_MAX / bench->text_count || bench->thread_count < 1)
        return err_set(err, ERR_USAGE, "cannot run '%s'", line);
    bench->budget_us = milliseconds * 1000ull;
    return whole ? run_engine(bench, &spent, err) : run_forward(bench, &spent, err);
}

int main(int argc, char **argv)
{
    struct bench bench = {.dir = argc == 2 ? argv[1] : NULL};
    struct err err;
    char line[512];
    int r = 0;

    if (bench.dir == NULL) {
        (void)fprintf(stderr, "usage: encoder_bench MODEL_DIR < commands\n");
        return 1;
    }
    while (r == 0 && fgets(line, sizeof(line), stdin) != NULL) {
        line[strcspn(line, "\n")] = '\0';
        r = run_line(&bench, line, &err);
        (void)fflush(stdout);
    }
    bert_close(&bench.bert);
    if (r < 0)
        (void)fprintf(stderr, "encoder_bench: %s\n", err.text);
    return r < 0 ? 3 : 0;
}
