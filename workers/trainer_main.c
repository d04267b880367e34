/* SPDX-License-Identifier: Apache-2.0 */

/*
 * `headrace trainer`: the training jobs of one machine.
 *
 * It is a worker of the pool `training`, so that lease, credit and drain of the ledger's attempts
 * are a worker's; and the worker's engine host, host-training (workers/trainer.h), runs the jobs.
 * What it was told goes to both in the environment.
 *
 * Shutdown: SIGTERM, as of a worker. Nodes are asked to end, their last checkpoints are sent, and
 * their jobs wait for another trainer; none of it is charged to them.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/settings.h"
#include "workers/trainer.h"

#define HOLDS 1024 /* attempts cost a trainer nothing: its nodes are counted elsewhere */

int trainer_main(int argc, char **argv);
int worker_main(int argc, char **argv);

static const struct setting trainer_rows[] = {
#define SETTINGS_ROWS struct trainer_settings
#include "base/settings_rows.def"
#include "workers/trainer_settings.def"
#include "base/settings_end.def"
};

const struct settings_program trainer_program = {
    .command = "trainer",
    .purpose = "Runs the training jobs of this machine: takes what fits, keeps their logs and "
               "checkpoints, and lets other trainers go on where it is stopped or lost.",
    .rows = trainer_rows,
    .row_count = COUNT_OF(trainer_rows),
};

static void set(const char *name, const char *value)
{
    (void)setenv(name, value, 1);
}

static void set_number(const char *name, uint64_t value, const char *unit)
{
    OWNED(mem_free) char *text = xasprintf("%llu%s", (unsigned long long)value, unit);

    set(name, text);
}

/* For the host; what it shares with the worker is the worker's, too. */
static void set_environment(const struct trainer_settings *settings)
{
    set("HEADRACE_TRAINER", settings->trainer);
    set("HEADRACE_TRAINER_DIR", settings->trainer_dir);
    set("HEADRACE_TRAINER_ADDRESS", settings->trainer_address);
    set("HEADRACE_ACCELERATOR", settings->accelerator);
    set_number("HEADRACE_GPUS", (uint64_t)settings->gpus, "");
    set_number("HEADRACE_CPUS", (uint64_t)settings->cpus, "");
    set_number("HEADRACE_MEMORY", settings->memory_size, "");
    set_number("HEADRACE_NODE_DISK", settings->node_disk_size, "");
    set("HEADRACE_POSTGRES", settings->postgres);
    set("HEADRACE_KAFKA", settings->kafka);
    set("HEADRACE_KAFKA_PROPERTIES", settings->kafka_properties);
    set("HEADRACE_BLOBS", settings->blobs);
    set("HEADRACE_SEAL_KEY_FILE", settings->seal_key_file);
    set("HEADRACE_ISOLATION", settings->isolation);
    set("HEADRACE_CONTAINER", settings->container);
    set("HEADRACE_ISOLATION_READ", settings->isolation_read);
    set_number("HEADRACE_HOST_PROCESSES", (uint64_t)settings->host_processes, "");
    set_number("HEADRACE_TRAINER_LEASE", settings->trainer_lease_ms, "ms");
    set_number("HEADRACE_CHECKPOINT_SCAN", settings->checkpoint_scan_ms, "ms");
    set_number("HEADRACE_CHECKPOINT_PATIENCE", settings->checkpoint_patience_ms, "ms");
    set_number("HEADRACE_NODE_LOG_RATE", settings->node_log_rate_size, "");
    set_number("HEADRACE_DRAIN_TIMEOUT", settings->drain_timeout_ms, "ms");
    set("HEADRACE_LISTEN", settings->listen);
    set_number("HEADRACE_PORT", (uint64_t)settings->port, "");
    set("HEADRACE_LOG_LEVEL", settings->log_level);
}

static int work(const struct trainer_settings *settings)
{
    OWNED(mem_free) char *worker = xasprintf("--worker=trainer-%s", settings->trainer);
    OWNED(mem_free) char *slots = xasprintf("--slots=%d", HOLDS);
    char *argv[] = {(char[]){"worker"},
                    worker,
                    slots,
                    (char[]){"--pool=training"},
                    (char[]){"--engine=training"},
                    (char[]){"--model=training"},
                    (char[]){"--engine-settings={}"},
                    NULL};

    set_environment(settings);
    return worker_main((int)COUNT_OF(argv) - 1, argv);
}

int trainer_settings_check(struct trainer_settings *settings, struct err *err)
{
    char host[64] = "";
    size_t size;

    if (settings->trainer[0] == '\0') {
        (void)gethostname(host, sizeof(host) - 1);
        free(settings->trainer);
        settings->trainer = xasprintf("%.48s", host);
    }
    size = strlen(settings->trainer);
    if (size == 0 || size > 48 ||
        strspn(settings->trainer, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                  "0123456789._-") != size)
        return err_set(err, ERR_USAGE,
                       "--trainer is '%.80s', it must be 1 to 48 of a-z A-Z 0-9 . _ -",
                       settings->trainer);
    if (strcmp(settings->container, "auto") != 0 && strcmp(settings->container, "require") != 0 &&
        strcmp(settings->container, "never") != 0)
        return err_set(err, ERR_USAGE, "--container is '%.80s', it must be auto, require or never",
                       settings->container);
    if (settings->blobs[0] == '\0')
        return err_set(err, ERR_USAGE, "--blobs is missing: checkpoints need a store");
    if (settings->gpus > 0 && settings->accelerator[0] == '\0')
        return err_set(err, ERR_USAGE, "--gpus is %lld, and --accelerator does not say which kind",
                       (long long)settings->gpus);
    return 0;
}

int trainer_main(int argc, char **argv)
{
    struct trainer_settings settings = {0};
    enum settings_outcome outcome;
    struct err err;
    int code = 0;

    if (settings_parse(&trainer_program, argc, argv, &settings, NULL, &outcome, &err) < 0) {
        (void)fprintf(stderr, "headrace trainer: %s\n", err.text);
        return 1;
    }
    if (outcome == SETTINGS_RUN) {
        code = 1;
        if (trainer_settings_check(&settings, &err) < 0)
            (void)fprintf(stderr, "headrace trainer: %s\n", err.text);
        else
            code = work(&settings);
    }
    settings_free(&trainer_program, &settings);
    return code;
}
