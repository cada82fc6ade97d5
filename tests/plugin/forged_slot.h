// A packed slot that a stranger wrote.
#pragma once

#include <map>
#include <string>

#include "engine/packed_store.h"

namespace vidkv_test {

// The same stores, with other sections under right checksums. Bytes: of std::vector or std::string.
template <typename Bytes>
void write_forged(const vidkv_file * file, const std::string & path, const std::map<std::string, Bytes> & sections) {
    using namespace vidkv::cli;
    vidkv_file_info info{};
    vidkv_file_get_info(file, &info);
    vidkv_file_writer * made = nullptr;
    check_status(vidkv_file_create(path.c_str(), &info.params, &made));
    const PackedWriter writer(made);
    for (const auto & [name, bytes] : sections)
        check_status(vidkv_file_add_section(made, name.c_str(), bytes.data(), bytes.size()));
    for (int64_t i = 0; i < info.stores; ++i) {
        vidkv_file_store_info about{};
        check_status(vidkv_file_get_store(file, i, &about));
        const PackedStore store =
            make_store(static_cast<vidkv_side>(about.side), about.channels, about.head_dim, about.pages, info.params);
        check_status(vidkv_file_load(file, about.layer, 0, store.get(), 0, nullptr, 0));
        check_status(vidkv_file_add_store(made, about.layer, 0, store.get(), 0, nullptr, 0));
    }
    check_status(vidkv_file_finish(made));
}

} // namespace vidkv_test
