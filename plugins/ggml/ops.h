// The graph operations on KV stores: which the device accepts, and how it computes them.
#pragma once

#include "compat.h"
#include "host_cpu.h"

namespace vidkv_ggml {

// May tell a store its head_dim, and may turn a cache into plain memory when the graph does to it what a store cannot do.
bool supports_op(const ggml_tensor * op);

// Computes a node that supports_op accepted.
ggml_status compute_op(ggml_tensor * node, HostCpu & cpu);

} // namespace vidkv_ggml
