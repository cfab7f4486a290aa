/*
 * Chat templates: what they render to against goldens from Jinja (tests/golden/token/make_chat.py), in one go and turn
 * by turn; ways of writing one template that must be recognised, and changed ones that must not.
 */
#include "base/error.h"
#include "base/memory.h"
#include "token/chat.h"

#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

enum { MESSAGES_MAX = 8 };

static gguf_string string_of(const char *text) { return (gguf_string){text, strlen(text)}; }

static char *read_template(const char *name)
{
    char path[1024];
    snprintf(path, sizeof path, TEST_GOLDEN "/token/templates/%s", name);
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    char *text = calloc(1, 1 << 16);
    assert_non_null(text);
    assert_true(fread(text, 1, (1 << 16) - 1, file) > 0);
    fclose(file);
    return text;
}

static void open_template(chat *c, const char *text)
{
    *c = (chat){0};
    assert_int_equal(chat_open(c, string_of(text)), DCM_OK);
    c->bos = "<s>";
    c->eos = "</s>";
}

static size_t read_talk(const json_t *talk, dcm_chat_message *messages)
{
    size_t i;
    json_t *message;
    assert_true(json_array_size(talk) <= MESSAGES_MAX);
    json_array_foreach(talk, i, message) messages[i] = (dcm_chat_message){
        json_string_value(json_array_get(message, 0)), json_string_value(json_array_get(message, 1))};
    return json_array_size(talk);
}

/* The golden with the day put in. */
static char *with_today(const char *text)
{
    static const char mark[] = "@TODAY@";
    char day[32];
    const time_t now = time(NULL);
    char *out = calloc(1, strlen(text) + sizeof day);
    const char *at = strstr(text, mark);
    assert_non_null(out);
    if (!at)
        return strcpy(out, text);
    strftime(day, sizeof day, "%d %b %Y", localtime(&now));
    sprintf(out, "%.*s%s%s", (int)(at - text), text, day, at + strlen(mark));
    return out;
}

/* Every way of cutting the conversation in two gives the whole text again, or is refused because earlier text would
 * change. */
static void check_increments(const chat *c, const dcm_chat_message *messages, size_t count, bool generate,
                             const char *whole, size_t *refused)
{
    for (size_t first = 0; first <= count; first++) {
        char *head = NULL, *tail = NULL, joined[8192];
        const dcm_status before = chat_render(c, messages, 0, first, false, &head);
        const dcm_status status = chat_render(c, messages, first, count, generate, &tail);
        if (status != DCM_OK) {
            assert_int_equal(status, DCM_ERR_USAGE);
            assert_null(tail);
            ++*refused;
        } else {
            assert_int_equal(before, DCM_OK);
            snprintf(joined, sizeof joined, "%s%s", head, tail);
            assert_string_equal(joined, whole);
        }
        dcm_free(head);
        dcm_free(tail);
    }
}

static void test_goldens(void **state)
{
    (void)state;
    size_t i, rendered = 0, refused = 0, cut_refused = 0;
    json_error_t error;
    json_t *item, *root = json_load_file(TEST_GOLDEN "/token/chat.json", 0, &error);
    assert_non_null(root);
    json_array_foreach(json_object_get(root, "cases"), i, item)
    {
        dcm_chat_message messages[MESSAGES_MAX];
        const char *name = json_string_value(json_array_get(item, 0)),
                   *golden = json_string_value(json_array_get(item, 3));
        const size_t talk = (size_t)json_integer_value(json_array_get(item, 1));
        const bool generate = json_is_true(json_array_get(item, 2));
        const size_t count = read_talk(json_array_get(json_object_get(root, "talks"), talk), messages);
        chat c;
        char *template = read_template(name), *text = NULL;
        open_template(&c, template);
        if (!c.name)
            fail_msg("%s is not recognised: digest 0x%016llx", name, (unsigned long long)c.digest);
        const dcm_status status = chat_render(&c, messages, 0, count, generate, &text);
        if (!golden) {
            assert_int_equal(status, DCM_ERR_USAGE);
            refused++;
        } else {
            char *expected = with_today(golden);
            if (status != DCM_OK)
                fail_msg("%s, talk %zu: %s", name, talk, dcm_error());
            if (strcmp(text, expected) != 0)
                fail_msg("%s, talk %zu:\n%s\nbut Jinja:\n%s", name, talk, text, expected);
            size_t cuts = 0;
            check_increments(&c, messages, count, generate, text, &cuts);
            if (cuts > 0) /* only this one moves the system message to the last turn */
                assert_string_equal(c.name, "mistral-v3");
            cut_refused += cuts;
            rendered++;
            free(expected);
        }
        dcm_free(text);
        chat_close(&c);
        free(template);
    }
    assert_true(rendered > 300 && refused > 30 && cut_refused > 0);
    json_decref(root);
}

static void test_names(void **state)
{
    (void)state;
    static const char *const names[][2] = {
        {"chatml.jinja", "chatml"},         {"smollm2.jinja", "smollm2"},       {"qwen2.jinja", "chatml"},
        {"qwen25.jinja", "qwen2.5"},        {"llama3.jinja", "llama3"},         {"llama31.jinja", "llama3.1"},
        {"llama32.jinja", "llama3.2"},      {"llama2.jinja", "llama2"},         {"mistral.jinja", "mistral"},
        {"mistral_v1.jinja", "mistral-v1"}, {"mistral_v3.jinja", "mistral-v3"}, {"mistral_v7.jinja", "mistral-v7"},
        {"zephyr.jinja", "zephyr"},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        chat c;
        char *template = read_template(names[i][0]);
        open_template(&c, template);
        assert_string_equal(c.name, names[i][1]);
        chat_close(&c);
        free(template);
    }
}

/* Other ways of writing ChatML, each rendering alike under Jinja with Hugging Face's settings. */
static void test_other_writing(void **state)
{
    (void)state;
    static const char *const same[] = {
        "{%- for message in messages %}\n    {{- \"<|im_start|>\" + message.role + \"\\n\" + message.content + "
        "'<|im_end|>\\n' }}\n"
        "{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n",
        "{# ChatML #}\n{% for message in messages %}\r\n  {{- '<|im_start|>' + message [ 'role' ]+ '\n' "
        "+message[\"content\"]+ '<|im_end|>' + '\n'}}{% "
        "endfor %}\n  {% if add_generation_prompt %}\n<|im_start|>assistant\n{% endif %}",
    };
    for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
        chat c;
        open_template(&c, same[i]);
        if (!c.name)
            fail_msg("writing %zu is not recognised", i);
        assert_string_equal(c.name, "chatml");
        chat_close(&c);
    }
}

/* Changes that render differently must not be taken for the template. */
static void test_changed(void **state)
{
    (void)state;
    static const char *const changes[][3] = {
        {"chatml.jinja", "<|im_end|>", "<|im_stop|>"},
        {"chatml.jinja", "message['content']", "message['content'] | trim"},
        {"chatml.jinja", "{% endfor %}", "{% endfor %} "},
        {"chatml.jinja", "{% endfor %}", "\n{% endfor %}"},
        {"chatml.jinja", "{% for", "{{ '' }}\n{{ '' }}{% for"},
        {"chatml.jinja", "'<|im_end|>' + '\\n'", "'<|im_end|>' + '\\n' | trim"},
        {"chatml.jinja", "'<|im_end|>' + '\\n'", "'<|im_end|>' + '\\\\n'"},
        {"smollm2.jinja", "!= 'system'", "== 'system'"},
        {"smollm2.jinja", "{% if loop.first", "{% if loop.last"},
        {"zephyr.jinja", "eos_token }}", "eos_token -}}"},
        {"zephyr.jinja", "{% endfor %}", " x\n{% endfor %}"},
        {"mistral.jinja", "' [/INST]'", "'[/INST]'"},
        {"llama3.jinja", "| trim", ""},
        {"qwen25.jinja", "not loop.first", "loop.first"},
    };
    for (size_t i = 0; i < sizeof changes / sizeof *changes; i++) {
        char changed[8192], *text = NULL;
        chat c;
        const dcm_chat_message hi = {"user", "hi"};
        char *template = read_template(changes[i][0]);
        const char *at = strstr(template, changes[i][1]);
        assert_non_null(at);
        snprintf(changed, sizeof changed, "%.*s%s%s", (int)(at - template), template, changes[i][2],
                 at + strlen(changes[i][1]));
        open_template(&c, changed);
        if (c.name)
            fail_msg("change %zu of %s is taken for %s", i, changes[i][0], c.name);
        assert_int_equal(chat_render(&c, &hi, 0, 1, true, &text), DCM_ERR_FILE);
        assert_non_null(strstr(dcm_error(), "not one of those known"));
        assert_null(text);
        chat_close(&c);
        free(template);
    }
}

/* The default system message is the template's own, whatever it says. */
static void test_default_system(void **state)
{
    (void)state;
    static const char template[] =
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ "
        "'<|im_start|>system\\nSay \"yes\" \\\\ '"
        " + 'no.<|im_end|>\\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + "
        "'<|im_end|>' + '\\n'}}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
    const dcm_chat_message hi = {"user", "hi"};
    char *text = NULL;
    chat c;
    open_template(&c, template);
    assert_string_equal(c.name, "chatml");
    assert_int_equal(chat_render(&c, &hi, 0, 1, false, &text), DCM_OK);
    assert_string_equal(text, "<|im_start|>system\nSay \"yes\" \\ no.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n");
    dcm_free(text);
    chat_close(&c);
}

static void test_wrong_calls(void **state)
{
    (void)state;
    const dcm_chat_message tool = {"tool", "x"};
    char *text = NULL;
    chat c = {0};
    assert_int_equal(chat_render(&c, &tool, 0, 1, true, &text), DCM_ERR_FILE);
    assert_non_null(strstr(dcm_error(), "no chat template"));
    char *template = read_template("chatml.jinja");
    open_template(&c, template);
    assert_int_equal(chat_render(&c, &tool, 0, 1, true, &text), DCM_ERR_USAGE);
    assert_int_equal(chat_render(&c, &tool, 2, 1, true, &text), DCM_ERR_USAGE);
    assert_int_equal(chat_render(&c, NULL, 0, 0, true, &text), DCM_OK);
    assert_string_equal(text, "");
    dcm_free(text);
    chat_close(&c);
    free(template);
}

/* Broken templates are unknown, not trouble. */
static void test_broken(void **state)
{
    (void)state;
    char *template = read_template("qwen25.jinja");
    for (size_t size = 0; size < strlen(template) - 1; size++) {
        char *part = malloc(size ? size : 1); /* exact, so that tools see a read past the end */
        chat c = {0};
        assert_non_null(part);
        memcpy(part, template, size);
        assert_int_equal(chat_open(&c, (gguf_string){part, size}), DCM_OK);
        assert_null(c.name);
        chat_close(&c);
        free(part);
    }
    free(template);
}

/* Longer ones are not even read. */
static void test_too_long(void **state)
{
    (void)state;
    const size_t size = CHAT_TEMPLATE_MAX + 1;
    char *text = malloc(size);
    chat c = {0}, other = {0};
    assert_non_null(text);
    memset(text, ' ', size);
    assert_int_equal(chat_open(&c, (gguf_string){text, size}), DCM_OK);
    assert_null(c.name);
    text[size - 1] = '!';
    assert_int_equal(chat_open(&other, (gguf_string){text, size}), DCM_OK);
    assert_true(c.digest != 0 && other.digest != c.digest);
    free(text);
}

static void same_form(const char *a, const char *b, bool same)
{
    char *x, *y;
    assert_int_equal(chat_canonical(string_of(a), &x), DCM_OK);
    assert_int_equal(chat_canonical(string_of(b), &y), DCM_OK);
    if ((strcmp(x, y) == 0) != same)
        fail_msg("%s -> %s\n%s -> %s: should be %s", a, x, b, y, same ? "alike" : "different");
    dcm_free(x);
    dcm_free(y);
}

/* As Jinja's lexer has it: a value's item by name is its attribute, "+=" is no operator, "\r" ends a line. */
static void test_forms(void **state)
{
    (void)state;
    same_form("{{ f(x)['name'] }}", "{{ f(x).name }}", true);
    same_form("{{ x[0]['name'] }}", "{{ x[0].name }}", true);
    same_form("{{ a + ['name'] }}", "{{ a + .name }}", false);
    same_form("{% set a += b %}", "{% set a + = b %}", true);
    same_form("{% if a <= b %}", "{% if a < = b %}", false);
    same_form("x\r", "x", true);
    same_form("x\ry", "x\ny", true);
    /* An empty system turn is no default message. */
    chat c;
    open_template(&c, "{{ '<|im_start|>system\n<|im_end|>' }}");
    assert_null(c.default_system);
    chat_close(&c);
}

/* Llama 3 trims messages: of what Python's str.isspace() calls white space, and of nothing else. */
static void test_trimmed(void **state)
{
    (void)state;
    static const char *const spaces[] = {
        "\t",     "\n",     "\v",     "\f",     "\r",     "\x1c",   "\x1d",   "\x1e",   "\x1f",   " ",
        "\xc2\x85", "\u00a0", "\u1680", "\u2000", "\u2005", "\u200a", "\u2028", "\u2029", "\u202f", "\u205f",
        "\u3000"};
    static const char *const others[] = {"\b",     "\x0e",   "\x1b",   "!",      "\xc2\x84", "\xc2\x86", "\xc2\x9f",
                                         "\u1681", "\u1fff", "\u200b", "\u2027", "\u202a", "\u2060", "\u3001", "\xff"};
    const size_t n_spaces = sizeof spaces / sizeof *spaces, n_others = sizeof others / sizeof *others;
    char *template = read_template("llama3.jinja"), content[64], whole[256], *text;
    chat c;
    open_template(&c, template);
    for (size_t i = 0; i < n_spaces + n_others; i++) {
        const char *edge = i < n_spaces ? spaces[i] : others[i - n_spaces];
        snprintf(content, sizeof content, "%shi%s", edge, edge);
        const dcm_chat_message message = {"user", content};
        snprintf(whole, sizeof whole, "<s><|start_header_id|>user<|end_header_id|>\n\n%s<|eot_id|>",
                 i < n_spaces ? "hi" : content);
        assert_int_equal(chat_render(&c, &message, 0, 1, false, &text), DCM_OK);
        assert_string_equal(text, whole);
        dcm_free(text);
    }
    chat_close(&c);
    free(template);
}

static void check_memory(const char *name)
{
    char *template = read_template(name);
    const dcm_chat_message talk[] = {{"system", "Be brief."}, {"user", "hi"}};
    dcm_status status = DCM_ERR_MEMORY;
    for (long n = 1; status != DCM_OK; n++) {
        chat c = {0};
        char *text = NULL;
        mem_fail_at(n);
        status = chat_open(&c, string_of(template));
        c.bos = "<s>";
        c.eos = "</s>";
        if (status == DCM_OK)
            status = chat_render(&c, talk, 0, 2, true, &text);
        mem_fail_at(0);
        assert_true(status == DCM_OK || status == DCM_ERR_MEMORY);
        assert_true((status == DCM_OK) == (text != NULL));
        dcm_free(text);
        chat_close(&c);
        assert_true(n < 1000);
    }
    free(template);
}

static void test_memory(void **state)
{
    (void)state;
    check_memory("smollm2.jinja");
    check_memory("llama2.jinja");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_goldens),        cmocka_unit_test(test_names),       cmocka_unit_test(test_other_writing),
        cmocka_unit_test(test_changed),        cmocka_unit_test(test_wrong_calls), cmocka_unit_test(test_broken),
        cmocka_unit_test(test_default_system), cmocka_unit_test(test_memory),      cmocka_unit_test(test_forms),
        cmocka_unit_test(test_too_long),       cmocka_unit_test(test_trimmed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
