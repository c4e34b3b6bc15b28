"""Kernels compiled ahead of time, for GPUs that need not be here: cubins, and a manifest of what they need.

    python -m parsimony.kernels.build --out results/kernels

writes ``<kernel>-<hash>.sm_80.cubin`` and ``.sm_90.cubin`` for every launch that the modules name, and
``manifest.json`` with the registers of a thread, bytes of shared memory and bytes spilled of each.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import re
import subprocess
import tempfile
from pathlib import Path

import torch

from parsimony.errors import UserError
from parsimony.kernels.common import NAMES, Launch

TARGETS = (80, 90)
"""Compute capabilities: A100, and H100 or H200."""
SHARED = {80: 163 * 1024, 90: 227 * 1024}
"""Bytes of shared memory that a program can have."""
TYPES = {
    torch.float64: "fp64", torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int64: "i64",
    torch.int32: "i32", torch.int16: "i16", torch.uint8: "u8", torch.bool: "i1",
}  # fmt: skip


def source(launch: Launch):
    """What Triton compiles for a launch: types, constants, and which arguments 16 divides, as at run time."""
    from triton.compiler import ASTSource

    names = launch.kernel.arg_names
    signature, constants, attributes = {}, dict(launch.constants), {}
    for index, (name, value) in enumerate(zip(names, launch.arguments, strict=False)):
        if value is None or (type(value) is int and value == 1):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = "*" + TYPES[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        elif isinstance(value, int):
            signature[name] = "i32"
            if value % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32"
    signature |= dict.fromkeys(launch.constants, "constexpr")
    return ASTSource(launch.kernel, {name: signature[name] for name in names}, constants, attributes)


def compiled(launch: Launch, capability: int):
    """The kernel of a launch, compiled; and its description for the manifest."""
    import triton
    from triton.backends.compiler import GPUTarget

    what = source(launch)
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    kernel = triton.compile(what, target=GPUTarget("cuda", capability, 32), options=options)
    constants = {str(name): value for name, value in launch.constants.items()}
    types = {name: kind for name, kind in what.signature.items() if kind != "constexpr"}
    identity = json.dumps([constants, types, str(what.attrs), options], sort_keys=True)
    return kernel, {
        "kernel": f"{launch.kernel.__module__.rpartition('.')[2]}.{launch.kernel.__name__}",
        "target": f"sm_{capability}",
        "id": hashlib.sha256(identity.encode()).hexdigest()[:8],
        "warps": launch.warps,
        "stages": launch.stages,
        "shared_bytes": kernel.metadata.shared,
        **resources(kernel.asm["ptx"]),
        "constants": constants,
        "arguments": types,
    }


def resources(ptx: str) -> dict[str, int]:
    """Registers of a thread and bytes that it spills, as ptxas reports them."""
    import triton

    target = re.search(r"^\.target\s+([^\s,]+)", ptx, re.M).group(1)
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [triton.knobs.nvidia.ptxas.path, "-v", f"--gpu-name={target}", file.name, "-o", "/dev/null"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    stores, loads = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said).groups()
    registers = re.search(r"Used (\d+) registers", said).group(1)
    return {"registers": int(registers), "spill_stores": int(stores), "spill_loads": int(loads)}


def build(out: Path, names: tuple[str, ...] = NAMES) -> list[dict]:
    """Compile every launch for every target into a folder; the rows of the manifest.

    Raises
    ------
    UserError
        If Triton interprets kernels in this process, or a kernel needs more shared memory than a target has.
    """
    import triton

    if triton.knobs.runtime.interpret:
        raise UserError(
            "kernels are interpreted, not compiled, while TRITON_INTERPRET is set; unset it and build again"
        )
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("*.cubin"):
        old.unlink()
    rows = {}
    for name in names:
        for launch in importlib.import_module(f"parsimony.kernels.{name}").launches():
            for capability in TARGETS:
                kernel, row = compiled(launch, capability)
                if row["shared_bytes"] > SHARED[capability]:
                    raise UserError(
                        f"{row['kernel']} needs {row['shared_bytes']} bytes of shared memory, and {row['target']} has "
                        f"{SHARED[capability]}; give it smaller tiles"
                    )
                cubin = kernel.asm["cubin"]
                row["file"] = f"{row['kernel']}-{row['id']}.{row['target']}.cubin"
                row["bytes"], row["sha256"] = len(cubin), hashlib.sha256(cubin).hexdigest()
                (out / row["file"]).write_bytes(cubin)
                rows[row["file"]] = row
    manifest = {"triton": triton.__version__, "kernels": [rows[key] for key in sorted(rows)]}
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest["kernels"]


def as_text(rows: list[dict]) -> str:
    """The manifest as a Markdown table: for each kernel and target the range over its launches."""
    lines = ["| kernel | target | launches | registers | shared KiB | spilled bytes |", "|---|---|---|---|---|---|"]
    for kernel, target in sorted({(row["kernel"], row["target"]) for row in rows}):
        some = [row for row in rows if (row["kernel"], row["target"]) == (kernel, target)]
        registers, shared, spilled = (
            sorted(values)
            for values in (
                [row["registers"] for row in some],
                [row["shared_bytes"] / 1024 for row in some],
                [row["spill_stores"] + row["spill_loads"] for row in some],
            )
        )
        lines.append(
            f"| {kernel} | {target} | {len(some)} | {span(registers)} | {span(shared, '.1f')} | {span(spilled)} |"
        )
    return "\n".join(lines) + "\n"


def span(values: list, form: str = "d") -> str:
    """The least and the greatest of sorted numbers, or the one that they all are."""
    low, high = format(values[0], form), format(values[-1], form)
    return low if low == high else f"{low} to {high}"


def main(arguments: list[str] | None = None) -> None:
    """Build, and print the table."""
    parser = argparse.ArgumentParser("python -m parsimony.kernels.build", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results/kernels"), help="folder of the cubins")
    parser.add_argument("--kernel", action="append", choices=NAMES, help="only this one (may be given again)")
    options = parser.parse_args(arguments)
    print(as_text(build(options.out, tuple(options.kernel or NAMES))), end="")


if __name__ == "__main__":
    main()
