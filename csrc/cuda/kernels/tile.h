// Tiles of rows in shared memory, and their products. A block of four warps multiplies two tiles of 64 rows; each warp
// has 16 of the left tile's, and a lane the same elements of the [16, 64] scores whatever the type: those that the
// tensor cores leave there.
#pragma once

#include "cuda/kernels/rows.h"

namespace cmi_fast::cuda {

constexpr int TILE = 64;
// A row in shared memory is one chunk of its dimensions and then its factors, whose 16 bytes shift the next row to
// other banks: eight rows' matrices are read without a conflict.
constexpr int CHUNK_BYTES = 128, ROW_BYTES = CHUNK_BYTES + 16, TILE_BYTES = TILE * ROW_BYTES;

template <class T>
constexpr int CHUNK = CHUNK_BYTES / int(sizeof(T));  // dimensions

// What makes a score of a product, and a gradient of a score.
struct alignas(16) RowFactors {
  float inverse;  // times the row a unit row
  float share;    // b e^(shift - L): what e^(score - shift) is multiplied with
  float log_sum;  // L to base 2
  float weight;   // b
};

// Rows [n, width] in memory, zero from their d-th dimension to width, which is a multiple of 16.
template <class T>
struct Panel {
  const T* rows;
  const RowFactors* factors;  // [n]
  int width;

  CMI_FAST_HOST_DEVICE int chunks() const { return (width + CHUNK<T> - 1) / CHUNK<T>; }
  // Dimensions in a chunk.
  CMI_FAST_HOST_DEVICE int depth(int chunk) const {
    const int rest = width - chunk * CHUNK<T>;
    return rest < CHUNK<T> ? rest : CHUNK<T>;
  }
};

// Rows [first, last).
struct Range {
  int first, last;
};

template <class T>
CMI_FAST_DEVICE const T* tile_row(const char* tile, int row) {
  return reinterpret_cast<const T*>(tile + row * ROW_BYTES);
}

CMI_FAST_DEVICE const RowFactors& tile_factors(const char* tile, int row) {
  return *reinterpret_cast<const RowFactors*>(tile + row * ROW_BYTES + CHUNK_BYTES);
}

// Starts to copy the rows from `first` on, one chunk; rows from `last` on are zero.
template <class T>
CMI_FAST_DEVICE void fetch_tile(char* tile, const Panel<T>& panel, int first, int last, int chunk, int thread) {
  constexpr int parts = ROW_BYTES / 16;  // the last one holds the factors
  const int used = panel.depth(chunk) * int(sizeof(T)) / 16;
  for (int i = thread; i < TILE * parts; i += THREADS) {
    const int row = i / parts, part = i % parts;
    const bool valid = first + row < last;
    const int64_t from = valid ? first + row : first;
    char* const to = tile + row * ROW_BYTES + part * 16;
    if (part == parts - 1)
      copy_async(to, panel.factors + from, valid);
    else if (part < used)
      copy_async(to, panel.rows + from * panel.width + chunk * CHUNK<T> + part * (16 / int(sizeof(T))), valid);
  }
}

// scores[i] holds columns 8 i to 8 i + 7 of this warp's 16 rows: see multiply_add for a lane's four of them.
using Scores = float[TILE / 8][4];

CMI_FAST_DEVICE int score_row(int element, Place place) {
  return place.warp() * 16 + place.lane() / 4 + element / 2 * 8;
}
CMI_FAST_DEVICE int score_column(int i, int element, Place place) { return i * 8 + place.lane() % 4 * 2 + element % 2; }

// The sum over the four lanes that share a row of scores.
CMI_FAST_DEVICE float sum_over_columns(float x) {
  x += shuffle_xor(x, 1);
  return x + shuffle_xor(x, 2);
}

CMI_FAST_DEVICE float max_over_columns(float x) {
  x = fmaxf(x, shuffle_xor(x, 1));
  return fmaxf(x, shuffle_xor(x, 2));
}

// The sum over the eight lanes that share a column of scores.
CMI_FAST_DEVICE float sum_over_rows(float x) {
  x += shuffle_xor(x, 4);
  x += shuffle_xor(x, 8);
  return x + shuffle_xor(x, 16);
}

// scores += left right^T over `depth` dimensions, on tensor cores.
template <class T>
CMI_FAST_DEVICE void add_products(Scores& scores, const char* left, const char* right, int depth, Place place) {
  const int lane = place.lane(), matrix = lane / 8;
  for (int k = 0; k < depth; k += 16) {
    uint32_t a[4];
    load_matrices(a, tile_row<T>(left, place.warp() * 16 + lane % 16) + k + lane / 16 * 8);
    CMI_FAST_UNROLL
    for (int i = 0; i < TILE / 8; i += 2) {
      uint32_t b[4];
      load_matrices(b, tile_row<T>(right, i * 8 + matrix / 2 * 8 + lane % 8) + k + matrix % 2 * 8);
      multiply_add(T(), scores[i], a, b[0], b[1]);
      multiply_add(T(), scores[i + 1], a, b[2], b[3]);
    }
  }
}

// The same in float32 by multiply-adds.
template <>
CMI_FAST_DEVICE void add_products<float>(Scores& scores, const char* left, const char* right, int depth, Place place) {
  const auto four = [](const char* tile, int row, int k) {
    return *reinterpret_cast<const Four<float>*>(tile_row<float>(tile, row) + k);
  };
  for (int k = 0; k < depth; k += 4) {
    const Four<float> upper = four(left, score_row(0, place), k), lower = four(left, score_row(2, place), k);
    CMI_FAST_UNROLL
    for (int i = 0; i < TILE / 8; ++i) {
      CMI_FAST_UNROLL
      for (int column = 0; column < 2; ++column) {
        const Four<float> b = four(right, score_column(i, column, place), k);
        CMI_FAST_UNROLL
        for (int j = 0; j < 4; ++j) {
          scores[i][column] += upper.x[j] * b.x[j];
          scores[i][2 + column] += lower.x[j] * b.x[j];
        }
      }
    }
  }
}

// A lane's elements of the sums [16, CHUNK] of its warp, laid out as scores are.
template <class T>
using Sums = float[CHUNK<T> / 8][4];

template <class T>
CMI_FAST_DEVICE uint32_t pack(float low, float high) {
  T halves[2];
  narrow(low, &halves[0]);
  narrow(high, &halves[1]);
  return halves[0].bits | uint32_t(halves[1].bits) << 16;
}

// sums += left [16, 16] tile [16, depth], the rows of the tile from `row` on; IN_TWO adds rest [16, 16] tile as well.
template <class T, bool IN_TWO>
CMI_FAST_DEVICE void add_half_products(Sums<T>& sums, const uint32_t (&left)[4], const uint32_t (&rest)[4],
                                       const char* tile, int row, int depth, Place place) {
  const int lane = place.lane(), matrix = lane / 8;
  CMI_FAST_UNROLL
  for (int i = 0; i < CHUNK<T> / 8; i += 2) {
    if (i * 8 >= depth) break;
    uint32_t b[4];
    load_transposed(b, tile_row<T>(tile, row + matrix % 2 * 8 + lane % 8) + i * 8 + matrix / 2 * 8);
    multiply_add(T(), sums[i], left, b[0], b[1]);
    multiply_add(T(), sums[i + 1], left, b[2], b[3]);
    if constexpr (IN_TWO) {
      multiply_add(T(), sums[i], rest, b[0], b[1]);
      multiply_add(T(), sums[i + 1], rest, b[2], b[3]);
    }
  }
}

// Two neighbouring weights, rounded to T; and what that rounding took, where IN_TWO.
template <class T, bool IN_TWO>
CMI_FAST_DEVICE void pack_in_two(float low, float high, uint32_t* rounded, uint32_t* rest) {
  *rounded = pack<T>(low, high);
  if constexpr (IN_TWO) {
    const T low_half{uint16_t(*rounded)}, high_half{uint16_t(*rounded >> 16)};
    *rest = pack<T>(low - widen(low_half), high - widen(high_half));
  }
}

// sums += weights [16, 64] tile [64, depth], the weights rounded to T on their way. IN_TWO adds what that rounding
// took.
template <class T, bool IN_TWO>
CMI_FAST_DEVICE void add_weighted_halves(Sums<T>& sums, const Scores& weights, const char* tile, int depth,
                                         Place place) {
  CMI_FAST_UNROLL
  for (int k = 0; k < TILE / 8; k += 2) {  // 16 rows of the tile: the scores' layout is that of a left factor
    uint32_t a[4], rest[4];
    CMI_FAST_UNROLL
    for (int part = 0; part < 4; ++part) {
      const float* const pair = weights[k + part / 2] + part % 2 * 2;
      pack_in_two<T, IN_TWO>(pair[0], pair[1], &a[part], &rest[part]);
    }
    add_half_products<T, IN_TWO>(sums, a, rest, tile, k * 8, depth, place);
  }
}

// sums += left [16, columns] tile [columns, depth], of a lane's two rows of the left factor and the tile's rows from
// `row` on.
CMI_FAST_DEVICE void add_float_products(Sums<float>& sums, const float* upper, const float* lower, int columns,
                                        const char* tile, int row, int depth, Place place) {
  for (int column = 0; column < columns; ++column) {
    const float up = upper[column], low = lower[column];
    const float* const x = tile_row<float>(tile, row + column) + place.lane() % 4 * 2;
    CMI_FAST_UNROLL
    for (int i = 0; i < CHUNK<float> / 8; ++i) {
      if (i * 8 >= depth) break;
      sums[i][0] += up * x[i * 8];
      sums[i][1] += up * x[i * 8 + 1];
      sums[i][2] += low * x[i * 8];
      sums[i][3] += low * x[i * 8 + 1];
    }
  }
}

// float32 weights go through shared memory, half of the columns at a time, as every lane needs all of its rows'.
constexpr int EXCHANGE_COLUMNS = TILE / 2, EXCHANGE_STRIDE = EXCHANGE_COLUMNS + 4;
constexpr int EXCHANGE_BYTES = WARPS * 16 * EXCHANGE_STRIDE * int(sizeof(float));

CMI_FAST_DEVICE void add_weighted_floats(Sums<float>& sums, const Scores& weights, const char* tile, int depth,
                                         char* exchange, Place place) {
  float* const own = reinterpret_cast<float*>(exchange) + place.warp() * 16 * EXCHANGE_STRIDE;
  const int g = place.lane() / 4;
  CMI_FAST_UNROLL
  for (int half = 0; half < 2; ++half) {
    CMI_FAST_UNROLL
    for (int i = 0; i < EXCHANGE_COLUMNS / 8; ++i) CMI_FAST_UNROLL
    for (int element = 0; element < 4; ++element)
      own[(g + element / 2 * 8) * EXCHANGE_STRIDE + score_column(i, element, place)] =
          weights[half * EXCHANGE_COLUMNS / 8 + i][element];
    sync_warp();
    add_float_products(sums, own + g * EXCHANGE_STRIDE, own + (g + 8) * EXCHANGE_STRIDE, EXCHANGE_COLUMNS, tile,
                       half * EXCHANGE_COLUMNS, depth, place);
    sync_warp();
  }
}

// Two stages of two tiles, filled in turn, and where float32 weights are exchanged.
template <class T>
constexpr int SHARED_BYTES = 4 * TILE_BYTES + (sizeof(T) == 4 ? EXCHANGE_BYTES : 0);

// Passes over the tiles of the rows `moving` while the tile from row `fixed` on stays, and calls
// visit(first moving row, scores, fixed tile, moving tile) for each. The left factor is the fixed tile where
// FIXED_LEFT, else the moving one. Both tiles hold chunk `last_chunk` then, the last one to be added.
template <class T, bool FIXED_LEFT, class Visit>
CMI_FAST_DEVICE void sweep(const Panel<T>& panel, Range fixed, Range moving, int last_chunk, char* shared, Place place,
                           const Visit& visit) {
  const int chunks = panel.chunks(), steps = (moving.last - moving.first + TILE - 1) / TILE * chunks;
  const auto chunk_of = [&](int step) { return (last_chunk + 1 + step % chunks) % chunks; };
  const auto fetch = [&](int step) {
    char* const stage = shared + step % 2 * 2 * TILE_BYTES;
    if (step == 0 || chunks > 1) fetch_tile(stage, panel, fixed.first, fixed.last, chunk_of(step), place.thread);
    const int first = moving.first + step / chunks * TILE;
    fetch_tile(stage + TILE_BYTES, panel, first, moving.last, chunk_of(step), place.thread);
  };
  Scores scores = {};
  fetch(0);
  for (int step = 0; step < steps; ++step) {
    wait_for_copies();
    sync_threads();  // the stage is full, and nobody reads the other one any more
    if (step + 1 < steps) fetch(step + 1);
    const char* const stage = shared + step % 2 * 2 * TILE_BYTES;
    const char *const fixed_tile = chunks > 1 ? stage : shared, *const moving_tile = stage + TILE_BYTES;
    add_products<T>(scores, FIXED_LEFT ? fixed_tile : moving_tile, FIXED_LEFT ? moving_tile : fixed_tile,
                    panel.depth(chunk_of(step)), place);
    if ((step + 1) % chunks != 0) continue;
    visit(moving.first + step / chunks * TILE, scores, fixed_tile, moving_tile);
    CMI_FAST_UNROLL
    for (int i = 0; i < TILE / 8; ++i) CMI_FAST_UNROLL
    for (int element = 0; element < 4; ++element) scores[i][element] = 0;
  }
  sync_threads();  // the stages are free
}

}  // namespace cmi_fast::cuda
