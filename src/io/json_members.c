#include "io/json_members.h"

#include "base/error.h"
#include "base/memory.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

static dcm_status wrong(json_members *m, size_t at, const char *what)
{
    m->at = at;
    snprintf(m->fault, sizeof m->fault, "%s", what);
    return DCM_ERR_FILE;
}

static void skip_space(json_members *m)
{
    while (m->at < m->size && m->text[m->at] && strchr(" \t\r\n", m->text[m->at]))
        m->at++;
}

/* Place of the comma or brace that ends the member at m->at, or m->size; objects and lists in it. */
static size_t find_end(const json_members *m, size_t *parts)
{
    size_t depth = 0, at = m->at;
    bool inside = false;
    *parts = 0;
    for (; at < m->size; at++) {
        const char c = m->text[at];
        if (c == '"')
            inside = !inside;
        else if (inside)
            at += c == '\\' && at + 1 < m->size;
        else if (depth == 0 && (c == ',' || c == '}'))
            break;
        else if (c == '{' || c == '[')
            depth++, ++*parts;
        else if (depth > 0 && (c == '}' || c == ']'))
            depth--;
    }
    return at;
}

/* The text from m->at to `end` as an object of one member. */
static dcm_status parse(json_members *m, size_t end, json_t **member)
{
    const size_t size = end - m->at;
    json_error_t error;
    if (!m->piece) {
        const dcm_status status = mem_new(&m->piece, JSON_MEMBER_MAX + 2, 1, "a JSON member");
        if (status != DCM_OK)
            return status;
    }
    m->piece[0] = '{';
    memcpy(m->piece + 1, m->text + m->at, size);
    m->piece[size + 1] = '}';
    *member = json_loadb(m->piece, size + 2, JSON_REJECT_DUPLICATES, &error);
    if (!*member && !error.text[0]) /* of memory jansson says nothing */
        return dcm_fail(DCM_ERR_MEMORY, "host memory: no room for a JSON member of %zu bytes", size);
    if (!*member)
        return wrong(m, m->at + (size_t)error.position - 1, error.text);
    if (json_object_size(*member) == 1)
        return DCM_OK;
    json_decref(*member);
    *member = NULL;
    return wrong(m, m->at, "a member is missing");
}

static dcm_status finish(json_members *m)
{
    m->at++;
    skip_space(m);
    return m->at == m->size ? DCM_OK : wrong(m, m->at, "text behind the object's end");
}

/* Behind a member m->at is the comma or brace that ends it. */
dcm_status json_members_next(json_members *m, json_t **member)
{
    *member = NULL;
    if (!m->begun) {
        skip_space(m);
        if (m->at == m->size || m->text[m->at] != '{')
            return wrong(m, m->at, "no JSON object");
        m->at++;
        skip_space(m);
        if (m->at < m->size && m->text[m->at] == '}')
            return finish(m);
    } else {
        if (m->text[m->at] != ',')
            return finish(m);
        m->at++;
    }
    m->begun = 1;
    size_t parts;
    const size_t end = find_end(m, &parts);
    if (end == m->size)
        return wrong(m, m->at, "the object has no end");
    if (end - m->at > JSON_MEMBER_MAX || parts > JSON_MEMBER_PARTS) {
        snprintf(m->fault, sizeof m->fault, "a member of %zu bytes and %zu parts (%d and %d are allowed)", end - m->at,
                 parts, JSON_MEMBER_MAX, JSON_MEMBER_PARTS);
        return DCM_ERR_FILE;
    }
    const dcm_status status = parse(m, end, member);
    if (status == DCM_OK)
        m->at = end;
    return status;
}

void json_members_end(json_members *m) { mem_free(&m->piece); }
