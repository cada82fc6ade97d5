// Restoring what bench saved has saved, in processes that do nothing else, as after a restart.
#pragma once

#include <string>
#include <vector>

#include "bench/bench.h"
#include "bench/saved_model.h"

namespace vidkv::cli {

// Such a process: restores options.restore several times, prints a line of JSON, and holds the cache until it is killed.
[[noreturn]] void hold_restored(const SavedOptions & options);

// Two of them, the second beside the first. wanted: the logits of the cache that was saved.
Json restore_in_two_processes(const SavedOptions & options, const std::string & file, const std::string & model,
                              const std::vector<float> & wanted);

// The same question about a clip of vidkv data, asked twice with the small video model: seconds from the program's start to the
// first byte of each answer. Nothing where options.clip is "none".
Json ask_twice(const SavedOptions & options, const std::string & folder);

} // namespace vidkv::cli
