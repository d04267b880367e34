/* SPDX-License-Identifier: Apache-2.0 */

#include "schema/websocket.h"

#include <jansson.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/assert.h"

#define ACCEPT_SALT "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
#define CONTROL_SIZE_MAX 125
#define OPCODE_CLOSE 8

bool websocket_is_route(struct wire_text route)
{
    size_t size = strlen(WEBSOCKET_METHOD " ");

    return route.size > size && memcmp(route.text, WEBSOCKET_METHOD " ", size) == 0;
}

/* ---- the handshake ---- */

bool websocket_list_has(const char *list, const char *word)
{
    size_t size = strlen(word);

    while (list != NULL && *list != '\0') {
        size_t end, at = strspn(list, " \t,");

        list += at;
        end = strcspn(list, ",");
        at = end;
        while (at > 0 && (list[at - 1] == ' ' || list[at - 1] == '\t'))
            at--;
        if (at == size && strncasecmp(list, word, size) == 0)
            return true;
        list += end;
    }
    return false;
}

/* 16 bytes in base64. */
static bool key_is_sane(const char *key)
{
    static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
                                   "0123456789+/";

    return key != NULL && strlen(key) == WEBSOCKET_KEY_SIZE &&
           strspn(key, alphabet) == WEBSOCKET_KEY_SIZE - 2 && strcmp(key + 22, "==") == 0;
}

int websocket_ask_check(const struct websocket_ask *ask, const char **ret_text)
{
    if (!websocket_list_has(ask->upgrade, "websocket")) {
        *ret_text = "this route is a websocket: the request must say 'Upgrade: websocket'";
        return 426;
    }
    if (!websocket_list_has(ask->connection, "upgrade")) {
        *ret_text = "a websocket's handshake must say 'Connection: Upgrade'";
        return 400;
    }
    if (ask->version == NULL || strcmp(ask->version, "13") != 0) {
        *ret_text = "Sec-WebSocket-Version must be 13";
        return 426;
    }
    if (!key_is_sane(ask->key)) {
        *ret_text = "Sec-WebSocket-Key must be 16 bytes in base64";
        return 400;
    }
    return 0;
}

void websocket_accept(const char *key, char to[WEBSOCKET_ACCEPT_SIZE])
{
    char text[128];
    uint8_t digest[EVP_MAX_MD_SIZE];
    unsigned size = 0;
    int n = snprintf(text, sizeof(text), "%.*s" ACCEPT_SALT, WEBSOCKET_KEY_SIZE, key);

    if (EVP_Digest(text, (size_t)n, digest, &size, EVP_sha1(), NULL) != 1)
        NEVER("OpenSSL has SHA-1");
    (void)EVP_EncodeBlock((unsigned char *)to, digest, (int)size);
}

/* ---- what is told between programs ---- */

static void text_write(struct buf *to, const char *before, const char *name, const char *text)
{
    json_t *json = json_string(text);
    char *dumped = json == NULL ? NULL : json_dumps(json, JSON_ENCODE_ANY);

    buf_printf(to, "%s\"%s\":%s", before, name, dumped == NULL ? "\"\"" : dumped);
    free(dumped);
    json_decref(json);
}

/* A member that is a text of printable ASCII, which can stand in a header. */
static int text_read(const json_t *from, const char *name, char *to, size_t to_size,
                     struct err *err)
{
    const char *text = json_string_value(json_object_get(from, name));
    size_t size = text == NULL ? 0 : strlen(text);

    if (text == NULL)
        return err_set(err, ERR_MALFORMED, "websocket: '%s' is no text", name);
    if (size >= to_size)
        return err_set(err, ERR_RANGE, "websocket: '%s' has %zu bytes; at most %zu are allowed",
                       name, size, to_size - 1);
    for (size_t i = 0; i < size; i++) {
        if (text[i] < 0x20 || text[i] >= 0x7f)
            return err_set(err, ERR_RANGE, "websocket: '%s' has a character that no header has",
                           name);
    }
    memcpy(to, text, size + 1);
    return 0;
}

static int object_read(struct wire_bytes bytes, json_t **ret_object, struct err *err)
{
    json_t *json = json_loadb((const char *)bytes.bytes, bytes.size, 0, NULL);

    if (json_is_object(json)) {
        *ret_object = json;
        return 0;
    }
    json_decref(json);
    return err_set(err, ERR_MALFORMED, "websocket: %zu bytes that are no JSON object", bytes.size);
}

void websocket_offer_write(const struct websocket_offer *offer, struct buf *to)
{
    text_write(to, "{", "gateway", offer->gateway);
    text_write(to, ",", "token", offer->token);
    text_write(to, ",", "key", offer->key);
    text_write(to, ",", "protocols", offer->protocols);
    text_write(to, ",", "extensions", offer->extensions);
    buf_append_byte(to, '}');
}

int websocket_offer_read(struct wire_bytes bytes, struct websocket_offer *ret_offer,
                         struct err *err)
{
    json_t *json;
    int r = object_read(bytes, &json, err);

    if (r < 0)
        return r;
#define READ(member)                                                                               \
    if (r == 0)                                                                                    \
    r = text_read(json, #member, ret_offer->member, sizeof(ret_offer->member), err)
    READ(gateway);
    READ(token);
    READ(key);
    READ(protocols);
    READ(extensions);
#undef READ
    json_decref(json);
    if (r == 0 && (strlen(ret_offer->token) != WEBSOCKET_TOKEN_SIZE - 1 ||
                   strspn(ret_offer->token, "0123456789abcdef") != WEBSOCKET_TOKEN_SIZE - 1))
        r = err_set(err, ERR_RANGE, "websocket: a token is no 32 hexadecimal digits");
    if (r == 0 && !key_is_sane(ret_offer->key))
        r = err_set(err, ERR_RANGE, "websocket: a key is no 16 bytes in base64");
    return r;
}

void websocket_answer_write(const struct websocket_answer *answer, struct buf *to)
{
    text_write(to, "{", "protocol", answer->protocol);
    text_write(to, ",", "extensions", answer->extensions);
    buf_append_text(to, "}\n");
}

int websocket_answer_read(struct wire_bytes line, struct websocket_answer *ret_answer,
                          struct err *err)
{
    json_t *json;
    int r = object_read(line, &json, err);

    if (r < 0)
        return r;
    r = text_read(json, "protocol", ret_answer->protocol, sizeof(ret_answer->protocol), err);
    if (r == 0)
        r = text_read(json, "extensions", ret_answer->extensions, sizeof(ret_answer->extensions),
                      err);
    json_decref(json);
    return r;
}

/* ---- a server's own answer ---- */

static void value_copy(char *to, size_t to_size, const char *text, size_t size)
{
    size_t used = strlen(to);

    /* Said twice, a list goes on. */
    (void)snprintf(to + used, to_size - used, "%s%.*s", used > 0 ? ", " : "", (int)size, text);
}

static int header_read(const char *line, size_t size, struct websocket_response *response,
                       struct err *err)
{
    const struct {
        const char *name;
        char *to;
        size_t to_size;
    } headers[] = {
        {"Upgrade", response->upgrade, sizeof(response->upgrade)},
        {"Sec-WebSocket-Accept", response->accept, sizeof(response->accept)},
        {"Content-Type", response->type, sizeof(response->type)},
        {"Sec-WebSocket-Protocol", response->answer.protocol, sizeof(response->answer.protocol)},
        {"Sec-WebSocket-Extensions", response->answer.extensions,
         sizeof(response->answer.extensions)},
    };
    const char *colon = memchr(line, ':', size), *value;
    size_t name_size = colon == NULL ? 0 : (size_t)(colon - line), value_size;

    if (name_size == 0)
        return err_set(err, ERR_MALFORMED, "the server answers with a header that has no name");
    value = colon + 1;
    value_size = size - name_size - 1;
    while (value_size > 0 && (*value == ' ' || *value == '\t'))
        value++, value_size--;
    while (value_size > 0 && (value[value_size - 1] == ' ' || value[value_size - 1] == '\t'))
        value_size--;
    for (size_t i = 0; i < COUNT_OF(headers); i++) {
        if (strlen(headers[i].name) == name_size &&
            strncasecmp(line, headers[i].name, name_size) == 0)
            value_copy(headers[i].to, headers[i].to_size, value, value_size);
    }
    if (name_size == 14 && strncasecmp(line, "Content-Length", 14) == 0 && value_size > 0 &&
        value_size <= 18) {
        response->has_length = true;
        response->length = 0;
        for (size_t i = 0; i < value_size && value[i] >= '0' && value[i] <= '9'; i++)
            response->length = 10 * response->length + (uint64_t)(value[i] - '0');
    }
    return 0;
}

static int status_read(const char *line, size_t size, int *ret_status, struct err *err)
{
    if (size < 12 || strncmp(line, "HTTP/1.", 7) != 0 || line[8] != ' ')
        return err_set(err, ERR_MALFORMED, "the server answers a handshake with no HTTP");
    *ret_status = 0;
    for (size_t i = 9; i < 12; i++) {
        if (line[i] < '0' || line[i] > '9')
            return err_set(err, ERR_MALFORMED, "the server answers a handshake without a status");
        *ret_status = 10 * *ret_status + (line[i] - '0');
    }
    return 0;
}

int websocket_response_read(struct wire_bytes bytes, struct websocket_response *ret_response,
                            struct err *err)
{
    const char *text = (const char *)bytes.bytes;
    const char *end = bytes.size == 0 ? NULL : memmem(text, bytes.size, "\r\n\r\n", 4);
    const char *line_end;
    int r;

    if (end == NULL && bytes.size >= WEBSOCKET_HEAD_SIZE_MAX)
        return err_set(err, ERR_TOO_BIG, "the head of the server's answer is over %d bytes",
                       WEBSOCKET_HEAD_SIZE_MAX);
    if (end == NULL)
        return 0;
    *ret_response = (struct websocket_response){.head_size = (size_t)(end - text) + 4};
    line_end = memmem(text, ret_response->head_size, "\r\n", 2);
    r = status_read(text, (size_t)(line_end - text), &ret_response->status, err);
    while (r == 0 && line_end < end) {
        const char *line = line_end + 2;

        line_end = memmem(line, (size_t)(end + 2 - line), "\r\n", 2);
        r = header_read(line, (size_t)(line_end - line), ret_response, err);
    }
    return r < 0 ? r : 1;
}

int websocket_response_check(const struct websocket_response *response, const char *key,
                             struct err *err)
{
    char accept[WEBSOCKET_ACCEPT_SIZE];

    websocket_accept(key, accept);
    if (response->status != 101)
        return err_set(err, ERR_MISMATCH, "the server answered %d", response->status);
    if (strcasecmp(response->upgrade, "websocket") != 0)
        return err_set(err, ERR_MISMATCH, "the server answered 101 for '%s', not for a websocket",
                       response->upgrade);
    if (strcmp(response->accept, accept) != 0)
        return err_set(err, ERR_MISMATCH,
                       "the server answered 101 with a Sec-WebSocket-Accept of another key");
    return 0;
}

/* ---- frames ---- */

static size_t head_need(const struct websocket_track *track)
{
    static const size_t more[] = {[126] = 2, [127] = 8};
    size_t need = 2;

    if (track->head_size < 2)
        return need;
    need += (track->head[1] & 0x7f) >= 126 ? more[track->head[1] & 0x7f] : 0;
    return need + ((track->head[1] & 0x80) != 0 ? 4 : 0);
}

static uint64_t head_length(const struct websocket_track *track)
{
    uint64_t length = track->head[1] & 0x7f;
    size_t count = length == 126 ? 2 : length == 127 ? 8 : 0;

    if (count > 0)
        length = 0;
    for (size_t i = 0; i < count; i++)
        length = length << 8 | track->head[2 + i];
    return length;
}

/* The frame's head is whole. */
static int frame_begin(struct websocket_track *track, struct err *err)
{
    uint8_t opcode = track->head[0] & 0x0f;
    bool is_control = (opcode & 8) != 0;

    track->left = head_length(track);
    track->close_size = 0;
    if (is_control)
        return 0;
    if (track->left > track->message_size_max ||
        track->message_size > track->message_size_max - track->left)
        return err_set(err, ERR_TOO_BIG, "a message has over %llu bytes",
                       (unsigned long long)track->message_size_max);
    track->message_size += track->left;
    return 0;
}

static void frame_end(struct websocket_track *track)
{
    uint8_t opcode = track->head[0] & 0x0f;
    bool masked = (track->head[1] & 0x80) != 0;

    if (opcode == OPCODE_CLOSE) {
        for (size_t i = 0; i < 2 && masked; i++)
            track->close[i] ^= track->head[track->head_size - 4 + i];
        track->close_code = WEBSOCKET_CLOSE_NONE;
        if (track->close_size == 2)
            track->close_code = (uint16_t)((unsigned)track->close[0] << 8 | track->close[1]);
    } else if ((opcode & 8) == 0 && (track->head[0] & 0x80) != 0) {
        track->message_count++;
        track->message_size = 0;
    }
    track->head_size = 0;
}

int websocket_track_bytes(struct websocket_track *track, const void *bytes, size_t size,
                          struct err *err)
{
    const uint8_t *at = bytes;
    int r;

    while (size > 0 && track->close_code == 0) {
        if (track->head_size < head_need(track)) {
            track->head[track->head_size++] = *at++;
            size--;
            if (track->head_size < head_need(track))
                continue;
            r = frame_begin(track, err);
            if (r < 0)
                return r;
        } else {
            size_t n = size < track->left ? size : (size_t)track->left;

            for (size_t i = 0; i < n && track->close_size < 2; i++)
                track->close[track->close_size++] = at[i];
            at += n;
            size -= n;
            track->left -= n;
        }
        if (track->left == 0)
            frame_end(track);
    }
    return 0;
}

bool websocket_track_is_between(const struct websocket_track *track)
{
    return track->head_size == 0;
}

size_t websocket_close_write(uint16_t code, const char *reason,
                             uint8_t to[WEBSOCKET_CLOSE_SIZE_MAX])
{
    size_t size = strlen(reason);

    if (size > CONTROL_SIZE_MAX - 2)
        size = CONTROL_SIZE_MAX - 2;
    to[0] = 0x80 | OPCODE_CLOSE;
    to[1] = (uint8_t)(size + 2);
    to[2] = (uint8_t)(code >> 8);
    to[3] = (uint8_t)code;
    memcpy(to + 4, reason, size);
    return size + 4;
}
