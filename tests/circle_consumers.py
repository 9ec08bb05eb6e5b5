"""The programs that read and run Circle files, none of them ours: LiteRT, onert (in a process of its own), circle_schema."""
import ctypes
import pathlib
import struct
import subprocess
import sys

import numpy as np


def as_tflite(path, most=None):
    """The file (or its first bytes) with TFLite's identifier and version: the schemas are the same in what we write."""
    with open(path, "rb") as f:
        b = bytearray(f.read(most))
    assert b[4:8] == b"CIR0"
    b[4:8] = b"TFL3"
    root = struct.unpack_from("<I", b, 0)[0]
    vtable = root - struct.unpack_from("<i", b, root)[0]
    version = struct.unpack_from("<H", b, vtable + 4)[0]
    assert version, "the version is not written"
    struct.pack_into("<I", b, root + version, 3)
    return bytes(b)


def litert_tensors(path, sample):
    """Every tensor of a run: {name: (codes, scale, zero point)} of the 8-bit ones."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType
    it = Interpreter(model_content=as_tflite(path), experimental_preserve_all_tensors=True,
                     experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
    it.allocate_tensors()
    for d in it.get_input_details():
        it.set_tensor(d["index"], sample[d["name"]])
    it.invoke()
    return {d["name"]: (it.get_tensor(d["index"]).copy(), *d["quantization"]) for d in it.get_tensor_details()
            if d["dtype"] in (np.uint8, np.int8) and d["quantization"][0] and np.prod(d["shape"])}


def litert(path, samples, delegates=True):
    """As its users run it: with XNNPACK, which rounds a requantization once. Without delegates its built-in kernels round twice."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType
    resolver = OpResolverType.BUILTIN if delegates else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    it = Interpreter(model_content=as_tflite(path), experimental_op_resolver_type=resolver)
    it.allocate_tensors()
    results = []
    for sample in samples:
        for d in it.get_input_details():
            it.set_tensor(d["index"], sample[d["name"]])
        it.invoke()
        results.append({d["name"]: it.get_tensor(d["index"]).copy() for d in it.get_output_details()})
    return results


def onert(path, inputs, outputs, folder):
    """inputs: arrays in graph order; outputs: (shape, dtype) in graph order. A crash of onert is a failure of the test."""
    folder = pathlib.Path(folder)
    for i, a in enumerate(inputs):
        np.save(folder / f"in{i}.npy", a)
    spec = ";".join(f"{','.join(map(str, s))}:{np.dtype(d).name}" for s, d in outputs)
    r = subprocess.run([sys.executable, __file__, str(path), str(folder), str(len(inputs)), spec], capture_output=True, text=True, timeout=300)
    assert r.returncode == 0, f"onert: exit {r.returncode}\n{r.stdout[-2000:]}\n{r.stderr[-2000:]}"
    return [np.load(folder / f"out{i}.npy") for i in range(len(outputs))]


def _onert_main(path, folder, n, spec):
    import onert
    native = pathlib.Path(onert.__file__).parent / "native"
    ctypes.CDLL(str(native / "nnfw" / "libonert_core.so"), mode=ctypes.RTLD_GLOBAL)
    api = ctypes.CDLL(str(native / "libonert.so"), mode=ctypes.RTLD_GLOBAL)
    session = ctypes.c_void_p()

    def check(status, what):
        if status != 0:
            sys.exit(f"{what}: status {status}")

    types = {"float32": 0, "int32": 1, "uint8": 2, "bool": 3, "uint8raw": 4, "int64": 5, "int8": 6, "int16": 7}
    check(api.nnfw_create_session(ctypes.byref(session)), "create")
    check(api.nnfw_load_model_from_file(session, str(path).encode()), "load")
    check(api.nnfw_set_available_backends(session, b"cpu"), "backends")
    check(api.nnfw_prepare(session), "prepare")
    keep = []
    for i in range(n):
        a = np.ascontiguousarray(np.load(folder / f"in{i}.npy"))
        keep.append(a)
        check(api.nnfw_set_input(session, i, types[a.dtype.name], a.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(a.nbytes)), f"input {i}")
    out = []
    for i, item in enumerate(spec.split(";")):
        shape, dtype = item.split(":")
        a = np.zeros([int(d) for d in shape.split(",") if d], dtype)
        out.append(a)
        check(api.nnfw_set_output(session, i, types[dtype], a.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(a.nbytes)), f"output {i}")
    check(api.nnfw_run(session), "run")
    for i, a in enumerate(out):
        np.save(folder / f"out{i}.npy", a)


def read(path):
    """circle_schema's view of the file: (model, subgraph, [operator names], {tensor name: tensor})."""
    from circle_schema import circle
    model = circle.Model.Model.GetRootAs(pathlib.Path(path).read_bytes(), 0)
    assert circle.Model.Model.ModelBufferHasIdentifier(pathlib.Path(path).read_bytes(), 0)
    graph = model.Subgraphs(0)
    names = {v: k for k, v in vars(circle.BuiltinOperator.BuiltinOperator).items() if isinstance(v, int)}
    codes = [names[model.OperatorCodes(i).BuiltinCode()] for i in range(model.OperatorCodesLength())]
    operators = [codes[graph.Operators(i).OpcodeIndex()] for i in range(graph.OperatorsLength())]
    tensors = {graph.Tensors(i).Name().decode(): graph.Tensors(i) for i in range(graph.TensorsLength())}
    return model, graph, operators, tensors


if __name__ == "__main__":
    _onert_main(sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
