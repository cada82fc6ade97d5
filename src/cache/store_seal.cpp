// Pages of stores that are old enough, packed.
#include "cache/store.h"

#include <algorithm>

#include "cache/seal.h"

namespace vidkv {

bool Store::is_due(const Sequence & sequence, int64_t page) const {
    return sequence.writes - sequence.pages[page].last_write >= seal_age(params_);
}

std::vector<int64_t> Store::due_pages(const Sequence & sequence) const {
    std::vector<int64_t> due;
    for (const int64_t index : sequence.open) {
        if (is_due(sequence, index)) due.push_back(index);
    }
    std::sort(due.begin(), due.end());
    return due;
}

PageBits Store::used_cells(const Sequence & sequence, int64_t index) const {
    PageBits use = sequence.pages[index].written;
    for (int t = 0; t < sinks_in(sequence, index); ++t) use[0] &= ~(uint64_t{1} << t); // at most 32 sink tokens
    return use;
}

vidkv_status Store::seal(int threads) {
    if (!packs()) return VIDKV_OK;
    std::vector<SealOrder> orders;
    orders.reserve(static_cast<size_t>(shape_.sequences));
    for (int s = 0; s < shape_.sequences; ++s) orders.push_back({this, s, due_pages(sequences_[s])});
    seal_pages(orders, threads);
    return VIDKV_OK;
}

SealJob Store::seal_job(const Sequence & sequence, const std::vector<int64_t> & pages) const {
    SealJob job;
    const bool keys = shape_.side == VIDKV_KEYS;
    job.key_layout = keys ? &key_layout_ : nullptr;
    job.value_layout = keys ? nullptr : &value_layout_;
    if (keys && sequence.sealed_pages != 0) job.plans = *sequence.plans[sequence.plan];
    job.statistics = sequence.queries.get();
    for (const int64_t index : pages) {
        const Page & page = sequence.pages[index];
        const int held = rows_held(page);
        job.pages.push_back({rows_of(page), held, used_cells(sequence, index), page.marked,
                             static_cast<size_t>(sinks_in(sequence, index)) * row_bytes()});
    }
    return job;
}

// Everything is allocated by now. chosen: the job's plans, if it had to choose them.
void Store::take_sealed(Sequence & sequence, const std::vector<int64_t> & pages, SealJob & job,
                        std::shared_ptr<const Plans> chosen) noexcept {
    if (chosen) {
        sequence.plans.resize(1); // those before it are of no page any more
        sequence.plans[0] = std::move(chosen);
        sequence.plan = 0;
    }
    for (size_t i = 0; i < pages.size(); ++i) {
        Page & page = sequence.pages.edit(pages[i]);
        page.bytes = std::move(job.sealed[i]);
        page.plan = static_cast<uint16_t>(sequence.plan);
        page.state = PageState::sealed;
        ++sequence.sealed_pages;
    }
    std::erase_if(sequence.open, [&](int64_t index) { return sequence.pages[index].state == PageState::sealed; });
}

namespace {

// One plan serves all pages of a sequence, so they must be packed together, and each once.
void merge(std::vector<SealOrder> & orders) {
    for (size_t i = 0; i < orders.size(); ++i) {
        for (size_t j = orders.size() - 1; j > i; --j) {
            if (orders[j].store != orders[i].store || orders[j].sequence != orders[i].sequence) continue;
            orders[i].pages.insert(orders[i].pages.end(), orders[j].pages.begin(), orders[j].pages.end());
            orders.erase(orders.begin() + static_cast<ptrdiff_t>(j));
        }
        std::sort(orders[i].pages.begin(), orders[i].pages.end());
        orders[i].pages.erase(std::unique(orders[i].pages.begin(), orders[i].pages.end()), orders[i].pages.end());
    }
}

} // namespace

void seal_pages(std::vector<SealOrder> & orders, int threads) {
    merge(orders);
    for (SealOrder & order : orders) {
        const Store & store = *order.store;
        const PageTable & pages = store.sequences_[order.sequence].pages;
        std::erase_if(order.pages, [&](int64_t index) { return pages[index].state != PageState::open; });
        if (!store.packs()) order.pages.clear();
    }
    std::erase_if(orders, [](const SealOrder & order) { return order.pages.empty(); });
    std::vector<SealJob> jobs;
    jobs.reserve(orders.size());
    for (SealOrder & order : orders) {
        Store::Sequence & sequence = order.store->sequences_[order.sequence];
        for (const int64_t index : order.pages) sequence.pages.own(index);
        jobs.push_back(order.store->seal_job(sequence, order.pages));
    }
    std::vector<bool> chooses(jobs.size());
    for (size_t i = 0; i < jobs.size(); ++i) chooses[i] = jobs[i].key_layout && jobs[i].plans.empty();
    seal(jobs, threads);
    std::vector<std::shared_ptr<const Store::Plans>> chosen(jobs.size());
    for (size_t i = 0; i < jobs.size(); ++i) {
        if (!chooses[i]) continue;
        chosen[i] = std::make_shared<const Store::Plans>(std::move(jobs[i].plans));
        orders[i].store->sequences_[orders[i].sequence].plans.reserve(1);
    }
    for (size_t i = 0; i < orders.size(); ++i) {
        Store & store = *orders[i].store;
        store.take_sealed(store.sequences_[orders[i].sequence], orders[i].pages, jobs[i], std::move(chosen[i]));
    }
}

} // namespace vidkv
