// The GRU against its equations at every ISA level, around every edge of blocks, tiles, vectors and sequences.
#include "gru.h"

namespace cmi_fast::testing {
namespace {

template <class T>
void test_case(const GruCase& c) {
  const GruInputs<T> inputs(c);
  const GruExact exact = gru_item_by_item(c, inputs);
  for_each_level([&](const std::string& level) {
    check_gru(run_gru(c, inputs, OneAfterAnother{}, 1, every_gradient(inputs)), exact,
              level + " " + ELEMENT<T>.name + " " + c.name());
  });
}

// A tile has 8 or 4 sequences, a block 8 to 32: lengths that fall within and between them, empty ones among them.
std::vector<int64_t> lengths_of(int64_t batch, int64_t longest) {
  std::vector<int64_t> lengths(batch);
  for (int64_t b = 0; b < batch; ++b) lengths[b] = b * 5 % (longest + 1);
  return lengths;
}

template <class T>
void test_shapes() {
  for (const int64_t batch : {1, 3, 4, 5, 8, 9, 17, 33})
    for (const int64_t capacity : {0, 7, 9}) {
      test_case<T>({lengths_of(batch, 7), capacity, 5, 3});
      test_case<T>({std::vector<int64_t>(batch, 7), capacity, 3, 5, false});
    }
  // Widths are padded to 16; vectors have 2 to 16 lanes, panels two of them.
  for (const int64_t width : {1, 2, 4, 8, 15, 16, 17, 31, 32, 33, 48, 65}) {
    test_case<T>({{3, 0, 2, 1, 3}, 3, width, 6});
    test_case<T>({{3, 0, 2, 1, 3}, 0, 6, width});
  }
  test_case<T>({{0, 0, 0}, 4, 3, 5});            // nothing but padding
  test_case<T>({{0, 0}, 0, 3, 5});               // no items at all
  test_case<T>({{}, 4, 3, 5});                   // no sequences
  test_case<T>({{300}, 0, 4, 5});                // many steps until the products that wait are taken
  test_case<T>({lengths_of(1100, 4), 4, 2, 3});  // blocks of 32, of which one part takes one
}

template <class T>
void test_streaming() {
  if constexpr (sizeof(T) > 2)
    for (const int64_t d : {16, 48})
      for (const int64_t capacity : {0, 9}) {
        test_case<T>({lengths_of(17, 7), capacity, d, 3, true, true});
        test_case<T>({lengths_of(17, 7), capacity, d, 3, true, true, 30, true});
      }
}

// From few rows that many items read to many that few do, and as items are stored or at unit length.
template <class T>
void test_tables() {
  for (const int64_t table_rows : {1, 5, 40, 200})
    for (const int64_t capacity : {0, 7})
      for (const bool normalize : {false, true})
        test_case<T>({lengths_of(17, 7), capacity, 5, 3, true, false, table_rows, normalize});
  test_case<T>({lengths_of(17, 7), 7, 33, 17, true, false, 0, true});
  test_case<T>({{0, 0}, 4, 3, 5, true, false, 6, true});  // nothing is read
}

// A NaN stays in its sequence's state; it reaches the gradients of all parameters.
template <class T>
void test_nan() {
  const GruCase c{{3, 5, 1, 4}, 5, 3, 5};
  GruInputs<T> inputs(c);
  inputs.items[(c.first(1) + 2) * c.d] = ELEMENT<T>.nan;
  for_each_level([&](const std::string& level) {
    const auto ours = run_gru(c, inputs, OneAfterAnother{}, 1, every_gradient(inputs));
    for (int64_t i = 0; i < c.batch() * c.hidden; ++i)
      check(std::isnan(to_double(ours.last[i])) == (i / c.hidden == 1), level + " " + ELEMENT<T>.name + ": a NaN");
    for (const auto& gradient : ours.parameters)
      for (const T x : gradient) check(std::isnan(to_double(x)), level + " " + ELEMENT<T>.name + ": NaN in, NaN out");
  });
}

// A gradient that nobody wants changes no other.
template <class T>
void test_wanted_gradients() {
  const GruCase c{lengths_of(11, 6), 6, 5, 3};
  const GruInputs<T> inputs(c);
  for_each_level([&](const std::string& level) {
    const auto all = run_gru(c, inputs, OneAfterAnother{}, 1, every_gradient(inputs));
    for (int wanted = 0; wanted < 32; ++wanted) {
      auto some = every_gradient(inputs), expected = all;
      if (!(wanted & 16)) some.items = expected.items = {};
      for (int i = 0; i < 4; ++i)
        if (!(wanted & 1 << i)) some.parameters[i] = expected.parameters[i] = {};
      check(run_gru(c, inputs, OneAfterAnother{}, 1, some).same_bits_as(expected),
            level + " " + ELEMENT<T>.name + " wanted gradients " + std::to_string(wanted));
    }
  });
}

template <class T>
void test_type() {
  test_shapes<T>();
  test_streaming<T>();
  test_tables<T>();
  test_nan<T>();
  test_wanted_gradients<T>();
}

}  // namespace

void test_gru() {
  test_type<float>();
  test_type<double>();
  test_type<BFloat16>();
  test_type<Half>();
}

}  // namespace cmi_fast::testing
