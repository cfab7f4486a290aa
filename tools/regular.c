#include "regular.h"

#include "tool.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

FILE *regular_open(const char *path, uint64_t *size)
{
    struct stat st;
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    const bool found = fd >= 0 && fstat(fd, &st) == 0, regular = found && S_ISREG(st.st_mode);
    FILE *in = regular ? fdopen(fd, "rb") : NULL;
    if (in) {
        *size = (uint64_t)st.st_size;
        return in;
    }
    tool_fail(DCM_ERR_FILE, "%s: %s", path, found && !regular ? "not a regular file" : strerror(errno));
    if (fd >= 0)
        close(fd);
    return NULL;
}
