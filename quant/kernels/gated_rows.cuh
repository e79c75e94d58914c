// What a gated product does with its sums: silu(gate) · linear, written in E4M3 with a scale per row. Sums are in 16 bit,
// which does not overflow: see WIDEST in order.py. USUAL and ROUNDED_UP are norm.py's.

#define OUTPUTS (COLUMNS / 2)  // of a tile
#define FACTORS COLUMNS        // those of the linear parts, then those of the gates
#define MOST_HALF 60000.0f

typedef u32 Sums[2][COLUMNS / 4];  // two to a word

__device__ __forceinline__ u16 factor_of(float scale, float) { return (u16)pack_half(scale, 0.0f); }

// Of a row of `depth` numbers with this scale: times 448 and a column's reach no output is greater. A row of zeros has a
// bound that can be divided by.
__device__ __forceinline__ float scale_of_results(float scale, float unit, int depth) {
  const float square = depth * (USUAL * USUAL * (ROUNDED_UP * ROUNDED_UP) / 448.0f);
  const float safe = fmaxf(scale, 1.0f / (square * MOST_HALF * unit));
  return safe * safe * square;
}

// Two outputs. half: half the row's scale, twice, as to_codes is.
__device__ __forceinline__ u32 gated(u32 gate, u32 linear, u32 gate_factor, u32 factor, u32 half, u32 to_codes) {
  const u32 x = halves_mul(halves_mul(gate, gate_factor), half);  // silu(2x) = x + x·tanh(x)
  // In this order: a gate of next to nothing, times its part of the codes, is a number, and so is the linear part's factor.
  return halves_mul(halves_mul(halves_fma(x, halves_tanh(x), x), to_codes), halves_mul(linear, factor));
}

// Columns 16m + 2q + e of a tile are the gates, 16m + 8 + 2q + e the linear parts of outputs 64·(m/8) + 16q + 2·(m%8) + e.
// to: a thread's first row at the tile's first output, of which `left` are inside. unit: what the gates' factors were
// divided by and those of the linear parts multiplied with. below: as of plain rows.
__device__ __forceinline__ void store_gated_rows(
    u8 *to, const Sums &acc, const u16 *factor, const float (&scale)[4], float unit, int depth, int below, int width, int left,
    int q) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (row_at(i) >= below) break;
    const float mine = scale[i] * unit, ratio = __fdividef(scale[i], scale_of_results(scale[i], unit, depth) * unit);
    const u32 half = pack_half(0.5f * mine, 0.5f * mine), to_codes = pack_half(ratio, ratio);
    const u32 *sums = acc[i / 2] + i % 2;
    u8 *row = to + row_at(i) * (u64)width;
#pragma unroll
    for (int b = 0; b < OUTPUTS / 64; ++b) {
      u32 word[4];
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        const int m = 8 * b + 2 * w, at = 64 * b + 16 * q + 4 * w;
        const uint2 f = *(const uint2 *)(factor + at), g = *(const uint2 *)(factor + OUTPUTS + at);
        word[w] = halves_to_e4m3(
            gated(sums[4 * m], sums[4 * m + 2], g.x, f.x, half, to_codes),
            gated(sums[4 * m + 4], sums[4 * m + 6], g.y, f.y, half, to_codes));
      }
      if (64 * b + 16 * q < left) *(uint4 *)(row + 64 * b + 16 * q) = make_uint4(word[0], word[1], word[2], word[3]);
    }
  }
}
