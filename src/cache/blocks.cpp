#include "cache/blocks.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <string>

#include "base/error.h"
#include "base/half.h"
#include "codec/presets.h"
#include "codec/two_bit.h"
#include "kernels/prefetch.h"

namespace vidkv {

namespace {

constexpr uint32_t magic = 0x31424b56; // "VKB1"
constexpr size_t header_bytes = 8;     // magic, u8 begins, u8 zero, u16 sink tokens
constexpr int learned_tokens = 4096;   // as which the queries learned before count in a block
constexpr int64_t patience = 4;        // batches that the rows of a packed block outlive their last use by

AlignedBytes make_bytes(size_t bytes) { return AlignedBytes(new (std::align_val_t{64}) uint8_t[bytes]()); }

size_t aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }

bool is_finite_half(uint16_t half) { return (half & 0x7c00u) != 0x7c00u; }

vidkv_status refuse(const std::string & message) { return fail(VIDKV_E_ARGUMENT, "blocks: " + message); }

} // namespace

BlockLayout::BlockLayout(const vidkv_params & params, int heads, int dim)
    : kv_heads(heads), head_dim(dim), sinks(params.sink_tokens), packs_keys(!is_f16(params, VIDKV_KEYS)),
      packs_values(!is_f16(params, VIDKV_VALUES)), has_means(packs_keys && params.key_codec == VIDKV_CODEC_TRELLIS) {
    if (packs_keys) keys = make_key_layout(params, head_dim, kv_heads);
    if (packs_values) values = make_value_layout(params, head_dim, kv_heads);
    const size_t channel_count = static_cast<size_t>(channels());
    values_at = aligned(packs_keys ? keys.page_bytes : row_elements() * 2);
    order_at = values_at + aligned(packs_values ? values.page_bytes(0) : row_elements() * 2);
    means_at = order_at + (packs_keys ? aligned(channel_count * order_bytes()) : 0);
    bytes = means_at + (has_means ? aligned(channel_count * 2) : 0);
}

vidkv_status check_blocks(const vidkv_blocks_shape & shape, const vidkv_params & params) {
    if (shape.kv_heads < 1 || shape.kv_heads > most_channels / 8) return refuse("the number of KV heads is out of range");
    if (shape.head_dim < 8 || shape.head_dim > 512) return refuse("head_dim must be a multiple of 8 from 8 to 512");
    for (const vidkv_side side : {VIDKV_KEYS, VIDKV_VALUES}) {
        const vidkv_store_shape one{side, shape.kv_heads * shape.head_dim, shape.head_dim, page_tokens, 1};
        if (vidkv_status status = check_store(one, params)) return status;
    }
    if (params.protect > 0.0f)
        return refuse("presets that protect tokens (-stp) make pages of unequal size: use one without");
    return VIDKV_OK;
}

Blocks::Blocks(const vidkv_blocks_shape & shape, const vidkv_params & params)
    : params_(params), layout_(params, shape.kv_heads, shape.head_dim), memory_(shape.memory), stride_(shape.stride),
      spare_(static_cast<size_t>(std::max(shape.spare, 0))), blocks_(static_cast<size_t>(shape.blocks)) {}

size_t Blocks::rows_bytes() const {
    return layout_.row_elements() * 2 * static_cast<size_t>(int{layout_.packs_keys} + int{layout_.packs_values});
}

uint16_t * Blocks::rows_of(const Block & block, vidkv_side side) const {
    const size_t at = side == VIDKV_VALUES && layout_.packs_keys ? layout_.row_elements() : 0;
    return reinterpret_cast<uint16_t *>(block.rows.get()) + at;
}

uint16_t * Blocks::rows_of(int64_t index, vidkv_side side) const {
    if (layout_.packs(side)) return rows_of(blocks_[static_cast<size_t>(index)], side);
    return reinterpret_cast<uint16_t *>(memory(index) + (side == VIDKV_KEYS ? 0 : layout_.values_at));
}

// Gives a block rows of its own, decoded if it is packed.
void Blocks::open(int64_t index) {
    Block & block = blocks_[static_cast<size_t>(index)];
    if (rows_bytes() == 0) return;
    if (!block.rows) {
        AlignedBytes rows = make_bytes(rows_bytes());
        if (block.sealed) {
            for (const vidkv_side side : {VIDKV_KEYS, VIDKV_VALUES}) {
                if (!layout_.packs(side)) continue;
                const size_t at = side == VIDKV_VALUES && layout_.packs_keys ? layout_.row_elements() : 0;
                read(side, index, reinterpret_cast<uint16_t *>(rows.get()) + at);
            }
        }
        if (!block.listed) listed_.push_back(index);
        block.listed = true;
        block.rows = std::move(rows);
    }
    block.sealed = false;
    block.sinks.reset();
}

vidkv_status Blocks::prepare(int64_t index, int cell, int64_t first) {
    Block & block = blocks_[static_cast<size_t>(index)];
    if (cell > block.filled) {
        return refuse("block " + std::to_string(index) + " holds " + std::to_string(block.filled) + " tokens: token " +
                      std::to_string(cell) + " cannot be written behind them");
    }
    if (cell == 0) {
        block.sealed = false; // what it held is another text's
        block.begins = first == 0;
        block.queries.reset();
    }
    open(index);
    block.filled = static_cast<uint8_t>(cell);
    block.used = clock_;
    if (layout_.packs_keys && wants_queries(params_) && !block.queries) {
        block.queries = std::make_unique<QueryStatistics>(layout_.kv_heads, layout_.head_dim);
        if (const QueryStatistics * learned = learned_for(first)) block.queries->begin_with(*learned, learned_tokens);
    }
    return VIDKV_OK;
}

const QueryStatistics * Blocks::learned_for(int64_t first) const {
    const auto behind = learned_.upper_bound(first);
    return behind == learned_.begin() ? nullptr : &std::prev(behind)->second;
}

void Blocks::learn(int64_t from, const float * q, int64_t tokens, int heads, int64_t token_stride) {
    if (tokens < 1) return learned_.clear();
    if (!layout_.packs_keys || !wants_queries(params_)) return;
    QueryStatistics learned(layout_.kv_heads, layout_.head_dim);
    learned.count(q, tokens, heads, token_stride, layout_.head_dim);
    learned_.insert_or_assign(from, std::move(learned));
}

void Blocks::fill(int64_t index, int cell, int n, const TokenRows & tokens) {
    Block & block = blocks_[static_cast<size_t>(index)];
    const size_t channels = static_cast<size_t>(layout_.channels());
    for (const vidkv_side side : {VIDKV_KEYS, VIDKV_VALUES}) {
        const float * from = side == VIDKV_KEYS ? tokens.k : tokens.v;
        const int64_t stride = side == VIDKV_KEYS ? tokens.k_stride : tokens.v_stride;
        uint16_t * to = rows_of(index, side) + static_cast<size_t>(cell) * channels;
        for (int t = 0; t < n; ++t, from += stride, to += channels) {
            for (size_t c = 0; c < channels; ++c) to[c] = float_to_half(from[c]);
        }
    }
    if (block.queries && tokens.q) block.queries->count(tokens.q, n, tokens.heads, tokens.q_stride, layout_.head_dim);
    block.filled = static_cast<uint8_t>(cell + n);
}

namespace {

PageBits first_cells(int from, int to) {
    PageBits bits{};
    for (int t = from; t < to; ++t) bits[t / 64] |= uint64_t{1} << (t % 64);
    return bits;
}

} // namespace

void Blocks::seal(std::vector<int64_t> indices, int threads) {
    std::sort(indices.begin(), indices.end());
    indices.erase(std::unique(indices.begin(), indices.end()), indices.end());
    std::erase_if(indices, [&](int64_t i) {
        const Block & block = blocks_[static_cast<size_t>(i)];
        return block.sealed || block.filled == 0 || !block.rows;
    });
    std::vector<SealJob> jobs;
    jobs.reserve(indices.size() * 2);
    for (const int64_t index : indices) {
        Block & block = blocks_[static_cast<size_t>(index)];
        const PageBits use = first_cells(sinks_in(block), block.filled);
        for (const vidkv_side side : {VIDKV_KEYS, VIDKV_VALUES}) {
            if (!layout_.packs(side)) continue;
            SealJob & job = jobs.emplace_back();
            (side == VIDKV_KEYS ? job.key_layout = &layout_.keys : nullptr);
            (side == VIDKV_VALUES ? job.value_layout = &layout_.values : nullptr);
            job.statistics = block.queries.get();
            job.pages.push_back({rows_of(block, side), page_tokens, use, {}, 0});
        }
        if (sinks_in(block) > 0) keep_sinks(block);
    }
    vidkv::seal(jobs, threads);
    size_t next = 0;
    for (const int64_t index : indices) {
        if (layout_.packs_keys) take_keys(index, jobs[next++]);
        if (layout_.packs_values) {
            const PageBytes & page = *jobs[next++].sealed[0];
            std::memcpy(memory(index) + layout_.values_at, page.data(), page.size());
        }
        Block & block = blocks_[static_cast<size_t>(index)];
        block.sealed = true;
        block.queries.reset();
    }
}

void Blocks::take_keys(int64_t index, const SealJob & job) {
    uint8_t * to = memory(index);
    const PageBytes & page = *job.sealed[0];
    std::memcpy(to, page.data(), page.size());
    const size_t head_dim = static_cast<size_t>(layout_.head_dim);
    for (size_t head = 0; head < job.plans.size(); ++head) {
        const ChannelPlan & plan = job.plans[head];
        for (size_t c = 0; c < head_dim; ++c) {
            const size_t at = head * head_dim + c;
            if (layout_.order_bytes() == 1) {
                to[layout_.order_at + at] = static_cast<uint8_t>(plan.order[c]);
            } else {
                store_at(to + layout_.order_at, at, plan.order[c]);
            }
            if (layout_.has_means) store_at(to + layout_.means_at, at, plan.mean[c]);
        }
    }
}

// Both sides have room; that of an f16 side is not used.
void Blocks::keep_sinks(Block & block) {
    const size_t elements = static_cast<size_t>(layout_.sinks) * static_cast<size_t>(layout_.channels());
    auto sinks = std::make_unique<uint16_t[]>(2 * elements);
    for (const vidkv_side side : {VIDKV_KEYS, VIDKV_VALUES}) {
        if (layout_.packs(side))
            std::copy_n(rows_of(block, side), elements, sinks.get() + (side == VIDKV_KEYS ? 0 : elements));
    }
    block.sinks = std::move(sinks);
}

void Blocks::settle(const std::vector<int64_t> & window, int threads) {
    for (const int64_t index : window) blocks_[static_cast<size_t>(index)].used = clock_;
    std::vector<int64_t> idle;
    for (const int64_t index : listed_) {
        Block & block = blocks_[static_cast<size_t>(index)];
        if (block.sealed && block.used + patience < clock_) block.rows.reset();
        if (!block.sealed && block.used < clock_) idle.push_back(index);
    }
    if (idle.size() > spare_) {
        std::sort(idle.begin(), idle.end(), [&](int64_t a, int64_t b) {
            const Block &x = blocks_[static_cast<size_t>(a)], &y = blocks_[static_cast<size_t>(b)];
            return x.used != y.used ? x.used < y.used : a < b;
        });
        idle.resize(idle.size() - spare_);
        seal(idle, threads);
        for (const int64_t index : idle) blocks_[static_cast<size_t>(index)].rows.reset();
    }
    std::erase_if(listed_, [&](int64_t index) {
        Block & block = blocks_[static_cast<size_t>(index)];
        return !block.rows && !(block.listed = false);
    });
    ++clock_;
}

PageView Blocks::view(vidkv_side side, int64_t index, int kv_head, bool rows) const {
    const Block & block = blocks_[static_cast<size_t>(index)];
    const size_t offset = static_cast<size_t>(kv_head) * static_cast<size_t>(layout_.head_dim);
    PageView view;
    if (!layout_.packs(side) || (block.rows && (rows || !block.sealed))) {
        view.state = PageState::open;
        view.rows = rows_of(index, side) + offset;
        view.held = page_tokens;
    } else if (block.sealed) {
        view.state = PageState::sealed;
        view.page = memory(index) + (side == VIDKV_KEYS ? 0 : layout_.values_at);
        view.sink_count = sinks_in(block);
        const size_t sinks = static_cast<size_t>(layout_.sinks) * static_cast<size_t>(layout_.channels());
        if (view.sink_count > 0) view.sink_rows = block.sinks.get() + (side == VIDKV_KEYS ? 0 : sinks) + offset;
    }
    return view;
}

void Blocks::plan(int64_t index, int kv_head, ChannelPlan & out) const { plan_in(memory(index), kv_head, out); }

void Blocks::fetch_plan(int64_t index, int kv_head) const {
    const size_t head_dim = static_cast<size_t>(layout_.head_dim), first = static_cast<size_t>(kv_head) * head_dim;
    prefetch(memory(index) + layout_.order_at + first * layout_.order_bytes(), head_dim * layout_.order_bytes());
    if (layout_.has_means) prefetch(memory(index) + layout_.means_at + first * 2, head_dim * 2);
}

void Blocks::plan_in(const uint8_t * bytes, int kv_head, ChannelPlan & out) const {
    const size_t head_dim = static_cast<size_t>(layout_.head_dim), first = static_cast<size_t>(kv_head) * head_dim;
    out.wide = layout_.keys.wide;
    out.order.resize(head_dim);
    out.mean.resize(layout_.has_means ? head_dim : 0);
    const uint8_t * order = bytes + layout_.order_at;
    for (size_t c = 0; c < head_dim; ++c) {
        out.order[c] = layout_.order_bytes() == 1 ? order[first + c] : load_at<uint16_t>(order, first + c);
    }
    if (layout_.has_means) std::memcpy(out.mean.data(), bytes + layout_.means_at + first * 2, head_dim * 2);
}

void Blocks::read(vidkv_side side, int64_t index, uint16_t * rows) const {
    const Block & block = blocks_[static_cast<size_t>(index)];
    const size_t channels = static_cast<size_t>(layout_.channels()), head_dim = static_cast<size_t>(layout_.head_dim);
    std::fill_n(rows, layout_.row_elements(), uint16_t{0});
    if (!layout_.packs(side) || block.rows) {
        std::copy_n(rows_of(index, side), static_cast<size_t>(block.filled) * channels, rows);
        return;
    }
    if (!block.sealed) return;
    const bool keys = side == VIDKV_KEYS;
    std::vector<float> x(static_cast<size_t>(page_tokens) * head_dim);
    ChannelPlan plan_of_head;
    for (int head = 0; head < layout_.kv_heads; ++head) {
        const PageView page = view(side, index, head, false);
        if (keys) {
            plan(index, head, plan_of_head);
            decode_keys(layout_.keys, plan_of_head, key_page(layout_.keys, page.page, head), x.data());
        } else {
            decode_values(layout_.values, value_page(layout_.values, page.page, head), x.data());
        }
        for (size_t t = 0; t < block.filled; ++t) {
            uint16_t * row = rows + t * channels + static_cast<size_t>(head) * head_dim;
            for (size_t c = 0; c < head_dim; ++c)
                row[c] = float_to_half(sanitize(x[keys ? c * page_tokens + t : t * head_dim + c]));
            if (static_cast<int>(t) < page.sink_count) std::copy_n(page.sink_rows + t * channels, head_dim, row);
        }
    }
}

size_t Blocks::export_bytes(int64_t index) const {
    const Block & block = blocks_[static_cast<size_t>(index)];
    if (block.filled != page_tokens || (rows_bytes() != 0 && !block.sealed)) return 0;
    return header_bytes + layout_.bytes + (rows_bytes() != 0 ? static_cast<size_t>(sinks_in(block)) * sink_row_bytes() : 0);
}

void Blocks::export_to(int64_t index, uint8_t * out) const {
    const Block & block = blocks_[static_cast<size_t>(index)];
    const size_t sinks = export_bytes(index) - header_bytes - layout_.bytes;
    store_at(out, 0, magic);
    out[4] = block.begins;
    out[5] = 0;
    store_at(out, 3, static_cast<uint16_t>(layout_.sinks));
    std::memcpy(out + header_bytes, memory(index), layout_.bytes);
    if (sinks > 0) std::memcpy(out + header_bytes + layout_.bytes, block.sinks.get(), sinks);
}

// Whether bytes of unknown origin can be read: codes lie inside, orders are orders, numbers are finite.
bool Blocks::is_sound_block(const uint8_t * bytes) const {
    if (layout_.packs_keys && !is_sound(layout_.keys, bytes, layout_.keys.page_bytes)) return false;
    if (layout_.packs_values && !is_sound(layout_.values, bytes + layout_.values_at, layout_.values.page_bytes(0)))
        return false;
    ChannelPlan plan_of_head;
    for (int head = 0; head < layout_.kv_heads && layout_.packs_keys; ++head) {
        plan_in(bytes, head, plan_of_head);
        if (!is_permutation(plan_of_head.order)) return false;
        if (!std::all_of(plan_of_head.mean.begin(), plan_of_head.mean.end(), is_finite_half)) return false;
    }
    return true;
}

vidkv_status Blocks::import_from(int64_t index, const uint8_t * bytes, size_t size) {
    const auto altered = [] {
        return fail(VIDKV_E_FORMAT, "blocks: these are not the bytes of a block of this shape and preset");
    };
    if (size < header_bytes + layout_.bytes || load_at<uint32_t>(bytes) != magic || bytes[4] > 1) return altered();
    const bool begins = bytes[4] == 1;
    const size_t sinks = begins && rows_bytes() != 0 ? static_cast<size_t>(layout_.sinks) * sink_row_bytes() : 0;
    if (size != header_bytes + layout_.bytes + sinks || load_at<uint16_t>(bytes, 3) != layout_.sinks) return altered();
    const AlignedBytes page = make_bytes(layout_.bytes); // aligned, as the readers want it
    std::memcpy(page.get(), bytes + header_bytes, layout_.bytes);
    if (!is_sound_block(page.get())) return altered();
    std::unique_ptr<uint16_t[]> sink_rows;
    if (sinks > 0) {
        sink_rows = std::make_unique<uint16_t[]>(sinks / 2);
        std::memcpy(sink_rows.get(), bytes + header_bytes + layout_.bytes, sinks);
    }
    Block & block = blocks_[static_cast<size_t>(index)];
    std::memcpy(memory(index), page.get(), layout_.bytes);
    block.rows.reset();
    block.queries.reset();
    block.sinks = std::move(sink_rows);
    block.begins = begins;
    block.filled = page_tokens;
    block.sealed = rows_bytes() != 0;
    return VIDKV_OK;
}

vidkv_blocks_stats Blocks::stats() const {
    vidkv_blocks_stats stats{};
    stats.bytes_beside = blocks_.capacity() * sizeof(Block) + listed_.capacity() * sizeof(int64_t);
    for (const auto & [from, learned] : learned_) stats.bytes_beside += learned.bytes();
    for (const Block & block : blocks_) {
        stats.open += block.rows != nullptr;
        stats.packed += block.sealed;
        if (block.queries) stats.bytes_beside += block.queries->bytes();
        if (block.sinks) stats.bytes_beside += static_cast<size_t>(layout_.sinks) * sink_row_bytes();
    }
    stats.bytes_rows = static_cast<uint64_t>(stats.open) * rows_bytes();
    stats.bytes_beside += stats.bytes_rows;
    return stats;
}

} // namespace vidkv
