// Files of packed pages, for Python.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "store.h"
#include "vidkv/file.h"

namespace vidkv::python {

class FileWriter {
  public:
    FileWriter(const std::string & path, const vidkv_params & params);

    void add_section(const std::string & name, const nb::bytes & data);
    void add_store(int layer, int as, const StoreHandle & store, int sequence);
    void finish();

  private:
    struct Free {
        void operator()(vidkv_file_writer * writer) const { vidkv_file_abandon(writer); }
    };
    std::unique_ptr<vidkv_file_writer, Free> writer_;
    std::shared_mutex mutex_;
};

class File {
  public:
    File(const std::string & path, bool copies);

    std::vector<std::string> section_names() const;
    nb::object section(const std::string & name) const;
    vidkv_file_info info() const;
    std::vector<vidkv_file_store_info> stores() const;
    void verify(int threads) const;
    void load(int layer, int from, StoreHandle & store, int sequence) const;

  private:
    struct Free {
        void operator()(vidkv_file * file) const { vidkv_file_close(file); }
    };
    std::unique_ptr<vidkv_file, Free> file_;
};

void bind_files(nb::module_ & m);

} // namespace vidkv::python
