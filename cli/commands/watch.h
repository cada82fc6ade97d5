// What ask and chat share: their options, and a model that has watched a video.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "engine/kv_choice.h"
#include "engine/model.h"
#include "engine/session.h"
#include "options.h"
#include "progress.h"

namespace vidkv::cli {

struct AskOptions {
    Options common;
    std::vector<std::string> videos, questions;
    std::string save, load;
    double protect = 0;
    bool json = false;
    bool no_cache = false; // of watched videos

    // The preset of that name, with --protect.
    KvChoice kv(const std::string & name) const;
};

// The options that ask and chat have both.
void add_shared(CLI::App & app, AskOptions & options);

// A loaded model and a session with the video in its cache.
struct Watched {
    std::unique_ptr<Model> model;
    std::unique_ptr<Session> session;
    KvChoice kv;
    double read_seconds = 0; // spent on the video's frames and visual tokens
    bool from_cache = false; // of watched videos
    Manifest manifest;       // of the video, for another file

    void save(const std::string & path) const { session->save(path, manifest); }
};
Watched watch(AskOptions & options, const std::vector<std::string> & questions, Progress & progress);

// The line on standard error after the answers.
void print_summary(const Watched & watched);
// Most memory this process has held, in bytes.
uint64_t peak_bytes();

} // namespace vidkv::cli
