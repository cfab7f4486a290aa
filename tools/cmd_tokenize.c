#include "input.h"
#include "table.h"
#include "tool.h"
#include "utf8.h"

#include <dcm/tokenizer.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct tokenize_options {
    const char *model;
    input_source input;
    bool ids, decode, bos, special, lossy;
    int format;
} tokenize_options;

/* Token bytes for the eye: whole printable UTF-8 as it is, C escapes, \xNN for every other byte. `out` holds 4 * size
 * + 1. */
static void escape(const char *bytes, size_t size, char *out)
{
    for (size_t at = 0; at < size;) {
        static const char named[] = "\n\r\t\\", letters[] = "nrt\\";
        const unsigned char c = (unsigned char)bytes[at];
        const char *found = c ? strchr(named, c) : NULL;
        const int length = utf8_length((const unsigned char *)bytes + at, size - at);
        const bool c1 = length == 2 && c == 0xc2 && (unsigned char)bytes[at + 1] < 0xa0;
        if (found) {
            out += sprintf(out, "\\%c", letters[found - named]);
            at++;
        } else if (length <= 0 || c < 0x20 || c == 0x7f || c1) {
            out += sprintf(out, "\\x%02x", c);
            at++;
        } else {
            memcpy(out, bytes + at, (size_t)length);
            out += length;
            at += (size_t)length;
        }
    }
    *out = '\0';
}

static void print_ids(const int32_t *ids, size_t count)
{
    for (size_t i = 0; i < count; i++)
        printf("%s%" PRId32, i ? "," : "", ids[i]);
    putchar('\n');
}

static int print_tokens(const dcm_tokenizer *tokenizer, const int32_t *ids, size_t count, int format)
{
    static const table_column columns[] = {{"id", 0}, {"text", 0}};
    int code = 0;
    table t;
    if (format != FORMAT_TEXT)
        table_begin(&t, (table_format)format, columns, 2, NULL);
    for (size_t i = 0; i < count && code == 0; i++) {
        const char *bytes;
        size_t size;
        const dcm_status status = dcm_token_text(tokenizer, ids[i], true, &bytes, &size);
        char *text = status == DCM_OK ? malloc(4 * size + 1) : NULL;
        if (!text) {
            code =
                status == DCM_OK ? tool_fail(DCM_ERR_MEMORY, "no room for a token's text") : tool_fail_library(status);
            break;
        }
        escape(bytes, size, text);
        if (format == FORMAT_TEXT)
            printf("%" PRId32 "\t%s\n", ids[i], text);
        else
            table_row(&t, (const table_cell[]){cell_int(ids[i]), cell_text(text)});
        free(text);
    }
    if (format != FORMAT_TEXT)
        table_end(&t);
    return code;
}

static int encode(const dcm_tokenizer *tokenizer, const tokenize_options *o, const char *text, size_t size)
{
    int32_t *ids;
    size_t count;
    const unsigned flags =
        (o->bos ? DCM_TOKENIZE_BOS : 0) | (o->special ? DCM_TOKENIZE_SPECIAL : 0) | (o->lossy ? DCM_TOKENIZE_LOSSY : 0);
    const dcm_status status = dcm_tokenize(tokenizer, text, size, flags, &ids, &count);
    if (status != DCM_OK)
        return tool_fail_library(status);
    int code = 0;
    if (o->ids)
        print_ids(ids, count);
    else
        code = print_tokens(tokenizer, ids, count, o->format);
    dcm_free(ids);
    return code;
}

static bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

/*
 * Ids between commas, white space around each allowed, into `ids` (room for size / 2 + 1). `wrong` is the exit code for
 * what is no id of the vocabulary: the user's words are wrong usage, a file's are a bad file.
 */
static int read_ids(const char *text, size_t size, size_t vocabulary, int wrong, int32_t *ids, size_t *count)
{
    size_t at = 0;
    *count = 0;
    while (at < size && is_space(text[at]))
        at++;
    while (at < size) {
        const size_t start = at;
        size_t end, value = 0;
        for (; at < size && text[at] >= '0' && text[at] <= '9'; at++)
            value = value < vocabulary ? 10 * value + (size_t)(text[at] - '0') : vocabulary;
        for (end = at; at < size && is_space(text[at]); at++)
            continue;
        if (end == start || value >= vocabulary || (at < size && text[at] != ',')) {
            for (end = start; end < size && text[end] && text[end] != ',' && !is_space(text[end]); end++)
                continue;
            return tool_fail(
                wrong, "item %zu (\"%.*s\", byte %zu) is no token id: ids are 0 to %zu, with commas between",
                *count + 1, (int)(end - start < 40 ? end - start : 40), text + start, start, vocabulary - 1);
        }
        ids[(*count)++] = (int32_t)value;
        if (at == size)
            break;
        for (at++; at < size && is_space(text[at]); at++)
            continue;
        if (at == size)
            return tool_fail(wrong, "there is no token id behind the last comma");
    }
    return 0;
}

static int decode(const dcm_tokenizer *tokenizer, const tokenize_options *o, const char *text, size_t size)
{
    size_t count, len;
    char *bytes = NULL;
    int32_t *ids = malloc((size / 2 + 1) * sizeof *ids);
    if (!ids)
        return tool_fail(DCM_ERR_MEMORY, "no room for %zu bytes of token ids", size);
    int code =
        read_ids(text, size, dcm_vocab_size(tokenizer), o->input.text ? DCM_ERR_USAGE : DCM_ERR_FILE, ids, &count);
    if (code == 0) {
        const dcm_status status = dcm_detokenize(tokenizer, ids, count, true, &bytes, &len);
        if (status == DCM_OK)
            fwrite(bytes, 1, len, stdout);
        else
            code = tool_fail_library(status);
    }
    dcm_free(bytes);
    free(ids);
    return code;
}

static int check(const args *a, const tokenize_options *o)
{
    static const char *const encoding[] = {"ids", "bos", "special", "lossy", "format"};
    for (size_t i = 0; o->decode && i < sizeof encoding / sizeof *encoding; i++)
        if (args_seen(a, encoding[i]))
            return tool_fail(DCM_ERR_USAGE, "--%s has no effect with --decode: leave one of them out", encoding[i]);
    if (o->ids && args_seen(a, "format"))
        return tool_fail(DCM_ERR_USAGE, "--format has no effect with --ids: leave one of them out");
    return 0;
}

int cmd_tokenize(int argc, char **argv)
{
    tokenize_options o = {0};
    const arg_option options[] = {
        {"ids", 0, ARG_FLAG, &o.ids, NULL, "Print one line of comma-separated ids."},
        {"decode", 0, ARG_FLAG, &o.decode, NULL, "The input is comma-separated ids: print the bytes they stand for."},
        {"bos", 0, ARG_FLAG, &o.bos, NULL, "Put the BOS token first where the model asks for one."},
        {"special", 0, ARG_FLAG, &o.special, NULL,
         "Read the text of special tokens, such as <|im_start|>, as those tokens."},
        {"lossy", 0, ARG_FLAG, &o.lossy, NULL,
         "Leave out bytes that the vocabulary has no token for; else they are an error."},
        table_format_option(&o.format),
    };
    args a = {.usage = "-m MODEL [-p TEXT | -f FILE | -] [options]",
              .about = "A text's tokens, one a line: id, tab, text (\\n, \\t, \\xNN for bytes that are no printable "
                       "character). With --ids and\n"
                       "--decode, byte for byte to ids and back.",
              .stdin_dash = true};
    input_add_model(&a, &o.model);
    input_add_options(&a, &o.input);
    args_add(&a, "Options", options, sizeof options / sizeof *options);
    int code = args_parse(&a, argc, argv);
    if (code != ARGS_GO)
        return code;
    char path[4096], *text = NULL;
    size_t size;
    dcm_tokenizer *tokenizer = NULL;
    code = check(&a, &o);
    if (code == 0)
        code = input_model_path(o.model, path, sizeof path);
    if (code == 0) {
        const dcm_status status = dcm_tokenizer_open(&tokenizer, path);
        code = status == DCM_OK ? 0 : tool_fail_library(status);
    }
    if (code == 0)
        code = input_read(&a, &o.input, &text, &size);
    if (code == 0)
        code = (o.decode ? decode : encode)(tokenizer, &o, text, size);
    free(text);
    dcm_tokenizer_close(&tokenizer);
    return code;
}
