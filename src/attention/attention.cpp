// The generic body. Work is cut into items, a query block times a chunk of cells, by sizes that do not depend on the number
// of threads; the chunks' partial results are merged in a fixed order.
#include "attention/attention.h"

#include <algorithm>
#include <cmath>

#include "attention/scratch.h"
#include "base/thread_pool.h"
#include "codec/key_codec.h"
#include "codec/value_codec.h"

namespace vidkv {

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();

constexpr int rows_a_block = 64;        // query rows that share one decoded tile, unless one token alone has more
constexpr int64_t cells_a_chunk = 1024; // at least: less is not worth a merge
constexpr int64_t items_wanted = 128;   // chunks stop being cut finer here
constexpr int64_t blocks_a_batch = 64;  // bounds the memory for queries and partial results

// Consecutive query tokens and the heads that read one KV head. Row r: token r / heads_a_group, head r % heads_a_group.
struct Block {
    int kv_head;
    int64_t first_token;
    int tokens, rows;
};

// exp(x - maximum) for x <= maximum; equal infinities are at distance 0.
float weight(float x, float maximum) { return x == maximum ? 1.0f : std::exp(x - maximum); }

std::vector<float> alibi_slopes(int heads, float max_bias) {
    std::vector<float> slopes(static_cast<size_t>(heads), 1.0f);
    if (max_bias == 0.0f) return slopes;
    int power = 1; // the largest power of two up to heads
    while (power * 2 <= heads) power *= 2;
    const float base = std::pow(2.0f, -max_bias / power), odd_base = std::pow(2.0f, -max_bias / 2 / power);
    for (int h = 0; h < heads; ++h) {
        const int exponent = h < power ? h + 1 : 2 * (h - power) + 1;
        slopes[h] = std::pow(h < power ? base : odd_base, static_cast<float>(exponent));
    }
    return slopes;
}

class Attention {
  public:
    Attention(const Store & keys, const Store & values, const vidkv_attention_args & args, const Kernels & kernels);
    void run();

  private:
    Block block_at(int64_t index) const;
    void prepare(int64_t slot);
    void accumulate(int64_t slot, int64_t chunk);
    void finish(int64_t slot);

    bool load_bias(const Block & block, int64_t first_cell, int count, Scratch & scratch) const;
    void score(const Block & block, int64_t slot, int64_t group, int count, Scratch & scratch) const;
    void score_sinks(const Block & block, const float * queries, const PageView & view, Scratch & scratch) const;
    void weigh(const Block & block, float * sums, SoftmaxState * states, Scratch & scratch) const;
    void add_values(const Block & block, int64_t group, int count, float * sums, Scratch & scratch) const;
    void merge_row(int64_t slot, int row, int head, float * out) const;

    float * queries(int64_t slot) const { return queries_.get() + slot * block_rows_ * key_dim_; }
    int64_t first_row(int64_t slot, int64_t chunk) const { return (slot * chunks_ + chunk) * block_rows_; }
    float * sums(int64_t slot, int64_t chunk) const { return sums_.get() + first_row(slot, chunk) * value_dim_; }
    SoftmaxState * states(int64_t slot, int64_t chunk) const { return states_.get() + first_row(slot, chunk); }

    const Store & keys_;
    const Store & values_;
    const vidkv_attention_args & args_;
    const Kernels & kernels_;
    const int group_size_, key_dim_, value_dim_;
    const int heads_a_group_; // query heads that read one KV head
    const int64_t groups_;    // that hold the cells attended to
    const int block_tokens_, block_rows_;
    const int64_t token_blocks_, blocks_, batch_;
    ScoreRule rule_;
    std::vector<float> slopes_; // [heads]
    int64_t chunk_groups_ = 1, chunks_ = 1;

    int64_t first_block_ = 0;                // of the batch at hand; slot s holds block first_block_ + s
    std::unique_ptr<float[]> queries_;       // [slot][row][key_dim]
    std::unique_ptr<float[]> sums_;          // [slot][chunk][row][value_dim]: weighted sums of values
    std::unique_ptr<SoftmaxState[]> states_; // [slot][chunk][row]
    std::unique_ptr<ScratchPool> scratch_;
};

Attention::Attention(const Store & keys, const Store & values, const vidkv_attention_args & args, const Kernels & kernels)
    : keys_(keys), values_(values), args_(args), kernels_(kernels), group_size_(page_tokens), key_dim_(keys.head_dim()), value_dim_(values.head_dim()), heads_a_group_(args.heads / keys.kv_heads()),
      groups_((args.cells + group_size_ - 1) / group_size_),
      block_tokens_(
          static_cast<int>(std::clamp<int64_t>(rows_a_block / heads_a_group_, 1, std::max<int64_t>(args.tokens, 1)))),
      block_rows_(block_tokens_ * heads_a_group_), token_blocks_((args.tokens + block_tokens_ - 1) / block_tokens_),
      blocks_(token_blocks_ * keys.kv_heads()), batch_(std::min(blocks_, blocks_a_batch)) {
    rule_.softcap = args.softcap;
    rule_.scale = args.softcap == 0.0f ? args.scale : args.scale / args.softcap;
    slopes_ = alibi_slopes(args.heads, args.max_bias);
    if (blocks_ == 0) return;

    const int64_t wanted = std::min((args.cells + cells_a_chunk - 1) / cells_a_chunk, items_wanted / blocks_);
    chunk_groups_ = std::max<int64_t>(1, (groups_ + std::max<int64_t>(wanted, 1) - 1) / std::max<int64_t>(wanted, 1));
    chunks_ = std::max<int64_t>(1, (groups_ + chunk_groups_ - 1) / chunk_groups_);

    const size_t rows = static_cast<size_t>(batch_ * block_rows_);
    queries_ = uninitialized<float>(rows * key_dim_);
    sums_ = uninitialized<float>(rows * chunks_ * value_dim_);
    states_ = std::make_unique<SoftmaxState[]>(rows * chunks_);
    const ScratchShape shape{static_cast<size_t>(key_dim_), static_cast<size_t>(value_dim_),
                             static_cast<size_t>(group_size_), static_cast<size_t>(block_rows_),
                             static_cast<size_t>(block_tokens_)};
    scratch_ = std::make_unique<ScratchPool>(static_cast<size_t>(std::min<int64_t>(args.threads, batch_ * chunks_)), shape);
}

void Attention::run() {
    for (first_block_ = 0; first_block_ < blocks_; first_block_ += batch_) {
        const int64_t slots = std::min(batch_, blocks_ - first_block_);
        if (chunks_ == 1) {
            parallel_for(slots, args_.threads, [this](int64_t slot) {
                prepare(slot);
                accumulate(slot, 0);
                finish(slot);
            });
            continue;
        }
        parallel_for(slots, args_.threads, [this](int64_t slot) { prepare(slot); });
        parallel_for(slots * chunks_, args_.threads, [this](int64_t i) { accumulate(i / chunks_, i % chunks_); });
        parallel_for(slots, args_.threads, [this](int64_t slot) { finish(slot); });
    }
}

Block Attention::block_at(int64_t index) const {
    Block block;
    block.kv_head = static_cast<int>(index / token_blocks_);
    block.first_token = index % token_blocks_ * block_tokens_;
    block.tokens = static_cast<int>(std::min<int64_t>(block_tokens_, args_.tokens - block.first_token));
    block.rows = block.tokens * heads_a_group_;
    return block;
}

// Gathers the block's queries.
void Attention::prepare(int64_t slot) {
    const Block block = block_at(first_block_ + slot);
    for (int r = 0; r < block.rows; ++r) {
        const int64_t token = block.first_token + r / heads_a_group_;
        const int64_t head = block.kv_head * heads_a_group_ + r % heads_a_group_;
        float * query = queries(slot) + r * key_dim_;
        std::copy_n(args_.q + token * args_.q_token_stride + head * args_.q_head_stride, key_dim_, query);
    }
}

void Attention::accumulate(int64_t slot, int64_t chunk) {
    const ScratchPool::Lease lease(*scratch_);
    Scratch & scratch = *lease;
    const Block block = block_at(first_block_ + slot);
    std::fill_n(sums(slot, chunk), static_cast<size_t>(block.rows) * value_dim_, 0.0f);
    std::fill_n(states(slot, chunk), block.rows, SoftmaxState{});
    const int64_t end = std::min(groups_, (chunk + 1) * chunk_groups_);
    for (int64_t group = chunk * chunk_groups_; group < end; ++group) {
        const int64_t first_cell = group * group_size_;
        const int count = static_cast<int>(std::min<int64_t>(group_size_, args_.cells - first_cell));
        if (!load_bias(block, first_cell, count, scratch)) continue;
        score(block, slot, group, count, scratch);
        weigh(block, sums(slot, chunk), states(slot, chunk), scratch);
        add_values(block, group, count, sums(slot, chunk), scratch);
    }
}

// Fills the tile's bias and who sees anything of it; false if nobody does.
bool Attention::load_bias(const Block & block, int64_t first_cell, int count, Scratch & scratch) const {
    // Cells of the tile that causal order shows to token t of the block.
    const auto shown = [&](int t) -> int {
        if (!args_.causal) return count;
        const int64_t last = args_.cells - args_.tokens + block.first_token + t;
        return static_cast<int>(std::clamp<int64_t>(last + 1 - first_cell, 0, count));
    };
    scratch.biased = args_.mask || shown(0) < group_size_;
    if (!scratch.biased) return true;
    bool any = false;
    for (int t = 0; t < block.tokens; ++t) {
        float * bias = scratch.bias.get() + t * group_size_;
        const int n = shown(t);
        bool visible = n > 0;
        if (args_.mask) {
            visible = kernels_.load_mask(args_.mask + (block.first_token + t) * args_.mask_stride + first_cell, n, bias);
        } else {
            std::fill_n(bias, n, 0.0f);
        }
        std::fill_n(bias + n, group_size_ - n, -infinity);
        scratch.visible[t] = visible;
        any = any || visible;
    }
    return any;
}

// dots[row][cell] = query . key
void Attention::score(const Block & block, int64_t slot, int64_t group, int count, Scratch & scratch) const {
    const PageView view = keys_.view(args_.sequence, group, block.kv_head);
    std::fill_n(scratch.dots.get(), static_cast<size_t>(block.rows) * group_size_, 0.0f);
    if (view.state == PageState::empty) return;
    const bool sealed = view.state == PageState::sealed;
    if (sealed) {
        decode_keys(keys_.key_layout(), keys_.plan(args_.sequence, block.kv_head),
                    key_page(keys_.key_layout(), view.page, block.kv_head), scratch.tile.get());
    } else {
        kernels_.open_keys(view.rows, keys_.channels(), count, key_dim_, group_size_, scratch.tile.get());
    }
    kernels_.multiply_add({queries(slot), key_dim_, scratch.tile.get(), group_size_,
                           scratch.dots.get(), group_size_, block.rows, key_dim_, group_size_});
    if (view.sink_count > 0) score_sinks(block, queries(slot), view, scratch);
}

// Sink cells of a sealed group are read from their f16 rows, with the query in natural order.
void Attention::score_sinks(const Block & block, const float * queries, const PageView & view, Scratch & scratch) const {
    const int width = (view.sink_count + 7) / 8 * 8;
    kernels_.open_keys(view.sink_rows, keys_.channels(), view.sink_count, key_dim_, width, scratch.tile.get());
    float * dots = scratch.sink_dots.get();
    std::fill_n(dots, static_cast<size_t>(block.rows) * width, 0.0f);
    kernels_.multiply_add({queries, key_dim_, scratch.tile.get(), width, dots, width, block.rows, key_dim_, width});
    for (int r = 0; r < block.rows; ++r) {
        std::copy_n(dots + r * width, view.sink_count, scratch.dots.get() + r * group_size_);
    }
}

// Dot products -> softmax weights; what was summed under a smaller maximum is scaled down.
void Attention::weigh(const Block & block, float * sums, SoftmaxState * states, Scratch & scratch) const {
    for (int r = 0; r < block.rows; ++r) {
        const int token = r / heads_a_group_, head = block.kv_head * heads_a_group_ + r % heads_a_group_;
        float * dots = scratch.dots.get() + r * group_size_;
        if (scratch.biased && !scratch.visible[token]) {
            std::fill_n(dots, group_size_, 0.0f);
            continue;
        }
        const float * bias = scratch.biased ? scratch.bias.get() + token * group_size_ : nullptr;
        const float factor = kernels_.softmax_step(dots, group_size_, rule_, bias, slopes_[head], states[r]);
        if (factor != 1.0f) kernels_.scale(sums + r * value_dim_, value_dim_, factor);
    }
}

// sums[row] += weights[row][cell] * value[cell]
void Attention::add_values(const Block & block, int64_t group, int count, float * sums, Scratch & scratch) const {
    const PageView view = values_.view(args_.value_sequence, group, block.kv_head);
    if (view.state == PageState::empty) return;
    float * tile = scratch.tile.get();
    bool finite = true;
    if (view.state == PageState::sealed) {
        decode_values(values_.value_layout(), value_page(values_.value_layout(), view.page, block.kv_head), tile);
        if (view.sink_count > 0) {
            finite = kernels_.open_values(view.sink_rows, values_.channels(), view.sink_count, value_dim_, tile);
        }
    } else {
        finite = kernels_.open_values(view.rows, values_.channels(), count, value_dim_, tile);
    }
    const float * weights = scratch.dots.get();
    if (finite) {
        kernels_.multiply_add({weights, group_size_, tile, value_dim_, sums, value_dim_, block.rows, count, value_dim_});
        return;
    }
    // 0 * infinity would reach rows that do not see the cell: leave out what has no weight.
    for (int r = 0; r < block.rows; ++r) {
        for (int j = 0; j < count; ++j) {
            const float * w = weights + r * group_size_ + j;
            if (*w != 0.0f)
                kernels_.multiply_add({w, 1, tile + j * value_dim_, 0, sums + r * value_dim_, 0, 1, 1, value_dim_});
        }
    }
}

void Attention::finish(int64_t slot) {
    const Block block = block_at(first_block_ + slot);
    for (int r = 0; r < block.rows; ++r) {
        const int64_t token = block.first_token + r / heads_a_group_;
        const int head = block.kv_head * heads_a_group_ + r % heads_a_group_;
        merge_row(slot, r, head, args_.out + token * args_.out_token_stride + head * args_.out_head_stride);
    }
}

// The chunks' sums under one maximum, divided by the sum of all weights (an attention sink adds to it and has no value).
void Attention::merge_row(int64_t slot, int row, int head, float * out) const {
    float maximum = args_.sinks ? args_.sinks[head] : -infinity;
    for (int64_t c = 0; c < chunks_; ++c) maximum = std::max(maximum, states(slot, c)[row].maximum);
    std::fill_n(out, value_dim_, 0.0f);
    float total = args_.sinks && maximum != -infinity ? weight(args_.sinks[head], maximum) : 0.0f;
    float weights[items_wanted];
    for (int64_t c = 0; c < chunks_; ++c) {
        const SoftmaxState & state = states(slot, c)[row];
        weights[c] = maximum == -infinity ? 1.0f : weight(state.maximum, maximum);
        total += weights[c] * state.sum;
    }
    if (total == 0.0f) return; // nothing seen
    for (int64_t c = 0; c < chunks_; ++c) weights[c] /= total;
    const float * first = sums(slot, 0) + row * value_dim_;
    kernels_.multiply_add({weights, chunks_, first, static_cast<int64_t>(block_rows_) * value_dim_, out, value_dim_, 1,
                           static_cast<int>(chunks_), value_dim_});
}

} // namespace

void attend(const Store & keys, const Store & values, const vidkv_attention_args & args, const Kernels & kernels) {
    Attention(keys, values, args, kernels).run();
}

} // namespace vidkv
