// ggml's headers for back-ends, and what differs between the two back-end API versions this plug-in builds for.
#pragma once

#include "ggml-backend.h"
#include "ggml.h"

#include "ggml-backend-impl.h" // the tables of functions a back-end fills in
#include "ggml-impl.h"         // GGML_LOG_*

#if GGML_BACKEND_API_VERSION != 2 && GGML_BACKEND_API_VERSION != 3
#error "libggml-vidkv builds for ggml back-end API version 2 or 3; this ggml has another one"
#endif

// Version 3 hands a buffer type the whole list of tensors to allocate; with version 2 the list is pieced together from the
// get_alloc_size calls that precede an allocation (kv_allocation.cpp).
#define VIDKV_GGML_ALLOCATES_LISTS (GGML_BACKEND_API_VERSION >= 3)

// Version 3 hands each part of a graph to its back-end before it is computed; with version 2 the back-end sees it then.
#define VIDKV_GGML_HANDS_OVER_GRAPHS (GGML_BACKEND_API_VERSION >= 3)
