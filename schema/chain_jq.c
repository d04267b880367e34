/* SPDX-License-Identifier: Apache-2.0 */

#include "schema/chain_jq.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

#define NEST_MAX 64 /* texts within texts */
#define NAME_SIZE 65
#define HEAD_LINES 2 /* of a program, before an expression begins */
#define FORBIDDEN "not_in_a_chain_"

/* What reaches out of the expression, or is another at each look: a run that is planned anew must
 * come to the same. A definition that nobody uses is not compiled, one that is used names what is
 * not there, so jq itself refuses it, wherever it stands. */
static const struct {
    const char *name, *arguments;
} forbidden[] = {
    {"env", ""},
    {"input", ""},
    {"inputs", ""},
    {"debug", ""},
    {"debug", "(f)"},
    {"stderr", ""},
    {"halt", ""},
    {"halt_error", ""},
    {"halt_error", "(f)"},
    {"input_filename", ""},
    {"input_line_number", ""},
    {"get_search_list", ""},
    {"get_prog_origin", ""},
    {"get_jq_origin", ""},
    {"modulemeta", ""},
    {"now", ""},
    {"localtime", ""},
    {"strflocaltime", "(f)"},
};

static const char bindings[] = " .input as $input | .steps as $steps | .run as $run | .item as "
                               "$item | .index as $index | ";

bool chain_jq_is_expression(const char *text)
{
    size_t size = strlen(text);

    return size >= 3 && text[0] == '$' && text[1] == '{' && text[size - 1] == '}';
}

/* ---- reading ---- */

/* Code, and the texts in it, which may hold code again: "a \(.b) c". */
struct reader {
    const char *at;
    size_t depth;             /* of texts that are open */
    unsigned round[NEST_MAX]; /* parentheses that are open in the code within each */
    bool in_text;
};

static bool is_name_byte(char c)
{
    return isalnum((unsigned char)c) || c == '_';
}

static void skip_space(const char **at)
{
    while (isspace((unsigned char)**at))
        (*at)++;
}

static bool skip_byte(const char **at, char c)
{
    if (**at != c)
        return false;
    (*at)++;
    return true;
}

/* A plain name, or a text without escapes; "" when there is neither. */
static void read_name(const char **at, char to[NAME_SIZE])
{
    bool quoted = **at == '"';
    size_t size = 0;

    *at += quoted;
    while (size < NAME_SIZE - 1 && (quoted ? strchr("\"\\", **at) == NULL : is_name_byte(**at)))
        to[size++] = *(*at)++;
    to[size] = '\0';
    if (quoted && !skip_byte(at, '"'))
        to[0] = '\0';
}

/* Behind `$steps`: .name, ."name" or ["name"], then perhaps .output, .state or .error. */
static int read_step(const char **at, chain_jq_use_fn *use, void *opaque, struct err *err)
{
    char name[NAME_SIZE] = "", what[NAME_SIZE] = "output";

    skip_space(at);
    if (**at == '.' || **at == '[') {
        bool bracket = *(*at)++ == '[';

        skip_space(at);
        if (!bracket || **at == '"')
            read_name(at, name);
        skip_space(at);
        if (bracket && !skip_byte(at, ']'))
            name[0] = '\0';
    }
    if (name[0] == '\0')
        return err_set(err, ERR_MALFORMED,
                       "behind $steps must stand the name of a step: $steps.a, or $steps[\"a-b\"]");
    while (**at == '?')
        (*at)++;
    if (**at == '.' && ((*at)[1] == '"' || is_name_byte((*at)[1]))) {
        (*at)++;
        read_name(at, what);
    }
    if (strcmp(what, "output") != 0 && strcmp(what, "state") != 0 && strcmp(what, "error") != 0)
        return err_set(err, ERR_MALFORMED, "'$steps.%s.%s': there are output, state and error",
                       name, what);
    return use(opaque, name, err);
}

static int read_variable(const char **at, bool item, chain_jq_use_fn *use, void *opaque,
                         struct err *err)
{
    char name[NAME_SIZE];

    skip_space(at);
    read_name(at, name);
    if (strcmp(name, "ENV") == 0)
        return err_set(err, ERR_MALFORMED, "$ENV is not there in a chain");
    if (!item && (strcmp(name, "item") == 0 || strcmp(name, "index") == 0))
        return err_set(err, ERR_MALFORMED, "$%s has a meaning only in a step with map or loop",
                       name);
    return strcmp(name, "steps") == 0 ? read_step(at, use, opaque, err) : 0;
}

/* One byte of a text; \( opens code. */
static int read_text(struct reader *reader, struct err *err)
{
    char c = *reader->at++;

    if (c == '"') {
        reader->in_text = false;
    } else if (c == '\\' && *reader->at == '(') {
        if (++reader->depth == NEST_MAX)
            return err_set(err, ERR_RANGE, "texts are within each other over %d deep",
                           NEST_MAX - 1);
        reader->at++;
        reader->round[reader->depth] = 0;
        reader->in_text = false;
    } else if (c == '\\' && *reader->at != '\0') {
        reader->at++;
    }
    return 0;
}

static int read_code(struct reader *reader, struct err *err)
{
    char c = *reader->at++;

    if (c == '"') {
        reader->in_text = true;
    } else if (c == '#') {
        reader->at += strcspn(reader->at, "\n");
    } else if (c == '(') {
        reader->round[reader->depth]++;
    } else if (c == ')' && reader->round[reader->depth] > 0) {
        reader->round[reader->depth]--;
    } else if (c == ')' && reader->depth > 0) {
        reader->depth--;
        reader->in_text = true;
    } else if (c == ')') { /* else it would close what we put around it */
        return err_set(err, ERR_MALFORMED, "a ')' in it closes nothing");
    }
    return 0;
}

int chain_jq_check(const char *text, bool item, chain_jq_use_fn *use, void *opaque, struct err *err)
{
    struct reader reader = {.at = text + 2};
    const char *end = text + strlen(text) - 1;
    int r = 0;

    if (strlen(text) > CHAIN_JQ_SIZE_MAX)
        return err_set(err, ERR_TOO_BIG, "an expression has %zu bytes, at most %d are allowed",
                       strlen(text), CHAIN_JQ_SIZE_MAX);
    while (reader.at < end && r == 0) {
        if (reader.in_text) {
            r = read_text(&reader, err);
        } else if (*reader.at == '$') {
            reader.at++;
            r = read_variable(&reader.at, item, use, opaque, err);
        } else {
            r = read_code(&reader, err);
        }
    }
    return r;
}

/* ---- the program ---- */

void chain_jq_add_part(struct chain_jq *jq)
{
    jq->parts = xrealloc(jq->parts, jq->part_count + 1, sizeof(*jq->parts));
    jq->parts[jq->part_count++] = (struct chain_jq_part){.first = jq->expression_count};
}

int chain_jq_add(struct chain_jq *jq, const char *where, const char *text, struct err *err)
{
    if (jq->expression_count == CHAIN_JQ_COUNT_MAX)
        return err_set(err, ERR_RANGE, "the chain has over %d expressions", CHAIN_JQ_COUNT_MAX);
    jq->expressions = xrealloc(jq->expressions, jq->expression_count + 1, sizeof(*jq->expressions));
    jq->expressions[jq->expression_count++] = (struct chain_jq_expression){.where = xstrdup(where),
                                                                           .text = text};
    jq->parts[jq->part_count - 1].count++;
    return 0;
}

bool chain_jq_drop_empty_part(struct chain_jq *jq)
{
    if (jq->parts[jq->part_count - 1].count > 0)
        return false;
    jq->part_count--;
    return true;
}

static void append_head(struct buf *to)
{
    for (size_t i = 0; i < COUNT_OF(forbidden); i++)
        buf_printf(to, "def %s%s: " FORBIDDEN "%s; ", forbidden[i].name, forbidden[i].arguments,
                   forbidden[i].name);
    buf_append_text(to, "\n");
}

/* The closing parenthesis has a line of its own: an expression may end in a comment. */
static void append_expression(struct buf *to, const char *text)
{
    buf_append_text(to, "[$input | (\n");
    buf_append(to, text + 2, strlen(text) - 3);
    buf_append_text(to, "\n)]");
}

void chain_jq_program_of(const struct chain_jq *jq, size_t at, struct buf *to)
{
    append_head(to);
    buf_append_text(to, bindings);
    append_expression(to, jq->expressions[at].text);
}

void chain_jq_program(const struct chain_jq *jq, struct buf *to)
{
    append_head(to);
    buf_append_text(to, bindings);
    for (size_t i = 0; i < jq->part_count; i++) {
        buf_printf(to, "def part_%zu: [", i);
        for (size_t k = 0; k < jq->parts[i].count; k++) {
            buf_append_text(to, k == 0 ? "" : ", ");
            append_expression(to, jq->expressions[jq->parts[i].first + k].text);
        }
        buf_append_text(to, "];\n");
    }
    for (size_t i = 0; i < jq->part_count; i++)
        buf_printf(to, "%s .n == %zu then part_%zu ", i == 0 ? "if" : "elif", i, i);
    buf_append_text(to, "else empty end");
}

/* ---- what jq says ---- */

/* Takes out what a person at a shell is told. */
static void cut(char *text, const char *what)
{
    char *at = strstr(text, what);

    if (at != NULL)
        memmove(at, at + strlen(what), strlen(at + strlen(what)) + 1);
}

void chain_jq_explain(const char *message, char *to, size_t to_size)
{
    char text[400], *place;
    unsigned line = 0;

    (void)snprintf(text, sizeof(text), "%s", message);
    text[strcspn(text, "\n")] = '\0';
    cut(text, "jq: error: ");
    cut(text, " (Unix shell quoting issues?)");
    cut(text, "$undefined: ");
    place = strstr(text, " at <top-level>, line ");
    if (place != NULL) {
        for (char *digit = place + strlen(" at <top-level>, line ");
             isdigit((unsigned char)*digit) && line < 100000; digit++)
            line = 10 * line + (unsigned)(*digit - '0');
        *place = '\0';
    }
    if (strncmp(text, FORBIDDEN, strlen(FORBIDDEN)) == 0) {
        text[strcspn(text, "/")] = '\0';
        (void)snprintf(to, to_size, "%s is not there in a chain", text + strlen(FORBIDDEN));
    } else if (line > HEAD_LINES) {
        (void)snprintf(to, to_size, "line %u: %s", line - HEAD_LINES, text);
    } else {
        (void)snprintf(to, to_size, "%s", text);
    }
}

void chain_jq_done(struct chain_jq *jq)
{
    for (size_t i = 0; i < jq->expression_count; i++)
        free(jq->expressions[i].where);
    free(jq->expressions);
    free(jq->parts);
    *jq = (struct chain_jq){0};
}
