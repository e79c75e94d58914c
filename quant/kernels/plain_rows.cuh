// What a plain product does with its sums: scaled, added to what is there (ADDS), and written in bfloat16, eight columns at
// a time.

typedef float Sums[2][COLUMNS / 2];

__device__ __forceinline__ u16 factor_of(float scale, float) { return (u16)pack_bf16(scale, 0.0f); }

typedef u16 Result;

// A thread's part of a row of a tile: eight columns of each whole unit and four of a half one.
struct Part {
  uint4 unit[UNITS];
  uint2 half;
};

// left: columns from there to the end of the row.
template <int ODD>
__device__ __forceinline__ void load(Part &part, const u16 *from, int left) {
#pragma unroll
  for (int u = 0; u < UNITS; ++u)
    if (unit_at<ODD>(u) < left) part.unit[u] = load_eight(from + unit_at<ODD>(u));
  if (MIDWAY && half_at<ODD>() < left) part.half = load_four(from + half_at<ODD>());
}

// Two sums times the factors of their columns and of the row, and what they are added to. Sums are rounded before: products
// in 32 bit would keep the tensor cores from the other warpgroup's.
__device__ __forceinline__ u32 scaled(const float *sums, u32 factor, u32 row, u32 held) {
  const u32 both = bf16_mul(pack_bf16(sums[0], sums[1]), factor);
  return ADDS ? bf16_fma(both, row, held) : bf16_mul(both, row);
}

// What the next row is added to, if there is one, comes in the place of this one's.
template <int ODD>
__device__ __forceinline__ void store_row(
    u16 *to, const float *sums, const u16 *factor, u32 row, int left, Part &held, const u16 *next, bool more) {
#pragma unroll
  for (int u = 0; u < UNITS; ++u) {
    const int at = unit_at<ODD>(u);
    const float *of = sums + 4 * eights_of_unit<ODD>(u);
    const uint4 s = *(const uint4 *)(factor + at), h = held.unit[u];
    const uint4 words = make_uint4(
        scaled(of, s.x, row, h.x), scaled(of + 4, s.y, row, h.y), scaled(of + 8, s.z, row, h.z),
        scaled(of + 12, s.w, row, h.w));
    const bool inside = at < left;
    if (ADDS && more && inside) held.unit[u] = load_eight(next + at);  // before the store: it would be waited for
    if (inside) store_eight(to + at, words);
  }
  if (MIDWAY && half_at<ODD>() < left) {
    const int at = half_at<ODD>();
    const float *of = sums + 4 * eights_of_half<ODD>();
    const uint2 s = *(const uint2 *)(factor + at), h = held.half;
    const uint2 words = make_uint2(scaled(of, s.x, row, h.x), scaled(of + 4, s.y, row, h.y));
    if (ADDS && more) held.half = load_four(next + at);
    store_four(to + at, words);
  }
}

// The rows of which a thread has parts, with `to` in the first of them; `below` rows are somebody's from there on.
template <int ODD>
__device__ __forceinline__ void store_rows(
    u16 *to, const Sums &acc, const u16 *factor, const float (&scale)[4], int below, int width, int left,
    Part &held) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (row_at(i) >= below) break;
    u16 *next = to + (row_at(i + 1) - row_at(i)) * (u64)width;
    asm volatile("" : "+l"(next));  // one address for all that comes from there
    const bool more = i < 3 && row_at(i + 1) < below;
    store_row<ODD>(to, acc[i / 2] + 2 * (i % 2), factor, pack_bf16(scale[i], scale[i]), left, held, next, more);
    to = next;
  }
}
