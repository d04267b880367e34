/* SPDX-License-Identifier: Apache-2.0 */

/*
 * GPUs of an agent's machine: looked at by a process of its own (device_watch.h), for a GPU that is
 * ill may keep who asks its driver waiting for ever; told to the core, to SQL and to whoever asks
 * for /devices.
 *
 * Without the driver's library there are none, which is said once. A driver that is loaded later is
 * seen when it is: it is asked for again each time. Deployments are read after the first look, or
 * after FIRST_MS without an answer: those for a GPU wait then, the others do not.
 */

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/http_server.h"
#include "base/log.h"
#include "workers/agent_int.h"
#include "workers/device_watch.h"

#define FIRST_MS 2000

struct agent_look {
    struct agent *agent;
    struct device_watch *watch; /* NULL: --devices=none */
    bool known;                 /* what there is, or that there is no answer */
    bool answered;              /* what there is: once at least */
    bool told_none, silent;
    struct nvml_versions versions; /* as of the last look */
    char why_none[DEVICE_TEXT_SIZE], why_silent[DEVICE_TEXT_SIZE];
    char probing[DEVICES_MAX][DEVICE_UUID_SIZE];
    size_t probing_count;   /* asked for; of these the first so many … */
    size_t probing_started; /* … before the look that is under way began */
};

static bool is_none(const struct agent *agent)
{
    return strcmp(agent->settings.devices, "none") == 0;
}

/* Those that the setting, or the environment, lets us have. */
static size_t look_filter(const struct agent_look *look, const struct device_list *seen,
                          struct device_info to[DEVICES_MAX], char why[DEVICE_TEXT_SIZE])
{
    const char *setting = look->agent->settings.devices;
    bool is_auto = strcmp(setting, "auto") == 0;
    const char *list = is_auto ? getenv("CUDA_VISIBLE_DEVICES") : setting;
    const char *name = is_auto ? "CUDA_VISIBLE_DEVICES" : "--devices";
    char bad[DEVICE_UUID_SIZE];
    size_t count = device_visible(list, seen->infos, seen->count, to, bad);

    mem_copy_text_at(why, DEVICE_TEXT_SIZE, seen->why);
    if (count == 0 && seen->count > 0)
        (void)snprintf(why, DEVICE_TEXT_SIZE, "%s='%.200s' leaves this agent none of %zu", name,
                       list == NULL ? "" : list, seen->count);
    if (bad[0] != '\0' && !look->known)
        log_warn("device_not_here", LOG_STR("setting", name), LOG_STR("value", list),
                 LOG_STR("error", bad));
    return count;
}

/* ---- looking ---- */

static void on_xid(void *opaque, const char *uuid, uint64_t xid)
{
    struct agent *agent = ((struct agent_look *)opaque)->agent;
    char why[DEVICE_TEXT_SIZE];
    const char *text;
    enum device_xid_class class = device_xid_class(xid, &text);

    (void)snprintf(why, sizeof(why), "Xid %llu: %s", (unsigned long long)xid, text);
    log_warn("device_xid", LOG_STR("device", uuid), LOG_U64("xid", xid),
             LOG_STR("class", device_xid_class_name(class)), LOG_STR("error", text));
    agent_tick(agent);
    agent_core_on_xid(agent->core, uuid, xid, why);
    agent_act(agent);
}

/* A device answers when it is listed, and has nothing left that only a reset repairs. */
static void probe_tell(struct agent *agent, const char *uuid, const struct device_info *infos,
                       size_t count)
{
    const struct device_info *info = NULL;
    const char *why = "";

    for (size_t i = 0; i < count; i++) {
        if (strcmp(infos[i].uuid, uuid) == 0)
            info = &infos[i];
    }
    if (info == NULL)
        why = "it does not answer";
    else if (info->repair)
        why = "its memory waits for a reset to be repaired";
    log_info("device_probed", LOG_STR("device", uuid), LOG_BOOL("well", why[0] == '\0'),
             LOG_STR("error", why));
    agent_core_on_probed(agent->core, uuid, why[0] == '\0', why);
}

static void probes_tell(struct agent_look *look, const struct device_info *infos, size_t count)
{
    char uuids[DEVICES_MAX][DEVICE_UUID_SIZE];
    size_t done = look->probing_started;

    memcpy(uuids, look->probing, sizeof(uuids));
    memmove(look->probing, look->probing + done,
            (look->probing_count - done) * sizeof(look->probing[0]));
    look->probing_count -= done;
    look->probing_started = 0;
    for (size_t i = 0; i < done; i++)
        probe_tell(look->agent, uuids[i], infos, count);
}

static void on_devices(void *opaque, const struct device_list *list)
{
    struct agent_look *look = opaque;
    struct agent *agent = look->agent;
    struct device_info infos[DEVICES_MAX];
    struct device_view view;
    bool first = !look->known, first_answer = !look->answered;
    size_t count = look_filter(look, list, infos, look->why_none);

    if (agent->exiting)
        return;
    if (look->silent)
        log_info("devices_answer");
    look->known = look->answered = true;
    look->silent = false;
    look->why_silent[0] = '\0';
    look->versions = list->versions;
    if (count == 0 && !look->told_none)
        log_info("no_devices", LOG_STR("why", look->why_none));
    look->told_none = count == 0;
    agent_tick(agent);
    agent_core_on_inventory(agent->core, infos, count, look->why_none);
    probes_tell(look, infos, count);
    agent_act(agent);
    if (first_answer || devices_view(agent_core_devices(agent->core), 0, &view))
        agent_sql_devices(agent);
    if (first)
        agent_sql_read(agent);
    if (look->probing_count > 0)
        agent_devices_look(agent);
}

static void on_silent(void *opaque, const char *why)
{
    struct agent_look *look = opaque;
    struct agent *agent = look->agent;
    bool first = !look->known;

    if (agent->exiting)
        return;
    log_warn("devices_silent", LOG_STR("error", why));
    look->known = look->silent = true;
    mem_copy_text(look->why_silent, why);
    agent_tick(agent);
    agent_core_on_silent(agent->core, why);
    agent_act(agent);
    if (first)
        agent_sql_read(agent);
}

void agent_devices_look(struct agent *agent)
{
    struct agent_look *look = agent->look;

    if (look->watch == NULL)
        return;
    if (look->silent) /* rows that are not written are taken for those of an agent that is dead */
        agent_sql_devices(agent);
    if (device_watch_look(look->watch))
        look->probing_started = look->probing_count;
}

void agent_devices_probe(struct agent *agent, const char *uuid)
{
    struct agent_look *look = agent->look;

    if (look->probing_count < DEVICES_MAX)
        mem_copy_text(look->probing[look->probing_count++], uuid);
    agent_devices_look(agent);
}

const char *agent_devices_unseen(const struct agent *agent)
{
    const struct agent_look *look = agent->look;

    return look->silent && !look->answered ? look->why_silent : NULL;
}

bool agent_devices_known(const struct agent *agent)
{
    return agent->look->known;
}

void agent_devices_open(struct agent *agent)
{
    static const struct device_watch_calls calls = {
        .on_devices = on_devices, .on_silent = on_silent, .on_xid = on_xid};
    const struct device_watch_options options = {
        .library = agent->settings.nvml,
        .first_ms = agent->settings.device_timeout_ms < FIRST_MS ? agent->settings.device_timeout_ms
                                                                 : FIRST_MS,
        .timeout_ms = agent->settings.device_timeout_ms,
    };
    struct agent_look *look = xcalloc(1, sizeof(*look));

    agent->look = look;
    look->agent = agent;
    if (is_none(agent)) {
        mem_copy_text(look->why_none, "this agent was started with --devices=none");
        look->known = true;
        agent_core_on_inventory(agent->core, NULL, 0, look->why_none);
        return;
    }
    look->watch = device_watch_open(agent->loop, &options, &calls, look);
    agent_devices_look(agent);
}

void agent_devices_close(struct agent *agent)
{
    struct agent_look *look = TAKE(agent->look);

    if (look == NULL)
        return;
    device_watch_close(&look->watch);
    free(look);
}

/* ---- what is told ---- */

static json_t *device_json(const struct agent *agent, const struct device_view *view)
{
    const struct device_info *info = view->info;
    const struct nvml_versions *versions = &agent->look->versions;
    uint64_t now_ms = loop_now_ms(agent->loop);
    char capability[24];
    json_t *device;

    (void)snprintf(capability, sizeof(capability), "%u.%u", info->major, info->minor);
    device = json_pack(
        "{s:s, s:s, s:i, s:s, s:s, s:I, s:I, s:I, s:I, s:i, s:s, s:s, s:i, s:I, s:I, s:I, s:I, "
        "s:I, s:s, s:s, s:i}",
        "uuid", info->uuid, "parent", info->parent, "number", (int)info->index, "name", info->name,
        "capability", capability, "memory_bytes", (json_int_t)info->total_size, "used_bytes",
        (json_int_t)info->used_size, "promised_bytes", (json_int_t)view->reserved_size,
        "free_bytes", (json_int_t)view->free_size, "workers", (int)view->holder_count, "state",
        device_state_name(view->state), "reason", view->why, "quarantines",
        (int)view->quarantine_count, "context_faults",
        (json_int_t)view->faults[DEVICE_FAULT_CONTEXT], "hang_faults",
        (json_int_t)view->faults[DEVICE_FAULT_HANG], "xid_faults",
        (json_int_t)view->faults[DEVICE_FAULT_XID], "oom_faults",
        (json_int_t)view->faults[DEVICE_FAULT_OOM], "ecc_errors", (json_int_t)info->ecc_count,
        "driver", versions->driver, "cuda", versions->cuda, "utilization_percent",
        (int)info->utilization_percent);
    if (device != NULL && view->state == DEVICE_QUARANTINED)
        (void)json_object_set_new(
            device, "seconds_left",
            json_real(view->until_ms > now_ms ? (double)(view->until_ms - now_ms) / 1000 : 0));
    return device;
}

static json_t *devices_array(const struct agent *agent)
{
    json_t *array = json_array();
    struct device_view view;

    for (size_t i = 0; devices_view(agent_core_devices(agent->core), i, &view); i++)
        (void)json_array_append_new(array, device_json(agent, &view));
    return array;
}

char *agent_devices_json(const struct agent *agent)
{
    json_t *array = devices_array(agent);
    char *text = json_dumps(array, JSON_COMPACT);

    json_decref(array);
    return text != NULL ? text : xstrdup("[]");
}

bool agent_devices_answer(struct agent *agent, struct http_request **request_p)
{
    const struct http_header type = {"Content-Type", "application/json"};
    const char *target = http_request_target(*request_p);
    json_t *page;
    char *text;

    if (strcmp(target, "/devices") != 0 || strcmp(http_request_method(*request_p), "GET") != 0)
        return false;
    page = json_pack("{s:s, s:o, s:s, s:s}", "host", agent->host, "devices", devices_array(agent),
                     "why_none", agent->look->why_none, "why_silent", agent->look->why_silent);
    text = json_dumps(page, JSON_INDENT(2));
    json_decref(page);
    http_request_answer(request_p, 200, &type, 1, text, text == NULL ? 0 : strlen(text));
    free(text);
    return true;
}

char *agent_devices_visible(const struct agent *agent, const struct agent_todo *todo)
{
    struct device_placement placement;
    struct device_view view;
    char *text = NULL;

    if (!agent_core_placement(agent->core, todo->worker, &placement))
        return agent->look->silent || devices_view(agent_core_devices(agent->core), 0, &view)
                   ? xstrdup("")
                   : NULL;
    for (uint32_t i = 0; i < placement.count; i++) {
        char *longer = xasprintf("%s%s%s", text == NULL ? "" : text, i > 0 ? "," : "",
                                 placement.uuids[i]);

        free(text);
        text = longer;
    }
    return text;
}
