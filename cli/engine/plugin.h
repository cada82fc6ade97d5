// The ggml plug-in that keeps packed caches, loaded beside this program. See ggml-vidkv.h for what its functions do.
#pragma once

#include <cstdint>
#include <vector>

#include "ggml-backend.h"
#include "ggml-vidkv.h"

namespace vidkv::cli {

// The plug-in's device; loads the plug-in on the first call. Throws Error if it cannot be had.
ggml_backend_dev_t kv_device();
// How the next context's cache is packed.
void configure_plugin(const vidkv_params & params, const std::vector<vidkv_layer_loss> & losses = {});
// What the plug-in's stores hold now.
vidkv_store_stats plugin_stats();

// Seconds that this process has packed pages so far.
double packing_seconds();

// Saving a sequence as it is.
const vidkv_state & plugin_state();

// Packs what is old enough, held or not.
void seal_now(int threads);
// These cells of all values are the ones to protect.
void protect_cells(const std::vector<int64_t> & cells);

// The stores of the one live cache; an index into it is a store's number. Throws Error.
const vidkv_inspector & inspector();
std::vector<vidkv_kv_info> live_stores();
// Throws Error for a line of complaint.
void check_plugin(const char * complaint);

// Nothing is sealed while one of these lives.
class HeldSealing {
  public:
    HeldSealing();
    ~HeldSealing();
    HeldSealing(const HeldSealing &) = delete;
    HeldSealing & operator=(const HeldSealing &) = delete;
};

} // namespace vidkv::cli
