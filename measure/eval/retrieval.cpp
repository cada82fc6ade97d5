// vidkv eval retrieval: facts in a long file, asked about at its end, through each codec's cache.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <map>
#include <memory>
#include <optional>

#include <nlohmann/json.hpp>

#include "parse_tokens.h"
#include "engine/log_softmax.h"
#include "engine/logs.h"
#include "error.h"
#include "eval/contender.h"
#include "eval/divergence.h"
#include "eval/exercises.h"
#include "eval/facts.h"
#include "eval/model_under_test.h"
#include "eval/retrieval_log.h"
#include "eval/text_options.h"
#include "eval/text_prefix.h"
#include "measurements.h"
#include "progress.h"
#include "run_record.h"
#include "text.h"

namespace vidkv::cli {

namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t QUESTION_TOKENS = 128; // most of a question in the model's chat format
constexpr size_t COMPARED_TOKENS = 64;   // of an answer: their distributions are kept

constexpr const char * FOOTER = R"(
A file of the length asked for is cut from the text, and what is asked about is planted in it, spread over its length. The file is
read once into an f16 cache. For each codec that cache is packed, all but the newest 128 tokens and the first 4, and every
question is asked by itself at the end; answers are greedy.

  --set facts      a constant, a service's port, what a function returns, with made-up names and numbers, each on a line of its own.
                   An answer is right if the first number in it is the fact's. Questions and answers stay in f16.
  --set exercises  what a function returns, a nested setting, lists in their order, some of them with a condition, sums and products,
                   short functions to repeat; and tables and functions of 300 to 500 tokens to copy. An answer is right if its last
                   number, its names, its words or its code are the ones expected. Pages are packed as an answer grows, as a
                   user's are; those of simulated codecs (vidkv eval kl --help) are not, which favours them.

f16 is always measured. "lost" and "gained" count the questions that f16 has right and the codec wrong, and the reverse; the
difference has the standard error of these pairs, which is what tells codecs apart. KLD is the mean KL divergence of the
next-token distributions over the f16 cache's answer (its first 64 tokens), in nats. "same" counts the answers that are the f16
cache's, token by token; "parts" is where the others first differ from it, the median. Codecs are those of vidkv eval kl --help.

--log FILE keeps each sample's answers as they come, a line of JSON each. The same command goes on where it was stopped; a
larger --count, other --tokens and more codecs may be asked for.

EXAMPLES
  vidkv eval retrieval --model qwen2.5-coder-1.5b --tokens 8k,16k --count 4 --log retrieval.jsonl
  vidkv eval retrieval --model qwen2.5-coder-1.5b --set exercises --tokens 4k --count 5 --log exercises.jsonl)";

struct RetrievalOptions : FileOptions {
    std::string log;
    std::string set = "facts";
    std::vector<std::string> tokens = {"8k"};
    int questions = 0, max_tokens = 0; // 0: as many as the set has by itself

    bool exercises() const { return set == "exercises"; }
    void fill_in() {
        if (questions == 0) questions = exercises() ? 10 : 8;
        if (max_tokens == 0) max_tokens = exercises() ? 512 : 16;
    }
};

std::vector<Contender> chosen_contenders(const RetrievalOptions & options) {
    std::vector<Contender> contenders = {parse_contender("f16")};
    for (const std::string & name : options.kv)
        if (name != "f16") contenders.push_back(parse_contender(name));
    return contenders;
}

// What a cache answered, token by token.
struct TokenAnswer {
    std::vector<llama_token> tokens;
    std::vector<std::vector<float>> distributions; // that the first of them were taken from, or what follows the last
};

std::vector<float> distribution(const TextContext & context, int64_t vocabulary) {
    std::vector<float> row(context.logits(-1), context.logits(-1) + vocabulary);
    log_softmax(row.data(), vocabulary);
    return row;
}

llama_token likeliest(const std::vector<float> & row) {
    return static_cast<llama_token>(std::max_element(row.begin(), row.end()) - row.begin());
}

int64_t same_tokens(const TokenAnswer & a, const TokenAnswer & b) {
    return std::mismatch(a.tokens.begin(), a.tokens.end(), b.tokens.begin(), b.tokens.end()).first - a.tokens.begin();
}

// A long file with facts or exercises, read once.
class Sample {
  public:
    Sample(const Model & model, const std::string & text, const RetrievalOptions & options, int64_t tokens, int64_t number,
           Progress & progress);

    // references: filled by the first codec, f16.
    SampleResult ask(const Contender & contender, std::vector<TokenAnswer> & references) const;

  private:
    std::string file(const std::string & text, int64_t tokens) const;
    Answered ask(TextContext & context, const Fact & fact, TokenAnswer & reference) const;
    TokenAnswer greedy(TextContext & context, const std::string & question) const;
    double divergence(TextContext & context, const TokenAnswer & reference, const TokenAnswer & own) const;

    const Model & model_;
    const RetrievalOptions & options_;
    int64_t asked_tokens_, number_, vocabulary_;
    std::vector<Fact> facts_;
    std::unique_ptr<TextPrefix> prefix_;
};

Sample::Sample(const Model & model, const std::string & text, const RetrievalOptions & options, int64_t tokens,
               int64_t number, Progress & progress)
    : model_(model), options_(options), asked_tokens_(tokens), number_(number),
      vocabulary_(llama_vocab_n_tokens(model.vocab())),
      facts_((options.exercises() ? make_exercises : make_facts)(options.seed, number, options.questions)) {
    const std::string before = model.format("").before;
    const std::vector<llama_token> prompt = model.tokenize(before + "A file:\n\n" + file(text, tokens) + "\n", true);
    const auto length = static_cast<int64_t>(prompt.size());
    prefix_ = std::make_unique<TextPrefix>(
        model, prompt, length + QUESTION_TOKENS + options.max_tokens, options.threads,
        [&](int64_t done) { progress.show("reading sample " + std::to_string(number), done, length, "tokens"); });
}

// As many bytes as make that many tokens, within two in a hundred.
std::string Sample::file(const std::string & text, int64_t tokens) const {
    auto bytes = static_cast<size_t>(4 * tokens);
    for (int i = 0; i < 4; ++i) {
        const auto got = model_.tokenize(plant(text, facts_, options_.seed, number_, bytes), false).size();
        bytes = bytes * static_cast<size_t>(tokens) / std::max<size_t>(1, got);
    }
    return plant(text, facts_, options_.seed, number_, bytes);
}

SampleResult Sample::ask(const Contender & contender, std::vector<TokenAnswer> & references) const {
    std::optional<TextContext> context;
    context.emplace(prefix_->packed(contender));
    SampleResult result;
    result.tokens = asked_tokens_;
    result.sample = number_;
    result.kv = contender.name;
    result.prompt = prefix_->size();
    const Packed packed = measure(contender, prefix_->size(), prefix_->size());
    result.k_bits = packed.k_bits;
    result.v_bits = packed.v_bits;
    result.bytes = packed.bytes;
    references.resize(facts_.size());
    for (size_t i = 0; i < facts_.size(); ++i) {
        if (options_.exercises()) {
            if (i > 0) { // without what the last answer has had packed
                context.reset();
                context.emplace(prefix_->packed(contender));
            }
            context->let_seal();
        }
        result.answers.push_back(ask(*context, facts_[i], references[i]));
    }
    return result;
}

// reference: filled if it is empty.
Answered Sample::ask(TextContext & context, const Fact & fact, TokenAnswer & reference) const {
    const TokenAnswer own = greedy(context, fact.question);
    std::string answer;
    for (const llama_token token : own.tokens) answer += model_.piece(token);
    Answered done{fact.kind, fact.question, fact.answer, trim(answer), fact.depth, is_right(fact, answer), 0};
    done.tokens = done.same = static_cast<int64_t>(own.tokens.size());
    if (reference.distributions.empty()) {
        reference = own;
    } else {
        done.same = same_tokens(own, reference);
        done.kl = divergence(context, reference, own);
    }
    return done;
}

TokenAnswer Sample::greedy(TextContext & context, const std::string & text) const {
    const std::vector<llama_token> question = model_.tokenize(model_.format(text).after, false);
    if (static_cast<int64_t>(question.size()) > QUESTION_TOKENS) throw Error("this model's chat format is too long");
    context.rewind(prefix_->size());
    context.append(question, false);
    TokenAnswer answer;
    while (true) {
        std::vector<float> row = distribution(context, vocabulary_);
        const llama_token next = likeliest(row);
        if (answer.distributions.size() < COMPARED_TOKENS) answer.distributions.push_back(std::move(row));
        const bool whole = answer.tokens.size() == static_cast<size_t>(options_.max_tokens);
        if (whole || llama_vocab_is_eog(model_.vocab(), next)) return answer;
        answer.tokens.push_back(next);
        context.append(std::span(&next, 1), false);
    }
}

// As far as both answers are the same, the distributions are there; from there on the reference's tokens are read.
double Sample::divergence(TextContext & context, const TokenAnswer & reference, const TokenAnswer & own) const {
    Divergence sum;
    const auto n = static_cast<size_t>(same_tokens(own, reference));
    const size_t compared = reference.distributions.size();
    for (size_t i = 0; i < std::min(n + 1, compared); ++i)
        sum.add(reference.distributions[i].data(), own.distributions[i].data(), vocabulary_);
    context.rewind(context.size() - static_cast<int64_t>(own.tokens.size() - n));
    for (size_t i = n; i + 1 < compared; ++i) {
        context.append(std::span(&reference.tokens[i], 1), false);
        sum.add(reference.distributions[i + 1].data(), distribution(context, vocabulary_).data(), vocabulary_);
    }
    return sum.mean_kl();
}

// One codec at one length.
struct Row {
    int64_t tokens = 0;
    std::string kv;
    std::vector<double> right, difference, kl; // of each question; difference from f16
    int lost = 0, gained = 0;
    std::vector<int64_t> parts; // of each answer that is not f16's: its first token that is another one
    double prompt = 0, k_bits = 16, v_bits = 16, bytes = 0; // means
    std::map<std::string, std::vector<double>> by_kind, by_depth;
    int64_t samples = 0;

    void add(const SampleResult & result, const SampleResult & f16);
};

void Row::add(const SampleResult & result, const SampleResult & f16) {
    const auto averaged = [n = static_cast<double>(++samples)](double & mean, double more) { mean += (more - mean) / n; };
    averaged(prompt, static_cast<double>(result.prompt));
    averaged(bytes, static_cast<double>(result.bytes));
    k_bits = result.k_bits;
    v_bits = result.v_bits;
    for (size_t i = 0; i < result.answers.size() && i < f16.answers.size(); ++i) {
        const Answered &one = result.answers[i], &other = f16.answers[i];
        right.push_back(one.right);
        difference.push_back(one.right - other.right);
        kl.push_back(one.kl);
        lost += other.right && !one.right;
        gained += one.right && !other.right;
        if (one.same < std::max(one.tokens, other.tokens)) parts.push_back(one.same);
        by_kind[one.kind].push_back(one.right);
        by_depth[one.depth < 1.0 / 3   ? "first third"
                 : one.depth < 2.0 / 3 ? "second third"
                                       : "last third"]
            .push_back(one.right);
    }
}

// Of an even number, the lower of the two in the middle; -1 of none.
int64_t median(std::vector<int64_t> numbers) {
    std::sort(numbers.begin(), numbers.end());
    return numbers.empty() ? -1 : numbers[(numbers.size() - 1) / 2];
}

std::vector<Row> rows_of(const RetrievalLog & log, const std::vector<int64_t> & lengths,
                         const std::vector<Contender> & contenders, int count) {
    std::vector<Row> rows;
    for (const int64_t tokens : lengths)
        for (const Contender & contender : contenders) {
            Row row;
            row.tokens = tokens;
            row.kv = contender.name;
            for (int64_t sample = 0; sample < count; ++sample)
                row.add(*log.find(tokens, sample, contender.name), *log.find(tokens, sample, "f16"));
            rows.push_back(row);
        }
    return rows;
}

void print_table(const std::vector<Row> & rows) {
    std::printf("%8s %-14s %9s %8s %6s %7s %7s %6s %6s %6s %6s %8s %6s %10s\n", "tokens", "codec", "questions", "right %",
                "+-", "-f16", "+-", "lost", "gained", "same", "parts", "KLD", "bits", "KV KiB");
    for (const Row & row : rows) {
        const Estimate right = estimate(row.right), difference = estimate(row.difference);
        const std::string parts = row.parts.empty() ? "-" : std::to_string(median(row.parts));
        std::printf("%8.0f %-14s %9zu %8.1f %6.1f %7.1f %7.1f %6d %6d %6zu %6s %8.4f %6.2f %10.1f\n", row.prompt,
                    row.kv.c_str(), row.right.size(), 100 * right.mean, 100 * right.error, 100 * difference.mean,
                    100 * difference.error, row.lost, row.gained, row.right.size() - row.parts.size(), parts.c_str(),
                    estimate(row.kl).mean, (row.k_bits + row.v_bits) / 2, row.bytes / 1024);
    }
}

Json shares(const std::map<std::string, std::vector<double>> & groups) {
    Json object = Json::object();
    for (const auto & [name, right] : groups)
        object[name] = {{"accuracy", estimate(right).mean}, {"questions", right.size()}};
    return object;
}

Json row_report(const Row & row) {
    const Estimate right = estimate(row.right), difference = estimate(row.difference);
    return {{"tokens", row.tokens},
            {"prompt_tokens", row.prompt},
            {"name", row.kv},
            {"samples", row.samples},
            {"questions", row.right.size()},
            {"accuracy", right.mean},
            {"accuracy_se", right.error},
            {"difference", difference.mean},
            {"difference_se", difference.error},
            {"lost", row.lost},
            {"gained", row.gained},
            {"same", row.right.size() - row.parts.size()},
            {"parts_median", row.parts.empty() ? Json() : Json(median(row.parts))},
            {"kld", estimate(row.kl).mean},
            {"k_bits", row.k_bits},
            {"v_bits", row.v_bits},
            {"kv_bytes", static_cast<uint64_t>(row.bytes)},
            {"by_kind", shares(row.by_kind)},
            {"by_depth", shares(row.by_depth)}};
}

bool finished(const RetrievalLog & log, const std::vector<Contender> & contenders, int64_t tokens, int64_t sample) {
    return std::all_of(contenders.begin(), contenders.end(),
                       [&](const Contender & contender) { return log.find(tokens, sample, contender.name) != nullptr; });
}

void measure_sample(const Sample & sample, RetrievalLog & log, const std::vector<Contender> & contenders, int64_t tokens,
                    int64_t number, Progress & progress) {
    std::vector<TokenAnswer> references; // f16, the first, is asked again where others are missing
    int64_t step = 0;
    for (const Contender & contender : contenders) {
        const std::string stage = "sample " + std::to_string(number) + ", " + contender.name;
        progress.show(stage, step++, static_cast<int64_t>(contenders.size()), "codecs");
        const bool known = log.find(tokens, number, contender.name) != nullptr;
        if (known && !references.empty()) continue;
        const SampleResult result = sample.ask(contender, references);
        if (!known) log.add(result);
    }
}

std::vector<int64_t> lengths_of(const RetrievalOptions & options) {
    std::vector<int64_t> lengths;
    for (const std::string & text : options.tokens) {
        lengths.push_back(parse_tokens(text));
        if (lengths.back() < 512) throw UsageError("--tokens " + text + ": a file of 512 tokens is the least");
    }
    return lengths;
}

void check_lengths(const std::vector<int64_t> & lengths, const Model & model, const RetrievalOptions & options) {
    const int64_t most = llama_model_n_ctx_train(model.text());
    for (const int64_t tokens : lengths)
        if (tokens + tokens / 32 + QUESTION_TOKENS + options.max_tokens > most)
            throw Error("the model was trained on " + std::to_string(most) + " tokens: --tokens " + std::to_string(tokens) +
                        " with question and answer is too many");
}

void run_retrieval(const RetrievalOptions & options) {
    const std::vector<Contender> contenders = chosen_contenders(options);
    const std::vector<int64_t> lengths = lengths_of(options);
    const Text text = options.words();
    const std::string named = options.model_file();
    RetrievalLog log(options.log, {{"model", std::filesystem::path(named).filename().string()},
                                   {"text", text.name},
                                   {"set", options.set},
                                   {"seed", options.seed},
                                   {"questions", options.questions},
                                   {"max_tokens", options.max_tokens}});
    capture_logs(options.verbose);
    Progress progress(options.json);
    const ModelUnderTest loaded(named, false, options.threads, progress);
    for (const Contender & contender : contenders) check_fits(contender.kv, *loaded.model);
    check_lengths(lengths, *loaded.model, options);
    for (const int64_t tokens : lengths)
        for (int64_t number = 0; number < options.count; ++number) {
            if (finished(log, contenders, tokens, number)) continue;
            const Sample sample(*loaded.model, text.words, options, tokens, number, progress);
            measure_sample(sample, log, contenders, tokens, number, progress);
        }
    progress.clear();
    const std::vector<Row> rows = rows_of(log, lengths, contenders, options.count);
    if (!options.json) return print_table(rows);
    Json reports = Json::array();
    for (const Row & row : rows) reports.push_back(row_report(row));
    std::cout << Json({{"run", run_record()},
                       {"model", named},
                       {"text", text.name},
                       {"set", options.set},
                       {"seed", options.seed},
                       {"rows", reports}})
                     .dump(2)
              << "\n";
}

} // namespace

void add_eval_retrieval(CLI::App & eval, Command & run) {
    auto options = std::make_shared<RetrievalOptions>();
    CLI::App * app = eval.add_subcommand("retrieval", "Facts in a long file, asked about at its end, through each codec");
    options->add_files(*app);
    app->add_option("--tokens", options->tokens, "lengths of the files, separated by commas (default 8k)")->delimiter(',');
    app->add_option("--set", options->set, "what is asked: facts or exercises; see below (default facts)")
        ->check(CLI::IsMember({"facts", "exercises"}));
    app->add_option("--questions", options->questions, "facts in each file (default 8), or exercises (10)")
        ->check(CLI::Range(1, 100));
    app->add_option("-n,--predict", options->max_tokens,
                    "at most this many tokens an answer (default 16, of exercises 512)")
        ->check(CLI::Range(1, 4096));
    app->add_option("--log", options->log, "a file for what is measured; where it is there, the run goes on from it");
    options->add_run(*app);
    app->footer(FOOTER);
    app->callback([options, &run] {
        options->fill_in();
        run = [options] { run_retrieval(*options); };
    });
}

} // namespace vidkv::cli
