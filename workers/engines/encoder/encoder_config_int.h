/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* What encoder_config.c (all families) and encoder_config_turning.c (those that turn q and k by
 * their positions) share. What is wrong in config.json is named. */

#include <jansson.h>

#include "workers/engines/encoder/encoder_config.h"

/* The activation that the key names; gelu where there is no such key. */
int encoder_config_read_activation(const json_t *json, const char *key,
                                   enum encoder_activation *ret_activation,
                                   struct err *err) MUST_CHECK;

/* Behind the shapes, which decide how many layers there are. */
int encoder_config_read_modern(const json_t *json, struct encoder_config *config,
                               struct err *err) MUST_CHECK;
int encoder_config_read_nomic(const json_t *json, struct encoder_config *config,
                              struct err *err) MUST_CHECK;

/* Whether NomicBERT's file has the names of its authors (n_embd) or of transformers (hidden_size).
 */
bool encoder_config_is_first_nomic(const json_t *json);
