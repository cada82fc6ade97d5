// Options that several commands share, and what follows from them.
#pragma once

#include <limits>
#include <string>

#include <CLI/CLI.hpp>

#include "engine/encode.h"
#include "engine/hub.h"
#include "engine/model.h"
#include "engine/session.h"

namespace vidkv::cli {

struct Options {
    std::string model, mmproj; // "": the small video model
    HubModel hub;              // instead of model; name "": none
    std::string kv;            // "": not said
    std::string system;
    double fps = 0; // 0: what suits the model
    int64_t frames = 0;
    double start = 0, end = std::numeric_limits<double>::infinity(); // seconds
    double timestamps = -1;                                          // seconds; < 0: what suits the model
    int frame_tokens = 0;                                            // 0: what suits the model
    SessionOptions session;
    bool accept_damaged = false;
    bool verbose = false;

    void add_model(CLI::App & app);
    void add_hub(CLI::App & app);
    void add_sampling(CLI::App & app); // which frames are taken
    void add_video(CLI::App & app);    // these, and how a model sees them
    void add_answer(CLI::App & app);

    // --kv, or VIDKV_KV, or the default.
    std::string kv_name() const;
    // -hf: fetches the model unless it is there; model and mmproj then name its files.
    void fetch(Progress & progress);

    ModelOptions model_options() const;
    Sampling sampling(const ModelFiles & files = {}) const; // files: of the model that it has to suit
    double timestamp_seconds(const ModelOptions & loaded) const;
};

// Cores this process may use.
int available_cores();

} // namespace vidkv::cli
