// Products of rows sorted by expert with each expert's matrix, or of all rows with one, in E4M3; see order.py for the
// layouts.
// Two blocks form a cluster: they multiply the two row tiles of a pair with the same columns, and where both tiles
// belong to one expert each fetches half of the weights for both. In a block one warp copies and two warpgroups take
// tiles in turns, so that one multiplies while the other writes its results. Of a tile whose lower half is nobody's,
// as many an expert's last is, only the upper half is multiplied and written.

#define ROWS 128
#define DEPTH 128
#define ROWS_HALF (ROWS / 2 * DEPTH)
#define COLUMNS_HALF (COLUMNS / 2 * DEPTH)
#define STAGE_BYTES ((ROWS + COLUMNS) * DEPTH)
#define OUTPUTS (GATED ? COLUMNS / 2 : COLUMNS)  // of a tile

struct Tile {
  int row, column, expert;
  bool shared, real, half;
};

// What a launch works on: each tile's expert and how many of its rows are somebody's, or `tokens` rows of one expert.
struct Tiles {
  const int *expert, *filled;
  int tokens, used;
};

__device__ __forceinline__ Tile tile_of(int item, int columns, u32 rank, const Tiles &tiles) {
  Tile t;
  const int first = item / columns * 2, mine = first + rank;
  t.row = mine * ROWS;
  t.column = item % columns;
  t.real = mine < tiles.used;
  int lower = 0, upper = 0, filled = tiles.tokens - t.row;
  if (tiles.expert) {
    lower = uniform(tiles.expert[first]);
    upper = first + 1 < tiles.used ? uniform(tiles.expert[first + 1]) : lower;
    filled = t.real ? uniform(tiles.filled[mine]) : 0;
  }
  t.expert = rank ? upper : lower;
  t.shared = lower == upper;
  t.half = filled <= ROWS / 2;
  return t;
}

// Sums over a tile's upper half or both, from the ring's stage on; the last product is on its way, of stage `before`.
template <int HALVES>
__device__ __forceinline__ void multiply(
    float (&acc)[2][COLUMNS / 2], u64 described, u32 full, u32 empty, int steps, int &stage, int &phase, int &before,
    int lane) {
  for (int step = 0; step < steps; ++step) {
    barrier_wait(full + 8 * stage, phase);
    const u64 a = described + stage * (STAGE_BYTES >> 4), b = a + (2 * ROWS_HALF >> 4);
    products_begin();
#pragma unroll
    for (int g = 0; g < DEPTH / 32; ++g) {
      product_rows(acc[0], a + 2 * g, b + 2 * g, step || g);
      if (HALVES == 2) product_rows(acc[1], a + 2 * g + (ROWS_HALF >> 4), b + 2 * g, step || g);
    }
    products_commit();
    if (step) {
      products_wait<1>();
      if (lane < 2) barrier_arrive_at(empty + 8 * before, lane);
    }
    before = stage;
    if (++stage == STAGES) stage = 0, phase ^= 1;
  }
}

// silu(gate) · linear of COUNT outputs whose pairs of sums lie four registers apart, scaled and as codes. The factors of
// the gates lie behind those of all linear parts. half: half the row's scale, twice, as to_codes is.
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

// tokens: rows that there are. width: columns written; with ADDS they are added to what `out` holds. scale [E, width], for
// a gated product gate_scale [E, width] besides. stored: rows that each expert's matrix has, a multiple of COLUMNS.
// steps: times DEPTH is what is summed over.
extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1) grouped(
    const __grid_constant__ TensorMap rows, const __grid_constant__ TensorMap weight, void *out, float *out_scale,
    const float *row_scale, const float *row_square, const float *scale, const float *gate_scale,
    const int *expert_of_tile, const int *filled, const int *used_tiles, int tokens, int width, int stored, int steps) {
  extern __shared__ u8 dynamic[];
  const u32 stages = (shared_address(dynamic) + 1023) & ~1023u;
  __shared__ alignas(8) u64 barriers[2 * STAGES];
  __shared__ alignas(8) u16 factors[2][COLUMNS];  // in bfloat16; gated: of the linear parts, then of the gates
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
  in_turn();
  Tiles tiles = {expert_of_tile, filled, tokens, (tokens + ROWS - 1) / ROWS};
  if (expert_of_tile) tiles.used = uniform(*used_tiles);
  const int columns = stored / COLUMNS, items = (tiles.used + 1) / 2 * columns;
  const int clusters = gridDim.x / 2, cluster = blockIdx.x / 2;
  const int team = uniform(threadIdx.x / 128);
  if (team == 0) {
    registers_shrink<24>();
    if (threadIdx.x < 32) {
      int stage = 0, phase = 0;
      for (int item = cluster; item < items; item += clusters) {
        const Tile t = tile_of(item, columns, rank, tiles);
        const int from = t.expert * stored + t.column * COLUMNS;
#pragma unroll 1
        for (int step = 0; step < steps; ++step) {
          barrier_wait(empty + 8 * stage, phase ^ 1);
          const u32 a = stages + stage * STAGE_BYTES, b = a + 2 * ROWS_HALF, ready = full + 8 * stage;
          if (threadIdx.x == 0) {
            barrier_expect(ready, STAGE_BYTES);
            copy_box(a, &rows, ready, step * DEPTH, t.row);
            if (t.shared) {
              copy_box_to_all(b + rank * COLUMNS_HALF, &weight, ready, step * DEPTH, from + rank * COLUMNS / 2, 3);
            } else {
              copy_box(b, &weight, ready, step * DEPTH, from);
              copy_box(b + COLUMNS_HALF, &weight, ready, step * DEPTH, from + COLUMNS / 2);
            }
          }
          __syncwarp();
          if (++stage == STAGES) stage = 0, phase ^= 1;
        }
      }
    }
  } else {
    registers_grow<240>();
    const int group = team - 1, thread = threadIdx.x % 128, lane = threadIdx.x % 32, q = lane % 4;
    u16 *factor = factors[group];
    const u64 described = matrix_descriptor(stages);
    float acc[2][COLUMNS / 2];
    int stage = 0, phase = 0;
    // Where in the ring of stages this warpgroup's next tile begins: the other's tile lies between.
    const int skip = steps % STAGES, turns = steps / STAGES;
    if (group == 1) {
      stage = skip, phase = turns & 1;
      let_meet(3, 256);  // the first turn is the other's
    }
    for (int item = cluster + group * clusters; item < items; item += 2 * clusters) {
      const Tile t = tile_of(item, columns, rank, tiles);
      const int first = t.row + thread / 32 * 16 + lane / 4;
      // In turns: a barrier of the ring tells only the last two of its phases apart, so nobody may wait further ahead.
      meet(3 + group, 256);
      int before = stage;
#if ADDS
      // A row of what is added to comes while the one before it is written, the first of all behind the products.
      const u16 *from = (const u16 *)out + (u64)first * width + t.column * COLUMNS + 4 * q;
      uint2 held[COLUMNS / 16];
#pragma unroll
      for (int g = 0; g < COLUMNS / 16; ++g) {
        if (first < tokens && t.column * COLUMNS + 4 * q + 16 * g < width) held[g] = load_pair(from + 16 * g);
      }
#endif
      if (t.half) {
        multiply<1>(acc, described, full, empty, steps, stage, phase, before, lane);
      } else {
        multiply<2>(acc, described, full, empty, steps, stage, phase, before, lane);
      }
      let_meet(4 - group, 256);
      float fetched[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int place = 128 * i + thread, column = t.column * OUTPUTS + place % OUTPUTS;
        const float *from = place < OUTPUTS ? scale : gate_scale;
        fetched[i] = place < COLUMNS && column < width ? from[(u64)t.expert * width + column] : 0.0f;
      }
      float one[4];
#if GATED
      float square[4];
#endif
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = first + 64 * (i / 2) + 8 * (i % 2);
        one[i] = t.real && row < tokens ? row_scale[row] : 0.0f;
#if GATED
        square[i] = t.real && row < tokens ? row_square[row] : 1.0f;
#endif
      }
      products_wait<0>();
      if (lane < 2) barrier_arrive_at(empty + 8 * before, lane);
      stage += skip, phase ^= turns & 1;
      if (stage >= STAGES) stage -= STAGES, phase ^= 1;
      meet(1 + group, 128);
      if (thread < COLUMNS) factor[thread] = pack_bf16(fetched[0], 0.0f);
      if (thread < COLUMNS - 128) factor[128 + thread] = pack_bf16(fetched[1], 0.0f);
      meet(1 + group, 128);
      if (!t.real) continue;
#if GATED
      // Column 8j + 2q + e of a tile is the gate (e = 0) or the linear part (e = 1) of output 16q + j, from j = 16 on
      // of 64 + 4q + j - 16, from j = 20 on of 80 + 2q + j - 20.
      const int column = t.column * OUTPUTS;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (i == 2 && t.half) break;
        const int row = first + 64 * (i / 2) + 8 * (i % 2);
        if (row >= tokens) break;
        const float bound = square[i] * (1.0f / 448.0f), ratio = __fdividef(one[i], bound);
        const u32 half = pack_bf16(0.5f * one[i], 0.5f * one[i]), to_codes = pack_bf16(ratio, ratio);
        if (t.column == 0 && q == 0) out_scale[row] = bound;
        const float *pairs = acc[i / 2] + 2 * (i % 2);
        u8 *to = (u8 *)out + (u64)row * width + column;
#pragma unroll
        for (int w = 0; w < 4; w += 2) {
          const u32 low = gated<4>(pairs + 16 * w, factor + 16 * q + 4 * w, half, to_codes);
          const u32 high = gated<4>(pairs + 16 * (w + 1), factor + 16 * q + 4 * (w + 1), half, to_codes);
          if (column + 16 * q + 4 * w < width) *(uint2 *)(to + 16 * q + 4 * w) = make_uint2(low, high);
        }
        const u32 word = gated<4>(pairs + 64, factor + 64 + 4 * q, half, to_codes);
        if (column + 64 + 4 * q < width) *(u32 *)(to + 64 + 4 * q) = word;
        const u32 last = gated<2>(pairs + 80, factor + 80 + 2 * q, half, to_codes);
        if (column + 80 + 2 * q < width) *(u16 *)(to + 80 + 2 * q) = (u16)last;
      }
#else
      // Column 8j + 2q + e of a tile is output 16·(j/2) + 4q + 2·(j%2) + e. Sums are rounded before they are scaled:
      // products in 32 bit would keep the tensor cores from the other warpgroup's.
      const int column = t.column * COLUMNS + 4 * q;
      u16 *to = (u16 *)out + (u64)first * width + column;
#pragma unroll
      for (int i = 0; i < 4; ++i, to += (i == 2 ? 56 : 8) * (u64)width) {
        if (i == 2 && t.half) break;
        if (first + 64 * (i / 2) + 8 * (i % 2) >= tokens) break;
        const u32 row = pack_bf16(one[i], one[i]);
#if ADDS
        from += (i == 1 ? 56 : 8) * (u64)width;
        const bool more = i < 3 && !(i == 1 && t.half) && first + 64 * ((i + 1) / 2) + 8 * ((i + 1) % 2) < tokens;
#endif
#pragma unroll
        for (int g = 0; g < COLUMNS / 16; ++g) {
          const uint2 s = *(const uint2 *)(factor + 16 * g + 4 * q);
          const float *four = acc[i / 2] + 8 * g + 2 * (i % 2);
          uint2 words = make_uint2(
              bf16_mul(bf16_mul(pack_bf16(four[0], four[1]), s.x), row),
              bf16_mul(bf16_mul(pack_bf16(four[4], four[5]), s.y), row));
          if (column + 16 * g >= width) break;
#if ADDS
          words = make_uint2(bf16_add(words.x, held[g].x), bf16_add(words.y, held[g].y));
          if (more) held[g] = load_pair(from + 16 * g);
#endif
          *(uint2 *)(to + 16 * g) = words;
        }
      }
#endif
    }
  }
  __syncwarp();
  cluster_sync();  // nobody leaves while the other block may still write into its shared memory or arrive there
}
