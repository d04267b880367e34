/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The user's server as a process: started, watched, probed, stopped.
 *
 * It leads a process group of its own and runs under `headrace confine` (workers/confine.h), which
 * also sees to what is left when it or we end. A port is tried first and then held, so that
 * somebody else's server on it is never taken for this one.
 *
 * Readiness is asked for until the server is ready, then every probe_ms, readiness and liveness in
 * turn. A probe that the server does not answer within its time counts as a failure.
 */

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/log.h"
#include "schema/truss_config.h"
#include "workers/container.h"
#include "workers/host_server_int.h"
#include "workers/secret_files.h"

#define CHECKPOINTS_VARIABLE "BT_TRAINING_CHECKPOINTS_DIR"
#define PORT_TRIES 100
#define FIRST_PROBE_MS 20
#define SOON_MS 2000 /* after its start a server is asked more often */
#define SOON_PROBE_MS 50
#define START_PROBE_MS 250
#define PROBE_TIMEOUT_MS 5000
#define PROGRESS_MS 5000
#define SHELL_NOT_RUN 126 /* and 127: sh found no such command */
#define CONTAINER_NOT_RUN 125
#define ENV_MAX (SERVER_ENV_MAX + 512)
#define RUN_ARGS_MAX 16

/* ---- ports ---- */

/* A socket on this port of every address; its number in *ret_port. Negative errno when taken. */
static int port_try(uint32_t port, uint32_t *ret_port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    socklen_t size = sizeof(address);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1, r = 0;

    if (fd < 0)
        return -errno;
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    if (bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(fd, 1) < 0 ||
        getsockname(fd, (struct sockaddr *)&address, &size) < 0)
        r = -errno;
    (void)close(fd);
    *ret_port = ntohs(address.sin_port);
    return r;
}

/* Servers that listen on "localhost" may have taken it for IPv6 alone, and we ask both. */
static bool port_is_taken_v6(uint32_t port)
{
    struct sockaddr_in6 address = {.sin6_family = AF_INET6,
                                   .sin6_port = htons((uint16_t)port),
                                   .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    bool taken;

    if (fd < 0)
        return false; /* no IPv6 here */
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
    taken = bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 && errno == EADDRINUSE;
    (void)close(fd);
    return taken;
}

/* Keeps other hosts of this network off the port from now on, also while no server listens on it
 * yet: else two that load would share it, and the first to listen would answer for both. It is the
 * name of an abstract socket, which ends with us. */
static int port_hold(uint32_t port, int *ret_fd)
{
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), size, r;

    if (fd < 0)
        return -errno;
    size = snprintf(name.sun_path + 1, sizeof(name.sun_path) - 1, "headrace-port-%u", port);
    r = bind(fd, (struct sockaddr *)&name,
             (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)size));
    if (r < 0) {
        r = -errno;
        (void)close(fd);
        return r;
    }
    *ret_fd = fd;
    return 0;
}

static int port_take(struct host_server *server, uint32_t asked)
{
    int r = port_try(asked, &server->port);

    if (r == 0 && port_is_taken_v6(server->port))
        r = -EADDRINUSE;
    return r < 0 ? r : port_hold(server->port, &server->port_fd);
}

static int port_find(struct host_server *server, struct err *err)
{
    uint32_t asked = server->config.image == NULL ? server->config.port : 0;
    int r = port_take(server, asked);

    for (int i = 0; i < PORT_TRIES && r == -EADDRINUSE && asked == 0; i++)
        r = port_take(server, asked);

    if (r == -EADDRINUSE)
        return err_set(err, ERR_UNAVAILABLE, "server_port %u is taken by another process", asked);
    if (r == -EACCES)
        return err_set(err, ERR_FORBIDDEN, "server_port %u may not be used by a plain user", asked);
    if (r < 0)
        return err_set(err, ERR_UNAVAILABLE, "try port %u: %s", asked, strerror(-r));
    return 0;
}

/* ---- command line ---- */

struct run {
    char *args[RUN_ARGS_MAX];
    char *env[ENV_MAX];
    size_t arg_count, env_count;
    char *port_env, *secrets_env, *checkpoints_env;
    struct container_words container; /* in place of args */
};

static void run_done(struct run *run)
{
    for (size_t i = 0; i < run->arg_count; i++)
        free(run->args[i]);
    free(run->port_env);
    free(run->secrets_env);
    free(run->checkpoints_env);
    container_words_done(&run->container);
}

static void run_add(struct run *run, char *arg)
{
    run->args[run->arg_count++] = arg;
}

/* What the server gets beyond our own confinement: it may not connect where we must. */
static void run_confine(const struct host_server *server, struct run *run)
{
    bool out = server->config.network_out;
    const char *network = out                                   ? "--network=out"
                          : server->isolation == CONFINE_STRICT ? "--network=host" /* our own */
                                                                : "--network=none";

    if (server->isolation == CONFINE_OFF) {
        run_add(run, xstrdup("--level=off"));
        return;
    }
    run_add(run, xstrdup("--inner"));
    run_add(run, xstrdup("--processes=0")); /* as they are */
    run_add(run, xstrdup(network));
    run_add(run, xasprintf("--own-ports=0,%u", server->port));
    if (server->isolation == CONFINE_BASIC)
        run_add(run, xstrdup("--local=false"));
}

/* As a plain process: the shell is replaced by the command where it is a simple one. */
static void run_plain(const struct host_server *server, struct run *run)
{
    run_add(run, xstrdup("headrace"));
    run_add(run, xstrdup("confine"));
    run_confine(server, run);
    run_add(run, xstrdup("--"));
    run_add(run, xstrdup("/bin/sh"));
    run_add(run, xstrdup("-c"));
    run_add(run, server_config_command(&server->config, server->port));
}

/* By Docker or Podman, which publish the server's port on a port of ours. */
static int run_container(const struct host_server *server, struct run *run, struct err *err)
{
    const struct server_config *config = &server->config;
    OWNED(container_tool_done) struct container_tool tool;
    OWNED(mem_free)
    char *command = config->start_command == NULL ? NULL
                                                  : server_config_command(config, config->port);
    OWNED(mem_free) char *port = xasprintf("PORT=%u", config->port);
    OWNED(mem_free)
    char *publish = xasprintf("127.0.0.1:%u:%u", server->port, config->port);
    OWNED(mem_free)
    char *name = container_name_of(CONTAINER_OF_SERVER, getppid());
    OWNED(mem_free) char *user = xasprintf("%u", config->run_as_user_id);
    OWNED(mem_free) char *files = xasprintf("%s/" TRUSS_CHECKPOINTS_FOLDER, server->dir);
    OWNED(mem_free)
    char *place = config->checkpoint_folder == NULL
                      ? NULL
                      : xasprintf(CHECKPOINTS_VARIABLE "=%s", config->checkpoint_folder);
    const char *const words[] = {"/bin/sh", "-c", command, NULL};
    struct container_mount mounts[3];
    const char *env[SERVER_ENV_MAX + 3];
    struct container_run container = {.tool = &tool,
                                      .image = config->image,
                                      .name = name,
                                      .user = config->run_as_user_id == 0 ? NULL : user,
                                      .publish = publish,
                                      .init = true,
                                      .mounts = mounts,
                                      .env = env,
                                      .command = command == NULL ? NULL : words};

    container_find(&tool);
    if (tool.program == NULL)
        return err_set(err, ERR_UNSUPPORTED,
                       "image '%.100s' needs docker, whose daemon answers, or podman, and neither "
                       "is here",
                       config->image);
    env[container.env_count++] = port;
    for (size_t i = 0; config->env[i] != NULL; i++)
        env[container.env_count++] = config->env[i];
    if (place != NULL) {
        mounts[container.mount_count++] = (struct container_mount){files, config->checkpoint_folder,
                                                                   true};
        env[container.env_count++] = place;
    }
    if (server->dir[0] != '\0')
        mounts[container.mount_count++] = (struct container_mount){server->dir, "/app", true};
    if (server->secrets_folder != NULL) {
        mounts[container.mount_count++] = (struct container_mount){server->secrets_folder,
                                                                   "/secrets", true};
        env[container.env_count++] = SECRET_FILES_VARIABLE "=/secrets";
    }
    return container_run_words(&container, &run->container, err);
}

/* Where files of training jobs are: in a sandbox where the deployment wants them, else only with
 * the model. NULL: it has none; the caller frees. */
static char *checkpoints_variable(const struct host_server *server)
{
    const char *place = server->config.checkpoint_folder;

    if (place == NULL)
        return NULL;
    if (server->isolation == CONFINE_STRICT)
        return xasprintf(CHECKPOINTS_VARIABLE "=%s", place);
    log_warn("checkpoints_elsewhere", LOG_STR("wanted", place), LOG_STR("dir", server->dir));
    return xasprintf(CHECKPOINTS_VARIABLE "=%s/" TRUSS_CHECKPOINTS_FOLDER, server->dir);
}

/* Ours, with what the deployment says in front: the first of a name counts. */
static void run_env(const struct host_server *server, struct run *run)
{
    run->port_env = xasprintf("PORT=%u", server->port);
    run->env[run->env_count++] = run->port_env;
    if (server->secrets_folder != NULL) {
        run->secrets_env = xasprintf(SECRET_FILES_VARIABLE "=%s", server->secrets_folder);
        run->env[run->env_count++] = run->secrets_env;
    }
    run->checkpoints_env = checkpoints_variable(server);
    if (run->checkpoints_env != NULL)
        run->env[run->env_count++] = run->checkpoints_env;
    for (size_t i = 0; server->config.env[i] != NULL; i++)
        run->env[run->env_count++] = server->config.env[i];
    for (char **at = environ; *at != NULL && run->env_count < ENV_MAX - 1; at++) {
        size_t name_size = strcspn(*at, "=") + 1;
        bool known = strncmp(*at, "HEADRACE_", 9) == 0;

        for (size_t i = 0; i < run->env_count && !known; i++)
            known = strncmp(run->env[i], *at, name_size) == 0;
        if (!known)
            run->env[run->env_count++] = *at;
    }
}

/* ---- start ---- */

static void server_on_ended(void *opaque, const struct child_end *end);

static int server_spawn(struct host_server *server, struct err *err)
{
    OWNED(run_done) struct run run = {0};
    struct child_spawn spawn = {.extra_fd = -1, .new_group = true};
    int fds[2], r = 0;

    if (server->config.image == NULL)
        run_plain(server, &run);
    else
        r = run_container(server, &run, err);
    if (r < 0)
        return r;
    run_env(server, &run);
    if (pipe2(fds, O_CLOEXEC) < 0)
        return err_set_errno(err, ERR_IO, "make a pipe");
    spawn.path = "/proc/self/exe";
    spawn.argv = server->config.image == NULL ? run.args : run.container.words;
    spawn.env = run.env;
    spawn.stdout_fd = spawn.stderr_fd = fds[1];
    r = child_start(server->loop, &spawn, server_on_ended, server, &server->child, err);
    (void)close(fds[1]);
    if (r < 0) {
        (void)close(fds[0]);
        return r;
    }
    return server_log_open(server->loop, fds[0], &server->log, err);
}

static void server_on_probe_time(void *opaque);
static void server_on_stop_time(void *opaque);

void host_server_start(struct host_server *server)
{
    struct err err;
    int r;

    server->state = HOST_SERVER_STARTING;
    server->probe_timer = loop_timer_new(server->loop, server_on_probe_time, server);
    server->stop_timer = loop_timer_new(server->loop, server_on_stop_time, server);
    server->started_ms = server->told_ms = loop_now_ms(server->loop);
    if (server->dir[0] != '\0' && server->config.image == NULL && chdir(server->dir) < 0)
        r = err_set_errno(&err, ERR_NOT_FOUND, "enter %s", server->dir);
    else
        r = port_find(server, &err);
    if (r == 0)
        r = server_spawn(server, &err);
    if (r < 0) {
        host_server_end(server, 2, ERROR_CLASS_MODEL_UNAVAILABLE, err_class(r) == ERR_CLASS_REJECT,
                        err.text);
        return;
    }
    log_info("server_started", LOG_STR("model", server->model),
             LOG_I64("pid", child_pid(server->child)), LOG_U64("port", server->port));
    loop_timer_start(server->probe_timer, FIRST_PROBE_MS, 0);
}

/* ---- health ---- */

bool host_server_is_unready(const struct host_server *server)
{
    return server->unready_ms != 0;
}

bool host_server_wants_no_traffic(const struct host_server *server)
{
    return server->unready_ms != 0 &&
           loop_now_ms(server->loop) - server->unready_ms >= server->config.stop_traffic_ms;
}

static void server_is_ready(struct host_server *server)
{
    struct frame_ready ready = {.engine = WIRE_TEXT_OF("server"),
                                .version = WIRE_TEXT_OF(HEADRACE_VERSION),
                                .task = WIRE_TEXT_OF("http")};
    OWNED(mem_free)
    char *detail = xasprintf("port %u, %u at once, ready after %.1f s, isolation %s", server->port,
                             server->slot_count,
                             (double)(loop_now_ms(server->loop) - server->started_ms) / 1000,
                             confine_level_name(server->isolation));

    server->state = HOST_SERVER_SERVING;
    server->granted = server->slot_count;
    server->unready_ms = server->dead_ms = 0;
    ready.detail = WIRE_TEXT_OF(detail);
    ready.granted = server->granted;
    log_info("server_ready", LOG_STR("model", server->model), LOG_STR("detail", detail));
    host_server_send(server, FRAME_READY, &ready);
}

static void server_not_yet(struct host_server *server)
{
    uint64_t now_ms = loop_now_ms(server->loop), waited_ms = now_ms - server->started_ms;
    OWNED(mem_free) char *why = NULL;

    if (waited_ms >= server->config.startup_ms) {
        why = xasprintf("the server was not ready within %g s: %s",
                        (double)server->config.startup_ms / 1000, server->probe_error);
        host_server_end(server, 2, ERROR_CLASS_MODEL_UNAVAILABLE, false, why);
        return;
    }
    if (now_ms - server->told_ms < PROGRESS_MS)
        return;
    server->told_ms = now_ms;
    log_info("server_not_ready", LOG_U64("waited_s", waited_ms / 1000),
             LOG_U64("of_s", server->config.startup_ms / 1000),
             LOG_STR("error", server->probe_error));
}

static void server_note(struct host_server *server, bool liveness, bool good)
{
    uint64_t now_ms = loop_now_ms(server->loop),
             *since = liveness ? &server->dead_ms : &server->unready_ms;
    OWNED(mem_free) char *why = NULL;

    if (good != (*since == 0))
        log_warn("server_health", LOG_STR("probe", liveness ? "liveness" : "readiness"),
                 LOG_BOOL("good", good), LOG_STR("error", good ? "" : server->probe_error));
    *since = good ? 0 : *since != 0 ? *since : now_ms;
    if (!liveness || good || now_ms - *since < server->config.restart_ms)
        return;
    why = xasprintf("the server was not alive for %g s: %s",
                    (double)server->config.restart_ms / 1000, server->probe_error);
    host_server_end(server, 3, ERROR_CLASS_LOST_WORKER, false, why);
}

static uint64_t server_probe_delay_ms(const struct host_server *server)
{
    if (server->state == HOST_SERVER_SERVING)
        return server->config.probe_ms;
    return loop_now_ms(server->loop) - server->started_ms < SOON_MS ? SOON_PROBE_MS
                                                                    : START_PROBE_MS;
}

static void server_on_probed(const struct http_result *result, void *opaque)
{
    struct host_server *server = opaque;
    bool good = result->outcome == HTTP_OUTCOME_ANSWERED && result->status / 100 == 2;
    bool one_path;

    server->probe = NULL;
    if (result->outcome == HTTP_OUTCOME_CANCELED || server->state >= HOST_SERVER_STOPPING)
        return;
    if (!good && result->outcome == HTTP_OUTCOME_ANSWERED)
        (void)snprintf(server->probe_error, sizeof(server->probe_error), "%s answers %d",
                       server->probes_liveness ? server->config.liveness_endpoint
                                               : server->config.readiness_endpoint,
                       result->status);
    else if (!good)
        mem_copy_text(server->probe_error, result->error);
    if (server->state == HOST_SERVER_STARTING) {
        if (good)
            server_is_ready(server);
        else
            server_not_yet(server);
    } else {
        one_path = strcmp(server->config.liveness_endpoint, server->config.readiness_endpoint) == 0;
        if (!server->probes_liveness || one_path)
            server_note(server, false, good);
        if (server->state == HOST_SERVER_SERVING && (server->probes_liveness || one_path))
            server_note(server, true, good);
        server->probes_liveness = !server->probes_liveness;
    }
    if (server->state == HOST_SERVER_STARTING || server->state == HOST_SERVER_SERVING)
        loop_timer_start(server->probe_timer, server_probe_delay_ms(server), 0);
}

static void server_on_probe_time(void *opaque)
{
    struct host_server *server = opaque;
    OWNED(mem_free)
    char *url = xasprintf("http://localhost:%u%s", server->port,
                          server->probes_liveness ? server->config.liveness_endpoint
                                                  : server->config.readiness_endpoint);
    struct http_send send = {
        .url = url, .timeout_ms = PROBE_TIMEOUT_MS, .on_done = server_on_probed, .opaque = server};
    struct err err;

    if (http_client_send(server->probes, &send, &server->probe, &err) < 0)
        host_server_end(server, 2, ERROR_CLASS_MODEL_UNAVAILABLE, true, err.text);
}

/* ---- the end ---- */

static void server_on_ended(void *opaque, const struct child_end *end)
{
    struct host_server *server = opaque;
    OWNED(mem_free) char *why = NULL;
    uint64_t lived_ms = loop_now_ms(server->loop) - server->started_ms;
    bool no_container;

    log_info("server_ended", LOG_STR("how", end->text), LOG_U64("lived_ms", lived_ms));
    if (server->state == HOST_SERVER_STOPPING) {
        host_server_end(server, 0, ERROR_CLASS_NONE, false, "drained");
        return;
    }
    no_container = server->config.image != NULL && end->exit_code == CONTAINER_NOT_RUN;
    if (no_container)
        why = xasprintf("no container of image '%.200s' could be started", server->config.image);
    else
        why = xasprintf("the server %s%s", end->text,
                        server->state == HOST_SERVER_STARTING ? " before it was ready" : "");
    if (server->state == HOST_SERVER_STARTING)
        host_server_end(server, 2, ERROR_CLASS_MODEL_UNAVAILABLE,
                        no_container || end->exit_code == SHELL_NOT_RUN ||
                            end->exit_code == SHELL_NOT_RUN + 1,
                        why);
    else
        host_server_end(server, 3, ERROR_CLASS_LOST_WORKER, false, why);
}

void host_server_killed(struct host_server *server)
{
    if (server->child != NULL)
        confine_end(server->child);
}

void host_server_stop(struct host_server *server)
{
    if (server->state >= HOST_SERVER_STOPPING)
        return;
    server->state = HOST_SERVER_STOPPING;
    if (server->child == NULL) {
        host_server_end(server, 0, ERROR_CLASS_NONE, false, "drained");
        return;
    }
    loop_timer_stop(server->probe_timer);
    child_signal(server->child, SIGTERM);
    loop_timer_start(server->stop_timer, server->config.stop_ms, 0);
}

static void server_on_stop_time(void *opaque)
{
    struct host_server *server = opaque;

    log_warn("server_disobeys", LOG_U64("stop_ms", server->config.stop_ms));
    host_server_killed(server);
}
