/* SPDX-License-Identifier: Apache-2.0 */

#include <stdlib.h>

#include "brokers/owner_int.h"

struct todo_node *todo_add(struct owner *owner, enum owner_todo_type type)
{
    struct todo_node *node = xcalloc(1, sizeof(*node));

    node->todo.type = type;
    TAILQ_INSERT_TAIL(&owner->todos, node, link);
    return node;
}

void todo_free(struct todo_node **node_p)
{
    struct todo_node *node = TAKE(*node_p);

    if (node == NULL)
        return;
    job_spec_unref(&node->spec);
    worker_unref(&node->worker);
    free(node->memory);
    free(node);
}

/* What follows from the events since the last call: it is worked out here, not in the events, so
 * that many events share one dispatch and one flush. */
static void owner_work(struct owner *owner)
{
    if (owner->phase == OWNER_OVER)
        return;
    takeover_step(owner);
    if (owner->phase == OWNER_LIVE) {
        expiry_run(owner);
        lane_plan_loads(owner);
        delayed_run(owner);
        command_plan(owner);
        dispatch_run(owner);
    }
    flush_run(owner);
}

bool owner_next_todo(struct owner *owner, struct owner_todo *ret_todo)
{
    struct todo_node *node;

    if (owner->last_todo != NULL) {
        pin_write(&owner->last_todo->pin);
        todo_free(&owner->last_todo);
    }
    if (TAILQ_EMPTY(&owner->todos))
        owner_work(owner);
    node = TAILQ_FIRST(&owner->todos);
    if (node == NULL)
        return false;
    TAILQ_REMOVE(&owner->todos, node, link);
    owner->last_todo = node;
    *ret_todo = node->todo;
    return true;
}
