"""`dcm eval` from outside, on a tiny model and the C reference: eval.py DCM MAKE_TINY_MODEL GET_MODEL [PATTERN].

What is measured is computed a second time here, from the log-probabilities and divergences of single tokens.
"""
import csv
import json
import math
import pathlib
import re
import struct
import subprocess
import sys
from xml.etree import ElementTree

import check

SVG = "{http://www.w3.org/2000/svg}"


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


def test_settings_are_options(cli):
    """A setting of a policy measures what the option of its name does, and another thing than the default."""
    args = ["-f", cli.text, "-n", "150", "-q"]
    usual = {"--group": "4", "--merge": "newer"}
    words = lambda options: [word for pair in options.items() for word in pair]
    plain = rows(cli, "ppl", *args, *words(usual))[0]["ppl"]
    for setting, option in [("log-r=0.5", "--log-r"), ("log-r=-1", "--log-r"), ("S=0", "--sinks"), ("S=9", "--sinks"),
                            ("far-limit=0", "--far-limit"), ("far-limit=1", "--far-limit"), ("merge=mean", "--merge"),
                            ("L=8", "--group"), ("kv=f32", "--kv")]:
        by_option = rows(cli, "ppl", *args, *words({**usual, option: setting.split("=")[1]}))[0]
        name = setting.split("=")[0]
        rest = [word for word in ("L=4", "merge=newer") if not word.startswith(name + "=")]
        by_policy = rows(cli, "ppl", *args, "--policies", ":".join(["dcm", *rest, setting]))[0]
        assert by_option["ppl"] == by_policy["ppl"] != plain, (setting, by_option, by_policy, plain)
        assert setting.startswith(("merge", "S")) or setting in by_option["policy"], by_option


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


# ---- Any command ----


def spoilt_model(cli, token=0):
    """A tiny model with one weight that is no number: the first of a token's row of the embedding, which is the
    output's too. The embedding is the first that differs between two seeds."""
    path, other = cli.folder / "spoilt.gguf", cli.folder / "other.gguf"
    subprocess.run([sys.argv[2], other, "--seed", "7"], check=True)
    data = bytearray(pathlib.Path(cli.tiny).read_bytes())
    first = next(i for i, (a, b) in enumerate(zip(data, other.read_bytes())) if a != b) // 32 * 32
    row = first + token * 64 * 4
    data[row : row + 4] = struct.pack("<f", math.nan)
    path.write_bytes(data)
    return path


def test_no_numbers(cli):
    """One logit that is no number, of a token that is nowhere in the text, ends whatever would count with it."""
    path = text_file(cli, "a.txt", 120, 5)
    said = r": what is computed is no number: the model's weights may hold NaN or infinities"
    model = ["-m", spoilt_model(cli), "-q"]
    for token, policy, args in [
        (1, "dcm:L=4:S=4:merge=newer", ["ppl", "-L", "4", "--merge", "newer"]),
        (1, "full", ["ppl", "--against", "full"]),
        (20, "window:W=9:S=4", ["ppl", "--policies", "window:W=9,full", "--skip", "20"]),
        (10, "dcm:L=4:S=4:merge=newer", ["recall", "-L", "4", "--distances", "20", "--lead", "10", "--passage", "8"]),
        (90, "full", ["needle", "--cache", "full", "--lengths", "90"]),
    ]:
        cli.fails(3, f"dcm eval {args[0]}: token {token}, {policy}{said}", "eval", *args, "-f", path, *model)
    for options in [], ["--temp", "1"], ["-n", "0"]:
        cli.fails(3, "dcm run: token 5, full" + said, "run", *model, "-p", "~~~~~", "--cache", "full", *options)
    cli.fails(3, "dcm bench: token 8, full" + said, "bench", *model, "-p", "8", "-n", "4", "--cache", "full")
    # Attention has no part in that logit; it has in a token that is read.
    cli.ok("eval", "metrics", *model, "-f", path, "-n", "90", "-L", "4")
    spoilt = cli.folder / "spoilt.txt"
    spoilt.write_text(path.read_text()[:80].replace(" ", " ~ "))
    cli.fails(3, "dcm eval metrics: layer 0, full" + said, "eval", "metrics", "-m", spoilt_model(cli, ord("~")), "-q",
              "-f", spoilt, "--cache", "full")


def test_given_twice(cli):
    """An option with one value has one; a list is one; flags may be repeated."""
    base = ["-m", cli.tiny, "-q"]
    none, text = cli.folder / "none.txt", ["-f", cli.text]
    for args, message in [
        (["eval", "recall", *base, "-f", none, *text], "--file is given twice: it takes one value"),
        (["eval", "table", "1", *base, *text, "--merges", "x", "--file=x"], "--file is given twice"),
        (["run", *base, "-p", "x", "-p", "x"], "--prompt is given twice"),
        (["run", *base, "-p", "x", "-L", "4", "--group", "4"], "--group is given twice"),
        (["eval", "needle", *base, *text, "--depths", "0", "--depths", "50"], "--depths is given twice: .* one list"),
        (["plan", "-L", "4", "-L", "8"], "--group is given twice"),
    ]:
        cli.fails(2, message, *args)
    cli.ok("run", *base, "-q", "-p", "x", "-n", "1", "--stop", "a", "--stop", "b")


def test_help_of_lists(cli):
    """Lists are shown as they would be typed, all of their values."""
    for command, options in [(["train"], ["default 64,128,256"]), (["eval", "recall"], ["default 256,512,1024"]),
                             (["eval", "needle"], ["default 512,1024,2048", "default 0,25,50,75,100"]),
                             (["bench"], ["default 512)", "default 0)"])]:
        text = " ".join(cli.ok(*command, "--help").decode().split())
        assert all(option in text for option in options), (command, text)


def test_missing_weights_said_once(cli):
    """That no trained merge is there, whatever the number of policies and texts."""
    path = text_file(cli, "a.txt", 120, 5)
    policies = ["--policies", "dcm:L=4,dcm:L=8:merge=mean,dcm:L=16"]
    for args in [["ppl", "-f", path], ["metrics", "-n", "90"],
                 ["recall", "--distances", "20", "--lead", "10", "--passage", "8"],
                 ["needle", "--lengths", "90", "--depths", "50"]]:
        result = cli.run("eval", *args, "-m", cli.tiny, "-f", path, *policies, "--format", "json")
        assert result.returncode == 0 and result.stderr.count(b"no trained merge weights") == 1, result.stderr
        named = {row["policy"].split(":far")[0] for row in json.loads(result.stdout)["rows"]}
        assert named >= {"dcm:L=4:S=4:merge=newer", "dcm:L=8:S=4:merge=mean", "dcm:L=16:S=4:merge=newer"}, named


# ---- Plot ----


def scale_of(axis, attribute, transform=float):
    """The inverse of an axis, from the first and the last of its labels: value of a pixel."""
    ticks = [t for t in axis.iter(SVG + "text") if re.fullmatch(r"[\d.,]+", t.text)]
    (p, v), (q, w) = [(float(t.get(attribute)), transform(t.text.replace(",", ""))) for t in (ticks[0], ticks[-1])]
    return lambda pixel: v + (pixel - p) / (q - p) * (w - v)


def test_plot(cli):
    """What is drawn, read back by the ticks of the axes, is what the rows of the same run say."""
    path = text_file(cli, "a <&>.txt", 120, 5)
    policies = "dcm:L=4,window:W=auto,window:W=100,full:kv=f32,dcm:L=8,dcm:L=16,dcm:L=32,dcm:L=2,window:W=9"
    out = cli.folder / "kl.svg"
    table = rows(cli, "ppl", "-f", path, "-n", "250", "--policies", policies, "--against", "full", "--plot", out)
    drawing = ElementTree.parse(out).getroot()
    texts = [text.text for text in drawing.iter(SVG + "text")]
    assert any(text.startswith(str(path)) and "249 predictions" in text for text in texts), texts
    axes = {g.get("class"): g for g in drawing.findall(SVG + "g") if g.get("class") in "xy"}
    log_bytes, kl = scale_of(axes["x"], "x", lambda t: math.log(float(t))), scale_of(axes["y"], "y")
    for axis, attribute, edges in (("x", "x", {76.0, 928.0}), ("y", "y", None)):
        places = [float(t.get(attribute)) for t in list(axes[axis].iter(SVG + "text"))[: None if edges is None else -1]]
        frame = edges or {float(drawing.get("height")) - 66, float(drawing.get("height")) - 466}
        assert {min(places), max(places)} == frame, (axis, places)
    unit = {"kB": 1e3, "MB": 1e6}[list(axes["x"])[-1].text.split()[-1]]
    groups = [g for g in drawing.findall(SVG + "g") if g.get("class") == "series"]
    # A line for all that differ in L or W alone, in the order of their first, its points by rising bytes.
    name_of = lambda policy: re.sub(r":[LW]=\d+", "", policy)
    names = list(dict.fromkeys(name_of(row["policy"]) for row in table))
    assert [g.find(SVG + "text").text for g in groups] == names and len(names) == 3
    drawn = 0
    for series, (group, name) in enumerate(zip(groups, names)):
        expected = sorted((row for row in table if name_of(row["policy"]) == name), key=lambda row: row["kv_bytes"])
        earlier = [row["kv_bytes"] for row in table if names.index(name_of(row["policy"])) < series]
        marks = group.findall(SVG + "circle")[1:]
        intervals = group.findall(f"{SVG}path[@class='interval']")
        sizes = [text.text for text in group.findall(f"{SVG}text[@class='size']")]
        assert len(marks) == len(intervals) == len(expected) and len(sizes) == len(expected)
        ends = group.find(SVG + "polyline").get("points").split()
        assert ends == [f"{mark.get('cx')},{mark.get('cy')}" for mark in marks]
        for mark, bar, size, row in zip(marks, intervals, sizes, expected):
            drawn += 1
            assert (size or "") == ":".join(re.findall(r"[LW]=\d+", row["policy"])), (size, row)
            beside = sum(abs(b / row["kv_bytes"] - 1) < 0.01 for b in earlier)
            x, y = float(mark.get("cx")), float(mark.get("cy"))
            assert abs(math.exp(log_bytes(x - 12 * beside)) * unit / row["kv_bytes"] - 1) < 1e-3, (x, row)
            low, high = re.fullmatch(r"M[\d.]+ ([\d.]+)h10m-5 0V([\d.]+)m-5 0h10", bar.get("d")).groups()
            for at, column in ((y, "kl"), (low, "kl_low"), (high, "kl_high")):
                assert abs(kl(float(at)) - row[column]) < 2e-4 * max(r["kl"] for r in table) + 1e-4, (column, row)
    assert drawn == len(table)
    # Of several texts their mean, where each has one block only: marks without bars.
    args = ["-f", cli.text, "-f", path, "-n", "60", "-L", "4", "--against", "full", "--plot", out]
    table = rows(cli, "ppl", *args)
    drawing = ElementTree.parse(out).getroot()
    [group] = [g for g in drawing.findall(SVG + "g") if g.get("class") == "series"]
    title = group.findall(SVG + "circle")[1].find(SVG + "title").text
    assert f"KL {table[2]['kl']:.5f}," in title and group.find(SVG + "path") is None
    assert any("mean over 2 texts, 118 predictions" in text.text for text in drawing.iter(SVG + "text"))
    assert not list(cli.folder.glob("*.part"))


def test_plot_wrong(cli):
    base = ["eval", "ppl", "-m", cli.tiny, "-f", cli.text, "-q"]
    cli.fails(2, "--plot has no effect without --against full", *base, "--plot", "x.svg")
    cli.fails(3, "cannot write", *base, "--against", "full", "--plot", cli.folder / "no" / "x.svg")
    kept = cli.folder / "kept.svg"
    kept.write_text("old")
    cli.fails(3, "not the 9999", *base, "--against", "full", "-n", "9999", "--plot", kept)
    assert kept.read_text() == "old"


# ---- Recall ----


def ids_of(cli, path):
    return [int(i) for i in cli.ok("tokenize", "-m", cli.tiny, "-f", path, "--ids").decode().split(",")]


def logprobs_of(cli, ids, policy):
    """The log-probability of every token of a sequence by `eval ppl`, from index 1 on; None where the ids are not those
    of any text."""
    path, out = cli.folder / "sequence.txt", cli.folder / "sequence.csv"
    path.write_bytes(cli.ok("tokenize", "-m", cli.tiny, "-p", ",".join(map(str, ids)), "--decode"))
    if ids_of(cli, path) != ids:
        return None
    rows(cli, "ppl", "-f", path, "--policies", policy, "--logprobs", out)
    return [None] + [float(r["logprob"]) for r in csv.DictReader(out.open())]


def recall(cli, *args):
    out = cli.folder / "recall.csv"
    table = rows(cli, "recall", "--logprobs", out, *args)
    return table, list(csv.DictReader(out.open()))


def test_recall_brute_force(cli):
    """Both copies' log-probabilities are those of `eval ppl` over the same tokens, put together here."""
    path = text_file(cli, "a.txt", 120, 5)
    text, lead, passage, repeats = ids_of(cli, path), 10, 12, 3
    table, tokens = recall(cli, "-f", path, "--distances", "20,70", "--passage", passage, "--lead", lead, "--repeat",
                           repeats, "--policies", "dcm:L=4:merge=newer,window:W=auto:S=2")
    checked = 0
    for distance in (20, 70):
        for repeat in range(repeats):
            start = (len(text) - lead - passage - 70) * repeat // (repeats - 1)
            ids = text[start : start + lead + passage + distance]
            ids += ids[lead : lead + passage]
            of_run = [t for t in tokens if (t["distance"], t["repeat"]) == (str(distance), str(repeat))]
            policies = sorted({t["policy"] for t in of_run})
            assert len(policies) == 3 and len(of_run) == 3 * 2 * passage
            for policy in policies:
                mine = [t for t in of_run if t["policy"] == policy]
                places = [*range(lead, lead + passage), *range(lead + passage + distance, len(ids))]
                assert [int(t["index"]) for t in mine] == places
                assert [int(t["token"]) for t in mine] == [ids[i] for i in places]
                assert [t["copy"] for t in mine] == ["1"] * passage + ["2"] * passage
                expected = logprobs_of(cli, ids, policy)
                checked += expected is not None
                for t in mine if expected else []:
                    assert abs(float(t["logprob"]) - expected[int(t["index"])]) < 1e-6, (policy, t)
    assert checked > 9, checked
    for row in table:
        if row["policy"].startswith("window"):
            assert row["units"] == table[table.index(row) - 1]["units"]


def test_recall_values(cli):
    """Values and intervals from the tokens' log-probabilities."""
    path = text_file(cli, "a.txt", 120, 5)
    passage, repeats = 8, 5
    args = ["-f", path, "--distances", "30", "--passage", passage, "--lead", "16"]
    table, tokens = recall(cli, *args, "--repeat", repeats, "--policies", "full,window:W=20", "--resamples", "50",
                           "--seed", "9")
    assert [r["policy"] for r in table] == ["full", "window:W=20:S=4"]  # the full cache is not added twice
    nll = {}
    for t in tokens:
        nll.setdefault((t["policy"], int(t["copy"]), int(t["repeat"])), []).append(-float(t["logprob"]))

    def statistic(picked):
        full_first, full_second, first, second = (mean(r[i] for r in picked[0]) for i in range(4))
        return first, second, first - second, (first - second) / (full_first - full_second)

    both = [tuple(mean(nll[p, c, r]) for p in ("full", "window:W=20:S=4") for c in (1, 2)) for r in range(repeats)]
    found = intervals([both], statistic, 1, 50, 9)
    for name, value, interval in zip(("nll_first", "nll_second", "gain", "gain_kept"), statistic([both]), found):
        agree(table[1], name, value, interval)
    assert table[0]["gain_kept"] == table[0]["gain_kept_low"] == table[0]["gain_kept_high"] == 1
    [alone] = [r for r in rows(cli, "recall", *args, "-L", "4", "--repeat", "1") if r["policy"] != "full"]
    assert alone["gain_low"] is None and alone["gain"] is not None


def test_recall_near(cli):
    """A window that still holds the first copy recalls as the full cache does: the same bits."""
    path = text_file(cli, "a.txt", 120, 5)
    table = rows(cli, "recall", "-f", path, "--distances", "0,30", "--passage", "8", "--lead", "16", "--policies",
                 "window:W=62,window:W=24", "--kv", "f32")
    near, far = table[:3], table[3:]
    assert near[0]["nll_second"] == near[2]["nll_second"] and near[0]["gain_kept"] == 1
    assert far[0]["nll_second"] == far[2]["nll_second"] != far[1]["nll_second"]


# ---- Needles ----


def needles(cli, *args):
    out = cli.folder / "needle.csv"
    table = rows(cli, "needle", "--answers", out, *args)
    return table, list(csv.DictReader(out.open()))


def encode(cli, text):
    return [int(i) for i in cli.ok("tokenize", "-m", cli.tiny, "-p", text, "--ids").decode().split(",")]


def test_needle_brute_force(cli):
    """Every candidate's log-probability is that of `eval ppl` for a text that ends with it, put together here."""
    path = text_file(cli, "a.txt", 120, 5)
    text, repeats = ids_of(cli, path), 2
    table, answers = needles(cli, "-f", path, "--lengths", "90,140", "--depths", "0,40,100", "--repeat", repeats,
                             "--candidates", "3", "--policies", "dcm:L=4:merge=newer,window:W=auto")
    before, between, after = encode(cli, "\nThe secret word of"), encode(cli, " is"), encode(cli, ".\n")
    beside = 2 * (len(before) + 1 + len(between)) + 1 + len(after)
    checked = 0
    for a in answers:
        length, depth, key, token = (int(a[k]) for k in ("length", "depth", "key", "token"))
        value = [int(v["token"]) for v in answers if v["candidate"] == "0" and all(
            v[k] == a[k] for k in ("policy", "length", "depth", "repeat"))]
        filler = length - beside
        start = (len(text) - (140 - beside)) * int(a["repeat"]) // (repeats - 1)
        part, at = text[start : start + filler], filler * depth // 100
        question = before + [key] + between
        ids = part[:at] + question + value + after + part[at:] + question
        assert len(ids) == length and len(value) == 1 and not {key, token} & set(text[start : start + 140 - beside])
        if a["repeat"] == "1" and length == 140:
            expected = logprobs_of(cli, ids + [token], a["policy"])
            checked += expected is not None
            assert expected is None or abs(float(a["logprob"]) - expected[-1]) < 1e-6, (a, expected[-1])
    assert checked >= 4, checked
    for cell in range(6):
        assert table[2 * cell]["units"] == table[2 * cell + 1]["units"]


def wilson(hits, count, z=1.959964):
    centre, half = hits + z * z / 2, z * math.sqrt(hits * (count - hits) / count + z * z / 4)
    return (centre - half) / (count + z * z), (centre + half) / (count + z * z)


def test_needle_values(cli):
    path = text_file(cli, "a.txt", 120, 5)
    repeats = 6
    table, answers = needles(cli, "-f", path, "--lengths", "90,120", "--depths", "50", "--repeat", repeats,
                             "--candidates", "4", "--policies", "full,window:W=30", "--resamples", "50", "--seed", "4")
    assert [(r["policy"], r["length"], r["depth"]) for r in table] == [
        (p, n, d) for n, d in ((90, 50), (120, 50), (None, None)) for p in ("full", "window:W=30:S=4")]
    trials = {}
    for a in answers:
        trials.setdefault((a["policy"], int(a["length"])), {}).setdefault(int(a["repeat"]), []).append(
            (float(a["logprob"]), int(a["token"]), int(a["key"])))

    def values(candidates):
        right, *others = (c[0] for c in candidates)
        return right > max(others), right - mean(others), right - math.log(sum(math.exp(c[0]) for c in candidates))

    for row in table:
        lengths = [row["length"]] if row["length"] else [90, 120]
        each = [[values(trials[row["policy"], n][r]) for n in lengths] for r in range(repeats)]

        def statistic(picked):
            return tuple(mean(v[i] for repeat in picked[0] for v in repeat) for i in (1, 2))

        for name, value, interval in zip(("margin", "logprob"), statistic([each]),
                                         intervals([each], statistic, 1, 50, 4)):
            agree(row, name, value, interval)
        hits, count = sum(v[0] for repeat in each for v in repeat), repeats * len(lengths)
        assert row["trials"] == count and row["chance"] == 0.25 and abs(row["accuracy"] - hits / count) < 1e-9
        for key, expected in zip(("accuracy_low", "accuracy_high"), wilson(hits, count)):
            assert abs(row[key] - expected) < 1e-5, (row, expected)
    # The same needles for every policy, others for every trial; all words differ.
    drawn = {p: [[c[1:] for c in trials[p, n][r]] for n in (90, 120) for r in range(repeats)]
             for p in ("full", "window:W=30:S=4")}
    assert drawn["full"] == drawn["window:W=30:S=4"] and len({tuple(map(tuple, d)) for d in drawn["full"]}) == 12
    assert all(len({c[0] for c in d} | {d[0][1]}) == 5 for d in drawn["full"])


def test_needle_of_a_seed(cli):
    args = ["-f", text_file(cli, "a.txt", 120, 5), "--lengths", "90", "--depths", "0,50", "--repeat", "2", "-L", "4",
            "--candidates", "100"]
    one, again, other = (needles(cli, *args, "--seed", seed) for seed in ("1", "1", "2"))
    own = encode(cli, "\nThe secret word of") + encode(cli, " is") + encode(cli, ".\n")
    for _, answers in (one, other):
        assert not {int(a[name]) for a in answers for name in ("key", "token")} & set(own)
    assert one == again and [a["token"] for a in one[1]] != [a["token"] for a in other[1]]
    drawn = [a["token"] for a in one[1]]
    for trial in range(4):
        assert len(set(drawn[100 * trial : 100 * (trial + 1)]) | {one[1][100 * trial]["key"]}) == 101


def test_formats_of_all(cli):
    path = text_file(cli, "a.txt", 120, 5)
    for measure, args in [("recall", ["--distances", "20", "--lead", "10", "--passage", "8"]),
                          ("needle", ["--lengths", "90", "--depths", "50"])]:
        args += ["-m", cli.tiny, "-f", path, "--repeat", "2", "--policies", "dcm:L=4,window:W=auto", "-q"]
        table = json.loads(cli.ok("eval", measure, *args, "--format", "json"))
        assert table["test"] == measure and table["file"] == str(path) and table["schema"] == 1
        assert table["tokens"] == len(ids_of(cli, path)) and table["offset"] == 0
        names = list(table["rows"][0])
        lines = [json.loads(line) for line in cli.ok("eval", measure, *args, "--format", "jsonl").splitlines()]
        assert [{k: line[k] for k in names} for line in lines] == table["rows"]
        for form in "csv", "md", "text":
            text = cli.ok("eval", measure, *args, "--format", form).decode().splitlines()
            assert text[0].replace("|", " ").replace(",", " ").split() == names, text[0]


def test_recall_usage(cli):
    base = ["-m", cli.tiny, "-f", cli.text]
    for args, message in [
        (["--distances", "x"], "--distances"),
        (["--distances", "-1"], "--distances"),
        (["--passage", "0"], "--passage"),
        (["--lead", "0"], "--lead"),
        (["--repeat", "0"], "--repeat"),
        (["-p", "x"], "exactly one of -p"),
        (["--policies", ",".join(["dcm"] * 16)], "more than 16, with the full cache"),
        (["--policies", "dcm", "-L", "8"], "--group has no effect with --policies"),
    ]:
        cli.fails(2, message, "eval", "recall", *base, *args)
    cli.fails(3, r"the text has \d+ tokens, but 8 passages .* lower --repeat", "eval", "recall", *base, "-q")
    cli.fails(3, "/none/x.csv: cannot write", "eval", "recall", *base, "--logprobs", "/none/x.csv", "--distances", "9",
              "--passage", "4", "--lead", "4")


def test_needle_usage(cli):
    base = ["-m", cli.tiny, "-f", cli.text]
    for args, message in [
        (["--lengths", "0"], "--lengths"),
        (["--lengths", "20"], r"--lengths: 20 tokens have no room for the needle .* take \d+"),
        (["--depths", "101"], "--depths"),
        (["--candidates", "1"], "--candidates"),
        (["--candidates", "257"], "--candidates"),
        (["--repeat", "0"], "--repeat"),
        (["--policies", "window:W=auto", "--lengths", "100"], "cannot be the first"),
    ]:
        cli.fails(2, message, "eval", "needle", *base, *args)
    cli.fails(3, r"the text has \d+ tokens, not the \d+ that fill", "eval", "needle", *base, "--lengths", "2000")
    cli.fails(3, "too few for a key and 256 candidates", "eval", "needle", *base, "--lengths", "100", "--candidates",
              "256")
    cli.fails(3, "/none/x.csv: cannot write", "eval", "needle", *base, "--lengths", "100", "--answers", "/none/x.csv")


if __name__ == "__main__":
    check.main(globals())
