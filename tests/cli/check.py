"""The program from outside, on tiny models and the C reference: check.py DCM MAKE_TINY_MODEL GET_MODEL [PATTERN].

Every check is a function test_NAME(cli); PATTERN picks some. A failed run must leave standard output empty and say what
failed in one line on standard error that begins with the command's name.
"""
import csv
import io
import json
import math
import os
import pathlib
import pty
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback

TEXT = "It was a bright cold day in April, and the clocks were striking thirteen. " * 4


class Cli:
    def __init__(self, program, make_tiny_model, get_model, folder):
        self.program, self.get_model, self.folder = program, get_model, folder
        self.tiny, self.chat, self.text = (str(folder / n) for n in ("tiny.gguf", "chat.gguf", "text.txt"))
        subprocess.run([make_tiny_model, self.tiny], check=True)
        subprocess.run([make_tiny_model, self.chat, "--chatml"], check=True)
        pathlib.Path(self.text).write_text(TEXT)
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("DCM_", "XDG_"))}
        self.environment.update(DCM_CACHE=str(folder / "cache"), DCM_DEVICE="ref", OMP_NUM_THREADS="1",
                                OMP_WAIT_POLICY="passive")

    def run(self, *args, stdin=b"", **environment):
        return subprocess.run([self.program, *map(str, args)], input=stdin, capture_output=True, timeout=600,
                              env={**self.environment, **environment})

    def ok(self, *args, **options):
        result = self.run(*args, **options)
        assert result.returncode == 0, f"{args}: exit code {result.returncode}: {result.stderr.decode()}"
        return result.stdout

    def fails(self, code, message, *args, **options):
        result = self.run(*args, **options)
        errors = result.stderr.decode()
        assert result.returncode == code, f"{args}: exit code {result.returncode}, not {code}: {errors}"
        assert re.search(message, errors), f"{args}: {message!r} is not in {errors!r}"
        lines = errors.splitlines()
        assert len(lines) == 1 and lines[0].startswith("dcm"), f"{args}: not one line: {errors!r}"
        assert result.stdout == b"", f"{args}: standard output has {result.stdout[:80]!r}"


# ---- Wrong usage ----


def test_no_command(cli):
    cli.fails(2, "no command")
    cli.fails(2, 'unknown command "fly"', "fly")
    cli.fails(2, "no measure", "eval")
    cli.fails(2, 'unknown measure "x"', "eval", "x")


def test_plan_usage(cli):
    for args, message in [
        ([], "--group .* is required"),
        (["-L"], "needs a value"),
        (["--group"], "--group needs a value"),
        (["-L", "5"], "--group: \"5\" is not .*power of two in 2 .. 4096"),
        (["-L", "1"], "--group"),
        (["-L", "0"], "--group"),
        (["-L", "8192"], "2 .. 4096"),
        (["-L", "-4"], "--group"),
        (["-L", "4x"], "--group"),
        (["-L", " 4"], "--group"),
        (["-L", ""], "--group"),
        (["-L", "4,,8"], "--group"),
        (["-L", "4,"], "--group"),
        (["-L", ",".join(["4"] * 65)], "more than 64"),
        (["-L", "99999999999999999999"], "--group"),
        (["-L", "4", "-n", "0"], "--tokens: \"0\" is not an integer in 1 .."),
        (["-L", "4", "-n", "1e3"], "--tokens"),
        (["-L", "4", "--sinks=-1"], "--sinks.*0 .. 65536"),
        (["-L", "4", "--sinks", "4.5"], "--sinks"),
        (["-L", "4", "--kv", "f16"], "--kv has no effect without --model"),
        (["-L", "4", "--kv", "f64"], "none of f16|f32"),
        (["-L", "4", "--format", "xml"], "none of text"),
        (["-L", "4", "--steps", "5", "-n", "5"], "--tokens has no effect with --steps"),
        (["-L", "4,8", "--steps", "5"], "one group length, not 2"),
        (["-L", "4", "--wings"], "unknown option --wings"),
        (["-L", "4", "-x"], "unknown option -x"),
        (["-L", "4", "more"], 'unexpected argument "more"'),
        (["-L", "4", "-"], 'unexpected argument "-"'),
    ]:
        cli.fails(2, message, "plan", *args)


def test_run_usage(cli):
    model, prompt = ["-m", cli.tiny], ["-p", "x"]
    for args, message in [
        (prompt, "--model .* is required"),
        (model, "exactly one of -p"),
        ([*model, *prompt, "-f", cli.text], "exactly one of -p"),
        ([*model, *prompt, "-"], "exactly one of -p"),
        ([*model, *prompt, "--cache", "half"], "none of dcm|full|window"),
        ([*model, *prompt, "--cache", "full", "-L", "16"], "--group has no effect with --cache full"),
        ([*model, *prompt, "--cache", "full", "--sinks", "4"], "--sinks has no effect"),
        ([*model, *prompt, "--cache", "full", "--merge", "mean"], "--merge has no effect"),
        ([*model, *prompt, "--cache", "window", "--window", "9", "--log-r", "1"], "--log-r has no effect"),
        ([*model, *prompt, "--cache", "full", "--far-limit", "0"], "--far-limit has no effect"),
        ([*model, *prompt, "--far-limit", "-1"], "--far-limit"),
        ([*model, *prompt, "--window", "9"], "--window has no effect with --cache dcm"),
        ([*model, *prompt, "--cache", "window"], "needs --window"),
        ([*model, *prompt, "--cache", "window", "--window", "4"], "must exceed the 4 sinks"),
        ([*model, *prompt, "-L", "100"], "power of two"),
        ([*model, *prompt, "-n", "-1"], "--tokens"),
        ([*model, *prompt, "--temp", "hot"], "--temp: \"hot\" is not a number in 0 .. 100"),
        ([*model, *prompt, "--temp", "nan"], "--temp"),
        ([*model, *prompt, "--temp=-0.5"], "--temp"),
        ([*model, *prompt, "--top-p", "1.5"], "--top-p.*0 .. 1"),
        ([*model, *prompt, "--seed", "0x10"], "--seed"),
        ([*model, *prompt, "--stop", ""], "--stop: the text is empty"),
        ([*model, *prompt, "--stats=1"], "--stats takes no value"),
        ([*model, *prompt, "--system", "x"], "--system has no effect without --chat"),
        ([*model, *prompt, "-v", "-q"], "exclude each other"),
        ([*model, *prompt, "--max-memory", "0"], "--max-memory"),
        ([*model, *prompt, "--max-memory", "1X"], "--max-memory"),
        ([*model, *prompt, "--max-memory", "0%"], "--max-memory"),
        ([*model, *prompt, "--max-memory", "101%"], "--max-memory"),
        ([*model, *prompt, "--max-memory", "99999999999G"], "--max-memory"),
        ([*model, *prompt, "--threads", "-2"], "--threads"),
        ([*model, *prompt, "--chunk", "0"], "--chunk: \"0\" is not an integer in 1 .. 65536"),
        ([*model, *prompt, "--chunk", "65537"], "--chunk"),
        ([*model, "-i", "-"], "reads standard input itself"),
        ([*model, "-i", "-q", "--system", "x"], "--system has no effect: the model has no chat template"),
        ([*model, "-p", "", "-q"], "the prompt has no tokens"),
    ]:
        cli.fails(2, message, "run", *args)


def test_eval_usage(cli):
    for args, message in [
        (["-f", cli.text], "--model .* is required"),
        (["-m", cli.tiny], "exactly one of -p"),
        (["-m", cli.tiny, "-f", cli.text, "--skip", "x"], "--skip"),
        (["-m", cli.tiny, "-f", cli.text, "--chunk", "0"], "--chunk"),
        (["-m", cli.tiny, "-f", cli.text, "--against", "window"], "none of none|full"),
        (["-m", cli.tiny, "-f", cli.text, "--policies", "dcm", "-L", "8"], "--group has no effect with --policies"),
        (["-m", cli.tiny, "-f", cli.text, "--policies", "dcm", "--far-limit", "8"],
         "--far-limit has no effect with --policies"),
        (["-m", cli.tiny, "-f", cli.text, "--policies", "dcm:L=4:L=4"], "a setting is given twice"),
        (["-m", cli.tiny, "-f", cli.text, "--logprobs", ""], "the name of an output is empty"),
        (["-m", cli.tiny, "-f", cli.text, "--policies", "dcm,full", "--logprobs", "x"], "takes one policy, not 2"),
        (["-m", cli.tiny, "-f", cli.text, "--policies", "half"], "begins with dcm, full or window"),
        (["-m", cli.tiny, "-f", cli.text, "--policies", ""], "begins with dcm"),
        (["-m", cli.tiny, "-f", cli.text, "--policies", "dcm:L=5"], "not a power of two"),
        (["-m", cli.tiny, "-f", cli.text, "--policies", "dcm:L"], "KEY=VALUE"),
        (["-m", cli.tiny, "-f", cli.text, "--policies", "full:L=4"], "settings are"),
        (["-m", cli.tiny, "-f", cli.text, "--policies", "window:W=9:far-limit=4"], "settings are"),
        (["-m", cli.tiny, "-f", cli.text, "--policies", "dcm:far-limit=-1"], "far-limit"),
        (["-m", cli.tiny, "-f", cli.text, "--policies", "dcm:S=-1"], "S=-1 is not an integer"),
        (["-m", cli.tiny, "-f", cli.text, "--policies", "dcm:kv=f8"], "none of f16|f32"),
        (["-m", cli.tiny, "-f", cli.text, "--policies", "window"], "needs W="),
        (["-m", cli.tiny, "-f", cli.text, "--policies", "window:W=4"], "must exceed its 4 sinks"),
        (["-m", cli.tiny, "-f", cli.text, "--policies", "window:W=auto,full"], "cannot be the first"),
    ]:
        cli.fails(2, message, "eval", "ppl", *args)


def test_tokenize_usage(cli):
    for args, message in [
        (["-p", "x"], "--model .* is required"),
        (["-m", cli.tiny], "exactly one of -p"),
        (["-m", cli.tiny, "-p", "x", "-f", cli.text], "exactly one of -p"),
        (["-m", cli.tiny, "-p", "1,2,x", "--decode"], "item 3"),
        (["-m", cli.tiny, "-p", "1,99999999", "--decode"], "99999999"),
    ]:
        cli.fails(2, message, "tokenize", *args)


# ---- Files ----


def test_missing_files(cli):
    cli.fails(3, "smollm2-135m is not there .*dcm-get-model smollm2-135m", "run", "-m", "smollm2-135m", "-p", "x")
    cli.fails(3, "neither a file nor a known short name", "run", "-m", "nobody", "-p", "x")
    cli.fails(3, "none.gguf: No such file", "run", "-m", cli.folder / "none.gguf", "-p", "x")
    cli.fails(3, "not a regular file", "run", "-m", cli.folder, "-p", "x")
    cli.fails(3, "none.txt: No such file", "run", "-m", cli.tiny, "-f", cli.folder / "none.txt")
    cli.fails(3, "Is a directory", "run", "-m", cli.tiny, "-f", cli.folder)
    cli.fails(3, "none.st", "run", "-m", cli.tiny, "-p", "x", "--merge", cli.folder / "none.st")
    cli.fails(3, "none.gguf", "plan", "-L", "4", "-m", cli.folder / "none.gguf")


def test_prompt_with_nul(cli):
    cli.fails(3, "NUL byte at offset 3", "run", "-m", cli.tiny, "-", stdin=b"abc\0def")
    late = cli.folder / "late.txt"
    late.write_bytes(TEXT.encode() * 400 + b"\0")
    size = late.stat().st_size - 1
    assert size > 1 << 16
    quiet = ["-m", cli.tiny, "--merge", "newer"]
    cli.fails(3, f"late.txt: a NUL byte at offset {size}: not a text", "run", *quiet, "-f", late)
    cli.fails(3, f"NUL byte at offset {size}", "eval", "ppl", *quiet, "-f", late)


def test_unwritable_output(cli):
    logprobs = ["--logprobs", "/none/x.csv"]
    cli.fails(3, "/none/x.csv: cannot write", "eval", "ppl", "-m", cli.tiny, "-f", cli.text, *logprobs)
    plan = ["plan", "-L", "4"]
    for args in (plan, [*plan, "--steps", "100000"], ["--help"], ["run", "--help"], ["--version"]):
        with open("/dev/full", "w") as full:
            result = subprocess.run([cli.program, *args], stdout=full, stderr=subprocess.PIPE, env=cli.environment)
        assert result.returncode == 3 and b"cannot be written" in result.stderr, args


def test_text_too_short(cli):
    cli.fails(3, "not the 100000", "eval", "ppl", "-m", cli.tiny, "-f", cli.text, "-n", "100000")
    cli.fails(3, "nothing to predict", "eval", "ppl", "-m", cli.tiny, "-p", "x")
    cli.fails(3, "nothing to predict", "eval", "ppl", "-m", cli.tiny, "-f", cli.text, "-n", "50", "--skip", "50")
    cli.fails(3, "nothing to predict", "eval", "ppl", "-m", cli.tiny, "-f", cli.text, "--offset", "100000")


def damaged(cli, name, change):
    """A copy of the tiny model that `change` has altered in place."""
    data = bytearray(pathlib.Path(cli.tiny).read_bytes())
    data = change(data) or data
    path = cli.folder / name
    path.write_bytes(data)
    return path


def test_truncated_model(cli):
    whole = pathlib.Path(cli.tiny).read_bytes()
    for i in range(20):
        size = len(whole) * i // 20 + (0 if i else 3)
        path = damaged(cli, "cut.gguf", lambda data, size=size: data[:size])
        cli.fails(3, "cut.gguf", "run", "-m", path, "-p", "x")
        cli.fails(3, "cut.gguf", "plan", "-L", "4", "-m", path)


def tensor(data, name):
    """Offset of what follows a tensor's name: u32 dimensions, u64 each, u32 type, u64 offset."""
    return data.index(len(name).to_bytes(8, "little") + name) + 8 + len(name)


def test_damaged_model(cli):
    def put(data, at, value, size):
        data[at : at + size] = value.to_bytes(size, "little")

    def unknown_type(data):
        put(data, tensor(data, b"token_embd.weight") + 4 + 16, 999, 4)

    def unsupported_type(data):
        put(data, tensor(data, b"token_embd.weight") + 4 + 16, 16, 4)

    def wrong_shape(data):
        at = tensor(data, b"blk.0.attn_k.weight")
        put(data, at + 12, int.from_bytes(data[at + 12 : at + 20], "little") // 2, 8)

    def huge_shape(data):
        put(data, tensor(data, b"blk.0.attn_k.weight") + 12, 1 << 62, 8)

    def fewer_rows(data):
        put(data, tensor(data, b"token_embd.weight") + 12, 100, 8)

    def wrong_arch(data):
        data[:] = data.replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0lemma")

    for change, message in [
        (lambda data: put(data, 0, 0x4C4C4147, 4), "magic"),
        (lambda data: put(data, 4, 9, 4), "version"),
        (lambda data: put(data, 8, 1 << 60, 8), "tensor"),
        (lambda data: put(data, 16, 1 << 60, 8), ""),
        (fewer_rows, "tokenizer has [0-9]+ tokens, the model's vocabulary only 100"),
        (unknown_type, "token_embd.weight.*999|999.*token_embd.weight"),
        (unsupported_type, "IQ2_XXS"),
        (wrong_shape, "blk.0.attn_k.weight"),
        (huge_shape, "blk.0.attn_k.weight"),
        (wrong_arch, "lemma"),
    ]:
        cli.fails(3, message, "run", "-m", damaged(cli, "bad.gguf", change), "-p", "x")


def test_get_model(cli):
    for args, code in (["nobody"], 2), (["smollm2-135m", "more"], 2), (["--help"], 0):
        result = subprocess.run([cli.get_model, *args], capture_output=True, env=cli.environment)
        assert result.returncode == code, (args, result)


# ---- Devices and memory ----


def test_device_not_found(cli):
    for name in ("no such device", "99.0", "0.99", "-1.0"):
        cli.fails(4, re.escape(name), "run", "-m", cli.tiny, "-p", "x", f"--device={name}")
    cli.fails(4, r"\$DCM_DEVICE: no OpenCL device fits \"no such\"", "run", "-m", cli.tiny, "-p", "x",
              DCM_DEVICE="no such")
    cli.fails(2, "--device: the name is empty", "run", "-m", cli.tiny, "-p", "x", "--device", "")


def test_device_ambiguous(cli):
    rows = json.loads(cli.ok("devices", "--format", "json"))["rows"]
    if len(rows) < 2:
        return print("        (a single OpenCL device: no ambiguous name)")
    common = next(c for c in "aeiou" if all(c in (r["name"] + r["platform"]).lower() for r in rows))
    cli.fails(2, "several.*" + re.escape(rows[1]["device"]), "run", "-m", cli.tiny, "-p", "x", "--device", common)


def test_no_platform_at_all(cli):
    (cli.folder / "no-vendors").mkdir()
    nothing = {"OCL_ICD_VENDORS": str(cli.folder / "no-vendors"), "DCM_DEVICE": ""}
    cli.fails(4, "OpenCL", "run", "-m", cli.tiny, "-p", "x", "--device", "cpu", **nothing)
    result = cli.run("run", "-m", cli.tiny, "-p", "x", "-n", "2", "--merge", "newer", **nothing)
    assert result.returncode == 0 and re.search("OpenCL.*reference|reference.*OpenCL", result.stderr.decode()), result


def test_memory(cli):
    cli.fails(5, "bytes", "run", "-m", cli.tiny, "-p", "x", "--max-memory", "4K")
    long_text = ["-f", cli.text, "-n", "1", "--kv", "f32"]
    stats = cli.run("run", "-m", cli.tiny, "-p", "x", "-n", "1", "--cache", "full", "--kv", "f32", "--stats")
    peak = int(re.search(rb"peak bytes: +(\d+)", stats.stderr).group(1))
    full = ["--cache", "full", "--max-memory", peak + 8192]
    cli.fails(5, r"\d+ (units|bytes|tokens)", "run", "-m", cli.tiny, *long_text, *full)
    cli.ok("run", "-m", cli.tiny, *long_text, "-L", "2", "--sinks", "0", "--merge", "newer", "--max-memory", "1G")
    cli.ok("run", "-m", cli.tiny, *long_text, "--merge", "newer", "--max-memory", "50%")


def test_memory_of_chunks(cli):
    """A chunk that does not fit is refused with one that would; by default it is made to fit."""
    args = ["run", "-m", cli.tiny, "-f", cli.text, "-n", "4", "-q", "--cache", "window", "--window", "100"]
    errors = cli.run(*args, "--chunk", "1", "--stats").stderr.decode()
    limit = ["--max-memory", int(re.search(r"peak bytes: +(\d+)", errors).group(1)) + 20000]
    cli.fails(5, r"^dcm run: a chunk of 65536 tokens takes \d+ bytes, but \d+ of \d+ are left", *args, *limit,
              "--chunk", "65536")
    most = re.search(r"a chunk of (\d+) would fit", cli.run(*args, *limit, "--chunk", "65536").stderr.decode()).group(1)
    cli.fails(5, "would fit", *args, *limit, "--chunk", int(most) + 1)
    text = cli.ok(*args, *limit)
    assert text == cli.ok(*args) == cli.ok(*args, "--chunk", "100", "--max-memory", "100M")


def test_refused_before_work(cli):
    """Where the length is known nothing is fed; from a pipe the cache grows until the limit."""
    small = ["run", "-m", cli.tiny, "--cache", "full", "--max-memory", "1M", "-n", "1", "-q"]
    text = TEXT.encode() * 20
    path = cli.folder / "large.txt"
    path.write_bytes(text)
    cli.fails(5, r"of \d+ tokens needs \d+ bytes .*--cache dcm -L \d+ would fit", *small, "-f", path)
    group = re.search(r"-L (\d+)", cli.run(*small, "-f", path).stderr.decode()).group(1)
    cli.fails(5, r"^dcm run: token \d+: .*\d+ bytes", *small, "-", stdin=text)
    cli.ok("run", "-m", cli.tiny, "-f", path, "-L", group, "--max-memory", "1M", "-n", "1", "-q", "--merge", "newer")
    huge = ["--chunk", "65536", "-L", "4096", "--merge", "newer", "--max-memory", "1M"]
    cli.fails(5, "bytes", "run", "-m", cli.tiny, "-p", "x", *huge)


def test_context_warning(cli):
    """One warning when the cache holds more units than trained positions, however the text comes."""
    args = ["run", "-m", cli.tiny, "--cache", "full", "-n", "1"]
    text = TEXT.encode() * 4
    for stdin, source in (b"", ["-p", text.decode()]), (text, ["-"]):
        errors = cli.run(*args, *source, stdin=stdin).stderr
        assert errors.count(b"expect nonsense") == 1, errors


# ---- What works ----


def test_text_in_pieces(cli):
    """A text longer than a piece that is tokenized at once has the ids of the whole text."""
    path = cli.folder / "pieces.txt"
    path.write_text("".join(f"{TEXT}{i}\n\n  {i * i}  \u4e2d\u6587 it's\r\n" for i in range(256)))
    assert path.stat().st_size > 1 << 16
    ids = cli.ok("tokenize", "-m", cli.tiny, "-f", path, "--ids").decode().strip().split(",")
    out = cli.folder / "pieces.csv"
    first = len(ids) - 300  # behind the first piece
    cli.ok("eval", "ppl", "-m", cli.tiny, "-f", path, "--offset", first, "--cache", "full", "--logprobs", out, "-q")
    assert [r["token"] for r in csv.DictReader(out.open())] == ids[first + 1 :]


def test_chunk(cli):
    """The C reference gives the same bits whatever the chunk."""
    for policy in ["-L", "8", "--merge", "newer"], ["--cache", "full"], ["--cache", "window", "--window", "20"]:
        files, texts = [], []
        for chunk in "1", "17", "1000":
            path = cli.folder / f"chunk{chunk}.csv"
            ppl(cli, "-n", "150", *policy, "--chunk", chunk, "--logprobs", path)
            files.append(path.read_bytes())
            texts.append(cli.ok("run", "-m", cli.tiny, "-f", cli.text, "-n", "20", *policy, "--chunk", chunk, "-q"))
        assert files[0] == files[1] == files[2] and texts[0] == texts[1] == texts[2], policy
    args = ["-n", "150", "--against", "full", "--policies", "dcm:L=4:merge=newer,window:W=auto", "--skip", "40"]
    assert ppl(cli, *args, "--chunk", "1")["rows"] == ppl(cli, *args, "--chunk", "7")["rows"] == ppl(cli, *args)["rows"]



def test_help(cli):
    listed = re.findall(r"^  (\w+) ", cli.ok("--help").decode(), re.M)
    assert {"run", "plan", "eval"} <= set(listed), listed
    for command in [[name] for name in listed] + [["eval", m] for m in ("needle", "ppl", "recall")]:
        text = cli.ok(*command, "--help").decode()
        assert cli.ok(*command, "-h").decode() == text
        assert text.startswith("usage: dcm " + " ".join(command)), text
        # What the help names, the parser knows: any option without its value is told apart from an unknown one.
        for option in re.findall(r"^ {2}(?:-\w, | {4})(--[\w-]+)", text, re.M):
            errors = cli.run(*command, option).stderr
            assert b"unknown option" not in errors, (command, option)
    assert re.fullmatch(rb"dcm \d+\.\d+\.\d+ \(.+\)\n", cli.ok("--version"))


def test_plan(cli):
    table = json.loads(cli.ok("plan", "-L", "16,256,512", "-n", "100000", "--sinks", "0", "--format", "json"))
    assert table["schema"] == 1
    assert [r["units"] for r in table["rows"]] == [6276, 893, 1209]
    assert all(r["near"] + r["far"] == r["units"] for r in table["rows"])
    sizes = cli.ok("plan", "-L", "4", "-n", "1000", "-m", cli.tiny, "--kv", "f32", "--format", "json")
    sized = json.loads(sizes)["rows"][0]
    assert sized["bytes"] == sized["units"] * sized["unit_bytes"] and sized["full_bytes"] == 1000 * sized["unit_bytes"]
    assert sized["unit_bytes"] == 2 * 2 * 2 * 16 * 4  # layers, KV heads, keys and values, head size, f32


def test_plan_steps(cli):
    out = cli.ok("plan", "-L", "4", "--sinks", "1", "--steps", "40", "--format", "csv").decode()
    rows = list(csv.DictReader(io.StringIO(out)))
    assert list(rows[0]) == ["token", "action", "level", "near", "far", "units"]
    assert [int(r["token"]) for r in rows] == list(range(1, 41))
    levels = [int(r["level"]) for r in rows if r["action"] != "append"]
    # L = 4: first segment 0 0 0 (s = 0), 1 0 (s = 1); then retire, 0 1 0 for ever.
    assert levels[:13] == [0, 0, 0, 1, 0, -1, 0, 1, 0, -1, 0, 1, 0], levels
    assert all(int(r["near"]) <= 7 for r in rows)
    lines = [json.loads(l) for l in cli.ok("plan", "-L", "4", "--steps", "3", "--format", "jsonl").splitlines()]
    assert [l["token"] for l in lines] == [1, 2, 3] and all(l["schema"] == 1 for l in lines)
    assert cli.ok("plan", "-L", "4", "--steps", "1", "--format", "md").startswith(b"| token | action |")


def test_devices(cli):
    table = json.loads(cli.ok("devices", "--format", "json"))
    assert table["schema"] == 1 and table["commit"] and table["date"]
    for row in table["rows"]:
        assert re.fullmatch(r"\d+\.\d+", row["device"]) and row["max_alloc"] <= row["memory"], row


def test_tiers(cli):
    """Listed, forced on and off by option and environment; every one that works is right on and off."""
    prompt = ["run", "-m", cli.tiny, "-p", "x", "-n", "2"]
    names = "there is no tier \"fast\"; there are: dot4, dot2, half16, fp16, subgroups, mma"
    cli.fails(2, names, *prompt, "--tier", "fast=on")  # also where it has no effect: ref
    cli.fails(2, names, *prompt, DCM_TIERS="dot4=off,fast=on")
    cli.fails(2, "neither dot4=on nor dot4=off", *prompt, "--tier", "dot4=1")
    cli.fails(2, "no effect with strict", *prompt, "--tier", "dot4=off", "--strict")
    cli.fails(2, "DCM_TIERS has no effect with --strict", *prompt, "--strict", DCM_TIERS="dot4=off")
    cli.ok(*prompt, "--device", "ref", "--tier", "mma=on")  # the reference has none: of these only names are checked
    cli.fails(2, "--tier has no effect without --tiers", "devices", "--tier", "dot4=off")
    cli.fails(2, "--probe has no effect with --tiers", "devices", "--probe", "--tiers")

    def tiers(*args, **environment):
        result = cli.run("devices", "--tiers", "--format", "json", *args, **environment)
        assert result.returncode in (0, 4), result.stderr  # 4: a tier is forced on that another device does not have
        rows = json.loads(result.stdout)["rows"]
        return {(r["device"], r["tier"]): (r["works"] == "yes", r["used"] == "yes", r["why"]) for r in rows}

    probed = tiers()
    opencl = [r["device"] for r in json.loads(cli.ok("devices", "--format", "json"))["rows"]]
    assert set(probed) == {(d, t) for d in opencl for t in ("dot4", "dot2", "half16", "fp16", "subgroups", "mma")}
    for (device, tier), (works, used, why) in probed.items():
        assert (works or not used) and used == (why == ""), (device, tier, works, used, why)
        on, off = ["--tier", f"{tier}=on"], ["--tier", f"{tier}=off"]
        there = ["--device", device]
        if not works:
            cli.fails(4, f"tier {tier} is forced on and does not work here: {re.escape(why)}", *prompt, *there, *on)
            continue
        want = works, False, "forced off"
        assert tiers(*off)[device, tier] == tiers(DCM_TIERS=f"mma=off,{tier}=off")[device, tier] == want
        assert tiers(*off, *on)[device, tier] == probed[device, tier]
        assert tiers(*on, DCM_TIERS=f"{tier}=off")[device, tier] == probed[device, tier]
        for setting in on, off:
            check = ["check", "-m", cli.tiny, "--merge", "newer", "-L", "8", "-n", "80", "--devices", f"ref,{device}"]
            rows = json.loads(cli.ok(*check, *setting, "--kv", "f16", "--format", "json"))["rows"]
            assert rows[1]["status"] == "ok" and rows[1]["steps"] == 80, (device, setting, rows)


def test_tune(cli):
    """Measured when asked for, then read; refused where it is broken; not read where it must not be."""
    opencl = json.loads(cli.ok("devices", "--format", "json"))["rows"]
    assert cli.ok("tune", "--format", "csv") == b"choice,value,what,us,error,status,chosen\n"  # ref: nothing to choose
    cli.fails(2, "--no-tuning has no effect without --show", "tune", "--no-tuning")
    cli.fails(2, "--engines has no effect with --show", "tune", "--engines", "--show")
    cli.fails(2, 'DCM_TUNING is "maybe"', "tune", "--show", DCM_TUNING="maybe")
    if not opencl:
        return
    on = ["--device", opencl[0]["device"], "--format", "json"]
    began = time.monotonic()
    table = json.loads(cli.ok("tune", *on))
    assert time.monotonic() - began < 120 and table["device"] == opencl[0]["name"]
    chosen = {r["choice"]: r["value"] for r in table["rows"] if r["chosen"]}
    assert "many" not in {r["choice"] for r in table["rows"]}, table  # it decides bits: only for --engines
    assert chosen and len(table["rows"]) > len(chosen), table
    assert all(0 < r["us"] and r["error"] <= 1 for r in table["rows"] if r["chosen"]), table

    def shown(*args, **environment):
        rows = json.loads(cli.ok("tune", "--show", *args, *on, **environment))["rows"]
        return {r["choice"]: r["value"] for r in rows}, {r["choice"] for r in rows if r["origin"] == "file"}

    values, from_file = shown()
    assert from_file == set(chosen) and {k: values[k] for k in chosen} == chosen, (values, chosen)
    assert shown("--no-tuning")[1] == shown(DCM_TUNING="off")[1] == set()
    file, = pathlib.Path(cli.environment["DCM_CACHE"]).glob("tuning-*.json")
    file.write_text(file.read_text().replace('"schema": 1', '"schema": 99'))
    result = cli.run("tune", "--show", *on)
    assert result.returncode == 0 and b"tuning is refused, it is of another version" in result.stderr, result.stderr
    assert {r["origin"] for r in json.loads(result.stdout)["rows"]} == {"default"}
    file.unlink()


def test_tokenize(cli):
    text = bytes(range(1, 256)) + TEXT.encode() + b"\0 and NUL\n"
    ids = cli.ok("tokenize", "-m", cli.tiny, "-", "--ids", stdin=text)
    assert re.fullmatch(rb"\d+(,\d+)*\n", ids) and ids.count(b",") < len(text)
    assert cli.ok("tokenize", "-m", cli.tiny, "-", "--decode", stdin=ids) == text
    pieces = cli.ok("tokenize", "-m", cli.tiny, "-", "--format", "csv", stdin=text).decode()
    assert [int(i) for i in ids.split(b",")] == [int(r["id"]) for r in csv.DictReader(io.StringIO(pieces))]


def test_run(cli):
    args = ["run", "-m", cli.tiny, "-n", "20", "--merge", "newer", "--ignore-eos"]
    first = cli.run(*args, "-p", TEXT, "-L", "4", "--stats")
    assert first.returncode == 0
    first.stdout.decode()  # UTF-8 throughout
    words = first.stderr.decode()
    stats = {k: int(v) for k, v in re.findall(r"^(tokens in|tokens out|units|merges): +(\d+)", words, re.M)}
    fed = int(re.search(r"units: +\d+ for (\d+) tokens", words).group(1))
    assert stats["tokens out"] == 20 and fed == stats["tokens in"] + 19, stats
    assert stats["units"] < fed and stats["merges"] > 0, stats
    assert cli.ok(*args, "-f", cli.text, "-L", "4") == first.stdout
    assert cli.ok(*args, "-", "-L", "4", stdin=TEXT.encode()) == first.stdout
    assert cli.ok(*args, "-f", "-", "-L4", stdin=TEXT.encode()) == first.stdout
    assert cli.ok(*args, "--prompt=" + TEXT, "--group=4") == first.stdout
    assert cli.ok("run", "-m", cli.tiny, "-p", "x", "-n", "0", "-q") == b""


def test_sampling(cli):
    def sample(seed, *more):
        return cli.ok("run", "-m", cli.tiny, "-p", "abc", "-n", "24", "--temp", "5", "--ignore-eos", "-q", *more, *seed)

    assert sample(["--seed", "7"]) == sample(["--seed", "7"])
    assert sample(["--seed", "7"]) != sample(["--seed", "8"])
    greedy = cli.ok("run", "-m", cli.tiny, "-p", "abc", "-n", "24", "--ignore-eos", "-q")
    assert sample(["--seed", "7"], "--top-k", "1") == greedy


def test_stop(cli):
    args = ["run", "-m", cli.tiny, "-p", "abc", "-n", "200", "--temp", "3", "--seed", "3", "--ignore-eos", "-q"]
    text = cli.ok(*args).decode()
    pieces = (text[i : i + 3] for i in range(30, len(text) - 3))
    stop = next(piece for piece in pieces if piece.isascii() and "\0" not in piece)
    shorter = cli.ok(*args, "--stop", "never in it", "--stop", stop).decode()
    assert shorter.rstrip("\n") == text[: text.index(stop)].rstrip("\n"), (stop, text, shorter)


def test_chat(cli):
    args = ["run", "-m", cli.chat, "-n", "8", "-q", "--chat"]
    assert cli.ok(*args, "-p", "Hi", "--ignore-eos") != cli.ok(*args[:-1], "-p", "Hi", "--ignore-eos")
    cli.ok(*args, "-p", "Hi", "--system", "Be brief.")
    cli.fails(3, "template", "run", "-m", cli.tiny, "-p", "Hi", "--chat", "-q")


def test_interactive_from_a_pipe(cli):
    out = cli.run("run", "-m", cli.chat, "-i", "-n", "5", "-q", "--stats", "--ignore-eos", stdin=b"Hi\n\nWho?\nlast")
    assert out.returncode == 0, out
    assert re.search(rb"tokens out: +15", out.stderr), out.stderr


def test_interactive_at_a_terminal(cli):
    def session(keys, code):
        pid, terminal = pty.fork()
        if pid == 0:
            command = [cli.program, "run", "-m", cli.chat, "-i", "-n", "3", "-q"]
            os.execve(cli.program, command, {**cli.environment, "TERM": "dumb"})
        seen, left, deadline, status = b"", list(keys), time.time() + 600, None
        while time.time() < deadline and status is None:
            if select.select([terminal], [], [], 0.1)[0]:
                try:
                    seen += os.read(terminal, 65536)
                except OSError:
                    break
            if left and seen.count(b"> ") > len(keys) - len(left):
                time.sleep(0.2)
                os.write(terminal, left.pop(0))
            done, value = os.waitpid(pid, os.WNOHANG)
            status = value if done else None
        if status is None:
            _, status = os.waitpid(pid, 0)
        os.close(terminal)
        assert os.waitstatus_to_exitcode(status) in code, (os.waitstatus_to_exitcode(status), seen)

    session([b"Hello\n", b"\x04"], [0])
    session([b"\x03"], [130, -signal.SIGINT])


def ppl(cli, *args):
    return json.loads(cli.ok("eval", "ppl", "-m", cli.tiny, "-f", cli.text, "--format", "json", "-q", *args))


def test_eval_ppl(cli):
    path = cli.folder / "lp.csv"
    table = ppl(cli, "-n", "100", "--skip", "10", "--cache", "full", "--logprobs", path)
    for key in ("schema", "commit", "device", "driver", "platform", "host_cpu", "date", "command_line"):
        assert table[key], key
    row = table["rows"][0]
    assert row["policy"] == "full" and row["tokens"] == 100 and row["units"] == 100
    rows = list(csv.DictReader(path.open()))
    assert list(rows[0]) == ["index", "token", "logprob"] and [int(r["index"]) for r in rows] == list(range(1, 100))
    scored = [float(r["logprob"]) for r in rows if int(r["index"]) >= 10]
    mean = -sum(scored) / len(scored)
    spread = math.sqrt(sum((x + mean) ** 2 for x in scored) / (len(scored) - 1) / len(scored))
    assert abs(row["ppl"] / math.exp(mean) - 1) < 1e-6 and abs(row["ppl_se"] / (math.exp(mean) * spread) - 1) < 1e-6
    assert row["scored"] == len(scored) == 90


def test_eval_offset(cli):
    ids = [r["token"] for r in csv_of(cli, "-n", "60")]
    assert [r["token"] for r in csv_of(cli, "-n", "20", "--offset", "40")] == ids[40:]


def csv_of(cli, *args):
    path = cli.folder / "part.csv"
    ppl(cli, *args, "--logprobs", path)
    return list(csv.DictReader(path.open()))


def test_eval_same_until_merged(cli):
    """Nothing is merged before 2L - 1 + S tokens: the same bits as with the full cache; and not so much later."""
    last = 2 * 16 - 1 + 4
    full = csv_of(cli, "-n", "120", "--cache", "full")
    compressed = csv_of(cli, "-n", "120", "-L", "16", "--merge", "newer")
    assert full[: last] == compressed[: last]
    assert full != compressed


def test_eval_json_of_odd_bytes(cli):
    text = os.fsdecode(b"caf\xe9 au lait, sans sucre")
    table = json.loads(cli.ok("eval", "ppl", "-m", cli.tiny, "-p", text, "--format", "json", "-q"))
    assert "caf? au lait" in table["command_line"] and table["device"]


def test_eval_against(cli):
    table = ppl(cli, "-n", "120", "--against", "full", "--policies", "dcm:L=4:S=2:merge=mean,window:W=auto:S=1,full")
    dcm, window, full = table["rows"]
    assert dcm["policy"] == "dcm:L=4:S=2:merge=mean" and full["policy"] == "full"
    assert window["policy"] == f"window:W={dcm['units']}:S=1" and window["units"] == dcm["units"]
    assert full["kl"] == 0 and full["top1"] == 1
    assert dcm["kl"] > 0 and window["kl"] > 0 and dcm["ppl"] != full["ppl"]
    alone = ppl(cli, "-n", "120", "-L", "4", "--sinks", "2", "--merge", "mean")["rows"][0]
    assert alone["ppl"] == dcm["ppl"] and "kl" not in alone


# ---- Signals ----


def test_signals(cli):
    for number, code in (signal.SIGINT, 130), (signal.SIGTERM, 143):
        command = [cli.program, "run", "-m", cli.tiny, "-p", "abc", "-n", "100000000", "--ignore-eos", "-q"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=cli.environment)
        process.stdout.read(1)
        process.send_signal(number)
        _, errors = process.communicate(timeout=600)
        assert process.returncode == code, (process.returncode, errors)
        assert errors == b"", errors


def processor_time(pid):
    times = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, times)) / os.sysconf("SC_CLK_TCK")


def wait_for_work(process, seconds):
    """Until it has used so much processor time: on a busy machine that is later than by the clock."""
    while process.poll() is None and processor_time(process.pid) < seconds:
        time.sleep(0.01)


def test_signals_while_reading(cli):
    """A prompt that is being read ends between two steps: statistics follow, nothing was generated."""
    for number, code in (signal.SIGINT, 130), (signal.SIGTERM, 143):
        command = [cli.program, "run", "-m", cli.tiny, "-", "-n", "9", "--cache", "full", "-q", "--stats"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   env=cli.environment)
        process.stdin.write(TEXT.encode() * 250)  # more than a piece: reading goes on, and the pipe stays open
        process.stdin.flush()
        wait_for_work(process, 1)
        process.send_signal(number)
        process.wait(timeout=600)
        errors, text = process.stderr.read(), process.stdout.read()
        process.stdin.close()
        assert process.returncode == code and text == b"", (process.returncode, errors, text)
        assert int(re.search(rb"tokens in: +(\d+)", errors).group(1)) > 0, errors
        assert re.search(rb"tokens out: +0,", errors), errors


def test_linked_output(cli):
    """The file behind a link is replaced whole, or kept as it was; one whose name was taken is left alone."""
    target, link, other = (cli.folder / name for name in ("target.csv", "link.csv", "target.csv.part"))
    command = ["eval", "ppl", "-m", cli.tiny, "-f", cli.text, "--cache", "full", "-q", "--logprobs", str(link)]
    link.symlink_to("target.csv")
    other.write_text("mine")
    cli.ok(*command)
    whole = target.read_text()
    assert link.is_symlink() and whole.startswith("index,") and len(whole.splitlines()) > 2, whole
    target.write_text("precious")
    cli.fails(5, "the cache of .* needs", *command, "--max-memory", "320K")
    assert target.read_text() == "precious" and other.read_text() == "mine" and link.is_symlink()
    assert {path.name for path in cli.folder.glob("target*")} == {"target.csv", "target.csv.part"}
    for path in (target, link, other):
        path.unlink()


def test_interrupted_eval(cli):
    """Nothing half-written is left."""
    path = cli.folder / "half.csv"
    long_text = cli.folder / "long.txt"
    long_text.write_text(TEXT * 200)
    command = [cli.program, "eval", "ppl", "-m", cli.tiny, "-f", str(long_text), "--cache", "full", "-q",
               "--logprobs", str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=cli.environment)
    deadline = time.time() + 600
    while not list(cli.folder.glob("half.csv.*.part")) and time.time() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=600)
    assert process.returncode == 130 and out == errors == b"", (process.returncode, out, errors)
    assert not list(cli.folder.glob("half*"))


def at_terminal(cli, command, keys):
    """Run with a terminal as standard input, output and error; each of `keys` is written once its text was seen, one
    without a text after a second of work."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(cli.program, [cli.program, *command], {**cli.environment, "TERM": "dumb"})
    seen, at, left, deadline = b"", 0, list(keys), time.time() + 600
    while time.time() < deadline:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                seen += os.read(terminal, 65536)
            except OSError:
                break
        if left and left[0][0] in seen[at:] and (left[0][0] or processor_time(pid) > 1):
            at = len(seen)
            time.sleep(0.2)
            os.write(terminal, left.pop(0)[1])
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), seen


def test_progress_and_interrupted_turn(cli):
    path = cli.folder / "turn.txt"
    path.write_text(TEXT * 200)
    command = ["run", "-m", cli.chat, "-i", "-f", str(path), "--cache", "full", "-n", "3"]
    code, seen = at_terminal(cli, command, [(b"left", b"\x03"), (b"> ", b"Hi\n"), (b"> ", b"\x04")])
    assert code == 0 and re.search(rb"\d+ of \d+ tokens, [\d.]+ tokens/s, \d+:\d\d left", seen), (code, seen)
    assert b"interrupted: the first" in seen, seen
    code, seen = at_terminal(cli, [*command, "-q"], [(b"", b"\x03"), (b"> ", b"\x04")])
    assert code in (0, 130) and b"tokens/s" not in seen, (code, seen)


def test_closed_pipe(cli):
    process = subprocess.Popen([cli.program, "plan", "-L", "4", "--steps", "4000000"], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, env=cli.environment)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=600) in (0, -signal.SIGPIPE)


def main(namespace):
    program, make_tiny_model, get_model, *pattern = sys.argv[1:]
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        cli = Cli(program, make_tiny_model, get_model, pathlib.Path(folder))
        tests = {n: f for n, f in namespace.items() if n.startswith("test_") and all(p in n for p in pattern)}
        for name, function in tests.items():
            try:
                function(cli)
                print(f"ok      {name}", flush=True)
            except Exception:  # a failed check must not hide the others
                failed += 1
                print(f"FAILED  {name}\n{traceback.format_exc(limit=-2)}", flush=True)
    print(f"{len(tests) - failed} passed, {failed} failed")
    sys.exit(failed > 0 or not tests)


if __name__ == "__main__":
    main(globals())
