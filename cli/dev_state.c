/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What a run of `headrace dev` leaves on disk, as DATA/dev.json:
 *
 *     {"dev": {"pid", "start"}, "services": {"kafka": {"ports": […], "pid", "start", "state", …}}}
 *
 * `start` is the process's start time in clock ticks: a pid is believed only together with it.
 * The ports are kept so that a restart has the same addresses when they are still free.
 */

#include <errno.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "cli/dev.h"
#include "cli/dev_files.h"

enum { STATE_SIZE_MAX = 65536 };

static char *state_path(const char *data_dir)
{
    return xasprintf("%s/dev.json", data_dir);
}

/* The parsed file, or NULL: one that is missing or damaged is as good as none. */
static json_t *state_read(const char *data_dir)
{
    OWNED(mem_free) char *path = state_path(data_dir);
    OWNED(mem_free) char *text = NULL;
    struct err err;

    if (dev_file_read(path, STATE_SIZE_MAX, &text, &err) < 0)
        return NULL;
    return json_loads(text, JSON_REJECT_DUPLICATES, NULL);
}

static json_t *process_to_json(const struct dev_process *process)
{
    return json_pack("{s:i, s:I}", "pid", (int)process->pid, "start",
                     (json_int_t)process->start_ticks);
}

static json_t *service_to_json(const struct dev_service *service)
{
    json_t *out = process_to_json(&service->process);
    json_t *ports = json_array();

    for (int i = 0; i < service->kind->port_count; i++)
        json_array_append_new(ports, json_integer(service->ports[i]));
    json_object_set_new(out, "ports", ports);
    json_object_set_new(out, "state", json_string(dev_state_name(service)));
    json_object_set_new(out, "url", json_string(service->url == NULL ? "" : service->url));
    json_object_set_new(out, "log", json_string(service->log_path));
    json_object_set_new(out, "given", json_boolean(service->given));
    json_object_set_new(out, "role", json_boolean(service->kind->level != DEV_LEVEL_SERVER));
    return out;
}

char *dev_state_to_json(struct dev *dev)
{
    json_t *root = json_object();
    json_t *services = json_object();
    struct dev_process own = {.pid = getpid(), .start_ticks = dev_process_start_ticks(getpid())};
    char *text;

    json_object_set_new(root, "dev", process_to_json(&own));
    json_object_set_new(root, "data", json_string(dev->data_dir));
    json_object_set_new(root, "ready", json_boolean(dev->announced && !dev->stopping));
    json_object_set_new(root, "key", json_string(dev->key == NULL ? "" : dev->key));
    json_object_set_new(root, "webhook_secret",
                        json_string(dev->webhook_secret == NULL ? "" : dev->webhook_secret));
    for (size_t i = 0; i < dev->service_count; i++) {
        const struct dev_service *service = &dev->services[i];

        if (service->state != DEV_STATE_ABSENT || service->given)
            json_object_set_new(services, service->kind->name, service_to_json(service));
    }
    json_object_set_new(root, "services", services);
    text = json_dumps(root, JSON_COMPACT);
    json_decref(root);
    return text;
}

int dev_state_save(struct dev *dev, struct err *err)
{
    OWNED(mem_free) char *path = state_path(dev->data_dir);
    OWNED(mem_free) char *text = dev_state_to_json(dev);

    return dev_file_write(path, text, err);
}

static uint16_t port_of(const json_t *state, const char *name, int i)
{
    json_t *service = json_object_get(json_object_get(state, "services"), name);
    json_int_t port = json_integer_value(
        json_array_get(json_object_get(service, "ports"), (size_t)i));

    return port > 0 && port <= UINT16_MAX ? (uint16_t)port : 0;
}

int dev_state_load_ports(struct dev *dev, struct err *err)
{
    json_t *state = state_read(dev->data_dir);
    int code = 0;

    for (size_t i = 0; i < dev->service_count && code == 0; i++) {
        struct dev_service *service = &dev->services[i];

        for (int port = 0; port < service->kind->port_count && code == 0; port++)
            do {
                code = dev_port_pick(port_of(state, service->kind->name, port),
                                     &service->ports[port], err);
            } while (code == 0 && port == 1 && service->ports[1] == service->ports[0]);
    }
    json_decref(state);
    return code;
}

static bool process_lives(const json_t *process)
{
    pid_t pid = (pid_t)json_integer_value(json_object_get(process, "pid"));
    uint64_t start = (uint64_t)json_integer_value(json_object_get(process, "start"));

    return pid > 0 && start != 0 && dev_process_start_ticks(pid) == start;
}

int dev_state_kill_leftovers(const char *data_dir)
{
    enum { WAIT_STEP_MS = 20, WAIT_STEPS = 500 };
    json_t *state = state_read(data_dir);
    json_t *service;
    const char *name;
    int count = 0;

    json_object_foreach(json_object_get(state, "services"), name, service)
    {
        pid_t pid = (pid_t)json_integer_value(json_object_get(service, "pid"));

        if (!process_lives(service))
            continue;
        /* PostgreSQL's children go only when the postmaster tells them. */
        (void)kill(pid, strcmp(name, "postgres") == 0 ? SIGQUIT : SIGKILL);
        count++;
        for (int i = 0; i < WAIT_STEPS && process_lives(service); i++)
            (void)poll(NULL, 0, WAIT_STEP_MS);
    }
    json_decref(state);
    return count;
}
