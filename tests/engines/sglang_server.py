"""A real SGLang server on the CPU: run by ``sglang_environment.serving``.

    python -m tests.engines.sglang_server OPTIONS OF sglang.launch_server

Without the kernels that SGLang has for CPUs with AMX, which no package index carries, it computes
in torch. What its files import beside that and a model of text does not need is a stub. SGLang's
processes import this module again, by which they get the same stubs.
"""

from __future__ import annotations

import sys

from tests.engines import sglang_stubs

sglang_stubs.install("IPython", "torchvision", "gguf", "sgl_kernel", "soundfile")


def main() -> None:
    from sglang.launch_server import run_server
    from sglang.srt.server_args import prepare_server_args

    run_server(prepare_server_args(sys.argv[1:]))


if __name__ == "__main__":
    main()
