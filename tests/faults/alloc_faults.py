"""Allocations of the program itself that fail, one after the other: alloc_faults.py DCM_FAILING_ALLOC MAKE_TINY_MODEL
[--every N] [PATTERN].

Those of the library fail in test_faults; here it is the program's own, in the commands whose words have PATTERN, on the
reference. Of each command SPREAD spread over the whole run fail in turn, or with --every N each N-th (1: every one);
and a few times all from one on. Each run must end with exit code 5 and one line that says what failed, or do its work
as if nothing had happened (dcm bench says so where it could not profile what it measured).
"""
import argparse
import concurrent.futures
import os
import pathlib
import subprocess
import sys
import tempfile

PROMPT = "the cat and the hat sat on the mat in there and then some more of it all, and the end"
SPREAD = 10  # allocations of each command, in the short form


class Runs:
    def __init__(self, dcm, make_tiny_model, folder):
        self.dcm, self.folder, self.faults, self.codes = pathlib.Path(dcm).resolve(), folder, [], {}
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("DCM_", "XDG_", "ALLOC_"))}
        self.environment.update(DCM_CACHE=str(folder / "cache"), DCM_DEVICE="ref", OMP_NUM_THREADS="1",
                                OMP_WAIT_POLICY="passive")
        subprocess.run([make_tiny_model, folder / "tiny.gguf", "--chatml"], check=True)
        (folder / "text.txt").write_text(PROMPT * 20)
        self.run(["check", "-m", "../tiny.gguf", "--devices", "ref", "-n", "8", "-L", "4", "--merge", "newer", "--save",
                  "../record"])

    def run(self, command, **settings):
        """The result, with the number of allocations as `calls`."""
        with tempfile.TemporaryDirectory(dir=self.folder) as inside:
            count = pathlib.Path(inside) / "count"
            result = subprocess.run([self.dcm, *command], capture_output=True, timeout=600, cwd=inside,
                                    input=b"the cat\nand the hat\n", env={**self.environment, "ALLOC_COUNT": str(count),
                                                                          **settings})
            result.calls = int(count.read_text()) if count.exists() else 0
        return result

    def judge(self, result, right, exact):
        """None, or what is wrong with a run in which something failed."""
        lines = result.stderr.decode(errors="replace").splitlines()
        own = [line for line in lines if line.startswith("dcm ") and ": " in line and "profiled only" not in line]
        self.codes[result.returncode] = self.codes.get(result.returncode, 0) + 1
        if result.returncode == 0:
            # Without room for its rows a table is as wide as its first ones.
            same = result.stdout.split() == right.stdout.split() if exact else bool(result.stdout)
            return None if same and not own else f"exit code 0 with another output or an error: {own}"
        if result.returncode != 5:
            return f"exit code {result.returncode}: {lines}"
        if not lines and b"no room" in result.stdout:  # the status of one of the devices of dcm check
            return None
        if len(own) != 1 or lines[-1] != own[0] or len(own[0]) < 25:
            return f"not one line that says what failed: {lines}"
        return None

    def check(self, name, command, right, exact, **settings):
        try:
            wrong = self.judge(self.run(command, **settings), right, exact)
        except subprocess.TimeoutExpired:
            wrong = "no end within ten minutes"
        if wrong:
            self.faults.append(f"{' '.join(f'{k}={v}' for k, v in settings.items())} {name}: {wrong}")


def commands():
    """Name, words, and whether the output is the same every time."""
    model = ["-m", "../tiny.gguf"]
    dcm = ["-L", "4", "--merge", "newer"]
    run = ["run", *model, *dcm, "--temp", "0", "-n", "6"]
    yield "run", [*run, "--ignore-eos", "-p", PROMPT], True
    yield "run of a file", [*run, "--ignore-eos", "-f", "../text.txt", "--verify-every", "3"], True
    yield "run of input", [*run, "--chat", "-"], True
    yield "run -i", [*run, "-i", "-q"], True
    yield "tokenize", ["tokenize", *model, "-f", "../text.txt"], True
    yield "tokenize to a table", ["tokenize", *model, "-p", PROMPT, "--format", "csv"], True
    ppl = ["eval", "ppl", *model, "-f", "../text.txt", "-n", "48", "--against", "full", "--policies"]
    policy = "dcm:L=4:merge=newer"
    yield "eval ppl", [*ppl, f"{policy},window:W=auto,full", "--plot", "plot.svg"], True
    yield "eval ppl of words", [*ppl, policy, "--format", "csv", "--logprobs", "probs.csv"], True
    check = ["check", *model, *dcm, "--devices", "ref,ref-float", "-n", "8"]
    yield "check", [*check, "--steps-out", "steps.jsonl"], True
    yield "check --save", [*check, "--save", "made"], True
    yield "check --against", ["check", *model, *dcm, "--devices", "ref", "--against", "../record"], True
    bench = ["bench", *model, *dcm, "-p", "8", "-n", "4", "-d", "0,16", "-r", "1", "--warmup", "4", "-q"]
    yield "bench", [*bench, "--breakdown"], False
    yield "bench to files", [*bench, "--format", "md", "--plot", "plot.svg", "--steps-out", "steps.jsonl"], False


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("dcm")
    parser.add_argument("make_tiny_model")
    parser.add_argument("pattern", nargs="?", default="")
    parser.add_argument("--every", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(2) as pool:
        runs = Runs(options.dcm, options.make_tiny_model, pathlib.Path(folder))
        jobs, total = [], 0
        for name, command, exact in commands():
            if options.pattern not in name:
                continue
            right = runs.run(command)
            assert right.returncode == 0 and right.stdout and right.calls, (name, right.stderr.decode())
            total += right.calls
            for at in range(1, right.calls + 1, options.every or max(1, right.calls // SPREAD)):
                jobs.append(pool.submit(runs.check, name, command, right, exact, ALLOC_FAIL_AT=str(at)))
            for at in range(1, right.calls + 1, max(1, right.calls // 3)):
                jobs.append(pool.submit(runs.check, name, command, right, exact, ALLOC_FAIL_AT=str(at),
                                        ALLOC_FAIL_ALL="1"))
        for job in jobs:
            job.result()
    print("\n".join(sorted(runs.faults)))
    codes = ", ".join(f"{code}: {n}" for code, n in sorted(runs.codes.items()))
    print(f"{total} allocations; {len(jobs)} runs, exit codes {codes}; {len(runs.faults)} faults")
    sys.exit(bool(runs.faults) or not jobs)


main()
