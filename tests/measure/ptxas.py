#!/usr/bin/env python3
"""Assembles every distinct kernel of some plans and counts those with a fault: ptxas.py PTXAS PLAN...

A fault is a refusal, a spill or a stack frame, a warning C75xx (wgmma serialised, waits injected, setmaxnreg ignored) and, where
nvdisasm is beside ptxas, a warpgroup product whose machine code lacks one of its PTX's products or multiplies in another way."""

import concurrent.futures
import os
import re
import subprocess
import sys
import tempfile
import zipfile

NONE = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"
PTXAS = sys.argv[1]
NVDISASM = os.path.join(os.path.dirname(PTXAS), "nvdisasm")
# What multiplies on tensor cores, converts for them, or is local memory.
OTHER = ("HMMA", "QMMA", "UNPACK", "LDL", "STL")


def machine_faults(text, cubin):
    if "wgmma.mma_async" not in text or not os.path.exists(NVDISASM):
        return []
    code = subprocess.run([NVDISASM, "-c", cubin], capture_output=True, text=True, check=True).stdout
    faults = [f"{word} beside wgmma" for word in OTHER if re.search(rf"\b{word}\b|\.{word}\b", code)]
    for written, machine in ((".f32.e4m3.e4m3", "QGMMA."), (".f32.bf16.bf16", "HGMMA.")):
        want = sum(line.startswith("wgmma.mma_async") and written in line for line in text.splitlines())
        have = code.count(machine)
        faults += [f"{have} {machine} for {want} products"] if have != want else []
    return faults


def fault(kernel):
    (_, arch), (name, text) = kernel
    with tempfile.TemporaryDirectory() as folder:
        ptx, cubin = os.path.join(folder, "k.ptx"), os.path.join(folder, "k.cubin")
        with open(ptx, "w") as f:
            f.write(text)
        run = subprocess.run([PTXAS, "-v", f"-arch={arch}", ptx, "-o", cubin], capture_output=True, text=True)
        out = run.stdout + run.stderr
        faults = [line.strip() for line in out.splitlines() if "spill stores" in line and NONE not in line or "C75" in line]
        faults += machine_faults(text, cubin) if run.returncode == 0 else [out]
    return (name, faults) if faults else None


total, distinct = 0, {}
for plan in sys.argv[2:]:
    with zipfile.ZipFile(plan) as z:
        for entry in (n for n in z.namelist() if n.endswith(".ptx")):
            text, arch = z.read(entry).decode(), entry.rsplit(".", 2)[1]
            total += 1
            # Kernels are numbered within a plan.
            distinct.setdefault((re.sub(r"\b[a-z_]+_\d+\b", "K", text), arch), (f"{plan}:{entry}", text))
with concurrent.futures.ThreadPoolExecutor(2) as pool:
    faults = [f for f in pool.map(fault, distinct.items()) if f]
for f in faults:
    print(*f)
print(f"{total} kernels, {len(distinct)} distinct, {len(faults)} with faults")
sys.exit(bool(faults))
