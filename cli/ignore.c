/* SPDX-License-Identifier: Apache-2.0 */

#include "cli/ignore.h"

#include <stdlib.h>
#include <string.h>

struct pattern {
    char *text; /* without marks at its ends */
    bool negated, folders_only, anchored;
};

struct ignore {
    struct pattern *patterns;
    size_t count;
};

void ignore_free(struct ignore **ignore_p)
{
    struct ignore *ignore = TAKE(*ignore_p);

    if (ignore == NULL)
        return;
    for (size_t i = 0; i < ignore->count; i++)
        free(ignore->patterns[i].text);
    free(ignore->patterns);
    free(ignore);
}

/* ---- reading ---- */

/* Bytes of the line without the blanks at its end that have no backslash before them. */
static size_t trimmed_size(const char *line, size_t size)
{
    if (size > 0 && line[size - 1] == '\r')
        size--;
    while (size > 0 && (line[size - 1] == ' ' || line[size - 1] == '\t') &&
           !(size > 1 && line[size - 2] == '\\'))
        size--;
    return size;
}

static void add_line(struct ignore *ignore, const char *line, size_t size)
{
    struct pattern pattern = {.text = NULL};

    size = trimmed_size(line, size);
    if (size == 0 || *line == '#')
        return;
    if (*line == '!') {
        pattern.negated = true;
        line++;
        size--;
    }
    if (size > 0 && line[size - 1] == '/') {
        pattern.folders_only = true;
        size--;
    }
    pattern.anchored = memchr(line, '/', size) != NULL;
    if (size > 0 && *line == '/') {
        line++;
        size--;
    }
    if (size == 0)
        return;
    pattern.text = xasprintf("%.*s", (int)size, line);
    ignore->patterns[ignore->count++] = pattern;
}

int ignore_new(const char *what, const char *text, struct ignore **ret_ignore, struct err *err)
{
    struct ignore *ignore;

    if (strlen(text) > IGNORE_SIZE_MAX)
        return err_set(err, ERR_TOO_BIG, "%s has %zu bytes, the limit is %u", what, strlen(text),
                       IGNORE_SIZE_MAX);
    ignore = xcalloc(1, sizeof(*ignore));
    ignore->patterns = xcalloc(IGNORE_PATTERNS_MAX, sizeof(*ignore->patterns));
    for (const char *line = text; *line != '\0';) {
        size_t size = strcspn(line, "\n");

        if (ignore->count == IGNORE_PATTERNS_MAX) {
            ignore_free(&ignore);
            return err_set(err, ERR_TOO_BIG, "%s has over %d patterns", what, IGNORE_PATTERNS_MAX);
        }
        add_line(ignore, line, size);
        line += size + (line[size] == '\n');
    }
    *ret_ignore = ignore;
    return 0;
}

/* ---- matching ---- */

/* Whether a set like [a-z] or [!x] has the letter; *pattern_p moves behind it. One without an end
 * has none. */
static bool set_has(const char **pattern_p, char letter)
{
    const char *at = *pattern_p + 1;
    bool negated = *at == '!' || *at == '^', has = false, first = true;

    for (at += negated; *at != '\0' && (first || *at != ']'); first = false) {
        char low = *at == '\\' && at[1] != '\0' ? *++at : *at, high = low;

        at++;
        if (*at == '-' && at[1] != ']' && at[1] != '\0') {
            high = at[1];
            at += 2;
        }
        has = has || (letter >= low && letter <= high);
    }
    *pattern_p = at + (*at == ']');
    return *at == ']' && has != negated && letter != '/';
}

static bool glob_match(const char *pattern, const char *text, size_t *steps);

/* A run of stars at the pattern's start: one stays in its part of the path, two cross slashes. */
static bool stars_match(const char *pattern, const char *begin, const char *text, size_t *steps)
{
    size_t count = strspn(pattern, "*");
    const char *rest = pattern + count;
    bool whole_part = count == 2 && (pattern == begin || pattern[-1] == '/') &&
                      (*rest == '/' || *rest == '\0');

    if (whole_part && *rest == '/' && glob_match(rest + 1, text, steps))
        return true; /* a/(two stars)/z is also a/z */
    for (;; text++) {
        if (glob_match(rest, text, steps))
            return true;
        if (*text == '\0' || (*text == '/' && !whole_part))
            return false;
    }
}

/* One letter of the pattern against one of the text; *pattern_p moves behind it. */
static bool letter_match(const char **pattern_p, char letter)
{
    if (**pattern_p == '[')
        return set_has(pattern_p, letter);
    if (**pattern_p == '?') {
        ++*pattern_p;
        return letter != '/';
    }
    if (**pattern_p == '\\' && (*pattern_p)[1] != '\0')
        ++*pattern_p;
    return *(*pattern_p)++ == letter;
}

static bool glob_match(const char *pattern, const char *text, size_t *steps)
{
    const char *begin = pattern;

    for (;; text++) {
        if (++*steps > IGNORE_STEPS_MAX)
            return false;
        if (*pattern == '*')
            return stars_match(pattern, begin, text, steps);
        if (*pattern == '\0' || *text == '\0')
            return *pattern == *text;
        if (!letter_match(&pattern, *text))
            return false;
    }
}

bool ignore_match(const struct ignore *ignore, const char *path, bool is_folder)
{
    const char *slash = strrchr(path, '/');
    const char *name = slash != NULL ? slash + 1 : path;

    for (size_t i = ignore == NULL ? 0 : ignore->count; i > 0; i--) {
        const struct pattern *pattern = &ignore->patterns[i - 1];
        size_t steps = 0;

        if (pattern->folders_only && !is_folder)
            continue;
        if (glob_match(pattern->text, pattern->anchored ? path : name, &steps))
            return !pattern->negated;
    }
    return false;
}
