// Which kernels this machine runs.
#pragma once

#include <vector>

#include "kernels/kernels.h"

namespace vidkv {

// All kernels in this build, the slowest first; those this machine cannot run are in the list too.
struct KernelChoice {
    const Kernels * kernels;
    bool (*supported)();
};
const std::vector<KernelChoice> & kernel_choices();

// The kernels in use: the fastest supported, or what VIDKV_FORCE_ISA asked for at the first call.
const Kernels & active_kernels();

// "" or one line on why VIDKV_FORCE_ISA was ignored.
const char * kernels_error();

} // namespace vidkv
