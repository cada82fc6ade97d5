#include "engine/packed_store.h"

#include <cstdint>
#include <new>
#include <string>

#include "error.h"
#include "hidden_rows.h"

namespace vidkv::cli {

void check_status(vidkv_status status) {
    if (status == VIDKV_E_MEMORY) throw std::bad_alloc();
    if (status != VIDKV_OK) throw Error(vidkv_last_error());
}

PackedStore make_store(vidkv_side side, int64_t channels, int head_dim, int64_t pages, const vidkv_params & params) {
    const vidkv_store_shape shape{side, static_cast<int32_t>(channels), head_dim, pages * VIDKV_PAGE, 1};
    vidkv_store * store = nullptr;
    check_status(vidkv_store_create(&shape, &params, &store));
    return PackedStore(store);
}

PackedFile open_packed(const std::string & path, bool whole, int threads) {
    vidkv_file * file = nullptr;
    vidkv_status status = vidkv_file_open(path.c_str(), 0, &file);
    if (status == VIDKV_E_IO) status = vidkv_file_open(path.c_str(), 1, &file);
    check_status(status);
    PackedFile opened(file);
    if (whole) check_status(vidkv_file_verify(file, threads));
    return opened;
}

void read_page_to_save(const vidkv_store * store, int64_t channels, int64_t page, int64_t tag, uint16_t * rows) {
    using namespace vidkv_ggml;
    check_status(vidkv_store_read_f16(store, 0, page * VIDKV_PAGE, VIDKV_PAGE, rows));
    uint64_t bytes = 0;
    int32_t first = 0;
    if (tag < 0 || tag > UINT16_MAX || vidkv_store_export_page(store, 0, page, nullptr, &bytes, &first) != VIDKV_OK)
        return; // not packed
    std::vector<uint8_t> packed(bytes);
    check_status(vidkv_store_export_page(store, 0, page, packed.data(), &bytes, &first));
    const HiddenPage hidden = to_hidden(packed, channels, first);
    if (hidden.bits == 0) return;
    const int64_t each = hidden_bytes(channels, hidden.bits);
    for (int token = first; token < VIDKV_PAGE; ++token)
        hide(rows + token * channels, channels, {static_cast<uint32_t>(tag), token, first, hidden.bits},
             &hidden.bytes[static_cast<size_t>((token - first) * each)]);
}

} // namespace vidkv::cli
