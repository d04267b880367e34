/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The roles' table. Each is this same binary with its name as subcommand and the addresses of
 * the servers in its environment; it is ready when its /readyz says 200. A role that this binary
 * does not have is not in the table.
 *
 * What the caller has in his environment reaches the roles too (HEADRACE_LEASE=…), except for
 * the addresses and files that are dev's to choose.
 */

#include "cli/dev_roles.h"

#include <netinet/in.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/seal.h"
#include "cli/dev_files.h"

enum { PROBE_SECONDS = 2, ANSWER_SIZE = 256, EXTRA_COUNT_MAX = 4 };

/* Settings of one role that differ from those that all get; the values may not vary. */
static const struct role_extra {
    const char *role, *name, *value;
} role_extras[] = {
    {"gateway", "HEADRACE_LOOPBACK_WEBHOOKS", "true"},
    {"gateway", "HEADRACE_LAME_DUCK", "0ms"}, /* nobody balances over one */
    {"webhook", "HEADRACE_ALLOW", "127.0.0.0/8,::1/128"},
    {"webhook", "HEADRACE_INSTANCE", "dev"},
    {"broker", "HEADRACE_INSTANCE", "dev"},
};

static int seal_key_ensure(struct dev *dev, struct err *err)
{
    OWNED(mem_free) char *path = xasprintf("%s/seal.key", dev->data_dir);
    int code = seal_key_make(path, err);

    return code == ERR_CONFLICT ? 0 : code;
}

/* The same for all: no program looks at what it has no setting for. */
static void role_set_env(struct dev *dev, const struct dev_service *service,
                         struct dev_command *command)
{
    const struct dev_service *gateway;

    for (char **variable = environ; *variable != NULL; variable++) {
        const char *equals = strchr(*variable, '=');

        if (equals != NULL && command->env_count < DEV_ENV_COUNT_MAX - DEV_ARG_COUNT_MAX)
            command->env[command->env_count++] = xstrdup(*variable);
    }
    dev_command_set_env(command, "HEADRACE_KAFKA", "%s", dev_service_url(dev, "kafka"));
    dev_command_set_env(command, "HEADRACE_REDIS", "%s", dev_service_url(dev, "redis"));
    dev_command_set_env(command, "HEADRACE_POSTGRES", "%s", dev_service_url(dev, "postgres"));
    if (dev->blobs != NULL)
        dev_command_set_env(command, "HEADRACE_BLOBS", "%s", dev->blobs);
    else
        dev_command_set_env(command, "HEADRACE_BLOBS", "%s/blobs", dev->data_dir);
    dev_command_set_env(command, "HEADRACE_AGENT_DIR", "%s/agent", dev->data_dir);
    dev_command_set_env(command, "HEADRACE_TRAINER", "dev");
    dev_command_set_env(command, "HEADRACE_TRAINER_DIR", "%s/trainer", dev->data_dir);
    gateway = dev_service_find(dev, "gateway");
    if (gateway != NULL)
        dev_command_set_env(command, "HEADRACE_GATEWAY", "http://127.0.0.1:%u", gateway->ports[0]);
    dev_command_set_env(command, "HEADRACE_SEAL_KEY_FILE", "%s/seal.key", dev->data_dir);
    dev_command_set_env(command, "HEADRACE_LISTEN", "127.0.0.1");
    dev_command_set_env(command, "HEADRACE_PORT", "%u", service->ports[0]);
    dev_command_set_env(command, "HEADRACE_JSON", "false");
    for (size_t i = 0; i < COUNT_OF(role_extras); i++)
        if (strcmp(role_extras[i].role, service->kind->name) == 0)
            dev_command_set_env(command, role_extras[i].name, "%s", role_extras[i].value);
}

static int role_command(struct dev *dev, struct dev_service *service, struct dev_command *command,
                        struct err *err)
{
    OWNED(mem_free) char *blobs = xasprintf("%s/blobs", dev->data_dir);
    int code = seal_key_ensure(dev, err);

    if (code < 0 || (code = dev_dir_make(blobs, err)) < 0)
        return code;
    command->program = xstrdup(dev->binary);
    command->death_signal = SIGKILL;
    role_set_env(dev, service, command);
    dev_command_arg(command, "headrace");
    dev_command_arg(command, "%s", service->kind->name);
    return 0;
}

/* 1: the program says 200 to GET /readyz; 0: not yet. */
static int role_probe(struct dev *dev, struct dev_service *service, struct err *err)
{
    static const char request[] = "GET /readyz HTTP/1.1\r\nHost: localhost\r\n"
                                  "Connection: close\r\n\r\n";
    const struct timeval wait = {.tv_sec = PROBE_SECONDS};
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(service->ports[0])};
    char answer[ANSWER_SIZE] = "";
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int ready = 0;

    (void)dev;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    mem_free(&service->url);
    service->url = xasprintf("http://127.0.0.1:%u", service->ports[0]);
    if (fd < 0)
        return err_set_errno(err, ERR_IO, "socket");
    (void)setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait));
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0 &&
        send(fd, request, sizeof(request) - 1, MSG_NOSIGNAL) == (ssize_t)sizeof(request) - 1 &&
        recv(fd, answer, sizeof(answer) - 1, 0) > 0)
        ready = strncmp(answer, "HTTP/1.1 200 ", 13) == 0 ? 1 : 0;
    if (ready == 0)
        (void)err_set(err, ERR_TIMEOUT, "/readyz does not say 200; last answer: '%.*s'",
                      (int)strcspn(answer, "\r\n"), answer);
    (void)close(fd);
    return ready;
}

static const struct dev_kind dev_migrate = {
    .name = "migrate",
    .level = DEV_LEVEL_ONCE,
    .stop_signal = SIGTERM,
    .ready_wait_ms = 120000,
    .stop_wait_ms = 10000,
    .command = role_command,
};

#define ROLE(role)                                                                                 \
    {                                                                                              \
        .name = (role), .level = DEV_LEVEL_ROLE, .port_count = 1, .stop_signal = SIGTERM,          \
        .ready_wait_ms = 60000, .stop_wait_ms = 40000, .command = role_command,                    \
        .probe = role_probe,                                                                       \
    }

/* In order of start; they stop in the other order, so the gateway takes nothing while the rest
 * still works off what it took. */
static const struct dev_kind roles[] = {
    ROLE("broker"),  ROLE("webhook"), ROLE("agent"),
    ROLE("trainer"), ROLE("ingest"),  ROLE("gateway"),
};

static bool binary_has(const char *name)
{
    static const char *const commands[] = {
#define COMMAND(command, function, section, help) command,
#include "cli/commands.def"
#undef COMMAND
    };

    for (size_t i = 0; i < COUNT_OF(commands); i++)
        if (strcmp(commands[i], name) == 0)
            return true;
    return false;
}

size_t dev_role_kinds(const struct dev_kind **ret_kinds, size_t room)
{
    size_t count = 0;

    if (binary_has(dev_migrate.name))
        ret_kinds[count++] = &dev_migrate;
    for (size_t i = 0; i < COUNT_OF(roles); i++)
        if (binary_has(roles[i].name)) {
            assert(count < room);
            ret_kinds[count++] = &roles[i];
        }
    return count;
}
