// A few rows times a matrix in E4M3: all that counts is that the matrix is read once, as fast as the memory gives it.
// A cluster of SPLIT blocks has CHANNELS rows of the matrix, each block a part of what is summed over. The matrix is
// nobody's result, so it is on its way before the launch's turn comes. Five warps: four multiply, taking the matrix as
// the first operand (64 channels by ROWS tokens), one copies. Sums meet through the cluster's shared memory, always in
// the same order.

#define CHANNELS 64
#define DEPTH 128
#define MATRIX_BYTES (CHANNELS * DEPTH)
#define STAGE_BYTES (MATRIX_BYTES + ROWS * DEPTH)
#define STRIDE (CHANNELS + 4)  // of a token's sums in shared memory, so that threads meet in no bank

// rows [tokens, K] with row_scale, matrix [width, K] with scale, its rows in order.py's order; out [tokens, width], where
// `adds` what the sums are added to. steps: times DEPTH is K.
extern "C" __global__ void __cluster_dims__(SPLIT, 1, 1) __launch_bounds__(160) few_rows(
    const __grid_constant__ TensorMap rows, const __grid_constant__ TensorMap matrix, u16 *out, const float *row_scale,
    const float *scale, int tokens, int width, int steps, int adds) {
  extern __shared__ u8 dynamic[];
  const u32 stages = (shared_address(dynamic) + 1023) & ~1023u;
  __shared__ alignas(8) u64 barriers[2 * STAGES];
  __shared__ alignas(8) float sums[ROWS * STRIDE];
  const u32 full = shared_address(barriers), empty = full + 8 * STAGES;
  const int rank = blockIdx.x % SPLIT, channel = blockIdx.x / SPLIT * CHANNELS;
  const int begin = rank * steps / SPLIT, count = (rank + 1) * steps / SPLIT - begin;
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; ++s) {
      barrier_init(full + 8 * s, 1);
      barrier_init(empty + 8 * s, 4);
    }
    barriers_visible();
  }
  __syncthreads();
  if (threadIdx.x >= 128) {
    if (threadIdx.x == 128) {
      const int ahead = count < STAGES ? count : STAGES;
      for (int step = 0; step < ahead; ++step) {
        barrier_expect(full + 8 * step, STAGE_BYTES);
        copy_box(stages + step * STAGE_BYTES, &matrix, full + 8 * step, (begin + step) * DEPTH, channel);
      }
      in_turn();
      for (int step = 0; step < ahead; ++step)
        copy_box(stages + step * STAGE_BYTES + MATRIX_BYTES, &rows, full + 8 * step, (begin + step) * DEPTH, 0);
      int stage = 0, phase = 0;
      for (int step = ahead; step < count; ++step) {
        const u32 at = stages + stage * STAGE_BYTES, ready = full + 8 * stage;
        barrier_wait(empty + 8 * stage, phase);
        barrier_expect(ready, STAGE_BYTES);
        copy_box(at, &matrix, ready, (begin + step) * DEPTH, channel);
        copy_box(at + MATRIX_BYTES, &rows, ready, (begin + step) * DEPTH, 0);
        if (++stage == STAGES) stage = 0, phase ^= 1;
      }
    }
    __syncwarp();
  } else {
    in_turn();
    const int lane = threadIdx.x % 32;
    const u64 described = matrix_descriptor(stages);
    float acc[ROWS / 2] = {};
    int stage = 0, phase = 0, before = 0;
    for (int step = 0; step < count; ++step) {
      barrier_wait(full + 8 * stage, phase);
      const u64 a = described + stage * (STAGE_BYTES >> 4), b = a + (MATRIX_BYTES >> 4);
      products_begin();
#pragma unroll
      for (int g = 0; g < DEPTH / 32; ++g) product_channels(acc, a + 2 * g, b + 2 * g, step || g);
      products_commit();
      if (step) {
        products_wait<1>();
        if (lane == 0) barrier_arrive(empty + 8 * before);
      }
      before = stage;
      if (++stage == STAGES) stage = 0, phase ^= 1;
    }
    products_wait<0>();
    settle(acc);
    float *mine = sums + lane % 4 * 2 * STRIDE + threadIdx.x / 32 * 16 + lane / 4;
#pragma unroll
    for (int j = 0; j < ROWS / 8; ++j) {
      float *at = mine + 8 * j * STRIDE;
      at[0] = acc[4 * j], at[STRIDE] = acc[4 * j + 1];
      at[8] = acc[4 * j + 2], at[STRIDE + 8] = acc[4 * j + 3];
    }
  }
  cluster_sync();
  const int share = ROWS * CHANNELS / 2 / SPLIT;  // pairs of channels of a token that a block writes
  for (int pair = rank * share + threadIdx.x; pair < (rank + 1) * share; pair += 160) {
    const int token = pair / (CHANNELS / 2), place = 2 * (pair % (CHANNELS / 2));
    const int column = channel + place / 32 * 32 + place % 8 * 4 + place / 8 % 4 * 2;
    if (token >= tokens || column >= width) continue;
    float first = 0.0f, second = 0.0f;
#pragma unroll
    for (int from = 0; from < SPLIT; ++from) {
      const float2 part = of_block(shared_address(sums + token * STRIDE + place), from);
      first += part.x, second += part.y;
    }
    const float one = row_scale[token];
    u32 *at = (u32 *)(out + (u64)token * width + column);
    const u32 held = adds ? *at : 0;
    first = first * one * scale[column] + bf16_low(held), second = second * one * scale[column + 1] + bf16_high(held);
    *at = pack_bf16(first, second);
  }
  cluster_sync();  // nobody leaves while another still reads its sums
}
