"""The library as its users meet it: installed into an empty folder and used from there alone.

README's C example is compiled against the installed headers and pkg-config file and run on a tiny model; each public
header compiles by itself, as C17 and as C++; the shared library exports what the headers mark DCM_API, no more and no
less.
"""
import argparse
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

WARNINGS = ["-Wall", "-Wextra", "-Werror", "-pedantic"]


def run(*command, **options):
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True, errors="replace",
                            **options)
    if result.returncode:
        sys.exit(f"{' '.join(map(str, command))}: exit code {result.returncode}\n{result.stdout}{result.stderr}")
    return result.stdout


def installed(args, folder):
    """Install into `folder`; returns compiler flags, linker flags and the folder of the library."""
    run(args.meson, "install", "-C", args.build, "--no-rebuild", "--destdir", folder)
    pc = next(folder.rglob("dcm.pc"))
    prefix = re.search(r"^prefix=(.*)$", pc.read_text(), re.M).group(1)
    base = folder / prefix.lstrip("/")
    environment = dict(os.environ, PKG_CONFIG_PATH=str(pc.parent))
    ask = ["pkg-config", f"--define-variable=prefix={base}"]
    flags = run(*ask, "--cflags", "dcm", env=environment).split()
    libs = run(*ask, "--libs", "dcm", env=environment).split()
    for name in ("dcm", "dcm-get-model"):
        assert os.access(base / "bin" / name, os.X_OK), f"{name} is not installed"
    assert run(base / "bin" / "dcm", "--version").startswith("dcm "), "the installed program does not find its library"
    return flags, libs, pc.parent.parent


def check_example(args, folder, flags, libs, library):
    text = (pathlib.Path(args.source) / "README.md").read_text()
    examples = re.findall(r"^```c\n(.*?)^```$", text, re.M | re.S)
    assert len(examples) == 1, f"README has {len(examples)} C examples, not one"
    source, program, model = folder / "example.c", folder / "example", folder / "tiny.gguf"
    source.write_text(examples[0])
    run("cc", "-std=c17", *WARNINGS, source, "-o", program, *flags, *libs)
    run(args.make_tiny_model, model)
    environment = dict(os.environ, LD_LIBRARY_PATH=str(library))
    output = run(program, model, "ref", env=environment)
    found = re.search(r"(\d+) tokens in (\d+) units, (\d+) bytes, after (\d+) merges\n$", output)
    assert found, f"the example's last line is another: {output!r}"
    tokens, units, _, merges = map(int, found.groups())
    assert tokens == units + merges, "each merge takes one unit away"
    assert tokens > 35 and merges > 0, "the example shows no merge"
    missing = subprocess.run([program, folder / "none.gguf", "ref"], capture_output=True, text=True, env=environment)
    assert missing.returncode == 3 and "none.gguf" in missing.stderr, "a missing model is not reported"


def check_headers(folder, flags, headers):
    compilers = [["cc", "-std=c17", "-x", "c"]]
    if shutil.which("c++"):
        compilers.append(["c++", "-std=c++17", "-x", "c++"])
    for header in headers:
        source = folder / "header.c"
        twice = f"#include <dcm/{header.name}>\n" * 2
        source.write_text(twice + "int main(void) { return 0; }\n")
        for compiler in compilers:
            run(*compiler, *WARNINGS, *flags, "-fsyntax-only", source)


def check_symbols(library, headers):
    declared = set()
    for header in headers:
        text = re.sub(r"/\*.*?\*/", "", header.read_text(), flags=re.S)
        declared |= set(re.findall(r"^DCM_API\b[^;]*?(\w+)\s*\([^;]*;", text, re.M))
    lines = run("nm", "-D", "--defined-only", library / "libdcm.so").splitlines()
    exported = {line.split()[-1] for line in lines}
    assert declared, "no DCM_API declaration was found"
    assert exported == declared, f"exported or declared only: {sorted(exported ^ declared)}"
    assert all(name.startswith("dcm_") for name in exported)


def main():
    parser = argparse.ArgumentParser()
    for name in ("source", "build", "make-tiny-model", "meson"):
        parser.add_argument(f"--{name}", required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        flags, libs, library = installed(args, folder / "root")
        headers = sorted((folder / "root").rglob("include/dcm/*.h"))
        check_headers(folder, flags, headers)
        check_symbols(library, headers)
        check_example(args, folder, flags, libs, library)
    print("ok")


main()
