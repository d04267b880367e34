/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The loop of `headrace dev`. One turn: take signals, take a request from the socket, reap
 * children, move each service one step, maybe move the stop one step; then wait for the next of
 * these, at most 20 ms while something is on its way.
 *
 * A child that dies before it is ready is a failed start; when its log says that an address was
 * in use it is tried again on another port. One that dies later is a death: what happens then is
 * dev->on_death. Either way its last log lines are printed with what ended it.
 *
 * Ctrl-C or SIGTERM stops in reverse; a second one kills. The exit code is 0 after an asked-for
 * stop, 2 when something could not start, 3 when something died.
 */

#include <errno.h>
#include <jansson.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "cli/dev.h"
#include "cli/dev_files.h"
#include "cli/dev_roles.h"

enum {
    TURN_MS = 20,
    TAIL_LINES = 12,
    RESTART_WAIT_MS = 500,
    LINGER_WAIT_MS = 250,
    LINGER_TRIES = 80
};

static const char *const state_names[] = {
    [DEV_STATE_ABSENT] = "absent",       [DEV_STATE_DOWN] = "down",
    [DEV_STATE_PREPARING] = "preparing", [DEV_STATE_STARTING] = "starting",
    [DEV_STATE_READY] = "ready",         [DEV_STATE_STOPPING] = "stopping",
};

const char *dev_state_name(const struct dev_service *service)
{
    return service->given ? "given" : state_names[service->state];
}

struct dev_service *dev_service_find(struct dev *dev, const char *name)
{
    for (size_t i = 0; i < dev->service_count; i++)
        if (strcmp(dev->services[i].kind->name, name) == 0)
            return &dev->services[i];
    return NULL;
}

const char *dev_service_url(struct dev *dev, const char *name)
{
    const struct dev_service *service = dev_service_find(dev, name);

    return service == NULL || service->url == NULL ? "" : service->url;
}

/* --- what people and programs see ----------------------------------------------------------- */

void dev_print(struct dev *dev, const char *event, const struct dev_service *service,
               const char *fmt, ...)
{
    OWNED(mem_free) char *text = NULL;
    const char *name = service == NULL ? "dev" : service->kind->name;
    va_list args;

    va_start(args, fmt);
    if (vasprintf(&text, fmt, args) < 0)
        text = NULL;
    va_end(args);
    if (dev->json) {
        json_t *line = json_pack("{s:s, s:s, s:s, s:I}", "event", event, "service", name, "text",
                                 text == NULL ? "" : text, "after_ms",
                                 (json_int_t)(clock_mono_ms() - dev->started_ms));
        char *out = json_dumps(line, JSON_COMPACT);

        (void)printf("%s\n", out == NULL ? "{}" : out);
        free(out);
        json_decref(line);
    } else {
        (void)printf("%-9s %s\n", name, text == NULL ? "" : text);
    }
    (void)fflush(stdout);
}

/* What it called an error first: the last lines may be nothing but an orderly end. */
static void log_tail_print(struct dev *dev, const struct dev_service *service)
{
    static const char *const words[] = {" ERROR ", " FATAL ", "ERROR: ", "FATAL: ", NULL};
    OWNED(mem_free)
    char *errors = dev_file_lines_with(service->log_path, service->log_start, words, TAIL_LINES,
                                       "          | ");
    OWNED(mem_free) char *tail = dev_file_tail(service->log_path, TAIL_LINES, "          | ");

    if (*errors != '\0')
        (void)fprintf(dev->json ? stderr : stdout, "          errors in %s:\n%s", service->log_path,
                      errors);
    if (*tail != '\0')
        (void)fprintf(dev->json ? stderr : stdout, "          last lines of %s:\n%s",
                      service->log_path, tail);
    (void)fflush(stdout);
}

static void state_set(struct dev *dev, struct dev_service *service, enum dev_state state)
{
    struct err err;

    service->state = state;
    service->since_ms = clock_mono_ms();
    if (dev_state_save(dev, &err) < 0)
        dev_print(dev, "warning", NULL, "%s", err.text);
}

/* --- starting -------------------------------------------------------------------------------- */

static void dev_fail(struct dev *dev, const struct dev_service *service, int exit_code,
                     const char *text)
{
    dev_print(dev, "failed", service, "%s", text);
    if (dev->exit_code == 0)
        dev->exit_code = exit_code;
    dev->stopping = true;
}

static void service_fail(struct dev *dev, struct dev_service *service, const char *text)
{
    if (service->process.pid != 0) {
        service->stop_asked = true;
        dev_service_stop(dev, service, SIGKILL);
    } else {
        state_set(dev, service, DEV_STATE_DOWN);
    }
    dev_fail(dev, service, 2, text);
}

/* Starts the given command line as the service's process. */
static void service_spawn(struct dev *dev, struct dev_service *service, struct dev_command *command,
                          enum dev_state state)
{
    struct dev_spawn spawn = {
        .program = command->program,
        .argv = command->argv,
        .env = command->env,
        .log_path = service->log_path,
        .directory = service->directory,
        .identity = command->identity,
        .uid = command->uid,
        .gid = command->gid,
        .death_signal = command->death_signal,
    };
    struct err err;

    service->stop_asked = false;
    service->killed = false;
    service->log_start = dev_file_size(service->log_path);
    if (dev_process_start(&service->process, &spawn, &err) < 0)
        service_fail(dev, service, err.text);
    else
        state_set(dev, service, state);
}

static void service_launch(struct dev *dev, struct dev_service *service)
{
    OWNED(dev_command_done) struct dev_command command = {.program = NULL};
    struct err err;

    if (service->kind->command == NULL) /* runs inside this process */
        state_set(dev, service, DEV_STATE_STARTING);
    else if (service->kind->command(dev, service, &command, &err) < 0)
        service_fail(dev, service, err.text);
    else
        service_spawn(dev, service, &command, DEV_STATE_STARTING);
}

void dev_service_start(struct dev *dev, struct dev_service *service)
{
    OWNED(dev_command_done) struct dev_command command = {.program = NULL};
    struct err err;
    int code = 0;

    service->ready_after_ms = 0;
    service->restart_at_ms = 0;
    if (service->given) {
        state_set(dev, service, DEV_STATE_STARTING);
        return;
    }
    if (service->kind->prepare != NULL)
        code = service->kind->prepare(dev, service, &command, &err);
    if (code < 0)
        service_fail(dev, service, err.text);
    else if (code > 0)
        service_spawn(dev, service, &command, DEV_STATE_PREPARING);
    else
        service_launch(dev, service);
}

/* True when every wanted service below this level is ready. */
static bool level_is_open(struct dev *dev, enum dev_level level)
{
    for (size_t i = 0; i < dev->service_count; i++) {
        const struct dev_service *service = &dev->services[i];

        if (service->kind->level < level && service->state != DEV_STATE_ABSENT &&
            service->state != DEV_STATE_READY)
            return false;
    }
    return true;
}

static void service_probe(struct dev *dev, struct dev_service *service)
{
    uint64_t waited_ms = clock_mono_ms() - service->since_ms;
    struct err err = {.code = 0};
    int code = service->kind->probe == NULL ? 0 : service->kind->probe(dev, service, &err);

    if (code > 0) {
        service->ready_after_ms = clock_mono_ms() - dev->started_ms;
        if (service->kind->forget != NULL)
            service->kind->forget(service);
        state_set(dev, service, DEV_STATE_READY);
        dev_print(dev, "ready", service, "%s", service->url == NULL ? "" : service->url);
    } else if (code < 0) {
        service_fail(dev, service, err.text);
        log_tail_print(dev, service);
    } else if (waited_ms > service->kind->ready_wait_ms) {
        service_fail(dev, service, *err.text != '\0' ? err.text : "did not answer in time");
        log_tail_print(dev, service);
    }
}

/* --- ends ------------------------------------------------------------------------------------ */

/* True when the last start failed because somebody took the port in between: another is chosen. */
static bool port_was_taken(struct dev *dev, struct dev_service *service)
{
    static const char *const words[] = {"address already in use", "failed to bind", NULL};
    OWNED(mem_free)
    char *said = dev_file_lines_with(service->log_path, service->log_start, words, 1, "");
    struct err err;

    if (service->tries + 1 >= DEV_START_TRIES || *said == '\0')
        return false;
    service->tries++;
    for (int i = 0; i < service->kind->port_count; i++)
        if (dev_port_pick(0, &service->ports[i], &err) < 0)
            return false;
    dev_print(dev, "retry", service, "its port was taken; trying on %u", service->ports[0]);
    return true;
}

/* True when Postgres was killed a moment ago and its children still hold the shared memory: they
 * notice by themselves, and the next start finds it free. Bounded by LINGER_TRIES. */
static bool children_linger(struct dev *dev, struct dev_service *service)
{
    OWNED(mem_free) char *tail = dev_file_tail(service->log_path, TAIL_LINES, "");

    if (service->lingers >= LINGER_TRIES ||
        strstr(tail, "pre-existing shared memory block") == NULL)
        return false;
    service->lingers++;
    service->restart_at_ms = clock_mono_ms() + LINGER_WAIT_MS;
    if (service->lingers == 1)
        dev_print(dev, "retry", service, "children of the one that was killed still end");
    return true;
}

static void prepare_ended(struct dev *dev, struct dev_service *service, const char *how)
{
    bool succeeded = service->process.wait_code == CLD_EXITED && service->process.wait_status == 0;
    struct err err;

    if (!succeeded) {
        service_fail(dev, service, how);
        log_tail_print(dev, service);
    } else if (service->kind->prepared != NULL && service->kind->prepared(dev, service, &err) < 0) {
        service_fail(dev, service, err.text);
    } else {
        service_launch(dev, service);
    }
}

static void service_died(struct dev *dev, struct dev_service *service, const char *how)
{
    bool was_ready = service->state == DEV_STATE_READY;

    state_set(dev, service, DEV_STATE_DOWN);
    if (!was_ready && port_was_taken(dev, service)) {
        dev_service_start(dev, service);
        return;
    }
    if (!was_ready && children_linger(dev, service))
        return;
    dev_print(dev, "died", service, "%s", how);
    log_tail_print(dev, service);
    if (was_ready && dev->on_death == DEV_ON_DEATH_KEEP)
        return;
    if (was_ready && dev->on_death == DEV_ON_DEATH_RESTART) {
        service->restart_at_ms = clock_mono_ms() + RESTART_WAIT_MS;
        return;
    }
    dev->exit_code = dev->exit_code == 0 ? (was_ready ? 3 : 2) : dev->exit_code;
    dev->stopping = true;
}

static void service_ended(struct dev *dev, struct dev_service *service)
{
    char how[96];

    dev_process_describe_end(&service->process, how, sizeof(how));
    if (service->kind->forget != NULL)
        service->kind->forget(service);
    if (dev->stopping || service->stop_asked || service->state == DEV_STATE_STOPPING) {
        state_set(dev, service, DEV_STATE_DOWN);
        dev_print(dev, "stopped", service, "%s", how);
    } else if (service->state == DEV_STATE_PREPARING) {
        prepare_ended(dev, service, how);
    } else if (service->kind->level == DEV_LEVEL_ONCE && strcmp(how, "exited with code 0") == 0) {
        state_set(dev, service, DEV_STATE_READY);
        dev_print(dev, "ready", service, "done");
    } else {
        service_died(dev, service, how);
    }
}

/* --- stopping -------------------------------------------------------------------------------- */

void dev_service_stop(struct dev *dev, struct dev_service *service, int signal_number)
{
    dev_process_signal(&service->process, signal_number);
    state_set(dev, service, DEV_STATE_STOPPING);
}

static void service_stop_step(struct dev *dev, struct dev_service *service)
{
    if (service->state != DEV_STATE_STOPPING) {
        dev_service_stop(dev, service, service->kind->stop_signal);
    } else if (!service->killed && (dev->stop_hard || clock_mono_ms() - service->since_ms >
                                                          service->kind->stop_wait_ms)) {
        dev_print(dev, "killed", service, "did not stop in time: killed");
        service->killed = true;
        dev_service_stop(dev, service, SIGKILL);
    }
}

/* Roles one by one from the end of the table, then the servers together. True when all are down. */
static bool stop_step(struct dev *dev)
{
    bool all_down = true;

    for (size_t i = dev->service_count; i > 0; i--) {
        struct dev_service *service = &dev->services[i - 1];

        if (service->process.pid == 0)
            continue;
        all_down = false;
        service_stop_step(dev, service);
        if (service->kind->level != DEV_LEVEL_SERVER && !dev->stop_hard)
            return false;
    }
    return all_down;
}

/* --- the loop -------------------------------------------------------------------------------- */

static void addresses_announce(struct dev *dev)
{
    const struct dev_service *gateway = dev_service_find(dev, "gateway");
    struct err err;

    for (size_t i = 0; i < dev->service_count; i++)
        if (dev->services[i].state != DEV_STATE_READY && dev->services[i].state != DEV_STATE_ABSENT)
            return;
    if (gateway != NULL && gateway->state == DEV_STATE_READY && dev_introduce(dev, &err) < 0) {
        dev_fail(dev, NULL, 2, err.text);
        return;
    }
    dev->announced = true;
    if (dev_state_save(dev, &err) < 0)
        dev_print(dev, "warning", NULL, "%s", err.text);
    if (dev->json) {
        OWNED(mem_free) char *state = dev_state_to_json(dev);

        (void)printf("%s\n", state);
        (void)fflush(stdout);
        return;
    }
    if (dev->key != NULL)
        dev_print(dev, "key", NULL, "API key %s, also in %s/client.json", dev->key, dev->data_dir);
    dev_print(dev, "all_ready", NULL, "ready after %.1f s; Ctrl-C stops it; data and logs in %s",
              (double)(clock_mono_ms() - dev->started_ms) / 1000.0, dev->data_dir);
}

/* At the start: as soon as what it needs is ready. Later: when its restart is due. */
static bool service_is_due(struct dev *dev, const struct dev_service *service)
{
    if (service->restart_at_ms != 0)
        return clock_mono_ms() >= service->restart_at_ms;
    return !dev->announced && level_is_open(dev, service->kind->level);
}

static void services_step(struct dev *dev)
{
    for (size_t i = 0; i < dev->service_count && !dev->stopping; i++) {
        struct dev_service *service = &dev->services[i];

        if (service->state == DEV_STATE_DOWN && service_is_due(dev, service))
            dev_service_start(dev, service);
        else if (service->state == DEV_STATE_STARTING)
            service_probe(dev, service);
    }
    if (!dev->announced && !dev->stopping)
        addresses_announce(dev);
}

static void signals_take(struct dev *dev)
{
    struct signalfd_siginfo info;

    while (read(dev->signal_fd, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
        if (dev->stopping)
            dev->stop_hard = true;
        else
            dev_print(dev, "stopping", NULL, "stopping; once more kills");
        dev->stopping = true;
    }
}

/* Waits for the next thing to do: at once while services are on their way, else for an event. */
static void events_wait(struct dev *dev)
{
    struct pollfd fds[DEV_SERVICE_COUNT_MAX + 2];
    bool moving = dev->stopping;
    nfds_t count = 0;

    fds[count++] = (struct pollfd){.fd = dev->signal_fd, .events = POLLIN};
    fds[count++] = (struct pollfd){.fd = dev->control_fd, .events = POLLIN};
    for (size_t i = 0; i < dev->service_count; i++) {
        const struct dev_service *service = &dev->services[i];

        if (service->process.pid != 0)
            fds[count++] = (struct pollfd){.fd = service->process.pidfd, .events = POLLIN};
        moving = moving || service->restart_at_ms != 0 || service->state == DEV_STATE_STARTING ||
                 service->state == DEV_STATE_PREPARING || service->state == DEV_STATE_STOPPING;
    }
    (void)poll(fds, count, moving ? TURN_MS : -1);
    if (fds[1].revents != 0)
        dev_control_serve(dev);
}

/* A service told to stop by a request is killed when it does not; dev's own stop does the same. */
static void overdue_kill(struct dev *dev)
{
    for (size_t i = 0; i < dev->service_count; i++)
        if (dev->services[i].state == DEV_STATE_STOPPING && dev->services[i].process.pid != 0)
            service_stop_step(dev, &dev->services[i]);
}

int dev_run(struct dev *dev, struct err *err)
{
    bool all_down = false;
    sigset_t signals;

    (void)sigemptyset(&signals);
    (void)sigaddset(&signals, SIGINT);
    (void)sigaddset(&signals, SIGTERM);
    (void)sigaddset(&signals, SIGHUP);
    (void)sigprocmask(SIG_BLOCK, &signals, NULL);
    dev->signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
    if (dev->signal_fd < 0)
        return err_set_errno(err, ERR_IO, "signalfd");
    services_step(dev);
    while (!all_down) {
        events_wait(dev);
        signals_take(dev);
        for (size_t i = 0; i < dev->service_count; i++)
            if (dev_process_reap(&dev->services[i].process))
                service_ended(dev, &dev->services[i]);
        services_step(dev);
        if (dev->stopping)
            all_down = stop_step(dev);
        else
            overdue_kill(dev);
    }
    (void)close(dev->signal_fd);
    return dev->exit_code;
}
