/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Redis with its append-only file on, so that a restart finds what was written.
 *
 * Debian's package redis-tools holds the whole server under the name redis-check-rdb: the
 * program looks at argv[0]. So no package that starts a service is needed.
 */

#include <hiredis/hiredis.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>

#include "cli/dev.h"
#include "cli/dev_files.h"

enum { PROBE_MS = 500 };

static int redis_command(struct dev *dev, struct dev_service *service, struct dev_command *command,
                         struct err *err)
{
    static const char *const extra[] = {"/usr/bin", "/usr/sbin", "/usr/local/bin", NULL};

    command->program = dev_program_find("redis-server", extra);
    if (command->program == NULL)
        command->program = dev_program_find("redis-check-rdb", extra);
    if (command->program == NULL)
        return err_set(err, ERR_DEPENDENCY,
                       "neither redis-server nor redis-check-rdb is in PATH; "
                       "Debian's package redis-tools has it");
    dev_command_set_server_env(dev, command);
    command->death_signal = SIGKILL;
    dev_command_arg(command, "redis-server");
    dev_command_arg(command, "--bind");
    dev_command_arg(command, "127.0.0.1");
    dev_command_arg(command, "--port");
    dev_command_arg(command, "%u", service->ports[0]);
    dev_command_arg(command, "--dir");
    dev_command_arg(command, "%s", service->directory);
    dev_command_arg(command, "--appendonly");
    dev_command_arg(command, "yes");
    dev_command_arg(command, "--save");
    dev_command_arg(command, "%s", "");
    dev_command_arg(command, "--daemonize");
    dev_command_arg(command, "no");
    return 0;
}

/* The number behind "process_id:" of INFO's answer; 0 when there is none. */
static pid_t info_process_id(const redisReply *reply)
{
    const char *at = reply->type == REDIS_REPLY_STRING ? strstr(reply->str, "process_id:") : NULL;

    return at == NULL ? 0 : (pid_t)strtol(at + strlen("process_id:"), NULL, 10);
}

/* 1 when the server answers (and is our child); 0 while it does not or still loads its file. */
static int redis_ask(const char *host, int port, pid_t expected_pid, struct err *err)
{
    const struct timeval wait = {.tv_usec = PROBE_MS * 1000L};
    redisContext *client = redisConnectWithTimeout(host, port, wait);
    redisReply *reply = NULL;
    int ready = 0;

    if (client != NULL && client->err == 0) {
        (void)redisSetTimeout(client, wait);
        reply = redisCommand(client, "PING");
        ready = reply != NULL && reply->type == REDIS_REPLY_STATUS ? 1 : 0;
        if (reply != NULL)
            freeReplyObject(reply);
    }
    if (ready == 1 && expected_pid != 0) {
        reply = redisCommand(client, "INFO server");
        if (reply == NULL || info_process_id(reply) != expected_pid)
            ready = err_set(err, ERR_DEPENDENCY, "the Redis on port %d is not ours", port);
        if (reply != NULL)
            freeReplyObject(reply);
    }
    if (client != NULL)
        redisFree(client);
    return ready;
}

/* redis://HOST:PORT[/DB]. TLS is named, because the client library of Debian 12 has none. */
static int redis_ask_given(const char *url, struct err *err)
{
    char host[256];
    const char *colon;

    if (strncmp(url, "rediss://", 9) == 0)
        return err_set(err, ERR_UNSUPPORTED,
                       "'%s': hiredis here has no TLS; use a local stunnel and redis://", url);
    if (strncmp(url, "redis://", 8) != 0 || (colon = strchr(url + 8, ':')) == NULL ||
        (size_t)(colon - url - 8) >= sizeof(host))
        return err_set(err, ERR_USAGE, "'%s': a Redis URL is redis://HOST:PORT", url);
    (void)snprintf(host, sizeof(host), "%.*s", (int)(colon - url - 8), url + 8);
    return redis_ask(host, (int)strtol(colon + 1, NULL, 10), 0, err);
}

static int redis_probe(struct dev *dev, struct dev_service *service, struct err *err)
{
    (void)dev;
    if (service->given)
        return redis_ask_given(service->url, err);
    mem_free(&service->url);
    service->url = xasprintf("redis://127.0.0.1:%u", service->ports[0]);
    if (!dev_port_answers(service->ports[0]))
        return 0;
    return redis_ask("127.0.0.1", service->ports[0], service->process.pid, err);
}

const struct dev_kind dev_redis = {
    .name = "redis",
    .level = DEV_LEVEL_SERVER,
    .port_count = 1,
    .stop_signal = SIGTERM,
    .ready_wait_ms = 30000,
    .stop_wait_ms = 10000,
    .command = redis_command,
    .probe = redis_probe,
};
