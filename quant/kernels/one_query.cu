// One query of each request over its context in E4M3: what counts is that every key is read once, as fast as the memory
// gives it. A block has a part of the keys of one head of one request, each of its warps 32 of every 128. Eight lanes have
// one key, sixteen features each; scores and mixing are pairs of halves, which are moved to 32 bits before they might
// overflow.

#define WIDTH 128
#define KEYS 128   // of a tile, and of what is stored a multiple
#define WARPS 4
#define AT_ONCE 4  // keys that a lane looks at before it weighs them
#define EACH (KEYS / WARPS / 4)  // of a tile
#define FEATURES 16
#define MOST_TILES 16  // 8·16 weights of one at most times 448 stay within 16 bit
#define KEPT 2  // numbers that a part leaves besides what it has mixed

// Two of a lane's sixteen features.
__device__ __forceinline__ u32 pair_of(uint4 x, int i) {
  const u32 word = i / 2 == 0 ? x.x : i / 2 == 1 ? x.y : i / 2 == 2 ? x.z : x.w;
  return halves_of_e4m3(i % 2 ? word >> 16 : word);
}

__device__ __forceinline__ float sum_of_eight(float x) {
#pragma unroll
  for (int far = 1; far < 8; far *= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, far);
  return x;
}

// What a lane has mixed so far: `total` and both sums are relative to the score `top`.
struct Mixed {
  float top, total, wide[FEATURES];
  u32 some[FEATURES / 2];

  __device__ __forceinline__ void widen() {
#pragma unroll
    for (int i = 0; i < FEATURES / 2; ++i) {
      wide[2 * i] += half_low(some[i]);
      wide[2 * i + 1] += half_high(some[i]);
      some[i] = 0;
    }
  }

  __device__ __forceinline__ void shrink(float now) {
    const float factor = power_of_two(top - now);
    widen();
    total *= factor;
#pragma unroll
    for (int i = 0; i < FEATURES; ++i) wide[i] *= factor;
    top = now;
  }
};

// As attention.cu has them: the query, lengths, scales, sharpness. value: stored like key, or the keys themselves (ONE).
// kept [requests, heads, parts, WIDTH + KEPT]: sums over a part's keys, their weights' sum, and the score that both are
// relative to.
extern "C" __global__ void __launch_bounds__(32 * WARPS, 4) one_query(
    const u16 *queries, const u8 *key, const u8 *value, const int *lengths, const float *key_scale, float *kept, int room,
    int heads, int groups, int parts, float sharpness) {
  __shared__ float sums[WARPS][WIDTH + KEPT];
  in_turn();
  const int part = blockIdx.x % parts, head = blockIdx.x / parts % heads, request = blockIdx.x / parts / heads;
  const int group = request * groups + head / (heads / groups), length = lengths[request];
  const int tiles = (length + KEYS - 1) / KEYS, share = (tiles + parts - 1) / parts;
  const int begin = part * share, end = min(tiles, begin + share);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, eighth = lane % 8;
  const u16 *from = queries + (u64)(request * heads + head) * WIDTH + FEATURES * eighth;
  uint4 raw[2] = {*(const uint4 *)from, *(const uint4 *)(from + 8)};
  const u32 words[8] = {raw[0].x, raw[0].y, raw[0].z, raw[0].w, raw[1].x, raw[1].y, raw[1].z, raw[1].w};
  float length_of_q = 0.0f;
#pragma unroll
  for (int i = 0; i < 8; ++i) length_of_q += fabsf(bf16_low(words[i])) + fabsf(bf16_high(words[i]));
  // As in attention.cu: with keys of 448 at most no score passes a half's 65504.
  const float one = fmaxf(sum_of_eight(length_of_q) * (1.0f / 136.0f), 7.888609052210118e-31f), inverse = 1.0f / one;
  u32 q[FEATURES / 2];
#pragma unroll
  for (int i = 0; i < 8; ++i) q[i] = pack_half(bf16_low(words[i]) * inverse, bf16_high(words[i]) * inverse);
  const float factor = one * sharpness * key_scale[group];
  // A lane's rows of 32 stored ones are 4·i + lane / 8; which key a row holds is order.py's.
  const u64 mine = ((u64)group * room + 32 * warp + lane / 8) * WIDTH + FEATURES * eighth;
  const u8 *keys = key + mine;
  Mixed mixed;
  mixed.top = -1e30f, mixed.total = 0.0f;
#pragma unroll
  for (int i = 0; i < FEATURES; ++i) mixed.wide[i] = 0.0f;
#pragma unroll
  for (int i = 0; i < FEATURES / 2; ++i) mixed.some[i] = 0;
  uint4 next[EACH];
#pragma unroll
  for (int i = 0; i < EACH; ++i)
    if (begin < end) next[i] = *(const uint4 *)(keys + ((u64)begin * KEYS + 4 * i) * WIDTH);
  for (int tile = begin; tile < end; ++tile) {
#pragma unroll
    for (int first = 0; first < EACH; first += AT_ONCE) {
      u32 k[AT_ONCE][FEATURES / 2];
      float s[AT_ONCE], most = mixed.top;
#pragma unroll
      for (int i = 0; i < AT_ONCE; ++i) {
        u32 sum = 0;
#pragma unroll
        for (int f = 0; f < FEATURES / 2; ++f) {
          k[i][f] = pair_of(next[first + i], f);
          sum = halves_fma(k[i][f], q[f], sum);
        }
        if (tile + 1 < end) next[first + i] = *(const uint4 *)(keys + ((u64)(tile + 1) * KEYS + 4 * (first + i)) * WIDTH);
        s[i] = sum_of_eight(half_low(sum) + half_high(sum)) * factor;
        if (tile + 1 == tiles) {
          const int row = 4 * (first + i) + lane / 8;
          const int number = 16 * (row / 16) + 4 * (row % 8 / 2) + 2 * (row / 8 % 2) + row % 2;
          if (tile * KEYS + 32 * warp + number >= length) s[i] = -1e30f;
        }
        most = fmaxf(most, s[i]);
      }
      if (__any_sync(0xFFFFFFFFu, most > mixed.top)) mixed.shrink(most);
#pragma unroll
      for (int i = 0; i < AT_ONCE; ++i) {
        const float weight = s[i] > -1e30f ? power_of_two(s[i] - mixed.top) : 0.0f;
        const u32 both = pack_half(weight, weight);
        mixed.total += weight;
#if !ONE
        const uint4 v = *(const uint4 *)(value + mine + ((u64)tile * KEYS + 4 * (first + i)) * WIDTH);
#pragma unroll
        for (int f = 0; f < FEATURES / 2; ++f) k[i][f] = pair_of(v, f);
#endif
#pragma unroll
        for (int f = 0; f < FEATURES / 2; ++f) mixed.some[f] = halves_fma(both, k[i][f], mixed.some[f]);
      }
    }
    if ((tile - begin) % MOST_TILES == MOST_TILES - 1) mixed.widen();
  }
  // The four keys of a warp come together, then the warps.
  float most = fmaxf(mixed.top, __shfl_xor_sync(0xFFFFFFFFu, mixed.top, 8));
  mixed.shrink(fmaxf(most, __shfl_xor_sync(0xFFFFFFFFu, most, 16)));
#pragma unroll
  for (int far = 8; far < 32; far *= 2) {
    mixed.total += __shfl_xor_sync(0xFFFFFFFFu, mixed.total, far);
#pragma unroll
    for (int i = 0; i < FEATURES; ++i) mixed.wide[i] += __shfl_xor_sync(0xFFFFFFFFu, mixed.wide[i], far);
  }
  if (lane < 8) {
#pragma unroll
    for (int i = 0; i < FEATURES; ++i) sums[warp][FEATURES * lane + i] = mixed.wide[i];
    if (lane == 0) sums[warp][WIDTH] = mixed.total, sums[warp][WIDTH + 1] = mixed.top;
  }
  __syncthreads();
  float top = sums[0][WIDTH + 1], weights[WARPS], total = 0.0f, sum = 0.0f;
#pragma unroll
  for (int w = 1; w < WARPS; ++w) top = fmaxf(top, sums[w][WIDTH + 1]);
#pragma unroll
  for (int w = 0; w < WARPS; ++w) {
    weights[w] = power_of_two(sums[w][WIDTH + 1] - top);
    total += sums[w][WIDTH] * weights[w];
    sum += sums[w][threadIdx.x] * weights[w];
  }
  float *to = kept + (u64)blockIdx.x * (WIDTH + KEPT);
  to[threadIdx.x] = sum;
  if (threadIdx.x == 0) to[WIDTH] = total, to[WIDTH + 1] = top;
}
