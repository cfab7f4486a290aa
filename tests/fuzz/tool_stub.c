/* tool_fail in place of the program's own, which prints. */
#include "fuzz/fuzz.h"

#include "tool.h"

#include <stdarg.h>
#include <stdio.h>

int tool_fail(int code, const char *format, ...)
{
    char text[8192];
    va_list args;
    va_start(args, format);
    fuzz_check(vsnprintf(text, sizeof text, format, args) > 0, "an error without a message");
    va_end(args);
    return code;
}
