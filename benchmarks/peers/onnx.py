"""ONNX Runtime on the encoder, written as a graph node by node."""

import os
from itertools import pairwise

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

PACKAGES = ("onnxruntime", "onnx")
CANNOT = {"fit": "inference only"}


def encoders(net, **_):
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for i, (n, m) in enumerate(pairwise(net)):
        weights += [
            numpy_helper.from_array(rng.normal(size=(n, m)).astype(np.float32) / np.float32(n**0.5), f"w{i}"),
            numpy_helper.from_array(np.zeros(m, np.float32), f"b{i}"),
        ]
        nodes += [
            helper.make_node("Gemm", [last, f"w{i}", f"b{i}"], [f"a{i}"]),
            helper.make_node("Relu", [f"a{i}"], [f"h{i}"]),
        ]
        last = f"h{i}"
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", d]) for name, d in (("x", net[0]), (last, net[-1]))
    ]
    graph = helper.make_graph(nodes, "encoder", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ["OMP_NUM_THREADS"])
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def whole(X):
        return session.run(None, {"x": X})[0]

    def blocks(X):
        code = np.empty((len(X), net[-1]), np.float32)
        for start in range(0, len(X), 8192):
            code[start : start + 8192] = whole(X[start : start + 8192])
        return code

    return {"whole": whole, "blocks of 8192": blocks}
