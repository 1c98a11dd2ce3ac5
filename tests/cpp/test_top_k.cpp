// top_k's kernels against sorting all scores, on whole numbers: every sum is exact, and many scores are equal.
#include <algorithm>
#include <limits>
#include <numeric>

#include "checking.h"
#include "cpu/kernels/top_k.h"

namespace cmi_fast {

CMI_FAST_DECLARE_KERNEL(TopKKernels, top_k)

namespace testing {
namespace {

struct TopKCase {
  int64_t users, m, count, d, k, stride;

  std::string name() const {
    std::string name = "top_k";
    for (const int64_t size : {users, m, count, d, k, stride}) name.append(" ").append(std::to_string(size));
    return name + ": ";
  }
};

struct TopKInputs {
  std::vector<float> interests, items;
  std::vector<int64_t> offsets{0}, ids;  // every user leaves out some items

  explicit TopKInputs(const TopKCase& c) : interests(c.users * c.m * c.d), items(c.count * c.d) {
    std::mt19937 generator(0);
    std::uniform_int_distribution<int> value(-5, 5);
    for (float& x : interests) x = float(value(generator));
    for (float& x : items) x = float(value(generator));
    for (int64_t u = 0; u < c.users; ++u) {
      for (int64_t item = u; item < c.count; item += 3 + u) ids.push_back(item);
      offsets.push_back(ids.size());
    }
  }
};

using Lists = std::vector<ScoredItem>;

bool before(const ScoredItem& a, const ScoredItem& b) {
  return a.score > b.score || (a.score == b.score && a.item < b.item);
}

Lists unfilled(const TopKCase& c) {
  return Lists(c.users * c.k, {-std::numeric_limits<double>::infinity(), std::numeric_limits<int64_t>::max()});
}

Lists by_sorting(const TopKCase& c, const TopKInputs& inputs) {
  Lists lists = unfilled(c);
  for (int64_t u = 0; u < c.users; ++u) {
    Lists all;
    for (int64_t item = 0; item < c.count; ++item) {
      double best = -std::numeric_limits<double>::infinity();
      for (int64_t i = 0; i < c.m; ++i)
        best = std::max(best, std::inner_product(&inputs.items[item * c.d], &inputs.items[item * c.d] + c.d,
                                                 &inputs.interests[(u * c.m + i) * c.d], 0.0));
      if (!std::binary_search(inputs.ids.begin() + inputs.offsets[u], inputs.ids.begin() + inputs.offsets[u + 1], item))
        all.push_back({best, item});
    }
    std::sort(all.begin(), all.end(), before);
    std::copy_n(all.begin(), std::min<int64_t>(c.k, all.size()), lists.begin() + u * c.k);
  }
  return lists;
}

// Users in two blocks and tiles in two chunks, each with a buffer of its exact size.
Lists by_kernel(const TopKCase& c, const TopKInputs& inputs, const TopKKernel& kernel) {
  Lists lists = unfilled(c);
  const TopK problem{{inputs.interests.data(), Element::computed},
                     {inputs.items.data(), Element::computed},
                     c.users,
                     c.m,
                     c.count,
                     c.d,
                     c.k,
                     inputs.offsets.data(),
                     inputs.ids.data(),
                     lists.data(),
                     c.stride};
  const int64_t tiles = (c.count + kernel.tile - 1) / kernel.tile, size = kernel.tile_size(c.d);
  for (const auto& [first, last] : {std::pair{int64_t(0), tiles / 2}, {tiles / 2, tiles}}) {
    std::vector<char> packed((last - first) * size, char(0xff));
    for (int64_t tile = first; tile < last; ++tile) {
      std::vector<char> workspace(kernel.workspace_size(1, c.m, c.d), char(0xff));
      check(kernel.pack(problem, tile, packed.data() + (tile - first) * size, workspace.data()), "items are finite");
    }
    for (const auto& [begin, end] : {std::pair{int64_t(0), c.users / 2}, {c.users / 2, c.users}}) {
      std::vector<char> workspace(kernel.workspace_size(end - begin, c.m, c.d), char(0xff));
      check(kernel.search(problem, begin, end, first, last - first, packed.data(), workspace.data()),
            "interests are finite");
    }
  }
  for (int64_t u = 0; u < c.users; ++u) std::sort(lists.begin() + u * c.k, lists.begin() + (u + 1) * c.k, before);
  return lists;
}

void test(const TopKCase& c, const TopKKernel& kernel, const std::string& what) {
  const TopKInputs inputs(c);
  const Lists ours = by_kernel(c, inputs, kernel), exact = by_sorting(c, inputs);
  for (size_t i = 0; i < exact.size(); ++i)
    check(ours[i].score == exact[i].score && ours[i].item == exact[i].item, what + c.name() + std::to_string(i));
}

}  // namespace

void test_top_k() {
  for_each_level([](const std::string& level) {
    const TopKKernels& kernels = CMI_FAST_KERNEL(TopKKernels, top_k);
    for (const TopKCase& c :
         {TopKCase{1, 1, 1, 1, 1, 1}, TopKCase{5, 1, 100, 3, 7, 61}, TopKCase{9, 2, 101, 17, 10, 1},
          TopKCase{4, 3, 333, 5, 50, 200}, TopKCase{3, 8, 500, 64, 20, 309}, TopKCase{2, 9, 97, 65, 97, 60},
          TopKCase{11, 4, 48, 4, 60, 29}, TopKCase{2, 64, 200, 200, 5, 123}}) {
      test(c, kernels.float32, level + " float32 ");
      if (kernels.int8.tile > 0 && cpu_has_vnni()) test(c, kernels.int8, level + " int8 ");
    }
  });
}

}  // namespace testing
}  // namespace cmi_fast
