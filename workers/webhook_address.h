/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Which addresses a webhook may be sent to. A user's URL must not reach the platform's own
 * network (server-side request forgery): loopback, private, link-local, shared, multicast,
 * reserved and metadata addresses are refused unless the operator lists them. It is asked about
 * the resolved address of every new connection, so names that change their answer do not help.
 *
 * Source: IANA special-purpose address registries (RFC 6890 and updates).
 * Thread: any.   Tests: tests/unit/test_webhook_address.c
 */

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#include "base/err.h"

#define WEBHOOK_ALLOW_MAX 32

/* A prefix of IPv6 space; IPv4 stands in ::ffff:0:0/96. */
struct webhook_prefix {
    uint8_t bytes[16];
    int bits;
};

struct webhook_allow {
    struct webhook_prefix prefixes[WEBHOOK_ALLOW_MAX];
    int count;
};

/* Reads "127.0.0.0/8,::1,10.1.2.3"; empty text: nothing is allowed beyond public addresses. */
int webhook_allow_parse(const char *text, struct webhook_allow *ret_allow,
                        struct err *err) MUST_CHECK;

bool webhook_address_allowed(const struct webhook_allow *allow, const struct sockaddr *address);
