// One query of each request over its context in E4M3: what counts is that every key is read once, as fast as the memory
// gives it. A block has a part of the keys of one head of one request, each of its warps 32 of every 128. Tensor cores
// score sixteen keys at a time, by eight columns that are all the query, so that every lane has the scores of the two keys
// that it has a part of. Mixing is by pairs of halves: a part is so short that they cannot overflow.

#define WIDTH 128
#define KEYS 128  // of a tile, and of what is stored a multiple
#define WARPS 4
#define GROUPS (KEYS / WARPS / 16)  // of sixteen keys of a tile that a warp has
#define FEATURES 32                 // of a lane: of each half sixteen side by side
#define KEPT 2                      // numbers that a part leaves besides what it has mixed

// What a lane has of a key: words 2s and 2s + 1 are its part of step s of a product.
struct Part {
  u32 word[FEATURES / 4];
  __device__ __forceinline__ void load(const u8 *from) {
    const uint4 low = *(const uint4 *)from, high = *(const uint4 *)(from + WIDTH / 2);
    word[0] = low.x, word[1] = low.y, word[2] = low.z, word[3] = low.w;
    word[4] = high.x, word[5] = high.y, word[6] = high.z, word[7] = high.w;
  }
};

// What a lane has mixed so far, relative to the score `top`; `total` is the sum of weights.
struct Mixed {
  float top, total;
  u32 sum[FEATURES / 2];

  __device__ __forceinline__ void add(float weight, const Part &of) {
    const u32 both = pack_half(weight, weight);
    total += weight;
#pragma unroll
    for (int i = 0; i < FEATURES / 4; ++i) {
      sum[2 * i] = halves_fma(both, halves_of_e4m3(of.word[i]), sum[2 * i]);
      sum[2 * i + 1] = halves_fma(both, halves_of_e4m3(of.word[i] >> 16), sum[2 * i + 1]);
    }
  }

  __device__ __forceinline__ void refer(float now) {
    const float factor = power_of_two(top - now);
    const u32 both = pack_half(factor, factor);
    total *= factor;
#pragma unroll
    for (int i = 0; i < FEATURES / 2; ++i) sum[i] = halves_mul(sum[i], both);
    top = now;
  }
};

// As attention.cu has them: lengths, scales, sharpness. queries [requests, heads · WIDTH] bfloat16. value: stored like key,
// or the keys themselves (ONE). kept [requests, heads, parts, WIDTH + KEPT]: sums over a part's keys, at most 4,096, their
// weights' sum, and the score that both are relative to.
extern "C" __global__ void __launch_bounds__(32 * WARPS, 4) one_query(
    const u16 *queries, const u8 *key, const u8 *value, const int *lengths, const float *key_scale, float *kept, int room,
    int heads, int groups, int parts, float sharpness) {
  __shared__ float sums[WARPS][WIDTH + KEPT];
  in_turn();
  const int part = blockIdx.x % parts, head = blockIdx.x / parts % heads, request = blockIdx.x / parts / heads;
  const int group = request * groups + head / (heads / groups), length = lengths[request];
  const int tiles = (length + KEYS - 1) / KEYS, share = (tiles + parts - 1) / parts;
  const int begin = part * share, end = min(tiles, begin + share);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, local = lane / 4, t = lane % 4;
  u32 q[FEATURES / 4];
  float factor = sharpness * key_scale[group];
  {
    const u16 *from = queries + (u64)(request * heads + head) * WIDTH + 16 * t;
    uint2 raw[FEATURES / 4];
    float most = 0.0f;
#pragma unroll
    for (int i = 0; i < FEATURES / 4; ++i) {
      raw[i] = *(const uint2 *)(from + i / 4 * (WIDTH / 2) + i % 4 * 4);
      most = fmaxf(most, fmaxf(fabsf(bf16_low(raw[i].x)), fabsf(bf16_high(raw[i].x))));
      most = fmaxf(most, fmaxf(fabsf(bf16_low(raw[i].y)), fabsf(bf16_high(raw[i].y))));
    }
    const float one = fmaxf(quad_max(most) * (1.0f / 448.0f), 7.888609052210118e-31f), inverse = 1.0f / one;
    factor *= one;
#pragma unroll
    for (int i = 0; i < FEATURES / 4; ++i)
      q[i] = pack_e4m3(
          bf16_low(raw[i].x) * inverse, bf16_high(raw[i].x) * inverse, bf16_low(raw[i].y) * inverse,
          bf16_high(raw[i].y) * inverse);
  }
  // A lane's rows of the 32 stored ones that a warp has of a tile are local, local + 8 and so on.
  const u64 mine = ((u64)group * room + 32 * warp + local) * WIDTH + 16 * t;
  const u8 *keys = key + mine;
  Mixed mixed;
  mixed.top = -1e30f, mixed.total = 0.0f;
#pragma unroll
  for (int i = 0; i < FEATURES / 2; ++i) mixed.sum[i] = 0;
  Part next[2 * GROUPS];
#pragma unroll
  for (int i = 0; i < 2 * GROUPS; ++i)
    if (begin < end) next[i].load(keys + ((u64)begin * KEYS + 8 * i) * WIDTH);
  for (int tile = begin; tile < end; ++tile) {
#pragma unroll
    for (int g = 0; g < GROUPS; ++g) {
      Part *now = next + 2 * g;
      float s[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
      for (int step = 0; step < WIDTH / 32; ++step) {
        const int w = 2 * step;
        product_of_warp(s, now[0].word[w], now[1].word[w], now[0].word[w + 1], now[1].word[w + 1], q[w], q[w + 1]);
      }
      float score[2] = {s[0] * factor, s[2] * factor};
      if (tile + 1 == tiles) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {  // which key a stored row holds is order.py's
          const int row = 16 * g + 8 * h + local;
          const int number = 16 * (row / 16) + 4 * (row % 8 / 2) + 2 * (row / 8 % 2) + row % 2;
          if (tile * KEYS + 32 * warp + number >= length) score[h] = -1e30f;
        }
      }
      const float most = fmaxf(mixed.top, fmaxf(score[0], score[1]));
      if (__any_sync(0xFFFFFFFFu, most > mixed.top)) mixed.refer(most);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float weight = score[h] > -1e30f ? power_of_two(score[h] - mixed.top) : 0.0f;
#if ONE
        mixed.add(weight, now[h]);
#else
        Part v;
        v.load(value + mine + ((u64)tile * KEYS + 16 * g + 8 * h) * WIDTH);
        mixed.add(weight, v);
#endif
        if (tile + 1 < end) now[h].load(keys + ((u64)(tile + 1) * KEYS + 16 * g + 8 * h) * WIDTH);
      }
    }
  }
  // The eight places of a warp come together, then the warps.
  float most = mixed.top;
#pragma unroll
  for (int far = 4; far < 32; far *= 2) most = fmaxf(most, __shfl_xor_sync(0xFFFFFFFFu, most, far));
  mixed.refer(most);
  float wide[FEATURES];
#pragma unroll
  for (int i = 0; i < FEATURES; ++i) wide[i] = i % 2 ? half_high(mixed.sum[i / 2]) : half_low(mixed.sum[i / 2]);
#pragma unroll
  for (int far = 4; far < 32; far *= 2) {
    mixed.total += __shfl_xor_sync(0xFFFFFFFFu, mixed.total, far);
#pragma unroll
    for (int i = 0; i < FEATURES; ++i) wide[i] += __shfl_xor_sync(0xFFFFFFFFu, wide[i], far);
  }
  if (local == 0) {
#pragma unroll
    for (int i = 0; i < FEATURES; ++i) sums[warp][i / 16 * (WIDTH / 2) + 16 * t + i % 16] = wide[i];
    if (t == 0) sums[warp][WIDTH] = mixed.total, sums[warp][WIDTH + 1] = mixed.top;
  }
  __syncthreads();
  float top = sums[0][WIDTH + 1], total = 0.0f, sum = 0.0f;
#pragma unroll
  for (int w = 1; w < WARPS; ++w) top = fmaxf(top, sums[w][WIDTH + 1]);
#pragma unroll
  for (int w = 0; w < WARPS; ++w) {
    const float weight = power_of_two(sums[w][WIDTH + 1] - top);
    total += sums[w][WIDTH] * weight;
    sum += sums[w][threadIdx.x] * weight;
  }
  float *to = kept + (u64)blockIdx.x * (WIDTH + KEPT);
  to[threadIdx.x] = sum;
  if (threadIdx.x == 0) to[WIDTH] = total, to[WIDTH + 1] = top;
}
