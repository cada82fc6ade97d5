// The graph operations on KV stores: which the device accepts, and how it computes them.
#pragma once

#include "compat.h"
#include "host_cpu.h"

namespace vidkv_ggml {

// Whatever is done to a store is this device's work. Only answers: asking changes nothing.
bool supports_op(const ggml_tensor * op);

// A graph, or a part of one, is this device's to compute: tells stores their head_dim, and turns those into plain memory to which the
// graph does what a store cannot do. Whether any node touches a store then; a graph without one is all the host CPU's.
bool prepare_stores(ggml_cgraph * graph);

// Node `index` of a graph writes rows to a store: gives them their places, by the mask of the attention that follows.
ggml_status place_rows(ggml_cgraph * graph, int index, int threads);

// Computes a node that supports_op accepted.
ggml_status compute_op(ggml_tensor * node, HostCpu & cpu);

} // namespace vidkv_ggml
