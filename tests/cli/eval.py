"""`dcm eval` from outside, on a tiny model and the C reference: eval.py DCM MAKE_TINY_MODEL GET_MODEL [PATTERN].

What is measured is computed a second time here, from the log-probabilities and divergences of single tokens.
"""
import csv
import json
import math
import pathlib

import check


def rows(cli, measure, *args):
    return json.loads(cli.ok("eval", measure, "-m", cli.tiny, "--format", "json", "-q", *args))["rows"]


def text_file(cli, name, size, step):
    """A text without much repetition."""
    path = cli.folder / name
    path.write_text(" ".join(f"{check.TEXT.split()[i * step % 14]}{i * step % 97}" for i in range(size)))
    return path


# ---- Intervals, a second time ----


def erand48(seed):
    state = ((seed ^ seed >> 32) & 0xFFFFFFFF) << 16 | 0x330E
    while True:
        state = (state * 0x5DEECE66D + 0xB) & 0xFFFFFFFFFFFF
        yield state / 2**48


def blocks_of(values, size):
    return [values[i : i + size] for i in range(0, len(values), size)]


def quantile(values, share):
    values, at = sorted(values), share * (len(values) - 1)
    low = math.floor(at)
    return values[low] + (at - low) * (values[min(low + 1, len(values) - 1)] - values[low])


def intervals(texts, statistic, block, resamples, seed, percent=95):
    """`texts`: per text per-token tuples; `statistic` of a list of such lists. [(low, high)] of its values."""
    draw, found = erand48(seed), []
    cut = [blocks_of(values, block) for values in texts]
    for _ in range(resamples):
        found.append(statistic([sum((b[int(next(draw) * len(b))] for _ in b), []) for b in cut]))
    outside = (1 - percent / 100) / 2
    return [(quantile(v, outside), quantile(v, 1 - outside)) for v in zip(*found)]


def tokens_of(cli, path, policy, *args):
    """(negative log-probability, that of the full cache, KL, same top) of every token of a text."""
    out = cli.folder / "tokens.csv"
    rows(cli, "ppl", "-f", path, "--policies", policy, "--against", "full", "--logprobs", out, *args)
    return [(-float(r["logprob"]), -float(r["full_logprob"]), float(r["kl"]), int(r["top1"]))
            for r in csv.DictReader(out.open())]


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def column(texts, i):
    return mean(mean(t[i] for t in text) for text in texts)


def one_policy(texts):
    """kl, top1 and ppl_ratio of texts' tokens."""
    return column(texts, 2), column(texts, 3), math.exp(column(texts, 0) - column(texts, 1))


def agree(row, name, value, interval):
    low, high = interval
    for key, expected in (name, value), (f"{name}_low", low), (f"{name}_high", high):
        assert abs(row[key] - expected) <= 1e-6 * abs(expected) + 1e-9, (key, row[key], expected)
    assert low < value < high, (name, low, value, high)


def test_intervals(cli):
    path = text_file(cli, "a.txt", 120, 5)
    args = ["-n", "300"]
    tokens = tokens_of(cli, path, "dcm:L=4:merge=newer", *args)[20 - 1 :]
    [row] = rows(cli, "ppl", "-f", path, *args, "--skip", "20", "-L", "4", "--merge", "newer", "--against", "full",
                 "--block", "16", "--resamples", "200", "--seed", str(7 + 2**40), "--interval", "90")
    assert row["scored"] == len(tokens) == 280
    found = intervals([tokens], one_policy, 16, 200, 7 + 2**40, 90)
    for name, value, interval in zip(("kl", "top1", "ppl_ratio"), one_policy([tokens]), found):
        agree(row, name, value, interval)


def test_intervals_of_texts_and_policies(cli):
    """The mean over texts of unequal length; KL against that of the baseline over the same draws."""
    paths = [text_file(cli, "a.txt", 60, 5), text_file(cli, "b.txt", 90, 11)]
    policies = ["dcm:L=8:merge=mean", "window:W=30"]
    table = rows(cli, "ppl", "-f", paths[0], "-f", paths[1], "--policies", ",".join(policies), "--against", "full",
                 "--resamples", "100", "--block", "10", "--seed", "3")
    assert [(r["text"], r["policy"]) for r in table] == [
        (t, p) for t in (*map(str, paths), "mean") for p in ("dcm:L=8:S=4:merge=mean", "window:W=30:S=4")]
    both = []
    for path in paths:
        dcm, window = (tokens_of(cli, path, p) for p in policies)
        both.append([d + w for d, w in zip(dcm, window)])

    def statistic(texts):
        return (*one_policy(texts), column(texts, 2) / column(texts, 6))

    for at, texts in enumerate([both[:1], both[1:], both]):
        found = intervals(texts, statistic, 10, 100, 3)
        for name, value, interval in zip(("kl", "top1", "ppl_ratio", "kl_ratio"), statistic(texts), found):
            agree(table[2 * at], name, value, interval)
        window = table[2 * at + 1]
        assert window["kl_ratio"] == window["kl_ratio_low"] == window["kl_ratio_high"] == 1
    assert table[4]["scored"] == table[0]["scored"] + table[2]["scored"]
    errors = [r["ppl_se"] / r["ppl"] for r in (table[0], table[2], table[4])]
    assert abs(errors[2] - math.hypot(*errors[:2]) / 2) < 1e-9
    assert abs(table[4]["ppl"] - math.sqrt(table[0]["ppl"] * table[2]["ppl"])) < 1e-6


def test_intervals_normal(cli):
    """Of single tokens: as wide as the normal approximation says."""
    path = text_file(cli, "a.txt", 120, 5)
    args = ["-n", "400", "--skip", "50"]
    values = [t[2] for t in tokens_of(cli, path, "window:W=16", *args)][49:]
    [row] = rows(cli, "ppl", "-f", path, *args, "--policies", "window:W=16", "--against", "full", "--block", "1")
    spread = math.sqrt(sum((v - mean(values)) ** 2 for v in values) / (len(values) - 1) / len(values))
    assert abs((row["kl_high"] - row["kl_low"]) / (2 * 1.95996 * spread) - 1) < 0.1, (row, spread)


def test_intervals_of_a_seed(cli):
    args = ["-f", cli.text, "-n", "200", "--policies", "dcm:L=4,full", "--against", "full", "--block", "8"]
    one, again, other = (rows(cli, "ppl", *args, "--seed", seed) for seed in ("1", "1", "2"))
    assert one == again and one != other
    ends = ("_low", "_high")
    for a, b in zip(one, other):
        assert {k: v for k, v in a.items() if not k.endswith(ends)} == {k: v for k, v in b.items() if not
                                                                         k.endswith(ends)}
    # Constant values have no width; one block says nothing about others.
    full = one[1]
    assert [full["kl_low"], full["kl_high"], full["top1_low"], full["top1_high"]] == [0, 0, 1, 1]
    assert full["ppl_ratio_low"] == full["ppl_ratio_high"] == 1
    [row] = rows(cli, "ppl", "-f", cli.text, "-n", "65", "-L", "4", "--against", "full")
    assert row["kl"] > 0 and row["kl_low"] is None and row["ppl_ratio_high"] is None and "kl_ratio" not in row


def test_baseline(cli):
    policies = "dcm:L=8:merge=newer,window:W=20,window:W=30,full"
    args = ["-f", cli.text, "-n", "150", "--policies", policies, "--against", "full", "--block", "8"]
    for baseline, index in [(None, 1), ("window", 1), ("3", 2), ("window:W=30", 2), ("1", 0), ("dcm", 0)]:
        table = rows(cli, "ppl", *args, *(["--baseline", baseline] if baseline else []))
        for row in table:
            assert abs(row["kl_ratio"] - row["kl"] / table[index]["kl"]) < 1e-9, (baseline, row)
    assert all(r["kl_ratio"] is None for r in rows(cli, "ppl", *args, "--baseline", "full"))
    assert "kl_ratio" not in rows(cli, "ppl", *args[:4], "--policies", "dcm,full", "--against", "full")[0]


def test_equal_units(cli):
    """A window of W=auto holds as many units at the last token as the first policy, whatever the length."""
    path = text_file(cli, "a.txt", 120, 5)
    for n in (20, 21, 37, 64, 100, 257):
        dcm, window = rows(cli, "ppl", "-f", path, "-n", n, "--policies", "dcm:L=8:merge=newer,window:W=auto")
        assert dcm["units"] == window["units"] and dcm["kv_bytes"] == window["kv_bytes"] > 0, (n, dcm, window)
        assert n < 40 or dcm["units"] < n
    # In the mean over texts of other lengths there is no one W.
    files = ["-f", path, "-f", cli.text]
    table = rows(cli, "ppl", *files, "--policies", "dcm:L=4:merge=newer,window:W=auto")
    assert table[-1]["policy"] == "window:W=auto:S=4" and table[-1]["units"] is None and "kl" not in table[-1]


def test_formats(cli):
    args = ["-f", cli.text, "-n", "150", "--policies", "dcm:L=8,window:W=auto", "--against", "full", "-q"]
    names = list(rows(cli, "ppl", *args)[0])
    assert {"policy", "tokens", "scored", "units", "ppl", "ppl_se", "kl", "top1"} <= set(names)
    for form in "csv", "md", "text":
        text = cli.ok("eval", "ppl", "-m", cli.tiny, *args, "--format", form).decode().splitlines()
        assert text[0].replace("|", " ").replace(",", " ").split() == names, text[0]
        assert ("95 % of 1000 resamples" in text[-1]) == (form != "csv"), text[-1]


def test_ppl_usage(cli):
    base = ["-m", cli.tiny, "-f", cli.text]
    for args, message in [
        (["--interval", "50"], "--interval has no effect without --against full"),
        (["--baseline", "1"], "--baseline has no effect without"),
        (["--against", "full", "--baseline", "2"], 'no policy of this run: give its number, 1 .. 1'),
        (["--against", "full", "--policies", "dcm,full", "--baseline", "window"], "\"window\" is no policy"),
        (["--against", "full", "--interval", "0"], "--interval"),
        (["--against", "full", "--resamples", "1"], "--resamples"),
        (["--against", "full", "--block", "0"], "--block"),
        (["--against", "full", "--seed", "-1"], "--seed"),
        (["-f", cli.text, "--logprobs", "x"], "--logprobs takes one text, not 2"),
        (["-p", "x"], "exactly one of -p"),
    ]:
        cli.fails(2, message, "eval", "ppl", *base, *args)
    cli.fails(3, "none.txt: No such file", "eval", "ppl", *base, "-f", cli.folder / "none.txt")
    short = pathlib.Path(cli.folder / "short.txt")
    short.write_text("x")
    cli.fails(3, "short.txt: nothing to predict", "eval", "ppl", *base, "-f", short)
    cli.fails(3, "text.txt has .* not the 9999 of --tokens", "eval", "ppl", *base, "-f", short, "-n", "9999")


if __name__ == "__main__":
    check.main(globals())
