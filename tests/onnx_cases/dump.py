#!/usr/bin/env python3
"""Writes ONNX's own operator tests as files: FOLDER/<case>/{model.onnx,case.json,data.bin}.

Needs PyPI's onnx. `case.json` lists inputs and expected outputs; each has a name, an element type, a shape and a byte range of
`data.bin` (little-endian). A case of an operator set outside 13 to 23 is relabelled to the nearest one in that range where the model is
also valid there: the test is then of that version. A value that is not a tensor has no range.
"""

import argparse
import json
import pathlib
import shutil
import warnings

import numpy as np
import onnx
from onnx import TensorProto, helper

OLDEST, NEWEST = 13, 23
# What goes with the newest accepted operator set.
IR_VERSION = 11


def relabelled(model):
    """The model under an accepted operator set, if it is valid there, else as it is."""
    sets = [s for s in model.opset_import if s.domain in ("", "ai.onnx")]
    if len(sets) != 1 or OLDEST <= sets[0].version <= NEWEST:
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    version = OLDEST if sets[0].version < OLDEST else NEWEST
    for s in copy.opset_import:
        if s.domain in ("", "ai.onnx"):
            s.version = version
    copy.ir_version = min(copy.ir_version, IR_VERSION)
    try:
        onnx.checker.check_model(copy, full_check=True)
    except Exception:  # noqa: BLE001: whatever the checker dislikes, the original stays
        return model
    return copy


def tensor_type(info):
    return info.type.tensor_type.elem_type if info.type.HasField("tensor_type") else 0


def entry(info, value, blob):
    """Appends a value to the blob and describes it."""
    out = {"name": info.name, "elem": tensor_type(info)}
    if isinstance(value, TensorProto):
        value = onnx.numpy_helper.to_array(value)
    if not isinstance(value, (np.ndarray, np.generic)) or not out["elem"]:
        return out
    array = np.asarray(value)
    if array.dtype == object or out["elem"] > TensorProto.BFLOAT16:
        return out
    raw = np.ascontiguousarray(array, dtype=helper.tensor_dtype_to_np_dtype(out["elem"])).tobytes()
    out.update(shape=list(array.shape), offset=len(blob), bytes=len(raw))
    blob.extend(raw)
    return out


def dump(case, folder):
    model = relabelled(case.model)
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    inputs, outputs = case.data_sets[0] if case.data_sets else ([], [])
    blob = bytearray()
    described = {
        "rtol": case.rtol,
        "atol": case.atol,
        "operators": sorted({n.op_type for n in model.graph.node}),
        "inputs": [entry(i, v, blob) for i, v in zip(model.graph.input, inputs)],
        "outputs": [entry(o, v, blob) for o, v in zip(model.graph.output, outputs)],
    }
    (folder / "case.json").write_text(json.dumps(described))
    (folder / "data.bin").write_bytes(bytes(blob))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    folder = parser.parse_args().folder
    warnings.filterwarnings("ignore")
    from onnx.backend.test.case.node import collect_testcases

    cases = collect_testcases(None)
    if folder.exists():
        shutil.rmtree(folder)
    for case in cases:
        dump(case, folder / case.name)
    print(f"{len(cases)} cases in {folder}")


if __name__ == "__main__":
    main()
