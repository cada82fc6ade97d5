// vidkv eval answers: where a long answer through a packed cache first differs from the f16 cache's.
#include <algorithm>
#include <cstdio>
#include <iostream>
#include <memory>

#include <nlohmann/json.hpp>

#include "parse_tokens.h"
#include "engine/log_softmax.h"
#include "engine/logs.h"
#include "error.h"
#include "eval/contender.h"
#include "eval/divergence.h"
#include "eval/facts.h"
#include "eval/model_under_test.h"
#include "eval/text_options.h"
#include "eval/text_prefix.h"
#include "measurements.h"
#include "progress.h"
#include "run_record.h"

namespace vidkv::cli {

namespace {

using Json = nlohmann::ordered_json;

constexpr const char * QUESTION = "Explain the file above in detail, one part after the other, with its numbers.";
constexpr int64_t QUESTION_TOKENS = 128;
constexpr size_t STEP = 32; // tokens of an answer that are read at once

constexpr const char * FOOTER = R"(
A file of that many tokens is cut from the text and read once into an f16 cache, and the model is asked to explain it: the
answer of the f16 cache is taken token by token, always the likeliest. Then the cache is packed by each codec and given the
same question and answer. The first token where it would have gone on with another one is where its own answer would part from
the f16 cache's. "same" is the share of all tokens that it would have chosen too after the f16 cache's words; KLD is the mean
KL divergence, in nats. Pages are packed as the answer grows, as a user's are; those of simulated codecs (vidkv eval kl --help)
are not, which favours them. f16 is measured too: what it shows is the noise of reading an answer in batches.

EXAMPLE
  vidkv eval answers --model qwen2.5-coder-1.5b --tokens 4k --count 3 --kv t2.2,t1.65,q4_0)";

struct AnswersOptions : FileOptions {
    std::string tokens = "4k";
    int predict = 512;
};

// The f16 cache's answer, and the distributions that it was taken from.
struct Reference {
    std::vector<llama_token> answer;
    std::vector<float> distributions; // [answer][vocabulary]
};

// One codec.
struct Result {
    Contender contender;
    std::vector<int64_t> first; // of each file: the first token that differs; the answer's length if none does
    std::vector<int64_t> lengths;
    Divergence all;
};

std::vector<Contender> chosen_contenders(const AnswersOptions & options) {
    std::vector<Contender> contenders;
    for (const std::string & name : options.kv) contenders.push_back(parse_contender(name));
    return contenders;
}

class LongAnswer {
  public:
    LongAnswer(const Model & model, const std::string & text, const AnswersOptions & options, int64_t number,
               Progress & progress);
    void measure(Result & result) const;

  private:
    Reference greedy() const;
    std::vector<float> row(const TextContext & context, int32_t i) const;

    const Model & model_;
    int predict_;
    int64_t vocabulary_;
    std::vector<llama_token> question_;
    std::unique_ptr<TextPrefix> prefix_;
    Reference reference_;
};

LongAnswer::LongAnswer(const Model & model, const std::string & text, const AnswersOptions & options, int64_t number,
                       Progress & progress)
    : model_(model), predict_(options.predict), vocabulary_(llama_vocab_n_tokens(model.vocab())),
      question_(model.tokenize(model.format(QUESTION).after, false)) {
    const auto tokens = static_cast<size_t>(parse_tokens(options.tokens));
    const std::string file = plant(text, {}, options.seed, number, 8 * tokens);
    std::vector<llama_token> prompt = model.tokenize(model.format("").before + "A file:\n\n" + file, true);
    prompt.resize(std::min(prompt.size(), tokens));
    prefix_ = std::make_unique<TextPrefix>(model, prompt, static_cast<int64_t>(prompt.size()) + QUESTION_TOKENS + predict_,
                                           options.threads, [&](int64_t done) {
                                               progress.show("reading file " + std::to_string(number), done,
                                                             static_cast<int64_t>(prompt.size()), "tokens");
                                           });
    progress.show("answering", 0, 0, "");
    reference_ = greedy();
}

std::vector<float> LongAnswer::row(const TextContext & context, int32_t i) const {
    std::vector<float> row(context.logits(i), context.logits(i) + vocabulary_);
    log_softmax(row.data(), vocabulary_);
    return row;
}

Reference LongAnswer::greedy() const {
    TextContext context = prefix_->packed(parse_contender("f16"));
    context.append(question_, false);
    Reference reference;
    for (int i = 0; i < predict_; ++i) {
        const std::vector<float> scores = row(context, -1);
        const auto next = static_cast<llama_token>(std::max_element(scores.begin(), scores.end()) - scores.begin());
        reference.distributions.insert(reference.distributions.end(), scores.begin(), scores.end());
        reference.answer.push_back(next);
        if (llama_vocab_is_eog(model_.vocab(), next)) break; // that it ends here is part of it
        context.append(std::span(&next, 1), false);
    }
    return reference;
}

void LongAnswer::measure(Result & result) const {
    TextContext context = prefix_->packed(result.contender);
    context.let_seal();
    context.append(question_, false);
    const auto n = static_cast<int64_t>(reference_.answer.size());
    Divergence one;
    int64_t first = n;
    const auto compare = [&](int32_t logits) {
        const std::vector<float> scores = row(context, logits);
        one.add(&reference_.distributions[static_cast<size_t>(one.tokens * vocabulary_)], scores.data(), vocabulary_);
        if (first == n && one.agreed < static_cast<double>(one.tokens)) first = one.tokens - 1;
    };
    compare(-1);
    for (size_t at = 0; at + 1 < reference_.answer.size(); at += STEP) {
        const size_t count = std::min(STEP, reference_.answer.size() - 1 - at);
        context.append(std::span(&reference_.answer[at], count), true);
        for (size_t i = 0; i < count; ++i) compare(static_cast<int32_t>(i));
    }
    result.all.add(one);
    result.first.push_back(first);
    result.lengths.push_back(n);
}

// Of an even number, the lower of the two in the middle.
int64_t median(std::vector<int64_t> numbers) {
    std::sort(numbers.begin(), numbers.end());
    return numbers[(numbers.size() - 1) / 2];
}

void print_table(const std::vector<Result> & results) {
    std::printf("%-14s %13s %8s %9s %8s %8s\n", "codec", "first, median", "soonest", "never", "same %", "KLD");
    for (const Result & result : results) {
        int never = 0;
        for (size_t i = 0; i < result.first.size(); ++i) never += result.first[i] == result.lengths[i];
        std::printf("%-14s %13ld %8ld %3d of %-3zu %7.1f %8.4f\n", result.contender.name.c_str(),
                    static_cast<long>(median(result.first)),
                    static_cast<long>(*std::min_element(result.first.begin(), result.first.end())), never,
                    result.first.size(), 100 * result.all.top1(), result.all.mean_kl());
    }
}

Json report(const Result & result) {
    return {{"name", result.contender.name}, {"first_difference", result.first}, {"answer_tokens", result.lengths},
            {"same", result.all.top1()},     {"kld", result.all.mean_kl()},      {"kld_p99", result.all.kl_quantile(0.99)}};
}

void run_answers(const AnswersOptions & options) {
    std::vector<Result> results;
    for (const Contender & contender : chosen_contenders(options)) results.push_back({contender, {}, {}, {}});
    if (parse_tokens(options.tokens) < 256) throw UsageError("--tokens " + options.tokens + ": 256 is the least");
    const Text text = options.words();
    const std::string named = options.model_file();
    capture_logs(options.verbose);
    Progress progress(options.json);
    const ModelUnderTest loaded(named, false, options.threads, progress);
    for (const Result & result : results) check_fits(result.contender.kv, *loaded.model);
    for (int64_t number = 0; number < options.count; ++number) {
        const LongAnswer answer(*loaded.model, text.words, options, number, progress);
        for (Result & result : results) {
            progress.show("file " + std::to_string(number) + ", " + result.contender.name, 0, 0, "");
            answer.measure(result);
        }
    }
    progress.clear();
    if (!options.json) return print_table(results);
    Json reports = Json::array();
    for (const Result & result : results) reports.push_back(report(result));
    std::cout << Json({{"run", run_record()},
                       {"model", named},
                       {"text", text.name},
                       {"tokens", parse_tokens(options.tokens)},
                       {"presets", reports}})
                     .dump(2)
              << "\n";
}

} // namespace

void add_eval_answers(CLI::App & eval, Command & run) {
    auto options = std::make_shared<AnswersOptions>();
    CLI::App * app = eval.add_subcommand("answers", "Where a long answer first differs from the f16 cache's");
    options->add_files(*app);
    app->add_option("--tokens", options->tokens, "length of a file (default 4k)");
    app->add_option("-n,--predict", options->predict, "at most this many tokens an answer (default 512)")
        ->check(CLI::Range(1, 100000));
    options->add_run(*app);
    app->footer(FOOTER);
    app->callback([options, &run] { run = [options] { run_answers(*options); }; });
}

} // namespace vidkv::cli
