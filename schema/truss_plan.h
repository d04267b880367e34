/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * The part of schema/model_plan.h that reads a Truss: config.yaml decides between the engines
 * `python` (model/model.py) and `server` (docker_server), and says their settings and slots.
 *
 * Pure, but for memory. Thread: any.   Tests: tests/unit/test_model_plan.c
 */

#include <jansson.h>

#include "schema/model_plan.h"

#define TRUSS_SETTINGS_SIZE_MAX 60000 /* as JSON; a frame to the engine host takes 65,536 */

/* Whether the directory is a Truss: config.yaml, and code or a server beside it. */
bool truss_plan_fits(const struct model_facts *facts);

/* Fills in what headrace.json left open: engine, device, slots; `settings` gets what the engine is
 * given. ERR_UNSUPPORTED, ERR_RANGE and others as of truss_config_parse(). */
int truss_plan_make(const struct model_facts *facts, struct model_plan *plan, json_t *settings,
                    struct err *err) MUST_CHECK;
