"""checkcl's small cases of every kernel under Oclgrind, an interpreter that sees each access: oclgrind.py CHECKCL PLANTED.CL

Fails where Oclgrind reports anything: an access outside a buffer, a data race, a value used before it is set, a wrong
API call; where checkcl fails; and where Oclgrind does not see the faults of planted.cl.
"""
import pathlib
import shutil
import subprocess
import sys
import tempfile

SKIPPED = 77
LOOK = ["--num-threads", "1", "--max-errors", "20", "--data-races", "--check-api"]
failures = 0


def fail(text):
    global failures
    failures += 1
    print(f"FAILED {text}", flush=True)


def planted(source):
    """Each faulty kernel is reported, and the sound one is not."""
    expected = {
        "sound": "",
        "reads_past_the_end": "Invalid read",
        "writes_before_the_start": "Invalid write",
        "leaves_out_the_barrier": "data race",
        "shares_between_groups": "data race",
        "reads_what_none_wrote": "Uninitialized value",
    }
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(source, folder)
        for kernel, report in expected.items():
            simulation = pathlib.Path(folder, "run.sim")
            simulation.write_text(f"{pathlib.Path(source).name}\n{kernel}\n8 1 1\n4 1 1\n"
                                  "<size=32 range=1:1:8 float>\n<size=32 fill=0 float>\n")
            done = subprocess.run(["oclgrind-kernel", "--data-races", "--uninitialized", simulation.name], cwd=folder,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            said = done.stdout.strip()
            if (report not in said) if report else said:
                fail(f"planted.cl: {kernel}: Oclgrind says {said!r}, not {report!r}")


def check(checkcl, *options, look=()):
    """Whatever comes on stderr is a finding: checkcl is silent there where all is well, and Oclgrind speaks there."""
    done = subprocess.run(["oclgrind", *LOOK, *look, checkcl, "--small", "--seed", "1", *options],
                          stderr=subprocess.PIPE, text=True)
    if done.stderr.strip():
        fail(f"Oclgrind reports:\n{done.stderr}")
    if done.returncode != 0:
        fail(f"checkcl ended with code {done.returncode}")


def main():
    checkcl, source = sys.argv[1:]
    if not shutil.which("oclgrind") or not shutil.which("oclgrind-kernel"):
        print("no Oclgrind here: nothing was checked")
        return SKIPPED
    if subprocess.run([checkcl, "--small", "--list"], stdout=subprocess.DEVNULL).returncode != 0:
        fail("checkcl --small --list")
    planted(source)
    check(checkcl)
    print(f"{failures} failures")
    return failures > 0


sys.exit(main())
