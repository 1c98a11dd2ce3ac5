// One call of interest_softmax_loss: its rows and masks, and the products of tiles of candidates and of users. Scores
// are taken to base 2.
#pragma once

#include <cmath>

#include "cuda/kernels/best_interest.h"
#include "cuda/parts.h"

namespace cmi_fast::cuda {

constexpr int MOST_INTERESTS = TILE;
// A tile of users has 64 interests, and then the general interest that each group of their columns belongs to.
constexpr int USER_TILE_BYTES = (TILE + GROUPS) * ROW_BYTES, STAGE_BYTES = TILE_BYTES + USER_TILE_BYTES;
// Two stages, and a tile of weights on their way to other lanes.
constexpr int INTEREST_SOFTMAX_SHARED = 2 * STAGE_BYTES + TILE_BYTES;
static_assert(EXCHANGE_BYTES <= TILE_BYTES && INTEREST_SOFTMAX_SHARED <= 48 * 1024);

// One user as the passes see it; past the last one without a target.
struct User {
  int index, target;
  int64_t target_id;
  float log_sum, weight;
};

template <class T>
struct InterestSoftmax {
  // [count, width], [users * padded(), width], [users, width]; no rows: no general interest. A user's interests are
  // followed by copies of the first one, which change neither the maximum nor who has it first.
  Panel<T> candidates, interests, general;
  const T* bias;                    // [count]; these may be null:
  const bool* exclude;              // [users, count]
  const int64_t *ids, *targets;     // [count]; never null: [users]
  const float *log_sums, *weights;  // [users], of the backward passes
  int users, m, count, d, groups;   // groups of eight columns that a user has
  float temperature;
  const float* temperature_pointer;  // where it is a tensor

  CMI_FAST_DEVICE float t() const { return temperature_pointer ? *temperature_pointer : temperature; }
  CMI_FAST_HOST_DEVICE int padded() const { return groups * 8; }
  CMI_FAST_HOST_DEVICE int users_a_tile() const { return GROUPS / groups; }
  CMI_FAST_HOST_DEVICE int user_tiles() const { return (users + users_a_tile() - 1) / users_a_tile(); }
  CMI_FAST_HOST_DEVICE int candidate_tiles() const { return (count + TILE - 1) / TILE; }
  CMI_FAST_DEVICE int user_of(int tile, int group) const { return tile * users_a_tile() + group / groups; }

  // -1 where it is no row of the candidates: nobody may have looked at it.
  CMI_FAST_DEVICE int target_of(int user) const {
    const int64_t target = targets[user];
    return target >= 0 && target < count ? int(target) : -1;
  }

  CMI_FAST_DEVICE User user(int index) const {
    if (index >= users) return {index, -1, 0, 0, 0};
    const int target = target_of(index);
    return {index, target, ids && target >= 0 ? ids[target] : 0, log_sums ? log_sums[index] : 0,
            weights ? weights[index] : 0};
  }

  // Whether a candidate other than the target takes part.
  CMI_FAST_DEVICE bool counts(const User& user, int candidate) const {
    if (candidate >= count || user.index >= users || candidate == user.target) return false;
    if (exclude && exclude[int64_t(user.index) * count + candidate]) return false;
    return !ids || ids[candidate] != user.target_id;
  }

  CMI_FAST_DEVICE float score(float best, float of_general, int64_t candidate) const {
    const float rest = of_general + (bias ? widen(bias[candidate]) : 0);
    return best * (LOG2_E / t()) + rest * LOG2_E;
  }
};

// Starts to copy `count` rows of a panel, one chunk, into a tile; row_at(i) is negative for one of zeros.
template <class T, class RowAt>
CMI_FAST_DEVICE void fetch_rows(char* tile, int count, const Panel<T>& panel, int chunk, int thread,
                                const RowAt& row_at) {
  constexpr int pieces = CHUNK_BYTES / 16, elements = 16 / int(sizeof(T));
  const int used = panel.depth(chunk) / elements;
  for (int i = thread; i < count * pieces; i += THREADS) {
    const int row = i / pieces, piece = i % pieces;
    if (piece >= used) continue;
    const int64_t from = row_at(row);
    const T* const source = panel.rows + (from < 0 ? 0 : from) * panel.width + chunk * CHUNK<T> + piece * elements;
    copy_async(tile + row * ROW_BYTES + piece * 16, source, from >= 0);
  }
}

// The general interest of a tile's group lies where the product leaves its score with the lane that deals with it.
CMI_FAST_HOST_DEVICE int group_of_general_row(int row) { return row % 2 * 4 + row / 2; }

template <class T>
CMI_FAST_DEVICE void fetch_candidates(char* tile, const InterestSoftmax<T>& x, int index, int chunk, int thread) {
  fetch_rows(tile, TILE, x.candidates, chunk, thread, [&](int row) {
    const int candidate = index * TILE + row;
    return candidate < x.count ? candidate : -1;
  });
}

template <class T>
CMI_FAST_DEVICE void fetch_users(char* tile, const InterestSoftmax<T>& x, int index, int chunk, int thread) {
  fetch_rows(tile, TILE, x.interests, chunk, thread, [&](int row) {
    const int64_t interest = int64_t(index) * TILE + row;
    return interest < int64_t(x.users) * x.padded() ? interest : -1;
  });
  if (x.general.rows == nullptr) return;
  fetch_rows(tile + TILE_BYTES, GROUPS, x.general, chunk, thread, [&](int row) {
    const int user = x.user_of(index, group_of_general_row(row));
    return user < x.users ? user : -1;
  });
}

// The scores of this warp's 16 candidates by the general interests of a lane's two groups: [half * 2 + slot].
using GeneralScores = float[4];

template <class T>
CMI_FAST_DEVICE void add_general_products(GeneralScores& scores, const char* candidates, const char* general, int depth,
                                          Place place) {
  const int lane = place.lane();
  if constexpr (sizeof(T) == 4) {
    for (int k = 0; k < depth; ++k) {
      CMI_FAST_UNROLL
      for (int element = 0; element < 4; ++element)
        scores[element] += tile_row<T>(candidates, score_row(element, place))[k] *
                           tile_row<T>(general, score_column(0, element, place))[k];
    }
  } else {
    for (int k = 0; k < depth; k += 16) {
      uint32_t a[4], b[4];  // the last two of b repeat the first
      load_matrices(a, tile_row<T>(candidates, place.warp() * 16 + lane % 16) + k + lane / 16 * 8);
      load_matrices(b, tile_row<T>(general, lane % 8) + k + lane / 8 % 2 * 8);
      multiply_add(T(), scores, a, b[0], b[1]);
    }
  }
}

// Passes over tiles of users (USERS_MOVE) or of candidates, from `first` to `last`, while the tile `kept` of the others
// stays, and calls visit(tile of candidates, tile of users, scores, general scores, their rows in shared memory) for
// each. Both hold chunk `last_chunk` then, the last one to be added.
template <class T, bool USERS_MOVE, class Visit>
CMI_FAST_DEVICE void sweep_scores(const InterestSoftmax<T>& x, int kept, int first, int last, int last_chunk,
                                  char* shared, Place place, const Visit& visit) {
  const int chunks = x.candidates.chunks(), steps = (last - first) * chunks;
  const auto chunk_of = [&](int step) { return (last_chunk + 1 + step % chunks) % chunks; };
  const auto fetch = [&](int step) {
    char* const stage = shared + step % 2 * STAGE_BYTES;
    const int moving = first + step / chunks;
    const bool fetch_kept = step == 0 || chunks > 1;
    if (!USERS_MOVE || fetch_kept) fetch_candidates(stage, x, USERS_MOVE ? kept : moving, chunk_of(step), place.thread);
    if (USERS_MOVE || fetch_kept)
      fetch_users(stage + TILE_BYTES, x, USERS_MOVE ? moving : kept, chunk_of(step), place.thread);
  };
  Scores scores = {};
  GeneralScores general = {};
  if (steps > 0) fetch(0);
  for (int step = 0; step < steps; ++step) {
    wait_for_copies();
    sync_threads();  // the stage is full, and nobody reads the other one any more
    if (step + 1 < steps) fetch(step + 1);
    const char *const stage = shared + step % 2 * STAGE_BYTES, *const stage_of_kept = chunks > 1 ? stage : shared;
    const char* const candidates = USERS_MOVE ? stage_of_kept : stage;
    const char* const users = (USERS_MOVE ? stage : stage_of_kept) + TILE_BYTES;
    const int depth = x.candidates.depth(chunk_of(step));
    add_products<T>(scores, candidates, users, depth, place);
    if (x.general.rows) add_general_products<T>(general, candidates, users + TILE_BYTES, depth, place);
    if ((step + 1) % chunks != 0) continue;
    const int moving = first + step / chunks;
    visit(USERS_MOVE ? kept : moving, USERS_MOVE ? moving : kept, scores, general, candidates, users);
    CMI_FAST_UNROLL
    for (int element = 0; element < 4; ++element) {
      general[element] = 0;
      CMI_FAST_UNROLL
      for (int i = 0; i < GROUPS; ++i) scores[i][element] = 0;
    }
  }
  sync_threads();  // the stages are free
}

}  // namespace cmi_fast::cuda
