/* SPDX-License-Identifier: Apache-2.0 */

#include "workers/worker_core.h"

const struct worker_options worker_options_default = {
    .slot_count = 1,
    .heartbeat_us = 1000000,
    .credit_delay_us = 2000,
    .credit_lazy_us = 20000,
    .ahead_us = 5000,
    .started_delay_us = 10000,
    .cancel_grace_us = 2000000,
    .host_wait_us = 5000000,
    .drain_us = 30000000,
    .load_us = 3600000000,
    .load_count_max = 3,
};
