/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Which addresses a URL of a user's may lead to: that of a webhook, or of an input. It must not
 * reach the platform's own network (server-side request forgery): loopback, private, link-local,
 * shared, multicast, reserved and metadata addresses are refused unless the operator lists them. It
 * is asked about the resolved address of every new connection, so names that change their answer,
 * and redirects, do not help.
 *
 * Source: IANA special-purpose address registries (RFC 6890 and updates).
 * Thread: any.   Tests: tests/unit/test_address_guard.c
 */

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#include "base/err.h"

#define ADDRESS_ALLOW_MAX 32

/* A prefix of IPv6 space; IPv4 stands in ::ffff:0:0/96. */
struct address_prefix {
    uint8_t bytes[16];
    int bits;
};

struct address_allow {
    struct address_prefix prefixes[ADDRESS_ALLOW_MAX];
    int count;
};

/* Reads "127.0.0.0/8,::1,10.1.2.3"; empty text: nothing is allowed beyond public addresses. */
int address_allow_parse(const char *text, struct address_allow *ret_allow,
                        struct err *err) MUST_CHECK;

bool address_allowed(const struct address_allow *allow, const struct sockaddr *address);
