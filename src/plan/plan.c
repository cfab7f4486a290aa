#include <dcm/plan.h>

#include "base/error.h"

#include <string.h>

static uint32_t log2_u32(uint32_t x) { return 31u - (uint32_t)__builtin_clz(x); }

dcm_status dcm_plan_init(dcm_plan *plan, uint32_t group, uint32_t sinks)
{
    memset(plan, 0, sizeof *plan);
    if (group < DCM_GROUP_MIN || group > DCM_GROUP_MAX || (group & (group - 1)))
        return dcm_fail(DCM_ERR_USAGE, "group length %u is not a power of two in %d .. %d", group, DCM_GROUP_MIN,
                        DCM_GROUP_MAX);
    plan->group = group;
    plan->top = log2_u32(group);
    plan->sinks = sinks;
    return DCM_OK;
}

/*
 * The closed form. With n tokens behind the sinks: nothing before the near queue is full; then, for s = 0 .. k-1,
 * L/2^s - 1 blocks of 2^s merges, whose first is at level s and whose j-th at level ctz(j); then for ever cycles of
 * one retirement and L - 1 merges at levels ctz(1) .. ctz(L-1).
 */
static dcm_action action_before(uint32_t group, uint32_t top, uint64_t n)
{
    const uint64_t full = 2 * (uint64_t)group - 1;
    if (n < full)
        return (dcm_action){DCM_ACTION_APPEND, -1};
    uint64_t i = n - full;
    for (uint32_t s = 0; s < top; s++) {
        const uint64_t length = group - (1ull << s);
        if (i < length) {
            const uint64_t j = i & ((1ull << s) - 1);
            return (dcm_action){DCM_ACTION_MERGE, j ? __builtin_ctzll(j) : (int)s};
        }
        i -= length;
    }
    const uint64_t j = i & (group - 1);
    return j ? (dcm_action){DCM_ACTION_MERGE, __builtin_ctzll(j)} : (dcm_action){DCM_ACTION_RETIRE, -1};
}

dcm_action dcm_plan_peek(const dcm_plan *plan)
{
    if (plan->tokens < plan->sinks)
        return (dcm_action){DCM_ACTION_APPEND, -1};
    return action_before(plan->group, plan->top, plan->tokens - plan->sinks);
}

dcm_action dcm_plan_step(dcm_plan *plan)
{
    const dcm_action action = dcm_plan_peek(plan);
    if (action.kind == DCM_ACTION_MERGE) {
        plan->first[action.level] += 2;
        plan->count[action.level] -= 2;
        plan->count[action.level + 1]++;
    } else if (action.kind == DCM_ACTION_RETIRE) {
        plan->far++;
    }
    if (plan->tokens >= plan->sinks)
        plan->count[0]++;
    plan->tokens++;
    return action;
}

/*
 * Once the near queue covers T(L) tokens the schedule is periodic: L tokens retire one unit, pop L / 2^g nodes of each
 * level below the top and push as many, and leave one unit more at the top.
 */
void dcm_plan_skip(dcm_plan *plan, uint64_t tokens)
{
    const uint64_t steady = plan->sinks + dcm_near_coverage(plan->group);
    for (; tokens && plan->tokens < steady; tokens--)
        dcm_plan_step(plan);
    const uint64_t cycles = tokens / plan->group;
    for (uint32_t g = 0; g < plan->top; g++)
        plan->first[g] += cycles * (plan->group >> g);
    plan->count[plan->top] += cycles;
    plan->far += cycles;
    plan->tokens += cycles * plan->group;
    for (tokens %= plan->group; tokens; tokens--)
        dcm_plan_step(plan);
}

static uint64_t min_u64(uint64_t a, uint64_t b) { return a < b ? a : b; }

uint64_t dcm_plan_units(const dcm_plan *plan)
{
    uint64_t units = min_u64(plan->tokens, plan->sinks);
    for (uint32_t g = 0; g <= plan->top; g++)
        units += plan->count[g];
    return units;
}

uint64_t dcm_plan_near(const dcm_plan *plan)
{
    return dcm_plan_units(plan) - min_u64(plan->tokens, plan->sinks) - plan->far;
}

uint64_t dcm_near_coverage(uint32_t group) { return (uint64_t)group * (1 + log2_u32(group)); }

uint64_t dcm_units_after(uint32_t group, uint32_t sinks, uint64_t n)
{
    const uint64_t kept = min_u64(n, sinks), rest = n - kept, full = 2 * (uint64_t)group - 1;
    const uint64_t covered = dcm_near_coverage(group);
    if (rest <= covered)
        return kept + min_u64(rest, full);
    return kept + full + (rest - covered + group - 1) / group;
}
