// What a gated product does with its sums: silu(gate) · linear, written in E4M3 with a scale per row.

#define OUTPUTS (COLUMNS / 2)  // of a tile
#define FACTORS COLUMNS        // those of the linear parts, then those of the gates

// COUNT outputs whose pairs of sums lie four registers apart, scaled and as codes. half: half the row's scale, twice, as
// to_codes is.
template <int COUNT>
__device__ __forceinline__ u32 gated(const float *pairs, const u16 *factor, u32 half, u32 to_codes) {
  float y[4] = {};
#pragma unroll
  for (int k = 0; k < COUNT; k += 2) {
    const u32 gate = pack_bf16(pairs[4 * k], pairs[4 * k + 4]), linear = pack_bf16(pairs[4 * k + 1], pairs[4 * k + 5]);
    const u32 x = bf16_mul(bf16_mul(gate, *(const u32 *)(factor + OUTPUTS + k)), half);  // silu(2x) = x + x·tanh(x)
    const u32 z = bf16_mul(
        bf16_fma(x, bf16_tanh(x), x), bf16_mul(bf16_mul(linear, *(const u32 *)(factor + k)), to_codes));
    y[k] = bf16_low(z), y[k + 1] = bf16_high(z);
  }
  return pack_e4m3(y[0], y[1], y[2], y[3]);
}

// Column 8j + 2q + e of a tile is the gate (e = 0) or the linear part (e = 1) of output 16q + j, from j = 16 on of
// 64 + 4q + j - 16, from j = 20 on of 80 + 2q + j - 20. to: a thread's first row at the tile's first output, of which
// `left` are inside. bound: times 448 no output of its row is greater. below: as of plain rows.
__device__ __forceinline__ void store_gated_rows(
    u8 *to, const float (&acc)[2][COLUMNS / 2], const u16 *factor, const float (&scale)[4], const float (&bound)[4],
    int below, int width, int left, int q) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (row_at(i) >= below) break;
    const float ratio = __fdividef(scale[i], bound[i]);
    const u32 half = pack_bf16(0.5f * scale[i], 0.5f * scale[i]), to_codes = pack_bf16(ratio, ratio);
    const float *pairs = acc[i / 2] + 2 * (i % 2);
    u8 *row = to + row_at(i) * (u64)width;
#pragma unroll
    for (int w = 0; w < 4; w += 2) {
      const u32 low = gated<4>(pairs + 16 * w, factor + 16 * q + 4 * w, half, to_codes);
      const u32 high = gated<4>(pairs + 16 * (w + 1), factor + 16 * q + 4 * (w + 1), half, to_codes);
      if (16 * q + 4 * w < left) *(uint2 *)(row + 16 * q + 4 * w) = make_uint2(low, high);
    }
    const u32 word = gated<4>(pairs + 64, factor + 64 + 4 * q, half, to_codes);
    if (64 + 4 * q < left) *(u32 *)(row + 64 + 4 * q) = word;
    const u32 last = gated<2>(pairs + 80, factor + 80 + 2 * q, half, to_codes);
    if (80 + 2 * q < left) *(u16 *)(row + 80 + 2 * q) = (u16)last;
  }
}
