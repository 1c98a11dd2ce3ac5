// The schemas: a table of contents of every compiled operator.
#include <torch/csrc/stable/library.h>

#include "cpu/level.h"

STABLE_TORCH_LIBRARY(cmi_fast, library) {
  library.def(
      "soft_assignment_pool(Tensor items, Tensor categories, Tensor? lengths, Tensor? offsets, Tensor? views, "
      "float temperature, Tensor? temperature_tensor) -> Tensor");
  library.def(
      "soft_assignment_pool_backward(Tensor pooled_grad, Tensor items, Tensor categories, Tensor? lengths, "
      "Tensor? offsets, Tensor? views, float temperature, Tensor? temperature_tensor, bool items_grad, "
      "bool categories_grad, bool temperature_grad) -> (Tensor, Tensor, Tensor)");

  library.def(
      "item_soft_assignment_pool(Tensor ids, Tensor table, Tensor categories, Tensor? lengths, Tensor? offsets, "
      "Tensor? views, float temperature, Tensor? temperature_tensor) -> Tensor");
  library.def(
      "item_soft_assignment_pool_backward(Tensor pooled_grad, Tensor ids, Tensor table, Tensor categories, "
      "Tensor? lengths, Tensor? offsets, Tensor? views, float temperature, Tensor? temperature_tensor, "
      "bool table_grad, bool categories_grad, bool temperature_grad) -> (Tensor, Tensor, Tensor)");

  library.def(
      "nt_xent_loss(Tensor first, Tensor second, float temperature, Tensor? temperature_tensor, str negatives, "
      "str direction, bool normalize) -> (Tensor losses, Tensor log_sum)");
  library.def(
      "nt_xent_loss_backward(Tensor losses_grad, Tensor log_sum, Tensor first, Tensor second, float temperature, "
      "Tensor? temperature_tensor, str negatives, str direction, bool normalize, bool first_grad, bool second_grad, "
      "bool temperature_grad) -> (Tensor, Tensor, Tensor)");

  library.def(
      "interest_softmax_loss(Tensor interests, Tensor candidates, Tensor targets, Tensor? general, "
      "Tensor? candidate_bias, Tensor? exclude, Tensor? candidate_ids, float temperature, Tensor? temperature_tensor, "
      "str reduction) -> (Tensor loss, Tensor saved)");
  library.def(
      "interest_softmax_loss_backward(Tensor loss_grad, Tensor saved, Tensor interests, Tensor candidates, "
      "Tensor targets, Tensor? general, Tensor? candidate_bias, Tensor? exclude, Tensor? candidate_ids, "
      "float temperature, Tensor? temperature_tensor, str reduction, bool interests_grad, bool candidates_grad, "
      "bool general_grad, bool candidate_bias_grad, bool temperature_grad) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor)");

  library.def(
      "gru(Tensor items, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, Tensor? lengths, "
      "Tensor? offsets, bool save) -> (Tensor last, Tensor saved)");
  library.def(
      "gru_backward(Tensor last_grad, Tensor saved, Tensor items, Tensor weight_ih, Tensor weight_hh, "
      "Tensor? bias_ih, Tensor? bias_hh, Tensor? lengths, Tensor? offsets, bool save, bool items_grad, "
      "bool weight_ih_grad, bool weight_hh_grad, bool bias_ih_grad, bool bias_hh_grad) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor)");

  library.def(
      "item_gru(Tensor ids, Tensor table, Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, "
      "Tensor? lengths, Tensor? offsets, bool normalize, bool save) -> (Tensor last, Tensor saved)");
  library.def(
      "item_gru_backward(Tensor last_grad, Tensor saved, Tensor ids, Tensor table, Tensor weight_ih, "
      "Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, Tensor? lengths, Tensor? offsets, bool normalize, "
      "bool save, bool table_grad, bool weight_ih_grad, bool weight_hh_grad, bool bias_ih_grad, bool bias_hh_grad) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor)");

  library.def(
      "self_attentive_pool(Tensor items, Tensor weight, Tensor queries, Tensor? bias, Tensor? positions, "
      "Tensor? lengths, Tensor? offsets) -> (Tensor pooled, Tensor attention)");
  library.def(
      "self_attentive_pool_backward(Tensor pooled_grad, Tensor attention, Tensor items, Tensor weight, "
      "Tensor queries, Tensor? bias, Tensor? positions, Tensor? lengths, Tensor? offsets, bool items_grad, "
      "bool weight_grad, bool queries_grad, bool bias_grad, bool positions_grad) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor)");

  library.def(
      "capsule_routing(Tensor items, Tensor maps, Tensor? bias, Tensor? logits, Tensor? active, Tensor? lengths, "
      "Tensor? offsets, int interests, int iterations) "
      "-> (Tensor result, Tensor weights, Tensor sums, Tensor pooled)");
  library.def(
      "capsule_routing_backward(Tensor interests_grad, Tensor weights, Tensor sums, Tensor pooled, Tensor items, "
      "Tensor maps, Tensor? bias, Tensor? logits, Tensor? active, Tensor? lengths, Tensor? offsets, int interests, "
      "int iterations, bool items_grad, bool maps_grad, bool bias_grad) -> (Tensor, Tensor, Tensor)");

  library.def(
      "top_k(Tensor interests, Tensor items, int k, Tensor? exclude_offsets, Tensor? exclude_ids, "
      "str precision) -> (Tensor scores, Tensor rows)");

  library.def("isa_level() -> str");
  library.def("supported_isa_levels() -> str");
  library.def("set_isa_level(str name) -> ()");
  library.def("fma_ceiling_flops(int iterations, bool bfloat16=False) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(cmi_fast, CompositeExplicitAutograd, library) {
  library.impl("isa_level", TORCH_BOX(&cmi_fast::isa_level_name));
  library.impl("supported_isa_levels", TORCH_BOX(&cmi_fast::supported_isa_levels));
  library.impl("set_isa_level", TORCH_BOX(&cmi_fast::set_isa_level));
}
