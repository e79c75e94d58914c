// Products of rows sorted by expert with each expert's matrix, in E4M3; see experts.py for the layouts.
// Two blocks form a cluster: they multiply the two row tiles of a pair with the same columns, and where both tiles
// belong to one expert each fetches half of the weights for both. In a block one warp copies and two warpgroups take
// tiles in turns, so that one multiplies while the other writes its results.

#define ROWS 128
#define COLUMNS 128
#define DEPTH 128
#define HALF (64 * DEPTH)
#define STAGE_BYTES ((ROWS + COLUMNS) * DEPTH)

struct Tile {
  int row, column, expert;
  bool shared, real;
};

__device__ __forceinline__ Tile tile_of(int item, int columns, u32 rank, const int *expert_of_tile, int used) {
  Tile t;
  const int first = item / columns * 2;
  const int lower = expert_of_tile[first], upper = first + 1 < used ? expert_of_tile[first + 1] : lower;
  t.row = (first + rank) * ROWS;
  t.column = item % columns;
  t.expert = rank ? upper : lower;
  t.shared = lower == upper;
  t.real = first + (int)rank < used;
  return t;
}

// width: columns written. scale [E, width], for a gated product gate_scale [E, width] besides. stored: rows that each
// expert's matrix has, a multiple of COLUMNS. steps: times DEPTH is what is summed over.
extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1) grouped(
    const __grid_constant__ TensorMap rows, const __grid_constant__ TensorMap weight, void *__restrict__ out,
    float *__restrict__ out_scale, const float *__restrict__ row_scale, const float *__restrict__ row_square,
    const float *__restrict__ scale, const float *__restrict__ gate_scale, const int *__restrict__ expert_of_tile,
    const int *__restrict__ used_tiles, int width, int stored, int steps) {
  extern __shared__ u8 dynamic[];
  const u32 stages = (shared_address(dynamic) + 1023) & ~1023u;
  __shared__ alignas(8) u64 barriers[2 * STAGES];
  __shared__ alignas(16) float factors[2][COLUMNS];
  const u32 full = shared_address(barriers), empty = full + 8 * STAGES;
  const u32 rank = cluster_rank();
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; ++s) {
      barrier_init(full + 8 * s, 1);
      barrier_init(empty + 8 * s, 8);  // four warps of each block
    }
    barriers_visible();
    prefetch_map(&rows);
    prefetch_map(&weight);
  }
  cluster_sync();
  const int used = *used_tiles, columns = stored / COLUMNS, items = (used + 1) / 2 * columns;
  const int clusters = gridDim.x / 2, cluster = blockIdx.x / 2;
  if (threadIdx.x < 128) {
    registers_shrink<40>();
    if (threadIdx.x == 0) {
      int stage = 0, phase = 0;
      for (int item = cluster; item < items; item += clusters) {
        const Tile t = tile_of(item, columns, rank, expert_of_tile, used);
        const int from = t.expert * stored + t.column * COLUMNS;
        for (int step = 0; step < steps; ++step) {
          barrier_wait(empty + 8 * stage, phase ^ 1);
          const u32 a = stages + stage * STAGE_BYTES, b = a + 2 * HALF, ready = full + 8 * stage;
          barrier_expect(ready, STAGE_BYTES);
          copy_box(a, &rows, ready, step * DEPTH, t.row);
          if (t.shared) {
            copy_box_to_all(b + rank * HALF, &weight, ready, step * DEPTH, from + rank * 64, 3);
          } else {
            copy_box(b, &weight, ready, step * DEPTH, from);
            copy_box(b + HALF, &weight, ready, step * DEPTH, from + 64);
          }
          if (++stage == STAGES) stage = 0, phase ^= 1;
        }
      }
    }
  } else {
    registers_grow<232>();
    const int group = threadIdx.x / 128 - 1, thread = threadIdx.x % 128, lane = threadIdx.x % 32, q = lane % 4;
    float *factor = factors[group];
    float acc[2][64];
    int stage = 0, phase = 0;
    // Where in the ring of stages this warpgroup's next tile begins: the other's tile lies between.
    const int skip = steps % STAGES, turns = steps / STAGES;
    if (group == 1) {
      stage = skip, phase = turns & 1;
      let_meet(3, 256);  // the first turn is the other's
    }
    for (int item = cluster + group * clusters; item < items; item += 2 * clusters) {
      const Tile t = tile_of(item, columns, rank, expert_of_tile, used);
      const int first = t.row + thread / 32 * 16 + lane / 4;
#if GATED
      const int mine = t.column * 64 + thread % 64;
      const float *from = thread < 64 ? scale : gate_scale;
#else
      const int mine = t.column * COLUMNS + thread;
      const float *from = scale;
#endif
      const float fetched = mine < width ? from[(u64)t.expert * width + mine] : 0.0f;
      float one[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) one[i] = t.real ? row_scale[first + 64 * (i / 2) + 8 * (i % 2)] : 0.0f;
#if GATED
      float square[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        square[i] = (t.real ? row_square[first + 64 * (i / 2) + 8 * (i % 2)] : 1.0f) * (1.0f / 448.0f);
#endif
      // In turns: a barrier of the ring tells only the last two of its phases apart, so nobody may wait further ahead.
      meet(3 + group, 256);
      int before = stage;
      for (int step = 0; step < steps; ++step) {
        barrier_wait(full + 8 * stage, phase);
        const u32 at = stages + stage * STAGE_BYTES;
        const u64 a = matrix_descriptor(at), b = matrix_descriptor(at + 2 * HALF);
        products_begin();
#pragma unroll
        for (int g = 0; g < DEPTH / 32; ++g) {
          product_rows(acc[0], a + 2 * g, b + 2 * g, step || g);
          product_rows(acc[1], a + 2 * g + (HALF >> 4), b + 2 * g, step || g);
        }
        products_commit();
        if (step) {
          products_wait<1>();
          if (lane < 2) barrier_arrive_at(empty + 8 * before, lane);
        }
        before = stage;
        if (++stage == STAGES) stage = 0, phase ^= 1;
      }
      let_meet(4 - group, 256);
      products_wait<0>();
      if (lane < 2) barrier_arrive_at(empty + 8 * before, lane);
      stage += skip, phase ^= turns & 1;
      if (stage >= STAGES) stage -= STAGES, phase ^= 1;
      meet(1 + group, 128);
      factor[thread] = fetched;
      meet(1 + group, 128);
      if (!t.real) continue;
#if GATED
      // Column 8j + 2q + e of a tile is the gate (e = 0) or the linear part (e = 1) of output 16q + j.
      const int column = t.column * 64 + 16 * q;
      if (column < width) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float half = 0.5f * one[i], to_codes = one[i] / square[i];
          u32 word[4];
#pragma unroll
          for (int w = 0; w < 4; ++w) {
            const float4 ls = *(const float4 *)(factor + 16 * q + 4 * w), gs = *(const float4 *)(factor + 64 + 16 * q + 4 * w);
            const float linears[4] = {ls.x, ls.y, ls.z, ls.w}, gates[4] = {gs.x, gs.y, gs.z, gs.w};
            float y[4];
#pragma unroll
            for (int k = 0; k < 4; ++k) {
              const float *pair = acc[i / 2] + 4 * (4 * w + k) + 2 * (i % 2);
              const float x = pair[0] * gates[k] * half;  // silu(2x) = x + x·tanh(x)
              y[k] = fmaf(x, tanh_fast(x), x) * (pair[1] * linears[k] * to_codes);
            }
            word[w] = pack_e4m3(y[0], y[1], y[2], y[3]);
          }
          const int row = first + 64 * (i / 2) + 8 * (i % 2);
          *(uint4 *)((u8 *)out + (u64)row * width + column) = make_uint4(word[0], word[1], word[2], word[3]);
          if (t.column == 0 && q == 0) out_scale[row] = square[i];
        }
      }
#else
      // Column 8j + 2q + e of a tile is output 16·(j/2) + 4q + 2·(j%2) + e.
#pragma unroll
      for (int g = 0; g < COLUMNS / 16; ++g) {
        const int column = t.column * COLUMNS + 16 * g + 4 * q;
        if (column >= width) continue;
        const float4 s = *(const float4 *)(factor + 16 * g + 4 * q);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float *four = acc[i / 2] + 8 * g + 2 * (i % 2);
          *(uint2 *)((u16 *)out + (u64)(first + 64 * (i / 2) + 8 * (i % 2)) * width + column) = make_uint2(
              pack_bf16(four[0] * s.x * one[i], four[1] * s.y * one[i]),
              pack_bf16(four[4] * s.z * one[i], four[5] * s.w * one[i]));
        }
      }
#endif
    }
  }
  __syncwarp();
  cluster_sync();  // nobody leaves while the other block may still write into its shared memory or arrive there
}
