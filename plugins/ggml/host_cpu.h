// The host's own CPU back-end, for what this device accepts but does not do itself.
#pragma once

#include "compat.h"

namespace vidkv_ggml {

// Null if the host has no CPU back-end (yet).
ggml_backend_dev_t host_cpu_device();

bool host_cpu_supports(const ggml_tensor * op);

class HostCpu {
  public:
    HostCpu();
    ~HostCpu();
    HostCpu(const HostCpu &) = delete;
    HostCpu & operator=(const HostCpu &) = delete;

    void set_threads(int threads);
    int threads() const { return threads_; }

    // Computes one node whose sources are computed.
    ggml_status compute(ggml_tensor * node);
    ggml_status compute(ggml_cgraph * graph);

  private:
    ggml_status start();

    ggml_backend_t backend_ = nullptr; // made when first needed
    int threads_; // what the host said last, to any back-end of this device: a vision tower's is told nothing
};

} // namespace vidkv_ggml
