// Products of rows sorted by expert with each expert's matrix, or of all rows with one, in E4M3; see order.py for the
// layouts.
// Two blocks form a cluster: they multiply the two row tiles of a pair with the same columns, and where both tiles
// belong to one expert each fetches half of the weights for both. In a block one warp copies and two warpgroups take
// tiles in turns, so that one multiplies while the other writes its results, which plain_rows.cuh, eight_rows.cuh or
// gated_rows.cuh says how to. Of a tile whose lower half is nobody's, as many an expert's last is, only the upper half is
// fetched and multiplied.
// Of a matrix that all rows see (not EXPERTS) the first columns are on their way before the launch's turn comes: nobody in a
// decode writes a matrix.
// Where rows are not sorted (GATHERS) all four warps of the first warpgroup copy, each thread an eighth of every sixteenth
// row of a step: an expert's rows are looked up in the tokens' order, and each is fetched from where it is. Those of an
// expert that sees all rows lie side by side and are copied as ever.

#define ROWS 128
#define DEPTH 128
#define ROWS_HALF (ROWS / 2 * DEPTH)
#define COLUMNS_HALF (COLUMNS / 2 * DEPTH)
#define WEIGHT_BYTES (COLUMNS * DEPTH)
#define STAGE_BYTES (ROWS * DEPTH + WEIGHT_BYTES)
#define COPYING (GATHERS ? 128 : 32)  // threads

// filled: rows that are somebody's. source: where their tokens are named, or negative, see `ExpertTiles`.
struct Tile {
  int row, column, expert, filled, source;
  bool shared;
  __device__ __forceinline__ bool half() const { return filled <= ROWS / 2; }
  __device__ __forceinline__ bool together() const { return !GATHERS || source < 0; }
  __device__ __forceinline__ int first_row() const { return GATHERS ? -1 - source : row; }
};

// What a launch works on: each tile's expert and rows, or `tokens` rows of one expert.
struct Tiles {
  const int *expert, *filled, *source;
  int tokens, used;
};

__device__ __forceinline__ Tile tile_of(int item, int columns, u32 rank, const Tiles &tiles) {
  Tile t;
  const int first = item / columns * 2, mine = first + rank;
  t.row = mine * ROWS;
  t.column = item % columns;
#if EXPERTS
  const int lower = uniform(tiles.expert[first]);
  const int upper = first + 1 < tiles.used ? uniform(tiles.expert[first + 1]) : lower;
  t.filled = mine < tiles.used ? uniform(tiles.filled[mine]) : 0;
  if (GATHERS) t.source = mine < tiles.used ? uniform(tiles.source[mine]) : -1;
  t.expert = rank ? upper : lower;
  t.shared = lower == upper;
#else
  t.filled = min(ROWS, tiles.tokens - t.row);
  t.expert = 0;
  t.shared = true;
#endif
  return t;
}

// Of a stage, what comes by tensor copies.
__device__ __forceinline__ int bytes_of(const Tile &t) {
  return !t.together() ? WEIGHT_BYTES : t.half() ? STAGE_BYTES - ROWS_HALF : STAGE_BYTES;
}

// A step of a tile's columns, half of them for both blocks where both want the same.
__device__ __forceinline__ void copy_weights(
    u32 to, const TensorMap *weight, u32 ready, int step, int from, bool shared, u32 rank) {
  if (shared) {
    copy_box_to_all(to + rank * COLUMNS_HALF, weight, ready, step * DEPTH, from + rank * COLUMNS / 2, 3);
  } else {
    copy_box(to, weight, ready, step * DEPTH, from);
    copy_box(to + COLUMNS_HALF, weight, ready, step * DEPTH, from + COLUMNS / 2);
  }
}

// Sums over a tile's upper half or both, from the ring's stage on; the last product is on its way, of stage `before`.
template <int HALVES>
__device__ __forceinline__ void multiply(
    Sums &acc, u64 described, u32 full, u32 freed, int steps, int &stage, int &phase, int &before, int lane) {
  for (int step = 0; step < steps; ++step) {
    barrier_wait(full + 8 * stage, phase);
    if (GATHERS) copies_visible();
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
      if (lane < 2) barrier_arrive_there(freed + 8 * before);
    }
    before = stage;
    if (++stage == STAGES) stage = 0, phase ^= 1;
  }
}

// tokens: rows of results that there are. width: columns written; with ADDS they are added to what `out` holds, as `held`
// describes. out_scale: of results in E4M3 (EIGHT), as is `unit`. scale [E, width], for a gated product gate_scale
// [E, width] besides. stored: rows that each expert's matrix has, a multiple of COLUMNS. steps: times DEPTH is what is
// summed over. values and token: the rows of GATHERS, in the tokens' order, and whose row a row of results is made of.
extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1) grouped(
    const __grid_constant__ TensorMap rows, const __grid_constant__ TensorMap weight,
    const __grid_constant__ TensorMap held, void *out, float *out_scale, const float *row_scale, const float *scale,
    const float *gate_scale, const int *expert_of_tile, const int *filled, const int *source, const int *used_tiles,
    const u8 *values, const int *token, int tokens, int width, int stored, int steps, float unit) {
  extern __shared__ u8 dynamic[];
  const u32 stages = (shared_address(dynamic) + 1023) & ~1023u;
  __shared__ alignas(8) u64 barriers[2 * STAGES];
  __shared__ alignas(16) u16 factors[2][FACTORS];
  const u32 full = shared_address(barriers), empty = full + 8 * STAGES;
  const u32 rank = cluster_rank();
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; ++s) {
      barrier_init(full + 8 * s, GATHERS ? 1 + COPYING : 1);
      barrier_init(empty + 8 * s, 8);  // four warps of each block
    }
    barriers_visible();
    prefetch_map(&rows);
    prefetch_map(&weight);
  }
  cluster_sync();
  if (EXPERTS) in_turn();
  const Tiles tiles = {expert_of_tile, filled, source, tokens, EXPERTS ? uniform(*used_tiles) : (tokens + ROWS - 1) / ROWS};
  const int columns = stored / COLUMNS, items = (tiles.used + 1) / 2 * columns;
  const int clusters = gridDim.x / 2, cluster = blockIdx.x / 2;
  const int team = uniform(threadIdx.x / 128);
  if (team == 0) {
    registers_shrink<GATHERS ? 40 : 24>();
    if (threadIdx.x < COPYING) {
      int stage = 0, phase = 0;
#if !EXPERTS
      if (threadIdx.x == 0 && cluster < items) {
        const int bytes = bytes_of(tile_of(cluster, columns, rank, tiles)), first = cluster % columns * COLUMNS;
        for (int step = 0; step < min(STAGES, steps); ++step) {
          barrier_expect(full + 8 * step, bytes);
          copy_weights(stages + step * STAGE_BYTES + 2 * ROWS_HALF, &weight, full + 8 * step, step, first, true, rank);
        }
      }
      in_turn();
#endif
#if GATHERS
      const int mine = threadIdx.x / 8, eighth = threadIdx.x % 8;
      const u32 place = mine * DEPTH + 16 * (eighth ^ mine % 8);
#endif
      for (int item = cluster; item < items; item += clusters) {
        const Tile t = tile_of(item, columns, rank, tiles);
        const int from = t.expert * stored + t.column * COLUMNS;
#if ADDS
        if (threadIdx.x == 0) {
#pragma unroll
          for (int column = 0; column < FACTORS; column += 64)
            prefetch_box(&held, 2 * (unit_of(t.column) + column), t.row);
        }
#endif
#if GATHERS
        u32 rows_from[ROWS / 16];  // in sixteen bytes
#pragma unroll
        for (int i = 0; i < ROWS / 16; ++i)
          rows_from[i] = !t.together() && mine + 16 * i < t.filled
                             ? token[t.source + mine + 16 * i] * (steps * (DEPTH / 16)) + eighth
                             : 0;
#endif
#pragma unroll 1
        for (int step = 0; step < steps; ++step) {
          barrier_wait(empty + 8 * stage, phase ^ 1);
          const u32 a = stages + stage * STAGE_BYTES, ready = full + 8 * stage;
          if (threadIdx.x == 0) {
            const bool early = !EXPERTS && item == cluster && step < STAGES;
            if (!early) barrier_expect(ready, bytes_of(t));
            if (t.together()) {
              copy_box(a, &rows, ready, step * DEPTH, t.first_row());
              if (!t.half()) copy_box(a + ROWS_HALF, &rows, ready, step * DEPTH, t.first_row() + ROWS / 2);
            }
            if (!early) copy_weights(a + 2 * ROWS_HALF, &weight, ready, step, from, t.shared, rank);
          }
          __syncwarp();
#if GATHERS
          const u8 *at = values + step * DEPTH;
#pragma unroll
          for (int i = 0; i < ROWS / 16; ++i)
            if (!t.together() && (i < ROWS / 32 || !t.half()))
              copy_sixteen(a + place + 16 * i * DEPTH, at + 16 * (u64)rows_from[i], mine + 16 * i >= t.filled);
          barrier_arrive_copied(ready);
#endif
          if (++stage == STAGES) stage = 0, phase ^= 1;
        }
      }
    }
  } else {
    registers_grow<GATHERS ? 232 : 240>();
    if (!EXPERTS) in_turn();
    const int group = team - 1, thread = threadIdx.x % 128, lane = threadIdx.x % 32, q = lane % 4;
    const u32 freed = address_in(empty, lane % 2);
    u16 *factor = factors[group];
    const u64 described = matrix_descriptor(stages);
    Sums acc;
    int stage = 0, phase = 0;
    // Where in the ring of stages this warpgroup's next tile begins: the other's tile lies between.
    const int skip = steps % STAGES, turns = steps / STAGES;
    if (group == 1) {
      stage = skip, phase = turns & 1;
      let_meet(3, 256);  // the first turn is the other's
    }
    for (int item = cluster + group * clusters; item < items; item += 2 * clusters) {
      const Tile t = tile_of(item, columns, rank, tiles);
      const int local = thread / 32 * 16 + lane / 4, first = t.row + local;
      // Where rows are looked up nobody's are zeros, and so are the results: the next product takes less power for them.
      const int below = (GATHERS && t.filled ? t.half() ? ROWS / 2 : ROWS : t.filled) - local;
#if !GATED
      const int begin = unit_of(t.column), left = width - begin - 8 * q;
      const bool odd = MIDWAY && t.column % 2;
      Result *to = (Result *)out + (u64)first * width + begin + 8 * q;
      Part part;  // what comes first is on its way before the products
      if (ADDS && below > 0) odd ? load<MIDWAY>(part, to, left) : load<0>(part, to, left);
#endif
      // In turns: a barrier of the ring tells only the last two of its phases apart, so nobody may wait further ahead.
      meet(3 + group, 256);
      int before = stage;
      if (t.half()) {
        multiply<1>(acc, described, full, freed, steps, stage, phase, before, lane);
      } else {
        multiply<2>(acc, described, full, freed, steps, stage, phase, before, lane);
      }
      let_meet(4 - group, 256);
      float fetched[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int place = 128 * i + thread;
#if GATED
        const int column = t.column * OUTPUTS + place % OUTPUTS;
        const float *from = place < OUTPUTS ? scale : gate_scale;
#else
        const int column = begin + place;
        const float *from = scale;
#endif
        fetched[i] = place < FACTORS && column < width ? from[(u64)t.expert * width + column] : 0.0f;
      }
      float one[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = row_at(i);
        if (local + row < t.filled)
          one[i] = row_scale[t.together() ? t.first_row() + local + row : token[t.source + local + row]];
      }
      products_wait<0>();
      if (lane < 2) barrier_arrive_there(freed + 8 * before);
      stage += skip, phase ^= turns & 1;
      if (stage >= STAGES) stage -= STAGES, phase ^= 1;
      meet(1 + group, 128);
      if (thread < FACTORS) factor[thread] = factor_of(fetched[0], unit);
      if (thread < FACTORS - 128) factor[128 + thread] = factor_of(fetched[1], unit);
      meet(1 + group, 128);
#if EIGHT
      if (t.column == 0 && q == 0) {
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (row_at(i) < below) out_scale[first + row_at(i)] = scale_of_results(one[i], unit, steps * DEPTH);
      }
#endif
#if GATED
      const int begin = t.column * OUTPUTS;
      store_gated_rows(
          (u8 *)out + (u64)first * width + begin, acc, factor, one, unit, steps * DEPTH, below, width, width - begin, q);
#else
      odd ? store_rows<MIDWAY>(to, acc, factor + 8 * q, one, below, width, left, part)
          : store_rows<0>(to, acc, factor + 8 * q, one, below, width, left, part);
#endif
    }
  }
  __syncwarp();
  cluster_sync();  // nobody leaves while the other block may still write into its shared memory or arrive there
}
