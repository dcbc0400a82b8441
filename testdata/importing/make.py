"""Makes the models that the importer's tests read.

    pip install onnx numpy
    python testdata/importing/make.py

small.onnx       every part of the format in a few hundred bytes, made by hand: a function, typed and raw tensors, attributes of all
                 kinds, a symbolic dimension, a constant node, an optional input left out, nodes out of order
external.onnx    a product with a weight in external.bin
"""
import pathlib

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HERE = pathlib.Path(__file__).resolve().parent


def small():
    scale = helper.make_function(
        "local", "Scaled", ["x", "factor"], ["y"],
        [helper.make_node("Mul", ["x", "factor"], ["z"]), helper.make_node("LeakyRelu", ["z"], ["y"], name="act")],
        [helper.make_opsetid("", 18)], attributes=["alpha"])
    scale.node[1].attribute.append(onnx.AttributeProto(name="alpha", type=onnx.AttributeProto.FLOAT, ref_attr_name="alpha"))
    raw = np.arange(12, dtype=np.float32).reshape(4, 3) / 10
    tensors = [
        numpy_helper.from_array(raw, "w"),
        helper.make_tensor("b", TensorProto.FLOAT, [3], [0.5, -0.5, 0.25]),
        helper.make_tensor("half", TensorProto.FLOAT16, [1], [2.0]),
        helper.make_tensor("flat", TensorProto.INT64, [1], [-1]),
    ]
    nodes = [
        helper.make_node("SoftmaxCrossEntropyLoss", ["s", "labels"], ["loss"], reduction="mean", ignore_index=-100),
        helper.make_node("Gemm", ["x", "w", "b"], ["y"], name="/fc/Gemm", alpha=1.0, transB=0),
        helper.make_node("Cast", ["half"], ["two"], to=TensorProto.FLOAT),
        helper.make_node("Scaled", ["y", "two"], ["s0"], domain="local", alpha=0.2),
        helper.make_node("Clip", ["s0", "", "limit"], ["s"]),
        helper.make_node("Constant", [], ["limit"], value=helper.make_tensor("v", TensorProto.FLOAT, [], [100.0])),
    ]
    graph = helper.make_graph(
        nodes, "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4]), helper.make_tensor_value_info("labels", TensorProto.INT64, ["batch"])],
        [helper.make_tensor_value_info("loss", TensorProto.FLOAT, [])], tensors)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, functions=[scale], ir_version=8), HERE / "small.onnx")


def external():
    w = numpy_helper.from_array(np.arange(8, dtype=np.float32).reshape(4, 2), "w")
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [3, 4]), ("y", [3, 2])))
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "external", [x], [y], [w])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, HERE / "external.onnx", save_as_external_data=True, location="external.bin", size_threshold=0)


if __name__ == "__main__":
    small()
    external()
