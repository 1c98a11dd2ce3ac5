#include "cpu/kernels/gru.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "cpu/checks.h"
#include "cpu/gru_blocks.h"
#include "cpu/huge_pages.h"
#include "cpu/level.h"
#include "cpu/parallel.h"
#include "cpu/partition.h"
#include "cpu/streaming.h"
#include "cpu/table_items.h"

namespace cmi_fast {

CMI_FAST_DECLARE_KERNEL(GruKernels, gru)

namespace {

using OptionalTensor = std::optional<Tensor>;

// Parameters as torch.nn.GRU has them; items are [B, L, d] or [T, d], or with ids [B, L] or [T] the table.
struct Arguments {
  Tensor items, weight_ih, weight_hh;
  OptionalTensor bias_ih, bias_hh, lengths, offsets;
  OptionalTensor ids = {};
  bool normalize = false;
};

// The arguments of one call, checked and contiguous, with what threads share. T is what is computed in.
template <class T>
struct Call {
  const GruKernel<T>& kernel = of_type<T>(CMI_FAST_KERNEL(GruKernels, gru));
  Tensor items, index, ids, packed;
  std::optional<GruBlocks> blocks;
  Gru<T> problem;
  int64_t rows;

  explicit Call(const Arguments& given) {
    check_shapes(given);
    items = torch::stable::contiguous(given.items);
    const int64_t d = items.size(-1), hidden = given.weight_hh.size(1);
    const Sequences sequences = read_sequences(given);
    rows = given.ids ? given.ids->numel() : items.numel() / d;
    check_sequences(sequences, rows);
    if (given.ids) ids = contiguous_ids(*given.ids, sequences, items.size(0));
    blocks.emplace(sequences);
    packed = new_tensor(kernel.packed_size(d, hidden));
    pack_weights(given, d, hidden);
    problem = {.sequences = sequences,
               .order = blocks->order.data(),
               .block = blocks->block,
               .first_saved = blocks->first_saved.data(),
               .items = {items.const_data_ptr(), element<T>(items)},
               .ids = given.ids ? data<int64_t>(ids) : nullptr,
               .normalize = given.normalize,
               .d = d,
               .hidden = hidden,
               .packed = data<T>(packed)};
  }

  Tensor new_tensor(int64_t size) const { return torch::stable::new_empty(items, {size}, SCALAR_TYPE<T>); }

  static void check_shapes(const Arguments& given) {
    const Tensor& rows = given.ids ? *given.ids : given.items;
    STD_TORCH_CHECK(
        rows.dim() == (given.offsets ? 1 : 2) + (given.ids ? 0 : 1),
        given.ids ? "ids must be [B, L], or [T] with offsets" : "items must be [B, L, d], or [T, d] with offsets");
    STD_TORCH_CHECK(!given.ids || given.items.dim() == 2, "table must be [V, d]");
    STD_TORCH_CHECK(!given.offsets || given.offsets->numel() > 0, "offsets must be [B + 1]");
    STD_TORCH_CHECK(!(given.offsets && given.lengths), "give lengths or offsets, not both");
    STD_TORCH_CHECK(given.weight_hh.dim() == 2 && given.weight_hh.size(1) > 0 &&
                        given.weight_hh.size(0) == 3 * given.weight_hh.size(1),
                    "weight_hh must be [3 hidden, hidden]");
    const int64_t gates = given.weight_hh.size(0);
    STD_TORCH_CHECK(given.weight_ih.dim() == 2 && given.weight_ih.size(0) == gates && given.weight_ih.size(1) > 0 &&
                        given.weight_ih.size(1) == given.items.size(-1),
                    "weight_ih must be [3 hidden, d] with the items' d");
    STD_TORCH_CHECK(!given.bias_ih || given.bias_ih->numel() == gates, "bias_ih must be [3 hidden]");
    STD_TORCH_CHECK(!given.bias_hh || given.bias_hh->numel() == gates, "bias_hh must be [3 hidden]");
  }

  Sequences read_sequences(const Arguments& given) {
    const Tensor& rows = given.ids ? *given.ids : given.items;
    const int64_t batch = given.offsets ? given.offsets->numel() - 1 : rows.size(0);
    Sequences sequences{batch, given.offsets ? 0 : rows.size(1), nullptr, nullptr};
    if (given.offsets) {
      index = contiguous_index(*given.offsets, "offsets", batch + 1);
      sequences.offsets = data<int64_t>(index);
    } else if (given.lengths) {
      index = contiguous_index(*given.lengths, "lengths", batch);
      sequences.lengths = data<int64_t>(index);
    }
    return sequences;
  }

  void pack_weights(const Arguments& given, int64_t d, int64_t hidden) {
    const OptionalTensor parameters[] = {given.weight_ih, given.weight_hh, given.bias_ih, given.bias_hh};
    OptionalTensor contiguous[4];  // lives while the kernel reads
    ConstRows read[4];
    for (int i = 0; i < 4; ++i) {
      read[i] = {nullptr, Element::computed};
      if (!parameters[i]) continue;
      contiguous[i] = torch::stable::contiguous(*parameters[i]);
      read[i] = {contiguous[i]->const_data_ptr(), element<T>(*contiguous[i])};
    }
    kernel.pack_weights({read[0], read[1], read[2], read[3]}, d, hidden, mutable_data<T>(packed));
  }

  // Calls run(part, begin, end, workspace) for each part of the blocks.
  template <class Run>
  void parallel(int64_t parts, const Run& run) const {
    const int64_t workers = std::min<int64_t>(parts, torch::stable::get_num_threads());
    const int64_t stride = (kernel.workspace_size(problem.d, problem.hidden) + 15) / 16 * 16;  // no false sharing
    const Tensor workspace = new_tensor(workers * stride);
    for_each_part(parts, workers, TorchThreads{}, [&](int64_t part, int64_t worker) {
      run(part, blocks->boundary(part, parts), blocks->boundary(part + 1, parts),
          mutable_data<T>(workspace) + worker * stride);
    });
  }
};

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class T>
Gradients backward(const Call<T>& call, const Tensor& last_grad_, const Tensor& saved_, const Arguments& given,
                   const bool (&wanted)[5]) {
  const auto& p = call.problem;
  STD_TORCH_CHECK(last_grad_.numel() == p.sequences.batch * p.hidden, "the gradient must be [B, hidden]");
  STD_TORCH_CHECK(
      saved_.numel() == call.rows * call.kernel.saved_size(p.hidden) && saved_.scalar_type() == SCALAR_TYPE<T>,
      "saved must be what the forward with save=True returns");
  const Tensor last_grad = torch::stable::contiguous(last_grad_);
  const Tensor saved = torch::stable::contiguous(saved_);
  const OptionalTensor inputs[] = {given.items, given.weight_ih, given.weight_hh, given.bias_ih, given.bias_hh};
  Tensor result[5];
  MutableRows written[5];
  for (int i = 0; i < 5; ++i) {
    STD_TORCH_CHECK(!wanted[i] || inputs[i], "a bias that is not there has no gradient");
    result[i] = wanted[i] ? torch::stable::new_empty(*inputs[i], inputs[i]->sizes()) : call.new_tensor(0);
    written[i] = {wanted[i] ? result[i].mutable_data_ptr() : nullptr, element<T>(result[i])};
  }
  prefer_huge_pages<T>(result[0]);
  const bool parameters = wanted[1] || wanted[2] || wanted[3] || wanted[4];
  const int64_t size = call.kernel.gradient_size(p.d, p.hidden);
  const int64_t parts = call.blocks->gradient_parts(size * sizeof(T));
  const Tensor partial = call.new_tensor(parameters ? parts * size : 0);
  T* const sums = mutable_data<T>(partial);
  const bool of_table = given.ids && wanted[0];
  SharedRows shared;  // none without a table
  if (of_table) shared = shared_rows(p.sequences, p.ids, call.rows, call.items.size(0), [](int64_t) { return true; });
  const Tensor shared_gradients = call.new_tensor(shared.count * p.d);
  prefer_huge_pages<T>(shared_gradients);
  call.parallel(parts, [&](int64_t part, int64_t begin, int64_t end, T* workspace) {
    call.kernel.backward(
        p, begin, end,
        {.last = {last_grad.const_data_ptr(), element<T>(last_grad)},
         .saved = data<T>(saved),
         .items = written[0],
         .shared = mutable_data<T>(shared_gradients),
         .place = of_table ? shared.place.data() : nullptr,
         .stream = wanted[0] && result[0].scalar_type() == SCALAR_TYPE<T> && worth_streaming<T>(result[0]),
         .parameters = parameters ? sums + part * size : nullptr},
        workspace);
  });
  if (of_table) sum_into_table(data<T>(shared_gradients), shared, result[0]);
  if (parameters) {
    for (int64_t part = 1; part < parts; ++part)
      for (int64_t i = 0; i < size; ++i) sums[i] += sums[part * size + i];
    call.kernel.unpack_gradients(sums, p.d, p.hidden, {written[1], written[2], written[3], written[4]});
  }
  return {result[0], result[1], result[2], result[3], result[4]};
}

// Calls run(T()) for the type T that is computed in.
template <class Run>
auto dispatch_computed(const Tensor& items, const char* name, const Run& run) {
  return dispatch(items, name, [&](auto type) { return run(Compute<decltype(type)>()); });
}

// The last states, and what the backward needs where `save` says so.
template <class T>
std::tuple<Tensor, Tensor> forward(const Call<T>& call, const Tensor& weight_hh, bool save) {
  const auto& p = call.problem;
  const Tensor last = torch::stable::new_empty(weight_hh, {p.sequences.batch, p.hidden});
  const Tensor saved =
      torch::stable::new_empty(call.items, {save ? call.rows : 0, call.kernel.saved_size(p.hidden)}, SCALAR_TYPE<T>);
  prefer_huge_pages<T>(saved);
  call.parallel(call.blocks->count(), [&](int64_t, int64_t begin, int64_t end, T* workspace) {
    call.kernel.forward(p, begin, end, {last.mutable_data_ptr(), element<T>(last)},
                        save ? mutable_data<T>(saved) : nullptr, workspace);
  });
  return {last, saved};
}

}  // namespace

std::tuple<Tensor, Tensor> gru(Tensor items, Tensor weight_ih, Tensor weight_hh, OptionalTensor bias_ih,
                               OptionalTensor bias_hh, OptionalTensor lengths, OptionalTensor offsets, bool save) {
  return dispatch_computed(items, "items", [&](auto type) {
    const Call<decltype(type)> call({items, weight_ih, weight_hh, bias_ih, bias_hh, lengths, offsets});
    return forward(call, weight_hh, save);
  });
}

Gradients gru_backward(Tensor last_grad, Tensor saved, Tensor items, Tensor weight_ih, Tensor weight_hh,
                       OptionalTensor bias_ih, OptionalTensor bias_hh, OptionalTensor lengths, OptionalTensor offsets,
                       bool, bool items_grad, bool weight_ih_grad, bool weight_hh_grad, bool bias_ih_grad,
                       bool bias_hh_grad) {
  return dispatch_computed(items, "items", [&](auto type) {
    using T = decltype(type);
    const Arguments given{items, weight_ih, weight_hh, bias_ih, bias_hh, lengths, offsets};
    return backward(Call<T>(given), last_grad, saved, given,
                    {items_grad, weight_ih_grad, weight_hh_grad, bias_ih_grad, bias_hh_grad});
  });
}

std::tuple<Tensor, Tensor> item_gru(Tensor ids, Tensor table, Tensor weight_ih, Tensor weight_hh,
                                    OptionalTensor bias_ih, OptionalTensor bias_hh, OptionalTensor lengths,
                                    OptionalTensor offsets, bool normalize, bool save) {
  return dispatch_computed(table, "table", [&](auto type) {
    const Call<decltype(type)> call({table, weight_ih, weight_hh, bias_ih, bias_hh, lengths, offsets, ids, normalize});
    return forward(call, weight_hh, save);
  });
}

Gradients item_gru_backward(Tensor last_grad, Tensor saved, Tensor ids, Tensor table, Tensor weight_ih,
                            Tensor weight_hh, OptionalTensor bias_ih, OptionalTensor bias_hh, OptionalTensor lengths,
                            OptionalTensor offsets, bool normalize, bool, bool table_grad, bool weight_ih_grad,
                            bool weight_hh_grad, bool bias_ih_grad, bool bias_hh_grad) {
  return dispatch_computed(table, "table", [&](auto type) {
    using T = decltype(type);
    const Arguments given{table, weight_ih, weight_hh, bias_ih, bias_hh, lengths, offsets, ids, normalize};
    return backward(Call<T>(given), last_grad, saved, given,
                    {table_grad, weight_ih_grad, weight_hh_grad, bias_ih_grad, bias_hh_grad});
  });
}

STABLE_TORCH_LIBRARY_IMPL(cmi_fast, CPU, library) {
  library.impl("gru", TORCH_BOX(&gru));
  library.impl("gru_backward", TORCH_BOX(&gru_backward));
  library.impl("item_gru", TORCH_BOX(&item_gru));
  library.impl("item_gru_backward", TORCH_BOX(&item_gru_backward));
}

}  // namespace cmi_fast
