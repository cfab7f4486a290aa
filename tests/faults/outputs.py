"""Outputs on a disk that fills up, names that are no files (of inputs, too), and signals at any moment: outputs.py DCM
MAKE_TINY_MODEL [--signals N].

A limit on the size of files stands for the full disk: every output is refused with exit code 3 and one line, and a file
that is written whole or not at all is not there. Pipes and devices are not waited for, not read where a file has to be,
and not replaced. SIGINT and
SIGTERM come N times each (12) after a random time: exit code 130 or 143, nothing but one line on standard error, and
files whole or not there; a quarter as often while PoCL compiles.
"""
import argparse
import os
import pathlib
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time

ROOM = 16 << 30  # bytes of address space: what reads without an end ends
RUN = ["run", "--temp", "0", "--ignore-eos", "-L", "16", "--merge", "newer", "-p", "the cat and the hat"]


class Outputs:
    def __init__(self, dcm, make_tiny_model, folder):
        self.dcm, self.folder, self.model = dcm, folder, str(folder / "tiny.gguf")
        subprocess.run([make_tiny_model, self.model], check=True)
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith(("DCM_", "XDG_"))}
        self.environment.update(DCM_CACHE=str(folder / "cache"), DCM_DEVICE="ref", OMP_NUM_THREADS="1",
                                OMP_WAIT_POLICY="passive")
        self.faults = []
        # Under ASan, whose shadow takes terabytes, the program does not start with so little: then there is no limit.
        starts = self.run("--version", room=ROOM).returncode == 0
        self.room = ROOM if starts else resource.RLIM_INFINITY

    def full_disk(self, args, output=None, room=64):
        """Files may have `room` bytes: standard output goes to one, too."""

        def limit():
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

        with open(self.folder / "stdout", "wb") as out:
            result = subprocess.run([self.dcm, *args], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE,
                                    timeout=6000, preexec_fn=limit, env=self.environment)
        lines = result.stderr.decode().splitlines()
        if result.returncode != 3 or not lines or not lines[-1].startswith(f"dcm {args[0]}: "):
            self.faults.append(f"full disk: {' '.join(args)}: exit code {result.returncode}, {lines}")
        if output and (self.folder / output).exists():
            self.faults.append(f"full disk: {' '.join(args)}: {output} is left there")

    def run(self, *args, room=None):
        room = self.room if room is None else room
        return subprocess.run([self.dcm, *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True, timeout=600, env=self.environment,
                              preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (room, room)))

    def expect(self, code, message, *args):
        """Exit code and last line of standard error; standard output."""
        try:
            result = self.run(*args)
        except subprocess.TimeoutExpired:
            self.faults.append(f"{' '.join(args)}: hangs")
            return ""
        if result.returncode != code or message not in (result.stderr.splitlines() or [""])[-1]:
            self.faults.append(f"{' '.join(args)}: exit code {result.returncode}, {result.stderr!r}")
        return result.stdout

    def signal_at(self, args, number, wait, output=None, whole=b"", **environment):
        path = self.folder / output if output else None
        if path and path.exists():
            path.unlink()
        began = time.time()
        process = subprocess.Popen([self.dcm, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   env={**self.environment, **environment}, stdin=subprocess.DEVNULL)
        wait(process) if callable(wait) else time.sleep(wait)
        what = f"signal {number} after {time.time() - began:.3f} s: {args[0]}"
        process.send_signal(number)
        errors = process.communicate(timeout=6000)[1].decode()
        code = process.returncode
        # Before the program has begun there is nobody to catch it; or it was done before.
        if code not in (128 + number, -number, 0) or len(errors.splitlines()) > 1:
            self.faults.append(f"{what}: exit code {code}, {errors!r}")
        if path and path.exists() and not path.read_bytes().endswith(whole):
            self.faults.append(f"{what}: {output} is not whole")
        for left in self.folder.glob("*.part"):
            self.faults.append(f"{what}: {left.name} left there")
            left.unlink()
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


def check_names(o):
    """What is no regular file, behind the options that write one."""
    fifo, link, target, text = (str(o.folder / n) for n in ("fifo", "via", "target", "text"))
    os.mkfifo(fifo)
    pathlib.Path(text).write_text("the cat and the hat sat on the mat, " * 40)
    model = ["-m", o.model]
    train = ["train", *model, "-f", text, "-L", "4", "-n", "48", "-q", "--steps"]
    o.expect(3, f"{fifo}: not a regular file: it is left as it is", *train, str(1 << 40), "-o", fifo)
    o.expect(3, f"{fifo}: not a regular file: it is left as it is", *train, str(1 << 40), "-o", target,
             "--checkpoint", fifo)
    o.expect(3, "cannot write beside it", *train, str(1 << 40), "-o", f"{o.folder}/none/merge")
    if not stat.S_ISFIFO(os.stat(fifo).st_mode) or os.path.exists(target):
        o.faults.append("train: a pipe as its output is not refused before the work")
    os.symlink("target", link)
    for _ in range(2):
        o.expect(0, "", *train, "1", "-o", link)
        if not os.path.islink(link) or not stat.S_ISREG(os.lstat(target).st_mode):
            o.faults.append("train: a link as its output is replaced, or leads nowhere")
    check_inputs(o, fifo, [*train, "1", "-o", target])
    check_journal(o, fifo, [*train, "2", "-o", target])
    check_text_streams(o, fifo, text)
    check_same(o, text)
    check_streams(o, text)


def check_inputs(o, fifo, train):
    """What is no regular file, behind the options that read one."""
    model = ["-m", o.model]
    names = [fifo, str(o.folder / "texts"), "/dev/null", "/dev/zero"]
    os.mkdir(names[1])
    for name in names:
        for args in (["run", "-m", name, "-p", "x"], ["tokenize", "-m", name, "-p", "x"],
                     ["plan", "-L", "4", "-m", name], ["run", *model, "-p", "x", "--merge", name],
                     [*train, "--from", name], [*train, "--resume", name], ["bench", *model, "--compare", name],
                     ["check", *model, "--devices", "ref", "--against", name],
                     [*train, "--csv", name, "--plot", f"{o.folder}/plot.svg"]):
            o.expect(3, f"{name}: not a regular file", *args)
    os.mkfifo(f"{names[1]}/fifo")
    o.expect(3, f"{names[1]}/fifo: not a regular file", *train, "--held-out", names[1])
    for command, name, message in (("tokenize", names[1], "cannot read: Is a directory"),
                                   ("run", names[1], "cannot read: Is a directory"),
                                   ("tokenize", "/dev/zero", "a device without an end: not a text"),
                                   ("run", "/dev/zero", "a NUL byte at offset 0: not a text")):
        o.expect(3, f"{name}: {message}", command, *model, "-f", name)


def check_journal(o, fifo, train):
    """Rows go to a pipe as they would to a file; to go on with a training nothing is read from it."""
    header = "step,group,rate,norm,kl,il,magnitude,bsd,held_kl,held_ratio,gate_mean,gate_spread,seconds"
    for resume, steps in ([], ["1", "2"]), (["--resume", train[-1] + ".checkpoint"], []):
        rows = []
        reader = threading.Thread(target=lambda: rows.extend(pathlib.Path(fifo).read_text().splitlines()), daemon=True)
        reader.start()
        o.expect(0, "", *train, *resume, "--csv", fifo)
        reader.join(600)
        if [row.split(",")[0] for row in rows] != ["step", *steps] or rows[0] != header:
            o.faults.append(f"train: the pipe of --csv got {rows}")


def check_text_streams(o, fifo, text):
    """Texts may come from a pipe that a writer opens later, and be empty."""
    for args in ["tokenize", "--ids"], ["tokenize"], RUN[:-2] + ["-n", "4"]:
        args = [args[0], "-m", o.model, *args[1:], "-f"]
        writer = threading.Timer(0.2, lambda: pathlib.Path(fifo).write_bytes(pathlib.Path(text).read_bytes()))
        writer.start()
        if o.expect(0, "", *args, fifo) != o.expect(0, "", *args, text):
            o.faults.append(f"{args[0]}: a pipe gives another text than a file")
        writer.join()
    for empty in ["-f", "/dev/null"], ["-"]:
        if o.expect(0, "", "tokenize", "-m", o.model, *empty):
            o.faults.append("tokenize: an empty text has tokens")


def check_same(o, text):
    """Two outputs that are one file by two names: refused; to a device both may go."""
    one, again = f"{o.folder}/one", f"{o.folder}/./one"
    commands = [
        (["check", "-m", o.model, "--devices", "ref", "-n", "4", "-p", "x"], "--save", "--steps-out"),
        (["bench", "-m", o.model, "-p", "0", "-n", "2", "-d", "0", "-r", "1", "-q"], "--steps-out", "--plot"),
        (["eval", "ppl", "-m", o.model, "-f", text, "-n", "32", "-q", "--against", "full"], "--logprobs", "--plot"),
        (["train", "-m", o.model, "-f", text, "-L", "4", "-n", "48", "-q", "--steps", "1"], "-o", "--csv"),
        (["train", "-m", o.model, "-f", text, "-L", "4", "-n", "48", "-q", "--steps", "1", "-o", f"{one}-of"],
         "--checkpoint", "--csv"),
    ]
    for args, first, second in commands:
        o.expect(2, f"{first} and {second} name the same file {one}", *args, first, one, second, again)
        if os.path.exists(one):
            o.faults.append(f"{args[0]}: {first} and {second} are refused when the work is done")
    o.expect(0, "", *commands[0][0], "--save", "/dev/null", "--steps-out", "/dev/null", "-q")
    os.symlink("one", f"{o.folder}/via-one")
    pathlib.Path(one).write_text("before")
    o.expect(2, "name the same file", *commands[0][0], "--save", f"{o.folder}/via-one", "--steps-out", one)
    os.remove(one)


def check_streams(o, text):
    """Outputs that grow while work goes on are written to whatever has the name."""
    device, out = o.folder / "null", o.folder / "out"
    ppl = ["eval", "ppl", "-m", o.model, "-f", text, "-n", "40", "-L", "4", "-q", "--logprobs"]
    out.symlink_to("/proc/self/fd/1")  # as /dev/stdout is one
    if "index,token,logprob" not in o.expect(0, "", *ppl, str(out)) or not out.is_symlink():
        o.faults.append("eval: --logprobs does not go to standard output")
    try:  # a device of our own, never one of the system's
        os.mknod(device, stat.S_IFCHR | 0o600, os.makedev(1, 3))
        device.open("w").close()
    except OSError as e:
        print(f"no device was made: {e}")
        return
    o.expect(0, "", *ppl, str(device))
    if not device.is_char_device():
        o.faults.append("eval: --logprobs replaced a device")


def check_closed_pipe(o):
    """A reader that goes away in the middle of a table ends the program, too: files come after it."""
    depths = ",".join(map(str, range(32)))
    process = subprocess.Popen([o.dcm, "bench", "-m", o.model, "-p", "0", "-n", "1", "-d", depths, "-r", "1",
                                "--warmup", "0", "-q", "--format", "json", "--steps-out", str(o.folder / "closed")],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=o.environment)
    process.stdout.close()
    errors = process.stderr.read()
    left = [p.name for p in o.folder.glob("closed*")]
    if process.wait(timeout=600) != -signal.SIGPIPE or errors or left:
        o.faults.append(f"closed pipe: exit code {process.returncode}, {errors}, {left}")


def check_signals(o, times):
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    caught = 0
    bench = ["bench", "-m", o.model, "-p", "0", "-n", "400", "-d", "0,64", "-r", "3", "--warmup", "16", "-q", "--plot",
             str(o.folder / "plot.svg"), "--steps-out", str(o.folder / "steps.jsonl")]
    check = ["check", "-m", o.model, "--devices", "ref,ref-float", "-n", "100000", "-p", "the cat", "-q", "--save",
             str(o.folder / "record"), "--steps-out", str(o.folder / "steps.jsonl")]
    for number in signal.SIGINT, signal.SIGTERM:
        for i in range(times):
            if i % 3 == 0:
                caught += o.signal_at([*RUN, "-m", o.model, "-n", "100000"], number, rng.uniform(0, 0.5))
            elif i % 3 == 1:
                caught += o.signal_at(bench, number, rng.uniform(0, 2), "plot.svg", b"</svg>\n")
            else:
                caught += o.signal_at(check, number, rng.uniform(0, 0.2), "record")
    print(f"{2 * times} signals at random times (seed {seed}), {caught} caught in the middle")
    if not caught:
        o.faults.append("no signal was caught")


def check_compiling(o, times):
    """Signals just when PoCL's compiler has a file open that it would remove at one, its n-th. All but the programs of
    this type of cache are compiled before: those from the second on are for the first token, while signals are
    caught."""
    warm, cold = o.folder / "pocl", o.folder / "pocl.cold"
    args = [*RUN, "-m", o.model, "--device", "portable", "-n"]
    o.environment["POCL_CACHE_DIR"] = str(warm)
    warm.mkdir()
    if "Portable Computing Language" not in o.expect(0, "", "devices"):
        print("no PoCL: nothing is compiled")
        return
    o.expect(0, "", *args, "1", "--kv", "f32")

    def compiling(process, n):
        seen = set()
        while len(seen) < n and process.poll() is None:
            seen.update(cold.glob("*.tmp"))

    caught = 0
    for number in signal.SIGINT, signal.SIGTERM:
        for n in range(2, times + 2):
            shutil.copytree(warm, cold)
            caught += o.signal_at([*args, "100000"], number, lambda process: compiling(process, n),
                                  POCL_CACHE_DIR=str(cold))
            shutil.rmtree(cold)
    print(f"{2 * times} signals while PoCL compiles, {caught} caught")
    if not caught:
        o.faults.append("no signal was caught while PoCL compiles")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("dcm")
    parser.add_argument("make_tiny_model")
    parser.add_argument("--signals", type=int, default=12)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        o = Outputs(options.dcm, options.make_tiny_model, pathlib.Path(name))
        check_full_disk(o)
        check_names(o)
        check_closed_pipe(o)
        check_signals(o, options.signals)
        check_compiling(o, options.signals // 4)
    print("\n".join(o.faults) if o.faults else "no fault")
    sys.exit(bool(o.faults))


main()
