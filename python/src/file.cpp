#include "file.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

namespace vidkv::python {

using namespace nb::literals;

FileWriter::FileWriter(const std::string & path, const vidkv_params & params) {
    vidkv_file_writer * writer = nullptr;
    check(vidkv_file_create(path.c_str(), &params, &writer));
    writer_.reset(writer);
}

void FileWriter::add_section(const std::string & name, const nb::bytes & data) {
    check(alone(to_write(mutex_),
                [&] { return vidkv_file_add_section(writer_.get(), name.c_str(), data.c_str(), data.size()); }));
}

void FileWriter::add_store(int layer, int as, const StoreHandle & store, int sequence) {
    check(alone(Both{to_write(mutex_), to_read(store.mutex())},
                [&] { return vidkv_file_add_store(writer_.get(), layer, as, store.get(), sequence, nullptr, 0); }));
}

void FileWriter::finish() {
    check(alone(to_write(mutex_), [&] { return vidkv_file_finish(writer_.get()); }));
}

File::File(const std::string & path, bool copies) {
    vidkv_file * file = nullptr;
    check(vidkv_file_open(path.c_str(), copies, &file));
    file_.reset(file);
}

std::vector<std::string> File::section_names() const {
    std::vector<std::string> names;
    for (int64_t i = 0; const char * name = vidkv_file_section_name(file_.get(), i); ++i) names.emplace_back(name);
    return names;
}

nb::object File::section(const std::string & name) const {
    uint64_t bytes = 0;
    const void * data = vidkv_file_section(file_.get(), name.c_str(), &bytes);
    if (!data) return nb::none();
    return nb::bytes(data, bytes);
}

vidkv_file_info File::info() const {
    vidkv_file_info info{};
    vidkv_file_get_info(file_.get(), &info);
    return info;
}

std::vector<vidkv_file_store_info> File::stores() const {
    std::vector<vidkv_file_store_info> all(static_cast<size_t>(info().stores));
    for (size_t i = 0; i < all.size(); ++i) check(vidkv_file_get_store(file_.get(), static_cast<int64_t>(i), &all[i]));
    return all;
}

void File::verify(int threads) const {
    const vidkv_file * file = file_.get();
    const vidkv_status status = [&] {
        const nb::gil_scoped_release release;
        return vidkv_file_verify(file, threads);
    }();
    check(status);
}

void File::load(int layer, int from, StoreHandle & store, int sequence) const {
    store.change([&](vidkv_store * to) { return vidkv_file_load(file_.get(), layer, from, to, sequence, nullptr, 0); });
}

void bind_files(nb::module_ & m) {
    nb::class_<FileWriter>(m, "FileWriter", "Writes a .vidkv file: beside its place, until finish().")
        .def(nb::init<const std::string &, const vidkv_params &>(), "path"_a, "params"_a)
        .def("add_section", &FileWriter::add_section, "name"_a, "data"_a, "Bytes by name, 'manifest' for a JSON object.")
        .def("add_store", &FileWriter::add_store, "layer"_a, "sequence"_a, "store"_a, "store_sequence"_a = 0,
             "A sequence of a store, as the keys or values of a layer.")
        .def("finish", &FileWriter::finish, "Brings the file to its place.");
    nb::class_<vidkv_file_store_info>(m, "FileStore", "Keys or values of a layer in a file.")
        .def_ro("layer", &vidkv_file_store_info::layer)
        .def_prop_ro("side", [](const vidkv_file_store_info & info) { return info.side == VIDKV_KEYS ? "keys" : "values"; })
        .def_ro("sequence", &vidkv_file_store_info::sequence)
        .def_ro("channels", &vidkv_file_store_info::channels)
        .def_ro("head_dim", &vidkv_file_store_info::head_dim)
        .def_ro("cells", &vidkv_file_store_info::cells, "One more than the last cell written.")
        .def_ro("bytes", &vidkv_file_store_info::bytes)
        .def_ro("bits", &vidkv_file_store_info::bits, "Key bits or value bits, which may differ from layer to layer.");
    nb::class_<File>(m, "File", "A .vidkv file, mapped: stores read its pages where they lie.")
        .def(nb::init<const std::string &, bool>(), "path"_a, "copies"_a = false,
             "copies: read it into memory instead of mapping it.")
        .def("sections", &File::section_names, "The names of the sections.")
        .def("section", &File::section, "name"_a, "The bytes of a section; None if there is none.")
        .def_prop_ro("params", [](const File & file) { return file.info().params; })
        .def_prop_ro("stores", &File::stores)
        .def("verify", &File::verify, "threads"_a = 1, "ValueError unless the file is whole.")
        .def("load", &File::load, "layer"_a, "sequence"_a, "store"_a, "store_sequence"_a = 0,
             "Fills a sequence of a store with what the file has of that layer, as keys or values as the store is.");
}

} // namespace vidkv::python
