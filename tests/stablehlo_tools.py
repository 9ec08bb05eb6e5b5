"""StableHLO text put through its consumers: the parser and interpreter of StableHLO (jaxlib), the compiler and runtime
of IREE."""
import time

import iree.compiler.tools as compiler
import iree.runtime as runtime
import numpy as np

FLAGS = ["--iree-hal-target-device=local", "--iree-hal-local-target-device-backends=llvm-cpu",
         "--iree-llvmcpu-target-cpu=host"]


def compile_vmfb(path):
    return compiler.compile_file(str(path), extra_args=FLAGS)


class Program:
    """A compiled module; calling it runs @main."""

    def __init__(self, vmfb, parameters=None):
        self.size = len(vmfb)
        self.context = runtime.SystemContext(config=runtime.Config("local-sync"))
        if parameters is not None:
            index = runtime.ParameterIndex()
            index.load(str(parameters))
            provider = index.create_provider(scope="model")
            self.context.add_vm_module(runtime.create_io_parameters_module(self.context.instance, provider))
        module = runtime.VmModule.copy_buffer(self.context.instance, vmfb)
        self.context.add_vm_module(module)
        self.main = self.context.modules[module.name]["main"]

    def __call__(self, *arguments):
        result = self.main(*arguments)
        return [np.asarray(r) for r in (result if isinstance(result, (tuple, list)) else [result])]


def program(path, parameters=None):
    return Program(compile_vmfb(path), parameters)


def timed(function, *arguments):
    start = time.time()
    return function(*arguments), time.time() - start


def _context():
    from jax._src.interpreters import mlir as jax_mlir
    from jaxlib.mlir import ir
    from jaxlib.mlir.dialects import stablehlo
    from jaxlib.mlir.passmanager import PassManager
    stablehlo.register_stablehlo_passes()
    context = jax_mlir.make_ir_context()
    with context, ir.Location.unknown():
        # This pass loads the quant dialect.
        PassManager.parse("builtin.module(vhlo-legalize-to-stablehlo)").run(ir.Module.parse("module{}").operation)
    return context


def parse(path):
    """Parses and verifies with StableHLO's own parser. Returns (context, module): keep the context alive."""
    from jaxlib.mlir import ir
    context = _context()
    with context, ir.Location.unknown():
        return context, ir.Module.parse(path.read_text())


def interpret(path, *arguments):
    """Runs @main in StableHLO's reference interpreter."""
    from jaxlib.mlir import ir
    from jaxlib.mlir.dialects import stablehlo
    context, module = parse(path)
    with context, ir.Location.unknown():
        values = []
        for a in (np.asarray(a, order="C") for a in arguments):  # ascontiguousarray makes a scalar a list
            unsigned = ir.IntegerType.get_unsigned(8 * a.itemsize) if a.dtype.kind == "u" else None
            values.append(ir.DenseElementsAttr.get(a, type=unsigned) if unsigned else ir.DenseElementsAttr.get(a))
        return [np.array(ir.DenseElementsAttr(r)) for r in stablehlo.eval_module(module, values)]
