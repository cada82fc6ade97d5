// What a report must say about a measurement besides its figures.
#pragma once

#include <nlohmann/json.hpp>

namespace vidkv::cli {

// {"version", "cpu", "date" (UTC), "command"} of this process.
nlohmann::ordered_json run_record();

} // namespace vidkv::cli
