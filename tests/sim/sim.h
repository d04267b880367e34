/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A world in which the real owner (brokers/owner.h) and the real worker core
 * (workers/worker_core.h) live a bad life, from one seed.
 *
 *   sim.c          clock, events, processes, a run from birth to quiet
 *   sim_kafka.c    logs with offsets: intake, outcome, completed of each shard, dispatch partitions
 *   sim_group.c    the consumer group that elects a broker for each shard
 *   sim_store.c    the ledger: transactions, epoch guard, floors, takeover, loads
 *   sim_failover.c a standby takes the ledger over, with or without the last commits
 *   sim_broker.c   broker processes and their seats: they carry out what the owner asks for
 *   sim_worker.c   workers: the real worker core, an engine host that is played, agents
 *   sim_webhook.c  senders: `completed` to delivery rows to receivers; the real plan of tries
 *   sim_blob.c     inputs in the blob store, and what collects them
 *   sim_topology.c shards, pools and programs that change while jobs run
 *   sim_gateway.c  clients and gateways: submits, keys, cancels, status questions, Redis
 *   sim_command.c  operators who append commands: replays, cancels, priorities
 *   sim_faults.c   what goes wrong, and that it stops going wrong
 *   sim_check.c    the invariants of PROTOCOL 3.1, checked at each change
 *
 * Everything is one thread and one random generator: a seed is a run, for ever. Memory is one
 * arena a world.
 *
 * How to add
 *   a rule of the owner   make the world meet it: a field of struct sim_job chosen in
 *                         sim_gateway.c, its column in struct sim_row, its statement in
 *                         sim_store.c; then the invariant that it must hold in sim_check.c, called
 *                         from where it can break
 *   a fault               a row in sim_faults.def; call sim_hit() where it happens; when it comes
 *                         by itself, a function and a row in the table at the end of sim_faults.c
 *   a point of the owner  an entry of enum sim_point and a call of broker_passes() at the place:
 *                         there the broker may be killed or stand still
 *   a guard               a row in brokers/owner_guard.h; ask sim_guarded() or owner_guarded()
 */

#include <stdbool.h>
#include <stdint.h>

#include "base/rng.h"
#include "brokers/ledger.h"
#include "brokers/owner.h"
#include "brokers/owner_guard.h"
#include "brokers/owner_heap.h"
#include "workers/worker_core.h"

#define SIM_SHARDS_MAX 4
#define SIM_SHARD_FIRST 5 /* number of the first shard, in ids and in Kafka */
#define SIM_BROKERS 3
#define SIM_GATEWAYS 2
#define SIM_SENDERS 2
#define SIM_MACHINES 3
#define SIM_WORKERS_MAX 20
#define SIM_POOLS_MAX 4
#define SIM_JOBS_MAX 256
#define SIM_TAKEOVERS_MAX 1024
#define SIM_ROUNDS_MAX 6
#define SIM_CANCELS_MAX 4 /* of one job, by clients */
#define SIM_COMMANDS_MAX 64
#define SIM_EPOCH_FIRST 100
#define SIM_PROMISE_US (1500 * MS) /* a gateway waits so long for a report, then it is 503 */
#define SIM_START_US 1000000000000000ull
#define MS 1000ull
#define SEC 1000000ull

struct sim;
struct process;

typedef void sim_fn(struct sim *sim, void *opaque, uint64_t number);

/* Something that runs, stops, dies and starts again. Events for a stopped one wait, events for a
 * dead one are lost. */
struct process {
    const char *name;
    bool alive;
    uint64_t incarnation, paused_until_us;
};

/* ---- Kafka ---- */

enum sim_topic { SIM_INTAKE, SIM_OUTCOME, SIM_COMPLETED, SIM_DISPATCH };

/* A log is a partition of a topic; all of them are counted through. */
#define LOG_INTAKE(shard) (shard)
#define LOG_OUTCOME(shard) (SIM_SHARDS_MAX + (shard))
#define LOG_COMPLETED(shard) (2 * SIM_SHARDS_MAX + (shard))
#define LOG_DISPATCH(partition) (3 * SIM_SHARDS_MAX + (int)(partition))
#define SIM_LOGS_MAX (3 * SIM_SHARDS_MAX + SIM_WORKERS_MAX)

struct sim_record {
    const uint8_t *bytes;
    size_t size;
    uint64_t append_us;
    bool newer; /* of a version that old brokers do not know */
};

typedef void sim_report_fn(struct sim *sim, void *opaque, uint64_t number, int64_t offset);

struct sim_pending {
    struct sim_pending *next;
    struct sim_record record;
    uint64_t at_us;
    sim_report_fn *report;
    void *opaque;
    uint64_t number;
};

struct sim_log {
    struct sim_record *records;
    size_t count, room;
    uint64_t stalled_until_us;
};

/* One process's records on the way to one log, in order. */
struct sim_pipe {
    struct sim_pending *head, **tail;
    bool pumping;
    uint64_t last_us;
};

struct sim_producer {
    struct process *process;
    struct sim_pipe pipes[SIM_LOGS_MAX];
};

/* ---- the ledger ---- */

struct sim_row {
    bool present;
    uint64_t seq, accepted_us, queued_us;
    uint32_t round;
    enum job_rank rank;
    enum job_state state;
    uint64_t token, fence, due_us, state_us, final_at_us, output_size, http_status;
    uint32_t attempt_count, user_failures, oom_failures, lost_failures;
    enum error_class error_class;
    struct wire_bytes submit, output;
    struct wire_text error_message, output_blob, output_type;
};

struct sim_change {
    int job;
    enum flush_action action;
    bool placed;
    struct sim_row row, before;
    uint64_t final_token;
    bool refused; /* cannot be stored as it is */
};

struct sim_flush {
    int shard;
    uint32_t epoch;
    uint64_t number;
    int64_t intake_floor, outcome_floor;
    uint64_t floor_us, published_number;
    uint32_t published_epoch;
    struct sim_change *changes;
    size_t change_count;
    size_t lost_attempts;
    bool *applied;
    int *finals;
    size_t final_count;
    uint64_t command_floor;
    struct flush_command *acks;
    size_t ack_count;
};

struct sim_command {
    int job;
    enum command_kind kind;
    uint32_t round, priority;
    bool done;
};

enum sim_request_type { SIM_TAKEOVER, SIM_FLUSH, SIM_LOAD, SIM_DUE, SIM_LOOKUP, SIM_READ_COMMANDS };

struct sim_request {
    struct sim_request *next;
    enum sim_request_type type;
    struct sim_seat *seat;
    uint64_t incarnation;
    struct sim_flush *flush;
    struct ledger_lane lane;
    struct ledger_due due;
    uint32_t limit;
    uint64_t from; /* of commands */
    struct wire_id *ids;
    size_t id_count;
    uint64_t connection;
};

/* What the ledger has of one shard. */
struct sim_shard {
    uint32_t epoch;
    struct {
        uint32_t epoch;
        uint64_t at_us;
    } takeovers[SIM_TAKEOVERS_MAX]; /* when each epoch began */
    size_t takeover_count;
    int share_locks;
    struct sim_flush **flushes; /* committed, in order of commit */
    size_t flush_count, flush_room;
    const struct sim_flush *newest;
    int64_t intake_floor, outcome_floor; /* the highest ever committed */
    uint64_t command_floor;
};

struct sim_ledger {
    bool up;
    uint64_t life; /* raised when the server dies: open transactions are gone */
    struct sim_shard shards[SIM_SHARDS_MAX];
    struct sim_row rows[SIM_JOBS_MAX];
    struct sim_command commands[SIM_COMMANDS_MAX];
    size_t command_count;
    struct {
        bool present;
        int job;
    } keys[SIM_JOBS_MAX];
};

/* A connection to the ledger with its requests: unanswered, in order. */
struct sim_store {
    struct sim_request *requests, **requests_tail;
    uint64_t connection;
    bool asking, connected;
};

/* ---- processes ---- */

/* What a broker has of one shard. */
struct sim_seat {
    struct sim_broker *broker;
    int shard;
    struct sim_store store;
    struct owner *owner;
    bool assigned, intake_paused;
    uint64_t session; /* raised by each takeover: late answers of older ones are dropped */
    uint64_t live_us; /* when its owner began to dispatch; 0: not yet */
    int64_t intake_at, outcome_at;
    bool fetching, ticking, taking_over;
    struct {
        struct ledger_lane lane; /* after_seq: the highest row that a LOAD brought */
    } lanes[16];
    size_t lane_count;
};

struct sim_broker {
    struct process process;
    struct sim_producer producer;
    bool upgraded;      /* knows newer messages */
    int64_t wall_us;    /* its clock, ahead of Kafka's */
    uint64_t asleep_us; /* its monotonic clock stood still so long */
    struct sim_seat seats[SIM_SHARDS_MAX];
};

/* Places at which an owner may be killed, or stand still and go on as a zombie. */
enum sim_point {
    POINT_CONSUMED,
    POINT_ATTEMPT_PRODUCED,
    POINT_FLUSH_SENT,
    POINT_BEFORE_REDIS,
    POINT_BEFORE_COMPLETED,
    POINT_AFTER_COMPLETED,
    POINT_EPOCH_RAISED,
    POINT_OFFSETS_READ,
    POINT_REPUBLISHING,
    POINT_REVOKED,
    POINT_COUNT,
};

/* A request in the engine host of a worker. */
struct sim_engine_run {
    uint64_t token;
    int job;
    bool alone, canceled;
};

struct sim_worker {
    struct process process;
    struct sim_producer producer;
    char name[16];
    int pool, log, machine;
    uint64_t boot;
    uint64_t unheard_boot,
        told_boot; /* newest that left unheard; newest of which Gone has told that */
    uint32_t slots;
    struct worker_options options;
    struct worker_core *core; /* NULL: no process */
    uint64_t position, tick_at_us;
    bool reading, fetching;
    bool host_up;
    uint64_t host_life, host_granted, away_until_us;
    struct sim_engine_run runs[32];
    size_t run_count;
};

/* Its agent: tells the owners which boots have ended. */
struct sim_machine {
    struct process process;
    struct sim_producer producer;
};

struct sim_gateway {
    struct process process;
    struct sim_producer producer;
    int64_t wall_us; /* its clock, ahead of Kafka's */
    bool not_ready;  /* it has seen that its clock is wrong */
};

enum sim_delivery_state {
    SIM_DELIVERY_PENDING,
    SIM_DELIVERY_SUCCEEDED,
    SIM_DELIVERY_FAILED,
    SIM_DELIVERY_CANCELED,
};

/* The row of `delivery` of a job's newest round; those of the rounds before are not followed. */
struct sim_delivery {
    bool present;
    uint64_t round;
    enum sim_delivery_state state;
    uint32_t try_count;
    uint64_t next_us;
};

struct sim_sender {
    struct process process;
    bool reading[SIM_SHARDS_MAX], in_memory[SIM_JOBS_MAX];
};

struct sim_job {
    struct wire_id id;
    int shard, pool, tenant, key; /* key: -1 none, else index of the key */
    int gateway;                  /* that its client talks to */
    uint32_t priority;
    uint64_t produced_us;
    bool produced, accepted, refused_503, bad_output, bad_submit, dead;
    bool rewound;          /* a failover lost what was known of it: it may end in another way */
    bool attempt_given_up; /* an Attempt of it was not reported: it ended as handed back */
    int64_t offset;        /* in intake, first copy; -1: none */
    uint64_t service_us;
    unsigned fail_percent, copies; /* of its Submit in intake */
    uint64_t queue_limit_ms, total_limit_ms;
    uint32_t cancels_sent;
    struct {
        int64_t offset;         /* in intake, first copy */
        unsigned copies;        /* in intake */
        bool refused;           /* was told "not canceled" */
    } cancels[SIM_CANCELS_MAX]; /* by their request numbers */
    bool verdict_true, verdict_false, seen_final;
    bool webhook, blob_input, blob_there, big_output, skewed_id;
    uint64_t blob_put_us;
    bool commanded;              /* to be canceled */
    bool put_off;                /* an attempt of it has asked for a later one */
    struct wire_bytes final_key; /* in Redis */
    enum job_state final_key_state;
    struct {
        struct wire_bytes committed; /* its `completed` as the row says it */
        bool told;
        unsigned posts; /* that its receiver took */
    } rounds[SIM_ROUNDS_MAX + 1];
    uint64_t token_max;    /* of the Attempts that were asked for */
    uint64_t token_logged; /* the highest of those in dispatch logs */
};

struct sim_options {
    uint64_t seed;
    int jobs;
    unsigned removed_guards;
    bool trace;
};

/* Kinds of faults that a world has. */
struct sim_faults {
    bool broker_crash, broker_pause, two_owners, broker_points;
    bool worker_crash, worker_pause, worker_false_gone, worker_leave, worker_points, engine;
    bool kafka_stall, kafka_duplicate, kafka_refuse;
    bool ledger_down, ledger_cut, ledger_slow, ledger_left_open, ledger_failover;
    bool redis_flush, gateway_crash, bad_rows, sender_crash, receiver, blob_away;
    bool gateway_clock, broker_clock, broker_asleep;
    bool deployment_moves, pool_zero, upgrade, log_lost;
};

/* Faults that were counted: sim_faults.def. */
enum sim_fault {
#define FAULT(name, where, text) FAULT_##name,
#include "tests/sim/sim_faults.def"
#undef FAULT
    FAULT_COUNT,
};

struct sim_event {
    struct heap_node node;
    struct process *to;
    uint64_t incarnation;
    sim_fn *fn;
    void *opaque;
    uint64_t number;
};

/* All Attempts ever appended, by token and shard; open addressing. */
#define SIM_TOKENS_MAX 8192

struct sim {
    struct sim_options options;
    struct sim_faults faults;
    struct owner_options owner_options;
    struct rng rng;
    uint64_t now_us, event_count, quiet_us;
    struct heap events;
    uint64_t event_seq;
    struct sim_block *blocks;

    struct sim_log logs[SIM_LOGS_MAX];
    struct sim_ledger ledger;
    int shard_count, pool_count, worker_count;
    int shards_open; /* others are added later */
    struct sim_broker brokers[SIM_BROKERS];
    int assigned[SIM_SHARDS_MAX]; /* the broker that the group elected; -1: none */
    struct sim_worker workers[SIM_WORKERS_MAX];
    struct sim_gateway gateways[SIM_GATEWAYS];
    struct sim_machine machines[SIM_MACHINES];
    struct sim_sender senders[SIM_SENDERS];
    int webhook_reader[SIM_SHARDS_MAX];     /* sender that the group gave the shard */
    int64_t webhook_offset[SIM_SHARDS_MAX]; /* of the group, in Kafka */
    struct sim_delivery deliveries[SIM_JOBS_MAX];
    bool newer_submits;
    struct sim_job jobs[SIM_JOBS_MAX];
    int job_count, key_count;
    int redis_keys[SIM_JOBS_MAX]; /* idempotency cache: key to job; -1: none */
    unsigned fault_percent;
    bool faults_over, worker_faulted, failed;
    uint64_t running_max; /* of tenant t0's jobs in a shard; 0: no limit */
    size_t lost_attempts;
    struct sim_token {
        uint64_t token, boot; /* 0: free */
        int shard;
        bool blob; /* its result was stored */
    } tokens[SIM_TOKENS_MAX];
    uint64_t hits[FAULT_COUNT];
    struct wire_decoder *decoder;
    char failure[512];
};

/* sim.c */
void sim_run(struct sim *sim, const struct sim_options *options);
void sim_done(struct sim *sim);
void *sim_alloc(struct sim *sim, size_t size); /* zeroed, lives as long as the world */
struct wire_bytes sim_copy(struct sim *sim, const void *bytes, size_t size);
void sim_post(struct sim *sim, struct process *to, uint64_t delay_us, sim_fn *fn, void *opaque,
              uint64_t number);
void sim_fail(struct sim *sim, const char *fmt, ...) PRINTF_LIKE(2, 3);
void sim_trace(struct sim *sim, const char *fmt, ...) PRINTF_LIKE(2, 3);
uint64_t sim_between(struct sim *sim, uint64_t least, uint64_t most);
bool sim_percent(struct sim *sim, unsigned percent);
int sim_job_of(const struct sim *sim, const struct wire_id *id);
bool sim_guarded(const struct sim *sim, enum owner_guard guard);
void sim_hit(struct sim *sim, enum sim_fault fault);
struct wire_text sim_pool_name(int pool);
bool process_runs(const struct sim *sim, const struct process *process);
void process_kill(struct process *process);
void process_start(struct process *process);

/* sim_kafka.c */
enum sim_topic kafka_topic(int log);
void kafka_producer_init(struct sim_producer *producer, struct process *process);
void kafka_produce(struct sim *sim, struct sim_producer *producer, int log, enum message_type type,
                   const void *fields, sim_report_fn *report, void *opaque, uint64_t number);
void kafka_produce_bytes(struct sim *sim, struct sim_producer *producer, int log, const void *bytes,
                         size_t size, sim_report_fn *report, void *opaque, uint64_t number);
void kafka_producer_dies(struct sim *sim, struct sim_producer *producer);
bool kafka_stalled(const struct sim *sim, int log);

/* sim_group.c */
void group_assign(struct sim *sim, int shard, int broker);
void group_look(struct sim *sim, uint64_t delay_us); /* sessions have ended, or members came */
void group_settle(struct sim *sim); /* after the faults: every shard moves once more */

/* sim_store.c */
void ledger_ask(struct sim *sim, struct sim_seat *seat, struct sim_request *request);
void ledger_client_dies(struct sim *sim, struct sim_seat *seat);
void ledger_cut(struct sim *sim, struct sim_seat *seat);
void ledger_go_down(struct sim *sim);
void ledger_come_up(struct sim *sim);

/* sim_failover.c */
void failover_begin(struct sim *sim, bool loses_commits);

struct sim_flush *ledger_copy_flush(struct sim *sim, const struct flush *flush);
uint64_t ledger_deadline_us(struct sim *sim, const struct sim_row *row); /* of a waiting row */
struct message_completed ledger_completed(struct sim *sim, int job);

/* sim_broker.c */
void broker_start(struct sim *sim, struct sim_broker *broker);
void broker_crash(struct sim *sim, struct sim_broker *broker);
void broker_dies(struct sim *sim, struct sim_broker *broker); /* and comes back, and is noticed */
void broker_stands_still(struct sim *sim, struct sim_broker *broker, uint64_t long_us);
bool broker_passes(struct sim *sim, struct sim_broker *broker, enum sim_point point);
void seat_assign(struct sim *sim, struct sim_seat *seat);
void seat_revoke(struct sim *sim, struct sim_seat *seat);
void seat_wake(struct sim *sim, struct sim_seat *seat);
void seat_now(struct sim *sim, struct sim_seat *seat); /* tells the owner the times of its broker */
void seat_on_takeover(struct sim *sim, struct sim_seat *seat, struct ledger_takeover *takeover);
void seat_on_flush(struct sim *sim, struct sim_seat *seat, const struct flush_result *result);
void seat_on_commands(struct sim *sim, struct sim_seat *seat, const struct ledger_command *commands,
                      size_t command_count, bool complete);
void seat_on_rows(struct sim *sim, struct sim_seat *seat, const struct sim_request *request,
                  struct ledger_row *rows, size_t row_count, bool complete);

/* sim_worker.c */
void worker_start(struct sim *sim, struct sim_worker *worker);
void worker_crash(struct sim *sim, struct sim_worker *worker, bool agent_tells);
void worker_leave(struct sim *sim, struct sim_worker *worker);
void worker_wake(struct sim *sim, struct sim_worker *worker);
int worker_outcome(const struct sim *sim, const struct sim_worker *worker);

/* sim_gateway.c */
void gateway_begin(struct sim *sim);
void gateway_crash(struct sim *sim, struct sim_gateway *gateway);
void gateway_probe(struct sim *sim);
void gateway_on_verdict(struct sim *sim, const struct message_wake *wake);
void redis_set_final(struct sim *sim, int job, const struct message_completed *completed);
void redis_flush(struct sim *sim);

/* sim_webhook.c */
void webhook_begin(struct sim *sim);
void webhook_wake(struct sim *sim, int shard);
void webhook_crash(struct sim *sim, struct sim_sender *sender);

/* sim_blob.c */
void blob_begin(struct sim *sim);
void blob_put_input(struct sim *sim, int job);

/* sim_topology.c */
void topology_plan(struct sim *sim);
void topology_settle(struct sim *sim);

/* sim_command.c */
void command_begin(struct sim *sim);
size_t command_read(const struct sim *sim, int shard, uint64_t from, uint32_t limit,
                    struct ledger_command *commands);
void command_commit(struct sim *sim, const struct flush_command *acks, size_t ack_count);
bool command_asked_for(const struct sim *sim, int job, uint32_t round);
uint64_t command_first_open(const struct sim *sim);
void command_rewind(struct sim *sim, const struct sim_ledger *to); /* acknowledgements are lost */

/* sim_faults.c */
void faults_plan(struct sim *sim);
void faults_stop(struct sim *sim);

/* sim_check.c */
void check_commit(struct sim *sim, const struct sim_flush *flush);
void check_dispatch(struct sim *sim, const struct sim_seat *seat,
                    const struct message_attempt *attempt);
void check_append(struct sim *sim, int log, int64_t offset);
void check_accept(struct sim *sim, int job);
void check_run(struct sim *sim, const struct sim_worker *worker, const struct sim_engine_run *run);
void check_verdict(struct sim *sim, int job, const struct message_wake *wake);
void check_final_key(struct sim *sim, int job, const struct message_completed *completed);
void check_status(struct sim *sim, int job);
void check_delivery(struct sim *sim, int job, const struct message_completed *completed);
void check_post(struct sim *sim, int job, uint64_t round, int status);
void check_blob_read(struct sim *sim, int job);
void check_blob_delete(struct sim *sim, int job);
void check_result_blob(struct sim *sim, int job, uint64_t token);
void check_end(struct sim *sim);
bool check_is_quiet(struct sim *sim);
