/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Goal: no device is promised twice or while it is out; who was on one that goes out is told to
 * leave, once; a device comes back; a refusal says what was asked for and what there is. Method:
 * scripts for the rules and the sentences; then seeded worlds of devices, workers and faults in
 * which the rules are checked after each event. Replay one with HEADRACE_SEED.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/rng.h"
#include "base/settings.h"
#include "workers/devices.h"

#define GIB ((uint64_t)1 << 30)

/* ---- scripts ---- */

struct world {
    struct devices *devices;
    struct device_info infos[4];
    size_t count;
    uint64_t now_ms;
    char said[2048];
};

static void world_add(struct world *world, const char *uuid, const char *name, uint32_t gib)
{
    struct device_info *info = &world->infos[world->count];

    *info = (struct device_info){.index = (uint32_t)world->count++,
                                 .major = 8,
                                 .minor = 6,
                                 .gpu_instance = DEVICE_NO_SLICE,
                                 .compute_instance = DEVICE_NO_SLICE,
                                 .total_size = gib * GIB};
    mem_copy_text(info->uuid, uuid);
    mem_copy_text(info->name, name);
}

static void world_look(struct world *world)
{
    devices_on_inventory(world->devices, world->infos, world->count, "there is no driver");
}

static const char *world_said(struct world *world)
{
    static const char *const words[] = {[DEVICES_TODO_DRAIN] = "drain",
                                        [DEVICES_TODO_PROBE] = "probe",
                                        [DEVICES_TODO_TELL] = "tell"};
    struct devices_todo todo;
    size_t size = 0;

    world->said[0] = '\0';
    while (devices_next_todo(world->devices, &todo)) {
        if (todo.type == DEVICES_TODO_TELL)
            continue;
        size += (size_t)snprintf(world->said + size, sizeof(world->said) - size, "%s%s:%s%s",
                                 size > 0 ? " " : "", words[todo.type],
                                 todo.type == DEVICES_TODO_DRAIN ? todo.holder : todo.uuid,
                                 todo.hopeless ? "!" : "");
    }
    return world->said;
}

#define SAYS(world, want) assert_string_equal(world_said(world), want)

static void world_open(struct world *world)
{
    *world = (struct world){.now_ms = 1000};
    world->devices = devices_new(&devices_options_default);
    devices_tick(world->devices, world->now_ms);
}

static void world_tick(struct world *world, uint64_t more_ms)
{
    world->now_ms += more_ms;
    devices_tick(world->devices, world->now_ms);
}

/* An A10G of 24 GiB and a T4 of 16. */
static void world_two(struct world *world)
{
    world_open(world);
    world_add(world, "GPU-a", "NVIDIA A10G", 24);
    world_add(world, "GPU-t", "Tesla T4", 16);
    world->infos[1].major = 7;
    world->infos[1].minor = 5;
    world_look(world);
    SAYS(world, "");
}

static struct gpu_need needs(uint32_t gib)
{
    return (struct gpu_need){.count = 1, .index = DEVICE_ANY, .memory_size = gib * GIB};
}

/* Where it was placed, or the refusal. */
static const char *place(struct world *world, const char *holder, const char *group,
                         const struct gpu_need *need)
{
    static struct device_placement placement;
    static struct err err;

    return devices_place(world->devices, holder, group, need, &placement, &err) == 0
               ? placement.uuids[0]
               : err.text;
}

static enum device_state state_of(const struct world *world, size_t index)
{
    struct device_view view;

    assert_true(devices_view(world->devices, index, &view));
    return view.state;
}

static void test_best_fit(void **state)
{
    const struct gpu_need ten = needs(10), six = needs(6), whole = needs(0);
    struct world world;

    (void)state;
    world_two(&world);
    assert_string_equal(place(&world, "w1", "d1", &ten), "GPU-t");
    assert_string_equal(place(&world, "w1", "d1", &ten), "GPU-t"); /* the same again */
    assert_string_equal(place(&world, "w2", "d2", &six), "GPU-t"); /* full to the brim */
    assert_string_equal(place(&world, "w3", "d3", &six), "GPU-a");
    assert_string_equal(place(&world, "w4", "d3", &six),
                        "taken: NVIDIA A10G (GPU-a) runs a worker of this deployment already");
    assert_string_equal(place(&world, "w5", "d4", &whole),
                        "taken: needs all of a device, and NVIDIA A10G (GPU-a) has 1 workers, with "
                        "18.0 GiB free of 24.0 GiB");
    devices_release(world.devices, "w1");
    devices_release(world.devices, "w2");
    assert_string_equal(place(&world, "w5", "d4", &whole), "GPU-t");
    assert_string_equal(place(&world, "w6", "d5", &ten), "GPU-a");
    assert_string_equal(place(&world, "w7", "d6", &ten),
                        "too small: needs 10.0 GiB, NVIDIA A10G (GPU-a) has 8.0 GiB free of 24.0 "
                        "GiB");
    devices_free(&world.devices);
}

static const struct {
    const char *kind;
    uint32_t count, major, minor, gib;
    int code;
    const char *want;
} refusal_rows[] = {
    {"H100", 1, 0, 0, 0, ERR_UNSUPPORTED,
     "no device: needs H100, and this machine has NVIDIA A10G (GPU 0)"},
    {"T4", 1, 8, 0, 0, ERR_UNSUPPORTED,
     "too old: needs compute capability 8.0, Tesla T4 (GPU-t) has 7.5"},
    {"", 1, 9, 0, 4, ERR_UNSUPPORTED,
     "too old: needs compute capability 9.0, NVIDIA A10G (GPU-a) has 8.6"},
    {"", 1, 0, 0, 40, ERR_UNSUPPORTED,
     "too small: needs 40.0 GiB, NVIDIA A10G (GPU-a) has 24.0 GiB free of 24.0 GiB"},
    {"A10G", 2, 0, 0, 0, ERR_UNSUPPORTED,
     "too few: needs 2 A10G; this machine has 1 like that, and 1 of them free"},
};

static void test_refusals(void **state)
{
    struct device_placement placement;
    const struct gpu_need any = needs(0);
    struct world world;
    struct err err;

    (void)state;
    world_two(&world);
    for (size_t i = 0; i < COUNT_OF(refusal_rows); i++) {
        struct gpu_need need = needs(refusal_rows[i].gib);

        mem_copy_text(need.kind, refusal_rows[i].kind);
        need.count = refusal_rows[i].count;
        need.major = refusal_rows[i].major;
        need.minor = refusal_rows[i].minor;
        assert_int_equal(devices_place(world.devices, "w", "d", &need, &placement, &err),
                         refusal_rows[i].code);
        assert_string_equal(err.text, refusal_rows[i].want);
        assert_int_equal(devices_check(world.devices, "d", &need, &err), refusal_rows[i].code);
        assert_string_equal(err.text, refusal_rows[i].want);
    }
    devices_free(&world.devices);
    world_open(&world);
    world_look(&world);
    assert_int_equal(devices_place(world.devices, "w", "d", &any, &placement, &err),
                     ERR_UNSUPPORTED);
    assert_string_equal(err.text, "no device: needs a device, and there is no driver");
    devices_free(&world.devices);
}

/* What others have of it is not ours, and what a model takes beyond its word is not free either. */
static void test_memory_of_others(void **state)
{
    const struct gpu_need twenty = needs(20), four = needs(4);
    struct world world;

    (void)state;
    world_open(&world);
    world_add(&world, "GPU-a", "NVIDIA A10G", 24);
    world.infos[0].used_size = 5 * GIB;
    world_look(&world);
    assert_string_equal(place(&world, "w1", "d1", &twenty),
                        "too small: needs 20.0 GiB, NVIDIA A10G (GPU-a) has 19.0 GiB free of 24.0 "
                        "GiB");
    world.infos[0].used_size = 1 * GIB;
    world_look(&world);
    assert_string_equal(place(&world, "w1", "d1", &four), "GPU-a");
    world.infos[0].used_size = 21 * GIB;
    world_look(&world);
    assert_string_equal(place(&world, "w2", "d2", &four),
                        "too small: needs 4.0 GiB, NVIDIA A10G (GPU-a) has 3.0 GiB free of 24.0 "
                        "GiB");
    devices_free(&world.devices);
}

static void test_several_whole_ones(void **state)
{
    struct gpu_need two = needs(0);
    struct device_placement placement;
    struct world world;
    struct err err;

    (void)state;
    world_open(&world);
    world_add(&world, "GPU-0", "NVIDIA A10G", 24);
    world_add(&world, "GPU-1", "NVIDIA A10G", 24);
    world_add(&world, "GPU-2", "NVIDIA A10G", 24);
    world_look(&world);
    two.count = 2;
    mem_copy_text(two.kind, "A10G");
    assert_int_equal(devices_place(world.devices, "w1", "d1", &two, &placement, &err), 0);
    assert_int_equal(placement.count, 2);
    assert_string_equal(placement.uuids[0], "GPU-0");
    assert_string_equal(placement.uuids[1], "GPU-1");
    assert_int_equal(devices_place(world.devices, "w2", "d2", &two, &placement, &err), ERR_FULL);
    assert_string_equal(err.text,
                        "too few: needs 2 A10G; this machine has 3 like that, and 1 of them free");
    devices_on_fault(world.devices, "GPU-1", DEVICE_FAULT_XID, 79, "Xid 79");
    SAYS(&world, "drain:w1!");
    devices_free(&world.devices);
}

static void test_faults_in_a_window(void **state)
{
    const struct gpu_need four = needs(4);
    struct world world;

    (void)state;
    world_two(&world);
    assert_string_equal(place(&world, "w1", "d1", &four), "GPU-t");
    assert_string_equal(place(&world, "w2", "d2", &four), "GPU-t");
    devices_on_holder_fault(world.devices, "w1", DEVICE_FAULT_CONTEXT, "its context is lost");
    world_tick(&world, 599000);
    devices_on_holder_fault(world.devices, "w2", DEVICE_FAULT_HANG, "it hung");
    world_tick(&world, 2000); /* the first is too old by now */
    devices_on_fault(world.devices, "GPU-t", DEVICE_FAULT_XID, 94, "Xid 94");
    SAYS(&world, "");
    for (int i = 0; i < 9; i++) { /* of these none counts */
        devices_on_fault(world.devices, "GPU-t", DEVICE_FAULT_XID, 31, "Xid 31");
        devices_on_fault(world.devices, "GPU-t", DEVICE_FAULT_XID, 63, "Xid 63");
        devices_on_holder_fault(world.devices, "w1", DEVICE_FAULT_OOM, "out of memory");
        devices_on_fault(world.devices, "GPU-nobody", DEVICE_FAULT_XID, 79, "Xid 79");
        devices_on_fault(world.devices, "", DEVICE_FAULT_XID, 79, "Xid 79");
    }
    SAYS(&world, "");
    devices_on_fault(world.devices, "GPU-t", DEVICE_FAULT_XID, 94, "Xid 94");
    SAYS(&world, "drain:w1 drain:w2");
    assert_int_equal(state_of(&world, 1), DEVICE_QUARANTINED);
    assert_string_equal(place(&world, "w3", "d3", &four), "GPU-a"); /* elsewhere */
    devices_on_fault(world.devices, "GPU-t", DEVICE_FAULT_XID, 94, "Xid 94");
    SAYS(&world, ""); /* they are told once */
    devices_free(&world.devices);
}

/* Out for a minute, two, four; a fault while on probation, or a probe that fails, and out again. */
static void test_way_back(void **state)
{
    const struct gpu_need need = {.kind = "T4", .count = 1, .index = DEVICE_ANY};
    struct world world;

    (void)state;
    world_two(&world);
    devices_on_fault(world.devices, "GPU-t", DEVICE_FAULT_XID, 79, "Xid 79: it fell off the bus");
    assert_string_equal(place(&world, "w", "d", &need),
                        "Tesla T4 (GPU-t) is quarantined: Xid 79: it fell off the bus");
    assert_int_equal(devices_due_ms(world.devices), world.now_ms + 60000);
    world_tick(&world, 59999);
    SAYS(&world, "");
    world_tick(&world, 1);
    SAYS(&world, "probe:GPU-t");
    devices_on_probed(world.devices, "GPU-t", false, "it does not answer");
    assert_int_equal(devices_due_ms(world.devices), world.now_ms + 120000);
    world_tick(&world, 120000);
    SAYS(&world, "probe:GPU-t");
    devices_on_probed(world.devices, "GPU-t", true, "");
    assert_int_equal(state_of(&world, 1), DEVICE_PROBATION);
    assert_string_equal(place(&world, "w", "d", &need), "GPU-t");
    devices_on_holder_fault(world.devices, "w", DEVICE_FAULT_CONTEXT, "its context is lost");
    SAYS(&world, "drain:w");
    devices_release(world.devices, "w");
    assert_int_equal(devices_due_ms(world.devices), world.now_ms + 240000);
    world_tick(&world, 240000);
    SAYS(&world, "probe:GPU-t");
    devices_on_probed(world.devices, "GPU-t", true, "");
    world_tick(&world, 600000);
    assert_int_equal(state_of(&world, 1), DEVICE_WELL);
    world_tick(&world, 3600000); /* an hour without: the next time out is a minute again */
    devices_on_fault(world.devices, "GPU-t", DEVICE_FAULT_XID, 79, "Xid 79");
    assert_int_equal(devices_due_ms(world.devices), world.now_ms + 60000);
    devices_free(&world.devices);
}

static void test_gone_and_back(void **state)
{
    const struct gpu_need need = {.kind = "T4", .count = 1, .index = DEVICE_ANY};
    struct world world;

    (void)state;
    world_two(&world);
    assert_string_equal(place(&world, "w", "d", &need), "GPU-t");
    world.count = 1;
    world_look(&world);
    SAYS(&world, "drain:w!");
    assert_string_equal(place(&world, "w2", "d2", &need),
                        "Tesla T4 (GPU-t) is gone: the driver does not list it any more");
    world.count = 2;
    world_look(&world);
    world_tick(&world, 0);
    SAYS(&world, "probe:GPU-t");
    devices_on_probed(world.devices, "GPU-t", true, "");
    devices_release(world.devices, "w");
    assert_string_equal(place(&world, "w2", "d2", &need), "GPU-t");
    devices_free(&world.devices);
}

/* An error of a GPU that is cut is one of each of its slices, one of a slice is its own. */
static void test_slices(void **state)
{
    const struct gpu_need thirty = needs(30);
    struct world world;

    (void)state;
    world_open(&world);
    world_add(&world, "MIG-1", "NVIDIA H100 MIG 3g.40gb", 40);
    world_add(&world, "MIG-2", "NVIDIA H100 MIG 3g.40gb", 40);
    mem_copy_text(world.infos[0].parent, "GPU-h");
    mem_copy_text(world.infos[1].parent, "GPU-h");
    world_look(&world);
    assert_string_equal(place(&world, "w1", "d", &thirty), "MIG-1");
    assert_string_equal(place(&world, "w2", "d", &thirty), "MIG-2");
    devices_on_fault(world.devices, "MIG-2", DEVICE_FAULT_XID, 109, "Xid 109");
    SAYS(&world, "drain:w2!");
    devices_on_fault(world.devices, "GPU-h", DEVICE_FAULT_XID, 79, "Xid 79");
    SAYS(&world, "drain:w1!");
    devices_free(&world.devices);
}

static void test_adopts(void **state)
{
    const struct device_placement placement = {
        .uuids = {"GPU-t"}, .count = 1, .memory_size = 10 * GIB};
    const struct gpu_need ten = needs(10);
    struct world world;

    (void)state;
    world_two(&world);
    devices_adopt(world.devices, "w1", "d1", &placement);
    assert_string_equal(place(&world, "w1", "d1", &ten), "GPU-t");
    assert_string_equal(place(&world, "w2", "d2", &ten), "GPU-a");
    devices_free(&world.devices);
}

/* While the driver does not answer nobody is placed or refused for good, and who is there stays. */
static void test_silent(void **state)
{
    const struct gpu_need ten = needs(10), hundred = needs(100);
    struct device_placement placement;
    struct device_view view;
    struct world world;
    struct err err;

    (void)state;
    world_two(&world);
    assert_string_equal(place(&world, "w1", "d1", &ten), "GPU-t");
    devices_on_silent(world.devices, "it does not answer since noon");
    SAYS(&world, "");
    assert_int_equal(devices_place(world.devices, "w2", "d2", &hundred, &placement, &err),
                     ERR_FULL);
    assert_string_equal(
        err.text,
        "no device now: needs a device with 100.0 GiB, and it does not answer since noon");
    assert_string_equal(place(&world, "w1", "d1", &ten), "GPU-t");
    assert_true(devices_view(world.devices, 0, &view));
    assert_true(view.silent && view.state == DEVICE_WELL && view.free_size == 0);
    assert_string_equal(view.why, "it does not answer since noon");
    devices_on_fault(world.devices, "GPU-t", DEVICE_FAULT_XID, 79, "Xid 79");
    SAYS(&world, "drain:w1!"); /* what others tell of a device counts as ever */
    assert_true(devices_view(world.devices, 1, &view));
    assert_string_equal(view.why, "Xid 79");
    world_look(&world);
    assert_string_equal(place(&world, "w2", "d2", &ten), "GPU-a");
    assert_true(devices_view(world.devices, 0, &view));
    assert_true(!view.silent && view.free_size == 14 * GIB);
    assert_int_equal(devices_check(world.devices, "d2", &hundred, &err), ERR_UNSUPPORTED);
    devices_free(&world.devices);
}

/* ---- seeded worlds ---- */

#define SIM_DEVICES 6
#define SIM_HOLDERS 24
#define SIM_STEPS 600

struct sim {
    uint64_t seed;
    struct rng rng;
    struct devices *devices;
    struct device_info infos[SIM_DEVICES];
    bool listed[SIM_DEVICES], sick[SIM_DEVICES];
    uint32_t told[SIM_HOLDERS]; /* to leave, since it was placed */
    bool placed[SIM_HOLDERS], spare[SIM_HOLDERS];
    uint64_t now_ms;
    uint64_t placements, quarantines, drains, probes, reclaims;
};

static struct sim totals;

#define SIM_CHECK(sim, fact)                                                                       \
    do {                                                                                           \
        if (!(fact))                                                                               \
            fail_msg("seed %" PRIu64 ": %s", (sim)->seed, #fact);                                  \
    } while (0)

static void sim_look(struct sim *sim)
{
    struct device_info infos[SIM_DEVICES];
    size_t count = 0;

    for (size_t i = 0; i < SIM_DEVICES; i++) {
        if (sim->listed[i])
            infos[count++] = sim->infos[i];
    }
    devices_on_inventory(sim->devices, infos, count, "there is no driver");
}

static size_t sim_number(const char *name)
{
    int64_t number;
    struct err err;

    assert_int_equal(settings_parse_int("number", strrchr(name, '-') + 1, &number, &err), 0);
    return (size_t)number;
}

/* Nothing is promised twice, and nobody is on a device that is out without having been told. */
static void sim_check(struct sim *sim)
{
    struct device_view view;

    for (size_t i = 0; devices_view(sim->devices, i, &view); i++) {
        uint64_t promised_size = 0;
        uint32_t holders = 0, whole = 0;

        for (uint32_t h = 0; h < SIM_HOLDERS; h++) {
            struct device_placement placement;
            char name[16];

            (void)snprintf(name, sizeof(name), "w-%u", h);
            if (!devices_placed(sim->devices, name, &placement))
                continue;
            for (uint32_t d = 0; d < placement.count; d++) {
                if (strcmp(placement.uuids[d], view.info->uuid) != 0)
                    continue;
                promised_size += placement.memory_size;
                holders++;
                whole += placement.memory_size == 0;
                SIM_CHECK(sim, view.state < DEVICE_QUARANTINED || sim->told[h] == 1);
            }
            SIM_CHECK(sim, sim->told[h] <= 1);
        }
        SIM_CHECK(sim, promised_size <= view.info->total_size);
        SIM_CHECK(sim, whole == 0 || holders == 1);
        SIM_CHECK(sim, holders == view.holder_count);
    }
}

static void sim_act(struct sim *sim)
{
    struct devices_todo todo;

    while (devices_next_todo(sim->devices, &todo)) {
        if (todo.type == DEVICES_TODO_DRAIN) {
            sim->told[sim_number(todo.holder)]++;
            sim->drains++;
        } else if (todo.type == DEVICES_TODO_PROBE) {
            size_t number = sim_number(todo.uuid);

            sim->probes++;
            devices_on_probed(sim->devices, todo.uuid, sim->listed[number] && !sim->sick[number],
                              "it does not answer");
        }
    }
    sim_check(sim);
}

/* What is reclaimed is spares of others, and their going is enough. */
static void sim_reclaim(struct sim *sim, const char *name, const char *group,
                        const struct gpu_need *need)
{
    char holders[DEVICES_RECLAIM_MAX][DEVICE_HOLDER_SIZE];
    size_t count = devices_reclaim(sim->devices, group, need, holders);
    struct device_placement placement;
    struct err err;

    for (size_t i = 0; i < count; i++) {
        size_t number = sim_number(holders[i]);
        char other[32];

        (void)snprintf(other, sizeof(other), "d-%zu", number / 2);
        SIM_CHECK(sim, sim->spare[number] && strcmp(other, group) != 0);
        devices_release(sim->devices, holders[i]);
        sim->placed[number] = false;
    }
    if (count == 0)
        return;
    sim->reclaims++;
    SIM_CHECK(sim, devices_place(sim->devices, name, group, need, &placement, &err) == 0);
    devices_release(sim->devices, name);
}

static void sim_place(struct sim *sim, uint32_t number)
{
    struct gpu_need need = {.count = 1 + (rng_below(&sim->rng, 8) == 0),
                            .index = DEVICE_ANY,
                            .memory_size = rng_below(&sim->rng, 40) * GIB / 2,
                            .major = (uint32_t)rng_below(&sim->rng, 10)};
    struct device_placement placement;
    char name[16], group[16];
    struct device_view view;
    struct err err = {0};

    (void)snprintf(name, sizeof(name), "w-%u", number);
    (void)snprintf(group, sizeof(group), "d-%u", number / 2);
    if (devices_place(sim->devices, name, group, &need, &placement, &err) < 0) {
        SIM_CHECK(sim, err.code == ERR_FULL || err.code == ERR_UNSUPPORTED);
        SIM_CHECK(sim, err.text[0] != '\0');
        sim_reclaim(sim, name, group, &need);
        return;
    }
    sim->spare[number] = rng_below(&sim->rng, 3) == 0;
    devices_set_spare(sim->devices, name, sim->spare[number]);
    sim->placements++;
    sim->placed[number] = true;
    sim->told[number] = 0;
    SIM_CHECK(sim, placement.count == need.count);
    for (uint32_t d = 0; d < placement.count; d++) {
        for (size_t i = 0; devices_view(sim->devices, i, &view); i++) {
            if (strcmp(view.info->uuid, placement.uuids[d]) != 0)
                continue;
            SIM_CHECK(sim, view.state == DEVICE_WELL || view.state == DEVICE_PROBATION);
            SIM_CHECK(sim, view.info->major >= need.major);
        }
    }
}

static void sim_release(struct sim *sim, uint32_t number)
{
    char name[16];

    (void)snprintf(name, sizeof(name), "w-%u", number);
    devices_release(sim->devices, name);
    sim->placed[number] = false;
}

static void sim_fault(struct sim *sim)
{
    static const uint64_t xids[] = {13, 31, 45, 63, 48, 79, 94, 119, 999};
    size_t number = (size_t)rng_below(&sim->rng, SIM_DEVICES);
    enum device_fault fault = (enum device_fault)rng_below(&sim->rng, DEVICE_FAULT_COUNT);

    sim->sick[number] = rng_below(&sim->rng, 4) == 0;
    devices_on_fault(sim->devices, sim->infos[number].uuid, fault,
                     xids[rng_below(&sim->rng, COUNT_OF(xids))], "a fault");
}

static void sim_step(struct sim *sim)
{
    uint32_t number = (uint32_t)rng_below(&sim->rng, SIM_HOLDERS);
    size_t device = (size_t)rng_below(&sim->rng, SIM_DEVICES);

    switch (rng_below(&sim->rng, 8)) {
    case 0:
        sim_fault(sim);
        break;
    case 1:
        sim->listed[device] = rng_below(&sim->rng, 4) > 0;
        sim_look(sim);
        break;
    case 2:
        sim->now_ms += rng_below(&sim->rng, 200000);
        devices_tick(sim->devices, sim->now_ms);
        break;
    case 3:
        sim->sick[device] = false;
        break;
    default:
        if (sim->placed[number] && (sim->told[number] > 0 || rng_below(&sim->rng, 3) == 0))
            sim_release(sim, number);
        else if (!sim->placed[number])
            sim_place(sim, number);
    }
    sim_act(sim);
}

/* Left alone, all devices are well again, however bad it was. */
static void sim_calm(struct sim *sim)
{
    struct device_view view;

    for (uint32_t i = 0; i < SIM_HOLDERS; i++)
        sim_release(sim, i);
    for (size_t i = 0; i < SIM_DEVICES; i++) {
        sim->listed[i] = true;
        sim->sick[i] = false;
    }
    sim_look(sim);
    sim_act(sim);
    for (uint32_t turns = 0; devices_due_ms(sim->devices) != UINT64_MAX; turns++) {
        SIM_CHECK(sim, turns < 100);
        SIM_CHECK(sim, devices_due_ms(sim->devices) <=
                           sim->now_ms + devices_options_default.quarantine_ms_max);
        if (devices_due_ms(sim->devices) > sim->now_ms)
            sim->now_ms = devices_due_ms(sim->devices);
        devices_tick(sim->devices, sim->now_ms);
        sim_act(sim);
    }
    for (size_t i = 0; devices_view(sim->devices, i, &view); i++) {
        SIM_CHECK(sim, view.state == DEVICE_WELL);
        SIM_CHECK(sim, view.free_size == view.info->total_size);
        sim->quarantines += view.quarantine_count;
    }
}

static void sim_run(uint64_t seed)
{
    struct sim sim = {.seed = seed, .now_ms = 1};

    rng_seed(&sim.rng, seed);
    sim.devices = devices_new(&devices_options_default);
    devices_tick(sim.devices, sim.now_ms);
    for (size_t i = 0; i < SIM_DEVICES; i++) {
        struct device_info *info = &sim.infos[i];

        *info = (struct device_info){.index = (uint32_t)i,
                                     .major = 7 + (uint32_t)rng_below(&sim.rng, 3),
                                     .total_size = (8 + rng_below(&sim.rng, 32)) * GIB};
        (void)snprintf(info->uuid, sizeof(info->uuid), "GPU-%zu", i);
        mem_copy_text(info->name, "NVIDIA A10G");
        sim.listed[i] = rng_below(&sim.rng, 8) > 0;
    }
    sim_look(&sim);
    sim_act(&sim);
    for (uint32_t i = 0; i < SIM_STEPS; i++)
        sim_step(&sim);
    sim_calm(&sim);
    totals.placements += sim.placements;
    totals.quarantines += sim.quarantines;
    totals.drains += sim.drains;
    totals.probes += sim.probes;
    totals.reclaims += sim.reclaims;
    devices_free(&sim.devices);
}

/* The least that has to go: on the device that is left with the least, no spare that could stay. */
static void test_reclaims(void **state)
{
    char holders[DEVICES_RECLAIM_MAX][DEVICE_HOLDER_SIZE];
    struct gpu_need four = needs(4), ten = needs(10), twenty = needs(20), forty = needs(40);
    struct world world;

    (void)state;
    world_two(&world);
    assert_string_equal(place(&world, "w-1", "d-1", &ten), "GPU-t");
    assert_string_equal(place(&world, "w-2", "d-2", &four), "GPU-t");
    assert_string_equal(place(&world, "w-3", "d-3", &ten), "GPU-a");
    assert_string_equal(place(&world, "w-4", "d-4", &four), "GPU-a");
    assert_int_equal(devices_reclaim(world.devices, "d-5", &twenty, holders), 0);
    devices_set_spare(world.devices, "w-3", true);
    devices_set_spare(world.devices, "w-4", true);
    assert_int_equal(devices_reclaim(world.devices, "d-5", &four, holders), 0); /* there is room */
    assert_int_equal(devices_reclaim(world.devices, "d-5", &forty, holders),
                     0); /* there never is */
    assert_int_equal(devices_reclaim(world.devices, "d-5", &twenty, holders), 1);
    assert_string_equal(holders[0], "w-3");
    world.infos[0].used_size = 14 * GIB; /* they are what uses it */
    world_look(&world);
    assert_int_equal(devices_reclaim(world.devices, "d-5", &twenty, holders), 1);
    assert_int_equal(devices_reclaim(world.devices, "d-3", &twenty, holders), 0); /* its own */
    devices_set_spare(world.devices, "w-3", false);
    assert_int_equal(devices_reclaim(world.devices, "d-5", &twenty, holders), 0);
    assert_string_equal(place(&world, "w-3", "d-3", &ten), "GPU-a"); /* nobody has gone */
    devices_free(&world.devices);
}

static void test_seeds(void **state)
{
    const char *seed = getenv("HEADRACE_SEED");

    (void)state;
    if (seed != NULL) {
        int64_t number;
        struct err err;

        assert_int_equal(settings_parse_int("HEADRACE_SEED", seed, &number, &err), 0);
        sim_run((uint64_t)number);
        return;
    }
    for (uint64_t i = 1; i <= 40; i++)
        sim_run(i);
    (void)printf("%" PRIu64 " placements, %" PRIu64 " quarantines, %" PRIu64 " drains, %" PRIu64
                 " probes, %" PRIu64 " reclaims\n",
                 totals.placements, totals.quarantines, totals.drains, totals.probes,
                 totals.reclaims);
    assert_true(totals.reclaims > 100);
    assert_true(totals.placements > 500 && totals.quarantines > 100 && totals.drains > 300 &&
                totals.probes > 300); /* the worlds are worth something */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_best_fit),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_memory_of_others),
        cmocka_unit_test(test_several_whole_ones),
        cmocka_unit_test(test_faults_in_a_window),
        cmocka_unit_test(test_way_back),
        cmocka_unit_test(test_gone_and_back),
        cmocka_unit_test(test_slices),
        cmocka_unit_test(test_adopts),
        cmocka_unit_test(test_reclaims),
        cmocka_unit_test(test_silent),
        cmocka_unit_test(test_seeds),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
