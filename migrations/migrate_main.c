/* SPDX-License-Identifier: Apache-2.0 */

/*
 * headrace migrate: brings the database up to date, or says how far it is.
 *
 * Exit status: 0 done, 1 wrong use, 2 no database, 3 a migration failed or does not fit. With
 * --status, 0 also when something is missing: the answer is the list.
 */

#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/settings.h"
#include "migrations/migrate.h"

int migrate_main(int argc, char **argv);

/* clang-format off */
struct migrate_settings {
#define SETTINGS_FIELDS
#include "base/settings_rows.def"
#include "migrations/migrate_settings.def"
#include "base/settings_end.def"
};

static const struct setting rows[] = {
#define SETTINGS_ROWS struct migrate_settings
#include "base/settings_rows.def"
#include "migrations/migrate_settings.def"
#include "base/settings_end.def"
};
/* clang-format on */

static const struct settings_program program = {
    .command = "migrate",
    .purpose = "Brings the database to the schema of this program. Safe to run twice, and by two "
               "at once.",
    .rows = rows,
    .row_count = COUNT_OF(rows),
};

struct report {
    bool json;
    json_t *list;
    uint32_t now_count, missing_count;
};

static void report_row(void *opaque, const struct migrate_row *row)
{
    struct report *report = opaque;
    char at[CLOCK_TEXT_SIZE] = "";

    report->now_count += row->now;
    report->missing_count += !row->applied;
    if (row->applied)
        clock_format_iso(row->applied_us, at);
    if (report->json) {
        (void)json_array_append_new(
            report->list,
            json_pack("{s:i, s:s, s:b, s:b, s:s?, s:i}", "number", (int)row->migration->number,
                      "name", row->migration->name, "applied", row->applied, "now", row->now,
                      "applied_at", row->applied ? at : NULL, "took_ms", (int)row->took_ms));
        return;
    }
    if (row->now)
        (void)printf("%04u_%s: applied in %u ms\n", row->migration->number, row->migration->name,
                     row->took_ms);
    else
        (void)printf("%04u_%s: %s%s\n", row->migration->number, row->migration->name,
                     row->applied ? "applied at " : "missing", at);
}

static void report_end(struct report *report, const struct migrate_settings *settings)
{
    if (report->json) {
        (void)json_dumpf(report->list, stdout, JSON_INDENT(2));
        (void)putchar('\n');
        json_decref(report->list);
    } else if (settings->dry_run) {
        (void)printf("dry run: %u would be applied, nothing was changed\n", report->now_count);
    } else if (settings->status) {
        (void)printf("%u missing\n", report->missing_count);
    } else {
        (void)printf("up to date, %u applied now\n", report->now_count);
    }
}

int migrate_main(int argc, char **argv)
{
    struct migrate_settings settings = {0};
    struct report report = {0};
    enum settings_outcome outcome;
    enum migrate_mode mode;
    struct err err = {0};
    int r = settings_parse(&program, argc, argv, &settings, NULL, &outcome, &err);

    if (r == 0 && outcome == SETTINGS_QUIT)
        return 0;
    if (r == 0 && settings.postgres[0] == '\0')
        r = err_set(&err, ERR_USAGE, "which database? set --postgres or HEADRACE_POSTGRES");
    if (r == 0) {
        report.json = settings.json;
        report.list = settings.json ? json_array() : NULL;
        mode = settings.dry_run  ? MIGRATE_DRY_RUN
               : settings.status ? MIGRATE_STATUS
                                 : MIGRATE_APPLY;
        r = migrate_run(settings.postgres, mode, report_row, &report, &err);
        if (r == 0)
            report_end(&report, &settings);
    }
    settings_free(&program, &settings);
    if (r == 0)
        return 0;
    (void)fprintf(stderr, "headrace migrate: %s\n", err.text);
    return r == ERR_USAGE ? 1 : r == ERR_UNAVAILABLE ? 2 : 3;
}
