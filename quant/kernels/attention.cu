// Attention of all beams of a request over its one context in E4M3; see attention.py for the layouts.
// A block has 192 queries of one head: one warp copies keys and values, three warpgroups of 64 queries each go through
// them half a tile at a time: score, weigh, mix. A warpgroup waits for its own products, and while it waits or weighs,
// the tensor cores work for the other two; three of them is what the registers allow.

#define KEYS 128
#define WIDTH 128
#define GROUPS 3
#define QUERIES (64 * GROUPS)
#define HALF (KEYS / 2)
#define TILE (KEYS * WIDTH)
#define STAGE_BYTES (2 * TILE)

__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xFFFFFFFFu, x, 2));
}

__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xFFFFFFFFu, x, 1);
  return x + __shfl_xor_sync(0xFFFFFFFFu, x, 2);
}

// Thread t of a warp holds two rows of half a tile, t/4 and t/4 + 8, and of these the columns 8j + 2q + e, q being t%4:
// s[4j + e] and s[4j + 2 + e].
typedef float Scores[HALF / 2];

// Scores of keys at or beyond `length` become minus infinity. Column 8j + 2q + e of half a tile is key
// 32·(j/4) + 16·(j%4/2) + 4q + 2·(j%2) + e of it.
__device__ __forceinline__ void mask(Scores &s, int begin, int length, int q) {
#pragma unroll
  for (int j = 0; j < HALF / 8; ++j) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int key = begin + 32 * (j / 4) + 16 * (j % 4 / 2) + 4 * q + 2 * (j % 2) + e;
      if (key >= length) s[4 * j + e] = s[4 * j + 2 + e] = __int_as_float(0xFF800000);
    }
  }
}

// A warpgroup's sums so far and what its rows need on the way.
struct Rows {
  float mixed[WIDTH / 2];
  float factor[2], top[2], total[2];  // total: this thread's share of the sum of weights
};

// Weights go up to 2^7, so that E4M3 keeps the small ones, too. The largest score that they refer to is left behind
// until a score exceeds it by so much that a weight might pass 448.
#define TOP_BITS 7.0f
#define SLACK_BITS 1.75f

typedef u32 Weights[HALF / 8];

// Scores become weights 2^(s·factor - top + 7), ready to be the first operand of the second product: register
// r of 32 keys holds row r%2 and keys 16·(r/2) + 4q … + 3, which is where the order of the stored keys has put them.
// What has been summed up so far is brought to the same reference.
__device__ __forceinline__ void weigh(Scores &s, Weights &p, Rows &rows) {
  float floor[2], shrink[2], sum[2][2] = {};
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float high[4];  // four abreast, or each comparison would wait for the one before
#pragma unroll
    for (int i = 0; i < 4; ++i) high[i] = fmaxf(s[4 * i + 2 * h], s[4 * i + 2 * h + 1]);
#pragma unroll
    for (int j = 4; j < HALF / 8; ++j) high[j % 4] = fmaxf(high[j % 4], fmaxf(s[4 * j + 2 * h], s[4 * j + 2 * h + 1]));
    const float most = quad_max(fmaxf(fmaxf(high[0], high[1]), fmaxf(high[2], high[3]))) * rows.factor[h];
    const float now = most > rows.top[h] + SLACK_BITS ? most : rows.top[h];
    shrink[h] = power_of_two(rows.top[h] - now);
    rows.top[h] = now;
    floor[h] = TOP_BITS - now;
  }
#pragma unroll
  for (int i = 0; i < HALF / 8; ++i) {
    const int j = i / 4 * 4 + i % 4 / 2 * 2, h = i % 2;
    float w[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      w[k] = power_of_two(fmaf(s[4 * (j + k / 2) + 2 * h + k % 2], rows.factor[h], floor[h]));
      sum[h][k % 2] += w[k];
    }
    p[i] = pack_e4m3(w[0], w[1], w[2], w[3]);
  }
#pragma unroll
  for (int h = 0; h < 2; ++h)
    rows.total[h] = fmaf(rows.total[h], shrink[h], sum[h][0] + sum[h][1]);
  if (__any_sync(0xFFFFFFFFu, shrink[0] != 1.0f || shrink[1] != 1.0f)) {
#pragma unroll
    for (int i = 0; i < WIDTH / 2; ++i) rows.mixed[i] *= shrink[i % 4 / 2];
  }
}

struct Work {
  int first, head, request, group, tiles, length;
};

// Where the last of a head's blocks has fewer queries, it must not always meet the same multiprocessors.
__device__ __forceinline__ Work work_of(int item, int blocks, int heads, int groups, const int *lengths) {
  Work w;
  const int rotation = gridDim.x % blocks == 0 ? item / gridDim.x : 0;
  w.first = (item + rotation) % blocks * QUERIES;
  w.head = item / blocks % heads;
  w.request = item / (blocks * heads);
  w.group = w.request * groups + w.head / (heads / groups);
  w.length = lengths[w.request];
  w.tiles = (w.length + KEYS - 1) / KEYS;
  return w;
}

struct Ring {
  int stage, phase;
  __device__ __forceinline__ void next() {
    if (++stage == STAGES) stage = 0, phase ^= 1;
  }
};

// A warpgroup's view of the shared memory.
struct Shared {
  u32 tiles, keys_full, values_full, empty;

  // Scores of half of the tile in the ring's stage, on their way.
  template <int PART>
  __device__ __forceinline__ void score(Scores &s, const u32 (&a)[WIDTH / 8], const Ring &at) const {
    if (PART == 0) barrier_wait(keys_full + 8 * at.stage, at.phase);
    products_begin();
    const u64 k = matrix_descriptor(tiles + at.stage * STAGE_BYTES + PART * HALF * WIDTH);
#pragma unroll
    for (int g = 0; g < WIDTH / 32; ++g) product_scores(s, a[4 * g], a[4 * g + 1], a[4 * g + 2], a[4 * g + 3], k + 2 * g, g);
    products_commit();
  }

  // Values of that half times its weights, on their way.
  template <int PART>
  __device__ __forceinline__ void mix(float (&o)[WIDTH / 2], const Weights &p, const Ring &at) const {
    if (PART == 0) barrier_wait(values_full + 8 * at.stage, at.phase);
    products_begin();
    const u64 v = matrix_descriptor(tiles + at.stage * STAGE_BYTES + TILE) + PART * HALF / 16;
#pragma unroll
    for (int g = 0; g < HALF / 32; ++g)
      product_values(o, p[4 * g], p[4 * g + 1], p[4 * g + 2], p[4 * g + 3], v + 2 * g, 1);
    products_commit();
  }
};

// One tile, the scores of its first half on their way; on return those of the next tile's are, where there is MORE.
template <bool MORE>
__device__ __forceinline__ void tile(
    Scores &s, Weights &p, const u32 (&a)[WIDTH / 8], int begin, int length, const Shared &shared, Ring &ring, Rows &rows,
    int q) {
  products_wait<0>();
  if (begin + HALF > length) mask(s, begin, length, q);
  weigh(s, p, rows);
  shared.mix<0>(rows.mixed, p, ring);
  shared.score<1>(s, a, ring);
  products_wait<0>();
  if (begin + KEYS > length) mask(s, begin + HALF, length, q);
  weigh(s, p, rows);
  shared.mix<1>(rows.mixed, p, ring);
  const u32 done = shared.empty + 8 * ring.stage;
  ring.next();
  if (MORE) shared.score<0>(s, a, ring);
  products_wait<0>();
  if (threadIdx.x % 32 == 0) barrier_arrive(done);
}

extern "C" __global__ void __launch_bounds__(128 * (GROUPS + 1), 1) cross_attention(
    const __grid_constant__ TensorMap key, const __grid_constant__ TensorMap value, const u16 *queries,
    const int *lengths, const float *key_scale, const float *value_scale, const float *out_scale, u8 *out, float *scale,
    int beams, int padded, int d, int heads, int groups, int blocks, int items, float sharpness) {
  extern __shared__ u8 dynamic[];
  __shared__ alignas(8) u64 barriers[3 * STAGES];
  const u32 base = (shared_address(dynamic) + 1023) & ~1023u;
  Shared shared;
  shared.tiles = base;
  shared.keys_full = shared_address(barriers);
  shared.values_full = shared.keys_full + 8 * STAGES;
  shared.empty = shared.keys_full + 16 * STAGES;
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; ++s) {
      barrier_init(shared.keys_full + 8 * s, 1);
      barrier_init(shared.values_full + 8 * s, 1);
      barrier_init(shared.empty + 8 * s, 4 * GROUPS);
    }
    prefetch_map(&key);
    prefetch_map(&value);
  }
  barriers_visible();
  __syncthreads();
  in_turn();
  if (threadIdx.x < 128) {
    registers_shrink<24>();
    if (threadIdx.x != 0) return;
    Ring at = {0, 0};
    for (int item = blockIdx.x; item < items; item += gridDim.x) {
      const Work w = work_of(item, blocks, heads, groups, lengths);
      for (int t = 0; t < w.tiles; ++t) {
        barrier_wait(shared.empty + 8 * at.stage, at.phase ^ 1);
        const u32 to = base + at.stage * STAGE_BYTES;
        barrier_expect(shared.keys_full + 8 * at.stage, TILE);
        copy_box(to, &key, shared.keys_full + 8 * at.stage, 0, w.group * padded + t * KEYS);
        barrier_expect(shared.values_full + 8 * at.stage, TILE);
        copy_box(to + TILE, &value, shared.values_full + 8 * at.stage, t * KEYS, w.group * WIDTH);
        at.next();
      }
    }
    return;
  }
  registers_grow<160>();
  const int group = threadIdx.x / 128 - 1, lane = threadIdx.x % 32, q = lane % 4;
  const int local = threadIdx.x % 128 / 32 * 16 + lane / 4;  // row in the warpgroup; the other is 8 below
  Ring ring = {0, 0};
  for (int item = blockIdx.x; item < items; item += gridDim.x) {
    const Work w = work_of(item, blocks, heads, groups, lengths);
    if (w.first + 64 * group >= beams) {  // nothing to do but to let the others go on
      for (int t = 0; t < w.tiles; ++t, ring.next()) {
        barrier_wait(shared.values_full + 8 * ring.stage, ring.phase);
        if (lane == 0) barrier_arrive(shared.empty + 8 * ring.stage);
      }
      continue;
    }
    u32 a[WIDTH / 8];
    Rows rows;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = local + 8 * h, beam = w.first + 64 * group + row;
      uint2 raw[WIDTH / 16];
      const u16 *from = queries + (u64)(w.request * beams + beam) * d + w.head * WIDTH + 4 * q;
      float high = 0.0f;
#pragma unroll
      for (int c = 0; c < WIDTH / 16; ++c) {
        raw[c] = beam < beams ? *(const uint2 *)(from + 16 * c) : make_uint2(0, 0);
        high = fmaxf(high, fmaxf(fabsf(bf16_low(raw[c].x)), fabsf(bf16_high(raw[c].x))));
        high = fmaxf(high, fmaxf(fabsf(bf16_low(raw[c].y)), fabsf(bf16_high(raw[c].y))));
      }
      const float one = fmaxf(quad_max(high) * (1.0f / 448.0f), 7.888609052210118e-31f), inverse = 1.0f / one;
#pragma unroll
      for (int c = 0; c < WIDTH / 16; ++c) {
        a[c / 2 * 4 + c % 2 * 2 + h] = pack_e4m3(
            bf16_low(raw[c].x) * inverse, bf16_high(raw[c].x) * inverse, bf16_low(raw[c].y) * inverse,
            bf16_high(raw[c].y) * inverse);
      }
      rows.factor[h] = one * sharpness * key_scale[w.group];
      rows.top[h] = -1e30f;
      rows.total[h] = 0.0f;
    }
    Scores s;
    Weights p;
#pragma unroll
    for (int i = 0; i < WIDTH / 2; ++i) rows.mixed[i] = 0.0f;
    shared.score<0>(s, a, ring);
    int begin = 0;
    for (; begin + KEYS < w.length; begin += KEYS) tile<true>(s, p, a, begin, w.length, shared, ring, rows, q);
    tile<false>(s, p, a, begin, w.length, shared, ring, rows, q);
    const Work done = work_of(item, blocks, heads, groups, lengths);  // again: registers are scarce in between
    const float one = out_scale[done.request], to_codes = value_scale[done.group] / one;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float f = to_codes / quad_sum(rows.total[h]);
      const int beam = done.first + 64 * group + local + 8 * h;
      if (beam >= beams) continue;
      const u64 at = (u64)(done.request * beams + beam);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        u32 word[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float *four = rows.mixed + 4 * (8 * half + 2 * i) + 2 * h;
          word[i] = pack_e4m3(four[0] * f, four[1] * f, four[4] * f, four[5] * f);
        }
        *(uint4 *)(out + at * d + done.head * WIDTH + 64 * half + 16 * q) = make_uint4(word[0], word[1], word[2], word[3]);
      }
      if (done.head == 0 && q == 0) scale[at] = one;
    }
  }
}
