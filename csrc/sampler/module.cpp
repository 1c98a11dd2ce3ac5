// The batch sampler as a Python module over numpy arrays, which may be memory maps: none is copied.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <vector>

#include "sampler/distinct.h"
#include "sampler/draws.h"

namespace py = pybind11;

namespace cmi_fast {
namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

// Holds the arrays that `tables` points into. Nothing is written after construction: any thread may draw.
class Draws {
 public:
  Draws(Array<int64_t> offsets, Array<int32_t> items, Array<int64_t> starts, Array<int64_t> counts,
        Array<int64_t> catalogue, Array<int64_t> unplayed, Array<int64_t> played_starts, Array<int64_t> unplayed_below,
        int64_t max_history, double view_share, bool disjoint_views, bool chosen_per_user)
      : held_(py::make_tuple(offsets, items, starts, counts, catalogue, unplayed, played_starts, unplayed_below)),
        tables_{offsets.data(),   items.data(),     starts.data(),   starts.size() - 1,    counts.data(),
                catalogue.data(), catalogue.size(), unplayed.data(), played_starts.data(), unplayed_below.data(),
                max_history,      view_share,       disjoint_views,  chosen_per_user} {}

  py::tuple draw(uint64_t epoch, int64_t first, int64_t count) const {
    Array<int64_t> users(count), lengths(count), positives(count), negatives(count);
    std::vector<int64_t> plays(count);
    const Places places{users.mutable_data(), plays.data(), lengths.mutable_data()};
    int64_t width;
    {
      py::gil_scoped_release others_run;
      width = locate(tables_, epoch, first, count, places);
    }
    Array<int64_t> history({count, width});
    Array<bool> views({int64_t{2}, count, width});
    const Output output{history.mutable_data(), views.mutable_data(), positives.mutable_data(),
                        negatives.mutable_data()};
    {
      py::gil_scoped_release others_run;
      fill(tables_, epoch, first, count, places, width, output);
    }
    return py::make_tuple(users, history, lengths, views, positives, negatives);
  }

 private:
  py::tuple held_;
  Tables tables_;
};

// cmi_fast.data.distinct.distinct; all items are known to lie in 0 ... num_items - 1.
py::tuple distinct(const Array<int64_t>& history, const Array<int64_t>& lengths, const Array<int64_t>& positives,
                   const Array<int64_t>& negatives, int64_t num_items) {
  const int64_t batch = history.shape(0), width = history.shape(1);
  Array<int64_t> history_places({batch, width}), positive_places(batch), negative_places(batch);
  DistinctItems items(num_items);
  int64_t count;
  {
    const int64_t* const from[] = {history.data(), positives.data(), negatives.data(), lengths.data()};
    int64_t* const to[] = {history_places.mutable_data(), positive_places.mutable_data(),
                           negative_places.mutable_data()};
    py::gil_scoped_release others_run;
    for (int64_t b = 0; b < batch; ++b) {
      for (int64_t i = 0; i < from[3][b]; ++i) items.add(from[0][b * width + i]);
      items.add(from[1][b]);
      items.add(from[2][b]);
    }
    count = items.count();
    for (int64_t b = 0; b < batch; ++b) {
      for (int64_t i = 0; i < width; ++i) {
        to[0][b * width + i] = i < from[3][b] ? items.place(from[0][b * width + i]) : 0;
      }
      to[1][b] = items.place(from[1][b]);
      to[2][b] = items.place(from[2][b]);
    }
  }
  Array<int64_t> rows(count);
  items.list(rows.mutable_data());
  return py::make_tuple(rows, history_places, positive_places, negative_places);
}

PYBIND11_MODULE(_sampler, module) {
  module.doc() = "cmi_fast.data.draws, compiled.";
  auto held = [](const char* name) { return py::arg(name).noconvert(); };
  py::class_<Draws>(module, "Draws", "The same draws as cmi_fast.data.draws.Draws.")
      .def(py::init<Array<int64_t>, Array<int32_t>, Array<int64_t>, Array<int64_t>, Array<int64_t>, Array<int64_t>,
                    Array<int64_t>, Array<int64_t>, int64_t, double, bool, bool>(),
           held("offsets"), held("items"), held("starts"), held("counts"), held("catalogue"), held("unplayed"),
           held("played_starts"), held("unplayed_below"), py::arg("max_history"), py::arg("view_share"),
           py::arg("disjoint_views"), py::arg("chosen_per_user"))
      .def("draw", &Draws::draw, py::arg("epoch"), py::arg("first"), py::arg("count"));
  module.def("distinct", &distinct, held("history"), held("lengths"), held("positives"), held("negatives"),
             py::arg("num_items"));
}

}  // namespace
}  // namespace cmi_fast
