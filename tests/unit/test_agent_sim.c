/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: whatever devices, workers, the driver and the agent itself do, no device is promised over
 * its memory, nobody is started on one that is out or while the driver is silent, a worker has one
 * process and one place, a device goes out after exactly so many faults, and when faults stop each
 * worker runs, or waits for a room that is not there, and says so.
 * Method: seeded worlds. The core is the agent's; SQL's rows, processes, the memory of devices and
 * the answers to its to-dos, in any order, are a model, which keeps its own books. The agent is
 * killed now and then: the next one begins with the rows and what runs.
 *
 *     test_agent_sim [FIRST_SEED [COUNT]]
 */

#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/rng.h"
#include "base/settings.h"
#include "workers/agent_core.h"

#define SEEDS 2000
#define STEPS 160
#define CALM_STEPS 40
#define CALM_MS 300000 /* all in all longer than the longest time out, and what comes after it */
#define DEVICES 5
#define DEPLOYMENTS 16 /* ever; some at a time */
#define LIVE_MAX 6
#define REPLICAS 2
#define WORKERS (DEPLOYMENTS * REPLICAS)
#define PENDING_MAX 256
#define GIB ((uint64_t)1 << 30)
#define SLICE_PARENT "GPU-cut"

struct model_device {
    struct device_info info;
    uint64_t others_size;
    bool listed, sick;
    /* What it should be, by our own count. */
    uint64_t fault_ms[64];
    uint32_t fault_count;
};

struct model_deployment {
    bool live, failed, was_active, loads;
    uint32_t replicas;
    char device[8], config[160], digest[8];
    struct gpu_need need;
};

/* A row of `replica` and the process of its worker. */
struct worker {
    bool row;
    char state[12], reason[AGENT_REASON_SIZE], device[AGENT_DEVICE_SIZE];
    uint64_t row_boot;
    bool alive, ready, stopped, ignores; /* ignores: only SIGKILL ends it */
    bool dying, starting;
    uint64_t boot;
    struct device_placement placement; /* that it was started with */
};

enum answer_type { ANSWER_CLAIM, ANSWER_FETCH, ANSWER_START, ANSWER_END };

struct answer {
    enum answer_type type;
    uint32_t worker;
    char digest[8];
    int exit_code, signal;
};

static struct sim {
    uint64_t seed, now_ms, boots;
    struct rng rng;
    struct agent_core *core;
    struct model_device devices[DEVICES];
    struct model_deployment deployments[DEPLOYMENTS];
    uint32_t deployment_count;
    struct worker workers[WORKERS];
    struct answer answers[PENDING_MAX];
    size_t answer_count;
    char probes[PENDING_MAX][DEVICE_UUID_SIZE];
    size_t probe_count;
    bool placed[WORKERS]; /* after the event before */
    bool silent, calm;
    bool adopting; /* an agent has begun, and does not know of all that runs */
} sim;

static struct {
    uint64_t starts, quarantines, restarts, adoptions, waits, fails, silences, kills,
        drains_adopted;
} totals;

#define HOLDS(fact, ...)                                                                           \
    do {                                                                                           \
        if (!(fact)) {                                                                             \
            (void)printf("seed %" PRIu64 ", at %" PRIu64 " ms: %s: ", sim.seed, sim.now_ms,        \
                         #fact);                                                                   \
            (void)printf(__VA_ARGS__);                                                             \
            (void)printf("\n");                                                                    \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

static uint32_t below(uint32_t limit)
{
    return (uint32_t)rng_below(&sim.rng, limit);
}

static bool one_in(uint32_t n)
{
    return below(n) == 0;
}

/* ---- names ---- */

static char worker_names[WORKERS][16];

static const char *worker_name(uint32_t number)
{
    if (worker_names[number][0] == '\0')
        (void)snprintf(worker_names[number], sizeof(worker_names[number]), "d%u-%u",
                       number / REPLICAS, number % REPLICAS);
    return worker_names[number];
}

static uint32_t worker_number(const char *name)
{
    unsigned deployment = 0, index = 0;

    if (sscanf(name, "d%u-%u", &deployment, &index) != 2)
        NEVER("a worker has a name of ours");
    return deployment * REPLICAS + index;
}

static struct model_deployment *deployment_of(uint32_t worker)
{
    return &sim.deployments[worker / REPLICAS];
}

static bool is_gpu(uint32_t worker)
{
    return strcmp(deployment_of(worker)->device, "cuda") == 0;
}

/* ---- the machine ---- */

static bool placement_has(const struct device_placement *placement, const char *uuid)
{
    for (uint32_t i = 0; i < placement->count; i++) {
        if (strcmp(placement->uuids[i], uuid) == 0)
            return true;
    }
    return false;
}

struct books {
    uint64_t promised_size, used_size;
    uint32_t processes, whole;
};

/* Of the processes that there are, told by nobody but the machine. */
static struct books books_of(const struct model_device *device)
{
    struct books books = {.used_size = device->others_size};

    for (uint32_t w = 0; w < sim.deployment_count * REPLICAS; w++) {
        const struct worker *worker = &sim.workers[w];
        uint64_t size = worker->placement.memory_size;

        if (!worker->alive || !placement_has(&worker->placement, device->info.uuid))
            continue;
        books.processes++;
        books.whole += size == 0;
        books.promised_size += size;
        size = size == 0 ? device->info.total_size / 2 : size;
        books.used_size += worker->ready ? size : size / 4;
    }
    return books;
}

static void machine_make(void)
{
    static const char *const names[] = {"NVIDIA A10G", "Tesla T4", "NVIDIA H100 80GB HBM3"};
    uint32_t slices = one_in(2) ? 2 : 0;

    for (uint32_t i = 0; i < DEVICES; i++) {
        struct model_device *device = &sim.devices[i];
        struct device_info *info = &device->info;
        bool is_slice = i < slices;

        *info = (struct device_info){.index = i,
                                     .gpu_instance = is_slice ? i + 1 : DEVICE_NO_SLICE,
                                     .compute_instance = is_slice ? 0 : DEVICE_NO_SLICE,
                                     .major = is_slice ? 9 : 7 + below(3),
                                     .total_size = (uint64_t)(8 + below(40)) * GIB};
        (void)snprintf(info->uuid, sizeof(info->uuid), "%s-%u", is_slice ? "MIG" : "GPU", i);
        mem_copy_text(info->name, is_slice ? "NVIDIA H100 MIG 3g.40gb" : names[below(3)]);
        if (is_slice)
            mem_copy_text(info->parent, SLICE_PARENT);
        device->others_size = one_in(3) ? below(4) * GIB : 0;
        device->listed = !one_in(10);
    }
}

static struct device_view view_of(const struct model_device *device)
{
    struct device_view view;

    for (size_t i = 0; devices_view(agent_core_devices(sim.core), i, &view); i++) {
        if (strcmp(view.info->uuid, device->info.uuid) == 0)
            return view;
    }
    return (struct device_view){.info = NULL};
}

static bool is_out(const struct device_view *view)
{
    return view->info == NULL || view->state == DEVICE_QUARANTINED || view->state == DEVICE_GONE;
}

/* ---- what holds after each event ---- */

/* What the core says, read once. */
static struct {
    struct device_view views[DEVICES];
    struct device_placement places[WORKERS];
    bool placed[WORKERS];
} said;

static uint32_t worker_count(void)
{
    return sim.deployment_count * REPLICAS;
}

static void device_check(size_t number)
{
    const struct model_device *device = &sim.devices[number];
    const struct device_view *view = &said.views[number];
    const struct books books = books_of(device);
    uint64_t promised_size = 0;
    uint32_t holders = 0;

    HOLDS(books.promised_size <= device->info.total_size, "%s", device->info.uuid);
    HOLDS(books.whole == 0 || books.processes == 1, "%s", device->info.uuid);
    HOLDS(books.whole > 0 || books.used_size <= device->info.total_size, "%s", device->info.uuid);
    for (uint32_t w = 0; w < worker_count(); w++) {
        const struct worker *worker = &sim.workers[w];

        if (!said.placed[w] || !placement_has(&said.places[w], device->info.uuid))
            continue;
        promised_size += said.places[w].memory_size;
        holders++;
        for (uint32_t of = w / REPLICAS * REPLICAS; of < w; of++)
            HOLDS(!said.placed[of] || !placement_has(&said.places[of], device->info.uuid),
                  "%s and %s are on one device", worker_name(of), worker_name(w));
        HOLDS(view->info == NULL || !is_out(view) || worker->alive || worker->starting,
              "%s is on %s, which is out, and does not run", worker_name(w), device->info.uuid);
    }
    HOLDS(promised_size <= device->info.total_size, "%s", device->info.uuid);
    HOLDS(view->info == NULL || view->holder_count == holders, "%s has %u, and %u are known",
          device->info.uuid, view->holder_count, holders);
}

/* A process has its place for as long as it lives, and is told to go when a device of it is out. */
static void worker_check(uint32_t number)
{
    const struct worker *worker = &sim.workers[number];
    const struct device_placement *placement = &said.places[number];

    if (!worker->alive || worker->placement.count == 0)
        return;
    HOLDS(said.placed[number], "%s has lost its place", worker_name(number));
    HOLDS(placement->count == worker->placement.count &&
              placement->memory_size == worker->placement.memory_size,
          "%s has another place", worker_name(number));
    for (size_t i = 0; i < DEVICES; i++) {
        const struct device_view *view = &said.views[i];
        const char *uuid = sim.devices[i].info.uuid;

        if (!placement_has(&worker->placement, uuid))
            continue;
        HOLDS(placement_has(placement, uuid), "%s is not on %s", worker_name(number), uuid);
        HOLDS(view->info == NULL || !is_out(view) || worker->stopped || worker->dying,
              "%s was not told that %s is out", worker_name(number), uuid);
    }
}

static void check(void)
{
    for (size_t i = 0; i < DEVICES; i++)
        said.views[i] = view_of(&sim.devices[i]);
    for (uint32_t w = 0; w < worker_count(); w++)
        said.placed[w] = agent_core_placement(sim.core, worker_name(w), &said.places[w]);
    for (size_t i = 0; i < DEVICES; i++)
        device_check(i);
    for (uint32_t w = 0; w < worker_count(); w++) {
        worker_check(w);
        HOLDS(!said.placed[w] || sim.placed[w] || !sim.silent, "%s is placed", worker_name(w));
        sim.placed[w] = said.placed[w];
    }
}

/* ---- to-dos ---- */

static void answer_add(enum answer_type type, uint32_t worker, const char *digest, int exit_code,
                       int signal)
{
    struct answer *answer = &sim.answers[sim.answer_count++];

    assert(sim.answer_count <= PENDING_MAX);
    *answer = (struct answer){
        .type = type, .worker = worker, .exit_code = exit_code, .signal = signal};
    mem_copy_text(answer->digest, digest);
}

static void worker_die(uint32_t number, int exit_code, int signal)
{
    if (!sim.workers[number].alive || sim.workers[number].dying)
        return;
    sim.workers[number].dying = true;
    answer_add(ANSWER_END, number, "", exit_code, signal);
}

static void do_start(uint32_t number)
{
    struct worker *worker = &sim.workers[number];
    bool placed;

    HOLDS(!worker->alive && !worker->starting, "%s is started twice", worker_name(number));
    placed = agent_core_placement(sim.core, worker_name(number), &worker->placement);
    HOLDS(placed == is_gpu(number), "%s", worker_name(number));
    if (!placed)
        worker->placement = (struct device_placement){.count = 0};
    for (size_t i = 0; i < DEVICES; i++) {
        const struct device_view view = view_of(&sim.devices[i]);

        HOLDS(!placement_has(&worker->placement, sim.devices[i].info.uuid) || !is_out(&view),
              "%s is started on %s", worker_name(number), sim.devices[i].info.uuid);
    }
    worker->starting = true;
    totals.starts++;
    answer_add(ANSWER_START, number, "", 0, 0);
}

/* Nothing that would do, had it all the room that it has: by the devices' own words. */
static bool never_fits(const struct model_deployment *deployment)
{
    struct device_view view;
    uint32_t count = 0;

    for (size_t i = 0; devices_view(agent_core_devices(sim.core), i, &view); i++)
        count += device_fits(view.info, &deployment->need) == DEVICE_FITS;
    return count < deployment->need.count;
}

static void do_replica(const struct agent_todo *todo)
{
    uint32_t number = worker_number(todo->worker);
    struct model_deployment *deployment = deployment_of(number);
    struct worker *worker = &sim.workers[number];

    worker->row = true;
    mem_copy_text(worker->state, todo->state);
    mem_copy_text(worker->reason, todo->reason);
    mem_copy_text(worker->device, todo->device);
    worker->row_boot = todo->boot;
    deployment->was_active = deployment->was_active || strcmp(todo->state, "READY") == 0;
    if (strcmp(todo->state, "FAILED") != 0)
        return;
    totals.fails++;
    HOLDS(todo->reason[0] != '\0', "%s", todo->worker);
    HOLDS(!deployment->was_active, "%s has failed for good", todo->worker);
    if (is_gpu(number) && strncmp(todo->reason, "the model", 9) != 0) {
        HOLDS(!sim.silent, "%s: %s", todo->worker, todo->reason);
        HOLDS(never_fits(deployment), "%s: %s", todo->worker, todo->reason);
    }
    deployment->failed = true;
}

static void act(void)
{
    struct agent_todo todo;

    while (agent_core_next_todo(sim.core, &todo)) {
        uint32_t number = todo.worker[0] == '\0' ? 0 : worker_number(todo.worker);

        switch (todo.type) {
        case AGENT_TODO_CLAIM:
            answer_add(ANSWER_CLAIM, number, "", 0, 0);
            break;
        case AGENT_TODO_FETCH:
            answer_add(ANSWER_FETCH, 0, todo.deployment->digest, 0, 0);
            break;
        case AGENT_TODO_START:
            do_start(number);
            break;
        case AGENT_TODO_STOP:
            sim.workers[number].stopped = true;
            break;
        case AGENT_TODO_KILL:
            totals.kills++;
            worker_die(number, 0, SIGKILL);
            break;
        case AGENT_TODO_REPLICA:
            do_replica(&todo);
            break;
        case AGENT_TODO_PROBE:
            assert(sim.probe_count < PENDING_MAX);
            mem_copy_text(sim.probes[sim.probe_count++], todo.reason);
            break;
        case AGENT_TODO_SERVE:
        case AGENT_TODO_GONE:
        case AGENT_TODO_DEVICES:
        case AGENT_TODO_EXIT:
            break;
        }
    }
    if (!sim.adopting && !sim.calm)
        check();
}

/* ---- answers ---- */

static void answer_start(uint32_t number)
{
    struct worker *worker = &sim.workers[number];
    bool starts = sim.calm || !one_in(12);

    worker->starting = false;
    worker->alive = starts;
    worker->ready = worker->stopped = worker->dying = false;
    worker->ignores = !sim.calm && one_in(5);
    worker->boot = 0;
    agent_core_on_started(sim.core, worker_name(number), starts, false, "it does not start");
}

static void answer_give(const struct answer *answer)
{
    struct worker *worker = &sim.workers[answer->worker];
    bool fetched = sim.calm || !one_in(6);

    switch (answer->type) {
    case ANSWER_CLAIM:
        agent_core_on_claimed(sim.core, worker_name(answer->worker), sim.calm || !one_in(8));
        break;
    case ANSWER_FETCH:
        agent_core_on_fetched(sim.core, answer->digest, fetched ? "/m" : NULL, false, "no archive");
        break;
    case ANSWER_START:
        answer_start(answer->worker);
        break;
    case ANSWER_END:
        worker->alive = worker->ready = worker->dying = false;
        agent_core_on_ended(sim.core, worker_name(answer->worker), answer->exit_code,
                            answer->signal,
                            answer->exit_code == 2 ? "the model is bad" : "it ended");
        break;
    }
    act();
}

static void answer_any(void)
{
    size_t at;
    struct answer answer;

    if (sim.answer_count == 0)
        return;
    at = below((uint32_t)sim.answer_count);
    answer = sim.answers[at];
    sim.answers[at] = sim.answers[--sim.answer_count];
    answer_give(&answer);
}

/* ---- faults ---- */

/* What must become of a device by one fault more: our own count. */
static enum device_state fault_expect(struct model_device *device, enum device_state state,
                                      bool counts, bool lost)
{
    const struct devices_options *options = &agent_options_default.devices;
    uint32_t kept = 0;

    if (!counts || state == DEVICE_QUARANTINED || state == DEVICE_GONE)
        return state;
    for (uint32_t i = 0; i < device->fault_count; i++) {
        if (sim.now_ms - device->fault_ms[i] < options->window_ms)
            device->fault_ms[kept++] = device->fault_ms[i];
    }
    device->fault_ms[kept++] = sim.now_ms;
    device->fault_count = kept;
    if (!lost && state == DEVICE_WELL && kept < options->fault_max)
        return state;
    device->fault_count = 0;
    totals.quarantines++;
    return DEVICE_QUARANTINED;
}

struct expectation {
    bool hit[DEVICES];
    enum device_state want[DEVICES];
};

static struct expectation faults_expect(const char *uuid, bool counts, bool lost)
{
    struct expectation expectation = {0};

    for (size_t i = 0; i < DEVICES; i++) {
        struct model_device *device = &sim.devices[i];
        const struct device_view view = view_of(device);
        bool is_it = uuid[0] != '\0' && (strcmp(device->info.uuid, uuid) == 0 ||
                                         strcmp(device->info.parent, uuid) == 0);

        expectation.hit[i] = view.info != NULL;
        if (view.info != NULL)
            expectation.want[i] = is_it ? fault_expect(device, view.state, counts, lost)
                                        : view.state;
    }
    return expectation;
}

static void faults_check(const struct expectation *expectation, const char *what)
{
    for (size_t i = 0; i < DEVICES; i++) {
        const struct device_view view = view_of(&sim.devices[i]);

        HOLDS(!expectation->hit[i] || view.state == expectation->want[i],
              "%s: %s is %s and should be %s", what, sim.devices[i].info.uuid,
              device_state_name(view.state), device_state_name(expectation->want[i]));
    }
    act();
}

static void fault_of_worker(uint32_t number, enum device_fault fault)
{
    const struct worker *worker = &sim.workers[number];
    struct expectation expectation = faults_expect(
        worker->placement.count == 0 ? "nothing" : worker->placement.uuids[0],
        fault != DEVICE_FAULT_OOM, false);

    agent_core_on_worker_fault(sim.core, worker_name(number), fault, "it says so");
    faults_check(&expectation, device_fault_name(fault));
}

static void fault_xid(void)
{
    static const struct {
        uint64_t xid;
        bool counts, lost;
    } rows[] = {{13, false, false}, {31, false, false}, {63, false, false}, {94, true, false},
                {74, true, false},  {999, true, false}, {79, true, true},   {48, true, true}};
    size_t row = below(one_in(2) ? COUNT_OF(rows) : 6);
    struct model_device *device = &sim.devices[below(DEVICES)];
    const char *uuid = one_in(8)                                     ? "" /* it does not say */
                       : device->info.parent[0] != '\0' && one_in(3) ? SLICE_PARENT
                                                                     : device->info.uuid;
    struct expectation expectation = faults_expect(uuid, rows[row].counts, rows[row].lost);

    device->sick = rows[row].lost && uuid[0] != '\0' && one_in(2);
    agent_core_on_xid(sim.core, uuid, rows[row].xid, "an Xid");
    faults_check(&expectation, "xid");
}

/* ---- the driver ---- */

static void probes_answer(void)
{
    size_t count = sim.probe_count;

    for (size_t i = 0; i < count; i++) {
        char uuid[DEVICE_UUID_SIZE];
        bool well = false;

        mem_copy_text(uuid, sim.probes[i]);
        for (size_t d = 0; d < DEVICES; d++) {
            if (strcmp(sim.devices[d].info.uuid, uuid) == 0) {
                well = sim.devices[d].listed && !sim.devices[d].sick;
                sim.devices[d].fault_count = 0; /* of one that was out nothing counts any more */
            }
        }
        agent_core_on_probed(sim.core, uuid, well, "it is ill");
    }
    memmove(sim.probes, sim.probes + count, (sim.probe_count - count) * sizeof(sim.probes[0]));
    sim.probe_count -= count;
}

static void look(void)
{
    struct device_info infos[DEVICES];
    size_t count = 0;

    sim.silent = false;
    for (size_t i = 0; i < DEVICES; i++) {
        if (!sim.devices[i].listed)
            continue;
        infos[count] = sim.devices[i].info;
        infos[count++].used_size = books_of(&sim.devices[i]).used_size;
    }
    agent_core_on_inventory(sim.core, infos, count, "there is no driver");
    probes_answer();
    act();
}

static void be_silent(void)
{
    sim.silent = true;
    totals.silences++;
    agent_core_on_silent(sim.core, "the driver does not answer");
    act();
}

/* ---- deployments ---- */

static void deployment_add(void)
{
    static const char *const kinds[] = {"", "", "", "A10G", "T4", "H100"};
    struct model_deployment *deployment = &sim.deployments[sim.deployment_count++];
    const char *kind = kinds[below(COUNT_OF(kinds))];
    uint32_t count = kind[0] != '\0' && one_in(4) ? 2 : 1;
    char memory[48] = "", accelerator[48] = "", number[8] = "";
    struct err err;
    json_t *config;

    *deployment = (struct model_deployment){
        .live = true, .loads = !one_in(12), .replicas = 1 + below(REPLICAS), .device = "cuda"};
    if (one_in(5))
        mem_copy_text(deployment->device, "cpu");
    if (one_in(3))
        (void)snprintf(deployment->digest, sizeof(deployment->digest), "a%u", below(3));
    if (count > 1)
        (void)snprintf(number, sizeof(number), ":%u", count);
    if (kind[0] != '\0')
        (void)snprintf(accelerator, sizeof(accelerator), "\"accelerator\":\"%s%s\"", kind, number);
    if (count == 1 && !one_in(4))
        (void)snprintf(memory, sizeof(memory), "%s\"accelerator_memory\":\"%uGiB\"",
                       kind[0] != '\0' ? "," : "", 1 + below(one_in(6) ? 50 : 16));
    (void)snprintf(deployment->config, sizeof(deployment->config), "{\"resources\":{%s%s}}",
                   accelerator, memory);
    config = json_loads(deployment->config, 0, NULL);
    if (gpu_need_parse("cuda", json_object_get(config, "resources"), &deployment->need, &err) < 0)
        NEVER("a need of ours is one");
    json_decref(config);
}

static void deployments_tell(void)
{
    struct agent_deployment list[DEPLOYMENTS];
    size_t count = 0;

    for (uint32_t i = 0; i < sim.deployment_count; i++) {
        const struct model_deployment *from = &sim.deployments[i];
        struct agent_deployment *to = &list[count];

        if (!from->live || from->failed)
            continue;
        count++;
        *to = (struct agent_deployment){.model = "m",
                                        .engine = "sim",
                                        .config = xstrdup(from->config),
                                        .slot_count = 1,
                                        .replicas_wanted = from->replicas,
                                        .was_active = from->was_active};
        (void)snprintf(to->id, sizeof(to->id), "d%u", i);
        mem_copy_text(to->pool, to->id);
        mem_copy_text(to->device, from->device);
        mem_copy_text(to->digest, from->digest);
    }
    agent_core_on_deployments(sim.core, list, count);
    act();
}

static void deployments_change(void)
{
    uint32_t live = 0, any = sim.deployment_count == 0 ? 0 : below(sim.deployment_count);

    for (uint32_t i = 0; i < sim.deployment_count; i++)
        live += sim.deployments[i].live && !sim.deployments[i].failed;
    if (live < LIVE_MAX && sim.deployment_count < DEPLOYMENTS && !one_in(4))
        deployment_add();
    else if (one_in(2))
        sim.deployments[any].live = false;
    else
        sim.deployments[any].replicas = below(REPLICAS + 1);
    deployments_tell();
}

/* ---- processes ---- */

static void worker_load(uint32_t number)
{
    struct worker *worker = &sim.workers[number];

    if (!worker->alive || worker->ready || worker->dying)
        return;
    if (!deployment_of(number)->loads && !deployment_of(number)->was_active) {
        worker_die(number, 2, 0);
        return;
    }
    worker->ready = true;
    worker->boot = ++sim.boots;
    agent_core_on_ready(sim.core, worker_name(number), worker->boot);
    act();
}

static void worker_obey(uint32_t number)
{
    const struct worker *worker = &sim.workers[number];

    if (worker->alive && worker->stopped && !worker->ignores)
        worker_die(number, 0, 0);
}

static void worker_suffer(uint32_t number)
{
    const struct worker *worker = &sim.workers[number];

    if (!worker->alive || worker->dying)
        return;
    switch (below(6)) {
    case 0:
        worker_die(number, 0, SIGSEGV);
        break;
    case 1:
    case 2:
        fault_of_worker(number, DEVICE_FAULT_CONTEXT);
        worker_die(number, 3, 0);
        break;
    case 3:
        fault_of_worker(number, DEVICE_FAULT_HANG);
        break;
    default:
        fault_of_worker(number, DEVICE_FAULT_OOM);
        break;
    }
}

/* ---- the agent ---- */

static void tick(uint64_t more_ms)
{
    sim.now_ms += more_ms;
    agent_core_tick(sim.core, sim.now_ms);
    act();
}

static void agent_begin(void)
{
    sim.core = agent_core_new(&agent_options_default);
    for (size_t i = 0; i < DEVICES; i++)
        sim.devices[i].fault_count = 0;
    agent_core_tick(sim.core, sim.now_ms);
}

/* As agent_sql.c takes the rows of the agent before. */
static void row_take(uint32_t number)
{
    struct worker *worker = &sim.workers[number];
    struct model_deployment *deployment = deployment_of(number);
    char id[AGENT_NAME_SIZE];

    if (!worker->row || strcmp(worker->state, "STOPPED") == 0 ||
        strcmp(worker->state, "FAILED") == 0)
        return;
    (void)snprintf(id, sizeof(id), "d%u", number / REPLICAS);
    if (worker->alive && strcmp(worker->state, "READY") == 0) {
        worker->stopped = false;
        totals.adoptions++;
        totals.drains_adopted += !deployment->live;
        agent_core_on_adopted(sim.core, worker_name(number), id, deployment->config, worker->device,
                              1, worker->boot, 0, false);
        return;
    }
    worker->alive = worker->ready = false;
    agent_core_on_adopted(sim.core, worker_name(number), id, deployment->config, "", 1,
                          worker->row_boot, 0, false);
    agent_core_on_ended(sim.core, worker_name(number), AGENT_EXIT_UNKNOWN, 0, "it ended unseen");
}

/* kill -9, a while without one, and the next; somebody may have removed a deployment meanwhile. */
static void agent_restart(void)
{
    totals.restarts++;
    agent_core_free(&sim.core);
    for (uint32_t w = 0; w < worker_count(); w++) {
        struct worker *worker = &sim.workers[w];

        if (worker->dying || (worker->alive && one_in(10)))
            worker->alive = worker->ready = false;
        worker->dying = worker->starting = false;
    }
    sim.answer_count = sim.probe_count = 0;
    if (one_in(3) && sim.deployment_count > 0)
        sim.deployments[below(sim.deployment_count)].live = false;
    sim.now_ms += below(60000);
    agent_begin();
    sim.adopting = true;
    if (one_in(4))
        be_silent();
    else
        look();
    for (uint32_t w = 0; w < worker_count(); w++) {
        struct device_placement placement;

        row_take(w);
        sim.placed[w] = agent_core_placement(sim.core, worker_name(w), &placement);
    }
    sim.adopting = false;
    act();
    deployments_tell();
}

/* ---- worlds ---- */

static void any_worker_suffers(void)
{
    uint32_t number = below(worker_count());

    for (uint32_t w = 0; w < worker_count() && !sim.workers[number].alive; w++)
        number = (number + 1) % worker_count();
    worker_suffer(number);
}

static void any_device_changes(void)
{
    struct model_device *device = &sim.devices[below(DEVICES)];

    device->listed = !one_in(6);
    device->sick = device->sick && one_in(2);
    look();
}

static void step(void)
{
    uint32_t at = below(100);

    if (at < 16) {
        tick(below(one_in(8) ? 400000 : 4000));
    } else if (at < 50) {
        answer_any();
    } else if (at < 60) {
        for (uint32_t w = 0; w < worker_count(); w++)
            worker_load(w);
    } else if (at < 66) {
        for (uint32_t w = 0; w < worker_count(); w++)
            worker_obey(w);
    } else if (at < 76) {
        any_worker_suffers();
    } else if (at < 82) {
        fault_xid();
    } else if (at < 88) {
        any_device_changes();
    } else if (at < 90) {
        be_silent();
    } else if (at < 94) {
        deployments_change();
    } else if (at < 98) {
        deployments_tell();
    } else if (one_in(2)) {
        agent_restart();
    }
}

static void calm_step(void)
{
    tick(CALM_MS);
    look();
    deployments_tell();
    for (uint32_t w = 0; w < worker_count(); w++) {
        worker_load(w);
        worker_obey(w);
    }
    while (sim.answer_count > 0)
        answer_any();
    check();
}

/* Whether there is room for it now, by the books of the machine. */
static bool has_room(uint32_t number)
{
    const struct model_deployment *deployment = deployment_of(number);
    const struct gpu_need *need = &deployment->need;
    uint32_t count = 0;

    for (size_t i = 0; i < DEVICES; i++) {
        const struct model_device *device = &sim.devices[i];
        const struct books books = books_of(device);
        uint64_t taken_size = books.promised_size + device->others_size;
        bool fits = device_fits(&device->info, need) == DEVICE_FITS && books.whole == 0;

        if (need->memory_size == 0)
            fits = fits && books.processes == 0;
        else
            fits = fits && taken_size + need->memory_size <= device->info.total_size;
        for (uint32_t r = 0; r < REPLICAS; r++) {
            const struct worker *other = &sim.workers[number / REPLICAS * REPLICAS + r];

            fits = fits && !(other->alive && placement_has(&other->placement, device->info.uuid));
        }
        count += fits;
    }
    return count >= need->count;
}

static void end_check(void)
{
    for (size_t i = 0; i < DEVICES; i++) {
        const struct device_view view = view_of(&sim.devices[i]);

        HOLDS(view.info != NULL && view.state == DEVICE_WELL, "%s is %s", sim.devices[i].info.uuid,
              view.info == NULL ? "not there" : device_state_name(view.state));
    }
    for (uint32_t w = 0; w < worker_count(); w++) {
        const struct worker *worker = &sim.workers[w];
        const struct model_deployment *deployment = deployment_of(w);
        bool wanted = deployment->live && !deployment->failed &&
                      w % REPLICAS < deployment->replicas;

        if (!wanted) {
            HOLDS(!worker->alive, "%s runs, and is not wanted", worker_name(w));
            continue;
        }
        if (worker->alive && worker->ready) {
            HOLDS(strcmp(worker->state, "READY") == 0, "%s: %s", worker_name(w), worker->state);
            continue;
        }
        totals.waits++;
        HOLDS(strcmp(worker->state, "STARTING") == 0 && worker->reason[0] != '\0', "%s: %s '%s'",
              worker_name(w), worker->state, worker->reason);
        HOLDS(is_gpu(w) && !has_room(w), "%s waits, and there is room: %s", worker_name(w),
              worker->reason);
    }
}

static void run(uint64_t seed)
{
    sim = (struct sim){.seed = seed, .now_ms = 1000};
    rng_seed(&sim.rng, seed);
    machine_make();
    agent_begin();
    if (one_in(6))
        be_silent();
    else
        look();
    for (int i = 0; i < 4; i++)
        deployment_add();
    deployments_tell();
    for (int i = 0; i < STEPS; i++)
        step();
    sim.calm = true;
    for (size_t i = 0; i < DEVICES; i++) {
        sim.devices[i].listed = true;
        sim.devices[i].sick = false;
    }
    for (int i = 0; i < CALM_STEPS; i++)
        calm_step();
    end_check();
    agent_core_free(&sim.core);
}

int main(int argc, char **argv)
{
    int64_t first = 1, count = SEEDS;
    struct err err;

    if ((argc > 1 && settings_parse_int("FIRST_SEED", argv[1], &first, &err) < 0) ||
        (argc > 2 && settings_parse_int("COUNT", argv[2], &count, &err) < 0)) {
        (void)fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    if (argc == 2)
        count = 1;
    for (int64_t i = 0; i < count; i++)
        run((uint64_t)(first + i));
    (void)printf("%" PRIi64 " worlds: %" PRIu64 " starts, %" PRIu64 " devices put out, %" PRIu64
                 " agents killed, %" PRIu64 " workers adopted (%" PRIu64
                 " of a deployment that was gone), %" PRIu64 " silences, %" PRIu64
                 " killed, %" PRIu64 " failed for good, %" PRIu64 " wait at the end\n",
                 count, totals.starts, totals.quarantines, totals.restarts, totals.adoptions,
                 totals.drains_adopted, totals.silences, totals.kills, totals.fails, totals.waits);
    if (count < SEEDS)
        return 0;
    /* The worlds are worth something. */
    HOLDS(totals.starts > 10000 && totals.quarantines > 2500 && totals.adoptions > 1000 &&
              totals.drains_adopted > 100 && totals.kills > 500 && totals.fails > 500 &&
              totals.waits > 500,
          "too little happens");
    return 0;
}
