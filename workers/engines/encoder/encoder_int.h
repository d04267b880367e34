/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* What encoder.c (the table of functions) and encoder_load.c (models) share. */

#include "workers/engines/encoder/bert.h"
#include "workers/engines/encoder/encoder.h"
#include "workers/engines/encoder/encoder_config.h"
#include "workers/engines/encoder/encoder_texts.h"

struct engine {
    struct encoder_config config;
    struct bert *bert;
    struct encoder_texts *texts;
};

int encoder_probe(const char *dir, struct engine_probe *ret_probe, struct err *err) MUST_CHECK;
int encoder_load(const struct engine_load *load, struct engine **ret_engine,
                 struct engine_info *ret_info, struct err *err) MUST_CHECK;
void encoder_unload(struct engine **engine_p);
