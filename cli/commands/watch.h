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
    std::string video;
    std::vector<std::string> words; // positional arguments
    std::string save, load;
    double protect = 0;
    bool json = false;

    // --kv with --protect.
    KvChoice kv() const;
};

// The options that ask and chat have both.
void add_shared(CLI::App & app, AskOptions & options);

// A loaded model and a session with the video in its cache.
struct Watched {
    std::unique_ptr<Model> model;
    std::unique_ptr<Session> session;
};
Watched watch(const AskOptions & options, const std::vector<std::string> & questions, Progress & progress);

// The line on standard error after the answers.
void print_summary(const Session & session, const std::string & kv);
// One answer on standard output, as it grows.
void stream_answer(Session & session, const std::string & question);

std::string trim(const std::string & text);

} // namespace vidkv::cli
