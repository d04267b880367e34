/* SPDX-License-Identifier: Apache-2.0 */

/* headrace train init: a folder whose training job runs, saves, and can be deployed, as it is. */

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/train.h"

static const char init_config[] =
    "# What `headrace train push` queues. docs/training.md has every key.\n"
    "name: %s\n"
    "job:\n"
    "  name: first\n"
    "  image: {base_image: none}   # no container is started: commands run on the trainer's "
    "machine\n"
    "  compute: {cpu_count: 1, memory: 1Gi}\n"
    "  runtime:\n"
    "    start_commands: [\"python3 train.py\"]\n"
    "    checkpointing_config: {enabled: true}\n";
static const char init_serve[] = "# What a checkpoint is served as; train.py copies this folder.\n"
                                 "python_version: py311\n";

static int write_new(const char *folder, const char *name, const char *text, struct err *err)
{
    OWNED(mem_free) char *path = xasprintf("%s/%s", folder, name);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    ssize_t n;

    if (fd < 0)
        return err_set_errno(err, ERR_USAGE, "make '%s'", path);
    n = write(fd, text, strlen(text));
    if (close(fd) < 0 || n != (ssize_t)strlen(text))
        return err_set_errno(err, ERR_IO, "write '%s'", path);
    return 0;
}

static int folder_make(const char *folder, const char *below, struct err *err)
{
    OWNED(mem_free) char *path = xasprintf("%s%s", folder, below);

    if (mkdir(path, 0777) < 0 && errno != EEXIST)
        return err_set_errno(err, ERR_USAGE, "make '%s'", path);
    return 0;
}

/* Ours carry a line about their license, which is not the user's. */
static const char *without_license(const char *text)
{
    return strncmp(text, "# SPDX", 6) == 0 ? text + strcspn(text, "\n") + 1 : text;
}

/* The last part of the folder's path as a project's name, in quotes; the caller frees. */
static char *project_of(const char *folder)
{
    OWNED(mem_free) char *real = realpath(folder, NULL);
    const char *slash = real != NULL ? strrchr(real, '/') : NULL;
    bool fit = slash != NULL && slash[1] != '\0' && strlen(slash + 1) < TRAINING_NAME_SIZE;
    json_t *name = fit ? json_string(slash + 1) : NULL; /* NULL, too, when it is no UTF-8 */
    char *text;

    name = name != NULL ? name : json_string("my-project");
    text = json_dumps(name, JSON_ENCODE_ANY);
    json_decref(name);
    return text;
}

static int folder_fill(const char *folder, struct err *err)
{
    OWNED(mem_free) char *project = project_of(folder);
    OWNED(mem_free) char *config = xasprintf(init_config, project);
    int r = write_new(folder, "config.yaml", config, err);

    if (r == 0)
        r = write_new(folder, "train.py", without_license(train_init_train_text), err);
    if (r == 0)
        r = folder_make(folder, "/serve", err);
    if (r == 0)
        r = folder_make(folder, "/serve/model", err);
    if (r == 0)
        r = write_new(folder, "serve/config.yaml", init_serve, err);
    if (r == 0)
        r = write_new(folder, "serve/model/model.py", without_license(train_init_model_text), err);
    return r;
}

int train_init(const struct client *client, const void *values, char **operands, int operand_count)
{
    struct err err;
    int r;

    (void)client;
    (void)values;
    if (!verb_operands("one folder", operand_count, 1, 1))
        return CLI_EXIT_USAGE;
    r = folder_make(operands[0], "", &err);
    if (r == 0)
        r = folder_fill(operands[0], &err);
    if (r < 0)
        return client_complain("train init", &err);
    (void)printf("%s: config.yaml, train.py, serve\n  headrace train push %s --tail\n", operands[0],
                 operands[0]);
    return CLI_EXIT_OK;
}
