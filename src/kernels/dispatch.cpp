#include "kernels/dispatch.h"

#include <cstdlib>
#include <string>

#include "kernels/avx2.h"
#include "kernels/avx512.h"
#include "kernels/neon.h"
#include "kernels/vnni.h"

namespace vidkv {

namespace {

struct Selection {
    const Kernels * kernels = &scalar_kernels;
    std::string error;
};

Selection select(const char * wanted) {
    Selection selection;
    for (const KernelChoice & choice : kernel_choices()) {
        if (choice.supported()) selection.kernels = choice.kernels;
    }
    if (!wanted || !*wanted) return selection;
    std::string names;
    for (const KernelChoice & choice : kernel_choices()) {
        names += (names.empty() ? "" : ", ") + std::string(choice.kernels->name);
        if (std::string(wanted) != choice.kernels->name) continue;
        if (choice.supported()) return {choice.kernels, ""};
        selection.error = "VIDKV_FORCE_ISA=" + std::string(wanted) + " is ignored: this machine does not have it; using " +
                          selection.kernels->name;
        return selection;
    }
    selection.error = "VIDKV_FORCE_ISA=" + std::string(wanted) + " is ignored: not one of " + names + "; using " +
                      selection.kernels->name;
    return selection;
}

const Selection & selection() {
    static const Selection chosen = select(std::getenv("VIDKV_FORCE_ISA"));
    return chosen;
}

} // namespace

const std::vector<KernelChoice> & kernel_choices() {
    static const std::vector<KernelChoice> choices = {
        {&scalar_kernels, [] { return true; }},
#if defined(VIDKV_HAVE_AVX2)
        {&avx2_kernels, avx2_supported},
#endif
#if defined(VIDKV_HAVE_VNNI)
        {&vnni_256_kernels, vnni_256_supported},
        {&avx_vnni_kernels, avx_vnni_supported},
#endif
#if defined(VIDKV_HAVE_AVX512)
        {&avx512_vnni_kernels, avx512_vnni_supported},
        {&avx512_kernels, avx512_supported},
#endif
#if defined(VIDKV_HAVE_NEON)
        {&neon_kernels, neon_supported},
#endif
    };
    return choices;
}

const Kernels & active_kernels() { return *selection().kernels; }
const char * kernels_error() { return selection().error.c_str(); }

} // namespace vidkv
