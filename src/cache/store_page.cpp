// One packed page as bytes that another store can take: for hosts that keep rows, and carry the page along.
#include <algorithm>
#include <bit>
#include <cstring>
#include <string>

#include "base/bytes.h"
#include "base/error.h"
#include "cache/store.h"
#include "codec/channel_plan.h"

namespace vidkv {

namespace {

// What a page's bytes depend on beside its plan: pages of another head are refused.
std::vector<uint8_t> head_of(const Store & store) {
    const vidkv_params & params = store.params();
    const bool keys = store.side() == VIDKV_KEYS;
    std::vector<uint8_t> head;
    append_number(head, static_cast<int32_t>(store.side()));
    append_number(head, keys ? params.key_bits : params.value_bits);
    append_number(head, keys ? params.key_codec : params.value_codec);
    append_number(head, params.group_size);
    append_number(head, params.sink_tokens);
    append_number(head, params.protect);
    append_number(head, static_cast<int32_t>(store.channels()));
    append_number(head, static_cast<int32_t>(store.head_dim()));
    return head;
}

bool is_full(const PageBits & written) { return std::popcount(written[0]) + std::popcount(written[1]) == page_tokens; }

bool is_same(const ChannelPlan & a, const ChannelPlan & b) { return a.order == b.order && a.mean == b.mean; }

} // namespace

vidkv_status Store::export_page(int sequence, int64_t index, std::vector<uint8_t> & out, int & sinks) const {
    if (vidkv_status status = check_range(sequence, 0, 0)) return status;
    const Sequence & seq = sequences_[static_cast<size_t>(sequence)];
    if (index < 0 || index >= pages_per_sequence_ || seq.pages[index].state != PageState::sealed)
        return fail(VIDKV_E_ARGUMENT, "page " + std::to_string(index) + " is not packed");
    const Page & page = seq.pages[index];
    sinks = sinks_in(seq, index);
    out = head_of(*this);
    for (int head = 0; side() == VIDKV_KEYS && head < kv_heads(); ++head) {
        const ChannelPlan & plan = (*seq.plans[page.plan])[static_cast<size_t>(head)];
        append_bytes(out, plan.order.data(), plan.order.size() * sizeof(uint16_t));
        append_bytes(out, plan.mean.data(), plan.mean.size() * sizeof(uint16_t));
    }
    append_bytes(out, page.bytes->data(), page.bytes->size());
    if (page.shifts) page.shifts->save(out);
    return VIDKV_OK;
}

bool Store::read_plans(ByteReader & in, Plans & plans) const {
    for (int head = 0; head < kv_heads(); ++head) {
        ChannelPlan plan;
        plan.wide = key_layout_.wide;
        plan.order.resize(static_cast<size_t>(head_dim()));
        if (key_layout_.codec == VIDKV_CODEC_TRELLIS) plan.mean.resize(plan.order.size());
        in.bytes(plan.order.data(), plan.order.size() * sizeof(uint16_t));
        in.bytes(plan.mean.data(), plan.mean.size() * sizeof(uint16_t));
        if (!in.ok() || !is_permutation(plan.order)) return false;
        plans.push_back(std::move(plan));
    }
    return true;
}

// The number that these plans have in the sequence, where they may be already; -1: there are too many.
int Store::take_plans(Sequence & sequence, Plans plans) const {
    auto & all = sequence.plans;
    const auto there = std::find_if(all.begin(), all.end(), [&](const std::shared_ptr<const Plans> & other) {
        return std::equal(plans.begin(), plans.end(), other->begin(), other->end(), is_same);
    });
    const auto index = static_cast<int>(there - all.begin());
    if (index > UINT16_MAX) return -1;
    if (there == all.end()) all.push_back(std::make_shared<const Plans>(std::move(plans)));
    if (sequence.sealed_pages == 0) sequence.plan = index;
    return index;
}

vidkv_status Store::import_page(int sequence, int64_t index, const uint8_t * data, size_t size) {
    if (vidkv_status status = check_range(sequence, 0, 0)) return status;
    Sequence & seq = sequences_[static_cast<size_t>(sequence)];
    const bool is_there = index >= 0 && index < pages_per_sequence_ && seq.pages[index].state == PageState::open;
    if (!is_there || !is_full(seq.pages[index].written))
        return fail(VIDKV_E_ARGUMENT, "page " + std::to_string(index) + " has not all its rows");
    const std::vector<uint8_t> wanted = head_of(*this);
    if (!packs() || size < wanted.size() || std::memcmp(data, wanted.data(), wanted.size()) != 0)
        return fail(VIDKV_E_FORMAT, "the page is of another preset or shape");
    ByteReader in(data + wanted.size(), size - wanted.size());
    Plans plans;
    if (side() == VIDKV_KEYS && !read_plans(in, plans)) return fail(VIDKV_E_FORMAT, "the page is altered");
    const size_t sinks = sinks_in(seq, index) > 0 ? sink_bytes() : 0;
    const bool has_shifts = side() == VIDKV_KEYS && in.left() > key_layout_.page_bytes;
    Ref<PageBytes> bytes = PageBytes::make(has_shifts ? key_layout_.page_bytes : in.left(), sinks);
    in.bytes(bytes->data(), bytes->size());
    Ref<const PageShifts> shifts;
    if (has_shifts) shifts = PageShifts::load(in, head_dim());
    if (has_shifts && (!shifts || in.left() > 0)) return fail(VIDKV_E_FORMAT, "the page is altered");
    const bool sound = side() == VIDKV_KEYS ? is_sound(key_layout_, bytes->data(), bytes->size())
                                            : is_sound(value_layout_, bytes->data(), bytes->size());
    if (!sound) return fail(VIDKV_E_FORMAT, "the page is altered");
    seq.pages.own(index);
    const int plan = side() == VIDKV_KEYS ? take_plans(seq, std::move(plans)) : 0;
    if (plan < 0) return fail(VIDKV_E_FORMAT, "the sequence has pages of too many channel plans");
    Page & page = seq.pages.edit(index);
    if (sinks > 0) std::memcpy(bytes->data() + PageBytes::sinks_at(bytes->size()), page.bytes->data(), sinks);
    page.bytes = std::move(bytes);
    page.plan = static_cast<uint16_t>(plan);
    page.shifts = std::move(shifts);
    page.state = PageState::sealed;
    ++seq.sealed_pages;
    std::erase(seq.open, index);
    return VIDKV_OK;
}

} // namespace vidkv
