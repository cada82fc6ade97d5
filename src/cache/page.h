// The pages of a sequence. Copies of a sequence share the bytes of pages and, in chunks, the table of them; who writes makes what it
// writes to its own.
#pragma once

#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "base/counted.h"
#include "cache/page_shifts.h"

namespace vidkv {

// The last cell that was written, and one more.
inline int end_of(const PageBits & written) {
    return written[1] ? 128 - std::countl_zero(written[1]) : 64 - std::countl_zero(written[0]);
}

// Rows that an open page has room for: it grows with what is written to it, so that a short text holds little more than its rows.
inline int room_for(int rows) {
    constexpr int first = 16, step = 32;
    return rows <= first ? first : (rows + step - 1) / step * step;
}

enum class PageState : uint8_t { empty, open, sealed };

// The bytes of a page: f16 rows while it is open, then codes and meta of all heads and, where the page begins with sink cells, their
// f16 rows. They begin on a cache line and never change once they are sealed.
class PageBytes : public Counted {
  public:
    static Ref<PageBytes> make(size_t bytes, size_t sink_bytes = 0); // zeros
    // The same for a page that gives way to a packed one, which would be put into its place and leave a part of it unused: a large
    // one goes back to the system.
    static Ref<PageBytes> make_for_now(size_t bytes);
    static Ref<PageBytes> copy_of(const PageBytes & page); // that can be written to
    // In a file that stays mapped for as long as `file` is held, and whose header announces what its pages need.
    static Ref<PageBytes> mapped(const uint8_t * data, size_t bytes, size_t sink_bytes, std::shared_ptr<const void> file,
                                 uint32_t announced);
    static void destroy(PageBytes * page);

    uint8_t * data() { return data_; } // not of a mapped page
    const uint8_t * data() const { return data_; }
    size_t size() const { return bytes_; }
    const uint16_t * sink_rows() const {
        return reinterpret_cast<const uint16_t *>(sink_bytes_ ? data_ + sinks_at(bytes_) : nullptr);
    }
    uint16_t * sink_rows() { return const_cast<uint16_t *>(std::as_const(*this).sink_rows()); } // not of a mapped page
    bool is_mapped() const { return file_ != nullptr; }
    uint32_t announced() const { return announced_; } // of a mapped page
    size_t held() const { return bytes_ + sink_bytes_; }

    // Mapped pages of a file that may be forged are checked when they are first used.
    bool is_checked() const { return checked_.load(std::memory_order_acquire); }
    void set_checked() const { checked_.store(true, std::memory_order_release); }

    // Where the sink rows of a page of so many bytes begin, and where the page ends with them.
    static constexpr size_t sinks_at(size_t bytes) { return (bytes + 63) / 64 * 64; }
    static constexpr size_t whole_size(size_t bytes, size_t sink_bytes) {
        return sink_bytes ? sinks_at(bytes) + sink_bytes : bytes;
    }

  private:
    PageBytes(uint8_t * data, size_t bytes, size_t sink_bytes, std::shared_ptr<const void> file, uint32_t announced = 0)
        : bytes_(static_cast<uint32_t>(bytes)), sink_bytes_(static_cast<uint32_t>(sink_bytes)), data_(data),
          file_(std::move(file)), announced_(announced), checked_(file_ == nullptr) {}

    uint32_t bytes_, sink_bytes_;
    uint8_t * data_;
    std::shared_ptr<const void> file_; // null: the bytes lie before this object, in one allocation
    uint32_t announced_;
    size_t of_system_ = 0; // bytes of the allocation, where it was made by the system
    mutable std::atomic<bool> checked_;
};

struct Page {
    Ref<PageBytes> bytes;         // null: empty
    Ref<const PageShifts> shifts; // null: none of its cells moved since the page was sealed
    PageBits written{};
    PageBits marked{};      // to protect
    int64_t last_write = 0; // the sequence's write count after this page's newest write
    uint16_t plan = 0;      // sealed keys, or released ones: which of the sequence's plans they were packed with
    PageState state = PageState::empty;
    bool released = false; // empty here; its bytes are read from a copy elsewhere
    bool begins = false;   // begin() was called for it
};

class PageTable {
  public:
    const Page & operator[](int64_t index) const {
        const Chunk * chunk = chunks_[static_cast<size_t>(index / chunk_pages)].get();
        return chunk ? chunk->pages[static_cast<size_t>(index % chunk_pages)] : no_page;
    }
    // To be written to: shared with no copy. Allocates where it was shared, or never used.
    Page & edit(int64_t index);
    // From then on edit(index) needs no memory.
    void own(int64_t index) { edit(index); }

    int64_t size() const { return size_; }
    // Pages behind the new end must be empty. Allocates; nothing has changed if there is no memory.
    void resize(int64_t pages);
    void reserve(int64_t pages) { chunks_.reserve(chunks_for(pages)); }
    // Empties the pages from `first` on. What it may need of memory can be taken before.
    void clear_from(int64_t first);
    void prepare_clear_from(int64_t first) {
        if (first % chunk_pages != 0 && chunks_[static_cast<size_t>(first / chunk_pages)]) own(first);
    }
    void clear() { clear_from(0); }

    // Calls work(index, page) for each page that may be more than empty.
    template <typename Work> void for_each(Work work) const {
        for (size_t c = 0; c < chunks_.size(); ++c) {
            for (int64_t i = 0; chunks_[c] && i < chunk_pages; ++i) {
                const Page & page = chunks_[c]->pages[static_cast<size_t>(i)];
                work(static_cast<int64_t>(c) * chunk_pages + i, page);
            }
        }
    }
    // Bytes of the table and of the pages in it, but for those that one of n earlier tables has at the same place, as copies do.
    // mapped: of those, in a mapped file; sealed: packed.
    template <typename Earlier> uint64_t bytes_held(size_t n, Earlier earlier, uint64_t & mapped, uint64_t & sealed) const;
    // Of a table that is written to the last page, beside what page_bytes says of the pages.
    static uint64_t bytes_planned(int64_t pages) {
        return chunks_for(pages) * (sizeof(Chunk) + sizeof(Ref<Chunk>)) + static_cast<uint64_t>(pages) * sizeof(PageBytes);
    }

  private:
    static constexpr int64_t chunk_pages = 16;
    static constexpr size_t chunks_for(int64_t pages) {
        return static_cast<size_t>((pages + chunk_pages - 1) / chunk_pages);
    }
    struct Chunk : Counted {
        std::array<Page, chunk_pages> pages;
        static void destroy(Chunk * chunk) { delete chunk; }
    };
    static const Page no_page;

    std::vector<Ref<Chunk>> chunks_; // null: all empty
    int64_t size_ = 0;
};

template <typename Earlier>
uint64_t PageTable::bytes_held(size_t n, Earlier earlier, uint64_t & mapped, uint64_t & sealed) const {
    uint64_t held = chunks_.capacity() * sizeof(Ref<Chunk>);
    for (size_t c = 0; c < chunks_.size(); ++c) {
        const auto is_counted = [&](auto is_same) {
            for (size_t i = 0; i < n; ++i) {
                const PageTable & other = earlier(i);
                if (c < other.chunks_.size() && other.chunks_[c] && is_same(other.chunks_[c])) return true;
            }
            return false;
        };
        if (!chunks_[c] || is_counted([&](const Ref<Chunk> & other) { return other == chunks_[c]; })) continue;
        held += sizeof(Chunk);
        for (size_t i = 0; i < chunk_pages; ++i) {
            const Ref<PageBytes> & bytes = chunks_[c]->pages[i].bytes;
            if (!bytes || is_counted([&](const Ref<Chunk> & other) { return other->pages[i].bytes == bytes; })) continue;
            held += bytes->held() + sizeof(PageBytes);
            if (bytes->is_mapped()) mapped += bytes->held();
            if (chunks_[c]->pages[i].state == PageState::sealed) sealed += bytes->size();
            const Ref<const PageShifts> & shifts = chunks_[c]->pages[i].shifts;
            const bool is_new = shifts && (i == 0 || chunks_[c]->pages[i - 1].shifts != shifts); // neighbours share them
            if (is_new) held += shifts->held();
        }
    }
    return held;
}

} // namespace vidkv
