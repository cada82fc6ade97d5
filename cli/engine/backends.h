// ggml's CPU back-end where the engine has it as modules (GGML_BACKEND_DL).
#pragma once

namespace vidkv::cli {

// Loads the module that suits this processor best from beside libggml.so; does nothing where the back-end is built in.
// Throws Error if there is none. Call it before a model is loaded.
void load_cpu_backend();

} // namespace vidkv::cli
