"""Machine code on disk that needs no numba to be loaded: a second run starts at once.

numba's own cache takes half a second before it runs anything, for all that numba can compile.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from importlib.metadata import version
from typing import Any

from llvmlite import binding  # type: ignore[import-untyped]

from lengthwise.serving.fast.compiler import cache, memory
from lengthwise.serving.fast.state import FAULT

# Of optimisation: 3 takes half as long again to compile, and what it makes is no faster. Code that
# checks its indices is looked for mistakes in, and needs none.
LEVEL = 1
_KEPT: list[Any] = []  # machine code lives as long as its library or its linker


@lru_cache(maxsize=1)
def machine() -> str:
    """What machine code depends on beside its source."""
    features = binding.get_host_cpu_features().flatten()
    return f"{sys.version} {version('numba')} {binding.get_host_cpu_name()} {features}"


def load(stem: str, names: tuple[str, ...]) -> dict[str, int] | None:
    """Addresses of the functions in the machine code kept under ``stem``; None if there is none."""
    code = cache.read(stem)
    return None if code is None else _link(stem, code, names)


def compile_text(stem: str, text: str, names: tuple[str, ...]) -> dict[str, int]:
    """Addresses of functions in an LLVM module's text, which is optimised and kept."""
    level = 0 if memory.CHECKED else LEVEL
    cpu, features = binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten()
    target = _target(cpu, features, level)
    module = binding.parse_assembly(text)
    module.triple, module.data_layout = target.triple, str(target.target_data)
    tuning = binding.create_pipeline_tuning_options(speed_level=level)
    passes = binding.create_pass_builder(target, tuning)
    passes.getModulePassManager().run(module, passes)
    code = target.emit_object(module)
    cache.write(stem, code)
    return _link(stem, code, names)


def _link(stem: str, code: bytes, names: tuple[str, ...]) -> dict[str, int]:
    linker = binding.create_mcjit_compiler(_empty(), _target())
    linker.add_object_file(binding.ObjectFileRef.from_data(code))
    linker.finalize_object()
    _KEPT.append(linker)
    return {name: linker.get_function_address(symbol(stem, name)) for name in names}


def _empty() -> Any:
    return binding.parse_assembly("")


def _target(cpu: str = "", features: str = "", level: int = LEVEL) -> Any:
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    return binding.Target.from_default_triple().create_target_machine(
        cpu=cpu, features=features, opt=level, codemodel="jitdefault", jit=True
    )


def build(stem: str, functions: dict[str, Any]) -> dict[str, int]:
    """Addresses of compiled numba functions (``compile_result``), as C functions of their names.

    They return FAULT where the function raises. Kept under ``stem``, unless they need numba to run.
    """
    from llvmlite import ir
    from numba.core.compiler_lock import global_compiler_lock
    from numba.core.registry import cpu_target

    context = cpu_target.target_context
    library = context.codegen().create_library(stem)
    library.enable_object_caching()
    module = library.create_ir_module(stem)
    for name, result in functions.items():
        described = result.fndesc
        library.add_linking_library(result.library)
        arguments = [context.get_value_type(kind) for kind in described.argtypes]
        word = ir.IntType(64)
        outer = ir.Function(module, ir.FunctionType(word, arguments), symbol(stem, name))
        builder = ir.IRBuilder(outer.append_basic_block())
        inner = context.declare_function(module, described)
        status, value = context.call_conv.call_function(
            builder, inner, described.restype, described.argtypes, outer.args
        )
        builder.ret(builder.select(status.is_error, word(FAULT), value))
    library.add_ir_module(module)
    with global_compiler_lock:
        library.finalize()
    _KEPT.append(library)
    found = {name: library.get_pointer_to_function(symbol(stem, name)) for name in functions}
    if all(f.name.startswith("llvm.") for f in library._final_module.functions if f.is_declaration):
        cache.write(stem, library._get_compiled_object())
    return found


def symbol(stem: str, name: str) -> str:
    """What a function is called in machine code."""
    return f"lengthwise_{stem}_{name}"
