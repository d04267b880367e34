/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * A binary heap of nodes that live inside other structs: lowest (key, tie) first, any node can be
 * taken out again in O(log n). Lanes, tenants and timers of the owner are such heaps.
 *
 * Thread: its owner's.   Tests: tests/unit/test_sched.c
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct heap_node {
    uint64_t key, tie;
    size_t place; /* index in the heap + 1; 0: in none */
};

struct heap {
    struct heap_node **nodes;
    size_t count, room;
};

/* The struct that the node lives in. */
#define HEAP_ENTRY(node, type, member) ((type *)(void *)((char *)(node)-offsetof(type, member)))

void heap_done(struct heap *heap); /* frees the array, not the nodes */

/* The node must be in no heap. */
void heap_push(struct heap *heap, struct heap_node *node, uint64_t key, uint64_t tie);
void heap_remove(struct heap *heap, struct heap_node *node); /* nothing when it is in none */
void heap_move(struct heap *heap, struct heap_node *node, uint64_t key);

static inline struct heap_node *heap_first(const struct heap *heap)
{
    return heap->count == 0 ? NULL : heap->nodes[0];
}

static inline bool heap_holds(const struct heap_node *node)
{
    return node->place != 0;
}
