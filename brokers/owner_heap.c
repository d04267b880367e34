/* SPDX-License-Identifier: Apache-2.0 */

#include "brokers/owner_heap.h"

#include <stdlib.h>

#include "base/assert.h"
#include "base/mem.h"

static bool before(const struct heap_node *a, const struct heap_node *b)
{
    return a->key != b->key ? a->key < b->key : a->tie < b->tie;
}

static void put(struct heap *heap, size_t index, struct heap_node *node)
{
    heap->nodes[index] = node;
    node->place = index + 1;
}

static void sift_up(struct heap *heap, size_t index, struct heap_node *node)
{
    while (index > 0) {
        size_t parent = (index - 1) / 2;

        if (!before(node, heap->nodes[parent]))
            break;
        put(heap, index, heap->nodes[parent]);
        index = parent;
    }
    put(heap, index, node);
}

static void sift_down(struct heap *heap, size_t index, struct heap_node *node)
{
    for (;;) {
        size_t child = 2 * index + 1;

        if (child >= heap->count)
            break;
        if (child + 1 < heap->count && before(heap->nodes[child + 1], heap->nodes[child]))
            child++;
        if (!before(heap->nodes[child], node))
            break;
        put(heap, index, heap->nodes[child]);
        index = child;
    }
    put(heap, index, node);
}

void heap_done(struct heap *heap)
{
    free(heap->nodes);
    *heap = (struct heap){0};
}

void heap_push(struct heap *heap, struct heap_node *node, uint64_t key, uint64_t tie)
{
    assert(node->place == 0);
    if (heap->count == heap->room) {
        heap->room = heap->room == 0 ? 8 : heap->room * 2;
        heap->nodes = xrealloc(heap->nodes, heap->room, sizeof(struct heap_node *));
    }
    node->key = key;
    node->tie = tie;
    sift_up(heap, heap->count++, node);
}

void heap_remove(struct heap *heap, struct heap_node *node)
{
    size_t index = node->place - 1;
    struct heap_node *last;

    if (node->place == 0)
        return;
    assert(index < heap->count && heap->nodes[index] == node);
    node->place = 0;
    last = heap->nodes[--heap->count];
    if (last == node)
        return;
    if (index > 0 && before(last, heap->nodes[(index - 1) / 2]))
        sift_up(heap, index, last);
    else
        sift_down(heap, index, last);
}

void heap_move(struct heap *heap, struct heap_node *node, uint64_t key)
{
    uint64_t tie = node->tie;

    heap_remove(heap, node);
    heap_push(heap, node, key, tie);
}
