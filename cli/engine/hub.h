// -hf: a model by its name on Hugging Face, through llama.cpp's own download code and into its cache folder.
#pragma once

#include <string>

#include "paths.h"
#include "progress.h"

namespace vidkv::cli {

struct HubModel {
    std::string name;     // USER/MODEL or USER/MODEL:QUANTIZATION
    bool offline = false; // only what was fetched before
    bool verbose = false;
};

// The files of a model, fetched unless they are there: its GGUF (all parts, the first is returned) and, unless one is
// given, the mmproj that suits it best. HF_ENDPOINT, HF_TOKEN and LLAMA_CACHE are llama.cpp's. Throws Error with one line;
// Interrupted by Ctrl-C, and what was fetched by then is gone on with the next time.
ModelFiles fetch_model(const HubModel & model, const std::string & mmproj, Progress & progress);

} // namespace vidkv::cli
