// What an experts' product does with its sums: scaled by their columns' factors and written in E4M3. The scale of a row of
// results is its own times `unit`, the same for all. Sums are rounded to halves before; what is beyond becomes the greatest.

__device__ __forceinline__ u16 factor_of(float x) { return (u16)pack_half(x, 0.0f); }

typedef u8 Result;

struct Part {};  // nothing is added to
template <int ODD>
__device__ __forceinline__ void load(Part &, const u8 *, int) {}

__device__ __forceinline__ float scale_of_results(float scale, float unit) { return scale * unit; }

__device__ __forceinline__ u32 scaled(const float *sums, u32 factor) {
  return halves_mul(pack_half(sums[0], sums[1]), factor);
}

// As of plain rows.
template <int ODD>
__device__ __forceinline__ void store_rows(
    u8 *to, const Sums &acc, const u16 *factor, const float (&)[4], int below, int width, int left, const Part &) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (row_at(i) >= below) break;
    const float *sums = acc[i / 2] + 2 * (i % 2);
    u8 *row = to + row_at(i) * (u64)width;
#pragma unroll
    for (int u = 0; u < UNITS; ++u) {
      const int at = unit_at<ODD>(u);
      const float *of = sums + sums_of_unit<ODD>(u);
      const uint4 s = *(const uint4 *)(factor + at);
      const u32 low = halves_to_e4m3(scaled(of, s.x), scaled(of + 4, s.y));
      const u32 high = halves_to_e4m3(scaled(of + 8, s.z), scaled(of + 12, s.w));
      if (at < left) *(uint2 *)(row + at) = make_uint2(low, high);
    }
    if (MIDWAY && half_at<ODD>() < left) {
      const float *of = sums + sums_of_half<ODD>();
      const uint2 s = *(const uint2 *)(factor + half_at<ODD>());
      *(u32 *)(row + half_at<ODD>()) = halves_to_e4m3(scaled(of, s.x), scaled(of + 4, s.y));
    }
  }
}
