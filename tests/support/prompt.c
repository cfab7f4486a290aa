#include "support/fixture.h"

#include <stdlib.h>
#include <string.h>

/* What is kept: the near queue as a list; the sinks and the far queue are counted. */
typedef struct history {
    fx_prompt prompt;
    uint32_t top; /* the highest level: log2 L */
    uint32_t tokens, far, near;
    uint32_t *level; /* (near) of the units of the near queue, oldest first */
    uint32_t gone[VIEW_RANGES];
} history;

/* The highest level that may stand at a place, counted from the newest unit: level 0 at L places, then 1 at L/2, ... */
static uint32_t limit_at(uint32_t group, uint32_t place)
{
    uint32_t level = 0;
    for (uint32_t length = group; place >= length && length > 1; length /= 2, level++)
        place -= length;
    return level;
}

/* Before a token when the near queue is full: merge the two oldest units of the level that is due, or retire one. */
static void act(history *h)
{
    for (uint32_t i = 0; i < h->near; i++) {
        const uint32_t level = h->level[h->near - 1 - i];
        if (level == limit_at(h->prompt.group, i))
            continue;
        uint32_t oldest = 0;
        while (h->level[oldest] != level)
            oldest++;
        h->level[oldest] = level + 1;
        memmove(h->level + oldest + 1, h->level + oldest + 2, (h->near - oldest - 2) * sizeof *h->level);
        h->near--;
        h->gone[level] += 2;
        return;
    }
    memmove(h->level, h->level + 1, (h->near - 1) * sizeof *h->level);
    h->near--;
    h->far++;
}

static void append(history *h)
{
    const fx_prompt *p = &h->prompt;
    const uint32_t full = p->group ? 2 * p->group - 1 : p->window ? p->window - p->sinks : UINT32_MAX;
    if (h->tokens++ < p->sinks)
        return;
    if (h->near == full && p->group) {
        act(h);
    } else if (h->near == full) {
        h->near--;
        h->gone[0]++;
    }
    h->level[h->near++] = 0;
}

static fx_seen see(const history *h)
{
    fx_seen s = {.count[0] = h->tokens < h->prompt.sinks ? h->tokens : h->prompt.sinks, .count[1] = h->far};
    for (uint32_t i = 0; i < h->near; i++)
        s.count[1 + h->top - h->level[i]]++;
    for (uint32_t g = 0; g <= h->top; g++)
        s.first[1 + h->top - g] = h->gone[g];
    return s;
}

uint32_t fx_prompt_seen(const fx_prompt *prompt, uint32_t n, fx_seen **seen)
{
    history h = {.prompt = *prompt};
    while (prompt->group >> (h.top + 1))
        h.top++;
    h.level = fx_alloc((prompt->before + n) * sizeof *h.level);
    *seen = fx_alloc(n * sizeof **seen);
    for (uint32_t t = 0; t < prompt->before + n; t++) {
        append(&h);
        if (t >= prompt->before)
            (*seen)[t - prompt->before] = see(&h);
    }
    free(h.level);
    return h.top + 2;
}
