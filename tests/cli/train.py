"""`dcm train` from outside, on tiny models and the C reference: train.py DCM MAKE_TINY_MODEL [PATTERN].

Every check is a function test_NAME(cli); PATTERN picks some.
"""
import csv
import json
import math
import os
import pathlib
import random
import re
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from xml.etree import ElementTree

WORDS = "the old keeper of this lamp went down to a cold harbour and counted ships that never came back".split()


def text(seed, words):
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(words)) + ".\n"


class Cli:
    def __init__(self, program, make_tiny_model, folder):
        self.program, self.make_tiny_model, self.folder = program, make_tiny_model, folder
        self.tiny, self.other, self.wider = (str(folder / n) for n in ("tiny.gguf", "other.gguf", "wider.gguf"))
        subprocess.run([make_tiny_model, self.tiny], check=True)
        subprocess.run([make_tiny_model, self.other, "--seed", "7"], check=True)
        subprocess.run([make_tiny_model, self.wider, "--layers", "3"], check=True)
        (folder / "texts").mkdir()
        for i in range(3):
            (folder / "texts" / f"{i}.txt").write_text(text(i, 300))
        (folder / "held.txt").write_text(text(9, 300))
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("DCM_", "XDG_"))}
        self.environment.update(DCM_CACHE=str(folder / "cache"), DCM_DEVICE="ref", OMP_NUM_THREADS="1",
                                OMP_WAIT_POLICY="passive")

    def command(self, *args, model=None, texts="texts", out="merge.safetensors"):
        usual = {"-L": "4,8", "-n": "48"}
        if not {"--merge-arch", "--from"} & set(args):
            usual["--hidden"] = "16"
        return [self.program, "train", "-m", model or self.tiny, "-f", str(self.folder / texts), "-o",
                str(self.folder / out), *(word for pair in usual.items() if pair[0] not in args for word in pair),
                *map(str, args)]

    def run(self, *args, limit=None, **options):
        def set_limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        return subprocess.run(self.command(*args, **options), capture_output=True, text=True, timeout=600,
                              env=self.environment, preexec_fn=set_limit if limit else None)

    def ok(self, *args, **options):
        result = self.run(*args, **options)
        assert result.returncode == 0, f"{args}: exit code {result.returncode}: {result.stderr}"
        return result

    def fails(self, code, message, *args, **options):
        result = self.run(*args, **options)
        assert result.returncode == code, f"{args}: exit code {result.returncode}, not {code}: {result.stderr}"
        lines = result.stderr.splitlines()
        assert lines and all(line.startswith("dcm train: ") for line in lines), result.stderr
        assert message in result.stderr, f"{args}: {message!r} is not in {result.stderr!r}"

    def stopped(self, *args, out):
        """Interrupted after the first checkpoint; tried anew where it had ended before, False where it always had."""
        return any(self.stopped_once(*args, out=out) for _ in range(20))

    def stopped_once(self, *args, out):
        checkpoint = self.folder / f"{out}.checkpoint"
        checkpoint.unlink(missing_ok=True)
        process = subprocess.Popen(self.command(*args, out=out), env=self.environment, stderr=subprocess.PIPE,
                                   text=True)
        while not checkpoint.exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=600)[1]
        assert process.returncode in (0, 130), (process.returncode, errors)
        assert process.returncode == 0 or "--resume" in errors, errors
        return process.returncode == 130

    def evaluate(self, merge, model=None):
        return subprocess.run([self.program, "eval", "ppl", "-m", model or self.tiny, "-f",
                               str(self.folder / "held.txt"), "-n", "48", "-L", "4", "--merge", str(merge), "--kv",
                               "f32", "--against", "full", "--format", "json"], capture_output=True, text=True,
                              timeout=600, env=self.environment)


def arrays(path):
    """Names and bytes of a safetensors file, and its metadata."""
    data = pathlib.Path(path).read_bytes()
    size, = struct.unpack_from("<Q", data)
    header = json.loads(data[8:8 + size])
    notes = header.pop("__metadata__", {})
    return {n: data[8 + size + a["data_offsets"][0]:8 + size + a["data_offsets"][1]] for n, a in header.items()}, notes


def test_learns(cli):
    """Held-out KL falls, the file works with --merge, and its card says how it was made."""
    journal = cli.folder / "learns.csv"
    cli.ok("--steps", "40", "--rate", "0.01", "--held-out", cli.folder / "held.txt", "--test-every", "10", "--csv",
           journal, "--plot", cli.folder / "learns.svg")
    drawing = ElementTree.parse(cli.folder / "learns.svg").getroot()
    assert sum("points" in e.attrib for e in drawing.iter()) == 1
    assert sum("step" in (e.text or "") and "KL" in e.text for e in drawing.iter()) == 4, "one marker a test"
    rows = list(csv.DictReader(journal.open()))
    assert [int(r["step"]) for r in rows] == list(range(1, 41))
    held = [float(r["held_kl"]) for r in rows if r["held_kl"]]
    assert len(held) == 4 and held[-1] < held[0], held
    assert all(float(r["gate_spread"]) > 0 for r in rows if r["gate_spread"])
    assert math.isclose(float(rows[9]["rate"]), 0.01) and float(rows[-1]["rate"]) < 0.001
    _, notes = arrays(cli.folder / "merge.safetensors")
    assert notes["format"] == "dcm-merge" and notes["arch"] == "score" and notes["seed"] == "0", notes
    assert "held-out texts" in notes["held_out"], notes
    assert "train" in notes["trained_by"] and notes["steps"] in ("10", "20", "30", "40"), notes
    result = cli.evaluate(cli.folder / "merge.safetensors")
    assert result.returncode == 0 and json.loads(result.stdout)["rows"][0]["kl"] > 0, result


def test_terms(cli):
    """Terms of the loss are reported when they have a weight, and change what is learnt."""
    seen = []
    for i, extra in enumerate((["--kl", "1"], ["--il", "2"], ["--magnitude", "2"], ["--boundary", "2"],
                               ["--kl", "0", "--il", "1"])):
        journal = cli.folder / f"terms{i}.csv"
        cli.ok("--steps", "2", "--csv", journal, *extra, out=f"terms{i}.safetensors")
        row = list(csv.DictReader(journal.open()))[-1]
        assert (float(row["il"]) > 0) == ("--il" in extra), row
        assert (float(row["magnitude"]) > 0) == ("--magnitude" in extra), row
        assert (float(row["bsd"]) > 0) == ("--boundary" in extra), row
        seen.append(arrays(cli.folder / f"terms{i}.safetensors.checkpoint")[0]["param"])
        told = {"kl": "1", "il": "0", "magnitude": "0", "boundary": "0"}
        told.update((name[2:], weight) for name, weight in zip(extra[::2], extra[1::2]))
        _, notes = arrays(cli.folder / f"terms{i}.safetensors")
        assert {name: notes[name] for name in told} == told, notes
    assert len(set(seen)) == len(seen)


def curves(path):
    """Lines of a drawing, and its words."""
    drawing = ElementTree.parse(path).getroot()
    return sum("points" in e.attrib for e in drawing.iter()), " ".join(e.text or "" for e in drawing.iter())


def test_journal(cli):
    """A step's group lengths stand in its row; BSD is drawn where it has a weight."""
    drawing = cli.folder / "plot.svg"
    for sequences, boundary, groups in (
            ("1", "0", ["4", "8", "4"]), ("2", "1", ["4/8"] * 3), ("3", "0", ["4/8", "8/4", "4/8"])):
        journal = cli.folder / f"{sequences}.csv"
        cli.ok("--steps", "3", "--sequences", sequences, "--boundary", boundary, "--csv", journal, "--plot", drawing)
        assert [r["group"] for r in csv.DictReader(journal.open())] == groups
        lines, words = curves(drawing)
        assert lines == 1 + (boundary == "1") and ("BSD" in words) == (boundary == "1"), words
    old = cli.folder / "3.csv"
    old.write_text(old.read_text().replace(",group,", ",", 1))
    cli.fails(3, "3.csv: its columns are not those of this dcm", "--steps", "3", "--sequences", "3", "--boundary", "0",
              "--csv", old, "--resume", cli.folder / "merge.safetensors.checkpoint")


def test_again(cli):
    """Running layers a second time changes no bit."""
    cli.ok("--steps", "3", out="kept.safetensors")
    cli.ok("--steps", "3", "--again", out="again.safetensors")
    kept, again = (arrays(cli.folder / f"{n}.safetensors.checkpoint")[0] for n in ("kept", "again"))
    assert kept == again


def test_resume(cli):
    """A stopped and resumed training ends with the bits of one that ran through."""
    cli.ok("--steps", "30", "--save-every", "2", "--csv", cli.folder / "whole.csv", out="whole.safetensors")
    assert cli.stopped("--steps", "30", "--save-every", "1", "--csv", cli.folder / "part.csv", out="part.safetensors")
    cli.ok("--steps", "30", "--resume", cli.folder / "part.safetensors.checkpoint", "--csv", cli.folder / "part.csv",
           out="part.safetensors")
    whole, part = (arrays(cli.folder / f"{n}.safetensors.checkpoint")[0] for n in ("whole", "part"))
    assert whole == part
    assert arrays(cli.folder / "whole.safetensors")[0] == arrays(cli.folder / "part.safetensors")[0]
    rows = [[r[k] for k in r if k != "seconds"] for n in ("whole", "part")
            for r in csv.DictReader((cli.folder / f"{n}.csv").open())]
    assert len(rows) == 60 and rows[:30] == rows[30:], rows
    cli.ok("--steps", "30", "--resume", cli.folder / "part.safetensors.checkpoint", out="again.safetensors")
    assert arrays(cli.folder / "again.safetensors")[0] == arrays(cli.folder / "part.safetensors")[0]


def test_many_heads(cli):
    """More KV heads than tokens: each head has a loss of its own."""
    heads = str(cli.folder / "heads.gguf")
    subprocess.run([cli.make_tiny_model, heads, "--hidden", "256", "--heads", "32", "--kv-heads", "32"], check=True)
    for device in ("ref", "auto"):
        cli.ok("--steps", "1", "--device", device, "-L", "4", "-n", "16", "--sinks", "0", "--magnitude", "1",
               model=heads)


def test_resume_options(cli):
    """What changes the result is refused with both values; what does not may differ."""
    usual = {"--steps": "60", "--rate": "0.01"}

    def options(**other):
        return [word for pair in (usual | other).items() for word in pair]

    cli.ok(*options(), out="whole.safetensors")
    assert cli.stopped(*options(), "--save-every", "1", out="part.safetensors")
    checkpoint = cli.folder / "part.safetensors.checkpoint"
    for option, value, was, now in (
            ("-L", "4", "group=4,8", "group=4"), ("--seed", "1", "seed=0", "seed=1"),
            ("--rate", "0.02", "rate=0.01", "rate=0.02"), ("--sequences", "2", "sequences=1", "sequences=2"),
            ("--warmup", "3", "warmup=10", "warmup=3"), ("--steps", "61", "steps=60", "steps=61"),
            ("--test-every", "2", "test-every=50", "test-every=2"), ("-n", "50", "tokens=48", "tokens=50"),
            ("--sinks", "2", "sinks=4", "sinks=2"), ("--mode", "chunked", "mode=tai", "mode=chunked"),
            ("--hidden", "32", "hidden=16", "hidden=32"), ("--positions", "9", "positions=512", "positions=9"),
            ("--kl", "2", "kl=1", "kl=2"), ("--il", "1", "il=0", "il=1"),
            ("--magnitude", "1", "magnitude=0", "magnitude=1"), ("--boundary", "1", "boundary=0", "boundary=1"),
            ("--merge-arch", "direct", "merge-arch=score", "merge-arch=direct"),
            ("--held-out", cli.folder / "held.txt", "held-out=digest:0000000000000000", "held-out=digest:")):
        cli.fails(3, f"it was made with {was}, this training has {now}", *options(**{option: value}),
                  "--resume", checkpoint, out="part.safetensors")
    cli.ok(*options(), "--resume", checkpoint, "--save-every", "3", "--again", "--csv",
           cli.folder / "part.csv", "--plot", cli.folder / "part.svg", "--checkpoint", cli.folder / "other",
           out="elsewhere.safetensors")
    assert arrays(cli.folder / "whole.safetensors.checkpoint")[0] == arrays(cli.folder / "other")[0]


def test_resume_best(cli):
    """The best weights are in the output: going on without it could end with none."""
    options = ("--steps", "2", "--held-out", cli.folder / "held.txt", "--test-every", "1", "-q")
    cli.ok(*options, out="best.safetensors")
    (cli.folder / "best.safetensors").rename(cli.folder / "kept")
    cli.fails(3, "the best weights up to this checkpoint were written to its -o", *options, "--resume",
              cli.folder / "best.safetensors.checkpoint", out="best.safetensors")
    (cli.folder / "kept").rename(cli.folder / "best.safetensors")
    cli.ok(*options, "--resume", cli.folder / "best.safetensors.checkpoint", out="best.safetensors")


def test_stopped_early(cli):
    """Ctrl-C before the first step's end: nothing is saved, and a file of the checkpoint's name is not offered."""
    (cli.folder / "early.safetensors.checkpoint").write_text("of a run before")
    journal, errors, wait = cli.folder / "early.csv", "", 0.02
    while not errors:  # while it came before there was training to be stopped
        journal.unlink(missing_ok=True)
        process = subprocess.Popen(cli.command("--steps", "2", "--sequences", "100000", "--csv", journal,
                                               out="early.safetensors"), env=cli.environment, stderr=subprocess.PIPE,
                                   text=True)
        while not journal.exists() and process.poll() is None:
            time.sleep(0.001)
        time.sleep(wait)
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=600)[1]
        assert process.returncode == 130 and wait < 60, (wait, errors)
        wait *= 1.3
    assert errors == "dcm train: stopped before the first step: nothing was saved\n", errors
    assert (cli.folder / "early.safetensors.checkpoint").read_text() == "of a run before"


def test_stopped_in_test(cli):
    """Ctrl-C while the last step is tested: resumed, the test is made, and its best weights and row are there."""
    held = [word for i in range(60) for word in ("--held-out", cli.folder / f"held{i}.txt")]
    for i in range(60):
        (cli.folder / f"held{i}.txt").write_text(text(100 + i, 60))
    options = ("--steps", "1", "-q", *held)
    cli.ok(*options, "--csv", cli.folder / "whole.csv", out="whole.safetensors")
    journal, errors, wait = cli.folder / "part.csv", "", 0.02
    while "after 1 steps" not in errors:
        journal.unlink(missing_ok=True)
        process = subprocess.Popen(cli.command(*options, "--csv", journal, out="part.safetensors"),
                                   env=cli.environment, stderr=subprocess.PIPE, text=True)
        while not journal.exists() and process.poll() is None:
            time.sleep(0.001)
        time.sleep(wait)
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=600)[1]
        assert wait < 60, f"always before the step or after the test: {errors}"
        wait *= 1.3
    assert len(journal.read_text().splitlines()) == 1 and not (cli.folder / "part.safetensors").exists()
    cli.ok(*options, "--csv", journal, "--resume", cli.folder / "part.safetensors.checkpoint", out="part.safetensors")
    assert arrays(cli.folder / "whole.safetensors")[0] == arrays(cli.folder / "part.safetensors")[0]
    whole, part = (next(csv.DictReader((cli.folder / f"{n}.csv").open())) for n in ("whole", "part"))
    assert whole["held_kl"] and {**whole, "seconds": ""} == {**part, "seconds": ""}


def test_from(cli):
    """A merge file is gone on with."""
    cli.ok("--steps", "2", out="base.safetensors")
    cli.ok("--steps", "1", "--rate", "1e-12", "--from", cli.folder / "base.safetensors", out="more.safetensors")
    base, more = (arrays(cli.folder / f"{n}.safetensors")[0] for n in ("base", "more"))
    for name, data in base.items():
        kind = "f" if name in ("mean", "scale") else "e"  # -0 is 0
        assert [x for x, in struct.iter_unpack(kind, data)] == [x for x, in struct.iter_unpack(kind, more[name])], name


def test_pair_learns(cli):
    """The paper's MLP with either head: held-out KL falls, the gate is told, the file has the published names."""
    for arch, rate in (("gate", "0.003"), ("direct", "0.003")):
        journal, out = cli.folder / f"{arch}.csv", f"{arch}.safetensors"
        result = cli.ok("--merge-arch", arch, "--depth", "3", "--steps", "30", "--rate", rate, "--held-out",
                        cli.folder / "held.txt", "--test-every", "10", "--csv", journal, out=out)
        assert ("variety" in result.stderr) == (arch == "direct") != ("share" in result.stderr), result.stderr
        rows = list(csv.DictReader(journal.open()))
        held = [float(r["held_kl"]) for r in rows if r["held_kl"]]
        assert len(held) == 3 and held[-1] < held[0], held
        spreads = [float(r["gate_spread"]) for r in rows if r["gate_spread"]]
        assert len(spreads) == {"gate": 3, "direct": 0}[arch] and all(x > 0 for x in spreads), spreads
        items, notes = arrays(cli.folder / out)
        maps = [f"layers.0.lin{i}" for i in (1, 2, 3)] + [{"gate": "lin1", "direct": "merge"}[arch]]
        assert sorted(items) == sorted(f"{m}.{part}" for m in maps for part in ("weight", "bias")), sorted(items)
        assert notes["arch"] == arch and notes["groups"] == "4,8" and len(notes["model_digest"]) == 16, notes
        result = cli.evaluate(cli.folder / out)
        assert result.returncode == 0 and json.loads(result.stdout)["rows"][0]["kl"] > 0, result
        for model in cli.wider, cli.other:
            result = cli.evaluate(cli.folder / out, model=model)
            assert result.returncode == 3 and "digest" in result.stderr, result.stderr


def test_chunked(cli):
    """The approximate schedule learns something else, from the same start; its checkpoints are its own."""
    for mode in ("tai", "chunked"):
        cli.ok("--mode", mode, "--steps", "20", "--rate", "0.01", "--held-out", cli.folder / "held.txt", "--test-every",
               "10", "--csv", cli.folder / f"{mode}.csv", out=f"{mode}.safetensors")
    tai, chunked = (list(csv.DictReader((cli.folder / f"{m}.csv").open())) for m in ("tai", "chunked"))
    assert tai[0]["kl"] != chunked[0]["kl"]
    held = [float(r["held_kl"]) for r in chunked if r["held_kl"]]
    assert len(held) == 2 and held[1] < held[0], held
    assert arrays(cli.folder / "chunked.safetensors")[1]["mode"] == "chunked"
    assert chunked[0]["group"] == "4"


def test_pair_resume(cli):
    """As test_resume, and the file can be gone on with."""
    options = ("--merge-arch", "gate", "--depth", "6")
    cli.ok(*options, "--steps", "20", out="whole.safetensors")
    assert cli.stopped(*options, "--steps", "20", "--save-every", "1", out="part.safetensors")
    cli.ok(*options, "--steps", "20", "--resume", cli.folder / "part.safetensors.checkpoint", out="part.safetensors")
    whole, part = (arrays(cli.folder / f"{n}.safetensors.checkpoint")[0] for n in ("whole", "part"))
    assert whole == part
    cli.fails(3, "it was made with depth=6, this training has depth=9", "--merge-arch", "gate", "--depth", "9",
              "--steps", "20", "--resume", cli.folder / "whole.safetensors.checkpoint")
    cli.ok("--merge-arch", "gate", "--steps", "1", "--rate", "1e-12", "--from", cli.folder / "whole.safetensors",
           out="more.safetensors")
    assert arrays(cli.folder / "whole.safetensors")[0] == arrays(cli.folder / "more.safetensors")[0]
    cli.fails(3, "\"gate\"", "--steps", "1", "--from", cli.folder / "whole.safetensors")


def test_rises(cli):
    """Three tests in a row far above the best end it: the best is what is saved, and the journal has the rise."""
    journal = cli.folder / "rises.csv"
    result = cli.run("--steps", "14", "--rate", "1", "--held-out", cli.folder / "held.txt", "--test-every", "1",
                     "--csv", journal, out="rises.safetensors")
    assert result.returncode == 1, result.stderr
    ratios = [float(r["held_ratio"]) for r in csv.DictReader(journal.open())]
    best = min(ratios[:-3])
    assert all(r > 1.1 * best for r in ratios[-3:]), ratios
    assert all(min(ratios[i:i + 3]) <= 1.1 * min(ratios[:i]) for i in range(1, len(ratios) - 3)), "it ended late"
    said = re.search(r"rose to ([\d.]+) of the window's, where it was ([\d.]+): .*rises.* has", result.stderr)
    assert abs(float(said[1]) - ratios[-1]) < 1e-3 and abs(float(said[2]) - best) < 1e-3, result.stderr
    assert arrays(cli.folder / "rises.safetensors")[1]["steps"] == str(ratios.index(best) + 1)


def test_rises_without_held_out(cli):
    """Then training texts are tested, by the same rule; what they say is in no column of the held-out ones."""
    journal = cli.folder / "rises.csv"
    result = cli.run("--steps", "40", "--rate", "1", "--test-every", "1", "--csv", journal, out="rises.safetensors")
    assert result.returncode == 1 and "the loss on training texts rose to" in result.stderr, result.stderr
    rows = list(csv.DictReader(journal.open()))
    assert len(rows) < 40 and all(r["gate_spread"] and not r["held_kl"] and not r["held_ratio"] for r in rows), rows
    assert not (cli.folder / "rises.safetensors").exists()
    ratios = [float(x) for x in re.findall(r"step \d+: training texts' KL [\d.]+, ([\d.]+) of", result.stderr)]
    assert len(ratios) == len(rows) and all(r > 1.1 * min(ratios[:-3]) - 2e-3 for r in ratios[-3:]), ratios


def flatten(path, name, to):
    """A merge file whose array `name` is all zeros."""
    data = bytearray(path.read_bytes())
    array = arrays(path)[0][name]
    at = data.index(array)
    data[at:at + len(array)] = bytes(len(array))
    to.write_bytes(data)


def test_collapsed(cli):
    """A merge that does the same to every pair ends it, and is not saved, whether texts are held out or not."""
    flat = cli.folder / "flat.safetensors"
    for arch, array, message in (
            ("score", "sharp_k", "the gate has collapsed: in 3 tests it gave the same to every older unit, now 0.500"),
            ("direct", "merge.weight", "the merge has collapsed: in 3 tests it made the same unit of every pair")):
        net = ["--merge-arch", arch]
        cli.ok(*net, *(["--depth", "3"] if arch == "direct" else []), "--steps", "1", out="before.safetensors")
        flatten(cli.folder / "before.safetensors", array, flat)
        for held in ([], ["--held-out", cli.folder / "held.txt"]):
            options = (*net, "--rate", "1e-12", "--from", flat, *held, "--test-every", "1")
            cli.fails(1, f"step 3: {message}", *options, "--steps", "4", "-q", out="collapsed.safetensors")
            assert not (cli.folder / "collapsed.safetensors").exists()
            result = cli.ok(*options, "--steps", "2", out=f"{arch}{len(held)}.safetensors")
            assert "constant (2 of 3)" in result.stderr, result.stderr
            assert "held_out" not in arrays(cli.folder / f"{arch}{len(held)}.safetensors")[1]


def spoil_token(path, token):
    """Write NaN over a token's row of a tiny model's embedding, the file's first tensor."""
    data = bytearray(path.read_bytes())
    tensors, = struct.unpack_from("<Q", data, 8)
    name = b"token_embd.weight"
    at = data.index(struct.pack("<Q", len(name)) + name)
    columns = None
    for _ in range(tensors):
        size, = struct.unpack_from("<Q", data, at)
        dims, = struct.unpack_from("<I", data, at + 8 + size)
        columns = columns or struct.unpack_from("<Q", data, at + 12 + size)[0]
        at += 8 + size + 4 + 8 * dims + 4 + 8
    row = (at + 31) // 32 * 32 + token * columns * 4
    data[row:row + columns * 4] = struct.pack("<f", math.nan) * columns
    path.write_bytes(data)


def test_model_nan(cli):
    """A model that predicts no numbers is named, whether training or held-out texts show it."""
    model = cli.folder / "spoilt.gguf"
    subprocess.run([cli.make_tiny_model, model, "--untied"], check=True)
    spoil_token(model, ord("~"))
    (cli.folder / "spoilt.txt").write_text(text(9, 300).replace(" ", " ~ "))
    cli.ok("--steps", "1", "-q", "--held-out", cli.folder / "held.txt", model=model, out="spoilt.safetensors")
    for options in ({"texts": "spoilt.txt"}, {"held": "spoilt.txt"}):
        held = ["--held-out", cli.folder / options.pop("held")] if "held" in options else []
        cli.fails(3, "the predictions of the model itself are no numbers: its weights may hold NaN", "--steps", "1",
                  "-q", *held, model=model, out="nan.safetensors", **options)
        assert not (cli.folder / "nan.safetensors").exists()


def test_wrong_texts(cli):
    (cli.folder / "empty.txt").write_text("")
    (cli.folder / "short.txt").write_text("A few words.")
    (cli.folder / "binary.txt").write_bytes(b"abc\0def" * 100)
    cli.fails(3, "empty", texts="empty.txt")
    cli.fails(3, "no text of 48 tokens: the longest of 1 has 12", texts="short.txt")
    cli.fails(3, "NUL byte", texts="binary.txt")
    cli.fails(3, "No such file", texts="not there")
    rng = random.Random(1)
    (cli.folder / "binary.txt").write_bytes(bytes(rng.randrange(1, 256) for _ in range(4000)))
    cli.fails(3, "not a text", texts="binary.txt")
    accents = text(1, 300).replace("harbour", "h\u00e2vre")
    (cli.folder / "latin1.txt").write_text(accents, encoding="latin-1")
    cli.fails(3, "not in UTF-8", texts="latin1.txt")
    (cli.folder / "utf8.txt").write_text(accents + "\u20ac \U0001f600", encoding="utf-8")
    cli.ok("--steps", "1", texts="utf8.txt")
    (cli.folder / "dirty.txt").write_bytes(text(1, 3000).encode() + b"\xe9\f\x1b[1m")
    cli.ok("--steps", "1", texts="dirty.txt")


def test_held_apart(cli):
    """A text is not trained on and held out, whatever its name."""
    (cli.folder / "copy.txt").write_bytes((cli.folder / "texts" / "1.txt").read_bytes())
    (cli.folder / "link.txt").symlink_to(cli.folder / "texts" / "2.txt")
    for name in ("copy.txt", "link.txt", "texts/0.txt", "texts"):
        cli.fails(2, "trained on too", "--held-out", cli.folder / "held.txt", "--held-out", cli.folder / name)


def test_wrong_usage(cli):
    cli.fails(2, "too short for -L 32", "-L", "32")
    cli.fails(2, "give both", "--plot", "x.svg")
    cli.fails(2, "a power of two in 2 .. 4096", "-L", "12")
    cli.fails(2, "leaves nothing to learn", "--kl", "0")
    cli.fails(2, "hidden", "--hidden", "24")
    cli.fails(2, "multiple of 3", "--merge-arch", "gate", "--depth", "7")
    cli.fails(2, "--depth is of", "--depth", "9")
    cli.fails(2, "--hidden is of --merge-arch score", "--merge-arch", "gate", "--hidden", "16")
    cli.fails(2, "--hidden is of new weights", "--from", "x", "--hidden", "16")
    cli.fails(2, "--depth is of new weights", "--merge-arch", "gate", "--from", "x", "--depth", "9")
    cli.fails(2, "--rate 0 learns nothing", "--rate", "0")
    cli.fails(2, "magnitude", "--merge-arch", "direct", "--magnitude", "1")
    cli.fails(5, "are left", "--max-memory", "700000")


def test_wrong_files(cli):
    cli.ok("--steps", "1", out="good.safetensors")
    good = (cli.folder / "good.safetensors.checkpoint").read_bytes()
    (cli.folder / "cut").write_bytes(good[:len(good) // 2])
    cli.fails(3, "cut", "--steps", "1", "--resume", cli.folder / "cut")
    cli.fails(3, "it was made with text=digest:", "--steps", "1", "--resume",
              cli.folder / "good.safetensors.checkpoint", texts="held.txt")
    old = good.replace(b'"version":"2"', b'"version":"1"')
    assert old != good
    (cli.folder / "old").write_bytes(old)
    cli.fails(3, 'its version is "1", this training\'s "2"', "--steps", "1", "--resume", cli.folder / "old")
    result = cli.run("--steps", "1", "--from", "nope.safetensors")
    assert result.returncode == 3 and result.stderr.count("nope.safetensors") == 1, result.stderr
    cli.fails(3, "model_digest", "--steps", "1", "--resume", cli.folder / "good.safetensors.checkpoint",
              model=cli.wider)
    _, notes = arrays(cli.folder / "good.safetensors.checkpoint")
    assert notes["steps"] == "1"
    size, = struct.unpack_from("<Q", good)
    nan = bytearray(good)
    nan[8 + size:12 + size] = struct.pack("<f", math.nan)
    (cli.folder / "nan").write_bytes(nan)
    cli.fails(3, "not finite", "--steps", "1", "--resume", cli.folder / "nan")
    cli.fails(3, "model_digest", "--steps", "1", "--resume", cli.folder / "good.safetensors.checkpoint",
              model=cli.other)
    for model, said in (cli.wider, "for 2 layers; the model has 3"), (cli.other, "for the model with digest"):
        result = cli.evaluate(cli.folder / "good.safetensors", model=model)
        assert result.returncode == 3 and len(result.stderr.splitlines()) == 1 and said in result.stderr, result.stderr


def test_full_disk(cli):
    """What was saved last stays when a later save fails."""
    assert cli.stopped("--steps", "200", "--save-every", "1", out="disk.safetensors")
    before = (cli.folder / "disk.safetensors.checkpoint").read_bytes()
    cli.environment["PYTHONUNBUFFERED"] = "1"
    result = cli.run("--steps", "200", "--save-every", "1", "--resume", cli.folder / "disk.safetensors.checkpoint",
                     out="disk.safetensors", limit=8192)
    assert result.returncode in (3, -signal.SIGXFSZ), (result.returncode, result.stderr)
    assert (cli.folder / "disk.safetensors.checkpoint").read_bytes() == before
    left = [p.name for p in cli.folder.iterdir() if p.name.startswith("disk")]
    assert result.returncode != 3 or left == ["disk.safetensors.checkpoint"], left


def main():
    program, make_tiny_model, *pattern = sys.argv[1:]
    failed = 0
    for name, check in sorted(globals().items()):
        if not name.startswith("test_") or (pattern and pattern[0] not in name):
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                check(Cli(program, make_tiny_model, pathlib.Path(folder)))
                print(f"ok   {name}")
            except Exception:
                failed += 1
                print(f"FAIL {name}\n{traceback.format_exc()}")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
