/* SPDX-License-Identifier: Apache-2.0 */

#include "cli/chain_graph.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

#define LANES_MAX 40u /* lines side by side; a wider chain is a list */
#define NONE UINT32_MAX
#define LABEL_SIZE 384
#define WORDS (GRAPH_STEPS_MAX / 64)

#define BOX_WIDTH 190
#define BOX_HEIGHT 46
#define GAP_X 70
#define GAP_Y 22

struct set {
    uint64_t words[WORDS];
};

struct node {
    const json_t *step; /* borrowed from the graph's array */
    const char *name, *status;
    struct set needs; /* without those that follow from others */
    uint32_t layer, row;
};

struct chain_graph {
    json_t *steps;
    struct node *nodes; /* each behind what it needs */
    uint32_t count;
};

/* Lanes of the drawing: which step each leads to. */
struct lanes {
    uint32_t to[LANES_MAX], width, width_most;
    bool too_wide;
};

/* ---- sets ---- */

static void set_add(struct set *set, uint32_t at)
{
    set->words[at / 64] |= UINT64_C(1) << at % 64;
}

static bool set_has(const struct set *set, uint32_t at)
{
    return (set->words[at / 64] >> at % 64 & 1) != 0;
}

static void set_join(struct set *set, const struct set *other)
{
    for (size_t i = 0; i < WORDS; i++)
        set->words[i] |= other->words[i];
}

/* ---- from the steps ---- */

static const char *text_of(const json_t *step, const char *key)
{
    const char *text = json_string_value(json_object_get(step, key));

    return text == NULL ? "" : text;
}

static uint32_t find(const struct chain_graph *graph, const char *name)
{
    for (uint32_t i = 0; i < graph->count; i++) {
        if (strcmp(graph->nodes[i].name, name) == 0)
            return i;
    }
    return NONE;
}

/* Whether all that the step needs, of what is there, has its place already. */
static bool is_next(const struct chain_graph *graph, const json_t *step)
{
    size_t i, k;
    json_t *needed, *other;

    json_array_foreach(json_object_get(step, "needs"), i, needed)
    {
        const char *name = json_string_value(needed);

        if (name == NULL || find(graph, name) != NONE)
            continue;
        json_array_foreach(graph->steps, k, other)
        {
            if (strcmp(text_of(other, "name"), name) == 0)
                return false;
        }
    }
    return true;
}

static void node_add(struct chain_graph *graph, const json_t *step, struct set *all)
{
    uint32_t at = graph->count;
    struct node *node = &graph->nodes[at];
    struct set implied = {{0}};
    size_t i;
    json_t *needed;

    *node = (struct node){
        .step = step, .name = text_of(step, "name"), .status = text_of(step, "status")};
    json_array_foreach(json_object_get(step, "needs"), i, needed)
    {
        const char *name = json_string_value(needed);
        uint32_t before = name == NULL ? NONE : find(graph, name);

        if (before == NONE)
            continue;
        set_add(&node->needs, before);
        set_join(&implied, &all[before]);
        if (graph->nodes[before].layer >= node->layer)
            node->layer = graph->nodes[before].layer + 1;
    }
    all[at] = implied;
    set_join(&all[at], &node->needs);
    for (size_t k = 0; k < WORDS; k++)
        node->needs.words[k] &= ~implied.words[k];
    for (uint32_t k = 0; k < at; k++)
        node->row += graph->nodes[k].layer == node->layer;
    graph->count++;
}

/* One after the other, the first that can; a cycle, which no chain has, leaves some out. */
static bool place_one(struct chain_graph *graph, bool *placed, struct set *all)
{
    size_t i;
    json_t *step;

    json_array_foreach(graph->steps, i, step)
    {
        if (placed[i] || !is_next(graph, step))
            continue;
        placed[i] = true;
        node_add(graph, step, all);
        return true;
    }
    return false;
}

int chain_graph_new(const json_t *steps, struct chain_graph **ret_graph, struct err *err)
{
    size_t count = json_array_size(steps);
    OWNED(chain_graph_free) struct chain_graph *graph = xcalloc(1, sizeof(*graph));
    OWNED(mem_free) bool *placed = xcalloc(count + 1, sizeof(*placed));
    OWNED(mem_free) struct set *all = xcalloc(count + 1, sizeof(*all));

    if (count > GRAPH_STEPS_MAX)
        return err_set(err, ERR_RANGE, "the chain has %zu steps; at most %u can be drawn", count,
                       GRAPH_STEPS_MAX);
    graph->steps = json_incref((json_t *)steps);
    graph->nodes = xcalloc(count + 1, sizeof(*graph->nodes));
    while (place_one(graph, placed, all))
        ;
    if (graph->count < count)
        return err_set(err, ERR_MALFORMED, "steps of the chain wait for each other");
    *ret_graph = TAKE(graph);
    return 0;
}

void chain_graph_free(struct chain_graph **graph_p)
{
    struct chain_graph *graph = *graph_p;

    *graph_p = NULL;
    if (graph == NULL)
        return;
    json_decref(graph->steps);
    free(graph->nodes);
    free(graph);
}

json_t *chain_graph_steps(const struct chain *chain)
{
    json_t *steps = json_array();

    for (size_t i = 0; i < chain->step_count; i++) {
        const struct chain_step *step = &chain->steps[i];

        (void)json_array_append_new(
            steps, json_pack("{s:s, s:s, s:b, s:o}", "name", step->name, "model",
                             step->kind == CHAIN_HTTP ? "http" : step->model, "map",
                             step->map != NULL, "needs", chain_needs_json(chain, i)));
    }
    return steps;
}

/* ---- words ---- */

static const struct {
    const char *status, *sign, *escape, *fill;
} looks[] = {
    {"SUCCEEDED", "●", "\033[32m", "#d6f0d6"}, {"IN_PROGRESS", "◐", "\033[33m", "#fdeeb8"},
    {"QUEUED", "◔", "\033[33m", "#f5f0d8"},    {"FAILED", "✗", "\033[31m", "#f6c9c5"},
    {"CANCELED", "✗", "\033[31m", "#e6d6d4"},  {"REUSED", "◌", "\033[32m", "#e4f2e4"},
    {"NOT_RUN", "–", "\033[2m", "#eeeeee"},    {"NO_JOB", "◇", "", "#e8eef8"},
    {"WAITING", "○", "\033[2m", "#ffffff"},    {"", "○", "", "#e8eef8"},
};

static size_t look_of(const struct node *node)
{
    size_t i = 0;

    while (i + 1 < COUNT_OF(looks) && strcmp(looks[i].status, node->status) != 0)
        i++;
    return i;
}

static json_int_t number_of(const struct node *node, const char *key)
{
    return json_integer_value(json_object_get(node->step, key));
}

/* What stands beside a step; which of it depends on whether it is of a run. */
static void label_write(const struct node *node, size_t name_width, char to[LABEL_SIZE])
{
    const char *model = text_of(node->step, "model");
    const char *map = json_is_true(json_object_get(node->step, "map")) ? " for each" : "";
    char jobs[64] = "", tries[48] = "", seconds[48] = "", cached[48] = "";
    char output[160] = "";
    const char *type = text_of(node->step, "output_type");
    json_int_t count = number_of(node, "jobs"), attempts = number_of(node, "attempts");
    const json_t *took = json_object_get(node->step, "seconds");

    if (count > 0)
        (void)snprintf(jobs, sizeof(jobs), "  %lld/%lld", number_of(node, "succeeded"), count);
    if (attempts > 1)
        (void)snprintf(tries, sizeof(tries), "  %lld attempts", attempts);
    if (number_of(node, "cached") > 0)
        (void)snprintf(cached, sizeof(cached), "  %lld cached", number_of(node, "cached"));
    if (type[0] != '\0' && strncmp(type, "application/json", 16) != 0)
        (void)snprintf(output, sizeof(output), "  %.100s of %lld bytes", type,
                       number_of(node, "output_size"));
    if (json_is_number(took))
        (void)snprintf(seconds, sizeof(seconds), "  %.3f s", json_number_value(took));
    (void)snprintf(to, LABEL_SIZE, "%-*s  %s%s%s%s%s%s%s%s%s", (int)name_width, node->name, model,
                   map, node->status[0] != '\0' ? "  " : "", node->status, jobs, cached, tries,
                   output, seconds);
}

/* ---- the terminal ---- */

static uint32_t lane_free(struct lanes *lanes, uint32_t from)
{
    while (from < lanes->width && lanes->to[from] != NONE)
        from++;
    if (from >= LANES_MAX) {
        lanes->too_wide = true;
        return LANES_MAX - 1;
    }
    if (from >= lanes->width) {
        lanes->width = from + 1;
        lanes->to[from] = NONE;
    }
    if (lanes->width > lanes->width_most)
        lanes->width_most = lanes->width;
    return from;
}

static uint32_t lane_of(const struct lanes *lanes, uint32_t node)
{
    for (uint32_t i = 0; i < lanes->width; i++) {
        if (lanes->to[i] == node)
            return i;
    }
    return NONE;
}

/* Takes the lines into the step and tells how its row looks. Returns the lane of its sign. */
static uint32_t row_draw(struct lanes *lanes, uint32_t node, const char *sign, struct buf *to)
{
    uint32_t at = lane_of(lanes, node), last;

    if (at == NONE)
        at = lane_free(lanes, 0);
    last = at;
    for (uint32_t i = at + 1; i < lanes->width; i++)
        last = lanes->to[i] == node ? i : last;
    for (uint32_t i = 0; i < lanes->width; i++) {
        bool inside = i > at && i <= last, mine = inside && lanes->to[i] == node;

        if (i == at)
            buf_append_text(to, sign);
        else if (mine)
            buf_append_text(to, i == last ? "╯" : "┴");
        else if (lanes->to[i] != NONE)
            buf_append_text(to, inside ? "┼" : "│");
        else
            buf_append_text(to, inside ? "─" : " ");
        buf_append_text(to, i >= at && i < last ? "─" : " ");
    }
    for (uint32_t i = 0; i < lanes->width; i++)
        lanes->to[i] = lanes->to[i] == node ? NONE : lanes->to[i];
    return at;
}

/* A line to each step that waits for this one; more than one need a row. Returns whether it was
 * drawn. */
static bool branches_draw(const struct chain_graph *graph, struct lanes *lanes, uint32_t node,
                          uint32_t at, struct buf *to)
{
    bool begins[LANES_MAX] = {false};
    uint32_t last = NONE;

    for (uint32_t i = node + 1; i < graph->count && !lanes->too_wide; i++) {
        uint32_t lane = at;

        if (!set_has(&graph->nodes[i].needs, node))
            continue;
        if (last != NONE)
            lane = lane_free(lanes, at + 1);
        lanes->to[lane] = i;
        begins[lane] = true;
        last = last == NONE || lane > last ? lane : last;
    }
    if (last == NONE || last == at)
        return false;
    for (uint32_t i = 0; i < lanes->width; i++) {
        bool inside = i > at && i <= last;

        if (i == at)
            buf_append_text(to, "├");
        else if (begins[i])
            buf_append_text(to, i == last ? "╮" : "┬");
        else if (lanes->to[i] != NONE)
            buf_append_text(to, inside ? "┼" : "│");
        else
            buf_append_text(to, inside ? "─" : " ");
        buf_append_text(to, i >= at && i < last ? "─" : " ");
    }
    return true;
}

static void pad(struct buf *to, const struct lanes *lanes, uint32_t width)
{
    for (uint32_t i = lanes->width; i < width; i++)
        buf_append_text(to, "  ");
}

/* Draws all of it; width 0: only to find out how wide it is. */
static size_t draw(const struct chain_graph *graph, bool colour, uint32_t width,
                   struct lanes *lanes, struct buf *to)
{
    size_t lines = 0, name_width = 0;
    char label[LABEL_SIZE];

    for (uint32_t i = 0; i < graph->count; i++)
        name_width = strlen(graph->nodes[i].name) > name_width ? strlen(graph->nodes[i].name)
                                                               : name_width;
    for (uint32_t i = 0; i < graph->count; i++) {
        const struct node *node = &graph->nodes[i];
        size_t look = look_of(node);
        uint32_t at = row_draw(lanes, i, looks[look].sign, to);

        pad(to, lanes, width);
        label_write(node, name_width, label);
        buf_printf(to, " %s%s%s\n", colour ? looks[look].escape : "", label,
                   colour && looks[look].escape[0] != '\0' ? "\033[0m" : "");
        lines++;
        if (branches_draw(graph, lanes, i, at, to)) {
            buf_append_byte(to, '\n');
            lines++;
        }
    }
    return lines;
}

static size_t list(const struct chain_graph *graph, struct buf *to)
{
    char label[LABEL_SIZE];

    for (uint32_t i = 0; i < graph->count; i++) {
        label_write(&graph->nodes[i], 0, label);
        buf_printf(to, "%s %s\n", looks[look_of(&graph->nodes[i])].sign, label);
    }
    return graph->count;
}

size_t chain_graph_draw(const struct chain_graph *graph, bool colour, struct buf *to)
{
    OWNED(buf_done) struct buf unseen = BUF_WITH_LIMIT(16u << 20);
    struct lanes lanes = {.width = 0};
    uint32_t width;

    (void)draw(graph, false, 0, &lanes, &unseen);
    if (lanes.too_wide)
        return list(graph, to);
    width = lanes.width_most;
    lanes = (struct lanes){.width = 0};
    return draw(graph, colour, width, &lanes, to);
}

/* ---- graphviz ---- */

static void dot_text(struct buf *to, const char *text)
{
    for (; *text != '\0'; text++) {
        if (*text == '"' || *text == '\\')
            buf_append_byte(to, '\\');
        buf_append_byte(to, (uint8_t)*text);
    }
}

void chain_graph_dot(const struct chain_graph *graph, struct buf *to)
{
    buf_append_text(to,
                    "digraph chain {\n  rankdir=LR;\n  node [shape=box, style=\"rounded,filled\", "
                    "fontname=\"sans-serif\"];\n");
    for (uint32_t i = 0; i < graph->count; i++) {
        const struct node *node = &graph->nodes[i];

        buf_append_text(to, "  \"");
        dot_text(to, node->name);
        buf_append_text(to, "\" [label=\"");
        dot_text(to, node->name);
        buf_append_text(to, "\\n");
        dot_text(to, text_of(node->step, "model"));
        buf_printf(to, "\", fillcolor=\"%s\"];\n", looks[look_of(node)].fill);
    }
    for (uint32_t i = 0; i < graph->count; i++) {
        for (uint32_t k = 0; k < i; k++) {
            if (!set_has(&graph->nodes[i].needs, k))
                continue;
            buf_append_text(to, "  \"");
            dot_text(to, graph->nodes[k].name);
            buf_append_text(to, "\" -> \"");
            dot_text(to, graph->nodes[i].name);
            buf_append_text(to, "\";\n");
        }
    }
    buf_append_text(to, "}\n");
}

/* ---- a picture ---- */

static void xml_text(struct buf *to, const char *text)
{
    for (; *text != '\0'; text++) {
        if (*text == '<')
            buf_append_text(to, "&lt;");
        else if (*text == '&')
            buf_append_text(to, "&amp;");
        else if ((uint8_t)*text >= ' ')
            buf_append_byte(to, (uint8_t)*text);
    }
}

static int x_of(const struct node *node)
{
    return 10 + (int)node->layer * (BOX_WIDTH + GAP_X);
}

static int y_of(const struct node *node)
{
    return 10 + (int)node->row * (BOX_HEIGHT + GAP_Y);
}

static void svg_line(struct buf *to, const struct node *from, const struct node *node)
{
    int x1 = x_of(from) + BOX_WIDTH, y1 = y_of(from) + BOX_HEIGHT / 2;
    int x2 = x_of(node), y2 = y_of(node) + BOX_HEIGHT / 2, middle = (x1 + x2) / 2;

    buf_printf(to, "<path d=\"M%d %d C%d %d %d %d %d %d\"/>\n", x1, y1, middle, y1, middle, y2, x2,
               y2);
}

static void svg_box(struct buf *to, const struct node *node)
{
    json_int_t jobs = number_of(node, "jobs");
    int x = x_of(node), y = y_of(node);

    buf_printf(to, "<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" rx=\"7\" fill=\"%s\"/>\n", x,
               y, BOX_WIDTH, BOX_HEIGHT, looks[look_of(node)].fill);
    buf_printf(to, "<text x=\"%d\" y=\"%d\" font-weight=\"bold\">", x + 10, y + 19);
    xml_text(to, node->name);
    if (json_is_true(json_object_get(node->step, "map")))
        buf_append_text(to, " × n");
    buf_printf(to, "</text>\n<text x=\"%d\" y=\"%d\">", x + 10, y + 37);
    xml_text(to, text_of(node->step, "model"));
    if (node->status[0] != '\0')
        buf_printf(to, " %s", node->status);
    if (jobs > 1)
        buf_printf(to, " %lld/%lld", number_of(node, "succeeded"), jobs);
    buf_append_text(to, "</text>\n");
}

void chain_graph_svg(const struct chain_graph *graph, struct buf *to)
{
    int width = 0, height = 0;

    for (uint32_t i = 0; i < graph->count; i++) {
        int right = x_of(&graph->nodes[i]) + BOX_WIDTH + 10;
        int bottom = y_of(&graph->nodes[i]) + BOX_HEIGHT + 10;

        width = right > width ? right : width;
        height = bottom > height ? bottom : height;
    }
    buf_printf(to,
               "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" "
               "font-family=\"sans-serif\" font-size=\"13\">\n<g fill=\"none\" stroke=\"#888\">\n",
               width, height);
    for (uint32_t i = 0; i < graph->count; i++) {
        for (uint32_t k = 0; k < i; k++) {
            if (set_has(&graph->nodes[i].needs, k))
                svg_line(to, &graph->nodes[k], &graph->nodes[i]);
        }
    }
    buf_append_text(to, "</g>\n<g stroke-width=\"1\">\n");
    for (uint32_t i = 0; i < graph->count; i++)
        svg_box(to, &graph->nodes[i]);
    buf_append_text(to, "</g>\n</svg>\n");
}
