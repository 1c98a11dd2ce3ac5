#include "cuda_emulator.h"

#include <ucontext.h>

#include <cstdlib>
#include <memory>
#include <vector>

#include "checking.h"

namespace cmi_fast::cuda {
namespace {

using testing::check;
using testing::to_double;

enum class Meeting { none, threads, warp, shuffle, matrices, transposed, product };

struct Copy {
  void* to;
  const void* from;
  bool valid;
};

constexpr size_t STACK_BYTES = 128 * 1024;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[STACK_BYTES]};
  Place place;
  bool finished = false;
  Meeting waits_at = Meeting::none;
  void* argument = nullptr;
  std::vector<Copy> copies;
};

struct Block {
  std::vector<std::unique_ptr<Fiber>> fibers;
  ucontext_t scheduler;
  Fiber* current = nullptr;
  const std::function<void(Place)>* body = nullptr;
};

Block* block = nullptr;

void start() {
  Fiber& fiber = *block->current;
  (*block->body)(fiber.place);
  fiber.finished = true;
  swapcontext(&fiber.context, &block->scheduler);
}

void meet(Meeting meeting, void* argument = nullptr) {
  Fiber& fiber = *block->current;
  fiber.waits_at = meeting;
  fiber.argument = argument;
  swapcontext(&fiber.context, &block->scheduler);
}

// What a warp's lanes bring to a meeting.
struct Shuffle {
  float x, result;
  int mask;
};

struct Matrices {
  const uint16_t* row;
  uint32_t* to;
};

struct Product {
  float* sums;
  const uint32_t* a;
  uint32_t b[2];
  bool bfloat16;

  double value(uint32_t pair, int high) const {
    const uint16_t bits = uint16_t(high ? pair >> 16 : pair);
    return bfloat16 ? to_double(BFloat16{bits}) : to_double(Half{bits});
  }
};

template <class T>
T& argument(Fiber* const* lanes, int lane) {
  return *static_cast<T*>(lanes[lane]->argument);
}

void check_aligned(const void* address) {
  if (reinterpret_cast<uintptr_t>(address) % 16 != 0) check(false, "cp.async and ldmatrix: addresses are aligned");
}

void exchange(Fiber* const* lanes) {
  for (int lane = 0; lane < LANES; ++lane)
    argument<Shuffle>(lanes, lane).result = argument<Shuffle>(lanes, lane ^ argument<Shuffle>(lanes, lane).mask).x;
}

void load(Fiber* const* lanes, bool transposed) {
  for (int matrix = 0; matrix < 4; ++matrix) {
    uint16_t m[8][8];
    for (int row = 0; row < 8; ++row) {
      const uint16_t* const from = argument<Matrices>(lanes, matrix * 8 + row).row;
      check_aligned(from);
      for (int column = 0; column < 8; ++column) m[row][column] = from[column];
    }
    for (int lane = 0; lane < LANES; ++lane) {
      const int i = lane / 4, j = lane % 4 * 2;
      const uint32_t low = transposed ? m[j][i] : m[i][j], high = transposed ? m[j + 1][i] : m[i][j + 1];
      argument<Matrices>(lanes, lane).to[matrix] = low | high << 16;
    }
  }
}

// mma.m16n8k16: the rows and columns of each element that a lane holds, as the manual has them.
void multiply(Fiber* const* lanes) {
  double a[16][16], b[16][8];
  const auto c_row = [](int lane, int i) { return lane / 4 + (i < 2 ? 0 : 8); };
  const auto c_column = [](int lane, int i) { return lane % 4 * 2 + i % 2; };
  for (int lane = 0; lane < LANES; ++lane) {
    const Product& p = argument<Product>(lanes, lane);
    const int group = lane / 4, in_group = lane % 4;
    for (int i = 0; i < 8; ++i) {
      const int row = i < 2 || (i >= 4 && i < 6) ? group : group + 8;
      const int column = in_group * 2 + i % 2 + (i >= 4 ? 8 : 0);
      a[row][column] = p.value(p.a[i / 2], i % 2);
    }
    for (int i = 0; i < 4; ++i) b[in_group * 2 + i % 2 + (i >= 2 ? 8 : 0)][group] = p.value(p.b[i / 2], i % 2);
  }
  for (int lane = 0; lane < LANES; ++lane) {
    for (int i = 0; i < 4; ++i) {
      double sum = argument<Product>(lanes, lane).sums[i];
      for (int k = 0; k < 16; ++k) sum += a[c_row(lane, i)][k] * b[k][c_column(lane, i)];
      argument<Product>(lanes, lane).sums[i] = float(sum);
    }
  }
}

// Whether all of these threads wait at the same place: then it is done, and they go on.
bool release(const std::vector<Fiber*>& threads) {
  const Meeting meeting = threads[0]->waits_at;
  for (const Fiber* fiber : threads)
    if (fiber->finished || fiber->waits_at != meeting || meeting == Meeting::none) return false;
  if (meeting == Meeting::shuffle) exchange(threads.data());
  if (meeting == Meeting::matrices || meeting == Meeting::transposed)
    load(threads.data(), meeting == Meeting::transposed);
  if (meeting == Meeting::product) multiply(threads.data());
  for (Fiber* fiber : threads) fiber->waits_at = Meeting::none;
  return true;
}

void prepare(Fiber& fiber, Place place) {
  fiber.place = place;
  fiber.finished = false;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = STACK_BYTES;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, start, 0);
}

// Runs a warp until all of its lanes have finished or wait for the rest of the block.
void run_warp(const std::vector<Fiber*>& warp, bool descending) {
  do {
    for (int i = 0; i < LANES; ++i) {
      Fiber& fiber = *warp[descending ? LANES - 1 - i : i];
      if (fiber.finished || fiber.waits_at != Meeting::none) continue;
      block->current = &fiber;
      swapcontext(&block->scheduler, &fiber.context);
    }
  } while (warp[0]->waits_at != Meeting::threads && release(warp));
}

// One warp after the other, as far apart as they can get: what a barrier is missing for shows.
void run_block(int threads, bool descending) {
  std::vector<Fiber*> everybody;
  for (int thread = 0; thread < threads; ++thread) everybody.push_back(block->fibers[thread].get());
  const int warps = threads / LANES;
  do {
    for (int i = 0; i < warps; ++i) {
      const auto first = everybody.begin() + (descending ? warps - 1 - i : i) * LANES;
      run_warp({first, first + LANES}, descending);
    }
  } while (release(everybody));
  for (const Fiber* fiber : everybody) {
    if (fiber->finished) continue;
    check(false, "threads of a block do not meet");
    std::abort();  // they would wait forever
  }
}

// The nearest number with `mantissa` bits below its leading one, ties to even; `least` is the smallest normal exponent.
double rounded(double x, int mantissa, int least) {
  if (!std::isfinite(x) || x == 0) return x;
  const int exponent = std::max(std::ilogb(x), least);
  return std::ldexp(std::nearbyint(std::ldexp(x, mantissa - exponent)), exponent - mantissa);
}

}  // namespace

void run_grid(Grid grid, int threads, bool descending, const std::function<void(Place)>& body) {
  Block here;
  here.body = &body;
  for (int thread = 0; thread < threads; ++thread) here.fibers.push_back(std::make_unique<Fiber>());
  block = &here;
  for (int b = 0; b < grid.x * grid.y * grid.z; ++b) {
    for (int thread = 0; thread < threads; ++thread)
      prepare(*here.fibers[thread], {thread, b % grid.x, b / grid.x % grid.y, b / grid.x / grid.y});
    run_block(threads, descending);
    for (const auto& fiber : here.fibers)
      if (!fiber->copies.empty()) check(false, "all copies have been waited for");
  }
  block = nullptr;
}

void sync_threads() { meet(Meeting::threads); }
void sync_warp() { meet(Meeting::warp); }

float shuffle_xor(float x, int mask) {
  Shuffle shuffle{x, 0, mask};
  meet(Meeting::shuffle, &shuffle);
  return shuffle.result;
}

void copy_async(void* shared, const void* global, bool valid) {
  check_aligned(shared);
  check_aligned(global);
  block->current->copies.push_back({shared, global, valid});
}

void wait_for_copies() {
  for (const Copy& copy : block->current->copies) {
    if (copy.valid)
      std::memcpy(copy.to, copy.from, 16);
    else
      std::memset(copy.to, 0, 16);
  }
  block->current->copies.clear();
}

void load_matrices(uint32_t (&to)[4], const void* row) {
  Matrices matrices{static_cast<const uint16_t*>(row), to};
  meet(Meeting::matrices, &matrices);
}

void load_transposed(uint32_t (&to)[4], const void* row) {
  Matrices matrices{static_cast<const uint16_t*>(row), to};
  meet(Meeting::transposed, &matrices);
}

void multiply_add(BFloat16, float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  Product product{sums, a, {b0, b1}, true};
  meet(Meeting::product, &product);
}

void multiply_add(Half, float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  Product product{sums, a, {b0, b1}, false};
  meet(Meeting::product, &product);
}

float widen(BFloat16 x) { return float(to_double(x)); }
float widen(Half x) { return float(to_double(x)); }

void narrow(float x, BFloat16* to) {
  const uint32_t bits = bits_of(float(rounded(x, 7, -126)));
  to->bits = uint16_t(x == x ? bits >> 16 : 0x7fff);
}

void narrow(float x, Half* to) {
  const double magnitude = std::abs(rounded(x, 10, -14));
  int bits = 0x7c00;
  if (magnitude < 0x1p-14) {
    bits = int(std::ldexp(magnitude, 24));
  } else if (magnitude < 65536) {
    const int exponent = std::ilogb(magnitude);
    bits = ((exponent + 14) << 10) + int(std::ldexp(magnitude, 10 - exponent));
  }
  to->bits = uint16_t(x == x ? (std::signbit(x) ? 0x8000 : 0) | bits : 0x7fff);
}

}  // namespace cmi_fast::cuda
