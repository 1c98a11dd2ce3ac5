// Routing of items to interest capsules: what is computed is in the two headers, one for maps that are the same at
// every place of a sequence and one for others at each.
#include "cpu/kernels/capsule_routing.h"

#include "cpu/kernels/capsules_by_place.h"
#include "cpu/kernels/capsules_everywhere.h"

namespace cmi_fast {
namespace {

template <class T>
constexpr CapsuleRoutingKernelPair<T> PAIR{CapsulesEverywhere<T>::KERNEL, CapsulesByPlace<T>::KERNEL,
                                           CapsuleSteps<T>::cotangents};

}  // namespace

namespace CMI_FAST_LEVEL {
extern const CapsuleRoutingKernels capsule_routing;
const CapsuleRoutingKernels capsule_routing{PAIR<float>, PAIR<double>};
}  // namespace CMI_FAST_LEVEL

}  // namespace cmi_fast
