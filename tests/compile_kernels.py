"""python tests/compile_kernels.py: compiles RetLab's Triton kernels for GPUs that this machine need not have.

For bfloat16 and every shape of program that `few_rows` chooses, for compute capabilities 8.0 and 9.0; it says what it
compiled, and ends with Triton's own error where it cannot. Nothing is run.
"""

import sys
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

import triton
import triton.runtime.interpreter  # has RetLab make its kernels, also without a GPU
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from retlab.own_kernels import few_rows
from retlab.own_kernels.likeliest import choose_kernel
from retlab.own_kernels.retention_step import step_kernel
from retlab.own_kernels.rotation import rotation_kernel

BF16, F32, F64, I64, I32, F = "*bf16", "*fp32", "*fp64", "*i64", "i32", "fp32"
PRODUCT = {"x": BF16, "norm": BF16, "weight": BF16, "residual": BF16, "out": BF16, "eps": F, "rows": I32}
PRODUCT["features"] = I32
NORM = {"x": BF16, "norm": BF16, "out": BF16, "eps": F}
GATED = {"x": F32, "gate": BF16, "gate_row": I32, "out": BF16, "eps": F, "heads": I32}
STEP = {"q": BF16, "q_row": I32, "k": BF16, "k_row": I32, "v": BF16, "v_row": I32, "cos": F32, "sin": F32}
STEP |= {"turn_row": I32, "decay": F32, "memory": F32, "out": F32, "scale": F, "heads": I32}
ROTATION = {"positions": I64, "turns": F64, "cos": F32, "sin": F32, "pairs": I32}
SHARED = 99 * 1024
"""Bytes that the programs of the smallest such GPUs can share."""
CHOOSE = {"logits": BF16, "finished": "*i1", "pad": I64, "ends": I64, "ids": I64, "ring": I64, "slot": I64}


def compile_for(capability: int, kernel: Any, types: dict[str, str], options: dict[str, int], **constants: Any) -> None:
    """Compile one kernel with pointers as torch aligns them."""
    names, constants = kernel.arg_names, constants | {"early": capability >= 90}
    signature = {name: types.get(name, "constexpr") for name in names}
    known = {(names.index(name),): value for name, value in constants.items()}
    aligned = {(number,): [["tt.divisibility", 16]] for number, name in enumerate(names) if "*" in signature[name]}
    source = ASTSource(kernel, signature, constexprs=known, attrs=aligned)
    found = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert found.metadata.shared <= SHARED, f"{kernel.__name__} needs {found.metadata.shared} bytes: {constants}"
    before, waits, _ = found.asm["ptx"].partition("griddepcontrol.wait")
    assert bool(waits) == constants["early"]
    assert not waits or "st.global" not in before, f"{kernel.__name__} writes before it waits"
    print(f"{kernel.__name__} for {capability}: {len(found.asm['cubin'])} bytes, {constants}")


def main() -> None:
    """Compile them all."""
    done: dict[int, set[Any]] = {80: set(), 90: set()}
    for capability in (80, 90):
        for rows, features, width in product((1, few_rows.MOST_ROWS), (1024, 6144, 32768), (1024, 8192)):
            for matrices in (1, 2):
                tile = few_rows.tile_for(rows, features, width, matrices)
                options = {"num_warps": tile.warps, "num_stages": tile.stages}
                shape = {"tall": rows, "block": tile.block, "step": tile.step, "width": width}
                kinds = {1: (False, None, True), 2: (rows == 1, "gelu", False)}
                kind = dict(zip(("normed", "activation", "added"), kinds[matrices], strict=True))
                if (tile, width, matrices) not in done[capability]:
                    done[capability].add((tile, width, matrices))
                    compile_for(capability, few_rows.product_kernel, PRODUCT, options, **kind, **shape)
        compile_for(capability, few_rows.norm_kernel, NORM, {}, width=1024, wide=1024)
        compile_for(capability, few_rows.gated_norm_kernel, GATED, {}, width=512, wide=512)
        compile_for(capability, step_kernel, STEP, {}, keys=256, values=512, wide=256, block=16)
        compile_for(capability, rotation_kernel, ROTATION, {}, wide=128)
        compile_for(
            capability, choose_kernel, CHOOSE, {"num_warps": 16},
            vocab=32000, most_ends=8, in_ring=256, block=8192,
        )  # fmt: skip


if __name__ == "__main__":
    main()
