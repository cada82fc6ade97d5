// softmax(scale * Q K^T + mask) V over pages. Work is cut into items, a query block times a chunk of pages, by sizes that do not
// depend on the number of threads; the chunks' partial results are merged in a fixed order.
#include "attention/attention.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <new>
#include <thread>
#include <utility>

#include "attention/job.h"
#include "attention/sequence_pages.h"
#include "attention/store_pages.h"
#include "base/half.h"
#include "base/thread_pool.h"
#include "codec/real_dft.h"

namespace vidkv {

namespace {

constexpr int rows_per_block = 64;       // query rows that share one unpacked page, unless one token alone has more
constexpr int64_t pages_per_chunk = 4;   // at least: fewer are not worth a merge
constexpr int64_t items_wanted = 64;     // chunks stop being cut finer here
constexpr int64_t blocks_per_batch = 64; // bounds the memory for queries and partial results

std::vector<float> alibi_slopes(int heads, float max_bias) {
    std::vector<float> slopes(static_cast<size_t>(heads), 1.0f);
    if (max_bias == 0.0f) return slopes;
    int power = 1; // the largest power of two that is at most heads
    while (power * 2 <= heads) power *= 2;
    const float base = std::pow(2.0f, -max_bias / power), odd_base = std::pow(2.0f, -max_bias / 2 / power);
    for (int h = 0; h < heads; ++h) {
        const int exponent = h < power ? h + 1 : 2 * (h - power) + 1;
        slopes[h] = std::pow(h < power ? base : odd_base, static_cast<float>(exponent));
    }
    return slopes;
}

bool all_finite(const float * x, int n) {
    bool finite = true;
    for (int i = 0; i < n; ++i) finite &= (std::bit_cast<uint32_t>(x[i]) & 0x7f800000u) != 0x7f800000u;
    return finite;
}

// n: a multiple of 8. Eight sums, so that additions need not wait for each other.
float dot(const float * x, const float * y, int n) {
    float sum[8] = {};
    for (int i = 0; i < n; i += 8) {
        for (int j = 0; j < 8; ++j) sum[j] += x[i + j] * y[i + j];
    }
    return ((sum[0] + sum[4]) + (sum[1] + sum[5])) + ((sum[2] + sum[6]) + (sum[3] + sum[7]));
}

// Where the tokens of each call begin, and the end of all.
std::vector<int64_t> first_tokens(std::span<const vidkv_attention_args> calls) {
    std::vector<int64_t> first = {0};
    for (const vidkv_attention_args & call : calls) first.push_back(first.back() + call.tokens);
    return first;
}

struct Contents {
    bool sealed = false, shifted = false; // any page
};

Contents contents_of(const PageSource & source, int64_t pages) {
    Contents found;
    for (int64_t page = 0; source.shape.packs && page < pages; ++page) {
        const PageView view = source.view(page, 0, 0);
        found.sealed = found.sealed || view.state == PageState::sealed;
        found.shifted = found.shifted || view.shifts;
    }
    return found;
}

} // namespace

Attention::Attention(const PageSource & keys, const PageSource & values, std::span<const vidkv_attention_args> calls,
                     const Kernels & kernels)
    : keys_(keys), values_(values), calls_(calls), args_(calls.front()), first_tokens_(first_tokens(calls)),
      kernels_(kernels), key_dim_(keys.shape.head_dim), value_dim_(values.shape.head_dim),
      query_stride_(round_up(key_dim_, 64)), sum_stride_(round_up(value_dim_, 16)),
      heads_per_kv_head_(args_.heads / keys.shape.kv_heads), tokens_(first_tokens_.back()), pages_(keys.pages(args_.cells)),
      block_tokens_(
          static_cast<int>(std::clamp<int64_t>(rows_per_block / heads_per_kv_head_, 1, std::max<int64_t>(tokens_, 1)))),
      block_rows_(block_tokens_ * heads_per_kv_head_),
      state_stride_(round_up(block_rows_, 64 / static_cast<int>(sizeof(SoftmaxState)))),
      token_blocks_((tokens_ + block_tokens_ - 1) / block_tokens_), blocks_(token_blocks_ * keys.shape.kv_heads),
      batch_(std::min(blocks_, blocks_per_batch)) {
    slopes_ = alibi_slopes(args_.heads, args_.max_bias);
    for (float & slope : slopes_) slope *= log2_e;
    if (blocks_ == 0) return;
    const Contents in_keys = contents_of(keys, pages_);
    has_sealed_keys_ = in_keys.sealed;
    if (has_sealed_keys_) plan_sets_ = keys.plan_sets();
    if (has_sealed_keys_ && keys.shape.key_layout->narrow > 0)
        real_dft(keys.shape.key_layout->narrow); // allocates here, not in a task
    if (contents_of(values, pages_).sealed && values.shape.value_layout->codec == VIDKV_CODEC_TRELLIS) {
        rotation_ = rotation(value_dim_);
    }

    const int64_t wanted = std::clamp<int64_t>(items_wanted / blocks_, 1, std::max<int64_t>(pages_ / pages_per_chunk, 1));
    chunk_pages_ = std::max<int64_t>(1, (pages_ + wanted - 1) / wanted);
    chunks_ = std::max<int64_t>(1, (pages_ + chunk_pages_ - 1) / chunk_pages_);
    if (token_blocks_ == 1 && block_rows_ <= row_block) group_heads();

    const size_t rows = static_cast<size_t>(batch_ * block_rows_), parts = static_cast<size_t>(batch_ * chunks_);
    const size_t query_size = rows * static_cast<size_t>(query_stride_),
                 sum_size = rows * static_cast<size_t>(chunks_ * sum_stride_), sets = static_cast<size_t>(plan_sets_);
    workspace_.begin(Workspace::size_of<float>(query_size) + Workspace::size_of<float>(sets * query_size) +
                     Workspace::size_of<float>(sets * rows) + Workspace::size_of<float>(sum_size) * 2 +
                     Workspace::size_of<SumsUsed>(parts) + Workspace::size_of<BlockState>(static_cast<size_t>(batch_)) +
                     Workspace::size_of<SoftmaxState>(parts * static_cast<size_t>(state_stride_)));
    queries_ = workspace_.take<float>(query_size);
    planned_ = workspace_.take<float>(sets * query_size);
    bases_ = workspace_.take<float>(sets * rows);
    natural_ = workspace_.take<float>(sum_size);
    rotated_ = workspace_.take<float>(sum_size);
    used_ = workspace_.take<SumsUsed>(parts);
    block_states_ = workspace_.take<BlockState>(static_cast<size_t>(batch_));
    states_ = workspace_.take<SoftmaxState>(parts * static_cast<size_t>(state_stride_));
    scratch_ = &workspace_.scratch(
        static_cast<size_t>(std::min<int64_t>(args_.threads, batch_ * chunks_)),
        ScratchShape{key_dim_, value_dim_, block_rows_, block_tokens_, heads_, plan_sets_ == 0, in_keys.shifted});
}

// KV heads in groups of about the same size. The last chunks are of single heads: as much as one item of a group for each other
// thread, so that all end at the same time.
void Attention::group_heads() {
    const int64_t last = int64_t{most_heads} * (args_.threads - 1);
    grouped_chunks_ = std::max<int64_t>(chunks_ - (last + batch_ - 1) / batch_, 0);
    if (grouped_chunks_ == 0) return;
    const int64_t groups = (batch_ + most_heads - 1) / most_heads;
    heads_ = static_cast<int>((batch_ + groups - 1) / groups);
}

void Attention::run() {
    for (first_block_ = 0; first_block_ < blocks_; first_block_ += batch_) {
        slots_ = std::min(batch_, blocks_ - first_block_);
        next_item_ = 0;
        for (int64_t slot = 0; slot < slots_; ++slot) new (block_states_ + slot) BlockState(chunks_);
        parallel_for(std::min<int64_t>(args_.threads, items()), args_.threads, [this](int64_t) { work(); });
    }
}

// Neighbours lie one after the other in memory: processors fetch ahead that way.
Item Attention::item_at(int64_t number) const {
    const int64_t single = number - grouped_chunks_ * groups();
    Item item;
    if (single < 0) {
        item.slot = number % groups() * heads_;
        item.heads = static_cast<int>(std::min<int64_t>(heads_, slots_ - item.slot));
        item.chunk = number / groups();
    } else {
        item.slot = single / (chunks_ - grouped_chunks_);
        item.chunk = grouped_chunks_ + single % (chunks_ - grouped_chunks_);
    }
    item.first = item.chunk * chunk_pages_;
    item.end = std::min(pages_, item.first + chunk_pages_);
    item.block = block_at(first_block_ + item.slot);
    return item;
}

bool Attention::Walk::take() {
    const int64_t number = attention_.next_item_.fetch_add(1, std::memory_order_relaxed);
    if (number >= attention_.items()) return false;
    at_ = (at_ + 1) % items_.size();
    items_[at_] = attention_.item_at(number);
    page_ = item().first;
    return true;
}

void Attention::Walk::step(PageAt & at) {
    at.item = nullptr;
    if (page_ >= item().end && !(ahead_ && take())) return;
    at.item = &item();
    at.page = page_++;
    at.keys = attention_.keys_.view(at.page, item().block.kv_head, item().heads);
    at.values = attention_.values_.view(at.page, item().block.kv_head, item().heads);
}

// What each of the threads does.
void Attention::work() {
    const ScratchPool::Lease lease(*scratch_);
    PageAt pages[3], *now = pages, *next = pages + 1, *after = pages + 2;
    for (Walk walk(*this); walk.take();) {
        if (pages_ == 0) {
            begin(walk.item());
            end(walk.item());
            continue;
        }
        walk.step(*now);
        walk.step(*next);
        find_codes(*now);
        fetch_now(*now);
        fetch_start(*next);
        while (now->item) {
            const Item & item = *now->item;
            if (now->page == item.first) begin(item);
            walk.step(*after);
            find_codes(*next);
            attend_page(*now, *next, *after, *lease);
            if (now->page + 1 == item.end) end(item);
            std::swap(now, next);
            std::swap(next, after);
        }
    }
}

// Of a block's threads one prepares its queries, and the others wait.
void Attention::begin(const Item & item) {
    for (int64_t slot = item.slot; slot < item.slot + item.heads; ++slot) {
        int raw = BlockState::raw;
        std::atomic<int> & queries = block_states_[slot].queries;
        if (!queries.compare_exchange_strong(raw, BlockState::in_work, std::memory_order_acquire)) continue;
        prepare(slot);
        queries.store(BlockState::ready, std::memory_order_release);
    }
    for (int64_t slot = item.slot; slot < item.slot + item.heads; ++slot) {
        while (block_states_[slot].queries.load(std::memory_order_acquire) != BlockState::ready) std::this_thread::yield();
        used_[slot * chunks_ + item.chunk] = {};
        std::fill_n(states(slot, item.chunk), item.block.rows, SoftmaxState{});
    }
}

void Attention::end(const Item & item) {
    for (int64_t slot = item.slot; slot < item.slot + item.heads; ++slot) {
        if (block_states_[slot].chunks_left.fetch_sub(1, std::memory_order_acq_rel) == 1) finish(slot);
    }
}

Attention::Token Attention::token_at(int64_t token) const {
    if (calls_.size() == 1) return {args_, token, 0};
    const auto next = std::upper_bound(first_tokens_.begin(), first_tokens_.end(), token);
    const auto number = static_cast<int>(next - first_tokens_.begin()) - 1;
    return {calls_[static_cast<size_t>(number)], token - first_tokens_[static_cast<size_t>(number)], number};
}

Block Attention::block_at(int64_t index) const {
    Block block;
    block.kv_head = static_cast<int>(index / token_blocks_);
    block.first_token = index % token_blocks_ * block_tokens_;
    block.tokens = static_cast<int>(std::min<int64_t>(block_tokens_, tokens_ - block.first_token));
    block.rows = block.tokens * heads_per_kv_head_;
    return block;
}

// Gathers the block's queries, scaled, and brings them to the domain of sealed keys once for all pages.
void Attention::prepare(int64_t slot) {
    const Block block = block_at(first_block_ + slot);
    const float factor = args_.softcap == 0.0f ? args_.scale * log2_e : args_.scale / args_.softcap;
    for (int r = 0; r < block.rows; ++r) {
        const Token token = token_at(block.first_token + r / heads_per_kv_head_);
        const int64_t head = block.kv_head * heads_per_kv_head_ + r % heads_per_kv_head_;
        const float * q = token.call.q + token.index * token.call.q_token_stride + head * token.call.q_head_stride;
        float * query = queries(slot) + r * query_stride_;
        for (int c = 0; c < key_dim_; ++c) query[c] = q[c] * factor;
        std::fill(query + key_dim_, query + query_stride_, 0.0f);
    }
    for (int set = 0; has_sealed_keys_ && set < plan_sets_; ++set) {
        const ChannelPlan & plan = keys_.plan(block.kv_head, set);
        const auto uses = [&](int t) { return keys_.uses(set, token_at(block.first_token + t).number); };
        for (int t = 0, end; t < block.tokens; t = end) {
            for (end = t + 1; end < block.tokens && uses(end) == uses(t);) ++end;
            const Rows rows{t * heads_per_kv_head_, (end - t) * heads_per_kv_head_};
            if (uses(t)) plan_queries(plan, {}, nullptr, slot, rows, planned(slot, set), bases(slot, set));
        }
    }
}

// Queries of the block in the domain of a plan, turned back first where keys have moved.
void Attention::plan_queries(const ChannelPlan & plan, const PageView & view, const Shift * shift, int64_t slot, Rows rows,
                             float * planned, float * bases) const {
    alignas(64) float mean[largest_head_dim], turned[largest_head_dim];
    const int means = static_cast<int>(plan.mean.size());
    if (means > 0) kernels_.load_halves(reinterpret_cast<const uint8_t *>(plan.mean.data()), means, mean);
    for (int r = rows.first; r < rows.first + rows.count; ++r) {
        const float * query = queries(slot) + r * query_stride_;
        if (shift) {
            shift->turn_back(*view.shifts->rope, query, key_dim_, turned);
            query = turned;
        }
        float * in_plan = planned + r * query_stride_;
        bases[r] = all_finite(query, key_dim_) ? 0.0f : std::numeric_limits<float>::quiet_NaN();
        plan_query(*keys_.shape.key_layout, plan, query, in_plan);
        std::fill(in_plan + key_dim_, in_plan + query_stride_, 0.0f);
        bases[r] += dot(in_plan, mean, means);
    }
}

void Attention::finish(int64_t slot) {
    const Block block = block_at(first_block_ + slot);
    for (int r = 0; r < block.rows; ++r) {
        const Token token = token_at(block.first_token + r / heads_per_kv_head_);
        const int head = block.kv_head * heads_per_kv_head_ + r % heads_per_kv_head_;
        const vidkv_attention_args & call = token.call;
        merge_row(slot, r, head, call.out + token.index * call.out_token_stride + head * call.out_head_stride);
    }
}

// The chunks' sums relative to one maximum, divided by the sum of all weights (an attention sink has a weight but no value).
void Attention::merge_row(int64_t slot, int row, int head, float * out) const {
    const float sink = args_.sinks ? args_.sinks[head] * log2_e : -infinity;
    float maximum = sink;
    for (int64_t c = 0; c < chunks_; ++c) maximum = std::max(maximum, states(slot, c)[row].reference);
    float total = args_.sinks && maximum != -infinity ? weight_below(sink, maximum) : 0.0f;
    float weights[items_wanted];
    for (int64_t c = 0; c < chunks_; ++c) {
        const SoftmaxState & state = states(slot, c)[row];
        weights[c] = maximum == -infinity ? 1.0f : weight_below(state.reference, maximum);
        total = std::fma(weights[c], state.sum, total);
    }
    alignas(64) float natural[largest_head_dim], rotated[largest_head_dim];
    std::fill_n(natural, sum_stride_, 0.0f);
    std::fill_n(rotated, sum_stride_, 0.0f);
    for (int64_t c = 0; c < chunks_ && total != 0.0f; ++c) { // 0: nothing seen
        const ValueSums part = sums(slot, c, row);
        if (part.natural) kernels_.add_scaled(part.natural, weights[c] / total, static_cast<int>(sum_stride_), natural);
        if (part.rotated) kernels_.add_scaled(part.rotated, weights[c] / total, static_cast<int>(sum_stride_), rotated);
    }
    if (rotation_) rotation_->inverse(rotated, kernels_.hadamard);
    for (int c = 0; c < value_dim_; ++c) out[c] = rotation_ ? natural[c] + rotated[c] : natural[c];
}

void attend(const Store & keys, const Store & values, const vidkv_attention_args & args, const Kernels & kernels) {
    attend(StorePages(keys, args.sequence), StorePages(values, args.value_sequence), args, kernels);
}

void attend(const PageSource & keys, const PageSource & values, const vidkv_attention_args & args,
            const Kernels & kernels) {
    Attention(keys, values, {&args, 1}, kernels).run();
}

void attend(const Store & keys, const Store & values, std::span<const vidkv_attention_args> calls,
            const Kernels & kernels) {
    constexpr int64_t few_tokens = 8; // more of one sequence fill blocks of their own
    const auto is_alone = [&](const vidkv_attention_args & call) { return call.tokens > few_tokens || calls.size() == 1; };
    if (std::any_of(calls.begin(), calls.end(), is_alone)) {
        for (const vidkv_attention_args & call : calls) attend(keys, values, call, kernels);
        return;
    }
    const PagesOfMany pages(keys, values, calls);
    Attention(SequencePages(keys, pages, calls), SequencePages(values, pages, calls), calls, kernels).run();
}

} // namespace vidkv
