#include "host_cpu.h"

#include <algorithm>
#include <atomic>
#include <thread>

namespace vidkv_ggml {

namespace {

int default_threads() {
    return std::clamp<int>(static_cast<int>(std::thread::hardware_concurrency()), 1, GGML_DEFAULT_N_THREADS);
}

std::atomic<int> threads_said_last{0};

} // namespace

ggml_backend_dev_t host_cpu_device() { return ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU); }

bool host_cpu_supports(const ggml_tensor * op) {
    ggml_backend_dev_t cpu = host_cpu_device();
    return cpu && ggml_backend_dev_supports_op(cpu, op);
}

HostCpu::HostCpu() : threads_(threads_said_last ? threads_said_last.load() : default_threads()) {}

HostCpu::~HostCpu() { ggml_backend_free(backend_); }

ggml_status HostCpu::start() {
    if (backend_) return GGML_STATUS_SUCCESS;
    ggml_backend_dev_t cpu = host_cpu_device();
    backend_ = cpu ? ggml_backend_dev_init(cpu, nullptr) : nullptr;
    if (!backend_) {
        GGML_LOG_ERROR("vidkv: the host has no CPU back-end\n");
        return GGML_STATUS_FAILED;
    }
    set_threads(threads_);
    return GGML_STATUS_SUCCESS;
}

void HostCpu::set_threads(int threads) {
    threads_ = threads;
    threads_said_last = threads;
    if (!backend_) return;
    ggml_backend_reg_t registry = ggml_backend_dev_backend_reg(ggml_backend_get_device(backend_));
    void * function = ggml_backend_reg_get_proc_address(registry, "ggml_backend_set_n_threads");
    if (function) reinterpret_cast<ggml_backend_set_n_threads_t>(function)(backend_, threads);
}

ggml_status HostCpu::compute(ggml_cgraph * graph) {
    if (ggml_status status = start(); status != GGML_STATUS_SUCCESS) return status;
    return ggml_backend_graph_compute(backend_, graph);
}

ggml_status HostCpu::compute(ggml_tensor * node) {
    constexpr size_t nodes = 1;
    ggml_context * context = ggml_init({ggml_graph_overhead_custom(nodes, false), nullptr, true});
    if (!context) return GGML_STATUS_ALLOC_FAILED;
    ggml_cgraph * graph = ggml_new_graph_custom(context, nodes, false);
    ggml_graph_add_node(graph, node);
    const ggml_status status = compute(graph);
    ggml_free(context);
    return status;
}

} // namespace vidkv_ggml
