/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * `headrace dev`: the whole platform on one machine, as children of one process, in one
 * directory. This header is what its parts share.
 *
 *     dev_main.c     the line's options; --status, --down, --reset
 *     dev_run.c      the loop: starts by level, watches, stops in reverse
 *     dev_kafka.c dev_redis.c dev_postgres.c dev_roles.c     the kinds of service
 *     dev_introduce.c  the first key, webhook secret and client file
 *     dev_process.c  one child       dev_files.c  small files and ports
 *     dev_control.c  the socket by which a second shell (and a test) talks to a running dev
 *
 * Levels: the servers start together; when all answer, the schema is migrated; then the roles
 * start together. Stopping goes the other way: roles one by one from the end of the table (the
 * gateway first, so nothing new is taken), then the servers together.
 *
 * A service moves DOWN → PREPARING (initdb, format) → STARTING → READY → STOPPING → DOWN. It is
 * READY when it answers its own protocol and proves that it is ours (cluster id, process id,
 * password), never because a port is open.
 *
 * Thread: one. librdkafka's own threads live only while a Kafka server is being probed.
 */

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "cli/dev_process.h"

enum { DEV_ARG_COUNT_MAX = 64, DEV_ENV_COUNT_MAX = 256, DEV_START_TRIES = 3 };

enum dev_level { DEV_LEVEL_SERVER, DEV_LEVEL_ONCE, DEV_LEVEL_ROLE };

enum dev_state {
    DEV_STATE_ABSENT, /* not asked for, or given by URL */
    DEV_STATE_DOWN,
    DEV_STATE_PREPARING,
    DEV_STATE_STARTING,
    DEV_STATE_READY, /* for a once-only step: it has succeeded */
    DEV_STATE_STOPPING,
};

/* What to do when a child dies that nobody asked to die. */
enum dev_on_death { DEV_ON_DEATH_STOP, DEV_ON_DEATH_RESTART, DEV_ON_DEATH_KEEP };

struct dev;
struct dev_service;

/* A command line under construction; every string in it is its own. */
struct dev_command {
    char *program;
    char *argv[DEV_ARG_COUNT_MAX + 1];
    char *env[DEV_ENV_COUNT_MAX + 1];
    size_t arg_count, env_count;
    enum dev_identity identity;
    uid_t uid;
    gid_t gid;
    int death_signal;
};

struct dev_kind {
    const char *name;
    enum dev_level level;
    int port_count;
    int stop_signal;
    uint32_t ready_wait_ms, stop_wait_ms;
    /* 1: the command must run to its end before the service starts; 0: nothing to prepare. */
    int (*prepare)(struct dev *dev, struct dev_service *service, struct dev_command *command,
                   struct err *err);
    /* After that command's success: makes its result final. Optional, as is prepare. */
    int (*prepared)(struct dev *dev, struct dev_service *service, struct err *err);
    int (*command)(struct dev *dev, struct dev_service *service, struct dev_command *command,
                   struct err *err);
    /* 1: it answers and is ours; 0: not yet; negative: it never will. Fills service->url. */
    int (*probe)(struct dev *dev, struct dev_service *service, struct err *err);
    void (*forget)(struct dev_service *service); /* drops what probe kept; optional */
    void (*close)(struct dev_service *service);  /* at dev's very end; optional */
};

struct dev_service {
    const struct dev_kind *kind;
    enum dev_state state;
    bool given;      /* somebody else's, by URL: never started, never stopped */
    bool stop_asked; /* its end is what somebody asked for */
    bool killed;     /* it had its time to stop */
    struct dev_process process;
    uint16_t ports[2];
    char *url;
    char *directory; /* its own, under the data directory */
    char *log_path;
    off_t log_start; /* bytes in the log when the process now, or last, began */
    void *probe_state;
    uint64_t since_ms; /* when it entered this state, on the monotonic clock */
    uint64_t ready_after_ms;
    uint64_t restart_at_ms; /* 0: no restart is due */
    int tries;              /* starts that met a port that was taken */
    int lingers;            /* starts that met what a killed one left */
};

enum { DEV_SERVICE_COUNT_MAX = 12 };

struct dev {
    char *data_dir; /* absolute */
    char *deps_dir;
    char *binary; /* our own executable, for the roles */
    char *postgres_account;
    char *blobs; /* URL of the blob store; NULL: a folder of the data directory */
    char *key;   /* an API key for people, once it is made */
    char *webhook_secret;
    enum dev_on_death on_death;
    bool json;
    bool kafka_embedded;
    bool stopping, stop_hard;
    int exit_code;
    int signal_fd, control_fd, lock_fd;
    uint64_t started_ms;
    bool announced; /* the addresses were printed */
    struct dev_service services[DEV_SERVICE_COUNT_MAX];
    size_t service_count;
};

/* Where PostgreSQL's files go when it runs under an account; to be freed. */
char *dev_postgres_account_directory(const char *data_dir);

extern const struct dev_kind dev_kafka, dev_kafka_embedded, dev_redis, dev_postgres;

struct dev_service *dev_service_find(struct dev *dev, const char *name); /* NULL: none */
const char *dev_service_url(struct dev *dev, const char *name);          /* "" while it has none */
const char *dev_state_name(const struct dev_service *service);

/* dev_run.c. Runs until told to stop; returns the exit code. */
int dev_run(struct dev *dev, struct err *err);
void dev_service_start(struct dev *dev, struct dev_service *service);
void dev_service_stop(struct dev *dev, struct dev_service *service, int signal_number);
void dev_print(struct dev *dev, const char *event, const struct dev_service *service,
               const char *fmt, ...) PRINTF_LIKE(4, 5);

/* dev_state.c: what is on disk about a run. */
int dev_state_load_ports(struct dev *dev, struct err *err) MUST_CHECK;
int dev_state_save(struct dev *dev, struct err *err) MUST_CHECK;
char *dev_state_to_json(struct dev *dev); /* the caller's to free */
/* Kills what a dead run of this directory left behind; the count of processes killed. */
int dev_state_kill_leftovers(const char *data_dir);

/* dev_control.c. */
int dev_control_listen(struct dev *dev, struct err *err) MUST_CHECK;
void dev_control_serve(struct dev *dev);
void dev_control_close(struct dev *dev);
/* Asks the dev that runs in data_dir; ERR_NOT_FOUND when none does. *ret_answer is to be freed. */
int dev_control_ask(const char *data_dir, const char *request, char **ret_answer,
                    struct err *err) MUST_CHECK;

/* Command lines. */
void dev_command_done(struct dev_command *command);
void dev_command_arg(struct dev_command *command, const char *fmt, ...) PRINTF_LIKE(2, 3);
void dev_command_set_env(struct dev_command *command, const char *name, const char *fmt, ...)
    PRINTF_LIKE(3, 4);
/* The few variables that a foreign server needs, and none that could change its behaviour. */
void dev_command_set_server_env(struct dev *dev, struct dev_command *command);
