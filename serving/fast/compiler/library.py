"""Compiles all functions of the fast engine into one library that is optimized once, as a whole.

numba makes a library of each function, into which it links and optimizes again those of all the
functions that it calls: with seventy functions most of the time goes there.
"""

# numba's extension points carry no types
# mypy: disable-error-code="no-untyped-call, no-any-return, misc, attr-defined"

from __future__ import annotations

from typing import Any

from numba import _dynfunc
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase
from numba.core.compiler_machinery import PassManager, register_pass
from numba.core.typed_passes import (
    AnnotateTypes,
    IRLegalization,
    NativeLowering,
    NoPythonBackend,
    NopythonTypeInference,
    PreLowerStripPhis,
)
from numba.core.untyped_passes import (
    DeadBranchPrune,
    FixupArgs,
    GenericRewrites,
    IRProcessing,
    ReconstructSSA,
    TranslateByteCode,
)


class _Shared(JITCodeLibrary):
    """Functions as they were written; what links it takes and optimizes those that it needs."""

    def add_linking_library(self, library: Any) -> None:
        if library is not self:
            super().add_linking_library(library)

    def _ensure_finalized(self) -> None:
        pass  # it is open to further functions, and has no machine code of its own

    def _get_module_for_linking(self) -> Any:
        module = self._final_module.clone()
        for library in dict.fromkeys(self._linking_libraries):
            module.link_in(library._get_module_for_linking(), preserve=True)
        for function in module.functions:
            if not function.is_declaration and function.linkage.name == "external":
                function.linkage = "linkonce_odr"
        return module


@register_pass(mutates_CFG=True, analysis_only=False)
class _SharedLowering(NativeLowering):
    """Adds a function to the library of its module, without machine code."""

    _name = "shared_lowering"

    def run_pass(self, state: Any) -> bool:
        context, where = state.targetctx, state.func_id.func.__globals__
        if "_library" not in where:
            where["_library"] = _Shared(context.codegen(), where["__name__"])
            where["_library"].enable_object_caching()
        state.library = library = where["_library"]
        state.flags.no_compile = True
        super().run_pass(state)
        made = state["cr"]
        name = made.fndesc.qualname
        place = _dynfunc.make_function(
            made.fndesc.lookup_module(), name, name, 0, made.env, (library,)
        )
        context.insert_user_function(place, made.fndesc, [library])
        state["cr"] = made._replace(cfunc=place)
        return True


class Shared(CompilerBase):
    """numba's compiler with the passes that these functions need."""

    def define_pipelines(self) -> list[Any]:
        manager = PassManager("shared")
        for one in (
            TranslateByteCode, FixupArgs, IRProcessing, DeadBranchPrune, GenericRewrites,
            ReconstructSSA, DeadBranchPrune, NopythonTypeInference, PreLowerStripPhis,
            IRLegalization, AnnotateTypes, _SharedLowering, NoPythonBackend,
        ):  # fmt: skip
            manager.add_pass(one, one._name)
        manager.finalize()
        return [manager]
