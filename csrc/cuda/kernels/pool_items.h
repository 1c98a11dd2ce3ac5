// The items of a sequence as a warp sees them: tiles of eight unit rows in its own shared memory.
#pragma once

#include "cuda/kernels/rows.h"
#include "cuda/pool_schedule.h"

namespace cmi_fast::cuda {

constexpr int DEPTH = 64;  // dimensions of a tile
constexpr int MOST_CATEGORIES = 64;
constexpr int UNIT_STRIDE = DEPTH + 4;  // of rows of floats: the same four dimensions of eight rows are in all banks

// As in memory; the 16 bytes between rows are for the banks, too.
template <class S>
constexpr int STAGE_STRIDE = DEPTH * int(sizeof(S)) + 16;

struct Item {
  static constexpr int64_t UNKNOWN = -1;
  int64_t row;
  int views;  // a bit for each that it counts in; 0 for no item
};

// One call's inputs, rows of S. Categories, and so interests, are of C, which rows are rounded to: under autocast a
// table keeps its type.
template <class S, class C>
struct PoolInputs {
  const S* rows;                     // the items [positions, d], or the table [row_count, d]
  const int64_t* ids;                // [positions], or null
  const int64_t *lengths, *offsets;  // of padded or of jagged sequences, or null
  const bool* views;                 // [view_count, positions], or null: one view that holds everything
  const float* categories;           // unit rows [m, chunks() * DEPTH]
  int64_t row_count;
  int batch, capacity, positions, view_count, m, d;
  bool aligned;  // rows consist of whole 16 bytes
  float temperature;
  const float* temperature_pointer;  // where it is a tensor

  CMI_FAST_DEVICE float t() const { return temperature_pointer ? *temperature_pointer : temperature; }
  CMI_FAST_HOST_DEVICE int chunks() const { return (d + DEPTH - 1) / DEPTH; }
  CMI_FAST_HOST_DEVICE int depth(int chunk) const { return d - chunk * DEPTH < DEPTH ? d - chunk * DEPTH : DEPTH; }
  CMI_FAST_HOST_DEVICE int interests() const { return view_count * m; }  // of a sequence

  // The positions of a sequence, none of sequence `batch` and later. Nobody has checked lengths and offsets: whatever
  // they are, positions exist.
  CMI_FAST_DEVICE Span sequence(int64_t b) const {
    if (b >= batch) return {0, 0};
    int64_t begin = b * capacity, end = begin + capacity;
    if (offsets) {
      begin = offsets[b];
      end = offsets[b + 1];
    } else if (lengths && lengths[b] < capacity) {
      end = begin + lengths[b];
    }
    if (end > positions) end = positions;
    return begin >= 0 && begin < end ? Span{int(begin), int(end)} : Span{0, 0};
  }

  // An id that nobody has checked is no row: it makes its sequence NaN.
  CMI_FAST_DEVICE Item item(int position, int end) const {
    if (position >= end) return {0, 0};
    int members = views ? 0 : 1;
    for (int view = 0; views && view < view_count; ++view)
      members |= int(views[view * int64_t(positions) + position]) << view;
    if (members == 0 || !ids) return {position, members};
    const int64_t row = ids[position];
    return {row >= 0 && row < row_count ? row : Item::UNKNOWN, members};
  }
};

// A warp's shared memory. Matrices of items and categories lie by categories, [*, ITEMS].
template <class S>
struct alignas(16) WarpMemory {
  char stages[2][ITEMS * STAGE_STRIDE<S>];  // filled in turn
  float units[ITEMS * UNIT_STRIDE];         // of one chunk
  float scores[MOST_CATEGORIES * ITEMS];    // then the assignment
  float weights[MOST_CATEGORIES * ITEMS];   // forward: of the items in some interests; backward: a, then ds
  int64_t rows[2][WINDOW];                  // of two windows in turn
  int views[2][WINDOW];
  float scale[ITEMS], inverse[ITEMS], radial[ITEMS];

  CMI_FAST_DEVICE static WarpMemory& of(char* shared, Place place) {
    return reinterpret_cast<WarpMemory*>(shared)[place.warp()];
  }
};

// The items of a tile, in a warp's shared memory.
struct PoolTile {
  int number;  // of the warp's tiles of the sequence
  const int64_t* rows;
  const int* views;

  CMI_FAST_DEVICE bool exists(int item) const { return views[item] != 0 && rows[item] != Item::UNKNOWN; }
};

// Starts to copy one chunk of a tile's rows, zeros where there is none.
template <class S, class C>
CMI_FAST_DEVICE void fetch_rows(char* stage, const PoolInputs<S, C>& x, const PoolTile& tile, int chunk, int lane) {
  constexpr int PIECE = 16 / int(sizeof(S)), PIECES = DEPTH / PIECE;
  const int depth = x.depth(chunk);
  if (x.aligned) {
    for (int i = lane; i < ITEMS * PIECES; i += LANES) {
      const int item = i / PIECES, first = i % PIECES * PIECE;
      const bool valid = tile.exists(item) && first < depth;
      copy_async(stage + item * STAGE_STRIDE<S> + i % PIECES * 16,
                 valid ? x.rows + tile.rows[item] * x.d + chunk * DEPTH + first : x.rows, valid);
    }
  } else {
    for (int i = lane; i < ITEMS * DEPTH; i += LANES) {
      const int item = i / DEPTH, k = i % DEPTH;
      S* const to = reinterpret_cast<S*>(stage + item * STAGE_STRIDE<S>) + k;
      *to = tile.exists(item) && k < depth ? x.rows[tile.rows[item] * x.d + chunk * DEPTH + k] : S{};
    }
  }
}

// A lane makes unit rows with the three others of its item.
CMI_FAST_DEVICE int item_of(int lane) { return lane % ITEMS; }
constexpr int LANES_OF_ITEM = LANES / ITEMS;

CMI_FAST_DEVICE float sum_over_item(float x) {
  for (int mask = ITEMS; mask < LANES; mask *= 2) x += shuffle_xor(x, mask);
  return x;
}
CMI_FAST_DEVICE float max_over_item(float x) {
  for (int mask = ITEMS; mask < LANES; mask *= 2) x = fmaxf(x, shuffle_xor(x, mask));
  return x;
}

// Calls visit(k, the dimensions k to k + 3) for those of a staged row that are this lane's.
template <class S, class C, class Visit>
CMI_FAST_DEVICE void for_each_four(const char* stage, int lane, const Visit& visit) {
  const S* const row = reinterpret_cast<const S*>(stage + item_of(lane) * STAGE_STRIDE<S>);
  CMI_FAST_UNROLL
  for (int k = lane / ITEMS * 4; k < DEPTH; k += LANES_OF_ITEM * 4) {
    const Four<S> stored = *reinterpret_cast<const Four<S>*>(row + k);
    Four<float> x;
    CMI_FAST_UNROLL
    for (int i = 0; i < 4; ++i) {
      x.x[i] = widen(stored.x[i]);
      if constexpr (sizeof(C) < sizeof(S)) {
        C rounded;
        narrow(x.x[i], &rounded);
        x.x[i] = widen(rounded);
      }
    }
    visit(k, x);
  }
}

// The norm of a row, of which one chunk after the other is known: the sum of squares is that of scaled rows, and the
// scale, a power of two, falls with the largest magnitude so far.
struct Norm {
  float largest = 0, square = 0;

  template <class S, class C>
  CMI_FAST_DEVICE void add(const char* stage, int lane) {
    float top = largest, sum = 0;
    for_each_four<S, C>(stage, lane, [&](int, const Four<float>& x) {
      CMI_FAST_UNROLL
      for (int i = 0; i < 4; ++i) top = fmaxf(top, fabsf(x.x[i]));
    });
    top = max_over_item(top);
    const float scale = inverse_power_of_two(top), fallen = scale / inverse_power_of_two(largest);
    for_each_four<S, C>(stage, lane, [&](int, const Four<float>& x) {
      CMI_FAST_UNROLL
      for (int i = 0; i < 4; ++i) sum += x.x[i] * scale * (x.x[i] * scale);
    });
    square = square * fallen * fallen + sum_over_item(sum);
    largest = top;
  }

  CMI_FAST_DEVICE Scale scale() const { return {inverse_power_of_two(largest), square == 0 ? 0 : 1 / sqrtf(square)}; }
};

// The unit rows of a staged chunk; NaN for an id that is none.
template <class S, class C>
CMI_FAST_DEVICE void write_units(WarpMemory<S>& memory, const char* stage, const Norm& norm, const PoolTile& tile,
                                 int lane) {
  const int item = item_of(lane);
  Scale scale = norm.scale();
  if (tile.rows[item] == Item::UNKNOWN) scale.inverse = NAN;
  for_each_four<S, C>(stage, lane, [&](int k, Four<float> unit) {
    CMI_FAST_UNROLL
    for (int i = 0; i < 4; ++i) unit.x[i] = unit.x[i] * scale.scale * scale.inverse;  // in turn: neither overflows
    *reinterpret_cast<Four<float>*>(memory.units + item * UNIT_STRIDE + k) = unit;
  });
  if (lane >= ITEMS) return;
  memory.scale[item] = scale.scale;
  memory.inverse[item] = scale.inverse;
}

// Takes a warp through its items: calls add(tile, chunk, first) for each chunk of a tile, with its unit rows in
// memory.units, the chunk `own` last, and then visit(tile). Rows are read once where they have one chunk. Otherwise
// their norm is taken first, and they are read again: from the caches. The next chunk is copied while one is computed.
template <class S, class C, class Add, class Visit>
CMI_FAST_DEVICE void for_each_tile(const PoolInputs<S, C>& x, const Walk& walk, int own, WarpMemory<S>& memory,
                                   int lane, const Add& add, const Visit& visit) {
  const int chunks = x.chunks(), steps_a_tile = chunks == 1 ? 1 : 2 * chunks, steps = walk.tiles() * steps_a_tile;
  const auto chunk_of = [&](int step) { return (own + 1 + step % steps_a_tile) % chunks; };
  const auto tile_of = [&](int step) {
    const int number = step / steps_a_tile, window = number / TILES % 2, first = number % TILES * ITEMS;
    return PoolTile{number, memory.rows[window] + first, memory.views[window] + first};
  };
  Item next = x.item(walk.position(0, lane), walk.items.end);
  const auto fetch = [&](int step) {
    const PoolTile tile = tile_of(step);
    if (step % (steps_a_tile * TILES) == 0) {
      const int window = tile.number / TILES % 2;
      memory.rows[window][lane] = next.row;
      memory.views[window][lane] = next.views;
      sync_warp();
      next = x.item(walk.position(tile.number + TILES, lane), walk.items.end);
    }
    fetch_rows(memory.stages[step % 2], x, tile, chunk_of(step), lane);
  };
  Norm norm;
  if (steps > 0) fetch(0);
  for (int step = 0; step < steps; ++step) {
    wait_for_copies();
    sync_warp();  // the stage is full, and nobody reads the other one or the units any more
    if (step + 1 < steps) fetch(step + 1);
    const char* const stage = memory.stages[step % 2];
    const int place = step % steps_a_tile;
    if (place == 0) norm = {};
    if (place < chunks) norm.add<S, C>(stage, lane);
    if (place < chunks && chunks > 1) continue;
    const PoolTile tile = tile_of(step);
    write_units<S, C>(memory, stage, norm, tile, lane);
    sync_warp();
    add(tile, chunk_of(step), place % chunks == 0);
    if (place == steps_a_tile - 1) visit(tile);
  }
  sync_warp();  // the memory is free
}

}  // namespace cmi_fast::cuda
