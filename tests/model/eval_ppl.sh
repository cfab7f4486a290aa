#!/bin/sh
# `dcm eval ppl --logprobs` on text.txt against the goldens: eval_ppl.sh DCM GOLDEN_MODEL_FOLDER. Text in, tokens and
# log-probabilities out: the tokenizer and the program too. The text's beginning; test_smollm2 has the length.
set -u
dcm=$1 golden=$2 tokens=64
: "${DCM_TEST_DEVICE:=ref}"
if [ -z "${DCM_TEST_MODEL:-}" ]; then
    echo "test: DCM_TEST_MODEL is not set: give it the path of SmolLM2-135M-Instruct.Q4_1.gguf" >&2
    exit 1
fi
out=$(mktemp) || exit 1
trap 'rm -f "$out"' EXIT
failed=0

# NAME of the golden, then the policy's options.
check()
{
    name=$1
    shift
    : >"$out"
    "$dcm" eval ppl -m "$DCM_TEST_MODEL" -f "$golden/text.txt" -n $tokens --device "$DCM_TEST_DEVICE" --kv f32 \
        --logprobs "$out" "$@" >/dev/null || { echo "$name: dcm failed" >&2; failed=1; return; }
    awk -F, -v name="$name" -v tokens=$tokens '
        FNR == 1 { if ($0 != "index,token,logprob") bad = "header " $0; next }
        NR == FNR { token[$1] = $2; logprob[$1] = $3; next }
        {
            rows++
            off = $3 - logprob[$1]
            if (off < 0) off = -off
            if ($1 != rows || $2 != token[$1]) bad = "row " rows ": token " $2 ", not " token[$1]
            sum += off
            if (!(off <= 0.01)) bad = "row " rows ": log-probability " $3 ", not " logprob[$1]
        }
        END {
            if (rows != tokens - 1) bad = rows + 0 " rows, not " tokens - 1
            if (!(sum <= 0.001 * rows)) bad = "mean difference " sum / rows
            print name ": " (bad ? bad : "ok, mean difference " sum / rows)
            exit bad != ""
        }' "$golden/smollm2/$name.csv" "$out" || failed=1
}

check full --cache full
check dcm_L4_S4_newer --cache dcm -L 4 --sinks 4 --merge newer
exit $failed
