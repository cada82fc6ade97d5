#include "cache/page.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <sys/mman.h>

namespace vidkv {

namespace {

constexpr std::align_val_t cache_line{64};

constexpr size_t object_at(size_t bytes) {
    return (bytes + alignof(PageBytes) - 1) / alignof(PageBytes) * alignof(PageBytes);
}

} // namespace

Ref<PageBytes> PageBytes::make(size_t bytes, size_t sink_bytes) {
    const size_t whole = whole_size(bytes, sink_bytes);
    auto * data = static_cast<uint8_t *>(::operator new[](object_at(whole) + sizeof(PageBytes), cache_line));
    std::memset(data, 0, whole);
    return Ref<PageBytes>(new (data + object_at(whole)) PageBytes(data, bytes, sink_bytes, nullptr));
}

Ref<PageBytes> PageBytes::make_for_now(size_t bytes) {
#if defined(__SANITIZE_ADDRESS__) // which knows the ends of its own allocations alone
    constexpr size_t large = SIZE_MAX;
#else
    constexpr size_t large = size_t{32} << 10; // less is not worth the system's rounding, nor its time
#endif
    const size_t needed = object_at(bytes) + sizeof(PageBytes);
    if (needed < large) return make(bytes);
    void * zeros = mmap(nullptr, needed, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (zeros == MAP_FAILED) return make(bytes);
    auto * data = static_cast<uint8_t *>(zeros);
    Ref<PageBytes> made(new (data + object_at(bytes)) PageBytes(data, bytes, 0, nullptr));
    made->of_system_ = needed;
    return made;
}

Ref<PageBytes> PageBytes::copy_of(const PageBytes & page) {
    Ref<PageBytes> copy = make(page.bytes_, page.sink_bytes_);
    std::memcpy(copy->data_, page.data_, page.bytes_);
    if (page.sink_bytes_) std::memcpy(copy->sink_rows(), page.sink_rows(), page.sink_bytes_);
    return copy;
}

Ref<PageBytes> PageBytes::mapped(const uint8_t * data, size_t bytes, size_t sink_bytes, std::shared_ptr<const void> file,
                                 uint32_t announced) {
    void * place = ::operator new[](sizeof(PageBytes), cache_line);
    return Ref<PageBytes>(new (place)
                              PageBytes(const_cast<uint8_t *>(data), bytes, sink_bytes, std::move(file), announced));
}

void PageBytes::destroy(PageBytes * page) {
    void * place = page->is_mapped() ? static_cast<void *>(page) : page->data_;
    const size_t of_system = page->of_system_;
    page->~PageBytes();
    of_system > 0 ? static_cast<void>(munmap(place, of_system)) : ::operator delete[](place, cache_line);
}

const Page PageTable::no_page;

Page & PageTable::edit(int64_t index) {
    Ref<Chunk> & chunk = chunks_[static_cast<size_t>(index / chunk_pages)];
    if (!chunk)
        chunk = Ref<Chunk>(new Chunk());
    else if (!chunk.is_alone())
        chunk = Ref<Chunk>(new Chunk(*chunk));
    return chunk->pages[static_cast<size_t>(index % chunk_pages)];
}

void PageTable::resize(int64_t pages) {
    chunks_.resize(chunks_for(pages));
    size_ = pages;
}

void PageTable::clear_from(int64_t first) {
    const size_t whole = chunks_for(first);
    if (first % chunk_pages != 0 && chunks_[whole - 1]) {
        for (int64_t i = first; i < std::min(size_, static_cast<int64_t>(whole) * chunk_pages); ++i) edit(i) = Page();
    }
    for (size_t c = whole; c < chunks_.size(); ++c) chunks_[c].reset();
}

} // namespace vidkv
