// What a product in E4M3 does with its sums: scaled by their columns' factors and written. The scale of a row of results is
// its own times `unit`, the same for all. Sums are in 16 bit: what is beyond becomes the greatest, as results that are
// several times smaller do.

typedef u32 Sums[2][COLUMNS / 4];  // two to a word

__device__ __forceinline__ u16 factor_of(float scale, float unit) { return (u16)pack_half(__fdividef(scale, unit), 0.0f); }

typedef u8 Result;

struct Part {};  // nothing is added to
template <int ODD>
__device__ __forceinline__ void load(Part &, const u8 *, int) {}

__device__ __forceinline__ float scale_of_results(float scale, float unit, int) { return scale * unit; }

// As of plain rows.
template <int ODD>
__device__ __forceinline__ void store_rows(
    u8 *to, const Sums &acc, const u16 *factor, const float (&)[4], int below, int width, int left, const Part &) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (row_at(i) >= below) break;
    const u32 *sums = acc[i / 2] + i % 2;
    u8 *row = to + row_at(i) * (u64)width;
#pragma unroll
    for (int u = 0; u < UNITS; ++u) {
      const int at = unit_at<ODD>(u);
      const u32 *of = sums + 2 * eights_of_unit<ODD>(u);
      const uint4 s = *(const uint4 *)(factor + at);
      const u32 low = halves_to_e4m3(halves_mul(of[0], s.x), halves_mul(of[2], s.y));
      const u32 high = halves_to_e4m3(halves_mul(of[4], s.z), halves_mul(of[6], s.w));
      if (at < left) *(uint2 *)(row + at) = make_uint2(low, high);
    }
    if (MIDWAY && half_at<ODD>() < left) {
      const u32 *of = sums + 2 * eights_of_half<ODD>();
      const uint2 s = *(const uint2 *)(factor + half_at<ODD>());
      *(u32 *)(row + half_at<ODD>()) = halves_to_e4m3(halves_mul(of[0], s.x), halves_mul(of[2], s.y));
    }
  }
}
