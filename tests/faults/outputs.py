"""Outputs on a disk that fills up, and signals at any moment: outputs.py DCM MAKE_TINY_MODEL [--signals N].

A limit on the size of files stands for the full disk: every output is refused with exit code 3 and one line, and a file
that is written whole or not at all is not there. SIGINT and SIGTERM come N times each (12) after a random time: exit
code 130 or 143, nothing but one line on standard error, and files whole or not there.
"""
import argparse
import os
import pathlib
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time

LONG = ["run", "--temp", "0", "--ignore-eos", "-n", "100000", "-L", "16", "--merge", "newer", "-p",
        "the cat and the hat"]


class Outputs:
    def __init__(self, dcm, make_tiny_model, folder):
        self.dcm, self.folder, self.model = dcm, folder, str(folder / "tiny.gguf")
        subprocess.run([make_tiny_model, self.model], check=True)
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("DCM_", "XDG_"))}
        self.environment.update(DCM_CACHE=str(folder / "cache"), DCM_DEVICE="ref", OMP_NUM_THREADS="1",
                                OMP_WAIT_POLICY="passive")
        self.faults = []

    def full_disk(self, args, output=None, room=64):
        """Files may have `room` bytes: standard output goes to one, too."""

        def limit():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

        with open(self.folder / "stdout", "wb") as out:
            result = subprocess.run([self.dcm, *args], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE,
                                    timeout=120, preexec_fn=limit, env=self.environment)
        lines = result.stderr.decode().splitlines()
        if result.returncode != 3 or not lines or not lines[-1].startswith(f"dcm {args[0]}: "):
            self.faults.append(f"full disk: {' '.join(args)}: exit code {result.returncode}, {lines}")
        if output and (self.folder / output).exists():
            self.faults.append(f"full disk: {' '.join(args)}: {output} is left there")

    def signal_at(self, args, number, wait, output=None, whole=b""):
        path = self.folder / output if output else None
        if path and path.exists():
            path.unlink()
        process = subprocess.Popen([self.dcm, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   env=self.environment, stdin=subprocess.DEVNULL)
        time.sleep(wait)
        process.send_signal(number)
        errors = process.communicate(timeout=120)[1].decode()
        code, what = process.returncode, f"signal {number} after {wait:.3f} s: {args[0]}"
        # Before the program has begun there is nobody to catch it; or it was done before.
        if code not in (128 + number, -number, 0) or len(errors.splitlines()) > 1:
            self.faults.append(f"{what}: exit code {code}, {errors!r}")
        if path and path.exists() and not path.read_bytes().endswith(whole):
            self.faults.append(f"{what}: {output} is not whole")
        left = [p.name for p in self.folder.iterdir() if output and p.name.startswith(output) and p.name != output]
        if left:
            self.faults.append(f"{what}: {left} left there")
        return code == 128 + number


def check_full_disk(o):
    model = ["-m", o.model]
    o.full_disk(["run", *model, "-p", "the cat", "-n", "64", "--temp", "0", "--ignore-eos"])
    o.full_disk(["tokenize", *model, "-p", "and the hat " * 20])
    o.full_disk(["plan", "-L", "16", "-n", "1000"])
    bench = ["bench", *model, "-p", "0", "-n", "8", "-d", "0,16", "-r", "1", "--warmup", "16", "-q"]
    o.full_disk(bench)
    o.full_disk([*bench, "--plot", str(o.folder / "plot.svg")])
    o.full_disk(["check", *model, "--devices", "ref,ref-float", "-n", "4", "-p", "the cat", "--save",
                 str(o.folder / "record")], "record")
    o.full_disk([*bench, "--steps-out", str(o.folder / "steps.jsonl")])


def check_signals(o, times):
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    caught = 0
    bench = ["bench", "-m", o.model, "-p", "0", "-n", "400", "-d", "0,64", "-r", "3", "--warmup", "16", "-q", "--plot",
             str(o.folder / "plot.svg")]
    for number in signal.SIGINT, signal.SIGTERM:
        for i in range(times):
            if i % 2:
                caught += o.signal_at([*LONG, "-m", o.model], number, rng.uniform(0, 0.5))
            else:
                caught += o.signal_at(bench, number, rng.uniform(0, 2), "plot.svg", b"</svg>\n")
    print(f"{2 * times} signals at random times (seed {seed}), {caught} caught in the middle")
    if not caught:
        o.faults.append("no signal was caught")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("dcm")
    parser.add_argument("make_tiny_model")
    parser.add_argument("--signals", type=int, default=12)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        o = Outputs(options.dcm, options.make_tiny_model, pathlib.Path(name))
        check_full_disk(o)
        check_signals(o, options.signals)
    print("\n".join(o.faults) if o.faults else "no fault")
    sys.exit(bool(o.faults))


main()
