/* SPDX-License-Identifier: Apache-2.0 */

#include "brokers/address_guard.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define ADDRESS_TEXT_MAX 64
#define V4_OFFSET 96 /* bits in front of an IPv4 address in ::ffff:0:0/96 */

static const char refused_text[] =
    "0.0.0.0/8,10.0.0.0/8,100.64.0.0/10,127.0.0.0/8,169.254.0.0/16,172.16.0.0/12,"
    "192.0.0.0/24,192.0.2.0/24,192.88.99.0/24,192.168.0.0/16,198.18.0.0/15,198.51.100.0/24,"
    "203.0.113.0/24,224.0.0.0/4,240.0.0.0/4,"
    "::/96,64:ff9b::/96,64:ff9b:1::/48,100::/64,2001::/23,2001:db8::/32,2002::/16,fc00::/7,"
    "fe80::/10,fec0::/10,ff00::/8";

/* "10.0.0.0/8" or "::1" into bytes and bits. */
static int prefix_parse(const char *text, size_t size, struct address_prefix *ret, struct err *err)
{
    char copy[ADDRESS_TEXT_MAX];
    struct address_prefix prefix = {.bits = 128};
    char *slash;
    int bits = -1, end = 0;
    bool v4;

    if (size == 0 || size >= sizeof(copy))
        return err_set(err, ERR_USAGE, "'%.*s' is no address", (int)size, text);
    memcpy(copy, text, size);
    copy[size] = '\0';
    slash = strchr(copy, '/');
    if (slash != NULL) {
        *slash = '\0';
        if (sscanf(slash + 1, "%3d%n", &bits, &end) != 1 || slash[1 + end] != '\0' || bits < 0)
            return err_set(err, ERR_USAGE, "'%.*s': no number of bits behind '/'", (int)size, text);
    }
    v4 = inet_pton(AF_INET, copy, prefix.bytes + 12) == 1;
    if (v4)
        memset(prefix.bytes + 10, 0xff, 2);
    else if (inet_pton(AF_INET6, copy, prefix.bytes) != 1)
        return err_set(err, ERR_USAGE, "'%.*s' is no IPv4 or IPv6 address", (int)size, text);
    if (bits > (v4 ? 32 : 128))
        return err_set(err, ERR_USAGE, "'%.*s': at most %d bits", (int)size, text, v4 ? 32 : 128);
    if (bits >= 0)
        prefix.bits = v4 ? V4_OFFSET + bits : bits;
    *ret = prefix;
    return 0;
}

static bool prefix_matches(const struct address_prefix *prefix, const uint8_t bytes[16])
{
    int whole = prefix->bits / 8, rest = prefix->bits % 8;
    uint8_t mask = (uint8_t)(0xff00 >> rest);

    if (memcmp(prefix->bytes, bytes, (size_t)whole) != 0)
        return false;
    return rest == 0 || ((prefix->bytes[whole] ^ bytes[whole]) & mask) == 0;
}

int address_allow_parse(const char *text, struct address_allow *ret_allow, struct err *err)
{
    struct address_allow allow = {.count = 0};

    while (*text != '\0') {
        size_t size = strcspn(text, ",");
        int r;

        if (allow.count == ADDRESS_ALLOW_MAX)
            return err_set(err, ERR_USAGE, "more than %d allowed address ranges",
                           ADDRESS_ALLOW_MAX);
        r = prefix_parse(text, size, &allow.prefixes[allow.count], err);
        if (r < 0)
            return r;
        allow.count++;
        text += size + (text[size] == ',');
    }
    *ret_allow = allow;
    return 0;
}

static bool list_matches(const struct address_allow *list, const uint8_t bytes[16])
{
    for (int i = 0; i < list->count; i++) {
        if (prefix_matches(&list->prefixes[i], bytes))
            return true;
    }
    return false;
}

static const struct address_allow *refused_list(void)
{
    static struct address_allow refused;
    struct err err;

    if (refused.count == 0 && address_allow_parse(refused_text, &refused, &err) < 0)
        return NULL; /* a fault in the constant above; the unit test reads every range of it */
    return &refused;
}

bool address_allowed(const struct address_allow *allow, const struct sockaddr *address)
{
    const struct address_allow *refused = refused_list();
    uint8_t bytes[16] = {[10] = 0xff, [11] = 0xff};

    if (address->sa_family == AF_INET)
        memcpy(bytes + 12, &((const struct sockaddr_in *)address)->sin_addr, 4);
    else if (address->sa_family == AF_INET6)
        memcpy(bytes, &((const struct sockaddr_in6 *)address)->sin6_addr, 16);
    else
        return false;
    if (list_matches(allow, bytes))
        return true;
    return refused != NULL && !list_matches(refused, bytes);
}
