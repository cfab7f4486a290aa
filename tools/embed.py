"""Embed OpenCL sources: write a C file with one byte array a kernel file and the table `cl_sources`."""
import pathlib
import sys

out, *inputs = sys.argv[1:]
lines = ['#include "device/device.h"', ""]
table = []
for path in map(pathlib.Path, inputs):
    name = path.stem
    data = path.read_bytes()
    lines.append(f"static const unsigned char text_{name}[] = {{")
    lines += [", ".join(map(str, data[i : i + 24])) + "," for i in range(0, len(data), 24)]
    lines.append("};")
    table.append(f'    {{"{name}", "cl/{path.name}", text_{name}, sizeof text_{name}}},')
lines += ["", "const cl_source cl_sources[] = {", *table, "    {0},", "};", ""]
pathlib.Path(out).write_text("\n".join(lines))
