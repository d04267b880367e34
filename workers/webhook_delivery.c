/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/webhook_delivery.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "schema/job_id.h"

void webhook_delivery_free(struct webhook_delivery **delivery_p)
{
    struct webhook_delivery *delivery = TAKE(*delivery_p);

    if (delivery == NULL)
        return;
    free(delivery->tenant);
    free(delivery->model);
    free(delivery->url);
    free(delivery->disabled);
    buf_done(&delivery->record);
    buf_done(&delivery->body);
    free(delivery);
}

void webhook_delivery_set_error(struct webhook_delivery *delivery, const char *text)
{
    mem_copy_text(delivery->error, text);
    for (char *c = delivery->error; *c != '\0'; c++) {
        if (*c < ' ' || *c > '~')
            *c = '.';
    }
}

void webhook_delivery_name(struct webhook_delivery *delivery)
{
    char id[JOB_ID_TEXT_SIZE];

    job_id_format(&delivery->key.job, id);
    (void)snprintf(delivery->webhook_id, sizeof(delivery->webhook_id), "msg_%s_%" PRIu64, id,
                   delivery->key.round);
}
