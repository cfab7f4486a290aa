#include "journal.h"

#include "output.h"
#include "regular.h"
#include "tool.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char header[] =
    "step,group,rate,norm,kl,il,magnitude,bsd,held_kl,held_ratio,gate_mean,gate_spread,seconds\n";

/* Rows of the file at j->path of steps up to `steps`, into a new file of that name. */
static int keep_rows(const journal *j, uint64_t steps)
{
    char line[JOURNAL_LINE] = "";
    uint64_t step, size;
    output_file kept = {0};
    const bool there = steps && access(j->path, F_OK) == 0;
    FILE *old = there ? regular_open(j->path, &size) : NULL;
    int code = there && !old ? DCM_ERR_FILE : 0;
    if (old && fgets(line, sizeof line, old) && strcmp(line, header) != 0)
        code = tool_fail(DCM_ERR_FILE, "%s: its columns are not those of this dcm: give --csv another file", j->path);
    if (code == 0)
        code = output_open(&kept, j->path);
    if (code == 0)
        fputs(header, kept.out);
    while (code == 0 && old && fgets(line, sizeof line, old))
        if (sscanf(line, "%" SCNu64 ",", &step) == 1 && step <= steps && strchr(line, '\n'))
            fputs(line, kept.out);
    if (old)
        fclose(old);
    const int closed = output_close(&kept, code == 0);
    return code ? code : closed;
}

int journal_open(journal *j, const char *path, uint64_t steps)
{
    struct stat st;
    *j = (journal){.path = path};
    const bool stream = stat(path, &st) == 0 && !S_ISREG(st.st_mode);
    const int code = stream ? 0 : keep_rows(j, steps);
    if (code)
        return code;
    j->out = fopen(path, "a");
    if (!j->out)
        return tool_fail(DCM_ERR_FILE, "%s: cannot write: %s", path, strerror(errno));
    if (stream)
        fputs(header, j->out);
    return 0;
}

int journal_add(journal *j, const journal_row *r)
{
    if (!j->out)
        return 0;
    const dcm_train_losses *l = &r->losses;
    const double values[] = {r->rate,     r->norm,    l->kl,         l->il,        l->magnitude,
                             l->boundary, r->held_kl, r->held_ratio, r->gate_mean, r->gate_spread};
    fprintf(j->out, "%" PRIu64 ",%s", r->step, r->group);
    for (size_t i = 0; i < sizeof values / sizeof *values; i++)
        if (isnan(values[i]))
            fputc(',', j->out);
        else
            fprintf(j->out, ",%.6g", values[i]);
    fprintf(j->out, ",%.2f\n", r->seconds);
    return fflush(j->out) == 0 ? 0 : tool_fail(DCM_ERR_FILE, "%s: cannot write: %s", j->path, strerror(errno));
}

void journal_close(journal *j)
{
    if (j->out)
        fclose(j->out);
    *j = (journal){0};
}
