/* SPDX-License-Identifier: Apache-2.0 */

/*
 * headrace secrets: values that models are given by name. A value is read from a file, from
 * standard input, or typed unseen; never from the command line, where ps and the shell's history
 * have it.
 */

#include <fcntl.h>
#include <sodium.h>
#include <stdio.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#include "cli/list.h"
#include "schema/secret.h"

int secrets_main(int argc, char **argv);

#define SECRETS_SETTINGS                                                                           \
    VERB_COMMON_SETTINGS                                                                           \
    SETTING_STRING(tenant, "",                                                                     \
                   "secrets of this tenant; only an operator may say another one than its own")    \
    SETTING_STRING(from_file, "", "set: file with the value; none: standard input")                \
    SETTING_BOOL(keep_newline, false, "set: keep a newline at the very end of the value")

struct secrets_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
    SECRETS_SETTINGS
#include "base/settings_end.def"
};

static const struct setting secrets_rows[] = {
#define SETTINGS_ROWS struct secrets_settings
#include "base/settings_rows.def"
    SECRETS_SETTINGS
#include "base/settings_end.def"
};

#define SECRETS_ACTION secrets_rows, COUNT_OF(secrets_rows), sizeof(struct secrets_settings)

/* The path, with the tenant that it is about. */
static char *secrets_path(const struct secrets_settings *settings, const char *name)
{
    bool other = settings->tenant[0] != '\0';

    if (name == NULL)
        return other ? path_make("/v1/secrets?tenant=%", settings->tenant) : xstrdup("/v1/secrets");
    return other ? path_make("/v1/secrets/%?tenant=%", name, settings->tenant)
                 : path_make("/v1/secrets/%", name);
}

static int secrets_ls(const struct client *client, const void *values, char **operands,
                      int operand_count)
{
    static const struct table_column columns[] = {
        {"NAME", "name", false, false},
        {"TENANT", "tenant", false, true},
        {"CREATED", "created_at", false, true},
        {"SET", "updated_at", false, true},
    };
    const struct secrets_settings *settings = values;
    OWNED(mem_free) char *path = secrets_path(settings, NULL);
    const struct list_view view = {"secrets ls", path,    "secrets",
                                   "no secrets", columns, COUNT_OF(columns)};

    (void)operands;
    if (!verb_operands("nothing more", operand_count, 0, 0))
        return CLI_EXIT_USAGE;
    return list_run(client, &view, settings->json);
}

/* ---- the value ---- */

/* Up to the end of the file, or of a line when somebody types it. */
static int value_read_fd(int fd, bool one_line, struct buf *value, struct err *err)
{
    char part[4096];
    ssize_t n = 1;

    while (n > 0 && value->size <= SECRET_VALUE_SIZE_MAX + 1) {
        n = read(fd, part, sizeof(part));
        if (n > 0)
            buf_append(value, part, (size_t)n);
        if (n > 0 && one_line && part[n - 1] == '\n')
            n = 0;
    }
    sodium_memzero(part, sizeof(part));
    if (n < 0)
        return err_set_errno(err, ERR_IO, "read the value");
    return buf_check(value, "the value", err);
}

/* Typed at a terminal that shows nothing meanwhile. */
static int value_read_typed(const char *name, struct buf *value, struct err *err)
{
    struct termios before, silent;
    int r;

    if (tcgetattr(STDIN_FILENO, &before) < 0)
        return err_set_errno(err, ERR_IO, "ask the terminal");
    silent = before;
    silent.c_lflag &= ~(tcflag_t)ECHO;
    (void)tcsetattr(STDIN_FILENO, TCSAFLUSH, &silent);
    (void)fprintf(stderr, "Value of %s (it is not shown): ", name);
    r = value_read_fd(STDIN_FILENO, true, value, err);
    (void)tcsetattr(STDIN_FILENO, TCSAFLUSH, &before);
    (void)fputc('\n', stderr);
    return r;
}

static int value_read_file(const char *path, struct buf *value, struct err *err)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    int r;

    if (fd < 0)
        return err_set_errno(err, ERR_USAGE, "--from-file=%s", path);
    r = value_read_fd(fd, false, value, err);
    (void)close(fd);
    return r;
}

static int value_read(const struct secrets_settings *settings, const char *name, struct buf *value,
                      struct err *err)
{
    int r;

    if (settings->from_file[0] != '\0')
        r = value_read_file(settings->from_file, value, err);
    else if (isatty(STDIN_FILENO) == 1)
        r = value_read_typed(name, value, err);
    else
        r = value_read_fd(STDIN_FILENO, false, value, err);
    if (r < 0)
        return r;
    if (!settings->keep_newline && value->size > 0 && value->bytes[value->size - 1] == '\n')
        value->size -= value->size > 1 && value->bytes[value->size - 2] == '\r' ? 2 : 1;
    if (value->size == 0 || value->size > SECRET_VALUE_SIZE_MAX)
        return err_set(err, ERR_USAGE, "the value has %s%zu bytes; it must have 1 to %d",
                       value->size > SECRET_VALUE_SIZE_MAX ? "at least " : "", value->size,
                       SECRET_VALUE_SIZE_MAX);
    return 0;
}

static int secrets_set(const struct client *client, const void *values, char **operands,
                       int operand_count)
{
    const struct secrets_settings *settings = values;
    OWNED(buf_done) struct buf value = BUF_WITH_LIMIT(2 * SECRET_VALUE_SIZE_MAX);
    OWNED(client_json_free) json_t *body = NULL;
    OWNED(mem_free) char *path = secrets_path(settings, NULL);
    struct err err;
    int r;

    if (!verb_operands("the name of one secret; its value comes from --from-file or standard input",
                       operand_count, 1, 1))
        return CLI_EXIT_USAGE;
    r = secret_name_check(operands[0], &err);
    if (r == 0)
        r = value_read(settings, operands[0], &value, &err);
    if (r == 0) {
        json_t *text = json_stringn((const char *)value.bytes, value.size);

        if (text == NULL)
            r = err_set(&err, ERR_USAGE,
                        "the value is no UTF-8; bytes can be kept as base64, for the model to "
                        "decode");
        else
            body = json_pack("{s:s, s:o}", "name", operands[0], "value", text);
    }
    if (value.bytes != NULL)
        sodium_memzero(value.bytes, value.room);
    if (r < 0) {
        err.code = err.code == ERR_RANGE ? ERR_USAGE : err.code;
        return client_complain("secrets set", &err);
    }
    return show_run(client, "secrets set", "POST", path, body, settings->json);
}

static int secrets_rm(const struct client *client, const void *values, char **operands,
                      int operand_count)
{
    const struct secrets_settings *settings = values;
    OWNED(mem_free) char *path = NULL;

    if (!verb_operands("the name of one secret", operand_count, 1, 1))
        return CLI_EXIT_USAGE;
    path = secrets_path(settings, operands[0]);
    return show_run(client, "secrets rm", "DELETE", path, NULL, settings->json);
}

int secrets_main(int argc, char **argv)
{
    static const struct verb_action actions[] = {
        {"ls", NULL, "Lists secrets by name; values are never shown.", SECRETS_ACTION, secrets_ls},
        {"set", "NAME", "Sets a secret from standard input or a file, never from here.",
         SECRETS_ACTION, secrets_set},
        {"rm", "NAME", "Deletes a secret.", SECRETS_ACTION, secrets_rm},
    };
    static const struct verb verb = {"secrets", "Secrets that models of this tenant may name.",
                                     actions, COUNT_OF(actions)};

    return verb_main(&verb, argc, argv);
}
