#include "cpu/kernels/top_k.h"

#include "cpu/kernels/rows.h"
#include "cpu/kernels/top_k_precision.h"

namespace cmi_fast {
namespace {

// ROWS interests meet a tile of items with all sums in registers.
constexpr int ROWS = REGISTERS == 32 ? 8 : 4;
constexpr int VECTORS = REGISTERS == 32 ? 3 : 2;
constexpr int LANES = VectorOf<float, WIDE>::LANES;
constexpr int TILE = VECTORS * LANES;
using Floats = Vector<float, WIDE>;

inline int64_t whole_lines(int64_t bytes) { return round_up(bytes, 64); }

// Takes one piece of a buffer after the other, each on a cache line; of no buffer at all it only counts them.
struct Memory {
  char* begin;
  int64_t size = 0;

  template <class T>
  T* take(int64_t count) {
    T* const taken = begin ? (T*)(begin + size) : nullptr;
    size += whole_lines(count * sizeof(T));
    return taken;
  }
};

// What is packed of TILE items: each step of all of them after the other, then three numbers for each.
template <class Precision>
struct Tile {
  typename Precision::Step* steps;
  float *scale, *row, *lost;

  static int64_t depth(int64_t d) { return (d + Precision::VALUES - 1) / Precision::VALUES; }
  static int64_t size(int64_t d) { return (depth(d) + 3) * TILE * sizeof(float); }

  Tile(const void* packed, int64_t d)
      : steps((typename Precision::Step*)packed),
        scale((float*)packed + depth(d) * TILE),
        row(scale + TILE),
        lost(row + TILE) {}
};

inline int64_t item_at(const TopK& p, int64_t place) { return place * p.stride % p.count; }

inline void prefetch(const TopK& p, int64_t item) {
  const int64_t bytes = p.d * (p.items.element == Element::computed ? sizeof(float) : sizeof(uint16_t));
  const char* const row = (const char*)p.items.data + item * bytes;
  for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(row + line);
}

template <class Precision>
bool pack(const TopK& p, int64_t index, void* packed, void* workspace) {
  using Step = typename Precision::Step;
  const Tile<Precision> tile(packed, p.d);
  const int64_t depth = tile.depth(p.d), first = index * TILE, count = p.count - first < TILE ? p.count - first : TILE;
  Memory memory{(char*)workspace};
  float *const buffer = memory.take<float>(p.d), *const q = memory.take<float>(p.d);
  Step* const steps = memory.take<Step>(depth);
  set_zero((char*)packed, tile.size(p.d));
  steps[depth - 1] = 0;  // what d leaves open
  for (int64_t i = 0; i < count; ++i) prefetch(p, item_at(p, first + i));
  for (int64_t i = 0; i < count; ++i) {
    const float* const row = read_row(p.items, item_at(p, first + i), p.d, buffer);
    const float scale = Precision::scale(largest_magnitude(row, p.d));
    const Norms norms = approximate<Precision>(row, p.d, scale, q);
    if (!norms.finite()) return false;
    Precision::pack_item(q, p.d, steps);
    for (int64_t k = 0; k < depth; ++k) tile.steps[k * TILE + i] = steps[k];
    tile.scale[i] = float(scale * UNIT);
    tile.row[i] = float(norms.row * (UNIT * INFLATE));
    tile.lost[i] = float(norms.lost * (UNIT * INFLATE));
  }
  return true;
}

// A user's interests are repeated up to a number that divides ROWS, or that ROWS divides.
inline int64_t padded_interests(int64_t m) {
  int64_t rows = 1;
  while (rows < m && rows < ROWS) rows *= 2;
  return round_up(m, rows);
}

// An item whose bound lets it pass.
struct Candidate {
  int64_t user, item;
};

// What a search works with: the interests of its users approximated, their bounds, and the candidates of a tile.
template <class Precision>
struct Workspace {
  using Step = typename Precision::Step;
  int64_t users, interests, depth;  // users that fill whole tiles of ROWS; a user's interests, padded
  Step *steps, *starts;             // [users, interests, depth], [users, interests]
  UserBound* bounds;                // [users]
  Candidate* candidates;            // [users, TILE]
  float *buffer, *q;                // [m, d], [d]
  double* row;                      // [d]
  int64_t size;

  Workspace(void* memory_begin, int64_t for_users, int64_t m, int64_t d)
      : users(round_up(for_users, ROWS)), interests(padded_interests(m)), depth(Tile<Precision>::depth(d)) {
    Memory memory{(char*)memory_begin};
    steps = memory.take<Step>(users * interests * depth), starts = memory.take<Step>(users * interests);
    bounds = memory.take<UserBound>(users);
    candidates = memory.take<Candidate>(users * TILE);
    buffer = memory.take<float>(m * d), q = memory.take<float>(d);
    row = memory.take<double>(d);
    size = memory.size;
  }
};

template <class Precision>
int64_t workspace_size(int64_t users, int64_t m, int64_t d) {
  return Workspace<Precision>(nullptr, users, m, d).size;
}

inline bool better(const ScoredItem& a, const ScoredItem& b) {
  return a.score > b.score || (a.score == b.score && a.item < b.item);
}

// Puts the item in the place of the worst one.
inline void replace_worst(ScoredItem* heap, int64_t k, ScoredItem added) {
  int64_t place = 0;
  for (int64_t child = 1; child < k; child = 2 * place + 1) {
    if (child + 1 < k && better(heap[child], heap[child + 1])) ++child;  // the worse of the two
    if (better(heap[child], added)) break;
    heap[place] = heap[child];
    place = child;
  }
  heap[place] = added;
}

inline bool excluded(const TopK& p, int64_t user, int64_t item) {
  if (!p.exclude_offsets) return false;
  int64_t low = p.exclude_offsets[user];
  const int64_t end = p.exclude_offsets[user + 1];
  for (int64_t high = end; low < high;) {
    const int64_t middle = low + (high - low) / 2;
    if (p.exclude_ids[middle] < item)
      low = middle + 1;
    else
      high = middle;
  }
  return low < end && p.exclude_ids[low] == item;
}

// The same bits at every level: products of two floats are exact in double, and the order of the sums is fixed.
inline double dot(const float* x, const double* y, int64_t d) {
  constexpr int SUMS = 8;
  typedef float Narrow __attribute__((vector_size(SUMS * sizeof(float))));
  typedef double Wide __attribute__((vector_size(SUMS * sizeof(double))));
  Wide sums{};
  int64_t j = 0;
  for (; j + SUMS <= d; j += SUMS) {
    Narrow left;
    Wide right;
    __builtin_memcpy(&left, x + j, sizeof(left));
    __builtin_memcpy(&right, y + j, sizeof(right));
    sums += __builtin_convertvector(left, Wide) * right;
  }
  for (int64_t lane = 0; j < d; ++j, ++lane) sums[lane] += double(x[j]) * y[j];
  return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

template <class Precision>
class Search {
 public:
  Search(const TopK& problem, int64_t begin, int64_t end, void* memory)
      : p(problem), first_user(begin), users(end - begin), work(memory, users, p.m, p.d) {}

  // False: an interest is not finite.
  bool pack_users() {
    // Rows beyond the last user are computed, too.
    set_zero(work.steps, work.users * work.interests * work.depth);
    set_zero(work.starts, work.users * work.interests);
    for (int64_t user = 0; user < users; ++user)
      if (!pack_user(user)) return false;
    return true;
  }

  void visit(const Tile<Precision>& tile, int64_t index) {
    count = 0;
    if (work.interests >= ROWS)
      screen<ROWS>(tile, index);
    else if (work.interests == ROWS / 2)
      screen<ROWS / 2>(tile, index);
    else if (work.interests == 2)
      screen<2>(tile, index);
    else
      screen<1>(tile, index);
    for (int64_t c = 0; c < count; ++c) rescore(work.candidates[c]);
  }

 private:
  using Step = typename Precision::Step;
  using Steps = typename Precision::Steps;

  const TopK& p;
  const int64_t first_user, users;
  const Workspace<Precision> work;
  int64_t count = 0;  // of candidates

  ScoredItem* list(int64_t user) const { return p.lists + (first_user + user) * p.k; }

  bool pack_user(int64_t user) {
    const float* const rows = read_row(p.interests, first_user + user, p.m * p.d, work.buffer);
    const float scale = Precision::scale(largest_magnitude(rows, p.m * p.d));
    Norms largest{};
    for (int64_t i = 0; i < work.interests; ++i) {
      const int64_t row = user * work.interests + i;
      Step* const steps = work.steps + row * work.depth;
      const Norms norms = approximate<Precision>(rows + (i < p.m ? i : 0) * p.d, p.d, scale, work.q);
      if (!norms.finite()) return false;
      Precision::pack_query(work.q, p.d, steps);
      work.starts[row] = Precision::start(steps, p.d);
      largest = {larger(norms.row, largest.row), larger(norms.lost, largest.lost)};
    }
    work.bounds[user] = UserBound(largest, scale, Precision::product_error(p.d));
    work.bounds[user].raise(list(user)->score);
    return true;
  }

  // The candidates among a tile's items; of several users at a time where these have few interests.
  template <int INTERESTS>
  __attribute__((noinline)) void screen(const Tile<Precision>& tile, int64_t index) {
    constexpr int USERS = ROWS / INTERESTS;
    for (int64_t user = 0; user < users; user += USERS) {
      Steps best[USERS][VECTORS];
      const int64_t row = user * work.interests;
      largest_products<INTERESTS, true>(tile, row, best);
      for (int64_t i = ROWS; i < work.interests; i += ROWS) largest_products<INTERESTS, false>(tile, row + i, best);
      for (int i = 0; i < USERS && user + i < users; ++i) add_candidates(tile, index, user + i, best[i]);
    }
  }

  // The largest products of each INTERESTS rows out of ROWS with the items.
  template <int INTERESTS, bool FIRST>
  __attribute__((always_inline)) void largest_products(const Tile<Precision>& tile, int64_t first_row,
                                                       Steps (&best)[ROWS / INTERESTS][VECTORS]) const {
    const Step *const rows = work.steps + first_row * work.depth, *const starts = work.starts + first_row;
    Steps sum[ROWS][VECTORS];
#pragma GCC unroll 16
    for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 16
      for (int v = 0; v < VECTORS; ++v) sum[row][v] = Steps{} + starts[row];
    for (int64_t k = 0; k < work.depth; ++k) {
      Steps right[VECTORS];
#pragma GCC unroll 16
      for (int v = 0; v < VECTORS; ++v) right[v] = load<Steps>(tile.steps + k * TILE + v * LANES);
#pragma GCC unroll 16
      for (int row = 0; row < ROWS; ++row) {
        const Step left = rows[row * work.depth + k];
#pragma GCC unroll 16
        for (int v = 0; v < VECTORS; ++v) sum[row][v] = Precision::multiply_add(left, right[v], sum[row][v]);
      }
    }
#pragma GCC unroll 16
    for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 16
      for (int v = 0; v < VECTORS; ++v) {
        Steps& largest = best[row / INTERESTS][v];
        largest = FIRST && row % INTERESTS == 0 ? sum[row][v] : larger(largest, sum[row][v]);
      }
  }

  __attribute__((always_inline)) void add_candidates(const Tile<Precision>& tile, int64_t index, int64_t user,
                                                     const Steps (&best)[VECTORS]) {
    const UserBound& bound = work.bounds[user];
#pragma GCC unroll 16
    for (int v = 0; v < VECTORS; ++v) {
      const int first = v * LANES;
      const Floats at_most =
          __builtin_convertvector(best[v], Floats) * load<Floats>(tile.scale + first) +
          (bound.row * load<Floats>(tile.row + first) + bound.lost * load<Floats>(tile.lost + first));
      for (uint32_t passing = lanes_set(at_most >= bound.least); passing; passing &= passing - 1) {
        const int64_t place = index * TILE + first + __builtin_ctz(passing);
        if (place >= p.count) break;  // the last tile is padded
        work.candidates[count] = {user, item_at(p, place)};
        prefetch(p, work.candidates[count++].item);
      }
    }
  }

  void rescore(Candidate candidate) {
    const auto [user, item] = candidate;
    ScoredItem* const heap = list(user);
    UserBound& bound = work.bounds[user];
    if (bound.zero() && item > heap->item) return;  // all its scores are 0
    const float* const row = read_row(p.items, item, p.d, work.buffer);
    for (int64_t j = 0; j < p.d; ++j) work.row[j] = row[j];
    const float* const interests = read_row(p.interests, first_user + user, p.m * p.d, work.buffer);
    double score = dot(interests, work.row, p.d);
    for (int64_t i = 1; i < p.m; ++i) score = larger(score, dot(interests + i * p.d, work.row, p.d));
    const ScoredItem added{score, item};
    if (!better(added, *heap) || excluded(p, first_user + user, item)) return;
    replace_worst(heap, p.k, added);
    bound.raise(heap->score);
  }
};

template <class Precision>
bool search(const TopK& p, int64_t begin, int64_t end, int64_t first, int64_t tiles, const void* packed,
            void* workspace) {
  Search<Precision> search(p, begin, end, workspace);
  if (!search.pack_users()) return false;
  const int64_t size = Tile<Precision>::size(p.d);
  for (int64_t tile = 0; tile < tiles; ++tile)
    search.visit(Tile<Precision>((const char*)packed + tile * size, p.d), first + tile);
  return true;
}

template <class Precision>
constexpr TopKKernel KERNEL{TILE, Tile<Precision>::size, workspace_size<Precision>, pack<Precision>, search<Precision>};

}  // namespace

namespace CMI_FAST_LEVEL {
extern const TopKKernels top_k;
#if defined(__AVX512F__)
const TopKKernels top_k{KERNEL<Float32>, KERNEL<Int8>};
#else
const TopKKernels top_k{KERNEL<Float32>, {}};
#endif
}  // namespace CMI_FAST_LEVEL

}  // namespace cmi_fast
