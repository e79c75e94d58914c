// The places of the k largest of a request's n keys, in ascending order; see largest.py. One block each.
// A bound below which none of them lies leaves few keys beside the k: those come into a list, in any order, of which the
// k-th largest is found digit by digit, from the counts of its digits. What is taken is marked in a bitmap, which gives the
// places in order. Nothing here is much work: what counts is how often all threads wait for each other. largest.py says how
// many THREADS there are, 32 warps of them, and what the key of minus infinity is, LOST.

#define HELD 2      // keys that a thread has in registers while one is searched for
#define AT_ONCE 16  // keys that a thread has on their way
#define DIGITS 256  // that a byte may be
#define ALL 0xFFFFFFFFu
#define NONE (-2147483647 - 1)  // less than any key

__device__ __forceinline__ int lane() { return threadIdx.x % 32; }
__device__ __forceinline__ int warp() { return threadIdx.x / 32; }

__device__ __forceinline__ int sum_until(int x) {
#pragma unroll
  for (int far = 1; far < 32; far *= 2) {
    const int other = __shfl_up_sync(ALL, x, far);
    if (lane() >= far) x += other;
  }
  return x;
}

// The sum of all threads' numbers, and in `before` that of those before this one. of_warps: room for one of each warp.
__device__ __forceinline__ int sum_of(int mine, int &before, int *of_warps) {
  const int until = sum_until(mine);
  if (lane() == 31) of_warps[warp()] = until;
  __syncthreads();
  const int of = of_warps[lane()];
  before = __reduce_add_sync(ALL, lane() < warp() ? of : 0) + until - mine;
  return __reduce_add_sync(ALL, of);
}

// What is searched through: its first keys in registers, the others in memory.
struct List {
  const int *keys;
  int count, held[HELD];

  template <class F>
  __device__ __forceinline__ void for_each(F look) const {
#pragma unroll
    for (int i = 0; i < HELD; ++i)
      if (i * THREADS + threadIdx.x < count) look(held[i]);
    for (int at = HELD * THREADS + threadIdx.x; at < count; at += THREADS) look(keys[at]);
  }
};

// The k-th largest key, as a word in the keys' order: of the `equal` ones that are no other the wanted-th. None of them is,
// where there are fewer than k keys.
struct Found {
  u32 word;
  int wanted, equal;
  __device__ __forceinline__ int key() const { return (int)(word ^ 1u << 31); }
};

// One warp: of the digits that a byte of some keys may be, counted, the wanted-th's from above.
__device__ __forceinline__ void find_digit(const int *counts, int shift, Found &found) {
  const int first = DIGITS - 8 - 8 * lane();  // a lane's eight, the first lane's being the greatest
  int of[8], sum = 0;
#pragma unroll
  for (int j = 0; j < 8; ++j) sum += of[j] = counts[first + j];
  const int wanted = found.wanted;
  int before = sum_until(sum) - sum;
  const bool here = before < wanted && wanted <= before + sum;
  if (!__any_sync(ALL, here) && lane() == 0) found = {0, 0, 0};
  if (!here) return;
  int j = 7;
#pragma unroll
  for (int i = 7; i > 0; --i)
    if (j == i && wanted > before + of[i]) before += of[i], j = i - 1;
  found = {found.word | (u32)(first + j) << shift, wanted - before, counts[first + j]};
}

// By the first BYTES bytes, the others being as low as can be. counts: zeros.
template <int BYTES>
__device__ __forceinline__ Found kth_of(const List &list, int k, int (&counts)[BYTES][DIGITS], Found &found) {
  if (threadIdx.x == 0) found = {0, k, 0};
#pragma unroll 1
  for (int i = 0; i < BYTES; ++i) {
    const int shift = 24 - 8 * i;
    const u32 known = i ? found.word >> (shift + 8) : 0;
    list.for_each([&](int key) {
      const u32 word = (u32)key ^ 1u << 31;
      if (!i || word >> (shift + 8) == known) atomicAdd(&counts[i][word >> shift & (DIGITS - 1)], 1);
    });
    __syncthreads();
    if (warp() == 0) find_digit(counts[i], shift, found);
    __syncthreads();
  }
  return found;
}

// No more than the k-th largest key: nearly the k-th largest of the largest that HELD lanes of each thread see.
__device__ __forceinline__ int bound_of(const int *keys, int n, int k, int (&counts)[3][DIGITS], Found &found) {
  List lanes = {nullptr, HELD * THREADS};
#pragma unroll
  for (int i = 0; i < HELD; ++i) lanes.held[i] = NONE;
  for (int begin = 0; begin < n; begin += AT_ONCE * THREADS) {
#pragma unroll
    for (int i = 0; i < AT_ONCE; ++i) {
      const int at = begin + i * THREADS + threadIdx.x;
      lanes.held[i % HELD] = max(lanes.held[i % HELD], at < n ? keys[at] : NONE);
    }
  }
  return kth_of(lanes, k, counts, found).key();
}

// Of the keys that are `equal` the wanted-th in the order of their places.
__device__ __forceinline__ int place_of(const int *keys, const int *places, int count, int equal, int wanted) {
  int place = 0;
#pragma unroll 1
  for (u32 bit = 1u << 30; bit; bit >>= 1) {
    int lower = 0;
    for (int begin = 0; begin < count; begin += THREADS) {
      const int at = begin + threadIdx.x;
      lower += __syncthreads_count(at < count && keys[at] == equal && places[at] < (place | bit));
    }
    if (lower < wanted) place |= bit;
  }
  return place;
}

// keys [requests, n], places [requests, k]. bound [requests]: none of the k that are not lost is below it, or null.
// kth [requests]: the k-th largest key, or NONE. left [requests, 2, n]: room. Dynamic shared memory: a bit for each key.
extern "C" __global__ void __launch_bounds__(THREADS, 1) largest(
    const int *keys, const int *bound, int *left, int *places, int *kth, int n, int k) {
  extern __shared__ u32 marked[];
  __shared__ int of_lanes[3][DIGITS], of_list[4][DIGITS], of_warps[THREADS / 32], kept;
  __shared__ Found of_bound, of_all;
  const int words = (n + 31) / 32;
  for (int i = threadIdx.x; i < words; i += THREADS) marked[i] = 0;
  for (int i = threadIdx.x; i < 3 * DIGITS; i += THREADS) of_lanes[0][i] = 0;
  for (int i = threadIdx.x; i < 4 * DIGITS; i += THREADS) of_list[0][i] = 0;
  if (threadIdx.x == 0) kept = 0;
  __syncthreads();
  in_turn();
  keys += (u64)blockIdx.x * n, left += (u64)blockIdx.x * 2 * n, places += (u64)blockIdx.x * k;
  const int floor = max(bound ? bound[blockIdx.x] : bound_of(keys, n, k, of_lanes, of_bound), LOST + 1);
  int *left_places = left + n;
  for (int begin = 0; begin < n; begin += AT_ONCE * THREADS) {
    int key[AT_ONCE];
#pragma unroll
    for (int i = 0; i < AT_ONCE; ++i) {
      const int at = begin + i * THREADS + threadIdx.x;
      key[i] = at < n ? keys[at] : NONE;
    }
#pragma unroll
    for (int i = 0; i < AT_ONCE; ++i) {
      const bool is = key[i] >= floor;
      const u32 those = __ballot_sync(ALL, is);
      if (!those) continue;
      int to = 0;
      if (lane() == 0) to = atomicAdd(&kept, __popc(those));
      to = __shfl_sync(ALL, to, 0) + __popc(those & ((1u << lane()) - 1));
      if (is) left[to] = key[i], left_places[to] = begin + i * THREADS + threadIdx.x;
    }
  }
  __syncthreads();
  List list = {left, kept};
#pragma unroll
  for (int i = 0; i < HELD; ++i) list.held[i] = i * THREADS + threadIdx.x < list.count ? left[i * THREADS + threadIdx.x] : 0;
  const Found least = kth_of(list, k, of_list, of_all);
  const int least_key = least.key();
  const int last = least.wanted < least.equal ? place_of(left, left_places, list.count, least_key, least.wanted) : n;
  for (int at = threadIdx.x; at < list.count; at += THREADS) {
    const int key = left[at], place = left_places[at];
    if (key > least_key || (key == least_key && place <= last)) atomicOr(marked + place / 32, 1u << place % 32);
  }
  __syncthreads();
  const int share = (words + THREADS - 1) / THREADS, first = threadIdx.x * share, end = min(first + share, words);
  int mine = 0, to;
  for (int i = first; i < end; ++i) mine += __popc(marked[i]);
  int done = sum_of(mine, to, of_warps);
  for (int i = first; i < end; ++i)
    for (u32 bits = marked[i]; bits; bits &= bits - 1) places[to++] = 32 * i + __ffs(bits) - 1;
  for (int begin = 0; done < k && begin < n; begin += THREADS) {  // lost ones, the first of them
    const int at = begin + threadIdx.x;
    const bool lost = at < n && keys[at] <= LOST;
    __syncthreads();  // the last sums are read
    const int more = sum_of(lost, to, of_warps);
    if (lost && done + to < k) places[done + to] = at;
    done += more;
  }
  if (threadIdx.x == 0) kth[blockIdx.x] = least_key;
}
