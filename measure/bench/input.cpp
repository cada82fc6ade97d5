// Shapes, random content and the reference of vidkv bench attention.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <random>

#include "bench/attention.h"
#include "error.h"

namespace vidkv::cli {

namespace {

constexpr uint16_t F16_MINUS_INFINITY = 0xFC00;
constexpr int64_t MAX_TOKENS = int64_t(1) << 26;
constexpr uint64_t KEY_SEED = 1, VALUE_SEED = 2, QUERY_SEED = 3, WEIGHT_SEED = 4;

const char * parse_number(const char * first, const char * last, int64_t & value) {
    const auto [end, failed] = std::from_chars(first, last, value);
    return failed == std::errc() && value > 0 ? end : nullptr;
}

std::vector<double> to_double(const std::vector<uint16_t> & halves) {
    std::vector<float> floats(halves.size());
    ggml_fp16_to_fp32_row(halves.data(), floats.data(), static_cast<int64_t>(floats.size()));
    return {floats.begin(), floats.end()};
}

// softmax(q . K) V of one query head in double; hidden cells have a mask other than 0.
std::vector<double> attend(const AttentionCall & call, int64_t token, int head, const std::vector<double> & keys,
                           const std::vector<double> & values) {
    const int d = call.shape.head_dim, channels = call.shape.channels(),
              kv_head = head / (call.shape.heads / call.shape.kv_heads);
    const float * q = call.q.data() + (token * call.shape.heads + head) * d;
    const uint16_t * mask = call.mask.data() + token * call.cells();
    std::vector<double> weights(static_cast<size_t>(call.cells())), out(static_cast<size_t>(d));
    double largest = -std::numeric_limits<double>::infinity(), total = 0;
    for (int64_t cell = 0; cell < call.cells(); ++cell) {
        const double * k = keys.data() + cell * channels + kv_head * d;
        double score = 0;
        for (int i = 0; i < d; ++i) score += static_cast<double>(q[i]) * k[i];
        weights[static_cast<size_t>(cell)] = mask[cell] ? -std::numeric_limits<double>::infinity() : score / std::sqrt(d);
        largest = std::max(largest, weights[static_cast<size_t>(cell)]);
    }
    for (double & weight : weights) total += weight = std::exp(weight - largest);
    for (int64_t cell = 0; cell < call.cells(); ++cell) {
        const double * v = values.data() + cell * channels + kv_head * d;
        for (int i = 0; i < d; ++i) out[static_cast<size_t>(i)] += weights[static_cast<size_t>(cell)] / total * v[i];
    }
    return out;
}

} // namespace

std::string AttentionShape::name() const {
    return std::to_string(heads) + "/" + std::to_string(kv_heads) + "/" + std::to_string(head_dim);
}

AttentionShape parse_shape(const std::string & text) {
    int64_t numbers[3] = {};
    const char *at = text.data(), *end = text.data() + text.size();
    for (int i = 0; i < 3 && at; ++i) {
        at = parse_number(at, end, numbers[i]);
        if (at && i < 2) at = at < end && *at == '/' ? at + 1 : nullptr;
    }
    const bool sound = at == end && numbers[0] <= 1024 && numbers[2] <= 512 && numbers[1] <= numbers[0] &&
                       numbers[0] % numbers[1] == 0 && numbers[2] % 8 == 0;
    if (!sound)
        throw UsageError("'" + text +
                         "' is no shape: --shape takes query heads/KV heads/head_dim, as in 28/4/128 (the "
                         "first a multiple of the second, head_dim of 8)");
    return {static_cast<int>(numbers[0]), static_cast<int>(numbers[1]), static_cast<int>(numbers[2])};
}

int64_t parse_tokens(const std::string & text) {
    int64_t tokens = 0;
    const char *end = text.data() + text.size(), *at = parse_number(text.data(), end, tokens);
    if (at && at < end) {
        const int shift = *at == 'k' || *at == 'K' ? 10 : *at == 'm' || *at == 'M' ? 20 : 0;
        tokens = shift && tokens <= MAX_TOKENS ? tokens << shift : 0;
        ++at;
    }
    if (at != end || tokens <= 0 || tokens > MAX_TOKENS)
        throw UsageError("'" + text + "' is no number of tokens: write 4096, 32k or 1M (up to 64M)");
    return tokens;
}

std::vector<float> gaussian(size_t n, uint64_t seed) {
    std::mt19937_64 generator(seed);
    std::normal_distribution<float> normal;
    std::vector<float> values(n);
    for (float & value : values) value = normal(generator);
    return values;
}

std::vector<float> uneven_queries(const AttentionShape & shape) {
    const auto width = static_cast<size_t>(shape.heads * shape.head_dim);
    std::vector<float> queries = gaussian(OBSERVED_QUERIES * width, QUERY_SEED);
    const std::vector<float> octaves = gaussian(static_cast<size_t>(shape.channels()), WEIGHT_SEED);
    const auto shared = static_cast<size_t>(shape.heads / shape.kv_heads), dim = static_cast<size_t>(shape.head_dim);
    for (size_t i = 0; i < queries.size(); ++i) {
        const size_t head = i % width / dim;
        queries[i] *= std::exp2(octaves[head / shared * dim + i % dim]);
    }
    return queries;
}

TokenRows::TokenRows(int channels)
    : channels_(channels), keys_(gaussian(static_cast<size_t>(BLOCK) * static_cast<size_t>(channels), KEY_SEED)),
      values_(gaussian(static_cast<size_t>(BLOCK) * static_cast<size_t>(channels), VALUE_SEED)) {}

AttentionCall make_call(const AttentionShape & shape, int64_t past, int64_t fresh, int64_t query_tokens) {
    AttentionCall call = {shape, past, fresh, query_tokens, 1, 0, {}, {}};
    call.q = gaussian(static_cast<size_t>(query_tokens) * static_cast<size_t>(shape.heads * shape.head_dim), QUERY_SEED);
    call.mask.assign(static_cast<size_t>(query_tokens * call.cells()), 0);
    for (int64_t token = 0; token < query_tokens; ++token) {
        const int64_t seen = call.cells() - query_tokens + token + 1;
        for (int64_t cell = seen; cell < call.cells(); ++cell)
            call.mask[static_cast<size_t>(token * call.cells() + cell)] = F16_MINUS_INFINITY;
    }
    return call;
}

double output_error(const AttentionContender & contender, const AttentionCall & call) {
    const std::vector<double> keys = to_double(contender.content(VIDKV_KEYS)),
                              values = to_double(contender.content(VIDKV_VALUES));
    const std::vector<float> out = contender.output();
    double difference = 0, power = 0;
    size_t at = 0;
    for (int64_t token = 0; token < call.query_tokens; ++token) {
        for (int head = 0; head < call.shape.heads; ++head) {
            for (const double expected : attend(call, token, head, keys, values)) {
                difference += (out[at] - expected) * (out[at] - expected);
                power += expected * expected;
                ++at;
            }
        }
    }
    return std::sqrt(difference / power);
}

} // namespace vidkv::cli
