// A .vidkv file -> a slot file.
#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <numeric>

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <xxhash.h>

#include "cell_map.h"
#include "engine/packed_store.h"
#include "engine/slot_file.h"
#include "engine/state_layout.h"
#include "engine/state_section.h"
#include "error.h"
#include "interrupt.h"
#include "threads.h"

namespace vidkv::cli {

namespace {

using vidkv_ggml::SavedCells;

// Written beside its place, and renamed once it is whole.
class SlotWriter {
  public:
    SlotWriter(const std::string & path, uint64_t bytes) : path_(path), part_(path + ".part"), bytes_(bytes) {
        file_ = open(part_.path().c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
        if (file_ < 0) fail();
    }
    ~SlotWriter() { close(file_); }
    SlotWriter(const SlotWriter &) = delete;
    SlotWriter & operator=(const SlotWriter &) = delete;

    void write(uint64_t at, const void * data, size_t bytes) const {
        const auto * from = static_cast<const uint8_t *>(data);
        while (bytes > 0) {
            const ssize_t done = pwrite(file_, from, bytes, static_cast<off_t>(at));
            if (done < 0 && errno == EINTR) continue;
            if (done < 0) fail();
            from += done;
            at += static_cast<uint64_t>(done);
            bytes -= static_cast<size_t>(done);
        }
    }
    // Of what was written; 0: it cannot be mapped.
    uint64_t checksum() const {
        void * data = mmap(nullptr, bytes_, PROT_READ, MAP_SHARED, file_, 0);
        if (data == MAP_FAILED) return 0;
        const uint64_t sum = XXH3_64bits(data, bytes_);
        munmap(data, bytes_);
        return sum;
    }
    void finish() const {
        if (fsync(file_) != 0 || std::rename(part_.path().c_str(), path_.c_str()) != 0) fail();
    }

  private:
    [[noreturn]] void fail() const {
        throw Error("cannot write '" + path_ + "' (" + std::strerror(errno) + "): free some space, or name another place");
    }

    std::string path_;
    UnfinishedFile part_;
    uint64_t bytes_;
    int file_ = -1;
};

class SlotUnpacker {
  public:
    SlotUnpacker(const std::string & path, int threads);

    SlotReport unpack(const std::string & slot);
    void replace_in_head(const std::string & text, const std::string & other);

  private:
    std::string_view section(const char * name) const;
    void read_cells();
    void find_rows();
    // Where a byte of the state is in the slot file.
    uint64_t in_file(uint64_t at) const { return slot_.head.size() + at - state_head_; }
    bool is_in_gaps(const StateRows & rows) const;
    PackedStore store_of(const StateRows & rows, const vidkv_file_store_info & info) const;
    void write_head(const SlotWriter & to) const;
    void write_rows(const SlotWriter & to, size_t index) const;
    [[noreturn]] void contradicts() const { throw Error("'" + path_ + "' contradicts itself: save it again"); }

    std::string path_;
    int threads_;
    PackedFile file_;
    vidkv_file_info info_{};
    SlotSection slot_;
    std::unique_ptr<Mapping> state_;
    std::vector<Gap> gaps_;
    StateLayout layout_;
    uint64_t state_head_ = 0;           // that the file does not have
    std::vector<int64_t> place_, tags_; // [cell], [page]
    std::vector<const StateRows *> rows_;
    std::vector<vidkv_file_store_info> stores_; // of each of these rows
};

SlotUnpacker::SlotUnpacker(const std::string & path, int threads)
    : path_(path), threads_(threads), file_(open_packed(path, true, threads)) {
    vidkv_file_get_info(file_.get(), &info_);
    try {
        slot_ = SlotSection::read(section(SLOT_SECTION));
        state_ = unpack_state(section("state"), gaps_);
    } catch (const Error & error) {
        throw Error("'" + path_ + "' cannot be unpacked: " + error.what());
    }
    layout_ = layout_of_state(state_->data(), state_->bytes());
    state_head_ = head_of_state(state_->data(), state_->bytes());
    read_cells();
    find_rows();
}

std::string_view SlotUnpacker::section(const char * name) const {
    uint64_t bytes = 0;
    const void * data = vidkv_file_section(file_.get(), name, &bytes);
    if (!data)
        throw Error(std::string("it has no section '") + name + "': it was made neither by vidkv pack nor by vidkv ask");
    return {static_cast<const char *>(data), bytes};
}

void SlotUnpacker::read_cells() {
    const std::string_view bytes = section("cells");
    std::vector<int64_t> numbers(bytes.size() / sizeof(int64_t));
    if (!numbers.empty()) std::memcpy(numbers.data(), bytes.data(), numbers.size() * sizeof(int64_t));
    SavedCells cells;
    try {
        cells = SavedCells::from_numbers(numbers.data(), numbers.size());
    } catch (const std::exception &) {
        contradicts();
    }
    if (!cells.is_sound() || cells.cells() != layout_.cells) contradicts();
    for (const SavedCells::Run & run : cells.runs)
        for (int64_t i = 0; i < run.cells; ++i) place_.push_back(run.place + i);
    if (!slot_.tags.empty() && static_cast<int64_t>(slot_.tags.size()) != cells.pages()) contradicts();
    tags_ = slot_.tags;
    if (tags_.empty()) {
        tags_.resize(static_cast<size_t>(cells.pages()));
        std::iota(tags_.begin(), tags_.end(), int64_t{0});
    }
    std::vector<int> held(tags_.size());
    for (const int64_t place : place_) ++held[static_cast<size_t>(place / VIDKV_PAGE)];
    for (size_t page = 0; page < tags_.size(); ++page)
        if (held[page] != VIDKV_PAGE) tags_[page] = -1;
}

bool SlotUnpacker::is_in_gaps(const StateRows & rows) const {
    uint64_t at = rows.at;
    const uint64_t end = rows.at + rows.bytes(layout_.cells);
    auto gap = std::ranges::upper_bound(gaps_, at, {}, [](const Gap & each) { return each.at + each.bytes; });
    for (; gap != gaps_.end() && gap->at <= at && at < end; ++gap) at = gap->at + gap->bytes;
    return at >= end;
}

void SlotUnpacker::find_rows() {
    std::vector<vidkv_file_store_info> all;
    for (int64_t i = 0; i < info_.stores; ++i) {
        vidkv_file_store_info info = {};
        check_status(vidkv_file_get_store(file_.get(), i, &info));
        if (info.sequence == 0) all.push_back(info);
    }
    std::ranges::stable_sort(
        all, [](const auto & a, const auto & b) { return a.side != b.side ? a.side < b.side : a.layer < b.layer; });
    const auto pages = static_cast<int64_t>(tags_.size());
    for (const StateRows & rows : layout_.rows) {
        if (!is_in_gaps(rows)) continue;
        if (rows_.size() == all.size()) contradicts();
        const vidkv_file_store_info & info = all[rows_.size()];
        if (info.channels != rows.channels || (info.side == VIDKV_KEYS) != rows.keys || info.pages > pages) contradicts();
        rows_.push_back(&rows);
        stores_.push_back(info);
    }
    if (rows_.size() != all.size() || rows_.empty()) contradicts();
}

void SlotUnpacker::replace_in_head(const std::string & text, const std::string & other) {
    for (auto at = slot_.head.begin();
         (at = std::search(at, slot_.head.end(), text.begin(), text.end())) != slot_.head.end();)
        at = std::copy(other.begin(), other.end(), at);
}

void SlotUnpacker::write_head(const SlotWriter & to) const {
    to.write(0, slot_.head.data(), slot_.head.size());
    uint64_t at = state_head_;
    const auto write = [&](uint64_t end) { to.write(in_file(at), state_->data() + at, end - at); };
    for (const Gap & gap : gaps_) {
        write(gap.at);
        at = gap.at + gap.bytes;
    }
    write(state_->bytes());
}

PackedStore SlotUnpacker::store_of(const StateRows & rows, const vidkv_file_store_info & info) const {
    PackedStore store = make_store(static_cast<vidkv_side>(info.side), rows.channels, info.head_dim,
                                   static_cast<int64_t>(tags_.size()), info_.params);
    check_status(vidkv_file_load(file_.get(), info.layer, 0, store.get(), 0, nullptr, 0));
    return store;
}

// Cells that follow each other are mostly in one page.
void SlotUnpacker::write_rows(const SlotWriter & to, size_t index) const {
    const StateRows & rows = *rows_[index];
    const PackedStore store = store_of(rows, stores_[index]);
    const auto row = static_cast<size_t>(rows.channels);
    std::vector<uint16_t> page(VIDKV_PAGE * row), out;
    int64_t read = -1;
    uint64_t at = in_file(rows.at);
    for (int64_t cell = 0; cell < layout_.cells; ++cell) {
        const int64_t place = place_[static_cast<size_t>(cell)];
        if (place / VIDKV_PAGE != read) {
            check_interrupt();
            read = place / VIDKV_PAGE;
            read_page_to_save(store.get(), rows.channels, read, tags_[static_cast<size_t>(read)], page.data());
        }
        const auto from = page.begin() + static_cast<ptrdiff_t>(static_cast<size_t>(place % VIDKV_PAGE) * row);
        out.insert(out.end(), from, from + static_cast<ptrdiff_t>(row));
        if (out.size() < page.size() && cell + 1 < layout_.cells) continue;
        to.write(at, out.data(), out.size() * 2);
        at += out.size() * 2;
        out.clear();
    }
}

SlotReport SlotUnpacker::unpack(const std::string & slot) {
    SlotReport report{layout_.cells, in_file(state_->bytes()), info_.bytes};
    report.rows = layout_.cells * static_cast<int64_t>(layout_.rows.size());
    for (const vidkv_file_store_info & info : stores_) report.packed_rows += info.pages_sealed * VIDKV_PAGE;
    const SlotWriter to(slot, report.slot_bytes);
    write_head(to);
    share_among_threads(static_cast<int64_t>(rows_.size()), threads_,
                        [&](int64_t i) { write_rows(to, static_cast<size_t>(i)); });
    const uint64_t sum = slot_.checksum == 0 ? 0 : to.checksum();
    if (sum != 0 && sum != slot_.checksum)
        throw Error("'" + path_ +
                    "' does not give its slot file again: it was packed by another version of VidKV, or on another " +
                    "kind of processor; unpack it there");
    to.finish();
    return report;
}

} // namespace

SlotReport unpack_slot(const std::string & file, const std::string & slot, int threads, const Replaced & replaced) {
    SlotUnpacker unpacker(file, threads);
    for (const auto & [text, other] : replaced) unpacker.replace_in_head(text, other);
    return unpacker.unpack(slot);
}

} // namespace vidkv::cli
