/* SPDX-License-Identifier: Apache-2.0 */

#include "cli/webhooks.h"

int webhooks_main(int argc, char **argv);

int webhooks_main(int argc, char **argv)
{
    const struct verb_action actions[] = {webhooks_ls_action, webhooks_show_action,
                                          webhooks_replay_action, webhooks_endpoints_action,
                                          webhooks_secret_action};
    const struct verb verb = {"webhooks", "Webhooks of this tenant, and what signs them.", actions,
                              COUNT_OF(actions)};

    return verb_main(&verb, argc, argv);
}
