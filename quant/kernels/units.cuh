// How a plain product's tile is cut into units of 32 columns, of which a thread has eight side by side. COLUMNS of a tile
// may be an odd number of sixteens: then every other tile begins in the middle of a unit.

#define UNITS (COLUMNS / 32)
#define MIDWAY (COLUMNS % 32 / 16)
#define FACTORS (32 * (UNITS + MIDWAY))  // of the columns of all units of which a tile has any

// The first column of the unit in which a tile begins.
__device__ __forceinline__ int unit_of(int tile) { return tile * COLUMNS / 32 * 32; }

// Where a thread's columns begin in a tile that begins in a unit's middle (ODD) or not, counted from its columns of the unit
// in which the tile begins, and in which eight of the tile: column 8j + 2q + e of a tile is output 8q + 2·(j%4) + e of unit
// j/4, counted from where a unit begins.
template <int ODD>
__device__ __forceinline__ int unit_at(int u) { return 32 * (u + ODD); }
template <int ODD>
__device__ __forceinline__ int half_at() { return ODD ? 4 : 32 * UNITS; }
template <int ODD>
__device__ __forceinline__ int eights_of_unit(int u) { return 4 * u + 2 * ODD; }
template <int ODD>
__device__ __forceinline__ int eights_of_half() { return ODD ? 0 : 4 * UNITS; }
