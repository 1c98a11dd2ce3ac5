#include "cpu/kernels/top_k.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "cpu/checks.h"
#include "cpu/level.h"
#include "cpu/parallel.h"
#include "cpu/partition.h"

namespace cmi_fast {

CMI_FAST_DECLARE_KERNEL(TopKKernels, top_k)

namespace {

constexpr int64_t PACKED_BYTES = 16 << 20;    // of items at a time: the memory that a call takes beside its lists
constexpr int64_t INTERESTS_BYTES = 1 << 19;  // of a block of users, which with a tile of items stay in L2
constexpr int64_t USERS_AT_ONCE = 256;

const TopKKernel& kernel(const std::string& precision, int64_t d) {
  const TopKKernels& kernels = CMI_FAST_KERNEL(TopKKernels, top_k);
  const bool has_int8 = kernels.int8.tile > 0 && cpu_has_vnni() && d <= INT8_LARGEST_D;
  STD_TORCH_CHECK(precision == "auto" || precision == "float32" || (precision == "int8" && has_int8),
                  "precision must be auto, float32 or, with AVX-512 VNNI and d up to ", INT8_LARGEST_D, ", int8");
  return has_int8 && precision != "float32" ? kernels.int8 : kernels.float32;
}

// The users' excluded items, in order; empty offsets where there are none.
struct Excluded {
  std::vector<int64_t> offsets, ids;
};

Excluded sorted(const std::optional<Tensor>& offsets, const std::optional<Tensor>& ids, int64_t users, int64_t count) {
  STD_TORCH_CHECK(offsets.has_value() == ids.has_value(), "exclude_offsets and exclude_ids must be given together");
  if (!offsets) return {};
  const Tensor bounds = contiguous_index(*offsets, "exclude_offsets", users + 1);
  const Tensor items = contiguous_index(*ids, "exclude_ids", ids->numel());
  const int64_t *from = data<int64_t>(bounds), *id = data<int64_t>(items), total = items.numel();
  Excluded excluded{{from, from + users + 1}, {id, id + total}};
  for (const int64_t item : excluded.ids)
    STD_TORCH_CHECK(item >= 0 && item < count, "exclude_ids must be rows of items, found ", item);
  for (int64_t u = 0; u < users; ++u) {
    STD_TORCH_CHECK(from[u] >= 0 && from[u] <= from[u + 1] && from[u + 1] <= total, "exclude_offsets must rise from 0");
    std::sort(excluded.ids.begin() + from[u], excluded.ids.begin() + from[u + 1]);
  }
  return excluded;
}

// About the golden ratio of the items, and prime to their number: any run of places is spread over all of them.
int64_t golden_stride(int64_t count) {
  int64_t stride = std::max<int64_t>(1, int64_t(0.6180339887498949 * double(count)));
  while (std::gcd(stride, count) != 1) ++stride;
  return stride;
}

char* bytes(const Tensor& memory) { return mutable_data<char>(memory); }

// Searches the items a chunk at a time: packs it, then takes every block of users through it.
void search(const TopK& p, const TopKKernel& kernel, const Tensor& like) {
  const double work = double(p.users) * p.m * p.count * p.d;
  const int64_t workers = std::clamp<int64_t>(int64_t(work / 2e6), 1, torch::stable::get_num_threads());
  const int64_t user_bytes = p.m * p.d * int64_t(sizeof(float));
  const int64_t block =
      std::clamp<int64_t>(std::min(INTERESTS_BYTES / user_bytes, (p.users + workers - 1) / workers), 1, USERS_AT_ONCE);
  const int64_t tile_bytes = kernel.tile_size(p.d), tiles = (p.count + kernel.tile - 1) / kernel.tile;
  const int64_t chunk = std::clamp<int64_t>(PACKED_BYTES / tile_bytes, 1, tiles);
  const int64_t workspace_bytes = kernel.workspace_size(block, p.m, p.d);
  const Tensor packed = torch::stable::new_empty(like, {chunk * tile_bytes}, ScalarType::Char);
  const Tensor workspaces = torch::stable::new_empty(like, {workers * workspace_bytes}, ScalarType::Char);
  std::atomic<bool> finite_items{true}, finite_interests{true};
  for (int64_t first = 0; first < tiles; first += chunk) {
    const int64_t count = std::min(chunk, tiles - first), parts = std::min<int64_t>(count, 64);
    for_each_part(parts, workers, TorchThreads{}, [&](int64_t part, int64_t worker) {
      char* const workspace = bytes(workspaces) + worker * workspace_bytes;
      for (int64_t tile = count * part / parts; tile < count * (part + 1) / parts; ++tile)
        if (!kernel.pack(p, first + tile, bytes(packed) + tile * tile_bytes, workspace)) finite_items = false;
    });
    STD_TORCH_CHECK(finite_items, "items must be finite");
    for_each_part((p.users + block - 1) / block, workers, TorchThreads{}, [&](int64_t part, int64_t worker) {
      char* const workspace = bytes(workspaces) + worker * workspace_bytes;
      if (!kernel.search(p, part * block, std::min((part + 1) * block, p.users), first, count, bytes(packed),
                         workspace))
        finite_interests = false;
    });
    STD_TORCH_CHECK(finite_interests, "interests must be finite");
  }
}

std::tuple<Tensor, Tensor> top_k(Tensor interests, Tensor items, int64_t k, std::optional<Tensor> exclude_offsets,
                                 std::optional<Tensor> exclude_ids, std::string precision) {
  STD_TORCH_CHECK(interests.dim() == 3 && items.dim() == 2 && interests.size(1) > 0 && items.size(1) > 0 &&
                      interests.size(2) == items.size(1) && items.is_cpu() && k > 0 &&
                      interests.scalar_type() == items.scalar_type(),
                  "interests must be [U, m, d], items [V, d] on the CPU and of the same dtype, k positive");
  interests = torch::stable::contiguous(interests);
  items = torch::stable::contiguous(items);
  const int64_t users = interests.size(0), count = items.size(0), d = items.size(1);
  const Excluded excluded = sorted(exclude_offsets, exclude_ids, users, count);
  std::vector<ScoredItem> lists(users * k,
                                {-std::numeric_limits<double>::infinity(), std::numeric_limits<int64_t>::max()});
  const TopK problem{.interests = {interests.const_data_ptr(), element<float>(interests)},
                     .items = {items.const_data_ptr(), element<float>(items)},
                     .users = users,
                     .m = interests.size(1),
                     .count = count,
                     .d = d,
                     .k = k,
                     .exclude_offsets = excluded.offsets.empty() ? nullptr : excluded.offsets.data(),
                     .exclude_ids = excluded.ids.data(),
                     .lists = lists.data(),
                     .stride = golden_stride(count)};
  if (users > 0 && count > 0) search(problem, kernel(precision, d), interests);
  const Tensor scores = torch::stable::new_empty(interests, {users, k}, ScalarType::Float);
  const Tensor rows = torch::stable::new_empty(interests, {users, k}, ScalarType::Long);
  for (int64_t u = 0; u < users; ++u) {
    const auto list = lists.begin() + u * k;
    std::sort(list, list + k, [](const ScoredItem& a, const ScoredItem& b) {
      return a.score > b.score || (a.score == b.score && a.item < b.item);
    });
    for (int64_t i = 0; i < k; ++i) {
      mutable_data<float>(scores)[u * k + i] = float(list[i].score);
      mutable_data<int64_t>(rows)[u * k + i] = std::isinf(list[i].score) ? -1 : list[i].item;
    }
  }
  return {scores, rows};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cmi_fast, CPU, library) { library.impl("top_k", TORCH_BOX(&top_k)); }

}  // namespace cmi_fast
