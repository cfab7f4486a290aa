"""`dcm bench` from outside, on a tiny model and the C reference: bench.py DCM MAKE_TINY_MODEL FAKE_RAPL [PATTERN].

No figure is expected to have a value: names, counts, units, actions and the arithmetic between figures are checked.
"""
import csv
import io
import json
import math
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from xml.etree import ElementTree

FIELDS = ["test", "policy", "tokens_per_s", "p50_ms", "p90_ms", "p99_ms", "max_ms", "attention_ms", "merge_ms",
          "launches", "profiled_steps", "spread", "units", "cache_bytes", "peak_bytes", "host_peak_bytes",
          "step_bytes", "gb_s", "share", "read_gb_s", "j_per_1k", "watts", "idle_watts", "energy_source",
          "prefill_tokens_per_s", "repetitions", "needed_bytes", "status"]
META = ["schema", "commit", "device", "driver", "platform", "host_cpu", "date", "command_line", "model",
        "model_digest", "seed", "warmup", "weight_bytes", "step_weight_bytes", "filled", "read_gb_s_start",
        "read_gb_s_end",
        "energy", "energy_missing"]
SHAPE = "shape:layers=2,hidden=64,heads=4,kv=2,ffn=96,vocab=300"


class Cli:
    def __init__(self, program, make_tiny_model, fake_rapl, folder):
        self.program, self.fake_rapl, self.folder = program, fake_rapl, folder
        self.tiny = str(folder / "tiny.gguf")
        subprocess.run([make_tiny_model, self.tiny], check=True)
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("DCM_", "XDG_"))}
        self.environment.update(DCM_CACHE=str(folder / "cache"), DCM_DEVICE="ref", OMP_NUM_THREADS="1",
                                DCM_POWERCAP=str(folder / "no powercap"))

    def run(self, *args, powercap=None, still=False):
        counted = {"DCM_POWERCAP": str(powercap)} if powercap else {}
        if powercap and not still:
            counted["LD_PRELOAD"] = self.fake_rapl
        return subprocess.run([self.program, "bench", *map(str, args)], capture_output=True, text=True, timeout=600,
                              env={**self.environment, **counted})

    def ok(self, *args, **options):
        result = self.run(*args, **options)
        assert result.returncode == 0, f"{args}: exit code {result.returncode}: {result.stderr}"
        return result.stdout

    def json(self, *args, **options):
        usual = {"-m": self.tiny, "--warmup": "16", "--format": "json"}
        words = [word for pair in usual.items() if pair[0] not in args for word in pair]
        return json.loads(self.ok(*words, *args, **options))

    def fails(self, code, message, *args):
        result = self.run(*args)
        assert result.returncode == code, f"{args}: exit code {result.returncode}, not {code}: {result.stderr}"
        lines = result.stderr.splitlines()
        assert len(lines) == 1 and lines[0].startswith("dcm bench: "), f"{args}: not one line: {result.stderr!r}"
        assert message in lines[0], f"{args}: {message!r} is not in {lines[0]!r}"
        assert result.stdout == "", f"{args}: standard output has {result.stdout[:80]!r}"


def near(a, b):
    return abs(a - b) <= 1e-6 * abs(b)


def test_rows(cli):
    result = cli.json("-p", "16,8", "-n", "4", "-d", "40,0,40", "-L", "8,16", "--cache", "dcm,window,full", "-r", "2")
    tests = ["pp16", "pp16 @ d40", "pp8", "pp8 @ d40", "tg4", "tg4 @ d40"]
    plan = subprocess.run([cli.program, "plan", "-L", "8", "-n", "56", "--format", "json"], capture_output=True,
                          check=True)
    window = json.loads(plan.stdout)["rows"][0]["units"]
    policies = ["dcm:L=8:S=4:merge=newer", "dcm:L=16:S=4:merge=newer", f"window:W={window}:S=4", "full"]
    assert [(r["policy"], r["test"]) for r in result["rows"]] == [(p, t) for p in policies for t in tests]
    for row in result["rows"]:
        assert list(row) == FIELDS, list(row)
        assert row["status"] in ("ok", "busy") and row["repetitions"] == 2
        assert (row["status"] == "busy") == (row["spread"] > 0.1), row  # no bandwidth is measured on the reference
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"] <= row["max_ms"]
        assert row["cache_bytes"] <= row["peak_bytes"] and row["host_peak_bytes"] > 1 << 20
        assert (row["prefill_tokens_per_s"] is None) == ("@" not in row["test"])
        assert row["needed_bytes"] is None and row["share"] is None and row["read_gb_s"] is None
        for name in "step_bytes", "gb_s":
            assert (row[name] is None) == row["test"].startswith("pp")
        if row["policy"] == "full":
            assert row["units"] == int(row["test"].split()[0][2:]) + (40 if "@" in row["test"] else 0)
    missing = [name for name in META if name not in result]
    assert not missing, missing
    assert result["schema"] == 1 and result["device"] == "ref" and result["synthetic"] is False


def test_steps(cli):
    """Units, actions and levels are those of `dcm plan`, and the row's figures those of the recorded steps."""
    out = cli.folder / "steps.jsonl"
    result = cli.json("-p", "0", "-n", "30", "-d", "0,10,40", "-L", "8", "-r", "3", "--steps-out", out)
    steps = [json.loads(line) for line in out.read_text().splitlines()]
    plan = subprocess.run([cli.program, "plan", "-L", "8", "--sinks", "4", "--steps", "70", "--format", "json"],
                          capture_output=True, check=True).stdout
    plan = {row["token"]: row for row in json.loads(plan)["rows"]}
    assert len(steps) == 3 * 3 * 30 and not list(cli.folder.glob("*.part"))
    assert {s["action"] for s in steps} == {"append", "merge", "retire"}
    for step in steps:
        row = plan[step["token"]]
        assert (step["units"], step["action"], step["level"]) == (row["units"], row["action"], row["level"]), step
    unit_bytes = 2 * 2 * 2 * 16 * 2  # layers, keys and values, KV heads, channels, f16
    for row, depth in zip(result["rows"], (0, 10, 40)):  # 10 is behind 0 + 30: begun anew
        mine = [s for s in steps if s["test"] == row["test"]]
        assert [s["token"] for s in mine] == 3 * list(range(depth + 1, depth + 31))
        times = sorted(s["ns"] * 1e-6 for s in mine)
        for name, share in ("p50_ms", 0.5), ("p90_ms", 0.9), ("p99_ms", 0.99), ("max_ms", 1):
            assert near(row[name], times[math.ceil(share * len(times)) - 1]), (name, row)
        rates = sorted(30e9 / sum(s["ns"] for s in mine if s["repetition"] == r) for r in range(3))
        assert near(row["tokens_per_s"], rates[1]) and near(row["spread"], (rates[2] - rates[0]) / rates[1])
        units = sum(s["units"] for s in mine) / len(mine)
        assert abs(row["step_bytes"] - result["step_weight_bytes"] - units * unit_bytes) <= 1
        assert near(row["gb_s"], row["step_bytes"] / (row["p50_ms"] * 1e6))
        assert row["units"] == mine[-1]["units"]


BREAKDOWN = ["test", "policy", "part", "kernel", "weights", "items", "launches", "us", "share"]


def check_breakdown(rows, row):
    """The parts of one case are its step, the kernels of a part that part; returns the kernels' rows and the parts."""
    mine = [r for r in rows if (r["test"], r["policy"]) == (row["test"], row["policy"])]
    assert all(list(r) == BREAKDOWN for r in mine)
    kernels = [r for r in mine if r["kernel"] is not None]
    parts = {r["part"]: r for r in mine if r["kernel"] is None}
    assert len(parts) + len(kernels) == len(mine)
    for part in {r["part"] for r in kernels}:
        for name in "us", "launches", "share":
            assert near(sum(r[name] for r in kernels if r["part"] == part), parts[part][name]), (part, name)
    whole = {name: parts.pop(name) for name in ("step", "timed step", "host at work")}
    assert near(sum(r["us"] for r in parts.values()), whole["step"]["us"]) and whole["step"]["share"] == 1
    assert all(r["us"] >= 0 for r in parts.values()), parts
    assert 0 < whole["host at work"]["us"] <= whole["step"]["us"]
    for r in mine:
        assert near(r["share"], r["us"] / whole["step"]["us"])
    return kernels, parts, whole


def test_breakdown(cli):
    steps_out = cli.folder / "steps.jsonl"
    result = cli.json("-p", "12", "-n", "20", "-d", "0,40", "-L", "4", "--cache", "dcm,full", "-r", "2", "--breakdown",
                      "--steps-out", steps_out)
    steps = [json.loads(line) for line in steps_out.read_text().splitlines()]
    for row in result["rows"]:
        kernels, parts, whole = check_breakdown(result["breakdown"], row)
        decode = row["test"].startswith("tg")
        count = {r["kernel"]: r["launches"] for r in kernels if r["kernel"] != "linear"}
        if decode:
            mine = [s["ns"] * 1e-3 for s in steps if (s["test"], s["policy"]) == (row["test"], row["policy"])]
            assert near(whole["timed step"]["us"], sum(mine) / len(mine))
            # In the steady state of L = 4 three of four steps have a merge.
            merges = {"merge_apply": 0.75} if row["policy"] != "full" else {}
            assert count == {"embed": 1, "attention": 2, **merges}, count
            # Per layer: queries, keys and values; output; gate and up; down. Then the vocabulary.
            matrices = {r["weights"]: r["launches"] for r in kernels if r["weights"]}
            vocabulary = {f"{result['vocab']}x64": 1}
            assert matrices == {"128x64": 2, "64x64": 2, "192x64": 2, "64x96": 2, **vocabulary}, matrices
            assert row["profiled_steps"] == 20 and near(row["attention_ms"], parts["attention"]["us"] * 1e-3)
            assert near(row["merge_ms"], parts["merge"]["us"] * 1e-3) if "merge" in parts else row["merge_ms"] == 0
            assert near(row["launches"], whole["step"]["launches"])
            assert row["attention_ms"] + row["merge_ms"] < whole["step"]["us"] * 1e-3
        else:
            assert row["attention_ms"] is None and row["profiled_steps"] is None and count["kv_store"] > 0
            assert near(whole["timed step"]["us"], sum([row["p50_ms"], row["max_ms"]]) / 2 * 1e3 / 12)
    # Without it the columns are there and the table is not; the other formats have a second table.
    assert "breakdown" not in cli.json("-p", "4", "-n", "4", "-r", "1")
    base = ["-m", cli.tiny, "-p", "0", "-n", "4", "-r", "1", "--warmup", "0", "--breakdown"]
    text = cli.ok(*base)
    assert "on a queue that takes times" in text and "host at work" in text
    first, second = cli.ok(*base, "--format", "csv").split("\n\n")
    assert first.splitlines()[0] == ",".join(FIELDS) and second.splitlines()[0] == ",".join(BREAKDOWN)
    lines = [json.loads(line) for line in cli.ok(*base, "--format", "jsonl").splitlines()]
    assert "part" not in lines[0] and [line["part"] for line in lines[-3:]] == ["step", "timed step", "host at work"]


def test_fill(cli):
    """A filled cache goes on as one that was read: the same units and actions; units of any depth are the plan's."""
    out = cli.folder / "steps.jsonl"
    args = ["-p", "8", "-n", "20", "-d", "1,2,50,90", "-L", "8", "--cache", "dcm,window,full", "-r", "2",
            "--steps-out", out]
    runs = []
    for fill in [], ["--fill"]:
        result = cli.json(*args, *fill)
        assert result["filled"] == bool(fill)
        steps = [json.loads(line) for line in out.read_text().splitlines()]
        for step in steps:
            assert step.pop("ns") > 0
        runs.append((result, steps))
    (real, real_steps), (filled, filled_steps) = runs
    assert len(real_steps) == 3 * 4 * 2 * 20 and real_steps == filled_steps
    for a, b in zip(real["rows"], filled["rows"]):
        assert all(a[name] == b[name] for name in ("test", "policy", "units", "step_bytes", "repetitions", "launches"))
        assert a["prefill_tokens_per_s"] > 0 and b["prefill_tokens_per_s"] is None
        assert b["tokens_per_s"] > 0
        if b["test"].startswith("tg"):  # blocks grow by an eighth, or 64 units
            assert b["units"] * 256 <= b["cache_bytes"] <= (b["units"] * 9 / 8 + 64) * 256
    depth, tokens = 12345678, 6
    result = cli.json("-p", "0", "-n", tokens, "-d", depth, "-L", "4096", "--cache", "dcm", "-r", "1", "--fill")
    plan = subprocess.run([cli.program, "plan", "-L", "4096", "-n", str(depth + tokens), "--format", "json"],
                          capture_output=True, check=True).stdout
    assert result["rows"][0]["units"] == json.loads(plan)["rows"][0]["units"] == 4 + 8191 + 3002
    assert "filled at once" in cli.ok("-m", cli.tiny, "-n", "4", "-d", "50", "-r", "1", "--warmup", "0", "--fill")
    # Beyond memory: that case is refused with the bytes, the others go on.
    result = cli.run("-m", cli.tiny, "-p", "0", "-n", "4", "-r", "1", "--warmup", "8", "--format", "json",
                     "--max-memory", "900K", "-d", "100,1000000", "--fill", "--cache", "full,dcm", "-L", "8")
    rows = json.loads(result.stdout)["rows"]
    assert result.returncode == 0 and [r["status"] == "no memory" for r in rows] == [False, True, False, True], rows
    assert rows[1]["needed_bytes"] > 1000004 * 256 and rows[3]["needed_bytes"] > 1000004 // 8 * 256


def test_not_profiled(cli):
    """The steps profiled after the test do not fit: the test stands, with a word, and the next one is measured."""
    base = ["-m", cli.tiny, "-p", "0", "-n", "128", "-d", "0,140", "-r", "1", "--warmup", "0", "--cache", "full",
            "--chunk", "8", "--format", "json", "--breakdown"]
    peak = json.loads(cli.ok(*base))["rows"][0]["peak_bytes"]
    result = cli.run(*base, "--max-memory", peak + 100)
    rows = json.loads(result.stdout)["rows"]
    assert result.returncode == 0 and [row["status"] for row in rows] == ["ok", "no memory"], result
    assert rows[0]["attention_ms"] is None and rows[0]["tokens_per_s"] > 0
    assert json.loads(result.stdout)["breakdown"] == []
    first, second = result.stderr.splitlines()
    assert "tg128, full: profiled only 0 tokens: " in first and "bytes" in first and "left out" in second, result.stderr


def test_opencl(cli):
    """What only an OpenCL device has: events of its own clock, and the cost of a launch as rows of their own."""
    devices = json.loads(subprocess.run([cli.program, "devices", "--format", "json"], capture_output=True, check=True,
                                        env=cli.environment).stdout)["rows"]
    usable = [d["device"] for d in devices if d["type"] == "cpu"]
    if not usable:
        return
    result = cli.json("-p", "0", "-n", "20", "-d", "40", "-L", "4", "-r", "1", "--breakdown", "--device", usable[0])
    row, launch, trip = result["rows"]
    kernels, parts, whole = check_breakdown(result["breakdown"], row)
    assert near(row["share"], row["gb_s"] / row["read_gb_s"])
    # Two layers, each with its attention and its products, which may be one launch; the embedding and the vocabulary.
    assert row["launches"] >= 2 * 2 + 1 and row["merge_ms"] > 0 and row["attention_ms"] > 0
    assert near(row["launches"], sum(r["launches"] for r in kernels if r["part"] != "transfer"))
    assert {"linear", "attention", "merge", "transfer"} <= parts.keys()
    others = [r for r in kernels if r["part"] in ("attention", "merge", "transfer", "cache")]
    assert all(r["weights"] is None for r in others), others
    assert sum(r["launches"] for r in kernels if r["kernel"] == "merge_apply") == 0.75
    assert whole["host at work"]["us"] < whole["step"]["us"]
    assert [launch["test"], trip["test"]] == ["launch", "round trip"]
    assert 0 < launch["p50_ms"] < 1000 and 0 < trip["p50_ms"] < 1000 and launch["tokens_per_s"] is None


def test_other_policies(cli):
    out = cli.folder / "steps.jsonl"
    cli.json("-p", "0", "-n", "12", "--cache", "window,full", "--window", "9", "-r", "1", "--steps-out", out)
    steps = [json.loads(line) for line in out.read_text().splitlines()]
    window, full = steps[:12], steps[12:]
    assert [(s["units"], s["action"]) for s in window] == [(n, "append") for n in range(1, 10)] + 3 * [(9, "evict")]
    assert [(s["units"], s["action"]) for s in full] == [(n, "append") for n in range(1, 13)]
    assert all(s["level"] == -1 for s in steps)


def test_lists(cli):
    """A value that is named twice is measured once; what all policies share is said once."""
    result = cli.run("-m", cli.tiny, "-p", "8,4,8", "-n", "2,2", "-d", "5,0,5", "-L", "8,4,8", "-r", "1", "--warmup",
                     "4", "--far-limit", "2", "--format", "json")
    tests = ["pp8", "pp8 @ d5", "pp4", "pp4 @ d5", "tg2", "tg2 @ d5"]
    assert [(row["policy"], row["test"]) for row in json.loads(result.stdout)["rows"]] == [
        (f"dcm:L={group}:S=4:merge=newer:far-limit=2", test) for group in (8, 4) for test in tests]
    assert result.stderr.count("no trained merge weights") == 1, result.stderr


def test_shapes(cli):
    element = {"f16": 2, "q8_0": 34 / 32, "q4_1": 20 / 32}
    for weights, size in element.items():
        for tied in 1, 0:
            args = ["-m", f"{SHAPE},tied={tied}", "--weights", weights, "-p", "4", "-n", "2", "-r", "1", "--warmup",
                    "0", "--format", "json"]
            result, again = (json.loads(cli.ok(*args)) for _ in range(2))
            numbers = 300 * 64 + 2 * (128 * 64 + 64 * 64 + 192 * 64 + 64 * 96)
            step = numbers * size + (1 + 2 * 2) * 64 * 4
            assert result["step_weight_bytes"] == step, (weights, tied, result)
            assert result["weight_bytes"] == step + (0 if tied else 300 * 64 * size)
            assert result["synthetic"] is True and result["weights"] == weights
            assert result["model_digest"] == again["model_digest"]
            assert [row["test"] for row in result["rows"]] == ["pp4", "tg2"]
    # A shape of the list is named; one too large for the memory allowed is refused with the bytes.
    cli.fails(5, "bytes", "-m", "shape:smollm2-135m", "-p", "1", "-n", "0", "-r", "1", "--max-memory", "1M")


def test_formats(cli):
    base = ["-m", cli.tiny, "-p", "4", "-n", "2", "-r", "1", "--warmup", "0"]
    rows = list(csv.reader(io.StringIO(cli.ok(*base, "--format", "csv"))))
    assert rows[0] == FIELDS and [row[0] for row in rows[1:]] == ["pp4", "tg2"]
    lines = [json.loads(line) for line in cli.ok(*base, "--format", "jsonl").splitlines()]
    assert [line["test"] for line in lines] == ["pp4", "tg2"] and all(name in lines[0] for name in META + FIELDS)
    exact = {line["test"]: line for line in lines}
    for text, between in (cli.ok(*base), "  +"), (cli.ok(*base, "--format", "md"), r" *\| *"):
        head, *body = [re.split(between, line.strip("| ")) for line in text.splitlines()]
        assert {"test", "p50_ms", "p90_ms", "p99_ms", "max_ms"} < set(head) and "needed_bytes" not in head
        assert not [name for name in head if name.endswith("_bytes")], head
        for line in body:
            row = dict(zip(head, line))
            for name in ("cache", "peak", "step") if row["test"] in exact else ():
                value = exact[row["test"]][f"{name}_bytes"]
                cell = row[f"{name}_mb"]
                assert cell in ("-", "") if value is None else abs(float(cell) - value / 1e6) < 0.051, (row, value)
            assert row["test"] not in exact or float(row["host_mb"]) > 1
        assert [line[0] for line in body if line[0] in exact] == ["pp4", "tg2"]


def make_package(root, counter, size):
    """A package whose counter fake_rapl makes go on, from `counter` and anew after `size` microjoules."""
    folder = root / "intel-rapl:0"
    folder.mkdir(parents=True)
    for name, value in ("name", "package-0"), ("energy_uj", counter), ("max_energy_range_uj", size):
        (folder / name).write_text(f"{value}\n")
    return root


def check_energy(row, tokens):
    """40 W and 10 mJ a token were counted; returns the seconds that they were measured."""
    joules = row["j_per_1k"] * tokens / 1000
    seconds = joules / row["watts"]
    assert abs(joules - 40 * seconds - 0.01 * tokens) < 1e-4, row
    return seconds


def test_energy(cli):
    """Joules are those that the tokens took, and the time from before their first to after their last."""
    root, steps = make_package(cli.folder / "powercap", 10**12 - 25 * 10**6, 10**12), cli.folder / "steps.jsonl"
    result = cli.json("-p", "4", "-n", "4000", "-r", "1", "--steps-out", steps, powercap=root)
    prompt, row = result["rows"]
    assert prompt["j_per_1k"] is None and prompt["watts"] is None and prompt["energy_source"] is None
    seconds = check_energy(row, 4000)
    assert seconds >= 1e-9 * sum(json.loads(line)["ns"] for line in steps.read_text().splitlines())
    # Between two readings, of which the first three (found, idle from, idle to) are none.
    readings = [float(line) for line in (root / "intel-rapl:0" / "readings").read_text().split()]
    assert any(abs(readings[-1] - began - seconds) < 1e-6 for began in readings[3:]), (readings, seconds)
    assert abs(row["idle_watts"] - 40) < 1e-3 and row["energy_source"] == "RAPL, CPU package (package-0)", row
    energy = result["energy"]
    assert (energy["method"], energy["scope"], energy["of"]) == ("RAPL", "CPU package", "package-0")
    assert energy["idle_watts"] == row["idle_watts"] and result["energy_missing"] is None
    check_energy(cli.json("-p", "0", "-n", "1500", "-r", "6", powercap=root)["rows"][0], 6 * 1500)
    text = cli.ok("-m", cli.tiny, "-p", "0", "-n", "40", "-r", "1", powercap=root)
    assert "by RAPL, CPU package (package-0); 40.0 W are drawn when idle" in text.splitlines()[-1], text
    short = cli.json("-p", "0", "-n", "2", "-r", "1", powercap=root)["rows"][0]
    assert short["idle_watts"] > 0
    if short["j_per_1k"] is not None:  # the machine was held up: else it is too short to tell
        assert check_energy(short, 2) >= 0.1, short


def test_no_energy(cli):
    result = cli.json("-p", "0", "-n", "4", "-r", "1")
    row = result["rows"][0]
    assert all(row[name] is None for name in ("j_per_1k", "watts", "idle_watts", "energy_source")), row
    assert result["energy"] is None and "RAPL: no CPU package in" in result["energy_missing"]
    out = cli.run("-m", cli.tiny, "-p", "0", "-n", "4", "-r", "1")
    lines = out.stdout.splitlines()
    assert re.split("  +", lines[1])[re.split("  +", lines[0]).index("j_per_1k")] == "-", lines
    assert [line for line in (out.stdout + out.stderr).splitlines() if "energy is not measured" in line] == lines[-1:]
    assert "energy" not in cli.ok("-m", cli.tiny, "-p", "4", "-n", "0", "-r", "1")
    # A counter that stands still counts nothing, and one that may not be read neither.
    folder = cli.folder / "still" / "intel-rapl:0"
    folder.mkdir(parents=True)
    for name, value in ("name", "package-0"), ("energy_uj", "7"), ("max_energy_range_uj", "9"):
        (folder / name).write_text(value)
    missing = cli.json("-p", "0", "-n", "4", "-r", "1", powercap=folder.parent, still=True)["energy_missing"]
    assert "stands still" in missing
    if os.geteuid():
        (folder / "energy_uj").chmod(0)
        missing = cli.json("-p", "0", "-n", "4", "-r", "1", powercap=folder.parent, still=True)["energy_missing"]
        assert "energy_uj: Permission denied" in missing


SVG = "{http://www.w3.org/2000/svg}"


def scale(drawing, axis, attribute):
    """Value for a place along an axis, by its first and last tick; all ticks must lie on it."""
    texts = drawing.find(f".//{SVG}g[@class='{axis}']").findall(SVG + "text")
    ticks = [(float(t.get(attribute)), float(t.text.replace(",", ""))) for t in texts
             if t.text[0].isdigit()]
    (first, low), (last, high) = ticks[0], ticks[-1]
    assert low == 0 and len(ticks) >= 2, ticks
    for place, value in ticks:
        assert abs(place - first - (last - first) * value / high) < 0.02, ticks
    return lambda place: (place - first) / (last - first) * high


def points_of(drawing, marker):
    """[(policy, [(tokens, p50)], [(tokens, p99)])] as drawn; the markers stand where the lines bend."""
    tokens, ms = scale(drawing, "x", "x"), scale(drawing, "y", "y")
    found = []
    for group in drawing.findall(f".//{SVG}g[@class='series']"):
        lines = {}
        for line in group.findall(SVG + "polyline"):
            places = [tuple(map(float, point.split(","))) for point in line.get("points").split()]
            lines[line.get("class")] = [(tokens(x), ms(y)) for x, y in places]
        drawn = {(float(m.get("cx", 0)), float(m.get("cy", 0))) for m in group.findall(SVG + marker)}
        bends = {tuple(map(float, p.split(","))) for line in group.findall(SVG + "polyline")
                 for p in line.get("points").split()}
        assert marker != "circle" or bends <= drawn
        found.append((group.find(SVG + "text").text, lines["p50"], lines["p99"]))
    return found


def test_plot(cli):
    """What is drawn, read back by the ticks of the axes, is what the rows of the same run say."""
    name = b"tiny random model"
    odd = cli.folder / "odd.gguf"
    odd.write_bytes(pathlib.Path(cli.tiny).read_bytes().replace(name, b'a<b>&"c"\x01 m\xf6dells'))
    out = cli.folder / "plot.svg"
    out.write_text("old")
    result = cli.json("-m", odd, "-p", "0", "-n", "20", "-d", "500,0,100", "-L", "8,16", "--cache", "dcm,window,full",
                      "-r", "1", "--plot", out)
    drawing = ElementTree.parse(out).getroot()
    assert not list(cli.folder.glob("*.part"))
    found = points_of(drawing, "circle")
    assert [name for name, *_ in found] == list(dict.fromkeys(row["policy"] for row in result["rows"]))
    highest = max(row["p99_ms"] for row in result["rows"])
    for name, *lines in found:
        rows = [r for r in result["rows"] if r["policy"] == name and r["test"].startswith("tg")]
        for figure, line in zip(("p50_ms", "p99_ms"), lines):
            assert len(line) == 3
            for (tokens, ms), row, depth in zip(line, rows, (0, 100, 500)):
                assert abs(tokens - depth) < 0.5 and abs(ms - row[figure]) < highest * 1e-3, (name, row, line)
    # Its own background, all of it; what is text in it is escaped.
    box = drawing.find(SVG + "rect")
    assert (box.get("width"), box.get("height"), box.get("fill")) == (drawing.get("width"), drawing.get("height"),
                                                                     "#ffffff")
    texts = [text.text for text in drawing.iter(SVG + "text")]
    assert any(text.startswith('a<b>&"c"? m') for text in texts), texts
    assert any("tokens" in text for text in texts) and any(text.endswith(", ms") for text in texts)


def test_plot_sizes(cli):
    """Two tests a depth are two lines, named; a ninth line has another marker; what did not fit has no point."""
    out = cli.folder / "plot.svg"
    cli.run("-m", cli.tiny, "-p", "0", "-n", "2,3", "-d", "0,1000000000", "-L", "2,4,8,16,32", "-r", "1", "-q",
            "--max-memory", "900K", "--plot", out)
    found = points_of(ElementTree.parse(out).getroot(), "rect")
    assert [name for name, *_ in found] == [f"dcm:L={group}:S=4:merge=newer, tg{size}" for group in (2, 4, 8, 16, 32)
                                           for size in (2, 3)]
    assert all([round(tokens) for tokens, _ in line] == [0] for _, *lines in found for line in lines), found
    assert len(ElementTree.parse(out).getroot().findall(f".//{SVG}g[@class='series']/{SVG}rect")) == 2 * 3


def test_plot_wrong(cli):
    base = ["-m", cli.tiny, "-p", "4", "-r", "1", "-q"]
    cli.fails(2, "--plot has no effect", *base, "-n", "0", "--plot", cli.folder / "x.svg")
    cli.fails(3, "cannot write", *base, "-n", "4", "--plot", cli.folder / "no" / "x.svg")
    if os.path.exists("/dev/full"):
        result = cli.run(*base, "-n", "4", "--plot", "/dev/full")
        assert result.returncode == 3 and "/dev/full: cannot write all of it" in result.stderr, result
        assert os.path.exists("/dev/full")
    # A run that comes to nothing leaves what was there.
    kept = cli.folder / "kept.svg"
    kept.write_text("old")
    assert cli.run("-m", cli.folder / "absent.gguf", "--plot", kept).returncode == 3 and kept.read_text() == "old"


def test_compare(cli):
    base = ["-p", "4", "-n", "8", "-r", "1"]
    old = cli.json(*base)
    old["rows"][0].update(tokens_per_s=1, p50_ms=2.0)
    del old["rows"][1]
    path = cli.folder / "old.json"
    path.write_text(json.dumps(old))
    new = cli.json(*base, "--compare", path)
    first, second = new["rows"]
    assert first["old_tokens_per_s"] == 1 and first["ratio"] == first["tokens_per_s"]
    assert near(first["p50_ratio"], first["p50_ms"] / 2)
    assert second["ratio"] is None and second["old_p50_ms"] is None
    assert "ratio" in cli.ok("-m", cli.tiny, *base, "--compare", path).splitlines()[0]
    # Another model, and other ways to measure: said, and gone on with. What an older version did not say is not told.
    other = {"strict": True, "threads": 3, "filled": True}
    path.write_text(json.dumps({**old, **other}))
    result = cli.run("-m", SHAPE, *base, "--compare", path, "--warmup", "16")
    assert result.returncode == 0 and "has another model_digest" in result.stderr
    assert re.findall("has another (strict|threads|filled):", result.stderr) == ["filled", "strict", "threads"]
    assert "ratio, p50_ratio: this run's" in result.stdout
    path.write_text(json.dumps({name: value for name, value in old.items() if name not in other}))
    result = cli.run("-m", cli.tiny, *base, "--compare", path, "--warmup", "16")
    assert result.returncode == 0 and "has another" not in result.stderr, result.stderr


def test_compare_other_tests(cli):
    path = cli.folder / "old.json"
    path.write_text(json.dumps(cli.json("-p", "4", "-n", "0", "-r", "1")))
    result = cli.run("-m", cli.tiny, "-p", "5", "-n", "0", "-r", "1", "--warmup", "16", "--compare", path)
    assert result.returncode == 0 and "none of these tests is in the earlier result" in result.stderr, result
    result = cli.run("-m", cli.tiny, "-p", "5,4", "-n", "0", "-r", "1", "--warmup", "16", "--compare", path)
    assert result.returncode == 0 and "none of these" not in result.stderr, result


TABLE4 = ["bench", "--table4", "-d", "3000", "-r", "1", "--warmup", "16"]
PAPER = {"paper_latency_ms": [38.5, 3.9, 5.6], "paper_memory_gb": [46, 6.1, 8.7], "paper_j_per_1k": [118, 15, 21],
         "paper_units": [100000, 1208, 1357]}


def self_made(cli, *args):
    """What another command, or another way of this one, prints as JSON."""
    return subprocess.run([cli.program, *args, "--format", "json"], capture_output=True, text=True, check=True,
                          env=cli.environment).stdout


def cut(cli):
    """A result whose end is missing."""
    return "\n".join(self_made(cli, "bench", "-m", cli.tiny, "-p", "4", "-n", "0", "-r", "1").splitlines()[:-1])


def test_table4(cli):
    root = make_package(cli.folder / "table4 powercap", 0, 1 << 40)
    result = cli.json(*TABLE4[1:], "-n", "600", powercap=root)
    rows = result["rows"]
    assert [row["policy"] for row in rows] == ["full", "dcm:L=512:S=0:merge=newer", "dcm:L=256:S=0:merge=newer"]
    for name, values in PAPER.items():
        assert [row[name] for row in rows] == values
    # Units after the last of n tokens, as the plan has them; everything beside them over the uncompressed row.
    plan = json.loads(self_made(cli, "plan", "-L", "512,256", "-n", "3000", "--sinks", "0"))["rows"]
    assert [row["units"] for row in rows] == [3000, plan[0]["units"], plan[1]["units"]] and result["n"] == 3000
    for row in rows:
        assert row["status"] == "ok" and row["needed_bytes"] is None and row["latency_ms"] > 0
        assert row["attention_ms"] > 0 and row["memory_gb"] > row["cache_gb"] >= row["units"] * 256e-9
        for ratio, name in [("s_latency", "latency_ms"), ("s_memory", "memory_gb"), ("s_units", "units"),
                            ("s_attention", "attention_ms"), ("s_cache", "cache_gb"), ("s_energy", "j_per_1k")]:
            if row[name] is not None and rows[0][name] is not None:
                assert near(row[ratio], row[name] / rows[0][name]), (ratio, row)
            else:
                assert row[ratio] is None, (ratio, row)
    assert all(row["j_per_1k"] > 0 for row in rows) and rows[0]["s_cache"] == 1 and rows[2]["s_cache"] < 0.3
    # The inconsistencies of the paper, by its own figures.
    notes = "\n".join(result["notes"])
    assert "n = 3000" in notes and "figures are for n = 100,000" in notes
    for latency, joules in (38.5, 118), (3.9, 15), (5.6, 21):
        assert f"{joules / latency:.1f}" in notes
    for group in 256, 512:
        units = json.loads(self_made(cli, "plan", "-L", str(group), "-n", "100000", "--sinks", "0"))["rows"][0]["units"]
        assert f"{units:,}" in notes
    assert f"{46 / 6.1:.1f}" in notes and f"{100000 / 1208:.1f}" in notes
    text = cli.ok(*TABLE4[1:], "-n", "600", "-m", cli.tiny, "--sinks", "2")
    assert all(note in text for note in result["notes"][2:]) and "dcm:L=256:S=2" in text


def test_table4_memory(cli):
    """Rows that do not fit say what they would take: 100,000 tokens, or the model itself."""
    small = ["-m", cli.tiny, "--table4", "-n", "8", "-r", "1", "--warmup", "8", "--format", "json", "-q"]
    result = cli.run(*small, "--max-memory", "2M")
    full, longer, shorter = json.loads(result.stdout)["rows"]
    assert result.returncode == 0 and full["status"] == "no memory" and full["needed_bytes"] > 100000 * 256
    assert shorter["status"] in ("ok", "busy") and shorter["units"] == 893 and longer["units"] == 1209
    assert full["latency_ms"] is None and shorter["s_latency"] is None
    for tied in 1, 0:
        shape = f"{SHAPE},tied={tied}"
        for weights in "f16", "q8_0", "q4_1":
            result = cli.run("-m", shape, "--weights", weights, *small[2:], "--max-memory", "8K")
            rows = json.loads(result.stdout)["rows"]
            assert result.returncode == 5 and [row["status"] for row in rows] == 3 * ["no memory"], result
            bytes_of_model = json.loads(cli.ok("-m", shape, "--weights", weights, "-p", "1", "-n", "0", "-r", "1",
                                               "--format", "json"))["weight_bytes"]
            units = [100000, 1209, 893]
            for row, n in zip(rows, units):
                least = bytes_of_model + n * 256
                assert least <= row["needed_bytes"] < least + 70000 * 2, (row, least)


def test_table4_wrong(cli):
    base = ["-m", cli.tiny, "--table4"]
    for option in ["-p", "8"], ["--cache", "full"], ["-L", "8"], ["--window", "9"], ["--compare", "x.json"]:
        cli.fails(2, "has no effect with --table4", *base, *option)
    for options in ["-n", "1,2"], ["-d", "10,20"], ["-n", "0"], ["-d", "8", "-n", "8"]:
        cli.fails(2, "one --tokens, and one --depth above it", *base, *options)


def test_compare_wrong(cli):
    for name, text, message in [("schema", '{"schema":2,"rows":[]}', "schema 2, this program compares with schema 1"),
                                ("none", '{"rows":[]}', 'no "schema"'),
                                ("kind", '{"schema":"1","rows":[]}', 'no "schema"'),
                                ("rows", '{"schema":1}', 'no "rows"'),
                                ("list", "[1]", 'no "schema"'),
                                ("row", '{"schema":1,"rows":[1]}', 'row 1 has no "test" and "policy"'),
                                ("plan", self_made(cli, "plan", "-L", "8"), 'row 1 has no "test"'),
                                ("table4", self_made(cli, *TABLE4, "-n", "40", "-m", cli.tiny), 'row 1 has no "test"'),
                                ("cut", cut(cli), "not readable as JSON: line 2"),
                                ("broken", '{"schema":1', "not readable as JSON: line 1"),
                                ("empty", "", "not readable as JSON")]:
        path = cli.folder / f"{name}.json"
        path.write_text(text)
        cli.fails(3, message, "-m", cli.tiny, "--compare", path)
    cli.fails(3, "absent.json: No such file", "-m", cli.tiny, "--compare", cli.folder / "absent.json")
    cli.fails(3, "not a regular file", "-m", cli.tiny, "--compare", cli.folder)


def test_usage(cli):
    model = ["-m", cli.tiny]
    for args, message in [
        ([], "--model FILE|NAME|shape:NAME is required"),
        (["-m", "shape:gpt-9"], 'unknown shape "gpt-9"; there are smollm2-135m, llama-1b, llama-8b'),
        (["-m", "shape:"], "unknown shape"),
        (["-m", "shape:layers=2,hidden=64"], "heads is missing"),
        (["-m", "shape:layers=2,hidden=64,layers=3"], "layers is given twice"),
        (["-m", SHAPE + ",wings=2"], '"wings" is none of layers'),
        (["-m", SHAPE + ",tied=2"], "not an integer in 0 .. 1"),
        (["-m", SHAPE.replace("heads=4", "heads=0")], "not an integer in 1"),
        (["-m", SHAPE.replace("heads=4", "heads=x")], "not an integer in 1"),
        (["-m", SHAPE.replace("hidden=64", "hidden=65")], "not a multiple of 8"),
        (["-m", SHAPE.replace("ffn=96", "ffn=90"), "--weights", "q4_1"], "must be multiples of 32"),
        ([*model, "--weights", "f16"], "--weights has no effect"),
        (["-m", SHAPE, "--weights", "q2"], "none of f16|q8_0|q4_1"),
        ([*model, "-p", "0", "-n", "0"], "nothing to measure"),
        ([*model, "-p", "-1"], "--prompt"),
        ([*model, "-r", "0"], "--repetitions"),
        ([*model, "-d", "1,x"], "--depth"),
        ([*model, "--cache", "half"], '"half" is none of dcm|full|window'),
        ([*model, "--cache", "dcm,"], '"" is none of'),
        ([*model, "--cache", "full,full"], "full is named twice"),
        ([*model, "--cache", "full", "-L", "8"], "--group has no effect with --cache full"),
        ([*model, "--cache", "full", "--sinks", "8"], "--sinks has no effect"),
        ([*model, "--cache", "window,full", "--merge", "mean"], "--merge has no effect"),
        ([*model, "--window", "9"], "--window has no effect with --cache dcm"),
        ([*model, "--cache", "window", "--window", "4"], "must exceed the 4 sinks"),
        ([*model, "-L", "7"], "power of two"),
        ([*model, "--fill"], "--fill has no effect without a depth"),
        ([*model, "-n", "0", "--steps-out", cli.folder / "x.jsonl"], "--steps-out has no effect without tests"),
        ([*model, "--cache", "full", "--far-limit", "4"], "--far-limit has no effect"),
        ([*model, "--warmup", "1", "--warmup", "2"], "--warmup is given twice"),
        ([*model, "-v", "-q"], "exclude each other"),
    ]:
        cli.fails(2, message, *args)
    cli.fails(3, "absent", "-m", str(cli.folder / "absent.gguf"))
    cli.fails(3, "none.safetensors", *model, "--merge", cli.folder / "none.safetensors")
    cli.fails(3, "cannot write", *model, "--steps-out", cli.folder / "no" / "steps.jsonl")


def test_full_disk(cli):
    if os.path.exists("/dev/full"):
        result = cli.run("-m", cli.tiny, "-p", "0", "-n", "4", "-r", "1", "-q", "--steps-out", "/dev/full")
        assert result.returncode == 3 and "cannot write all of it" in result.stderr, result


def test_memory(cli):
    """What does not fit is refused before it is tried, with the bytes, and the rest is measured."""
    base = ["-m", cli.tiny, "-p", "0", "-n", "4", "-r", "1", "--warmup", "8", "--format", "json",
            "--max-memory", "900K"]
    result = cli.run(*base, "-d", "0,40,1000000000", "--cache", "full,dcm", "-L", "8")
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)["rows"]
    assert [row["status"] == "no memory" for row in rows] == 2 * [False, False, True], rows
    full, dcm = rows[2], rows[5]
    assert full["needed_bytes"] > 1000000004 * 256 and full["tokens_per_s"] is None and full["repetitions"] == 0
    assert 900 << 10 < dcm["needed_bytes"] < full["needed_bytes"] / 7
    lines = [line for line in result.stderr.splitlines() if "left out" in line]
    assert len(lines) == 2 and str(full["needed_bytes"]) in lines[0] and "921600" in lines[0], result.stderr
    result = cli.run(*base, "-d", "1000000", "--cache", "full")
    assert result.returncode == 5 and json.loads(result.stdout)["rows"][0]["status"] == "no memory", result
    assert "needed_bytes" in cli.run("-m", cli.tiny, "-p", "0", "-n", "4", "-r", "1", "-d", "0,1000000", "--cache",
                                     "full", "--max-memory", "900K").stdout.splitlines()[0]


def wait_for_work(process, seconds):
    """Until it has used so much processor time: on a busy machine that is later than by the clock."""
    while process.poll() is None:
        times = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        if sum(map(int, times)) >= seconds * os.sysconf("SC_CLK_TCK"):
            return
        time.sleep(0.01)


def test_interrupted(cli):
    out, plot = cli.folder / "cut.jsonl", cli.folder / "cut.svg"
    for number, code in (signal.SIGINT, 130), (signal.SIGTERM, 143):
        process = subprocess.Popen([cli.program, "bench", "-m", cli.tiny, "-p", "8", "-n", "1000000", "-r", "1",
                                    "--warmup", "0", "--format", "json", "--steps-out", str(out), "--plot",
                                    str(plot)], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   env=cli.environment)
        wait_for_work(process, 1)  # it must have come to the decoding
        process.send_signal(number)
        text, errors = process.communicate(timeout=600)
        assert process.returncode == code, (process.returncode, errors)
        rows = json.loads(text)["rows"]
        assert [(row["test"], row["status"]) for row in rows] == [("pp8", "ok"), ("tg1000000", "interrupted")], rows
        assert rows[1]["repetitions"] == 0 and rows[1]["tokens_per_s"] > 0
        steps = out.read_text().splitlines()
        assert steps and json.loads(steps[-1])["token"] == len(steps)
        [(_, [(tokens, ms)], _)] = points_of(ElementTree.parse(plot).getroot(), "circle")
        assert tokens == 0 and abs(ms - rows[1]["p50_ms"]) < 1e-3 * rows[1]["p99_ms"]
        plot.unlink()


def main():
    program, make_tiny_model, fake_rapl, *pattern = sys.argv[1:]
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        cli = Cli(program, make_tiny_model, fake_rapl, pathlib.Path(folder))
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
