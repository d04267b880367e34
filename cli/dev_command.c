/* SPDX-License-Identifier: Apache-2.0 */

/* A command line and its environment, built piece by piece; every string is owned by it. */

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "cli/dev.h"

void dev_command_done(struct dev_command *command)
{
    for (size_t i = 0; i < command->arg_count; i++)
        mem_free(&command->argv[i]);
    for (size_t i = 0; i < command->env_count; i++)
        mem_free(&command->env[i]);
    mem_free(&command->program);
    *command = (struct dev_command){.program = NULL};
}

static char *format(const char *fmt, va_list args) __attribute__((format(printf, 1, 0)));
static char *format(const char *fmt, va_list args)
{
    char *text;

    if (vasprintf(&text, fmt, args) < 0)
        NEVER("memory for a command line");
    return text;
}

void dev_command_arg(struct dev_command *command, const char *fmt, ...)
{
    va_list args;

    assert(command->arg_count < DEV_ARG_COUNT_MAX);
    va_start(args, fmt);
    command->argv[command->arg_count++] = format(fmt, args);
    va_end(args);
}

void dev_command_set_env(struct dev_command *command, const char *name, const char *fmt, ...)
{
    OWNED(mem_free) char *value = NULL;
    size_t name_size = strlen(name);
    size_t i = 0;
    va_list args;

    va_start(args, fmt);
    value = format(fmt, args);
    va_end(args);
    while (i < command->env_count &&
           !(strncmp(command->env[i], name, name_size) == 0 && command->env[i][name_size] == '='))
        i++;
    assert(i < DEV_ENV_COUNT_MAX);
    if (i == command->env_count)
        command->env_count++;
    else
        mem_free(&command->env[i]);
    command->env[i] = xasprintf("%s=%s", name, value);
}

void dev_command_set_server_env(struct dev *dev, struct dev_command *command)
{
    const char *path = getenv("PATH");

    dev_command_set_env(command, "PATH", "%s", path == NULL ? "/usr/bin:/bin" : path);
    dev_command_set_env(command, "HOME", "%s", dev->data_dir);
    dev_command_set_env(command, "LC_ALL", "C.UTF-8");
    dev_command_set_env(command, "TZ", "UTC");
}
