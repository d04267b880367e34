/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Floors. A record is pinned while its effect is not in the ledger; the floor of a topic is its
 * first pinned offset (PROTOCOL 3). A pin that goes into a flush counts as written: that flush
 * commits, or this owner ends, and the next one starts from the floors that were committed.
 */

#include <stdlib.h>

#include "brokers/owner_int.h"

struct pin *pin_add(struct pin_log *log, int64_t offset, uint64_t append_us)
{
    struct pin *pin = xcalloc(1, sizeof(*pin));

    pin->offset = offset;
    pin->append_us = append_us;
    if (log->tail == NULL)
        log->head = pin;
    else
        log->tail->next = pin;
    log->tail = pin;
    log->count++;
    return pin;
}

void pin_link(struct pin **list, struct pin *pin)
{
    if (pin == NULL)
        return;
    assert(pin->next_of_job == NULL && !pin->written);
    pin->next_of_job = *list;
    *list = pin;
}

void pin_move(struct pin **to, struct pin **from)
{
    while (*from != NULL) {
        struct pin *pin = *from;

        *from = TAKE(pin->next_of_job);
        pin_link(to, pin);
    }
}

void pin_write(struct pin **list)
{
    while (*list != NULL) {
        struct pin *pin = *list;

        *list = TAKE(pin->next_of_job);
        pin->written = true;
    }
}

void pin_trim(struct pin_log *log)
{
    while (log->head != NULL && log->head->written) {
        struct pin *pin = log->head;

        log->head = pin->next;
        if (log->head == NULL)
            log->tail = NULL;
        log->count--;
        free(pin);
    }
}

int64_t pin_floor(const struct pin_log *log)
{
    return log->head != NULL ? log->head->offset : log->next;
}

uint64_t pin_floor_us(const struct pin_log *log)
{
    return log->head != NULL ? log->head->append_us : log->append_us;
}

void pin_log_done(struct pin_log *log)
{
    while (log->head != NULL) {
        log->head->written = true;
        pin_trim(log);
    }
}
