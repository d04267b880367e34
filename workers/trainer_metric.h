/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What a training job uses, and what its script says of itself.
 *
 *     each second: trainer_metric_sample() -> cpu, memory_bytes, gpu.<i>.utilization, …
 *     each line:   trainer_metric_line()   -> user.<name>
 *
 * Sources: /proc/<pid>/stat of the processes that the job's cgroup names, where it has one, else of
 * all that descend from its leader; GPUs by NVML (workers/nvml.h), asked for those that the job was
 * given. What cannot be read is left out: no figure is made up.
 *
 * The cgroup's own figures are not taken: its memory is also that of files which the kernel keeps.
 * What it saves is the search for children, a file for each thread of the job.
 *
 * A line is a script's own metric when it begins, behind blanks, with one of
 *
 *     headrace_metric {"loss": 0.31, "accuracy": 0.9, "step": 120}
 *     headrace_metric loss=0.31 accuracy=0.9 step=120
 *
 * Names are 1 to 48 of a-z A-Z 0-9 _ . - /; values are finite numbers; `step` is a whole number and
 * counts for all of the line. Anything else is a line like others.
 *
 * Thread: the loop's; reads of /proc do not block.   Tests: tests/unit/test_trainer_metric.c
 */

#include <stdint.h>
#include <sys/types.h>

#include <stddef.h>

#define TRAINER_METRIC_NAME_SIZE 72
#define TRAINER_METRIC_LINE_MAX 32 /* metrics of one line; those behind them are left out */

struct trainer_metric {
    char name[TRAINER_METRIC_NAME_SIZE];
    double value;
    int64_t step; /* -1: none */
};

/* What a node uses now; `cpu` is in cores since the call before, and absent from the first.
 * group_dir: the job's cgroup, NULL: it has none. Both samplers and their state are one a
 * node. Returns how many were filled in. */
struct trainer_metric_state {
    uint64_t cpu_us, at_us; /* 0: there was no call before */
};
size_t trainer_metric_sample(struct trainer_metric_state *state, const char *group_dir,
                             pid_t leader, struct trainer_metric *to, size_t max);

/* The same for the GPUs of these indices, as NVML counts them. 0 without NVML. */
size_t trainer_metric_gpus(const unsigned *indices, size_t count, struct trainer_metric *to,
                           size_t max);

/* Metrics of a line, which need not be terminated; 0: it is like others. */
size_t trainer_metric_line(const char *line, size_t size, struct trainer_metric *to, size_t max);
