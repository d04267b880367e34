/* SPDX-License-Identifier: Apache-2.0 */

/*
 * RapidJSON's schema validator behind schema/json_schema.h: documents are checked as they are read,
 * and none is built. No exception leaves this file: the library throws none, and what the standard
 * library may throw (memory) is caught at each entry.
 */

#include "schema/json_schema_int.h"

#include <exception>
#include <memory>

#include <rapidjson/document.h>
#include <rapidjson/memorystream.h>
#include <rapidjson/reader.h>
#include <rapidjson/schema.h>
#include <rapidjson/stringbuffer.h>

struct json_schema {
    explicit json_schema(const rapidjson::Document &document) : compiled(document)
    {
    }
    rapidjson::SchemaDocument compiled;
};

int json_schema_compile(const char *text, size_t size, struct json_schema **ret_schema,
                        struct err *err)
{
    try {
        rapidjson::Document document;

        document.Parse<rapidjson::kParseIterativeFlag>(text, size);
        if (document.HasParseError())
            return err_set(err, ERR_MALFORMED, "the schema is no JSON at byte %zu",
                           document.GetErrorOffset());
        *ret_schema = new json_schema(document);
        return 0;
    } catch (const std::exception &e) {
        return err_set(err, ERR_INTERNAL, "the schema: %s", e.what());
    }
}

void json_schema_free(struct json_schema **schema_p)
{
    delete *schema_p;
    *schema_p = nullptr;
}

int json_schema_check(const struct json_schema *schema, const char *bytes, size_t size,
                      struct err *err)
{
    try {
        rapidjson::SchemaValidator validator(schema->compiled);
        rapidjson::MemoryStream stream(bytes, size);
        rapidjson::Reader reader;
        rapidjson::StringBuffer where;

        reader.Parse<rapidjson::kParseIterativeFlag>(stream, validator);
        if (!validator.IsValid()) {
            validator.GetInvalidDocumentPointer().Stringify(where);
            return err_set(err, ERR_MISMATCH, "'%s' does not hold at %.200s%s",
                           validator.GetInvalidSchemaKeyword(), where.GetString(),
                           where.GetSize() == 0 ? "its top" : "");
        }
        if (reader.HasParseError())
            return err_set(err, ERR_MALFORMED, "it is no JSON at byte %zu",
                           reader.GetErrorOffset());
        return 0;
    } catch (const std::exception &e) {
        return err_set(err, ERR_INTERNAL, "%s", e.what());
    }
}
