// ggml's objects, freed by their owner.
#pragma once

#include <memory>

#include "ggml-backend.h"
#include "ggml.h"

namespace vidkv::cli {

struct ContextFree {
    void operator()(ggml_context * context) const { ggml_free(context); }
};
struct BufferFree {
    void operator()(ggml_backend_buffer * buffer) const { ggml_backend_buffer_free(buffer); }
};
struct BackendFree {
    void operator()(ggml_backend * backend) const { ggml_backend_free(backend); }
};
using Context = std::unique_ptr<ggml_context, ContextFree>;
using Buffer = std::unique_ptr<ggml_backend_buffer, BufferFree>;
using Backend = std::unique_ptr<ggml_backend, BackendFree>;

} // namespace vidkv::cli
