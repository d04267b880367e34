/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * What a process of ours does before anything else: no death by SIGPIPE, as many descriptors as it
 * may have, fault points. Thread: main.
 */
void main_prepare(void);
