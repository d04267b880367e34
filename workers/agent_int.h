/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The agent program behind its pure core: what its files share.
 *
 *   agent_main.c     settings, lock, start, the loop, the end
 *   agent_pages.c    /metrics, /healthz, /readyz
 *   agent_act.c      the to-dos of the core; archives on libuv's threads
 *   agent_sql.c      deployments in, replicas out
 *   agent_devices.c  GPUs: looking at them by a process of its own, Xids, /devices
 *   agent_secrets.c  secrets for a worker that starts
 *   agent_process.c  one worker process: its command line, log file, status lines
 *
 * Thread: the loop's; agent_unpack() alone runs on threads of libuv's pool.
 */

#include <sys/queue.h>

#include "base/loop.h"
#include "base/metrics.h"
#include "brokers/blob.h"
#include "brokers/pg.h"
#include "brokers/queue.h"
#include "workers/agent_core.h"
#include "workers/child.h"
#include "workers/confine.h"

struct agent_look;
struct http_request;
struct http_server;
struct seal_key;

struct agent_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
#include "workers/agent_settings.def"
#include "base/settings_end.def"
};

#define AGENT_LINE_SIZE 8192

/* A worker process of ours, from its start or adoption to its end. */
struct agent_process {
    LIST_ENTRY(agent_process) link;
    struct agent *agent;
    char worker[AGENT_NAME_SIZE];
    char *log_path;
    struct child *child;
    int pipe_fd; /* its status lines; -1: none, it was adopted */
    struct loop_watch *watch;
    size_t line_size;
    char line[AGENT_LINE_SIZE];
    char reason[AGENT_REASON_SIZE]; /* what it said when it left; "": nothing */
};

struct agent {
    struct agent_settings settings;
    struct loop *loop;
    struct agent_core *core;
    struct pg *pg;
    struct blob_store *blobs;
    struct seal_key *seal_key; /* NULL: none was given */
    struct queue_producer *producer;
    struct queue_topic *outcome;
    struct metrics *metrics;
    struct metrics_pages pages;
    struct http_server *server;
    struct loop_timer *poll_timer, *tick_timer, *second_timer, *end_timer;
    LIST_HEAD(, agent_process) processes;
    char host[256];
    char *cache, *made, *logs, *lock_path;
    int lock_fd;
    uint32_t gone_unreported, fetching;
    uint64_t sweep_ms;  /* when the next sweep is due; 0: there was none yet */
    uint64_t end_by_ms; /* 0: we are not ending */
    uint32_t seconds;
    uint64_t starts_told, crashes_told;
    struct agent_series *series; /* agent_pages.c */
    size_t series_count;
    struct agent_look *look; /* agent_devices.c: the devices as they were seen last */
    bool adopted, reading, read_again, writes_lost, has_read, exiting;
    enum confine_level isolation; /* once isolation_tried: what works here */
    bool isolation_tried;
    int exit_code;
};

/* ---- agent_main.c ---- */
void agent_tick(struct agent *agent);
void agent_end(struct agent *agent, int exit_code);

/* ---- agent_pages.c ---- */
int agent_pages_open(struct agent *agent, struct err *err) MUST_CHECK;
void agent_pages_close(struct agent *agent);
void agent_pages_count(struct agent *agent); /* once a second */

/* ---- agent_act.c ---- */
void agent_act(struct agent *agent);

/* Starts the worker of a START and tells the core; secrets_fd: -1, or what it is to read. An error
 * that came before ends the start. */
void agent_start_with(struct agent *agent, const struct agent_todo *todo, int secrets_fd,
                      struct err *err);

/* Removes unpacked models that none of these deployments needs; now and then. */
void agent_sweep(struct agent *agent, const struct agent_deployment *deployments,
                 size_t deployment_count);

/* ---- agent_sql.c ---- */
int agent_sql_open(struct agent *agent, struct err *err) MUST_CHECK;
void agent_sql_read(struct agent *agent); /* deployments; the first time also what runs already */
void agent_sql_claim(struct agent *agent, const struct agent_todo *todo);
void agent_sql_replica(struct agent *agent, const struct agent_todo *todo);
void agent_sql_seen(struct agent *agent);
void agent_sql_devices(struct agent *agent); /* what is to be known of ours */

/* ---- agent_devices.c ---- */
void agent_devices_open(struct agent *agent);
void agent_devices_close(struct agent *agent);
bool agent_devices_known(const struct agent *agent); /* deployments may be read */
/* Why nothing is known of them, for they have never answered; NULL: something is. */
const char *agent_devices_unseen(const struct agent *agent);
void agent_devices_look(struct agent *agent); /* now and then */
void agent_devices_probe(struct agent *agent, const char *uuid);
/* All as SQL and people are told of them: a JSON array. The caller frees it. */
char *agent_devices_json(const struct agent *agent);
bool agent_devices_answer(struct agent *agent, struct http_request **request_p);
/* CUDA_VISIBLE_DEVICES of a worker; NULL: as ours. The caller frees it. */
char *agent_devices_visible(const struct agent *agent, const struct agent_todo *todo);

/* ---- agent_secrets.c ---- */
bool agent_secrets_are_wanted(const struct agent_deployment *deployment);
/* Reads them, then agent_start_with(). */
void agent_secrets_start(struct agent *agent, const struct agent_todo *todo);

/* ---- agent_process.c ---- */
int agent_process_start(struct agent *agent, const struct agent_todo *todo, int secrets_fd,
                        struct err *err) MUST_CHECK;
struct agent_process *agent_process_find(struct agent *agent, const char *worker);

/* The worker of that row, if it lives and was started with our addresses. warm: it waits. */
bool agent_process_adopt(struct agent *agent, const char *worker, pid_t pid, bool *ret_warm);
void agent_process_kill_stray(struct agent *agent, const char *worker, pid_t pid);
void agent_process_free(struct agent_process **process_p);
char *agent_process_log_path(const struct agent *agent, const char *worker);
void agent_process_rotate_logs(struct agent *agent);
