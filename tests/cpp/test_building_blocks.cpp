// exp2, products, reductions and unit rows of every ISA level, at the edges of vectors and tiles.
#include "building_blocks.h"
#include "checking.h"

namespace cmi_fast {

CMI_FAST_DECLARE_KERNEL(AllBuildingBlocks, building_blocks)

namespace testing {
namespace {

template <class T>
const BuildingBlocks<T>& blocks() {
  const AllBuildingBlocks& all = CMI_FAST_KERNEL(AllBuildingBlocks, building_blocks);
  if constexpr (sizeof(T) == 4)
    return all.float32;
  else
    return all.float64;
}

template <class T>
void test_exp2(const std::string& what) {
  using Limits = std::numeric_limits<T>;
  const double lowest = Limits::min_exponent - 1;  // 2^lowest is the smallest normal number
  const int64_t count = 1 << 16;
  std::vector<T> x(count), y = poisoned<T>(count);
  for (int64_t i = 0; i < count; ++i) x[i] = T(lowest * i / (count - 1));
  const int64_t integers = -int64_t(lowest) + 1;
  for (int64_t n = 0; n < integers; ++n) x[n] = T(-n);
  blocks<T>().exp2_nonpositive(x.data(), count, y.data());
  double largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    const long double exact = std::exp2((long double)x[i]);
    const double off = std::abs(double((y[i] - exact) / exact));
    largest = off <= largest ? largest : off;
  }
  check(largest <= 1 * ELEMENT<T>.epsilon,
        what + "exp2: error " + std::to_string(largest / ELEMENT<T>.epsilon) + " eps");
  for (int64_t n = 0; n < integers; ++n) check(y[n] == std::exp2(T(-n)), what + "exp2 of an integer is exact");

  const T below[] = {std::nextafter(T(lowest), -Limits::max()), T(lowest * 2), Limits::lowest(), -Limits::infinity()};
  for (const T value : below) {
    std::vector<T> low(blocks<T>().lanes, value), zero = poisoned<T>(blocks<T>().lanes);
    blocks<T>().exp2_nonpositive(low.data(), low.size(), zero.data());
    for (const T z : zero) check(z == 0, what + "exp2 below the normal numbers is 0");
  }
  // A NaN with anything in its low bits, where an exponent would be looked for.
  std::vector<T> nan(blocks<T>().lanes), still(nan.size());
  for (size_t i = 0; i < nan.size(); ++i) nan[i] = T(std::nan(std::to_string(0x345000000 + 37 * i).c_str()));
  if constexpr (sizeof(T) == 4)
    for (size_t i = 0; i < nan.size(); ++i) nan[i] = std::nanf(std::to_string(0x12345 + 37 * i).c_str());
  blocks<T>().exp2_nonpositive(nan.data(), nan.size(), still.data());
  for (const T z : still) check(std::isnan(z), what + "exp2 of NaN is NaN");
}

// C (+)= A B with A, B and C in rows that are longer than what is read, the last one excepted.
template <class T>
void test_product(typename BuildingBlocks<T>::Product product, int64_t rows, int64_t columns, int64_t depth,
                  bool transposed, bool add, const std::string& what) {
  const int64_t gap = 3, a_row = transposed ? 1 : depth + gap, a_step = transposed ? rows + gap : 1;
  const int64_t b_stride = columns + gap, c_stride = columns + gap;
  const auto a = random_numbers<T>((rows - 1) * a_row + (depth - 1) * a_step + 1, 1);
  const auto b = random_numbers<T>((depth - 1) * b_stride + columns, 2);
  auto c = poisoned<T>((rows - 1) * c_stride + columns);
  const auto before = random_numbers<T>(c.size(), 3);
  std::vector<double> exact(c.size(), 0);  // the gaps are nobody's: they must stay as they were
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) {
      const int64_t at = i * c_stride + j;
      if (add) exact[at] = c[at] = before[at];
      for (int64_t k = 0; k < depth; ++k) exact[at] += double(a[i * a_row + k * a_step]) * b[k * b_stride + j];
    }
  product(rows, columns, depth, a.data(), a_row, a_step, b.data(), b_stride, c.data(), c_stride, add);
  for (int64_t i = 0; i + 1 < rows; ++i)
    for (int64_t j = columns; j < c_stride; ++j) {
      check(std::isnan(c[i * c_stride + j]), what + "the product writes between its rows");
      c[i * c_stride + j] = 0;
    }
  check_close(c, exact, (depth + 2) * ELEMENT<T>.epsilon, what + "product");
}

template <class T>
void test_products(const std::string& what) {
  const BuildingBlocks<T>& b = blocks<T>();
  for (const int64_t depth : {1, 2, 17, 64})
    for (int64_t vectors = 1; vectors <= 9; ++vectors)
      for (const bool transposed : {false, true})
        for (const bool add : {false, true})
          for (const int64_t tiles : {1, 3}) {
            test_product<T>(b.product, tiles * b.product_rows, vectors * b.lanes, depth, transposed, add, what);
            test_product<T>(b.narrow_product, tiles * b.narrow_product_rows, vectors * b.narrow_lanes, depth,
                            transposed, add, what + "narrow ");
          }
}

template <class T>
void test_sum_lanes(int64_t lanes, void (*sum_lanes)(const T*, T*), const std::string& what) {
  std::vector<T> x(lanes), sums = poisoned<T>(lanes);
  for (int64_t i = 0; i < lanes; ++i) x[i] = T(1 << i);  // exact, and different for every subset of lanes
  sum_lanes(x.data(), sums.data());
  for (const T sum : sums) check(sum == T((1 << lanes) - 1), what + "every lane holds the sum of all");
}

template <class T>
void test_unit_rows(int64_t count, int64_t d, double magnitude, const std::string& what) {
  const int64_t wide = d + 5;
  auto rows = random_numbers<T>(count * d, 4);
  for (T& x : rows) x = T(x * magnitude);
  if (count > 2) std::fill_n(rows.begin() + 2 * d, d, T(0));  // a zero row among others
  auto unit = poisoned<T>(count * wide), inverse = poisoned<T>(count);
  blocks<T>().unit_rows(rows.data(), count, d, wide, unit.data(), inverse.data());
  std::vector<double> exact(count * wide, 0), inverse_norm(count), one(count, 1);
  std::vector<T> product(count);
  for (int64_t i = 0; i < count; ++i) {
    long double square = 0;
    for (int64_t j = 0; j < d; ++j) square += (long double)rows[i * d + j] * rows[i * d + j];
    const long double norm = std::sqrt(square);
    for (int64_t j = 0; j < d && norm > 0; ++j) exact[i * wide + j] = rows[i * d + j] / norm;
    product[i] = norm > 0 ? T(inverse[i] * norm) : T(1 + inverse[i]);  // a zero row's is 0
  }
  check_close(unit, exact, (4 + std::sqrt(d)) * ELEMENT<T>.epsilon, what + "unit rows");
  check_close(product, one, (4 + std::sqrt(d)) * ELEMENT<T>.epsilon, what + "1 / |row|");
}

template <class T>
void test_rows_that_are_no_numbers(const std::string& what) {
  for (const T bad : {std::numeric_limits<T>::quiet_NaN(), std::numeric_limits<T>::infinity()})
    for (const int64_t d : {1, 5, 16, 65})
      for (const T rest : {T(0), T(1)}) {
        std::vector<T> rows(2 * d, rest), unit(2 * d), inverse(2);
        rows[d + d / 2] = bad;
        blocks<T>().unit_rows(rows.data(), 2, d, d, unit.data(), inverse.data());
        for (int64_t j = 0; j < d; ++j) {
          check(std::isfinite(unit[j]), what + "a row is not touched by its neighbour's NaN");
          check(std::isnan(unit[d + j]), what + "NaN and inf give NaN");
        }
      }
}

template <class T>
void test_type(const std::string& level) {
  const std::string what = level + " " + ELEMENT<T>.name + ": ";
  test_exp2<T>(what);
  test_products<T>(what);
  test_sum_lanes(blocks<T>().lanes, blocks<T>().sum_lanes, what);
  test_sum_lanes(blocks<T>().narrow_lanes, blocks<T>().narrow_sum_lanes, what);
  for (const double magnitude :
       sizeof(T) == 4 ? std::vector{1.0, 1e-30, 1e-21, 1e18, 1e30} : std::vector{1.0, 1e-280, 1e-160, 1e280})
    for (const int64_t d : {1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 200})
      for (const int64_t count : {1, 2, 5}) test_unit_rows<T>(count, d, magnitude, what);
  test_rows_that_are_no_numbers<T>(what);
}

// All numbers of a half type, there and back, and the float between each two, which goes to the even one.
template <class T>
void test_conversions(const Conversions<T>& conversions, const std::string& what) {
  const int64_t all = 1 << 16, positive = 1 << 15;
  std::vector<T> numbers(all), back(all);
  for (int64_t i = 0; i < all; ++i) numbers[i].bits = uint16_t(i);
  auto wide = poisoned<float>(all);
  conversions.widen(numbers.data(), all, wide.data());
  conversions.narrow(wide.data(), all, back.data());
  for (int64_t i = 0; i < all; ++i) {
    const double exact = to_double(numbers[i]);
    check(std::isnan(exact) ? std::isnan(wide[i]) : wide[i] == exact && std::signbit(wide[i]) == std::signbit(exact),
          what + "widen " + std::to_string(i));
    check(std::isnan(exact) ? std::isnan(to_double(back[i])) : back[i].bits == numbers[i].bits,
          what + "narrow " + std::to_string(i));
  }
  for (int64_t count = 0; count <= 17; ++count) {  // vectors of eight, and what they leave
    auto some = poisoned<float>(count);
    conversions.widen(numbers.data() + 1000, count, some.data());
    check(same_bits(some, {wide.begin() + 1000, wide.begin() + 1000 + count}), what + "widen a few");
    std::vector<T> few(count);
    conversions.narrow(some.data(), count, few.data());
    check(same_bits(few, {numbers.begin() + 1000, numbers.begin() + 1000 + count}), what + "narrow a few");
  }
  std::vector<float> between;
  for (int64_t i = 0; i + 1 < positive && std::isfinite(wide[i + 1]); ++i)
    for (const float up : {-1.0f, 0.0f, 1.0f}) {  // the float before the middle, the middle, the one after it
      const float middle = wide[i] + (wide[i + 1] - wide[i]) / 2;
      between.push_back(up == 0 ? middle : std::nextafter(middle, wide[i + (up > 0)]));
    }
  std::vector<T> rounded(between.size());
  conversions.narrow(between.data(), between.size(), rounded.data());
  for (size_t k = 0; k < between.size(); ++k) {
    const int64_t below = k / 3, nearest = below + (k % 3 == 0 ? 0 : k % 3 == 2 ? 1 : below & 1);
    check(rounded[k].bits == nearest, what + "narrow after " + std::to_string(below));
  }
}

}  // namespace

void test_building_blocks() {
  for_each_level([](const std::string& level) {
    test_type<float>(level);
    test_type<double>(level);
    const AllBuildingBlocks& all = CMI_FAST_KERNEL(AllBuildingBlocks, building_blocks);
    test_conversions(all.bfloat16, level + " bfloat16: ");
    test_conversions(all.float16, level + " float16: ");
  });
}

}  // namespace testing
}  // namespace cmi_fast
