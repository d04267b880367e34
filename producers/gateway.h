/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The gateway: HTTP in, records of `intake` out, and everything that people ask about them.
 *
 *   gateway_main.c     opens, runs, drains            gateway_call.c    one request: begin to
 * answer gateway_key.c      who is asking                  gateway_watch.c   what it asks of
 *   gateway_submit.c   accept                         gateway_reserve.c Idempotency-Key
 *   gateway_sync.c     callers that wait              gateway_follow.c  what they wait for
 *   gateway_websocket.c websockets                   gateway_tunnel.c  where hosts dial to
 *   gateway_events.c   streams of async jobs          gateway_wake.c    wakes a deployment
 *   gateway_status.c   status, result                 gateway_cancel.c  cancel
 *   gateway_list.c     lists, queue depths            gateway_push.c    archives, deployments
 *   gateway_models.c   models, environments           gateway_credentials.c keys, secrets
 *   gateway_jobs.c     many jobs at once             gateway_switch.c  kill switches
 *   gateway_logs.c     logs of replicas              gateway_limit.c   caps, refusals
 *   gateway_tenants.c  tenants and their limits      gateway_rate.c    rate limits
 *   gateway_deliveries.c webhook deliveries          gateway_endpoints.c their receivers
 *   gateway_secrets.c  secrets of models             gateway_upload.c  files in
 *   gateway_files.c    files                         gateway_batches.c bulk jobs
 *   gateway_content.c  their output
 *   gateway_schedules.c schedules                    gateway_ticks.c   what they are due for
 *   gateway_topics.c   bindings of topics             gateway_peers.c   gateways that are lost
 *   gateway_training*.c training jobs                gateway_plan.c    what has a run_at
 *   pure: gateway_route, gateway_body, gateway_config, gateway_archive, gateway_rate_core,
 *         gateway_delivery_id, gateway_file, gateway_lease, gateway_guess
 *
 * One loop, one thread. A request is a struct call from its headers to its answer; whatever it
 * waits for (a key, Postgres, Kafka's report) calls back with it. When its client leaves, the call
 * goes on and its answer is dropped, so that no callback ever meets a call that is gone.
 *
 * Thread: the loop's.
 */

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

#include "base/buf.h"
#include "base/http_server.h"
#include "base/rng.h"
#include "base/trace.h"
#include "producers/gateway_config.h"
#include "producers/gateway_route.h"
#include "schema/api_key.h"
#include "schema/job_id.h"
#include "schema/media_type.h"
#include "schema/websocket.h"

struct blob_store;
struct body_reader;
struct caps;
struct event_streams;
struct follows;
struct cache;
struct cache_listener;
struct call;
struct cancels;
struct json_t;
struct guesses;
struct keys;
struct loop;
struct loop_timer;
struct metric;
struct metrics;
struct pg;
struct pg_pool;
struct pg_answer;
struct pg_batch;
struct queue_admin;
struct queue_producer;
struct queue_topic;
struct rates;
struct seal_key;
struct submits;
struct syncs;
struct plans;
struct ticks;
struct peers;
struct trainings;
struct tunnels;
struct watch;
struct websockets;
struct wire_decoder;

#define GATEWAY_BOOT_SIZE 24
#define GATEWAY_QUERY_TIMEOUT_MS 5000

struct gateway_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
#include "producers/gateway_settings.def"
#include "base/settings_end.def"
};

enum gateway_metric {
#define METRICS_ENUM(name) GATEWAY_METRIC_##name,
#include "base/metrics_rows.def"
#include "producers/gateway_metrics.def"
#include "base/metrics_end.def"
    GATEWAY_METRIC_COUNT
};

struct gateway {
    struct gateway_settings settings;
    char boot[GATEWAY_BOOT_SIZE]; /* names our wake-up channel */
    struct loop *loop;
    struct http_server *server;
    struct pg *pg_control; /* LISTEN, keys, models: never behind a slow list */
    struct pg_pool *pg;
    struct queue_producer *producer;
    struct queue_topic *intake;
    struct queue_admin *queue_admin;
    struct cache *cache;
    struct cache_listener *listener;
    struct blob_store *blobs;
    struct seal_key *seal_key; /* NULL: none was given */
    struct metrics *metrics;
    struct tracer *tracer;
    struct body_reader *reader;
    struct wire_decoder *decoder;
    struct rng rng;
    struct keys *keys;
    struct watch *watch;
    struct submits *submits;
    struct ticks *ticks;
    struct plans *plans;
    struct peers *peers;
    struct trainings *trainings;
    struct caps *caps;
    struct rates *rates;
    struct guesses *guesses;
    struct cancels *cancels;
    struct follows *follows;
    struct syncs *syncs;
    struct event_streams *event_streams;
    struct tunnels *tunnels;
    struct websockets *websockets;
    struct loop_timer *tick; /* each second */
    LIST_HEAD(, call) calls;
    LIST_HEAD(, content) contents; /* outputs that are being sent */
    bool draining;                 /* SIGTERM came */
    bool deaf;                     /* no new connections */
    bool drained;                  /* no connections */
    uint64_t lame_by_ms, drain_by_ms;
    struct loop_timer *drain_step, *late_listen;
    int exit_code;
};

/* ---- gateway_call.c: one HTTP request ---- */

/* What the public metrics say about a request to a model; model_id "": it is none. */
struct call_public {
    char model_id[CONFIG_NAME_SIZE], model_name[CONFIG_NAME_SIZE];
    char deployment[CONFIG_NAME_SIZE], environment[CONFIG_NAME_SIZE];
    size_t body_size;
    bool accepted; /* it has a job, which is counted when it is final */
};

struct call {
    LIST_ENTRY(call) link;
    struct gateway *gateway;
    struct http_request *request;
    struct http_target target;
    struct route_match match;
    char tenant[CONFIG_NAME_SIZE], key_prefix[API_KEY_PREFIX_SIZE];
    enum api_key_role role;
    char job[JOB_ID_TEXT_SIZE];                 /* once it is known: for headers and the log */
    char retry_after[12], idempotent_replay[6]; /* values of headers; "": not sent */
    struct trace_context trace, parent;
    struct trace_span span;
    struct call_public public;
    uint64_t begun_us;
    bool reading; /* its body is on the way: a client that leaves ends the call */
    void (*on_body)(struct call *call); /* what goes on once… the body is here */
    void (*on_choice)(struct call *call, const struct config_choice *choice);
    void (*on_model)(struct call *call, const struct config_model *model);
    uint64_t output_size;               /* of a result that is in the blob store */
    char type[MEDIA_TYPE_SIZE_MAX + 1]; /* Content-Type of the answer; "": JSON */
    char about[CONFIG_NAME_SIZE];       /* what the code of a route must not forget meanwhile */
    char about_deployment[CONFIG_NAME_SIZE];
    uint32_t about_count;
    void *state;                           /* of the route's own code, which frees it… */
    void (*on_freed)(struct call *call);   /* … or this does, however the call ends */
    void (*on_dropped)(struct call *call); /* …also when the client left while reading */
    void (*on_left)(struct call *call); /* it leaves while it waits: ends the call; NULL: goes on */
    char attempts[12];                  /* a header of sync answers; "": not sent */
    const char *error_source;           /* X-BASETEN-ERROR-CODE; NULL: not of a model */
    int output_status;                  /* with output_size */
    char peer[64];                      /* of that stream */
};

http_call call_begin; /* the server's handler; opaque is the gateway */
http_render_error_call call_render_error;

/* Each ends the call: *call_p becomes NULL. Bodies are JSON, or of the call's own type. */
void call_answer(struct call **call_p, int status, struct buf *body);
void call_answer_json(struct call **call_p, int status, struct json_t **body_p); /* takes it */
void call_answer_text(struct call **call_p, int status, const char *type, const char *text);
void call_answer_file(struct call **call_p, int status, int fd, uint64_t size);
void call_fail(struct call **call_p, const struct err *err); /* status and code by err's code */

/* The same with an error_code of the surface that is not the status' usual one. */
void call_fail_as(struct call **call_p, int status, const char *error_code, const char *text);

/* Answers piece by piece; the call goes on until call_end_stream() accounts for it, which must
 * follow the end of the stream. */
struct http_stream *call_answer_stream(struct call *call, int status, size_t waiting_size_max,
                                       const struct http_stream_calls *calls, void *opaque);
void call_end_stream(struct call **call_p, int status);
/* 101 with these headers besides its own; the call is over. NULL: its client has left, and nothing
 * is called. */
struct http_upgraded *call_upgrade(struct call **call_p, const struct http_header *headers,
                                   size_t header_count, const struct http_upgrade_calls *calls,
                                   void *opaque);
void call_leave(struct call **call_p); /* its client has left: 499 in log and metrics */

/* The answer's Content-Type as an engine has named it; one that is none becomes bytes. */
void call_set_type(struct call *call, struct wire_text type);

/* For pg_done_fn's: true when the answer can be used; else the call has been answered. */
bool call_take_answer(struct call **call_p, const struct pg_answer *answer);

/* For pg_done_fn's of lists: ends the call with {name: [a row as JSON, …]}, or like the above. */
void call_answer_rows(struct call *call, const struct pg_answer *answer, const char *name,
                      struct json_t *(*row_json)(const struct pg_answer *answer, size_t row));

size_t count_characters(const char *text); /* of UTF-8 */

/* A column as JSON: null, or its text; or its time as RFC 3339. */
struct json_t *json_of_text(const struct pg_answer *answer, size_t at, size_t row, size_t column);
struct json_t *json_of_time(const struct pg_answer *answer, size_t at, size_t row, size_t column);

/* Collects the body, at most limit bytes, then calls back; the call may be answered meanwhile. */
void call_collect_body(struct call *call, size_t limit, void (*done)(struct call *call));

/* Sends a batch whose answer comes with the call as opaque; when it cannot be sent the call is
 * answered. Takes the batch. */
void call_query(struct call *call, struct pg_batch **batch_p,
                void (*done)(void *opaque, const struct pg_answer *answer));

/* The collected body as a JSON object; an empty body counts as {}. ERR_MALFORMED else. */
int call_read_json(struct call *call, struct json_t **ret_body, struct err *err) MUST_CHECK;

/* From here on a client that leaves ends the call. False: it has left before, the call is over. */
bool call_begin_reading(struct call *call) MUST_CHECK;

/* Query field as a number within bounds, `initial` when absent. */
int call_query_number(const struct call *call, const char *name, int64_t initial, int64_t lowest,
                      int64_t highest, int64_t *ret_number, struct err *err) MUST_CHECK;

/* The job id in the path: ERR_MALFORMED says what it must look like. Also sets call->job. */
int call_job_id(struct call *call, struct wire_id *ret_id, struct err *err) MUST_CHECK;

/* The same, where a route calls it otherwise than "request id". */
int call_job_id_named(struct call *call, const char *what, struct wire_id *ret_id,
                      struct err *err) MUST_CHECK;

/* Ends every call that is left, without an answer. */
void calls_close(struct gateway *gateway);

/* ---- gateway_key.c ---- */

int gateway_keys_open(struct gateway *gateway, struct err *err) MUST_CHECK;
void gateway_keys_close(struct keys **keys_p);
/* Fills tenant, role and prefix of the call, then goes on; or answers 401, 403, 503. */
void gateway_keys_check(struct call *call, void (*on_known)(struct call *call));
void gateway_keys_forget(struct keys *keys, const char *prefix);

/* ---- gateway_watch.c: the snapshot of models and limits, kept fresh ---- */

int gateway_watch_open(struct gateway *gateway, struct err *err) MUST_CHECK;
void gateway_watch_close(struct watch **watch_p);
void gateway_watch_tick(struct watch *watch, uint64_t now_ms);
const struct config *
gateway_watch_config(const struct watch *watch); /* NULL before the first reading */
/* Makes a call's route a choice; a name that is not known yet is looked up in Postgres once,
 * together with all others that wait. Answers the call itself when there is nothing to choose.
 * What is handed over lives until the callback returns. */
void gateway_watch_choose(struct call *call,
                          void (*done)(struct call *call, const struct config_choice *choice));
/* The same for routes that name a model only. */
void gateway_watch_find_model(struct call *call,
                              void (*done)(struct call *call, const struct config_model *model));
/* The webhook that the chain has for a run that names none: *url_p is its copy then. */
int gateway_watch_webhook(const struct watch *watch, const char *tenant, const char *model,
                          const char *deployment, char **url_p, struct err *err) MUST_CHECK;
uint32_t gateway_watch_shard_count(const struct watch *watch); /* 0: not known yet */

/* ---- gateway_limit.c: caps, and how a limit refuses ---- */

#define REFUSAL_LIMIT_SIZE 40

struct refusal {
    int status;        /* 429 or 503 */
    const char *limit; /* its name */
    double value, current;
    uint32_t retry_after_s;
    double estimate_s; /* of the waiting time; 0: not said */
    char text[256];
};

/* Ends the call, with Retry-After, and the name, value and present figure of the limit. */
void call_refuse(struct call **call_p, const struct refusal *refusal);

int gateway_caps_open(struct gateway *gateway, struct err *err) MUST_CHECK;
void gateway_caps_close(struct caps **caps_p);
void gateway_caps_tick(struct caps *caps, uint64_t now_ms);
/* False: at a limit; which one is in *ret_refusal, its texts live until the next tick. */
bool gateway_caps_admit_tenant(const struct caps *caps, const char *tenant,
                               struct refusal *ret_refusal) MUST_CHECK;
bool gateway_caps_admit_pool(const struct caps *caps, const char *pool,
                             struct refusal *ret_refusal) MUST_CHECK;

/* ---- gateway_rate.c: rates ---- */

int gateway_rates_open(struct gateway *gateway, struct err *err) MUST_CHECK;
void gateway_rates_close(struct rates **rates_p);
/* Goes on when tenant and key may submit one more now; else the call is refused. */
void gateway_rates_check(struct call *call, void (*on_passed)(struct call *call));

/* ---- gateway_submit.c ---- */

int gateway_submits_open(struct gateway *gateway, struct err *err) MUST_CHECK;
void gateway_submits_close(struct submits **submits_p);
uint32_t gateway_submits_waiting(const struct submits *submits);
bool gateway_submits_clock_is_good(const struct submits *submits, double *ret_skew_s);
void submit_begin(struct call *call); /* sync calls too */
/* An async submit under an id that was chosen before. Takes the bytes of the body. */
void submit_given(struct call *call, const struct config_choice *choice, const struct wire_id *id,
                  struct buf *body);
/* A Cancel that nobody waits for. */
int gateway_cancel_produce(struct gateway *gateway, const struct wire_id *id, const char *tenant,
                           struct err *err) MUST_CHECK;
void gateway_cancel_silently(struct gateway *gateway, const struct wire_id *id, const char *tenant);

/* ---- gateway_ticks.c: what schedules are due for is submitted ---- */

int gateway_ticks_open(struct gateway *gateway, struct err *err) MUST_CHECK;
void gateway_ticks_close(struct ticks **ticks_p);
void gateway_ticks_look(struct ticks *ticks); /* each second */

/* ---- gateway_plan.c: what was submitted with a run_at goes to Kafka then ---- */

int gateway_plans_open(struct gateway *gateway, struct err *err) MUST_CHECK;
void gateway_plans_close(struct plans **plans_p);
void gateway_plans_look(struct plans *plans); /* each second */

/* ---- gateway_peers.c: what the callers of a lost gateway had waited for is canceled ---- */

int gateway_peers_open(struct gateway *gateway, struct err *err) MUST_CHECK;
void gateway_peers_close(struct peers **peers_p);

/* ---- gateway_follow.c: jobs that somebody waits for ---- */

int gateway_follows_open(struct gateway *gateway, struct err *err) MUST_CHECK;
void gateway_follows_close(struct follows **follows_p);
void gateway_follows_on_wake(struct follows *follows, const void *bytes, size_t size);
void gateway_follows_on_joined(struct follows *follows, const char *name);
void gateway_follows_look(struct follows *follows); /* something may have been missed */

/* ---- gateway_sync.c, gateway_events.c, gateway_wake.c ---- */

int gateway_syncs_open(struct gateway *gateway, struct err *err) MUST_CHECK;
void gateway_syncs_close(struct syncs **syncs_p);
int gateway_event_streams_open(struct gateway *gateway, struct err *err) MUST_CHECK;
/* Drain: their clients go on at another gateway. */
void gateway_event_streams_end(struct event_streams *streams);
void gateway_event_streams_close(struct event_streams **streams_p);
void events_begin(struct call *call);
void wake_begin(struct call *call);

/* ---- gateway_websocket.c, gateway_tunnel.c ---- */

int gateway_websockets_open(struct gateway *gateway, struct err *err) MUST_CHECK;
void gateway_websockets_tick(struct websockets *websockets, uint64_t now_ms);
void gateway_websockets_end(struct websockets *websockets); /* drain: those that are open */
void gateway_websockets_close(struct gateway *gateway);     /* before the HTTP server's */
void websocket_begin(struct call *call);

int gateway_tunnels_open(struct gateway *gateway, struct err *err) MUST_CHECK;
void gateway_tunnels_close(struct tunnels **tunnels_p);
void gateway_tunnels_address(const struct tunnels *tunnels, char to[WEBSOCKET_ADDRESS_SIZE]);

/* ---- gateway_chains.c: runs of chains ---- */

void chain_runs_begin(struct call *call);
void chains_begin(struct call *call);
void chain_begin(struct call *call);
void chain_run_begin(struct call *call);
void chain_forget_begin(struct call *call);
void chain_decide_begin(struct call *call); /* approve, reject */
/* The run and the step that the path names; false: it names none, and the call is answered. */
bool chain_step_in_path(struct call *call, struct wire_id *ret_run) MUST_CHECK;
#define CHAIN_DECISION_SIZE_MAX (64u << 10)
/* The body of a decision: the step's output, or of a no {"reason": …}; nothing is null. */
int chain_decision_read(struct call *call, bool yes, struct json_t **ret_json,
                        struct err *err) MUST_CHECK;
int gateway_guesses_open(struct gateway *gateway, struct err *err) MUST_CHECK;
void chain_token_begin(struct call *call);        /* a token of an approval */
void chain_token_answer_begin(struct call *call); /* what who has it says */

/* ---- gateway_chain_rerun.c, gateway_chain_versions.c ---- */

void chain_record_begin(struct call *call);
void chain_rerun_begin(struct call *call);

void chain_delete_begin(struct call *call);
void chain_deployments_begin(struct call *call);
void chain_deployment_begin(struct call *call);
void chain_version_do_begin(struct call *call); /* delete, activate, deactivate */
void chainlet_logs_begin(struct call *call);
void chain_environments_begin(struct call *call);
void chain_environment_make_begin(struct call *call);
void chain_environment_begin(struct call *call);
void chain_environment_set_begin(struct call *call);
void chain_promote_begin(struct call *call);
void chainlets_set_begin(struct call *call); /* autoscaling settings, instance types */

/* The run of a chain that a call of a chainlet belongs to; false: it belongs to none. */
bool chain_caller(const struct call *call, struct wire_id *ret_run);

/* ---- gateway_training*.c: training jobs ---- */

int gateway_trainings_open(struct gateway *gateway, struct err *err) MUST_CHECK;
void gateway_trainings_close(struct trainings **trainings_p);
void gateway_trainings_look(struct trainings *trainings); /* each second */
void training_projects_begin(struct call *call);
void training_project_put_begin(struct call *call);
void training_project_begin(struct call *call);
void training_project_delete_begin(struct call *call);
void training_jobs_begin(struct call *call);
void training_job_create_begin(struct call *call);
void training_job_begin(struct call *call);
void training_job_set_begin(struct call *call);
void training_job_delete_begin(struct call *call);
void training_job_stop_begin(struct call *call);
void training_job_recreate_begin(struct call *call);
void training_job_download_begin(struct call *call);
void training_read_begin(struct call *call); /* lines and figures */
void training_checkpoints_begin(struct call *call);
void training_files_begin(struct call *call);
void training_file_begin(struct call *call);
void training_search_begin(struct call *call);
void training_capacity_begin(struct call *call);
void training_queue_begin(struct call *call);
void training_archive_begin(struct call *call); /* sent by push_begin() */

/* ---- gateway_public.c: metrics under the names that users know ---- */

void public_target(struct call *call, const struct config_choice *choice);
void public_account(const struct call *call, int status, double seconds);
void public_depths_ask(struct pg_batch *batch); /* adds one statement… */
void public_depths_take(struct gateway *gateway, const struct pg_answer *answer, size_t at);

/* ---- the other routes ---- */

void status_begin(struct call *call);
void result_begin(struct call *call);

int gateway_cancels_open(struct gateway *gateway, struct err *err) MUST_CHECK;
void gateway_cancels_close(struct cancels **cancels_p);
void gateway_cancels_on_wake(struct cancels *cancels, const void *bytes, size_t size);
void gateway_cancels_look(struct cancels *cancels); /* asks Postgres for all that wait */
void cancel_begin(struct call *call);

void jobs_begin(struct call *call);
void operation_begin(struct call *call);
void switches_begin(struct call *call);
void switch_on_begin(struct call *call);
void switch_off_begin(struct call *call);
void schedules_begin(struct call *call); /* gateway_schedules.c */
void schedule_begin(struct call *call);
void schedule_set_begin(struct call *call);
void schedule_delete_begin(struct call *call);
void schedule_pause_begin(struct call *call);
void schedule_resume_begin(struct call *call);
void schedule_run_begin(struct call *call);
void queue_status_begin(struct call *call);
void requests_begin(struct call *call);
void detail_begin(struct call *call);
void models_begin(struct call *call);
void model_begin(struct call *call);
void model_delete_begin(struct call *call);
void deployments_begin(struct call *call);
void deployment_begin(struct call *call);
/* Answers with one deployment, as the route does; 201 after a push. */
void deployment_show(struct call *call, const char *model, const char *deployment);
void deployment_delete_begin(struct call *call);
void deployment_logs_begin(struct call *call);
void environments_begin(struct call *call);
void promote_begin(struct call *call);
void push_begin(struct call *call);
/* gateway_tenants.c. Whose things a route of the management API is about: ?tenant=, else the key's
 * own; ERR_FORBIDDEN when the key may not. Borrowed from the call. */
int call_whose(const struct call *call, const char **ret_tenant, struct err *err) MUST_CHECK;
bool call_is_operator(const struct call *call);
/* The member "limits" of a body as JSON text, checked; NULL: there is none. The caller frees. */
int limits_of_body(const struct json_t *body, enum limit_on on, char **ret_json,
                   struct err *err) MUST_CHECK;
/* ERR_RANGE names a field of the body that is none of these. */
int fields_check(const struct json_t *body, const char *const *names, size_t count,
                 struct err *err) MUST_CHECK;
struct json_t *limits_json(const char *text); /* of a row; the caller's */
/* gateway_credentials.c: adds the row of audit, behind the statement that changes the target. There
 * will be none when that one changed nothing. */
enum audited { AUDITED_KEY, AUDITED_SECRET, AUDITED_TENANT };
void call_audit(struct pg_batch *batch, const struct call *call, const char *tenant,
                enum audited audited, const char *action, const char *target);

void tenants_begin(struct call *call);
void tenant_create_begin(struct call *call);
void tenant_begin(struct call *call);
void tenant_set_begin(struct call *call);
void tenant_delete_begin(struct call *call);
void keys_begin(struct call *call);
void key_set_begin(struct call *call);
void key_create_begin(struct call *call);
void key_delete_begin(struct call *call);
void secrets_begin(struct call *call);
void secret_create_begin(struct call *call);
void secret_rotate_begin(struct call *call);
void secret_delete_begin(struct call *call);
void public_keys_begin(struct call *call);
void model_secrets_begin(struct call *call); /* gateway_secrets.c */
void model_secret_set_begin(struct call *call);
void model_secret_delete_begin(struct call *call);
void tail_begin(struct call *call);   /* gateway_tail.c: jobs as they end */
void topics_begin(struct call *call); /* gateway_topics.c */
void topic_bind_begin(struct call *call);
void topic_begin(struct call *call);
void topic_unbind_begin(struct call *call);
void topic_pause_begin(struct call *call); /* and resume */
void deliveries_begin(struct call *call);
void delivery_begin(struct call *call);
void deliveries_replay_begin(struct call *call);
void delivery_replay_begin(struct call *call);
void endpoints_begin(struct call *call);
void endpoint_enable_begin(struct call *call);
void endpoint_disable_begin(struct call *call);

/* gateway_upload.c, gateway_files.c */
void file_upload_begin(struct call *call);
void files_begin(struct call *call);
void file_begin(struct call *call);
void file_content_begin(struct call *call);
void file_delete_begin(struct call *call);
/* gateway_batches.c, gateway_content.c: what a bulk job has written ends the call. */
void batches_begin(struct call *call);
void batch_create_begin(struct call *call);
void batch_begin(struct call *call);
void batch_cancel_begin(struct call *call);
void batch_output_begin(struct call *call);
void batch_retry_begin(struct call *call);
void bulk_begin(struct call *call);
/* The body is the lines of a bulk job whose targets are these: gateway_upload.c stores it, and
 * gateway_batches.c adds the bulk job's statements to those of its row, and answers them. */
void file_upload_lines(struct call *call, const char *targets);
void batch_native_add(struct pg_batch *batch, const struct call *call, const struct wire_id *file,
                      const char *targets);
void batch_native_answer(struct call *call, const struct pg_answer *answer, size_t at);
void content_begin(struct call *call, const struct wire_id *bulk, bool errors);
void gateway_contents_close(struct gateway *gateway);
/* A list as OpenAI's client reads it: at most limit of the rows, has_more when there are others. */
void call_answer_page(struct call *call, const struct pg_answer *answer, size_t limit,
                      struct json_t *(*row_json)(const struct pg_answer *answer, size_t at,
                                                 size_t row));

/* gateway_main.c: why /readyz says no; NULL when it says yes. */
const char *gateway_not_ready(const struct gateway *gateway);
/* "https://host:port" for URLs in answers. */
void gateway_append_base_url(const struct call *call, struct buf *to);

/* gateway_openapi.c: the document, from schema/openapi.json at build time. */
extern const char gateway_openapi_text[];
