"""Rules of the source tree that no compiler checks: check.py ROOT.

Prints each breach as FILE:LINE: TEXT; exit 1 when there is one.

check.py --self-test: plant one breach of every rule in an empty tree and see each one reported.
"""
import pathlib
import re
import sys
import tempfile

# Lowest first: a folder of src includes itself and those before it.
LAYERS = ["base", "plan", "io", "token", "ref", "device", "ops", "merge", "cache", "model", "session", "train", "eval"]
MAX_COLUMNS = 120
MAX_LINES = 450  # "about 400"
MAX_KERNEL_LINES = 600  # a family of kernels is one file
MAX_FUNCTION = 75  # "about 60"

INCLUDE = re.compile(r'\s*#\s*include\s*(["<])([^">]+)[">]')
HOME = re.compile(r"/(home|root|Users|work)/\w")
CALLS = {
    "the library never ends the program": re.compile(r"\b(exit|_exit|abort)\s*\("),
    "host memory comes from base/memory.h": re.compile(r"\b(malloc|calloc|realloc)\s*\("),
}
TEXT = {".c", ".h", ".cl", ".py", ".sh", ".build", ".md", ".txt", ""}


def sources(root):
    for top in ("src", "include", "tools", "tests", "cl", "bench"):
        if (root / top).is_dir():
            yield from sorted(p for p in (root / top).rglob("*") if p.is_file() and "__pycache__" not in p.parts)


def read(path):
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        return []


class Checker:
    def __init__(self, root):
        self.root = root
        self.breaches = []
        self.clblast = []
        self.openmp = []
        self.edges = {}

    def add(self, name, line, text):
        self.breaches.append(f"{name}:{line}: {text}")

    def include(self, name, line, kind, target):
        parts = pathlib.PurePath(name).parts
        if target.startswith("CL/") and parts[0] in ("src", "include", "tools"):
            if not (parts[:2] == ("src", "device") or (parts[:2] == ("src", "ops") and "_cl" in parts[-1])):
                self.add(name, line, f"{target}: OpenCL is spoken only in src/device and src/ops/*_cl*")
        if target == "clblast_c.h":
            self.clblast.append((name, line))
        if kind == '"' and parts[0] == "src":
            folder = target.split("/")[0]
            if folder not in LAYERS:
                self.add(name, line, f'"{target}": not a folder of src')
            elif LAYERS.index(folder) > LAYERS.index(parts[1]):
                self.add(name, line, f'"{target}": {folder} is above {parts[1]}')
            self.edges.setdefault(name, []).append(f"src/{target}")
        if kind == '"' and parts[0] == "tools" and "/" in target:
            self.add(name, line, f'"{target}": tools include <dcm/...> and their own headers only')
        if kind == '"' and parts[0] == "include":
            self.add(name, line, f'"{target}": public headers include <dcm/...> only')

    def lines(self, name, lines):
        c_file = name.endswith((".c", ".h"))
        for number, line in enumerate(lines, 1):
            if len(line) > MAX_COLUMNS and not name.startswith("tests/golden/"):
                self.add(name, number, f"{len(line)} columns, at most {MAX_COLUMNS}")
            if HOME.search(line):
                self.add(name, number, "an absolute path of one machine")
            match = INCLUDE.match(line) if c_file else None
            if match:
                self.include(name, number, *match.groups())
            if re.match(r"\s*#\s*pragma\s+omp", line):
                self.openmp.append((name, number))
            if name.startswith("src/") and c_file:
                for rule, call in CALLS.items():
                    if call.search(line) and not (name == "src/base/memory.c" and "memory" in rule):
                        self.add(name, number, rule)

    def functions(self, name, lines):
        """A function starts at a line that is `{` alone and ends at one that is `}` alone."""
        start = None
        for number, line in enumerate(lines, 1):
            if line == "{":
                start = number
            elif line == "}" and start:
                if number - start - 1 > MAX_FUNCTION:
                    self.add(name, start, f"a function of {number - start - 1} lines, at most {MAX_FUNCTION}")
                start = None

    def cycles(self):
        state = {}

        def visit(name, path):
            if state.get(name) == "done":
                return
            if name in path:
                self.add(name, 1, "include cycle: " + " > ".join(path[path.index(name) :] + [name]))
                return
            for target in self.edges.get(name, []):
                visit(target, path + [name])
            state[name] = "done"

        for name in sorted(self.edges):
            visit(name, [])

    def run(self):
        for path in sources(self.root):
            name = path.relative_to(self.root).as_posix()
            if path.suffix not in TEXT or name.startswith("tests/golden/"):
                continue
            lines = read(path)
            self.lines(name, lines)
            if name.endswith((".c", ".h", ".cl")):
                most = MAX_KERNEL_LINES if name.endswith(".cl") else MAX_LINES
                if len(lines) > most:
                    self.add(name, len(lines), f"{len(lines)} lines, at most {most}")
                self.functions(name, lines)
        self.cycles()
        for name, line in self.clblast:
            if name != self.clblast[0][0]:
                self.add(name, line, f"CLBlast is spoken only in one file, and {self.clblast[0][0]} is it")
        helpers = sorted({n for n, _ in self.openmp if n.startswith("src/") and not n.startswith("src/ref/")})
        for name, line in self.openmp:
            if name in helpers[1:] or name.startswith(("tools/", "include/")):
                self.add(name, line, "OpenMP pragmas stand only in src/ref and one helper")
        return self.breaches


PLANTED = {
    "src/base/up.c": ('#include "plan/plan.h"\n', "plan is above base"),
    "src/base/what.c": ('#include "what/ever.h"\n', "not a folder of src"),
    "src/io/cl.c": ("#include <CL/cl.h>\n", "OpenCL is spoken only"),
    "src/ops/ops.c": ("#include <CL/cl.h>\n", "OpenCL is spoken only"),
    "src/ops/a_cl.c": ("#include <clblast_c.h>\n", None),
    "src/ops/b_cl.c": ("#include <clblast_c.h>\n", "spoken only in one file"),
    "src/base/a.h": ('#include "base/b.h"\n', "include cycle"),
    "src/base/b.h": ('#include "base/a.h"\n', None),
    "src/ref/omp.c": ("#pragma omp parallel for\n", None),
    "src/base/help.c": ("#pragma omp parallel for\n", None),
    "src/cache/omp.c": ("#pragma omp parallel for\n", "OpenMP pragmas stand only"),
    "src/io/exit.c": ("    abort();\n", "never ends the program"),
    "src/io/heap.c": ("    p = malloc(1);\n", "base/memory.h"),
    "tools/in.c": ('#include "base/error.h"\n', "tools include"),
    "include/dcm/x.h": ('#include "base/error.h"\n', "public headers include"),
    "tests/wide.c": ("x" * 121 + "\n", "121 columns"),
    "cl/home.cl": ("/* see /" + "home/me */\n", "an absolute path"),
    "src/plan/long.c": ("int x;\n" * 451, "451 lines"),
    "cl/long.cl": ("int x;\n" * 601, "601 lines"),
    "src/plan/function.c": ("{\n" + "    ;\n" * 76 + "}\n", "a function of 76 lines"),
}


def self_test():
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        for name, (text, _) in PLANTED.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        breaches = Checker(root).run()
    wrong = []
    for name, (_, expected) in PLANTED.items():
        found = [b for b in breaches if b.startswith(name + ":")]
        if expected is None and found:
            wrong += [f"reported without need: {b}" for b in found]
        if expected is not None and not any(expected in b for b in found):
            wrong.append(f"{name}: \"{expected}\" was not reported")
    return wrong


def main():
    breaches = self_test() if sys.argv[1] == "--self-test" else Checker(pathlib.Path(sys.argv[1]).resolve()).run()
    print("\n".join(breaches) if breaches else "no breach")
    sys.exit(bool(breaches))


main()
