// The CUDA kernels of both poolings, run by the emulator, against Eq. 1-3 item by item; and which warp takes what.
#include <algorithm>
#include <numeric>

#include "cuda/soft_assignment_pool_passes.h"
#include "cuda/table_gradient_passes.h"
#include "emulated.h"
#include "pool.h"

namespace cmi_fast::testing {
namespace {

struct How {
  bool descending = false, temperature_tensor = false;
};

// `rows` are the inputs' items in their own type, S; an empty gradient is not wanted.
template <class S, class C>
PoolResult<C> run_emulated(const PoolCase& c, const PoolInputs<C>& inputs, const std::vector<S>& rows, How how,
                           PoolResult<C> result, std::vector<S>* rows_grad = nullptr) {
  const Emulated launch{how.descending};
  const float temperature = float(c.temperature);
  const std::vector<int64_t> offsets = c.offsets();
  cuda::PoolPasses<S, C> passes{
      .x = {.rows = rows.data(),
            .ids = c.table_rows ? inputs.ids.data() : nullptr,
            .lengths = c.capacity ? c.lengths.data() : nullptr,
            .offsets = c.capacity ? nullptr : offsets.data(),
            .views = c.view_count ? reinterpret_cast<const bool*>(inputs.views.data()) : nullptr,
            .categories = nullptr,
            .row_count = c.item_rows(),
            .batch = int(c.batch()),
            .capacity = int(c.capacity),
            .positions = int(c.rows()),
            .view_count = std::max(int(c.view_count), 1),
            .m = int(c.m),
            .d = int(c.d),
            .aligned = false,
            .temperature = how.temperature_tensor ? NAN : temperature,
            .temperature_pointer = how.temperature_tensor ? &temperature : nullptr},
      .categories = inputs.categories.data(),
      .units = nullptr};
  auto units = poisoned<float>(passes.units_size());
  passes.units = units.data();
  passes.forward(result.pooled.data(), launch);

  std::fill(units.begin(), units.end(), NAN);
  std::vector<S> items_grad(c.table_rows ? 0 : rows.size());
  auto gathered = poisoned<float>(c.table_rows ? c.rows() * c.d : 0);
  std::vector<int> keys(c.table_rows ? c.rows() : 0, cuda::NO_ROW);
  auto category_parts = poisoned<float>(passes.category_parts() * c.m * c.d);
  auto category_sums = poisoned<float>(c.m * c.d), temperature_parts = poisoned<float>(passes.temperature_parts());
  const bool of_rows = !result.items.empty();
  passes.backward(inputs.pooled_grad.data(),
                  {.items = of_rows && !c.table_rows ? items_grad.data() : nullptr,
                   .gathered = of_rows && c.table_rows ? gathered.data() : nullptr,
                   .keys = keys.data(),
                   .categories = result.categories.empty() ? nullptr : category_parts.data(),
                   .temperature = result.temperature.empty() ? nullptr : temperature_parts.data()},
                  category_sums.data(), result.categories.data(), result.temperature.data(), launch);
  if (of_rows && c.table_rows) {
    std::vector<int64_t> order(keys.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return keys[a] < keys[b]; });
    std::sort(keys.begin(), keys.end());
    items_grad.assign(rows.size(), S{});
    auto edges = poisoned<float>(cuda::TableGradient<S>::edges_size(c.rows(), c.d));
    cuda::TableGradient<S>{
        {keys.data(), order.data(), int(keys.size())}, gathered.data(), int(c.d), edges.data(), items_grad.data()}
        .run(launch);
  }
  if constexpr (std::is_same_v<S, C>)
    if (of_rows) result.items = items_grad;
  if (rows_grad) *rows_grad = items_grad;
  return result;
}

template <class T>
PoolResult<T> run_emulated(const PoolCase& c, const PoolInputs<T>& inputs, How how = {}) {
  return run_emulated<T, T>(c, inputs, inputs.items, how, every_gradient<T>(c));
}

template <class T>
void test_case(const PoolCase& c, How how = {}) {
  const PoolInputs<T> inputs(c);
  check_pool(run_emulated(c, inputs, how), pool_item_by_item(c, inputs), c, "CUDA " + ELEMENT<T>.name + " " + c.name());
}

// Around every edge of tiles (8 items), windows (32), chunks (64 dimensions) and slices (32 rows of interests).
const std::vector<int64_t> LENGTHS{0, 1, 7, 8, 9, 0, 31, 32, 33, 40};

template <class T>
void test_shapes() {
  for (const int64_t capacity : {0, 40}) test_case<T>({LENGTHS, capacity, 8, 64});
  for (const int64_t m : {1, 3, 8, 9, 33, 64}) test_case<T>({{5, 17}, 17, m, 9});
  for (const int64_t d : {1, 3, 4, 8, 16, 17, 64, 65, 128, 200}) test_case<T>({{5, 17, 0}, 0, 5, d});
  test_case<T>({{34, 7}, 0, 5, 17, 0.01});
  test_case<T>({{34, 7}, 0, 5, 17}, {.temperature_tensor = true});
  test_case<T>({{0, 0}, 0, 3, 4});  // no rows at all
  test_case<T>({{}, 0, 3, 4});      // nor sequences
}

template <class T>
void test_views_and_tables() {
  for (const int64_t view_count : {0, 3, 8})
    for (const int64_t table_rows : {0, 1, 50})
      for (const int64_t capacity : {0, 42}) test_case<T>({LENGTHS, capacity, 5, 8, 0.1, view_count, table_rows});
  test_case<T>({{9, 2}, 9, 64, 65, 0.1, 8, 9});  // sixteen slices, two chunks
  test_case<T>({{130, 140}, 0, 5, 17, 0.1, 2, 3});
}

// The same bits in whatever order threads run, where warps share sequences and where they have several.
template <class T>
void test_order() {
  for (const PoolCase& c :
       {PoolCase{{300, 129, 5}, 300, 9, 65, 0.1, 2, 40}, PoolCase{std::vector<int64_t>(1540, 1), 0, 2, 4, 0.1, 0, 7}}) {
    const PoolInputs<T> inputs(c);
    const auto ours = run_emulated(c, inputs);
    check_pool(ours, pool_item_by_item(c, inputs), c, "CUDA " + ELEMENT<T>.name + " " + c.name());
    check(ours.same_bits_as(run_emulated(c, inputs, {.descending = true})),
          "CUDA " + ELEMENT<T>.name + " " + c.name() + "in whatever order threads run");
  }
}

// A gradient that nobody wants changes no other.
template <class T>
void test_wanted_gradients() {
  for (const int64_t table_rows : {0, 6}) {
    const PoolCase c{{5, 0, 17}, 18, 5, 70, 0.1, 2, table_rows};
    const PoolInputs<T> inputs(c);
    const auto all = run_emulated(c, inputs);
    for (int wanted = 0; wanted < 8; ++wanted) {
      PoolResult<T> some = every_gradient<T>(c);
      if (!(wanted & 1)) some.items.clear();
      if (!(wanted & 2)) some.categories.clear();
      if (!(wanted & 4)) some.temperature.clear();
      some = run_emulated<T, T>(c, inputs, inputs.items, {}, some);
      check(same_bits(some.pooled, all.pooled) && (!(wanted & 1) || same_bits(some.items, all.items)) &&
                (!(wanted & 2) || same_bits(some.categories, all.categories)) &&
                (!(wanted & 4) || same_bits(some.temperature, all.temperature)),
            "CUDA " + ELEMENT<T>.name + " " + c.name() + "wanted gradients " + std::to_string(wanted));
    }
  }
}

// A zero row counts as the zero vector, so that its item might as well be in no view; its gradient is zero. Norms
// neither overflow nor underflow: rows come in turn scaled up and down.
template <class T>
void test_norms() {
  for (const int64_t d : {16, 70}) {
    const PoolCase c{{20, 3}, 0, 5, d, 0.1, 2};
    PoolInputs<T> inputs(c);
    for (const int64_t row : {4, 22}) inputs.views[row] = inputs.views[c.rows() + row] = 0;
    const PoolExact exact = pool_item_by_item(c, inputs);
    for (const int64_t row : {4, 22}) {
      inputs.views[row] = inputs.views[c.rows() + row] = 1;
      std::fill_n(inputs.items.begin() + row * d, d, T{});
    }
    const int exponent = std::is_same_v<T, Half> ? 0 : 90;
    const auto scale = [&](std::vector<T>& rows, int sign) {
      for (size_t i = 0; i < rows.size(); ++i)
        rows[i] = from_double<T>(std::ldexp(to_double(rows[i]), (i / d % 2 ? sign : -sign) * exponent));
    };
    scale(inputs.items, 1);
    scale(inputs.categories, 1);
    auto ours = run_emulated(c, inputs);
    scale(ours.items, 1);
    scale(ours.categories, 1);
    check_pool(ours, exact, c, "CUDA " + ELEMENT<T>.name + " norms, " + c.name());
  }
  const PoolCase c{{9}, 0, 3, 5};
  PoolInputs<T> inputs(c);
  std::fill_n(inputs.categories.begin() + c.d, c.d, T{});
  const auto ours = run_emulated(c, inputs);
  for (int64_t k = 0; k < c.d; ++k)
    check(to_double(ours.categories[c.d + k]) == 0, "CUDA " + ELEMENT<T>.name + " gradient of a zero category");
  for (const T x : ours.items)
    check(std::isfinite(to_double(x)), "CUDA " + ELEMENT<T>.name + " beside a zero category");
}

// NaN in gives NaN out, of its own sequence alone; so does an id that is no row, which is not read.
template <class T>
void test_nan() {
  const PoolCase c{{9, 4, 12}, 12, 3, 5, 0.1, 0, 30};
  const PoolInputs<T> good(c);
  for (const bool bad_id : {false, true}) {
    PoolInputs<T> inputs = good;
    for (int64_t i = 0; i < c.rows(); ++i)
      if (i != 13 && inputs.ids[i] == inputs.ids[13]) inputs.ids[i] = (inputs.ids[13] + 1) % c.table_rows;
    const auto before = run_emulated(c, inputs);
    if (bad_id)
      inputs.ids[13] = c.table_rows;
    else
      inputs.items[inputs.ids[13] * c.d + 2] = ELEMENT<T>.nan;
    const auto ours = run_emulated(c, inputs);
    for (int64_t i = 0; i < c.pooled_size(); ++i)
      check(i / (c.m * c.d) == 1 ? std::isnan(to_double(ours.pooled[i]))
                                 : to_double(ours.pooled[i]) == to_double(before.pooled[i]),
            "CUDA " + ELEMENT<T>.name + (bad_id ? " an id that is no row" : " NaN in, NaN out"));
    for (const T x : ours.categories) check(std::isnan(to_double(x)), "CUDA NaN of the categories");
  }
}

// Under autocast the rows of a float32 table take the categories' type as they are gathered.
template <class C>
void test_table_of_float32() {
  const PoolCase c{{9, 0, 34}, 34, 5, 65, 0.1, 2, 11};
  PoolInputs<C> inputs(c);
  auto rows = random_numbers<float>(c.item_rows() * c.d, 7);
  for (size_t i = 0; i < rows.size(); ++i) cuda::narrow(rows[i], &inputs.items[i]);
  const PoolExact exact = pool_item_by_item(c, inputs);
  std::vector<float> rows_grad;
  auto ours = run_emulated<float, C>(c, inputs, rows, {}, every_gradient<C>(c), &rows_grad);
  ours.items = run_emulated(c, inputs).items;
  check_pool(ours, exact, c, "CUDA float32 table, " + ELEMENT<C>.name + " " + c.name());
  check_close(rows_grad, exact.items, 8 * ELEMENT<float>.epsilon / c.temperature * exact.steepest, "its gradient");
}

// Every item is in exactly one warp's walk, in order, and every sequence in one block.
void test_schedule() {
  for (const int length : {0, 1, 7, 8, 31, 32, 33, 64, 127, 128, 129, 300})
    for (const int warps : {1, 4}) {
      const cuda::Span items{100, 100 + length};
      std::vector<int> visits(length);
      for (int warp = 0; warp < warps; ++warp) {
        const cuda::Walk walk = cuda::PoolSchedule{1, warps}.walk(items, warp);
        int last = -1;
        for (int tile = 0; tile < walk.tiles(); ++tile) {
          check(walk.position(tile, 0) < items.end, "walk: no tile is empty");
          for (int item = 0; item < cuda::ITEMS; ++item) {
            const int position = walk.position(tile, item);
            check(position > last && position >= items.begin, "walk: in order");
            last = position;
            if (position < items.end) ++visits[position - items.begin];
          }
        }
      }
      for (const int count : visits) check(count == 1, "walk: each item once");
    }
  for (const int batch : {0, 1, 3, 4, 5, 2047, 2048, 2049, 5000})
    for (const int length : {1, 127, 128}) {
      const auto schedule = cuda::PoolSchedule::of(batch, int64_t(batch) * length);
      std::vector<int> visits(batch);
      for (int first = 0; first < schedule.backward_blocks(); ++first)
        for (int block = first; block < schedule.blocks(); block += schedule.backward_blocks())
          for (int warp = 0; warp < cuda::WARPS; ++warp)
            if (schedule.sequence(block, warp) < batch) ++visits[schedule.sequence(block, warp)];
      for (const int count : visits) check(count == schedule.warps, "schedule: each sequence once");
      check(batch == 0 || schedule.warps == (length < 128 ? 1 : 4), "schedule: warps of a sequence");
      check(schedule.backward_blocks() <= 384 && (schedule.blocks() == 0) == (batch == 0), "schedule: blocks");
    }
}

template <class T>
void test_type() {
  test_shapes<T>();
  test_views_and_tables<T>();
  test_order<T>();
  test_wanted_gradients<T>();
  test_norms<T>();
  test_nan<T>();
}

}  // namespace

void test_cuda_soft_assignment_pool() {
  test_schedule();
  test_type<float>();
  test_type<BFloat16>();
  test_type<Half>();
  test_table_of_float32<BFloat16>();
  test_table_of_float32<Half>();
}

}  // namespace cmi_fast::testing
