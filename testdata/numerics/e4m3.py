"""Writes e4m3.txt beside this file: what ml_dtypes.float8_e4m3fn has for every code and around every rounding boundary.

[decode]: code, f32 bits of its value. [encode]: f32 bits, code. All hexadecimal. Needs numpy and ml_dtypes.
"""

from pathlib import Path

import ml_dtypes
import numpy as np

E4M3 = ml_dtypes.float8_e4m3fn

codes = np.arange(256, dtype=np.uint8)
values = codes.view(E4M3).astype(np.float32)
lines = ["[decode]"] + [f"{c:02x} {v:08x}" for c, v in zip(codes, values.view(np.uint32))]

finite = np.sort(values[np.isfinite(values) & (values >= 0)])
finite = np.unique(finite)
middles = ((finite[1:].astype(np.float64) + finite[:-1]) / 2).astype(np.float32)
points = np.concatenate([finite, middles])
around = np.concatenate([points, np.nextafter(points, np.float32(-1)), np.nextafter(points, np.float32(1e9))])
rng = np.random.default_rng(0)
spread = (2.0 ** rng.uniform(-12, 8.8, 256)).astype(np.float32)
around = np.unique(np.concatenate([around, spread, [np.float32(1e-38), np.float32(1e-45)]]).astype(np.float32))
# ml_dtypes gives NaN from 464 on; saturation is this project's own and tested apart.
around = around[(around >= 0) & (around <= 464)]
around = np.concatenate([around, -around])
lines.append("[encode]")
lines += [f"{b:08x} {c:02x}" for b, c in zip(around.view(np.uint32), around.astype(E4M3).view(np.uint8))]
Path(__file__).with_name("e4m3.txt").write_text("\n".join(lines) + "\n")
