// The pooling against Eq. 1-3 at every ISA level, around every edge of blocks, vectors and sequences.
#include "pool.h"

namespace cmi_fast::testing {
namespace {

template <class T>
void test_case(const PoolCase& c) {
  const PoolInputs<T> inputs(c);
  const PoolExact exact = pool_item_by_item(c, inputs);
  for_each_level([&](const std::string& level) {
    check_pool(run_pool(c, inputs, OneAfterAnother{}, 1, every_gradient<T>(c)), exact, c,
               level + " " + ELEMENT<T>.name + " " + c.name());
  });
}

// A block has 16 items, tiles of it 8: lengths around both, empty sequences first, last and side by side.
const std::vector<int64_t> LENGTHS{0, 1, 7, 8, 9, 0, 0, 15, 16, 17, 31, 32, 33, 0};

template <class T>
void test_shapes() {
  for (const int64_t capacity : {0, 33, 40})
    for (const double temperature : {0.1, 0.01})
      for (const int64_t m : {1, 3, 8, 9}) test_case<T>({LENGTHS, capacity, m, 5, temperature});
  // Categories fill vectors of 2 to 8 lanes, and rows of four.
  for (const int64_t m : {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33}) test_case<T>({{5, 17}, 17, m, 9});
  for (const int64_t d : {1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 200}) test_case<T>({{5, 17}, 0, 5, d});
  test_case<T>({{0, 0}, 0, 3, 4});                        // no rows at all
  test_case<T>({std::vector<int64_t>(300, 7), 9, 3, 4});  // several parts
}

template <class T>
void test_views_and_tables() {
  for (const int64_t view_count : {0, 1, 3, 8})
    for (const int64_t table_rows : {0, 1, 50})
      for (const int64_t capacity : {0, 34}) test_case<T>({LENGTHS, capacity, 3, 5, 0.1, view_count, table_rows});
  // Rows are put in order 256 at a time, and the table's columns are summed 128 at a time.
  test_case<T>({{255, 256, 257, 513}, 0, 2, 3, 0.1, 2, 0});
  for (const int64_t d : {127, 128, 129, 260}) test_case<T>({{20, 3}, 0, 2, d, 0.1, 0, 7});
  for (const int64_t table_rows : {0, 9, 60})  // of 60, most have one reader or none
    for (const int64_t d : {16, 144}) test_case<T>({{0, 5, 17}, 20, 3, d, 0.1, 2, table_rows, true});
}

// A gradient that nobody wants changes no other.
template <class T>
void test_wanted_gradients() {
  for (const int64_t table_rows : {0, 6}) {
    const PoolCase c{{5, 0, 17}, 18, 5, 9, 0.1, 0, table_rows};
    const PoolInputs<T> inputs(c);
    for_each_level([&](const std::string& level) {
      const auto all = run_pool(c, inputs, OneAfterAnother{}, 1, every_gradient<T>(c));
      for (int wanted = 0; wanted < 8; ++wanted) {
        PoolResult<T> some = every_gradient<T>(c);
        if (!(wanted & 1)) some.items.clear();
        if (!(wanted & 2)) some.categories.clear();
        if (!(wanted & 4)) some.temperature.clear();
        some = run_pool(c, inputs, OneAfterAnother{}, 1, some);
        check(same_bits(some.pooled, all.pooled) && (!(wanted & 1) || same_bits(some.items, all.items)) &&
                  (!(wanted & 2) || same_bits(some.categories, all.categories)) &&
                  (!(wanted & 4) || same_bits(some.temperature, all.temperature)),
              level + " " + ELEMENT<T>.name + " " + c.name() + "wanted gradients " + std::to_string(wanted));
      }
    });
  }
}

template <class T>
void test_type() {
  test_shapes<T>();
  test_views_and_tables<T>();
  test_wanted_gradients<T>();
}

}  // namespace

void test_soft_assignment_pool() {
  test_type<float>();
  test_type<double>();
  test_type<BFloat16>();
  test_type<Half>();
}

}  // namespace cmi_fast::testing
