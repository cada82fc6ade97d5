// One page of keys and values against a block of queries: scores, softmax, weighted sums.
#include <algorithm>
#include <optional>

#include "attention/job.h"

namespace vidkv {

namespace {

// Rows that were not used before get sums of zero.
void use_more(Rows & used, Rows wanted, float * sums, int64_t stride) {
    if (used.count == 0) used = {wanted.first, 0};
    const int first = std::min(used.first, wanted.first), end = std::max(used.end(), wanted.end());
    std::fill(sums + first * stride, sums + used.first * stride, 0.0f);
    std::fill(sums + used.end() * stride, sums + end * stride, 0.0f);
    used = {first, end - first};
}

// Few metadata are fetched at once; returns what is left to be fetched.
Bytes fetch_few(const uint8_t * meta, size_t n) {
    constexpr size_t few = 512;
    if (n > few) return {meta, n};
    prefetch(meta, n);
    return {};
}

} // namespace

// Clears the sums that values of such a page are added to, if nothing was added to them yet.
void Attention::open_sums(Rows rows, int64_t slot, const PageAt & page) const {
    const PageView & values = page.values;
    SumsUsed & used = used_[slot * chunks_ + page.item->chunk];
    const bool sealed = values.state == PageState::sealed,
               rotated = sealed && values_.shape.value_layout->codec == VIDKV_CODEC_TRELLIS;
    const bool natural = values.state == PageState::open || (sealed && (!rotated || values.sink_count > 0));
    const int64_t at = first_row(slot, page.item->chunk) * sum_stride_;
    if (natural) use_more(used.natural, rows, natural_ + at, sum_stride_);
    if (rotated) use_more(used.rotated, rows, rotated_ + at, sum_stride_);
}

// Where the codes of a page are, which its metadata say.
void Attention::find_codes(PageAt & at) const {
    if (!at.item) return;
    const int kv_head = at.item->block.kv_head;
    for (int h = 0; at.keys.state == PageState::sealed && h < at.item->heads; ++h)
        at.key[h] = key_page(*keys_.shape.key_layout, at.keys.page, kv_head + h);
    for (int h = 0; at.values.state == PageState::sealed && h < at.item->heads; ++h)
        at.value[h] = value_page(*values_.shape.value_layout, at.values.page, kv_head + h);
}

// Keys, then values, of a page: each is unpacked once for all rows of the block that see it. Each step is done for all heads before the
// next one: its code is fetched once, and one head need not wait for what another one computes.
void Attention::attend_page(const PageAt & now, const PageAt & next, const PageAt & after, Scratch & scratch) const {
    const Item & item = *now.item;
    const Seen seen = load_bias(item.block, now.page, scratch);
    if (seen.cells == 0) return;
    fetch_start(after);
    std::array<HeadAt, most_heads> all;
    const std::span<HeadAt> heads(all.data(), static_cast<size_t>(item.heads));
    for (int h = 0; h < item.heads; ++h) {
        HeadAt & of = heads[h];
        of.slot = item.slot + h;
        of.head = h;
        of.scratch = &scratch.tiles[h];
        of.soon = {fetch_values(now, h, seen.rows.count), fetch_keys(next, h, seen.rows.count)};
        open_sums(seen.rows, of.slot, now);
        if (now.keys.state != PageState::sealed) continue;
        of.keys.emplace(kernels_, *keys_.shape.key_layout, now.key[h], seen.rows.count, *of.scratch);
        of.queries = planned_for(now, of, seen.rows, scratch);
    }
    const auto for_row_blocks = [&](const auto & body) {
        for (int block = 0, first = seen.rows.first, end = seen.rows.end(); first < end; first += row_block, ++block) {
            const Rows rows{first, std::min(row_block, end - first)};
            if (sees_something(item.block, rows, scratch)) body(rows, block);
        }
    };
    for_row_blocks([&](Rows rows, int block) {
        for (HeadAt & of : heads) score(now, of, rows, seen.cells);
        for (HeadAt & of : heads) {
            if (now.values.state == PageState::sealed && !of.values) // not earlier: its metadata have been fetched since
                of.values.emplace(kernels_, *values_.shape.value_layout, now.value[of.head], seen.rows.count, *of.scratch);
            weigh(now, of, rows, seen, of.scratch->weights[block], scratch);
        }
    });
    if (now.values.state != PageState::sealed) return;
    for (HeadAt & of : heads) {
        of.values->unpack();
        for_row_blocks([&](Rows rows, int block) {
            of.values->add(rows.count, of.scratch->weights[block], sums(of.slot, item.chunk, rows.first),
                           of.soon.during_sums);
        });
    }
}

// The bytes of a head's keys of a page, to be fetched while the values of the page before it are added, for `rows` query rows. Kernels on
// f16 rows look ahead themselves, but for the first rows.
Fetch Attention::fetch_keys(const PageAt & at, int head, int rows) const {
    if (!at.item || head >= at.item->heads) return {};
    if (at.keys.state == PageState::sealed) {
        const KeyLayout & layout = *keys_.shape.key_layout;
        const bool shared = layout.codec == VIDKV_CODEC_TRELLIS; // all heads' codes together: take a head's share
        const size_t codes = shared ? layout.head_codes / static_cast<size_t>(layout.kv_heads) : layout.head_codes;
        return Fetch(fetch_few(at.key[head].meta, layout.head_meta), {at.key[head].codes, codes},
                     int64_t{rows} * value_dim_);
    }
    if (at.keys.state == PageState::open)
        prefetch_rows(at.keys.rows + head * key_dim_, keys_.shape.channels(), std::min(at.keys.held, rows_ahead), key_dim_);
    return {};
}

// The same of its values, while its keys are scored.
Fetch Attention::fetch_values(const PageAt & at, int head, int rows) const {
    if (at.values.state == PageState::sealed) {
        const ValueLayout & layout = *values_.shape.value_layout;
        const ValuePage & page = at.value[head];
        return Fetch(fetch_few(page.meta, layout.head_meta(page.protected_units)),
                     {page.codes, layout.head_codes(page.protected_units)}, int64_t{rows} * page_tokens);
    }
    if (at.values.state == PageState::open) {
        prefetch_rows(at.values.rows + head * value_dim_, values_.shape.channels(), std::min(at.values.held, rows_ahead),
                      value_dim_);
    }
    return {};
}

// What find_codes reads of a page that comes after the next one, and what Walk::step reads of the page behind that.
void Attention::fetch_start(const PageAt & at) const {
    if (!at.item) return;
    for (int h = 0; h < at.item->heads; ++h) {
        const int kv_head = at.item->block.kv_head + h;
        if (at.keys.state == PageState::sealed)
            __builtin_prefetch(key_code_start(*keys_.shape.key_layout, at.keys.page, kv_head));
        if (at.values.state == PageState::sealed)
            __builtin_prefetch(value_page_start(*values_.shape.value_layout, at.values.page, kv_head));
    }
    if (at.page + 1 >= pages_) return;
    keys_.fetch_view(at.page + 1);
    values_.fetch_view(at.page + 1);
}

// Before the first page, which no page before it has fetched.
void Attention::fetch_now(const PageAt & at) const {
    for (int h = 0; at.item && h < at.item->heads; ++h) fetch_keys(at, h, 1).rest();
}

// Fills the page's bias and each token's MaskKind.
Seen Attention::load_bias(const Block & block, int64_t page, Scratch & scratch) const {
    const auto [first_reader, last_reader] = keys_.readers(page);
    const int64_t first_cell = keys_.place(page) * page_tokens;
    const int from = static_cast<int>(std::max<int64_t>(first_tokens_[first_reader] - block.first_token, 0));
    const int to = static_cast<int>(std::min<int64_t>(first_tokens_[last_reader + 1] - block.first_token, block.tokens));
    int first = to, end = to, cells = 0;
    bool masked = false;
    for (int t = from; t < to; ++t) {
        MaskKind & kind = scratch.mask[t];
        const int shown =
            load_bias(token_at(block.first_token + t), first_cell, scratch.bias.get() + t * page_tokens, kind);
        masked = masked || kind != MaskKind::zero;
        if (kind == MaskKind::hidden) continue;
        first = std::min(first, t);
        end = t + 1;
        cells = std::max(cells, shown);
    }
    return {{first * heads_per_kv_head_, (end - first) * heads_per_kv_head_}, cells, masked};
}

// The same for a token; returns the number of leading cells that hold all that it sees.
int Attention::load_bias(const Token & token, int64_t first_cell, float * bias, MaskKind & kind) const {
    const vidkv_attention_args & call = token.call;
    int64_t end = call.cells;
    if (call.causal) end = std::min(end, call.cells - call.tokens + token.index + 1);
    int shown = static_cast<int>(std::clamp<int64_t>(end - first_cell, 0, page_tokens));
    kind = shown > 0 ? MaskKind::zero : MaskKind::hidden;
    if (call.mask && shown > 0)
        kind = kernels_.load_mask(call.mask + token.index * call.mask_stride + first_cell, shown, bias);
    if (kind == MaskKind::zero && shown < page_tokens) {
        std::fill_n(bias, shown, 0.0f);
        kind = MaskKind::mixed;
    }
    std::fill(bias + (kind == MaskKind::hidden ? 0 : shown), bias + page_tokens, -infinity);
    while (kind == MaskKind::mixed && shown > 0 && bias[shown - 1] == -infinity) --shown;
    return shown;
}

bool Attention::sees_something(const Block & block, Rows rows, const Scratch & scratch) const {
    if (block.tokens == 1) return true; // or there would be no cells
    for (int t = rows.first / heads_per_kv_head_; t <= (rows.end() - 1) / heads_per_kv_head_; ++t) {
        if (scratch.mask[t] != MaskKind::hidden) return true;
    }
    return false;
}

// Scores of these rows. Sink cells of a sealed page are read from their f16 rows, with the query in natural order.
void Attention::score(const PageAt & at, HeadAt & of, Rows these, int count) const {
    const PageView & view = at.keys;
    float * scores = of.scratch->scores.get();
    const int first_row = these.first, rows = these.count;
    const float * natural = queries(of.slot) + first_row * query_stride_;
    const int open = std::min(count, view.held); // 0 unless the page is open
    const int64_t first_channel = int64_t{of.head} * key_dim_;
    if (of.keys) {
        of.keys->unpack();
        of.keys->score(rows_of(of.queries, these), of.soon.during_scores);
        if (view.shifts && !view.shifts->of_all()) score_moved(at, of, these);
    } else if (open < page_tokens) {
        std::fill_n(scores, rows * page_tokens, 0.0f);
    }
    if (open > 0) {
        kernels_.score_halves(natural, query_stride_, rows,
                              {view.rows + first_channel, keys_.shape.channels(), open, key_dim_}, scores);
    }
    if (of.keys && view.sink_count > 0) {
        alignas(64) float sinks[row_block * page_tokens];
        kernels_.score_halves(natural, query_stride_, rows,
                              {view.sink_rows + first_channel, keys_.shape.channels(), view.sink_count, key_dim_}, sinks);
        for (int r = 0; r < rows; ++r) std::copy_n(sinks + r * page_tokens, view.sink_count, scores + r * page_tokens);
    }
}

// Cells of the page have moved by several ways, or only some of them: these are scored once more for each way.
void Attention::score_moved(const PageAt & at, const HeadAt & of, Rows rows) const {
    alignas(64) float moved[row_block * page_tokens];
    float * scores = of.scratch->scores.get();
    std::copy_n(scores, rows.count * page_tokens, moved);
    Fetch nothing;
    for (const Shift & shift : at.keys.shifts->all) {
        const PlannedQueries queries = turned(at, of, shift, rows);
        of.keys->score(rows_of(queries, rows), nothing);
        for (int i = 0; i < rows.count * page_tokens; ++i) {
            if (has_cell(shift.cells, i % page_tokens)) moved[i] = scores[i];
        }
    }
    std::copy_n(moved, rows.count * page_tokens, scores);
}

// Scores -> softmax weights, packed where values are; what was summed relative to a smaller reference is scaled down. Values in f16
// are added.
void Attention::weigh(const PageAt & at, HeadAt & of, Rows these, const Seen & seen, PackedWeights & packed,
                      const Scratch & scratch) const {
    const Item & item = *at.item;
    const int first_row = these.first, rows = these.count;
    const float * bias[row_block];
    float slopes[row_block], factors[row_block];
    int token = first_row / heads_per_kv_head_, head = first_row % heads_per_kv_head_;
    for (int r = 0; seen.masked && r < rows; ++r) {
        bias[r] = scratch.mask[token] == MaskKind::zero ? nullptr : scratch.bias.get() + token * page_tokens;
        slopes[r] = slopes_[(item.block.kv_head + of.head) * heads_per_kv_head_ + head];
        if (++head == heads_per_kv_head_) head = 0, ++token;
    }
    const SoftmaxTile softmax{of.scratch->scores.get(),
                              rows,
                              seen.masked ? bias : nullptr,
                              slopes,
                              args_.softcap * log2_e,
                              states(of.slot, item.chunk) + first_row,
                              factors};
    const bool at_once = of.values && at.values.sink_count == 0 && !of.values->rule().token;
    const bool rescales = at_once ? kernels_.weigh(softmax, of.values->rule(), packed) : kernels_.softmax(softmax);
    for (int r = 0; rescales && r < rows; ++r) {
        if (factors[r] == 1.0f) continue;
        const ValueSums of_row = sums(of.slot, item.chunk, first_row + r);
        if (of_row.natural) kernels_.scale(of_row.natural, static_cast<int>(sum_stride_), factors[r]);
        if (of_row.rotated) kernels_.scale(of_row.rotated, static_cast<int>(sum_stride_), factors[r]);
    }
    if (at_once) return;
    add_open(at, of, rows, seen.cells, sums(of.slot, item.chunk, first_row));
    if (of.values) kernels_.pack_weights(of.scratch->scores.get(), rows, of.values->rule(), packed);
}

// Values in f16: an open page, or the sink cells of a sealed one, which then have no weight among its codes.
void Attention::add_open(const PageAt & at, const HeadAt & of, int rows, int count, const ValueSums & sums) const {
    const PageView & view = at.values;
    if (view.state == PageState::empty) return;
    const bool sealed = view.state == PageState::sealed;
    const int n = std::min(sealed ? view.sink_count : view.held, count);
    if (n == 0) return;
    float * weights = of.scratch->scores.get();
    const uint16_t * halves = (sealed ? view.sink_rows : view.rows) + int64_t{of.head} * value_dim_;
    kernels_.add_halves(weights, rows, {halves, values_.shape.channels(), n, value_dim_}, sums.natural, sums.stride);
    if (!sealed) return;
    for (int r = 0; r < rows; ++r) std::fill_n(weights + r * page_tokens, n, 0.0f);
}

// What a key page is multiplied with: as `prepare` left it, or brought to the page's own plan.
PlannedQueries Attention::planned_for(const PageAt & at, const HeadAt & of, Rows rows, Scratch & scratch) const {
    const PageView & view = at.keys;
    const Shift * shift = view.shifts ? view.shifts->of_all() : nullptr;
    if (shift) return turned(at, of, *shift, rows);
    if (plan_sets_ > 0) return {planned(of.slot, view.plan), bases(of.slot, view.plan)};
    TileScratch & own = *of.scratch;
    keys_.page_plan(at.page, at.item->block.kv_head + of.head, scratch.plan);
    plan_queries(scratch.plan, view, nullptr, of.slot, rows, own.planned.get(), own.bases.get());
    return {own.planned.get(), own.bases.get()};
}

// Queries turned back by a shift: neighbouring pages have moved alike, as a rule.
PlannedQueries Attention::turned(const PageAt & at, const HeadAt & of, const Shift & shift, Rows rows) const {
    const PageView & view = at.keys;
    TileScratch & own = *of.scratch;
    const PlannedFor wanted{&shift, first_block_ + of.slot, view.plan, rows.first, rows.count};
    if (own.planned_for != wanted) {
        plan_queries(keys_.plan(at.item->block.kv_head + of.head, view.plan), view, &shift, of.slot, rows,
                     own.planned.get(), own.bases.get());
        own.planned_for = wanted;
    }
    return {own.planned.get(), own.bases.get()};
}

} // namespace vidkv
