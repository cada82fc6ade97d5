// softmax(scale * Q K^T + mask) V over pages. Work is cut into items, a query block times a chunk of pages, by sizes that do not
// depend on the number of threads; the chunks' partial results are merged in a fixed order.
#include "attention/attention.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <optional>

#include "attention/tiles.h"
#include "attention/scratch.h"
#include "attention/store_pages.h"
#include "base/softmax_math.h"
#include "base/half.h"
#include "base/thread_pool.h"
#include "codec/real_dft.h"
#include "codec/rotation.h"

namespace vidkv {

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float log2_e = exponential::log2_e; // scores count in units of log 2

constexpr int rows_per_block = 64;       // query rows that share one unpacked page, unless one token alone has more
constexpr int64_t pages_per_chunk = 4;   // at least: fewer are not worth a merge
constexpr int64_t items_wanted = 64;     // chunks stop being cut finer here
constexpr int64_t blocks_per_batch = 64; // bounds the memory for queries and partial results
constexpr int64_t few_rows = 32;         // preparing so few ends before a second thread would begin
constexpr int64_t rows_per_merge = 8;    // merging so many partial results takes as long as preparing one row

// Consecutive query tokens and the heads that read one KV head. Row r: token r / heads_per_kv_head, head r % heads_per_kv_head.
struct Block {
    int kv_head;
    int64_t first_token;
    int tokens, rows;
};

// Which sums a chunk of pages has written to; the others are not even cleared. Different threads write different chunks, so
// each has a cache line of its own.
struct alignas(64) SumsUsed {
    bool natural = false, rotated = false;
};

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

bool any_sealed(const PageSource & source, int64_t pages) {
    if (!source.shape.packs) return false;
    for (int64_t page = 0; page < pages; ++page) {
        if (source.view(page, 0).state == PageState::sealed) return true;
    }
    return false;
}

// Queries of a block in the domain of sealed keys: [row][query_stride], and what every element adds to each row's score.
struct PlannedQueries {
    const float * rows;
    const float * bases;
};

class Attention {
  public:
    Attention(const PageSource & keys, const PageSource & values, const vidkv_attention_args & args,
              const Kernels & kernels);
    ~Attention() { workspace_.end(); }
    void run();

  private:
    Block block_at(int64_t index) const;
    void prepare(int64_t slot);
    void plan_queries(const ChannelPlan & plan, int64_t slot, int rows, float * planned, float * bases) const;
    int threads_for(int64_t rows) const { return rows > few_rows ? args_.threads : 1; }
    int64_t share_of_items(int64_t items) const;
    void accumulate(int64_t slot, int64_t chunk, bool cold);
    void finish(int64_t slot);

    void open_sums(const Block & block, int64_t slot, int64_t chunk, const PageView & values) const;
    void attend_page(const Block & block, int64_t slot, int64_t chunk, int64_t page, Scratch & scratch) const;
    Prefetch fetch_next(int64_t page, int kv_head, int rows) const;
    void fetch_now(int64_t page, int kv_head) const;
    int load_bias(const Block & block, int64_t first_cell, int count, Scratch & scratch) const;
    bool sees_something(int first_row, int rows, const Scratch & scratch) const;
    PlannedQueries planned_for(const Block & block, int64_t slot, int64_t page, const PageView & view,
                               Scratch & scratch) const;
    void score(int64_t slot, int first_row, int rows, const PageView & view, const KeyTile * tile,
               const PlannedQueries & planned, int count, Fetch & soon, Scratch & scratch) const;
    void weigh(const Block & block, int first_row, int rows, SoftmaxState * states, const ValueSums & sums,
               const ValueTile * tile, PackedWeights & packed, Scratch & scratch) const;
    void add_open(int rows, const PageView & view, int count, const ValueSums & sums, Scratch & scratch) const;
    void merge_row(int64_t slot, int row, int head, float * out) const;

    float * queries(int64_t slot) const { return queries_ + slot * block_rows_ * query_stride_; }
    // set: of the channel plans that some page of the keys is packed with.
    float * planned(int64_t slot, int set) const {
        return planned_ + (slot * plan_sets_ + set) * block_rows_ * query_stride_;
    }
    float * bases(int64_t slot, int set) const { return bases_ + (slot * plan_sets_ + set) * block_rows_; }
    int64_t first_row(int64_t slot, int64_t chunk) const { return (slot * chunks_ + chunk) * block_rows_; }
    SoftmaxState * states(int64_t slot, int64_t chunk) const { return states_ + (slot * chunks_ + chunk) * state_stride_; }
    // Null where nothing was summed yet.
    ValueSums sums(int64_t slot, int64_t chunk, int row) const {
        const int64_t at = (first_row(slot, chunk) + row) * sum_stride_;
        const SumsUsed & used = used_[slot * chunks_ + chunk];
        return {used.natural ? natural_ + at : nullptr, used.rotated ? rotated_ + at : nullptr, sum_stride_};
    }

    const PageSource & keys_;
    const PageSource & values_;
    const vidkv_attention_args & args_;
    const Kernels & kernels_;
    const int key_dim_, value_dim_;
    const int64_t query_stride_, sum_stride_;
    const int heads_per_kv_head_;
    const int64_t pages_; // pages that hold the cells attended to
    const int block_tokens_, block_rows_;
    const int64_t state_stride_; // whole cache lines
    const int64_t token_blocks_, blocks_, batch_;
    std::vector<float> slopes_; // [heads]
    bool has_sealed_keys_ = false;
    int plan_sets_ = 1;
    std::shared_ptr<const Rotation> rotation_; // of sealed trellis values, if there are any
    int64_t chunk_pages_ = 1, chunks_ = 1;

    int64_t first_block_ = 0; // of the batch at hand; slot s holds block first_block_ + s
    Workspace & workspace_ = Workspace::of_this_thread();
    float * queries_ = nullptr;                     // [slot][row][query_stride]: scaled
    float * planned_ = nullptr;                     // [slot][set][row][query_stride]: the same in the domain of sealed keys
    float * bases_ = nullptr;                       // [slot][set][row]: what every page of these plans adds to the score
    float *natural_ = nullptr, *rotated_ = nullptr; // [slot][chunk][row][sum_stride]: weighted sums of values
    SumsUsed * used_ = nullptr;                     // [slot][chunk]
    SoftmaxState * states_ = nullptr;               // [slot][chunk][state_stride]
    ScratchPool * scratch_ = nullptr;
};

Attention::Attention(const PageSource & keys, const PageSource & values, const vidkv_attention_args & args,
                     const Kernels & kernels)
    : keys_(keys), values_(values), args_(args), kernels_(kernels), key_dim_(keys.shape.head_dim),
      value_dim_(values.shape.head_dim), query_stride_(round_up(key_dim_, 64)), sum_stride_(round_up(value_dim_, 16)),
      heads_per_kv_head_(args.heads / keys.shape.kv_heads), pages_((args.cells + page_tokens - 1) / page_tokens),
      block_tokens_(
          static_cast<int>(std::clamp<int64_t>(rows_per_block / heads_per_kv_head_, 1, std::max<int64_t>(args.tokens, 1)))),
      block_rows_(block_tokens_ * heads_per_kv_head_),
      state_stride_(round_up(block_rows_, 64 / static_cast<int>(sizeof(SoftmaxState)))),
      token_blocks_((args.tokens + block_tokens_ - 1) / block_tokens_), blocks_(token_blocks_ * keys.shape.kv_heads),
      batch_(std::min(blocks_, blocks_per_batch)) {
    slopes_ = alibi_slopes(args.heads, args.max_bias);
    for (float & slope : slopes_) slope *= log2_e;
    if (blocks_ == 0) return;
    has_sealed_keys_ = any_sealed(keys, pages_);
    if (has_sealed_keys_) plan_sets_ = keys.plan_sets();
    if (has_sealed_keys_ && keys.shape.key_layout->narrow > 0)
        real_dft(keys.shape.key_layout->narrow); // allocates here, not in a task
    if (any_sealed(values, pages_) && values.shape.value_layout->codec == VIDKV_CODEC_TRELLIS) {
        rotation_ = rotation(value_dim_);
    }

    const int64_t wanted = std::clamp<int64_t>(items_wanted / blocks_, 1, std::max<int64_t>(pages_ / pages_per_chunk, 1));
    chunk_pages_ = std::max<int64_t>(1, (pages_ + wanted - 1) / wanted);
    chunks_ = std::max<int64_t>(1, (pages_ + chunk_pages_ - 1) / chunk_pages_);

    const size_t rows = static_cast<size_t>(batch_ * block_rows_), parts = static_cast<size_t>(batch_ * chunks_);
    const size_t query_size = rows * static_cast<size_t>(query_stride_),
                 sum_size = rows * static_cast<size_t>(chunks_ * sum_stride_), sets = static_cast<size_t>(plan_sets_);
    workspace_.begin(Workspace::size_of<float>(query_size) + Workspace::size_of<float>(sets * query_size) +
                     Workspace::size_of<float>(sets * rows) + Workspace::size_of<float>(sum_size) * 2 +
                     Workspace::size_of<SumsUsed>(parts) +
                     Workspace::size_of<SoftmaxState>(parts * static_cast<size_t>(state_stride_)));
    queries_ = workspace_.take<float>(query_size);
    planned_ = workspace_.take<float>(sets * query_size);
    bases_ = workspace_.take<float>(sets * rows);
    natural_ = workspace_.take<float>(sum_size);
    rotated_ = workspace_.take<float>(sum_size);
    used_ = workspace_.take<SumsUsed>(parts);
    states_ = workspace_.take<SoftmaxState>(parts * static_cast<size_t>(state_stride_));
    scratch_ = &workspace_.scratch(static_cast<size_t>(std::min<int64_t>(args.threads, batch_ * chunks_)),
                                   ScratchShape{key_dim_, value_dim_, block_rows_, block_tokens_, plan_sets_ == 0});
}

void Attention::run() {
    for (first_block_ = 0; first_block_ < blocks_; first_block_ += batch_) {
        const int64_t slots = std::min(batch_, blocks_ - first_block_);
        if (chunks_ == 1) {
            parallel_for(slots, args_.threads, [this](int64_t slot) {
                prepare(slot);
                accumulate(slot, 0, true);
                finish(slot);
            });
            continue;
        }
        parallel_for(slots, threads_for(slots * block_rows_), [this](int64_t slot) { prepare(slot); });
        const int64_t items = slots * chunks_, share = share_of_items(items), shares = (items + share - 1) / share;
        parallel_for(shares, args_.threads, [&](int64_t s) {
            for (int64_t i = s * share; i < std::min(items, (s + 1) * share); ++i)
                accumulate(i / chunks_, i % chunks_, i == s * share);
        });
        parallel_for(slots, threads_for(slots * block_rows_ * chunks_ / rows_per_merge),
                     [this](int64_t slot) { finish(slot); });
    }
}

Block Attention::block_at(int64_t index) const {
    Block block;
    block.kv_head = static_cast<int>(index / token_blocks_);
    block.first_token = index % token_blocks_ * block_tokens_;
    block.tokens = static_cast<int>(std::min<int64_t>(block_tokens_, args_.tokens - block.first_token));
    block.rows = block.tokens * heads_per_kv_head_;
    return block;
}

// Gathers the block's queries, scaled, and brings them to the domain of sealed keys once for all pages.
void Attention::prepare(int64_t slot) {
    const Block block = block_at(first_block_ + slot);
    const float factor = args_.softcap == 0.0f ? args_.scale * log2_e : args_.scale / args_.softcap;
    for (int r = 0; r < block.rows; ++r) {
        const int64_t token = block.first_token + r / heads_per_kv_head_;
        const int64_t head = block.kv_head * heads_per_kv_head_ + r % heads_per_kv_head_;
        const float * q = args_.q + token * args_.q_token_stride + head * args_.q_head_stride;
        float * query = queries(slot) + r * query_stride_;
        for (int c = 0; c < key_dim_; ++c) query[c] = q[c] * factor;
        std::fill(query + key_dim_, query + query_stride_, 0.0f);
    }
    for (int set = 0; has_sealed_keys_ && set < plan_sets_; ++set)
        plan_queries(keys_.plan(block.kv_head, set), slot, block.rows, planned(slot, set), bases(slot, set));
}

// The block's queries in the domain of a plan.
void Attention::plan_queries(const ChannelPlan & plan, int64_t slot, int rows, float * planned, float * bases) const {
    alignas(64) float mean[largest_head_dim];
    const int means = static_cast<int>(plan.mean.size());
    if (means > 0) kernels_.load_halves(reinterpret_cast<const uint8_t *>(plan.mean.data()), means, mean);
    for (int r = 0; r < rows; ++r) {
        const float * query = queries(slot) + r * query_stride_;
        float * in_plan = planned + r * query_stride_;
        bases[r] = all_finite(query, key_dim_) ? 0.0f : std::numeric_limits<float>::quiet_NaN();
        plan_query(*keys_.shape.key_layout, plan, query, in_plan);
        std::fill(in_plan + key_dim_, in_plan + query_stride_, 0.0f);
        bases[r] += dot(in_plan, mean, means);
    }
}

// What a key page is multiplied with: as `prepare` left it, or brought to the page's own plan.
PlannedQueries Attention::planned_for(const Block & block, int64_t slot, int64_t page, const PageView & view,
                                      Scratch & scratch) const {
    if (view.state != PageState::sealed) return {nullptr, nullptr};
    if (plan_sets_ > 0) return {planned(slot, view.plan), bases(slot, view.plan)};
    keys_.page_plan(page, block.kv_head, scratch.plan);
    plan_queries(scratch.plan, slot, block.rows, scratch.planned.get(), scratch.bases.get());
    return {scratch.planned.get(), scratch.bases.get()};
}

// How many neighbouring items a thread takes at once: each item fetches the first page of the next one, and the threads should
// finish together.
int64_t Attention::share_of_items(int64_t items) const {
    return std::max<int64_t>(1, items / (args_.threads * int64_t{16}));
}

// cold: the first page was not fetched by the item before.
void Attention::accumulate(int64_t slot, int64_t chunk, bool cold) {
    const ScratchPool::Lease lease(*scratch_);
    const Block block = block_at(first_block_ + slot);
    used_[slot * chunks_ + chunk] = {};
    std::fill_n(states(slot, chunk), block.rows, SoftmaxState{});
    const int64_t end = std::min(pages_, (chunk + 1) * chunk_pages_);
    if (cold) fetch_now(chunk * chunk_pages_, block.kv_head);
    for (int64_t page = chunk * chunk_pages_; page < end; ++page) attend_page(block, slot, chunk, page, *lease);
}

// Clears the sums that values of such a page are added to, if nothing was added to them yet.
void Attention::open_sums(const Block & block, int64_t slot, int64_t chunk, const PageView & values) const {
    SumsUsed & used = used_[slot * chunks_ + chunk];
    const bool sealed = values.state == PageState::sealed,
               rotated = sealed && values_.shape.value_layout->codec == VIDKV_CODEC_TRELLIS;
    const bool natural = values.state == PageState::open || (sealed && (!rotated || values.sink_count > 0));
    const int64_t at = first_row(slot, chunk) * sum_stride_, count = block.rows * sum_stride_;
    if (natural && !used.natural) std::fill_n(natural_ + at, count, 0.0f);
    if (rotated && !used.rotated) std::fill_n(rotated_ + at, count, 0.0f);
    used = {used.natural || natural, used.rotated || rotated};
}

// Keys, then values, of a page: each is unpacked once for all rows of the block.
void Attention::attend_page(const Block & block, int64_t slot, int64_t chunk, int64_t page, Scratch & scratch) const {
    const int64_t first_cell = page * page_tokens;
    const int cells = static_cast<int>(std::min<int64_t>(page_tokens, args_.cells - first_cell));
    const int count = load_bias(block, first_cell, cells, scratch); // no row of the block sees the cells behind these
    if (count == 0) return;
    const PageView keys = keys_.view(page, block.kv_head);
    const PageView values = values_.view(page, block.kv_head);
    open_sums(block, slot, chunk, values);
    Prefetch soon = fetch_next(page + 1, block.kv_head, block.rows);
    std::optional<KeyTile> key_tile;
    if (keys.state == PageState::sealed) {
        key_tile.emplace(kernels_, *keys_.shape.key_layout, key_page(*keys_.shape.key_layout, keys.page, block.kv_head),
                         block.rows, scratch);
    }
    std::optional<ValueTile> value_tile;
    if (values.state == PageState::sealed) {
        value_tile.emplace(kernels_, *values_.shape.value_layout,
                           value_page(*values_.shape.value_layout, values.page, block.kv_head), block.rows, scratch);
    }
    const PlannedQueries planned = planned_for(block, slot, page, keys, scratch);
    for (int first = 0; first < block.rows; first += row_block) {
        const int rows = std::min(row_block, block.rows - first);
        if (!sees_something(first, rows, scratch)) continue;
        const ValueSums to = sums(slot, chunk, first);
        score(slot, first, rows, keys, key_tile ? &*key_tile : nullptr, planned, count, soon.during_scores, scratch);
        PackedWeights & packed = scratch.weights[first / row_block];
        const bool at_once = value_tile && values.sink_count == 0 && !value_tile->rule().token;
        weigh(block, first, rows, states(slot, chunk) + first, to, at_once ? &*value_tile : nullptr, packed, scratch);
        if (at_once) continue;
        add_open(rows, values, count, to, scratch);
        if (value_tile) kernels_.pack_weights(scratch.scores.get(), rows, value_tile->rule(), packed);
    }
    if (!value_tile) return;
    value_tile->unpack();
    for (int first = 0; first < block.rows; first += row_block) {
        const int rows = std::min(row_block, block.rows - first);
        if (!sees_something(first, rows, scratch)) continue;
        value_tile->add(rows, scratch.weights[first / row_block], sums(slot, chunk, first), soon.during_sums);
    }
}

// The bytes of the next page, to be fetched while `rows` query rows are computed on this one: what is small at once. Kernels on f16
// rows look ahead themselves, but for the first rows.
Prefetch Attention::fetch_next(int64_t page, int kv_head, int rows) const {
    Prefetch soon;
    if (page >= pages_) return soon;
    const PageView keys = keys_.view(page, kv_head), values = values_.view(page, kv_head);
    if (keys.state == PageState::sealed) {
        const KeyLayout & layout = *keys_.shape.key_layout;
        const KeyPage at = key_page(layout, keys.page, kv_head);
        const bool shared = layout.codec == VIDKV_CODEC_TRELLIS; // all heads' codes together: take a head's share
        const size_t codes = shared ? layout.head_codes / static_cast<size_t>(layout.kv_heads) : layout.head_codes;
        prefetch(at.meta, layout.head_meta);
        soon.during_scores = Fetch(at.codes, codes, int64_t{rows} * page_tokens);
    } else if (keys.state == PageState::open) {
        prefetch_rows(keys.rows, keys_.shape.channels(), std::min(keys.held, rows_ahead), key_dim_);
    }
    if (values.state == PageState::sealed) {
        const ValueLayout & layout = *values_.shape.value_layout;
        const ValuePage at = value_page(layout, values.page, kv_head);
        prefetch(at.meta, layout.head_meta(at.protected_units));
        soon.during_sums = Fetch(at.codes, layout.head_codes(at.protected_units), int64_t{rows} * value_dim_);
    } else if (values.state == PageState::open) {
        prefetch_rows(values.rows, values_.shape.channels(), std::min(values.held, rows_ahead), value_dim_);
    }
    if (page + 1 < pages_) { // where the head's codes start is read when the page after it is looked up
        const PageView later = keys_.view(page + 1, kv_head);
        if (later.state == PageState::sealed)
            __builtin_prefetch(key_code_start(*keys_.shape.key_layout, later.page, kv_head));
    }
    return soon;
}

// Before the first page, which no page before it has fetched.
void Attention::fetch_now(int64_t page, int kv_head) const {
    Prefetch soon = fetch_next(page, kv_head, 1);
    soon.during_scores.part(page_tokens).rest();
    soon.during_sums.part(value_dim_).rest();
}

// Fills the page's bias and each token's MaskKind; returns the number of leading cells that hold all that any token sees.
int Attention::load_bias(const Block & block, int64_t first_cell, int count, Scratch & scratch) const {
    int seen = 0;
    for (int t = 0; t < block.tokens; ++t) {
        int shown = count;
        if (args_.causal) {
            const int64_t last = args_.cells - args_.tokens + block.first_token + t;
            shown = static_cast<int>(std::clamp<int64_t>(last + 1 - first_cell, 0, count));
        }
        float * bias = scratch.bias.get() + t * page_tokens;
        MaskKind & kind = scratch.mask[t];
        kind = shown > 0 ? MaskKind::zero : MaskKind::hidden;
        if (args_.mask && shown > 0) {
            kind = kernels_.load_mask(args_.mask + (block.first_token + t) * args_.mask_stride + first_cell, shown, bias);
        } else if (shown < page_tokens) {
            std::fill_n(bias, shown, 0.0f);
        }
        std::fill(bias + shown, bias + page_tokens, -infinity);
        if (kind == MaskKind::zero && shown < page_tokens) kind = MaskKind::mixed;
        if (kind == MaskKind::hidden) continue;
        while (kind == MaskKind::mixed && shown > seen && bias[shown - 1] == -infinity) --shown;
        seen = std::max(seen, shown);
    }
    return seen;
}

bool Attention::sees_something(int first_row, int rows, const Scratch & scratch) const {
    for (int t = first_row / heads_per_kv_head_; t <= (first_row + rows - 1) / heads_per_kv_head_; ++t) {
        if (scratch.mask[t] != MaskKind::hidden) return true;
    }
    return false;
}

// scratch.scores = query . key. Sink cells of a sealed page are read from their f16 rows, with the query in natural order.
void Attention::score(int64_t slot, int first_row, int rows, const PageView & view, const KeyTile * tile,
                      const PlannedQueries & planned, int count, Fetch & soon, Scratch & scratch) const {
    float * scores = scratch.scores.get();
    const float * natural = queries(slot) + first_row * query_stride_;
    const int open = std::min(count, view.held); // 0 unless the page is open
    if (tile) {
        tile->score({planned.rows + first_row * query_stride_, query_stride_, rows, planned.bases + first_row}, soon);
    } else if (open < page_tokens) {
        std::fill_n(scores, rows * page_tokens, 0.0f);
    }
    if (open > 0) {
        kernels_.score_halves(natural, query_stride_, rows, {view.rows, keys_.shape.channels(), open, key_dim_}, scores);
    }
    if (tile && view.sink_count > 0) {
        alignas(64) float sinks[row_block * page_tokens];
        kernels_.score_halves(natural, query_stride_, rows,
                              {view.sink_rows, keys_.shape.channels(), view.sink_count, key_dim_}, sinks);
        for (int r = 0; r < rows; ++r) std::copy_n(sinks + r * page_tokens, view.sink_count, scores + r * page_tokens);
    }
}

// Scores -> softmax weights, with a tile -> packed ones; what was summed relative to a smaller reference is scaled down.
void Attention::weigh(const Block & block, int first_row, int rows, SoftmaxState * states, const ValueSums & sums,
                      const ValueTile * tile, PackedWeights & packed, Scratch & scratch) const {
    const float * bias[row_block];
    float slopes[row_block], factors[row_block];
    for (int r = 0; r < rows; ++r) {
        const int token = (first_row + r) / heads_per_kv_head_;
        bias[r] = scratch.mask[token] == MaskKind::zero ? nullptr : scratch.bias.get() + token * page_tokens;
        slopes[r] = slopes_[block.kv_head * heads_per_kv_head_ + (first_row + r) % heads_per_kv_head_];
    }
    const SoftmaxTile softmax{scratch.scores.get(), rows, bias, slopes, args_.softcap * log2_e, states, factors};
    tile ? kernels_.weigh(softmax, tile->rule(), packed) : kernels_.softmax(softmax);
    for (int r = 0; r < rows; ++r) {
        if (factors[r] == 1.0f) continue;
        if (sums.natural) kernels_.scale(sums.natural + r * sums.stride, static_cast<int>(sums.stride), factors[r]);
        if (sums.rotated) kernels_.scale(sums.rotated + r * sums.stride, static_cast<int>(sums.stride), factors[r]);
    }
}

// Values in f16: an open page, or the sink cells of a sealed one, which then have no weight among its codes.
void Attention::add_open(int rows, const PageView & view, int count, const ValueSums & sums, Scratch & scratch) const {
    if (view.state == PageState::empty) return;
    const bool sealed = view.state == PageState::sealed;
    const int n = std::min(sealed ? view.sink_count : view.held, count);
    if (n == 0) return;
    float * weights = scratch.scores.get();
    kernels_.add_halves(weights, rows, {sealed ? view.sink_rows : view.rows, values_.shape.channels(), n, value_dim_},
                        sums.natural, sums.stride);
    if (!sealed) return;
    for (int r = 0; r < rows; ++r) std::fill_n(weights + r * page_tokens, n, 0.0f);
}

void Attention::finish(int64_t slot) {
    const Block block = block_at(first_block_ + slot);
    for (int r = 0; r < block.rows; ++r) {
        const int64_t token = block.first_token + r / heads_per_kv_head_;
        const int head = block.kv_head * heads_per_kv_head_ + r % heads_per_kv_head_;
        merge_row(slot, r, head, args_.out + token * args_.out_token_stride + head * args_.out_head_stride);
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

} // namespace

void attend(const Store & keys, const Store & values, const vidkv_attention_args & args, const Kernels & kernels) {
    attend(StorePages(keys, args.sequence), StorePages(values, args.value_sequence), args, kernels);
}

void attend(const PageSource & keys, const PageSource & values, const vidkv_attention_args & args,
            const Kernels & kernels) {
    Attention(keys, values, args, kernels).run();
}

} // namespace vidkv
