"""checkcl's small cases of every kernel under Oclgrind, which sees each access: oclgrind.py CHECKCL PLANTED.CL

Fails where Oclgrind reports anything: an access outside a buffer, a data race, a value used before it is set, a wrong
API call; where checkcl fails, which also counts the kernels launched; and where Oclgrind does not see the faults of
planted.cl.

Left out is attention_wide where it stores the new unit and has more than 64 to read: then the last of its work-items,
by an atomic counter, reads what the others have written. OpenCL 1.2 (section 3.3.1) promises no order of plain
memory between the groups of a launch, whatever the fences, so Oclgrind rightly calls it a race. It rests on what
atomics do on CPUs, is built for CPUs alone, and is held against the reference there by checkcl's attention/store cases.
The same holds for the links of a chain, each of which reads what other groups have written for the one before
(tests/unit/test_chain.c).
"""
import pathlib
import shutil
import subprocess
import sys
import tempfile

SKIPPED = 77
# Kernels as they are written: Oclgrind 21.10 does not know all that its compiler's optimiser puts into them. Local
# memory as NVIDIA's GPUs have it: with OpenCL's least, 32 KiB, attention_many_group is not used.
OCLGRIND = ["oclgrind", "--num-threads", "1", "--max-errors", "20", "--build-options", "-cl-opt-disable",
            "--local-mem-size", "49152"]
# Cases of kernels that shuffle no vectors: of x.lo + x.hi, with x a float16 that was read from a full buffer, Oclgrind
# 21.10 says that it is uninitialised, or it crashes. Of attention_back without the boundary term: it takes what one
# kernel wrote into scratch memory for uninitialised in the next.
INITIALISED = {
    "kv_store": "*normal",
    "attention_back": "*_f16_*/group",
    "merge": "merge/*normal",
    "merge_back": "*",
    "grad_rows": "*_c33_*/group",
    "dense": "*/group",
    "dense_back": "*/group",
}
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


def check(checkcl, look, *options):
    """Whatever comes on stderr is a finding: Oclgrind speaks there, and checkcl only of trouble."""
    done = subprocess.run([*OCLGRIND, *look, checkcl, "--small", "--seed", "1", "--jobs", "1", *options],
                          stderr=subprocess.PIPE, text=True)
    if done.stderr.strip():
        fail(f"{' '.join(look)}: reported:\n{done.stderr}")
    if done.returncode != 0:
        fail(f"{' '.join(look)}: checkcl ended with code {done.returncode}")


def main():
    checkcl, source = sys.argv[1:]
    if not shutil.which("oclgrind") or not shutil.which("oclgrind-kernel"):
        print("no Oclgrind here: nothing was checked")
        return SKIPPED
    if subprocess.run([checkcl, "--small", "--list"], stdout=subprocess.DEVNULL).returncode != 0:
        fail("checkcl --small --list")
    planted(source)
    check(checkcl, ["--data-races", "--check-api"])
    for family, cases in INITIALISED.items():
        print(f"{family}: nothing uninitialised?", flush=True)
        check(checkcl, ["--uninitialized"], "--family", family, "--filter", cases)
    print(f"{failures} failures")
    return failures > 0


sys.exit(main())
