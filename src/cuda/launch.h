// From the arguments of the C API to what kernels are told: checks, sizes, and how the work is cut for a device.
#pragma once

#include <cstdint>
#include <memory>

#include "cuda/params.h"
#include "vidkv/cuda.h"

namespace vidkv::cuda {

struct Device {
    int multiprocessors;
    int shared_bytes; // that one block may have
    int most_warps;   // of a block, with one row tile; with two it is half
};

struct Launch {
    AttentionParams params;
    int row_tiles; // NT of the kernels
    int items;     // row blocks of all KV heads of all sequences
    int blocks, threads, shared_bytes;
    uint64_t counter_bytes, workspace_bytes;
};

// What the kernels can read; says why not.
vidkv_status check_format(const vidkv_params & params, int head_dim);

// One launch for the sequences from `first` on, as many as fit in it. Pointers to workspace and tables are left to the caller.
vidkv_status plan_launch(const vidkv_cuda_attention_args & args, int first, const Device & device, Launch & out);

// The places of counters and parts in a workspace.
void place_workspace(Launch & launch, void * workspace);

std::unique_ptr<LevelTables> make_level_tables();

} // namespace vidkv::cuda
