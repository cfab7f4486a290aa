"""OpenCL calls that fail, one after the other: cl_faults.py DCM MAKE_TINY_MODEL FAKE_CL [--every N [--from A] [--to B]]
[--device D].

A prompt is read and answered on a tiny model, with fake_cl between the program and the driver. Of each function of
OpenCL the first call, the last and one between fail in turn (of those that ask, all), then calls spread over the whole
run; then all calls from one on (a lost device); then the device's memory runs out at several sizes. --every N: each
N-th call of all in place of those spread (1: every one; some 5,000 runs), from the A-th to the B-th, so that it can be
done in parts. Each run must end with exit code 4 or 5 and one line that says what failed, or with 0 and the same text
(a call that may fail, such as one for a cache); what it printed must be the beginning of the right text, and every
object of OpenCL that was created must have been released.
"""
import argparse
import concurrent.futures
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile

PROMPT = "the cat and the hat sat on the mat in there and then some more of it all, and the end"
DCM = ["-L", "4", "--merge", "newer"]
FULL = ["--cache", "full", "--chunk", "4"]
SPREAD = 24  # calls of all, in the short form


def parse():
    parser = argparse.ArgumentParser()
    for name in "dcm", "make_tiny_model", "fake_cl":
        parser.add_argument(name)
    parser.add_argument("--every", type=int, default=0)
    parser.add_argument("--from", type=int, default=1, dest="first")
    parser.add_argument("--to", type=int, default=sys.maxsize, dest="last")
    parser.add_argument("--device", default="")
    return parser.parse_args()


class Runs:
    def __init__(self, options, folder):
        self.options, self.folder, self.faults, self.codes = options, folder, [], {}
        self.number = itertools.count()
        self.model = folder / "tiny.gguf"
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("DCM_", "XDG_", "CL_FAULT"))}
        self.environment.update(DCM_CACHE=str(folder / "cache"), OMP_WAIT_POLICY="passive")
        subprocess.run([options.make_tiny_model, self.model], check=True)

    def run(self, *policy, **settings):
        """The result, with the objects that were not released as `left`."""
        command = [self.options.dcm, "run", "--device", self.options.device, "-m", self.model, "--temp", "0",
                   "--ignore-eos", "-n", "12", "-p", PROMPT, *policy]
        left = self.folder / f"left-{next(self.number)}"
        environment = {**self.environment, "LD_PRELOAD": self.options.fake_cl, "CL_FAULT_LEFT": str(left), **settings}
        result = subprocess.run(command, capture_output=True, timeout=600, env=environment, stdin=subprocess.DEVNULL)
        result.left = ", ".join(left.read_text().splitlines())
        left.unlink()
        return result

    def judge(self, result, right, settings):
        """None, or what is wrong with a run in which something failed."""
        lines = result.stderr.decode(errors="replace").splitlines()
        own = [line for line in lines if line.startswith("dcm run: ")]
        code = result.returncode
        self.codes[code] = self.codes.get(code, 0) + 1
        if result.left:
            return f"not released: {result.left}"
        if code == 0:
            return None if result.stdout == right and not own else "exit code 0 with another text or an error"
        if code not in (4, 5):
            return f"exit code {code}"
        if len(own) != 1 or lines[-1] != own[0] or len(own[0]) < 30:
            return "not one line that says what failed"
        if "CL_FAULT_SIZE" in settings and "bytes" not in own[0]:
            return "a message without the bytes"
        if any(not line.startswith("dcm: ") for line in lines[:-1]):
            return "lines that are not the program's own"
        # What was begun of a character is shown as U+FFFD, and the line is ended.
        printed = result.stdout.removesuffix(b"\n").decode().rstrip("\ufffd")
        return None if right.decode().startswith(printed) else "a wrong text"

    def check(self, right, policy, **settings):
        try:
            wrong = self.judge(self.run(*policy, **settings), right, settings)
        except subprocess.TimeoutExpired:
            wrong = "no end within ten minutes"
        if wrong:
            self.faults.append(f"{' '.join(f'{k}={v}' for k, v in settings.items())} {' '.join(policy)}: {wrong}")


def find_device(dcm):
    """PoCL's, else the first one that can be used."""
    result = subprocess.run([dcm, "devices", "--format", "json"], capture_output=True, check=True)
    rows = json.loads(result.stdout)["rows"]
    usable = [row for row in rows if row["status"] == "ok"]
    usable.sort(key=lambda row: "Portable" not in row["platform"])
    return usable[0]["device"] if usable else None


def plan(counts, options):
    """Settings of all runs whose outcome is judged."""
    total = sum(counts.values())
    for name, calls in counts.items():
        # What a driver does not say of itself must not be taken for something else: of those calls all.
        for at in range(1, calls + 1) if name.startswith("clGet") else sorted({1, (calls + 1) // 2, calls}):
            yield {"CL_FAULT_NAME": name, "CL_FAULT_AT": str(at)}
    step = options.every or max(1, total // SPREAD)
    for at in range(options.first, min(options.last, total) + 1, step):
        yield {"CL_FAULT_AT": str(at)}
    for at in range(1, total + 1, max(1, total // 8)):
        yield {"CL_FAULT_AT": str(at), "CL_FAULT_ALL": "1"}


def main():
    options = parse()
    options.device = options.device or find_device(options.dcm)
    if not options.device:
        print("no OpenCL device: skipped")
        sys.exit(77)
    with tempfile.TemporaryDirectory() as name:
        runs = Runs(options, pathlib.Path(name))
        count = pathlib.Path(name) / "count"
        runs.run(*DCM)  # fills the cache of programs
        right = runs.run(*DCM, CL_FAULT_COUNT=str(count))
        assert right.returncode == 0 and right.stdout and not right.left, (right.stderr.decode(), right.left)
        counts = {line.split()[0]: int(line.split()[1]) for line in count.read_text().splitlines()}
        full = runs.run(*FULL)
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            jobs = [pool.submit(runs.check, right.stdout, DCM, **settings) for settings in plan(counts, options)]
            for size in range(400_000, 2_000_000, 100_000):  # the weights take some 500,000 bytes
                jobs.append(pool.submit(runs.check, full.stdout, FULL, CL_FAULT_SIZE=str(size)))
            for job in jobs:
                job.result()
    print("\n".join(sorted(runs.faults)))
    codes = ", ".join(f"{code}: {n}" for code, n in sorted(runs.codes.items()))
    print(f"device {options.device}: {sum(counts.values())} calls of {len(counts)} functions; {len(jobs)} runs, "
          f"exit codes {codes}; {len(runs.faults)} faults")
    sys.exit(bool(runs.faults))


main()
