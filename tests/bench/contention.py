"""What ordinary instructions get, and what they cost, while the tensor cores are busy with E4M3.

    python tests/bench/contention.py [--out FILE]

Needs one Hopper GPU, PyTorch with CUDA and nothing else. On every multiprocessor one warpgroup multiplies without pause
and another repeats one instruction on sixteen registers; each line names the instructions that one scheduler issues a
clock, alone and beside the products, and the share of the tensor cores' rate that is left. The attention and the
experts' kernels are written by it (ARCHITECTURE 23).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from provenance import commit

CLOCKS = 100_000
ROUNDS = 200  # of eight times four products: more than fit into CLOCKS
COLUMNS = 64
INSTRUCTIONS = {
    "fma, 32 bit": ("f", "fma.rn.f32 %0, %0, %1, %2;"),
    "mul, 32 bit": ("f", "mul.f32 %0, %0, %1;"),
    "max, 32 bit": ("f", "max.f32 %0, %0, %1;"),
    "power of two": ("f", "ex2.approx.ftz.f32 %0, %0;"),
    "fma, two halves": ("r", "fma.rn.f16x2 %0, %0, %1, %2;"),
    "max, two halves": ("r", "max.f16x2 %0, %0, %1;"),
    "fma, two bfloat16": ("r", "fma.rn.bf16x2 %0, %0, %1, %2;"),
    "logic": ("r", "lop3.b32 %0, %0, %1, %2, 0x6a;"),
    "bytes of two words": ("r", "prmt.b32 %0, %0, %1, %2;"),
    "integer add": ("r", "add.u32 %0, %0, %1;"),
    "integer multiply": ("r", "mad.lo.u32 %0, %0, %1, %2;"),
}
"""The register's type and PTX."""

KERNEL = r"""
extern "C" __global__ void __launch_bounds__(256, 1) contend(long long *out, int products, int others) {
  extern __shared__ u8 dynamic[];
  const u32 base = (shared_address(dynamic) + 1023) & ~1023u;
  for (int i = threadIdx.x; i < 16384; i += blockDim.x) store_shared(base + 4 * i, 0);
  barriers_visible();
  __syncthreads();
  const int group = uniform(threadIdx.x / 128);
  const long long began = clock64();
  long long now = began, count = 0;
  float sum = 0.0f;
  if (group == 0 && products) {
    float d[COLUMNS / 2] = {};
    const u64 b = matrix_descriptor(base);
    settle(d);
    for (int round = 0; round < ROUNDS; ++round) {
      for (int r = 0; r < 8; ++r) {
        products_begin();
#pragma unroll
        for (int g = 0; g < 4; ++g) multiply(d, 0, 0, 0, 0, b + 2 * g, 1);
        products_commit();
        products_wait<1>();
      }
      const long long later = clock64();
      if (later - began < CLOCKS) now = later, count += 32;
    }
    products_wait<0>();
    settle(d);
    for (int i = 0; i < COLUMNS / 2; ++i) sum += d[i];
  }
  if (group == 1 && others) {
    TYPE x[16], y = (TYPE)(1 + blockIdx.x), z = (TYPE)(3 + blockIdx.x);
    for (int i = 0; i < 16; ++i) x[i] = (TYPE)(threadIdx.x + i);
    while (now - began < CLOCKS) {
      for (int r = 0; r < 4; ++r) {
#pragma unroll
        for (int i = 0; i < 128; ++i)
          asm volatile(INSTRUCTION : "+" CONSTRAINT(x[i % 16]) : CONSTRAINT(y), CONSTRAINT(z));
      }
      now = clock64(), count += 512;
    }
    for (int i = 0; i < 16; ++i) sum += (float)x[i];
  }
  long long *mine = out + 4 * blockIdx.x + 2 * group;
  if (threadIdx.x % 128 == 0) mine[0] = count, mine[1] = now - began;
  if (sum == 1.2345f) out[0] = 0;  // or nothing of all this would be computed
}
"""


def source(constraint: str, instruction: str) -> str:
    """The kernel for one instruction."""
    from model.engine.cuda_module import hopper_source, product_source

    defined = {
        "CLOCKS": CLOCKS,
        "ROUNDS": ROUNDS,
        "COLUMNS": COLUMNS,
        "TYPE": "float" if constraint == "f" else "u32",
        "CONSTRAINT": f'"{constraint}"',
        "INSTRUCTION": f'"{instruction}"',
    }
    lines = "".join(f"#define {name} {value}\n" for name, value in defined.items())
    return hopper_source() + product_source("multiply", COLUMNS, a_in_registers=True) + lines + KERNEL


def main() -> None:
    """Measure every instruction; print, and write where asked."""
    import torch

    from model.engine.cuda_module import address, load_kernel, number

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    blocks = torch.cuda.get_device_properties(0).multi_processor_count
    counts = torch.zeros(blocks, 2, 2, dtype=torch.int64, device="cuda")
    found = {}
    print("| instruction | alone, a clock | beside products | products left |\n|---|---|---|---|")
    for name, (constraint, instruction) in INSTRUCTIONS.items():
        kernel = load_kernel(source(constraint, instruction), "contend", 4 * 16384 + 1024)

        def rates(products: int, others: int, kernel=kernel) -> list[float]:  # type: ignore[no-untyped-def]
            kernel.launch(blocks, 256, [address(counts), number(products), number(others)])
            seen = counts.double().mean(0)
            return [float(seen[group, 0] / seen[group, 1].clamp_min(1)) for group in range(2)]

        alone, busy, both = rates(0, 1)[1], rates(1, 0)[0], rates(1, 1)
        found[name] = {"alone": alone, "beside_products": both[1], "products_left": both[0] / busy}
        print(f"| {name} | {alone:.2f} | {both[1]:.2f} | {both[0] / busy:.0%} |", flush=True)
    result = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "commit": commit(), "found": found}
    if out:
        out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
