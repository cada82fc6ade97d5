// vidkv_attention on a cache that was filled and sealed as a prefill does it.
#include <algorithm>
#include <cmath>

#include "bench/attention.h"
#include "error.h"
#include "interrupt.h"
#include "options.h"

namespace vidkv::cli {

namespace {

constexpr int64_t PREFILL_BATCH = 512;

void check(vidkv_status status) {
    if (status != VIDKV_OK) throw Error(vidkv_last_error());
}

struct CacheFree {
    void operator()(vidkv_cache * cache) const { vidkv_cache_free(cache); }
};

class PackedContender : public AttentionContender {
  public:
    PackedContender(const std::string & preset, const AttentionShape & shape, int64_t capacity, const TokenRows & rows);

    const std::string & name() const override { return name_; }
    uint64_t bytes() const override;
    void prepare(const AttentionCall & call, int threads) override;
    void run() override;
    std::vector<float> output() const override { return out_; }
    std::vector<uint16_t> content(vidkv_side side) const override;

  private:
    const vidkv_store * store(vidkv_side side) const {
        return side == VIDKV_KEYS ? vidkv_cache_keys(cache_.get(), 0) : vidkv_cache_values(cache_.get(), 0);
    }
    void make_cache(int64_t capacity, int sequences);
    void append_until(int64_t length, bool seal, int sequence = 0);
    void fill(const AttentionCall & call);
    void fill_sequences(const AttentionCall & call);

    std::string name_;
    AttentionShape shape_;
    const TokenRows & rows_;
    std::vector<float> queries_; // what trellis keys allot their bits by
    std::unique_ptr<vidkv_cache, CacheFree> cache_;
    vidkv_attention_args args_ = {};
    std::vector<vidkv_attention_args> calls_; // of all sequences
    std::vector<float> out_;
    int64_t capacity_, past_ = 0, fresh_ = 0;
    int sequences_ = 1;
};

PackedContender::PackedContender(const std::string & preset, const AttentionShape & shape, int64_t capacity,
                                 const TokenRows & rows)
    : name_(preset), shape_(shape), rows_(rows), queries_(uneven_queries(shape)), capacity_(capacity) {
    make_cache(capacity, 1);
}

void PackedContender::make_cache(int64_t capacity, int sequences) {
    vidkv_params params;
    check(vidkv_params_from_preset(name_.c_str(), &params));
    const vidkv_cache_shape cache_shape = {1, shape_.kv_heads, shape_.head_dim, capacity, sequences};
    vidkv_cache * cache = nullptr;
    check(vidkv_cache_create(&cache_shape, &params, &cache));
    cache_.reset(cache);
    past_ = fresh_ = 0;
    sequences_ = sequences;
}

uint64_t PackedContender::bytes() const {
    uint64_t bytes = 0;
    for (const vidkv_side side : {VIDKV_KEYS, VIDKV_VALUES}) {
        vidkv_store_stats stats;
        vidkv_store_get_stats(store(side), &stats);
        const auto open = static_cast<uint64_t>(stats.cells_written - stats.cells_sealed);
        bytes += stats.sealed_bytes + open * static_cast<uint64_t>(rows_.channels()) * sizeof(uint16_t);
    }
    return bytes;
}

void PackedContender::append_until(int64_t length, bool seal, int sequence) {
    int64_t at = vidkv_cache_length(cache_.get(), 0, sequence);
    while (at < length) {
        check_interrupt();
        const int64_t in_block = at % TokenRows::BLOCK;
        const int64_t n = std::min({length - at, PREFILL_BATCH, TokenRows::BLOCK - in_block});
        const float *k = rows_.keys() + in_block * rows_.channels(), *v = rows_.values() + in_block * rows_.channels();
        check(vidkv_cache_append(cache_.get(), 0, sequence, n, k, v));
        check(vidkv_cache_observe_queries(cache_.get(), 0, sequence, queries_.data(), OBSERVED_QUERIES, shape_.heads));
        if (seal) check(vidkv_cache_seal(cache_.get(), available_cores()));
        at += n;
    }
}

void PackedContender::fill(const AttentionCall & call) {
    if (fresh_ > 0) check(vidkv_cache_truncate(cache_.get(), 0, past_));
    append_until(call.past, true);
    append_until(call.cells(), false);
}

// The common beginning, copies of it, and then each sequence for itself.
void PackedContender::fill_sequences(const AttentionCall & call) {
    make_cache(call.cells(), call.sequences);
    append_until(call.common, true);
    for (int s = 1; s < call.sequences; ++s) check(vidkv_cache_copy_sequence(cache_.get(), 0, s));
    for (int s = 0; s < call.sequences; ++s) append_until(call.cells(), true, s);
}

void PackedContender::prepare(const AttentionCall & call, int threads) {
    if (sequences_ != 1 && call.sequences == 1) make_cache(capacity_, 1);
    if (call.past != past_ || call.fresh != fresh_ || call.sequences != sequences_) {
        call.sequences > 1 ? fill_sequences(call) : fill(call);
        past_ = call.past;
        fresh_ = call.fresh;
    }
    const AttentionShape & shape = call.shape;
    out_.assign(call.q.size() * static_cast<size_t>(call.sequences), 0);
    args_ = {};
    args_.q = call.q.data();
    args_.out = out_.data();
    args_.q_token_stride = args_.out_token_stride = static_cast<int64_t>(shape.heads) * shape.head_dim;
    args_.q_head_stride = args_.out_head_stride = shape.head_dim;
    args_.tokens = call.query_tokens;
    args_.heads = shape.heads;
    args_.cells = call.cells();
    args_.mask = call.mask.data();
    args_.mask_stride = call.cells();
    args_.scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
    args_.threads = threads;
    calls_.clear();
    for (int s = 0; s < call.sequences; ++s) {
        calls_.push_back(args_);
        calls_.back().sequence = calls_.back().value_sequence = s;
        calls_.back().out = out_.data() + static_cast<size_t>(s) * call.q.size();
    }
}

void PackedContender::run() {
    const auto n = static_cast<int64_t>(calls_.size());
    check(vidkv_attention_batch(store(VIDKV_KEYS), store(VIDKV_VALUES), calls_.data(), n));
}

std::vector<uint16_t> PackedContender::content(vidkv_side side) const {
    std::vector<uint16_t> rows(static_cast<size_t>(args_.cells) * static_cast<size_t>(rows_.channels()));
    check(vidkv_store_read_f16(store(side), 0, 0, args_.cells, rows.data()));
    return rows;
}

} // namespace

std::unique_ptr<AttentionContender> make_packed_contender(const std::string & preset, const AttentionShape & shape,
                                                          int64_t capacity, const TokenRows & rows) {
    return std::make_unique<PackedContender>(preset, shape, capacity, rows);
}

} // namespace vidkv::cli
