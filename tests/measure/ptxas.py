#!/usr/bin/env python3
"""Assembles every distinct kernel of some plans and counts those that are refused or spill: ptxas.py PTXAS PLAN..."""

import concurrent.futures
import re
import subprocess
import sys
import tempfile
import zipfile

NONE = "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"


def fault(kernel):
    (_, arch), (name, text) = kernel
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as f:
        f.write(text)
        f.flush()
        run = subprocess.run([sys.argv[1], "-v", f"-arch={arch}", f.name, "-o", "/dev/null"], capture_output=True, text=True)
    out = run.stdout + run.stderr
    spills = [line.strip() for line in out.splitlines() if "spill stores" in line and NONE not in line]
    return (name, run.returncode, spills) if run.returncode or spills else None


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
print(f"{total} kernels, {len(distinct)} distinct, {len(faults)} refused or spilling")
sys.exit(bool(faults))
