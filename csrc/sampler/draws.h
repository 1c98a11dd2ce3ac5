// What the batch sampler draws: the same numbers as cmi_fast/data/draws.py, which defines and explains them.
#pragma once

#include <algorithm>
#include <cstdint>

namespace cmi_fast {

constexpr int kPermutationRounds = 64;

// Random word number `counter` of the stream `key`: the output of SplitMix64 started at the key.
inline uint64_t word(uint64_t key, uint64_t counter) {
  uint64_t z = key + (counter + 1) * 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

// A number in [0, 1). Times n it stays below n, rounded as well.
inline double uniform(uint64_t random) { return static_cast<double>(static_cast<int64_t>(random >> 11)) * 0x1p-53; }

// An integer in [0, n).
inline int64_t below(uint64_t random, int64_t n) {
  return static_cast<int64_t>(uniform(random) * static_cast<double>(n));
}

// Replaces each of the `count` numbers x by its place in the random permutation `key` of 0 ... n - 1.
inline void permute(int64_t* x, int64_t count, int64_t n, uint64_t key) {
  for (int round = 0; round < kPermutationRounds; ++round) {
    const uint64_t round_key = word(key, round);
    const int64_t pivot = below(round_key, n);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t difference = pivot - x[i];
      const int64_t partner = difference < 0 ? difference + n : difference;
      // Without a branch, which half the time would be predicted wrongly: all ones where the two swap.
      const int64_t swap = -static_cast<int64_t>(word(round_key, std::max(x[i], partner)) >> 63);
      x[i] ^= (x[i] ^ partner) & swap;
    }
  }
}

// Takes a uniformly random `size` of `length` places: Knuth's selection sampling.
inline void choose_subset(bool* taken, int64_t length, int64_t size, uint64_t key, int view) {
  for (int64_t place = 0; place < length; ++place) {
    const double left = static_cast<double>(length - place);
    taken[place] = uniform(word(key, 1 + 2 * place + view)) * left < static_cast<double>(size);
    size -= taken[place];
  }
}

// The flat arrays of cmi_fast.data.draws.Draws.
struct Tables {
  const int64_t* offsets;
  const int32_t* items;
  const int64_t* starts;
  int64_t users;
  const int64_t* counts;
  const int64_t* catalogue;
  int64_t catalogue_size;
  const int64_t* unplayed;
  const int64_t* played_starts;
  const int64_t* unplayed_below;
  int64_t max_history;
  double view_share;
  bool disjoint_views;
  bool chosen_per_user;
};

// Where to find samples: the user, the next play, the length of the history before it.
struct Places {
  int64_t* users;
  int64_t* plays;
  int64_t* lengths;
};

// Finds the samples first ... first + count - 1 of an epoch; returns the longest history's length.
inline int64_t locate(const Tables& tables, uint64_t epoch, int64_t first, int64_t count, Places places) {
  int64_t* const numbers = places.plays;
  for (int64_t i = 0; i < count; ++i) numbers[i] = first + i;
  permute(numbers, count, tables.starts[tables.users], word(epoch, 0));
  const uint64_t choice = word(epoch, 1);
  int64_t longest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t* after = std::upper_bound(tables.starts, tables.starts + tables.users + 1, numbers[i]);
    const int64_t user = after - tables.starts - 1;
    int64_t before = numbers[i] - tables.starts[user];
    if (tables.chosen_per_user) permute(&before, 1, tables.counts[user], word(choice, user));
    places.users[i] = user;
    places.plays[i] = tables.offsets[user] + 1 + before;
    places.lengths[i] = std::min(before + 1, tables.max_history);
    longest = std::max(longest, places.lengths[i]);
  }
  return longest;
}

// An item of the catalogue that the user never played; UnplayedItems in cmi_fast/data/sampler.py has the arithmetic.
inline int64_t draw_negative(const Tables& tables, int64_t user, uint64_t random) {
  const int64_t rank = below(random, tables.unplayed[user]);
  const int64_t* begin = tables.unplayed_below + tables.played_starts[user];
  const int64_t* end = tables.unplayed_below + tables.played_starts[user + 1];
  return tables.catalogue[rank + (std::upper_bound(begin, end, user * tables.catalogue_size + rank) - begin)];
}

// Draws the two views [width] of a history, False beyond its length.
inline void draw_views(const Tables& tables, bool* first, bool* second, int64_t length, int64_t width, uint64_t key) {
  if (tables.disjoint_views) {
    choose_subset(first, length, std::max<int64_t>(length / 2, 1), key, 0);
    for (int64_t place = 0; place < length; ++place) second[place] = !first[place] || length == 1;
  } else {
    const auto share = static_cast<int64_t>(tables.view_share * static_cast<double>(length));
    choose_subset(first, length, std::max<int64_t>(share, 1), key, 0);
    choose_subset(second, length, std::max<int64_t>(share, 1), key, 1);
  }
  std::fill(first + length, first + width, false);
  std::fill(second + length, second + width, false);
}

// A batch to fill; rows of `history` and of both halves of `views` are `width` long.
struct Output {
  int64_t* history;
  bool* views;
  int64_t* positives;
  int64_t* negatives;
};

inline void fill(const Tables& tables, uint64_t epoch, int64_t first, int64_t count, Places places, int64_t width,
                 Output output) {
  const uint64_t draws = word(epoch, 2);
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t key = word(draws, first + i);
    const int64_t length = places.lengths[i];
    const int32_t* history = tables.items + places.plays[i] - length;
    std::copy(history, history + length, output.history + i * width);
    std::fill(output.history + i * width + length, output.history + (i + 1) * width, 0);
    draw_views(tables, output.views + i * width, output.views + (count + i) * width, length, width, key);
    output.positives[i] = tables.items[places.plays[i]];
    output.negatives[i] = draw_negative(tables, places.users[i], word(key, 0));
  }
}

}  // namespace cmi_fast
