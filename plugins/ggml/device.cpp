// The tables of functions through which ggml drives the plug-in: registry, device, back-end.
#include "device.h"

#include <cstring>
#include <new>
#include <set>
#include <string>
#include <vector>

#include "host_functions.h"
#include "kv_allocation.h"
#include "kv_buffer.h"
#include "ops.h"
#include "placement.h"
#include "settings.h"

namespace vidkv_ggml {

namespace {

ggml_backend_reg_t registry();

// ---- back-end ----

struct Context {
    HostCpu cpu;
    std::set<Placement *> read; // by attention, and not packed since
};

Context & context_of(ggml_backend_t backend) { return *static_cast<Context *>(backend->context); }

void free_backend(ggml_backend_t backend) {
    delete &context_of(backend);
    delete backend;
}

ggml_status compute_graph(ggml_backend_t backend, ggml_cgraph * graph) {
    Context & context = context_of(backend);
    if (!prepare_stores(graph)) return context.cpu.compute(graph);
    for (int i = 0; i < ggml_graph_n_nodes(graph); ++i) {
        ggml_tensor * node = ggml_graph_node(graph, i);
        if ((node->flags & GGML_TENSOR_FLAG_COMPUTE) == 0) continue;
        try {
            const bool writes = node->op == GGML_OP_SET_ROWS;
            ggml_status status = writes ? place_rows(graph, i, context.cpu.threads()) : GGML_STATUS_SUCCESS;
            if (status == GGML_STATUS_SUCCESS) status = compute_op(node, context.cpu);
            if (status != GGML_STATUS_SUCCESS) return status;
            const KvStore * keys = node->op == GGML_OP_FLASH_ATTN_EXT ? store_of(node->src[1]) : nullptr;
            if (keys && keys->placement()) context.read.insert(keys->placement());
        } catch (const std::bad_alloc &) {
            GGML_LOG_ERROR("vidkv: not enough memory for %s\n", ggml_op_name(node->op));
            return GGML_STATUS_ALLOC_FAILED;
        }
    }
    return GGML_STATUS_SUCCESS;
}

#if VIDKV_GGML_HANDS_OVER_GRAPHS
// The scheduler hands over a part of a graph, at the latest when it plans its memory: what is to be said of the cache is said then.
void take_over(ggml_backend_t, ggml_cgraph * graph, ggml_backend_graph_optimize_params *) {
    try {
        prepare_stores(graph);
    } catch (const std::bad_alloc &) { // met again when the graph is computed
    }
}
#endif

// The host wants the results: this batch has been attended to, and what became old by it is packed before the next one is
// waited for. A failure is met again, and told, by the next batch's first write.
void finish_batch(ggml_backend_t backend) {
    Context & context = context_of(backend);
    if (context.read.empty()) return;
    try {
        for (Placement * placement : Placement::live()) { // others are gone with their cache
            if (!context.read.contains(placement) || !placement->is_batch_attended()) continue;
            placement->seal_step(context.cpu.threads());
            context.read.erase(placement);
        }
    } catch (const std::bad_alloc &) { // what is due stays due
    }
}

ggml_guid_t guid() {
    static ggml_guid id = {0x9d, 0x1e, 0x52, 0x76, 0x69, 0x64, 0x4b, 0x56, 0xa3, 0x40, 0x0c, 0x7f, 0x11, 0xd8, 0x5b, 0x02};
    return &id;
}

ggml_backend_t init_backend(ggml_backend_dev_t dev, const char *) {
    ggml_backend_i functions{};
    functions.get_name = [](ggml_backend_t) { return device_name; };
    functions.free = free_backend;
    functions.graph_compute = compute_graph;
    functions.synchronize = finish_batch;
#if VIDKV_GGML_HANDS_OVER_GRAPHS
    functions.graph_optimize = take_over;
#endif
    return new ggml_backend{guid(), functions, dev, new Context};
}

void set_threads(ggml_backend_t backend, int threads) {
    context_of(backend).cpu.set_threads(threads);
    set_seal_threads(threads);
}

// ---- device ----

void get_memory(ggml_backend_dev_t, size_t * free, size_t * total) {
    *free = *total = 0;
    if (ggml_backend_dev_t cpu = host_cpu_device()) ggml_backend_dev_memory(cpu, free, total);
}

// A GPU, to ggml: the kind of device whose memory llama.cpp gives layers and their KV cache to.
enum ggml_backend_dev_type get_type(ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_GPU; }

const char * get_description(ggml_backend_dev_t) { return "packed KV cache in host memory"; }

void get_properties(ggml_backend_dev_t dev, ggml_backend_dev_props * properties) {
    *properties = {};
    properties->name = device_name;
    properties->description = get_description(dev);
    properties->type = get_type(dev);
    get_memory(dev, &properties->memory_free, &properties->memory_total);
    properties->caps.mmap_support = true;
}

bool device_supports_op(ggml_backend_dev_t, const ggml_tensor * op) {
    try {
        return supports_op(op);
    } catch (const std::bad_alloc &) {
        return false;
    }
}

bool supports_buffer_type(ggml_backend_dev_t, ggml_backend_buffer_type_t type) {
    return type == store_buffer_type() || ggml_backend_buft_is_host(type);
}

ggml_backend_device make_device() {
    ggml_backend_device made{};
    made.iface.get_name = [](ggml_backend_dev_t) { return device_name; };
    made.iface.get_description = get_description;
    made.iface.get_memory = get_memory;
    made.iface.get_type = get_type;
    made.iface.get_props = get_properties;
    made.iface.init_backend = init_backend;
    made.iface.get_buffer_type = [](ggml_backend_dev_t) { return default_buffer_type(); };
    made.iface.supports_op = device_supports_op;
    made.iface.supports_buft = supports_buffer_type;
    made.reg = registry();
    return made;
}

// ---- registry ----

void * get_proc_address(ggml_backend_reg_t, const char * name) {
    if (std::strcmp(name, "ggml_backend_set_n_threads") == 0) return reinterpret_cast<void *>(set_threads);
    return host_function(name);
}

ggml_backend_reg make_registry() {
    ggml_backend_reg made{};
    made.api_version = GGML_BACKEND_API_VERSION;
    made.iface.get_name = [](ggml_backend_reg_t) -> const char * { return VIDKV_REG_NAME; };
    made.iface.get_device_count = [](ggml_backend_reg_t) -> size_t { return 1; };
    made.iface.get_device = [](ggml_backend_reg_t, size_t) { return device(); };
    made.iface.get_proc_address = get_proc_address;
    return made;
}

ggml_backend_reg_t registry() {
    static ggml_backend_reg made = make_registry();
    return &made;
}

} // namespace

ggml_backend_dev_t device() {
    static ggml_backend_device made = make_device();
    return &made;
}

} // namespace vidkv_ggml

// What a host looks for in the plug-in. Null, after one line in the log, if the environment asks for the impossible: the
// host then goes on without the device, and refuses --device VIDKV.
extern "C" __attribute__((visibility("default"))) ggml_backend_reg_t ggml_backend_init(void) {
    const std::string error = vidkv_ggml::load_settings_from_environment();
    if (!error.empty()) {
        GGML_LOG_ERROR("vidkv: %s\n", error.c_str());
        return nullptr;
    }
    if (*vidkv_isa_error()) GGML_LOG_WARN("vidkv: %s\n", vidkv_isa_error());
    return vidkv_ggml::registry();
}
