/* SPDX-License-Identifier: Apache-2.0 */

#include "base/settings.h"

#include <argp.h>
#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/assert.h"

#define NAME_SIZE_MAX 64
#define SECRET_SIZE_MAX 4096
#define KEY_ROWS 0x1000 /* argp key of row i is KEY_ROWS + 2i, of its file twin one more */
#define KEY_HELP_SETTINGS 0x900
#define KEY_CHECK 0x901
#define KEY_VERSION 0x902
#define KEY_HELP 0x903

/* ---- values ---- */

struct unit {
    const char *name;
    uint64_t factor;
};

static const struct unit duration_units[] = {
    {"", 1}, {"ms", 1}, {"s", 1000}, {"m", 60000}, {"h", 3600000}, {"d", 86400000},
};

static const struct unit size_units[] = {
    {"", 1},
    {"B", 1},
    {"KB", 1000},
    {"MB", 1000000},
    {"GB", 1000000000},
    {"TB", 1000000000000},
    {"KiB", 1u << 10},
    {"MiB", 1u << 20},
    {"GiB", 1u << 30},
    {"TiB", 1ull << 40},
};

/* Digits and a unit of the table; false when it is not exactly that, or too large. */
static bool number_parse(const char *text, const struct unit *units, size_t unit_count,
                         uint64_t *ret_number)
{
    char *end;
    unsigned long long digits;

    if (!isdigit((unsigned char)*text))
        return false;
    errno = 0;
    digits = strtoull(text, &end, 10);
    if (errno != 0)
        return false;
    for (size_t i = 0; i < unit_count; i++) {
        if (strcmp(end, units[i].name) == 0)
            return !__builtin_mul_overflow(digits, units[i].factor, ret_number);
    }
    return false;
}

int settings_parse_int(const char *name, const char *text, int64_t *ret_number, struct err *err)
{
    char *end;
    long long number;

    errno = 0;
    number = strtoll(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || isspace((unsigned char)*text))
        return err_set(err, ERR_USAGE, "%s: '%.64s' is no integer", name, text);
    *ret_number = number;
    return 0;
}

int settings_parse_duration(const char *name, const char *text, uint64_t *ret_ms, struct err *err)
{
    uint64_t ms;

    if (!number_parse(text, duration_units, COUNT_OF(duration_units), &ms))
        return err_set(err, ERR_USAGE, "%s: '%.64s' is no duration (250ms, 4s, 5m, 2h, 3d)", name,
                       text);
    *ret_ms = ms;
    return 0;
}

int settings_parse_bytes(const char *name, const char *text, uint64_t *ret_size, struct err *err)
{
    uint64_t size;

    if (!number_parse(text, size_units, COUNT_OF(size_units), &size))
        return err_set(err, ERR_USAGE, "%s: '%.64s' is no size (512, 64KiB, 1MiB, 2GiB)", name,
                       text);
    *ret_size = size;
    return 0;
}

static int bool_parse(const char *name, const char *text, bool *ret_yes, struct err *err)
{
    static const char *const yes[] = {"true", "yes", "on", "1"};
    static const char *const no[] = {"false", "no", "off", "0"};

    for (size_t i = 0; i < COUNT_OF(yes); i++) {
        if (strcmp(text, yes[i]) == 0 || strcmp(text, no[i]) == 0) {
            *ret_yes = strcmp(text, yes[i]) == 0;
            return 0;
        }
    }
    return err_set(err, ERR_USAGE, "%s: '%.64s' is neither true nor false", name, text);
}

static int range_fail(const struct setting *row, const char *text, struct err *err)
{
    return err_set(err, ERR_USAGE, "%s: %.64s is out of range, it must be %s to %s", row->name,
                   text, row->lowest, row->highest);
}

static int set_unsigned(const struct setting *row, const char *text, uint64_t *field,
                        int (*parse)(const char *, const char *, uint64_t *, struct err *),
                        struct err *err)
{
    uint64_t value, lowest = 0, highest = UINT64_MAX;
    int r;

    r = parse(row->name, text, &value, err);
    if (r == 0 && row->lowest != NULL)
        r = parse(row->name, row->lowest, &lowest, err);
    if (r == 0 && row->highest != NULL)
        r = parse(row->name, row->highest, &highest, err);
    if (r < 0)
        return r;
    if (value < lowest || value > highest)
        return range_fail(row, text, err);
    *field = value;
    return 0;
}

static int set_int(const struct setting *row, const char *text, int64_t *field, struct err *err)
{
    int64_t value, lowest, highest;
    int r;

    r = settings_parse_int(row->name, text, &value, err);
    if (r == 0)
        r = settings_parse_int(row->name, row->lowest, &lowest, err);
    if (r == 0)
        r = settings_parse_int(row->name, row->highest, &highest, err);
    if (r < 0)
        return r;
    if (value < lowest || value > highest)
        return range_fail(row, text, err);
    *field = value;
    return 0;
}

/* scheme://…; which schemes are good is the user's business. Empty: not set. */
static int check_url(const struct setting *row, const char *text, struct err *err)
{
    size_t scheme = strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789+.-");

    if (*text == '\0' || (scheme > 0 && strncmp(text + scheme, "://", 3) == 0))
        return 0;
    /* A URL may hold a password, so it is not repeated. */
    return err_set(err, ERR_USAGE, "%s: value is no URL (scheme://…)", row->name);
}

static int value_set(const struct setting *row, const char *text, void *values, struct err *err)
{
    void *field = (char *)values + row->offset;
    int r;

    switch (row->type) {
    case SETTING_TYPE_URL:
        r = check_url(row, text, err);
        if (r < 0)
            return r;
        __attribute__((fallthrough));
    case SETTING_TYPE_STRING:
    case SETTING_TYPE_SECRET:
        mem_free(field);
        *(char **)field = xstrdup(text);
        return 0;
    case SETTING_TYPE_INT:
        return set_int(row, text, field, err);
    case SETTING_TYPE_DURATION:
        return set_unsigned(row, text, field, settings_parse_duration, err);
    case SETTING_TYPE_BYTES:
        return set_unsigned(row, text, field, settings_parse_bytes, err);
    case SETTING_TYPE_BOOL:
        return bool_parse(row->name, text, field, err);
    }
    NEVER("setting type is out of range");
}

int settings_set(const struct settings_program *program, const char *name, const char *text,
                 void *values, struct err *err)
{
    for (size_t i = 0; i < program->row_count; i++) {
        if (strcmp(program->rows[i].name, name) == 0)
            return value_set(&program->rows[i], text, values, err);
    }
    return err_set(err, ERR_USAGE, "there is no setting '%s'", name);
}

/* The first line of a file, for secrets. */
static int value_set_from_file(const struct setting *row, const char *path, void *values,
                               struct err *err)
{
    char line[SECRET_SIZE_MAX];
    FILE *file = fopen(path, "re");
    bool good;

    if (file == NULL)
        return err_set_errno(err, ERR_USAGE, "%s: file '%s'", row->name, path);
    good = fgets(line, sizeof(line), file) != NULL;
    (void)fclose(file);
    if (!good)
        return err_set(err, ERR_USAGE, "%s: file '%s' is empty", row->name, path);
    line[strcspn(line, "\r\n")] = '\0';
    return value_set(row, line, values, err);
}

/* ---- names ---- */

/* "api_key" -> "api-key" */
static void flag_name(const struct setting *row, char to[NAME_SIZE_MAX])
{
    mem_copy_text_at(to, NAME_SIZE_MAX, row->name);
    for (char *at = to; *at != '\0'; at++) {
        if (*at == '_')
            *at = '-';
    }
}

/* "api_key" -> "HEADRACE_API_KEY" and the suffix */
static void variable_name(const struct setting *row, const char *suffix, char to[NAME_SIZE_MAX])
{
    (void)snprintf(to, NAME_SIZE_MAX, "HEADRACE_%s%s", row->name, suffix);
    for (char *at = to; *at != '\0'; at++)
        *at = (char)toupper((unsigned char)*at);
}

static int read_environment(const struct settings_program *program, void *values, struct err *err)
{
    for (size_t i = 0; i < program->row_count; i++) {
        const struct setting *row = &program->rows[i];
        char variable[NAME_SIZE_MAX], file_variable[NAME_SIZE_MAX];
        const char *text, *path;

        variable_name(row, "", variable);
        variable_name(row, "_FILE", file_variable);
        text = getenv(variable);
        path = row->type == SETTING_TYPE_SECRET ? getenv(file_variable) : NULL;
        if (text != NULL && *text != '\0' && value_set(row, text, values, err) < 0)
            return err_wrap(err, "environment variable %s", variable);
        if (path != NULL && *path != '\0' && value_set_from_file(row, path, values, err) < 0)
            return err_wrap(err, "environment variable %s", file_variable);
    }
    return 0;
}

/* ---- help ---- */

static const char *type_name(enum setting_type type)
{
    static const char *const names[] = {
        [SETTING_TYPE_STRING] = "TEXT",       [SETTING_TYPE_SECRET] = "SECRET",
        [SETTING_TYPE_URL] = "URL",           [SETTING_TYPE_INT] = "N",
        [SETTING_TYPE_DURATION] = "DURATION", [SETTING_TYPE_BYTES] = "SIZE",
        [SETTING_TYPE_BOOL] = "BOOL",
    };

    return names[type];
}

/* "default 4s, 100ms to 1h", or "" when there is nothing to say. */
static void describe(const struct setting *row, char *to, size_t to_size)
{
    bool shown = *row->initial != '\0' && row->type != SETTING_TYPE_SECRET;

    to[0] = '\0';
    if (shown && row->lowest != NULL)
        (void)snprintf(to, to_size, " [%s; %s to %s]", row->initial, row->lowest, row->highest);
    else if (shown)
        (void)snprintf(to, to_size, " [%s]", row->initial);
}

void settings_print_markdown(const struct settings_program *program, FILE *to)
{
    (void)fprintf(to, "| flag | variable | type | default | range | what it does |\n"
                      "| --- | --- | --- | --- | --- | --- |\n");
    for (size_t i = 0; i < program->row_count; i++) {
        const struct setting *row = &program->rows[i];
        char flag[NAME_SIZE_MAX], variable[NAME_SIZE_MAX];

        flag_name(row, flag);
        variable_name(row, "", variable);
        (void)fprintf(to, "| `--%s` | `%s` | %s | %s%s%s | %s%s%s | %s |\n", flag, variable,
                      type_name(row->type), *row->initial ? "`" : "",
                      row->type == SETTING_TYPE_SECRET ? "" : row->initial,
                      *row->initial ? "`" : "", row->lowest != NULL ? row->lowest : "",
                      row->lowest != NULL ? " … " : "", row->highest != NULL ? row->highest : "",
                      row->help);
    }
}

static void print_version(const struct settings_program *program)
{
    if (program->wire_version == 0)
        (void)printf("headrace %s\n", HEADRACE_VERSION);
    else
        (void)printf("headrace %s (wire %u)\n", HEADRACE_VERSION, program->wire_version);
}

static void print_help(const struct settings_program *program, FILE *to)
{
    bool own_check = false; /* a setting of that name, which goes first */

    (void)fprintf(to, "usage: headrace %s [OPTION…]%s%s\n%s\n\n", program->command,
                  program->operands != NULL ? " " : "",
                  program->operands != NULL ? program->operands : "", program->purpose);
    for (size_t i = 0; i < program->row_count; i++) {
        const struct setting *row = &program->rows[i];
        char flag[NAME_SIZE_MAX], details[256], left[2 * NAME_SIZE_MAX];

        flag_name(row, flag);
        own_check = own_check || strcmp(flag, "check") == 0;
        describe(row, details, sizeof(details));
        (void)snprintf(left, sizeof(left), "--%s%s%s", flag,
                       row->type == SETTING_TYPE_BOOL ? "" : "=",
                       row->type == SETTING_TYPE_BOOL ? "" : type_name(row->type));
        (void)fprintf(to, "  %-30s %s%s\n", left, row->help, details);
    }
    (void)fprintf(to, "  %-30s this text\n  %-30s the settings as a table\n  %-30s what this is\n",
                  "--help", "--help-settings", "--version");
    if (!own_check)
        (void)fprintf(to, "  %-30s check the settings and quit\n", "--check");
    (void)fputs("\nEach flag has a twin in the environment: --some-flag is HEADRACE_SOME_FLAG. "
                "Flags win.\n",
                to);
}

/* ---- argv ---- */

struct parse {
    const struct settings_program *program;
    void *values;
    enum settings_outcome outcome;
    int operand;
    struct err *err;
    bool failed;
};

static error_t on_row(struct parse *parse, int key, char *argument)
{
    const struct setting *row = &parse->program->rows[(key - KEY_ROWS) / 2];
    bool from_file = (key - KEY_ROWS) % 2 == 1;
    int r;

    if (argument == NULL && row->type == SETTING_TYPE_BOOL)
        r = value_set(row, "true", parse->values, parse->err);
    else if (from_file)
        r = value_set_from_file(row, argument, parse->values, parse->err);
    else
        r = value_set(row, argument, parse->values, parse->err);
    if (r < 0) {
        (void)err_wrap(parse->err, "--%s", row->name);
        parse->failed = true;
        return EINVAL;
    }
    return 0;
}

static error_t on_option(int key, char *argument, struct argp_state *state)
{
    struct parse *parse = state->input;

    if (key >= KEY_ROWS && key < KEY_ROWS + 2 * (int)parse->program->row_count)
        return on_row(parse, key, argument);
    switch (key) {
    case KEY_HELP:
        print_help(parse->program, stdout);
        parse->outcome = SETTINGS_QUIT;
        break;
    case KEY_HELP_SETTINGS:
        settings_print_markdown(parse->program, stdout);
        parse->outcome = SETTINGS_QUIT;
        break;
    case KEY_VERSION:
        print_version(parse->program);
        parse->outcome = SETTINGS_QUIT;
        break;
    case KEY_CHECK:
        (void)puts("settings: ok");
        parse->outcome = SETTINGS_QUIT;
        break;
    case ARGP_KEY_ARGS: /* all operands are left where they are */
        parse->operand = state->next;
        break;
    default:
        return ARGP_ERR_UNKNOWN;
    }
    return 0;
}

/* One option a row, a second one for the file of a secret, and the four that all programs have. */
static struct argp_option *options_make(const struct settings_program *program, char **names)
{
    struct argp_option *options = xcalloc(2 * program->row_count + 5, sizeof(*options));
    size_t at = 0;

    for (size_t i = 0; i < program->row_count; i++) {
        const struct setting *row = &program->rows[i];
        char flag[NAME_SIZE_MAX];

        flag_name(row, flag);
        names[2 * i] = xstrdup(flag);
        options[at++] = (struct argp_option){
            .name = names[2 * i],
            .key = KEY_ROWS + 2 * (int)i,
            .arg = type_name(row->type),
            .flags = row->type == SETTING_TYPE_BOOL ? OPTION_ARG_OPTIONAL : 0,
        };
        if (row->type != SETTING_TYPE_SECRET)
            continue;
        names[2 * i + 1] = xasprintf("%s-file", flag);
        options[at++] = (struct argp_option){
            .name = names[2 * i + 1], .key = KEY_ROWS + 2 * (int)i + 1, .arg = "FILE"};
    }
    options[at++] = (struct argp_option){.name = "help", .key = KEY_HELP};
    options[at++] = (struct argp_option){.name = "help-settings", .key = KEY_HELP_SETTINGS};
    options[at++] = (struct argp_option){.name = "version", .key = KEY_VERSION};
    options[at++] = (struct argp_option){.name = "check", .key = KEY_CHECK};
    return options;
}

static void names_free(char **names, size_t count)
{
    for (size_t i = 0; i < count; i++)
        free(names[i]);
    free(names);
}

/* What argp says about an unknown or incomplete option goes into err instead of to the terminal:
 * getopt's own words are kept off by ARGP_NO_ERRS, so the option is found again here. */
static int unknown_option(int argc, char **argv, int next, struct err *err)
{
    int at = next > 0 && next <= argc ? next - 1 : argc - 1;

    return err_set(err, ERR_USAGE, "option '%.100s' is not known, or lacks its value (see --help)",
                   at > 0 ? argv[at] : "");
}

static int parse_argv(struct parse *parse, int argc, char **argv)
{
    size_t name_count = 2 * parse->program->row_count;
    char **names = xcalloc(name_count, sizeof(*names));
    OWNED(mem_free) struct argp_option *options = options_make(parse->program, names);
    const struct argp argp = {.options = options, .parser = on_option};
    int next = 0;
    error_t failed = argp_parse(&argp, argc, argv, ARGP_NO_ERRS | ARGP_NO_HELP | ARGP_NO_EXIT,
                                &next, parse);

    names_free(names, name_count);
    if (parse->failed)
        return parse->err->code;
    if (failed != 0)
        return unknown_option(argc, argv, next, parse->err);
    return 0;
}

static int set_defaults(const struct settings_program *program, void *values, struct err *err)
{
    for (size_t i = 0; i < program->row_count; i++) {
        int r = value_set(&program->rows[i], program->rows[i].initial, values, err);

        if (r < 0)
            return err_wrap(err, "default of %s", program->rows[i].name);
    }
    return 0;
}

int settings_parse(const struct settings_program *program, int argc, char **argv, void *values,
                   int *ret_operand, enum settings_outcome *ret_outcome, struct err *err)
{
    struct parse parse = {.program = program, .values = values, .operand = argc, .err = err};
    int r;

    r = set_defaults(program, values, err);
    if (r == 0)
        r = read_environment(program, values, err);
    if (r == 0)
        r = parse_argv(&parse, argc, argv);
    if (r == 0 && ret_operand == NULL && parse.operand < argc && parse.outcome == SETTINGS_RUN)
        r = err_set(err, ERR_USAGE, "'%.100s' is one word too many (see --help)",
                    argv[parse.operand]);
    if (r < 0) {
        settings_free(program, values);
        return r;
    }
    if (ret_operand != NULL)
        *ret_operand = parse.operand;
    *ret_outcome = parse.outcome;
    return 0;
}

void settings_free(const struct settings_program *program, void *values)
{
    for (size_t i = 0; i < program->row_count; i++) {
        const struct setting *row = &program->rows[i];

        if (row->type == SETTING_TYPE_STRING || row->type == SETTING_TYPE_URL ||
            row->type == SETTING_TYPE_SECRET)
            mem_free((char *)values + row->offset);
    }
}
