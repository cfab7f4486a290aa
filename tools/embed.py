"""Put files into the library.

embed.py OUT.c KERNEL.cl...: one byte array a kernel file, and the table `cl_sources`.
embed.py --weights OUT.c FILE.safetensors...: the files as they are, and the table `merge_shipped`.
"""
import pathlib
import sys


def kernels(inputs):
    lines = ['#include "device/device.h"', ""]
    table = []
    for path in inputs:
        data = path.read_bytes()
        lines.append(f"static const unsigned char text_{path.stem}[] = {{")
        lines += [", ".join(map(str, data[i : i + 24])) + "," for i in range(0, len(data), 24)]
        lines.append("};")
        table.append(f'    {{"{path.stem}", "cl/{path.name}", text_{path.stem}, sizeof text_{path.stem}}},')
    return lines + ["", "const cl_source cl_sources[] = {", *table, "    {0},", "};", ""]


def weights(inputs):
    """Megabytes are left to the assembler: as a C array they would take the compiler a minute."""
    lines = ['#include "merge/shipped.h"', ""]
    table = []
    for i, path in enumerate(inputs):
        lines += [f'__asm__(".section .rodata\\n.balign 16\\nmerge_file_{i}:\\n.incbin \\"{path}\\"\\n'
                  f'merge_file_{i}_end:\\n.byte 0\\n.previous");',
                  f"extern const unsigned char merge_file_{i}[], merge_file_{i}_end[];"]
        table.append(f'    {{"{path.name}", merge_file_{i}, merge_file_{i}_end}},')
    return lines + ["", "const merge_file merge_shipped[] = {", *table, "    {0},", "};", ""]


arguments = sys.argv[1:]
make = kernels
if arguments[0] == "--weights":
    make = weights
    arguments.pop(0)
out, *inputs = map(pathlib.Path, arguments)
out.write_text("\n".join(make(inputs)))
