/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A chain as a picture: steps from the first to the last, with lines from each to those that wait
 * for it. Made from the steps as the gateway tells them, or as they stand in a file; a line that
 * follows from others is left out.
 *
 *     ●     split      SUCCEEDED  1/1
 *     ├─╮
 *     │ ●   question   SUCCEEDED  1/1
 *     ◐ │   embed      IN_PROGRESS  3/8
 *     ○─╯   rank       WAITING
 *
 * Pure, but for memory. Thread: any.   Tests: tests/unit/test_cli_chain_graph.c
 */

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"
#include "schema/chain.h"

#define GRAPH_STEPS_MAX                                                                            \
    1024u /* a chain in Python may have called more models than a file has steps */

struct chain_graph;

/* From an array of {"name", "model", "needs": [names], "map", "status", "jobs", "succeeded", …}, of
 * which only the name is needed; names that nobody has are not followed. */
int chain_graph_new(const json_t *steps, struct chain_graph **ret_graph,
                    struct err *err) MUST_CHECK;
void chain_graph_free(struct chain_graph **graph_p);

/* The same array, of a chain that was read from a file. The caller's. */
json_t *chain_graph_steps(const struct chain *chain);

/* For a terminal; colour: of states, by escape sequences. Returns the count of lines. */
size_t chain_graph_draw(const struct chain_graph *graph, bool colour, struct buf *to);

/* For graphviz, and as a picture of its own. */
void chain_graph_dot(const struct chain_graph *graph, struct buf *to);
void chain_graph_svg(const struct chain_graph *graph, struct buf *to);
