// Options that several commands share, and what follows from them.
#pragma once

#include <string>

#include <CLI/CLI.hpp>

#include "video/encode.h"
#include "engine/model.h"
#include "engine/session.h"

namespace vidkv::cli {

struct Options {
    std::string model, mmproj; // "": the small video model
    std::string kv = DEFAULT_KV;
    double fps = 4;
    int64_t frames = 0;
    double timestamps = -1; // seconds; < 0: what suits the model
    int frame_tokens = 0;   // 0: what suits the model
    SessionOptions session;
    bool accept_damaged = false;
    bool verbose = false;

    void add_model(CLI::App & app);
    void add_video(CLI::App & app);
    void add_answer(CLI::App & app);

    ModelOptions model_options() const;
    WatchOptions watch_options(const Model & model) const;
};

// Cores this process may use.
int available_cores();

} // namespace vidkv::cli
