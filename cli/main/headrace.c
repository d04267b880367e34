/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Entry point of the one binary: picks the subcommand and hands it the rest of the line.
 */

#include <stdio.h>
#include <string.h>

#include "cli/main/prepare.h"
#include "schema/message.h"

#define COMMAND(name, function, section, help) int function(int argc, char **argv);
#include "cli/commands.def"
#undef COMMAND

struct command {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *section, *help;
};

static const struct command commands[] = {
#define COMMAND(name, function, section, help) {name, function, section, help},
#include "cli/commands.def"
#undef COMMAND
    {NULL, NULL, NULL, NULL},
};

static void usage_print(FILE *to)
{
    const char *section = "";

    (void)fputs(
        "usage: headrace COMMAND [OPTION…]\n"
        "Asynchronous inference on your own machines: Kafka in, GPU workers, results out.\n",
        to);
    for (const struct command *c = commands; c->name != NULL; c++) {
        if (c->section[0] == '\0')
            continue;
        if (strcmp(section, c->section) != 0)
            (void)fprintf(to, "\n%s\n", c->section);
        section = c->section;
        (void)fprintf(to, "  %-13s %s\n", c->name, c->help);
    }
    (void)fputs("\nheadrace COMMAND --help tells more; headrace --version says what this is.\n",
                to);
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        usage_print(stderr);
        return 1;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
        strcmp(argv[1], "help") == 0) {
        usage_print(stdout);
        return 0;
    }
    if (strcmp(argv[1], "--version") == 0) {
        (void)printf("headrace %s (wire %d)\n", HEADRACE_VERSION, MESSAGE_WIRE_VERSION);
        return 0;
    }
    main_prepare();
    for (const struct command *c = commands; c->name != NULL; c++) {
        if (strcmp(argv[1], c->name) == 0)
            return c->run(argc - 1, argv + 1);
    }
    (void)fprintf(stderr, "headrace: there is no command '%s'; headrace --help lists them\n",
                  argv[1]);
    return 1;
}
