// The graph operations on KV stores: which the device accepts, and how it computes them.
#pragma once

#include "compat.h"
#include "host_cpu.h"

namespace vidkv_ggml {

// May tell a store its head_dim, and may turn a cache into plain memory when the graph does to it what a store cannot do.
bool supports_op(const ggml_tensor * op);

// Whether any node of the graph touches a store; a graph without one is all the host CPU's.
bool touches_store(ggml_cgraph * graph);

// Node `index` of a graph writes rows to a store: gives them their places, by the mask of the attention that follows.
ggml_status place_rows(ggml_cgraph * graph, int index, int threads);

// Computes a node that supports_op accepted.
ggml_status compute_op(ggml_tensor * node, HostCpu & cpu);

} // namespace vidkv_ggml
