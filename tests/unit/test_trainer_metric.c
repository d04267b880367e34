/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: what a job uses is what the kernel says, and a script's own metrics are those of its lines
 * that say so. Method: rows of lines; this process and a child that uses a core. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "workers/trainer_metric.h"

static const struct {
    const char *line, *want; /* "name=value@step …" */
} lines[] = {
    {"headrace_metric loss=0.5 step=10", "user.loss=0.5@10 "},
    {"headrace_metric step=10 loss=0.5 acc/top1=1", "user.loss=0.5@10 user.acc/top1=1@10 "},
    {"  headrace_metric loss=1e-3", "user.loss=0.001@-1 "},
    {"headrace_metric {\"loss\": 0.25, \"step\": 3, \"note\": \"x\"}", "user.loss=0.25@3 "},
    {"headrace_metric loss=nan x=inf y=1", "user.y=1@-1 "},
    {"headrace_metric loss=0.5 step=1.5", "user.loss=0.5@-1 "},
    {"headrace_metric loss=0.5 step=-1", "user.loss=0.5@-1 "},
    {"headrace_metric loss=0.5x a b= =3 c=4", "user.c=4@-1 "},
    {"headrace_metric l\xc3\xb6ss=1", ""},
    {"headrace_metric {\"loss\": ", ""},
    {"headrace_metric [1]", ""},
    {"headrace_metric ", ""},
    {"headrace_metric", ""},
    {"headrace_metrics loss=1", ""},
    {"epoch 1 headrace_metric loss=1", ""},
    {"", ""},
};

static void test_lines(void **state)
{
    (void)state;
    for (size_t i = 0; i < COUNT_OF(lines); i++) {
        struct trainer_metric found[4];
        char text[2048] = "";
        size_t count = trainer_metric_line(lines[i].line, strlen(lines[i].line), found, 4);

        for (size_t k = 0; k < count; k++)
            (void)snprintf(text + strlen(text), sizeof(text) - strlen(text), "%s=%g@%lld ",
                           found[k].name, found[k].value, (long long)found[k].step);
        if (strcmp(text, lines[i].want) != 0)
            fail_msg("'%s': '%s'", lines[i].line, text);
    }
}

/* A line of the longest kind and one that is longer; as many metrics as fit, and no more. */
static void test_bounds(void **state)
{
    static char line[8192];
    struct trainer_metric found[64];
    size_t size;

    (void)state;
    (void)snprintf(line, sizeof(line), "headrace_metric");
    for (int i = 0; i < 64; i++)
        (void)snprintf(line + strlen(line), sizeof(line) - strlen(line), " m%d=%d", i, i);
    size = strlen(line);
    assert_int_equal(trainer_metric_line(line, size, found, 64), TRAINER_METRIC_LINE_MAX);
    assert_int_equal(trainer_metric_line(line, size, found, 3), 3);
    memset(line + size, ' ', sizeof(line) - size);
    assert_int_equal(trainer_metric_line(line, sizeof(line), found, 64), 0);
}

static double value_of(const struct trainer_metric *found, size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++) {
        if (strcmp(found[i].name, name) == 0)
            return found[i].value;
    }
    return -1;
}

/* A child of a child that computes: its time and memory are the leader's. */
static void test_a_tree_is_summed_up(void **state)
{
    struct trainer_metric_state metrics = {0};
    struct trainer_metric found[4];
    volatile unsigned long work = 0;
    pid_t leader;
    int ready[2];
    char byte;
    size_t count;

    (void)state;
    assert_int_equal(pipe(ready), 0);
    leader = fork();
    assert_true(leader >= 0);
    if (leader == 0) {
        (void)setpgid(0, 0);
        if (fork() == 0) {
            uint64_t from_ms = clock_mono_ms();

            while (clock_mono_ms() - from_ms < 300)
                work++;
            (void)!write(ready[1], "x", 1);
            for (;;)
                pause();
        }
        for (;;)
            pause();
    }
    count = trainer_metric_sample(&metrics, NULL, leader, found, 4);
    assert_true(value_of(found, count, "cpu") < 0); /* there is nothing to compare it with */
    assert_int_equal(read(ready[0], &byte, 1), 1);
    count = trainer_metric_sample(&metrics, "/nowhere", leader, found, 4);
    assert_int_equal(count, 2);
    assert_true(value_of(found, count, "cpu") > 0);
    assert_true(value_of(found, count, "memory_bytes") > 4096);
    assert_true(metrics.cpu_us > 0);
    (void)kill(-leader, SIGKILL);
    assert_int_equal(waitpid(leader, NULL, 0), leader);
    assert_int_equal(trainer_metric_sample(&metrics, NULL, leader, found, 4), 0);
}

/* Its processes are those of the list, nobody else's, and one that has gone is nobody; without a
 * list, or with an empty one, the leader's tree counts. */
static void test_a_cgroup_names_its_processes(void **state)
{
    struct trainer_metric_state metrics = {0};
    struct trainer_metric found[4];
    char dir[] = "/tmp/headrace-metric.XXXXXX", path[64];
    double alone, both;
    FILE *file;

    (void)state;
    assert_non_null(mkdtemp(dir));
    assert_int_equal(trainer_metric_sample(&metrics, dir, 0, found, 4), 0);
    assert_int_equal(trainer_metric_sample(&metrics, dir, getpid(), found, 4), 1);
    (void)snprintf(path, sizeof(path), "%s/cgroup.procs", dir);
    file = fopen(path, "w");
    assert_non_null(file);
    assert_int_equal(fclose(file), 0);
    metrics = (struct trainer_metric_state){0};
    assert_int_equal(trainer_metric_sample(&metrics, dir, 0, found, 4), 0);
    file = fopen(path, "w");
    assert_true(fprintf(file, "%d\n2147483647\n", (int)getpid()) > 0);
    assert_int_equal(fclose(file), 0);
    assert_int_equal(trainer_metric_sample(&metrics, dir, 0, found, 4), 1);
    alone = value_of(found, 1, "memory_bytes");
    assert_true(alone > 4096);
    file = fopen(path, "w");
    assert_true(fprintf(file, "%d\n%d\n", (int)getpid(), (int)getpid()) > 0);
    assert_int_equal(fclose(file), 0);
    assert_int_equal(trainer_metric_sample(&metrics, dir, 0, found, 4), 2);
    both = value_of(found, 2, "memory_bytes");
    assert_true(both > 1.5 * alone);
    (void)unlink(path);
    (void)rmdir(dir);
}

/* Without a GPU, or without its driver, there is nothing; with one it is between 0 and 1. */
static void test_gpus_are_optional(void **state)
{
    const unsigned indices[] = {0};
    struct trainer_metric found[2];
    size_t count = trainer_metric_gpus(indices, 1, found, 2);

    (void)state;
    assert_true(count == 0 || (found[0].value >= 0 && found[0].value <= 1));
}

/* With the library that tests/unit/CMakeLists.txt puts there in place of NVIDIA's: each GPU has the
 * figures of its own index under its number in the node; one that is not there has none. */
static void test_gpus_are_read(void **state)
{
    const unsigned indices[] = {2, 9, 0};
    struct trainer_metric found[8];
    size_t count;

    (void)state;
    if (getenv("HEADRACE_NVML_FAKE") == NULL)
        skip();
    count = trainer_metric_gpus(indices, 3, found, 8);
    assert_int_equal(count, 4);
    assert_true(value_of(found, count, "gpu.0.utilization") == 0.27);
    assert_true(value_of(found, count, "gpu.0.memory_bytes") == 3.0 * (1 << 30));
    assert_true(value_of(found, count, "gpu.1.utilization") < 0);
    assert_true(value_of(found, count, "gpu.2.utilization") == 0.07);
    assert_true(value_of(found, count, "gpu.2.memory_bytes") == 1.0 * (1 << 30));
    assert_int_equal(trainer_metric_gpus(indices, 3, found, 1), 1); /* no more than there is room */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lines),
        cmocka_unit_test(test_bounds),
        cmocka_unit_test(test_a_tree_is_summed_up),
        cmocka_unit_test(test_a_cgroup_names_its_processes),
        cmocka_unit_test(test_gpus_are_optional),
        cmocka_unit_test(test_gpus_are_read),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
