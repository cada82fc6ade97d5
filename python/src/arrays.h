// Arrays that Python hands over, checked: element type, dimensions and strides, with a message that says what is allowed.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "vidkv/vidkv.h"

namespace vidkv::python {

namespace nb = nanobind;
using Array = nb::ndarray<nb::device::cpu>;
using ConstArray = nb::ndarray<nb::ro, nb::device::cpu>;

// Turns a status into a Python exception: ValueError, MemoryError or OSError.
inline void check(vidkv_status status) {
    if (status == VIDKV_OK) return;
    const std::string message = vidkv_last_error();
    if (status == VIDKV_E_MEMORY) {
        PyErr_SetString(PyExc_MemoryError, message.c_str());
        throw nb::python_error();
    }
    if (status == VIDKV_E_IO) {
        PyErr_SetString(PyExc_OSError, message.c_str());
        throw nb::python_error();
    }
    throw std::invalid_argument(message);
}

inline bool is_type(const nb::dlpack::dtype & type, nb::dlpack::dtype_code code, int bits) {
    return type.code == static_cast<uint8_t>(code) && type.bits == bits && type.lanes == 1;
}
template <typename A> bool is_f32(const A & a) { return is_type(a.dtype(), nb::dlpack::dtype_code::Float, 32); }
template <typename A> bool is_f16(const A & a) { return is_type(a.dtype(), nb::dlpack::dtype_code::Float, 16); }

// name and what is allowed go into the message.
inline void require(bool condition, const std::string & message) {
    if (!condition) throw std::invalid_argument(message);
}

template <typename A> void require_rows(const A & a, const char * name, size_t dimensions) {
    require(a.ndim() == dimensions, std::string(name) + " must have " + std::to_string(dimensions) + " dimensions, not " +
                                        std::to_string(a.ndim()));
    require(a.shape(dimensions - 1) <= 1 || a.stride(dimensions - 1) == 1,
            std::string(name) + " must be contiguous in its last dimension");
}

// Every row right behind the one before it.
template <typename A> bool is_dense(const A & a) {
    int64_t expected = 1;
    for (size_t i = a.ndim(); i-- > 0;) {
        if (a.shape(i) > 1 && a.stride(i) != expected) return false;
        expected *= static_cast<int64_t>(a.shape(i));
    }
    return true;
}

inline vidkv_side side_from(const std::string & name) {
    require(name == "keys" || name == "values", "side must be 'keys' or 'values', not '" + name + "'");
    return name == "keys" ? VIDKV_KEYS : VIDKV_VALUES;
}

} // namespace vidkv::python
