// Attention of all beams of a request over its one context in E4M3; see attention.py for the layouts.
// A block has 192 queries of one head: one warp copies keys and values, three warpgroups of 64 queries each go through
// them half a tile at a time: score, weigh, mix. Other instructions and the tensor cores hold each other up (both want the
// registers), so what counts is how few there are: scores come as pairs of halves and stay so.

#define KEYS 128
#define WIDTH 128
#define GROUPS 3
#define QUERIES (64 * GROUPS)
#define HALF (KEYS / 2)
#define TILE (KEYS * WIDTH)
#define ONES (8 * KEYS)  // behind the values of 128 features eight of ones: what is mixed of them is the sum of weights
#define STAGE_BYTES (2 * TILE + ONES)
#define MIXED (WIDTH + 8)

// Thread t of a warp holds two rows of half a tile, t/4 and t/4 + 8, and of these the columns 8j + 2q + e, q being t%4:
// the pairs of e are s[2j] and s[2j + 1].
typedef u32 Scores[HALF / 4];
typedef u32 Weights[HALF / 8];

// Scores of keys at or beyond `length` become minus infinity. Column 8j + 2q + e of half a tile is key
// 32·(j/4) + 16·(j%4/2) + 4q + 2·(j%2) + e of it.
__device__ __forceinline__ void mask(Scores &s, int begin, int length, int q) {
#pragma unroll
  for (int j = 0; j < HALF / 8; ++j) {
    const int left = length - begin - (32 * (j / 4) + 16 * (j % 4 / 2) + 4 * q + 2 * (j % 2));
    const u32 kept = left > 1 ? 0xFFFFFFFFu : left > 0 ? 0x0000FFFFu : 0u;
#pragma unroll
    for (int h = 0; h < 2; ++h) s[2 * j + h] = s[2 * j + h] & kept | 0xFC00FC00u & ~kept;
  }
}

// A code of E4M3 is a logarithm with straight lines between powers of two: eight times the exponent plus eighths of the
// mantissa. So a weight's code is taken to be 8·log2(weight) + 56, rounded, and no power is ever computed. That makes
// weights up to 6.1 % too large, 4.1 % on average, which falls out with their sum; what is left, 1.9 % (root mean
// square), is less than the 2.6 % by which E4M3 rounds them anyway.
//
// The codes are made in halves from 1024 on, whose last bits they then are: s·factor + offset.
#define LEAST 0x64006400u  // the code of zero
#define MOST 0x647E647Eu   // the code of 448
#define START 1136.0f      // the largest score's at first: a weight of 2^7
#define LIMIT 1150.0f      // MOST as a number

// A warpgroup's sums so far and what its rows need on the way, the latter twice side by side.
struct Rows {
  float mixed[MIXED / 2];
  float total[2];
  u32 factor[2], offset[2];
};

__device__ __forceinline__ void encode(const Scores &s, Scores &codes, const Rows &rows) {
#pragma unroll
  for (int i = 0; i < HALF / 4; ++i) codes[i] = halves_max(halves_fma(s[i], rows.factor[i % 2], rows.offset[i % 2]), LEAST);
}

// Move the reference of rows whose codes would pass the greatest, and what has been summed up so far with it.
__device__ __forceinline__ void refer(const Scores &s, Rows &rows) {
  float shrink[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    u32 high = s[h];
#pragma unroll
    for (int i = 1; i < HALF / 8; ++i) high = halves_max(high, s[2 * i + h]);
    const float before = half_low(rows.offset[h]);
    const float most = quad_max(fmaxf(half_low(high), half_high(high))) * half_low(rows.factor[h]);
    shrink[h] = 1.0f;
    if (most + before > LIMIT) {
      rows.offset[h] = pack_half(START - most, START - most);
      shrink[h] = power_of_two((half_low(rows.offset[h]) - before) * 0.125f);
    }
    rows.total[h] *= shrink[h];
  }
#pragma unroll
  for (int i = 0; i < MIXED / 2; ++i) rows.mixed[i] *= shrink[i % 4 / 2];
}

// Scores become weights, ready to be the first operand of the second product: register r of 32 keys holds row r%2 and
// keys 16·(r/2) + 4q … + 3, which is where the order of the stored keys has put them.
__device__ __forceinline__ void weigh(const Scores &s, Weights &p, Rows &rows) {
  Scores codes;
  encode(s, codes, rows);
  u32 most[2] = {codes[0], codes[1]};
#pragma unroll
  for (int i = 2; i < HALF / 4; i += 2) most[i / 2 % 2] = halves_max(halves_max(most[i / 2 % 2], codes[i]), codes[i + 1]);
  if (__any_sync(0xFFFFFFFFu, any_half_above(halves_max(most[0], most[1]), MOST))) {
    refer(s, rows);
    encode(s, codes, rows);
  }
#pragma unroll
  for (int i = 0; i < HALF / 8; ++i) {
    const int at = i / 2 * 4 + i % 2;
    p[i] = __byte_perm(codes[at], codes[at + 2], 0x6420);
  }
  settle(p);
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
  w.length = uniform(lengths[w.request]);
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
  u64 first;  // the first stage's tiles, as a descriptor
  u32 keys_full, values_full, empty;

  // Scores of half of the tile in the ring's stage, on their way.
  template <int PART>
  __device__ __forceinline__ void score(Scores &s, const u32 (&a)[WIDTH / 8], const Ring &at) const {
    if (PART == 0) barrier_wait(keys_full + 8 * at.stage, at.phase);
    products_begin();
    const u64 k = first + at.stage * (STAGE_BYTES / 16) + PART * (HALF * WIDTH / 16);
#pragma unroll
    for (int g = 0; g < WIDTH / 32; ++g) product_scores(s, a[4 * g], a[4 * g + 1], a[4 * g + 2], a[4 * g + 3], k + 2 * g, g);
    products_commit();
  }

  // Values of that half times its weights, on their way.
  template <int PART>
  __device__ __forceinline__ void mix(float (&o)[MIXED / 2], const Weights &p, const Ring &at) const {
    if (PART == 0) barrier_wait(values_full + 8 * at.stage, at.phase);
    products_begin();
    const u64 v = first + at.stage * (STAGE_BYTES / 16) + TILE / 16 + PART * HALF / 16;
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
  if (!MORE && begin + HALF > length) mask(s, begin, length, q);
  weigh(s, p, rows);
  shared.mix<0>(rows.mixed, p, ring);
  shared.score<1>(s, a, ring);
  products_wait<0>();
  if (!MORE && begin + KEYS > length) mask(s, begin + HALF, length, q);
  weigh(s, p, rows);
  shared.mix<1>(rows.mixed, p, ring);
  const u32 done = shared.empty + 8 * ring.stage;
  ring.next();
  if (MORE) shared.score<0>(s, a, ring);
  products_wait<0>();
  if (threadIdx.x % 32 == 0) barrier_arrive(done);
  settle(rows.mixed);
#pragma unroll
  for (int h = 0; h < 2; ++h) {  // a sum of many would lose the small ones: tensor cores add with 13 bits
    rows.total[h] += rows.mixed[WIDTH / 2 + 2 * h];
    rows.mixed[WIDTH / 2 + 2 * h] = 0.0f;
  }
}

extern "C" __global__ void __launch_bounds__(128 * (GROUPS + 1), 1) cross_attention(
    const __grid_constant__ TensorMap key, const __grid_constant__ TensorMap value, const u8 *queries,
    const float *query_scale, const int *lengths, const float *key_scale, const float *value_scale,
    const float *out_scale, u8 *out, float *scale, int beams, int padded, int d, int heads, int groups, int blocks, int items, float sharpness) {
  extern __shared__ u8 dynamic[];
  __shared__ alignas(8) u64 barriers[3 * STAGES];
  const u32 base = (shared_address(dynamic) + 1023) & ~1023u;
  Shared shared;
  shared.first = matrix_descriptor(base);
  shared.keys_full = uniform(shared_address(barriers));
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
  for (int i = threadIdx.x; i < STAGES * ONES / 4; i += blockDim.x)
    store_shared(base + i / (ONES / 4) * STAGE_BYTES + 2 * TILE + i % (ONES / 4) * 4, 0x38383838u);
  barriers_visible();
  __syncthreads();
  in_turn();
  const int team = uniform(threadIdx.x / 128);
  if (team == 0) {
    registers_shrink<24>();
    if (threadIdx.x >= 32) return;
    Ring at = {0, 0};
    for (int item = blockIdx.x; item < items; item += gridDim.x) {
      const Work w = work_of(item, blocks, heads, groups, lengths);
#pragma unroll 1
      for (int t = 0; t < w.tiles; ++t) {
        const u32 to = base + at.stage * STAGE_BYTES;
        const u32 keys = shared.keys_full + 8 * at.stage, values = shared.values_full + 8 * at.stage;
        barrier_wait(shared.empty + 8 * at.stage, at.phase ^ 1);
        if (threadIdx.x == 0) {
          barrier_expect(keys, TILE);
          copy_box(to, &key, keys, 0, w.group * padded + t * KEYS);
          barrier_expect(values, TILE);
          copy_box(to + TILE, &value, values, t * KEYS, w.group * WIDTH);
        }
        __syncwarp();
        at.next();
      }
    }
    return;
  }
  registers_grow<160>();
  const int group = team - 1, lane = threadIdx.x % 32, q = lane % 4;
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
      const int beam = w.first + 64 * group + local + 8 * h;
      const u64 row = (u64)(w.request * beams + beam);
      const u8 *from = queries + row * d + w.head * WIDTH + 4 * q;
#pragma unroll
      for (int c = 0; c < WIDTH / 16; ++c) a[c / 2 * 4 + c % 2 * 2 + h] = beam < beams ? *(const u32 *)(from + 16 * c) : 0;
      const float factor = 8.0f * (beam < beams ? query_scale[row] : 0.0f) * sharpness * key_scale[w.group];
      rows.factor[h] = pack_half(factor, factor);
      rows.total[h] = 0.0f;
      rows.offset[h] = 0x7C007C00u;  // infinity: the first scores move it
    }
    Scores s;
    Weights p;
#pragma unroll
    for (int i = 0; i < MIXED / 2; ++i) rows.mixed[i] = 0.0f;
    settle(rows.mixed);
    shared.score<0>(s, a, ring);
    int begin = 0;
    for (; begin + KEYS < w.length; begin += KEYS) tile<true>(s, p, a, begin, w.length, shared, ring, rows, q);
    tile<false>(s, p, a, begin, w.length, shared, ring, rows, q);
    const Work done = work_of(item, blocks, heads, groups, lengths);  // again: registers are scarce in between
    const float one = out_scale[done.request], to_codes = value_scale[done.group] / one;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float f = to_codes / rows.total[h];
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
