"""`dcm check` from outside, on a tiny model: devices.py DCM MAKE_TINY_MODEL BROKEN_DEVICE [PATTERN].

0.0 is the first OpenCL device; BROKEN_DEVICE is a library that lets it fail in a chosen way.
"""
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback

SHAPE = "shape:layers=2,hidden=64,heads=4,kv=2,ffn=96,vocab=300"
FIELDS = ["device", "steps", "max_abs", "bound", "ratio", "step", "nmse", "kl", "parted", "margin", "tie",
          "cache_max_abs", "cache_ratio", "cache_worst", "status"]


class Cli:
    def __init__(self, program, make_tiny_model, broken, folder):
        self.program, self.broken, self.folder = program, broken, folder
        self.tiny = str(folder / "tiny.gguf")
        subprocess.run([make_tiny_model, self.tiny], check=True)
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("DCM_", "XDG_"))}
        self.environment.update(DCM_CACHE=str(folder / "cache"), OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive")
        self.model = ["-m", self.tiny, "--merge", "newer", "-L", "8", "-n", "40"]

    def run(self, *args, **environment):
        return subprocess.run([self.program, "check", *map(str, args)], capture_output=True, text=True, timeout=120,
                              env={**self.environment, **environment})

    def exits(self, code, *args, **environment):
        result = self.run(*args, **environment)
        assert result.returncode == code, f"{args}: exit code {result.returncode}, not {code}: {result.stderr}"
        return result.stdout

    def rows(self, code, *args, **environment):
        return json.loads(self.exits(code, *args, "--format", "json", **environment))["rows"]

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
        (["-m", cli.tiny, "--devices", ",".join(["ref"] * 17)], "more than 14"),
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
            assert [r["device"] for r in rows] == ["ref", "0.0", "ref", "ref-float"] and set(rows[0]) == set(FIELDS)
            ref, device, again, floats = rows
            assert all(r["steps"] == 80 and r["status"] == "ok" for r in rows), rows
            assert 0 < device["ratio"] <= 1 and device["cache_max_abs"] > 0, device
            assert abs(device["ratio"] - device["max_abs"] / device["bound"]) < 1e-6
            assert again["max_abs"] == again["nmse"] == again["cache_max_abs"] == 0, again
            assert floats["max_abs"] > 0 and abs(floats["ratio"] - 1 / 8) < 1e-6, floats


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


def test_shape(cli):
    for weights in ("f16", "q4_1"):
        rows = cli.rows(0, "-m", SHAPE, "--weights", weights, "--merge", "newer", "--devices", "ref,0.0", "-n", "30",
                        "-L", "4")
        assert rows[1]["status"] == "ok" and rows[1]["max_abs"] > 0


# ---- Devices that are not ----


def test_wrong_device(cli):
    args = [*cli.model, "--devices", "ref,0.0,ref"]
    for broken in ("logit", "nan", "cache"):
        rows = cli.rows(1, *args, LD_PRELOAD=cli.broken, BROKEN=broken)
        assert rows[1]["status"] == ("cache differs" if broken == "cache" else "logits differ"), rows
        assert rows[2]["status"] == "ok"
        if broken == "logit":
            assert rows[1]["step"] == 12 and rows[1]["ratio"] > 1 and abs(rows[1]["max_abs"] - 0.01) < 1e-4, rows
        if broken == "nan":
            assert rows[1]["step"] == 12 and rows[1]["max_abs"] is None, rows
        if broken == "cache":
            assert "layer 1, keys of tokens 0 to 0" in rows[1]["cache_worst"], rows


def test_failing_device(cli):
    args = [*cli.model, "--devices", "ref,0.0,ref"]
    for broken, status in (("crash", r"crashed: signal 6 \(Aborted\), at token 1"), ("error", "token 0 is -1"),
                           ("hang", "no answer within 3 s: stopped, at token 1")):
        rows = cli.rows(2 if broken == "error" else 4, *args, "--timeout", "3", LD_PRELOAD=cli.broken, BROKEN=broken)
        assert re.match(status, rows[1]["status"]), rows
        assert rows[2]["status"] == "ok" and rows[2]["steps"] == 40, rows


def children_of(pid):
    return [int(p) for p in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_no_process_is_left(cli):
    """When the check ends or is killed, so do the processes of its devices."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        process = subprocess.Popen([cli.program, "check", "-m", cli.tiny, "--devices", "ref,ref", "-n", "1000000",
                                    "-q"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=cli.environment)
        while len(children := children_of(process.pid)) < 3:
            time.sleep(0.05)
        time.sleep(0.3)
        process.send_signal(number)
        out, errors = process.communicate(timeout=60)
        want = -number if number == signal.SIGKILL else 128 + number
        assert process.returncode == want and out == b"", (process.returncode, out, errors)
        deadline = time.time() + 20
        while any(pathlib.Path(f"/proc/{c}").exists() for c in children) and time.time() < deadline:
            time.sleep(0.05)
        assert not any(pathlib.Path(f"/proc/{c}").exists() for c in children)


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
