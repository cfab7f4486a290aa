"""`dcm check` from outside, on a tiny model: devices.py DCM MAKE_TINY_MODEL BROKEN_DEVICE [PATTERN].

0.0 is the first OpenCL device; BROKEN_DEVICE is a library that lets it fail in a chosen way.
"""
import json
import os
import pathlib
import random
import re
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback

SHAPE = "shape:layers=2,hidden=64,heads=4,kv=2,ffn=96,vocab=300"
FIELDS = ["device", "form", "steps", "max_abs", "bound", "ratio", "step", "same_bits", "nmse", "kl", "parted", "margin",
          "tie", "cache_max_abs", "cache_ratio", "cache_worst", "status"]


class Cli:
    def __init__(self, program, make_tiny_model, broken, folder):
        self.program, self.broken, self.folder = program, broken, folder
        self.tiny = str(folder / "tiny.gguf")
        subprocess.run([make_tiny_model, self.tiny], check=True)
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("DCM_", "XDG_"))}
        self.environment.update(DCM_CACHE=str(folder / "cache"), OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive")
        self.model = ["-m", self.tiny, "--merge", "newer", "-L", "8", "-n", "40"]

    def run(self, *args, **environment):
        return subprocess.run([self.program, "check", *map(str, args)], capture_output=True, text=True, timeout=6000,
                              env={**self.environment, **environment})

    def exits(self, code, *args, **environment):
        result = self.run(*args, **environment)
        assert result.returncode == code, f"{args}: exit code {result.returncode}, not {code}: {result.stderr}"
        return result.stdout

    def rows(self, code, *args, form="decode", **environment):
        """Of devices that are fed tokens one by one ("decode"), as a prompt, or together with the logits after each."""
        rows = json.loads(self.exits(code, *args, "--format", "json", **environment))["rows"]
        return [r for r in rows if r["form"] == form]

    def fails(self, code, message, *args, **environment):
        result = self.run(*args, **environment)
        assert result.returncode == code, f"{args}: exit code {result.returncode}, not {code}: {result.stderr}"
        lines = result.stderr.splitlines()
        assert len(lines) == 1 and lines[0].startswith("dcm check: "), f"{args}: not one line: {result.stderr!r}"
        assert re.search(message, lines[0]), f"{args}: {message!r} is not in {lines[0]!r}"
        assert result.stdout == "", f"{args}: standard output has {result.stdout[:80]!r}"


# ---- Usage ----


def test_usage(cli):
    for args, message in [
        (["--devices", "ref,0.0"], "--model .* is required"),
        (["-m", cli.tiny], "--devices .* is required"),
        (["-m", cli.tiny, "--devices", "ref"], "two devices at least"),
        (["-m", cli.tiny, "--devices", "ref,,ref"], "a name is empty"),
        (["-m", cli.tiny, "--devices", ",".join(["ref"] * 15)], "more than 14"),
        (["-m", cli.tiny, "--devices", "ref,ref", "-n", "0"], "--steps"),
        (["-m", cli.tiny, "--devices", "ref,ref", "-n", "8", "--cache-at", "9"], "9 is past the last of 8"),
        (["-m", cli.tiny, "--devices", "ref,ref", "--seed", "3"], "no effect without a shape"),
        (["-m", cli.tiny, "--devices", "ref,ref", "--window", "9"], "--window has no effect"),
        (["-m", SHAPE, "--devices", "ref,ref", "-p", "x"], "no effect with a shape"),
        (["-m", "shape:none", "--devices", "ref,ref"], "unknown shape"),
    ]:
        cli.fails(2, message, *args)
    cli.fails(4, "nosuchdevice", *cli.model, "--devices", "ref,nosuchdevice")
    cli.fails(3, "none.gguf", "-m", cli.folder / "none.gguf", "--devices", "ref,ref")
    cli.fails(3, "none.txt", *cli.model, "--devices", "ref,ref", "-f", cli.folder / "none.txt")
    cli.fails(3, "/none/x: cannot write", *cli.model, "--devices", "ref,ref", "--steps-out", "/none/x")


# ---- Devices that are right ----


def test_agreement(cli):
    """An OpenCL device, the reference with another number of threads (OMP), both storage types and merges."""
    for kv in ("f32", "f16"):
        for merge in ("newer", "mean"):
            rows = cli.rows(0, "-m", cli.tiny, "--devices", "ref,0.0,ref", "-n", "80", "-L", "8", "--kv", kv,
                            "--merge", merge)
            names = ["ref", "0.0", "ref", "ref-float", *(["ref-f32"] if kv == "f16" else [])]
            assert [r["device"] for r in rows] == names and set(rows[0]) == set(FIELDS)
            ref, device, again, floats, *halves = rows
            assert all(r["steps"] == 80 and r["status"] == "ok" for r in rows), rows
            assert 0 < device["ratio"] <= 1 and device["cache_max_abs"] > 0, device
            assert abs(device["ratio"] - device["max_abs"] / device["bound"]) < 1e-6
            assert again["max_abs"] == again["nmse"] == again["cache_max_abs"] == 0, again
            assert again["same_bits"] == 80 and device["same_bits"] < 80
            assert floats["max_abs"] > 0 and floats["ratio"] < 1 / 8 + 1e-6, floats
            assert kv == "f16" or floats["ratio"] > 1 / 8 - 1e-6, floats
            assert all(0.1 < r["ratio"] <= 0.5 for r in halves), halves


def test_halves(cli):
    """Units in f16, where a last bit turns a stored half or not, as chance has it: no text makes a right device wrong,
    and one whose scores are off by 1 % is."""
    words = "the cold day in April was bright and clocks were striking thirteen ; - x? 7".split()
    wrong = dict(LD_PRELOAD=cli.broken, BROKEN="compiler", BROKEN_TEXT="SCALE (1.0f /", BROKEN_BY="SCALE (1.01f /",
                 DCM_CACHE=str(cli.folder / "wrong"))
    for seed in range(4, 7):
        text = " ".join(random.Random(seed).choices(words, k=60))
        run = ["-m", cli.tiny, "-L", "4", "-n", "80", "--kv", "f16", "-p", text, "--devices", "ref,0.0"]
        for merge in "newer", "mean":
            row = cli.rows(0, *run, "--merge", merge)[1]
            assert row["status"] == "ok" and row["same_bits"] < 80, (seed, merge, row)
        row = cli.rows(1, *run, "--merge", "newer", **wrong)[1]
        assert row["ratio"] > 1 and row["cache_ratio"] > 2, row


def test_notes(cli):
    """Which devices the names stand for, in a table for people as in JSON."""
    table = json.loads(cli.exits(0, *cli.model, "--devices", "0.0,ref", "--format", "json"))
    facts = table["devices"][0]
    text = cli.exits(0, *cli.model, "--devices", "0.0,ref")
    assert f"0.0 is {facts['device']} ({facts['platform']}, driver {facts['driver']}); ref is ref (C ref" in text, text
    assert "\nprompt: the first 40 tokens once more" in text and "each: once more, 128 at a time at most" in text, text
    assert table["prompt_tokens"] == 40, table
    path = saved(cli, "notes")
    text = cli.exits(0, *against(cli, path), "--devices", "ref")
    assert f"{path} is {facts['device']} (" in text, text


def test_other_baselines_and_policies(cli):
    for policy in (["--cache", "full"], ["--cache", "window", "--window", "20"]):
        rows = cli.rows(0, "-m", cli.tiny, "--devices", "0.0,ref", "-n", "40", *policy)
        assert [r["device"] for r in rows] == ["0.0", "ref", "ref-float"] and rows[1]["status"] == "ok"


def test_steps(cli):
    out = cli.folder / "steps.jsonl"
    text = cli.folder / "text.txt"
    text.write_text("It was a bright cold day in April. " * 4)
    rows = cli.rows(0, *cli.model, "--devices", "ref,0.0", "--steps-out", out, "-f", text, "--cache-at", "1,7")
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(line["device"], line["step"]) for line in lines] == [("0.0", i) for i in range(1, 41)]
    worst = max(lines, key=lambda line: line["max_abs"] / line["bound"])
    assert worst["step"] == rows[1]["step"] and abs(worst["max_abs"] - rows[1]["max_abs"]) < 1e-9
    nmse = max(line["nmse"] for line in lines)
    assert abs(nmse - rows[1]["nmse"]) < 1e-6 * nmse and all(line["same_top"] for line in lines)
    assert re.match(r"after [17]: layer \d, (keys|values) of tokens \d to \d", rows[1]["cache_worst"])


# Kernels of prompts alone: three times the inputs of a product, in the engine that CPUs have.
BROKEN_PROMPT = dict(BROKEN="compiler", BROKEN_TEXT="inside ? row[k] : 0.0f", BROKEN_BY="inside ? 3 * row[k] : 0.0f")


def test_prompt(cli):
    """The same tokens as a prompt: compared where caches are and at its end, whatever its steps."""
    for more, steps in ([], 2), (["--chunk", "8"], 2), (["--cache-at", "3,17,40"], 3), (["--kv", "f16"], 2):
        for devices in "ref,0.0", "0.0,ref":  # the baseline too is held against what it decoded
            row, = cli.rows(0, *cli.model, "--devices", devices, *more, form="prompt")
            assert row["device"] == "0.0" and row["steps"] == steps and row["status"] == "ok", row
            assert 0 < row["ratio"] <= 1 and 0 < row["cache_ratio"] <= 1 and row["same_bits"] < steps, row
    long = ["-m", cli.tiny, "--merge", "newer", "-L", "8", "-n", "530", "--devices", "ref,0.0"]
    row, = cli.rows(0, *long, form="prompt")
    assert row["steps"] == 2 and row["cache_ratio"] > 0, row  # after 265 and 512
    row, = cli.rows(0, *long, "--cache-at", "520", form="prompt")
    assert row["steps"] == 1 and row["cache_ratio"] > 0, row  # after 512
    assert not cli.rows(0, *cli.model[:-1], "1", "--devices", "ref,0.0", form="prompt")
    row, = cli.rows(0, *cli.model, "--devices", "ref,0.0", "--strict", form="prompt")
    assert row["same_bits"] == 2 and row["cache_max_abs"] == 0 and row["bound"] is None, row


def test_broken_prompt(cli):
    """Kernels that only prompts use: found by the prompt's row, by a record and by --verify-every."""
    broken = dict(LD_PRELOAD=cli.broken, DCM_CACHE=str(cli.folder / "broken-prompt"), **BROKEN_PROMPT)
    run = [*cli.model, "--devices", "ref,0.0"]
    assert cli.rows(1, *run, **broken)[1]["status"] == "ok"
    row, = cli.rows(1, *run, form="prompt", **broken)
    assert row["status"] == "logits differ" and row["ratio"] > 100 and row["cache_ratio"] > 100, row
    row, = cli.rows(1, *cli.model, "--devices", "0.0,ref", form="prompt", **broken)
    assert row["status"] == "logits differ", row
    path = saved(cli, "prompt")
    row, = cli.rows(1, *against(cli, path), "--devices", "0.0", form="prompt", **broken)
    assert row["status"] == "logits differ" and row["cache_ratio"] > 100, row
    no_kernel = {**broken, "BROKEN_BY": "no such name", "DCM_CACHE": str(cli.folder / "no-kernel")}
    table = json.loads(cli.exits(4, *run, "--format", "json", **no_kernel))["rows"]
    assert [r["steps"] for r in table] == [40, 20, 40, 0, 0] and table[1]["cache_ratio"] <= 1, table
    assert all(table[i]["status"].endswith(", in a prompt, at one of tokens 1 to 20") for i in (1, 3, 4)), table
    assert run_watched(cli, "--device", "0.0", **broken).returncode == 0
    watched = run_watched(cli, "--device", "0.0", "--verify-every", "1000", **broken)
    assert watched.returncode == 1 and "computes wrongly" in watched.stderr, watched


def test_each(cli):
    """Once more with the logits after each token, 128 at a time: those of every token are compared, no caches."""
    for more in [], ["--chunk", "8"], ["--kv", "f16"], ["--cache-at", "3,17"]:
        for devices in "ref,0.0", "0.0,ref":
            row, = cli.rows(0, *cli.model, "--devices", devices, *more, form="each")
            assert row["device"] == "0.0" and row["steps"] == 40 and row["status"] == "ok", row
            assert 0 < row["ratio"] <= 1 and row["same_bits"] < 40 and row["cache_ratio"] is None, row
    out = cli.folder / "each.jsonl"
    row, = cli.rows(0, *cli.model, "--devices", "ref,0.0", "--steps-out", out, form="each")
    bounds = [json.loads(line)["bound"] for line in out.read_text().splitlines()]
    assert len(bounds) == 40 and abs(row["bound"] / bounds[row["step"] - 1] - 1) < 1e-5, (row, bounds)
    for text in [], ["-p", "It was a bright cold day in April. " * 20]:  # what the baseline chooses, and what is known
        for tokens, steps in (129, 129), (530, 512):
            row, = cli.rows(0, *cli.model[:-1], tokens, *text, "--devices", "ref,0.0", form="each")
            assert row["steps"] == steps and row["status"] == "ok", row
    assert not cli.rows(0, *cli.model[:-1], "1", "--devices", "ref,0.0", form="each")
    row, = cli.rows(0, *cli.model, "--devices", "ref,0.0", "--strict", form="each")
    assert row["same_bits"] == 40 and row["bound"] is None, row
    row, = cli.rows(0, *against(cli, saved(cli, "each")), "--devices", "0.0", form="each")
    assert row["steps"] == 24 and row["status"] == "ok" and row["max_abs"] > 0, row


# The product with the vocabulary alone, which has more rows than the others: what the 18th token of a step gets.
BROKEN_EACH = dict(BROKEN="compiler", BROKEN_TEXT="store16(sum[t][i],",
                   BROKEN_BY="store16(rows > 256 && p * PANEL + t == 17 ? 1.01f * sum[t][i] : sum[t][i],")


def test_broken_each(cli):
    """A kernel that computes wrongly for many logits only: no other form finds it. And one that crashes there."""
    broken = dict(LD_PRELOAD=cli.broken, DCM_CACHE=str(cli.folder / "broken-each"), **BROKEN_EACH)
    for devices in "ref,0.0", "0.0,ref":
        for more in [], ["--kv", "f16"]:
            table = json.loads(cli.exits(1, *cli.model, "--devices", devices, "--format", "json", *more, **broken))
            *others, each = table["rows"]
            assert all(r["status"] == "ok" for r in others), others
            assert each["form"] == "each" and each["status"] == "logits differ" and each["step"] == 18, each
    row, = cli.rows(1, *against(cli, saved(cli, "each")), "--devices", "0.0", form="each", **broken)
    assert row["status"] == "logits differ" and row["step"] == 18, row
    table = json.loads(cli.exits(4, *cli.model, "--devices", "ref,0.0", "--format", "json", LD_PRELOAD=cli.broken,
                                 BROKEN="each"))["rows"]
    assert [r["steps"] for r in table] == [40, 40, 40, 2, 0], table
    assert all(re.fullmatch(r"crashed: .*, in a prompt with the logits after each, at one of tokens 1 to 40",
                            table[i]["status"]) for i in (1, 3, 4)), table


def test_shape(cli):
    for weights in ("f16", "q4_1"):
        rows = cli.rows(0, "-m", SHAPE, "--weights", weights, "--merge", "newer", "--devices", "ref,0.0", "-n", "30",
                        "-L", "4")
        assert rows[1]["status"] == "ok" and rows[1]["max_abs"] > 0


def test_strict(cli):
    """The same bits, or the first token that has others; and records of strict runs are their own kind."""
    args = ["-m", cli.tiny, "--devices", "ref,0.0", "-n", "60", "-L", "8", "--strict"]
    for policy in (["--merge", "mean", "--kv", "f16"], ["--merge", "newer"]):
        rows = cli.rows(0, *args, *policy)
        assert [r["device"] for r in rows] == ["ref", "0.0"], rows
        assert rows[1]["status"] == "ok" and rows[1]["same_bits"] == 60 and rows[1]["bound"] is None, rows
        assert rows[1]["max_abs"] == rows[1]["cache_max_abs"] == 0, rows
    for broken, status in (("logit", "other bits from token 12 on"), ("cache", "cache differs")):
        rows = cli.rows(1, *args, "--merge", "newer", LD_PRELOAD=cli.broken, BROKEN=broken)
        assert rows[1]["status"] == status, rows
    # a kernel that the trial before does not have, in every layer: the first cache that it reaches is the second one's
    row = cli.rows(1, *args, "--merge", "newer", LD_PRELOAD=cli.broken, BROKEN="compiler",
                   BROKEN_TEXT="a.out[c] / a.sum", BROKEN_BY="a.out[c] * (1.0f / a.sum)",
                   DCM_CACHE=str(cli.folder / "broken-attention"))[1]
    assert re.fullmatch(r"other bits from token \d+ on; its cache after 30: layer 1, keys of tokens \d+ to \d+",
                        row["status"]), row
    cli.fails(2, "ref-float", "-m", cli.tiny, "--devices", "ref-float,ref", "--strict")
    path = cli.folder / "strict.dcmcheck"
    model = ["-m", cli.tiny, "--merge", "newer", "-L", "4", "--strict"]
    cli.exits(0, *model, "-n", "24", "--devices", "ref", "--save", path)
    rows = cli.rows(0, *model, "--against", path, "--devices", "0.0")
    assert rows[1]["same_bits"] == 24 and rows[1]["status"] == "ok", rows
    cli.fails(3, "its strict is true, here it is false", *against(cli, path), "--devices", "0.0")


def scorer(cli):
    """A trained merge model of the tiny model; trained once."""
    path = cli.folder / "scorer.safetensors"
    if not path.exists():
        text = cli.folder / "train.txt"
        text.write_text("It was a bright cold day in April, and the clocks were striking thirteen. " * 20)
        subprocess.run([cli.program, "train", "-q", "--device", "ref", "-m", cli.tiny, "-f", text, "-o", path, "-n",
                        "48", "-L", "4", "--steps", "1", "--hidden", "16"], check=True, env=cli.environment)
    return path


def test_scorer(cli):
    """Merges that decide sharply: bounds of units know by how much, in a run and in a record."""
    model = ["-m", cli.tiny, "--merge", scorer(cli), "-L", "4"]
    run = [*model, "-n", "80", "--devices", "ref,0.0,ref", "--cache-at", "30,80"]
    for kv in ("f32", "f16"):
        for row in cli.rows(0, *run, "--kv", kv)[1:3]:
            assert row["status"] == "ok" and row["cache_ratio"] <= 1, row
    # without what the references tell of their merges, a bound is that of a token's own unit, so never larger
    told, untold = (cli.rows(0, *run, **e)[1]["cache_ratio"] for e in ({}, dict(LD_PRELOAD=cli.broken, BROKEN="watch")))
    assert told <= untold, (told, untold)
    assert cli.rows(1, *run, LD_PRELOAD=cli.broken, BROKEN="cache")[1]["status"] == "cache differs"
    # the kernel weighs by 0.999 of what it should
    broken = dict(LD_PRELOAD=cli.broken, BROKEN="compiler", BROKEN_TEXT="1.0f / (1.0f + exp(-x))",
                  BROKEN_BY="0.999f / (1.0f + exp(-x))", DCM_CACHE=str(cli.folder / "broken"))
    assert cli.rows(1, *run, **broken)[1]["status"] in ("logits differ", "cache differs")
    watch = ["--device", "0.0", "--kv", "f32", "--verify-every", "1"]
    assert run_watched(cli, *watch, merge=scorer(cli)).returncode == 0
    watched = run_watched(cli, *watch, merge=scorer(cli), **broken)
    assert watched.returncode == 1 and "computes wrongly" in watched.stderr, watched
    path = cli.folder / "scorer.dcmcheck"
    cli.exits(0, *model, "-n", "40", "--devices", "0.0", "--save", path)
    assert cli.rows(0, *model, "--against", path, "--devices", "ref")[1]["status"] == "ok"
    rows = cli.rows(1, *model, "--against", path, "--devices", "0.0", LD_PRELOAD=cli.broken, BROKEN="cache")
    assert rows[1]["status"] == "cache differs"


# A change of the kernels' text by the operation that it breaks, as the message names it.
STRICT_FAULTS = {
    "a * b + c": ("a[i] * b[i] + c[i]", "fma(a[i], b[i], c[i])"),
    "fma(a, b, c)": ("STRICT_FMA(a, b, c) fma(a, b, c)", "STRICT_FMA(a, b, c) ((a) * (b) + (c))"),
    "a / b": ("a[i] / b[i]", "a[i] * (1.0f / b[i])"),
    "sqrt(|a|)": ("STRICT_SQRT(x) sqrt(x)", "STRICT_SQRT(x) (1.0f / (1.0f / sqrt(x)))"),
    "half(a)": ("half_bits = float_to_half(a[i])", "half_bits = float_to_half(a[i]) | 1"),
    "exp(a)": ("0x1.fffff8p-2f", "0x1.ffff00p-2f"),
    "silu(a)": ("x / (1.0f + strict_exp(-x))", "x * strict_sigmoid(x)"),
    "elu(a)": ("strict_exp(x) - 1.0f", "expm1(x)"),
    "the sum of a b": ("x.lo + x.hi", "x.even + x.odd"),
}


def test_strict_fault(cli):
    """A device whose compiler changes one operation is refused before it computes, and the operation is named."""
    for i, (name, (text, other)) in enumerate(STRICT_FAULTS.items()):
        cli.fails(4, "does not compute strictly: " + re.escape(name) + " is ", "-m", cli.tiny, "--merge", "newer",
                  "--devices", "ref,0.0", "--strict", "-n", "2", LD_PRELOAD=cli.broken, BROKEN="compiler",
                  BROKEN_TEXT=text, BROKEN_BY=other, DCM_CACHE=str(cli.folder / f"cache{i}"))


# ---- Devices that are not ----


def test_wrong_device(cli):
    args = [*cli.model, "--devices", "ref,0.0,ref"]
    for broken in ("logit", "nan", "cache"):
        rows = cli.rows(1, *args, LD_PRELOAD=cli.broken, BROKEN=broken)
        assert rows[1]["status"] == {"logit": "logits differ", "nan": "logits are no numbers from token 12 on",
                                     "cache": "cache differs"}[broken], rows
        assert rows[2]["status"] == "ok"
        if broken == "logit":
            assert rows[1]["step"] == 12 and rows[1]["ratio"] > 1 and abs(rows[1]["max_abs"] - 0.01) < 1e-4, rows
        if broken == "nan":
            assert rows[1]["step"] == 12 and rows[1]["max_abs"] is None, rows
            first = cli.rows(1, *cli.model, "--devices", "0.0,ref", LD_PRELOAD=cli.broken, BROKEN=broken)[0]
            assert first["device"] == "0.0" and first["status"] == "logits are no numbers from token 12 on", first
        if broken == "cache":
            assert "layer 1, keys of tokens 0 to 0" in rows[1]["cache_worst"], rows


def test_failing_device(cli):
    """The token is told; what was compared until then stays, and where nothing was there is nothing."""
    for broken, status in (("crash", r"crashed: signal 6 \(Aborted\), at token 12"),
                           ("error", "token 0 is -1.*, at token 12"),
                           ("hang", "no answer within 30 s: stopped, at token 12")):
        how = dict(LD_PRELOAD=cli.broken, BROKEN=broken)
        code = 2 if broken == "error" else 4
        args = [*cli.model, "--timeout", "30" if broken == "hang" else "600", "--devices"]
        table = json.loads(cli.exits(code, *args, "ref,0.0,ref", "--format", "json", **how))["rows"]
        assert [r["device"] for r in table] == ["ref", "0.0", "ref", "ref-float", "0.0", "0.0"], table
        _, device, again, _, prompt, each = table
        assert re.fullmatch(status, device["status"]) and device["steps"] == 11, device
        assert 0 < device["ratio"] <= 1 and device["cache_max_abs"] is device["cache_ratio"] is None, device
        assert again["status"] == "ok" and again["steps"] == 40, again
        for row in prompt, each:
            assert row["steps"] == 0 and row["max_abs"] is row["kl"] is row["same_bits"] is None, row
        for kv in ("f32", "f16") if broken != "hang" else ():
            rows = cli.rows(code, *args, "0.0,ref", "--kv", kv, **how)
            assert re.fullmatch(status, rows[0]["status"]) and {r["steps"] for r in rows} == {11}, rows
            assert rows[1]["status"] == "not compared to the end" and rows[1]["ratio"] <= 1, rows


def run_watched(cli, *args, merge="mean", prompt="It was a cold day", **environment):
    return subprocess.run([cli.program, "run", "-m", cli.tiny, "--merge", merge, "-L", "4", "-n", "40", "--ignore-eos",
                           "-p", prompt, "-q", *args], capture_output=True, text=True, timeout=6000,
                          env={**cli.environment, **environment})


def test_watch(cli):
    """dcm run --verify-every: the text is the same, and a device that computes wrongly is found."""
    for kv in ("f16", "f32"):
        plain = run_watched(cli, "--device", "0.0", "--kv", kv)
        assert plain.returncode == 0 and plain.stdout
        for every, verified in (1, 40), (7, 6), (1000, 1):
            watched = run_watched(cli, "--device", "0.0", "--kv", kv, "--verify-every", str(every), "--stats")
            assert watched.returncode == 0 and watched.stdout == plain.stdout, watched.stderr
            line = re.search(r"verified: +(\d+) of (\d+) steps, differences at most (\S+) of", watched.stderr)
            assert line and (int(line[1]), int(line[2])) == (verified, 40), watched.stderr
            assert 0 < float(line[3]) <= 1
    # of a long prompt the end alone, in a step of its own, also where scorers choose in each of its merges
    for merge in "mean", scorer(cli):
        args = dict(merge=merge, prompt="It was a bright cold day in April. " * 4)
        watched = run_watched(cli, "--device", "0.0", "--verify-every", "1000", "--stats", **args)
        assert watched.returncode == 0 and "verified:       1 of 40 steps" in watched.stderr, watched.stderr
        assert watched.stdout == run_watched(cli, "--device", "0.0", **args).stdout
    for broken in ("logit", "nan"):
        args = ["--device", "0.0", "--kv", "f32", "--verify-every"]
        watched = run_watched(cli, *args, "1", LD_PRELOAD=cli.broken, BROKEN=broken)
        assert watched.returncode == 1, watched.stderr
        what = {"logit": "differs by 0.01 from what", "nan": "is no number, where"}[broken]
        assert re.fullmatch(rf"dcm run: token \d+: a logit {what} the reference .*\n", watched.stderr), watched.stderr
        # the feed that is wrong is the 12th: the prompt, and 11 tokens, of which the 1st and 9th are verified
        skipped = run_watched(cli, *args, "8", LD_PRELOAD=cli.broken, BROKEN=broken)
        assert skipped.returncode == (3 if broken == "nan" else 0), skipped
        assert broken == "logit" or re.search(r"no number: .*\(or the device computes wrongly", skipped.stderr), skipped
    watched = run_watched(cli, "--device", "0.0", "--verify-every", "1", LD_PRELOAD=cli.broken, BROKEN="cache")
    assert watched.returncode == 1, watched
    assert re.search("layer 1, keys of tokens 0 to 0 differ by 0.1 ", watched.stderr), watched.stderr
    for wrong in ("0", "-1", "x"):
        assert run_watched(cli, f"--verify-every={wrong}").returncode == 2


# ---- Records ----


class Record:
    """A record's parts, to be changed and put together again with a right checksum."""

    def __init__(self, data):
        magic, self.version, size, body, checksum = struct.unpack_from("<8sIIQQ", data)
        assert magic == b"DCMCHECK" and len(data) == 32 + size + body
        self.header, self.body = json.loads(data[32 : 32 + size]), bytearray(data[32 + size :])
        assert checksum == self.checksum(data[32:])

    @staticmethod
    def checksum(data):
        h = 0xCBF29CE484222325
        for byte in data:
            h = (h ^ byte) * 0x100000001B3 & (1 << 64) - 1
        return h

    def step(self, i):
        """Offset of step i, whose parts are token, bound, log_sum, checksum, 64 ids, 64 values."""
        return i * (24 + 8 * 64)

    def digest(self, cache, layer, kind, unit):
        at = self.step(self.header["steps"])
        layers = self.header["options"]["layers"]
        for i, (_, units) in enumerate(self.header["caches"]):
            if i == cache:
                return at + 16 * units + 8 * layers * units + ((2 * layer + kind) * units + unit) * 4
            at += 16 * units * (1 + layers)

    def put(self, path):
        header = json.dumps(self.header).encode()
        data = header + bytes(self.body)
        path.write_bytes(struct.pack("<8sIIQQ", b"DCMCHECK", self.version, len(header), len(self.body),
                                     self.checksum(data)) + data)


def saved(cli, name="made", steps=24):
    path = cli.folder / f"{name}.dcmcheck"
    cli.exits(0, "-m", cli.tiny, "--merge", "newer", "-L", "4", "-n", steps, "--devices", "0.0", "--save", path)
    return path


def against(cli, path):
    return ["-m", cli.tiny, "--merge", "newer", "-L", "4", "--against", path]


def test_record(cli):
    path = saved(cli)
    record = Record(path.read_bytes())
    assert record.header["steps"] == 24 and [c[0] for c in record.header["caches"]] == [24, 12] or \
        [c[0] for c in record.header["caches"]] == [12, 24], record.header
    for key in ("commit", "host_cpu", "date", "command_line", "device", "driver", "platform", "tuning", "model"):
        assert record.header[key] != "" or key == "tuning", key
    rows = cli.rows(0, *against(cli, path), "--devices", "0.0,ref,ref-float")
    assert [r["device"] for r in rows] == [str(path), "0.0", "ref", "ref-float"]
    assert all(r["status"] == "ok" and r["steps"] == 24 for r in rows), rows
    assert rows[1]["same_bits"] == 24 and rows[1]["max_abs"] == rows[1]["cache_max_abs"] == 0
    assert 0 < rows[2]["ratio"] <= 1 and rows[2]["cache_max_abs"] > 0
    result = cli.run(*against(cli, path), "--devices", "ref", "-n", "5", "--format", "json")
    row = json.loads(result.stdout)["rows"][1]
    assert result.returncode == 0 and row["steps"] == 5 and row["status"] == "ok", result
    assert row["cache_max_abs"] is row["cache_ratio"] is row["cache_worst"] is None, row
    assert result.stderr == "dcm: no cache is compared: the record has none after at most 5 tokens\n", result.stderr
    half = cli.folder / "half.dcmcheck"
    shape = ["-m", SHAPE, "--merge", "newer", "-L", "4", "--kv", "f16"]
    cli.exits(0, *shape, "--devices", "ref", "-n", "20", "--save", half)
    rows = cli.rows(0, *shape, "--devices", "0.0", "--against", half)
    assert rows[1]["status"] == "ok" and rows[1]["steps"] == 20
    # what the record's numbers are: those of a run beside the device itself
    beside = cli.rows(0, "-m", cli.tiny, "--merge", "newer", "-L", "4", "-n", "24", "--devices", "0.0,ref")[1]
    rows = cli.rows(0, *against(cli, path), "--devices", "ref")
    assert abs(rows[1]["bound"] / beside["bound"] - 1) < 1e-5 or rows[1]["step"] != beside["step"]
    assert rows[1]["max_abs"] <= beside["max_abs"] * (1 + 1e-9) and rows[1]["kl"] <= beside["kl"] * (1 + 1e-6)


def test_record_that_differs(cli):
    path, other = saved(cli), cli.folder / "other.dcmcheck"
    whole = path.read_bytes()

    def change(at_of, by, column, what):
        record = Record(whole)
        at = at_of(record)
        struct.pack_into("<f", record.body, at, struct.unpack_from("<f", record.body, at)[0] + by)
        record.put(other)
        row = cli.rows(1 if what != "ok" else 0, *against(cli, other), "--devices", "0.0")[1]
        assert row["status"] == what, (row, what)
        if what != "ok":
            assert abs(row[column] / by - 1) < 1e-3, row
        return row

    row = change(lambda r: r.step(17) + 24 + 4 * 64 + 4 * 63, 0.01, "max_abs", "logits differ")
    assert row["step"] == 18 and row["ratio"] > 1
    change(lambda r: r.step(17) + 24 + 4 * 64 + 4 * 63, 1e-6, "max_abs", "ok")
    row = change(lambda r: r.digest(1, 1, 1, 2), 0.01, "cache_max_abs", "cache differs")
    step, units = Record(whole).header["caches"][1]
    bounds = 2 * 2 * units * 4  # of keys and values in two layers, behind the list of units
    first, = struct.unpack_from("<Q", Record(whole).body, Record(whole).digest(1, 0, 0, 0) - bounds - 16 * (units - 2))
    assert row["cache_worst"].startswith(f"after {step}: layer 1, values of tokens {first} to "), (row, first)
    rows = cli.rows(1, *against(cli, path), "--devices", "0.0", LD_PRELOAD=cli.broken, BROKEN="cache")
    assert rows[1]["status"] == "cache differs"
    rows = cli.rows(4, *against(cli, path), "--devices", "0.0,ref", LD_PRELOAD=cli.broken, BROKEN="crash")
    assert rows[1]["status"].startswith("crashed: signal 6") and rows[2]["status"] == "ok"
    # other units: a level that the schedule never has there
    record = Record(whole)
    struct.pack_into("<I", record.body, record.step(24) + 8, 3)
    record.put(other)
    rows = cli.rows(4, *against(cli, other), "--devices", "ref")
    assert "other units" in rows[1]["status"]


def test_merge_of_record(cli):
    """A merge file counts by what is in it, not by its name."""
    golden = pathlib.Path(__file__).parent.parent / "golden/merge"
    merge, moved, record = (cli.folder / n for n in ("merge.safetensors", "moved.safetensors", "merge.dcmcheck"))
    policy = ["-m", cli.tiny, "-L", "4"]
    for first, other in ("gate_d16_b1", "gate_d16_b3"), ("direct_d16_b1", "gate_d16_b1"):
        data = (golden / f"{first}.safetensors").read_bytes()
        merge.write_bytes(data)
        moved.write_bytes(data)
        cli.exits(0, *policy, "--merge", merge, "--devices", "0.0", "-n", "12", "--save", record)
        assert str(merge) not in Record(record.read_bytes()).header["options"]["policy"]
        cli.exits(0, *policy, "--merge", moved, "--devices", "0.0,ref", "--against", record)
        changed = bytearray(data)
        changed[-1] ^= 0x10
        for wrong in changed, (golden / f"{other}.safetensors").read_bytes():
            merge.write_bytes(wrong)
            cli.fails(3, "its policy is .*merge=(gate|direct)-[0-9a-f]{16}.*, here it is .*merge=(gate|direct)-",
                      *policy, "--merge", merge, "--against", record, "--devices", "ref")
        cli.fails(3, "its policy is .*, here it is .*merge=newer", *policy, "--merge", "newer", "--against", record,
                  "--devices", "ref")
    cli.exits(0, *policy, "--devices", "ref", "--against", saved(cli))  # auto, which is newer here


def test_foreign_record(cli):
    path = saved(cli)
    base = ["--merge", "newer", "--against", path, "--devices", "ref"]
    cli.fails(3, "its policy is .*L=4.*, here it is .*L=8", "-m", cli.tiny, "-L", "8", *base)
    cli.fails(3, "its policy is", "-m", cli.tiny, "-L", "4", "--kv", "f16", *base)
    cli.fails(3, "its (model_digest|vocab) is", "-m", SHAPE, "-L", "4", *base)
    for args, message in [
        (["--save", "x"], "--save has no effect with --against"),
        (["-p", "x"], "--prompt has no effect"),
        (["--cache-at", "3"], "--cache-at has no effect"),
        (["-n", "25"], "the record has only 24 steps"),
        (["-"], "its tokens are in the record"),
    ]:
        cli.fails(2, message, *against(cli, path), "--devices", "ref", *args)
    cli.fails(3, "No such file", *against(cli, cli.folder / "none"), "--devices", "ref")
    cli.fails(3, "not a regular file", *against(cli, cli.folder), "--devices", "ref")
    cli.fails(3, "not a record", *against(cli, cli.tiny), "--devices", "ref")
    record = Record(path.read_bytes())
    record.version -= 1
    record.put(cli.folder / "old.dcmcheck")
    cli.fails(3, "a record of another version of dcm", *against(cli, cli.folder / "old.dcmcheck"), "--devices", "ref")
    cli.fails(2, "--save and --steps-out name the same file", *cli.model, "--devices", "ref", "--save", "both",
              "--steps-out", "both")
    cli.fails(3, "/none/x: cannot write", *cli.model, "--devices", "ref", "--save", "/none/x")
    gone = cli.folder / "gone.dcmcheck"
    cli.exits(4, *cli.model, "--devices", "0.0", "--save", gone, LD_PRELOAD=cli.broken, BROKEN="crash")
    assert not list(cli.folder.glob("gone*"))


def test_damaged_record(cli):
    path, other = saved(cli, steps=8), cli.folder / "damaged.dcmcheck"
    whole = path.read_bytes()

    def refused(message="truncated|damaged|not a record|a record of another version"):
        cli.fails(3, f"damaged.dcmcheck: ({message}).*make it again", *against(cli, other), "--devices", "ref")

    for size in [0, 7, 8, 31, 32, 40, len(whole) // 2, len(whole) - 1]:
        other.write_bytes(whole[:size])
        refused()
    other.write_bytes(whole + b"x")
    refused("truncated")
    for at in [0, 8, 12, 13, 15, 16, 23, 24, 31, 32, 40, *range(64, len(whole), len(whole) // 24), len(whole) - 1]:
        data = bytearray(whole)
        data[at] ^= 0x40
        other.write_bytes(data)
        refused()

    def header(change):
        record = Record(whole)
        change(record.header)
        record.put(other)
        refused("damaged: its header")

    for steps in (0, -1, 7, 9, 1 << 40, 1 << 62, "8", None, [8], 8.0):
        header(lambda h: h.update(steps=steps))
    for layers in (0, -1, 1 << 31, 1 << 62):
        header(lambda h: h["options"].update(layers=layers))
    header(lambda h: h.update(options=[]))
    header(lambda h: h.pop("caches"))
    for caches in (None, [[]], [[8, 1 << 61]], [[8, -1]], [[9, 1]], [[0, 1]], [["8", 8]], [[8, 8]] * 65, {}):
        header(lambda h: h.update(caches=caches))

    def body(offset, form, value):
        record = Record(whole)
        struct.pack_into(form, record.body, offset(record), value)
        record.put(other)
        refused("damaged: an id or a bound")

    for value in (float("nan"), float("inf"), 0.0, -1.0):
        body(lambda r: r.step(3) + 4, "<f", value)
    for value in (-2, 1 << 30):
        body(lambda r: r.step(3) + 24 + 4 * 5, "<i", value)
        body(lambda r: r.step(3), "<i", value)
    body(lambda r: r.step(3) + 24, "<i", -1)
    body(lambda r: r.digest(0, 0, 0, 0) - 4, "<f", float("nan"))


# ---- Processes ----


def processes():
    """The parent of each that runs: one that ended may wait for a parent to take note of it."""
    parents = {}
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it has gone meanwhile
            continue
        if state not in "ZX":
            parents[int(path.parent.name)] = int(parent)
    return parents


def test_no_process_is_left(cli):
    """When the check ends or is killed while it compares, so do the processes of its devices."""
    steps = cli.folder / "left.jsonl"
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        for part in cli.folder.glob("left.jsonl.*.part"):
            part.unlink()
        process = subprocess.Popen([cli.program, "check", "-m", cli.tiny, "--devices", "ref,ref", "-n", "1000000",
                                    "--steps-out", str(steps), "-q"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   env=cli.environment)
        while process.poll() is None and not any(part.stat().st_size for part in cli.folder.glob("left.jsonl.*.part")):
            time.sleep(0.01)
        children = {child for child, parent in processes().items() if parent == process.pid}
        assert len(children) == 3, children  # the reference and two devices
        process.send_signal(number)
        out, errors = process.communicate(timeout=600)
        want = -number if number == signal.SIGKILL else 128 + number
        assert process.returncode == want and out == b"", (process.returncode, out, errors)
        deadline = time.time() + 600
        while (left := children & processes().keys()) and time.time() < deadline:
            time.sleep(0.01)
        assert not left, left


def main():
    program, make_tiny_model, broken, *pattern = sys.argv[1:]
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        cli = Cli(program, make_tiny_model, broken, pathlib.Path(folder))
        tests = {n: f for n, f in globals().items() if n.startswith("test_") and all(p in n for p in pattern)}
        for name, function in tests.items():
            try:
                function(cli)
                print(f"ok      {name}", flush=True)
            except Exception:  # a failed check must not hide the others
                failed += 1
                print(f"FAILED  {name}\n{traceback.format_exc(limit=-2)}", flush=True)
    print(f"{len(tests) - failed} passed, {failed} failed")
    sys.exit(failed > 0 or not tests)


main()
