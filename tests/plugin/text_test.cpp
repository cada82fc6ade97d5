// A real language model (VIDKV_TEXT_MODEL) on real text (VIDKV_TEXT): what packing costs several conversations in one
// cache, and what saving and restoring them costs.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <numeric>
#include <string>
#include <utility>

#include "ggml.h"
#include "session.h"

namespace vidkv_test {

namespace {

constexpr int texts = 4, length = 448;
constexpr int first_scored = 256, every = 4; // by then a page has been packed

using Tokens = std::vector<llama_token>;
using Scores = std::vector<std::vector<Logits>>; // [text][scored token]

std::string setting(const char * name) {
    const char * value = std::getenv(name);
    return value ? value : "";
}

SessionOptions options_for(const std::string & preset) {
    SessionOptions options;
    options.preset = preset;
    options.sequences = texts;
    options.unified = true;
    options.cells = texts * length;
    return options;
}

bool is_scored(int position) { return position >= first_scored && position % every == 0; }

std::vector<Tokens> read_texts(Session & session) {
    std::ifstream file(setting("VIDKV_TEXT"));
    const std::string text((std::istreambuf_iterator<char>(file)), {});
    Tokens tokens(text.size());
    const llama_vocab * vocabulary = llama_model_get_vocab(llama_get_model(session.context()));
    const int n = llama_tokenize(vocabulary, text.data(), static_cast<int32_t>(text.size()), tokens.data(),
                                 static_cast<int32_t>(tokens.size()), false, false);
    if (n < texts * length) throw std::runtime_error("VIDKV_TEXT is too short");
    std::vector<Tokens> parts;
    for (int i = 0; i < texts; ++i) parts.emplace_back(tokens.begin() + i * length, tokens.begin() + (i + 1) * length);
    return parts;
}

// Feeds tokens from .. to - 1 of some texts, position by position, in batches; scores what is to be scored.
void feed(Session & session, const std::vector<Tokens> & all, const std::vector<int> & which, int from, int to,
          Scores & scores) {
    constexpr int positions_per_batch = 8;
    const int vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(session.context())));
    for (int start = from; start < to; start += positions_per_batch) {
        llama_batch batch = llama_batch_init(positions_per_batch * texts, 0, 1);
        std::vector<int> text_of;
        for (int position = start; position < std::min(to, start + positions_per_batch); ++position) {
            for (const int text : which) {
                const int i = batch.n_tokens++;
                batch.token[i] = all[text][position];
                batch.pos[i] = position;
                batch.n_seq_id[i] = 1;
                batch.seq_id[i][0] = text;
                batch.logits[i] = is_scored(position);
                text_of.push_back(text);
            }
        }
        ASSERT_EQ(llama_decode(session.context(), batch), 0);
        for (int i = 0; i < batch.n_tokens; ++i) {
            if (!batch.logits[i]) continue;
            const float * logits = llama_get_logits_ith(session.context(), i);
            scores[text_of[i]].emplace_back(logits, logits + vocabulary);
        }
        llama_batch_free(batch);
    }
}

Scores score(const std::string & preset, bool together) {
    Session session(setting("VIDKV_TEXT_MODEL"), options_for(preset));
    const std::vector<Tokens> all = read_texts(session);
    Scores scores(texts);
    if (together) feed(session, all, {0, 1, 2, 3}, 0, length, scores);
    for (int text = 0; text < texts && !together; ++text) {
        llama_memory_clear(session.memory(), true);
        feed(session, all, {text}, 0, length, scores);
    }
    return scores;
}

std::vector<double> log_softmax(const Logits & logits) {
    double largest = -HUGE_VAL, sum = 0;
    for (const float x : logits) largest = std::max<double>(largest, x);
    for (const float x : logits) sum += std::exp(x - largest);
    std::vector<double> out;
    for (const float x : logits) out.push_back(x - largest - std::log(sum));
    return out;
}

// The Kullback-Leibler divergence of `got` from `want` at each scored position, one text after the other.
std::vector<double> divergences(const Scores & want, const Scores & got) {
    std::vector<double> all;
    for (size_t text = 0; text < want.size(); ++text) {
        for (size_t i = 0; i < want[text].size(); ++i) {
            const std::vector<double> p = log_softmax(want[text][i]), q = log_softmax(got[text][i]);
            double sum = 0;
            for (size_t token = 0; token < p.size(); ++token) sum += std::exp(p[token]) * (p[token] - q[token]);
            all.push_back(sum);
        }
    }
    return all;
}

double mean(const std::vector<double> & numbers) {
    return std::accumulate(numbers.begin(), numbers.end(), 0.0) / static_cast<double>(numbers.size());
}

// The mean Kullback-Leibler divergence of `got` from `want`.
double divergence(const Scores & want, const Scores & got) { return mean(divergences(want, got)); }

// By how much `b` is above `a` on average, and the standard error of that, position by position.
std::pair<double, double> paired_difference(const std::vector<double> & a, const std::vector<double> & b) {
    std::vector<double> difference(a.size()), squares(a.size());
    std::transform(b.begin(), b.end(), a.begin(), difference.begin(), std::minus<>());
    const double average = mean(difference);
    std::transform(difference.begin(), difference.end(), squares.begin(),
                   [average](double x) { return (x - average) * (x - average); });
    return {average, std::sqrt(mean(squares) / static_cast<double>(a.size() - 1))};
}

class RealModel : public testing::Test {
  protected:
    void SetUp() override {
        const std::string model = setting("VIDKV_TEXT_MODEL");
        if (model.empty() || !std::ifstream(model)) GTEST_SKIP() << "no text model in VIDKV_TEXT_MODEL";
    }
};

TEST_F(RealModel, ConversationsInOneCacheCostNoMoreThanApart) {
    const Scores stock = score("", false);
    for (const char * preset : {"t1.65"}) {
        const std::vector<double> each = divergences(stock, score(preset, false)),
                                  one = divergences(stock, score(preset, true));
        const double apart = mean(each);
        const auto [more, error] = paired_difference(each, one);
        std::printf("  %s: KL %.5f in a cache each, %.5f more interleaved in one (standard error %.5f)\n", preset, apart,
                    more, error);
        std::fflush(stdout);
        EXPECT_LT(more - 2 * error, 0.1 * apart);
        EXPECT_GT(apart, 1e-4) << "nothing was packed";
    }
}

std::vector<uint8_t> state_of(Session & s, int sequence) {
    std::vector<uint8_t> state(llama_state_seq_get_size(s.context(), sequence));
    EXPECT_EQ(llama_state_seq_get_data(s.context(), state.data(), state.size(), sequence), state.size());
    return state;
}

void restore(Session & s, int sequence) {
    const std::vector<uint8_t> state = state_of(s, sequence);
    ASSERT_TRUE(llama_memory_seq_rm(s.memory(), sequence, -1, -1));
    ASSERT_EQ(llama_state_seq_set_data(s.context(), state.data(), state.size(), sequence), state.size());
}

// Relative error of the keys and values in a state; what else is in it reads as halves near zero.
double state_drift(const std::vector<uint8_t> & before, const std::vector<uint8_t> & after) {
    EXPECT_EQ(after.size(), before.size());
    double difference = 0, energy = 0;
    for (size_t i = 0; i + 1 < std::min(before.size(), after.size()); i += 2) {
        uint16_t a, b;
        std::memcpy(&a, &before[i], 2);
        std::memcpy(&b, &after[i], 2);
        const double x = ggml_fp16_to_fp32(a), y = ggml_fp16_to_fp32(b);
        difference += (x - y) * (x - y);
        energy += x * x;
    }
    return std::sqrt(difference / energy);
}

struct Drift {
    double rows; // relative error of keys and values against those before the first swap
    double divergence;
};

// A conversation that is saved as f16 and read back, beside one that stays, and goes on after each time.
std::vector<Drift> swap(const std::string & preset, int swaps) {
    constexpr int kept = 400;
    Session session(setting("VIDKV_TEXT_MODEL"), options_for(preset));
    const std::vector<Tokens> all = read_texts(session);
    Scores unused(texts), first(texts);
    feed(session, all, {0, 1}, 0, kept, unused);
    feed(session, all, {0}, kept, length, first);
    EXPECT_TRUE(llama_memory_seq_rm(session.memory(), 0, kept, -1));
    const std::vector<uint8_t> before = state_of(session, 0);
    std::vector<Drift> out;
    for (int done = 0; done < swaps; ++done) {
        restore(session, 0);
        const double rows = state_drift(before, state_of(session, 0));
        Scores again(texts);
        feed(session, all, {0}, kept, length, again);
        EXPECT_TRUE(llama_memory_seq_rm(session.memory(), 0, kept, -1));
        out.push_back({rows, divergence(first, again)});
    }
    return out;
}

// llama-server writes idle conversations out as f16 and reads them back: packed again and again, they stay what they are. What the f16
// preset shows comes from cells that lie elsewhere: sums in another order, which the rounding of activations amplifies.
TEST_F(RealModel, SwapsDoNotWearAConversation) {
    const std::string given = setting("VIDKV_SWAPS");
    const int swaps = given.empty() ? 2 : std::stoi(given);
    std::vector<std::string> presets = {"f16", "t1.65", "k1.5v1.58"};
    if (!given.empty()) presets = {"f16", "t2.2", "t1.65", "t1.15", "k2v2", "k1.5v2", "k1.5v1.58"};
    double unpacked = 0;
    for (const std::string & preset : presets) {
        const std::vector<Drift> drifts = swap(preset, swaps);
        std::printf("  %s: after 1 .. %d swaps, rows off by", preset.c_str(), swaps);
        for (const Drift & each : drifts) std::printf(" %.5f", each.rows);
        std::printf("; KL");
        for (const Drift & each : drifts) std::printf(" %.5f", each.divergence);
        std::printf("\n");
        std::fflush(stdout);
        for (const Drift & each : drifts) {
            if (preset == "f16") unpacked = std::max(unpacked, each.divergence);
        }
        EXPECT_LT(drifts.back().rows, preset == "f16" ? 1e-9 : 0.002) << preset;
        EXPECT_LT(drifts.back().divergence, unpacked + 0.004) << preset;
    }
}

} // namespace

} // namespace vidkv_test
