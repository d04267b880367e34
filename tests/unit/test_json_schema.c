/* SPDX-License-Identifier: Apache-2.0 */

/* Goal: a document is taken or refused as its schema says, at the right place; and a schema is
 * refused by word and place where it says what nobody checks, or could be made to cost anything. */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <string.h>

#include "base/buf.h"
#include "schema/json_schema.h"

static int schema_new(const char *text, struct json_schema **ret_schema, struct err *err)
{
    json_t *json = json_loads(text, JSON_DECODE_ANY, NULL);
    int r;

    assert_non_null(json);
    r = json_schema_new(json, ret_schema, err);
    json_decref(json);
    return r;
}

/* why NULL: the document is right. */
static void expect(const char *schema_text, const char *document, const char *why)
{
    OWNED(json_schema_free) struct json_schema *schema = NULL;
    struct err err;
    int r;

    if (schema_new(schema_text, &schema, &err) < 0)
        fail_msg("%s: %s", schema_text, err.text);
    r = json_schema_check(schema, document, strlen(document), &err);
    if (r != (why == NULL ? 0 : ERR_MISMATCH) || (r < 0 && strstr(err.text, why) == NULL))
        fail_msg("%s: %s: %d %s", schema_text, document, r, r < 0 ? err.text : "");
}

static void test_documents(void **state)
{
    static const char shop[] =
        "{\"type\":\"object\",\"required\":[\"id\"],\"properties\":{"
        "\"id\":{\"type\":\"integer\",\"minimum\":1},\"tags\":{\"type\":\"array\","
        "\"items\":{\"type\":\"string\",\"maxLength\":3},\"maxItems\":2}},"
        "\"additionalProperties\":false}";
    static const char tree[] =
        "{\"$ref\":\"#/$defs/node\",\"$defs\":{\"node\":{\"type\":\"object\",\"required\":[\"v\"],"
        "\"properties\":{\"v\":{\"type\":\"number\"},\"next\":{\"$ref\":\"#/$defs/node\"}}}}}";
    static const struct {
        const char *schema, *document, *why;
    } cases[] = {
        {shop, "{\"id\":1,\"tags\":[\"a\",\"\xc3\xbc\xc3\xbc\xc3\xbc\"]}", NULL},
        {shop, "{\"tags\":[]}", "'required' does not hold at its top"},
        {shop, "{\"id\":0}", "'minimum' does not hold at /id"},
        {shop, "{\"id\":1.5}", "'type' does not hold at /id"},
        {shop, "{\"id\":1,\"tags\":[\"a\",\"abcd\"]}", "'maxLength' does not hold at /tags/1"},
        {shop, "{\"id\":1,\"tags\":[\"a\",\"b\",\"c\"]}", "'maxItems' does not hold at /tags"},
        {shop, "{\"id\":1,\"more\":2}", "'additionalProperties' does not hold at /more"},
        {shop, "[]", "'type' does not hold at its top"},
        {"true", "null", NULL},
        {"{}", "[1,{}]", NULL},
        {"false", "null", "'not' does not hold"},
        {"{\"const\":5}", "5", NULL},
        {"{\"const\":5}", "6", "does not hold at its top"},
        {"{\"const\":null,\"title\":\"x\"}", "0", "does not hold"},
        {"{\"enum\":[\"a\",\"b\"]}", "\"b\"", NULL},
        {"{\"enum\":[\"a\",\"b\"]}", "\"c\"", "'enum'"},
        {"{\"exclusiveMinimum\":3}", "3", "does not hold"},
        {"{\"exclusiveMinimum\":3,\"minimum\":1}", "3.5", NULL},
        {"{\"exclusiveMaximum\":3,\"maximum\":2}", "2.5", "'maximum'"},
        {"{\"exclusiveMaximum\":true,\"maximum\":2}", "2", "'maximum'"},
        {"{\"anyOf\":[{\"type\":\"string\"},{\"type\":\"null\"}]}", "null", NULL},
        {"{\"anyOf\":[{\"type\":\"string\"},{\"type\":\"null\"}]}", "1", "'anyOf'"},
        {"{\"items\":[{\"type\":\"integer\"},true],\"additionalItems\":false}", "[1,2]", NULL},
        {"{\"items\":[{\"type\":\"integer\"},true],\"additionalItems\":false}", "[1,2,3]",
         "'items'"},
        {"{\"properties\":{\"enum\":{\"type\":\"object\"},\"$ref\":{\"type\":\"integer\"}}}",
         "{\"enum\":{},\"$ref\":\"x\"}", "'type' does not hold at /$ref"},
        {tree, "{\"v\":1,\"next\":{\"v\":2}}", NULL},
        {tree, "{\"v\":1,\"next\":{\"v\":2,\"next\":{}}}", "does not hold at"},
        {"{\"$ref\":\"#/definitions/a\",\"maximum\":9,\"definitions\":{\"a\":{\"minimum\":5}}}",
         "10", "'maximum'"},
        {"{\"$ref\":\"#/definitions/a\",\"maximum\":9,\"definitions\":{\"a\":{\"minimum\":5}}}",
         "4", "'allOf'"},
        {"{\"$ref\":\"#/$defs/a b\",\"$defs\":{\"a b\":false}}", "1", "does not hold"},
        {"{\"properties\":{\"again\":{\"$ref\":\"#\"}},\"additionalProperties\":false}",
         "{\"again\":{\"again\":{\"no\":1}}}", "does not hold at"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(cases); i++)
        expect(cases[i].schema, cases[i].document, cases[i].why);
}

static void test_what_is_no_document(void **state)
{
    OWNED(json_schema_free) struct json_schema *schema = NULL;
    struct err err;

    (void)state;
    assert_int_equal(schema_new("{}", &schema, &err), 0);
    assert_int_equal(json_schema_check(schema, "{\"a\":", 5, &err), ERR_MALFORMED);
    assert_int_equal(json_schema_check(schema, "", 0, &err), ERR_MALFORMED);
    assert_int_equal(json_schema_check(schema, "1 2", 3, &err), ERR_MALFORMED);
}

static void test_schemas_that_are_refused(void **state)
{
    static const struct {
        const char *schema;
        int code;
        const char *why;
    } cases[] = {
        {"5", ERR_MALFORMED, "it must be a schema: an object, true or false"},
        {"{\"properties\":{\"a\":{\"type\":\"text\"}}}", ERR_MALFORMED,
         "properties.a.type must be null, boolean"},
        {"{\"type\":[]}", ERR_MALFORMED, "type must be"},
        {"{\"items\":[{\"allOf\":[]}]}", ERR_MALFORMED, "items.0.allOf must be a list of a schema"},
        {"{\"properties\":[]}", ERR_MALFORMED, "properties must be an object"},
        {"{\"required\":[1]}", ERR_MALFORMED, "required must be a list of texts"},
        {"{\"minLength\":-1}", ERR_MALFORMED, "minLength must be a whole number"},
        {"{\"multipleOf\":0}", ERR_MALFORMED, "multipleOf must be"},
        {"{\"enum\":[]}", ERR_MALFORMED, "enum must be"},
        {"{\"enum\":[{\"patternProperties\":5}]}", ERR_MALFORMED, "enum must be"},
        {"{\"pattern\":\"(a+)+$\"}", ERR_UNSUPPORTED, "pattern is not checked here"},
        {"{\"not\":{\"uniqueItems\":true}}", ERR_UNSUPPORTED, "not.uniqueItems is not checked"},
        {"{\"$ref\":\"http://x/y\"}", ERR_MALFORMED, "$ref must be #, "},
        {"{\"$ref\":\"#/definitions/a\"}", ERR_MALFORMED, "that has to be there"},
        {"{\"allOf\":[{\"$ref\":\"#\"}]}", ERR_TOO_BIG, "refers to itself without going into"},
        {"{\"definitions\":{\"a\":{\"$ref\":\"#/definitions/b\"},\"b\":{\"$ref\":"
         "\"#/definitions/a\"}}}",
         ERR_TOO_BIG, "refers to itself"},
    };

    (void)state;
    for (size_t i = 0; i < COUNT_OF(cases); i++) {
        OWNED(json_schema_free) struct json_schema *schema = NULL;
        struct err err;
        int r = schema_new(cases[i].schema, &schema, &err);

        if (r != cases[i].code || strstr(err.text, cases[i].why) == NULL)
            fail_msg("%s: %d %s", cases[i].schema, r, r < 0 ? err.text : "");
    }
}

/* Each of twenty definitions names the next one twice: a million looks at one value. */
static void test_a_schema_that_doubles(void **state)
{
    OWNED(json_schema_free) struct json_schema *schema = NULL;
    json_t *defs = json_object(), *json;
    struct err err;

    (void)state;
    for (int i = 0; i < 20; i++) {
        char name[16], next[40];

        (void)snprintf(name, sizeof(name), "d%d", i);
        (void)snprintf(next, sizeof(next), "#/$defs/d%d", i == 19 ? 0 : i + 1);
        (void)json_object_set_new(
            defs, name,
            i == 19 ? json_object()
                    : json_pack("{s:[{s:s}, {s:s}]}", "anyOf", "$ref", next, "$ref", next));
    }
    json = json_pack("{s:o, s:s}", "$defs", defs, "$ref", "#/$defs/d0");
    assert_int_equal(json_schema_new(json, &schema, &err), ERR_TOO_BIG);
    json_decref(json);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_documents),
        cmocka_unit_test(test_what_is_no_document),
        cmocka_unit_test(test_schemas_that_are_refused),
        cmocka_unit_test(test_a_schema_that_doubles),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
